//! The signature over what is sent, so that a receiver can tell who said it and when.
//!
//! ```text
//! X-ForgeLM-Timestamp: 2026-01-01T00:00:00.000000+00:00
//! X-ForgeLM-Signature: ed25519=<key id>:<base64 of 64 bytes>
//! ```
//!
//! The signed bytes are `forgelm-webhook-v1`, a line end, the timestamp, a line end, the body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Bytes to their Ed25519 signature, or why there is none.
type Sign = dyn Fn(&[u8]) -> Result<[u8; 64], String> + Send + Sync;

/// What signs, without the key itself: it stays with who holds it.
pub struct Signer {
    keyid: String,
    sign: Box<Sign>,
}

/// The header with the time.
pub const TIMESTAMP: &str = "X-ForgeLM-Timestamp";
/// The header with the signature.
pub const SIGNATURE: &str = "X-ForgeLM-Signature";

/// What is signed.
#[must_use]
pub fn signed_bytes(timestamp: &str, body: &[u8]) -> Vec<u8> {
    [b"forgelm-webhook-v1\n", timestamp.as_bytes(), b"\n", body].concat()
}

impl Signer {
    /// Of the key with this id.
    #[must_use]
    pub fn new(
        keyid: String,
        sign: impl Fn(&[u8]) -> Result<[u8; 64], String> + Send + Sync + 'static,
    ) -> Self {
        Self { keyid, sign: Box::new(sign) }
    }

    /// The value of the header.
    ///
    /// # Errors
    /// Why the key gave no signature.
    pub fn header(&self, timestamp: &str, body: &[u8]) -> Result<String, String> {
        let signature = (self.sign)(&signed_bytes(timestamp, body))?;
        Ok(format!("ed25519={}:{}", self.keyid, STANDARD.encode(signature)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Signer, signed_bytes};

    #[test]
    fn the_header_names_the_key_and_signs_time_and_body() {
        assert_eq!(signed_bytes("T", b"{}"), b"forgelm-webhook-v1\nT\n{}");
        let signer = Signer::new("ab12".to_owned(), |bytes| {
            let mut signature = [0; 64];
            signature[..bytes.len()].copy_from_slice(bytes);
            Ok(signature)
        });
        let header = signer.header("T", b"{}").unwrap();
        // base64 of "forgelm-webhook-v1\nT\n{}" and zeros
        assert!(header.starts_with("ed25519=ab12:Zm9yZ2VsbS13ZWJob29rLXYxClQKe30A"), "{header}");
    }
}
