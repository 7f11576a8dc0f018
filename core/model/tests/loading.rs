//! What is read and what is refused: descriptions, weights, adapters.
#![expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a test")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use forgelm_artifact::gguf::build::Builder;
use forgelm_artifact::gguf::{GgufFile, Value as GgufValue};
use forgelm_artifact::write::StagedDir;
use forgelm_artifact::{Class, Disk};
use forgelm_kernels_api::Compute;
use forgelm_kernels_cpu::Cpu;
use forgelm_kernels_reference::Reference;
use forgelm_model::{
    Adapter, AdapterError, ConfigError, Decoder, Linear, LinearStorage, LoadError, LoadOptions,
    LoraConfig, MemoryStore, ModelConfig, ModelFiles, OpenModel, PeftInfo, Role, Rope, RopeScaling,
    Selection, TensorStore, Trainable, WeightsError, read_config_json,
};
use forgelm_tensor::random::{Purpose, Stream};
use forgelm_tensor::{Dtype, quantize};
use serde_json::{Value, json};
use support::{Batch, tiny_config, tiny_store};

fn tiny_llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/models/tiny-llama")
}

fn config_json() -> Value {
    let text = std::fs::read_to_string(tiny_llama().join("config.json"));
    serde_json::from_str(&text.expect("golden data is in the tree")).expect("it is JSON")
}

/// The golden `config.json` with some keys changed (null takes a key away).
fn changed(changes: Value) -> Result<ModelConfig, ConfigError> {
    let mut value = config_json();
    for (key, new) in changes.as_object().expect("an object of changes") {
        value[key] = new.clone();
    }
    ModelConfig::from_hf_json(&value, "config.json")
}

fn refusal(changes: Value) -> String {
    changed(changes).expect_err("it must be refused").to_string()
}

