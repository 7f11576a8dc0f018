//! Input that somebody made to hang, crash, exhaust or mislead a verifier: each command answers within
//! seconds and half a gibibyte, names the file, and accepts nothing.

use crate::support::{Ran, Workplace};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Memory that a verifier may ask for, in KiB. Files that are mapped do not count.
const KIB_MAX: u32 = 512 << 10;
/// Time that it may take; far more than it does, for machines that are busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the program under a ceiling of memory. One that asks for more is ended by the failed
/// allocation, and so is one that waits.
fn bounded(workplace: &Workplace, args: &[&str]) -> Ran {
    let mut command = Command::new("sh");
    let script = format!("ulimit -d {KIB_MAX} && exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_forgelm")]).args(args);
    let inner = workplace.command(args);
    command
        .current_dir(workplace.path(""))
        .env_clear()
        .envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{args:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap().into()
}

/// A run that a key signed, its archive, a GGUF file with its digest, a trust store.
fn workplace() -> Workplace {
    let workplace = Workplace::new();
    workplace.forgelm(&["keygen", "--out", "k"]).expect_code(0);
    let config = workplace.read("run.yaml");
    workplace.write("run.yaml", &(config + "signing: {key_file: k}\n"));
    workplace.edit_config("max_steps: 12", "max_steps: 4");
    workplace.run();
    let trust = ["keys", "trust", "k.pub", "--usage", "run,manifest,checkpoint,model,export"];
    workplace.forgelm(&[&trust[..], &["--trusted-keys", "store.json"]].concat()).expect_code(0);
    let pack = ["bundle", "--output-dir", "out", "--out", "evidence.zip"];
    workplace.forgelm(&pack).expect_code(0);
    let gguf = ["quantize", "--model", "model", "--method", "q8_0", "--output", "small"];
    workplace.forgelm(&[&gguf[..], &["--signing-key", "k"]].concat()).expect_code(0);
    workplace
}

/// A command, the file of it that is replaced, and the exit code: 1 where nothing could be compared any
/// more, 6 where something else says what the file must be.
const PLACES: &[(&[&str], &str, i32)] = &[
    (&["verify-audit", "out"], "out/audit_log.jsonl", 6),
    (&["verify-audit", "out"], "out/audit_log.jsonl.manifest.json", 6),
    (&["verify-audit", "out", "--key", "k.pub"], "out/audit_log.jsonl.checkpoint.dsse.json", 1),
    (&["verify-integrity", "out/final_model"], "out/final_model/model_integrity.json", 1),
    (&["verify-integrity", "out/final_model"], "out/final_model/tokenizer.json", 6),
    (&["verify-signature", "out/final_model", "--key", "k.pub"], "out/final_model/model.sig", 1),
    (
        &["verify-signature", "out/compliance/config.json", "--key", "k.pub"],
        "out/compliance/config.json.dsse.json",
        1,
    ),
    (&["verify-signature", "out/compliance/config.json", "--key", "other.pub"], "other.pub", 1),
    (&["verify-bundle", "out", "--trusted-keys", "store.json"], "store.json", 1),
    (&["verify-bundle", "out", "--key", "k.pub"], "out/compliance/attestation.dsse.json", 1),
    (&["verify-bundle", "out", "--key", "k.pub"], "out/compliance/signing_key.pub", 6),
    (&["verify-bundle", "out", "--key", "k.pub"], "out/final_model/model.sig", 6),
    (&["verify-bundle", "out", "--key", "k.pub"], "out/final_model/model_integrity.json", 6),
    (&["verify-bundle", "evidence.zip", "--key", "k.pub"], "evidence.zip", 1),
    (&["verify-gguf", "small/model.q8_0.gguf"], "small/model.q8_0.gguf", 1),
    (&["verify-gguf", "small/model.q8_0.gguf"], "small/model.q8_0.gguf.sha256", 1),
    (
        &["verify-gguf", "small/model.q8_0.gguf", "--key", "k.pub"],
        "small/model.q8_0.gguf.dsse.json",
        1,
    ),
    (&["verify-annex-iv", "annex.json"], "annex.json", 1),
    (&["verify-annex-iv", "--pipeline", "pipe"], "pipe/compliance/pipeline_manifest.json", 1),
    (
        &["bundle", "--output-dir", "out", "--out", "new.zip"],
        "out/compliance/attestation.dsse.json",
        1,
    ),
    (
        &["reproduce", "out", "--output", "again", "--key", "k.pub"],
        "out/compliance/attestation.dsse.json",
        1,
    ),
    (&["keys", "list", "--trusted-keys", "store.json"], "store.json", 1),
    (
        &["keys", "trust", "other.pub", "--usage", "run", "--trusted-keys", "store.json"],
        "other.pub",
        1,
    ),
    (&["sign", "note.json", "--signing-key", "k", "--add"], "note.json.dsse.json", 1),
];

