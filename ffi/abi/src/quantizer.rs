//! `forgelm.quantizer/1`: rows of numbers to fewer bytes and back.

use crate::{forgelm_host, forgelm_plugin_error, forgelm_status, forgelm_str, forgelm_tensor};
use std::ffi::{CStr, c_char, c_void};

/// Id of the factory of quantizers.
pub const QUANTIZER_FACTORY: &CStr = c"forgelm.quantizer/1";

/// One quantizer of a library.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_quantizer_descriptor {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Its name in a config.
    pub name: *const c_char,
    /// One line for a person.
    pub summary: *const c_char,
    /// Where the format was published.
    pub source: *const c_char,
    /// Words `key:value`, ended by null; may be null itself.
    pub features: *const *const c_char,
}

/// An instance.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_quantizer {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The plugin's own.
    pub plugin_data: *mut c_void,
    /// Ends the instance.
    pub destroy: Option<unsafe extern "C" fn(quantizer: *const forgelm_quantizer)>,
    /// Bytes of a row of `n_cols` numbers.
    pub bytes_per_row: Option<
        unsafe extern "C" fn(
            quantizer: *const forgelm_quantizer,
            n_cols: usize,
            out: *mut usize,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// [R, C] f32 read to [R, bytes per row] u8 written.
    pub quantize: Option<
        unsafe extern "C" fn(
            quantizer: *const forgelm_quantizer,
            rows: *const forgelm_tensor,
            bytes: *const forgelm_tensor,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// [R, bytes per row] u8 read to [R, C] f32 written.
    pub dequantize: Option<
        unsafe extern "C" fn(
            quantizer: *const forgelm_quantizer,
            bytes: *const forgelm_tensor,
            rows: *const forgelm_tensor,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// A table of functions by its id, or null.
    pub get_extension: Option<
        unsafe extern "C" fn(
            quantizer: *const forgelm_quantizer,
            id: *const c_char,
        ) -> *const c_void,
    >,
}

/// The quantizers of a library.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_quantizer_factory {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Number of quantizers.
    pub count: Option<unsafe extern "C" fn(factory: *const forgelm_quantizer_factory) -> u32>,
    /// One of them.
    pub descriptor: Option<
        unsafe extern "C" fn(
            factory: *const forgelm_quantizer_factory,
            index: u32,
        ) -> *const forgelm_quantizer_descriptor,
    >,
    /// Makes an instance.
    pub create: Option<
        unsafe extern "C" fn(
            factory: *const forgelm_quantizer_factory,
            host: *const forgelm_host,
            index: u32,
            options_json: forgelm_str,
            out: *mut *const forgelm_quantizer,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
}
