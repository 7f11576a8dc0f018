use std::fs;
use std::path::{Path, PathBuf};

use forgelm_artifact::gguf::Value;
use forgelm_artifact::gguf::build::Builder;
use forgelm_artifact::write::atomic as put;
use forgelm_tensor::Dtype;

use super::{GgufOptions, GgufReport, sidecar_path, sidecar_text, verify_gguf};
use crate::class::Class;
use crate::documents::evidence::Builder as MadeBy;
use crate::dsse::statement::PredicateType;
use crate::dsse::verify::SignatureState;
use crate::keys::trust::TrustedKeys;
use crate::sign::{FileClaims, sign_file, signable};
use crate::tests::signer;

fn bytes() -> Vec<u8> {
    Builder::new()
        .text("general.architecture", "llama")
        .metadata("llama.block_count", Value::U32(1))
        .tensor("token_embd.weight", Dtype::F32, &[4, 8], vec![1; 128])
        .tensor("output_norm.weight", Dtype::F32, &[8], vec![2; 32])
        .to_bytes()
}

fn model(dir: &Path) -> PathBuf {
    let path = dir.join("m.gguf");
    put(&path, &bytes()).unwrap();
    path
}

fn sign(path: &Path, kind: PredicateType) {
    let builder = MadeBy { version: "1".to_owned(), commit: None, target: "t".to_owned() };
    let claims = FileClaims {
        kind,
        builder: &builder,
        operator: "alice@host",
        signed_at: "2026-06-01T12:00:00+00:00",
    };
    let signer = signer(1);
    sign_file(&signable(path, kind, false, &signer).unwrap(), &claims, &signer).unwrap();
}

fn write_sidecar(path: &Path) {
    put(&sidecar_path(path), sidecar_text(path).unwrap().as_bytes()).unwrap();
}

fn trusting(seed: u8) -> GgufOptions {
    let keys = TrustedKeys::of_public_keys([signer(seed).key.public()]);
    GgufOptions { keys, require_signature: true, allow_unsigned: false }
}

fn plain(path: &Path) -> GgufReport {
    verify_gguf(path, &GgufOptions::default())
}

#[test]
fn a_file_that_was_compared_with_nothing_is_not_accepted_unless_that_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = model(dir.path());
    let report = plain(&path);
    assert_eq!((report.class, report.tensor_count), (Class::NotCompared, Some(2)));
    assert!(report.reason.as_ref().unwrap().contains("compared with nothing"));
    let allowed = GgufOptions { allow_unsigned: true, ..GgufOptions::default() };
    let report = verify_gguf(&path, &allowed);
    assert_eq!((report.class, report.notes.len()), (Class::Accepted, 1));
    assert!(report.sha256_actual.is_none(), "nothing asked for it");
}

#[test]
fn a_digest_beside_the_file_is_compared_in_either_case_and_its_form_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = model(dir.path());
    write_sidecar(&path);
    let digest = crate::digest::sha256_hex(&bytes());
    let text = fs::read_to_string(sidecar_path(&path)).unwrap();
    assert_eq!(text, format!("{digest}  m.gguf\n"));
    let report = plain(&path);
    assert_eq!((report.class, report.sidecar_match), (Class::Accepted, Some(true)));
    assert_eq!(report.to_json()["checks"]["sha256_actual"], digest.as_str());
    let class = |text: &[u8]| {
        put(&sidecar_path(&path), text).unwrap();
        plain(&path).class
    };
    assert_eq!(class(digest.to_uppercase().as_bytes()), Class::Accepted);
    assert_eq!(class(format!("{digest} *m.gguf").as_bytes()), Class::Accepted);
    let other = format!("{}  m.gguf\n", "0".repeat(64));
    assert_eq!(class(other.as_bytes()), Class::Different);
    let long = " ".repeat(5000);
    for bad in ["", "\n", "abc", &digest[..63], &format!("{digest}0"), &"g".repeat(64), &long] {
        assert_eq!(class(bad.as_bytes()), Class::NotCompared, "{bad:?}");
    }
    assert_eq!(class(b"\xff\xfe"), Class::NotCompared);
    // A key was named: a digest that anybody can write does not do.
    write_sidecar(&path);
    assert_eq!(verify_gguf(&path, &trusting(1)).class, Class::NotCompared);
}

