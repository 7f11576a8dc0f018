//! A tokenizer from the metadata of a GGUF file.
//!
//! The file names the algorithm and the rule by which texts are cut into words before it; vocabulary, merges
//! and special tokens are in it. The rules are those of the tokenizers that the names stand for, so that the
//! ids are the ones of the original tokenizer.

use forgelm_artifact::gguf::GgufFile;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::tokenizer::{
    MAX_VOCABULARY, NamedTemplate, Parts, SpecialIds, TokenizeError, Tokenizer,
};

/// `tokenizer.ggml.token_type` of a token of the algorithm.
pub(crate) const TYPE_NORMAL: i32 = 1;
/// Of a token that means something to the model only.
const TYPE_UNKNOWN: i32 = 2;
pub(crate) const TYPE_CONTROL: i32 = 3;
/// Of a token that is cut out of the text before anything else, but is text.
pub(crate) const TYPE_USER_DEFINED: i32 = 4;
/// Of a row of the embedding that no text becomes.
pub(crate) const TYPE_UNUSED: i32 = 5;

/// How a text is cut into words, by the names that files give it.
pub(crate) struct PreTokenizer {
    pub(crate) names: &'static [&'static str],
    /// Regular expressions, each cutting the pieces of the one before.
    pub(crate) splits: &'static [&'static str],
    /// Then GPT-2's own rule, instead of none.
    pub(crate) gpt2_rule: bool,
    /// Each digit is a word.
    pub(crate) single_digits: bool,
    /// Composes characters first.
    pub(crate) nfc: bool,
    /// A word that is a token is taken whole.
    pub(crate) ignore_merges: bool,
    /// Begins a text with BOS when the file does not say.
    adds_bos: bool,
}

const GPT2: PreTokenizer = PreTokenizer {
    names: &["gpt-2", "gpt2", "phi-2", "olmo"],
    splits: &[],
    gpt2_rule: true,
    single_digits: false,
    nfc: false,
    ignore_merges: false,
    adds_bos: false,
};

pub(crate) const PRE_TOKENIZERS: [PreTokenizer; 5] = [
    GPT2,
    PreTokenizer { names: &["smollm", "starcoder", "refact"], single_digits: true, ..GPT2 },
    PreTokenizer {
        names: &["llama-bpe", "llama-v3", "llama3"],
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        gpt2_rule: false,
        ignore_merges: true,
        adds_bos: true,
        ..GPT2
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        gpt2_rule: false,
        nfc: true,
        ..GPT2
    },
    // What llama.cpp falls back to; no tokenizer was trained with it.
    PreTokenizer {
        names: &["default"],
        splits: &[
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            r"[0-9][0-9][0-9]",
        ],
        gpt2_rule: false,
        ..GPT2
    },
];

pub(crate) const MODEL: &str = "tokenizer.ggml.model";
pub(crate) const PRE: &str = "tokenizer.ggml.pre";
pub(crate) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(crate) const TYPES: &str = "tokenizer.ggml.token_type";
pub(crate) const MERGES: &str = "tokenizer.ggml.merges";
pub(crate) const TEMPLATE: &str = "tokenizer.chat_template";

