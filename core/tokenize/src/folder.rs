//! A tokenizer from a folder in Hugging Face form.

use std::path::Path;

use serde_json::Value;
use tokenizers::AddedToken;

use crate::tokenizer::{
    MAX_FILE_BYTES, NamedTemplate, Parts, SpecialIds, TokenizeError, Tokenizer,
};

/// `model_max_length` of a tokenizer that does not know one is an absurd number.
const SENSIBLE_MAX_LENGTH: f64 = 1e12;

impl Tokenizer {
    /// Reads `tokenizer.json`, and where present `tokenizer_config.json`, `special_tokens_map.json`,
    /// `chat_template.jinja`, `chat_template.json`, `generation_config.json` and the end token of `config.json`.
    ///
    /// # Errors
    /// A file that is missing, too large or malformed, named with its place.
    pub fn from_folder(dir: &Path) -> Result<Tokenizer, TokenizeError> {
        let path = dir.join("tokenizer.json");
        let Some(bytes) = read_file(&path)? else {
            let sentence_piece = dir.join("tokenizer.model").is_file();
            return Err(TokenizeError::Missing {
                folder: dir.to_path_buf(),
                file: "tokenizer.json",
                hint: if sentence_piece {
                    "`tokenizer.model` alone (SentencePiece) is not available yet; save the fast tokenizer beside it"
                } else {
                    "copy the tokenizer files of the base model into this folder"
                },
            });
        };
        let mut inner =
            tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| TokenizeError::Malformed {
                place: path.display().to_string(),
                found: e.to_string(),
                expected: "a tokenizer in the form of the `tokenizers` library".to_owned(),
            })?;
        drop(bytes);
        let config = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or(Value::Null);
        let map = read_json(&dir.join("special_tokens_map.json"))?.unwrap_or(Value::Null);
        add_missing_tokens(&mut inner, &config, &dir.join("tokenizer_config.json"))?;
        let mut notes = Vec::new();
        let mut special_id = |role: &str| special_id(&inner, role, [&config, &map], &mut notes);
        let special = SpecialIds {
            bos: special_id("bos_token"),
            eos: special_id("eos_token"),
            pad: special_id("pad_token"),
            unk: special_id("unk_token"),
        };
        let generation_eos = generation_eos(dir)?;
        let templates = templates(dir, &config)?;
        Tokenizer::from_parts(Parts {
            place: path.display().to_string(),
            inner,
            special,
            generation_eos,
            templates,
            model_max_length: config
                .get("model_max_length")
                .and_then(Value::as_f64)
                .filter(|&n| (1.0..SENSIBLE_MAX_LENGTH).contains(&n))
                .and_then(|_| config.get("model_max_length")?.as_u64()),
            notes,
        })
    }
}

/// The bytes of a file, `None` if there is none.
fn read_file(path: &Path) -> Result<Option<Vec<u8>>, TokenizeError> {
    let read = |source| TokenizeError::Read { path: path.to_path_buf(), source };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(read(e)),
    };
    if !metadata.is_file() {
        return Err(TokenizeError::Malformed {
            place: path.display().to_string(),
            found: "not a regular file".to_owned(),
            expected: "a file".to_owned(),
        });
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(TokenizeError::FileTooLarge {
            path: path.to_path_buf(),
            found: metadata.len(),
            limit: MAX_FILE_BYTES,
        });
    }
    std::fs::read(path).map(Some).map_err(read)
}

fn read_text(path: &Path) -> Result<Option<String>, TokenizeError> {
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|e| TokenizeError::Malformed {
        place: path.display().to_string(),
        found: format!("invalid UTF-8 at byte {}", e.utf8_error().valid_up_to()),
        expected: "UTF-8 text".to_owned(),
    })
}

fn read_json(path: &Path) -> Result<Option<Value>, TokenizeError> {
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| TokenizeError::Malformed {
        place: path.display().to_string(),
        found: e.to_string(),
        expected: "JSON".to_owned(),
    })
}

