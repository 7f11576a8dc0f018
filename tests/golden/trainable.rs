//! Training of base weights and merged models against what PyTorch and PEFT computed
//! (`tests/data/golden/forward`, `full`, `lora`).
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a test"
)]

#[path = "model/batch.rs"]
mod batch;

use std::path::PathBuf;
use std::sync::Arc;

use batch::Batch;
use forgelm_artifact::safetensors::SafetensorsFile;
use forgelm_artifact::write::StagedDir;
use forgelm_kernels_api::{AdamW, Compute, Ops, Rounding, Segment};
use forgelm_kernels_cpu::Cpu;
use forgelm_kernels_reference::Reference;
use forgelm_model::{
    Activations, Decoder, FourBitStorage, Keep, LinearStorage, LoadOptions, LoraConfig, LoraInit,
    ModelFiles, OpenModel, PackedInput, Pass, PeftInfo, Selection, StepSize, Trainable,
};
use forgelm_tensor::random::{Purpose, Stream};
use forgelm_tensor::{FourBit, ScaleStorage};
use serde_json::Value;

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden").join(path)
}

fn json(path: &str) -> Value {
    let text = std::fs::read_to_string(golden(path)).expect("golden data is in the tree");
    serde_json::from_str(&text).expect("golden data is JSON")
}

fn tensors(path: &str) -> SafetensorsFile {
    SafetensorsFile::open(&golden(path)).expect("golden data is a safetensors file")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(number).collect()
}

fn libraries() -> [Arc<dyn Ops>; 2] {
    [Arc::new(Reference), Arc::new(Cpu::new(2))]
}

#[track_caller]
fn assert_close(what: &str, found: f64, expected: f64, tolerance: f64) {
    assert!(
        (found - expected).abs() <= tolerance,
        "{what}: {found}, expected {expected} within {tolerance}"
    );
}

/// A model of which something trains.
struct Training {
    decoder: Decoder,
    trainable: Trainable,
    acts: Activations,
    grads: Vec<f32>,
}

impl Training {
    fn new(model: &str, selection: Selection, ops: Arc<dyn Ops>, keep: Keep) -> Self {
        let files = ModelFiles::Folder(golden(&format!("models/{model}")));
        let open = OpenModel::open(&files).expect("the folder is good");
        let mut decoder = open.load(ops, Compute::F32).expect("the weights are good");
        let stream = Stream::new(42, Purpose::LoraInit);
        let mut trainable =
            Trainable::new(selection, decoder.config(), &stream).expect("the names are good");
        decoder.begin(&mut trainable, open.store()).expect("the weights are there");
        let size = StepSize { tokens_max: 128, scored_rows_max: 128 };
        let acts =
            Activations::new(&decoder, Some(&trainable), size, keep).expect("there is memory");
        let grads = vec![0.0; trainable.params().len()];
        Self { decoder, trainable, acts, grads }
    }

    /// Mean loss; its gradient, summed over the scored rows, is left in `grads`.
    fn loss_and_gradient(&mut self, batch: &Batch) -> f64 {
        let mut logp = vec![0.0; batch.labels.len()];
        let pass = Pass { adapter: Some(&self.trainable), batch: batch.input(), dropout: None };
        self.decoder.forward(&pass, &mut self.acts);
        self.decoder.logprobs(&pass, &mut self.acts, batch.scored(), &mut logp);
        self.grads.fill(0.0);
        let dlogp = vec![-1.0; logp.len()];
        self.decoder.backward(&pass, &mut self.acts, batch.scored(), &dlogp, &mut self.grads);
        -logp.iter().map(|&l| f64::from(l)).sum::<f64>() / logp.len() as f64
    }
}

