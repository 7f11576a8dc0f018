//! The bytes of one audit line, and its HMAC.

use serde_json::Value;
use zeroize::{Zeroize as _, Zeroizing};

use crate::digest::{Digest32, hex, hmac_sha256, sha256};
use crate::secret::Secret;
use crate::text::python_json;

/// Keys of the envelope; a payload must not use them.
const RESERVED: [&str; 6] = ["timestamp", "run_id", "operator", "event", "prev_hash", "_hmac"];

/// The members of the envelope, in their order.
pub(super) struct Envelope<'a> {
    pub(super) timestamp: &'a str,
    pub(super) run_id: &'a str,
    pub(super) operator: &'a str,
    pub(super) event: &'a str,
    pub(super) prev_hash: &'a str,
}

/// The line without its newline. `Err` is the reserved key that the payload tried to set; a
/// payload `run_id` equal to the envelope's is left out, since it says nothing new.
pub(super) fn build(
    envelope: &Envelope<'_>,
    payload: &[(&str, Value)],
    hmac_key: Option<&Digest32>,
) -> Result<String, String> {
    let mut line = String::with_capacity(512);
    let head = [
        ("timestamp", envelope.timestamp),
        ("run_id", envelope.run_id),
        ("operator", envelope.operator),
        ("event", envelope.event),
        ("prev_hash", envelope.prev_hash),
    ];
    for (key, value) in head {
        member(&mut line, key, &Value::from(value));
    }
    for (key, value) in payload {
        if RESERVED.contains(key) {
            if *key == "run_id" && value.as_str() == Some(envelope.run_id) {
                continue;
            }
            return Err((*key).to_owned());
        }
        member(&mut line, key, value);
    }
    if let Some(key) = hmac_key {
        let tag = hex(&hmac_sha256(key, &[line.as_bytes(), b"}"]));
        member(&mut line, "_hmac", &Value::from(tag));
    }
    line.push('}');
    Ok(line)
}

fn member(line: &mut String, key: &str, value: &Value) {
    line.push_str(if line.is_empty() { "{" } else { ", " });
    line.push_str(&python_json(&Value::from(key)));
    line.push_str(": ");
    line.push_str(&python_json(value));
}

/// The key of one run's HMAC: SHA-256 of the secret followed by the run id.
pub(super) fn derive_hmac_key(secret: &Secret, run_id: &str) -> Zeroizing<Digest32> {
    let mut joined = Vec::with_capacity(secret.expose().len() + run_id.len());
    joined.extend_from_slice(secret.expose().as_bytes());
    joined.extend_from_slice(run_id.as_bytes());
    let key = Zeroizing::new(sha256(&joined));
    joined.zeroize();
    key
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Envelope, build, derive_hmac_key};
    use crate::digest::{Digest32, hex, sha256_hex};
    use crate::secret::Secret;

    fn first(key: Option<&Digest32>) -> String {
        let envelope = Envelope {
            timestamp: "2026-01-01T00:00:00.000001+00:00",
            run_id: "fg-0123456789ab",
            operator: "alice@host",
            event: "pipeline.initialized",
            prev_hash: "genesis",
        };
        build(&envelope, &[("model", json!("org/model")), ("trainer_type", json!("sft"))], key)
            .unwrap()
    }

    fn second(prev_hash: &str, key: Option<&Digest32>) -> String {
        let envelope = Envelope {
            timestamp: "2026-01-01T00:00:01.500000+00:00",
            run_id: "fg-0123456789ab",
            operator: "alice@host",
            event: "model.reverted",
            prev_hash,
        };
        let payload = [
            ("reason", json!("threshold")),
            ("detail", json!("perte élevée 2e-05")),
            ("x", json!(2e-5)),
            ("n", Value::Null),
            ("b", json!(true)),
        ];
        build(&envelope, &payload, key).unwrap()
    }

    #[test]
    fn lines_equal_the_vectors_of_the_specification() {
        let line = first(None);
        assert_eq!(
            line,
            r#"{"timestamp": "2026-01-01T00:00:00.000001+00:00", "run_id": "fg-0123456789ab", "operator": "alice@host", "event": "pipeline.initialized", "prev_hash": "genesis", "model": "org/model", "trainer_type": "sft"}"#
        );
        let head = "fd5fd88a467caab27a123e28a94b04b018487fff6c6498781ab3548ed803aeb9";
        assert_eq!(sha256_hex(line.as_bytes()), head);
        let line = second(head, None);
        assert_eq!(
            line,
            r#"{"timestamp": "2026-01-01T00:00:01.500000+00:00", "run_id": "fg-0123456789ab", "operator": "alice@host", "event": "model.reverted", "prev_hash": "fd5fd88a467caab27a123e28a94b04b018487fff6c6498781ab3548ed803aeb9", "reason": "threshold", "detail": "perte \u00e9lev\u00e9e 2e-05", "x": 2e-05, "n": null, "b": true}"#
        );
        assert_eq!(
            sha256_hex(line.as_bytes()),
            "c66ccf7f9561b05bc0f3d778608e636adbad56090ca7e21ae69d5db7e81fde3a"
        );
    }

    #[test]
    fn tagged_lines_equal_the_vectors_of_the_specification() {
        let secret = Secret::new("0123456789abcdef0123456789abcdef".to_owned()).unwrap();
        let key = derive_hmac_key(&secret, "fg-0123456789ab");
        assert_eq!(
            hex(key.as_ref()),
            "b8e1a5b0ab4918a71764832a9e6a3b2b56ebce5e7c56b5e36a963a9907149e9a"
        );
        let line = first(Some(&key));
        assert!(line.ends_with(
            r#", "_hmac": "930de3ed36c2fcab3f8f330f2f989efeeb887ffee99932f05d847e4c33d94d3f"}"#
        ));
        let head = "1f1a1f15deacda311411a11dcec3146acd8945dae76f9c51e145b5811484df88";
        assert_eq!(sha256_hex(line.as_bytes()), head);
        let line = second(head, Some(&key));
        assert!(line.ends_with(
            r#", "_hmac": "dfa03ffc89a004354a4dca13b7cf34ae9f5c56300536ca30ac28d64e5b501d83"}"#
        ));
        assert_eq!(
            sha256_hex(line.as_bytes()),
            "a9013e5adb52a1d0bf17ae2b73eaba8087b744a547cb91f18aeaee74068e5725"
        );
    }

    #[test]
    fn a_payload_cannot_shadow_the_envelope() {
        let envelope = Envelope {
            timestamp: "t",
            run_id: "fg-1",
            operator: "o",
            event: "e",
            prev_hash: "genesis",
        };
        for key in super::RESERVED {
            let error = build(&envelope, &[(key, json!("x"))], None);
            assert_eq!(error, Err(key.to_owned()));
        }
        let same = build(&envelope, &[("run_id", json!("fg-1"))], None).unwrap();
        assert_eq!(same.matches("run_id").count(), 1);
    }
}
