//! `forgelm.merge_method/1`: ways to make one model of several.

use crate::{forgelm_host, forgelm_plugin_error, forgelm_status, forgelm_str, forgelm_tensor};
use std::ffi::{CStr, c_char, c_void};

/// Id of the factory of merge methods.
pub const MERGE_METHOD_FACTORY: &CStr = c"forgelm.merge_method/1";

/// How much of a tensor a method must see at once.
pub mod merge_scope {
    /// One element of each input, and the facts, make one element of the result.
    pub const ELEMENTS: u32 = 0;
    /// Every piece is a whole tensor.
    pub const TENSOR: u32 = 1;
}

/// What one pass over a tensor measures.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct forgelm_merge_pass {
    /// Numbers that each piece adds to.
    pub n_sums: usize,
    /// Numbers concluded from them.
    pub n_facts: usize,
}

/// The tensor that is being merged.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_merge_tensor {
    /// Bytes of this struct, as the host knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Its name, as in the model's files.
    pub name: forgelm_str,
    /// Elements of the whole tensor.
    pub len: usize,
    /// What the passes so far found, end to end.
    pub facts: *const f64,
    /// Number of facts.
    pub n_facts: usize,
}

/// A part of a tensor: n elements, the same in all inputs.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_merge_piece {
    /// Bytes of this struct, as the host knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The tensor that it is of.
    pub tensor: *const forgelm_merge_tensor,
    /// Index of the first element.
    pub start: usize,
    /// [n] f32 of the base model, or null.
    pub base: *const forgelm_tensor,
    /// [n] f32 of each input, in the order of the weights.
    pub inputs: *const forgelm_tensor,
    /// Number of inputs.
    pub n_inputs: usize,
}

/// One merge method of a library.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_merge_method_descriptor {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// One of [`merge_scope`].
    pub scope: u32,
    /// Fewest models that it can merge.
    pub n_inputs_min: usize,
    /// Most models that it can merge.
    pub n_inputs_max: usize,
    /// Value of `merge.method`.
    pub name: *const c_char,
    /// One line for a person.
    pub summary: *const c_char,
    /// Where the method was published.
    pub source: *const c_char,
    /// Words `key:value`, ended by null; may be null itself.
    pub features: *const *const c_char,
}

/// An instance.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_merge_method {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// 1 if it reads the base model's values, 0 if not; constant.
    pub reads_base: u32,
    /// The plugin's own.
    pub plugin_data: *mut c_void,
    /// Ends the instance.
    pub destroy: Option<unsafe extern "C" fn(method: *const forgelm_merge_method)>,
    /// The passes that a tensor needs before it is merged; constant.
    pub passes: *const forgelm_merge_pass,
    /// Number of passes.
    pub n_passes: usize,
    /// Adds what a piece has to the sums of a pass; not null if there are passes.
    pub measure: Option<
        unsafe extern "C" fn(
            method: *const forgelm_merge_method,
            pass: usize,
            piece: *const forgelm_merge_piece,
            sums: *mut f64,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// What the sums of a pass say; not null if there are passes.
    pub conclude: Option<
        unsafe extern "C" fn(
            method: *const forgelm_merge_method,
            pass: usize,
            tensor: *const forgelm_merge_tensor,
            sums: *const f64,
            facts: *mut f64,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Merges one piece.
    pub merge: Option<
        unsafe extern "C" fn(
            method: *const forgelm_merge_method,
            piece: *const forgelm_merge_piece,
            out: *const forgelm_tensor,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// A table of functions by its id, or null.
    pub get_extension: Option<
        unsafe extern "C" fn(
            method: *const forgelm_merge_method,
            id: *const c_char,
        ) -> *const c_void,
    >,
}

/// The merge methods of a library.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_merge_method_factory {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Number of methods.
    pub count: Option<unsafe extern "C" fn(factory: *const forgelm_merge_method_factory) -> u32>,
    /// One of them.
    pub descriptor: Option<
        unsafe extern "C" fn(
            factory: *const forgelm_merge_method_factory,
            index: u32,
        ) -> *const forgelm_merge_method_descriptor,
    >,
    /// Makes an instance for these weights, one for each input.
    pub create: Option<
        unsafe extern "C" fn(
            factory: *const forgelm_merge_method_factory,
            host: *const forgelm_host,
            index: u32,
            options_json: forgelm_str,
            weights: *const f64,
            n_weights: usize,
            out: *mut *const forgelm_merge_method,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
}
