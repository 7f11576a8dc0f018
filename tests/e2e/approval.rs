//! Human approval: staged, then approved, rejected, or refused; and what a stranger sees of it.

use crate::support::{Ran, Workplace};
use serde_json::{Value, json};
use std::fs;

const JSON: [&str; 2] = ["--output-format", "json"];

/// A finished run that waits, with these rules, and its id.
fn staged(rules: &str) -> (Workplace, String) {
    let workplace = Workplace::new();
    let run_id = stage(&workplace, rules);
    (workplace, run_id)
}

fn stage(workplace: &Workplace, rules: &str) -> String {
    let config = workplace.read("run.yaml");
    let evaluation = format!("evaluation: {{require_human_approval: true{rules}}}\n");
    workplace.write("run.yaml", &(config + &evaluation));
    let ran = workplace.forgelm(&["--config", "run.yaml", "--output-format", "json"]);
    ran.expect_code(4).json()["run_id"].as_str().unwrap().to_owned()
}

/// A decision by an operator of this name.
fn decide(workplace: &Workplace, who: &str, args: &[&str]) -> Ran {
    let args = [args, &["--output-dir", "out"]].concat();
    workplace.command(&args).env("FORGELM_OPERATOR", who).output().unwrap().into()
}

fn approve(workplace: &Workplace, who: &str, run_id: &str, more: &[&str]) -> Ran {
    decide(workplace, who, &[&["approve", run_id], more].concat())
}

fn staging(run_id: &str) -> String {
    format!("out/final_model.staging.{run_id}")
}

fn events(workplace: &Workplace) -> Vec<Value> {
    workplace.json_lines("out/audit_log.jsonl")
}

fn names(workplace: &Workplace) -> Vec<String> {
    events(workplace).iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect()
}

fn last(workplace: &Workplace) -> Value {
    events(workplace).pop().unwrap()
}

fn bundle(workplace: &Workplace, more: &[&str]) -> Ran {
    workplace.forgelm(&[&["verify-bundle", "out"], &JSON[..], more].concat())
}

#[test]
fn a_model_that_needs_approval_is_staged_and_exits_4() {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    workplace.write("run.yaml", &(config + "evaluation: {require_human_approval: true}\n"));
    let ran = workplace.forgelm(&["--config", "run.yaml", "--output-format", "json"]);
    let result = ran.expect_code(4).json();
    let run_id = result["run_id"].as_str().unwrap();
    assert_eq!((&result["success"], &result["awaiting_approval"]), (&true.into(), &true.into()));
    assert_eq!(result["reverted"], false);
    assert_eq!(result["staging_path"], staging(run_id));
    assert_eq!(result["final_model_path"], staging(run_id));
    assert!(workplace.path(&staging(run_id)).join("adapter_model.safetensors").is_file());
    assert!(!workplace.path("out/final_model").exists());
    let required = last(&workplace);
    assert_eq!(required["event"], "human_approval.required");
    assert_eq!(required["gate"], "final_model");
    assert_eq!(required["staging_path"], format!("final_model.staging.{run_id}"));
    assert_eq!(
        required["policy"],
        json!({"quorum": 1, "roles": [], "expires_days": null,
            "require_different_operator": true, "approvers": null})
    );
    assert!(!names(&workplace).contains(&"pipeline.completed".to_owned()));
    assert_eq!(bundle(&workplace, &[]).expect_code(0).json()["outcome"], "staged");
    // Documents have no name that will not be.
    let integrity = workplace.read(&format!("{}/model_integrity.json", staging(run_id)));
    let card = workplace.read(&format!("{}/README.md", staging(run_id)));
    assert!(!integrity.contains("staging") && !card.contains("staging"), "{card}");
    // It waits, and says so.
    let before = workplace.read("out/audit_log.jsonl");
    let again = workplace.forgelm(&["--config", "run.yaml", "--resume", JSON[0], JSON[1]]);
    let again = again.expect_code(4).json();
    assert_eq!((&again["awaiting_approval"], &again["run_id"]), (&true.into(), &run_id.into()));
    assert_eq!(workplace.read("out/audit_log.jsonl"), before);
}