#[test]
fn both_forms_of_config_json_say_the_same() {
    let newer = changed(json!({})).expect("the golden config");
    let older = changed(json!({
        "rope_parameters": null, "rope_theta": 10000.0, "rope_scaling": null, "dtype": null,
        "torch_dtype": "float32",
    }));
    assert_eq!(newer, older.expect("the older form"));
    assert_eq!(newer.rope, Rope { theta: 10_000.0, scaling: RopeScaling::Default });
    assert_eq!((newer.bos_token_id, newer.eos_token_ids), (Some(0), vec![2]));

    let llama3 = |key: &str, kind: &str| {
        changed(json!({
            "rope_parameters": null, "rope_theta": 500000.0,
            key: {kind: "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        }))
        .expect("a good config")
        .rope
    };
    assert_eq!(llama3("rope_parameters", "rope_type"), llama3("rope_scaling", "type"));
}

#[test]
fn missing_sizes_take_the_library_s_defaults() {
    let config = changed(json!({"head_dim": null, "num_key_value_heads": null}));
    let config = config.expect("a good config");
    assert_eq!((config.head_dim, config.num_key_value_heads), (16, 4));
}

#[test]
fn contradictions_are_refused_with_both_numbers() {
    for (changes, numbers) in [
        (
            json!({"head_dim": null, "num_attention_heads": 5, "num_key_value_heads": 5}),
            ["64", "5"],
        ),
        (json!({"num_attention_heads": 4, "num_key_value_heads": 3}), ["4", "3"]),
        (json!({"head_dim": 15}), ["15", "even"]),
        (json!({"hidden_size": 0}), ["0", "from 1"]),
        (json!({"hidden_size": -64}), ["-64", "whole number"]),
        (json!({"rms_norm_eps": "small"}), ["\"small\"", "a number"]),
        (json!({"vocab_size": null}), ["vocab_size", "missing"]),
    ] {
        let message = refusal(changes.clone());
        assert!(message.starts_with("config.json: "), "{message}");
        assert!(numbers.iter().all(|n| message.contains(n)), "{changes}: {message}");
    }
    let config = changed(json!({})).expect("the golden config");
    assert!(config.check_tokenizer_size(512).is_ok());
    assert!(config.check_tokenizer_size(500).is_ok(), "a padded embedding is right");
    let message = config.check_tokenizer_size(600).expect_err("too large").to_string();
    assert!(message.contains("600") && message.contains("512"), "{message}");
}

#[test]
fn what_is_not_available_says_what_differs() {
    for (changes, part) in [
        (json!({"model_type": "phi", "architectures": ["PhiForCausalLM"]}), "a parallel block"),
        (json!({"model_type": "gemma3", "architectures": null}), "`gemma3_text`"),
        (json!({"model_type": "martian"}), "available: `llama`"),
        (json!({"architectures": ["LlamaForSequenceClassification"]}), "LlamaForCausalLM"),
        (
            json!({"model_type": "mistral", "architectures": null, "attention_bias": true}),
            "`attention_bias: true` of a `mistral` model",
        ),
        (json!({"hidden_act": "gelu"}), "`hidden_act: gelu`"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"use_bidirectional_attention": "all"}), "use_bidirectional_attention"),
        (json!({"quantization_config": {"quant_method": "awq"}}), "awq"),
        (json!({"rope_parameters": {"rope_type": "proportional"}}), "proportional"),
    ] {
        let message = refusal(changes);
        assert!(message.contains(part) && message.contains("not available yet"), "{message}");
    }
}

#[test]
fn the_golden_folder_is_read_with_its_end_tokens() {
    let config = read_config_json(&tiny_llama()).expect("the golden folder");
    assert_eq!(config.eos_token_ids, [2]);
    // Embedding and head 2 * 512 * 64, two layers, last norm.
    assert_eq!(config.n_parameters(), 127_296);
}

fn load(config: &ModelConfig, store: &MemoryStore) -> Result<Decoder, WeightsError> {
    Decoder::from_store(config.clone(), store, Arc::new(Reference), Compute::F32)
}

#[test]
fn weights_are_read_strictly() {
    let config = tiny_config();
    let good = tiny_store(&config);
    assert!(load(&config, &good).is_ok());

    let mut store = good.clone();
    assert!(store.remove("model.layers.2.mlp.up_proj.weight"));
    let message = load(&config, &store).expect_err("one is missing").to_string();
    assert_eq!(message, "(memory): tensor `model.layers.2.mlp.up_proj.weight` is missing");

    let mut store = good.clone();
    store.insert("model.layers.3.mlp.up_proj.weight", &[1, 1], &[0.0]);
    let message = load(&config, &store).expect_err("one too many").to_string();
    assert!(message.contains("first `model.layers.3.mlp.up_proj.weight`"), "{message}");

    let mut store = good.clone();
    store.insert("model.layers.1.self_attn.k_proj.weight", &[16, 8], &[0.0; 128]);
    let message = load(&config, &store).expect_err("a wrong shape").to_string();
    assert!(message.contains("[16, 8]") && message.contains("[8, 16]"), "{message}");

    let mut store = good.clone();
    let mut values = vec![0.5; 24 * 16];
    values[5 * 16 + 3] = f32::NAN;
    store.insert("model.layers.0.mlp.gate_proj.weight", &[24, 16], &values);
    let error = load(&config, &store).expect_err("a NaN");
    assert!(error.to_string().ends_with("has the value NaN at row 5, column 3"), "{error}");
    assert_eq!(LoadError::from(error).class(), Class::Integrity);

    let mut store = good;
    store.insert("model.norm.weight", &[16], &[f32::INFINITY; 16]);
    let error = load(&config, &store).expect_err("an infinity").to_string();
    assert!(error.contains("`model.norm.weight` has the value inf"), "{error}");
}

#[test]
fn a_tied_head_may_be_absent_or_equal_but_not_different() {
    let mut config = tiny_config();
    let mut store = tiny_store(&config);
    assert!(store.remove("lm_head.weight"));
    let untied = load(&config, &store).expect_err("an untied model needs a head");
    assert!(matches!(untied, WeightsError::Missing { name, .. } if name == "lm_head.weight"));
    config.tie_word_embeddings = true;
    assert!(load(&config, &store).is_ok());

    let embedding = store.tensor("model.embed_tokens.weight").expect("it is there");
    let mut values: Vec<f32> = embedding
        .bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
        .collect();
    store.insert("lm_head.weight", &[40, 16], &values);
    let decoder = load(&config, &store).expect("an equal head is right");
    let alone = tiny_store(&tiny_config());
    let twice = load(&tiny_config(), &alone).expect("the untied model");
    assert_eq!(decoder.weights_bytes() + 40 * 16 * 4, twice.weights_bytes());

    values[7 * 16] += 1.0;
    store.insert("lm_head.weight", &[40, 16], &values);
    let error = load(&config, &store).expect_err("another head");
    assert!(matches!(error, WeightsError::HeadNotTied { row: 7, .. }), "{error}");
}

/// The golden folder as a GGUF file: other names, and the rows of q and k interleaved.
fn gguf_of_the_golden_folder(path: &Path) {
    gguf_changed(path, &|_, bytes| (Dtype::F32, bytes));
}

/// The same with the format and bytes of each tensor as `change` says.
fn gguf_changed(path: &Path, change: &dyn Fn(Role, Vec<u8>) -> (Dtype, Vec<u8>)) {
    let open = OpenModel::open(&ModelFiles::Folder(tiny_llama())).expect("the golden folder");
    let config = open.config();
    let mut builder = Builder::new().text("general.architecture", "llama");
    for (key, value) in [
        ("llama.context_length", config.max_position_embeddings),
        ("llama.embedding_length", config.hidden_size),
        ("llama.block_count", config.num_hidden_layers),
        ("llama.feed_forward_length", config.intermediate_size),
        ("llama.attention.head_count", config.num_attention_heads),
        ("llama.attention.head_count_kv", config.num_key_value_heads),
        ("llama.rope.dimension_count", config.head_dim),
        ("llama.vocab_size", config.vocab_size),
        ("tokenizer.ggml.bos_token_id", 0),
        ("tokenizer.ggml.eos_token_id", 2),
    ] {
        builder = builder.metadata(key, GgufValue::U32(value as u32));
    }
    builder = builder
        .metadata("llama.attention.layer_norm_rms_epsilon", GgufValue::F32(config.rms_norm_eps))
        .metadata("llama.rope.freq_base", GgufValue::F32(config.rope.theta as f32));
    for role in Role::always(config).into_iter().chain([Role::Head]) {
        let tensor = open
            .store()
            .tensor(&role.hf_name(config.module_names()))
            .expect("the golden folder is whole");
        let bytes = match role {
            Role::Linear(_, Linear::Q | Linear::K) => interleaved(tensor.bytes, 64 * 4, 16),
            _ => tensor.bytes.to_vec(),
        };
        let (dtype, bytes) = change(role, bytes);
        builder = builder.tensor(&role.gguf_name(false), dtype, &tensor.shape, bytes);
    }
    builder.write(&Disk::real(), path).expect("it can be written");
}

/// Per head: (2, d / 2) rows become (d / 2, 2).
fn interleaved(bytes: &[u8], row_bytes: usize, head_dim: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for head in bytes.chunks_exact(head_dim * row_bytes) {
        for j in 0..head_dim / 2 {
            for row in [j, j + head_dim / 2] {
                out.extend_from_slice(&head[row * row_bytes..(row + 1) * row_bytes]);
            }
        }
    }
    out
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    support::logits(decoder, &Batch::random(8, &[6, 3], decoder.dims().v))
}

#[test]
fn a_gguf_file_gives_the_same_bits_as_the_folder_it_came_from() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    gguf_of_the_golden_folder(&path);
    let from = |files: ModelFiles| {
        let open = OpenModel::open(&files).expect("good files");
        open.load(Arc::new(Reference), Compute::F32).expect("good weights")
    };
    let (gguf, hf) = (from(ModelFiles::Gguf(path)), from(ModelFiles::Folder(tiny_llama())));
    let mut described = gguf.config().clone();
    described.place.clone_from(&hf.config().place);
    assert_eq!(&described, hf.config());
    assert_eq!(logits(&gguf), logits(&hf));
}

/// A whole model of a GGUF file describes itself and gives the same bits.
#[test]
fn a_folder_made_from_a_gguf_file_is_the_same_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    gguf_of_the_golden_folder(&path);
    let gguf = OpenModel::open(&ModelFiles::Gguf(path)).expect("a good file");
    let names = Selection::Weights(vec!["model.norm.weight".to_owned()]);
    let mut trainable = Trainable::zeroed(names, gguf.config()).expect("a good name");
    let mut decoder = gguf.load(Arc::new(Reference), Compute::F32).expect("good weights");
    decoder.begin(&mut trainable, gguf.store()).expect("the weights are there");
    let mut dir = StagedDir::new(&folder.path().join("hf")).expect("a staged folder");
    gguf.write_whole(&decoder, &trainable, &mut dir).expect("it can be written");
    dir.commit().expect("it can be committed");
    let hf = OpenModel::open(&ModelFiles::Folder(folder.path().join("hf"))).expect("our folder");
    let mut described = hf.config().clone();
    described.place.clone_from(&gguf.config().place);
    assert_eq!(&described, gguf.config());
    let hf = hf.load(Arc::new(Reference), Compute::F32).expect("good weights");
    assert_eq!(logits(&hf), logits(&decoder));
}

