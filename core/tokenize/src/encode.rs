//! Text to ids, with the parts a user wrote kept free of special tokens.
//!
//! The whole text goes through the tokenizer at once, so that merges near the border of a user's text are
//! those of the reference. Only where such text holds a special token's text is that match taken back before
//! the pre-tokenizer sees it.

use std::ops::Range;

use tokenizers::normalizer::Range as Referential;
use tokenizers::{
    Model as _, Normalizer as _, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer as _, Token,
};

use crate::tokenizer::{MAX_TEXT_BYTES, TokenizeError, Tokenizer};

/// Token ids with the bytes of the text that each stands for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoding {
    /// The ids.
    pub ids: Vec<u32>,
    /// For each id the bytes `start..end` of the text; several ids may share the bytes of one character.
    pub offsets: Vec<(usize, usize)>,
    /// How often text that looks like a special token was kept as plain text.
    pub suppressed: usize,
}

impl Tokenizer {
    /// Encodes a user's text: no special token is added, and none comes out of the text.
    ///
    /// # Errors
    /// [`TokenizeError::TextTooLong`], or what the algorithm says.
    pub fn encode(&self, text: &str) -> Result<Encoding, TokenizeError> {
        self.encode_mixed(text, std::slice::from_ref(&(0..text.len())))
    }

    /// Encodes text in which the text of a special token means that token: for what a template wrote, never
    /// for what a user wrote.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_specials(&self, text: &str) -> Result<Encoding, TokenizeError> {
        self.encode_mixed(text, &[])
    }

    /// Encodes text whose byte ranges `plain` were written by a user; elsewhere special tokens count.
    ///
    /// A match that touches a plain range is plain. Ranges lie on character borders.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_mixed(
        &self,
        text: &str,
        plain: &[Range<usize>],
    ) -> Result<Encoding, TokenizeError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TokenizeError::TextTooLong { found: text.len() });
        }
        let algorithm = |e: tokenizers::Error| TokenizeError::Algorithm { reason: e.to_string() };
        let inner = &self.inner;
        let mut split =
            inner.get_added_vocabulary().extract_and_normalize(inner.get_normalizer(), text);
        let matches = self.added_matches(&split);
        let kept: Vec<&Match> = matches.iter().filter(|m| !m.is_taken_back(plain)).collect();
        let suppressed = matches.len() - kept.len();
        if suppressed > 0 {
            split = self.split_again(text, &kept).map_err(algorithm)?;
        }
        if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut split).map_err(algorithm)?;
        }
        inner.get_model().tokenize_in_pretokenized(&mut split, None).map_err(algorithm)?;
        let encoding = split.into_encoding(None, 0, OffsetType::Byte).map_err(algorithm)?;
        let encoding = Encoding {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
            suppressed,
        };
        let n_special_kept = kept.iter().filter(|m| m.special).count();
        self.refuse_merged_specials(&encoding, n_special_kept)?;
        Ok(encoding)
    }

    /// True if the text holds the text of a special token.
    #[must_use]
    pub fn holds_special_text(&self, text: &str) -> bool {
        // Every special text holds a punctuation mark or is rare; the list is short, so scan for each.
        self.special_texts.iter().any(|special| text.contains(special.as_str()))
    }

    fn added_matches(&self, split: &PreTokenizedString) -> Vec<Match> {
        split
            .get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .filter_map(|(_, (start, end), tokens)| {
                let id = tokens.as_ref()?.first()?.id;
                Some(Match { start, end, id, special: self.special_ids.contains(&id) })
            })
            .collect()
    }

    /// Splits the text at the matches that count, and normalizes the rest.
    fn split_again(&self, text: &str, kept: &[&Match]) -> tokenizers::Result<PreTokenizedString> {
        let mut split = PreTokenizedString::from(text);
        split.split(|_, whole| {
            let mut pieces = Vec::with_capacity(2 * kept.len() + 1);
            let mut from = 0;
            let piece = |range: Range<usize>| {
                whole
                    .slice(Referential::Original(range))
                    .ok_or("a special token ends inside a character")
            };
            for m in kept {
                if from < m.start {
                    pieces.push((piece(from..m.start)?, None));
                }
                let token = Token::new(m.id, text[m.start..m.end].to_owned(), (0, m.end - m.start));
                pieces.push((piece(m.start..m.end)?, Some(vec![token])));
                from = m.end;
            }
            if from < text.len() {
                pieces.push((piece(from..text.len())?, None));
            }
            Ok(pieces)
        })?;
        if let Some(normalizer) = self.inner.get_normalizer() {
            split.normalize(|piece| normalizer.normalize(piece))?;
        }
        Ok(split)
    }

    /// The last line of defence for the invariant that text never becomes a special token: a vocabulary
    /// whose merges spell one out would get past the splitting.
    fn refuse_merged_specials(
        &self,
        encoding: &Encoding,
        n_expected: usize,
    ) -> Result<(), TokenizeError> {
        let mut found = encoding.ids.iter().filter(|id| self.special_ids.contains(id));
        match found.nth(n_expected) {
            // `unk` may come out of any text, and is a special token in many vocabularies.
            Some(&id) if Some(id) != self.special.unk => Err(TokenizeError::SpecialFromText { id }),
            _ => Ok(()),
        }
    }
}

/// An added token found in a text.
struct Match {
    start: usize,
    end: usize,
    id: u32,
    special: bool,
}

impl Match {
    fn is_taken_back(&self, plain: &[Range<usize>]) -> bool {
        self.special && plain.iter().any(|range| self.start < range.end && range.start < self.end)
    }
}

impl Tokenizer {
    /// The text of ids, special tokens included as their text. Bytes that are not valid UTF-8 come out as
    /// U+FFFD.
    ///
    /// # Errors
    /// [`TokenizeError::UnknownId`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizeError> {
        self.decode_as(ids, false)
    }

    /// The text of ids without special tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_without_specials(&self, ids: &[u32]) -> Result<String, TokenizeError> {
        self.decode_as(ids, true)
    }

    fn decode_as(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizeError> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(TokenizeError::UnknownId { id, vocab_size: self.vocab_size });
        }
        self.inner
            .decode(ids, skip_special)
            .map_err(|e| TokenizeError::Algorithm { reason: e.to_string() })
    }
}
