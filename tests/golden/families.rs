//! Every family of models against what transformers computed on tiny random ones
//! (`tests/data/golden/families`, made by `tools/golden/families.py`).
//!
//! Among them: biases, a window smaller and one larger than the sequence, one key/value head, a
//! head wider than hidden width by heads, an odd vocabulary, tied and untied heads, each kind of
//! rotary scaling that depends on the length, dense layers between sparse ones. Both sequences of
//! a batch are packed; the golden values are those of each alone.
#![expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a test")]
#![allow(
    dead_code,
    clippy::cast_sign_loss,
    clippy::allow_attributes,
    reason = "this file uses a part of the batches"
)]

#[path = "model/batch.rs"]
mod batch;
#[path = "families/classifiers.rs"]
mod classifiers;
#[path = "families/float8.rs"]
mod float8;
#[path = "families/four_bit.rs"]
mod four_bit;
#[path = "families/gguf.rs"]
mod gguf;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use batch::Batch;
use forgelm_artifact::gguf::GgufFile;
use forgelm_artifact::safetensors::SafetensorsFile;
use forgelm_kernels_api::{AdamW, Compute, Ops};
use forgelm_kernels_cpu::Cpu;
use forgelm_kernels_reference::Reference;
use forgelm_model::{
    Activations, Adapter, CachedSequence, Decoder, ExpertPart, Keep, KvCache, Linear,
    LinearStorage, LoadOptions, LoraConfig, MemoryStore, ModelFiles, OpenModel, Pass, Role,
    Selection, StepSize, Trainable,
};
use forgelm_tensor::random::{Purpose, Stream};
use serde_json::{Value, json};

const CASES: [&str; 13] = [
    "llama-bias",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-short",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
];

const SPARSE: [&str; 3] = ["mixtral", "qwen2_moe", "qwen3_moe"];

fn folder(case: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/families");
    root.join(case)
}

struct Golden {
    decoder: Decoder,
    about: Value,
    file: SafetensorsFile,
    batch: Batch,
}

impl Golden {
    fn open(case: &str, ops: Arc<dyn Ops>) -> Self {
        let open = OpenModel::open(&ModelFiles::Folder(folder(case))).expect("a good folder");
        let path = folder(case).join("golden.safetensors");
        let file = SafetensorsFile::open(&path).expect("a good file");
        let text = std::fs::read_to_string(folder(case).join("golden.json"));
        Self {
            decoder: open.load(ops, Compute::F32).expect("good weights"),
            about: serde_json::from_str(&text.expect("it is there")).expect("it is JSON"),
            batch: Batch::read(&file, ""),
            file,
        }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let tensor = self.file.tensor(name).unwrap_or_else(|| panic!("no tensor {name}"));
        tensor.to_f32().expect("numbers")
    }

    /// Logits of the rows that are not padding.
    fn logits(&self) -> Vec<f32> {
        let v = self.decoder.dims().v;
        let all = self.floats("logits");
        assert_eq!(all.len(), 2 * 24 * v);
        all[..24 * v].iter().chain(&all[24 * v..(24 + 17) * v]).copied().collect()
    }
}

fn libraries() -> [Arc<dyn Ops>; 2] {
    [Arc::new(Reference), Arc::new(Cpu::new(2))]
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(number).collect()
}

#[track_caller]
fn assert_close(what: &str, found: f64, expected: f64, tolerance: f64) {
    let error = (found - expected).abs();
    assert!(error <= tolerance, "{what}: {found}, expected {expected} within {tolerance}");
}

fn activations(decoder: &Decoder, adapter: Option<&Adapter>, keep: Keep) -> Activations {
    let size = StepSize { tokens_max: 64, scored_rows_max: 64 };
    Activations::new(decoder, adapter, size, keep).expect("there is memory")
}

fn all_logits(decoder: &Decoder, batch: &Batch, acts: &mut Activations) -> Vec<f32> {
    let rows: Vec<u32> = (0..batch.tokens.len() as u32).collect();
    let mut logits = vec![0.0; rows.len() * decoder.dims().v];
    decoder.forward(&Pass { adapter: None, batch: batch.input(), dropout: None }, acts);
    decoder.logits(None, acts, &rows, &mut logits);
    logits
}

