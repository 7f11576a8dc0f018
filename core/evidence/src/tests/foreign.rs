//! Keys, vectors and envelopes that others made (`tools/golden/keys.py`): RFC 8032, OpenSSL's
//! encrypted key files, an envelope of securesystemslib.

use std::path::{Path, PathBuf};

use forgelm_artifact::write::atomic;
use serde_json::Value;

use crate::digest::{hex, unhex32};
use crate::dsse::Envelope;
use crate::dsse::statement::PredicateType;
use crate::dsse::verify::{SignatureState, check_envelope};
use crate::keys::file::load_key_file;
use crate::keys::tests::rfc_8032_key;
use crate::keys::trust::TrustedKeys;
use crate::keys::{KeyError, PublicKey, SigningKey};
use crate::secret::Secret;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/keys").join(name)
}

fn vectors() -> Value {
    serde_json::from_slice(&std::fs::read(golden("ed25519.json")).unwrap()).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    let byte = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

#[test]
fn the_vectors_of_rfc_8032_are_signed_and_verified() {
    let vectors = vectors();
    let vectors = vectors["rfc_8032"].as_array().unwrap();
    assert_eq!(vectors.len(), 4);
    for vector in vectors {
        let seed = unhex32(vector["seed"].as_str().unwrap().as_bytes()).unwrap();
        let key = SigningKey::from_seed(&seed);
        let message = bytes(&vector["message"]);
        let signature: [u8; 64] = bytes(&vector["signature"]).try_into().unwrap();
        assert_eq!(hex(&key.public().to_bytes()), vector["public_key"].as_str().unwrap());
        assert_eq!(key.sign(&message).unwrap(), signature);
        assert!(key.public().verifies(&message, &signature));
        for i in 0..64 {
            let mut changed = signature;
            changed[i] ^= 1;
            assert!(!key.public().verifies(&message, &changed), "byte {i}");
        }
    }
}

#[test]
fn public_keys_of_small_order_or_with_a_second_name_are_refused() {
    let vectors = vectors();
    let lists = &vectors["refused_public_keys"];
    for (name, n) in [("small_order", 8), ("not_canonical", 38), ("not_on_the_curve", 13)] {
        let keys = lists[name].as_array().unwrap();
        assert_eq!(keys.len(), n, "{name}");
        for key in keys {
            assert!(PublicKey::from_bytes(&bytes(key)).is_none(), "{name}: {key}");
        }
    }
}

/// Each fulfils the equation for a reader that multiplies by the cofactor and takes any S: see the
/// generator, which checks that.
#[test]
fn signatures_that_only_a_loose_reader_accepts_are_refused() {
    let vectors = vectors();
    let vectors = &vectors["refused_signatures"];
    let public = PublicKey::from_bytes(&bytes(&vectors["public_key"])).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let signature: [u8; 64] = bytes(&case["signature"]).try_into().unwrap();
        assert!(!public.verifies(&bytes(&vectors["message"]), &signature), "{}", case["what"]);
    }
}

#[test]
fn encrypted_keys_of_openssl_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let passphrase = Secret::new("correct horse battery staple".to_owned()).unwrap();
    let wrong = Secret::new("correct horse".to_owned()).unwrap();
    for name in ["openssl_pbkdf2.pem", "openssl_scrypt.pem", "openssl_sha512.pem"] {
        let path = dir.path().join(name);
        atomic(&path, &std::fs::read(golden(name)).unwrap()).unwrap();
        // Git keeps no mode 0600.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).unwrap();
        let key = load_key_file(&path, Some(&passphrase)).expect(name).key;
        assert_eq!(key.id(), rfc_8032_key().id(), "{name}");
        let error = load_key_file(&path, Some(&wrong)).err().unwrap();
        assert!(matches!(error, KeyError::PassphraseWrong { .. }), "{name}: {error}");
    }
}

/// `tools/golden/dsse_securesystemslib.py`, which also verifies every envelope of a run of ours.
#[test]
fn two_signatures_of_securesystemslib_with_our_key_ids_are_verified_as_they_are() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/dsse");
    let file = std::fs::read(golden.join("two_signatures.dsse.json")).unwrap();
    let key = |seed: u8| SigningKey::from_seed(&[seed; 32]).public();
    let state = |bytes: &[u8], seeds: &[u8], threshold: usize| {
        let mut keys = TrustedKeys::of_public_keys(seeds.iter().map(|seed| key(*seed)));
        keys.set_threshold(threshold);
        let kind = PredicateType::ComplianceManifest;
        check_envelope(bytes, "x", &keys, None, kind).report.state
    };
    assert_eq!(state(&file, &[1, 2], 2), SignatureState::Valid);
    assert_eq!(state(&file, &[2], 1), SignatureState::Valid);
    assert_eq!(state(&file, &[1], 2), SignatureState::UntrustedKey);
    assert_eq!(state(&file, &[3], 1), SignatureState::UntrustedKey);
    let mut envelope = Envelope::parse(&file).unwrap();
    envelope.payload[30] ^= 1;
    assert_eq!(state(&envelope.to_bytes(), &[1, 2], 1), SignatureState::Invalid);
}

#[test]
fn an_envelope_of_securesystemslib_is_verified_and_refused_when_changed() {
    let file = std::fs::read(golden("securesystemslib.dsse.json")).unwrap();
    let keys = TrustedKeys::of_public_keys([rfc_8032_key().public()]);
    let check = |bytes: &[u8]| {
        check_envelope(bytes, "x", &keys, None, PredicateType::ComplianceManifest).report
    };
    // Its `keyid` is a name of the signer's choice, which is not taken for our key's.
    let mut envelope = Envelope::parse(&file).unwrap();
    assert_eq!(envelope.signatures[0].keyid.as_deref(), Some("a-hint"));
    assert_eq!(check(&file).state, SignatureState::Invalid);
    envelope.signatures[0].keyid = None;
    assert_eq!(check(&envelope.to_bytes()).state, SignatureState::Valid);
    envelope.payload[20] ^= 1;
    assert_eq!(check(&envelope.to_bytes()).state, SignatureState::UntrustedKey);
}
