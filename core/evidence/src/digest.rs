//! SHA-256, lowercase hex and HMAC-SHA-256 over bytes in memory.

use sha2::{Digest, Sha256};
use zeroize::Zeroize;

/// A raw SHA-256 digest.
pub(crate) type Digest32 = [u8; 32];

/// SHA-256 of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> Digest32 {
    Sha256::digest(bytes).into()
}

/// SHA-256 of `bytes` as 64 lowercase hex characters.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

/// Lowercase hex of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for &byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The 32 bytes that 64 lowercase hex characters stand for; `None` for anything else.
pub(crate) fn unhex32(text: &[u8]) -> Option<Digest32> {
    let text: &[u8; 64] = text.try_into().ok()?;
    let mut out = [0; 32];
    // One look at the end for all of them: a digest is read in every line of a log.
    let mut all = 0;
    for (byte, pair) in out.iter_mut().zip(text.as_chunks::<2>().0) {
        let [high, low] = pair.map(|c| NIBBLES[usize::from(c)]);
        all |= high | low;
        *byte = high << 4 | low;
    }
    (all < 16).then_some(out)
}

/// The value of each hex digit; 255 for what is none.
const NIBBLES: [u8; 256] = {
    let mut nibbles = [255; 256];
    let digits = b"0123456789abcdef";
    let mut value = 0_u8;
    while value < 16 {
        nibbles[digits[value as usize] as usize] = value;
        value += 1;
    }
    nibbles
};

/// The root digest of OpenSSF Model Signing: SHA-256 over the raw digests of files, which come in
/// hex, in the order of the files' names.
pub(crate) fn root_digest<'a>(digests: impl Iterator<Item = &'a str>) -> String {
    let raw: Vec<u8> = digests.flat_map(|d| unhex32(d.as_bytes()).unwrap_or_default()).collect();
    hex(&sha256(&raw))
}

/// HMAC-SHA-256 with a 32-byte key (shorter than the block, so it is only padded).
///
/// Paper: Krawczyk, Bellare and Canetti 1997, RFC 2104; vectors of RFC 4231.
pub(crate) fn hmac_sha256(key: &Digest32, message: &[&[u8]]) -> Digest32 {
    let (mut inner_pad, mut outer_pad) = ([0x36_u8; 64], [0x5c_u8; 64]);
    for (i, k) in key.iter().enumerate() {
        inner_pad[i] ^= k;
        outer_pad[i] ^= k;
    }
    let mut inner = Sha256::new_with_prefix(inner_pad);
    for part in message {
        inner.update(part);
    }
    let tag = Sha256::new_with_prefix(outer_pad).chain_update(inner.finalize()).finalize();
    inner_pad.zeroize();
    outer_pad.zeroize();
    tag.into()
}

/// Whether two digests are equal, in a time that does not depend on where they differ.
pub(crate) fn equal_in_constant_time(a: &Digest32, b: &Digest32) -> bool {
    let difference = a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::{equal_in_constant_time, hex, hmac_sha256, sha256_hex, unhex32};

    #[test]
    fn hmac_equals_rfc_4231() {
        // Test case 1: 20 bytes of 0x0b; zero padding makes it a 32-byte key with the same result.
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        assert_eq!(
            hex(&hmac_sha256(&key, &[b"Hi ", b"There"])),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        // Test case 2: key "Jefe".
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        assert_eq!(
            hex(&hmac_sha256(&key, &[b"what do ya want for nothing?"])),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn hex_goes_there_and_back_and_refuses_upper_case() {
        let text = sha256_hex(b"");
        assert_eq!(text, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let raw = unhex32(text.as_bytes()).unwrap();
        assert_eq!(hex(&raw), text);
        assert!(unhex32(text.to_uppercase().as_bytes()).is_none());
        assert!(unhex32(b"e3b0").is_none());
        let mut other = raw;
        other[31] ^= 1;
        assert!(equal_in_constant_time(&raw, &raw));
        assert!(!equal_in_constant_time(&raw, &other));
    }
}
