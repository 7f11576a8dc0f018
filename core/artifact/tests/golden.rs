//! Block formats against the numpy reference of the GGUF format: bytes and values are equal.

#![expect(clippy::unwrap_used, reason = "a test")]

use forgelm_artifact::safetensors::SafetensorsFile;
use forgelm_tensor::{Dtype, dequantize, quantize};
use std::path::PathBuf;

fn open(name: &str) -> SafetensorsFile {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/gguf");
    SafetensorsFile::open(&folder.join(name)).unwrap()
}

fn bytes(file: &SafetensorsFile, name: &str) -> Vec<u8> {
    let view = file.tensor(name).unwrap();
    assert_eq!(view.dtype, Dtype::U8);
    view.bytes.to_vec()
}

fn floats(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    file.tensor(name).unwrap().to_f32().unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// `bytes` of `dtype` mean exactly `expected`.
fn assert_means(dtype: Dtype, bytes: &[u8], expected: &[f32], name: &str) {
    let mut found = vec![f32::NAN; expected.len()];
    dequantize(dtype, bytes, &mut found).unwrap();
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert_eq!(f.to_bits(), e.to_bits(), "{name}: value {i} is {f}; expected {e}");
    }
}

#[test]
fn quantized_bytes_and_their_values_are_those_of_the_reference() {
    let input = floats(&open("input.safetensors"), "w");
    assert_eq!(input.len(), 8 * 256);
    for (dtype, file) in [(Dtype::Q4_0, "q4_0.safetensors"), (Dtype::Q8_0, "q8_0.safetensors")] {
        let golden = open(file);
        assert_eq!(quantize(dtype, &input).unwrap(), bytes(&golden, "bytes"), "{file}");
        assert_means(dtype, &bytes(&golden, "bytes"), &floats(&golden, "dequant"), file);
    }
    let golden = open("q6_k-random.safetensors");
    assert_means(Dtype::Q6K, &bytes(&golden, "bytes"), &floats(&golden, "dequant"), "q6_k");
    let q4_1 = bytes(&open("more.safetensors"), "q4_1.from_input");
    assert_eq!(quantize(Dtype::Q4_1, &input).unwrap(), q4_1);
}

/// Every row of ggml's own bytes, so that a wrong choice among the trials of a scale is seen.
#[test]
fn hard_rows_become_the_bytes_that_the_references_write() {
    let golden = open("k_quants.safetensors");
    let input = floats(&golden, "w");
    assert_eq!(input.len(), 24 * 256);
    for dtype in [Dtype::Q4K, Dtype::Q5_0, Dtype::Q6K] {
        let expected = bytes(&golden, &dtype.name().to_lowercase());
        let rows = input.chunks(256).zip(expected.chunks(expected.len() / 24));
        for (i, (row, expected)) in rows.enumerate() {
            assert_eq!(quantize(dtype, row).unwrap(), expected, "{dtype}, row {i}");
        }
    }
}

#[test]
fn random_blocks_of_every_block_format_mean_what_the_reference_says() {
    let golden = open("more.safetensors");
    let mut n_formats = 0;
    for dtype in Dtype::ALL.into_iter().filter(|dtype| dtype.block_len() > 1) {
        let name = dtype.name().to_lowercase();
        let stored = bytes(&golden, &format!("{name}.bytes"));
        assert_means(dtype, &stored, &floats(&golden, &format!("{name}.dequant")), &name);
        n_formats += 1;
    }
    assert_eq!(n_formats, 10);
}

#[test]
fn rows_of_a_published_model_mean_what_the_reference_says() {
    let (stored, golden) = (open("more.safetensors"), open("smollm2_rows.safetensors"));
    let cases = [
        ("token_embd.weight", Dtype::Q8_0),
        ("blk.0.ffn_down.weight", Dtype::Q4_1),
        ("blk.0.attn_q.weight", Dtype::Q4_1),
        ("output_norm.weight", Dtype::F32),
    ];
    assert_eq!(golden.names().count(), cases.len());
    for (name, dtype) in cases {
        let row_bytes = bytes(&stored, &format!("smollm2.{name}"));
        assert_means(dtype, &row_bytes, &floats(&golden, name), name);
    }
}

#[test]
fn plain_formats_go_there_and_back() {
    let input = floats(&open("input.safetensors"), "w");
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let mut once = vec![0.0; input.len()];
        dequantize(dtype, &quantize(dtype, &input).unwrap(), &mut once).unwrap();
        let mut twice = vec![0.0; input.len()];
        dequantize(dtype, &quantize(dtype, &once).unwrap(), &mut twice).unwrap();
        assert_eq!(bits(&once), bits(&twice), "{dtype}");
    }
    assert!(quantize(Dtype::Q5K, &input).is_err());
    assert!(quantize(Dtype::Q8_0, &input[..33]).is_err());
}
