//! `forgelm doctor`: what it finds on a sound machine, and with one thing wrong at a time; and what a
//! run says of a device that cannot be used.

use crate::support::{Ran, Workplace};
use forgelm_kernels_emulator as emulator;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const JSON: [&str; 4] = ["doctor", "--offline", "--output-format", "json"];

fn ran(command: &mut Command) -> Ran {
    command.output().unwrap().into()
}

/// The lines of a name.
fn named<'a>(document: &'a Value, name: &str) -> Vec<&'a Value> {
    let checks = document["checks"].as_array().unwrap().iter();
    checks.filter(|check| check["name"] == name).collect()
}

/// The one line of a name.
#[track_caller]
fn check<'a>(document: &'a Value, name: &str) -> &'a Value {
    let found = named(document, name);
    assert_eq!(found.len(), 1, "{name}: {document:#}");
    found[0]
}

/// Panics unless a line has this status, and this text in its detail.
#[track_caller]
fn expect(document: &Value, name: &str, status: &str, detail: &str) {
    let check = check(document, name);
    let found = check["detail"].as_str().unwrap();
    assert!(check["status"] == status && found.contains(detail), "{status}, {detail}: {check:#}");
}

fn details(document: &Value) -> Vec<&str> {
    let checks = document["checks"].as_array().unwrap().iter();
    checks.map(|check| check["detail"].as_str().unwrap()).collect()
}

/// What was found with these variables set.
fn with(workplace: &Workplace, variables: &[(&str, &str)]) -> (Ran, Value) {
    let ran = ran(workplace.command(&JSON).envs(variables.iter().copied()));
    let document = ran.json();
    (ran, document)
}

/// The folder and everything in it, by name and length.
fn files(dir: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        found.push((entry.path().display().to_string(), metadata.len()));
        if metadata.is_dir() {
            found.extend(files(&entry.path()));
        }
    }
    found.sort();
    found
}

#[test]
fn every_check_has_its_line_and_the_summary_counts_them() {
    let workplace = Workplace::new();
    let before = files(&workplace.path("."));
    let (ran, document) = with(&workplace, &[]);
    assert_eq!(files(&workplace.path(".")), before, "nothing is left behind, and no key is made");
    let checks = document["checks"].as_array().unwrap();
    let mut names: Vec<&str> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    // Lines of devices are there where devices are, those of MPI where there is one.
    let of_devices = ["gpu.", "cuda.cu", "cuda.nv", "mpi.co"];
    names.retain(|name| !of_devices.iter().any(|begin| name.starts_with(begin)));
    let expected = [
        "forgelm.install",
        "cpu.kernels",
        "memory.room",
        "clock.time",
        "disk.workspace",
        "folder.workspace",
        "folder.cache",
        "folder.hub_cache",
        "environment.variables",
        "operator.identity",
        "signing.key",
        "signing.trust_store",
        "audit.secret",
        "plugins.libraries",
        "mpi.launcher",
        "tools.pip",
        "hf_hub.offline_cache",
        "cuda.runtime",
    ];
    assert_eq!(names, expected);
    for check in checks {
        let mut keys: Vec<&String> = check.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["detail", "extras", "name", "status"], "{check:#}");
        assert!(!check["detail"].as_str().unwrap().contains('\n'), "{check:#}");
    }
    for status in ["pass", "warn", "fail"] {
        let n = checks.iter().filter(|check| check["status"] == status).count();
        assert_eq!(document["summary"][status], n, "{status}");
    }
    assert_eq!(document["summary"]["crashed"], 0);
    // The disk is as full as it is.
    let n_failed = usize::from(check(&document, "disk.workspace")["status"] == "fail");
    assert_eq!(document["summary"]["fail"], n_failed, "{document:#}");
    assert_eq!(ran.code, i32::try_from(n_failed).unwrap());
    assert_eq!(document["success"], n_failed == 0);
    expect(&document, "cpu.kernels", "pass", "a product is right on: ");
    expect(&document, "operator.identity", "pass", "`tester@example`, from `FORGELM_OPERATOR`");
    expect(&document, "signing.key", "warn", "none yet; the first run makes `");
    expect(&document, "signing.trust_store", "warn", "verifiers trust nobody");
    expect(&document, "folder.workspace", "pass", "a file can be written");
    expect(&document, "folder.cache", "pass", "not there yet, and can be made");
    expect(&document, "plugins.libraries", "pass", "5 loaded, ");
    expect(&document, "hf_hub.offline_cache", "warn", "there is no such folder");
}

