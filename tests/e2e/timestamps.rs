//! Trusted time and co-signed runs. The authority is OpenSSL's `openssl ts`, behind a server of one
//! line.

use crate::receiver::{Answers, Receiver};
use crate::support::Workplace;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;

const CONFIG: &str = "\
[stamps]
basicConstraints = critical, CA:false
extendedKeyUsage = critical, timeStamping
[tsa]
default_tsa = service
[service]
serial = tsa_serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
";

fn openssl(dir: &Path, line: &str) {
    let done = Command::new("openssl").args(line.split(' ')).current_dir(dir).output().unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Makes an authority in `dir`, and answers requests until the test ends; the port.
fn serve(dir: &Path) -> u16 {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("c.cnf"), CONFIG).unwrap();
    fs::write(dir.join("tsa_serial"), "01\n").unwrap();
    openssl(
        dir,
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 9",
    );
    openssl(dir, "req -new -newkey rsa:2048 -nodes -keyout tsa.key -out tsa.csr -subj /CN=tsa");
    openssl(
        dir,
        "x509 -req -in tsa.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 -extfile c.cnf -extensions stamps -out tsa.pem",
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let dir = dir.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
            assert!(head.contains("content-type: application/timestamp-query"), "{head}");
            let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut body).unwrap();
            fs::write(dir.join("q.tsq"), body).unwrap();
            openssl(
                &dir,
                "ts -reply -config c.cnf -queryfile q.tsq -signer tsa.pem -inkey tsa.key -out r.tsr",
            );
            let reply = fs::read(dir.join("r.tsr")).unwrap();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/timestamp-reply\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                reply.len()
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&reply));
        }
    });
    port
}

fn keygen(workplace: &Workplace, name: &str) {
    workplace.forgelm(&["keygen", "--out", name]).expect_code(0);
}

fn with_signing(workplace: &Workplace, more: &str) {
    let text = workplace.read("run.yaml") + &format!("signing: {{key_file: k{more}}}\n");
    workplace.write("run.yaml", &text);
}

fn asks(port: u16) -> String {
    format!(
        ", timestamp_url: \"http://127.0.0.1:{port}/tsr\", timestamp_allow_private_destinations: true"
    )
}

fn signature(workplace: &Workplace, args: &[&str], code: i32) -> Value {
    let args = [args, &["--output-format", "json"]].concat();
    workplace.forgelm(&args).expect_code(code).json()["signature"].clone()
}

