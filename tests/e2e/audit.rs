//! `forgelm audit`: report, gates and exit codes. Secrets are put together here, so that no file of this
//! repository looks as if it had one.

use crate::support::Workplace;
use serde_json::{Value, json};

const REPORT: &str = "audit/data_audit_report.json";

fn token() -> String {
    format!("glpat-{}", "xY9z".repeat(6))
}

fn row(text: &str) -> String {
    json!({"messages": [
        {"role": "user", "content": "What is this?"}, {"role": "assistant", "content": text}]})
    .to_string()
}

fn report(workplace: &Workplace) -> Value {
    serde_json::from_str(&workplace.read(REPORT)).unwrap()
}

#[test]
fn fault_034_secrets_and_card_numbers_exit_3_with_file_line_and_kind() {
    let (token, card) = (token(), "5555 5555 5555 4444");
    let workplace = Workplace::new();
    let rows = [row("A plain answer."), row(&format!("Use {token} for it.")), row(card)];
    workplace.write("rows.jsonl", &rows.join("\n"));
    let ran = workplace.forgelm(&["audit", "rows.jsonl"]).expect_code(3);
    for place in ["rows.jsonl:2: gitlab_token", "rows.jsonl:3: credit_card"] {
        assert!(ran.stderr.contains(place), "{}", ran.stderr);
    }
    for line in ["rows.jsonl:2: critical: gitlab_token", "secrets: failed; personal data: failed"] {
        assert!(ran.stdout.contains(line), "{}", ran.stdout);
    }
    let finding =
        |line, kind| json!({"file": "rows.jsonl", "line": line, "type": kind, "tier": "critical"});
    let findings = json!([finding(2, "gitlab_token"), finding(3, "credit_card")]);
    assert_eq!(report(&workplace)["findings"], findings, "the report is written all the same");
    let json =
        workplace.forgelm(&["audit", "rows.jsonl", "--output-format", "json"]).expect_code(3);
    let document = json.json();
    assert_eq!(document.as_object().unwrap().keys().next().unwrap(), "success");
    assert_eq!([&document["success"], &document["exit_code"]], [&json!(false), &json!(3)]);
    assert_eq!(document["findings"], findings);
    let gate = json!({
        "status": "failed", "severity": "critical", "critical_total": 1, "critical_types": ["gitlab_token"],
        "allow_secrets": false,
    });
    assert_eq!(document["secrets_gate"], gate);
    // Neither is printed or stored anywhere.
    let texts = [ran.stdout, ran.stderr, json.stdout, json.stderr, workplace.read(REPORT)];
    for text in texts {
        assert!(
            !text.contains("xY9z") && !text.contains("5555 5555") && !text.contains("4444"),
            "{text}"
        );
    }

    // Each flag allows its own.
    for (flags, code) in [
        (&["--allow-secrets"][..], 3),
        (&["--allow-pii"], 3),
        (&["--allow-pii", "--allow-secrets"], 0),
    ] {
        let ran = workplace.forgelm(&[&["audit", "rows.jsonl"], flags].concat()).expect_code(code);
        assert_eq!(ran.stderr.matches("warning: ").count(), flags.len(), "{}", ran.stderr);
        assert!(ran.stdout.contains("suppressed"), "{}", ran.stdout);
    }
}

#[test]
fn a_clean_folder_exits_0_and_its_report_says_what_was_read_and_how() {
    let workplace = Workplace::new();
    let good = |i: usize| {
        row(&format!("Answer number {i} says that all is well with thing {}.", i * 7919))
    };
    let rows = |from: usize, n: usize| (from..from + n).map(good).collect::<Vec<_>>().join("\n");
    workplace.write("set/train.jsonl", &rows(0, 30));
    workplace.write("set/validation.jsonl", &rows(30, 5));
    let args = ["audit", "set", "--output", "out", "--near-dup-threshold", "0", "--format", "json"];
    let document = workplace.forgelm(&args).expect_code(0).json();
    assert_eq!(document["success"], true);
    assert_eq!(document["splits"], json!({"train": 30, "validation": 5}));
    assert_eq!(document["cross_split_leakage_pairs"], json!(["train__validation"]));
    let report: Value =
        serde_json::from_str(&workplace.read("out/data_audit_report.json")).unwrap();
    assert_eq!(report["total_samples"], 35);
    assert_eq!(report["source_input"], "set");
    assert_eq!(report["source_path"], json!(workplace.path("set")));
    assert_eq!(report["forgelm_version"], env!("CARGO_PKG_VERSION"));
    let dedup = json!({"method": "simhash", "hamming_threshold": 0});
    assert_eq!(report["parameters"]["dedup"], dedup);
    let digest = forgelm_artifact::hash::sha256_file(&workplace.path("set/train.jsonl")).unwrap();
    assert_eq!(report["inputs"][0]["sha256"], digest.as_str());
    assert!(report["quality_summary"]["samples_evaluated"] == 35, "{report}");
    // A copy in the other split is leakage, which is told and fails nothing.
    workplace.write("set/validation.jsonl", &rows(28, 5));
    let ran = workplace.forgelm(&["audit", "set", "--near-dup-threshold", "0"]).expect_code(0);
    let line = "leakage: 2 rows of train are in validation, 2 rows of validation in train";
    assert!(ran.stdout.contains(line), "{}", ran.stdout);
    let minhash = ["audit", "set", "--dedup-method", "minhash", "--jaccard-threshold", "1"];
    let ran = workplace.forgelm(&minhash).expect_code(0);
    assert!(ran.stdout.contains(line), "{}", ran.stdout);
    assert_eq!(self::report(&workplace)["cross_split_overlap"]["num_perm"], 128);
    // Any number of threads, the same report but for the time.
    let without_time = |workers: &str| {
        workplace
            .forgelm(&["audit", "set", "--no-quality-filter", "--workers", workers])
            .expect_code(0);
        let mut report = self::report(&workplace);
        assert!(report["generated_at"].take().as_str().unwrap().ends_with("+00:00"));
        report
    };
    let one = without_time("1");
    assert_eq!(one["quality_summary"], json!({}));
    assert_eq!(without_time("3"), one);
}

