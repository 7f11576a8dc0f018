//! Answers of a model to many prompts, of which some cannot be asked.

use crate::subject::{AnswerError, Subject};
use forgelm_generate::{GenerateOptions, Sampling};

/// The likeliest tokens, so many at most.
pub(super) fn greedy(max_new_tokens: usize, stop_ids: &[u32]) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens,
        sampling: Sampling::GREEDY,
        seed: 0,
        stop_ids: stop_ids.to_vec(),
        reuse_cache: false,
    }
}

/// The answer to each prompt, or why it has none: a prompt that is no text for the model, too long for
/// it, or fails in it, costs the others nothing.
pub(super) fn of(
    subject: &Subject<'_>,
    prompts: Vec<Result<Vec<u32>, String>>,
    options: &GenerateOptions,
    n_lanes: usize,
) -> Result<Vec<Result<String, String>>, AnswerError> {
    let positions = subject.positions();
    let is_short = |tokens: Vec<u32>| match tokens.len() < positions {
        true => Ok(tokens),
        false => Err(format!("{} tokens, and the model takes {positions}", tokens.len())),
    };
    let prompts: Vec<Result<Vec<u32>, String>> =
        prompts.into_iter().map(|prompt| prompt.and_then(is_short)).collect();
    let usable: Vec<Vec<u32>> = prompts.iter().flatten().cloned().collect();
    let answered: Vec<Result<String, String>> = match subject.answers(&usable, options, n_lanes) {
        Ok(answers) => answers.into_iter().map(Ok).collect(),
        Err(AnswerError::Prompt { .. }) => {
            let alone = usable.iter().map(|prompt| {
                match subject.answers(std::slice::from_ref(prompt), options, 1) {
                    Ok(mut answers) => Ok(answers.pop().ok_or_else(|| "no answer".to_owned())),
                    Err(AnswerError::Prompt { source, .. }) => Ok(Err(source.to_string())),
                    Err(error) => Err(error),
                }
            });
            alone.collect::<Result<_, _>>()?
        }
        Err(error) => return Err(error),
    };
    let mut answered = answered.into_iter();
    let each = prompts.into_iter().map(|prompt| match prompt {
        Ok(_) => answered.next().unwrap_or_else(|| Err("no answer".to_owned())),
        Err(why) => Err(why),
    });
    Ok(each.collect())
}