fn loss(golden: &Golden, adapter: Option<&Adapter>, acts: &mut Activations) -> f64 {
    let batch = &golden.batch;
    let mut logp = vec![0.0; batch.labels.len()];
    let pass = Pass { adapter, batch: batch.input(), dropout: None };
    golden.decoder.forward(&pass, acts);
    golden.decoder.logprobs(&pass, acts, batch.scored(), &mut logp);
    -logp.iter().map(|&l| f64::from(l)).sum::<f64>() / logp.len() as f64
}

#[test]
fn logits_and_loss_are_those_of_transformers() {
    for case in CASES {
        for ops in libraries() {
            let golden = Golden::open(case, ops);
            let mut acts = activations(&golden.decoder, None, Keep::Nothing);
            let found = all_logits(&golden.decoder, &golden.batch, &mut acts);
            let expected = golden.logits();
            assert_eq!(found.len(), expected.len());
            for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
                let tolerance = 1e-4 + 1e-4 * f64::from(expected.abs());
                let what = format!("{case}: logit {i}");
                assert_close(&what, f64::from(found), f64::from(expected), tolerance);
            }
            let expected = number(&golden.about["loss"]);
            assert_close(case, loss(&golden, None, &mut acts), expected, 1e-5 * expected);
        }
    }
}

#[test]
fn greedy_tokens_with_a_cache_are_those_of_transformers() {
    for case in CASES {
        for ops in libraries() {
            let golden = Golden::open(case, ops);
            let ids = |key: &str| -> Vec<u32> {
                let list = numbers(&golden.about["greedy"][key]);
                list.iter().map(|&id| id as u32).collect()
            };
            let (mut tokens, expected, mut found) = (ids("prompt"), ids("new"), Vec::new());
            assert!(expected.len() > 12, "{case}");
            let v = golden.decoder.dims().v;
            let mut acts = activations(&golden.decoder, None, Keep::Nothing);
            let mut cache = KvCache::new(&golden.decoder, 64);
            let mut logits = vec![0.0; v];
            while found.len() < expected.len() {
                let sequence = CachedSequence { tokens: &tokens, cache: &mut cache };
                golden.decoder.forward_cached(None, &mut [sequence], &mut acts, &mut logits);
                let best = (0..v).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                found.push(best.expect("there are logits") as u32);
                tokens = found[found.len() - 1..].to_vec();
            }
            assert_eq!(found, expected, "{case}");
        }
    }
}

/// An adapter with A = 1 and s = 1 on every linear layer: the gradient of B is that of the weight.
fn identity(decoder: &Decoder) -> Adapter {
    let mut targets = vec!["all-linear"];
    if decoder.config().experts.is_some() {
        targets.push("gate");
    }
    if decoder.dims().f_shared > 0 {
        targets.push("shared_expert_gate");
    }
    let mut lora = LoraConfig::new(1, 1.0, &targets);
    let shape = Adapter::zeroed(lora.clone(), decoder.config()).expect("a good adapter");
    for module in shape.modules() {
        lora.rank_pattern.insert(module.path.clone(), module.n_in);
        lora.alpha_pattern.insert(module.path.clone(), module.n_in as f64);
    }
    let mut adapter = Adapter::zeroed(lora, decoder.config()).expect("a good adapter");
    for module in adapter.modules().to_vec() {
        for i in 0..module.n_in {
            adapter.params_mut()[module.a.start + i * (module.n_in + 1)] = 1.0;
        }
    }
    adapter
}

/// The name of transformers for a weight: there the experts of a layer are one tensor.
fn name_in_transformers(name: &str) -> String {
    let name = name.replace("block_sparse_moe", "mlp");
    let Some((layer, expert)) = name.split_once(".experts.") else { return name };
    let is_down = expert.contains("down_proj") || expert.contains("w2");
    format!("{layer}.experts.{}", if is_down { "down_proj" } else { "gate_up_proj" })
}

