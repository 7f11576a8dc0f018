//! The decoder against what PyTorch, transformers, PEFT and TRL computed
//! (`tests/data/golden`; tolerances as stated there).
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
use forgelm_kernels_api::{AdamW, Compute, Ops};
use forgelm_kernels_cpu::Cpu;
use forgelm_kernels_reference::Reference;
use forgelm_model::{
    Activations, Adapter, CachedSequence, Decoder, Keep, KvCache, LoraConfig, LoraInit, ModelFiles,
    OpenModel, Pass, PeftInfo, Rope, RopeScaling, StepSize, yarn_attention_factor,
};
use forgelm_tensor::random::{Purpose, Stream};
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

fn floats(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    file.tensor(name).and_then(|t| t.to_f32().ok()).expect("the tensor is there")
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

fn tiny_llama(ops: Arc<dyn Ops>) -> Decoder {
    tiny("tiny-llama", ops)
}

fn tiny(model: &str, ops: Arc<dyn Ops>) -> Decoder {
    let files = ModelFiles::Folder(golden(&format!("models/{model}")));
    let open = OpenModel::open(&files).expect("the folder is good");
    open.load(ops, Compute::F32).expect("the weights are good")
}

fn activations(decoder: &Decoder, adapter: Option<&Adapter>, keep: Keep) -> Activations {
    let size = StepSize { tokens_max: 128, scored_rows_max: 128 };
    Activations::new(decoder, adapter, size, keep).expect("there is memory")
}

/// Mean loss over the scored rows.
fn loss(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    batch: &Batch,
    acts: &mut Activations,
) -> f64 {
    let mut logp = vec![0.0; batch.labels.len()];
    let pass = Pass { adapter, batch: batch.input(), dropout: None };
    decoder.forward(&pass, acts);
    decoder.logprobs(&pass, acts, batch.scored(), &mut logp);
    -logp.iter().map(|&l| f64::from(l)).sum::<f64>() / logp.len() as f64
}

#[track_caller]
fn assert_close(what: &str, found: f64, expected: f64, tolerance: f64) {
    assert!(
        (found - expected).abs() <= tolerance,
        "{what}: {found}, expected {expected} within {tolerance}"
    );
}

#[test]
fn logits_and_loss_are_those_of_transformers() {
    for model in ["tiny-llama", "tiny-qwen3", "tiny-gemma2"] {
        logits_and_loss(model);
    }
}

fn logits_and_loss(model: &str) {
    let batch = Batch::read(&tensors(&format!("forward/{model}/inputs.safetensors")), "");
    let expected = floats(&tensors(&format!("forward/{model}/outputs.safetensors")), "logits");
    let about = json(&format!("forward/{model}/golden.json"));
    for ops in libraries() {
        let decoder = tiny(model, ops);
        let mut acts = activations(&decoder, None, Keep::Nothing);
        let found = loss(&decoder, None, &batch, &mut acts);
        let expected_loss = number(&about["loss"]);
        assert_close("loss", found, expected_loss, 1e-5 * expected_loss);
        let rows: Vec<u32> = (0..batch.tokens.len() as u32).collect();
        let mut logits = vec![0.0; rows.len() * 512];
        decoder.logits(None, &mut acts, &rows, &mut logits);
        assert_eq!(rows.len(), 24 + 16, "row 1 is padded from column 16");
        for (i, (&found, &expected)) in logits.iter().zip(&expected).enumerate() {
            let tolerance = 1e-4 + 1e-4 * f64::from(expected.abs());
            assert_close(&format!("logit {i}"), f64::from(found), f64::from(expected), tolerance);
        }
    }
}

#[test]
fn greedy_tokens_with_a_cache_are_those_of_transformers() {
    for model in ["tiny-llama", "tiny-qwen3", "tiny-gemma2"] {
        greedy_tokens(model);
    }
}

fn greedy_tokens(model: &str) {
    let about = json(&format!("forward/{model}/golden.json"));
    let ids = |value: &Value| numbers(value).iter().map(|&id| id as u32).collect::<Vec<u32>>();
    let (prompt, expected) = (ids(&about["greedy"]["prompt"]), ids(&about["greedy"]["new"]));
    for ops in libraries() {
        let decoder = tiny(model, ops);
        let mut acts = activations(&decoder, None, Keep::Nothing);
        let mut cache = KvCache::new(&decoder, 64);
        let (mut tokens, mut found) = (prompt.clone(), Vec::new());
        let mut logits = vec![0.0; 512];
        while found.len() < expected.len() {
            let sequence = CachedSequence { tokens: &tokens, cache: &mut cache };
            decoder.forward_cached(None, &mut [sequence], &mut acts, &mut logits);
            let best = (0..512).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            found.push(best.expect("512 logits") as u32);
            tokens = found[found.len() - 1..].to_vec();
        }
        assert_eq!(found, expected);
    }
}

#[test]
fn three_packed_sequences_are_three_alone() {
    let file = tensors("misc/packed_forward.safetensors");
    let batch = Batch::read_packed(&file, &[9, 5, 12]);
    let expected = floats(&file, "logits");
    for ops in libraries() {
        let decoder = tiny_llama(ops);
        let mut acts = activations(&decoder, None, Keep::Nothing);
        let found = loss(&decoder, None, &batch, &mut acts);
        let expected_loss = number(&json("misc/packed_forward.json")["loss"]);
        assert_close("loss", found, expected_loss, 1e-5 * expected_loss);
        let mut logits = vec![0.0; 26 * 512];
        decoder.logits(None, &mut acts, &(0..26).collect::<Vec<u32>>(), &mut logits);
        for (i, (&found, &expected)) in logits.iter().zip(&expected).enumerate() {
            let tolerance = 1e-4 + 1e-4 * f64::from(expected.abs());
            assert_close(&format!("logit {i}"), f64::from(found), f64::from(expected), tolerance);
        }
    }
}

#[test]
fn sft_losses_are_those_of_trl() {
    let cases = json("misc/sft_loss.json");
    let cases = cases.as_object().expect("cases by name");
    assert_eq!(cases.len(), 2);
    let decoder = tiny_llama(Arc::new(Reference));
    for (name, case) in cases {
        let batch = Batch::from_json(&case["batch"]);
        let mut acts = activations(&decoder, None, Keep::Nothing);
        let found = loss(&decoder, None, &batch, &mut acts);
        let expected = number(&case["loss"]);
        assert_close(name, found, expected, 1e-5 * expected);
    }
}

#[test]
fn an_adapter_whose_b_is_zero_changes_no_logit() {
    let decoder = tiny_llama(Arc::new(Reference));
    let stream = Stream::new(42, Purpose::LoraInit);
    let lora = LoraConfig::new(8, 16.0, &["all-linear"]);
    let adapter = Adapter::new(lora, decoder.config(), &stream).expect("a good adapter");
    let batch = Batch::read(&tensors("forward/tiny-llama/inputs.safetensors"), "");
    let rows: Vec<u32> = (0..batch.tokens.len() as u32).collect();
    let logits = |adapter: Option<&Adapter>| {
        let mut acts = activations(&decoder, adapter, Keep::Nothing);
        decoder.forward(&Pass { adapter, batch: batch.input(), dropout: None }, &mut acts);
        let mut logits = vec![0.0; rows.len() * 512];
        decoder.logits(adapter, &mut acts, &rows, &mut logits);
        logits
    };
    assert_eq!(logits(None), logits(Some(&adapter)));
}

/// A model and PEFT's adapter before its first step.
fn first_adapter((model, case): (&str, &str), ops: Arc<dyn Ops>) -> (Decoder, Adapter) {
    let init = golden(&format!("lora/{model}/{case}/init"));
    if case != "pissa" {
        let decoder = tiny(model, ops);
        let mut adapter = Adapter::load(&init, decoder.config()).expect("PEFT's folder").adapter;
        decoder.refresh(&mut adapter);
        return (decoder, adapter);
    }
    let (decoder, mut adapter) = principal_components(ops);
    let init = SafetensorsFile::open(&init.join("adapter_model.safetensors")).expect("there");
    for slice in adapter.slices() {
        // The same components: singular vectors have either sign.
        let stored = floats(&init, &slice.name);
        adapter.params_mut()[slice.range].copy_from_slice(&stored);
    }
    (decoder, adapter)
}

/// PiSSA's start: a model without its principal components, and these.
fn principal_components(ops: Arc<dyn Ops>) -> (Decoder, Adapter) {
    let files = ModelFiles::Folder(golden("models/tiny-llama"));
    let open = OpenModel::open(&files).expect("the folder is good");
    let mut decoder = open.load(ops, Compute::F32).expect("the weights are good");
    let mut lora = LoraConfig::new(8, 16.0, &["q_proj", "v_proj"]);
    lora.init = LoraInit::PrincipalComponents;
    let stream = Stream::new(42, Purpose::LoraInit);
    let mut adapter = Adapter::new(lora, decoder.config(), &stream).expect("good settings");
    decoder.begin(&mut adapter, open.store()).expect("the weights are there");
    (decoder, adapter)
}

/// Ten AdamW steps of PEFT, from its first adapter to its last.
fn trajectory((model, case): (&str, &str), ops: Arc<dyn Ops>, keep: Keep) {
    let about = json(&format!("lora/{model}/{case}/golden.json"));
    let (decoder, mut adapter) = first_adapter((model, case), ops.clone());
    assert_eq!(Some(adapter.params().len() as u64), about["trainable"].as_u64());
    let n = adapter.params().len();
    let (mut m, mut v, mut grads) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    let mut acts = activations(&decoder, Some(&adapter), keep);
    let batches = tensors("lora/inputs/train_batches.safetensors");
    let expected = numbers(&about["losses"]);
    for (step, lr) in numbers(&about["lr"]).into_iter().enumerate() {
        let batch = Batch::read(&batches, &format!("step{step}."));
        let found = loss(&decoder, Some(&adapter), &batch, &mut acts);
        assert_close(&format!("{case}: loss of step {step}"), found, expected[step], 1e-4);
        grads.fill(0.0);
        let n_terms = batch.labels.len() as f32;
        let dlogp = vec![-1.0; batch.labels.len()];
        let pass = Pass { adapter: Some(&adapter), batch: batch.input(), dropout: None };
        decoder.backward(&pass, &mut acts, batch.scored(), &dlogp, &mut grads);
        let norm = ops.sum_of_squares((&grads).into()).sqrt() / f64::from(n_terms);
        let expected_norm = numbers(&about["grad_norm"])[step];
        assert_close(&format!("{case}: norm {step}"), norm, expected_norm, 1e-4 * expected_norm);
        if step == 0 {
            assert_first_gradients(&adapter, &grads, n_terms, &about["first_gradients"]);
        }
        let clip = (1.0 / (norm as f32 + 1e-6)).min(1.0);
        let constants = AdamW {
            lr: lr as f32,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            grad_scale: clip / n_terms,
            step: step as u64 + 1,
        };
        for slice in adapter.slices() {
            let at = slice.range;
            let param = &mut adapter.params_mut()[at.clone()];
            let (m, v) = (&mut m[at.clone()], &mut v[at.clone()]);
            ops.adamw_step(param.into(), m.into(), v.into(), (&grads[at]).into(), &constants);
        }
        decoder.refresh(&mut adapter);
    }
    let last = tensors(&format!("lora/{model}/{case}/final/adapter_model.safetensors"));
    for slice in adapter.slices() {
        let found = &adapter.params()[slice.range.clone()];
        for (i, (&found, &expected)) in found.iter().zip(&floats(&last, &slice.name)).enumerate() {
            let what = format!("{case}: {} [{i}]", slice.name);
            assert_close(&what, f64::from(found), f64::from(expected), 2e-5);
        }
    }
    let batch = Batch::read(&batches, "step0.");
    let after = loss(&decoder, Some(&adapter), &batch, &mut acts);
    assert_close(&format!("{case}: loss after"), after, number(&about["loss_after"]), 1e-4);
}

fn assert_first_gradients(adapter: &Adapter, grads: &[f32], n_terms: f32, expected: &Value) {
    let slices = adapter.slices();
    assert_eq!(expected.as_object().map(serde_json::Map::len), Some(slices.len()));
    for slice in slices {
        let name = format!("{}.default.weight", slice.name.trim_end_matches(".weight"));
        let about = &expected[&name];
        let found: Vec<f64> =
            grads[slice.range].iter().map(|&g| f64::from(g) / f64::from(n_terms)).collect();
        let l2 = found.iter().map(|g| g * g).sum::<f64>().sqrt();
        let expected_l2 = number(&about["l2"]);
        assert_close(&name, l2, expected_l2, 1e-4 * expected_l2);
        for (part, at) in [("head", 0), ("tail", found.len() - 8)] {
            for (i, expected) in numbers(&about[part]).into_iter().enumerate() {
                let tolerance = 1e-4 * expected_l2;
                assert_close(&format!("{name} {part} {i}"), found[at + i], expected, tolerance);
            }
        }
    }
}

#[test]
fn ten_steps_of_peft_on_q_and_v() {
    for ops in libraries() {
        trajectory(("tiny-llama", "qv"), ops, Keep::Everything);
    }
}

#[test]
fn ten_steps_of_peft_on_all_linear_layers() {
    for ops in libraries() {
        trajectory(("tiny-llama", "all"), ops, Keep::Everything);
    }
    trajectory(("tiny-llama", "all"), Arc::new(Reference), Keep::LayerInputs);
}

#[test]
fn ten_steps_of_peft_on_heads_that_are_normed() {
    for ops in libraries() {
        trajectory(("tiny-qwen3", "qv"), ops, Keep::Everything);
    }
    trajectory(("tiny-qwen3", "qv"), Arc::new(Reference), Keep::LayerInputs);
}

#[test]
fn ten_steps_of_peft_with_soft_caps_windows_and_norms_after_each_half() {
    for ops in libraries() {
        trajectory(("tiny-gemma2", "all"), ops, Keep::Everything);
    }
    trajectory(("tiny-gemma2", "all"), Arc::new(Reference), Keep::LayerInputs);
}

#[test]
fn ten_steps_of_peft_with_the_rank_stabilized_scale() {
    for ops in libraries() {
        trajectory(("tiny-llama", "rslora"), ops, Keep::Everything);
    }
}

#[test]
fn ten_steps_of_peft_with_magnitudes() {
    for ops in libraries() {
        trajectory(("tiny-llama", "dora"), ops, Keep::Everything);
    }
    trajectory(("tiny-llama", "dora"), Arc::new(Reference), Keep::LayerInputs);
}

#[test]
fn ten_steps_of_peft_from_principal_components() {
    for ops in libraries() {
        trajectory(("tiny-llama", "pissa"), ops, Keep::Everything);
    }
}

/// The residual is PEFT's, the components are its too but for signs, and the converted adapter on
/// the original weights gives the logits of the trained one on the residual.
#[test]
fn principal_components_are_those_of_peft_and_come_back_to_the_original_weights() {
    let residual = tensors("lora/tiny-llama/pissa/residual.safetensors");
    let init = tensors("lora/tiny-llama/pissa/init/adapter_model.safetensors");
    let last = tensors("lora/tiny-llama/pissa/final/adapter_model.safetensors");
    let (decoder, mut adapter) = principal_components(Arc::new(Reference));
    let original = tiny_llama(Arc::new(Reference));
    for module in adapter.modules() {
        let mut found = vec![0.0; module.n_out * module.n_in];
        decoder.linear(module.layer, module.linear).read_rows(0, &mut found);
        let expected = floats(&residual, &format!("{}.weight", module.path));
        assert_eq!(found.len(), expected.len());
        for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            let what = format!("{} {i}", module.path);
            assert_close(&what, f64::from(found), f64::from(expected), 2e-5);
        }
    }
    for slice in adapter.slices() {
        let stored = floats(&init, &slice.name);
        for (&found, &stored) in adapter.params()[slice.range].iter().zip(&stored) {
            let (found, stored) = (f64::from(found.abs()), f64::from(stored.abs()));
            assert_close(&slice.name, found, stored, 1e-4);
        }
    }
    // Some way from the start: PEFT's last values, with our signs' initial ones taken out.
    for slice in adapter.slices() {
        let (first, last) = (floats(&init, &slice.name), floats(&last, &slice.name));
        let params = &mut adapter.params_mut()[slice.range];
        for ((param, first), last) in params.iter_mut().zip(&first).zip(&last) {
            *param += last - first;
        }
    }
    let converted = adapter.on_original_weights(decoder.config()).expect("twice the rank is 16");
    let lora = converted.lora().expect("an adapter");
    assert_eq!((lora.r, lora.alpha, lora.init), (16, 32.0, LoraInit::Noise));
    let batch = Batch::read(&tensors("forward/tiny-llama/inputs.safetensors"), "");
    let rows: Vec<u32> = (0..batch.tokens.len() as u32).collect();
    let logits = |decoder: &Decoder, adapter: &Adapter| {
        let adapter = Some(adapter);
        let mut acts = activations(decoder, adapter, Keep::Nothing);
        decoder.forward(&Pass { adapter, batch: batch.input(), dropout: None }, &mut acts);
        let mut logits = vec![0.0; rows.len() * 512];
        decoder.logits(adapter, &mut acts, &rows, &mut logits);
        logits
    };
    let trained = logits(&decoder, &adapter);
    for (&a, &b) in trained.iter().zip(&logits(&original, &converted)) {
        assert_close("logit", f64::from(b), f64::from(a), 1e-4);
    }
}

