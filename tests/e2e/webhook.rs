//! Notices of a run to a server on this machine.

use crate::receiver::{Answers, Receiver};
use crate::support::{Ran, Workplace};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const RUN: [&str; 2] = ["--config", "run.yaml"];

/// A workplace whose run tells this receiver, with more keys of the section.
fn workplace(receiver: &Receiver, more: &str) -> Workplace {
    let workplace = Workplace::new();
    let url = receiver.url("/services/T0/secret-path");
    let section = format!("webhook:\n  url: \"{url}\"\n  allow_private_destinations: true\n{more}");
    workplace.write("run.yaml", &(workplace.read("run.yaml") + &section));
    workplace
}

/// Every file below a folder that has this text in it.
fn files_with(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if String::from_utf8_lossy(&fs::read(&path).unwrap()).contains(text) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[track_caller]
fn no_address_in(workplace: &Workplace, ran: &Ran) {
    assert!(!ran.stderr.contains("secret-path"), "{}", ran.stderr);
    assert!(!ran.stdout.contains("secret-path"), "{}", ran.stdout);
    assert_eq!(files_with(&workplace.path("out"), "secret-path"), Vec::<String>::new());
}

#[test]
fn a_run_tells_its_start_and_its_success() {
    let receiver = Receiver::start(Answers::Status(200));
    let workplace = workplace(&receiver, "");
    // A proxy of the environment is not used: nothing listens there.
    let mut command = workplace.command(&RUN);
    for name in ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"] {
        command.env(name, "http://127.0.0.1:9");
    }
    let ran = Ran::from(command.output().unwrap()).expect_code(0);
    assert_eq!(receiver.events(), ["training.start", "training.success"], "{}", ran.stderr);
    let received = receiver.received();
    assert!(received[0].head.starts_with("POST /services/T0/secret-path HTTP/1.1\r\n"));
    assert_eq!(received[0].header("Content-Type"), Some("application/json"));
    assert_eq!(received[0].header("X-ForgeLM-Signature"), None);
    let (start, success) = (received[0].json(), received[1].json());
    assert_eq!(start["run_name"], "model_finetune");
    assert_eq!(start["status"], "started");
    let report: Value =
        serde_json::from_str(&workplace.read("out/compliance/compliance_report.json")).unwrap();
    for body in [&start, &success] {
        assert_eq!(body["run_id"], report["run_id"]);
    }
    assert_eq!(
        success["metrics"]["eval_loss"],
        report["evaluation_results"]["metrics"]["eval_loss"]
    );
    // The report has the section, and no file has the address.
    assert_eq!(report["webhook_config"]["allow_private_destinations"], true);
    assert_eq!(report["webhook_config"].get("url"), None);
    no_address_in(&workplace, &ran);
    workplace
        .forgelm(&["verify-bundle", "out", "--key", "out/compliance/signing_key.pub"])
        .expect_code(0);
}

#[test]
fn a_failing_run_tells_why_without_secrets() {
    let receiver = Receiver::start(Answers::Status(200));
    let workplace = workplace(&receiver, "");
    let name = format!("ghp_{}.jsonl", "a1B2".repeat(9));
    workplace
        .edit_config("dataset_name_or_path: data.jsonl", &format!("dataset_name_or_path: {name}"));
    let ran = workplace.forgelm(&RUN);
    assert_ne!(ran.code, 0);
    assert_eq!(receiver.events(), ["training.failure"]);
    let body = receiver.received()[0].json();
    let reason = body["reason"].as_str().unwrap();
    assert!(reason.contains("[REDACTED-SECRET]"), "{reason}");
    assert!(!receiver.received()[0].body.contains("ghp_"), "{reason}");
    assert_eq!(body["run_id"], Value::Null);
}

#[test]
fn keys_choose_what_is_told_and_the_variable_comes_before_the_address() {
    let receiver = Receiver::start(Answers::Status(200));
    let other = Receiver::start(Answers::Status(200));
    let workplace = workplace(&other, "  url_env: HOOK\n  notify_on_start: false\n");
    let mut command = workplace.command(&RUN);
    command.env("HOOK", receiver.url("/from-the-variable"));
    let ran = Ran::from(command.output().unwrap()).expect_code(0);
    assert_eq!(receiver.events(), ["training.success"]);
    assert!(other.received().is_empty());
    ran.expect_stderr("`webhook.url` and `webhook.url_env` are both set");
}