#[test]
fn without_a_driver_the_line_says_so_and_nothing_fails() {
    let (_, document) = with(&Workplace::new(), &[]);
    if document.to_string().contains("gpu.0") {
        println!("skipped: this machine has a device");
        return;
    }
    let expected = "no NVIDIA driver was found on this machine (`libcuda`): the processor computes";
    expect(&document, "cuda.runtime", "warn", expected);
    let of_cuda = document["checks"].as_array().unwrap().iter().filter(|check| {
        let name = check["name"].as_str().unwrap();
        name.starts_with("cuda.") || name.starts_with("gpu.")
    });
    assert_eq!(of_cuda.count(), 1, "what was not tried has no line: {document:#}");
}

#[test]
fn the_text_has_a_line_for_each_check_and_hints_below() {
    let workplace = Workplace::new();
    let (_, document) = with(&workplace, &[]);
    let text = ran(&mut workplace.command(&["doctor", "--offline"])).stdout;
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("forgelm doctor"));
    let glyphs = [("pass", '+'), ("warn", '!'), ("fail", 'x')];
    for check in document["checks"].as_array().unwrap() {
        let status = check["status"].as_str().unwrap();
        let glyph = glyphs.iter().find(|(other, _)| *other == status).unwrap().1;
        let line = lines.next().unwrap();
        let name = check["name"].as_str().unwrap();
        assert!(line.starts_with(&format!("  [{glyph} {status}] {name} ")), "{line}, {check:#}");
        if let (Some(hint), true) = (check["extras"]["hint"].as_str(), status != "pass") {
            assert_eq!(lines.next(), Some(format!("      hint: {hint}").as_str()));
        }
    }
    let summary = &document["summary"];
    let expected = format!(
        "{} passed, {} warnings, {} failed",
        summary["pass"], summary["warn"], summary["fail"]
    );
    assert_eq!(lines.next(), Some(expected.as_str()));
    assert_eq!(lines.next(), None);
}

