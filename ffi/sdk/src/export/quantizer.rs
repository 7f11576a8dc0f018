//! Quantizers as a table: `forgelm.quantizer/1`.

use super::border::{
    Refusal, borrowed, call, destroy, guard, hand_out, leak_features, leak_text, read_options,
    shape_of, size, view, view_mut,
};
use super::device::extension_of_quantizer;
use crate::quantizer::{Descriptor, Quantizer};
use forgelm_abi::{
    forgelm_host, forgelm_plugin_error, forgelm_quantizer, forgelm_quantizer_descriptor,
    forgelm_quantizer_factory, forgelm_status, forgelm_str, forgelm_tensor,
};
use std::ffi::c_char;
use std::ptr::null_mut;

pub(super) type Factory =
    super::factory::Factory<forgelm_quantizer_factory, forgelm_quantizer_descriptor, Descriptor>;

/// The factory of these.
pub(super) fn factory(list: &'static [Descriptor], needs: &[&str]) -> &'static Factory {
    let features = leak_features(needs);
    let table = forgelm_quantizer_factory {
        struct_size: size::<forgelm_quantizer_factory>(),
        reserved: 0,
        count: Some(Factory::count),
        descriptor: Some(Factory::descriptor),
        create: Some(create),
    };
    Factory::leak(table, list, |of| described(of, features))
}

fn described(of: &Descriptor, features: *const *const c_char) -> forgelm_quantizer_descriptor {
    forgelm_quantizer_descriptor {
        struct_size: size::<forgelm_quantizer_descriptor>(),
        reserved: 0,
        name: leak_text(of.name),
        summary: leak_text(of.summary),
        source: leak_text(of.source),
        features,
    }
}

unsafe extern "C" fn create(
    table: *const forgelm_quantizer_factory,
    _host: *const forgelm_host,
    index: u32,
    options_json: forgelm_str,
    out: *mut *const forgelm_quantizer,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    guard(err, || {
        // SAFETY: the host hands back the table that it was given.
        let descriptor = unsafe { Factory::entry(table, index, "quantizer") }?;
        // SAFETY: the text is borrowed for the call.
        let options = unsafe { read_options(options_json) }?;
        let quantizer = (descriptor.build)(&borrowed(&options))?;
        let table = forgelm_quantizer {
            struct_size: size::<forgelm_quantizer>(),
            reserved: 0,
            plugin_data: null_mut(),
            destroy: Some(destroy::<forgelm_quantizer, dyn Quantizer>),
            bytes_per_row: Some(bytes_per_row),
            quantize: Some(quantize),
            dequantize: Some(dequantize),
            get_extension: Some(extension_of_quantizer),
        };
        // SAFETY: `out` is the host's.
        unsafe { hand_out(out, table, quantizer) }
    })
}

unsafe extern "C" fn bytes_per_row(
    table: *const forgelm_quantizer,
    n_cols: usize,
    out: *mut usize,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |quantizer: &(dyn Quantizer + 'static)| {
        // SAFETY: the host's, for the call.
        let out = unsafe { out.as_mut() }.ok_or_else(|| Refusal::argument("`out` is NULL"))?;
        *out = quantizer.bytes_per_row(n_cols)?;
        Ok(())
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_quantizer, dyn Quantizer>(table, err, body) }
}

unsafe extern "C" fn quantize(
    table: *const forgelm_quantizer,
    rows: *const forgelm_tensor,
    bytes: *const forgelm_tensor,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |quantizer: &(dyn Quantizer + 'static)| {
        // SAFETY: views that are borrowed for the call.
        let [n_rows, n_cols] = unsafe { rows_of(rows) }?;
        let n_bytes = quantizer.bytes_per_row(n_cols)?;
        // SAFETY: as above.
        let rows = unsafe { view::<f32>(rows, "rows", &[n_rows, n_cols]) }?;
        // SAFETY: written by this call alone.
        let bytes = unsafe { view_mut::<u8>(bytes, "bytes", &[n_rows, n_bytes]) }?;
        Ok(quantizer.quantize(rows, n_cols, bytes)?)
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_quantizer, dyn Quantizer>(table, err, body) }
}

unsafe extern "C" fn dequantize(
    table: *const forgelm_quantizer,
    bytes: *const forgelm_tensor,
    rows: *const forgelm_tensor,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |quantizer: &(dyn Quantizer + 'static)| {
        // SAFETY: views that are borrowed for the call.
        let [n_rows, n_cols] = unsafe { rows_of(rows) }?;
        let n_bytes = quantizer.bytes_per_row(n_cols)?;
        // SAFETY: as above.
        let bytes = unsafe { view::<u8>(bytes, "bytes", &[n_rows, n_bytes]) }?;
        // SAFETY: written by this call alone.
        let rows = unsafe { view_mut::<f32>(rows, "rows", &[n_rows, n_cols]) }?;
        Ok(quantizer.dequantize(bytes, n_cols, rows)?)
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_quantizer, dyn Quantizer>(table, err, body) }
}

/// # Safety
/// The view is readable during the call.
unsafe fn rows_of(rows: *const forgelm_tensor) -> Result<[usize; 2], Refusal> {
    // SAFETY: the caller's promise.
    let shape = unsafe { shape_of(rows, "rows") }?;
    let wrong = |found: Vec<usize>| Refusal::argument(format!("`rows` has the shape {found:?}"));
    <[usize; 2]>::try_from(shape).map_err(wrong)
}
