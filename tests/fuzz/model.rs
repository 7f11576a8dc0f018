//! Fuzzing of what a model folder says: its description, and weights in the four bits of bitsandbytes.
//!
//! Longer: `cargo test -p forgelm_model --test fuzz_model -- --seconds 60 --seed 7`.

#![expect(clippy::disallowed_methods, reason = "a fuzzer has a deadline and keeps what it finds")]
#![expect(clippy::print_stdout, reason = "a test program without the test harness")]

mod engine;

use engine::Target;
use forgelm_kernels_api::Compute;
use forgelm_kernels_reference::Reference;
use forgelm_model::{ModelFiles, OpenModel};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

#[global_allocator]
static ALLOCATOR: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

fn targets() -> Vec<Target> {
    vec![
        Target::new("model_config", model_config, config_seeds(), CONFIG_WORDS, 512),
        Target::new("four_bit", four_bit, Vec::new(), FOUR_BIT_WORDS, 64),
    ]
}

fn main() -> ExitCode {
    engine::main(&targets())
}

const CONFIG_WORDS: &[&str] = &[
    "\"num_hidden_layers\":",
    "\"num_experts\":",
    "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0},",
    "\"rope_scaling\":{\"rope_type\":\"longrope\",\"short_factor\":[],\"long_factor\":[1.0]},",
    "\"layer_types\":[\"sliding_attention\"],",
    "\"quantization_config\":{\"quant_method\":\"bitsandbytes\"},",
    "\"head_dim\":0,",
    "null",
    "[]",
    "{",
    "1e308",
];
const FOUR_BIT_WORDS: &[&str] = &[
    "\"quant_type\": \"fp4\"",
    "\"blocksize\": 0",
    "\"shape\": [1, 1]",
    "\"dtype\": \"float32\"",
    "\"nested_offset\": NaN",
    "\"nested_blocksize\": 1",
    ".nested_absmax",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
];

/// The model whose blocks `tests/data/hostile/four_bit` has, as transformers saved it.
const TINY: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 16, "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
    "bos_token_id": 1, "eos_token_id": 2}"#;

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden").join(path)
}

/// A folder of its own for each target, made once.
fn folder(place: &'static OnceLock<tempfile::TempDir>) -> &'static Path {
    place.get_or_init(|| tempfile::tempdir().expect("a folder can be made")).path()
}

/// A description is read, or refused with a message; then the tensors of a model that it is not of
/// are held against it.
fn model_config(bytes: &[u8]) -> String {
    static PLACE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = folder(&PLACE);
    std::fs::write(folder.join("config.json"), bytes).expect("a file can be written");
    let weights = folder.join("model.safetensors");
    if !weights.exists() {
        std::fs::copy(golden("families/qwen2/model.safetensors"), &weights).expect("it is there");
    }
    match OpenModel::open(&ModelFiles::Folder(folder.to_owned())) {
        Ok(open) => match open.check_tensors() {
            Ok(()) => "the model of the folder".to_owned(),
            Err(error) => format!("other tensors: {error}"),
        },
        Err(error) => error.to_string(),
    }
}

fn config_seeds() -> Vec<Vec<u8>> {
    let families = std::fs::read_dir(golden("families")).expect("the golden models are there");
    let mut paths: Vec<PathBuf> =
        families.flatten().map(|entry| entry.path().join("config.json")).collect();
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

/// Weights load, and are numbers, or are refused with a message.
fn four_bit(bytes: &[u8]) -> String {
    static PLACE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = folder(&PLACE);
    std::fs::write(folder.join("config.json"), TINY).expect("a file can be written");
    std::fs::write(folder.join("model.safetensors"), bytes).expect("a file can be written");
    let open = match OpenModel::open(&ModelFiles::Folder(folder.to_owned())) {
        Ok(open) => open,
        Err(error) => return error.to_string(),
    };
    match open.load(Arc::new(Reference), Compute::F32) {
        Ok(decoder) => format!("{} bytes of weights", decoder.weights_bytes()),
        Err(error) => error.to_string(),
    }
}
