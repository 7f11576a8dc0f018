//! Packing and the trainer's batches as the Python stack (TRL 1.16.0) makes them, exact.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test, in a temporary folder"
)]

use std::path::{Path, PathBuf};

use forgelm_data::{RenderSettings, Renderer, Sequence, best_fit_decreasing, open, pack};
use forgelm_tokenize::Tokenizer;
use serde_json::Value;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden().join(name)).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|n| u32::try_from(n.as_u64().unwrap()).unwrap()).collect()
}

/// The inputs of the packing file, truncated, every token trained.
fn inputs(packing: &Value) -> (Vec<Sequence>, usize) {
    let capacity = usize::try_from(packing["seq_length"].as_u64().unwrap()).unwrap();
    let sequence = |(record, input): (usize, &Value)| {
        let mut tokens = numbers(input);
        tokens.truncate(capacity);
        let trained = vec![true; tokens.len()];
        Sequence { record: record as u64, tokens, trained }
    };
    (packing["inputs"].as_array().unwrap().iter().enumerate().map(sequence).collect(), capacity)
}

#[test]
fn bins_are_those_of_the_reference() {
    let packing = json("misc/packing.json");
    let (sequences, capacity) = inputs(&packing);
    let lengths: Vec<usize> = packing["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| input.as_array().unwrap().len())
        .collect();
    let expected = &packing["strategies"]["bfd"];
    let bins = best_fit_decreasing(&lengths, capacity);
    assert_eq!(bins.len(), expected["input_ids"].as_array().unwrap().len());
    for (i, bin) in bins.iter().enumerate() {
        let parts: Vec<&Sequence> = bin.iter().map(|&s| &sequences[s]).collect();
        let batch = pack(&parts);
        assert_eq!(batch.tokens, numbers(&expected["input_ids"][i]), "bin {i}");
        let lengths: Vec<u32> =
            batch.segments.iter().map(|s| u32::try_from(s.len).unwrap()).collect();
        assert_eq!(lengths, numbers(&expected["seq_lengths"][i]), "bin {i}");
    }
}

#[test]
fn a_packed_batch_is_that_of_the_reference_collator() {
    let packing = json("misc/packing.json");
    let (sequences, capacity) = inputs(&packing);
    let lengths: Vec<usize> = sequences.iter().map(|s| s.tokens.len()).collect();
    let first_three: Vec<&Sequence> = best_fit_decreasing(&lengths, capacity)
        .iter()
        .take(3)
        .flatten()
        .map(|&s| &sequences[s])
        .collect();
    let batch = pack(&first_three);
    let expected = &packing["collated_first_three_bfd"];
    assert_eq!(batch.tokens, numbers(&expected["input_ids"][0]));
    assert_eq!(batch.positions, numbers(&expected["position_ids"][0]));
    let ends: Vec<u32> =
        batch.segments.iter().map(|s| u32::try_from(s.start + s.len).unwrap()).collect();
    assert_eq!(ends, numbers(&expected["cu_seq_lens_q"])[1..]);
    // The reference's labels stand on the row of the token itself; ours on the row that predicts it.
    let labels = expected["labels"][0].as_array().unwrap();
    let scored: Vec<(u32, u32)> = (1..labels.len())
        .filter_map(|t| {
            Some((u32::try_from(t - 1).ok()?, u32::try_from(labels[t].as_i64()?).ok()?))
        })
        .collect();
    assert_eq!(
        batch.scored_rows.iter().copied().zip(batch.labels.iter().copied()).collect::<Vec<_>>(),
        scored
    );
}

#[test]
fn a_data_file_becomes_the_reference_trainers_batch() {
    let golden_loss = json("misc/sft_loss.json");
    let tokenizer = Tokenizer::from_folder(&golden().join("models/tokenizer")).unwrap();
    let template = tokenizer.chat_template(None).unwrap();
    for (case, train_on_all) in [("assistant_only", false), ("conversation-all", true)] {
        let case = &golden_loss[case];
        let rows = case["data"].as_array().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let section = forgelm_config::Data {
            dataset_name_or_path: path.to_str().unwrap().to_owned(),
            ..forgelm_config::Data::default()
        };
        let dataset = open(&section, forgelm_config::TrainerType::Sft).unwrap();
        let settings = RenderSettings {
            max_length: 512,
            train_on_all,
            add_eos: true,
            template_now: None,
            threads: 2,
        };
        let rendered = Renderer::new(&tokenizer, Some(&template), settings)
            .render(&dataset.records, &[0, 1])
            .unwrap();
        for (i, sequence) in rendered.sequences.iter().enumerate() {
            let n = sequence.tokens.len();
            assert_eq!(sequence.tokens, numbers(&case["batch"]["input_ids"][i])[..n]);
            let labels = case["batch"]["labels"][i].as_array().unwrap();
            let trained: Vec<bool> =
                labels.iter().map(|label| label.as_i64().unwrap() >= 0).collect();
            assert_eq!(sequence.trained, trained[..n]);
        }
    }
}