#[test]
fn rotary_frequencies_and_tables_are_those_of_transformers() {
    let linear = RopeScaling::Linear { factor: 4.0 };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 256,
    };
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 256,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: yarn_attention_factor(4.0, 1.0),
        truncate: true,
    };
    let dynamic = RopeScaling::Dynamic { factor: 2.0, original_max_position_embeddings: 64 };
    for (name, theta, seq_len, scaling) in [
        ("default", 1e4, 64, RopeScaling::Default),
        ("linear-4", 1e4, 64, linear),
        ("dynamic-2-long", 1e4, 200, dynamic),
        ("llama3", 5e5, 300, llama3),
        ("yarn-4", 1e4, 300, yarn),
    ] {
        let file = tensors(&format!("rope/{name}.safetensors"));
        let rope = Rope { theta, scaling };
        let inv_freq = rope.inv_freq(32, seq_len);
        let expected = floats(&file, "inv_freq");
        assert_eq!(expected.len(), 16);
        for (&found, &expected) in inv_freq.iter().zip(&expected) {
            assert_close(name, f64::from(found), f64::from(expected), 1e-6);
        }
        let positions = batch::integers(&file, "positions");
        let positions: Vec<u32> = positions.iter().map(|&p| p as u32).collect();
        let (cos, sin) = rope.tables(32, seq_len, &positions);
        for (table, found) in [("cos", cos), ("sin", sin)] {
            let expected = floats(&file, table);
            assert_eq!(expected.len(), positions.len() * 32);
            for (row, &position) in positions.iter().enumerate() {
                let tolerance = if position > 1000 { 1e-4 } else { 1e-5 };
                for j in 0..32 {
                    let (found, expected) = (found[row * 16 + j % 16], expected[row * 32 + j]);
                    let what = format!("{name} {table} at {position}");
                    assert_close(&what, f64::from(found), f64::from(expected), tolerance);
                }
            }
        }
    }
}

#[test]
fn an_adapter_read_and_written_again_is_the_same() {
    let decoder = tiny_llama(Arc::new(Reference));
    for case in ["qv", "all", "rslora", "dora"] {
        let last = golden(&format!("lora/tiny-llama/{case}/final"));
        let loaded = Adapter::load(&last, decoder.config()).expect("PEFT's folder");
        let info = PeftInfo { base_model_name_or_path: "tiny-llama".to_owned(), revision: None };
        assert_eq!(loaded.info, info);
        let folder = tempfile::tempdir().expect("a temporary folder");
        loaded.adapter.save(folder.path(), &info).expect("it can be written");
        let again = Adapter::load(folder.path(), decoder.config()).expect("our own folder");
        assert_eq!(again.adapter.params(), loaded.adapter.params());
        assert_eq!(again.adapter.slices(), loaded.adapter.slices());
        again
            .check(loaded.adapter.lora().expect("an adapter"), Some("tiny-llama"))
            .expect("nothing differs");
    }
}
