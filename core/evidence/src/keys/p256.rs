//! P-256 keys, for model folders alone: other verifiers of OpenSSF Model Signing read these, and no
//! Ed25519. Everything else is signed by Ed25519.
//!
//! ECDSA with SHA-256, signatures in DER, deterministic (RFC 6979). A key is known by the SHA-256 of its
//! public PEM document, as that project's own tool has it.

use std::path::Path;

use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{DerSignature, SigningKey, VerifyingKey};
use p256::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, EncodePublicKey as _, LineEnding};

use super::KeyError;
use super::file::read_checked;
use crate::digest::sha256_hex;

/// A P-256 private key. Its memory is overwritten when it is dropped.
pub struct P256Key(SigningKey);

impl P256Key {
    /// Loads a PKCS#8 PEM file after the checks of every private key file; `None` when it has another
    /// key.
    ///
    /// # Errors
    /// As [`super::file::load_key_file`], but for what the file has.
    pub fn load(path: &Path) -> Result<Option<Self>, KeyError> {
        let text = read_checked(path)?;
        let start = text.find("-----BEGIN ").unwrap_or(0);
        Ok(SigningKey::from_pkcs8_pem(text[start..].trim()).ok().map(Self))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> P256PublicKey {
        P256PublicKey::of(*self.0.verifying_key())
    }

    /// The signature over `message`, in DER.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature: DerSignature = self.0.sign(message);
        signature.as_bytes().to_vec()
    }
}

/// A P-256 public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct P256PublicKey {
    key: VerifyingKey,
    fingerprint: String,
}

impl P256PublicKey {
    fn of(key: VerifyingKey) -> Self {
        // A point of the curve always has a document.
        let pem = key.to_public_key_pem(LineEnding::LF).unwrap_or_default();
        Self { key, fingerprint: sha256_hex(pem.as_bytes()) }
    }

    /// Reads a SubjectPublicKeyInfo PEM document.
    #[must_use]
    pub fn from_pem(text: &str) -> Option<Self> {
        let start = text.find("-----BEGIN ")?;
        VerifyingKey::from_public_key_pem(text[start..].trim()).ok().map(Self::of)
    }

    /// SHA-256 of its PEM document, in hex.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether `signature` is this key's over `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        DerSignature::from_bytes(signature).is_ok_and(|s| self.key.verify(message, &s).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::{P256Key, P256PublicKey};
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    #[test]
    fn keys_and_signatures_are_those_of_openssl() {
        let dir = tempfile::tempdir().unwrap();
        let openssl = |args: &[&str]| {
            let status = Command::new("openssl").args(args).current_dir(dir.path()).status();
            status.unwrap().success()
        };
        let curve = "ec_paramgen_curve:P-256";
        assert!(openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", "k"]));
        assert!(openssl(&["pkey", "-in", "k", "-pubout", "-out", "k.pub"]));
        let path = dir.path().join("k");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let key = P256Key::load(&path).unwrap().unwrap();
        let pem = std::fs::read_to_string(dir.path().join("k.pub")).unwrap();
        assert_eq!(P256PublicKey::from_pem(&pem).unwrap(), key.public());
        assert_eq!(key.public().fingerprint(), crate::digest::sha256_hex(pem.as_bytes()));
        let signature = key.sign(b"message");
        assert_eq!(signature, key.sign(b"message"), "deterministic");
        assert!(key.public().verifies(b"message", &signature));
        assert!(!key.public().verifies(b"massage", &signature));
        assert!(!key.public().verifies(b"message", &signature[1..]));
        let put = |name: &str, bytes: &[u8]| {
            forgelm_artifact::write::atomic(&dir.path().join(name), bytes).unwrap();
        };
        put("m", b"message");
        put("s", &signature);
        assert!(openssl(&["dgst", "-sha256", "-verify", "k.pub", "-signature", "s", "m"]));
        // Another kind of key is not one of these.
        assert!(openssl(&["genpkey", "-algorithm", "ed25519", "-out", "e"]));
        let other = dir.path().join("e");
        std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(P256Key::load(&other).unwrap().is_none());
    }
}
