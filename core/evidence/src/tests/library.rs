//! Signed libraries: what is accepted, and what each change to one is told as.

use std::fs;
use std::path::Path;

use super::signer;
use crate::class::Class;
use crate::digest::sha256_hex;
use crate::documents::evidence::Builder;
use crate::dsse::verify::{SignatureReport, SignatureState};
use crate::keys::trust::{Revocation, TrustedKey, TrustedKeys, Usage};
use crate::library::{LibraryClaims, SignError, sign_library};
use crate::signature::{default_type, verify_library, verify_signature};

const BYTES: &[u8] = b"a library";

/// A signed library, and the keys that trust seed 1.
fn signed(dir: &Path) -> (std::path::PathBuf, TrustedKeys) {
    let path = dir.join("x.so");
    forgelm_artifact::write::atomic(&path, BYTES).unwrap();
    let builder = Builder { version: "0.1.0".to_owned(), commit: None, target: "t".to_owned() };
    let claims = LibraryClaims {
        sha256: &sha256_hex(BYTES),
        name: "x",
        version: "1.0.0",
        builder: &builder,
        signed_at: "2026-06-01T12:00:00+00:00",
    };
    let beside = sign_library(&path, &claims, &signer(1)).unwrap();
    assert_eq!(beside, dir.join("x.so.dsse.json"));
    (path, TrustedKeys::of_public_keys([signer(1).key.public()]))
}

fn of(path: &Path, bytes: &[u8], keys: &TrustedKeys) -> SignatureReport {
    verify_library(path, &sha256_hex(bytes), keys)
}

#[test]
fn a_signed_library_verifies_by_its_bytes_and_as_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (path, keys) = signed(dir.path());
    let report = of(&path, BYTES, &keys);
    assert_eq!((report.state, report.trusted), (SignatureState::Valid, true));
    assert_eq!(report.keyid.unwrap(), signer(1).key.id().as_str());
    assert_eq!(report.signed_at.unwrap(), "2026-06-01T12:00:00+00:00");
    assert_eq!(verify_signature(&path, None, &keys, default_type(&path)).class(), Class::Accepted);
}

#[test]
fn one_flipped_byte_of_library_or_envelope_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, keys) = signed(dir.path());
    for i in 0..BYTES.len() {
        let mut bytes = BYTES.to_vec();
        bytes[i] ^= 1;
        let report = of(&path, &bytes, &keys);
        assert_eq!(report.state, SignatureState::SubjectMismatch, "byte {i}");
        assert!(report.reason.unwrap().contains("changed after signing"));
    }
    let envelope = dir.path().join("x.so.dsse.json");
    let whole = fs::read(&envelope).unwrap();
    for i in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[i] ^= 1;
        forgelm_artifact::write::atomic(&envelope, &bytes).unwrap();
        let report = of(&path, BYTES, &keys);
        assert_ne!(report.class, Class::Accepted, "byte {i} of the envelope");
        assert!(!report.trusted || report.state != SignatureState::Valid, "byte {i}");
    }
}

#[test]
fn keys_that_do_not_count_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = signed(dir.path());
    let with = |change: &dyn Fn(&mut TrustedKey)| {
        let mut key = TrustedKey::unlimited(signer(1).key.public(), None);
        change(&mut key);
        let mut keys = TrustedKeys::default();
        keys.add(key);
        of(&path, BYTES, &keys).state
    };
    assert_eq!(with(&|_| {}), SignatureState::Valid);
    let other = of(&path, BYTES, &TrustedKeys::of_public_keys([signer(2).key.public()]));
    assert_eq!((other.state, other.class), (SignatureState::UntrustedKey, Class::NotCompared));
    let wrong_usage = with(&|key| key.usages = [Usage::Manifest, Usage::Run].into());
    assert_eq!(wrong_usage, SignatureState::UntrustedKey);
    let at = "2026-07-01T00:00:00Z".parse().unwrap();
    let revoked = with(&|key| {
        let reason = "compromised".to_owned();
        key.revocation = Some(Revocation { at, keeps_earlier: false, reason });
    });
    assert_eq!(revoked, SignatureState::Revoked);
    let late = with(&|key| key.not_after = Some("2026-01-01T00:00:00Z".parse().unwrap()));
    assert_eq!(late, SignatureState::Expired);
}

#[test]
fn the_signature_of_another_library_and_none_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (path, keys) = signed(dir.path());
    let other = dir.path().join("y.so");
    assert_eq!(of(&other, BYTES, &keys).state, SignatureState::Absent);
    let envelope = fs::read(dir.path().join("x.so.dsse.json")).unwrap();
    forgelm_artifact::write::atomic(&dir.path().join("y.so.dsse.json"), &envelope).unwrap();
    let moved = of(&other, BYTES, &keys);
    assert_eq!(moved.state, SignatureState::SubjectMismatch);
    assert!(moved.reason.unwrap().contains("the signature is for x.so, not for this file"));
    // What is said about a document is not said about a library.
    let as_document = verify_signature(&path, None, &keys, default_type(Path::new("x.json")));
    assert_eq!(as_document.signature.state, SignatureState::SubjectMismatch);
}

#[test]
fn a_name_that_no_statement_can_have_is_refused() {
    let builder = Builder { version: String::new(), commit: None, target: String::new() };
    let claims = LibraryClaims {
        sha256: &sha256_hex(BYTES),
        name: "x",
        version: "1",
        builder: &builder,
        signed_at: "",
    };
    let refused = sign_library(Path::new("a\\b.so"), &claims, &signer(1)).unwrap_err();
    assert!(matches!(refused, SignError::Name { .. }));
}
