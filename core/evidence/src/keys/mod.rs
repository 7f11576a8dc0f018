//! Ed25519 keys: ids, files, where a run looks for its key, and whom a verifier trusts.
//!
//! Rules (RFC 8032 and RFC 8410): pure Ed25519; 32-byte seeds and public keys, 64-byte signatures;
//! verification is strict (small-order points, non-canonical encodings and S >= L are refused);
//! the public key is always derived from the seed. Secret types have no Debug, Display or serde.
//! Start reading at [`lookup::find_signing_key`] and [`trust::TrustedKeys`].

pub mod file;
pub mod lookup;
pub mod p256;
pub(crate) mod pem;
mod sealed;
pub mod store;
pub mod succession;
pub mod trust;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use ed25519_dalek::{Signer as _, VerifyingKey};
use zeroize::Zeroizing;

use crate::digest::{hex, sha256, unhex32};
use crate::secret::Secret;

/// The first 12 bytes of every Ed25519 SubjectPublicKeyInfo; the 32 key bytes follow (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0];

/// The id of a key: lowercase hex SHA-256 of its 44-byte SubjectPublicKeyInfo.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

impl KeyId {
    /// Reads 64 lowercase hex characters.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        unhex32(text.as_bytes()).map(|_| Self(text.to_owned()))
    }

    /// The 64 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An Ed25519 public key that is a canonical encoding of a point of large order.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

impl PublicKey {
    /// Reads 32 raw bytes; `None` when they are no usable key.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 32] = bytes.try_into().ok()?;
        // The library keeps the bytes of a second name as they came, so they are looked at here.
        let key = VerifyingKey::from_bytes(bytes).ok().filter(|_| is_reduced(bytes))?;
        (!key.is_weak()).then_some(Self(key))
    }

    /// Reads a SubjectPublicKeyInfo PEM document.
    #[must_use]
    pub fn from_pem(text: &str) -> Option<Self> {
        let der = pem::decode(text, "PUBLIC KEY")?;
        Self::from_bytes(der.strip_prefix(&SPKI_PREFIX)?)
    }

    /// The SubjectPublicKeyInfo PEM document, as `openssl pkey -pubout` writes it.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode(&self.spki(), "PUBLIC KEY").to_string()
    }

    /// The 32 raw bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The key id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        KeyId(hex(&sha256(&self.spki())))
    }

    fn spki(&self) -> [u8; 44] {
        let mut der = [0; 44];
        der[..12].copy_from_slice(&SPKI_PREFIX);
        der[12..].copy_from_slice(self.0.as_bytes());
        der
    }

    /// Whether `signature` is this key's over `message`, under the strict rules.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.0.verify_strict(message, &signature).is_ok()
    }
}

/// Whether the coordinate y of an encoded point is below p = 2^255 - 19, so that it has one name.
fn is_reduced(point: &[u8; 32]) -> bool {
    point[31] | 0x80 != 0xff || point[1..31].iter().any(|b| *b != 0xff) || point[0] < 0xed
}

/// What signs elsewhere: a program, and behind it a security module or a key service.
pub trait SignElsewhere: Send + Sync {
    /// The raw signature over a message: 64 bytes.
    ///
    /// # Errors
    /// Why there is none, for a person.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String>;
}

/// An Ed25519 private key: elsewhere, or here, in memory that is overwritten when it is dropped, as is
/// that of each copy.
#[derive(Clone)]
pub struct SigningKey(Place);

#[derive(Clone)]
enum Place {
    Here(ed25519_dalek::SigningKey),
    Elsewhere { public: PublicKey, signs: Arc<dyn SignElsewhere> },
}

