//! Signature envelopes: DSSE over in-toto statements.
//!
//! The envelope carries the exact bytes that were signed, so nothing has to be put into a
//! canonical form to verify it; a document is bound through its file digest in the statement.
//!
//! Sources: DSSE protocol and envelope v1.0 (secure-systems-lab/dsse); in-toto Statement v1.
//! Ours differs in one thing: an envelope that ForgeLM signed must be in the exact bytes that
//! [`Envelope::to_bytes`] writes, so that one changed byte anywhere in the file is noticed, also
//! in places that DSSE leaves unsigned (white space, key id hints). See [`verify`]. That holds for the
//! form of the `timestamps` member too; the tokens in it are an authority's own bytes, judged by
//! themselves: one that was changed is told and does not count ([`crate::timestamp`]).
//! Start reading at [`verify::check_envelope`].

pub mod statement;
pub mod verify;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::keys::{KeyError, SigningKey};
use crate::strict_json::{DOCUMENT_LIMITS, StrictJsonError, parse};
use crate::timestamp::attach;

/// The payload type of in-toto statements.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// What a signature file's name adds to the name of the file it signs.
pub const SUFFIX: &str = ".dsse.json";
/// Most signatures in one envelope.
pub const SIGNATURES_MAX: usize = 16;

/// The signed bytes of a payload: `"DSSEv1" SP LEN(type) SP type SP LEN(body) SP body`.
#[must_use]
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// One signature of an envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The hint at the key. Not signed, and it never decides trust.
    pub keyid: Option<String>,
    /// 64 bytes.
    pub sig: [u8; 64],
}

/// An envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The type of the payload.
    pub payload_type: String,
    /// The exact bytes that were signed.
    pub payload: Vec<u8>,
    /// The signatures.
    pub signatures: Vec<Signature>,
    /// Responses of time stamp authorities (RFC 3161, DER), each over one of the signatures. Not signed.
    pub timestamps: Vec<Vec<u8>>,
}

/// Why bytes are no envelope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct MalformedEnvelope {
    /// What was found and expected.
    pub reason: String,
    /// Whether this clearly was an envelope once: two of its three members are there. It is
    /// damaged then (exit 6), and not just another kind of file (exit 1).
    pub is_damaged: bool,
}

impl Envelope {
    /// Signs `payload` as an in-toto statement.
    ///
    /// # Errors
    /// As [`SigningKey::sign`].
    pub fn sign(payload: Vec<u8>, key: &SigningKey) -> Result<Self, KeyError> {
        let mut envelope = Self::unsigned(payload);
        envelope.add_signature(key)?;
        Ok(envelope)
    }

    /// An in-toto statement that nobody signed yet.
    pub(crate) fn unsigned(payload: Vec<u8>) -> Self {
        let (signatures, timestamps) = (Vec::new(), Vec::new());
        Self { payload_type: PAYLOAD_TYPE.to_owned(), payload, signatures, timestamps }
    }

    /// Adds the signature of a key, after those that are there.
    ///
    /// # Errors
    /// As [`SigningKey::sign`].
    pub(crate) fn add_signature(&mut self, key: &SigningKey) -> Result<(), KeyError> {
        let sig = key.sign(&pae(&self.payload_type, &self.payload))?;
        self.signatures.push(Signature { keyid: Some(key.id().to_string()), sig });
        Ok(())
    }

    /// The bytes of the envelope's file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        format!("{:#}\n", self.to_json()).into_bytes()
    }

    /// The envelope as a document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let signatures: Vec<Value> = self
            .signatures
            .iter()
            .map(|signature| {
                let sig = STANDARD.encode(signature.sig);
                match &signature.keyid {
                    Some(keyid) => json!({"keyid": keyid, "sig": sig}),
                    None => json!({"sig": sig}),
                }
            })
            .collect();
        let mut document = json!({
            "payload": STANDARD.encode(&self.payload),
            "payloadType": self.payload_type,
            "signatures": signatures,
        });
        if !self.timestamps.is_empty() {
            document["timestamps"] = attach::to_json(&self.timestamps);
        }
        document
    }

    /// Reads an envelope: at most 16 MiB, 16 signatures and 64 levels; no duplicate keys; standard
    /// or URL-safe base64, with or without padding; unknown members are ignored.
    ///
    /// # Errors
    /// [`MalformedEnvelope`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MalformedEnvelope> {
        Self::parse_inner(bytes).map_err(|bad| {
            let (reason, is_limit) = match bad {
                Bad::Part(reason) => (reason, false),
                Bad::Limit(reason) => (reason, true),
            };
            let has = |name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
            let names: [&[u8]; 3] = [b"\"payload\"", b"\"payloadType\"", b"\"signatures\""];
            let n_found = names.iter().filter(|name| has(name)).count();
            MalformedEnvelope { reason, is_damaged: n_found >= 2 && !is_limit }
        })
    }

    fn parse_inner(bytes: &[u8]) -> Result<Self, Bad> {
        let document = parse(bytes, DOCUMENT_LIMITS).map_err(|e| match e {
            StrictJsonError::TooLarge { .. } | StrictJsonError::TooDeep { .. } => {
                Bad::Limit(e.to_string())
            }
            StrictJsonError::DuplicateKey { .. } | StrictJsonError::Invalid { .. } => {
                Bad::Part(e.to_string())
            }
        })?;
        let text = |value: &Value, key: &str| {
            let found = value.get(key).and_then(Value::as_str).map(str::to_owned);
            found.ok_or_else(|| format!("`{key}` is not text"))
        };
        let payload_type = text(&document, "payloadType")?;
        let payload = decode(&text(&document, "payload")?)
            .ok_or_else(|| "`payload` is not base64".to_owned())?;
        let Some(Value::Array(entries)) = document.get("signatures") else {
            return Err("`signatures` is not a list".to_owned().into());
        };
        if entries.is_empty() || entries.len() > SIGNATURES_MAX {
            let n = entries.len();
            let reason = format!("{n} signatures; expected 1 to {SIGNATURES_MAX}");
            return Err(if n == 0 { Bad::Part(reason) } else { Bad::Limit(reason) });
        }
        let mut signatures = Vec::with_capacity(entries.len());
        for entry in entries {
            let keyid = match entry.get("keyid") {
                None | Some(Value::Null) => None,
                Some(Value::String(keyid)) => Some(keyid.clone()).filter(|k| !k.is_empty()),
                Some(_) => return Err("`keyid` is not text".to_owned().into()),
            };
            let sig = decode(&text(entry, "sig")?)
                .and_then(|sig| <[u8; 64]>::try_from(sig).ok())
                .ok_or_else(|| "`sig` is not the base64 of 64 bytes".to_owned())?;
            signatures.push(Signature { keyid, sig });
        }
        let timestamps = attach::of_envelope(&document);
        Ok(Self { payload_type, payload, signatures, timestamps })
    }
}