/// The gradient of every parameter of the model, element by element.
#[test]
fn the_gradient_of_every_parameter_is_that_of_torch() {
    let batch = Batch::read(&tensors("forward/tiny-llama/inputs.safetensors"), "");
    let expected = tensors("forward/tiny-llama/outputs.safetensors");
    let n_terms = batch.labels.len() as f64;
    for keep in [Keep::Everything, Keep::LayerInputs] {
        for ops in libraries() {
            let mut training = Training::new("tiny-llama", Selection::Everything, ops, keep);
            let _ = training.loss_and_gradient(&batch);
            let slices = training.trainable.slices();
            assert_eq!(slices.len(), 2 * 9 + 3);
            for slice in slices {
                let name = format!("grad.{}", slice.name);
                let expected = expected.tensor(&name).expect("every parameter has a gradient");
                let expected = expected.to_f32().expect("floats");
                let found = &training.grads[slice.range];
                assert_eq!(found.len(), expected.len(), "{name}");
                let norm = expected.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
                assert!(norm > 1e-4, "{name}: nothing to compare");
                for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
                    let found = f64::from(found) / n_terms;
                    assert_close(&format!("{name} [{i}]"), found, f64::from(expected), 1e-4 * norm);
                }
            }
        }
    }
}

fn assert_summary(what: &str, found: &[f64], about: &Value, tolerance: f64) {
    let l2 = found.iter().map(|g| g * g).sum::<f64>().sqrt();
    assert_close(what, l2, number(&about["l2"]), tolerance);
    for (part, at) in [("head", 0), ("tail", found.len() - 8)] {
        for (i, expected) in numbers(&about[part]).into_iter().enumerate() {
            assert_close(&format!("{what} {part} {i}"), found[at + i], expected, tolerance);
        }
    }
}

/// Ten AdamW steps of torch over every parameter.
fn trajectory(model: &str, ops: Arc<dyn Ops>) {
    let about = json(&format!("full/{model}/golden.json"));
    let batches = tensors("lora/inputs/train_batches.safetensors");
    let mut training = Training::new(model, Selection::Everything, ops.clone(), Keep::Everything);
    let slices = training.trainable.slices();
    assert_eq!(about["final"].as_object().map(serde_json::Map::len), Some(slices.len()));
    let n = training.grads.len();
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    for (step, lr) in numbers(&about["lr"]).into_iter().enumerate() {
        let batch = Batch::read(&batches, &format!("step{step}."));
        let n_terms = batch.labels.len() as f64;
        let loss = training.loss_and_gradient(&batch);
        let what = format!("{model}: loss of step {step}");
        assert_close(&what, loss, numbers(&about["losses"])[step], 1e-4);
        let norm = ops.sum_of_squares((&training.grads).into()).sqrt() / n_terms;
        let expected = numbers(&about["grad_norm"])[step];
        assert_close(&format!("{model}: norm of step {step}"), norm, expected, 1e-4 * expected);
        if step == 0 {
            for slice in &slices {
                let about = &about["first_gradients"][&slice.name];
                let grads = training.grads[slice.range.clone()].iter();
                let found: Vec<f64> = grads.map(|&g| f64::from(g) / n_terms).collect();
                assert_summary(&slice.name, &found, about, 1e-4 * number(&about["l2"]));
            }
        }
        let constants = AdamW {
            lr: lr as f32,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            grad_scale: ((1.0 / (norm + 1e-6)).min(1.0) / n_terms) as f32,
            step: step as u64 + 1,
        };
        let params = training.trainable.params_mut();
        let (m, v) = ((&mut m).into(), (&mut v).into());
        ops.adamw_step(params.into(), m, v, (&training.grads).into(), &constants);
        training.decoder.refresh(&mut training.trainable);
    }
    // A gradient near zero moves a value by the learning rate in a direction that rounding
    // decides; all else ends where it ended there.
    for slice in &slices {
        let params = training.trainable.params();
        let params = params[slice.range.clone()].iter();
        let found: Vec<f64> = params.map(|&p| f64::from(p)).collect();
        assert_summary(&slice.name, &found, &about["final"][&slice.name], 1e-4);
    }
    let after = training.loss_and_gradient(&Batch::read(&batches, "step0."));
    assert_close(&format!("{model}: loss after"), after, number(&about["loss_after"]), 1e-4);
}

#[test]
fn ten_steps_over_every_parameter() {
    for model in ["tiny-llama", "tiny-qwen3", "tiny-gemma2"] {
        for ops in libraries() {
            trajectory(model, ops);
        }
    }
}

fn tiny_llama() -> OpenModel {
    let files = ModelFiles::Folder(golden("models/tiny-llama"));
    OpenModel::open(&files).expect("the folder is good")
}

