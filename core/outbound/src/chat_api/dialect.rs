//! How each kind of API is spoken to, and what it answers.
//!
//! Source: the API references of OpenAI (chat completions), Azure OpenAI (inference) and Anthropic
//! (messages, version 2023-06-01).

use super::Question;
use serde_json::{Value, json};

/// Letters of the word by which a server calls an error.
const CODE_MAX: usize = 64;

/// A kind of API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Chat completions, with a bearer key.
    OpenAi,
    /// The same in Azure: the key in a header of its own.
    Azure,
    /// Messages.
    Anthropic,
}

impl Dialect {
    /// The word in documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Azure => "azure",
            Self::Anthropic => "anthropic",
        }
    }

    pub(super) fn key_header(self, key: &str) -> (&'static str, String) {
        match self {
            Self::OpenAi => ("Authorization", format!("Bearer {key}")),
            Self::Azure => ("api-key", key.to_owned()),
            Self::Anthropic => ("x-api-key", key.to_owned()),
        }
    }

    pub(super) fn headers(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::OpenAi | Self::Azure => None,
            Self::Anthropic => Some(("anthropic-version", "2023-06-01")),
        }
    }

    pub(super) fn body(
        self,
        model: &str,
        question: &Question<'_>,
        bounds_completion: bool,
    ) -> Value {
        let Question { system, user, max_tokens, temperature } = *question;
        let user = json!({"role": "user", "content": user});
        match self {
            Self::OpenAi | Self::Azure => {
                let system = system.map(|text| json!({"role": "system", "content": text}));
                let messages: Vec<Value> = system.into_iter().chain([user]).collect();
                let bound = match bounds_completion {
                    true => "max_completion_tokens",
                    false => "max_tokens",
                };
                json!({
                    "model": model,
                    "messages": messages,
                    bound: max_tokens,
                    "temperature": temperature,
                })
            }
            Self::Anthropic => {
                let mut body = json!({
                    "model": model,
                    "max_tokens": max_tokens,
                    "messages": [user],
                    "temperature": temperature,
                });
                if let Some(system) = system {
                    body["system"] = json!(system);
                }
                body
            }
        }
    }
}

/// An answer within what a server sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) text: String,
    pub(super) is_cut: bool,
}

/// The answer in the body of a success, or what is wrong with it.
pub(super) fn read_answer(dialect: Dialect, body: &[u8]) -> Result<Found, &'static str> {
    let body: Value = serde_json::from_slice(body).map_err(|_| "is not JSON")?;
    match dialect {
        Dialect::OpenAi | Dialect::Azure => {
            let choice = body["choices"].get(0).ok_or("has no `choices`")?;
            let text = text_of(&choice["message"]["content"]);
            let text = text.ok_or("has no text in `choices[0].message.content`")?;
            Ok(Found { text, is_cut: choice["finish_reason"] == "length" })
        }
        Dialect::Anthropic => {
            let text = text_of(&body["content"]).ok_or("has no text in `content`")?;
            Ok(Found { text, is_cut: body["stop_reason"] == "max_tokens" })
        }
    }
}

/// A text, or the texts of a list of parts, end to end.
fn text_of(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts
                .iter()
                .filter(|part| part["type"] == "text")
                .filter_map(|part| part["text"].as_str())
                .collect();
            (!texts.is_empty()).then(|| texts.concat())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// The server's word for an error, if it is one word that has nothing of the key in it.
pub(super) fn read_error(body: &[u8], key: Option<&str>) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let error = &body["error"];
    let code = error["code"].as_str().or_else(|| error["type"].as_str())?;
    let is_word = code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let is_safe = key.is_none_or(|key| !code.contains(key) && !key.contains(code));
    (is_word && is_safe && !code.is_empty() && code.len() <= CODE_MAX).then(|| code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Dialect, read_answer, read_error};
    use serde_json::json;

    #[test]
    fn an_answer_is_where_each_dialect_has_it() {
        let read = |dialect, body: serde_json::Value| {
            read_answer(dialect, body.to_string().as_bytes())
                .map(|found| (found.text, found.is_cut))
        };
        let choice = |content| json!({"choices": [{"message": {"content": content}}]});
        let said = Ok(("yes".to_owned(), false));
        assert_eq!(read(Dialect::OpenAi, choice(json!("yes"))), said);
        let parts = json!([{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]);
        assert_eq!(read(Dialect::Azure, choice(parts.clone())), said);
        assert_eq!(read(Dialect::Anthropic, json!({"content": parts})), said);
        let cut = json!({"content": "y", "stop_reason": "max_tokens"});
        assert_eq!(read(Dialect::Anthropic, cut), Ok(("y".to_owned(), true)));
        let cut = json!({"choices": [{"message": {"content": "y"}, "finish_reason": "length"}]});
        assert_eq!(read(Dialect::OpenAi, cut), Ok(("y".to_owned(), true)));
        for odd in [json!({}), json!([]), json!({"choices": []}), json!({"choices": {"0": 1}})] {
            assert_eq!(read(Dialect::OpenAi, odd), Err("has no `choices`"));
        }
        for odd in [json!(null), json!(7), json!([]), json!([{"type": "image"}])] {
            assert!(read(Dialect::OpenAi, choice(odd)).is_err());
        }
        assert_eq!(read_answer(Dialect::OpenAi, b"<html>"), Err("is not JSON"));
    }

    #[test]
    fn of_an_error_one_word_is_kept_and_never_the_key() {
        let read = |code: &str| {
            let body = json!({"error": {"code": code, "message": "sk-secret"}}).to_string();
            read_error(body.as_bytes(), Some("sk_secret"))
        };
        assert_eq!(read("model_not_found").as_deref(), Some("model_not_found"));
        for code in ["", "two words", "sk_secret", "bad_sk_secret", "sk_s", "\u{1b}[31m"] {
            assert_eq!(read(code), None, "{code}");
        }
        let typed = br#"{"type": "error", "error": {"type": "overloaded_error"}}"#;
        assert_eq!(read_error(typed, None).as_deref(), Some("overloaded_error"));
    }
}