/// Older folders keep added tokens only in `tokenizer_config.json`.
fn add_missing_tokens(
    inner: &mut tokenizers::Tokenizer,
    config: &Value,
    path: &Path,
) -> Result<(), TokenizeError> {
    let Some(decoder) = config.get("added_tokens_decoder").and_then(Value::as_object) else {
        return Ok(());
    };
    let malformed = |found: String, expected: &str| TokenizeError::Malformed {
        place: format!("{}: `added_tokens_decoder`", path.display()),
        found,
        expected: expected.to_owned(),
    };
    let mut tokens = Vec::with_capacity(decoder.len());
    for (id, token) in decoder {
        let id: u32 = id.parse().map_err(|_| malformed(format!("key `{id}`"), "a token id"))?;
        let content = token
            .get("content")
            .and_then(Value::as_str)
            .ok_or_else(|| malformed(format!("token {id} without `content`"), "its text"))?;
        let flag =
            |name: &str, otherwise| token.get(name).and_then(Value::as_bool).unwrap_or(otherwise);
        let special = flag("special", false);
        let added = AddedToken::from(content, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special));
        tokens.push((id, added));
    }
    tokens.sort_by_key(|(id, _)| *id);
    for (id, token) in tokens {
        let content = token.content.clone();
        let is_added = inner.get_added_vocabulary().get_vocab().contains_key(&content);
        if !is_added {
            inner
                .add_tokens([token])
                .map_err(|e| malformed(e.to_string(), "a token that can be added"))?;
        }
        let found = inner.token_to_id(&content);
        if found != Some(id) {
            let found = found.map_or("none".to_owned(), |id| id.to_string());
            return Err(malformed(
                format!("id {id} for `{content}`"),
                &format!("the id that `tokenizer.json` gives it: {found}"),
            ));
        }
    }
    Ok(())
}

/// The id of a special token by its role; a text that is no token is noted and passed over.
fn special_id(
    inner: &tokenizers::Tokenizer,
    role: &str,
    sources: [&Value; 2],
    notes: &mut Vec<String>,
) -> Option<u32> {
    let text = sources.iter().find_map(|source| token_text(source.get(role)?))?;
    let id = inner.token_to_id(text);
    if id.is_none() {
        notes.push(format!("`{role}` is `{text}`, which is not in the vocabulary; it is not used"));
    }
    id
}

/// A token is given as its text or as an object with `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// `eos_token_id` of `generation_config.json`, else of `config.json`: a number or a list.
fn generation_eos(dir: &Path) -> Result<Vec<u32>, TokenizeError> {
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        let Some(config) = read_json(&path)? else { continue };
        let malformed = |found: &Value| TokenizeError::Malformed {
            place: format!("{}: `eos_token_id`", path.display()),
            found: found.to_string(),
            expected: "a token id or a list of token ids".to_owned(),
        };
        let id = |value: &Value| {
            value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| malformed(value))
        };
        match config.get("eos_token_id") {
            None | Some(Value::Null) => {}
            Some(Value::Array(ids)) => return ids.iter().map(id).collect(),
            Some(value) => return Ok(vec![id(value)?]),
        }
    }
    Ok(Vec::new())
}

/// The chat templates: `chat_template.jinja` is the newest form and wins over a `default` elsewhere.
fn templates(dir: &Path, config: &Value) -> Result<Vec<NamedTemplate>, TokenizeError> {
    let mut found: Vec<NamedTemplate> = Vec::new();
    let path = dir.join("tokenizer_config.json");
    push_templates(&mut found, config.get("chat_template"), &path)?;
    let path = dir.join("chat_template.json");
    if let Some(file) = read_json(&path)? {
        push_templates(&mut found, file.get("chat_template"), &path)?;
    }
    if let Some(source) = read_text(&dir.join("chat_template.jinja"))? {
        put_template(&mut found, NamedTemplate { name: "default".to_owned(), source });
    }
    for (name, source) in additional_templates(&dir.join("additional_chat_templates"))? {
        put_template(&mut found, NamedTemplate { name, source });
    }
    Ok(found)
}

/// Files `NAME.jinja` of the folder that newer tokenizers keep further templates in, by name.
fn additional_templates(dir: &Path) -> Result<Vec<(String, String)>, TokenizeError> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let mut found = Vec::new();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "jinja")) {
        let name =
            path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(source) = read_text(path)? {
            found.push((name, source));
        }
    }
    Ok(found)
}

fn push_templates(
    found: &mut Vec<NamedTemplate>,
    value: Option<&Value>,
    path: &Path,
) -> Result<(), TokenizeError> {
    let malformed = |value: &Value| TokenizeError::Malformed {
        place: format!("{}: `chat_template`", path.display()),
        found: value.to_string().chars().take(80).collect(),
        expected: "a template, or a list of objects with `name` and `template`".to_owned(),
    };
    match value {
        None | Some(Value::Null) => {}
        Some(Value::String(source)) => {
            put_template(
                found,
                NamedTemplate { name: "default".to_owned(), source: source.clone() },
            );
        }
        Some(Value::Array(list)) => {
            for entry in list {
                let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                let (Some(name), Some(source)) = (text("name"), text("template")) else {
                    return Err(malformed(entry));
                };
                put_template(found, NamedTemplate { name, source });
            }
        }
        Some(other) => return Err(malformed(other)),
    }
    Ok(())
}

fn put_template(found: &mut Vec<NamedTemplate>, template: NamedTemplate) {
    match found.iter_mut().find(|have| have.name == template.name) {
        Some(have) => have.source = template.source,
        None => found.push(template),
    }
}
