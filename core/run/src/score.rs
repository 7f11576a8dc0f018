//! `forgelm score`: log-probability of each token of given rows, to compare a model with another
//! stack or to measure a text.

use crate::environment::Environment;
use crate::error::RunError;
use crate::event::Observer;
use crate::model::{self, FoundModel, ModelRequest};
use forgelm_artifact::jsonl::Reader;
use forgelm_artifact::write;
use forgelm_generate::{ScoreRequest, Scorer};
use forgelm_tokenize::{Message, RenderOptions};
use serde_json::{Value, json};
use std::path::Path;

/// What a scoring did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Rows.
    pub n_rows: u64,
    /// Tokens that have a log-probability.
    pub n_scored: u64,
}

/// Scores every row of `input` and writes one row for each to `output`:
/// `{"input_ids": [..], "logprobs": [null, ..], "sum_logprob": s, "n_scored": n}`, where
/// `logprobs[i]` is the natural logarithm of the probability of token i after the tokens before
/// it. Rows have `input_ids`, `text` (with what the tokenizer puts around texts) or `messages`
/// (rendered by the chat template).
///
/// # Errors
/// If a row cannot be used: nothing is written then.
pub fn score(
    request: &ModelRequest,
    input: &Path,
    output: &Path,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Summary, RunError> {
    let found = model::find(request, env, observer)?;
    let now = env.clock.utc().0.div_euclid(1_000_000);
    let rows = read_rows(input, &found, now)?;
    let loaded = model::load(&found, request)?;
    let longest = rows.iter().map(Vec::len).max().unwrap_or(1);
    // Every token but the first is predicted, by the row before it.
    let all: Vec<u32> = (0..).take(longest - 1).collect();
    let requests: Vec<ScoreRequest<'_>> =
        rows.iter().map(|tokens| ScoreRequest { tokens, rows: &all[..tokens.len() - 1] }).collect();
    let mut scorer = Scorer::new(&loaded.decoder, loaded.adapter.as_ref());
    let logprobs = scorer.score(&requests, &mut || !env.stop_requested())?;
    let mut summary = Summary { n_rows: 0, n_scored: 0 };
    write::atomic_with(output, |file| {
        for (tokens, logprobs) in rows.iter().zip(&logprobs) {
            summary.n_rows += 1;
            summary.n_scored += logprobs.len() as u64;
            writeln!(file, "{}", scored(tokens, logprobs))?;
        }
        Ok(())
    })?;
    Ok(summary)
}

/// What is written of a row.
fn scored(tokens: &[u32], logprobs: &[f32]) -> Value {
    let sum: f64 = logprobs.iter().map(|&logp| f64::from(logp)).sum();
    let listed: Vec<Value> =
        std::iter::once(Value::Null).chain(logprobs.iter().map(|logp| json!(logp))).collect();
    json!({
        "input_ids": tokens,
        "logprobs": listed,
        "sum_logprob": sum,
        "n_scored": logprobs.len(),
    })
}

/// Every row as tokens.
fn read_rows(input: &Path, found: &FoundModel, now: i64) -> Result<Vec<Vec<u32>>, RunError> {
    let mut rows = Vec::new();
    let mut reader = Reader::open(input)?;
    while let Some(line) = reader.next_line() {
        let line = line?;
        let number = line.number;
        let value = line.json()?;
        let tokens = row_tokens(&value, found, now).map_err(|problem| RunError::Row {
            file: input.to_owned(),
            line: number,
            problem,
        })?;
        rows.push(tokens);
    }
    if rows.is_empty() {
        let problem = "no rows; expected at least one".to_owned();
        return Err(RunError::Row { file: input.to_owned(), line: 1, problem });
    }
    Ok(rows)
}

fn row_tokens(row: &Value, found: &FoundModel, now: i64) -> Result<Vec<u32>, String> {
    let context = found.open.config().max_position_embeddings;
    let tokens = if let Some(ids) = row.get("input_ids") {
        input_ids(ids, found.open.config().vocab_size)?
    } else if let Some(text) = row.get("text") {
        let text =
            text.as_str().ok_or_else(|| format!("`text` is {}; expected a string", kind(text)))?;
        let tokenizer = &found.tokenizer;
        let encoding = tokenizer.encode(text).map_err(|error| error.to_string())?;
        [tokenizer.prefix_ids(), &encoding.ids, tokenizer.suffix_ids()].concat()
    } else if let Some(messages) = row.get("messages") {
        conversation(messages, found, now)?
    } else {
        return Err("no `input_ids`, `text` or `messages`; expected one of them".to_owned());
    };
    match tokens.len() {
        0 => Err("the row has no tokens; expected at least one".to_owned()),
        n if n > context => Err(format!("the row has {n} tokens; the model takes {context}")),
        _ => Ok(tokens),
    }
}

fn input_ids(ids: &Value, vocab_size: usize) -> Result<Vec<u32>, String> {
    let ids = ids.as_array().filter(|ids| !ids.is_empty()).ok_or_else(|| {
        format!("`input_ids` is {}; expected a list with at least one id", kind(ids))
    })?;
    let id = |(i, id): (usize, &Value)| {
        let known = id.as_u64().filter(|&id| id < vocab_size as u64);
        known.and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            format!("`input_ids[{i}]` is {id}; expected a number below {vocab_size}")
        })
    };
    ids.iter().enumerate().map(id).collect()
}

fn conversation(messages: &Value, found: &FoundModel, now: i64) -> Result<Vec<u32>, String> {
    let template = found.template.as_ref().ok_or("the model has no chat template")?;
    let messages = read_messages(messages, "messages")?;
    let options = RenderOptions { now: Some(now), ..RenderOptions::default() };
    let chat = found.tokenizer.encode_chat(template, &messages, &options);
    chat.map(|chat| chat.ids).map_err(|error| error.to_string())
}

/// A conversation from the column `name`.
pub(crate) fn read_messages(messages: &Value, name: &str) -> Result<Vec<Message>, String> {
    let listed = messages.as_array().filter(|messages| !messages.is_empty());
    let listed = listed.ok_or_else(|| {
        format!("`{name}` is {}; expected a list with at least one message", kind(messages))
    })?;
    let message = |(i, message): (usize, &Value)| {
        let field = |key: &str| {
            message
                .get(key)
                .and_then(Value::as_str)
                .ok_or_else(|| format!("`{name}[{i}].{key}` is not a string"))
        };
        Ok(Message::new(field("role")?, field("content")?))
    };
    listed.iter().enumerate().map(message).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(items) if items.is_empty() => "an empty list",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
