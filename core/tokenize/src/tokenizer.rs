//! The tokenizer: the algorithm, its special tokens, and the templates that came with it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use forgelm_artifact::gguf::GgufError;
use forgelm_artifact::write::WriteError;

use crate::template::{ChatTemplate, TemplateError, TemplateTokens, choose_template};

/// Longest text that is encoded at once, in bytes.
pub const MAX_TEXT_BYTES: usize = 64 * 1024 * 1024;

/// Largest vocabulary that is read, added tokens included.
pub const MAX_VOCABULARY: usize = 2_097_152;

/// Largest file of a tokenizer folder that is read, in bytes.
pub(crate) const MAX_FILE_BYTES: u64 = 128 * 1024 * 1024;

/// What can go wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizeError {
    /// A file could not be read.
    #[error("{path}: cannot be read", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is missing from a tokenizer folder.
    #[error("{folder}: no `{file}`; expected a tokenizer in Hugging Face form\n  hint: {hint}", folder = folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The file expected in it.
        file: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A file is larger than any real one.
    #[error("{path}: {found} bytes; expected at most {limit}", path = path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The cap.
        limit: u64,
    },
    /// A file does not hold what it should.
    #[error("{place}: {found}; expected {expected}")]
    Malformed {
        /// File or metadata key.
        place: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// The vocabulary is larger than [`MAX_VOCABULARY`].
    #[error("{place}: {found} tokens; expected at most {MAX_VOCABULARY}")]
    VocabularyTooLarge {
        /// File or metadata key.
        place: String,
        /// Number of tokens.
        found: usize,
    },
    /// A kind of tokenizer that is known but not built yet.
    #[error("{place}: tokenizer `{name}` is not available yet; expected one of {expected}")]
    NotAvailable {
        /// File or metadata key.
        place: String,
        /// The name found.
        name: String,
        /// The names that work.
        expected: String,
    },
    /// The metadata of a GGUF file is wrong.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A text is longer than [`MAX_TEXT_BYTES`].
    #[error("text of {found} bytes; expected at most {MAX_TEXT_BYTES}")]
    TextTooLong {
        /// Its length.
        found: usize,
    },
    /// The tokenizer's algorithm refused a text.
    #[error("the tokenizer could not process the text: {reason}")]
    Algorithm {
        /// What it said.
        reason: String,
    },
    /// Plain text came out as a special token, which the vocabulary's own rules should exclude.
    #[error("plain text was encoded as special token {id}; the vocabulary merges text into it")]
    SpecialFromText {
        /// The token.
        id: u32,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id}; expected less than {vocab_size}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Number of ids.
        vocab_size: usize,
    },
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A chat template that came with a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTemplate {
    /// `default`, unless the tokenizer has several.
    pub name: String,
    /// Its source.
    pub source: String,
}

/// The ids of the special tokens that have a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpecialIds {
    /// Beginning of a text.
    pub bos: Option<u32>,
    /// End of a text.
    pub eos: Option<u32>,
    /// Padding; ForgeLM never pads, and keeps it for the files it writes.
    pub pad: Option<u32>,
    /// A token for what the vocabulary lacks.
    pub unk: Option<u32>,
}

/// The end tokens that the parts of a model name, for a warning when they differ.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EosSources {
    /// From the tokenizer's configuration.
    pub tokenizer: Option<u32>,
    /// From the generation configuration.
    pub generation: Vec<u32>,
    /// The token that ends an assistant's turn in the chat template, when it could be found.
    pub template: Option<u32>,
}

impl EosSources {
    /// True when all sources that say something agree.
    #[must_use]
    pub fn agree(&self) -> bool {
        let mut all: BTreeSet<u32> = self.generation.iter().copied().collect();
        let listed = |id: Option<u32>, all: &BTreeSet<u32>| match id {
            Some(id) => all.is_empty() || all.contains(&id),
            None => true,
        };
        if !listed(self.tokenizer, &all) {
            return false;
        }
        all.extend(self.tokenizer);
        listed(self.template, &all)
    }
}

