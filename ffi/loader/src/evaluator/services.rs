//! The host's services for one call of an evaluator, as the tables that a plugin reads.

use crate::border::{lossy, size};
use crate::host::ForEvaluator;
use crate::service::{Refusal, serve};
use crate::watch::{Life, Serving};
use forgelm_abi::{
    forgelm_generate, forgelm_held_out, forgelm_plugin_error, forgelm_score, forgelm_status,
    forgelm_str, forgelm_text_pair, forgelm_writer,
};
use forgelm_sdk::evaluator::{HeldOut, Services, TextPair, TextScore};
use forgelm_sdk::options::from_json;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::from_ref;
use std::thread::{ThreadId, current};

/// What stands behind the tables of one call: the services, and who is told while they work.
pub(super) struct Behind<'a> {
    model: &'a Services<'a>,
    life: &'a Life,
    /// The one that calls `evaluate`.
    thread: ThreadId,
}

impl<'a> Behind<'a> {
    pub(super) fn new(model: &'a Services<'a>, life: &'a Life) -> Self {
        Self { model, life, thread: current().id() }
    }

    /// The tables, good for as long as this.
    pub(super) fn tables(&self) -> ForEvaluator {
        let service_data: *mut c_void = from_ref(self).cast_mut().cast();
        ForEvaluator {
            score: self.model.score.map(|_| forgelm_score {
                struct_size: size::<forgelm_score>(),
                reserved: 0,
                service_data,
                score: Some(score),
            }),
            generate: self.model.generate.map(|_| forgelm_generate {
                struct_size: size::<forgelm_generate>(),
                reserved: 0,
                service_data,
                generate: Some(generate),
            }),
            held_out: self.model.held_out.map(|_| forgelm_held_out {
                struct_size: size::<forgelm_held_out>(),
                reserved: 0,
                service_data,
                count: Some(held_out_count),
                score: Some(held_out_score),
                text: Some(held_out_text),
            }),
        }
    }
}

fn null() -> Refusal {
    Refusal::argument("an argument is NULL")
}

/// What stands behind a table, by its `service_data`.
///
/// # Safety
/// Null, or the pointer of a table of the call in progress, which [`Behind`] outlives.
unsafe fn behind<'a>(service_data: *mut c_void) -> Result<&'a Behind<'a>, Refusal> {
    // SAFETY: the caller's promise.
    let behind = unsafe { service_data.cast::<Behind<'a>>().as_ref() }.ok_or_else(null)?;
    if behind.thread != current().id() {
        return Err(Refusal::argument("only the thread that `evaluate` was called on may ask"));
    }
    Ok(behind)
}

/// # Safety
/// There are as many places as scores in both.
unsafe fn write_scores(scores: &[TextScore], logp_sums: *mut f64, n_tokens: *mut u64) {
    for (i, score) in scores.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            logp_sums.add(i).write(score.logp_sum);
            n_tokens.add(i).write(score.n_tokens);
        }
    }
}

/// # Safety
/// The writer is null or the plugin's, during the call.
unsafe fn write(writer: *const forgelm_writer, text: &str) -> Result<(), Refusal> {
    // SAFETY: the caller's promise.
    let writer = unsafe { writer.as_ref() }.ok_or_else(null)?;
    let write = writer.write.ok_or_else(|| Refusal::argument("a writer has no function"))?;
    // SAFETY: the plugin's own function and context.
    unsafe { write(writer.ctx, forgelm_str::new(text)) };
    Ok(())
}

unsafe extern "C" fn score(
    table: *const forgelm_score,
    pairs: *const forgelm_text_pair,
    n: usize,
    logp_sums: *mut f64,
    n_tokens: *mut u64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        if n == 0 {
            return Ok(());
        }
        if table.is_null() || pairs.is_null() || logp_sums.is_null() || n_tokens.is_null() {
            return Err(null());
        }
        // SAFETY: the table of the call in progress.
        let behind = unsafe { behind((*table).service_data) }?;
        let (service, _working) = (behind.model.score.ok_or_else(null)?, behind.life.serving());
        // SAFETY: as many pairs as the plugin says, readable during the call.
        let pairs = unsafe { std::slice::from_raw_parts(pairs, n) };
        // SAFETY: texts are readable during the call.
        let text = |text| unsafe { lossy(text) };
        let texts: Vec<_> =
            pairs.iter().map(|pair| (text(pair.prompt), text(pair.completion))).collect();
        let pairs: Vec<TextPair<'_>> =
            texts.iter().map(|(prompt, completion)| TextPair { prompt, completion }).collect();
        let scores = service.score(&pairs)?;
        // SAFETY: n places each, as the header says.
        unsafe { write_scores(&scores[..n], logp_sums, n_tokens) };
        Ok(())
    })
}

