//! Keys as their owners handle them: made, encrypted, trusted, followed, revoked; and what each of
//! that does to signatures.

use crate::support::{Ran, Workplace};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

const STORE: &str = "trusted.json";
const PASSPHRASE: &str = "correct horse battery staple";

fn keygen(workplace: &Workplace, name: &str, more: &[&str]) -> String {
    let args = [&["keygen", "--out", name, "--output-format", "json"][..], more].concat();
    let made = workplace.forgelm(&args).expect_code(0).json();
    made["keyid"].as_str().unwrap().to_owned()
}

/// `forgelm keys …` on the store.
fn keys(workplace: &Workplace, args: &[&str]) -> Ran {
    let args = [&["keys"], args, &["--trusted-keys", STORE, "--output-format", "json"]].concat();
    workplace.forgelm(&args)
}

fn sign(workplace: &Workplace, path: &str, key: &str, more: &[&str]) -> Ran {
    workplace.forgelm(&[&["sign", path, "--signing-key", key][..], more].concat())
}

/// The state of a signature by the store, and the exit code.
fn state(workplace: &Workplace, path: &str, more: &[&str]) -> (i32, String) {
    let args = ["verify-signature", path, "--trusted-keys", STORE, "--output-format", "json"];
    let ran = workplace.forgelm(&[&args[..], more].concat());
    let state = ran.json()["signature"]["state"].as_str().unwrap().to_owned();
    (ran.code, state)
}

fn is(code: i32, state: &str) -> (i32, String) {
    (code, state.to_owned())
}

/// A workplace with key `a`, trusted for documents, and a note that it signed.
fn trusting() -> Workplace {
    let workplace = Workplace::new();
    keygen(&workplace, "a", &["--label", "ci-prod"]);
    keys(&workplace, &["trust", "a.pub", "--usage", "manifest,checkpoint"]).expect_code(0);
    workplace.write("note.json", "{}\n");
    sign(&workplace, "note.json", "a", &[]).expect_code(0);
    workplace
}

#[test]
fn an_encrypted_key_signs_with_its_passphrase_alone() {
    let workplace = Workplace::new();
    workplace.write("note.json", "{}\n");
    let keygen = ["keygen", "--out", "k", "--label", "ci-prod", "--passphrase-env", "P"];
    workplace.forgelm(&keygen).expect_code(1).expect_stderr("`P` is not set");
    assert!(!workplace.path("k").exists() && !workplace.path("k.pub").exists());
    let made: Ran = workplace.command(&keygen).env("P", PASSPHRASE).output().unwrap().into();
    let made = made.expect_code(0);
    assert!(made.stdout.contains("(encrypted)"), "{}", made.stdout);
    let file = workplace.read("k");
    assert!(file.starts_with("label: ci-prod\n-----BEGIN ENCRYPTED PRIVATE KEY-----\n"), "{file}");

    let sign = ["sign", "note.json", "--signing-key", "k"];
    let with = |passphrase: &str| -> Ran {
        let mut command = workplace.command(&sign);
        command.env("FORGELM_SIGNING_KEY_PASSPHRASE", passphrase).output().unwrap().into()
    };
    let hint = "`FORGELM_SIGNING_KEY_PASSPHRASE`";
    workplace.forgelm(&sign).expect_code(1).expect_stderr(hint);
    let wrong = with("another horse").expect_code(1).expect_stderr("does not open the private key");
    assert!(!workplace.path("note.json.dsse.json").exists());
    let good = with(PASSPHRASE).expect_code(0);
    for ran in [&made, &wrong, &good] {
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(!said.contains("horse") && !said.contains("PRIVATE KEY"), "{said}");
    }
    let verify = ["verify-signature", "note.json", "--key", "k.pub"];
    let verified = workplace.forgelm(&verify).expect_code(0);
    assert!(verified.stdout.contains("(ci-prod)"), "{}", verified.stdout);
}