/// Gradients of weights by the names of transformers.
fn weight_gradients(trainable: &Trainable, grads: &[f32]) -> BTreeMap<String, Vec<f32>> {
    let mut all: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for module in trainable.modules() {
        let name = name_in_transformers(&format!("{}.weight", module.path));
        all.entry(name).or_default().extend(&grads[module.b.clone()]);
    }
    if trainable.lora().is_none() {
        for slice in trainable.slices() {
            let name = name_in_transformers(&slice.name);
            all.entry(name).or_default().extend(&grads[slice.range]);
        }
    }
    all
}

/// Gradients of a loss that is the sum of `weight` times each log-probability.
fn gradients(
    golden: &Golden,
    trainable: &Trainable,
    (keep, weight, n_terms): (Keep, f32, u64),
) -> BTreeMap<String, Vec<f32>> {
    let mut acts = activations(&golden.decoder, Some(trainable), keep);
    golden.decoder.weigh_balance(trainable, n_terms, &mut acts);
    loss(golden, Some(trainable), &mut acts);
    let mut grads = vec![0.0; trainable.params().len()];
    let batch = &golden.batch;
    let pass = Pass { adapter: Some(trainable), batch: batch.input(), dropout: None };
    let dlogp = vec![weight; batch.labels.len()];
    golden.decoder.backward(&pass, &mut acts, batch.scored(), &dlogp, &mut grads);
    weight_gradients(trainable, &grads)
}

fn assert_gradient(what: &str, found: &[f64], expected: &Value) {
    let l2 = found.iter().map(|g| g * g).sum::<f64>().sqrt();
    let expected_l2 = number(&expected["l2"]);
    assert_close(what, l2, expected_l2, 1e-4 * expected_l2 + 1e-7);
    for (i, expected) in numbers(&expected["head"]).into_iter().enumerate() {
        assert_close(&format!("{what} [{i}]"), found[i], expected, 1e-4 * expected_l2 + 1e-7);
    }
}

#[test]
fn gradients_of_every_parameter_are_those_of_torch() {
    for case in CASES {
        for (ops, keep) in [
            (libraries()[0].clone(), Keep::Everything),
            (libraries()[1].clone(), Keep::Everything),
            (libraries()[0].clone(), Keep::LayerInputs),
        ] {
            let mut golden = Golden::open(case, ops);
            let stream = Stream::new(0, Purpose::LoraInit);
            let config = golden.decoder.config().clone();
            let mut whole =
                Trainable::new(Selection::Everything, &config, &stream).expect("all weights");
            let open = OpenModel::open(&ModelFiles::Folder(folder(case))).expect("a good folder");
            golden.decoder.begin(&mut whole, open.store()).expect("all weights");
            let weight = -1.0 / golden.batch.labels.len() as f32;
            let expected = golden.about["gradients"].as_object().expect("gradients by name");
            let found = gradients(&golden, &whole, (keep, weight, 0));
            assert_eq!(found.len(), expected.len(), "{case}");
            // Through an adapter only the linear layers have one.
            let adapter = identity(&golden.decoder);
            let through_adapter = gradients(&golden, &adapter, (keep, weight, 0));
            for (name, found) in found.into_iter().chain(through_adapter) {
                let found: Vec<f64> = found.iter().map(|&g| f64::from(g)).collect();
                assert_gradient(&format!("{case}: {name}"), &found, &expected[&name]);
            }
        }
    }
}

#[test]
fn the_balance_loss_and_its_gradient_are_those_of_transformers() {
    for case in SPARSE {
        let golden = Golden::open(case, Arc::new(Reference));
        let adapter = identity(&golden.decoder);
        let about = &golden.about["aux"];
        let mut acts = activations(&golden.decoder, None, Keep::Nothing);
        loss(&golden, None, &mut acts);
        let expected = number(&about["aux_loss"]);
        assert_close(case, acts.balance_loss().expect("experts"), expected, 1e-5 * expected);
        for keep in [Keep::Everything, Keep::LayerInputs] {
            let all = gradients(&golden, &adapter, (keep, 0.0, 1000));
            let routers = about["router_gradients"].as_object().expect("routers by name");
            assert_eq!(routers.len(), 2);
            for (name, expected) in routers {
                let weight = 1000.0 * number(&about["coef"]);
                let found: Vec<f64> = all[name].iter().map(|&g| f64::from(g) / weight).collect();
                assert_gradient(&format!("{case}: {name}"), &found, expected);
            }
        }
    }
}