#[test]
fn an_approved_model_has_its_final_name_and_a_stranger_verifies_it() {
    let (workplace, run_id) = staged("");
    let before = workplace.path(&staging(&run_id)).join("adapter_model.safetensors");
    let before = fs::read(before).unwrap();
    let ran =
        approve(&workplace, "boss@example", &run_id, &["--comment", "fine", JSON[0], JSON[1]]);
    let result = ran.expect_code(0).json();
    assert_eq!(result["success"], true);
    assert_eq!(result["approver"], "boss@example");
    assert_eq!(result["final_model_path"], "out/final_model");
    assert_eq!(result["promote_strategy"], "rename");
    assert!(!workplace.path(&staging(&run_id)).exists());
    assert!(workplace.adapter("out") == before);
    let granted = last(&workplace);
    assert_eq!(granted["event"], "human_approval.granted");
    assert_eq!(
        (&granted["approver"], &granted["comment"]),
        (&json!("boss@example"), &json!("fine"))
    );
    assert_eq!(granted["operator"], "boss@example");
    assert_eq!(granted["run_id"], run_id.as_str());
    assert_eq!(granted["final_path"], "final_model");
    let report = bundle(&workplace, &[]).expect_code(0).json();
    assert_eq!(report["outcome"], "promoted");
    assert!(report["notes"].to_string().contains("boss@example"), "{report}");
    // With the public key alone, somewhere else.
    fs::rename(workplace.path("home"), workplace.path("gone")).unwrap();
    let key = "gone/.config/forgelm/signing.key.pub";
    bundle(&workplace, &["--key", key]).expect_code(0);
    bundle(&workplace, &[]).expect_code(1);
    fs::rename(workplace.path("gone"), workplace.path("home")).unwrap();
    workplace.forgelm(&["verify-integrity", "out/final_model"]).expect_code(0);
    workplace.forgelm(&["verify-audit", "out"]).expect_code(0);
    let again = workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
    assert!(again.stdout.contains("nothing left to do"), "{}", again.stdout);
    // A file of it is not signed by itself, which would add one.
    workplace
        .forgelm(&["sign", "out/final_model/adapter_config.json"])
        .expect_code(1)
        .expect_stderr("binds every file of this folder");
    // Every byte still counts.
    let file = workplace.path("out/final_model/adapter_config.json");
    let good = fs::read(&file).unwrap();
    fs::write(&file, b"{}").unwrap();
    let ran = bundle(&workplace, &[]).expect_code(6);
    assert!(ran.stdout.contains("final_model/adapter_config.json"), "{}", ran.stdout);
    fs::write(&file, good).unwrap();
    workplace.write("out/final_model/extra", "");
    bundle(&workplace, &[]).expect_code(6);
}

#[test]
fn a_folder_that_was_renamed_by_hand_is_not_approved() {
    let (workplace, run_id) = staged("");
    fs::rename(workplace.path(&staging(&run_id)), workplace.path("out/final_model")).unwrap();
    let report = bundle(&workplace, &[]).expect_code(6).json();
    assert_eq!(report["outcome"], "staged");
    let findings = report["findings"].to_string();
    assert!(findings.contains("adapter_model.safetensors"), "{findings}");
}

#[test]
fn a_grant_that_no_trusted_key_vouches_for_is_not_believed() {
    let (workplace, run_id) = staged("");
    let head = fs::read(workplace.path("out/audit_log.jsonl.checkpoint.dsse.json")).unwrap();
    approve(&workplace, "boss@example", &run_id, &[]).expect_code(0);
    // The log goes on, and the head that was signed before it stands beside it again.
    fs::write(workplace.path("out/audit_log.jsonl.checkpoint.dsse.json"), &head).unwrap();
    let report = bundle(&workplace, &[]).expect_code(1).json();
    assert!(report["findings"].to_string().contains("after the newest checkpoint"), "{report}");
    // Whoever approves next signs it; nobody approves twice by that.
    approve(&workplace, "boss@example", &run_id, &[]).expect_code(0);
    bundle(&workplace, &[]).expect_code(0);
    let granted = names(&workplace).iter().filter(|n| *n == "human_approval.granted").count();
    assert_eq!(granted, 1);
    approve(&workplace, "boss@example", &run_id, &[]).expect_code(1);
}

