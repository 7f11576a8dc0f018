//! A tokenizer as a folder in Hugging Face form.

use std::path::{Path, PathBuf};

use forgelm_artifact::{json, write};
use serde_json::{Map, Value, json};

use crate::tokenizer::{TokenizeError, Tokenizer};

/// What transformers writes for "not known".
const NO_MAX_LENGTH: f64 = 1e30;

impl Tokenizer {
    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, the chat template, and
    /// `generation_config.json` where generation has end tokens of its own. Returns the files, in that order.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<Vec<PathBuf>, TokenizeError> {
        self.files()?
            .into_iter()
            .map(|(name, text)| {
                let path = dir.join(name);
                write::atomic(&path, text.as_bytes())?;
                Ok(path)
            })
            .collect()
    }

    /// The files of [`Tokenizer::save`] by name, for a caller that writes them itself.
    ///
    /// # Errors
    /// If the algorithm cannot be written as JSON.
    pub fn files(&self) -> Result<Vec<(String, String)>, TokenizeError> {
        let algorithm = |e: tokenizers::Error| TokenizeError::Algorithm { reason: e.to_string() };
        let mut files = vec![
            ("tokenizer.json".to_owned(), self.inner.to_string(false).map_err(algorithm)?),
            ("tokenizer_config.json".to_owned(), json::pretty(&self.config())),
            (
                "special_tokens_map.json".to_owned(),
                json::pretty(&Value::Object(self.special_tokens())),
            ),
        ];
        if let Some(default) = self.templates.iter().find(|template| template.name == "default") {
            files.push(("chat_template.jinja".to_owned(), default.source.clone()));
        }
        if !self.generation_eos.is_empty() {
            let config = json!({ "eos_token_id": self.generation_eos });
            files.push(("generation_config.json".to_owned(), json::pretty(&config)));
        }
        Ok(files)
    }

    fn special_tokens(&self) -> Map<String, Value> {
        let ids = self.special;
        let roles = [
            ("bos_token", ids.bos),
            ("eos_token", ids.eos),
            ("pad_token", ids.pad),
            ("unk_token", ids.unk),
        ];
        roles
            .into_iter()
            .filter_map(|(role, id)| Some((role.to_owned(), self.token_text(id?)?.into())))
            .collect()
    }

    fn config(&self) -> Value {
        let mut config = self.special_tokens();
        config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
        let max_length = self.model_max_length.map_or_else(|| json!(NO_MAX_LENGTH), Value::from);
        config.insert("model_max_length".to_owned(), max_length);
        config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
        // Older readers look for the template here and not in the file of its own.
        match self.templates.as_slice() {
            [] => {}
            [only] if only.name == "default" => {
                config.insert("chat_template".to_owned(), only.source.clone().into());
            }
            several => {
                let list: Vec<Value> = several
                    .iter()
                    .map(|t| json!({ "name": t.name, "template": t.source }))
                    .collect();
                config.insert("chat_template".to_owned(), list.into());
            }
        }
        Value::Object(config)
    }
}