unsafe extern "C" fn generate(
    table: *const forgelm_generate,
    prompts: *const forgelm_str,
    n: usize,
    options_json: forgelm_str,
    answers: *const forgelm_writer,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        if n == 0 {
            return Ok(());
        }
        if table.is_null() || prompts.is_null() || answers.is_null() {
            return Err(null());
        }
        // SAFETY: the table of the call in progress.
        let behind = unsafe { behind((*table).service_data) }?;
        let (service, _working) = (behind.model.generate.ok_or_else(null)?, behind.life.serving());
        // SAFETY: as many as the plugin says, readable during the call; so below.
        let (prompts, answers) = unsafe {
            (std::slice::from_raw_parts(prompts, n), std::slice::from_raw_parts(answers, n))
        };
        // SAFETY: as above.
        let prompts: Vec<_> = prompts.iter().map(|prompt| unsafe { lossy(*prompt) }).collect();
        let prompts: Vec<&str> = prompts.iter().map(AsRef::as_ref).collect();
        // SAFETY: as above.
        let options = from_json(match &*unsafe { lossy(options_json) } {
            "" => "{}",
            json => json,
        });
        let options = options.map_err(|error| Refusal::argument(error.to_string()))?;
        let options: Vec<_> = options.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        for (writer, text) in answers.iter().zip(service.generate(&prompts, &options)?) {
            // SAFETY: as above.
            unsafe { write(writer, &text) }?;
        }
        Ok(())
    })
}

/// The service behind a table, and a guard while it works.
///
/// # Safety
/// The table is null or that of the call in progress.
unsafe fn held_out<'a>(
    table: *const forgelm_held_out,
) -> Result<(&'a dyn HeldOut, Serving<'a>), Refusal> {
    // SAFETY: the caller's promise.
    let table = unsafe { table.as_ref() }.ok_or_else(null)?;
    // SAFETY: likewise.
    let behind = unsafe { behind(table.service_data) }?;
    Ok((behind.model.held_out.ok_or_else(null)?, behind.life.serving()))
}

unsafe extern "C" fn held_out_count(table: *const forgelm_held_out) -> u64 {
    let count = || {
        // SAFETY: plugins hand back the table that they were given.
        unsafe { held_out(table) }.map_or(0, |(service, _working)| service.n_records())
    };
    catch_unwind(AssertUnwindSafe(count)).unwrap_or(0)
}

unsafe extern "C" fn held_out_score(
    table: *const forgelm_held_out,
    first: u64,
    n: usize,
    logp_sums: *mut f64,
    n_tokens: *mut u64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: plugins hand back the table that they were given.
        let (service, _working) = unsafe { held_out(table) }?;
        if n == 0 {
            return Ok(());
        }
        if logp_sums.is_null() || n_tokens.is_null() {
            return Err(null());
        }
        let scores = service.score(first, n)?;
        // SAFETY: n places each, as the header says.
        unsafe { write_scores(&scores[..n], logp_sums, n_tokens) };
        Ok(())
    })
}

unsafe extern "C" fn held_out_text(
    table: *const forgelm_held_out,
    record: u64,
    prompt: *const forgelm_writer,
    completion: *const forgelm_writer,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: plugins hand back the table that they were given.
        let (service, _working) = unsafe { held_out(table) }?;
        let text = service.text(record)?;
        // SAFETY: null, or the plugin's, during the call.
        unsafe { write(prompt, &text.prompt) }?;
        // SAFETY: as above.
        unsafe { write(completion, &text.completion) }
    })
}
