//! Folders with blocks of bitsandbytes, as transformers saves them, against the logits of what
//! bitsandbytes makes of the blocks (`tools/golden/four_bit_folder.py`).

use super::{activations, all_logits, assert_close, libraries};
use crate::batch::{Batch, integers};
use forgelm_artifact::safetensors::SafetensorsFile;
use forgelm_kernels_api::Compute;
use forgelm_model::{Keep, LinearStorage, LoadOptions, ModelFiles, OpenModel};
use std::path::PathBuf;

/// Scales that are quantized, of a bfloat16 model; and plain ones of a float16 model.
const CASES: [&str; 2] = ["nf4-double", "fp4"];

fn folder(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/four_bit").join(case)
}

#[test]
fn logits_are_those_of_the_blocks_that_transformers_saved() {
    for case in CASES {
        let expected = SafetensorsFile::open(&folder(case).join("expected.safetensors"));
        let expected = expected.expect("a good file");
        let mut batch = Batch::default();
        batch.push(&integers(&expected, "ids"), &[]);
        let logits = expected.tensor("logits").expect("it is there").to_f32().expect("numbers");
        let open = OpenModel::open(&ModelFiles::Folder(folder(case))).expect("a good folder");
        for ops in libraries() {
            for linear in [LinearStorage::Dense, LinearStorage::Blocks] {
                let options = LoadOptions { linear, ..LoadOptions::dense(Compute::F32) };
                let decoder = open.load_as(ops.clone(), options).expect("good weights");
                let mut acts = activations(&decoder, None, Keep::Nothing);
                let found = all_logits(&decoder, &batch, &mut acts);
                assert_eq!(found.len(), logits.len());
                for (i, (&found, &expected)) in found.iter().zip(&logits).enumerate() {
                    let what = format!("{case}, {linear:?}: logit {i}");
                    assert_close(&what, found.into(), expected.into(), 2e-5);
                }
            }
        }
    }
}