/// Puts something hostile where `path` is.
fn put(path: &Path, what: &str) {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).unwrap();
    }
    let _ = fs::remove_file(path);
    match what {
        "arrays 100,000 deep" => fs::write(path, "[".repeat(100_000)).unwrap(),
        "objects 100,000 deep" => fs::write(path, r#"{"a":"#.repeat(100_000)).unwrap(),
        "10 GB" => fs::File::create(path).unwrap().set_len(10 << 30).unwrap(),
        "a named pipe" => {
            assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
        }
        "a link to /dev/zero" => symlink("/dev/zero", path).unwrap(),
        "a folder" => fs::create_dir(path).unwrap(),
        "bytes that are no text" => fs::write(path, b"\xff\xfe\x00\x80{").unwrap(),
        "a key twice" => fs::write(path, r#"{"version": 1, "version": 2}"#).unwrap(),
        "one line of 20 MB" => fs::write(path, "x".repeat(20 << 20)).unwrap(),
        other => panic!("{other}"),
    }
}

const HOSTILE: [&str; 9] = [
    "arrays 100,000 deep",
    "objects 100,000 deep",
    "10 GB",
    "a named pipe",
    "a link to /dev/zero",
    "a folder",
    "bytes that are no text",
    "a key twice",
    "one line of 20 MB",
];

#[test]
fn fault_104_every_command_is_bounded_on_every_kind_of_hostile_file_and_accepts_none() {
    let workplace = workplace();
    workplace.write("note.json", "{}");
    let mut n_cases = 0;
    for (command, file, expected) in PLACES {
        let path = workplace.path(file);
        let good = path.exists().then(|| fs::read(&path).unwrap());
        for what in HOSTILE {
            // Ten gibibytes of a file that must be hashed take their time and no memory.
            if what == "10 GB" && file.ends_with("tokenizer.json") {
                continue;
            }
            // As a folder, these are asked for something else.
            let is_other = matches!(*file, "evidence.zip" | "annex.json") && what == "a folder";
            put(&path, what);
            let ran = bounded(&workplace, command);
            let told = format!("{command:?}: {file} is {what}: {}\n{}", ran.code, ran.stderr);
            // A log that cannot be compared is 1 by itself.
            let log_is_1 = file.ends_with("audit_log.jsonl")
                && matches!(what, "10 GB" | "a named pipe" | "a link to /dev/zero" | "a folder")
                || file.ends_with("audit_log.jsonl") && what == "one line of 20 MB";
            let expected = if log_is_1 { 1 } else { *expected };
            assert_eq!(ran.code, expected, "{told}");
            let name = file.rsplit('/').next().unwrap();
            assert!(is_other || ran.stderr.contains(name), "{told}");
            assert!(ran.stderr.len() < 20_000, "{file}: {what}: {} bytes", ran.stderr.len());
            n_cases += 1;
            match path.symlink_metadata().unwrap().is_dir() {
                true => fs::remove_dir(&path).unwrap(),
                false => fs::remove_file(&path).unwrap(),
            }
        }
        if let Some(good) = good {
            fs::write(&path, good).unwrap();
        }
    }
    assert!(n_cases > 200, "{n_cases}");
    workplace.forgelm(&["verify-bundle", "out", "--key", "k.pub"]).expect_code(0);
}

#[test]
fn fault_087_a_verifier_works_with_few_file_descriptors() {
    let workplace = workplace();
    for args in ["verify-bundle out --key k.pub", "verify-integrity out/final_model"] {
        let script = format!("ulimit -n 40 && exec \"$0\" {args}");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_forgelm")]);
        let ran = command.current_dir(workplace.path("")).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
}

/// A header that claims as much as the file has, most of it holes.
#[test]
fn fault_104_a_gguf_file_of_10_gb_that_claims_it_all_as_metadata_takes_no_memory() {
    let workplace = Workplace::new();
    let n = (10_u64 << 30) - 1000;
    let head = |value: &[u8]| {
        let key = b"\x01\0\0\0\0\0\0\0k";
        [&b"GGUF\x03\0\0\0"[..], &0_u64.to_le_bytes(), &1_u64.to_le_bytes(), key, value].concat()
    };
    let array = |kind: u32, n: u64| {
        [&9_u32.to_le_bytes()[..], &kind.to_le_bytes(), &n.to_le_bytes()].concat()
    };
    let values = [
        [&8_u32.to_le_bytes()[..], &n.to_le_bytes()].concat(),
        array(0, n),
        array(4, n / 4),
        array(8, n / 8),
    ];
    for value in values {
        fs::write(workplace.path("m.gguf"), head(&value)).unwrap();
        let file = fs::OpenOptions::new().write(true).open(workplace.path("m.gguf")).unwrap();
        file.set_len(10 << 30).unwrap();
        for more in [&[][..], &["--allow-unsigned"]] {
            let ran = bounded(&workplace, &[&["verify-gguf", "m.gguf"], more].concat());
            ran.expect_code(1).expect_stderr("the header is larger than 64 MiB");
        }
    }
}

/// Not all that is there can be read: the process's own memory is a regular file, and no page of it is
/// where its first byte would be.
#[test]
fn a_file_that_cannot_be_read_is_2() {
    let workplace = workplace();
    let place = "/proc/self/mem";
    for command in [
        &["verify-audit", place][..],
        &["verify-annex-iv", place],
        &["verify-signature", "out/compliance/config.json", "--signature", place],
        &["verify-bundle", "out", "--trusted-keys", place],
        &["verify-bundle", "out", "--key", place],
    ] {
        bounded(&workplace, command).expect_code(2).expect_stderr(place);
    }
}

#[test]
fn names_that_lead_out_or_write_lines_of_their_own_are_refused_or_shown_escaped() {
    let workplace = workplace();
    let list = |name: &str| {
        let entry = serde_json::json!({"file": name, "sha256": "0".repeat(64)});
        let list = serde_json::json!({"artifacts": [entry]}).to_string();
        workplace.write("out/final_model/model_integrity.json", &list);
        bounded(&workplace, &["verify-integrity", "out/final_model"])
    };
    for name in ["../run.yaml", "/etc/hostname", "a/../../b", "a\0b", "", ".", "a//b", "a\\b"] {
        list(name).expect_code(1).expect_stderr("not a path inside the folder");
    }
    for (name, shown) in [
        ("a\nOK: all is well", r#""a\nOK: all is well""#),
        ("\u{202e}nosj.x", r#""\u{202e}nosj.x""#),
        ("tok\u{435}nizer.json", r#""tok\u{435}nizer.json""#),
        ("\u{1b}[2J", r#""\u{1b}[2J""#),
    ] {
        let ran = list(name).expect_code(6).expect_stderr(&format!("missing: {shown}"));
        assert!(!ran.stderr.contains("\nOK"), "{}", ran.stderr);
    }
}

#[test]
fn envelopes_with_too_many_signatures_or_strange_parts_are_no_envelopes() {
    let workplace = workplace();
    let path = "out/compliance/config.json.dsse.json";
    let good: serde_json::Value = serde_json::from_str(&workplace.read(path)).unwrap();
    let verify = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut envelope = good.clone();
        change(&mut envelope);
        workplace.write(path, &envelope.to_string());
        let args = ["verify-signature", "out/compliance/config.json", "--key", "k.pub"];
        bounded(&workplace, &args)
    };
    let one = good["signatures"][0].clone();
    let many = verify(&|e| e["signatures"] = vec![one.clone(); 1000].into());
    many.expect_code(1).expect_stderr("1000 signatures; expected 1 to 16");
    verify(&|e| e["payloadType"] = "text/plain".into()).expect_code(6);
    verify(&|e| e["signatures"][0]["sig"] = "AAAA".into()).expect_code(6);
    verify(&|e| drop(e["signatures"][0].as_object_mut().unwrap().remove("keyid"))).expect_code(6);
    verify(&|e| e["payload"] = "".into()).expect_code(6);
    // As others may write it: the same parts in other bytes are not what was signed here.
    verify(&|_| {}).expect_code(6).expect_stderr("exact form");
}
