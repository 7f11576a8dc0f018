//! The two PEM documents we write and read: PKCS#8 v1 private keys and SubjectPublicKeyInfo.
//!
//! Written by hand, because OpenSSL 1.1 and 3.0 refuse the PKCS#8 v2 form (with the public key
//! inside) that `ed25519-dalek` writes. Reading accepts exactly the v1 form: 48 bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

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

pub(super) fn decode(text: &str, label: &str) -> Option<Zeroizing<Vec<u8>>> {
    let begin = format!("-----BEGIN {label}-----");
    let end = format!("-----END {label}-----");
    let body = text.trim().strip_prefix(&begin)?.strip_suffix(&end)?;
    let joined: Zeroizing<String> =
        Zeroizing::new(body.chars().filter(|c| !c.is_ascii_whitespace()).collect());
    STANDARD.decode(joined.as_bytes()).ok().map(Zeroizing::new)
}

pub(super) fn encode_private(seed: &[u8; 32]) -> Zeroizing<String> {
    let mut der = Zeroizing::new([0; 48]);
    der[..16].copy_from_slice(&PKCS8_PREFIX);
    der[16..].copy_from_slice(seed);
    encode(der.as_ref(), "PRIVATE KEY")
}

/// The seed of a private key document, or what is wrong with it.
pub(super) fn decode_private(text: &str) -> Result<Zeroizing<[u8; 32]>, &'static str> {
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        return Err("an encrypted private key; keys with a passphrase are not available yet");
    }
    let der = decode(text, "PRIVATE KEY")
        .ok_or("not a PEM document; expected `-----BEGIN PRIVATE KEY-----`")?;
    let seed = der
        .strip_prefix(&PKCS8_PREFIX)
        .and_then(|seed| <[u8; 32]>::try_from(seed).ok())
        .ok_or("not an Ed25519 private key in PKCS#8 form")?;
    Ok(Zeroizing::new(seed))
}

#[cfg(test)]
mod tests {
    use super::{decode_private, encode_private};

    #[test]
    fn private_keys_go_there_and_back() {
        let seed = [7; 32];
        let text = encode_private(&seed);
        assert!(text.starts_with("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEI"));
        assert_eq!(decode_private(&text).as_deref(), Ok(&seed));
        assert_eq!(decode_private(&text.replace('\n', "\r\n")).as_deref(), Ok(&seed));
        assert!(decode_private(&text[..60]).is_err());
        assert!(decode_private("").is_err());
        let encrypted = text.replace("PRIVATE", "ENCRYPTED PRIVATE");
        assert!(decode_private(&encrypted).expect_err("encrypted").contains("passphrase"));
    }
}
