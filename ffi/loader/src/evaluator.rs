//! Evaluators of a library, as the trait that the host calls.

mod services;

use crate::border::{Caller, Poison, call, first_missing, lossy};
use crate::error::Problem;
use crate::factory::{self, Offer};
use crate::float_mode::KeepFloatMode;
use crate::host::Host;
use forgelm_abi::{
    forgelm_evaluator, forgelm_evaluator_descriptor, forgelm_evaluator_factory, forgelm_str,
    forgelm_writer,
};
use forgelm_plugin::{Evaluators, Kind, Origin, Plugin};
use forgelm_sdk::evaluator::{Evaluator, Report, Services};
use forgelm_sdk::{Failed, OptionValue, OptionsError};
use serde_json::Value;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a report, at most: it becomes part of the run's documents.
pub(crate) const REPORT_MAX: usize = 1 << 20;

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
            caller: entry.caller.of_one_caller(entry.host),
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
        let behind = services::Behind::new(model, self.host.life());
        let host = self.host.with_services(behind.tables());
        let mut written: Vec<u8> = Vec::new();
        let writer = forgelm_writer { ctx: (&raw mut written).cast(), write: Some(append) };
        // SAFETY: checked when it was created.
        let evaluate = unsafe { (*self.instance).evaluate };
        let Some(evaluate) = evaluate else { return Err(self.caller.failed("`evaluate` is NULL")) };
        call(&self.caller, &self.poison, |err| {
            // SAFETY: the plugin's own function; everything lives until it returns.
            unsafe { evaluate(self.instance, host.table(), &raw const writer, err) }
        })?;
        report(&written).map_err(|problem| self.caller.failed(&problem))
    }
}

/// Appends to the bytes behind a writer, up to what a report may have and a little more, so that one
/// that is too long is seen as such.
unsafe extern "C" fn append(ctx: *mut c_void, text: forgelm_str) {
    // SAFETY: the context of a writer is the vector that it was made with, which outlives the call.
    let Some(to) = (unsafe { ctx.cast::<Vec<u8>>().as_mut() }) else { return };
    if to.len() <= REPORT_MAX {
        // SAFETY: readable during the call.
        to.extend_from_slice(unsafe { lossy(text) }.as_bytes());
    }
}

/// A report out of what was written: a JSON object without null.
fn report(written: &[u8]) -> Result<Report, String> {
    if written.len() > REPORT_MAX {
        return Err(format!("its report has more than {REPORT_MAX} bytes"));
    }
    let report: Report = serde_json::from_slice(written).map_err(|error| {
        format!("its report is no JSON object: {error}\n  hint: JSON has no NaN and no infinity")
    })?;
    match report.iter().find_map(|(key, value)| null_in(value).map(|rest| format!("{key}{rest}"))) {
        None => Ok(report),
        Some(place) => Err(format!(
            "its report has null at `{place}`; expected a value\n  hint: null is what becomes of a \
             number that is not finite; leave out what there is not"
        )),
    }
}

/// Where a value is null, as the rest of its path.
fn null_in(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(i, item)| null_in(item).map(|rest| format!("[{i}]{rest}"))),
        Value::Object(members) => members
            .iter()
            .find_map(|(key, member)| null_in(member).map(|rest| format!(".{key}{rest}"))),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_is_no_object_of_values_is_refused() {
        let refused = |text: &str| report(text.as_bytes()).expect_err("refused");
        assert!(refused("").starts_with("its report is no JSON object: EOF"));
        assert!(refused("[1]").contains("is no JSON object"));
        assert!(refused("{\"loss\": NaN}").contains("JSON has no NaN"));
        assert!(refused("{\"loss\": 1e999}").contains("number out of range"));
        assert!(refused("{\"loss\": 1} {}").contains("trailing characters"));
        let null = refused("{\"a\": {\"b\": [1, {\"c\": null}]}}");
        assert!(null.starts_with("its report has null at `a.b[1].c`; expected a value"), "{null}");
        let long = format!("{{\"a\": \"{}\"}}", "x".repeat(REPORT_MAX));
        assert_eq!(refused(&long), "its report has more than 1048576 bytes");
        assert_eq!(report(b"{\"a\": [0, false, \"\"]}").expect("a report").len(), 1);
    }
}
