//! Fuzzing of every parser of foreign bytes in core/artifact and core/tensor: see `engine.rs`.
//!
//! Longer: `cargo test -p forgelm_artifact --test fuzz -- --seconds 60 --seed 7`.

#![expect(clippy::disallowed_methods, reason = "a fuzzer has a deadline and keeps what it finds")]
#![expect(clippy::print_stdout, reason = "a test program without the test harness")]

mod engine;

use engine::Target;
use forgelm_artifact::gguf::build::Builder;
use forgelm_artifact::gguf::{self, Array, Value};
use forgelm_artifact::json::{Style, canonical, parse_unique, python};
use forgelm_artifact::safetensors::{self, TensorToWrite};
use forgelm_artifact::{UtcTime, jsonl, sharded};
use forgelm_tensor::{Dtype, dequantize, quantize};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

/// A table of targets: one line a parser. Those of higher crates have a table of their own.
fn targets() -> Vec<Target> {
    vec![
        Target::new("safetensors", safetensors, safetensors_seeds(), SAFETENSORS_WORDS, 64),
        Target::new("gguf", gguf, gguf_seeds(), &["GGUF", "general.alignment", ".."], 64),
        Target::new(
            "shard_index",
            shard_index,
            index_seeds(),
            &["weight_map", "../", ".safetensors"],
            512,
        ),
        Target::new("jsonl", jsonl, json_seeds(), JSON_WORDS, 512),
        Target::new("json", json, json_seeds(), JSON_WORDS, 512),
        Target::new(
            "time",
            time,
            vec![b"2026-01-01T00:00:00.000001+00:00".to_vec()],
            TIME_WORDS,
            64,
        ),
        Target::new("blocks", blocks, vec![vec![7; 211]], &[], 64),
    ]
}

fn main() -> ExitCode {
    engine::main(&targets())
}

const SAFETENSORS_WORDS: &[&str] = &[
    "__metadata__",
    "\"dtype\":\"BF16\"",
    "data_offsets",
    "\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},",
    "\\u0000",
    "../",
    ",1",
];
const JSON_WORDS: &[&str] =
    &["{", "[", "]", "}", "\"a\":", "\\ud800", "\\u0000", "null,", "1e5", "\n", "\r\n", "\u{feff}"];
const TIME_WORDS: &[&str] = &["Z", "-00:00", "[UTC]", "T24", ".000000000000", "+99:99"];

/// Every accepted tensor has the bytes that it claims, and floats can be read.
fn safetensors(bytes: &[u8]) -> String {
    match safetensors::Header::parse(bytes) {
        // The parser quotes a foreign field without escaping: its name is no new outcome.
        Err(fault) => fault.to_string().split("unknown field").next().unwrap_or("").to_owned(),
        Ok(header) => {
            for name in header.tensors.keys() {
                let view = header.tensor(bytes, name).expect("a listed tensor");
                assert_eq!(view.dtype.tensor_bytes(view.shape), Some(view.bytes.len()));
                assert_eq!(view.to_f32().is_ok(), view.dtype.is_float());
            }
            "ok".to_owned()
        }
    }
}

fn safetensors_seeds() -> Vec<Vec<u8>> {
    let (a, b) = ([2, 3], [4]);
    let tensors = [
        TensorToWrite::f32("model.a.weight", &a, &[1.0; 6]),
        TensorToWrite { name: "b", dtype: Dtype::I64, shape: &b, bytes: vec![0; 32].into() },
    ];
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let golden = include_bytes!("../data/golden/gguf/q8_0.safetensors");
    vec![safetensors::to_bytes(&tensors, &metadata), golden.to_vec()]
}

fn gguf(bytes: &[u8]) -> String {
    match gguf::Header::parse(bytes) {
        Err(fault) => fault.to_string(),
        Ok(header) => {
            for name in header.tensors.keys() {
                let view = header.tensor(bytes, name).expect("a listed tensor");
                assert_eq!(view.dtype.tensor_bytes(view.shape), Some(view.bytes.len()));
            }
            "ok".to_owned()
        }
    }
}

