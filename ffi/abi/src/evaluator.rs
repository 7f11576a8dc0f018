//! `forgelm.evaluator/1`: judges of a model, over services of the host.

use crate::{forgelm_host, forgelm_plugin_error, forgelm_status, forgelm_str};
use std::ffi::{CStr, c_char, c_void};

/// Id of the factory of evaluators.
pub const EVALUATOR_FACTORY: &CStr = c"forgelm.evaluator/1";
/// Id of the host's [`forgelm_score`].
pub const SCORE: &CStr = c"forgelm.score/1";
/// Id of the host's [`forgelm_generate`].
pub const GENERATE: &CStr = c"forgelm.generate/1";
/// Id of the host's [`forgelm_held_out`].
pub const HELD_OUT: &CStr = c"forgelm.held_out/1";

/// A text and what follows it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct forgelm_text_pair {
    /// What comes first; not scored.
    pub prompt: forgelm_str,
    /// What is scored.
    pub completion: forgelm_str,
}

/// Host service `forgelm.score/1`: log-probabilities of texts under the model.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_score {
    /// Bytes of this struct, as the host knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The host's own.
    pub service_data: *mut c_void,
    /// Scores n pairs.
    pub score: Option<
        unsafe extern "C" fn(
            service: *const forgelm_score,
            pairs: *const forgelm_text_pair,
            n: usize,
            logp_sums: *mut f64,
            n_tokens: *mut u64,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
}

/// Receives a text, whole or in parts.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct forgelm_writer {
    /// First argument of `write`.
    pub ctx: *mut c_void,
    /// Appends; the text is copied.
    pub write: Option<unsafe extern "C" fn(ctx: *mut c_void, text: forgelm_str)>,
}

/// Host service `forgelm.generate/1`: the model's answers.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_generate {
    /// Bytes of this struct, as the host knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The host's own.
    pub service_data: *mut c_void,
    /// Answers n prompts; `answers[i]` receives the i-th.
    pub generate: Option<
        unsafe extern "C" fn(
            service: *const forgelm_generate,
            prompts: *const forgelm_str,
            n: usize,
            options_json: forgelm_str,
            answers: *const forgelm_writer,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
}

/// Host service `forgelm.held_out/1`: the records that the run holds out.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_held_out {
    /// Bytes of this struct, as the host knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The host's own.
    pub service_data: *mut c_void,
    /// Number of records.
    pub count: Option<unsafe extern "C" fn(service: *const forgelm_held_out) -> u64>,
    /// Scores n records.
    pub score: Option<
        unsafe extern "C" fn(
            service: *const forgelm_held_out,
            first: u64,
            n: usize,
            logp_sums: *mut f64,
            n_tokens: *mut u64,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// A record as texts.
    pub text: Option<
        unsafe extern "C" fn(
            service: *const forgelm_held_out,
            record: u64,
            prompt: *const forgelm_writer,
            completion: *const forgelm_writer,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
}

/// One evaluator of a library.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_evaluator_descriptor {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Its name in a config.
    pub name: *const c_char,
    /// One line for a person.
    pub summary: *const c_char,
    /// Where the measure was published.
    pub source: *const c_char,
    /// Words `key:value`, ended by null; may be null itself.
    pub features: *const *const c_char,
}

/// An instance.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_evaluator {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The plugin's own.
    pub plugin_data: *mut c_void,
    /// Ends the instance.
    pub destroy: Option<unsafe extern "C" fn(evaluator: *const forgelm_evaluator)>,
    /// Judges the model behind the services of `host`; writes a JSON object.
    pub evaluate: Option<
        unsafe extern "C" fn(
            evaluator: *const forgelm_evaluator,
            host: *const forgelm_host,
            report: *const forgelm_writer,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// A table of functions by its id, or null.
    pub get_extension: Option<
        unsafe extern "C" fn(
            evaluator: *const forgelm_evaluator,
            id: *const c_char,
        ) -> *const c_void,
    >,
}

/// The evaluators of a library.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_evaluator_factory {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Number of evaluators.
    pub count: Option<unsafe extern "C" fn(factory: *const forgelm_evaluator_factory) -> u32>,
    /// One of them.
    pub descriptor: Option<
        unsafe extern "C" fn(
            factory: *const forgelm_evaluator_factory,
            index: u32,
        ) -> *const forgelm_evaluator_descriptor,
    >,
    /// Makes an instance.
    pub create: Option<
        unsafe extern "C" fn(
            factory: *const forgelm_evaluator_factory,
            host: *const forgelm_host,
            index: u32,
            options_json: forgelm_str,
            out: *mut *const forgelm_evaluator,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
}
