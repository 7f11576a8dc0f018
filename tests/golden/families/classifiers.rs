//! Classifiers against the logits that transformers gave (`tools/golden/classifiers.py`).

use super::{assert_close, libraries, numbers};
use forgelm_kernels_api::Compute;
use forgelm_model::{Classifier, ModelFiles, OpenModel};
use serde_json::Value;
use std::path::PathBuf;

const CASES: [(&str, usize); 3] = [("llama", 1), ("qwen2", 3), ("gemma2", 2)];

fn folder(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/classifiers").join(case)
}

#[test]
fn logits_of_sequences_are_those_of_transformers() {
    for (case, num_labels) in CASES {
        let text = std::fs::read_to_string(folder(case).join("golden.json")).expect("it is there");
        let golden: Value = serde_json::from_str(&text).expect("it is JSON");
        let sequences = golden["sequences"].as_array().expect("a list");
        let open = OpenModel::open_classifier(&folder(case)).expect("a good folder");
        open.check_tensors().expect("all its tensors");
        for ops in libraries() {
            let model = Classifier::load(&open, ops, Compute::F32).expect("good weights");
            assert_eq!(model.num_labels(), num_labels);
            let mut acts = model.activations(40).expect("there is memory");
            for (sequence, expected) in sequences.iter().zip(golden["logits"].as_array().unwrap()) {
                let tokens: Vec<u32> = numbers(sequence).iter().map(|&id| id as u32).collect();
                let mut logits = vec![0.0; num_labels];
                model.score(&tokens, &mut acts, &mut logits);
                let expected = numbers(expected);
                assert_eq!(logits.len(), expected.len());
                for (&found, expected) in logits.iter().zip(expected) {
                    let tolerance = 1e-4 + 1e-4 * expected.abs();
                    assert_close(&format!("{case}: {tokens:?}"), found.into(), expected, tolerance);
                }
            }
        }
    }
}

/// A classifier is no language model, and the other way round; neither is taken for the other.
#[test]
fn each_kind_of_head_is_refused_where_the_other_is_needed() {
    let files = ModelFiles::Folder(folder("llama"));
    let error = OpenModel::open(&files).expect_err("it is a classifier").to_string();
    assert!(error.contains("the class `LlamaForSequenceClassification`"), "{error}");
    assert!(error.contains("expected `LlamaForCausalLM`"), "{error}");
    let error = OpenModel::open_classifier(&super::folder("qwen2")).expect_err("it writes text");
    let error = error.to_string();
    assert!(error.contains("the class `Qwen2ForCausalLM`"), "{error}");
    assert!(error.contains("expected a classifier, `Qwen2ForSequenceClassification`"), "{error}");
}