#[test]
fn a_run_is_signed_by_an_encrypted_key_and_names_its_label() {
    let workplace = Workplace::new();
    let keygen = ["keygen", "--out", "k", "--label", "ci-prod", "--passphrase-env", "P"];
    let made = workplace.command(&keygen).env("P", PASSPHRASE).output().unwrap();
    Ran::from(made).expect_code(0);
    workplace.write("run.yaml", &(workplace.read("run.yaml") + "signing: {key_file: k}\n"));
    let run = ["--config", "run.yaml"];
    workplace.forgelm(&run).expect_code(1).expect_stderr("no passphrase was given");
    assert!(!workplace.path("out/final_model").exists(), "the key is checked before the work");
    let mut command = workplace.command(&run);
    let ran = command.env("FORGELM_SIGNING_KEY_PASSPHRASE", PASSPHRASE).output().unwrap();
    Ran::from(ran).expect_code(0);
    // Whoever verifies needs no passphrase.
    workplace.forgelm(&["verify-bundle", "out", "--key", "k.pub"]).expect_code(0);
    let envelope = workplace.read("out/compliance/attestation.dsse.json");
    assert!(envelope.contains("payload") && !envelope.contains("horse"));
}

#[test]
fn a_key_is_never_overwritten() {
    let workplace = Workplace::new();
    keygen(&workplace, "a", &[]);
    let (private, public) = (workplace.read("a"), workplace.read("a.pub"));
    workplace.forgelm(&["keygen", "--out", "a"]).expect_code(1).expect_stderr("exists already");
    fs::remove_file(workplace.path("a.pub")).unwrap();
    workplace.forgelm(&["keygen", "--out", "a"]).expect_code(1).expect_stderr("exists already");
    assert_eq!(workplace.read("a"), private);
    assert!(!workplace.path("a.pub").exists() && public.contains("PUBLIC KEY"));
    let label = ["keygen", "--out", "b", "--label", "x\ny"];
    workplace.forgelm(&label).expect_code(1).expect_stderr("the label");
    assert!(!workplace.path("b").exists());
}

#[test]
fn a_key_counts_for_what_the_store_says_alone() {
    let workplace = trusting();
    assert_eq!(state(&workplace, "note.json", &[]), is(0, "valid"));
    let list = keys(&workplace, &["list"]).expect_code(0).json();
    let entry = &list["keys"][0];
    assert_eq!(entry["usages"], json!(["manifest", "checkpoint"]));
    assert_eq!((&entry["state"], &entry["label"]), (&json!("valid"), &json!("ci-prod")));
    let show = keys(&workplace, &["show", "ci-prod"]).expect_code(0).json();
    assert_eq!(show["public_key_pem"], workplace.read("a.pub").replace("label: ci-prod\n", ""));
    // A model is an export, which `a` may not sign.
    workplace.write("model.gguf", "GGUF");
    sign(&workplace, "model.gguf", "a", &[]).expect_code(0);
    assert_eq!(state(&workplace, "model.gguf", &[]), is(1, "untrusted_key"));
    // What is said about one kind of file is not said about another.
    assert_eq!(
        state(&workplace, "note.json", &["--type", "data-audit"]),
        is(6, "subject_mismatch")
    );
    keygen(&workplace, "stranger", &[]);
    workplace.write("other.json", "{}\n");
    sign(&workplace, "other.json", "stranger", &[]).expect_code(0);
    assert_eq!(state(&workplace, "other.json", &[]), is(1, "untrusted_key"));
    assert_eq!(state(&workplace, "data.jsonl", &[]), is(1, "absent"));
    workplace.write("note.json", "{ }\n");
    assert_eq!(state(&workplace, "note.json", &[]), is(6, "subject_mismatch"));
}

