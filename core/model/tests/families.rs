//! Descriptions of every family: the older form of `config.json`, what is written back, what a
//! run overrides, and what is refused.
#![expect(clippy::float_cmp, clippy::cast_possible_truncation, reason = "a test of exact values")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use forgelm_kernels_api::Compute;
use forgelm_kernels_reference::Reference;
use forgelm_model::{
    Adapter, ConfigError, ExpertPart, Linear, LoraConfig, ModelConfig, ModelFiles, OpenModel,
    RopeScaling, longrope_attention_factor,
};
use serde_json::{Map, Value, json};

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

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/families").join(case)
}

fn config_json(case: &str) -> Value {
    let text = std::fs::read_to_string(folder(case).join("config.json")).expect("it is there");
    serde_json::from_str(&text).expect("it is JSON")
}

fn read(value: &Value) -> Result<ModelConfig, ConfigError> {
    ModelConfig::from_hf_json(value, "config.json")
}

fn changed(case: &str, changes: Value) -> Result<ModelConfig, ConfigError> {
    let mut value = config_json(case);
    for (key, new) in changes.as_object().expect("an object of changes") {
        value[key] = new.clone();
    }
    read(&value)
}

/// The same description as libraries before transformers 5 wrote it.
fn older(case: &str) -> Value {
    let mut value = config_json(case);
    let map = value.as_object_mut().expect("an object");
    let dtype = map.remove("dtype").expect("it is there");
    map.insert("torch_dtype".to_owned(), dtype);
    let rope = map.remove("rope_parameters").expect("it is there");
    let global = rope.get("full_attention").unwrap_or(&rope);
    let mut scaling = global.as_object().expect("an object").clone();
    let theta = scaling.remove("rope_theta").expect("it is there");
    map.insert("rope_theta".to_owned(), theta);
    if let Some(local) = rope.get("sliding_attention") {
        map.insert("rope_local_base_freq".to_owned(), local["rope_theta"].clone());
    }
    if let Some(factor) = scaling.remove("partial_rotary_factor") {
        map.insert("partial_rotary_factor".to_owned(), factor);
    }
    if let Some(kind) = scaling.remove("rope_type").filter(|kind| kind != "default") {
        scaling.insert("type".to_owned(), kind);
        map.insert("rope_scaling".to_owned(), Value::Object(scaling));
    }
    map.remove("layer_types");
    if case == "gemma3" {
        map.insert("sliding_window_pattern".to_owned(), json!(2));
    }
    if case.starts_with("qwen") && case.ends_with("moe") {
        let n = map.remove("num_local_experts").or_else(|| map.remove("num_experts"));
        map.insert("num_experts".to_owned(), n.expect("it is there"));
    }
    value
}

#[test]
fn both_forms_of_every_family_say_the_same() {
    for case in CASES {
        let newer = read(&config_json(case)).expect("the golden config");
        assert_eq!(read(&older(case)).expect("the older form"), newer, "{case}");
    }
}

#[test]
fn what_is_written_says_the_same() {
    for case in CASES {
        let config = read(&config_json(case)).expect("the golden config");
        let written = config.to_hf_json().expect("it can be described");
        assert_eq!(read(&written).expect("our own description"), config, "{case}");
    }
}

/// By hand from the golden configs.
#[test]
fn options_are_those_of_the_files() {
    let read = |case: &str| read(&config_json(case)).expect("the golden config");
    let gemma3 = read("gemma3");
    let windows: Vec<Option<usize>> = (0..4).map(|layer| gemma3.window(layer)).collect();
    assert_eq!(windows, [Some(6), None, Some(6), None]);
    assert_eq!(gemma3.rope.scaling, RopeScaling::Linear { factor: 8.0 });
    let local = gemma3.attention.local_rope.as_ref().expect("it has two");
    assert_eq!((gemma3.rope.theta, local.theta), (1e6, 1e4));
    assert_eq!(gemma3.embedding_scale, Some(32.0_f32.sqrt()));

    let gemma2 = read("gemma2");
    assert_eq!((gemma2.attention.soft_cap, gemma2.final_soft_cap), (Some(3.0), None));
    assert_eq!(gemma2.window(0).or(gemma2.window(2)), Some(7));
    assert_eq!(gemma2.window(1), None);

    let qwen2 = read("qwen2-window");
    let windows: Vec<Option<usize>> = (0..3).map(|layer| qwen2.window(layer)).collect();
    assert_eq!(windows, [None, Some(6), Some(6)]);
    assert_eq!(read("qwen2").sliding_window, None, "`use_sliding_window` is false");

    let phi3 = read("phi3");
    assert_eq!((phi3.head_dim, phi3.rotary_dim()), (16, 12));
    assert_eq!(phi3.rope.attention_factor(), longrope_attention_factor(6.0, 16) as f32);

    let sparse = read("qwen2_moe").experts.expect("it has experts");
    assert_eq!(sparse.layers, [true, false, true]);
    assert_eq!(sparse.shared_intermediate_size, Some(20));
}