#[test]
fn steps_of_an_adapter_on_all_linear_layers_are_those_of_torch() {
    for case in CASES {
        for ops in libraries() {
            steps(case, &ops);
        }
    }
}

fn steps(case: &str, ops: &Arc<dyn Ops>) {
    let golden = Golden::open(case, ops.clone());
    let about = &golden.about["lora"];
    let lora = LoraConfig::new(4, 8.0, &["all-linear"]);
    let mut adapter = Adapter::zeroed(lora, golden.decoder.config()).expect("a good adapter");
    let first = about["first_gradients"].as_object().expect("gradients by name");
    assert_eq!(adapter.slices().len(), first.len(), "{case}");
    let short = |name: &str| {
        let name = name.strip_prefix("base_model.model.").expect("the prefix of adapter files");
        name.strip_suffix(".weight").expect("the end of a weight").to_owned()
    };
    for slice in adapter.slices() {
        let values = golden.floats(&format!("lora.{}", short(&slice.name)));
        adapter.params_mut()[slice.range].copy_from_slice(&values);
    }
    let n = adapter.params().len();
    let (mut m, mut v, mut grads) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    let mut acts = activations(&golden.decoder, Some(&adapter), Keep::Everything);
    let (losses, norms) = (numbers(&about["losses"]), numbers(&about["grad_norm"]));
    assert_eq!(losses.len(), 4);
    let batch = &golden.batch;
    let n_terms = batch.labels.len() as f32;
    for (step, (&expected, &norm)) in losses.iter().zip(&norms).enumerate() {
        let what = format!("{case}: step {step}");
        assert_close(&what, loss(&golden, Some(&adapter), &mut acts), expected, 1e-4 * expected);
        grads.fill(0.0);
        let pass = Pass { adapter: Some(&adapter), batch: batch.input(), dropout: None };
        let dlogp = vec![-1.0; batch.labels.len()];
        golden.decoder.backward(&pass, &mut acts, batch.scored(), &dlogp, &mut grads);
        let found = ops.sum_of_squares((&grads).into()).sqrt() / f64::from(n_terms);
        assert_close(&what, found, norm, 5e-4 * norm);
        for slice in adapter.slices().iter().filter(|_| step == 0) {
            let l2 = ops.sum_of_squares((&grads[slice.range.clone()]).into()).sqrt()
                / f64::from(n_terms);
            let expected = number(&first[&short(&slice.name)]);
            assert_close(&slice.name, l2, expected, 1e-4 * expected + 1e-6 * norm);
        }
        let constants = AdamW {
            lr: number(&about["lr"]) as f32,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: number(&about["weight_decay"]) as f32,
            grad_scale: 1.0 / n_terms,
            step: step as u64 + 1,
        };
        let (m, v) = ((&mut m).into(), (&mut v).into());
        ops.adamw_step(adapter.params_mut().into(), m, v, (&grads).into(), &constants);
    }
    let expected = number(&about["loss_after"]);
    assert_close(case, loss(&golden, Some(&adapter), &mut acts), expected, 1e-3 * expected);
}