#[test]
fn what_was_signed_before_a_rotation_stays_valid_and_nothing_after() {
    let workplace = trusting();
    let new_id = keygen(&workplace, "b", &[]);
    let rotate = ["rotate", "--old-key", "a", "--new-key", "b", "--label", "ci-next"];
    let rotated = keys(&workplace, &rotate).expect_code(0).json();
    assert_eq!(rotated["new_keyid"], new_id.as_str());
    assert_eq!(rotated["usages"], json!(["manifest", "checkpoint"]));
    assert_eq!(state(&workplace, "note.json", &[]), is(0, "valid"));
    for (name, key, expected) in [("late", "a", is(6, "expired")), ("new", "b", is(0, "valid"))] {
        let name = format!("{name}.json");
        workplace.write(&name, "{}\n");
        sign(&workplace, &name, key, &[]).expect_code(0);
        assert_eq!(state(&workplace, &name, &[]), expected);
    }
    let list = keys(&workplace, &["list"]).expect_code(0).json();
    assert_eq!(list["keys"][0]["successor"], new_id.as_str());
    assert_eq!(list["statements_verified"], 1);
    // Whoever edits the store against what both keys signed is told.
    let good = workplace.read(STORE);
    let mut edited: Value = serde_json::from_str(&good).unwrap();
    edited["keys"][0]["not_after"] = Value::Null;
    workplace.write(STORE, &edited.to_string());
    let refused = keys(&workplace, &["list"]).expect_code(1);
    assert!(refused.stderr.contains("statements[0]: the store trusts key"), "{}", refused.stderr);
    let verify = ["verify-signature", "late.json", "--trusted-keys", STORE];
    workplace.forgelm(&verify).expect_code(1).expect_stderr("statements[0]");
    workplace.write(STORE, &good);
    let again = keys(&workplace, &rotate).expect_code(1);
    assert!(again.stderr.contains("is followed by"), "{}", again.stderr);
    assert_eq!(workplace.read(STORE), good);
}

#[test]
fn a_revoked_key_counts_for_what_its_reason_leaves() {
    let workplace = trusting();
    let retire = ["revoke", "ci-prod", "--reason", "retired", "--at", "2100-01-01"];
    keys(&workplace, &retire).expect_code(0);
    assert_eq!(state(&workplace, "note.json", &[]), is(0, "valid"));
    let earlier = ["revoke", "ci-prod", "--reason", "superseded", "--at", "2020-01-01"];
    keys(&workplace, &earlier).expect_code(0);
    assert_eq!(state(&workplace, "note.json", &[]), is(6, "revoked"));
    let later = keys(&workplace, &retire).expect_code(1);
    assert!(later.stderr.contains("never taken back"), "{}", later.stderr);
    let reason = ["revoke", "ci-prod", "--reason", "compromised", "--signing-key", "a"];
    let revoked = keys(&workplace, &reason).expect_code(0);
    assert_eq!(revoked.json()["is_signed"], true);
    assert!(revoked.stderr.contains("`manifest` needs 1 signature; may sign it by now: 0 keys"));
    let list = keys(&workplace, &["list"]).expect_code(0).json();
    assert_eq!(
        (&list["keys"][0]["state"], &list["statements_verified"]),
        (&json!("revoked"), &json!(1))
    );
}

#[test]
fn a_threshold_counts_keys_and_not_signatures() {
    let workplace = trusting();
    keygen(&workplace, "b", &[]);
    let two = |keys: [&str; 2], code: i32| {
        let [first, second] = keys;
        let verify =
            ["verify-signature", "note.json", "--threshold", "2", "--key", first, "--key", second];
        workplace.forgelm(&verify).expect_code(code)
    };
    two(["a.pub", "b.pub"], 1).expect_stderr("1 of the 2 trusted keys");
    sign(&workplace, "note.json", "b", &[]).expect_code(1).expect_stderr("--add");
    let before = workplace.read("note.json.dsse.json");
    sign(&workplace, "note.json", "a", &["--add"])
        .expect_code(1)
        .expect_stderr("signed it already");
    assert_eq!(workplace.read("note.json.dsse.json"), before);
    sign(&workplace, "note.json", "b", &["--add"]).expect_code(0);
    two(["a.pub", "b.pub"], 0);
    two(["a.pub", "a.pub"], 1).expect_stderr("1 of the 2 trusted keys");
    keygen(&workplace, "c", &[]);
    workplace.write("note.json", "{ }\n");
    sign(&workplace, "note.json", "c", &["--add"]).expect_code(6).expect_stderr("other bytes");
}

