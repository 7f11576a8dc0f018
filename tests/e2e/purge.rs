//! Rows, staged models and documents that a person asks to be removed.

use crate::support::{Workplace, conversation};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

const JSON: [&str; 2] = ["--output-format", "json"];

/// A finished run on rows with an `id` each.
fn finished() -> Workplace {
    let workplace = Workplace::new();
    let rows: Vec<String> = (0..24)
        .map(|i| {
            let mut row: Value = serde_json::from_str(&conversation(i)).unwrap();
            row["id"] = json!(format!("person-{i}"));
            row.to_string()
        })
        .collect();
    workplace.write("data.jsonl", &(rows.join("\r\n") + "\r\n"));
    workplace.run();
    workplace
}

fn run_id(workplace: &Workplace) -> String {
    let report: Value =
        serde_json::from_str(&workplace.read("out/compliance/compliance_report.json")).unwrap();
    report["run_id"].as_str().unwrap().to_owned()
}

fn purge(workplace: &Workplace, args: &[&str]) -> crate::support::Ran {
    workplace.forgelm(&[&["purge"], args].concat())
}

fn events(workplace: &Workplace, log: &str) -> Vec<Value> {
    let lines = workplace.json_lines(log).into_iter();
    lines.filter(|line| line["event"].as_str().unwrap().starts_with("data.")).collect()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

fn n_tokens(workplace: &Workplace) -> usize {
    fs::read_dir(workplace.path("home/.cache/forgelm/tokens")).unwrap().count()
}

#[test]
fn a_row_goes_and_every_other_byte_mode_and_owner_stay() {
    let workplace = finished();
    let path = workplace.path("data.jsonl");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    // As root the owner can be another; else it is the same before and after in any case.
    let _ = std::os::unix::fs::chown(&path, Some(4321), Some(4322));
    let (before, owner) = (workplace.read("data.jsonl"), path.metadata().unwrap().uid());
    let gone = before.lines().nth(7).unwrap().to_owned() + "\r\n";
    let args = ["--row-id", "person-7", "--corpus", "data.jsonl", "--output-dir", "out"];
    let ran = purge(&workplace, &[&args[..], &JSON].concat()).expect_code(0);
    let result = ran.json();
    assert_eq!(workplace.read("data.jsonl"), before.replace(&gone, ""));
    assert_eq!((mode(&path), path.metadata().unwrap().uid()), (0o600, owner));
    assert_eq!((&result["matches"], &result["first_line"]), (&1.into(), &8.into()));
    assert_eq!(result["bytes_freed"], gone.len());
    assert_eq!((&result["mode"], &result["salt_source"]), (&"row".into(), &"per_dir".into()));
    assert_eq!(mode(&workplace.path("out/.forgelm_audit_salt")), 0o600);

    // Everything that is known to have been made from it, and what cannot be done.
    let copies = result["copies"].as_array().unwrap();
    let kinds: Vec<&str> = copies.iter().map(|copy| copy["kind"].as_str().unwrap()).collect();
    let expected = [
        "token_cache",
        "evaluation_samples",
        "checkpoint",
        "checkpoint",
        "checkpoint",
        "final_model",
    ];
    assert_eq!(kinds, expected, "{copies:?}");
    assert!(copies[1..].iter().all(|copy| copy["run_id"] == run_id(&workplace).as_str()));
    assert!(
        copies[5]["remedy"]
            .as_str()
            .unwrap()
            .starts_with("cannot be erased: weights that trained on")
    );
    assert!(ran.stderr.contains("cannot be erased from them"), "{}", ran.stderr);

    // The record: request, end, warning; the identifier is in none of them, nor on any stream.
    let events = events(&workplace, "out/audit_log.jsonl");
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    let expected =
        ["data.erasure_requested", "data.erasure_completed", "data.erasure_warning_memorisation"];
    assert_eq!(names, expected);
    assert_eq!(events[1]["pre_erasure_line_number"], 8);
    assert_eq!(events[1]["copies"].as_array().unwrap().len(), 6);
    assert_eq!(events[2]["affected_run_ids"], json!([run_id(&workplace)]));
    assert_eq!(
        (&events[0]["target_id"], &events[0]["hash_scheme"]),
        (&result["row_id_hash"], &"v2".into())
    );
    for text in [&workplace.read("out/audit_log.jsonl"), &ran.stdout, &ran.stderr] {
        assert!(!text.contains("person-7"), "{text}");
    }
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
    workplace
        .forgelm(&["verify-audit", "out", "--key", "home/.config/forgelm/signing.key.pub"])
        .expect_code(0);

    // A second row: the runs were trained on what the data was before the first.
    let args =
        ["--row-id", "person-8", "--corpus", "data.jsonl", "--output-dir", "out", "--erase-caches"];
    assert_eq!(n_tokens(&workplace), 1);
    let result = purge(&workplace, &[&args[..], &JSON].concat()).expect_code(0).json();
    assert_eq!(result["copies"].as_array().unwrap().len(), 6);
    assert_eq!(result["removed_caches"].as_array().unwrap().len(), 1);
    assert_eq!(n_tokens(&workplace), 0);
}

#[test]
fn what_was_merged_and_exported_from_the_weights_is_named_too() {
    let workplace = finished();
    let quantize =
        ["quantize", "--model", "model", "--method", "q8_0", "--output", "exports/model.gguf"];
    workplace.forgelm(&quantize);
    let config = workplace.read("run.yaml");
    workplace.write(
        "merge.yaml",
        &format!("{config}merge: {{enabled: true, method: linear, output_dir: merged, models: [{{path: out/final_model}}, {{path: out/checkpoint-4}}]}}\n"),
    );
    workplace.forgelm(&["--config", "merge.yaml", "--merge"]).expect_code(0);
    for (model, output) in [("merged", "small"), ("model", "small_base")] {
        let quantize = ["quantize", "--model", model, "--method", "nf4", "--output", output];
        workplace.forgelm(&quantize).expect_code(0);
    }
    let args =
        ["--row-id", "person-1", "--corpus", "data.jsonl", "--output-dir", "out", "--dry-run"];
    let result = purge(&workplace, &[&args[..], &JSON].concat()).expect_code(0).json();
    let copies = result["copies"].as_array().unwrap();
    let merged: Vec<&Value> = copies.iter().filter(|copy| copy["kind"] == "merged_model").collect();
    assert_eq!(merged.len(), 1, "{copies:?}");
    assert!(merged[0]["path"].as_str().unwrap().ends_with("/merged"));
    let exports: Vec<&str> = copies
        .iter()
        .filter(|copy| copy["kind"] == "export")
        .map(|copy| copy["path"].as_str().unwrap())
        .collect();
    assert!(exports.len() == 1 && exports[0].ends_with("/small"), "{copies:?}");
    assert_eq!((&result["dry_run"], result.get("bytes_freed")), (&true.into(), None));
    assert_eq!(workplace.read("data.jsonl").lines().count(), 24);
    let events = events(&workplace, "out/audit_log.jsonl");
    assert!(events[..2].iter().all(|event| event["dry_run"] == true));
    assert_eq!(events[1]["bytes_freed"], 0);
}

#[test]
fn a_model_is_suspected_only_where_no_evidence_says_what_it_was_trained_on() {
    let workplace = finished();
    workplace.write("other.jsonl", "{\"id\": 1}\n{\"id\": 2}\n");
    let row = |id: &str, out: &str| {
        let args = ["--row-id", id, "--corpus", "other.jsonl", "--output-dir", out];
        purge(&workplace, &[&args[..], &JSON].concat()).expect_code(0).json()
    };
    assert_eq!(row("1", "out")["warnings"], json!([]));
    fs::create_dir_all(workplace.path("bare/final_model.staging.fg-3")).unwrap();
    fs::create_dir_all(workplace.path("bare/final_model")).unwrap();
    let warning = row("2", "bare")["warnings"][0].as_str().unwrap().to_owned();
    assert!(warning.contains("no evidence says what it was trained on"), "{warning}");
    let event = events(&workplace, "bare/audit_log.jsonl").pop().unwrap();
    assert_eq!(event["event"], "data.erasure_warning_memorisation");
    assert_eq!(
        (&event["affected_run_ids"], &event["weights"]),
        (&json!(["fg-3"]), &json!(["bare/final_model"]))
    );
}

#[test]
fn a_row_that_is_not_there_or_there_twice_is_refused_and_recorded() {
    let workplace = Workplace::new();
    let rows = "{\"id\": \"a\"}\nnot json\n{\"row_id\": 7}\n{\"id\": 7}\n{\"id\": \"7";
    workplace.write("rows/data.jsonl", rows);
    let row = |id: &str| purge(&workplace, &["--row-id", id, "--corpus", "rows/data.jsonl"]);
    row("none")
        .expect_code(1)
        .expect_stderr("none of 3 rows")
        .expect_stderr("2 lines are no JSON objects");
    row("7").expect_code(1).expect_stderr("2 rows have this identifier, the first in line 3");
    assert_eq!(workplace.read("rows/data.jsonl"), rows);
    let failed: Vec<Value> = events(&workplace, "rows/audit_log.jsonl")
        .into_iter()
        .filter(|event| event["event"] == "data.erasure_failed")
        .collect();
    assert_eq!(failed[0]["error_class"], "NoMatchingRow");
    assert_eq!(
        (&failed[1]["error_class"], &failed[1]["match_count"]),
        (&"MultiMatchRefused".into(), &2.into())
    );
    let all = ["--row-id", "7", "--corpus", "rows/data.jsonl", "--row-matches", "all"];
    purge(&workplace, &all).expect_code(0).expect_stderr("2 lines of the data are no JSON objects");
    assert_eq!(workplace.read("rows/data.jsonl"), "{\"id\": \"a\"}\nnot json\n{\"id\": \"7");
    // The log beside the data is no data.
    workplace.write("rows/data.jsonl", &conversation(1));
    workplace.edit_config("data.jsonl", "rows");
    let ran = workplace.forgelm(&["data", "preview", "--config", "run.yaml"]).expect_code(0);
    assert!(!ran.stdout.contains("erasure"), "{}", ran.stdout);
}

#[test]
fn what_is_no_file_of_rows_is_refused_before_anything_is_written() {
    let workplace = Workplace::new();
    workplace.write("folder/x.jsonl", "{}\n");
    for (corpus, says) in
        [("none.jsonl", "no such file"), ("folder", "a folder"), ("/dev/null", "no regular file")]
    {
        purge(&workplace, &["--row-id", "a", "--corpus", corpus])
            .expect_code(1)
            .expect_stderr(says);
    }
    purge(&workplace, &["--row-id", " ", "--corpus", "data.jsonl"])
        .expect_code(1)
        .expect_stderr("`--row-id`");
    purge(&workplace, &["--row-id", "a"]).expect_code(2);
    assert!(!workplace.path("audit_log.jsonl").exists());
    workplace.write("bytes.jsonl", "\u{1f}rows in a box");
    purge(&workplace, &["--row-id", "a", "--corpus", "bytes.jsonl", "--output-dir", "logs"])
        .expect_code(1)
        .expect_stderr("no line is a JSON object");
    workplace.write("short/.forgelm_audit_salt", "short");
    workplace.write("short/data.jsonl", "{\"id\": 1}\n");
    purge(&workplace, &["--row-id", "1", "--corpus", "short/data.jsonl"])
        .expect_code(2)
        .expect_stderr("5 bytes; expected a salt of 16");
    let long = "x".repeat(1001);
    purge(&workplace, &["--row-id", "1", "--corpus", "data.jsonl", "--justification", &long])
        .expect_code(1)
        .expect_stderr("1001 characters");
}

#[test]
fn data_behind_a_link_and_under_two_names_is_found_where_it_lies() {
    let workplace = Workplace::new();
    workplace.write("real/data.jsonl", "{\"id\": 1}\n{\"id\": 2}\n");
    symlink(workplace.path("real/data.jsonl"), workplace.path("link.jsonl")).unwrap();
    fs::hard_link(workplace.path("real/data.jsonl"), workplace.path("other.jsonl")).unwrap();
    workplace.write("real/.data.jsonl.tmp-1-0", "{\"id\": 1}\n");
    let args = ["--row-id", "1", "--corpus", "link.jsonl", "--output-dir", "logs"];
    let result = purge(&workplace, &[&args[..], &JSON].concat()).expect_code(0).json();
    let kinds: Vec<&Value> =
        result["copies"].as_array().unwrap().iter().map(|c| &c["kind"]).collect();
    assert_eq!(kinds, ["hard_link", "leftover"]);
    assert_eq!(workplace.read("real/data.jsonl"), "{\"id\": 2}\n");
    assert!(workplace.path("link.jsonl").is_symlink());
    assert!(workplace.read("other.jsonl").contains("\"id\": 1"));
    // Another program has it locked.
    let held = fs::File::open(workplace.path("real/data.jsonl")).unwrap();
    held.lock().unwrap();
    let args = ["--row-id", "2", "--corpus", "real/data.jsonl", "--output-dir", "logs"];
    purge(&workplace, &args).expect_code(1).expect_stderr("another program has it locked");
    held.unlock().unwrap();
    purge(&workplace, &args).expect_code(0);
    assert_eq!(workplace.read("real/data.jsonl"), "");
}

#[test]
fn a_folder_that_cannot_be_written_leaves_the_data_as_it_was() {
    let workplace = Workplace::new();
    workplace.write("locked/data.jsonl", "{\"id\": 1}\n");
    let folder = workplace.path("locked");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
    let is_enforced = fs::write(folder.join("probe"), "").is_err();
    if is_enforced {
        let args = ["--row-id", "1", "--corpus", "locked/data.jsonl", "--output-dir", "logs"];
        purge(&workplace, &args).expect_code(2).expect_stderr("cannot be created");
        let events = events(&workplace, "logs/audit_log.jsonl");
        assert_eq!(events[1]["error_class"], "WriteFailed");
        assert_eq!(workplace.read("locked/data.jsonl"), "{\"id\": 1}\n");
    } else {
        // This user may write everywhere (root): what a refused write does is held in core/artifact.
        eprintln!("skipped: this user's permissions are not enforced");
    }
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn the_documents_of_a_run_go_with_a_signed_statement_and_are_erased_not_missing() {
    let workplace = finished();
    let run_id = run_id(&workplace);
    let args = ["--run-id", &run_id, "--kind", "artefacts", "--output-dir", "out"];
    let dry = purge(&workplace, &[&args[..], &["--dry-run"], &JSON].concat()).expect_code(0).json();
    let would = dry["would_delete"].as_array().unwrap().len();
    assert_eq!(would, 20, "ten documents and their signatures: {dry}");
    assert!(workplace.path("out/compliance/config.json").exists());
    let justification = ["--justification", "asked for by eve@example.org"];
    let result =
        purge(&workplace, &[&args[..], &justification, &JSON].concat()).expect_code(0).json();
    assert_eq!(result["deleted"], dry["would_delete"]);
    assert_eq!(result["statement"], "compliance/erasure.1.dsse.json");
    let mut left: Vec<String> = fs::read_dir(workplace.path("out/compliance"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["attestation.dsse.json", "erasure.1.dsse.json", "signing_key.pub"]);
    let completed = events(&workplace, "out/audit_log.jsonl").pop().unwrap();
    assert_eq!(
        (&completed["event"], &completed["run_id"]),
        (&"data.erasure_completed".into(), &run_id.as_str().into())
    );
    assert_eq!(completed["justification"], "asked for by [REDACTED]");
    assert_eq!(completed["statement"], result["statement"]);

    let verified =
        workplace.forgelm(&[&["verify-bundle", "out"], &JSON[..]].concat()).expect_code(0).json();
    assert_eq!(verified["erased"].as_array().unwrap().len(), would);
    assert_eq!(verified["findings"], json!([]));
    workplace.forgelm(&["verify-audit", "out", "--require-signature"]).expect_code(0);
    // A file that nobody erased is missing all the same.
    fs::remove_file(workplace.path("out/final_model/tokenizer.json")).unwrap();
    workplace
        .forgelm(&["verify-bundle", "out"])
        .expect_code(6)
        .expect_stderr("missing: final_model/tokenizer.json");
    // And without the statement all of it is.
    fs::remove_file(workplace.path("out/compliance/erasure.1.dsse.json")).unwrap();
    workplace
        .forgelm(&["verify-bundle", "out"])
        .expect_code(6)
        .expect_stderr("missing: compliance/config.json");
    purge(&workplace, &args).expect_code(1).expect_stderr("nothing of this kind is there");
    assert_eq!(
        events(&workplace, "out/audit_log.jsonl").pop().unwrap()["error_class"],
        "NoMatchingArtefacts"
    );
}

#[test]
fn documents_of_a_high_risk_run_go_only_with_a_reason_in_writing() {
    let workplace = Workplace::new();
    let predicate =
        json!({"run_id": "fg-1", "risk": {"compliance": "high-risk", "risk_assessment": null}});
    let statement = json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": "x", "predicate": predicate,
        "subject": [{"name": "compliance/config.json", "digest": {"sha256": "0".repeat(64)}}]});
    let payload = base64(statement.to_string().as_bytes());
    let envelope = json!({"payload": payload, "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": base64(&[0; 64])}]});
    workplace.write("out/compliance/attestation.dsse.json", &envelope.to_string());
    workplace.write("out/compliance/config.json", "{}");
    let args = ["--run-id", "fg-1", "--kind", "artefacts", "--output-dir", "out"];
    purge(&workplace, &args).expect_code(1).expect_stderr("Article 18");
    assert!(workplace.path("out/compliance/config.json").exists());
    purge(&workplace, &[&args[..], &["--justification", "GDPR 17, case 12"]].concat())
        .expect_code(0);
    assert!(!workplace.path("out/compliance/config.json").exists());
}

