//! The answers of the model that is evaluated.

use super::prompts::Prompt;
use crate::subject::{AnswerError, Subject};
use forgelm_generate::{GenerateOptions, Sampling};
use forgelm_tokenize::{Message, Tokenizer};

/// Longest prompt, in tokens; of one that is longer the beginning is asked.
const PROMPT_TOKENS_MAX: usize = 1024;

/// What the model answered, in the order of the prompts.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) answers: Vec<String>,
    /// Which prompts were cut.
    pub(crate) is_cut: Vec<bool>,
    /// `chat_template`, or `text` where the model has none.
    pub(crate) rendering: &'static str,
}

/// Why there are no answers.
#[derive(Debug)]
pub(crate) enum NotAsked {
    /// The run should stop.
    Stopped,
    /// Something is in the way of the measurement.
    Hindered(String),
}

/// Asks every prompt, each as a conversation of its own, greedily.
pub(crate) fn ask(
    subject: &Subject<'_>,
    prompts: &[Prompt],
    max_new_tokens: usize,
    n_lanes: usize,
) -> Result<Asked, NotAsked> {
    let rendering = match subject.language.template {
        Some(_) => "chat_template",
        None => "text",
    };
    // Room for an answer, and for what the template adds.
    let longest = PROMPT_TOKENS_MAX.min(subject.positions() / 2);
    let (mut tokens, mut is_cut) = (Vec::new(), Vec::new());
    for (i, prompt) in prompts.iter().enumerate() {
        let hindered = |error: String| NotAsked::Hindered(format!("prompt {}: {error}", i + 1));
        let cut = cut(subject.language.tokenizer, &prompt.text, longest).map_err(hindered)?;
        let text = cut.as_deref().unwrap_or(&prompt.text);
        is_cut.push(cut.is_some());
        tokens.push(
            match subject.language.template {
                Some(_) => subject.conversation(&[Message::new("user", text)]),
                None => plain(subject.language.tokenizer, text),
            }
            .map_err(hindered)?,
        );
    }
    let options = GenerateOptions {
        max_new_tokens,
        sampling: Sampling::GREEDY,
        seed: 0,
        stop_ids: subject.language.stop_ids.to_vec(),
        reuse_cache: false,
    };
    let answers = answers(subject, &tokens, &options, n_lanes)?;
    Ok(Asked { answers, is_cut, rendering })
}

/// With half as many at once while there is no room.
fn answers(
    subject: &Subject<'_>,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    n_lanes: usize,
) -> Result<Vec<String>, NotAsked> {
    let mut n_lanes = n_lanes.min(prompts.len()).max(1);
    loop {
        match subject.answers(prompts, options, n_lanes) {
            Ok(answers) => return Ok(answers),
            Err(AnswerError::Stopped) => return Err(NotAsked::Stopped),
            Err(AnswerError::NoRoom(_)) if n_lanes > 1 => n_lanes /= 2,
            Err(AnswerError::Prompt { prompt, source }) => {
                let text = format!("prompt {}: {source}", prompt + 1);
                return Err(NotAsked::Hindered(text));
            }
            Err(AnswerError::NoRoom(text) | AnswerError::NoText(text)) => {
                return Err(NotAsked::Hindered(text));
            }
        }
    }
}

/// A text as somebody wrote it: what looks like a special token in it is text.
pub(crate) fn plain(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, String> {
    let encoded = tokenizer.encode(text).map_err(|error| error.to_string())?;
    Ok([tokenizer.prefix_ids(), &encoded.ids].concat())
}

/// The first `n` tokens of a text as a text; none where it has no more.
pub(crate) fn cut(tokenizer: &Tokenizer, text: &str, n: usize) -> Result<Option<String>, String> {
    let ids = tokenizer.encode(text).map_err(|error| error.to_string())?.ids;
    if ids.len() <= n {
        return Ok(None);
    }
    let text = tokenizer.decode(&ids[..n]).map_err(|error| error.to_string())?;
    // Half a character at the cut.
    Ok(Some(text.trim_end_matches('\u{fffd}').to_owned()))
}
