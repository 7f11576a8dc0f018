//! The PEM documents we write and read: PKCS#8 v1 private keys, also encrypted, and
//! SubjectPublicKeyInfo; before each may stand a line `label: NAME` (explanatory text of RFC 7468,
//! which OpenSSL skips).
//!
//! Written by hand, because OpenSSL 1.1 and 3.0 refuse the PKCS#8 v2 form (with the public key
//! inside) that `ed25519-dalek` writes. Reading accepts exactly the v1 form: 48 bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::{KeyError, sealed};
use crate::secret::Secret;

const PRIVATE: &str = "PRIVATE KEY";
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";
/// Begins the line with a key's name.
const NAME: &str = "label: ";

/// Everything of a 48-byte Ed25519 PKCS#8 v1 document but the seed (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

pub(super) fn encode(der: &[u8], label: &str) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = String::with_capacity(body.len() + 80);
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    for (i, c) in body.chars().enumerate() {
        if i > 0 && i % 64 == 0 {
            text.push('\n');
        }
        text.push(c);
    }
    text.push_str("\n-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    Zeroizing::new(text)
}

/// The bytes of the one PEM document in `text`, which must be of kind `label`.
pub(super) fn decode(text: &str, label: &str) -> Option<Zeroizing<Vec<u8>>> {
    let begin = format!("-----BEGIN {label}-----");
    let end = format!("-----END {label}-----");
    let document = text.get(text.find("-----BEGIN ")?..)?;
    let body = document.trim().strip_prefix(&begin)?.strip_suffix(&end)?;
    let joined: Zeroizing<String> =
        Zeroizing::new(body.chars().filter(|c| !c.is_ascii_whitespace()).collect());
    STANDARD.decode(joined.as_bytes()).ok().map(Zeroizing::new)
}

/// The line with a key's name; nothing without one.
pub(super) fn name_line(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!("{NAME}{name}\n"))
}

/// The name before a document, if it has a good one.
pub(super) fn name(text: &str) -> Option<String> {
    let before = text.split("-----BEGIN ").next()?;
    let name = before.lines().find_map(|line| line.strip_prefix(NAME))?.trim();
    is_name(name).then(|| name.to_owned())
}

/// Whether a key may be called so: one line that a terminal shows as it is.
pub(super) fn is_name(text: &str) -> bool {
    let is_shown = |c: char| c.is_alphanumeric() || (c.is_ascii() && !c.is_ascii_control());
    let is_long = text.chars().count() > 100;
    !is_long
        && !text.trim().is_empty()
        && text.trim() == text
        && text.chars().all(is_shown)
        && !text.contains("-----")
}

/// Why a text is no private key that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PrivateProblem {
    /// What was found and expected.
    Malformed(&'static str),
    /// It is encrypted, and no passphrase was given.
    PassphraseMissing,
    /// The passphrase given does not open it.
    PassphraseWrong,
}

impl PrivateProblem {
    /// The error about the key at `place`.
    pub(super) fn at(self, place: String) -> KeyError {
        match self {
            Self::Malformed(detail) => KeyError::Malformed { place, detail },
            Self::PassphraseMissing => KeyError::PassphraseMissing { place },
            Self::PassphraseWrong => KeyError::PassphraseWrong { place },
        }
    }
}

/// The document of a seed, under a passphrase if there is one.
pub(super) fn encode_private(
    seed: &[u8; 32],
    passphrase: Option<&Secret>,
) -> Result<Zeroizing<String>, KeyError> {
    let mut der = Zeroizing::new([0; 48]);
    der[..16].copy_from_slice(&PKCS8_PREFIX);
    der[16..].copy_from_slice(seed);
    Ok(match passphrase {
        None => encode(der.as_ref(), PRIVATE),
        Some(passphrase) => encode(&sealed::seal(der.as_ref(), passphrase)?, ENCRYPTED),
    })
}

/// The seed of a private key document, or what is wrong with it.
pub(super) fn decode_private(
    text: &str,
    passphrase: Option<&Secret>,
) -> Result<Zeroizing<[u8; 32]>, PrivateProblem> {
    let seed = |der: &[u8]| {
        let seed = der.strip_prefix(&PKCS8_PREFIX)?;
        <[u8; 32]>::try_from(seed).ok().map(Zeroizing::new)
    };
    if let Some(der) = decode(text, ENCRYPTED) {
        let passphrase = passphrase.ok_or(PrivateProblem::PassphraseMissing)?;
        // One wrong passphrase in 256 leaves bytes, but never these.
        return seed(&sealed::open(&der, passphrase)?).ok_or(PrivateProblem::PassphraseWrong);
    }
    let der = decode(text, PRIVATE).ok_or(PrivateProblem::Malformed(
        "not a PEM document; expected `-----BEGIN PRIVATE KEY-----`",
    ))?;
    seed(&der).ok_or(PrivateProblem::Malformed("not an Ed25519 private key in PKCS#8 form"))
}

#[cfg(test)]
mod tests {
    use super::{PrivateProblem, decode_private, encode_private, is_name, name, name_line};
    use crate::secret::Secret;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned()).unwrap()
    }

    #[test]
    fn private_keys_go_there_and_back() {
        let seed = [7; 32];
        let text = encode_private(&seed, None).unwrap();
        assert!(text.starts_with("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEI"));
        assert_eq!(decode_private(&text, None).as_deref(), Ok(&seed));
        assert_eq!(decode_private(&text.replace('\n', "\r\n"), None).as_deref(), Ok(&seed));
        assert!(decode_private(&text[..60], None).is_err());
        assert!(decode_private("", None).is_err());
        let other = text.replace("PRIVATE", "ENCRYPTED PRIVATE");
        assert_eq!(decode_private(&other, None), Err(PrivateProblem::PassphraseMissing));
        let found = decode_private(&other, Some(&secret("x")));
        assert!(matches!(found, Err(PrivateProblem::Malformed(_))));
    }

    #[test]
    fn an_encrypted_key_opens_with_its_passphrase_alone() {
        let seed = [7; 32];
        let text = encode_private(&seed, Some(&secret("correct horse"))).unwrap();
        assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
        assert_eq!(decode_private(&text, Some(&secret("correct horse"))).as_deref(), Ok(&seed));
        let wrong = decode_private(&text, Some(&secret("correct horse ")));
        assert_eq!(wrong, Err(PrivateProblem::PassphraseWrong));
        assert_eq!(decode_private(&text, None), Err(PrivateProblem::PassphraseMissing));
        // Another salt and another first block each time.
        let again = encode_private(&seed, Some(&secret("correct horse"))).unwrap();
        assert_ne!(*again, *text);
    }

    #[test]
    fn names_stand_before_the_document_and_are_one_plain_line() {
        let seed = [7; 32];
        let key = encode_private(&seed, None).unwrap();
        let text = name_line(Some("ci-prod 2026")) + &key;
        assert_eq!(name(&text).as_deref(), Some("ci-prod 2026"));
        assert_eq!(decode_private(&text, None).as_deref(), Ok(&seed));
        assert_eq!(name(&key), None);
        for bad in ["", " x", "x\ny", "a\u{1b}[2J", "-----BEGIN x", "a\u{202e}b", &"x".repeat(101)]
        {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
