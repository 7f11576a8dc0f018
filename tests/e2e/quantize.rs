//! `forgelm quantize`: what each method makes, that it loads, what it costs, and what is refused.

use crate::support::{Ran, Workplace, data_dir};
use forgelm_artifact::gguf::GgufFile;
use forgelm_artifact::safetensors::{self, SafetensorsFile, TensorToWrite};
use forgelm_tensor::{BlockScales, Dtype, FourBit, FourBitTensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

/// The methods of the bundled library, as a message lists them.
const METHODS: &str = "loaded: fp4, int8, nf4, q4_0, q4_1, q4_k, q6_k, q8_0";

fn quantize(workplace: &Workplace, args: &[&str]) -> Ran {
    let mut all = vec!["quantize", "--output", "out"];
    if !args.contains(&"--model") {
        all.extend(["--model", "wide"]);
    }
    workplace.forgelm(&[&all[..], args].concat())
}

/// A model of one layer whose rows are whole blocks of every format: width 256. Its numbers are in
/// bfloat16's reach and its head is its embedding.
pub fn with_wide_model() -> Workplace {
    let workplace = Workplace::new();
    workplace.copy_model("wide");
    let mut config: Value = serde_json::from_str(&workplace.read("wide/config.json")).unwrap();
    for (key, value) in [
        ("hidden_size", json!(256)),
        ("intermediate_size", json!(512)),
        ("num_hidden_layers", json!(1)),
        ("head_dim", json!(64)),
        ("tie_word_embeddings", json!(true)),
    ] {
        config[key] = value;
    }
    workplace.write("wide/config.json", &config.to_string());
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let shapes: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".to_owned(), vec![512, 256]),
        ("model.norm.weight".to_owned(), vec![256]),
        (layer("input_layernorm"), vec![256]),
        (layer("post_attention_layernorm"), vec![256]),
        (layer("self_attn.q_proj"), vec![256, 256]),
        (layer("self_attn.k_proj"), vec![128, 256]),
        (layer("self_attn.v_proj"), vec![128, 256]),
        (layer("self_attn.o_proj"), vec![256, 256]),
        (layer("mlp.gate_proj"), vec![512, 256]),
        (layer("mlp.up_proj"), vec![512, 256]),
        (layer("mlp.down_proj"), vec![256, 512]),
    ];
    let mut state = 7_u32;
    let mut number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap()) / 32_768.0 - 1.0
    };
    let tensors: Vec<TensorToWrite<'_>> = shapes
        .iter()
        .map(|(name, shape)| {
            let n = shape.iter().product();
            let values: Vec<f32> = match shape.len() {
                1 => (0..n).map(|_| 1.0 + 0.1 * number()).collect(),
                _ => (0..n).map(|_| 0.1 * number()).collect(),
            };
            TensorToWrite::f32(name, shape, &values)
        })
        .collect();
    let bytes = safetensors::to_bytes(&tensors, &BTreeMap::new());
    fs::write(workplace.path("wide/model.safetensors"), bytes).unwrap();
    workplace
}