#[test]
fn what_cannot_be_signed_is_refused_and_nothing_is_written() {
    let workplace = Workplace::new();
    workplace.run();
    keygen(&workplace, "a", &[]);
    workplace.write("note.json", "{}\n");
    let sign = |paths: &[&str]| {
        workplace.forgelm(&[&["sign", "--signing-key", "a"], paths].concat()).expect_code(1)
    };
    let many = sign(&["--add", "note.json", "missing.json", "model"]);
    for said in [
        "note.json.dsse.json: there is no signature to add one to",
        "missing.json: missing",
        "model: a folder",
        "3 problems; nothing was signed",
    ] {
        assert!(many.stderr.contains(said), "no `{said}` in {}", many.stderr);
    }
    assert!(!workplace.path("note.json.dsse.json").exists());
    workplace.write("x.so", "no library");
    sign(&["x.so"]).expect_stderr("forgelm plugin sign");
    // A run binds its folders: one more file in them would be a stranger's.
    workplace.write("out/final_model/note.json", "{}\n");
    sign(&["out/final_model/note.json"]).expect_stderr("attestation.dsse.json` binds every file");
    fs::remove_file(workplace.path("out/final_model/note.json")).unwrap();
    sign(&["out/compliance/compliance_report.json"]).expect_stderr("verify-bundle");
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
    workplace.write("out/note.json", "{}\n");
    workplace.forgelm(&["sign", "--signing-key", "a", "out/note.json"]).expect_code(0);
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
}

#[test]
fn a_store_that_is_not_named_there_or_whole_is_told() {
    let workplace = Workplace::new();
    let none = workplace.forgelm(&["keys", "list"]).expect_code(1);
    assert!(none.stderr.contains("FORGELM_TRUSTED_KEYS"), "{}", none.stderr);
    let missing = keys(&workplace, &["list"]).expect_code(1);
    assert!(missing.stderr.contains(STORE), "{}", missing.stderr);
    assert_eq!(missing.json()["success"], false);
    keygen(&workplace, "a", &[]);
    keys(&workplace, &["trust", "a.pub", "--usage", "run"]).expect_code(0);
    let again = keys(&workplace, &["trust", "a.pub", "--usage", "manifest"]).expect_code(1);
    assert!(again.stderr.contains("in the store already"), "{}", again.stderr);
    let unknown = keys(&workplace, &["show", "nobody"]).expect_code(1);
    assert!(unknown.stderr.contains("names 0 keys"), "{}", unknown.stderr);
    let private = keys(&workplace, &["trust", "a", "--usage", "run"]).expect_code(1);
    assert!(private.stderr.contains("not an Ed25519 public key"), "{}", private.stderr);
    let good = workplace.read(STORE);
    workplace.write(STORE, &good.replace("\"run\"", "\"everything\""));
    let bad = keys(&workplace, &["trust", "a.pub", "--usage", "run"]).expect_code(1);
    assert!(bad.stderr.contains("keys[0]: `usages`"), "{}", bad.stderr);
    // The variable names the store, too.
    workplace.write(STORE, &good);
    let mut command = workplace.command(&["keys", "list"]);
    let listed = Ran::from(command.env("FORGELM_TRUSTED_KEYS", STORE).output().unwrap());
    assert!(listed.expect_code(0).stdout.contains("trusted.json: 1 key\n"));
}

#[test]
fn a_run_signs_its_model_folder_as_a_whole() {
    let workplace = Workplace::new();
    workplace.run();
    keygen(&workplace, "a", &[]);
    keys(&workplace, &["trust", "a.pub", "--usage", "model"]).expect_code(0);
    let (model, signed) = ("out/final_model", "out/final_model/model.sig");
    let key = "home/.config/forgelm/signing.key.pub";
    let bundle = ["verify-bundle", "out", "--key", key];
    let mut verify = vec!["verify-signature", model, "--key", key];
    workplace.forgelm(&verify).expect_code(0);
    workplace.forgelm(&bundle).expect_code(0);
    assert_eq!(state(&workplace, model, &[]), is(1, "untrusted_key"));
    workplace.forgelm(&["verify-integrity", model]).expect_code(0);
    sign(&workplace, model, "a", &[]).expect_code(1).expect_stderr("exists already");
    // The model travels alone, and another may sign a copy of it.
    let good = workplace.read(signed);
    fs::rename(workplace.path("out/final_model"), workplace.path("alone")).unwrap();
    verify[1] = "alone";
    workplace.forgelm(&verify).expect_code(0);
    fs::remove_file(workplace.path("alone/model.sig")).unwrap();
    sign(&workplace, "alone", "a", &[]).expect_code(0);
    assert_eq!(state(&workplace, "alone", &[]), is(0, "valid"));
    // In the run it is not the signature that the run bound.
    fs::rename(workplace.path("alone"), workplace.path("out/final_model")).unwrap();
    let changed = workplace.forgelm(&bundle).expect_code(6);
    changed.expect_stderr("changed: final_model/model.sig");
    fs::remove_file(workplace.path(signed)).unwrap();
    workplace.forgelm(&bundle).expect_code(6).expect_stderr("missing: final_model/model.sig");
    workplace.write(signed, "anything");
    workplace.forgelm(&bundle).expect_code(6).expect_stderr("final_model/model.sig: malformed");
    workplace.write(signed, &good);
    workplace.forgelm(&bundle).expect_code(0);
    workplace.write("out/final_model/tokenizer.json", "{}");
    workplace.forgelm(&["verify-signature", model, "--key", key]).expect_code(6);
}