fn base64(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bytes");
    fs::write(&path, bytes).unwrap();
    let output =
        std::process::Command::new("base64").args(["-w", "0"]).arg(&path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_staged_model_goes_by_its_name_or_by_the_run_in_it() {
    let workplace = finished();
    let id = "fg-0123456789ab";
    for folder in [
        "final_model.staging.fg-0123456789ab",
        "final_model.staging",
        "final_model.staging.fg-other",
    ] {
        workplace.write(&format!("out/{folder}/weights.safetensors"), "x");
    }
    workplace.write("out/final_model.staging/staging_run_id", "fg-0123456789ab\n");
    let args = ["--run-id", id, "--kind", "staging", "--output-dir", "out"];
    let ran = purge(&workplace, &[&args[..], &JSON].concat()).expect_code(0);
    let deleted = json!(["final_model.staging.fg-0123456789ab", "final_model.staging"]);
    assert_eq!(ran.json()["deleted"], deleted);
    assert!(
        ran.stderr.contains("checkpoint-4, checkpoint-8") || ran.stderr.contains("checkpoint-12")
    );
    assert!(workplace.path("out/final_model.staging.fg-other").exists());
    // A run that is at work in the folder.
    let lock = fs::File::open(workplace.path("out/.forgelm.lock")).unwrap();
    lock.lock().unwrap();
    let other = ["--run-id", "fg-other", "--kind", "staging", "--output-dir", "out"];
    purge(&workplace, &other).expect_code(1).expect_stderr("in use by");
    // Not by dropping it: a program that another test starts at this moment shares the open file.
    lock.unlock().unwrap();
    assert!(workplace.path("out/final_model.staging.fg-other").exists());
    // What a purge that was stopped left under a temporary name goes with the next one.
    workplace.write("out/.final_model.staging.fg-1.removed-1-0/weights", "x");
    purge(&workplace, &["--run-id", "fg-1", "--kind", "staging", "--output-dir", "out"])
        .expect_code(1)
        .expect_stderr("nothing of this kind is there");
    assert!(!workplace.path("out/.final_model.staging.fg-1.removed-1-0").exists());
    assert!(!workplace.path("out/final_model.staging").exists());
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
    // Another name of the tuned model's folder, as the config says it.
    workplace.edit_config("output_dir: out", "output_dir: out\n  final_model_dir: tuned");
    workplace.write("out/tuned.staging.fg-7/weights", "x");
    let args = ["--run-id", "fg-7", "--kind", "staging", "--output-dir", "out"];
    purge(&workplace, &args).expect_code(1);
    purge(&workplace, &[&args[..], &["--config", "run.yaml"]].concat()).expect_code(0);
}

#[test]
fn nothing_outside_the_folder_is_removed_through_a_link() {
    let workplace = Workplace::new();
    workplace.write("elsewhere/weights.safetensors", "x");
    fs::create_dir(workplace.path("out")).unwrap();
    symlink(workplace.path("elsewhere"), workplace.path("out/final_model.staging.fg-1")).unwrap();
    symlink(workplace.path("elsewhere"), workplace.path("out/compliance")).unwrap();
    for kind in ["staging", "artefacts"] {
        let args = ["--run-id", "fg-1", "--kind", kind, "--output-dir", "out"];
        purge(&workplace, &args).expect_code(1).expect_stderr("is a link, or lies outside");
    }
    let failed = events(&workplace, "out/audit_log.jsonl").pop().unwrap();
    assert_eq!(failed["error_class"], "PathTraversalRefused");
    assert!(workplace.path("elsewhere/weights.safetensors").exists());
    for (run_id, says) in [("../elsewhere", "is no run"), ("", "is no run")] {
        let args = ["--run-id", run_id, "--kind", "staging", "--output-dir", "out"];
        purge(&workplace, &args).expect_code(1).expect_stderr(says);
    }
    purge(&workplace, &["--run-id", "fg-1", "--output-dir", "out"])
        .expect_code(1)
        .expect_stderr("`--kind`");
    let args = ["--run-id", "fg-1", "--kind", "staging", "--output-dir", "none"];
    purge(&workplace, &args).expect_code(1).expect_stderr("no such folder");
    purge(&workplace, &["--run-id", "fg-1", "--kind", "logs"]).expect_code(2);
}

#[test]
fn while_a_hold_stands_nothing_is_purged() {
    let workplace = finished();
    let id = run_id(&workplace);
    purge(&workplace, &["--hold", "case 7", "--output-dir", "out"]).expect_code(0);
    let log = workplace.read("out/audit_log.jsonl");
    let row = ["--row-id", "person-7", "--corpus", "data.jsonl", "--output-dir", "out"];
    purge(&workplace, &row).expect_code(1).expect_stderr("legal hold: out/LEGAL_HOLD: \"case 7\"");
    // The run's folder is held, wherever the record of the row would go.
    let elsewhere = [
        "--row-id",
        "person-7",
        "--corpus",
        "data.jsonl",
        "--output-dir",
        "logs",
        "--config",
        "run.yaml",
    ];
    purge(&workplace, &elsewhere).expect_code(1).expect_stderr("legal hold");
    // Also where only the evidence leads from the data to the run.
    purge(&workplace, &["--row-id", "person-7", "--corpus", "data.jsonl", "--output-dir", "logs"])
        .expect_code(1)
        .expect_stderr("legal hold: ")
        .expect_stderr("out/LEGAL_HOLD");
    let failed = events(&workplace, "logs/audit_log.jsonl").pop().unwrap();
    assert_eq!(failed["error_class"], "LegalHold");
    let documents = ["--run-id", &id, "--kind", "artefacts", "--output-dir", "out"];
    purge(&workplace, &documents).expect_code(1).expect_stderr("legal hold");
    assert_eq!(
        (workplace.read("data.jsonl").lines().count(), workplace.read("out/audit_log.jsonl")),
        (24, log)
    );
    purge(&workplace, &["--release", "closed", "--output-dir", "out"]).expect_code(0);
    let config = workplace.read("run.yaml");
    workplace.write("run.yaml", &(config + "retention: {legal_hold: true}\n"));
    purge(&workplace, &[&documents[..], &["--config", "run.yaml"]].concat())
        .expect_code(1)
        .expect_stderr("`retention.legal_hold` is true");
    purge(&workplace, &row).expect_code(0);
    purge(&workplace, &documents).expect_code(0);
}

#[test]
fn texts_made_from_the_data_and_receivers_of_messages_are_named() {
    let workplace = Workplace::new();
    workplace.write("corpus/data.jsonl", "{\"id\": 1}\n");
    workplace.write("corpus/synthetic_data_v2.jsonl", "{}\n");
    let config = workplace.read("run.yaml");
    workplace.write(
        "hooked.yaml",
        &(config + "webhook: {url: \"https://user:pw@hooks.example.org/T/secret\"}\n"),
    );
    let args = ["--row-id", "1", "--corpus", "corpus/data.jsonl", "--config", "hooked.yaml"];
    let ran = purge(&workplace, &args).expect_code(0);
    let events = events(&workplace, "corpus/audit_log.jsonl");
    assert_eq!(events[2]["synthetic_files"], json!(["synthetic_data_v2.jsonl"]));
    assert_eq!(events[3]["webhook_targets"], json!(["https://hooks.example.org"]));
    for text in [&ran.stderr, &workplace.read("corpus/audit_log.jsonl")] {
        assert!(!text.contains("secret") && !text.contains("pw@"), "{text}");
    }
}