impl SigningKey {
    /// The key of a 32-byte seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Place::Here(ed25519_dalek::SigningKey::from_bytes(seed)))
    }

    /// The key whose public half is `public`, used by asking. Every answer is verified.
    #[must_use]
    pub fn elsewhere(public: PublicKey, signs: Arc<dyn SignElsewhere>) -> Self {
        Self(Place::Elsewhere { public, signs })
    }

    /// A new key from the operating system's generator.
    ///
    /// # Errors
    /// [`KeyError::Random`] when the system has no randomness to give.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(|_| KeyError::Random)?;
        Ok(Self::from_seed(&seed))
    }

    /// The public half: derived from the seed, or as it was named.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        match &self.0 {
            Place::Here(key) => PublicKey(key.verifying_key()),
            Place::Elsewhere { public, .. } => public.clone(),
        }
    }

    /// The key id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.public().id()
    }

    /// The deterministic signature over `message`.
    ///
    /// # Errors
    /// [`KeyError::Elsewhere`] if the key is elsewhere, and gave none or one of another key.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], KeyError> {
        match &self.0 {
            Place::Here(key) => Ok(key.sign(message).to_bytes()),
            Place::Elsewhere { public, signs } => {
                let bytes = signs.sign(message).map_err(|reason| KeyError::Elsewhere { reason })?;
                let signature = <[u8; 64]>::try_from(bytes.as_slice()).map_err(|_| {
                    let reason =
                        format!("{} bytes came; expected the 64 of a signature", bytes.len());
                    KeyError::Elsewhere { reason }
                })?;
                if public.verifies(message, &signature) {
                    return Ok(signature);
                }
                let keyid = public.id();
                let reason = format!("the signature is not one of the public key {keyid}");
                Err(KeyError::Elsewhere { reason })
            }
        }
    }

    pub(crate) fn to_pem(
        &self,
        passphrase: Option<&Secret>,
    ) -> Result<Zeroizing<String>, KeyError> {
        match &self.0 {
            Place::Here(key) => pem::encode_private(key.as_bytes(), passphrase),
            Place::Elsewhere { .. } => {
                Err(KeyError::Elsewhere { reason: "the private key is not here".to_owned() })
            }
        }
    }
}

/// Where a signing key came from; part of every signed statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOrigin {
    /// Named by a flag, a variable or the configuration.
    Provisioned,
    /// Made by ForgeLM on first use.
    AutoGenerated,
}

impl KeyOrigin {
    /// The word used in documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provisioned => "provisioned",
            Self::AutoGenerated => "auto_generated",
        }
    }
}

/// A signing key with what a statement says about it.
pub struct RunSigner {
    /// The key.
    pub key: SigningKey,
    /// Where it came from.
    pub origin: KeyOrigin,
    /// A name for people.
    pub label: Option<String>,
}

impl RunSigner {
    /// As predicates name it.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "keyid": self.key.id().as_str(),
            "key_origin": self.origin.as_str(),
            "label": self.label,
        })
    }
}

