//! Numbers as DLPack tensors: plain memory that frees itself.
//!
//! Source: DLPack 1.0, `dlpack.h` (`DLManagedTensor`, `DLTensor`, `DLDataType`, `DLDevice`).

use std::ffi::c_void;
use std::ptr::null_mut;

/// `DLDevice`.
#[repr(C)]
struct Device {
    device_type: i32,
    device_id: i32,
}

/// `DLDataType`.
#[repr(C)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

/// `DLTensor`.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device: Device,
    n_dims: i32,
    dtype: DataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`, as the header names it.
#[repr(C)]
pub struct DLManagedTensor {
    tensor: Tensor,
    manager_ctx: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut DLManagedTensor)>,
}

/// What a tensor points to.
struct Owner {
    data: Vec<f32>,
    shape: Vec<i64>,
}

const CPU: i32 = 1;
const FLOAT: u8 = 2;

/// A float32 tensor of one dimension on the CPU, contiguous. Its consumer calls the deleter once.
#[must_use]
pub fn of_floats(data: Vec<f32>) -> *mut DLManagedTensor {
    let shape = vec![i64::try_from(data.len()).unwrap_or(i64::MAX)];
    let mut owner = Box::new(Owner { data, shape });
    let tensor = Tensor {
        data: owner.data.as_mut_ptr().cast(),
        device: Device { device_type: CPU, device_id: 0 },
        n_dims: 1,
        dtype: DataType { code: FLOAT, bits: 32, lanes: 1 },
        shape: owner.shape.as_mut_ptr(),
        // Contiguous.
        strides: null_mut(),
        byte_offset: 0,
    };
    let manager_ctx = Box::into_raw(owner).cast();
    Box::into_raw(Box::new(DLManagedTensor { tensor, manager_ctx, deleter: Some(delete) }))
}

/// Frees a tensor.
///
/// # Safety
/// It came from [`of_floats`] and was not freed.
unsafe extern "C" fn delete(managed: *mut DLManagedTensor) {
    if managed.is_null() {
        return;
    }
    // SAFETY: made by `Box::into_raw` in `of_floats`.
    let managed = unsafe { Box::from_raw(managed) };
    // SAFETY: likewise.
    drop(unsafe { Box::from_raw(managed.manager_ctx.cast::<Owner>()) });
}

#[cfg(test)]
mod tests {
    use super::{CPU, FLOAT, of_floats};

    #[test]
    fn a_tensor_is_read_and_freed_by_its_consumer() {
        let managed = of_floats(vec![1.0, -2.5]);
        // SAFETY: just made.
        let tensor = unsafe { &(*managed).tensor };
        assert_eq!((tensor.n_dims, tensor.device.device_type, tensor.dtype.code), (1, CPU, FLOAT));
        // SAFETY: one dimension.
        assert_eq!(unsafe { *tensor.shape }, 2);
        // SAFETY: two floats.
        let data = unsafe { std::slice::from_raw_parts(tensor.data.cast::<f32>(), 2) };
        assert_eq!(data, [1.0, -2.5]);
        // SAFETY: once.
        unsafe { (*managed).deleter.expect("a deleter")(managed) };
    }
}
