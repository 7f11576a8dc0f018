//! Identifiers of people and rows, as a log that is never purged may keep them: a keyed digest.
//!
//! The key comes from 16 random bytes in the folder (`.forgelm_audit_salt`) and, where there is one,
//! the audit secret. Whoever removes the file removes the way back from digest to identifier.
//!
//! Paper: Krawczyk and Eronen 2010, RFC 5869 (HKDF); RFC 2104 (HMAC).
//! Ours: scheme 1, which other tools wrote, is kept for reading alone: it is a plain salted digest, with
//! only the first 16 bytes of the secret in its salt.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use forgelm_artifact::open::{self, OpenError};
use forgelm_artifact::write::{self, WriteError};
use zeroize::Zeroizing;

use crate::digest::{Digest32, hex, hmac_sha256, sha256};
use crate::secret::Secret;

/// File name of the salt.
pub const SALT_FILE: &str = ".forgelm_audit_salt";
/// `hash_scheme` of what is written.
pub const HASH_SCHEME: &str = "v2";
const SALT_BYTES: usize = 16;
const INFO: &[u8] = b"forgelm/identifier/v2";

/// What the key comes from besides the folder's salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaltSource {
    /// Nothing.
    PerDir,
    /// The audit secret.
    EnvVar,
}

impl SaltSource {
    /// The word in events and results.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PerDir => "per_dir",
            Self::EnvVar => "env_var",
        }
    }
}

/// Why identifiers cannot be hashed.
#[derive(Debug, thiserror::Error)]
pub enum IdentifierError {
    /// The salt cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The salt cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The file is no salt.
    #[error(
        "{}: {n_bytes} bytes; expected a salt of {SALT_BYTES}\n  hint: restore it from a copy: without \
         it no identifier in the log can be recognized", .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Its length.
        n_bytes: usize,
    },
    /// The system has no random numbers.
    #[error("the system gave no random bytes")]
    NoRandomness,
}

/// The salt of one folder, with the secret if there is one.
pub struct Identifiers {
    salt: [u8; SALT_BYTES],
    secret: Option<Secret>,
}

impl Identifiers {
    /// Reads the salt of `dir`, made on first use, readable by its owner alone.
    ///
    /// # Errors
    /// If it cannot be read or made, or is no salt.
    pub fn of_folder(dir: &Path, secret: Option<Secret>) -> Result<Self, IdentifierError> {
        let path = dir.join(SALT_FILE);
        let is_missing =
            path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
        if is_missing {
            let mut salt = [0; SALT_BYTES];
            getrandom::fill(&mut salt).map_err(|_| IdentifierError::NoRandomness)?;
            match write::create_private(&path, &salt) {
                // Another process was faster: its salt is the folder's.
                Ok(()) | Err(WriteError::Exists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (file, _) = open::regular(&path)?;
        let mut bytes = Vec::new();
        let read = file.take(SALT_BYTES as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|source| OpenError::Io { path: path.clone(), source })?;
        let salt = bytes.as_slice().try_into();
        let salt = salt.map_err(|_| IdentifierError::Damaged { path, n_bytes: bytes.len() })?;
        Ok(Self { salt, secret })
    }

    /// What the key comes from.
    #[must_use]
    pub const fn source(&self) -> SaltSource {
        match self.secret {
            Some(_) => SaltSource::EnvVar,
            None => SaltSource::PerDir,
        }
    }

    /// The same salt without the secret.
    #[must_use]
    pub const fn per_dir(&self) -> Self {
        Self { salt: self.salt, secret: None }
    }

    /// The digest of an identifier, 64 hex characters.
    #[must_use]
    pub fn digest(&self, value: &str) -> String {
        let secret = self.secret.as_ref().map_or("", Secret::expose);
        let key = Zeroizing::new(derive_key(secret.as_bytes(), &self.salt, INFO));
        hex(&hmac_sha256(&key, &[value.as_bytes()]))
    }

    /// The digest that scheme 1 gives: `SHA-256(salt || value)`, the salt mixed with the secret.
    #[must_use]
    pub fn digest_v1(&self, value: &str) -> String {
        let mut bytes = self.salt.to_vec();
        let secret = self.secret.as_ref().map_or("", Secret::expose);
        for (byte, of_secret) in bytes.iter_mut().zip(secret.bytes()) {
            *byte ^= of_secret;
        }
        bytes.extend_from_slice(value.as_bytes());
        hex(&sha256(&bytes))
    }
}

/// The first 32 bytes of HKDF-SHA-256. A salt of at most 32 bytes is a key of the block's size with
/// zeros behind it, so that it is padded here.
fn derive_key(secret: &[u8], salt: &[u8], info: &[u8]) -> Digest32 {
    let mut padded = [0; 32];
    padded[..salt.len()].copy_from_slice(salt);
    let extracted = Zeroizing::new(hmac_sha256(&padded, &[secret]));
    hmac_sha256(&extracted, &[info, &[1]])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use forgelm_artifact::write::atomic;

    use super::{IdentifierError, Identifiers, SALT_FILE, SaltSource, derive_key};
    use crate::digest::{hex, sha256_hex};
    use crate::secret::Secret;

    #[test]
    fn the_key_equals_rfc_5869() {
        // Test case 1: the first 32 of its 42 bytes.
        let salt: Vec<u8> = (0..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        assert_eq!(
            hex(&derive_key(&[0x0b; 22], &salt, &info)),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
        );
    }

    #[test]
    fn a_folder_has_one_salt_and_each_secret_its_own_digests() {
        let dir = tempfile::tempdir().unwrap();
        let of = |secret: Option<&str>| {
            let secret = secret.and_then(|text| Secret::new(text.to_owned()));
            Identifiers::of_folder(dir.path(), secret).unwrap()
        };
        let plain = of(None);
        let path = dir.path().join(SALT_FILE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(plain.digest("eve"), of(None).digest("eve"));
        assert_ne!(plain.digest("eve"), plain.digest("adam"));
        // They differ in the 17th byte alone, which scheme 1 does not see.
        let [a, b] = ["0123456789abcdefA", "0123456789abcdefB"].map(|s| of(Some(s)));
        assert_ne!(a.digest("eve"), b.digest("eve"));
        assert_eq!(a.digest_v1("eve"), b.digest_v1("eve"));
        assert_ne!(a.digest("eve"), plain.digest("eve"));
        assert_eq!(a.per_dir().digest("eve"), plain.digest("eve"));
        assert_eq!((plain.source(), a.source()), (SaltSource::PerDir, SaltSource::EnvVar));
        let salt = std::fs::read(&path).unwrap();
        assert_eq!(plain.digest_v1("eve"), sha256_hex(&[&salt[..], b"eve"].concat()));
        let other = tempfile::tempdir().unwrap();
        let elsewhere = Identifiers::of_folder(other.path(), None).unwrap();
        assert_ne!(elsewhere.digest("eve"), plain.digest("eve"));
    }

    #[test]
    fn a_salt_of_another_length_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [&b"short"[..], &[1; 17]] {
            atomic(&dir.path().join(SALT_FILE), bytes).unwrap();
            let refused = Identifiers::of_folder(dir.path(), None);
            assert!(matches!(refused, Err(IdentifierError::Damaged { .. })));
            assert_eq!(std::fs::read(dir.path().join(SALT_FILE)).unwrap(), bytes);
        }
    }
}