#[test]
fn experts_in_one_tensor_are_the_experts_one_by_one() {
    for case in SPARSE {
        let open = OpenModel::open(&ModelFiles::Folder(folder(case))).expect("a good folder");
        let (config, dims) = (open.config().clone(), open.config().dims());
        let mut store = MemoryStore::named(config.module_names());
        let mut stacked: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
        for role in Role::always(&config).into_iter().chain([Role::Head]) {
            let name = role.hf_name(config.module_names());
            let values = gguf::values(open.store(), &name);
            let Role::Linear(layer, Linear::Expert(_, part)) = role else {
                store.insert(&name, &role.shape(&dims), &values);
                continue;
            };
            let (last, shape) = match part {
                ExpertPart::Down => ("down_proj", vec![dims.e, dims.c, dims.f_expert]),
                _ => ("gate_up_proj", vec![dims.e, 2 * dims.f_expert, dims.c]),
            };
            let name = format!("model.layers.{layer}.mlp.experts.{last}");
            stacked.entry(name).or_insert((shape, Vec::new())).1.extend(values);
        }
        assert!(!stacked.is_empty());
        for (name, (shape, values)) in &stacked {
            store.insert(name, shape, values);
        }
        let fused = Decoder::from_store(config, &store, Arc::new(Reference), Compute::F32);
        let fused = fused.expect("the newer form");
        let golden = Golden::open(case, Arc::new(Reference));
        let mut acts = activations(&fused, None, Keep::Nothing);
        let found = all_logits(&fused, &golden.batch, &mut acts);
        assert_eq!(found, all_logits(&golden.decoder, &golden.batch, &mut acts));
        assert_eq!(fused.weights_bytes(), golden.decoder.weights_bytes());
    }
}

/// Eight bits and one scale a row, written out: `s = max |w| / 127`, `q = round(w / s)`, halves away from 0.
fn through_int8(values: &mut [f32], n_cols: usize) {
    for row in values.chunks_exact_mut(n_cols) {
        let scale = row.iter().fold(0.0_f32, |max, w| max.max(w.abs())) / 127.0;
        row.iter_mut().for_each(|w| *w = (*w / scale).round() * scale);
    }
}

#[test]
fn experts_in_eight_bits_are_their_rounded_weights() {
    for case in SPARSE {
        let open = OpenModel::open(&ModelFiles::Folder(folder(case))).expect("a good folder");
        let config = open.config().clone();
        let mut store = MemoryStore::named(config.module_names());
        for role in Role::always(&config).into_iter().chain([Role::Head]) {
            let name = role.hf_name(config.module_names());
            let shape = role.shape(&config.dims());
            let mut values = gguf::values(open.store(), &name);
            if matches!(role, Role::Linear(_, Linear::Expert(..))) {
                through_int8(&mut values, shape[1]);
            }
            store.insert(&name, &shape, &values);
        }
        for ops in libraries() {
            let options = LoadOptions { compute: Compute::F32, linear: LinearStorage::Int8Experts };
            let packed = open.load_as(ops.clone(), options).expect("good weights");
            let dense = open.load(ops.clone(), Compute::F32).expect("good weights");
            let rounded = Decoder::from_store(config.clone(), &store, ops, Compute::F32);
            let rounded = rounded.expect("good weights");
            let golden = Golden::open(case, Arc::new(Reference));
            let mut acts = activations(&packed, None, Keep::Nothing);
            let found = all_logits(&packed, &golden.batch, &mut acts);
            let expected = all_logits(&rounded, &golden.batch, &mut acts);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let what = format!("{case}: logit {i}");
                assert_close(&what, f64::from(*found), f64::from(*expected), 1e-4);
            }
            assert_ne!(found, all_logits(&dense, &golden.batch, &mut acts));
            // Matrices of this size are all padding: what they are kept as is counted instead.
            let n_experts: usize = (0..config.num_hidden_layers)
                .flat_map(|layer| config.linears(layer))
                .filter(|linear| matches!(linear, Linear::Expert(..)))
                .count();
            let formats = packed.linear_formats();
            let eight_bits = formats.iter().filter(|(format, _)| format.starts_with("int8 rows"));
            assert_eq!(eight_bits.map(|(_, n)| n).sum::<usize>(), n_experts, "{case}");
        }
    }
}