#[test]
fn a_key_signs_or_the_line_says_why_not() {
    let workplace = Workplace::new();
    let made = workplace.forgelm(&["keygen", "--out", "a.key", "--output-format", "json"]).json();
    let key = workplace.path("a.key").display().to_string();
    let named_key = ("FORGELM_SIGNING_KEY_FILE", key.as_str());
    let (_, document) = with(&workplace, &[named_key]);
    expect(&document, "signing.key", "pass", "signs, as key ");
    assert_eq!(check(&document, "signing.key")["extras"]["keyid"], made["keyid"]);

    fs::set_permissions(workplace.path("a.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let (ran, document) = with(&workplace, &[named_key]);
    expect(&document, "signing.key", "fail", "mode 0644 lets others use the private key");
    let hint = check(&document, "signing.key")["extras"]["hint"].as_str().unwrap();
    assert!(hint.starts_with("chmod 600 "), "{hint}");
    assert_eq!(document["exit_code"], 1);
    ran.expect_code(1).expect_stderr("checks failed: ").expect_stderr("signing.key");

    let (ran, document) = with(&workplace, &[("FORGELM_SIGNING_KEY", "no-key-at-all")]);
    expect(&document, "signing.key", "fail", "`FORGELM_SIGNING_KEY`: neither a PEM private key");
    assert!(!ran.stdout.contains("no-key-at-all"), "a secret is shown");

    workplace.write("in_the_way", "a file where the folder of the key should be");
    let place = workplace.path("in_the_way").display().to_string();
    let (_, document) = with(&workplace, &[("XDG_CONFIG_HOME", &place)]);
    expect(&document, "signing.key", "fail", "cannot read the key file: ");
    // Nobody makes a folder there, not even root.
    let (_, document) = with(&workplace, &[("XDG_CONFIG_HOME", "/proc/nobody")]);
    expect(
        &document,
        "signing.key",
        "fail",
        "none, and `/proc/nobody/forgelm/signing.key` cannot be made",
    );
}

#[test]
fn a_trust_store_is_read_and_compared_with_the_key_that_signs() {
    let workplace = Workplace::new();
    let keygen = |name: &str| {
        workplace.forgelm(&["keygen", "--out", name]).expect_code(0);
        workplace.path(name).display().to_string()
    };
    let (own, other) = (keygen("own.key"), keygen("other.key"));
    let trust = |name: &str, more: &[&str]| {
        let public = format!("{name}.pub");
        let args = ["keys", "trust", &public, "--usage", "run", "--trusted-keys", "trusted.json"];
        workplace.forgelm(&[&args[..], more].concat()).expect_code(0);
    };
    let store = workplace.path("trusted.json").display().to_string();
    let looked = |key: &str| {
        with(&workplace, &[("FORGELM_TRUSTED_KEYS", &store), ("FORGELM_SIGNING_KEY_FILE", key)]).1
    };
    expect(&looked(&own), "signing.trust_store", "fail", "trusted.json");
    trust("own.key", &[]);
    expect(&looked(&own), "signing.trust_store", "pass", "1 key");
    expect(&looked(&other), "signing.trust_store", "warn", "does not believe runs");
    trust("other.key", &["--not-after", "2026-01-02"]);
    expect(&looked(&own), "signing.trust_store", "warn", "is expired");
    expect(&looked(&other), "signing.trust_store", "warn", "does not believe runs");
}

#[test]
fn secrets_are_measured_and_never_shown() {
    let workplace = Workplace::new();
    let (short, long) = ("a-secret-word", "0123456789abcdef0123456789abcdef");
    let token = ("HF_TOKEN", "hf_1234567890");
    let (ran, document) = with(&workplace, &[("FORGELM_AUDIT_SECRET", short), token]);
    expect(&document, "audit.secret", "warn", "13 bytes; expected at least 32");
    let variables = &check(&document, "environment.variables")["extras"]["variables"];
    let expected = ["<set, 13 chars>", "<set, 13 chars>", "tester@example"].map(Value::from);
    let names = ["FORGELM_AUDIT_SECRET", "HF_TOKEN", "FORGELM_OPERATOR"];
    assert_eq!(names.map(|name| variables[name].clone()), expected);
    assert!(!ran.stdout.contains(short) && !ran.stdout.contains("hf_123"), "{}", ran.stdout);
    let (_, document) = with(&workplace, &[("FORGELM_AUDIT_SECRET", long)]);
    expect(&document, "audit.secret", "pass", "32 bytes");
}

#[test]
fn a_cache_that_cannot_be_written_to_fails_where_models_are_fetched() {
    let workplace = Workplace::new();
    workplace.write("in_the_way", "a file");
    let place = workplace.path("in_the_way").display().to_string();
    let variables = [("XDG_CACHE_HOME", place.as_str()), ("HF_ENDPOINT", "http://127.0.0.1:9")];
    let (ran, document) = with(&workplace, &variables);
    expect(&document, "folder.cache", "warn", "cannot be written to: ");
    assert!(!ran.stderr.contains("folder.cache"), "{}", ran.stderr);
    let online = ["doctor", "--output-format", "json"];
    let online = ran_with(&workplace, &online, &variables);
    expect(&online.json(), "folder.cache", "fail", "cannot be written to: ");
    online.expect_code(1).expect_stderr("folder.cache");
}

fn ran_with(workplace: &Workplace, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    ran(workplace.command(args).envs(variables.iter().copied()))
}

#[test]
fn a_library_that_is_none_is_named() {
    let workplace = Workplace::new();
    workplace.write("more/broken.so", "no library");
    let place = workplace.path("more").display().to_string();
    let (ran, document) = with(&workplace, &[("FORGELM_PLUGIN_PATH", &place)]);
    let lines = named(&document, "plugins.libraries");
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert_eq!((&lines[0]["status"], &lines[1]["status"]), (&json!("fail"), &json!("pass")));
    assert!(lines[0]["detail"].as_str().unwrap().contains("more/broken.so"), "{:#}", lines[0]);
    ran.expect_code(1).expect_stderr("plugins.libraries");
}

/// A hub that answers each question with this status.
fn hub(status: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let n = stream.read(&mut request).unwrap();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8_lossy(&request[..n]).into_owned()
    });
    (address, asked)
}

#[test]
fn the_hub_is_asked_where_runs_ask_it_and_offline_it_is_not() {
    let workplace = Workplace::new();
    let online = ["doctor", "--output-format", "json"];
    let looked = |endpoint: &str, more: &[(&str, &str)]| {
        let variables = [&[("HF_ENDPOINT", endpoint)], more].concat();
        ran_with(&workplace, &online, &variables).json()
    };
    let (address, asked) = hub("200 OK");
    let document = looked(&address, &[("HF_TOKEN", "hf_1234567890")]);
    expect(&document, "hf_hub.reachable", "pass", "http://127.0.0.1");
    let asked = asked.join().unwrap();
    assert!(asked.starts_with("HEAD /api/models HTTP/1.1\r\n"), "{asked}");
    assert!(!asked.contains("hf_123"), "a token is sent to ask whether the hub is there");

    let (address, _asked) = hub("503 Busy");
    expect(&looked(&address, &[]), "hf_hub.reachable", "warn", "answers with status 503");
    expect(&looked("http://127.0.0.1:9", &[]), "hf_hub.reachable", "warn", "no connection");
    expect(
        &looked("somewhere", &[]),
        "hf_hub.reachable",
        "fail",
        "`HF_ENDPOINT` is not an address",
    );
    let offline = looked("http://127.0.0.1:9", &[("HF_HUB_OFFLINE", "1")]);
    assert!(named(&offline, "hf_hub.reachable").is_empty(), "{offline:#}");
    assert_eq!(named(&offline, "hf_hub.offline_cache").len(), 1);
}

