use forgelm_config::{Data, TrainerType};
use forgelm_data::{Code, DataError, Shape, SplitSheet, describe_splits, split};

use crate::prepare::{Bench, section};

/// Texts of 5 to 14 characters, some of more bytes than characters.
fn text(i: usize) -> String {
    format!("é{i:04}{}", "x".repeat(i % 10))
}

fn rows(n: usize) -> String {
    (0..n).map(|i| format!("{{\"text\": \"{}\", \"n\": {i}}}\n", text(i))).collect()
}

/// What the rows with these numbers should be described as.
#[expect(clippy::cast_precision_loss, reason = "a few thousand")]
fn expected(rows: &[usize]) -> (u64, [u64; 4], f64) {
    let mut lengths: Vec<u64> = rows.iter().map(|&i| text(i).chars().count() as u64).collect();
    lengths.sort_unstable();
    let n = lengths.len();
    let mean = lengths.iter().sum::<u64>() as f64 / n as f64;
    let four = [lengths[0], lengths[n - 1], lengths[n / 2], lengths[n * 95 / 100]];
    (n as u64, four, (mean * 10.0).round() / 10.0)
}

fn found(sheet: &SplitSheet) -> (u64, [u64; 4], f64) {
    let length = sheet.text_length.as_ref().expect("rows have texts");
    (sheet.n_samples, [length.min, length.max, length.p50, length.p95], length.mean)
}

#[test]
fn splits_are_described_as_a_plain_computation_finds_them() {
    let bench = Bench::new();
    let path = bench.write("rows.jsonl", &rows(3000));
    let prepared = bench.prepare(&section(&path), TrainerType::Sft).unwrap();
    let [train, validation] = describe_splits(&prepared).unwrap();
    let split = split(3000, None);
    assert_eq!(found(&train), expected(&split.train));
    assert_eq!(found(&validation), expected(&split.validation));
    assert_eq!(train.columns, ["text", "n"]);
    let fields = [("text", Shape::Text), ("n", Shape::Integer)];
    let shape = Shape::Object(fields.map(|(name, shape)| (name.to_owned(), shape)).into());
    assert_eq!(train.shapes, [(path.clone(), shape)].into());
    assert_eq!(validation.shapes, train.shapes);
}

#[test]
fn several_data_sets_and_files_of_their_own_are_counted_where_they_are_used() {
    let bench = Bench::new();
    bench.write("a/train.jsonl", &rows(40));
    bench.write("a/validation.jsonl", &rows(7));
    let a = bench.path("a");
    let b = bench.write("b.jsonl", &rows(100));
    let data = Data {
        extra_datasets: Some(vec![b.to_str().unwrap().to_owned()]),
        mix_ratio: Some(vec![1.0, 1.0]),
        ..section(&a)
    };
    let prepared = bench.prepare(&data, TrainerType::Sft).unwrap();
    let [train, validation] = describe_splits(&prepared).unwrap();
    let taken: usize = prepared.mixture.iter().map(|part| part.n_taken).sum();
    assert_eq!((train.n_samples, validation.n_samples), (taken as u64, 7));
    assert_eq!(found(&validation), expected(&(0..7).collect::<Vec<_>>()));
}

#[test]
fn a_file_that_changed_after_the_run_read_it_is_named() {
    let bench = Bench::new();
    let path = bench.write("rows.jsonl", &rows(20));
    let prepared = bench.prepare(&section(&path), TrainerType::Sft).unwrap();
    bench.write("rows.jsonl", &rows(21));
    let error = describe_splits(&prepared).unwrap_err();
    let DataError::Problems(problems) = &error else { panic!("{error}") };
    assert_eq!(problems.shown[0].code, Code::Changed);
    assert!(error.to_string().contains("rows.jsonl"), "{error}");
}
