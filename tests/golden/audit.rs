//! What an audit counts, against a plain computation of the same rules (`tools/golden/audit.py`).
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test, in a temporary folder"
)]

use forgelm_data::{AuditSettings, Dedup, audit};
use serde_json::{Value, json};
use std::path::Path;

/// The golden values, and a folder with their texts.
fn corpus() -> (Value, tempfile::TempDir) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/audit");
    let corpus = std::fs::read_to_string(golden.join("corpus.json")).unwrap();
    let corpus: Value = serde_json::from_str(&corpus).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for split in ["train", "test"] {
        let texts = corpus["texts"][split].as_array().unwrap().iter();
        let rows: String = texts.map(|text| format!("{}\n", json!({"text": text}))).collect();
        std::fs::write(dir.path().join(format!("{split}.jsonl")), rows).unwrap();
    }
    (corpus, dir)
}

fn report_of(dir: &Path, dedup: Dedup) -> Value {
    let settings = AuditSettings { dedup, quality_filter: true, threads: 2 };
    audit(dir, &settings).unwrap().document("data", dir, "now")
}

#[test]
fn duplicates_leaks_lengths_and_quality_are_those_of_the_plain_computation() {
    let (corpus, dir) = corpus();
    let distances = corpus["distances"].as_object().unwrap();
    assert_eq!(distances.len(), 4);
    for (distance, expected) in distances {
        let dedup = Dedup::Simhash { distance: distance.parse().unwrap() };
        let document = report_of(dir.path(), dedup);
        for split in ["train", "test"] {
            let (found, expected) = (&document["splits"][split], &expected["splits"][split]);
            for key in [
                "sample_count",
                "null_or_empty_count",
                "simhash_distinct",
                "near_duplicate_pairs",
                "text_length",
                "quality_samples_flagged",
                "quality_flags_counts",
            ] {
                assert_eq!(found[key], expected[key], "distance {distance}, {split}: {key}");
            }
        }
        let found = &document["cross_split_overlap"]["pairs"]["train__test"];
        assert_eq!(*found, expected["overlap"], "distance {distance}");
    }
}

#[test]
fn signatures_find_the_duplicates_and_leaks_of_the_plain_computation() {
    let (corpus, dir) = corpus();
    let similarities = corpus["minhash"].as_object().unwrap();
    assert_eq!(similarities.len(), 5);
    for (similarity, expected) in similarities {
        let dedup = Dedup::Minhash { similarity: similarity.parse().unwrap() };
        let document = report_of(dir.path(), dedup);
        for key in ["minhash_distinct", "near_duplicate_pairs"] {
            let found = ["train", "test"].map(|split| document["splits"][split][key].clone());
            assert_eq!(json!(found), expected[key], "similarity {similarity}: {key}");
        }
        let pair = &document["cross_split_overlap"]["pairs"]["train__test"];
        let leaked = json!([pair["leaked_rows_in_train"], pair["leaked_rows_in_test"]]);
        assert_eq!(leaked, expected["leaked"], "similarity {similarity}");
    }
}