/// The library that makes the emulated device a bad one, compiled; `None`, aloud, where there is no
/// emulated device.
#[expect(clippy::print_stderr, reason = "a test says what it skips")]
fn spoiler() -> Option<TempDir> {
    if let Some(reason) = emulator::unavailable() {
        eprintln!("skipped: {reason}");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/e2e/bad_device.c");
    let compiler = Command::new("cc")
        .args(["-std=gnu11", "-O1", "-fPIC", "-shared", "-o"])
        .args([&dir.path().join("bad_device.so"), &source])
        .arg("-ldl")
        .output()
        .unwrap();
    assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
    Some(dir)
}

/// The program on a device of which this is wrong.
fn on_bad_device(spoiler: &TempDir, bad: &str, workplace: &Workplace, args: &[&str]) -> Ran {
    let libraries = emulator::library_folder();
    ran(workplace
        .command(args)
        .env("FORGELM_CUDA_PATH", libraries)
        .env("EMULATED_DRIVER", libraries.join("libcuda.so.1"))
        .env("LD_PRELOAD", spoiler.path().join("bad_device.so"))
        .env("BAD_DEVICE", bad))
}

#[test]
fn attention_by_cudnn_is_tried_and_what_differs_is_a_warning() {
    let Some(_spoiler) = spoiler() else { return };
    let workplace = Workplace::new();
    let folders = [emulator::library_folder().to_owned(), emulator::cudnn_folder()];
    let folders = std::env::join_paths(folders).unwrap().into_string().unwrap();
    let tried = |fault: &str| {
        let fault = ("FORGELM_EMULATOR_CUDNN_FAULT", fault);
        with(&workplace, &[("FORGELM_CUDA_PATH", &folders), fault]).1
    };
    let document = tried("0");
    expect(&document, "cuda.cudnn", "pass", "forward of 8 heads of 128 over 2 is as our own");
    assert_eq!(check(&document, "cuda.cudnn")["extras"]["version"], "9.28.0");
    let wrong_number = "1";
    let document = tried(wrong_number);
    expect(&document, "cuda.cudnn", "warn", "column 5 of `out` is ");
    expect(&document, "cuda.cudnn", "warn", "our own kernels compute attention");
    let no_plan = "6";
    let detail = "it has no plan for 8 heads of 128 over 2: a plan: status 3000: the stand-in for \
                  cuDNN does not take it: our own kernels compute attention";
    expect(&tried(no_plan), "cuda.cudnn", "pass", detail);
}

#[test]
fn a_device_has_its_line_with_what_it_is_and_that_it_counts_right() {
    let Some(spoiler) = spoiler() else { return };
    let workplace = Workplace::new();
    let document = on_bad_device(&spoiler, "", &workplace, &JSON).json();
    expect(&document, "cuda.runtime", "pass", "1 CUDA device; the driver knows CUDA 12.8");
    let device = check(&document, "gpu.0");
    expect(
        &document,
        "gpu.0",
        "pass",
        "forgelm emulated device, compute capability 9.0, 4.0 GiB of 4.0 GiB free; kernels: the image \
         built for sm_90a; 4 products tried, all right",
    );
    let extras = &device["extras"];
    assert_eq!(extras["vram_bytes"], 4_u64 << 30);
    assert_eq!(extras["vram_gib"], 4.0);
    assert_eq!(extras["capability"], "9.0");
    let products = extras["products"].as_array().unwrap();
    assert!(products.len() == 4 && products.iter().all(|product| product["is_right"] == true));
    expect(&document, "cuda.cublaslt", "pass", "libcublasLt.so.12");
    assert_eq!(named(&document, "cuda.nvrtc").len(), 1);
    expect(&document, "cuda.cudnn", "pass", "our own kernels compute attention");

    let document = on_bad_device(&spoiler, "two", &workplace, &JSON).json();
    expect(&document, "cuda.runtime", "pass", "2 CUDA devices");
    for name in ["gpu.0", "gpu.1"] {
        expect(&document, name, "pass", "one of two, compute capability 9.0");
    }
}

#[test]
fn a_device_that_counts_wrong_does_not_open_or_is_too_old_fails() {
    let Some(spoiler) = spoiler() else { return };
    let workplace = Workplace::new();
    for (bad, name, detail) in [
        ("wrong", "gpu.0", "a product in float32 by our own kernels is wrong in 1 of 1920 numbers"),
        ("old", "gpu.0", "cuda:0 (an old device) has compute capability 7.5; the kernels need 8.0"),
        ("closed", "gpu.0", "cuda:0: opening the device failed: CUDA_ERROR_OUT_OF_MEMORY"),
        ("driver", "cuda.runtime", "cannot be started: CUDA_ERROR_NOT_INITIALIZED"),
    ] {
        let ran = on_bad_device(&spoiler, bad, &workplace, &JSON);
        let document = ran.json();
        expect(&document, name, "fail", detail);
        let hint = check(&document, name)["extras"]["hint"].as_str().unwrap();
        assert!(hint.contains("`training.device: cpu` computes on the processor"), "{hint}");
        ran.expect_code(1).expect_stderr(name);
        let n_devices =
            details(&document).iter().filter(|text| text.contains("capability")).count();
        assert_eq!(n_devices, usize::from(bad == "wrong" || bad == "old"), "{document:#}");
    }
}

/// Lines of the audit log that say so.
fn fallbacks(workplace: &Workplace) -> Vec<Value> {
    let lines = workplace.json_lines("out/audit_log.jsonl");
    lines.into_iter().filter(|line| line["event"] == "training.device_fallback").collect()
}

fn short_run() -> Workplace {
    let workplace = Workplace::new();
    for (from, to) in [
        ("max_steps: 12", "max_steps: 1"),
        ("eval_steps: 4", "eval_steps: 1"),
        ("save_steps: 4", "save_steps: 1"),
    ] {
        workplace.edit_config(from, to);
    }
    workplace
}

const WARNING: &str = "warning: the processor computes, because the device cannot be used: ";

#[test]
fn a_run_says_aloud_and_records_that_its_device_cannot_be_used() {
    let Some(spoiler) = spoiler() else { return };
    for (bad, reason) in [("old", "7.5"), ("closed", "CUDA_ERROR_OUT_OF_MEMORY")] {
        let workplace = short_run();
        let ran = on_bad_device(&spoiler, bad, &workplace, &["--config", "run.yaml", "--quiet"]);
        let ran = ran.expect_code(0).expect_stderr(WARNING).expect_stderr(reason);
        assert_eq!(ran.stderr.matches(WARNING).count(), 1, "{}", ran.stderr);
        let lines = fallbacks(&workplace);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0]["reason"].as_str().unwrap().contains(reason), "{}", lines[0]);
        assert!(lines[0]["kernels"].as_str().unwrap().starts_with("cpu/"), "{}", lines[0]);
        workplace.forgelm(&["verify-audit", "out/audit_log.jsonl"]).expect_code(0);
    }
}