fn gguf_seeds() -> Vec<Vec<u8>> {
    let q = quantize(Dtype::Q4_1, &[0.5; 64]).expect("whole blocks");
    let texts = ["<s>", "a", ""].map(str::to_owned).to_vec();
    let small = Builder::new().alignment(32).text("general.architecture", "llama");
    let full = small
        .clone()
        .metadata("a", Value::U8(1))
        .metadata("b", Value::I64(-1))
        .metadata("c", Value::F64(0.5))
        .metadata("d", Value::Bool(true))
        .metadata("tokens", Value::Array(Array::String(texts)))
        .metadata("types", Value::Array(Array::I32(vec![1, 2, 3])))
        .metadata("flags", Value::Array(Array::Bool(vec![true, false])))
        .tensor("w", Dtype::Q4_1, &[2, 32], q)
        .tensor("norm", Dtype::F32, &[3], vec![0; 12]);
    vec![small.to_bytes(), full.to_bytes()]
}

fn shard_index(bytes: &[u8]) -> String {
    match sharded::parse_index(Path::new("index.json"), bytes) {
        Err(error) => error.to_string(),
        Ok(map) => {
            assert!(map.values().all(|file| !file.contains('/')), "a file of the folder");
            "ok".to_owned()
        }
    }
}

fn index_seeds() -> Vec<Vec<u8>> {
    let index = r#"{"metadata": {"total_size": 8}, "weight_map": {"a": "s1.safetensors",
                    "b": "s2.safetensors"}}"#;
    vec![index.as_bytes().to_vec()]
}

fn jsonl(bytes: &[u8]) -> String {
    let mut reader = jsonl::Reader::new(Path::new("d.jsonl"), bytes).with_line_bytes_max(4096);
    let mut outcome = String::new();
    while let Some(line) = reader.next_line() {
        match line.and_then(|line| line.json()) {
            Ok(_) => {}
            Err(error) => {
                outcome = error.to_string();
                if matches!(error, jsonl::JsonlError::LineTooLong { .. }) {
                    break;
                }
            }
        }
    }
    outcome
}

/// What is accepted and written again is the same value, in every form.
fn json(bytes: &[u8]) -> String {
    let value = match parse_unique(bytes) {
        Err(error) => return error.to_string(),
        Ok(value) => value,
    };
    for style in [Style::AUDIT_LINE, Style::MANIFEST_V1, Style::CONFIG_HASH] {
        let again = parse_unique(python(&value, style).as_bytes()).expect("our own JSON");
        assert_eq!(again, value);
    }
    match canonical(&value) {
        Err(error) => error.to_string(),
        Ok(text) => {
            let again = parse_unique(text.as_bytes()).expect("our own JSON");
            match canonical(&again) {
                Ok(again) => assert_eq!(again, text),
                // A float beyond 2^53 is written as RFC 8785 asks, which reads as an integer that
                // I-JSON does not allow.
                Err(error) => return error.to_string(),
            }
            "ok".to_owned()
        }
    }
}

fn json_seeds() -> Vec<Vec<u8>> {
    let rows = r#"{"messages": [{"role": "user", "content": "hé \u00e9\n"}], "n": [1, -2.5e-3]}
{"text": "a", "b": null, "c": true, "d": {"e": 1e300, "f": 18446744073709551615}}
"#;
    let first = rows.lines().next().unwrap_or_default();
    vec![first.as_bytes().to_vec(), rows.as_bytes().to_vec()]
}

/// What is accepted is shown in a form that reads back as the same time.
fn time(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else { return "not text".to_owned() };
    match text.parse::<UtcTime>() {
        Err(_) => "refused".to_owned(),
        Ok(time) => {
            let shown = time.to_string();
            if !shown.starts_with('-') {
                assert_eq!(shown.parse(), Ok(time), "{shown}");
            }
            format!("ok {}", if time.0 < 0 { "before" } else { "after" })
        }
    }
}

/// The first byte chooses a format, the rest are its blocks.
fn blocks(bytes: &[u8]) -> String {
    let Some((&choice, bytes)) = bytes.split_first() else { return "empty".to_owned() };
    let dtype = Dtype::ALL[usize::from(choice) % Dtype::ALL.len()];
    let whole = bytes.len() / dtype.block_bytes();
    let mut out = vec![0.0; whole * dtype.block_len()];
    let result = dequantize(dtype, &bytes[..whole * dtype.block_bytes()], &mut out);
    assert_eq!(result.is_ok(), dtype.is_float());
    assert!(dequantize(dtype, &bytes[..bytes.len().min(1)], &mut [0.0; 300]).is_err());
    dtype.name().to_owned()
}
