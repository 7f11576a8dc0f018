//! The audit of data files. Secrets are put together here, so that no file of this repository looks as if
//! it had one.

use std::path::Path;

use forgelm_artifact::Class;
use forgelm_data::{AuditReport, AuditSettings, Dedup, Gate, audit};
use serde_json::{Value, json};

const SETTINGS: AuditSettings =
    AuditSettings { dedup: Dedup::Simhash { distance: 3 }, quality_filter: true, threads: 1 };

fn token() -> String {
    format!("hf_{}", "aB3d".repeat(9))
}

/// The audit of one file.
fn of(name: &str, bytes: &[u8]) -> AuditReport {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    audit(&path, &SETTINGS).unwrap()
}

/// Lines and kinds of all findings.
fn found(report: &AuditReport) -> Vec<(u64, &'static str)> {
    report.findings.iter().map(|finding| (finding.line, finding.kind.name())).collect()
}

fn document(report: &AuditReport) -> Value {
    report.document("given", Path::new("/absolute"), "now")
}

#[test]
fn fault_034_a_secret_is_found_wherever_it_is_in_a_row() {
    let token = token();
    let escaped = token.replace('a', "\\u0061");
    for row in [
        json!({"text": format!("key {token}")}).to_string(),
        json!({"prompt": "p", "chosen": "a", "rejected": token}).to_string(),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": token}]}]})
            .to_string(),
        json!({"text": "a", "meta": {"deep": [[{"x": token}]]}}).to_string(),
        json!({"text": "a", &token: 1}).to_string(),
        json!([token]).to_string(),
        json!(token).to_string(),
        format!("{{\"text\": \"{escaped}\"}}"),
        // What no run could use is in the file all the same.
        format!("{{\"text\": \"{token}\""),
        format!("not JSON, {token}"),
        format!("{{\"text\": \"{token}\", \"text\": \"a later one hides it\"}}"),
        format!("{{\"text\": \"\\ud800 {token}\"}}"),
        format!("{{\"text\": \"\0 {token}\"}}"),
    ] {
        let report = of("rows.jsonl", format!("{{\"text\": \"fine\"}}\n{row}\n").as_bytes());
        assert_eq!(found(&report), [(2, "huggingface_token")], "{row:?}");
        assert!(Gate::of_secrets(&report, false).has_failed(), "{row:?}");
        // Wherever it was, it is told nowhere.
        let told = format!("{}{report:?}", document(&report));
        assert!(!told.contains(&token) && !told.contains("aB3d"), "{told}");
    }
    let bytes = [b"{\"text\": \"\xff ", token.as_bytes(), b"\"}\n"].concat();
    let report = of("rows.jsonl", &bytes);
    assert_eq!(found(&report), [(1, "huggingface_token")]);
    let split = &document(&report)["splits"]["train"];
    assert_eq!(
        [&split["decode_errors"], &split["sample_count"]],
        [1, 1],
        "a row with U+FFFD in it"
    );
}

#[test]
fn fault_034_every_format_is_searched() {
    let token = token();
    let packed = {
        use std::io::Write as _;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(format!("text\nfine\n{token}\n").as_bytes()).unwrap();
        gzip.finish().unwrap()
    };
    let text = |text: String| text.into_bytes();
    for (name, bytes, line) in [
        ("a.json", text(format!("[{{\"text\": \"fine\"}},\n\n {{\"text\": \"{token}\"}}]")), 3),
        ("a.csv", text(format!("text,more\nfine,x\n\"two\nlines\",\"{token}\"\n")), 3),
        // Too few cells, and a cell that is not UTF-8.
        ("b.csv", text(format!("text,more\nfine,x\n{token}\n")), 3),
        ("c.csv", [b"text,more\n\xff,", token.as_bytes(), b"\n"].concat(), 2),
        ("a.csv.gz", packed, 3),
    ] {
        assert_eq!(found(&of(name, &bytes)), [(line, "huggingface_token")], "{name}");
    }
    let parquet = crate::golden().join("../formats/chat-snappy.parquet");
    let report = audit(&parquet, &SETTINGS).unwrap();
    assert_eq!((report.n_samples(), found(&report)), (5, vec![]));
    assert_eq!(report.splits[0].1.columns, ["messages", "id", "score"]);
}

#[test]
fn card_and_account_numbers_fail_and_what_else_is_personal_is_told() {
    let rows = "{\"text\": \"4111 1111 1111 1111\"}\n{\"text\": \"mail a@example.com, call +90 532 123 4567\"}\n\
                {\"text\": \"GB29 NWBK 6016 1331 9268 19 and 5555555555554444\"}\n";
    let report = of("rows.jsonl", rows.as_bytes());
    let expected =
        [(1, "credit_card"), (2, "email"), (2, "phone"), (3, "iban"), (3, "credit_card")];
    assert_eq!(found(&report), expected);
    let gate = Gate::of_pii(&report, false);
    assert_eq!((gate.critical_total, gate.advisory_total), (3, 2));
    assert_eq!(gate.critical_types, ["iban", "credit_card"]);
    assert_eq!([gate.status(), Gate::of_pii(&report, true).status()], ["failed", "suppressed"]);
    assert_eq!(Gate::of_secrets(&report, false).status(), "passed");
    let severity = report.pii_severity();
    assert_eq!(severity["worst_tier"], "critical");
    assert_eq!(severity["by_tier"], json!({"critical": 3, "high": 0, "medium": 1, "low": 1}));
    assert_eq!(severity["by_type"]["phone"], json!({"count": 1, "tier": "low"}));
    assert_eq!(severity["total"], 5);
}