/// The folder that `write_whole` makes, opened.
fn whole(
    (open, decoder): (&OpenModel, &Decoder),
    trainable: &Trainable,
    folder: &std::path::Path,
) -> OpenModel {
    let mut dir = StagedDir::new(folder).expect("a staged folder");
    open.write_whole(decoder, trainable, &mut dir).expect("it can be written");
    dir.commit().expect("it can be committed");
    let written = ModelFiles::Folder(folder.to_owned());
    OpenModel::open(&written).expect("our own folder is good")
}

fn loss(decoder: &Decoder, adapter: Option<&Trainable>, batch: &Batch) -> f64 {
    let size = StepSize { tokens_max: 128, scored_rows_max: 128 };
    let mut acts =
        Activations::new(decoder, adapter, size, Keep::Nothing).expect("there is memory");
    let mut logp = vec![0.0; batch.labels.len()];
    let pass = Pass { adapter, batch: batch.input(), dropout: None };
    decoder.forward(&pass, &mut acts);
    decoder.logprobs(&pass, &mut acts, batch.scored(), &mut logp);
    -logp.iter().map(|&l| f64::from(l)).sum::<f64>() / logp.len() as f64
}

/// Adapters that PEFT trained, merged by us: the weights and the loss of PEFT's merged model.
#[test]
fn merged_models_are_those_of_peft() {
    let open = tiny_llama();
    let batch = Batch::read(&tensors("lora/inputs/train_batches.safetensors"), "step0.");
    for case in ["qv", "all", "rslora", "dora"] {
        let about = json(&format!("lora/tiny-llama/{case}/golden.json"));
        let decoder = open.load(Arc::new(Reference), Compute::F32).expect("good weights");
        let last = golden(&format!("lora/tiny-llama/{case}/final"));
        let adapter = Trainable::load(&last, open.config()).expect("PEFT's folder").adapter;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let merged = whole((&open, &decoder), &adapter, &folder.path().join("model"));
        let expected = about["merged_weights"].as_object().expect("weights by name");
        assert!(expected.len() >= 2, "{case}: nothing to compare");
        for (name, about) in expected {
            let tensor = merged.store().tensor(name).expect("every weight is there");
            let (values, rest) = tensor.bytes.as_chunks::<4>();
            assert!(rest.is_empty(), "{name}: the base is f32, and so is the merged model");
            let found: Vec<f64> =
                values.iter().map(|&v| f64::from(f32::from_le_bytes(v))).collect();
            assert_summary(name, &found, about, 2e-5);
        }
        let decoder = merged.load(Arc::new(Reference), Compute::F32).expect("good weights");
        let found = loss(&decoder, None, &batch);
        assert_close(case, found, number(&about["loss_after_merge"]), 1e-4);
    }
}

/// With an adapter that began at principal components, and with every weight trained: the folder
/// gives the loss of what was trained.
#[test]
fn a_whole_model_read_again_is_what_was_trained() {
    let batch = Batch::read(&tensors("lora/inputs/train_batches.safetensors"), "step0.");
    let mut pissa = LoraConfig::new(4, 8.0, &["q_proj", "down_proj"]);
    pissa.init = LoraInit::PrincipalComponents;
    let mut both = pissa.clone();
    (both.dora, both.rslora) = (true, true);
    for selection in [Selection::Adapter(pissa), Selection::Adapter(both), Selection::Everything] {
        let open = tiny_llama();
        let mut training =
            Training::new("tiny-llama", selection.clone(), Arc::new(Reference), Keep::Everything);
        let before = training.loss_and_gradient(&batch);
        let grads = training.grads.clone();
        for (param, grad) in training.trainable.params_mut().iter_mut().zip(&grads) {
            *param -= 1e-3 * grad;
        }
        training.decoder.refresh(&mut training.trainable);
        let trained = training.loss_and_gradient(&batch);
        assert!(before - trained > 0.01, "{selection:?}: the loss went from {before} to {trained}");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let saved =
            whole((&open, &training.decoder), &training.trainable, &folder.path().join("model"));
        let decoder = saved.load(Arc::new(Reference), Compute::F32).expect("good weights");
        assert_close("the saved model", loss(&decoder, None, &batch), trained, 1e-5);
    }
}

