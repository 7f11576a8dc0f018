//! The host's services for evaluators, as the traits that an evaluator sees.

use super::border::Refusal;
use crate::Failed;
use crate::evaluator::{Generate, Score, TextPair, TextScore};
use crate::host::extension;
use crate::options::{OptionValue, to_json};
use forgelm_abi::{
    GENERATE, SCORE, forgelm_generate, forgelm_host, forgelm_plugin_error, forgelm_score,
    forgelm_status, forgelm_str, forgelm_text_pair, forgelm_writer, status,
};
use std::ffi::c_void;

/// `forgelm.score/1` of the host.
pub(super) struct ForeignScore<'a>(&'a forgelm_score);

/// `forgelm.generate/1` of the host.
pub(super) struct ForeignGenerate<'a>(&'a forgelm_generate);

impl<'a> ForeignScore<'a> {
    /// # Safety
    /// The host's table and its extensions are good for `'a`.
    pub(super) unsafe fn of(host: &'a forgelm_host) -> Result<Option<Self>, Refusal> {
        // SAFETY: the caller's promise.
        Ok(unsafe { extension::<forgelm_score>(host, SCORE) }.map(Self))
    }
}

impl<'a> ForeignGenerate<'a> {
    /// # Safety
    /// The host's table and its extensions are good for `'a`.
    pub(super) unsafe fn of(host: &'a forgelm_host) -> Result<Option<Self>, Refusal> {
        // SAFETY: the caller's promise.
        Ok(unsafe { extension::<forgelm_generate>(host, GENERATE) }.map(Self))
    }
}

impl Score for ForeignScore<'_> {
    fn score(&self, pairs: &[TextPair<'_>]) -> Result<Vec<TextScore>, Failed> {
        let score = self.0.score.ok_or_else(|| Failed::new("the host's `score` is NULL"))?;
        let foreign = |pair: &TextPair<'_>| forgelm_text_pair {
            prompt: forgelm_str::new(pair.prompt),
            completion: forgelm_str::new(pair.completion),
        };
        let foreign: Vec<_> = pairs.iter().map(foreign).collect();
        let (mut sums, mut counts) = (vec![0.0; pairs.len()], vec![0; pairs.len()]);
        let mut err = forgelm_plugin_error::new();
        // SAFETY: the host's own function with its own table; as many places as pairs.
        let ended = unsafe {
            score(
                self.0,
                foreign.as_ptr(),
                foreign.len(),
                sums.as_mut_ptr(),
                counts.as_mut_ptr(),
                &raw mut err,
            )
        };
        check(ended, &err)?;
        let both = sums.into_iter().zip(counts);
        Ok(both.map(|(logp_sum, n_tokens)| TextScore { logp_sum, n_tokens }).collect())
    }
}

impl Generate for ForeignGenerate<'_> {
    fn generate(
        &self,
        prompts: &[&str],
        options: &[(&str, OptionValue)],
    ) -> Result<Vec<String>, Failed> {
        let generate = self.0.generate.ok_or_else(|| Failed::new("`generate` is NULL"))?;
        let options = to_json(options).map_err(|error| Failed::new(error.to_string()))?;
        let texts: Vec<_> = prompts.iter().map(|prompt| forgelm_str::new(prompt)).collect();
        let mut answers = vec![Vec::new(); prompts.len()];
        let writer = |answer: &mut Vec<u8>| forgelm_writer {
            ctx: std::ptr::from_mut(answer).cast(),
            write: Some(append),
        };
        let writers: Vec<_> = answers.iter_mut().map(writer).collect();
        let mut err = forgelm_plugin_error::new();
        // SAFETY: the host's own function with its own table; as many writers as prompts.
        let ended = unsafe {
            generate(
                self.0,
                texts.as_ptr(),
                texts.len(),
                forgelm_str::new(&options),
                writers.as_ptr(),
                &raw mut err,
            )
        };
        check(ended, &err)?;
        Ok(answers.iter().map(|answer| String::from_utf8_lossy(answer).into_owned()).collect())
    }
}

/// Appends to the bytes behind a writer.
unsafe extern "C" fn append(ctx: *mut c_void, text: forgelm_str) {
    // SAFETY: the context of a writer is the vector that it was made with, which outlives the call.
    let Some(to) = (unsafe { ctx.cast::<Vec<u8>>().as_mut() }) else { return };
    if !text.ptr.is_null() {
        // SAFETY: borrowed for the call.
        to.extend_from_slice(unsafe { std::slice::from_raw_parts(text.ptr.cast(), text.len) });
    }
}

fn check(ended: forgelm_status, err: &forgelm_plugin_error) -> Result<(), Failed> {
    if ended == status::OK {
        return Ok(());
    }
    Err(Failed::new(err.text()))
}
