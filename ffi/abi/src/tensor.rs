//! Tensors as views: DLPack's `DLTensor`, byte for byte, borrowed for the call.

use std::ffi::c_void;

/// The memory of the processor, as DLPack numbers devices.
pub const DEVICE_CPU: i32 = 1;

/// The memory of an NVIDIA device, as DLPack numbers devices.
pub const DEVICE_CUDA: i32 = 2;

/// DLPack's codes of number types.
pub mod dtype_code {
    /// Signed integers.
    pub const INT: u8 = 0;
    /// Unsigned integers.
    pub const UINT: u8 = 1;
    /// IEEE floating point.
    pub const FLOAT: u8 = 2;
    /// bfloat16.
    pub const BFLOAT: u8 = 4;
}

/// DLPack's `DLDevice`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct forgelm_device {
    /// [`DEVICE_CPU`] or [`DEVICE_CUDA`].
    pub device_type: i32,
    /// Which one.
    pub device_id: i32,
}

/// DLPack's `DLDataType`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct forgelm_dtype {
    /// One of [`dtype_code`].
    pub code: u8,
    /// Bits of a number.
    pub bits: u8,
    /// Numbers of a vector; 1.
    pub lanes: u16,
}

/// DLPack's `DLTensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct forgelm_tensor {
    /// First byte, before `byte_offset`.
    pub data: *mut c_void,
    /// Where the bytes are.
    pub device: forgelm_device,
    /// Number of axes.
    pub ndim: i32,
    /// Type of the numbers.
    pub dtype: forgelm_dtype,
    /// [ndim] lengths of the axes.
    pub shape: *const i64,
    /// [ndim] steps of the axes, in numbers.
    pub strides: *const i64,
    /// Bytes from `data` to the first number.
    pub byte_offset: u64,
}
