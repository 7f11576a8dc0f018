//! Evaluators as a table: `forgelm.evaluator/1`.

use super::border::{
    Refusal, borrowed, call, destroy, given, guard, hand_out, leak_text, read_options, size,
};
use super::services::{ForeignGenerate, ForeignScore};
use crate::evaluator::{Descriptor, Evaluator, Generate, Score, Services};
use forgelm_abi::{
    forgelm_evaluator, forgelm_evaluator_descriptor, forgelm_evaluator_factory, forgelm_host,
    forgelm_plugin_error, forgelm_status, forgelm_str, forgelm_writer,
};
use serde_json::Value;
use std::ptr::{null, null_mut};

/// The factory's table, and what it is made of.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Factory {
    table: forgelm_evaluator_factory,
    list: &'static [Descriptor],
    descriptors: Vec<forgelm_evaluator_descriptor>,
}

// SAFETY: the pointers inside are to constant texts; nothing changes them.
unsafe impl Sync for Factory {}
// SAFETY: as above.
unsafe impl Send for Factory {}

impl Factory {
    pub(super) fn leak(list: &'static [Descriptor]) -> &'static Self {
        let described = |of: &Descriptor| forgelm_evaluator_descriptor {
            struct_size: size::<forgelm_evaluator_descriptor>(),
            reserved: 0,
            name: leak_text(of.name),
            summary: leak_text(of.summary),
            source: leak_text(of.source),
            features: null(),
        };
        Box::leak(Box::new(Self {
            table: forgelm_evaluator_factory {
                struct_size: size::<forgelm_evaluator_factory>(),
                reserved: 0,
                count: Some(count),
                descriptor: Some(descriptor),
                create: Some(create),
            },
            list,
            descriptors: list.iter().map(described).collect(),
        }))
    }
}

/// # Safety
/// `factory` is null or a [`Factory`].
unsafe fn factory<'a>(factory: *const forgelm_evaluator_factory) -> Option<&'a Factory> {
    // SAFETY: the table is the first field.
    unsafe { factory.cast::<Factory>().as_ref() }
}

unsafe extern "C" fn count(table: *const forgelm_evaluator_factory) -> u32 {
    // SAFETY: the host hands back the table that it was given.
    let factory = unsafe { factory(table) };
    factory.map_or(0, |factory| u32::try_from(factory.list.len()).unwrap_or(0))
}

unsafe extern "C" fn descriptor(
    table: *const forgelm_evaluator_factory,
    index: u32,
) -> *const forgelm_evaluator_descriptor {
    // SAFETY: the host hands back the table that it was given.
    let factory = unsafe { factory(table) };
    factory
        .and_then(|factory| factory.descriptors.get(index as usize))
        .map_or_else(null, std::ptr::from_ref)
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
        let descriptor = unsafe { factory(table) }.and_then(|f| f.list.get(index as usize));
        let descriptor =
            descriptor.ok_or_else(|| Refusal::argument("no evaluator of that index"))?;
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
        let (score, generate) = unsafe { (ForeignScore::of(host)?, ForeignGenerate::of(host)?) };
        let services = Services {
            score: score.as_ref().map(|score| score as &dyn Score),
            generate: generate.as_ref().map(|generate| generate as &dyn Generate),
        };
        let found = Value::Object(evaluator.evaluate(&services)?).to_string();
        // SAFETY: the host's own function and context; the text is copied.
        unsafe { write(writer.ctx, forgelm_str::new(&found)) };
        Ok(())
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_evaluator, dyn Evaluator>(table, err, body) }
}
