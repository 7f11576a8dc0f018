//! Evaluators of a library, as the trait that the host calls; and the host's services for them.

use crate::border::{Caller, Poison, call, first_missing, lossy, size};
use crate::error::Problem;
use crate::factory::{self, Offer};
use crate::float_mode::KeepFloatMode;
use crate::host::Host;
use crate::service::{Refusal, serve};
use crate::watch::Watch;
use forgelm_abi::{
    forgelm_evaluator, forgelm_evaluator_descriptor, forgelm_evaluator_factory, forgelm_generate,
    forgelm_plugin_error, forgelm_score, forgelm_status, forgelm_str, forgelm_text_pair,
    forgelm_writer,
};
use forgelm_plugin::{Evaluators, Kind, Origin, Plugin};
use forgelm_sdk::evaluator::{Evaluator, Generate, Report, Score, Services, TextPair};
use forgelm_sdk::options::from_json;
use forgelm_sdk::{Failed, OptionValue, OptionsError};
use std::ffi::c_void;
use std::ptr::from_ref;
use std::sync::{Arc, Mutex, PoisonError};

/// The evaluators behind a factory; none if it is null.
pub(crate) fn offers(
    factory: *const c_void,
    host: &'static Host,
    origin: &Arc<Origin>,
) -> Result<Vec<Plugin<Evaluators>>, Problem> {
    let read = |_: &forgelm_evaluator_descriptor, entry: Offer<forgelm_evaluator_factory>| {
        let build: Arc<<Evaluators as Kind>::Build> =
            Arc::new(move |options: &[(&str, OptionValue)]| {
                let evaluator = Foreign::create(&entry, options)?;
                Ok(Box::new(evaluator) as Box<dyn Evaluator>)
            });
        Ok(((), build))
    };
    factory::offers(factory, host, origin, read)
}

/// An instance.
struct Foreign {
    instance: *const forgelm_evaluator,
    host: &'static Host,
    caller: Caller,
    poison: Poison,
    one_call_at_a_time: Mutex<()>,
}

// SAFETY: the header lets any thread call an instance, one call at a time, which the lock holds.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

impl Foreign {
    fn create(
        entry: &Offer<forgelm_evaluator_factory>,
        options: &[(&str, OptionValue)],
    ) -> Result<Self, OptionsError> {
        let missing = |found: &forgelm_evaluator| {
            first_missing(&[
                (found.evaluate.is_none(), "evaluate"),
                (found.destroy.is_none(), "destroy"),
            ])
        };
        let create = |options, out, err| {
            let create = entry.factory.create?;
            // SAFETY: the plugin's own function with its own table; the rest lives long enough.
            Some(unsafe {
                create(entry.factory, entry.host.table(), entry.index, options, out, err)
            })
        };
        let instance = entry.create(options, "forgelm_evaluator", missing, create)?;
        let (poison, one_call_at_a_time) = (Poison::default(), Mutex::new(()));
        Ok(Self {
            instance,
            host: entry.host,
            caller: entry.caller.clone(),
            poison,
            one_call_at_a_time,
        })
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _mode = KeepFloatMode::new();
        // SAFETY: checked when it was created, and not destroyed before.
        if let Some(destroy) = unsafe { (*self.instance).destroy } {
            // SAFETY: the plugin's own function with its own instance; no call is running.
            unsafe { destroy(self.instance) };
        }
    }
}

impl Evaluator for Foreign {
    fn evaluate(&self, model: &Services<'_>) -> Result<Report, Failed> {
        let one_at_a_time = self.one_call_at_a_time.lock();
        let _one_at_a_time = one_at_a_time.unwrap_or_else(PoisonError::into_inner);
        let watch = self.host.watcher();
        let score_behind = model.score.map(|service| Served { service, watch });
        let generate_behind = model.generate.map(|service| Served { service, watch });
        let host = self.host.with_services(
            score_behind.as_ref().map(|served| forgelm_score {
                struct_size: size::<forgelm_score>(),
                reserved: 0,
                service_data: from_ref(served).cast_mut().cast(),
                score: Some(score),
            }),
            generate_behind.as_ref().map(|served| forgelm_generate {
                struct_size: size::<forgelm_generate>(),
                reserved: 0,
                service_data: from_ref(served).cast_mut().cast(),
                generate: Some(generate),
            }),
        );
        let mut written: Vec<u8> = Vec::new();
        let writer = forgelm_writer { ctx: (&raw mut written).cast(), write: Some(append) };
        // SAFETY: checked when it was created.
        let evaluate = unsafe { (*self.instance).evaluate };
        let Some(evaluate) = evaluate else { return Err(self.caller.failed("`evaluate` is NULL")) };
        call(&self.caller, &self.poison, |err| {
            // SAFETY: the plugin's own function; everything lives until it returns.
            unsafe { evaluate(self.instance, host.table(), &raw const writer, err) }
        })?;
        serde_json::from_slice(&written)
            .map_err(|error| self.caller.failed(&format!("its report is no JSON object: {error}")))
    }
}

/// A service behind a table, and who is told that it works.
struct Served<'a, Service: ?Sized> {
    service: &'a Service,
    watch: &'a Watch,
}

/// Appends to the bytes behind a writer.
unsafe extern "C" fn append(ctx: *mut c_void, text: forgelm_str) {
    // SAFETY: the context of a writer is the vector that it was made with, which outlives the call.
    let Some(to) = (unsafe { ctx.cast::<Vec<u8>>().as_mut() }) else { return };
    // SAFETY: readable during the call.
    to.extend_from_slice(unsafe { lossy(text) }.as_bytes());
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
        let is_null =
            table.is_null() || pairs.is_null() || logp_sums.is_null() || n_tokens.is_null();
        if n == 0 {
            return Ok(());
        }
        if is_null {
            return Err(Refusal::argument("an argument is NULL"));
        }
        // SAFETY: the table of the call in progress, whose service outlives it.
        let served = unsafe { &*(*table).service_data.cast::<Served<'_, dyn Score>>() };
        let (service, _working) = (served.service, served.watch.serving());
        // SAFETY: as many pairs as the plugin says, readable during the call.
        let pairs = unsafe { std::slice::from_raw_parts(pairs, n) };
        // SAFETY: texts are readable during the call.
        let text = |text| unsafe { lossy(text) };
        let texts: Vec<_> =
            pairs.iter().map(|pair| (text(pair.prompt), text(pair.completion))).collect();
        let pairs: Vec<TextPair<'_>> =
            texts.iter().map(|(prompt, completion)| TextPair { prompt, completion }).collect();
        let scores = service.score(&pairs)?;
        for (i, score) in scores.iter().take(n).enumerate() {
            // SAFETY: n places each, as the header says.
            unsafe {
                logp_sums.add(i).write(score.logp_sum);
                n_tokens.add(i).write(score.n_tokens);
            }
        }
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
            return Err(Refusal::argument("an argument is NULL"));
        }
        // SAFETY: the table of the call in progress, whose service outlives it.
        let served = unsafe { &*(*table).service_data.cast::<Served<'_, dyn Generate>>() };
        let (service, _working) = (served.service, served.watch.serving());
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
        let options = options.map_err(|error| Failed::new(error.to_string()))?;
        let options: Vec<_> = options.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        for (writer, text) in answers.iter().zip(service.generate(&prompts, &options)?) {
            let write = writer.write.ok_or_else(|| Failed::new("a writer has no function"))?;
            // SAFETY: the plugin's own function and context.
            unsafe { write(writer.ctx, forgelm_str::new(&text)) };
        }
        Ok(())
    })
}
