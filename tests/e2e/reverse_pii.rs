//! `forgelm reverse-pii`: where someone is in data files, and the record of the question.

use crate::support::{Ran, Workplace};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;

fn search(workplace: &Workplace, args: &[&str]) -> Ran {
    workplace.forgelm(&[&["reverse-pii"], args, &["--output-format", "json"]].concat())
}

fn rows() -> Workplace {
    let workplace = Workplace::new();
    workplace.write(
        "rows/a.jsonl",
        "{\"t\": \"write to Eve@Example.org\"}\n{\"t\": \"steve@example.org\"}\n",
    );
    workplace.write("rows/deep/b.jsonl", "{\"t\": \"nothing\"}\n{\"t\": \"eve@example.org\"}\n");
    workplace.write("rows/deep/c.txt", "eve@example.org");
    symlink(workplace.path("rows/a.jsonl"), workplace.path("rows/link.jsonl")).unwrap();
    workplace
}

fn record(workplace: &Workplace, log: &str) -> Value {
    workplace.json_lines(log).pop().unwrap()
}

#[test]
fn a_person_is_found_in_every_file_and_the_question_is_recorded_by_its_digest() {
    let workplace = rows();
    let args = [
        "rows/**/*.jsonl",
        "rows/a.jsonl",
        "--query",
        " eve@example.org ",
        "--type",
        "email",
        "--output-dir",
        "out",
    ];
    let ran = search(&workplace, &args).expect_code(0).expect_stderr("snippets have personal data");
    let found = ran.json();
    let matches: Vec<(&str, u64)> = found["matches"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["file"].as_str().unwrap(), m["line"].as_u64().unwrap()))
        .collect();
    assert_eq!(matches, [("rows/a.jsonl", 1), ("rows/deep/b.jsonl", 2)]);
    assert_eq!(found["matches"][0]["snippet"], "{\"t\": \"write to Eve@Example.org\"}");
    assert_eq!(
        found["files_scanned"],
        json!([
        {"path": "rows/a.jsonl", "match_count": 1}, {"path": "rows/deep/b.jsonl", "match_count": 1}])
    );
    let record = record(&workplace, "out/audit_log.jsonl");
    assert_eq!(
        (&record["event"], &record["match_count"]),
        (&"data.access_request_query".into(), &2.into())
    );
    assert_eq!(
        (&record["query_hash"], &record["operator"]),
        (&found["query_hash"], &"tester@example".into())
    );
    assert_eq!(
        (&record["scan_mode"], &record["salt_source"]),
        (&"plaintext".into(), &"plaintext".into())
    );
    assert!(!workplace.read("out/audit_log.jsonl").contains("eve@"));

    let bare = search(&workplace, &[&args[..], &["--no-snippets"]].concat()).expect_code(0);
    assert_eq!(
        bare.json()["matches"][0],
        json!({"file": "rows/a.jsonl", "line": 1, "snippet": null})
    );
    assert!(
        !bare.stdout.contains("xample.org") && !bare.stderr.contains("personal data in the clear")
    );

    // The same text has the same digest in a purge, so that both are found in the log.
    workplace.write("rows/ids.jsonl", "{\"id\": \"eve@example.org\"}\n");
    let purge = [
        "purge",
        "--row-id",
        "eve@example.org",
        "--corpus",
        "rows/ids.jsonl",
        "--output-dir",
        "out",
        "--output-format",
        "json",
    ];
    let purged = workplace.forgelm(&purge).expect_code(0).json();
    assert_eq!(purged["row_id_hash"], found["query_hash"]);
    workplace.forgelm(&["verify-audit", "out"]).expect_code(0);
}

#[test]
fn nobody_found_is_an_answer_too() {
    let workplace = rows();
    let ran = search(&workplace, &["rows/a.jsonl", "--query", "adam"]).expect_code(0);
    assert_eq!((&ran.json()["match_count"], &ran.json()["matches"]), (&0.into(), &json!([])));
    ran.expect_stderr("no --output-dir: salt and record are in `rows`");
    assert_eq!(record(&workplace, "rows/audit_log.jsonl")["match_count"], 0);
}

#[test]
fn the_digest_that_a_tool_left_is_found_under_both_schemes() {
    let workplace = rows();
    let first = search(&workplace, &["rows/a.jsonl", "--query", "eve", "--output-dir", "out"])
        .expect_code(0);
    let v2 = first.json()["query_hash"].as_str().unwrap().to_owned();
    let salt = fs::read(workplace.path("out/.forgelm_audit_salt")).unwrap();
    assert_eq!(salt.len(), 16);
    let bytes = workplace.path("bytes");
    fs::write(&bytes, [&salt[..], b"eve"].concat()).unwrap();
    let output = std::process::Command::new("sha256sum").arg(&bytes).output().unwrap();
    let v1 = String::from_utf8(output.stdout).unwrap()[..64].to_owned();
    workplace.write(
        "rows/masked.jsonl",
        &format!("{{\"a\": \"{v1}\"}}\n{{\"a\": \"eve\"}}\n{{\"a\": \"{v2}\"}}\n"),
    );
    let args =
        ["rows/masked.jsonl", "--query", "eve", "--salt-source", "per_dir", "--output-dir", "out"];
    let found = search(&workplace, &args).expect_code(0).json();
    let lines: Vec<&Value> =
        found["matches"].as_array().unwrap().iter().map(|m| &m["line"]).collect();
    assert_eq!((lines, &found["scan_mode"]), (vec![&json!(1), &json!(3)], &"hash".into()));
    let args = ["rows/masked.jsonl", "--query", "eve", "--salt-source", "env_var"];
    search(&workplace, &args).expect_code(1).expect_stderr("`FORGELM_AUDIT_SECRET`");
}

#[test]
fn what_cannot_be_searched_gives_no_half_answer() {
    let workplace = rows();
    for (args, says) in [
        (vec!["rows/a.jsonl", "--query", "  "], "`--query`: blank"),
        (vec!["none/**/*.jsonl", "--query", "x"], "no regular file"),
        (vec!["rows/deep", "--query", "x"], "no regular file"),
        (vec!["rows/***", "--query", "x"], "is no pattern"),
        (vec!["rows/a.jsonl", "--query", "(eve", "--type", "custom"], "no regular expression"),
        (vec!["rows/a.jsonl", "--query", "1", "--type", "phone"], "expected at least 4"),
    ] {
        let ran = search(&workplace, &args).expect_code(1).expect_stderr(says);
        assert!(!ran.stderr.contains("(eve"), "{}", ran.stderr);
    }
    fs::write(workplace.path("rows/packed.jsonl"), b"\x1f\x8b\x08\x00").unwrap();
    let args = ["rows/*.jsonl", "--query", "eve"];
    search(&workplace, &args).expect_code(1).expect_stderr("compressed (gzip)");
    assert!(!workplace.path("rows/audit_log.jsonl").exists());
    search(&workplace, &["--query", "x"]).expect_code(2);
    search(&workplace, &["rows/a.jsonl", "--query", "x", "--type", "name"]).expect_code(2);
}