/// A Q8_0 block is a half-precision scale and 32 codes: with 0xFFFF for the scale every value of
/// the block is NaN.
#[test]
fn fault_049_a_damaged_block_scale_is_found_and_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    let is_quantized = |role: Role| matches!(role, Role::Linear(1, Linear::Down));
    let quantized = |damage: bool| {
        move |role: Role, bytes: Vec<u8>| {
            if !is_quantized(role) {
                return (Dtype::F32, bytes);
            }
            let word = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("four bytes"));
            let values: Vec<f32> = bytes.chunks_exact(4).map(word).collect();
            let mut blocks = quantize(Dtype::Q8_0, &values).expect("whole blocks");
            if damage {
                blocks[34 * 7..34 * 7 + 2].copy_from_slice(&[0xFF, 0xFF]);
            }
            (Dtype::Q8_0, blocks)
        }
    };
    let load = || {
        let open = OpenModel::open(&ModelFiles::Gguf(path.clone())).expect("the header is good");
        open.load(Arc::new(Reference), Compute::F32)
    };
    gguf_changed(&path, &quantized(false));
    load().expect("good blocks");
    gguf_changed(&path, &quantized(true));
    let error = load().expect_err("it must be refused");
    assert_eq!(error.class(), Class::Integrity);
    assert!(error.to_string().contains("blk.1.ffn_down.weight"), "{error}");
}