#[test]
fn columns_empty_rows_and_rows_that_are_no_object_are_counted() {
    let rows = "{\"b\": 1, \"text\": \"one\"}\n{\"text\": \"two\", \"b\": 2}\n{\"text\": \" \", \"c\": 3}\n[]\n\n{\n";
    let split = &document(&of("rows.jsonl", rows.as_bytes()))["splits"]["train"];
    assert_eq!(split["columns"], json!(["b", "text", "c"]));
    assert_eq!(split["schema_drift_columns"], json!(["c"]));
    assert_eq!(
        [&split["sample_count"], &split["non_object_rows"], &split["parse_errors"]],
        [4, 1, 1]
    );
    assert_eq!(
        [&split["null_or_empty_count"], &split["null_or_empty_rate"]],
        [&json!(2), &json!(0.5)]
    );
    let empty = document(&of("rows.jsonl", b""));
    assert_eq!(empty["splits"]["train"], json!({"sample_count": 0, "near_duplicate_pairs": 0}));
}

#[test]
fn what_comes_before_a_file_that_breaks_off_is_not_lost() {
    let row = json!({"text": token()});
    let rows = format!("{row}\n{}\n", "x".repeat(17 << 20));
    let report = of("rows.jsonl", rows.as_bytes());
    assert_eq!(found(&report), [(1, "huggingface_token")]);
    assert!(matches!(&report.unreadable[..], [(_, text, Class::Input)] if text.contains(":2: ")));
    let document = document(&report);
    assert!(document["splits"]["train"]["error"].as_str().unwrap().contains("E-DATA-LINE-LENGTH"));
    assert_eq!(document["inputs"][0]["sha256"], Value::Null);
}

#[test]
fn a_folder_is_read_whole_and_by_its_splits() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("train-0.jsonl", "one two three"),
        ("deep/train-1.jsonl", "four five six"),
        ("dev.jsonl", "four, FIVE six"),
        ("notes.jsonl", "seven eight nine"),
        ("data_audit_report.json", "not data"),
    ] {
        std::fs::create_dir_all(dir.path().join("deep")).unwrap();
        std::fs::write(dir.path().join(name), format!("{{\"text\": \"{text}\"}}\n")).unwrap();
    }
    let report = audit(dir.path(), &SETTINGS).unwrap();
    let splits: Vec<_> =
        report.splits.iter().map(|(name, s)| (name.as_str(), s.n_samples)).collect();
    assert_eq!(splits, [("train", 2), ("validation", 1), ("notes", 1)]);
    let leaks: Vec<_> = report.overlaps.iter().map(|pair| (pair.name(), pair.leaked)).collect();
    let none = [0, 0];
    let expected =
        [("train__validation", [1, 1]), ("train__notes", none), ("validation__notes", none)];
    assert_eq!(leaks, expected.map(|(name, leaked)| (name.to_owned(), leaked)));
    let overlap = &document(&report)["cross_split_overlap"]["pairs"]["train__validation"];
    assert_eq!([&overlap["leak_rate_train"], &overlap["leak_rate_validation"]], [0.5, 1.0]);
    assert!(report.notes.iter().any(|note| note.contains("notes.jsonl")), "{:?}", report.notes);
    let digest = forgelm_artifact::hash::sha256_file(&dir.path().join("dev.jsonl")).unwrap();
    let inputs = &document(&report)["inputs"];
    let dev = inputs.as_array().unwrap().iter().find(|file| file["split"] == "validation").unwrap();
    assert_eq!([&dev["sha256"], &dev["size_bytes"]], [&json!(digest.as_str()), &json!(27)]);
    assert!(audit(&dir.path().join("missing"), &SETTINGS).is_err());
}

#[test]
fn the_report_is_the_same_on_any_number_of_threads() {
    let rows: String = (0..3000)
        .map(|i| match i % 7 {
            0 => format!("{}\n", json!({"text": format!("{} row {}", token(), i % 50)})),
            1 => format!("{}\n", json!({"text": "4111111111111111", "n": i})),
            2 => "{\n".to_owned(),
            _ => {
                format!("{}\n", json!({"text": format!("words of row {} and more {}", i % 90, i)}))
            }
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, rows).unwrap();
    let report = |threads| document(&audit(&path, &AuditSettings { threads, ..SETTINGS }).unwrap());
    let expected = report(1);
    assert_eq!(expected["findings"].as_array().unwrap().len(), 40, "20 of each kind are named");
    assert_eq!(expected["secrets_summary"]["huggingface_token"], 429);
    for threads in [2, 5] {
        assert_eq!(report(threads), expected);
    }
}