#[test]
fn a_p256_key_signs_the_model_folder_and_nothing_else() {
    let workplace = Workplace::new();
    let openssl = |args: &[&str]| {
        let status = Command::new("openssl").args(args).current_dir(workplace.path("")).status();
        assert!(status.unwrap().success(), "{args:?}");
    };
    let curve = "ec_paramgen_curve:P-256";
    openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", "p256"]);
    openssl(&["pkey", "-in", "p256", "-pubout", "-out", "p256.pub"]);
    let mode = Command::new("chmod").args(["600", "p256"]).current_dir(workplace.path("")).status();
    assert!(mode.unwrap().success());
    keygen(&workplace, "a", &[]);
    let config = workplace.read("run.yaml");
    workplace.write("run.yaml", &(config + "signing: {key_file: a, model_key_file: a}\n"));
    workplace.forgelm(&["--config", "run.yaml"]).expect_code(1).expect_stderr("not a P-256");
    assert!(!workplace.path("out").exists(), "found out before the work");
    workplace.edit_config("model_key_file: a", "model_key_file: p256");
    workplace.run();
    let model = ["verify-signature", "out/final_model", "--key"];
    workplace.forgelm(&[&model[..], &["p256.pub"]].concat()).expect_code(0);
    workplace.forgelm(&[&model[..], &["a.pub"]].concat()).expect_code(1);
    let bundle = ["verify-bundle", "out", "--key", "a.pub"];
    let ran = workplace.forgelm(&bundle).expect_code(0);
    assert!(ran.stdout.contains("not among those named"), "{}", ran.stdout);
    let ran = workplace.forgelm(&[&bundle[..], &["--key", "p256.pub"]].concat()).expect_code(0);
    assert!(!ran.stdout.contains("not among those named"), "{}", ran.stdout);
    workplace.forgelm(&["verify-bundle", "out", "--key", "p256.pub"]).expect_code(1);
    // It counts for model folders alone.
    workplace.write("note.json", "{}");
    sign(&workplace, "note.json", "p256", &[]).expect_code(1).expect_stderr("model folders alone");
}

/// A key that ForgeLM never sees: openssl has it, and a script asks openssl.
fn signing_elsewhere(script: &str) -> Workplace {
    let workplace = Workplace::new();
    let openssl = |args: &[&str]| {
        let status = Command::new("openssl").args(args).current_dir(workplace.path("")).status();
        assert!(status.unwrap().success(), "{args:?}");
    };
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", "token.pem"]);
    openssl(&["pkey", "-in", "token.pem", "-pubout", "-out", "token.pub"]);
    workplace.write("sign.sh", script);
    let config = workplace.read("run.yaml");
    let signing = "signing:\n  command: [sh, sign.sh]\n  public_key: token.pub\n";
    workplace.write("run.yaml", &(config + signing));
    workplace
}

const ASK_OPENSSL: &str = "f=$(mktemp) && cat > \"$f\" && openssl pkeyutl -sign -inkey token.pem -rawin -in \"$f\"; \
                           s=$?; rm -f \"$f\"; exit $s\n";

#[test]
fn a_run_is_signed_by_a_program_that_has_the_key() {
    let workplace = signing_elsewhere(ASK_OPENSSL);
    workplace.run();
    workplace.forgelm(&["verify-bundle", "out", "--key", "token.pub"]).expect_code(0);
    let loaded = &workplace.json_lines("out/audit_log.jsonl")[0];
    assert_eq!(loaded["event"], "signing.key_loaded");
    assert_eq!(loaded["key_origin"], "provisioned");
    assert!(!workplace.path("home/.config/forgelm/signing.key").exists(), "no key was made");
}