/// Query and key rows are reordered on the way, whole blocks at a time.
#[test]
fn a_gguf_file_that_keeps_its_blocks_gives_the_bits_of_its_dense_values() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    let damage = std::cell::Cell::new(false);
    let change = |role: Role, bytes: Vec<u8>| {
        if !matches!(role, Role::Linear(..)) {
            return (Dtype::F32, bytes);
        }
        let word = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("four bytes"));
        let values: Vec<f32> = bytes.chunks_exact(4).map(word).collect();
        let mut blocks = quantize(Dtype::Q4_1, &values).expect("whole blocks");
        if damage.get() && matches!(role, Role::Linear(0, Linear::Q)) {
            blocks[20 * 7 + 2..20 * 7 + 4].copy_from_slice(&[0xFF, 0xFF]);
        }
        (Dtype::Q4_1, blocks)
    };
    let load = |linear| {
        let open = OpenModel::open(&ModelFiles::Gguf(path.clone())).expect("the header is good");
        open.load_as(Arc::new(Cpu::new(2)), LoadOptions { compute: Compute::Bf16, linear })
    };
    gguf_changed(&path, &change);
    let packed = load(LinearStorage::Blocks).expect("good blocks");
    let dense = load(LinearStorage::Dense).expect("good blocks");
    assert_eq!(packed.linear_formats().keys().collect::<Vec<_>>(), ["Q4_1"]);
    assert!(packed.weights_bytes() < dense.weights_bytes());
    let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert!(bits(logits(&packed)) == bits(logits(&dense)));
    damage.set(true);
    gguf_changed(&path, &change);
    let error = load(LinearStorage::Blocks).expect_err("it must be refused");
    assert_eq!(error.class(), Class::Integrity);
    assert!(error.to_string().contains("blk.0.attn_q.weight"), "{error}");
}

