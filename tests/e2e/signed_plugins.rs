//! Signed libraries: which signatures count, what each lets a library do, and what is refused.

use crate::plugins::compile;
use crate::support::{Ran, Workplace};
use serde_json::{Value, json};
use std::fs;

/// A run with `nll_c` of `plugin.so`.
fn workplace() -> Workplace {
    let workplace = Workplace::new();
    compile(&workplace, "examples/trainers.c", "plugin", &[]);
    let section = "plugins: {paths: [plugin.so], trainer: nll_c}\n";
    workplace.write("run.yaml", &(workplace.read("run.yaml") + section));
    workplace
}

fn require(workplace: &Workplace) {
    workplace.edit_config("{paths:", "{require_signed: true, paths:");
}

fn used(workplace: &Workplace) -> Value {
    let report = workplace.read("out/compliance/compliance_report.json");
    serde_json::from_str::<Value>(&report).unwrap()["plugins"][0].clone()
}

/// A key pair in the workplace; its entry of a trust store.
fn key(workplace: &Workplace, name: &str) -> Value {
    let args = ["keygen", "--out", name, "--output-format", "json"];
    let made = workplace.forgelm(&args).expect_code(0).json();
    // The first 12 of the 44 bytes say what it is: 16 letters.
    let pem = workplace.read(&format!("{name}.pub"));
    let body = pem.lines().nth(1).unwrap();
    json!({
        "keyid": made["keyid"],
        "public_key": body[16..],
        "label": "the vendor",
        "usages": ["plugin"],
    })
}

fn trust(workplace: &Workplace, keys: &[Value]) {
    let store = json!({"version": 1, "keys": keys});
    workplace.write("trusted.json", &store.to_string());
}

/// What the run's config loads, listed: it loads as a run does.
#[track_caller]
fn accepted(workplace: &Workplace) -> Ran {
    workplace.forgelm(&["plugin", "list", "--config", "run.yaml"]).expect_code(0)
}

#[track_caller]
fn refused(workplace: &Workplace, code: i32, said: &[&str]) {
    let ran = workplace.forgelm(&["--config", "run.yaml"]).expect_code(code);
    for said in said {
        assert!(ran.stderr.contains(said), "no `{said}` in:\n{}", ran.stderr);
    }
}

/// What this user signed, this user believes; such a library runs in the program.
#[test]
fn a_library_that_its_user_signed_runs_in_the_program_and_the_evidence_says_who() {
    let workplace = workplace();
    require(&workplace);
    let signed = workplace.forgelm(&["plugin", "sign", "plugin.so"]).expect_code(0);
    assert!(signed.stdout.starts_with("example-trainers 1.0.0\n  sha256 "), "{}", signed.stdout);
    assert!(signed.stderr.contains("made a signing key"), "{}", signed.stderr);
    workplace.run();
    let used = used(&workplace);
    assert_eq!(used["isolation"], "in_process");
    assert_eq!(used["signature"]["label"], "local");
    let keyid = used["signature"]["keyid"].as_str().unwrap();
    assert!(signed.stdout.contains(&format!("\n  signed by {keyid}\n")), "{}", signed.stdout);
    assert!(used["signature"]["signed_at"].as_str().unwrap().contains('T'));
    let list = accepted(&workplace);
    let line = format!("ABI 1.0, signed by {keyid} (local)\n");
    assert!(list.stdout.contains(&line), "{}", list.stdout);
    let check = ["plugin", "check", "plugin.so", "--output-format", "json"];
    let check = workplace.forgelm(&check).expect_code(0).json();
    assert_eq!(check["libraries"][0]["signature"]["keyid"], keyid);
    workplace.forgelm(&["verify-signature", "plugin.so"]).expect_code(0);
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
}

#[test]
fn a_library_without_a_signature_is_refused_where_one_is_demanded() {
    let workplace = workplace();
    accepted(&workplace);
    require(&workplace);
    let said = "plugin.so: has no trusted signature (absent): there is no signature";
    refused(&workplace, 1, &[said, "because of `plugins.require_signed`"]);
    assert!(!workplace.path("out").exists());
    // Those that ship with the program need none.
    workplace.edit_config(", paths: [plugin.so], trainer: nll_c", "");
    accepted(&workplace);
}