#[test]
fn fault_101_approving_twice_after_a_rejection_or_ones_own_model_is_refused_and_recorded() {
    let (workplace, run_id) = staged("");
    let ran = approve(&workplace, "tester@example", &run_id, &[]).expect_code(1);
    assert!(ran.stderr.contains("`tester@example` trained this model"), "{}", ran.stderr);
    let refused = last(&workplace);
    assert_eq!(refused["event"], "human_approval.refused");
    assert_eq!(
        (&refused["decision"], &refused["operator"]),
        (&json!("approved"), &json!("tester@example"))
    );
    assert!(workplace.path(&staging(&run_id)).is_dir());
    bundle(&workplace, &[]).expect_code(0);
    approve(&workplace, "boss@example", &run_id, &[]).expect_code(0);
    for command in ["approve", "reject"] {
        decide(&workplace, "other@example", &[command, &run_id])
            .expect_code(1)
            .expect_stderr("was approved already");
        assert_eq!(last(&workplace)["event"], "human_approval.refused");
    }
    bundle(&workplace, &[]).expect_code(0);

    let (workplace, run_id) = staged("");
    let args = ["reject", &run_id, "--comment", "too rude", JSON[0], JSON[1]];
    let result = decide(&workplace, "boss@example", &args).expect_code(0).json();
    assert_eq!(result["staging_path"], staging(&run_id));
    assert_eq!(result["comment"], "too rude");
    assert_eq!(last(&workplace)["event"], "human_approval.rejected");
    assert!(workplace.path(&staging(&run_id)).is_dir(), "the folder is kept");
    assert_eq!(bundle(&workplace, &[]).expect_code(0).json()["outcome"], "rejected");
    approve(&workplace, "boss@example", &run_id, &[])
        .expect_code(1)
        .expect_stderr("was rejected already");
    workplace
        .forgelm(&["--config", "run.yaml", "--resume"])
        .expect_code(3)
        .expect_stderr("was rejected by boss@example: too rude");
    // Where it was allowed before training, one person does both.
    let (workplace, run_id) = staged(", approval: {require_different_operator: false}");
    approve(&workplace, "tester@example", &run_id, &[]).expect_code(0);
}

#[test]
fn what_was_changed_after_signing_is_not_promoted() {
    let (workplace, run_id) = staged("");
    let files = [
        format!("{}/adapter_model.safetensors", staging(&run_id)),
        format!("{}/model_integrity.json", staging(&run_id)),
        "out/compliance/compliance_report.json".to_owned(),
        "out/compliance/attestation.dsse.json".to_owned(),
        "out/audit_log.jsonl".to_owned(),
        "out/audit_log.jsonl.checkpoint.dsse.json".to_owned(),
        "out/audit_log.jsonl.manifest.json".to_owned(),
    ];
    for file in files {
        let path = workplace.path(&file);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        // A digit for another: what is JSON stays JSON.
        let third = bad.len() / 3;
        let at = (third..bad.len()).find(|&at| bad[at].is_ascii_digit()).unwrap_or(third);
        bad[at] = if bad[at] == b'7' { b'8' } else { b'7' };
        fs::write(&path, &bad).unwrap();
        let ran = approve(&workplace, "boss@example", &run_id, &[]).expect_code(6);
        assert!(ran.stderr.contains("was decided"), "{file}: {}", ran.stderr);
        assert!(!workplace.path("out/final_model").exists(), "{file}");
        fs::write(&path, &good).unwrap();
    }
    // One that is added, and one that is gone.
    let extra = workplace.path(&staging(&run_id)).join("extra.bin");
    fs::write(&extra, "x").unwrap();
    approve(&workplace, "boss@example", &run_id, &[]).expect_code(6).expect_stderr("extra.bin");
    fs::remove_file(&extra).unwrap();
    // The model's own signature is looked at too.
    let model = staging(&run_id);
    let signature = format!("{model}/model.sig");
    let text = workplace.read(&signature);
    workplace.write(&signature, &text.replacen('A', "B", 1));
    approve(&workplace, "boss@example", &run_id, &[]).expect_code(6).expect_stderr("model.sig");
    workplace.write(&signature, &text);
    assert!(!names(&workplace).iter().any(|name| name == "human_approval.approved"));
    approve(&workplace, "boss@example", &run_id, &[]).expect_code(0);
    workplace.forgelm(&["verify-signature", "out/final_model"]).expect_code(0);
    bundle(&workplace, &[]).expect_code(0);
}

#[test]
fn a_changed_model_can_still_be_rejected() {
    let (workplace, run_id) = staged("");
    workplace.write(&format!("{}/adapter_config.json", staging(&run_id)), "{}");
    decide(&workplace, "boss@example", &["reject", &run_id]).expect_code(0);
    assert_eq!(last(&workplace)["event"], "human_approval.rejected");
}

