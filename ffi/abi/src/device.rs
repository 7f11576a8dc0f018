//! `forgelm.device_kernels/1`: the device of a run, its memory, its stream and kernels on it; and what
//! merge methods and quantizers offer that work on it.

use crate::{
    forgelm_device, forgelm_dtype, forgelm_merge_method, forgelm_merge_piece, forgelm_plugin_error,
    forgelm_quantizer, forgelm_status, forgelm_str, forgelm_tensor,
};
use std::ffi::{CStr, c_void};

/// Id of the host's [`forgelm_device_kernels`].
pub const DEVICE_KERNELS: &CStr = c"forgelm.device_kernels/1";
/// Id of a merge method's [`forgelm_merge_method_on_device`].
pub const MERGE_METHOD_ON_DEVICE: &CStr = c"forgelm.merge_method_on_device/1";
/// Id of a quantizer's [`forgelm_quantizer_on_device`].
pub const QUANTIZER_ON_DEVICE: &CStr = c"forgelm.quantizer_on_device/1";

/// How `merge_ties` elects a sign.
pub mod election {
    /// Each model has one vote.
    pub const VOTES: u32 = 0;
    /// By the weighted sum.
    pub const SUM: u32 = 1;
}

/// DLPack's `DLManagedTensor`: a tensor that belongs to whoever has it.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_managed_tensor {
    /// What it is.
    pub tensor: forgelm_tensor,
    /// Its maker's own.
    pub manager_ctx: *mut c_void,
    /// Frees it.
    pub deleter: Option<unsafe extern "C" fn(tensor: *mut forgelm_managed_tensor)>,
}

/// The models that are merged.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct forgelm_device_models {
    /// [n_inputs] tensors of the same length.
    pub inputs: *const forgelm_tensor,
    /// How many there are.
    pub n_inputs: usize,
    /// The base model; null where it is not read.
    pub base: *const forgelm_tensor,
}

/// Which changes `merge_dare` drops.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct forgelm_drop_mask {
    /// Low half of the key of the random words.
    pub key_low: u32,
    /// High half.
    pub key_high: u32,
    /// A change stays if its word is below this; 2^32 keeps all.
    pub kept_below: u64,
    /// Place of the first element in its tensor.
    pub start: u64,
}

/// Host service `forgelm.device_kernels/1`.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_device_kernels {
    /// Bytes of this struct, as the host knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The host's own.
    pub service_data: *mut c_void,
    /// Where tensors of the device lie.
    pub device: forgelm_device,
    /// The stream of everything: a `CUstream`.
    pub stream: *mut c_void,
    /// Memory of the run's pool.
    pub allocate: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_device_kernels,
            dtype: forgelm_dtype,
            ndim: i32,
            shape: *const i64,
            out: *mut *mut forgelm_managed_tensor,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Numbers of the host to the device.
    pub upload: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_device_kernels,
            to: *const forgelm_tensor,
            from: *const c_void,
            n_bytes: usize,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Numbers of the device to the host.
    pub download: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_device_kernels,
            to: *mut c_void,
            from: *const forgelm_tensor,
            n_bytes: usize,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Waits for all work of the stream.
    pub synchronize: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_device_kernels,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// A weighted sum of models.
    pub merge_linear: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_device_kernels,
            out: *const forgelm_tensor,
            models: *const forgelm_device_models,
            shares: *const f64,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Two models, or what they changed, times a coefficient each.
    pub merge_slerp: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_device_kernels,
            out: *const forgelm_tensor,
            models: *const forgelm_device_models,
            coefficients: *const f64,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Counts magnitudes of changes by some of their bits.
    pub ties_count: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_device_kernels,
            models: *const forgelm_device_models,
            prefixes: *const u32,
            shift: u32,
            bits: u32,
            counts: *mut u64,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Trim, elect sign, merge.
    pub merge_ties: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_device_kernels,
            out: *const forgelm_tensor,
            models: *const forgelm_device_models,
            thresholds: *const u32,
            shares: *const f64,
            election: u32,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Drop and rescale.
    pub merge_dare: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_device_kernels,
            out: *const forgelm_tensor,
            models: *const forgelm_device_models,
            factors: *const f64,
            mask: *const forgelm_drop_mask,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Rows to bytes.
    pub quantize: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_device_kernels,
            format: forgelm_str,
            rows: *const forgelm_tensor,
            bytes: *const forgelm_tensor,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Bytes to rows.
    pub dequantize: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_device_kernels,
            format: forgelm_str,
            bytes: *const forgelm_tensor,
            rows: *const forgelm_tensor,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
}

/// What a merge method offers that works on the device.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_merge_method_on_device {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// As the method's `measure`, of tensors of the device; null: those of the host are measured.
    pub measure: Option<
        unsafe extern "C" fn(
            method: *const forgelm_merge_method,
            pass: usize,
            piece: *const forgelm_merge_piece,
            sums: *mut f64,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// As the method's `merge`, of tensors of the device.
    pub merge: Option<
        unsafe extern "C" fn(
            method: *const forgelm_merge_method,
            piece: *const forgelm_merge_piece,
            out: *const forgelm_tensor,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
}

/// One way of a quantizer, on tensors of the device.
pub type QuantizeOnDevice = unsafe extern "C" fn(
    quantizer: *const forgelm_quantizer,
    from: *const forgelm_tensor,
    to: *const forgelm_tensor,
    err: *mut forgelm_plugin_error,
) -> forgelm_status;

/// What a quantizer offers that works on the device.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_quantizer_on_device {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// As the quantizer's `quantize`, of tensors of the device.
    pub quantize: Option<QuantizeOnDevice>,
    /// As the quantizer's `dequantize`, of tensors of the device.
    pub dequantize: Option<QuantizeOnDevice>,
}