/// A checkpoint's files bring every number back, and only to what they were written from.
#[test]
fn trained_numbers_come_back_from_their_files() {
    let info = PeftInfo { base_model_name_or_path: "tiny-llama".to_owned(), revision: None };
    let mut pissa = LoraConfig::new(4, 8.0, &["v_proj"]);
    (pissa.init, pissa.dora) = (LoraInit::PrincipalComponents, true);
    let weights = Selection::Weights(vec!["model.norm.weight".to_owned()]);
    let selections = [Selection::Adapter(pissa), Selection::Everything, weights];
    let fresh = |selection: &Selection| {
        Training::new("tiny-llama", selection.clone(), Arc::new(Reference), Keep::Everything)
            .trainable
    };
    for selection in &selections {
        let mut trained = fresh(selection);
        trained.params_mut().iter_mut().for_each(|p| *p *= 1.5);
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, bytes) in trained.to_files(&info) {
            let path = folder.path().join(name);
            forgelm_artifact::write::atomic(&path, &bytes).expect("it can be written");
        }
        let mut again = fresh(selection);
        assert_ne!(again.params(), trained.params());
        again.restore(folder.path()).expect("its own files");
        assert_eq!(again, trained);
        for other in selections.iter().filter(|other| *other != selection) {
            assert!(fresh(other).restore(folder.path()).is_err(), "{other:?} from {selection:?}");
        }
    }
}

/// Logits of the tokens of a golden case, and those that PEFT computed.
fn peft_logits(folder: &str, model: &str, adapter: Option<Trainable>) -> (Vec<f32>, Vec<f32>) {
    let about = json(&format!("peft/{folder}/golden.json"));
    let tokens: Vec<u32> = numbers(&about["tokens"]).iter().map(|&id| id as u32).collect();
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let files = ModelFiles::Folder(golden(model));
    let open = OpenModel::open(&files).expect("the folder is good");
    let decoder = open.load(Arc::new(Reference), Compute::F32).expect("the weights are good");
    let loaded = || {
        let folder = golden(&format!("peft/{folder}"));
        Trainable::load(&folder, decoder.config()).expect("the adapter is good").adapter
    };
    let mut adapter = adapter.unwrap_or_else(loaded);
    decoder.refresh(&mut adapter);
    let size = StepSize { tokens_max: tokens.len(), scored_rows_max: tokens.len() };
    let mut acts =
        Activations::new(&decoder, Some(&adapter), size, Keep::Nothing).expect("there is memory");
    let batch = PackedInput {
        tokens: &tokens,
        positions: &positions,
        segments: &[Segment { start: 0, len: tokens.len() }],
        row_keys: &[],
    };
    decoder.forward(&Pass { adapter: Some(&adapter), batch, dropout: None }, &mut acts);
    let mut found = vec![0.0; tokens.len() * decoder.dims().v];
    decoder.logits(Some(&adapter), &mut acts, &positions, &mut found);
    let expected = tensors(&format!("peft/{folder}/logits.safetensors"));
    (found, expected.tensor("logits").expect("there").to_f32().expect("floats"))
}

#[track_caller]
fn assert_logits(what: &str, (found, expected): (Vec<f32>, Vec<f32>)) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
        let tolerance = 1e-4 + 1e-4 * f64::from(expected.abs());
        assert_close(
            &format!("{what}: logit {i}"),
            f64::from(found),
            f64::from(expected),
            tolerance,
        );
    }
}

/// Adapters with trained biases as PEFT saves them: its logits, and the same files when we save.
#[test]
fn adapters_with_trained_biases_are_those_of_peft() {
    for bias in ["all", "lora_only"] {
        let folder = format!("bias/{bias}");
        assert_logits(bias, peft_logits(&folder, "families/qwen2", None));
        let files = ModelFiles::Folder(golden("families/qwen2"));
        let open = OpenModel::open(&files).expect("the folder is good");
        let path = golden(&format!("peft/{folder}"));
        let loaded = Trainable::load(&path, open.config()).expect("the adapter is good");
        let trained = &json(&format!("peft/{folder}/golden.json"))["trained"];
        let slices = loaded.adapter.slices();
        assert_eq!(trained.as_array().map(Vec::len), Some(slices.len()), "{bias}");
        let saved = tempfile::tempdir().expect("a temporary folder");
        loaded.adapter.save(saved.path(), &loaded.info).expect("it can be written");
        let again = Trainable::load(saved.path(), open.config()).expect("our own folder");
        assert_eq!(again.adapter, loaded.adapter);
    }
}