#[test]
fn bad_input_is_refused_with_its_place() {
    let (workplace, run_id) = staged("");
    let wrong = |args: &[&str], code: i32, said: &str| {
        decide(&workplace, "boss@example", args).expect_code(code).expect_stderr(said);
    };
    wrong(&["approve", "fg-000000000000"], 1, &run_id);
    wrong(&["reject", "fg-000000000000"], 1, "asks for no approval");
    workplace
        .forgelm(&["approve", &run_id, "--output-dir", "nowhere"])
        .expect_code(1)
        .expect_stderr("nowhere: no such folder");
    workplace
        .forgelm(&["approve", &run_id, "--output-dir", "model"])
        .expect_code(1)
        .expect_stderr("has no audit log");
    workplace.forgelm(&["approve", &run_id]).expect_code(2);
    workplace.forgelm(&["approvals", "--output-dir", "out"]).expect_code(2);
    wrong(&["approve", &run_id, "--approver-key", "none.key"], 1, "none.key");
    // Something has the final name.
    fs::create_dir(workplace.path("out/final_model")).unwrap();
    wrong(&["approve", &run_id], 1, "exists already");
    fs::remove_dir(workplace.path("out/final_model")).unwrap();
    std::os::unix::fs::symlink("nothing", workplace.path("out/final_model")).unwrap();
    wrong(&["approve", &run_id], 1, "exists already");
    fs::remove_file(workplace.path("out/final_model")).unwrap();
    // The staged folder is gone, or a link.
    let (from, to) = (workplace.path(&staging(&run_id)), workplace.path("elsewhere"));
    fs::rename(&from, &to).unwrap();
    wrong(&["approve", &run_id], 1, "is not there");
    std::os::unix::fs::symlink(&to, &from).unwrap();
    wrong(&["approve", &run_id], 1, "is no folder");
    fs::remove_file(&from).unwrap();
    fs::rename(&to, &from).unwrap();
    // A torn log: nothing is decided on it, and the run's own resume mends it.
    let log = workplace.read("out/audit_log.jsonl");
    workplace.write("out/audit_log.jsonl", &format!("{log}{{\"timestamp\": \"20"));
    wrong(&["approve", &run_id], 1, "torn");
    wrong(&["reject", &run_id], 1, "--resume");
    workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(4);
    assert_eq!(last(&workplace)["event"], "audit.recovered");
    approve(&workplace, "boss@example", &run_id, &[]).expect_code(0);
    bundle(&workplace, &[]).expect_code(0);
}

#[test]
fn a_staging_path_that_leaves_the_folder_is_refused() {
    for path in
        ["../outside.staging.x", "/outside.staging.x", "link/model.staging.x", "final_model"]
    {
        let (workplace, run_id) = staged("");
        fs::create_dir(workplace.path("outside")).unwrap();
        std::os::unix::fs::symlink(workplace.path("outside"), workplace.path("out/link")).unwrap();
        fs::create_dir(workplace.path("outside/model.staging.x")).unwrap();
        let name = format!("final_model.staging.{run_id}");
        rewrite_log(&workplace, |line| {
            line.replace(&format!("\"{name}\""), &format!("\"{path}\""))
        });
        let ran = approve(&workplace, "boss@example", &run_id, &[]).expect_code(1);
        let is_told =
            ["output folder", "NAME.staging.RUN_ID"].iter().any(|text| ran.stderr.contains(text));
        assert!(is_told, "{path}: {}", ran.stderr);
        assert!(workplace.path(&staging(&run_id)).is_dir());
        assert!(workplace.path("outside/model.staging.x").is_dir());
    }
}

/// Changes every line of the log, and makes a chain and a genesis manifest of them again.
fn rewrite_log(workplace: &Workplace, change: impl Fn(&str) -> String) {
    use forgelm_artifact::hash::sha256_bytes;
    let mut before = "genesis".to_owned();
    let mut text = String::new();
    for line in workplace.read("out/audit_log.jsonl").lines() {
        let old: Value = serde_json::from_str(line).unwrap();
        let line = line.replace(old["prev_hash"].as_str().unwrap(), &before);
        let line = change(&line);
        before = sha256_bytes(line.as_bytes()).to_string();
        text.push_str(&(line + "\n"));
    }
    let first = sha256_bytes(text.lines().next().unwrap().as_bytes()).to_string();
    let genesis = "out/audit_log.jsonl.manifest.json";
    let mut manifest: Value = serde_json::from_str(&workplace.read(genesis)).unwrap();
    manifest["first_entry_sha256"] = first.into();
    workplace.write(genesis, &forgelm_artifact::json::pretty(&manifest));
    workplace.write("out/audit_log.jsonl", &text);
}

/// A key pair, and it in the trust store `keys.json`.
fn approver_key(workplace: &Workplace, name: &str) -> String {
    let key = format!("{name}.key");
    workplace.forgelm(&["keygen", "--out", &key, "--label", name]).expect_code(0);
    trust(workplace, &format!("{key}.pub"), "approval,checkpoint");
    key
}

fn trust(workplace: &Workplace, public: &str, usage: &str) {
    let args = ["keys", "trust", public, "--usage", usage, "--trusted-keys", "keys.json"];
    workplace.forgelm(&args).expect_code(0);
}

