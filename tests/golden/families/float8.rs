//! Weights in floats of eight bits: values as torch has them, and folders against the logits of
//! transformers, which dequantizes them on a processor (`tools/golden/float8.py`).

use super::{activations, all_logits, assert_close, libraries};
use crate::batch::{Batch, integers};
use forgelm_artifact::safetensors::SafetensorsFile;
use forgelm_kernels_api::{Compute, Float8, Float8Layout, Float8Rows};
use forgelm_model::{Keep, ModelFiles, OpenModel};
use forgelm_tensor::Dtype;
use std::path::PathBuf;

fn place(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/float8").join(name)
}

fn file(name: &str) -> SafetensorsFile {
    SafetensorsFile::open(&place(name)).expect("a good file")
}

fn floats(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    file.tensor(name).expect("it is there").to_f32().expect("numbers")
}

fn bits(values: &[f32]) -> Vec<u32> {
    // Which NaN it is differs between processors.
    values.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

#[test]
fn all_codes_stand_for_the_values_of_torch() {
    let golden = file("codes.safetensors");
    for (name, dtype) in [("e4m3", Dtype::F8E4m3), ("e5m2", Dtype::F8E5m2)] {
        let tensor = golden.tensor(name).expect("it is there");
        assert_eq!((tensor.dtype, tensor.n_values()), (dtype, 256));
        let expected = floats(&golden, &format!("{name}.f32"));
        assert_eq!(bits(&floats(&golden, name)), bits(&expected), "{name}");
    }
}

#[test]
fn blocks_times_their_scales_are_those_of_torch() {
    let golden = file("blocks.safetensors");
    let (w, scales) = (golden.tensor("w").expect("it is there"), floats(&golden, "scales"));
    let format = Float8::E4m3;
    let layout = Float8Layout { format, n_cols: 13, block_rows: 4, block_cols: 5 };
    let mut found = vec![0.0; w.n_values()];
    Float8Rows { layout, codes: w.bytes, scales: &scales }.read_rows(0, &mut found);
    assert_eq!(bits(&found), bits(&floats(&golden, "dequantized")));
    for ops in libraries() {
        let mut cast = vec![0.0; w.n_values()];
        ops.cast_float8((&mut cast).into(), w.bytes.into(), (&scales).into(), layout);
        assert_eq!(bits(&cast), bits(&found), "{}", ops.name());
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for case in ["fp8-block", "channel"] {
        let expected = file(&format!("{case}/expected.safetensors"));
        let mut batch = Batch::default();
        batch.push(&integers(&expected, "ids"), &[]);
        let logits = floats(&expected, "logits");
        let open = OpenModel::open(&ModelFiles::Folder(place(case))).expect("a good folder");
        for ops in libraries() {
            let decoder = open.load(ops, Compute::F32).expect("good weights");
            let mut acts = activations(&decoder, None, Keep::Nothing);
            let found = all_logits(&decoder, &batch, &mut acts);
            assert_eq!(found.len(), logits.len());
            for (i, (&found, &expected)) in found.iter().zip(&logits).enumerate() {
                assert_close(&format!("{case}: logit {i}"), found.into(), expected.into(), 2e-5);
            }
        }
    }
}