#[test]
fn a_signed_notice_is_verified_with_the_public_key_of_the_run() {
    let receiver = Receiver::start(Answers::Status(200));
    let workplace = workplace(&receiver, "  sign: true\n  format: slack\n");
    workplace.run();
    let received = &receiver.received()[0];
    let timestamp = received.header("X-ForgeLM-Timestamp").unwrap();
    let signature = received.header("X-ForgeLM-Signature").unwrap();
    let (keyid, signature) = signature.strip_prefix("ed25519=").unwrap().split_once(':').unwrap();
    assert_eq!(keyid.len(), 64);
    assert_eq!(received.json()["text"], "Training started: model_finetune");
    // As a receiver checks it, with openssl.
    let signed = format!("forgelm-webhook-v1\n{timestamp}\n{}", received.body);
    workplace.write("signed", &signed);
    workplace.write("signature.b64", signature);
    let shell = "openssl base64 -d -A -in signature.b64 -out signature && openssl pkeyutl -verify -pubin \
                 -inkey out/compliance/signing_key.pub -rawin -in signed -sigfile signature";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", shell]).current_dir(workplace.path(""));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn fault_106_a_webhook_that_fails_is_told_recorded_and_ends_nothing() {
    let receiver = Receiver::start(Answers::Status(500));
    let workplace = workplace(&receiver, "  retries: 1\n");
    let ran = workplace.run();
    let told = "warning: webhook http://127.0.0.1: `training.start` was not delivered after 2 tries: status 500";
    assert!(ran.stderr.contains(told), "{}", ran.stderr);
    let lines = workplace.json_lines("out/audit_log.jsonl");
    let failed: Vec<&Value> =
        lines.iter().filter(|line| line["event"] == "webhook.delivery_failed").collect();
    assert_eq!(failed.len(), 2);
    assert_eq!(failed[1]["notice"], "training.success");
    assert_eq!(failed[1]["destination"], "http://127.0.0.1");
    assert_eq!(failed[1]["tries"], 2);
    assert_eq!(failed[1]["reason"], "status 500");
    no_address_in(&workplace, &ran);
    // Lines after the signed end are no contradiction.
    workplace
        .forgelm(&["verify-bundle", "out", "--key", "out/compliance/signing_key.pub"])
        .expect_code(0);
}

#[test]
fn fault_106_neither_silence_nor_an_endless_answer_holds_training_up() {
    let receiver = Receiver::start(Answers::Endlessly);
    let endless = workplace(&receiver, "");
    endless.run();
    assert_eq!(receiver.events(), ["training.start", "training.success"]);
    let receiver = Receiver::start(Answers::Never);
    let silent = workplace(&receiver, "  timeout: 1\n  retries: 0\n");
    let start = Instant::now();
    let ran = silent.run();
    assert!(ran.stderr.contains("no complete answer within 1 s"), "{}", ran.stderr);
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    assert_eq!(endless.adapter("out"), silent.adapter("out"), "notices change the weights");
}

#[test]
fn a_run_that_is_asked_to_stop_waits_for_nobody_and_tells_no_end() {
    let receiver = Receiver::start(Answers::Never);
    let workplace = workplace(&receiver, "  timeout: 60\n");
    workplace.edit_config("max_steps: 12", "max_steps: 100000");
    let child = workplace.start(&RUN);
    let start = Instant::now();
    while !workplace.path("out/checkpoint-4").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "no step");
        std::thread::sleep(Duration::from_millis(20));
    }
    let asked = Instant::now();
    let kill = std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(kill.success());
    let ran = Ran::from(child.wait_with_output().unwrap()).expect_code(7);
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    assert_eq!(receiver.events(), ["training.start"]);
    ran.expect_stderr("`training.start` was not delivered: not delivered 3 s after the end");
}

#[test]
fn fault_105_a_private_address_is_refused_unless_it_is_allowed() {
    let receiver = Receiver::start(Answers::Status(200));
    let workplace = workplace(&receiver, "");
    workplace.edit_config("  allow_private_destinations: true\n", "");
    let ran = workplace.run();
    assert!(
        ran.stderr.contains("127.0.0.1 is a loopback address, which is not allowed"),
        "{}",
        ran.stderr
    );
    assert!(receiver.received().is_empty());
}

#[test]
fn a_receiver_of_a_private_authority_is_told_where_the_config_names_the_authority() {
    let (receiver, authority) = Receiver::start_tls(Answers::Status(200));
    let keys = "  tls_ca_bundle: authority.pem\n  require_https: true\n  retries: 0\n";
    let trusting = workplace(&receiver, keys);
    trusting.write("authority.pem", &authority);
    trusting.edit_config("url: \"http://", "url: \"https://");
    let ran = trusting.run();
    assert_eq!(receiver.events(), ["training.start", "training.success"], "{}", ran.stderr);
    // Another authority of the same name is another authority.
    let (_, other) = Receiver::start_tls(Answers::Status(200));
    let doubting = workplace(&receiver, keys);
    doubting.write("authority.pem", &other);
    doubting.edit_config("url: \"http://", "url: \"https://");
    let told = "webhook https://127.0.0.1: `training.start` was not delivered after 1 try: TLS: ";
    doubting.run().expect_stderr(told);
    assert_eq!(receiver.events().len(), 2);
}

