//! Tensors of a device that cross the border: views that plugins name, and tensors that they are lent.

use super::format_of_dtype;
use crate::service::Refusal;
use forgelm_abi::{
    DEVICE_CPU, DEVICE_CUDA, forgelm_device, forgelm_dtype, forgelm_managed_tensor, forgelm_tensor,
};
use forgelm_kernels_api::{DeviceMemory, DevicePart, OnDevice, Ops};
use std::ptr::null_mut;
use std::sync::Arc;

/// Most axes of a tensor.
pub(super) const AXES_MAX: usize = 8;

/// A tensor of a plugin's: where it lies, as it says.
#[derive(Debug)]
pub(super) struct Read {
    part: DevicePart,
    pub(super) shape: Vec<usize>,
}

impl Read {
    /// All of its numbers.
    pub(super) fn whole(&self) -> DevicePart {
        self.part
    }
}

/// Lengths of axes, and how many numbers they make.
fn lengths(shape: &[i64], name: &str) -> Result<(Vec<usize>, usize), Refusal> {
    let wrong = || Refusal::argument(format!("`{name}` has the shape {shape:?}"));
    let lengths: Option<Vec<usize>> = shape.iter().map(|&n| usize::try_from(n).ok()).collect();
    let lengths = lengths.ok_or_else(wrong)?;
    let len = lengths.iter().try_fold(1_usize, |len, &n| len.checked_mul(n)).ok_or_else(wrong)?;
    Ok((lengths, len))
}

/// Strides of a row-major tensor without gaps.
fn dense(shape: &[usize]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        let length = i64::try_from(shape[axis]).unwrap_or(i64::MAX);
        strides[axis - 1] = length.saturating_mul(strides[axis]);
    }
    strides
}

/// What a view of a plugin's says; whether it lies there the library of the device knows.
///
/// # Safety
/// Null, or a view that is readable during the call.
pub(super) unsafe fn part(tensor: *const forgelm_tensor, name: &str) -> Result<Read, Refusal> {
    let wrong = |what: &str| Refusal::argument(format!("`{name}` {what}"));
    // SAFETY: the caller's promise.
    let tensor = unsafe { tensor.as_ref() }.ok_or_else(|| wrong("is NULL"))?;
    match tensor.device.device_type {
        DEVICE_CUDA => {}
        DEVICE_CPU => return Err(wrong("lies on the host; expected a tensor of the device")),
        other => return Err(wrong(&format!("lies on a device of type {other}; expected 2, CUDA"))),
    }
    let format = format_of_dtype(tensor.dtype);
    let format = format.ok_or_else(|| wrong("is neither float nor uint8"))?;
    let n_axes = usize::try_from(tensor.ndim).unwrap_or(usize::MAX);
    if n_axes > AXES_MAX || (n_axes > 0 && tensor.shape.is_null()) {
        return Err(wrong(&format!("has {} axes; expected 0 to 8, with lengths", tensor.ndim)));
    }
    let axes = |of: *const i64| match n_axes {
        0 => &[][..],
        // SAFETY: not null; a view has as many lengths and strides as axes.
        n => unsafe { std::slice::from_raw_parts(of, n) },
    };
    let (shape, len) = lengths(axes(tensor.shape), name)?;
    if !tensor.strides.is_null() {
        let expected = dense(&shape);
        let axes = axes(tensor.strides).iter().zip(&expected).zip(&shape);
        // The stride of an axis of one says nothing.
        if len > 0 && axes.into_iter().any(|((found, expected), &n)| n > 1 && found != expected) {
            return Err(wrong("has gaps, or is not row-major"));
        }
    }
    let address = (tensor.data as u64).checked_add(tensor.byte_offset);
    let address = address.ok_or_else(|| wrong("begins past all memory"))?;
    Ok(Read { part: DevicePart { device: tensor.device.device_id, address, len, format }, shape })
}

/// [`part`] of several tensors.
///
/// # Safety
/// Null, or as many views that are readable during the call.
pub(super) unsafe fn parts(
    tensors: *const forgelm_tensor,
    n: usize,
    name: &'static str,
) -> Result<Vec<DevicePart>, Refusal> {
    // SAFETY: the caller's promise.
    let tensors = unsafe { crate::service::Array::new(tensors, n, name)?.read() };
    // SAFETY: views of the caller's.
    tensors.iter().map(|tensor| Ok(unsafe { part(tensor, name) }?.whole())).collect()
}

/// A tensor that belongs to a plugin: DLPack's struct first, so that a pointer to one is one to the
/// other.
#[repr(C)]
pub(super) struct Lent {
    managed: forgelm_managed_tensor,
    /// Given back when this is dropped.
    _memory: Box<dyn DeviceMemory>,
    /// The library of the memory.
    _ops: Arc<dyn Ops>,
    /// Shape, then strides.
    _axes: Box<[i64]>,
}

impl Lent {
    /// Zeros of this shape, for a plugin that calls the deleter.
    pub(super) fn hand_out(
        ops: &Arc<dyn Ops>,
        on: &dyn OnDevice,
        dtype: forgelm_dtype,
        shape: &[i64],
    ) -> Result<*mut forgelm_managed_tensor, Refusal> {
        let format = format_of_dtype(dtype);
        let format =
            format.ok_or_else(|| Refusal::argument("`dtype` is neither float nor uint8"))?;
        let (lengths, len) = lengths(shape, "shape")?;
        let memory = on.allocate(format, len)?;
        let place = on.part_of(&*memory);
        let place = place.ok_or_else(|| Refusal::argument("a tensor of another library"))?;
        let axes: Box<[i64]> = shape.iter().copied().chain(dense(&lengths)).collect();
        let managed = forgelm_managed_tensor {
            tensor: forgelm_tensor {
                data: place.address as *mut _,
                device: forgelm_device { device_type: DEVICE_CUDA, device_id: place.device },
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_possible_wrap,
                    reason = "at most 8"
                )]
                ndim: shape.len() as i32,
                dtype,
                shape: axes.as_ptr(),
                strides: axes[shape.len()..].as_ptr(),
                byte_offset: 0,
            },
            manager_ctx: null_mut(),
            deleter: Some(delete),
        };
        let lent = Self { managed, _memory: memory, _ops: Arc::clone(ops), _axes: axes };
        Ok(Box::into_raw(Box::new(lent)).cast())
    }
}

/// Frees a tensor.
unsafe extern "C" fn delete(tensor: *mut forgelm_managed_tensor) {
    if tensor.is_null() {
        return;
    }
    // SAFETY: the header says once, for a tensor of `allocate`; it is the first field of one.
    let lent = unsafe { Box::from_raw(tensor.cast::<Lent>()) };
    // Nothing of ours may unwind into a plugin.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(lent)));
}
