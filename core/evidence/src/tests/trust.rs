//! Keys that expire, are revoked, replaced, or trusted for something else only.

use forgelm_artifact::UtcTime;
use serde_json::json;

use super::signer;
use crate::class::Class;
use crate::dsse::statement::{PredicateType, Statement, Subject};
use crate::dsse::verify::{SignatureReport, SignatureState, check_envelope};
use crate::dsse::{Envelope, PAYLOAD_TYPE, Signature, pae};
use crate::keys::trust::{Revocation, TrustedKey, TrustedKeys, Usage};

const KIND: PredicateType = PredicateType::TrainingRun;

fn time(text: &str) -> UtcTime {
    text.parse().unwrap()
}

/// A statement of a foreign builder, signed at noon on 2026-06-01.
fn payload() -> Vec<u8> {
    let subject = Subject { name: "a".to_owned(), sha256: "0".repeat(64) };
    let predicate = json!({"signed_at": "2026-06-01T12:00:00+00:00"});
    Statement::new(vec![subject], KIND, predicate).to_bytes()
}

fn check(keys: &TrustedKeys, envelope: &Envelope) -> SignatureReport {
    check_envelope(&envelope.to_bytes(), "e.json", keys, None, KIND).report
}

fn with(change: impl FnOnce(&mut TrustedKey)) -> SignatureReport {
    let mut key = TrustedKey::unlimited(signer(1).key.public(), Some("ci".to_owned()));
    change(&mut key);
    let mut keys = TrustedKeys::default();
    keys.add(key);
    check(&keys, &Envelope::sign(payload(), &signer(1).key).unwrap())
}

#[test]
fn fault_097_expired_and_revoked_keys_are_6_and_the_wrong_usage_is_1() {
    let good = with(|_| {});
    assert_eq!((good.state, good.label.as_deref()), (SignatureState::Valid, Some("ci")));
    let inside = with(|key| {
        key.not_before = Some(time("2026-01-01T00:00:00Z"));
        key.not_after = Some(time("2027-01-01T00:00:00Z"));
    });
    assert_eq!((inside.state, inside.warnings.len()), (SignatureState::Valid, 1));
    let late = with(|key| key.not_after = Some(time("2026-06-01T11:59:59Z")));
    assert_eq!((late.state, late.class), (SignatureState::Expired, Class::Different));
    let early = with(|key| key.not_before = Some(time("2026-06-01T12:00:01Z")));
    assert_eq!(early.state, SignatureState::Expired);
    let revoked = |at: &str, reason: &str| {
        with(|key| {
            key.revocation = Some(Revocation {
                at: time(at),
                keeps_earlier: matches!(reason, "superseded" | "retired"),
                reason: reason.to_owned(),
            });
        })
    };
    assert_eq!(revoked("2026-07-01T00:00:00Z", "superseded").state, SignatureState::Valid);
    let after = revoked("2026-05-01T00:00:00Z", "superseded");
    assert_eq!((after.state, after.class), (SignatureState::Revoked, Class::Different));
    assert_eq!(revoked("2026-07-01T00:00:00Z", "compromised").state, SignatureState::Revoked);
    let other = with(|key| key.usages.retain(|usage| *usage != Usage::Run));
    assert_eq!((other.state, other.class), (SignatureState::UntrustedKey, Class::NotCompared));
    assert!(other.reason.unwrap().contains("training-run/v1"));
}

#[test]
fn a_threshold_counts_distinct_keys() {
    let message = pae(PAYLOAD_TYPE, &payload());
    let by = |seed: u8| Signature {
        keyid: Some(signer(seed).key.id().to_string()),
        sig: signer(seed).key.sign(&message).unwrap(),
    };
    let envelope = |signatures: Vec<Signature>| Envelope {
        payload_type: PAYLOAD_TYPE.to_owned(),
        payload: payload(),
        signatures,
        timestamps: Vec::new(),
    };
    let mut keys = TrustedKeys::of_public_keys([1, 2, 3].map(|seed| signer(seed).key.public()));
    keys.set_threshold(2);
    assert_eq!(check(&keys, &envelope(vec![by(1), by(3)])).state, SignatureState::Valid);
    let twice = check(&keys, &envelope(vec![by(1), by(1)]));
    assert_eq!(twice.state, SignatureState::UntrustedKey);
    assert!(twice.reason.unwrap().contains("1 of the 2"));
    // A stranger's signature beside a trusted one does no harm and no good.
    let with_stranger = envelope(vec![by(9), by(2)]);
    assert_eq!(check(&keys, &with_stranger).state, SignatureState::UntrustedKey);
    keys.set_threshold(1);
    assert_eq!(check(&keys, &with_stranger).state, SignatureState::Valid);
}

#[test]
fn other_payloads_under_a_genuine_signature_are_not_statements() {
    let keys = TrustedKeys::of_public_keys([signer(1).key.public()]);
    let signed = |payload_type: &str, payload: &[u8]| {
        let sig = signer(1).key.sign(&pae(payload_type, payload)).unwrap();
        let signatures = vec![Signature { keyid: None, sig }];
        let payload_type = payload_type.to_owned();
        check(
            &keys,
            &Envelope {
                payload_type,
                payload: payload.to_vec(),
                signatures,
                timestamps: Vec::new(),
            },
        )
    };
    assert_eq!(signed(PAYLOAD_TYPE, &payload()).state, SignatureState::Valid);
    assert_eq!(signed("text/plain", &payload()).state, SignatureState::Malformed);
    for payload in ["hello", "{}", &"[".repeat(100_000)] {
        let report = signed(PAYLOAD_TYPE, payload.as_bytes());
        assert_eq!((report.state, report.class), (SignatureState::Malformed, Class::NotCompared));
    }
    let text = String::from_utf8(payload()).unwrap();
    let doubled = text.replacen('{', "{\"_type\":\"x\",", 1);
    let report = signed(PAYLOAD_TYPE, doubled.as_bytes());
    assert_eq!(report.state, SignatureState::Malformed);
    assert!(report.reason.unwrap().contains("appears twice"));
}
