//! Buffers on the device, and copies between them and the host with what conversion they need.

use std::any::Any;
use std::io::Read as _;
use std::sync::Arc;

use cudarc::driver::result;
use forgelm_kernels_api::{DeviceMemory, DeviceSlice, Format, Host, HostMut, Pieces, Slice};
use half::bf16;
use half::slice::HalfFloatSliceExt as _;

use crate::call::Numbers;
use crate::device::Device;
use crate::error::{CudaError, must};
use crate::pool::Allocation;
use crate::staging;

/// One buffer on the device.
#[derive(Debug)]
pub(crate) struct CudaMemory {
    device: Arc<Device>,
    memory: Arc<Allocation>,
    len: usize,
    format: Format,
}

impl CudaMemory {
    /// Zeros.
    pub(crate) fn zeros(
        device: &Arc<Device>,
        format: Format,
        len: usize,
    ) -> Result<Self, CudaError> {
        let memory = Arc::new(device.allocate(len * format.n_bytes())?);
        device.bind()?;
        let made = Self { device: Arc::clone(device), memory, len, format };
        clear(device, "allocate", made.numbers())?;
        Ok(made)
    }

    /// Fills it with the next bytes, as they lie on the device.
    pub(crate) fn write_bytes(&self, bytes: &mut Pieces<'_>) {
        let (to, op) = (self.numbers(), "put_together");
        let n_bytes = to.len * to.format.n_bytes();
        if !bytes.are_on_host() {
            let mut to = Numbers { address: to.address, len: n_bytes, format: Format::U8 };
            while to.len > 0 {
                let piece = bytes.next(to.len).expect("the bytes of a whole matrix");
                let Slice::Device(piece) = piece else { panic!("{op}: bytes here and there") };
                must(copy(
                    &self.device,
                    op,
                    to.part(0, piece.len()),
                    resolve(&self.device, op, piece),
                ));
                to = to.part(piece.len(), to.len - piece.len());
            }
            return;
        }
        // Pieces come one after the other.
        must(staging::upload(&self.device, op, to.address, n_bytes, |_, piece| {
            bytes.read_exact(piece).expect("the bytes of a whole matrix");
        }));
    }

    /// Its bytes, as they lie on the device.
    pub(crate) fn read_bytes(&self, to: &mut [u8]) {
        let (from, op) = (self.numbers(), "take_apart");
        must(staging::download(&self.device, op, from.address, to.len(), |begin, piece| {
            to[begin..][..piece.len()].copy_from_slice(piece);
        }));
    }

    /// Where it lies. A graph that is being captured keeps the memory.
    pub(crate) fn numbers(&self) -> Numbers {
        self.device.keep_for_capture(&self.memory);
        Numbers { address: self.memory.address(), len: self.len, format: self.format }
    }
}