/// `sqrt(2304) = 48` is exact in bf16; `sqrt(3584) = 59.866` is 59.75 there, 59.875 in f16.
#[test]
fn the_factor_on_the_embedding_has_the_format_of_the_weights() {
    for (width, dtype, expected) in [
        (2304, "bfloat16", 48.0),
        (3584, "bfloat16", 59.75),
        (3584, "float16", 59.875),
        (3584, "float32", 3584.0_f32.sqrt()),
    ] {
        let config = changed("gemma2", json!({"hidden_size": width, "dtype": dtype}));
        assert_eq!(config.expect("a good config").embedding_scale, Some(expected), "{dtype}");
    }
}

#[test]
fn what_cannot_be_is_refused_with_its_place() {
    for (case, changes, parts) in [
        ("gemma3", json!({"layer_types": ["full_attention"]}), ["layer_types", "a list of 4"]),
        ("gemma3", json!({"layer_types": vec!["chunked"; 4]}), ["chunked", "sliding_attention"]),
        ("gemma2", json!({"attn_logit_softcapping": -1.0}), ["softcapping", "positive"]),
        ("gemma2", json!({"query_pre_attn_scalar": 0}), ["query_pre_attn_scalar", "positive"]),
        ("gemma2", json!({"hidden_activation": "relu"}), ["hidden_activation", "relu"]),
        (
            "qwen2",
            json!({"use_sliding_window": true, "sliding_window": null, "layer_types": null,
            "max_window_layers": 0}),
            ["sliding_window", "missing"],
        ),
        ("mixtral", json!({"num_experts_per_tok": 5}), ["num_experts_per_tok", "4 experts"]),
        ("mixtral", json!({"num_experts_per_tok": 0}), ["num_experts_per_tok", "0"]),
        ("mixtral", json!({"num_local_experts": 8193}), ["8193 experts", "at most 8192"]),
        (
            "mixtral",
            json!({"num_local_experts": 200, "num_experts_per_tok": 129}),
            ["num_experts_per_tok", "at most 128"],
        ),
        ("qwen3_moe", json!({"mlp_only_layers": "all"}), ["mlp_only_layers", "layer numbers"]),
        ("qwen3_moe", json!({"num_local_experts": null}), ["num_experts", "missing"]),
        (
            "phi3",
            json!({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0],
            "long_factor": [1.0]}}),
            ["short_factor", "half"],
        ),
        (
            "phi3",
            json!({"rope_parameters": {"rope_type": "longrope", "short_factor": ["x"],
            "long_factor": [1.0]}}),
            ["rope_parameters.short_factor", "a list of numbers"],
        ),
        (
            "llama-bias",
            json!({"rope_parameters": {"rope_type": "dynamic", "factor": 0.5}}),
            ["rope_scaling.factor", "at least 1"],
        ),
        ("llama-bias", json!({"num_hidden_layers": 1_000_000}), ["1000000", "at most"]),
    ] {
        let message = changed(case, changes.clone()).expect_err("it must be refused").to_string();
        let says = |part: &&str| message.contains(*part);
        assert!(message.starts_with("config.json: "), "{message}");
        assert!(parts.iter().all(says), "{case} {changes}: {message}");
    }
}