#[test]
fn a_run_says_nothing_aloud_where_there_is_no_device() {
    let workplace = short_run();
    let ran = workplace.forgelm(&["--config", "run.yaml", "--log-level", "DEBUG"]).expect_code(0);
    if ran.stderr.contains("cuda:0/") {
        println!("skipped: this machine has a device");
        return;
    }
    assert!(!ran.stderr.contains(WARNING), "{}", ran.stderr);
    ran.expect_stderr("(`libcuda`): the processor computes");
    assert!(fallbacks(&workplace).is_empty());
}

#[test]
fn scoring_says_aloud_that_the_device_cannot_be_used_and_not_where_there_is_none() {
    let workplace = Workplace::new();
    workplace.write("in.jsonl", &json!({"text": "a word"}).to_string());
    let args = ["score", "--model", "model", "--input", "in.jsonl", "--output", "out.jsonl"];
    let plain = workplace.forgelm(&args).expect_code(0);
    assert!(!plain.stderr.contains(WARNING), "{}", plain.stderr);
    let Some(spoiler) = spoiler() else { return };
    let bad = on_bad_device(&spoiler, "closed", &workplace, &args).expect_code(0);
    assert_eq!(bad.stderr.matches(WARNING).count(), 1, "{}", bad.stderr);
}