#[test]
fn a_signature_counts_by_the_trust_store_alone() {
    let workplace = workplace();
    let vendor = key(&workplace, "vendor.key");
    workplace.forgelm(&["plugin", "sign", "plugin.so", "--key", "vendor.key"]).expect_code(0);
    // Nobody here knows the key: the library is as one without a signature.
    workplace.run().expect_stderr("plugin.so: its signature does not count: signed by key ");
    assert_eq!(
        (&used(&workplace)["isolation"], &used(&workplace)["signature"]),
        (&json!("process"), &Value::Null)
    );
    require(&workplace);
    refused(&workplace, 1, &["(untrusted_key): signed by key ", "which is not known here"]);
    // The config names whom it trusts.
    let section = "signing: {trusted_keys: trusted.json}\n";
    workplace.write("run.yaml", &(workplace.read("run.yaml") + section));
    trust(&workplace, std::slice::from_ref(&vendor));
    let list = accepted(&workplace);
    assert!(list.stdout.contains(" (the vendor)\n"), "{}", list.stdout);
    // For other things only.
    let mut other = vendor.clone();
    other["usages"] = json!(["manifest", "run"]);
    trust(&workplace, &[other]);
    refused(&workplace, 1, &["(untrusted_key)", "is not trusted for `plugin-library/v1`"]);
    // No longer.
    let mut revoked = vendor.clone();
    revoked["revoked_at"] = json!("2026-01-01T00:00:00Z");
    revoked["revocation_reason"] = json!("compromised");
    trust(&workplace, &[revoked]);
    refused(&workplace, 6, &["plugin.so: its signature does not hold (revoked)", "compromised"]);
    // Another key of the store does not help.
    trust(&workplace, &[key(&workplace, "other.key")]);
    refused(&workplace, 1, &["(untrusted_key)"]);
    workplace.write("trusted.json", "{}");
    refused(&workplace, 1, &["trusted.json: `version` is not 1"]);
    // The environment goes before the config.
    workplace.write("env.json", &json!({"version": 1, "keys": [vendor]}).to_string());
    let mut command = workplace.command(&["plugin", "list", "--config", "run.yaml"]);
    let ran: Ran = command.env("FORGELM_TRUSTED_KEYS", "env.json").output().unwrap().into();
    ran.expect_code(0);
}

/// Demanded or not: a signature that contradicts its library is never taken for none.
#[test]
fn a_changed_library_or_envelope_is_refused_whatever_is_demanded() {
    let workplace = workplace();
    workplace.forgelm(&["plugin", "sign", "plugin.so"]).expect_code(0);
    accepted(&workplace);
    let flip = |name: &str, at: usize| {
        let whole = fs::read(workplace.path(name)).unwrap();
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(workplace.path(name), bytes).unwrap();
        whole
    };
    let said = "plugin.so: its signature does not hold (subject_mismatch): the bytes were changed";
    let length = fs::metadata(workplace.path("plugin.so")).unwrap().len() as usize;
    for at in [0, length / 2, length - 1] {
        let whole = flip("plugin.so", at);
        refused(&workplace, 6, &[said]);
        let list = workplace.forgelm(&["plugin", "list", "plugin.so"]).expect_code(1);
        assert!(list.stderr.contains(said), "{}", list.stderr);
        workplace.forgelm(&["plugin", "check", "plugin.so"]).expect_code(6);
        workplace.forgelm(&["verify-signature", "plugin.so"]).expect_code(6);
        fs::write(workplace.path("plugin.so"), whole).unwrap();
    }
    let envelope = workplace.read("plugin.so.dsse.json");
    for word in ["\"payload\": \"", "\"sig\": \""] {
        let whole = flip("plugin.so.dsse.json", envelope.find(word).unwrap() + word.len() + 20);
        refused(&workplace, 6, &["plugin.so: its signature does not hold (invalid)"]);
        fs::write(workplace.path("plugin.so.dsse.json"), whole).unwrap();
    }
    // What is left of an envelope is not taken for none.
    for rest in ["", &envelope[..40]] {
        fs::write(workplace.path("plugin.so.dsse.json"), rest).unwrap();
        refused(&workplace, 1, &["plugin.so: its signature does not hold (malformed)"]);
    }
    fs::write(workplace.path("plugin.so.dsse.json"), &envelope).unwrap();
    // Another good library under the name that was signed.
    compile(&workplace, "examples/trainers.c", "plugin", &["-O0"]);
    refused(&workplace, 6, &[said]);
    workplace.forgelm(&["plugin", "sign", "plugin.so"]).expect_code(0);
    accepted(&workplace);
}

#[test]
fn what_cannot_be_signed_is_refused() {
    let workplace = workplace();
    let sign = |args: &[&str]| workplace.forgelm(&[&["plugin", "sign"], args].concat());
    let ran = sign(&["data.jsonl"]).expect_code(1);
    assert!(ran.stderr.contains("data.jsonl: is not a shared library"), "{}", ran.stderr);
    let ran = sign(&["plugin.so", "--key", "none.key"]).expect_code(1);
    assert!(ran.stderr.contains("`none.key`: no such key file"), "{}", ran.stderr);
    assert!(!workplace.path("plugin.so.dsse.json").exists());
}