#[test]
fn gguf_metadata_that_cannot_run_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let refusal = |builder: Builder| {
        let path = folder.path().join("model.gguf");
        builder.write(&Disk::real(), &path).expect("it can be written");
        let file = GgufFile::open(&path).expect("a good file");
        ModelConfig::from_gguf(&file).expect_err("it must be refused").to_string()
    };
    let message = refusal(Builder::new().text("general.architecture", "gptneox"));
    assert!(message.contains("a parallel block") && message.contains("model.gguf: "), "{message}");
    let message = refusal(Builder::new().text("general.architecture", "llama"));
    assert!(message.contains("llama.embedding_length"), "{message}");
    let message = refusal(Builder::new().text("general.architecture", "qwen3"));
    assert!(message.contains("qwen3.embedding_length"), "{message}");
}

fn adapter(lora: LoraConfig) -> Result<Adapter, AdapterError> {
    Adapter::new(lora, &tiny_config(), &Stream::new(0, Purpose::LoraInit))
}

#[test]
fn targets_are_matched_by_the_last_component() {
    let names = |targets: &[&str]| -> Vec<String> {
        let adapter = adapter(LoraConfig::new(2, 4.0, targets)).expect("good targets");
        adapter.modules().iter().map(|m| m.path.clone()).collect()
    };
    assert_eq!(names(&["all-linear"]).len(), 21);
    assert_eq!(names(&["q_proj"]).len(), 3);
    assert_eq!(names(&["self_attn.q_proj", "q_proj"]).len(), 3);
    let only = "model.layers.1.mlp.down_proj";
    assert_eq!(names(&[only]), [only]);
    for missing in ["proj", "lm_head", "model.layers.3.mlp.down_proj", ""] {
        let error = adapter(LoraConfig::new(2, 4.0, &["q_proj", missing]));
        let message = error.expect_err("no such module").to_string();
        assert!(message.contains(&format!("`{missing}`")) && message.contains("`v_proj`"));
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let refusal = |change: &dyn Fn(&mut LoraConfig)| {
        let mut lora = LoraConfig::new(2, 4.0, &["q_proj"]);
        change(&mut lora);
        adapter(lora).expect_err("it must be refused").to_string()
    };
    assert!(refusal(&|l| l.r = 0).contains("`lora.r` is 0"));
    assert!(refusal(&|l| l.alpha = -1.0).contains("`lora.alpha` is -1"));
    assert!(refusal(&|l| l.dropout = 1.0).contains("`lora.dropout` is 1"));
    assert!(refusal(&|l| l.target_modules.clear()).contains("an empty list"));
}

/// A: uniform within 1/sqrt(16) = 0.25; B: zero. A module's first values do not depend on what
/// else is adapted.
#[test]
fn first_values_are_in_range_and_belong_to_the_module() {
    let all = adapter(LoraConfig::new(4, 8.0, &["all-linear"])).expect("good targets");
    let some = adapter(LoraConfig::new(4, 8.0, &["k_proj"])).expect("good targets");
    for module in some.modules() {
        let same = all.module(module.layer, module.linear).expect("all are adapted");
        let (a, b) = (&some.params()[module.a.clone()], &some.params()[module.b.clone()]);
        assert_eq!(a, &all.params()[same.a.clone()]);
        assert!(a.iter().all(|v| v.abs() <= 0.25) && a.iter().any(|v| v.abs() > 0.2));
        assert!(b.iter().all(|v| v.abs() <= 0.0));
    }
    let slices = all.slices();
    assert_eq!(slices.len(), 42);
    let mut end = 0;
    for slice in &slices {
        assert_eq!(slice.range.start, end, "{}", slice.name);
        end = slice.range.end;
        assert_eq!(slice.range.len(), slice.shape[0] * slice.shape[1]);
    }
    assert_eq!(end, all.params().len());
}

#[test]
fn merging_adds_the_product() {
    let decoder = support::tiny_decoder(&tiny_config(), Arc::new(Reference));
    let mut adapter = adapter(LoraConfig::new(1, 3.0, &["o_proj"])).expect("good targets");
    adapter.params_mut().fill(0.5);
    let module = adapter.modules()[1].clone();
    let weight = decoder.linear(1, Linear::O);
    let mut expected = vec![0.0; 16 * 32];
    weight.read_rows(0, &mut expected);
    let mut merged = expected.clone();
    adapter.merge_rows(&module, 0, &mut merged);
    expected.iter_mut().for_each(|w| *w += 3.0 * 0.25);
    assert!(merged.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6));
}