/// A tokenizer with its special tokens and templates; shared by reference between threads.
pub struct Tokenizer {
    pub(crate) inner: tokenizers::Tokenizer,
    pub(crate) special: SpecialIds,
    /// End tokens of the generation configuration, in its order.
    pub(crate) generation_eos: Vec<u32>,
    pub(crate) templates: Vec<NamedTemplate>,
    /// Ids of the added tokens that are special.
    pub(crate) special_ids: BTreeSet<u32>,
    /// Their texts, longest first.
    pub(crate) special_texts: Vec<String>,
    /// What the tokenizer itself puts before and after a text.
    pub(crate) prefix: Vec<u32>,
    pub(crate) suffix: Vec<u32>,
    /// One more than the largest id.
    pub(crate) vocab_size: usize,
    pub(crate) model_max_length: Option<u64>,
    pub(crate) notes: Vec<String>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

/// What a loader found, before the derived tables are made.
pub(crate) struct Parts {
    pub place: String,
    pub inner: tokenizers::Tokenizer,
    pub special: SpecialIds,
    pub generation_eos: Vec<u32>,
    pub templates: Vec<NamedTemplate>,
    pub model_max_length: Option<u64>,
    pub notes: Vec<String>,
}

impl Tokenizer {
    /// Completes a tokenizer from what a loader found.
    pub(crate) fn from_parts(parts: Parts) -> Result<Tokenizer, TokenizeError> {
        let Parts { place, mut inner, special, .. } = parts;
        let algorithm = |e: tokenizers::Error| TokenizeError::Algorithm { reason: e.to_string() };
        inner.with_truncation(None).map_err(algorithm)?;
        inner.with_padding(None);
        let n_tokens = inner.get_vocab_size(true);
        if n_tokens > MAX_VOCABULARY {
            return Err(TokenizeError::VocabularyTooLarge { place, found: n_tokens });
        }
        let added = inner.get_added_vocabulary().get_added_tokens_decoder();
        let mut special_ids = BTreeSet::new();
        let mut special_texts = Vec::new();
        for (id, token) in added.iter().filter(|(_, token)| token.special) {
            special_ids.insert(*id);
            special_texts.push(token.content.clone());
        }
        special_texts.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        let vocab_size = largest_id(&inner).map_or(0, |id| id as usize + 1);
        if vocab_size > MAX_VOCABULARY {
            return Err(TokenizeError::VocabularyTooLarge { place, found: vocab_size });
        }
        let (prefix, suffix) = surrounding(&inner).map_err(algorithm)?;
        Ok(Tokenizer {
            inner,
            special,
            generation_eos: parts.generation_eos,
            templates: parts.templates,
            special_ids,
            special_texts,
            prefix,
            suffix,
            vocab_size,
            model_max_length: parts.model_max_length,
            notes: parts.notes,
        })
    }

    /// One more than the largest token id: the model's embedding needs at least this many rows.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The ids of the special tokens that have a role.
    #[must_use]
    pub fn special_ids(&self) -> SpecialIds {
        self.special
    }

    /// The token that begins a text, if the tokenizer names one.
    #[must_use]
    pub fn bos_id(&self) -> Option<u32> {
        self.special.bos
    }

    /// The token that ends a text, if the tokenizer names one.
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.special.eos
    }

    /// All tokens at which generation stops: the tokenizer's, then those of the generation configuration.
    #[must_use]
    pub fn eos_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.special.eos.into_iter().collect();
        for &id in &self.generation_eos {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    /// The end tokens by source; `template` is looked up in the chat template given.
    #[must_use]
    pub fn eos_sources(&self, template: Option<&ChatTemplate>) -> EosSources {
        EosSources {
            tokenizer: self.special.eos,
            generation: self.generation_eos.clone(),
            template: template
                .and_then(ChatTemplate::end_of_turn)
                .and_then(|text| self.token_id(&text)),
        }
    }

    /// What the tokenizer itself puts before a text (a BOS token, for models that want one). Not used for
    /// the output of a chat template, which writes its own.
    #[must_use]
    pub fn prefix_ids(&self) -> &[u32] {
        &self.prefix
    }

    /// What the tokenizer itself puts after a text; nearly always nothing.
    #[must_use]
    pub fn suffix_ids(&self) -> &[u32] {
        &self.suffix
    }

    /// The id of a token by its exact text, added tokens first.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token as the vocabulary spells it.
    #[must_use]
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// True if the id is a special token.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// The longest text that the model was made for, if the tokenizer says.
    #[must_use]
    pub fn model_max_length(&self) -> Option<u64> {
        self.model_max_length
    }

    /// What a careful reader should know about how this tokenizer was loaded.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The chat templates that came with the tokenizer.
    #[must_use]
    pub fn templates(&self) -> &[NamedTemplate] {
        &self.templates
    }

    /// The strings that a template needs from this tokenizer.
    #[must_use]
    pub fn template_tokens(&self) -> TemplateTokens {
        let text = |id: Option<u32>| id.and_then(|id| self.token_text(id)).unwrap_or_default();
        TemplateTokens {
            bos: text(self.special.bos),
            eos: text(self.special.eos),
            pad: text(self.special.pad),
            unk: text(self.special.unk),
            special: self.special_texts.clone(),
        }
    }

    /// Compiles the template of this name, or the only one, or the one called `default`.
    ///
    /// # Errors
    /// [`TemplateError::None`] when there is no template, [`TemplateError::Choose`] when the name is not
    /// among several, and what [`ChatTemplate::compile`] says.
    pub fn chat_template(&self, name: Option<&str>) -> Result<ChatTemplate, TemplateError> {
        let template = choose_template(&self.templates, name)?;
        ChatTemplate::compile(&template.source, self.template_tokens())
    }
}

fn largest_id(inner: &tokenizers::Tokenizer) -> Option<u32> {
    // The model's ids are dense in every tokenizer seen, but nothing says so: take the maximum.
    inner.get_vocab(true).values().copied().max()
}

/// What the post-processor puts around a text.
fn surrounding(inner: &tokenizers::Tokenizer) -> tokenizers::Result<(Vec<u32>, Vec<u32>)> {
    let plain = inner.encode_fast("a", false)?;
    let with = inner.encode_fast("a", true)?;
    let (plain, with) = (plain.get_ids(), with.get_ids());
    let at = with.windows(plain.len().max(1)).position(|window| window == plain);
    Ok(match at {
        Some(start) => (with[..start].to_vec(), with[start + plain.len()..].to_vec()),
        None => (Vec::new(), Vec::new()),
    })
}
