//! Evaluators as a table: `forgelm.evaluator/1`.

use super::border::{
    Refusal, borrowed, call, destroy, given, guard, hand_out, leak_features, leak_text,
    read_options, size,
};
use super::services::{ForeignGenerate, ForeignHeldOut, ForeignScore};
use crate::evaluator::{Descriptor, Evaluator, Generate, HeldOut, Score, Services};
use forgelm_abi::{
    forgelm_evaluator, forgelm_evaluator_descriptor, forgelm_evaluator_factory, forgelm_host,
    forgelm_plugin_error, forgelm_status, forgelm_str, forgelm_writer,
};
use serde_json::Value;
use std::ffi::c_char;
use std::ptr::null_mut;

pub(super) type Factory =
    super::factory::Factory<forgelm_evaluator_factory, forgelm_evaluator_descriptor, Descriptor>;

/// The factory of these.
pub(super) fn factory(list: &'static [Descriptor], needs: &[&str]) -> &'static Factory {
    let features = leak_features(needs);
    let table = forgelm_evaluator_factory {
        struct_size: size::<forgelm_evaluator_factory>(),
        reserved: 0,
        count: Some(Factory::count),
        descriptor: Some(Factory::descriptor),
        create: Some(create),
    };
    Factory::leak(table, list, |of| described(of, features))
}

fn described(of: &Descriptor, features: *const *const c_char) -> forgelm_evaluator_descriptor {
    forgelm_evaluator_descriptor {
        struct_size: size::<forgelm_evaluator_descriptor>(),
        reserved: 0,
        name: leak_text(of.name),
        summary: leak_text(of.summary),
        source: leak_text(of.source),
        features,
    }
}

unsafe extern "C" fn create(
    table: *const forgelm_evaluator_factory,
    _host: *const forgelm_host,
    index: u32,
    options_json: forgelm_str,
    out: *mut *const forgelm_evaluator,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    guard(err, || {
        // SAFETY: the host hands back the table that it was given.
        let descriptor = unsafe { Factory::entry(table, index, "evaluator") }?;
        // SAFETY: the text is borrowed for the call.
        let options = unsafe { read_options(options_json) }?;
        let evaluator = (descriptor.build)(&borrowed(&options))?;
        let table = forgelm_evaluator {
            struct_size: size::<forgelm_evaluator>(),
            reserved: 0,
            plugin_data: null_mut(),
            destroy: Some(destroy::<forgelm_evaluator, dyn Evaluator>),
            evaluate: Some(evaluate),
            get_extension: None,
        };
        // SAFETY: `out` is the host's.
        unsafe { hand_out(out, table, evaluator) }
    })
}

unsafe extern "C" fn evaluate(
    table: *const forgelm_evaluator,
    host: *const forgelm_host,
    report: *const forgelm_writer,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |evaluator: &(dyn Evaluator + 'static)| {
        // SAFETY: borrowed for the call.
        let host = unsafe { given(host, "host") }?;
        // SAFETY: likewise.
        let writer = unsafe { given(report, "report") }?;
        let write = writer.write.ok_or_else(|| Refusal::argument("`report` has no function"))?;
        // SAFETY: the host's table, for the call.
        let (score, generate) = unsafe { (ForeignScore::of(host), ForeignGenerate::of(host)) };
        // SAFETY: as above.
        let held_out = unsafe { ForeignHeldOut::of(host) };
        let services = Services {
            score: score.as_ref().map(|score| score as &dyn Score),
            generate: generate.as_ref().map(|generate| generate as &dyn Generate),
            held_out: held_out.as_ref().map(|held_out| held_out as &dyn HeldOut),
        };
        let found = Value::Object(evaluator.evaluate(&services)?).to_string();
        // SAFETY: the host's own function and context; the text is copied.
        unsafe { write(writer.ctx, forgelm_str::new(&found)) };
        Ok(())
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_evaluator, dyn Evaluator>(table, err, body) }
}