#[test]
fn a_run_is_stamped_and_a_stolen_key_is_outlived() {
    let workplace = Workplace::new();
    let port = serve(&workplace.path("tsa"));
    keygen(&workplace, "k");
    with_signing(&workplace, &(asks(port) + ", require_timestamp: true"));
    workplace.run().expect_code(0);
    let ca = ["--tsa-cert", "tsa/ca.pem"];
    let plain = signature(&workplace, &["verify-bundle", "out", "--key", "k.pub"], 0);
    assert_eq!(plain["timestamped"], json!(false));
    let with = |args: &[&'static str]| [args, &ca[..]].concat();
    let stamped = signature(&workplace, &with(&["verify-bundle", "out", "--key", "k.pub"]), 0);
    assert_eq!(stamped["timestamped"], json!(true));
    for path in ["out", "out/audit_log.jsonl", "out/final_model"] {
        let verb = match path {
            "out" => "verify-bundle",
            "out/audit_log.jsonl" => "verify-audit",
            _ => "verify-signature",
        };
        let required = with(&[verb, path, "--key", "k.pub", "--require-timestamp"]);
        assert_eq!(signature(&workplace, &required, 0)["timestamped"], json!(true), "{path}");
        let without = [verb, path, "--key", "k.pub", "--require-timestamp"];
        assert_eq!(signature(&workplace, &without, 1)["state"], json!("not_checked"), "{path}");
    }

    // The key is stolen later: what was stamped before stays good, for whoever trusts the authority.
    let trust = ["keys", "trust", "k.pub", "--usage", "manifest,run,checkpoint,model"];
    let store = ["--trusted-keys", "t.json"];
    workplace.forgelm(&[&trust[..], &store[..]].concat()).expect_code(0);
    let id = stamped["keyid"].as_str().unwrap().to_owned();
    let revoke = ["keys", "revoke", &id, "--reason", "compromised", "--at", "2100-01-01"];
    workplace.forgelm(&[&revoke[..], &store[..]].concat()).expect_code(0);
    let file = ["verify-signature", "out/final_model"];
    let revoked = signature(&workplace, &[&file[..], &store[..]].concat(), 6);
    assert_eq!(revoked["state"], json!("revoked"));
    let outlived = signature(&workplace, &[&file[..], &store[..], &ca[..]].concat(), 0);
    assert_eq!((&outlived["state"], &outlived["timestamped"]), (&json!("valid"), &json!(true)));
    // The store has the authority's certificate too.
    let mut document: Value = serde_json::from_str(&workplace.read("t.json")).unwrap();
    document["tsa"] = json!([workplace.read("tsa/ca.pem")]);
    workplace.write("t.json", &document.to_string());
    signature(&workplace, &[&file[..], &store[..]].concat(), 0);
    // A change of the store keeps it.
    keygen(&workplace, "other");
    let more = ["keys", "trust", "other.pub", "--usage", "run"];
    workplace.forgelm(&[&more[..], &store[..]].concat()).expect_code(0);
    signature(&workplace, &[&file[..], &store[..]].concat(), 0);
    document["tsa"] = json!(["no certificate"]);
    workplace.write("t.json", &document.to_string());
    let bad = workplace.forgelm(&[&file[..], &store[..]].concat()).expect_code(1);
    bad.expect_stderr("tsa[0]: has no certificate");
    let foreign = ["verify-bundle", "out", "--key", "k.pub", "--tsa-cert", "k.pub"];
    workplace.forgelm(&foreign).expect_code(1).expect_stderr("has no certificate");
}

#[test]
fn an_authority_that_does_not_answer_is_a_warning_or_exit_2() {
    let workplace = Workplace::new();
    keygen(&workplace, "k");
    let whole = workplace.read("run.yaml");
    let endless = Receiver::start(Answers::Endlessly);
    with_signing(&workplace, &asks(endless.port));
    let ran = workplace.run().expect_code(0);
    ran.expect_stderr("compliance/attestation.dsse.json has no time stamp")
        .expect_stderr("the answer is larger than 65536 bytes");
    workplace.forgelm(&["verify-bundle", "out", "--key", "k.pub"]).expect_code(0);
    let log = workplace.read("out/audit_log.jsonl");
    assert_eq!(log.matches("\"signing.timestamp_failed\"").count(), 3);

    fs::remove_dir_all(workplace.path("out")).unwrap();
    workplace.write("run.yaml", &whole);
    let refusing = Receiver::start(Answers::Status(404));
    with_signing(&workplace, &(asks(refusing.port) + ", require_timestamp: true"));
    let ran = workplace.forgelm(&["--config", "run.yaml"]).expect_code(2);
    ran.expect_stderr("which `signing.require_timestamp` demands").expect_stderr("status 404");
    assert!(workplace.path("out/final_model").exists(), "the model is kept");
    assert!(!workplace.path("out/compliance/attestation.dsse.json").exists());
}

#[test]
fn nobody_is_asked_offline() {
    let workplace = Workplace::new();
    keygen(&workplace, "k");
    let receiver = Receiver::start(Answers::Status(200));
    let whole = workplace.read("run.yaml");
    with_signing(&workplace, &(asks(receiver.port) + ", require_timestamp: true"));
    let refused = workplace.forgelm(&["--config", "run.yaml", "--offline"]).expect_code(1);
    refused.expect_stderr("`signing.require_timestamp` is true, and nothing is sent offline");
    assert!(!workplace.path("out/final_model").exists());
    workplace.write("run.yaml", &whole);
    with_signing(&workplace, &asks(receiver.port));
    let ran = workplace.forgelm(&["--config", "run.yaml", "--offline"]).expect_code(0);
    ran.expect_stderr("no time stamp is asked for offline");
    assert!(receiver.received().is_empty());
    workplace.write("run.yaml", &whole);
    with_signing(&workplace, ", require_timestamp: true");
    workplace
        .forgelm(&["--config", "run.yaml"])
        .expect_code(1)
        .expect_stderr("nobody is asked for time stamps");
}

#[test]
fn a_cosigned_run_meets_a_threshold_of_two() {
    let workplace = Workplace::new();
    keygen(&workplace, "k");
    keygen(&workplace, "second");
    with_signing(&workplace, "");
    workplace.run().expect_code(0);
    let log = workplace.read("out/audit_log.jsonl");
    let checkpoint = workplace.read("out/audit_log.jsonl.checkpoint.dsse.json");
    let store = ["--trusted-keys", "t.json"];
    for (key, usage) in [("k.pub", "manifest,run,checkpoint,model"), ("second.pub", "run")] {
        let trust = ["keys", "trust", key, "--usage", usage];
        workplace.forgelm(&[&trust[..], &store[..]].concat()).expect_code(0);
    }
    let mut document: Value = serde_json::from_str(&workplace.read("t.json")).unwrap();
    document["thresholds"] = json!({"run": 2});
    workplace.write("t.json", &document.to_string());
    let verify = [&["verify-bundle", "out"][..], &store[..]].concat();
    workplace.forgelm(&verify).expect_code(1).expect_stderr("1 of the 2 trusted keys");

    // Not by who is not told whom to trust, not by the same key, and not where something was changed.
    let sign = ["sign", "out", "--add", "--signing-key", "second"];
    workplace.forgelm(&sign).expect_code(1).expect_stderr("not signed");
    let again = ["sign", "out", "--add", "--signing-key", "k", "--key", "k.pub"];
    workplace.forgelm(&again).expect_code(1).expect_stderr("this key signed it already");
    let by_second = [&sign[..], &store[..]].concat();
    let metrics = workplace.read("out/metrics.jsonl");
    workplace.write("out/metrics.jsonl", "{}\n");
    workplace.forgelm(&by_second).expect_code(6).expect_stderr("changed: metrics.jsonl");
    workplace.write("out/metrics.jsonl", &metrics);
    workplace.forgelm(&by_second).expect_code(0).expect_stdout("2 signatures in all");
    workplace.forgelm(&verify).expect_code(0);
    assert_eq!(workplace.read("out/audit_log.jsonl"), log);
    assert_eq!(workplace.read("out/audit_log.jsonl.checkpoint.dsse.json"), checkpoint);
    // Each of the two alone is enough where one is.
    workplace.forgelm(&["verify-bundle", "out", "--key", "k.pub"]).expect_code(0);

    // One changed byte of either signature is noticed.
    let path = "out/compliance/attestation.dsse.json";
    let whole = workplace.read(path);
    let envelope: Value = serde_json::from_str(&whole).unwrap();
    for i in 0..2 {
        let sig = envelope["signatures"][i]["sig"].as_str().unwrap();
        let other = if sig.starts_with('A') { "B" } else { "A" };
        workplace.write(path, &whole.replace(sig, &format!("{other}{}", &sig[1..])));
        let one = [&verify[..], &["--threshold", "1"]].concat();
        workplace.forgelm(&one).expect_code(6).expect_stderr("does not match the payload");
    }
    workplace.write(path, &whole);
    workplace.forgelm(&verify).expect_code(0);
}

#[test]
fn a_run_is_cosigned_before_a_signed_approval_and_not_after() {
    for is_before in [true, false] {
        let workplace = Workplace::new();
        for key in ["k", "second", "boss"] {
            keygen(&workplace, key);
        }
        let more = "evaluation: {require_human_approval: true}\n";
        workplace.write("run.yaml", &(workplace.read("run.yaml") + more));
        with_signing(&workplace, "");
        let json = ["--output-format", "json"];
        let run = [&["--config", "run.yaml"][..], &json[..]].concat();
        let staged = workplace.forgelm(&run).expect_code(4).json();
        let run_id = staged["run_id"].as_str().unwrap().to_owned();
        let approve = || {
            let keys = ["--key", "k.pub", "--signing-key", "k", "--approver-key", "boss"];
            let args = [&["approve", &run_id, "--output-dir", "out"][..], &keys[..]].concat();
            let mut command = workplace.command(&args);
            let ran = command.env("FORGELM_OPERATOR", "boss@example").output().unwrap();
            crate::support::Ran::from(ran).expect_code(0);
        };
        let sign = ["sign", "out", "--add", "--signing-key", "second", "--key", "k.pub"];
        let verify = ["verify-bundle", "out", "--key", "k.pub", "--key", "boss.pub"];
        if is_before {
            workplace.forgelm(&sign).expect_code(0);
            approve();
            let both = [&verify[..], &["--key", "second.pub"]].concat();
            workplace.forgelm(&both).expect_code(0);
        } else {
            approve();
            let sign = [&sign[..], &["--key", "boss.pub"]].concat();
            let before = workplace.read("out/compliance/attestation.dsse.json");
            let refused = workplace.forgelm(&sign).expect_code(1);
            refused.expect_stderr("a run is co-signed before it is approved");
            assert_eq!(workplace.read("out/compliance/attestation.dsse.json"), before);
            workplace.forgelm(&verify).expect_code(0);
        }
    }
}