fn score(workplace: &Workplace, model: &str) -> Vec<f64> {
    let row = json!({"input_ids": [5, 90, 17, 230, 44, 61, 300, 12]}).to_string();
    workplace.write("in.jsonl", &row);
    let args = ["score", "--input", "in.jsonl", "--output", "scores.jsonl"];
    let more = ["--compute-dtype", "float32", "--model", model];
    workplace.forgelm(&[&args[..], &more].concat()).expect_code(0);
    let row = workplace.json_lines("scores.jsonl").remove(0);
    row["logprobs"].as_array().unwrap()[1..].iter().map(|l| l.as_f64().unwrap()).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn manifest(workplace: &Workplace) -> Value {
    serde_json::from_str(&workplace.read("out/compliance/quantize_manifest.json")).unwrap()
}

/// More bits, less distance from the model; every file verifies.
#[test]
fn gguf_files_score_as_the_model_does_within_their_bits() {
    let workplace = with_wide_model();
    let expected = score(&workplace, "wide");
    let cases = [
        ("q8_0", Dtype::Q8_0, Dtype::Q8_0, 0.03),
        ("q6_k", Dtype::Q6K, Dtype::Q6K, 0.1),
        ("q4_k", Dtype::Q4K, Dtype::Q6K, 0.5),
        ("q4_1", Dtype::Q4_1, Dtype::Q6K, 0.5),
        ("q4_0", Dtype::Q4_0, Dtype::Q6K, 0.6),
    ];
    for (method, dtype, head, bound) in cases {
        let ran = quantize(&workplace, &["--method", method, "--output-format", "json"]);
        let envelope = ran.expect_code(0).json();
        let path = format!("out/wide.{method}.gguf");
        assert_eq!(envelope["model_path"], path);
        workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
        workplace.forgelm(&["verify-gguf", &path]).expect_code(0);
        let file = GgufFile::open(&workplace.path(&path)).unwrap();
        let of = |name: &str| file.tensor(name).unwrap().dtype;
        assert_eq!(of("blk.0.attn_q.weight"), dtype, "{method}");
        assert_eq!(of("token_embd.weight"), head, "{method}");
        assert_eq!(of("blk.0.attn_norm.weight"), Dtype::F32, "{method}");
        let found = distance(&score(&workplace, &path), &expected);
        assert!(found > 0.0 && found < bound, "{method}: {found} apart");
        let manifest = manifest(&workplace);
        assert_eq!(manifest["tensors"].as_array().unwrap().len(), 11);
        let after = envelope["metrics"]["quantize_bytes_after"].as_f64().unwrap();
        let before = envelope["metrics"]["quantize_bytes_before"].as_f64().unwrap();
        assert!(after < before * 0.3, "{method}: {before} to {after}");
        fs::remove_dir_all(workplace.path("out")).unwrap();
    }
}

/// The tokens of the file are those of the folder.
#[test]
fn the_tokenizer_goes_into_the_file() {
    let workplace = with_wide_model();
    quantize(&workplace, &["--method", "q8_0"]).expect_code(0);
    workplace.write("text.jsonl", "{\"text\": \"Some 1234 words, and\\nmore: <|im_end|> äö.\"}");
    let ids = |model: &str| {
        let args = ["score", "--input", "text.jsonl", "--output", "o.jsonl", "--model", model];
        workplace.forgelm(&args).expect_code(0);
        workplace.json_lines("o.jsonl")[0]["input_ids"].clone()
    };
    assert_eq!(ids("out/wide.q8_0.gguf"), ids("wide"));
    let file = GgufFile::open(&workplace.path("out/wide.q8_0.gguf")).unwrap();
    assert_eq!(file.get_str("tokenizer.ggml.pre").unwrap(), Some("gpt-2"));
    let template = workplace.read("wide/chat_template.jinja");
    assert_eq!(file.get_str("tokenizer.chat_template").unwrap(), Some(&*template));
}

/// Width 64 is no whole block of 256: what llama.cpp's own tool does then.
#[test]
fn rows_that_are_no_whole_blocks_get_a_format_with_smaller_ones() {
    let workplace = Workplace::new();
    let ran = quantize(&workplace, &["--model", "model", "--method", "q4_k"]).expect_code(0);
    ran.expect_stderr("with rows of 64 are written as Q5_0");
    let file = GgufFile::open(&workplace.path("out/model.q4_k.gguf")).unwrap();
    assert_eq!(file.tensor("blk.1.ffn_up.weight").unwrap().dtype, Dtype::Q5_0);
    assert_eq!(file.tensor("output.weight").unwrap().dtype, Dtype::Q8_0);
    let near = distance(&score(&workplace, "out/model.q4_k.gguf"), &score(&workplace, "model"));
    assert!(near < 0.5, "{near}");
}

#[test]
fn a_gguf_file_is_quantized_again_and_threads_change_no_byte() {
    let workplace = with_wide_model();
    quantize(&workplace, &["--method", "q8_0"]).expect_code(0);
    fs::rename(workplace.path("out"), workplace.path("first")).unwrap();
    let mut files = Vec::new();
    for threads in ["1", "3"] {
        let model = ["--model", "first/wide.q8_0.gguf", "--threads", threads];
        quantize(&workplace, &[&model[..], &["--method", "q6_k"]].concat()).expect_code(0);
        files.push(fs::read(workplace.path("out/wide.q8_0.q6_k.gguf")).unwrap());
        fs::remove_dir_all(workplace.path("out")).unwrap();
    }
    assert!(files[0] == files[1]);
}

/// Four tensors for each linear layer, in the layout of bitsandbytes; all else as it was.
#[test]
fn four_bit_folders_hold_the_blocks_of_bitsandbytes() {
    let workplace = with_wide_model();
    for kind in [FourBit::Nf4, FourBit::Fp4] {
        quantize(&workplace, &["--method", kind.name()]).expect_code(0);
        workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
        let [from, made] = ["wide", "out"].map(|dir| {
            SafetensorsFile::open(&workplace.path(dir).join("model.safetensors")).unwrap()
        });
        let name = "model.layers.0.mlp.down_proj.weight";
        let values = from.tensor(name).unwrap().to_f32().unwrap();
        let expected = FourBitTensor::quantize(kind, &values, false);
        let codes = made.tensor(name).unwrap();
        assert_eq!((codes.dtype, codes.shape), (Dtype::U8, &[256 * 512 / 2, 1][..]));
        assert!(codes.bytes == expected.packed);
        let scales = made.tensor(&format!("{name}.absmax")).unwrap().to_f32().unwrap();
        assert_eq!(BlockScales::Single(scales), expected.scales);
        let map = made.tensor(&format!("{name}.quant_map")).unwrap().to_f32().unwrap();
        assert_eq!(map, kind.values());
        let state = format!("{name}.quant_state.bitsandbytes__{}", kind.name());
        let state: Value = serde_json::from_slice(made.tensor(&state).unwrap().bytes).unwrap();
        let said = json!({
            "quant_type": kind.name(), "blocksize": 64, "dtype": "float32", "shape": [256, 512],
        });
        assert_eq!(state, said);
        for same in ["model.embed_tokens.weight", "model.norm.weight"] {
            assert!(made.tensor(same).unwrap().bytes == from.tensor(same).unwrap().bytes);
        }
        let config: Value = serde_json::from_str(&workplace.read("out/config.json")).unwrap();
        assert_eq!(config["quantization_config"]["bnb_4bit_quant_type"], kind.name());
        let near = distance(&score(&workplace, "out"), &score(&workplace, "wide"));
        assert!(near > 0.0 && near < 0.6, "{near}");
        fs::remove_dir_all(workplace.path("out")).unwrap();
    }
}

/// What is written of a four-bit folder is dense, and its description says so; its numbers are what
/// the blocks stand for.
#[test]
fn four_bit_folders_are_models_like_others() {
    let workplace = with_wide_model();
    quantize(&workplace, &["--method", "nf4"]).expect_code(0);
    fs::rename(workplace.path("out"), workplace.path("four")).unwrap();
    let four = score(&workplace, "four");
    quantize(&workplace, &["--model", "four", "--method", "int8"]).expect_code(0);
    let config: Value = serde_json::from_str(&workplace.read("out/config.json")).unwrap();
    assert_eq!(config.get("quantization_config"), None);
    assert!(distance(&score(&workplace, "out"), &four) < 0.05);
    fs::remove_dir_all(workplace.path("out")).unwrap();
    quantize(&workplace, &["--model", "four", "--method", "q8_0"]).expect_code(0);
    assert!(distance(&score(&workplace, "out/four.q8_0.gguf"), &four) < 0.03);
    fs::remove_dir_all(workplace.path("out")).unwrap();

    let path = workplace.path("four/model.safetensors");
    let text = fs::read(&path).unwrap();
    let place = text.windows(14).position(|w| w == b"\"blocksize\":64").unwrap();
    let mut bad = text;
    bad[place + 12..][..2].copy_from_slice(b"32");
    fs::write(&path, bad).unwrap();
    let args = ["score", "--model", "four", "--input", "in.jsonl", "--output", "o.jsonl"];
    let ran = workplace.forgelm(&args).expect_code(1);
    ran.expect_stderr("`blocksize` is 32; expected 64");
}

/// A method of any library works, without a layout of its own: the values that it leaves.
#[test]
fn other_methods_leave_a_folder_of_their_values() {
    let workplace = with_wide_model();
    let expected = score(&workplace, "wide");
    let ran = quantize(&workplace, &["--method", "int8"]).expect_code(0);
    ran.expect_stderr("no program reads files of `int8`");
    let int8 = score(&workplace, "out");
    let found = distance(&int8, &expected);
    assert!(found > 0.0 && found < 0.05, "{found}");
    fs::remove_dir_all(workplace.path("out")).unwrap();

    let program = env!("CARGO_BIN_EXE_forgelm");
    let folder = std::path::Path::new(program).parent().unwrap().join("deps");
    let library = folder.join("libforgelm_example_plugin.so");
    let args = ["quantize", "--model", "wide", "--method", "absmax", "--output", "out"];
    let mut command = workplace.command(&args);
    let ran: Ran = command.env("FORGELM_PLUGIN_PATH", library).output().unwrap().into();
    ran.expect_code(0);
    assert!(distance(&score(&workplace, "out"), &int8) < 1e-3, "the same format in other words");
    let manifest = manifest(&workplace);
    assert_eq!(manifest["plugins"][0]["library"], "forgelm_example_plugin");
    assert_eq!(manifest["plugins"][0]["isolation"], "process");
}

#[test]
fn what_cannot_be_quantized_is_refused_and_nothing_is_left() {
    let workplace = with_wide_model();
    let refused = |args: &[&str], code: i32, said: &str| {
        quantize(&workplace, args).expect_code(code).expect_stderr(said);
        assert!(!workplace.path("out").exists(), "{args:?}");
    };
    refused(&["--method", "q3_k"], 1, METHODS);
    refused(&["--method", "q4_k", "--option", "bits=3"], 1, "`bits` is not an option of `q4_k`");
    refused(
        &["--method", "q4_k", "--option", "bits"],
        1,
        "`--option`: `bits`; expected `key=value`",
    );
    let gemma = data_dir().join("golden/models/tiny-gemma2").canonicalize().unwrap();
    let said = "`query_pre_attn_scalar` in a GGUF file is not available yet";
    refused(&["--method", "q8_0", "--model", gemma.to_str().unwrap()], 1, said);
    let experts = data_dir().join("golden/families/mixtral").canonicalize().unwrap();
    let said = "has experts, for which `nf4` has no layout";
    refused(&["--method", "nf4", "--model", experts.to_str().unwrap()], 1, said);
    let adapter = data_dir().join("golden/lora/tiny-llama/all/final").canonicalize().unwrap();
    let said = "is an adapter; expected a whole model";
    refused(&["--method", "q8_0", "--model", adapter.to_str().unwrap()], 1, said);

    let path = workplace.path("wide/model.safetensors");
    let good = fs::read(&path).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let view = SafetensorsFile::open(&path).unwrap();
    let place = view.tensor(name).unwrap().bytes.as_ptr() as usize - view.bytes().as_ptr() as usize;
    let mut bad = good.clone();
    bad[place + 4 * (256 * 3 + 5)..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bad).unwrap();
    let said = "tensor `blk.0.ffn_up.weight`: row 3, column 5 is NaN";
    refused(&["--method", "q4_0"], 6, said);
    fs::write(&path, good).unwrap();

    workplace.write("out/mine.txt", "mine");
    quantize(&workplace, &["--method", "q4_0"]).expect_code(1).expect_stderr("is not empty");
    assert_eq!(workplace.read("out/mine.txt"), "mine");
    let file = ["quantize", "--model", "wide", "--method", "q4_0", "--output", "a.gguf"];
    workplace.forgelm(&file).expect_code(1).expect_stderr("expected a folder");
    let inside = ["quantize", "--model", "wide", "--method", "q4_0", "--output", "wide/out"];
    workplace.forgelm(&inside).expect_code(1).expect_stderr("is or lies in the input");
}

#[test]
fn the_bundled_library_passes_the_conformance_kit() {
    let workplace = Workplace::new();
    let program = env!("CARGO_BIN_EXE_forgelm");
    let folder = std::path::Path::new(program).parent().unwrap().join("deps");
    let library = folder.join("libforgelm_plugin_quantizer.so");
    let ran = workplace.forgelm(&["plugin", "check", library.to_str().unwrap()]).expect_code(0);
    // Seven properties of eight quantizers.
    assert_eq!(ran.stdout.matches("ok      quantizer").count(), 56, "{}", ran.stdout);
}

/// The file goes alone to somebody who has the public key, or nothing but the digest.
#[test]
fn a_gguf_file_verifies_by_its_signature_its_digest_or_not_at_all() {
    let workplace = with_wide_model();
    workplace.forgelm(&["keygen", "--out", "k"]).expect_code(0);
    quantize(&workplace, &["--method", "q8_0", "--signing-key", "k"]).expect_code(0);
    let name = "wide.q8_0.gguf";
    let checked = Command::new("sha256sum")
        .args(["-c", "wide.q8_0.gguf.sha256"])
        .current_dir(workplace.path("out"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    fs::create_dir(workplace.path("away")).unwrap();
    for ending in ["", ".sha256", ".dsse.json"] {
        let file = format!("{name}{ending}");
        fs::copy(workplace.path("out").join(&file), workplace.path("away").join(&file)).unwrap();
    }
    let file = format!("away/{name}");
    let verify = |more: &[&str]| workplace.forgelm(&[&["verify-gguf", &file], more].concat());
    let json = verify(&["--key", "k.pub", "--output-format", "json"]).expect_code(0).json();
    assert_eq!(json["signature"]["state"], "valid");
    let checks = &json["checks"];
    assert_eq!((&checks["sidecar_match"], &checks["tensor_count"]), (&json!(true), &json!(11)));
    verify(&[]).expect_code(1).expect_stderr("untrusted_key");
    let good = fs::read(workplace.path(&file)).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(workplace.path(&file), &bad).unwrap();
    verify(&["--key", "k.pub"]).expect_code(6).expect_stderr("wide.q8_0.gguf.sha256 was written");
    fs::write(workplace.path(&file), &good).unwrap();
    fs::remove_file(workplace.path(&format!("{file}.dsse.json"))).unwrap();
    verify(&["--key", "k.pub"]).expect_code(1).expect_stderr("there is no signature");
    verify(&["--key", "k.pub", "--allow-unsigned"]).expect_code(0);
    verify(&["--require-signature"]).expect_code(1);
    assert!(verify(&[]).expect_code(0).stdout.contains("write its digest anew"));
    fs::remove_file(workplace.path(&format!("{file}.sha256"))).unwrap();
    verify(&[]).expect_code(1).expect_stderr("compared with nothing");
    verify(&["--allow-unsigned"]).expect_code(0);
    fs::write(workplace.path(&file), &good[..good.len() / 2]).unwrap();
    verify(&["--allow-unsigned"]).expect_code(6).expect_stderr("is the file truncated?");
}