impl Tokenizer {
    /// Reads the tokenizer in a GGUF file: byte-level BPE (`tokenizer.ggml.model` is `gpt2`) with one of the
    /// word rules `gpt-2`, `smollm`, `llama-bpe`, `qwen2`, `default` and their other names.
    ///
    /// # Errors
    /// [`TokenizeError::NotAvailable`] for another algorithm or rule, by name; or what is wrong in the metadata.
    pub fn from_gguf(file: &GgufFile) -> Result<Tokenizer, TokenizeError> {
        let place = |key: &str| format!("{}: `{key}`", file.path().display());
        let model = file.require_str(MODEL)?;
        if model != "gpt2" {
            return Err(TokenizeError::NotAvailable {
                place: place(MODEL),
                name: model.to_owned(),
                expected: "`gpt2` (byte-level BPE)".to_owned(),
            });
        }
        let mut notes = Vec::new();
        let pre = pre_tokenizer(file, &mut notes)?;
        let tokens = file.require_strings(TOKENS)?;
        if tokens.len() > MAX_VOCABULARY {
            return Err(TokenizeError::VocabularyTooLarge {
                place: place(TOKENS),
                found: tokens.len(),
            });
        }
        let algorithm = |e: tokenizers::Error| TokenizeError::Malformed {
            place: place(MERGES),
            found: e.to_string(),
            expected: "merges of tokens in the vocabulary".to_owned(),
        };
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary(file, tokens)?, merges(file)?)
            .ignore_merges(pre.ignore_merges)
            .build()
            .map_err(algorithm)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        if pre.nfc {
            inner.with_normalizer(Some(NFC)).map_err(algorithm)?;
        }
        inner.with_pre_tokenizer(Some(pre.build().map_err(algorithm)?));
        inner.with_decoder(Some(ByteLevel::default()));
        inner.add_tokens(added_tokens(file, tokens)?).map_err(algorithm)?;
        let special = special_ids(file, tokens.len())?;
        let adds_bos = file.get_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(pre.adds_bos);
        if let Some(bos) = special.bos.filter(|_| adds_bos) {
            inner.with_post_processor(Some(
                begin_with(&tokens[bos as usize], bos).map_err(algorithm)?,
            ));
        }
        Tokenizer::from_parts(Parts {
            place: place(TOKENS),
            inner,
            special,
            generation_eos: other_ends(file, tokens.len())?,
            templates: templates(file)?,
            model_max_length: context_length(file)?,
            notes,
        })
    }
}

fn pre_tokenizer(
    file: &GgufFile,
    notes: &mut Vec<String>,
) -> Result<&'static PreTokenizer, TokenizeError> {
    let name = file.get_str(PRE)?.unwrap_or_else(|| {
        notes.push(format!(
            "the file has no `{PRE}`; `default` is used, which may not be the model's own"
        ));
        "default"
    });
    PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
        let names: Vec<String> = PRE_TOKENIZERS
            .iter()
            .flat_map(|pre| pre.names)
            .map(|name| format!("`{name}`"))
            .collect();
        TokenizeError::NotAvailable {
            place: format!("{}: `{PRE}`", file.path().display()),
            name: name.to_owned(),
            expected: names.join(", "),
        }
    })
}

impl PreTokenizer {
    fn build(&self) -> tokenizers::Result<PreTokenizerWrapper> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        if self.single_digits {
            steps.push(Digits::new(true).into());
        }
        for split in self.splits {
            let pattern = SplitPattern::Regex((*split).to_owned());
            steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
        }
        let byte_level = ByteLevel::new(false, true, self.gpt2_rule);
        if steps.is_empty() {
            return Ok(byte_level.into());
        }
        steps.push(byte_level.into());
        Ok(Sequence::new(steps).into())
    }
}

fn vocabulary(file: &GgufFile, tokens: &[String]) -> Result<Vocab, TokenizeError> {
    let mut vocabulary = Vocab::default();
    for (id, token) in (0_u32..).zip(tokens) {
        if let Some(before) = vocabulary.insert(token.clone(), id) {
            return Err(TokenizeError::Malformed {
                place: format!("{}: `{TOKENS}`", file.path().display()),
                found: format!(
                    "the token {:?} as {before} and as {id}",
                    token.chars().take(40).collect::<String>()
                ),
                expected: "each token once".to_owned(),
            });
        }
    }
    Ok(vocabulary)
}