/// A saved adapter with some settings changed.
fn reloaded(changes: Value) -> Result<LoraConfig, AdapterError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let adapter = adapter(LoraConfig::new(2, 4.0, &["q_proj", "v_proj"])).expect("good targets");
    let info = PeftInfo { base_model_name_or_path: "tiny".to_owned(), revision: None };
    adapter.save(folder.path(), &info).expect("it can be written");
    let path = folder.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&path).expect("it was written");
    let mut settings: Value = serde_json::from_str(&text).expect("it is JSON");
    for (key, new) in changes.as_object().expect("an object of changes") {
        settings[key] = new.clone();
    }
    forgelm_artifact::write::atomic(&path, settings.to_string().as_bytes()).expect("written");
    let loaded = Adapter::load(folder.path(), &tiny_config())?;
    loaded.check(&LoraConfig::new(2, 4.0, &["q_proj", "v_proj"]), Some("tiny"))?;
    Ok(loaded.adapter.lora().expect("an adapter").clone())
}

#[test]
fn fault_048_adapters_that_do_not_fit_are_refused_with_the_difference() {
    assert!(reloaded(json!({})).is_ok());
    for (changes, part) in [
        (json!({"r": 4}), "has shape [2, 16], expected [4, 16]"),
        (json!({"lora_alpha": 8}), "`lora_alpha` is 8, expected 4"),
        (json!({"use_rslora": true}), "`use_rslora` is true, expected false"),
        (json!({"target_modules": ["q_proj"]}), "v_proj.lora_A.weight\" has no part"),
        (
            json!({"target_modules": ["q_proj", "v_proj", "o_proj"]}),
            "o_proj.lora_A.weight` is missing",
        ),
        (json!({"base_model_name_or_path": "other"}), "is other, expected tiny"),
        (json!({"rank_pattern": {"q_proj": 3}}), "expected [3, 16]"),
        (json!({"rank_pattern": {".*q_proj": 3}}), "expression"),
        (json!({"use_dora": true}), "lora_magnitude_vector` is missing"),
        (json!({"bias": "most"}), "expected `none`, `all` or `lora_only`"),
        (json!({"init_lora_weights": "pissa"}), "pissa"),
        (json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
        (json!({"peft_type": "IA3"}), "IA3"),
        (json!({"r": "many"}), "`r` is \"many\"; expected a whole number"),
    ] {
        let message = reloaded(changes.clone()).expect_err("it must be refused").to_string();
        assert!(message.contains(part), "{changes}: {message}");
    }
}

#[test]
fn rank_and_alpha_patterns_are_honored() {
    let mut lora = LoraConfig::new(2, 4.0, &["q_proj", "v_proj"]);
    lora.rank_pattern.insert("layers.1.self_attn.q_proj".to_owned(), 6);
    lora.alpha_pattern.insert("v_proj".to_owned(), 1.0);
    let adapter = adapter(lora).expect("good settings");
    let of = |layer, linear| {
        let module = adapter.module(layer, linear).expect("it is adapted");
        (module.r, module.scale)
    };
    assert_eq!(of(0, Linear::Q), (2, 2.0));
    assert_eq!(of(1, Linear::Q), (6, 4.0 / 6.0));
    assert_eq!(of(1, Linear::V), (2, 0.5));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let info = PeftInfo { base_model_name_or_path: "tiny".to_owned(), revision: None };
    adapter.save(folder.path(), &info).expect("it can be written");
    let again = Adapter::load(folder.path(), &tiny_config()).expect("our own folder");
    assert_eq!(again.adapter, adapter);
}
