//! A fingerprint of a text that near-duplicates nearly share.

use twox_hash::XxHash3_64;

use super::near::{Band, Fingerprint};

/// The fingerprint of the words of a text: bit `b` is 1 if more of the words' hashes have it than have
/// not, each word as often as it occurs. 0 for a text without words; such rows are compared with nothing.
///
/// Paper: Charikar 2002, "Similarity estimation techniques from rounding algorithms"; as Manku, Jain and
/// Das Sarma 2007 use it.
///
/// A word is a run of letters, digits and `_`, in lower case; its hash is XXH3-64 with seed 0 of its UTF-8.
pub(super) fn fingerprint(text: &str) -> u64 {
    let mut sums = [0_i32; 64];
    lower_words(text, |word| {
        let hash = XxHash3_64::oneshot(word.as_bytes());
        for (bit, sum) in sums.iter_mut().enumerate() {
            *sum += if (hash >> bit) & 1 == 1 { 1 } else { -1 };
        }
    });
    sums.iter().enumerate().fold(0, |bits, (bit, &sum)| bits | (u64::from(sum > 0) << bit))
}

/// Each run of letters, digits and `_`, in lower case.
pub(super) fn lower_words(text: &str, mut each: impl FnMut(&str)) {
    let mut lower = String::new();
    for word in text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()) {
        if word.is_ascii() {
            lower.clear();
            lower.push_str(word);
            lower.make_ascii_lowercase();
            each(&lower);
        } else {
            each(&word.to_lowercase());
        }
    }
}

impl Fingerprint for u64 {
    const N_PLACES: u32 = 64;
    /// A band of fewer bits sorts little apart.
    const BAND_MIN: u32 = 4;
    const COST: u64 = 1;

    fn distance(&self, other: &Self) -> u32 {
        (self ^ other).count_ones()
    }

    fn key(&self, band: Band) -> u64 {
        match band.len {
            0 => 0,
            len => (self << (64 - band.from - len)) >> (64 - len),
        }
    }

    fn shares(&self, other: &Self, band: Band) -> bool {
        self.key(band) == other.key(band)
    }
}

#[cfg(test)]
mod tests {
    use super::fingerprint;
    use twox_hash::XxHash3_64;

    /// Of one word the fingerprint is its hash; of a word twice, the same.
    #[test]
    fn a_single_word_is_its_hash() {
        // XXH3-64 of nothing, with seed 0, as the reference implementation's documents have it.
        assert_eq!(XxHash3_64::oneshot(b""), 0x2d06_8005_38d3_94c2);
        let word = XxHash3_64::oneshot(b"word");
        assert_eq!(fingerprint("word"), word);
        assert_eq!(fingerprint(" Word, WORD!"), word);
        assert_eq!(fingerprint("..."), 0);
        // Two words: a bit is 1 only where both have it, because a tie is 0.
        assert_eq!(fingerprint("word other"), word & XxHash3_64::oneshot(b"other"));
    }

    /// Values of the reference implementation of XXH3, and of a plain fingerprint over it
    /// (`tools/golden/audit.py`).
    #[test]
    fn hashes_and_fingerprints_are_those_of_the_reference() {
        let corpus = include_str!("../../../../tests/data/golden/audit/corpus.json");
        let corpus: serde_json::Value = serde_json::from_str(corpus).unwrap();
        let hashes = corpus["hashes"].as_object().unwrap();
        for (word, expected) in hashes {
            assert_eq!(
                format!("{:016x}", XxHash3_64::oneshot(word.as_bytes())),
                *expected,
                "{word}"
            );
        }
        let mut n_texts = 0;
        for split in ["train", "test"] {
            let texts = corpus["texts"][split].as_array().unwrap();
            let expected =
                corpus["distances"]["3"]["splits"][split]["fingerprints"].as_array().unwrap();
            assert_eq!(texts.len(), expected.len());
            for (text, expected) in texts.iter().zip(expected) {
                assert_eq!(
                    format!("{:016x}", fingerprint(text.as_str().unwrap())),
                    *expected,
                    "{text}"
                );
                n_texts += 1;
            }
        }
        assert_eq!((n_texts, hashes.len()), (164, 34));
    }
}