/// Why the parts of an envelope are none.
enum Bad {
    /// One is not what it must be.
    Part(String),
    /// There is more than is read, so that nothing was compared.
    Limit(String),
}

impl From<String> for Bad {
    fn from(reason: String) -> Self {
        Self::Part(reason)
    }
}

/// Standard or URL-safe base64, with whole padding or none.
fn decode(text: &str) -> Option<Vec<u8>> {
    let engines = [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD];
    engines.iter().find_map(|engine| engine.decode(text).ok())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    use super::{Envelope, PAYLOAD_TYPE, pae};
    use crate::digest::sha256_hex;
    use crate::keys::tests::rfc_8032_key;

    const PAYLOAD: &[u8] = br#"{"_type":"https://in-toto.io/Statement/v1","predicate":{},"predicateType":"https://example.invalid/forgelm/manifest/v1","subject":[{"digest":{"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},"name":"annex_iv_metadata.json"}]}"#;

    #[test]
    fn the_envelope_equals_the_vector_of_the_specification() {
        assert_eq!(PAYLOAD.len(), 253);
        let signed = pae(PAYLOAD_TYPE, PAYLOAD);
        assert!(signed.starts_with(b"DSSEv1 28 application/vnd.in-toto+json 253 {"));
        assert_eq!(
            sha256_hex(&signed),
            "0cdad33216ecc973d4fa3cc8c5d4744d31bc21aeaa0cf17c3cb9b9d3fee2df5b"
        );
        let envelope = Envelope::sign(PAYLOAD.to_vec(), &rfc_8032_key()).unwrap();
        assert_eq!(
            STANDARD.encode(envelope.signatures[0].sig),
            "c/cYeTGuZbJgn2c2q0P6OdgIEETTil1JcJSt/KjkdRrajHF0G+2ntv4/5KJ0kWSFJ1jv9GMICiOyUb55yE51Aw=="
        );
        assert_eq!(Envelope::parse(&envelope.to_bytes()).unwrap(), envelope);
    }

    #[test]
    fn foreign_envelopes_are_read() {
        let sig = rfc_8032_key().sign(&pae(PAYLOAD_TYPE, PAYLOAD)).unwrap();
        let text = format!(
            r#"{{"payloadType":"{PAYLOAD_TYPE}","extra":[],"payload":"{}","signatures":[{{"sig":"{}"}}]}}"#,
            URL_SAFE_NO_PAD.encode(PAYLOAD),
            URL_SAFE_NO_PAD.encode(sig),
        );
        let envelope = Envelope::parse(text.as_bytes()).unwrap();
        assert_eq!((envelope.payload.as_slice(), envelope.signatures[0].sig), (PAYLOAD, sig));
        assert_eq!(envelope.signatures[0].keyid, None);
    }

    #[test]
    fn malformed_envelopes_are_told_from_damaged_ones() {
        let good = Envelope::sign(PAYLOAD.to_vec(), &rfc_8032_key()).unwrap().to_bytes();
        let good = String::from_utf8(good).unwrap();
        let damaged = [
            good.replace("\"payload\"", "\"payloae\""),
            good.replace("\"sig\"", "\"sih\""),
            good.replacen('[', "(", 1),
            good.replace("==\"", "=\""),
            good.replace("\"payloadType\"", "\"payload\""),
        ];
        for text in damaged {
            let error = Envelope::parse(text.as_bytes()).unwrap_err();
            assert!(error.is_damaged, "{error}");
        }
        for text in ["", "{}", "[1]", "hello", &"[".repeat(100_000)] {
            assert!(!Envelope::parse(text.as_bytes()).unwrap_err().is_damaged);
        }
        let many = vec![r#"{"sig":""}"#; 17].join(",");
        let many = format!(r#"{{"payload":"","payloadType":"x","signatures":[{many}]}}"#);
        assert!(Envelope::parse(many.as_bytes()).unwrap_err().reason.contains("17 signatures"));
    }
}
