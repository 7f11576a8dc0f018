//! The host's services for evaluators, as the traits that an evaluator sees.

use crate::evaluator::{Generate, HeldOut, RecordText, Score, TextPair, TextScore};
use crate::host::extension;
use crate::options::{OptionValue, to_json};
use crate::{Cause, Failed};
use forgelm_abi::{
    GENERATE, HELD_OUT, SCORE, forgelm_generate, forgelm_held_out, forgelm_host,
    forgelm_plugin_error, forgelm_score, forgelm_status, forgelm_str, forgelm_text_pair,
    forgelm_writer, status,
};
use std::ffi::c_void;

/// `forgelm.score/1` of the host.
pub(super) struct ForeignScore<'a>(&'a forgelm_score);

/// `forgelm.generate/1` of the host.
pub(super) struct ForeignGenerate<'a>(&'a forgelm_generate);

/// `forgelm.held_out/1` of the host.
pub(super) struct ForeignHeldOut<'a>(&'a forgelm_held_out);

impl<'a> ForeignScore<'a> {
    /// # Safety
    /// The host's table and its extensions are good for `'a`.
    pub(super) unsafe fn of(host: &'a forgelm_host) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe { extension::<forgelm_score>(host, SCORE) }.map(Self)
    }
}

impl<'a> ForeignGenerate<'a> {
    /// # Safety
    /// The host's table and its extensions are good for `'a`.
    pub(super) unsafe fn of(host: &'a forgelm_host) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe { extension::<forgelm_generate>(host, GENERATE) }.map(Self)
    }
}

impl<'a> ForeignHeldOut<'a> {
    /// # Safety
    /// The host's table and its extensions are good for `'a`.
    pub(super) unsafe fn of(host: &'a forgelm_host) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe { extension::<forgelm_held_out>(host, HELD_OUT) }.map(Self)
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
        Ok(scores(sums, counts))
    }
}

fn scores(sums: Vec<f64>, counts: Vec<u64>) -> Vec<TextScore> {
    let both = sums.into_iter().zip(counts);
    both.map(|(logp_sum, n_tokens)| TextScore { logp_sum, n_tokens }).collect()
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
        Ok(answers.iter().map(|answer| text(answer)).collect())
    }
}

impl HeldOut for ForeignHeldOut<'_> {
    fn n_records(&self) -> u64 {
        // SAFETY: the host's own function with its own table.
        self.0.count.map_or(0, |count| unsafe { count(self.0) })
    }

    fn score(&self, first: u64, n: usize) -> Result<Vec<TextScore>, Failed> {
        let score = self.0.score.ok_or_else(|| Failed::new("the host's `score` is NULL"))?;
        let (mut sums, mut counts) = (vec![0.0; n], vec![0; n]);
        let mut err = forgelm_plugin_error::new();
        // SAFETY: the host's own function with its own table; as many places as records.
        let ended = unsafe {
            score(self.0, first, n, sums.as_mut_ptr(), counts.as_mut_ptr(), &raw mut err)
        };
        check(ended, &err)?;
        Ok(scores(sums, counts))
    }

    fn text(&self, record: u64) -> Result<RecordText, Failed> {
        let read = self.0.text.ok_or_else(|| Failed::new("the host's `text` is NULL"))?;
        let (mut prompt, mut completion) = (Vec::new(), Vec::new());
        let (to_prompt, to_completion) = (writer(&mut prompt), writer(&mut completion));
        let mut err = forgelm_plugin_error::new();
        // SAFETY: the host's own function with its own table; both writers live until it returns.
        let ended = unsafe {
            read(self.0, record, &raw const to_prompt, &raw const to_completion, &raw mut err)
        };
        check(ended, &err)?;
        Ok(RecordText { prompt: text(&prompt), completion: text(&completion) })
    }
}

/// Appends to these bytes, which outlive the call that gets the writer.
fn writer(to: &mut Vec<u8>) -> forgelm_writer {
    forgelm_writer { ctx: std::ptr::from_mut(to).cast(), write: Some(append) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
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
    let cause = match ended {
        status::OK => return Ok(()),
        status::INVALID_ARGUMENT => Cause::Argument,
        status::CANCELLED => Cause::Cancelled,
        status::DEADLINE => Cause::Deadline,
        _ => Cause::Work,
    };
    Err(Failed { message: err.text(), cause })
}