#[test]
fn two_people_with_keys_of_their_own_approve_and_a_stranger_sees_both() {
    let workplace = Workplace::new();
    let (ann, ben) = (approver_key(&workplace, "ann"), approver_key(&workplace, "ben"));
    workplace.forgelm(&["keygen", "--out", "eve.key"]).expect_code(0);
    let rules = ", approval: {quorum: 2, approvers: keys.json, roles: [reviewer, safety]}";
    let run_id = stage(&workplace, rules);
    let run_key = "home/.config/forgelm/signing.key.pub";
    trust(&workplace, run_key, "manifest,run,model,checkpoint");
    let by = |who: &str, key: &str, role: &str| {
        let args = ["--approver-key", key, "--role", role, "--trusted-keys", "keys.json"];
        approve(&workplace, who, &run_id, &args)
    };
    let plain = approve(
        &workplace,
        "ann@example",
        &run_id,
        &["--role", "safety", "--trusted-keys", "keys.json"],
    );
    plain.expect_code(1).expect_stderr("--approver-key");
    by("eve@example", "eve.key", "safety").expect_code(1).expect_stderr("none of the approvers'");
    by("ann@example", &ann, "friend")
        .expect_code(1)
        .expect_stderr("expected one of reviewer, safety");
    by("ann@example", &ann, "reviewer").expect_code(4);
    assert!(workplace.path(&staging(&run_id)).is_dir());
    bundle(&workplace, &["--trusted-keys", "keys.json"]).expect_code(0);
    // The same key under another name is the same person.
    by("anna@example", &ann, "safety").expect_code(1).expect_stderr("approved at");
    let listed =
        workplace.forgelm(&["approvals", "--pending", "--output-dir", "out", JSON[0], JSON[1]]);
    let listed = listed.expect_code(0).json();
    assert_eq!(
        (&listed["pending"][0]["approvals"], &listed["pending"][0]["quorum"]),
        (&1.into(), &2.into())
    );
    by("ben@example", &ben, "safety").expect_code(0);
    let report = bundle(&workplace, &["--trusted-keys", "keys.json"]).expect_code(0).json();
    assert_eq!(report["outcome"], "promoted");

    // Each decision is a file that says what the approver saw.
    let first = format!("out/compliance/approval.{run_id}.dsse.json");
    let second = format!("out/compliance/approval.{run_id}.2.dsse.json");
    let said = statement(&workplace, &first);
    assert_eq!(said["predicateType"], "https://forgelm.dev/attestations/approval-decision/v1");
    let predicate = &said["predicate"];
    assert_eq!(
        (&predicate["decision"], &predicate["approver"]),
        (&json!("approved"), &json!("ann@example"))
    );
    assert_eq!((&predicate["role"], &predicate["run_id"]), (&json!("reviewer"), &json!(run_id)));
    let attested = statement(&workplace, "out/compliance/attestation.dsse.json");
    assert_eq!(predicate["staging_root_digest"], attested["predicate"]["model"]["root_digest"]);
    let recorded = events(&workplace);
    let approved = recorded.iter().find(|line| line["event"] == "human_approval.approved").unwrap();
    assert_eq!(predicate["audit_head_sha256"], approved["prev_hash"]);
    assert_eq!(approved["report_sha256"], said["subject"][1]["digest"]["sha256"]);
    let shown: Vec<&str> =
        said["subject"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(shown, ["compliance/attestation.dsse.json", "compliance/compliance_report.json"]);
    let verified = [
        "verify-signature",
        "out/compliance/compliance_report.json",
        "--signature",
        &first,
        "--type",
        "approval-decision",
        "--trusted-keys",
        "keys.json",
    ];
    workplace.forgelm(&verified).expect_code(0);

    // One that is gone, of another, or by a key that is not known is noticed.
    let strict = ["--trusted-keys", "keys.json"];
    let text = workplace.read(&second);
    fs::remove_file(workplace.path(&second)).unwrap();
    bundle(&workplace, &strict).expect_code(6);
    workplace.write(&second, &workplace.read(&first));
    bundle(&workplace, &strict).expect_code(6);
    workplace.write(&second, &text);
    bundle(&workplace, &strict).expect_code(0);
    bundle(&workplace, &["--key", run_key, "--key", "ben.key.pub"])
        .expect_code(1)
        .expect_stderr("untrusted_key");
}

fn statement(workplace: &Workplace, envelope: &str) -> Value {
    let bytes = workplace.read(envelope);
    let envelope = forgelm_evidence::dsse::Envelope::parse(bytes.as_bytes()).unwrap();
    serde_json::from_slice(&envelope.payload).unwrap()
}

#[test]
fn a_store_with_too_few_approvers_is_refused_before_training() {
    let workplace = Workplace::new();
    approver_key(&workplace, "ann");
    let config = workplace.read("run.yaml");
    let rules =
        "evaluation: {require_human_approval: true, approval: {quorum: 2, approvers: keys.json}}\n";
    workplace.write("run.yaml", &(config + rules));
    workplace
        .forgelm(&["--config", "run.yaml"])
        .expect_code(1)
        .expect_stderr("`keys.json` has 1 keys that may approve")
        .expect_stderr("`evaluation.approval.quorum` is 2");
    assert!(!workplace.path("out").exists());
    fs::remove_file(workplace.path("keys.json")).unwrap();
    workplace.forgelm(&["--config", "run.yaml"]).expect_code(1).expect_stderr("keys.json");
}

#[test]
fn two_names_make_a_quorum_where_no_keys_are_asked_for() {
    let (workplace, run_id) = staged(", approval: {quorum: 2}");
    let first = approve(&workplace, "ann@example", &run_id, &JSON).expect_code(4).json();
    assert_eq!((&first["success"], &first["awaiting_approval"]), (&true.into(), &true.into()));
    assert_eq!((&first["approvals"], &first["quorum"]), (&1.into(), &2.into()));
    approve(&workplace, "ann@example", &run_id, &[]).expect_code(1).expect_stderr("approved at");
    approve(&workplace, "ben@example", &run_id, &[]).expect_code(0);
    bundle(&workplace, &[]).expect_code(0);
    // One no is enough.
    let (workplace, run_id) = staged(", approval: {quorum: 2}");
    approve(&workplace, "ann@example", &run_id, &[]).expect_code(4);
    decide(&workplace, "ben@example", &["reject", &run_id]).expect_code(0);
    approve(&workplace, "cat@example", &run_id, &[]).expect_code(1).expect_stderr("rejected");
    bundle(&workplace, &[]).expect_code(0);
}

#[test]
fn approvals_lists_what_waits_and_shows_what_was_said() {
    let (workplace, run_id) = staged("");
    let list =
        |args: &[&str]| workplace.forgelm(&[&["approvals", "--output-dir", "out"], args].concat());
    let pending = list(&["--pending", JSON[0], JSON[1]]).expect_code(0).json();
    assert_eq!(pending["count"], 1);
    let row = &pending["pending"][0];
    assert_eq!((&row["run_id"], &row["staging_exists"]), (&json!(run_id), &json!(true)));
    assert_eq!(row["staging_path"], staging(&run_id));
    assert!(row["metrics"]["eval_loss"].is_number());
    assert!(row["age_seconds"].is_u64());
    let text = list(&["--pending"]).expect_code(0).stdout;
    assert!(text.starts_with("RUN_ID") && text.contains("present"), "{text}");
    let shown = list(&["--show", &run_id, JSON[0], JSON[1]]).expect_code(0).json();
    assert_eq!(shown["status"], "pending");
    assert_eq!(shown["chain"][0]["event"], "human_approval.required");
    assert!(shown["staging_contents"].to_string().contains("adapter_model.safetensors"));
    list(&["--show", "fg-000000000000"]).expect_code(1).expect_stderr(&run_id);

    approve(&workplace, "boss@example", &run_id, &["--comment", "fine"]).expect_code(0);
    assert_eq!(list(&["--pending", JSON[0], JSON[1]]).expect_code(0).json()["count"], 0);
    let shown = list(&["--show", &run_id, JSON[0], JSON[1]]).expect_code(0).json();
    assert_eq!(shown["status"], "granted");
    assert!(shown["staging_contents"].to_string().contains("adapter_model.safetensors"));
    let text = list(&["--show", &run_id]).expect_code(0).stdout;
    assert!(text.contains("human_approval.granted") && text.contains("fine"), "{text}");
    // A log that is not whole is still shown, and said to be so.
    let log = workplace.read("out/audit_log.jsonl");
    workplace.write("out/audit_log.jsonl", &format!("{log}{{"));
    let shown = list(&["--show", &run_id, JSON[0], JSON[1]]).expect_code(0).json();
    assert_eq!((&shown["corrupted"], &shown["status"]), (&json!(true), &json!("granted")));
    // No log: nothing waits. No folder: a mistake.
    fs::create_dir(workplace.path("empty")).unwrap();
    let empty = ["approvals", "--pending", "--output-dir", "empty"];
    workplace.forgelm(&empty).expect_code(0);
    workplace.forgelm(&["approvals", "--pending", "--output-dir", "nowhere"]).expect_code(1);
}

#[test]
fn of_many_who_approve_at_once_one_wins() {
    let (workplace, run_id) = staged("");
    let people: Vec<_> = (0..6)
        .map(|i| {
            let mut command = workplace.command(&["approve", &run_id, "--output-dir", "out"]);
            command.env("FORGELM_OPERATOR", format!("p{i}@example")).spawn().unwrap()
        })
        .collect();
    let codes: Vec<i32> =
        people.into_iter().map(|p| Ran::from(p.wait_with_output().unwrap()).code).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert!(codes.iter().all(|code| [0, 1].contains(code)), "{codes:?}");
    let granted = names(&workplace).iter().filter(|n| *n == "human_approval.granted").count();
    assert_eq!(granted, 1);
    bundle(&workplace, &[]).expect_code(0);
}

#[test]
fn a_run_without_signatures_is_approved_only_where_that_is_said() {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    workplace.write("run.yaml", &(config + "signing: {enabled: false}\n"));
    let run_id = stage(&workplace, "");
    approve(&workplace, "boss@example", &run_id, &[]).expect_code(1).expect_stderr("absent");
    let file = format!("{}/adapter_config.json", staging(&run_id));
    let good = workplace.read(&file);
    workplace.write(&file, "{}");
    approve(&workplace, "boss@example", &run_id, &["--allow-unsigned"]).expect_code(6);
    workplace.write(&file, &good);
    workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(4);
    approve(&workplace, "boss@example", &run_id, &["--allow-unsigned"]).expect_code(0);
    bundle(&workplace, &["--allow-unsigned"]).expect_code(0);
    workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
}

#[test]
fn a_rejected_loss_ends_a_run_before_anybody_is_asked() {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    let gates = "evaluation: {require_human_approval: true, auto_revert: true, max_acceptable_loss: 0.001}\n";
    workplace.write("run.yaml", &(config + gates));
    workplace.forgelm(&["--config", "run.yaml"]).expect_code(3);
    assert!(!names(&workplace).iter().any(|name| name.starts_with("human_approval.")));
    let left: Vec<String> = fs::read_dir(workplace.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("final_model"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
    bundle(&workplace, &[]).expect_code(0);
}

#[test]
fn what_a_killed_run_staged_without_asking_goes_with_the_next() {
    let (workplace, run_id) = staged("");
    // As a process leaves it that was killed while it wrote the documents.
    fs::remove_dir_all(workplace.path("out/compliance")).unwrap();
    fs::remove_file(workplace.path("out/audit_log.jsonl.checkpoint.dsse.json")).unwrap();
    let log = workplace.read("out/audit_log.jsonl");
    let end = log.find("model.integrity_verified").unwrap();
    workplace.write("out/audit_log.jsonl", &log[..=log[..end].rfind('\n').unwrap()]);
    approve(&workplace, "boss@example", &run_id, &[]).expect_code(1);
    let other = workplace.path("out/final_model.staging.mine");
    fs::create_dir(&other).unwrap();
    let ran = workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(4);
    assert!(ran.stderr.contains("of a run that did not end is removed"), "{}", ran.stderr);
    assert!(!workplace.path(&staging(&run_id)).exists());
    assert!(other.is_dir(), "nobody's run made it");
    let new_id = last(&workplace)["run_id"].as_str().unwrap().to_owned();
    approve(&workplace, "boss@example", &new_id, &[]).expect_code(0);
    bundle(&workplace, &[]).expect_code(0);
}

#[test]
fn a_decision_that_would_leave_nothing_to_verify_is_refused() {
    let (workplace, run_id) = staged("");
    // Another user, with a key of their own that nobody knows.
    let other = |args: &[&str]| -> Ran {
        let fixed = ["approve", &run_id, "--output-dir", "out"];
        let mut command = workplace.command(&[&fixed[..], args].concat());
        command.env("FORGELM_OPERATOR", "boss@example").env("HOME", workplace.path("other"));
        command.output().unwrap().into()
    };
    let run_key = "home/.config/forgelm/signing.key.pub";
    let before = workplace.read("out/audit_log.jsonl");
    other(&["--key", run_key]).expect_code(1).expect_stderr("not trusted here for `checkpoint`");
    assert_eq!(workplace.read("out/audit_log.jsonl"), before);
    assert!(workplace.path(&staging(&run_id)).is_dir());
    // Their approver's key is one that others can know.
    workplace.forgelm(&["keygen", "--out", "boss.key"]).expect_code(0);
    other(&["--key", run_key, "--approver-key", "boss.key"]).expect_code(0);
    bundle(&workplace, &["--key", run_key]).expect_code(1);
    bundle(&workplace, &["--key", run_key, "--key", "boss.key.pub"]).expect_code(0);
}

#[test]
fn a_key_that_was_revoked_since_approves_nothing() {
    let workplace = Workplace::new();
    let ann = approver_key(&workplace, "ann");
    let run_id = stage(&workplace, ", approval: {approvers: keys.json}");
    trust(&workplace, "home/.config/forgelm/signing.key.pub", "manifest,run,model,checkpoint");
    let args = ["keys", "revoke", "ann", "--reason", "compromised", "--trusted-keys", "keys.json"];
    workplace.forgelm(&args).expect_code(0);
    let args = ["--approver-key", &ann, "--trusted-keys", "keys.json"];
    approve(&workplace, "ann@example", &run_id, &args)
        .expect_code(1)
        .expect_stderr("is not trusted for `approval` now");
    assert!(workplace.path(&staging(&run_id)).is_dir());
}

#[test]
fn a_log_with_tags_takes_decisions_with_the_secret_alone() {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    workplace.write("run.yaml", &(config + "evaluation: {require_human_approval: true}\n"));
    let secret = ("FORGELM_AUDIT_SECRET", "a long enough secret of this test");
    let with = |args: &[&str]| -> Ran {
        let mut command = workplace.command(args);
        command.env(secret.0, secret.1).env("FORGELM_OPERATOR", "ann@example");
        command.output().unwrap().into()
    };
    let mut command = workplace.command(&["--config", "run.yaml", JSON[0], JSON[1]]);
    let ran: Ran = command.env(secret.0, secret.1).output().unwrap().into();
    let run_id = ran.expect_code(4).json()["run_id"].as_str().unwrap().to_owned();
    approve(&workplace, "ann@example", &run_id, &[])
        .expect_code(1)
        .expect_stderr("FORGELM_AUDIT_SECRET");
    assert!(workplace.path(&staging(&run_id)).is_dir());
    with(&["approve", &run_id, "--output-dir", "out"]).expect_code(0);
    with(&["verify-audit", "out", "--require-hmac"]).expect_code(0);
    with(&["verify-bundle", "out"]).expect_code(0);
}

#[test]
fn the_plan_says_what_must_be_so() {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    let gates =
        "evaluation: {require_human_approval: true, auto_revert: true, max_acceptable_loss: 3}\n";
    workplace.write("run.yaml", &(config + gates));
    let shown = workplace.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(0).stdout;
    assert!(
        shown.contains("no validation loss above 3") && shown.contains("1 must approve"),
        "{shown}"
    );
    assert!(shown.contains("out/final_model.staging.RUN_ID/"), "{shown}");
}

#[test]
fn one_changed_byte_of_an_approved_run_is_noticed_and_named() {
    let workplace = Workplace::new();
    let ann = approver_key(&workplace, "ann");
    let run_id = stage(&workplace, ", approval: {approvers: keys.json}");
    trust(&workplace, "home/.config/forgelm/signing.key.pub", "manifest,run,model,checkpoint");
    let args = ["--approver-key", &ann, "--trusted-keys", "keys.json"];
    approve(&workplace, "ann@example", &run_id, &args).expect_code(0);
    let folder = |name: &str| {
        let found = fs::read_dir(workplace.path(name)).unwrap();
        found.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect::<Vec<_>>()
    };
    let files = [folder("out"), folder("out/compliance"), folder("out/final_model")].concat();
    let is_lock = |path: &std::path::Path| path.to_str().unwrap().ends_with("lock");
    let files: Vec<_> = files.into_iter().filter(|path| !is_lock(path)).collect();
    assert!(files.len() > 20, "{files:?}");
    for path in files {
        let good = fs::read(&path).unwrap();
        for at in [0, good.len() / 2, good.len() - 2] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let ran = workplace.forgelm(&["verify-bundle", "out", "--trusted-keys", "keys.json"]);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!([1, 6].contains(&ran.code), "{name} at {at}: {}", ran.code);
            assert!(ran.stderr.contains(name), "{name} at {at}: {}", ran.stderr);
        }
        fs::write(&path, &good).unwrap();
    }
    bundle(&workplace, &["--trusted-keys", "keys.json"]).expect_code(0);
}

#[test]
fn who_decides_sees_that_a_gate_rejects_the_model() {
    let (workplace, run_id) = staged(", max_acceptable_loss: 0.001");
    let reason = "above `evaluation.max_acceptable_loss` 0.001";
    let list = ["approvals", "--pending", "--output-dir", "out", JSON[0], JSON[1]];
    let listed = workplace.forgelm(&list).expect_code(0).json();
    assert!(listed["pending"][0]["gate_failures"][0].as_str().unwrap().contains(reason));
    workplace.forgelm(&list[..4]).expect_code(0).expect_stdout("a gate rejects it");
    let show = ["approvals", "--show", &run_id, "--output-dir", "out"];
    workplace.forgelm(&show).expect_code(0).expect_stdout(reason);
    approve(&workplace, "boss@example", &run_id, &[]).expect_code(0);
    bundle(&workplace, &[]).expect_code(0);
}
