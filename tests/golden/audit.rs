//! What an audit counts, against a plain computation of the same rules (`tools/golden/audit.py`).
#![expect(clippy::disallowed_methods, reason = "a test, in a temporary folder")]

use forgelm_data::{AuditSettings, audit};
use serde_json::{Value, json};
use std::path::Path;

#[test]
fn duplicates_leaks_lengths_and_quality_are_those_of_the_plain_computation() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/audit");
    let corpus = std::fs::read_to_string(golden.join("corpus.json")).unwrap();
    let corpus: Value = serde_json::from_str(&corpus).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for split in ["train", "test"] {
        let texts = corpus["texts"][split].as_array().unwrap().iter();
        let rows: String = texts.map(|text| format!("{}\n", json!({"text": text}))).collect();
        std::fs::write(dir.path().join(format!("{split}.jsonl")), rows).unwrap();
    }
    let distances = corpus["distances"].as_object().unwrap();
    assert_eq!(distances.len(), 4);
    for (distance, expected) in distances {
        let near_dup_threshold = distance.parse().unwrap();
        let settings = AuditSettings { near_dup_threshold, quality_filter: true, threads: 2 };
        let report = audit(dir.path(), &settings).unwrap();
        let document = report.document("data", dir.path(), "now");
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
