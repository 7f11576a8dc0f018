//! A tokenizer as the metadata of a GGUF file. The file names the rule by which texts are cut into
//! words; a tokenizer whose rule has no name there is refused, for its ids would come out otherwise.

use forgelm_artifact::gguf::{Array, Value as Gguf};
use serde_json::Value;

use crate::gguf::{
    MERGES, MODEL, PRE, PRE_TOKENIZERS, PreTokenizer, TEMPLATE, TOKENS, TYPE_CONTROL, TYPE_NORMAL,
    TYPE_UNUSED, TYPE_USER_DEFINED, TYPES,
};
use crate::tokenizer::{TokenizeError, Tokenizer};

impl Tokenizer {
    /// The keys `tokenizer.*` of a GGUF file whose embedding has `n_rows` rows; rows without a
    /// token get a placeholder, as the `llama.cpp` project's converter gives them one.
    ///
    /// # Errors
    /// [`TokenizeError::NotAvailable`] for an algorithm other than byte-level BPE, or a rule for
    /// words that has no name in such files.
    pub fn gguf_metadata(&self, n_rows: usize) -> Result<Vec<(String, Gguf)>, TokenizeError> {
        let algorithm = |e: tokenizers::Error| TokenizeError::Algorithm { reason: e.to_string() };
        let text = self.inner.to_string(false).map_err(algorithm)?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|e| TokenizeError::Algorithm { reason: e.to_string() })?;
        let rule = rule(&json)?;
        let (tokens, types) = self.tokens(n_rows.max(self.vocab_size));
        let mut keys = vec![
            (MODEL.to_owned(), Gguf::String("gpt2".to_owned())),
            (PRE.to_owned(), Gguf::String(rule.names[0].to_owned())),
            (TOKENS.to_owned(), Gguf::Array(Array::String(tokens))),
            (TYPES.to_owned(), Gguf::Array(Array::I32(types))),
            (MERGES.to_owned(), Gguf::Array(Array::String(merges(&json)?))),
        ];
        let ids = self.special;
        let mut ends = self.eos_ids().into_iter();
        let roles = [
            ("bos", ids.bos),
            ("eos", ends.next()),
            ("eot", ends.next()),
            ("eom", ends.next()),
            ("unknown", ids.unk),
            ("padding", ids.pad),
        ];
        for (role, id) in roles {
            let key = format!("tokenizer.ggml.{role}_token_id");
            keys.extend(id.map(|id| (key, Gguf::U32(id))));
        }
        let adds_bos = ids.bos.is_some() && self.prefix.first() == ids.bos.as_ref();
        keys.push(("tokenizer.ggml.add_bos_token".to_owned(), Gguf::Bool(adds_bos)));
        let mut names = Vec::new();
        for template in &self.templates {
            let key = match template.name.as_str() {
                "default" => TEMPLATE.to_owned(),
                name => {
                    names.push(name.to_owned());
                    format!("{TEMPLATE}.{name}")
                }
            };
            keys.push((key, Gguf::String(template.source.clone())));
        }
        if !names.is_empty() {
            keys.push((format!("{TEMPLATE}s"), Gguf::Array(Array::String(names))));
        }
        Ok(keys)
    }

    /// Texts and kinds of all rows.
    fn tokens(&self, n_rows: usize) -> (Vec<String>, Vec<i32>) {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let row = |id: u32| match (added.get(&id), self.inner.id_to_token(id)) {
            (Some(token), _) if token.special => (token.content.clone(), TYPE_CONTROL),
            (Some(token), _) => (token.content.clone(), TYPE_USER_DEFINED),
            (None, Some(text)) => (text, TYPE_NORMAL),
            (None, None) => (format!("[PAD{id}]"), TYPE_UNUSED),
        };
        (0..u32::try_from(n_rows).unwrap_or(u32::MAX)).map(row).unzip()
    }
}

fn not_available(what: &str, found: &Value) -> TokenizeError {
    let shown: String = found.to_string().chars().take(200).collect();
    TokenizeError::NotAvailable {
        place: format!("`{what}` of the tokenizer"),
        name: shown,
        expected: "byte-level BPE with the word rule of GPT-2, SmolLM, Llama 3 or Qwen 2, for a \
                   GGUF file"
            .to_owned(),
    }
}

/// The rule for words that the tokenizer has.
fn rule(json: &Value) -> Result<&'static PreTokenizer, TokenizeError> {
    let model = &json["model"];
    if model["type"] != "BPE" || model["byte_fallback"] == true {
        return Err(not_available("model.type", &model["type"]));
    }
    let found = Steps::of(&json["pre_tokenizer"])
        .ok_or_else(|| not_available("pre_tokenizer", &json["pre_tokenizer"]))?;
    let nfc = match json["normalizer"]["type"].as_str() {
        None => false,
        Some("NFC") => true,
        Some(_) => return Err(not_available("normalizer", &json["normalizer"])),
    };
    let ignore_merges = model["ignore_merges"] == true;
    let is_it = |rule: &&PreTokenizer| {
        found.splits == rule.splits
            && found.gpt2_rule == rule.gpt2_rule
            && found.single_digits == rule.single_digits
            && nfc == rule.nfc
            && ignore_merges == rule.ignore_merges
    };
    let known = PRE_TOKENIZERS.iter().find(is_it);
    known.ok_or_else(|| not_available("pre_tokenizer", &json["pre_tokenizer"]))
}

/// The steps of a pre-tokenizer, in the only order that has a name.
#[derive(Default)]
struct Steps {
    single_digits: bool,
    splits: Vec<String>,
    gpt2_rule: bool,
}

impl Steps {
    /// `None` if there is a step that no rule has.
    fn of(json: &Value) -> Option<Self> {
        let mut steps = Self::default();
        let list = match json["type"].as_str()? {
            "Sequence" => json["pretokenizers"].as_array()?.as_slice(),
            _ => std::slice::from_ref(json),
        };
        let (last, others) = list.split_last()?;
        for step in others {
            match step["type"].as_str()? {
                "Digits" if step["individual_digits"] == true && steps.splits.is_empty() => {
                    steps.single_digits = true;
                }
                "Split" if step["behavior"] == "Isolated" && step["invert"] == false => {
                    steps.splits.push(step["pattern"]["Regex"].as_str()?.to_owned());
                }
                _ => return None,
            }
        }
        let is_byte_level = last["type"] == "ByteLevel" && last["add_prefix_space"] == false;
        // Files of older versions do not say it.
        steps.gpt2_rule = last["use_regex"].as_bool().unwrap_or(true);
        is_byte_level.then_some(steps)
    }
}

/// Two tokens with a space between.
fn merges(json: &Value) -> Result<Vec<String>, TokenizeError> {
    let wrong = || not_available("model.merges", &json["model"]["merges"]);
    let list = json["model"]["merges"].as_array().ok_or_else(wrong)?;
    let merge = |merge: &Value| match merge {
        Value::String(text) => Some(text.clone()),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(a), Value::String(b)] => Some(format!("{a} {b}")),
            _ => None,
        },
        _ => None,
    };
    list.iter().map(merge).collect::<Option<_>>().ok_or_else(wrong)
}
