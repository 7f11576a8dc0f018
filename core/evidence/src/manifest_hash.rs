//! `metadata.manifest_hash`: a digest of a manifest that stands in the manifest itself.
//!
//! It finds accidental damage, and nothing more: whoever edits the file can compute it anew. A
//! signature is what holds.

use forgelm_artifact::json::{self, Style};
use serde_json::Value;

use crate::digest::sha256_hex;

/// Members of `metadata` that are no part of what is hashed.
const LEFT_OUT: [&str; 3] = ["manifest_hash", "manifest_signature", "manifest_hash_v2"];

/// The digest of profile `v1`: the document without those members (and without a `metadata` that is
/// empty then), as Python's `json.dumps` writes it with sorted keys and without blanks.
#[must_use]
pub fn manifest_hash(document: &Value) -> String {
    sha256_hex(json::python(&hashed(document, &LEFT_OUT[..2]), Style::MANIFEST_V1).as_bytes())
}

/// The digest of profile `rfc8785`, over the document without all three; `None` for a document that has
/// no canonical form.
#[must_use]
pub fn manifest_hash_canonical(document: &Value) -> Option<String> {
    let text = json::canonical(&hashed(document, &LEFT_OUT)).ok()?;
    Some(sha256_hex(text.as_bytes()))
}

fn hashed(document: &Value, left_out: &[&str]) -> Value {
    let mut document = document.clone();
    let Some(members) = document.as_object_mut() else { return document };
    let is_empty = members.get_mut("metadata").and_then(Value::as_object_mut).map(|metadata| {
        for key in left_out {
            metadata.shift_remove(*key);
        }
        metadata.is_empty()
    });
    if is_empty == Some(true) {
        members.shift_remove("metadata");
    }
    document
}

#[cfg(test)]
mod tests {
    use super::{manifest_hash, manifest_hash_canonical};
    use serde_json::{Value, json};

    /// The vectors of the compliance specification, section 10.1.
    #[test]
    fn the_published_vectors_of_both_profiles() {
        let document: Value = serde_json::from_str(
            r#"{"b":1.0,"a":{"lr":2e-05,"name":"é","n":null},"list":[3,1.5,true],"metadata":{"manifest_hash":"x"}}"#,
        )
        .unwrap();
        assert_eq!(
            manifest_hash(&document),
            "5ca428fb163886bf742cbc8a26293894ce8f97c9468a43265b2f32cacab20ae0"
        );
        assert_eq!(
            manifest_hash_canonical(&document).as_deref(),
            Some("38260dd22aa79b81be45e169bc9679fb37a416d20ec6c2d8c4934e2e980fc4e4")
        );
    }

    /// The example document of the specification, section 10.2.
    #[test]
    fn the_published_example_document_has_its_own_hash() {
        let text = include_str!("tests/annex_iv_upstream.json");
        let document: Value = serde_json::from_str(text).unwrap();
        assert_eq!(json!(manifest_hash(&document)), document["metadata"]["manifest_hash"]);
    }

    #[test]
    fn the_signature_pointer_is_not_hashed_and_every_other_member_is() {
        let plain = json!({"a": 1, "metadata": {"manifest_hash": "x"}});
        let signed = json!({"a": 1, "metadata": {"manifest_hash": "y", "manifest_signature": {}}});
        let other = json!({"a": 1, "metadata": {"manifest_hash": "x", "more": 1}});
        assert_eq!(manifest_hash(&plain), manifest_hash(&signed));
        assert_ne!(manifest_hash(&plain), manifest_hash(&other));
        assert_eq!(manifest_hash(&json!({"a": 1})), manifest_hash(&plain));
    }
}