fn settings(value: &Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

#[test]
fn a_run_overrides_rotary_scaling() {
    let mut config = read(&config_json("mistral")).expect("the golden config");
    let before = config.clone();
    let yarn = settings(&json!({"type": "yarn", "factor": 4.0}));
    config.override_rope_scaling(&yarn).expect("good settings");
    assert!(matches!(
        config.rope.scaling,
        RopeScaling::Yarn { factor: 4.0, original_max_position_embeddings: 64, truncate: true, .. }
    ));
    assert_eq!(config.rope.theta, before.rope.theta);

    // The original length of the model's own scaling stays.
    let mut phi3 = read(&config_json("phi3")).expect("the golden config");
    let dynamic = settings(&json!({"rope_type": "dynamic", "factor": 2.0}));
    phi3.override_rope_scaling(&dynamic).expect("good settings");
    let expected = RopeScaling::Dynamic { factor: 2.0, original_max_position_embeddings: 16 };
    assert_eq!(phi3.rope.scaling, expected);

    for (bad, part) in [
        (json!({"type": "linear"}), "`rope_scaling.factor` is missing"),
        (json!({"type": "linear", "factor": 0.0}), "at least 1"),
        (json!({"type": "cubic", "factor": 2.0}), "`cubic`"),
        (json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}), "6, half"),
    ] {
        let mut config = before.clone();
        let error = config.override_rope_scaling(&settings(&bad)).expect_err("it is wrong");
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(config, before, "nothing changes when it is refused");
    }
}

#[test]
fn a_run_overrides_the_window_where_there_is_one() {
    let window = |case: &str| {
        let mut config = read(&config_json(case)).expect("the golden config");
        let known = config.override_sliding_window(9);
        config.validate().expect("still a good config");
        (known, (0..config.num_hidden_layers).map(|l| config.window(l)).collect::<Vec<_>>())
    };
    assert_eq!(window("llama-bias"), (false, vec![None; 2]));
    assert_eq!(window("mistral"), (true, vec![Some(9); 2]));
    assert_eq!(window("gemma3"), (true, vec![Some(9), None, Some(9), None]));
    assert_eq!(window("qwen2"), (true, vec![Some(9); 2]), "switched off in the file");
}

#[test]
fn chosen_experts_alone_are_adapted() {
    for (case, part) in [("mixtral", "w2"), ("qwen3_moe", "down_proj")] {
        let config = read(&config_json(case)).expect("the golden config");
        let all = LoraConfig::new(2, 4.0, &["all-linear"]);
        let chosen = all.clone().for_experts(&[1, 3], &config).expect("they exist");
        let adapter = Adapter::zeroed(chosen.clone(), &config).expect("a good adapter");
        let whole = Adapter::zeroed(all.clone(), &config).expect("a good adapter");
        let expected: Vec<_> = whole
            .modules()
            .iter()
            .filter(|m| match m.linear {
                Linear::Expert(expert, _) => expert == 1 || expert == 3,
                _ => true,
            })
            .map(|m| m.path.clone())
            .collect();
        let found: Vec<_> = adapter.modules().iter().map(|m| m.path.clone()).collect();
        assert_eq!(found, expected);
        assert_eq!(found.len(), 2 * (4 + 2 * 3));
        assert!(chosen.target_modules.iter().any(|t| t.ends_with(&format!("experts.3.{part}"))));
        let error = all.for_experts(&[0, 17], &config).expect_err("there are fewer");
        assert!(error.to_string().contains("expert 17"), "{error}");
    }
    // A target of one layer stays in that layer.
    let config = read(&config_json("mixtral")).expect("the golden config");
    let one = LoraConfig::new(2, 4.0, &["model.layers.1.block_sparse_moe.experts.0.w1"]);
    let one = one.for_experts(&[0], &config).expect("it exists");
    let adapter = Adapter::zeroed(one, &config).expect("a good adapter");
    let places: Vec<_> = adapter.modules().iter().map(|m| (m.layer, m.linear)).collect();
    assert_eq!(places, [(1, Linear::Expert(0, ExpertPart::Gate))]);
}

#[test]
fn a_tensor_of_a_family_that_is_missing_is_named() {
    let open = OpenModel::open(&ModelFiles::Folder(folder("qwen3"))).expect("a good folder");
    // The same files without their biases in the description: tensors without a part.
    let mut value = config_json("qwen3");
    value["attention_bias"] = json!(false);
    let config = read(&value).expect("a good config");
    let error =
        forgelm_model::Decoder::from_store(config, open.store(), Arc::new(Reference), Compute::F32);
    let message = error.expect_err("the biases are left over").to_string();
    assert!(message.contains("8 tensor(s)") && message.contains("bias"), "{message}");
}