/// Merges are two tokens with a space between; byte-level tokens hold no space.
fn merges(file: &GgufFile) -> Result<Vec<(String, String)>, TokenizeError> {
    let merges = file.require_strings(MERGES)?;
    merges
        .iter()
        .enumerate()
        .map(|(i, merge)| match merge.split_once(' ') {
            Some((left, right))
                if !left.is_empty() && !right.is_empty() && !right.contains(' ') =>
            {
                Ok((left.to_owned(), right.to_owned()))
            }
            _ => Err(TokenizeError::Malformed {
                place: format!("{}: `{MERGES}`", file.path().display()),
                found: format!("merge {i} is {:?}", merge.chars().take(40).collect::<String>()),
                expected: "two tokens with a space between".to_owned(),
            }),
        })
        .collect()
}

fn added_tokens(file: &GgufFile, tokens: &[String]) -> Result<Vec<AddedToken>, TokenizeError> {
    let Some(types) = file.get_i32s(TYPES)? else { return Ok(Vec::new()) };
    if types.len() != tokens.len() {
        return Err(TokenizeError::Malformed {
            place: format!("{}: `{TYPES}`", file.path().display()),
            found: format!("{} types", types.len()),
            expected: format!("{}, one for each token", tokens.len()),
        });
    }
    let added = |(token, &kind): (&String, &i32)| match kind {
        TYPE_CONTROL | TYPE_UNKNOWN => Some(AddedToken::from(token.clone(), true)),
        TYPE_USER_DEFINED => Some(AddedToken::from(token.clone(), false).normalized(false)),
        _ => None,
    };
    Ok(tokens.iter().zip(types).filter_map(added).collect())
}

fn special_ids(file: &GgufFile, n_tokens: usize) -> Result<SpecialIds, TokenizeError> {
    let id = |role| token_of(file, role, n_tokens);
    Ok(SpecialIds { bos: id("bos")?, eos: id("eos")?, pad: id("padding")?, unk: id("unknown")? })
}

/// Every token that ends a text, where the file names more than one: of a turn, of a message.
fn other_ends(file: &GgufFile, n_tokens: usize) -> Result<Vec<u32>, TokenizeError> {
    let mut ends = Vec::new();
    for role in ["eot", "eom"] {
        ends.extend(token_of(file, role, n_tokens)?);
    }
    if !ends.is_empty() {
        ends.extend(token_of(file, "eos", n_tokens)?);
    }
    Ok(ends)
}

fn token_of(file: &GgufFile, role: &str, n_tokens: usize) -> Result<Option<u32>, TokenizeError> {
    let key = format!("tokenizer.ggml.{role}_token_id");
    match file.get_u32(&key)? {
        Some(id) if id as usize >= n_tokens => Err(TokenizeError::Malformed {
            place: format!("{}: `{key}`", file.path().display()),
            found: id.to_string(),
            expected: format!("less than {n_tokens}, the number of tokens"),
        }),
        id => Ok(id),
    }
}

fn begin_with(token: &str, id: u32) -> tokenizers::Result<TemplateProcessing> {
    TemplateProcessing::builder()
        .try_single(format!("{token} $A"))?
        .special_tokens(vec![(token.to_owned(), id)])
        .build()
        .map_err(|e| e.to_string().into())
}

/// `tokenizer.chat_template`, and `tokenizer.chat_template.NAME` for those in `tokenizer.chat_templates`.
fn templates(file: &GgufFile) -> Result<Vec<NamedTemplate>, TokenizeError> {
    let mut found = Vec::new();
    if let Some(source) = file.get_str(TEMPLATE)? {
        found.push(NamedTemplate { name: "default".to_owned(), source: source.to_owned() });
    }
    for name in file.get_strings("tokenizer.chat_templates")?.unwrap_or_default() {
        if let Some(source) = file.get_str(&format!("{TEMPLATE}.{name}"))? {
            found.push(NamedTemplate { name: name.clone(), source: source.to_owned() });
        }
    }
    Ok(found)
}

fn context_length(file: &GgufFile) -> Result<Option<u64>, TokenizeError> {
    let Some(architecture) = file.get_str("general.architecture")? else { return Ok(None) };
    Ok(file.get_u64(&format!("{architecture}.context_length"))?)
}