/// Adapters that we trained and saved, and the logits that PEFT computes with them
/// (`tools/golden/peft_reads_ours.py`).
#[test]
fn peft_computes_our_logits_with_our_adapters() {
    for (case, n_tensors) in [("dora", 12), ("pissa", 8)] {
        let folder = format!("ours/{case}");
        assert_logits(case, peft_logits(&folder, "models/tiny-llama", None));
        let ours = our_adapter(case);
        assert_eq!(ours.slices().len(), n_tensors, "{case}");
        assert_logits(case, peft_logits(&folder, "models/tiny-llama", Some(ours)));
    }
}

/// One step of plain descent from the start, as it is saved for others.
fn our_adapter(case: &str) -> Trainable {
    let mut lora = LoraConfig::new(4, 8.0, &["q_proj", "down_proj"]);
    match case {
        "dora" => lora.dora = true,
        _ => lora.init = LoraInit::PrincipalComponents,
    }
    let ops: Arc<dyn Ops> = Arc::new(Reference);
    let mut training = Training::new("tiny-llama", Selection::Adapter(lora), ops, Keep::Everything);
    let batch = Batch::read(&tensors("lora/inputs/train_batches.safetensors"), "step0.");
    for _ in 0..2 {
        let _ = training.loss_and_gradient(&batch);
        let grads = training.grads.clone();
        for (param, grad) in training.trainable.params_mut().iter_mut().zip(&grads) {
            *param -= 2e-3 * grad;
        }
        training.decoder.refresh(&mut training.trainable);
    }
    let converted = training.trainable.on_original_weights(training.decoder.config());
    converted.expect("twice the rank is 8")
}

/// On a base of four bits: the principal components are those of the full weights, the residual is
/// what is quantized, magnitudes are lengths of its rows, and the merged model is what ran.
#[test]
fn adapters_train_on_four_bits_and_merge_into_what_ran() {
    let batch = Batch::read(&tensors("lora/inputs/train_batches.safetensors"), "step0.");
    let storage = FourBitStorage {
        kind: FourBit::Nf4,
        scales: ScaleStorage::Double,
        rounding: Rounding::Exact,
    };
    let options = LoadOptions { compute: Compute::F32, linear: LinearStorage::FourBit(storage) };
    let open = tiny_llama();
    let full = loss(&open.load(Arc::new(Reference), Compute::F32).expect("good"), None, &batch);
    let plain = loss(&open.load_as(Arc::new(Reference), options).expect("good"), None, &batch);
    for is_pissa in [false, true] {
        let mut lora = LoraConfig::new(16, 32.0, &["all-linear"]);
        lora.dora = true;
        if is_pissa {
            lora.init = LoraInit::PrincipalComponents;
        }
        let mut decoder = open.load_as(Arc::new(Cpu::new(2)), options).expect("good weights");
        let stream = Stream::new(42, Purpose::LoraInit);
        let mut trainable = Trainable::new(lora, decoder.config(), &stream).expect("good settings");
        decoder.begin(&mut trainable, open.store()).expect("the weights are there");
        let start = loss(&decoder, Some(&trainable), &batch);
        // A residual has less to lose: PiSSA starts nearer to the full model.
        let (near, far) = ((start - full).abs(), (plain - full).abs());
        match is_pissa {
            true => assert!(near < far, "starts {near} from the full model, plain is {far} away"),
            false => assert_close("start", start, plain, 1e-4),
        }
        for param in trainable.params_mut().iter_mut() {
            *param *= 1.01;
        }
        decoder.refresh(&mut trainable);
        let trained = loss(&decoder, Some(&trainable), &batch);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let saved = whole((&open, &decoder), &trainable, &folder.path().join("model"));
        let saved = saved.load(Arc::new(Reference), Compute::F32).expect("good weights");
        assert_close("the merged model", loss(&saved, None, &batch), trained, 1e-4);
    }
}