#[test]
fn what_cannot_be_audited_is_no_success() {
    let workplace = Workplace::new();
    workplace.write("empty.jsonl", "\n");
    workplace.write("broken.jsonl", &format!("{}\n{}", row("Fine."), "x".repeat(17 << 20)));
    for (args, code, text) in [
        (&["audit", "missing.jsonl"][..], 1, "missing.jsonl: does not exist"),
        (&["audit", "empty.jsonl"], 1, "no rows: nothing was audited"),
        (&["audit", "broken.jsonl"], 1, "error: broken.jsonl:2: the line that begins at byte"),
        (&["audit", "data.jsonl", "--pii-ml"], 2, "--pii-ml: this program has no model"),
        (&["audit", "data.jsonl", "--croissant"], 1, "not available yet: --croissant"),
        (&["audit", "data.jsonl", "--jaccard-threshold", "1.5"], 2, "1.5 is not in 0 to 1"),
        (&["audit"], 2, "<INPUT>"),
    ] {
        workplace.forgelm(args).expect_code(code).expect_stderr(text);
    }
    let args = ["audit", "missing.jsonl", "--output-format", "json"];
    assert_eq!(workplace.forgelm(&args).expect_code(1).json()["success"], false);
    // What was found before a file broke off fails the gate.
    workplace.write("broken.jsonl", &format!("{}\n{}", row(&token()), "x".repeat(17 << 20)));
    let ran = workplace.forgelm(&["audit", "broken.jsonl"]).expect_code(3);
    ran.expect_stderr("broken.jsonl:1: gitlab_token").expect_stderr("broken.jsonl:2: ");
}

#[test]
fn a_named_key_signs_the_report_and_no_key_is_made_for_it() {
    let workplace = Workplace::new();
    workplace.write("rows.jsonl", &row("A plain answer."));
    let envelope = workplace.path(&format!("{REPORT}.dsse.json"));
    workplace.forgelm(&["audit", "rows.jsonl"]).expect_code(0);
    assert!(!envelope.exists() && !workplace.path("home/.config/forgelm").exists());
    workplace.forgelm(&["keygen", "--out", "k"]).expect_code(0);
    let ran = workplace.forgelm(&["audit", "rows.jsonl", "--signing-key", "k"]).expect_code(0);
    assert!(ran.stdout.contains("data_audit_report.json.dsse.json"), "{}", ran.stdout);
    let verify = ["verify-signature", REPORT, "--type", "data-audit", "--key", "k.pub"];
    workplace.forgelm(&verify).expect_code(0);
    // The environment of a pipeline names it too.
    let mut command = workplace.command(&["audit", "rows.jsonl"]);
    let ran = command.env("FORGELM_SIGNING_KEY_FILE", "k").output().unwrap();
    crate::support::Ran::from(ran).expect_code(0);
    workplace.forgelm(&verify).expect_code(0);
    // A report that is written again has no old signature.
    workplace.forgelm(&["audit", "rows.jsonl"]).expect_code(0);
    assert!(!envelope.exists());
    let nowhere = ["audit", "rows.jsonl", "--output", "new", "--signing-key", "nowhere"];
    workplace.forgelm(&nowhere).expect_code(1).expect_stderr("no such key file");
    assert!(!workplace.path("new").exists(), "found out before the work");
}