#[test]
fn gguf_names_are_those_of_the_gguf_package() {
    for case in CASES {
        let golden = Golden::open(case, Arc::new(Reference));
        let config = golden.decoder.config();
        let names = golden.about["gguf_names"].as_object().expect("names");
        let head = (!config.tie_word_embeddings).then_some(Role::Head);
        let roles: Vec<Role> = Role::always(config).into_iter().chain(head).collect();
        assert_eq!(roles.len(), names.len(), "{case}");
        for role in roles {
            let hf = role.hf_name(config.module_names());
            let found = role.gguf_name(config.norms.post_norms);
            // The package has no names for a dense layer of this family; they are the usual ones.
            let is_dense =
                matches!(role, Role::Linear(1, Linear::Gate | Linear::Up | Linear::Down));
            match names[&hf].as_str() {
                None => assert!(case == "qwen2_moe" && is_dense, "{case}: {hf}"),
                Some(expected) => assert_eq!(found, expected, "{case}: {hf}"),
            }
        }
    }
}

#[test]
fn a_gguf_file_gives_the_bits_of_the_folder_it_came_from() {
    let folders = tempfile::tempdir().expect("a temporary folder");
    // The format has no words for the other cases: dynamic scaling, Qwen's window.
    let cases = CASES.iter().filter(|case| !["llama-bias", "qwen2-window"].contains(case));
    let mut n = 0;
    for case in cases {
        let path = folders.path().join(format!("{case}.gguf"));
        let open = OpenModel::open(&ModelFiles::Folder(folder(case))).expect("a good folder");
        gguf::write(&open, &path);
        let file = OpenModel::open(&ModelFiles::Gguf(path)).expect("a good file");
        let decoder = file.load(Arc::new(Reference), Compute::F32).expect("good weights");
        let described = file.config().to_hf_json().expect("it can be described");
        assert_eq!(described["model_type"], json!(file.config().model_type));
        let golden = Golden::open(case, Arc::new(Reference));
        let mut acts = activations(&decoder, None, Keep::Nothing);
        let found = all_logits(&decoder, &golden.batch, &mut acts);
        let expected = all_logits(&golden.decoder, &golden.batch, &mut acts);
        assert_eq!(found, expected, "{case}");
        n += 1;
    }
    assert_eq!(n, 11);
}

#[test]
fn the_gguf_file_that_is_written_is_the_one_of_the_rules() {
    let folders = tempfile::tempdir().expect("a temporary folder");
    let mut n = 0;
    for case in CASES {
        let [rules, own] =
            ["rules", "own"].map(|name| folders.path().join(format!("{case}.{name}")));
        let open = OpenModel::open(&ModelFiles::Folder(folder(case))).expect("a good folder");
        let refused = match case {
            "llama-bias" => Some("the rotary scaling `dynamic` in a GGUF file"),
            "qwen2-window" => Some("its layers with a window in a GGUF file"),
            _ => None,
        };
        let check = |path: &Path| {
            let read = OpenModel::open(&ModelFiles::Gguf(path.to_owned())).expect("a good file");
            read.check_tensors().expect("all its tensors");
            open.check_gguf(&read)
        };
        if let Some(said) = refused {
            let error = match open.to_gguf() {
                Err(error) => error.to_string(),
                Ok(_) => {
                    gguf::write_own(&open, &own);
                    check(&own).expect_err("another model").to_string()
                }
            };
            assert!(error.contains(said), "{case}: {error}");
            continue;
        }
        gguf::write(&open, &rules);
        gguf::write_own(&open, &own);
        check(&own).unwrap_or_else(|error| panic!("{case}: {error}"));
        let [rules, own] = [rules, own].map(|path| GgufFile::open(&path).expect("a good file"));
        assert_eq!(own.names().collect::<Vec<_>>(), rules.names().collect::<Vec<_>>(), "{case}");
        for name in rules.names() {
            let [a, b] = [&own, &rules].map(|file| file.tensor(name).expect("it is there"));
            assert_eq!(a.shape, b.shape, "{case}: {name}");
            assert!(a.bytes == b.bytes, "{case}: {name}");
        }
        for key in rules.keys() {
            assert_eq!(own.metadata(key), rules.metadata(key), "{case}: {key}");
        }
        n += 1;
    }
    assert_eq!(n, 11);
}
