//! Ids to text one at a time, in pieces that are whole characters.

use crate::tokenizer::{TokenizeError, Tokenizer};

/// A character has at most four bytes, so a tail that more ids than this did not complete is not UTF-8.
const MAX_PENDING: usize = 4;

/// Turns ids into text as they are generated. Special tokens give no text.
///
/// The pieces put together, with [`Detokenizer::finish`] last, are what decoding all ids at once gives.
pub struct Detokenizer<'t> {
    tokenizer: &'t Tokenizer,
    /// Ids still needed: those of `0..read` were given out and only serve as context, because some decoders
    /// treat the first token of a text in their own way.
    ids: Vec<u32>,
    read: usize,
}

impl<'t> Detokenizer<'t> {
    /// Starts a new text.
    #[must_use]
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Detokenizer { tokenizer, ids: Vec::new(), read: 0 }
    }

    /// Adds a token and returns the text that became complete, possibly none.
    ///
    /// # Errors
    /// [`TokenizeError::UnknownId`] for an id outside the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizeError> {
        self.ids.push(id);
        self.advance(false)
    }

    /// The rest of the text: bytes that never became a character come out as U+FFFD.
    ///
    /// # Errors
    /// As [`Detokenizer::push`].
    pub fn finish(mut self) -> Result<String, TokenizeError> {
        self.advance(true)
    }

    fn advance(&mut self, last: bool) -> Result<String, TokenizeError> {
        let before = self.tokenizer.decode_without_specials(&self.ids[..self.read])?;
        let all = self.tokenizer.decode_without_specials(&self.ids)?;
        let n_pending = self.ids.len() - self.read;
        let incomplete = all.ends_with('\u{FFFD}') && n_pending < MAX_PENDING;
        if !last && (incomplete || all.len() <= before.len()) {
            return Ok(String::new());
        }
        let piece = all.get(before.len()..).unwrap_or_default().to_owned();
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        Ok(piece)
    }
}