impl DeviceMemory for CudaMemory {
    fn format(&self) -> Format {
        self.format
    }

    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, first: usize, to: HostMut<'_>) {
        let len = match &to {
            HostMut::F32(to) => to.len(),
            HostMut::U8(to) => to.len(),
            HostMut::U32(to) => to.len(),
        };
        must(read(&self.device, "read", self.numbers().part(first, len), to));
    }

    fn write(&self, first: usize, from: Host<'_>) {
        let len = match from {
            Host::F32(from) => from.len(),
            Host::U8(from) => from.len(),
            Host::U32(from) => from.len(),
        };
        must(write(&self.device, "write", self.numbers().part(first, len), from));
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Where a slice of a buffer lies.
///
/// # Panics
/// If it lies on another device, or in a buffer of another library.
pub(crate) fn resolve(device: &Device, op: &str, place: DeviceSlice<'_>) -> Numbers {
    let memory = place.memory().as_any().downcast_ref::<CudaMemory>();
    let Some(memory) = memory else { panic!("{op}: a buffer that another library made") };
    assert!(
        std::ptr::eq(Arc::as_ptr(&memory.device), device),
        "{op}: a buffer of {}, but the op runs on {}",
        memory.device.label(),
        device.label()
    );
    memory.numbers().part(place.first(), place.len())
}

/// Copies numbers of the host to the device.
///
/// # Panics
/// If there are not as many, or the format cannot hold them.
pub(crate) fn write(
    device: &Device,
    op: &'static str,
    to: Numbers,
    from: Host<'_>,
) -> Result<(), CudaError> {
    let (address, n_bytes) = (to.address, to.len * to.format.n_bytes());
    match (to.format, from) {
        (Format::F32, Host::F32(from)) => {
            assert_eq!(to.len, from.len(), "{op}: not as many numbers");
            let from: &[u8] = bytemuck::cast_slice(from);
            staging::upload(device, op, address, n_bytes, |begin, piece| {
                piece.copy_from_slice(&from[begin..][..piece.len()]);
            })
        }
        (Format::Bf16, Host::F32(from)) => {
            assert_eq!(to.len, from.len(), "{op}: not as many numbers");
            staging::upload(device, op, address, n_bytes, |begin, piece| {
                let piece: &mut [bf16] = bytemuck::cast_slice_mut(piece);
                piece.convert_from_f32_slice(&from[begin / 2..][..piece.len()]);
            })
        }
        (Format::U8, Host::U8(from)) => {
            assert_eq!(to.len, from.len(), "{op}: not as many bytes");
            staging::upload(device, op, address, n_bytes, |begin, piece| {
                piece.copy_from_slice(&from[begin..][..piece.len()]);
            })
        }
        (Format::U32, Host::U32(from)) => {
            assert_eq!(to.len, from.len(), "{op}: not as many indices");
            let from: &[u8] = bytemuck::cast_slice(from);
            staging::upload(device, op, address, n_bytes, |begin, piece| {
                piece.copy_from_slice(&from[begin..][..piece.len()]);
            })
        }
        (format, _) => panic!("{op}: numbers of the host that do not become {format:?}"),
    }
}

/// Copies numbers of the device to the host.
///
/// # Panics
/// If there are not as many, or they cannot become what the host wants.
pub(crate) fn read(
    device: &Device,
    op: &'static str,
    from: Numbers,
    to: HostMut<'_>,
) -> Result<(), CudaError> {
    let (address, n_bytes) = (from.address, from.len * from.format.n_bytes());
    match (from.format, to) {
        (Format::F32, HostMut::F32(to)) => {
            assert_eq!(from.len, to.len(), "{op}: not as many numbers");
            let to: &mut [u8] = bytemuck::cast_slice_mut(to);
            staging::download(device, op, address, n_bytes, |begin, piece| {
                to[begin..][..piece.len()].copy_from_slice(piece);
            })
        }
        (Format::Bf16, HostMut::F32(to)) => {
            assert_eq!(from.len, to.len(), "{op}: not as many numbers");
            staging::download(device, op, address, n_bytes, |begin, piece| {
                let piece: &[bf16] = bytemuck::cast_slice(piece);
                piece.convert_to_f32_slice(&mut to[begin / 2..][..piece.len()]);
            })
        }
        (Format::U8, HostMut::U8(to)) => {
            assert_eq!(from.len, to.len(), "{op}: not as many bytes");
            staging::download(device, op, address, n_bytes, |begin, piece| {
                to[begin..][..piece.len()].copy_from_slice(piece);
            })
        }
        (Format::U32, HostMut::U32(to)) => {
            assert_eq!(from.len, to.len(), "{op}: not as many indices");
            let to: &mut [u8] = bytemuck::cast_slice_mut(to);
            staging::download(device, op, address, n_bytes, |begin, piece| {
                to[begin..][..piece.len()].copy_from_slice(piece);
            })
        }
        (format, _) => panic!("{op}: numbers as {format:?} do not become what the host wants"),
    }
}

/// The bytes of numbers of the device, as what they are.
pub(crate) fn fetch<T: bytemuck::Pod>(
    device: &Device,
    op: &'static str,
    from: Numbers,
) -> Result<Vec<T>, CudaError> {
    let n_bytes = from.len * from.format.n_bytes();
    assert!(n_bytes.is_multiple_of(size_of::<T>()), "{op}: a part of a number");
    let mut values = vec![T::zeroed(); n_bytes / size_of::<T>()];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
    staging::download(device, op, from.address, n_bytes, |begin, piece| {
        bytes[begin..][..piece.len()].copy_from_slice(piece);
    })?;
    Ok(values)
}

/// Fills numbers with zeros.
pub(crate) fn clear(device: &Device, op: &'static str, numbers: Numbers) -> Result<(), CudaError> {
    if numbers.len == 0 {
        return Ok(());
    }
    let n_bytes = numbers.len * numbers.format.n_bytes();
    // SAFETY: the numbers are a part of an allocation, and the stream keeps the order of its uses.
    unsafe { result::memset_d8_async(numbers.address, 0, n_bytes, device.stream().cu_stream()) }
        .map_err(|error| device.earlier("filling memory", op, error))
}

/// Copies numbers of one format.
///
/// # Panics
/// If there are not as many, or their formats differ.
pub(crate) fn copy(
    device: &Device,
    op: &'static str,
    to: Numbers,
    from: Numbers,
) -> Result<(), CudaError> {
    assert_eq!((to.len, to.format), (from.len, from.format), "{op}: a copy between unlike numbers");
    if to.len == 0 {
        return Ok(());
    }
    let (n_bytes, stream) = (to.len * to.format.n_bytes(), device.stream().cu_stream());
    // SAFETY: both are parts of allocations, and the stream keeps the order of their uses.
    unsafe { result::memcpy_dtod_async(to.address, from.address, n_bytes, stream) }
        .map_err(|error| device.earlier("a copy", op, error))
}