#[test]
fn offline_a_webhook_inside_is_told_and_no_other() {
    let receiver = Receiver::start(Answers::Status(200));
    let inside = workplace(&receiver, "");
    inside.forgelm(&["--config", "run.yaml", "--offline"]).expect_code(0);
    assert_eq!(receiver.events().len(), 2);
    let receiver = Receiver::start(Answers::Status(200));
    let outside = workplace(&receiver, "");
    outside.edit_config("  allow_private_destinations: true\n", "");
    let ran = outside.forgelm(&["--config", "run.yaml", "--offline"]).expect_code(0);
    assert!(ran.stderr.contains("nothing is sent offline"), "{}", ran.stderr);
    assert!(receiver.received().is_empty());
}

#[test]
fn what_nothing_can_be_sent_to_is_refused_before_the_start() {
    let receiver = Receiver::start(Answers::Status(200));
    let with = |from: &str, to: &str| {
        let workplace = workplace(&receiver, "");
        workplace.edit_config(from, to);
        let ran = workplace.forgelm(&RUN).expect_code(1);
        assert!(!workplace.path("out").exists());
        assert!(!ran.stderr.contains("secret-path"), "{}", ran.stderr);
        ran
    };
    with("url: \"http://", "url: \"ftp://").expect_stderr("`webhook.url` has another scheme");
    with("url: \"http://", "url: \"").expect_stderr("`webhook.url` is not an address");
    let https = "  require_https: true\n  allow_private";
    with("  allow_private", https).expect_stderr("`webhook.require_https` is true");
    let missing = "  tls_ca_bundle: no.pem\n  allow_private";
    with("  allow_private", missing).expect_stderr("`webhook.tls_ca_bundle`: cannot be read");
    let empty = "  tls_ca_bundle: data.jsonl\n  allow_private";
    with("  allow_private", empty).expect_stderr("data.jsonl: has no certificate");
}

#[test]
fn the_plan_names_whom_it_would_tell() {
    let receiver = Receiver::start(Answers::Status(200));
    let workplace = workplace(&receiver, "  url_env: HOOK\n");
    let ran = workplace.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(0);
    let told = "the address in `HOOK`, or http://127.0.0.1, for notices";
    assert!(ran.stdout.contains(told), "{}", ran.stdout);
    assert!(!ran.stdout.contains("secret-path"), "{}", ran.stdout);
    assert!(receiver.received().is_empty());
}

#[test]
fn what_becomes_of_the_model_is_told_and_so_is_what_people_decide() {
    let receiver = Receiver::start(Answers::Status(200));
    // The address is in a variable: no file of a run has one.
    let staged = || {
        let workplace = Workplace::new();
        let more = "webhook:\n  url_env: HOOK\n  allow_private_destinations: true\n\
                    evaluation: {require_human_approval: true, \
                    approval: {require_different_operator: false}}\n";
        workplace.write("run.yaml", &(workplace.read("run.yaml") + more));
        workplace
    };
    let with_hook = |workplace: &Workplace, args: &[&str]| -> Ran {
        let mut command = workplace.command(args);
        command.env("HOOK", receiver.url("/services/T0/secret-path")).output().unwrap().into()
    };
    let json = ["--config", "run.yaml", "--output-format", "json"];
    for (verb, event) in [("approve", "training.success"), ("reject", "training.failure")] {
        let workplace = staged();
        let ran = with_hook(&workplace, &json).expect_code(4);
        let run_id = ran.json()["run_id"].as_str().unwrap().to_owned();
        let decide = [verb, &run_id, "--output-dir", "out", "--comment", "as agreed"];
        let ran = with_hook(&workplace, &decide).expect_code(0);
        no_address_in(&workplace, &ran);
        let received = receiver.received();
        let [asked, decided] = &received[received.len() - 2..] else { panic!("{received:?}") };
        assert_eq!(asked.json()["event"], "approval.required");
        assert!(asked.json()["model_path"].as_str().unwrap().contains(".staging."));
        assert_eq!(decided.json()["event"], event);
        assert_eq!(decided.json()["run_id"], run_id.as_str());
        if verb == "approve" {
            assert!(decided.json()["metrics"]["eval_loss"].is_number(), "{}", decided.body);
        } else {
            assert_eq!(decided.json()["reason"], "human_approval.rejected: as agreed");
        }
    }
    let workplace = Workplace::new();
    let more = "webhook:\n  url_env: HOOK\n  allow_private_destinations: true\n\
                evaluation: {auto_revert: true, max_acceptable_loss: 0.5}\n";
    workplace.write("run.yaml", &(workplace.read("run.yaml") + more));
    with_hook(&workplace, &json).expect_code(3);
    let last = receiver.received().pop().unwrap().json();
    assert_eq!(last["event"], "training.reverted");
    assert!(last["reason"].as_str().unwrap().contains("0.5"), "{last}");
}