/// Why a key cannot be used. None of these is ever answered by going on unsigned.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No file there.
    #[error("`{}`: no such key file\n  hint: `forgelm keygen --out {}` makes one", path.display(), path.display())]
    Missing {
        /// The path asked for.
        path: PathBuf,
    },
    /// A symbolic link, a folder, a device.
    #[error("`{}`: {found}; expected a regular file", path.display())]
    NotRegular {
        /// The path asked for.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Someone else's file.
    #[error("`{}`: owned by user {uid}; expected the user who runs this, or root", path.display())]
    Owner {
        /// The path asked for.
        path: PathBuf,
        /// The owner.
        uid: u32,
    },
    /// Others may read it.
    #[error(
        "`{}`: mode {mode:04o} lets others use the private key; expected 0600\n  hint: chmod 600 {}",
        path.display(), path.display()
    )]
    Permissions {
        /// The path asked for.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key.
    #[error("{place}: {detail}")]
    Malformed {
        /// File or variable.
        place: String,
        /// What was found and expected; never the text itself.
        detail: &'static str,
    },
    /// It is encrypted.
    #[error(
        "{place}: the private key is encrypted, and no passphrase was given\n  hint: put it into \
         the variable `FORGELM_SIGNING_KEY_PASSPHRASE`"
    )]
    PassphraseMissing {
        /// File or variable.
        place: String,
    },
    /// It is encrypted with another passphrase.
    #[error(
        "{place}: the passphrase of `FORGELM_SIGNING_KEY_PASSPHRASE` does not open the private key, \
         or the key is damaged"
    )]
    PassphraseWrong {
        /// File or variable.
        place: String,
    },
    /// It cannot be called so.
    #[error(
        "the label {label} is not usable; expected one line of at most 100 printable characters"
    )]
    Label {
        /// As given, quoted.
        label: String,
    },
    /// A key must never be overwritten.
    #[error("`{}`: exists already; a key is never overwritten", path.display())]
    Exists {
        /// The path asked for.
        path: PathBuf,
    },
    /// There is no place for an automatic key.
    #[error(
        "no signing key is configured and there is no home folder to keep one in\n  hint: `--signing-key FILE`"
    )]
    NoPlace,
    /// What signs elsewhere did not.
    #[error("the program of `signing.command` gave no signature: {reason}")]
    Elsewhere {
        /// Why.
        reason: String,
    },
    /// The system's generator failed.
    #[error("the operating system gave no random bytes")]
    Random,
    /// The file system refused.
    #[error("`{}`: cannot {action} the key file", path.display())]
    Io {
        /// The path asked for.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl KeyError {
    /// Whether the world refused (exit 2) rather than the user having asked for something wrong
    /// (exit 1).
    #[must_use]
    pub const fn is_runtime(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Random | Self::Elsewhere { .. } => true,
            Self::Missing { .. }
            | Self::NotRegular { .. }
            | Self::Owner { .. }
            | Self::Permissions { .. }
            | Self::Malformed { .. }
            | Self::PassphraseMissing { .. }
            | Self::PassphraseWrong { .. }
            | Self::Label { .. }
            | Self::Exists { .. }
            | Self::NoPlace => false,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{KeyId, PublicKey, SignElsewhere, SigningKey};
    use crate::digest::{hex, unhex32};

    /// The key of RFC 8032, test 1.
    pub(crate) fn rfc_8032_key() -> SigningKey {
        let seed = b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        SigningKey::from_seed(&unhex32(seed).unwrap())
    }

    #[test]
    fn the_first_vector_of_rfc_8032_holds() {
        let key = rfc_8032_key();
        assert_eq!(
            hex(&key.public().to_bytes()),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        assert_eq!(
            key.id().as_str(),
            "06e3fd8fda29bb60ab59557de61edb0aecdb231134be30e75b455f8e1b792fa9"
        );
        let signature = key.sign(b"").unwrap();
        assert_eq!(hex(&signature[..8]), "e5564300c360ac72");
        assert!(key.public().verifies(b"", &signature));
        assert!(!key.public().verifies(b"x", &signature));
    }

    #[test]
    fn a_key_elsewhere_signs_only_with_what_its_public_half_verifies() {
        struct Gives(Result<Vec<u8>, String>);
        impl SignElsewhere for Gives {
            fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, String> {
                self.0.clone()
            }
        }
        let public = rfc_8032_key().public();
        let good = rfc_8032_key().sign(b"m").unwrap();
        let asked = |gives| {
            SigningKey::elsewhere(public.clone(), std::sync::Arc::new(Gives(gives))).sign(b"m")
        };
        assert_eq!(asked(Ok(good.to_vec())).unwrap(), good);
        let of_another = SigningKey::from_seed(&[7; 32]).sign(b"m").unwrap().to_vec();
        for (gives, says) in [
            (Ok(of_another), "not one of the public key 06e3fd8f"),
            (Ok(good[..63].to_vec()), "63 bytes came"),
            (Ok(vec![]), "0 bytes came"),
            (Err("the token is locked".to_owned()), "the token is locked"),
        ] {
            let error = asked(gives).unwrap_err();
            assert!(error.is_runtime() && error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn weak_and_non_canonical_public_keys_are_refused() {
        // The identity point (y = 1), and the same point written as y = 1 + p.
        let mut identity = [0; 32];
        identity[0] = 1;
        assert!(PublicKey::from_bytes(&identity).is_none());
        let mut non_canonical = [0xff; 32];
        non_canonical[0] = 0xee;
        non_canonical[31] = 0x7f;
        assert!(PublicKey::from_bytes(&non_canonical).is_none());
        assert!(PublicKey::from_bytes(&[0; 31]).is_none());
    }

    #[test]
    fn a_signature_with_s_not_reduced_is_refused() {
        let key = rfc_8032_key();
        let mut signature = key.sign(b"m").unwrap();
        // Adding the group order L to S keeps the equation true; only a strict reader sees it.
        let l = unhex32(b"edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
        let mut carry = 0;
        for (s, l) in signature[32..].iter_mut().zip(l.unwrap()) {
            let sum = u16::from(*s) + u16::from(l) + carry;
            *s = u8::try_from(sum & 0xff).unwrap();
            carry = sum >> 8;
        }
        assert!(!key.public().verifies(b"m", &signature));
    }

    #[test]
    fn public_keys_and_ids_go_through_text() {
        let public = rfc_8032_key().public();
        let text = public.to_pem();
        assert!(text.starts_with("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA"));
        assert_eq!(PublicKey::from_pem(&text).unwrap(), public);
        assert!(PublicKey::from_pem(&text.replace("PUBLIC", "PRIVATE")).is_none());
        assert_eq!(KeyId::parse(public.id().as_str()), Some(public.id()));
        assert!(KeyId::parse("06E3").is_none());
    }
}