#[test]
fn a_program_that_cannot_sign_is_found_out_before_the_work() {
    for (script, says) in [
        ("echo the token is locked >&2; exit 3\n", "the token is locked"),
        ("head -c 64 /dev/zero\n", "is not one of the public key"),
        ("true\n", "0 bytes came"),
    ] {
        let workplace = signing_elsewhere(script);
        workplace.forgelm(&["--config", "run.yaml"]).expect_code(2).expect_stderr(says);
        assert!(!workplace.path("out").exists());
    }
}

#[test]
fn a_program_that_fails_at_the_end_leaves_the_model_and_nothing_half_signed() {
    let once = format!(
        "test -e used && {{ echo the token is gone >&2; exit 3; }}; touch used; {ASK_OPENSSL}"
    );
    let workplace = signing_elsewhere(&once);
    let ran = workplace.forgelm(&["--config", "run.yaml"]).expect_code(2);
    ran.expect_stderr("the token is gone");
    assert!(workplace.path("out/final_model/adapter_model.safetensors").exists());
    assert!(!workplace.path("out/compliance/attestation.dsse.json").exists());
    workplace.forgelm(&["verify-bundle", "out", "--key", "token.pub"]).expect_code(1);
    // The token is back: nothing needs to be trained again.
    workplace.write("sign.sh", ASK_OPENSSL);
    let ran = workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
    assert!(!ran.stderr.contains("step 1/12"), "{}", ran.stderr);
    workplace.forgelm(&["verify-bundle", "out", "--key", "token.pub"]).expect_code(0);
}

#[test]
fn a_program_without_its_public_key_or_beside_another_key_is_refused() {
    let workplace = signing_elsewhere(ASK_OPENSSL);
    workplace.edit_config("  public_key: token.pub\n", "");
    workplace.forgelm(&["--config", "run.yaml"]).expect_code(1).expect_stderr("belong together");
    let workplace = signing_elsewhere(ASK_OPENSSL);
    workplace.edit_config("  public_key: token.pub\n", "  public_key: token.pub\n  key_file: k\n");
    workplace.forgelm(&["--config", "run.yaml"]).expect_code(1).expect_stderr("a key is named too");
    let workplace = signing_elsewhere(ASK_OPENSSL);
    workplace.edit_config("public_key: token.pub", "public_key: nowhere.pub");
    workplace.forgelm(&["--config", "run.yaml"]).expect_code(1).expect_stderr("no such key file");
    assert!(!workplace.path("out").exists());
}

#[test]
fn a_run_that_was_killed_has_signed_heads_and_another_key_that_goes_on_is_told() {
    let workplace = Workplace::new();
    for key in ["a", "b"] {
        keygen(&workplace, key, &[]);
    }
    let config = workplace.read("run.yaml");
    workplace.write("run.yaml", &(config + "signing: {key_file: a, checkpoint_every: 2}\n"));
    workplace.edit_config("max_steps: 12", "max_steps: 60");
    let mut child = workplace.start(&["--config", "run.yaml"]);
    while !workplace.path("out/checkpoint-4").exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended too early");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let events = || -> Vec<String> {
        let lines = workplace.json_lines("out/audit_log.jsonl");
        lines.iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(events()[2], "audit.checkpoint");
    let verify = ["verify-audit", "out", "--key", "a.pub", "--output-format", "json"];
    let verified = workplace.forgelm(&[&verify[..], &["--allow-unsigned"]].concat());
    let verified = verified.expect_code(0).json();
    assert_eq!(verified["checkpoints_verified"], 1, "{verified}");

    workplace.edit_config("key_file: a", "key_file: b");
    workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
    let lines = workplace.json_lines("out/audit_log.jsonl");
    let rotated: Vec<&Value> =
        lines.iter().filter(|line| line["event"] == "signing.key_rotated").collect();
    assert_eq!(rotated.len(), 1);
    assert_eq!(rotated[0]["old_keyid"], lines[0]["keyid"]);
    assert_ne!(rotated[0]["new_keyid"], lines[0]["keyid"]);
    workplace.forgelm(&["verify-bundle", "out", "--key", "b.pub"]).expect_code(0);
}