#[test]
fn the_header_is_read_and_what_contradicts_the_file_is_6_or_with_its_own_digest_1() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let good = bytes();
    let class = |bytes: &[u8]| {
        put(&path, bytes).unwrap();
        let _ = fs::remove_file(sidecar_path(&path));
        let alone = plain(&path);
        write_sidecar(&path);
        let whole = plain(&path);
        assert_eq!(whole.sidecar_match, alone.magic_ok.then_some(true));
        (alone.class, whole.class)
    };
    let no_file = (Class::NotCompared, Class::NotCompared);
    assert_eq!(class(b""), no_file);
    assert_eq!(class(b"GGML and more"), no_file);
    assert_eq!(
        class(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        no_file
    );
    let mut version = good.clone();
    version[4] = 9;
    assert_eq!(class(&version), no_file, "of a version that is not read");
    for cut in [5, 30, good.len() / 2, good.len() - 33] {
        assert_eq!(class(&good[..cut]), (Class::Different, Class::NotCompared), "cut to {cut}");
    }
    let mut trailing = good.clone();
    trailing.extend([0; 64]);
    assert_eq!(class(&trailing), (Class::Different, Class::NotCompared));
    let mut count = good.clone();
    count[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(class(&count), (Class::Different, Class::NotCompared));
    let mut second = good.clone();
    second[4] = 2;
    assert_eq!(class(&second), (Class::NotCompared, Class::Accepted), "version 2 is read");
}

#[test]
fn a_signature_is_what_holds_and_every_byte_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = model(dir.path());
    sign(&path, PredicateType::ModelExport);
    assert_eq!(verify_gguf(&path, &trusting(1)).class, Class::Accepted);
    let report = verify_gguf(&path, &trusting(2));
    assert_eq!(report.class, Class::NotCompared);
    assert_eq!(report.signature.unwrap().state, SignatureState::UntrustedKey);
    let good = bytes();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        put(&path, &bad).unwrap();
        let report = verify_gguf(&path, &trusting(1));
        // A first word that is another makes it another kind of file.
        let expected = if at < 4 { Class::NotCompared } else { Class::Different };
        assert_eq!(report.class, expected, "byte {at}: {:?}", report.to_lines());
    }
    put(&path, &good).unwrap();
    let envelope = dir.path().join("m.gguf.dsse.json");
    fs::remove_file(&envelope).unwrap();
    sign(&path, PredicateType::ComplianceManifest);
    let report = verify_gguf(&path, &trusting(1));
    assert_eq!(report.signature.unwrap().state, SignatureState::SubjectMismatch);
    assert_eq!(report.class, Class::Different);
}

#[test]
fn what_is_no_file_is_named_and_nothing_waits() {
    let dir = tempfile::tempdir().unwrap();
    let path = model(dir.path());
    let link = dir.path().join("link.gguf");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for (path, says) in [
        (link, "symbolic link"),
        (dir.path().to_owned(), "folder"),
        (dir.path().join("none.gguf"), "no such file"),
        (PathBuf::from("/dev/zero"), "device"),
    ] {
        let report = plain(&path);
        assert_eq!(report.class, Class::NotCompared, "{}", path.display());
        assert!(report.reason.as_ref().unwrap().contains(says), "{:?}", report.to_lines());
        assert_eq!(report.to_json()["success"], false);
    }
    fs::create_dir(sidecar_path(&path)).unwrap();
    assert!(plain(&path).reason.unwrap().contains("m.gguf.sha256: a folder"));
}
