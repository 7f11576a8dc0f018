//! Where numbers lie: in the memory of the host, or of a device.
//!
//! A kernel library has one kind of memory that it works in ([`Ops::allocate`](crate::Ops::allocate)).
//! Every op takes slices of either kind: a library of the host refuses those of a device, a library
//! of a device copies what lies on the host there and back. That is right everywhere and fast only
//! where all large slices come from buffers of the library.
//!
//! **Invariant:** numbers of a device are reached through [`DeviceMemory`] alone. A slice cannot be
//! made from an address, and two that may be written never overlap. What plugins do with addresses
//! goes through [`OnDevice`](crate::OnDevice), which checks each.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// How a device stores numbers. On the host they are what their Rust type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32 bits of IEEE 754.
    F32,
    /// bfloat16: the upper half of an f32, to nearest even.
    Bf16,
    /// A byte.
    U8,
    /// A whole number of 32 bits: an index.
    U32,
}

impl Format {
    /// Bytes of one number.
    #[must_use]
    pub fn n_bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }
}

/// How exactly a buffer must hold its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As f32: what trains, gradients of it, sums that grow over layers.
    Exact,
    /// As products of this compute format read them anyway: what lives within a layer. A library
    /// may store them in that format, or exactly.
    Like(crate::Compute),
}

/// Sizes of the calls of a run, from which follows what they take for their own time.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Format of products with frozen weights.
    pub compute: crate::Compute,
    /// Rows of the largest call, T.
    pub n_tokens: usize,
    /// The longest sequence, in tokens.
    pub longest: usize,
    /// Rows of the largest call that scores, R.
    pub n_scored: usize,
    /// Width of the residual stream, C.
    pub hidden: usize,
    /// Query heads, H.
    pub n_heads: usize,
    /// Key and value heads, `H_kv`.
    pub n_kv_heads: usize,
    /// Width of a head, D.
    pub head_dim: usize,
    /// The longer side of the widest weight of a linear layer.
    pub widest: usize,
    /// Numbers of the largest weight of a linear layer, N K.
    pub largest_weight: usize,
    /// Rows of the head, V.
    pub vocabulary: usize,
    /// Experts of a layer, E; 0 without.
    pub n_experts: usize,
    /// Whether frozen weights stay in the blocks of their quantization.
    pub in_blocks: bool,
}

/// The memory was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRefused {
    /// What was asked for.
    pub bytes: usize,
}

impl fmt::Display for MemoryRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes are not available", self.bytes)
    }
}

impl std::error::Error for MemoryRefused {}

/// One allocation on a device. Dropping it gives the memory back.
///
/// Copies are finished when they return, after everything that was asked of the device before.
pub trait DeviceMemory: Send + Sync + fmt::Debug {
    /// How its numbers are stored.
    fn format(&self) -> Format;

    /// Number of numbers.
    fn len(&self) -> usize;

    /// Whether it holds none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies numbers from `first` on to the host.
    ///
    /// # Panics
    /// If there are not as many, or `to` is not what the format can become.
    fn read(&self, first: usize, to: HostMut<'_>);

    /// Copies numbers of the host to `first` and what follows, rounding to the format.
    ///
    /// # Panics
    /// As [`DeviceMemory::read`].
    fn write(&self, first: usize, from: Host<'_>);

    /// For the library that made it.
    fn as_any(&self) -> &dyn Any;
}

/// Numbers of the host, whatever their type.
#[derive(Clone, Copy, Debug)]
pub enum Host<'a> {
    /// 32 bits.
    F32(&'a [f32]),
    /// Bytes.
    U8(&'a [u8]),
    /// Indices.
    U32(&'a [u32]),
}

/// Numbers of the host that may be written.
#[derive(Debug)]
pub enum HostMut<'a> {
    /// 32 bits.
    F32(&'a mut [f32]),
    /// Bytes.
    U8(&'a mut [u8]),
    /// Indices.
    U32(&'a mut [u32]),
}

/// A type of number that buffers hold.
pub trait Number: Copy + Default + fmt::Debug + Send + Sync + 'static {
    /// Numbers of this type.
    fn host(from: &[Self]) -> Host<'_>;

    /// Numbers of this type that may be written.
    fn host_mut(to: &mut [Self]) -> HostMut<'_>;
}

impl Number for f32 {
    fn host(from: &[Self]) -> Host<'_> {
        Host::F32(from)
    }

    fn host_mut(to: &mut [Self]) -> HostMut<'_> {
        HostMut::F32(to)
    }
}

impl Number for u8 {
    fn host(from: &[Self]) -> Host<'_> {
        Host::U8(from)
    }

    fn host_mut(to: &mut [Self]) -> HostMut<'_> {
        HostMut::U8(to)
    }
}

impl Number for u32 {
    fn host(from: &[Self]) -> Host<'_> {
        Host::U32(from)
    }

    fn host_mut(to: &mut [Self]) -> HostMut<'_> {
        HostMut::U32(to)
    }
}

/// A part of an allocation on a device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSlice<'a> {
    memory: &'a dyn DeviceMemory,
    first: usize,
    len: usize,
}

impl<'a> DeviceSlice<'a> {
    /// The allocation.
    #[must_use]
    pub fn memory(&self) -> &'a dyn DeviceMemory {
        self.memory
    }

    /// The first number, counted from the start of the allocation.
    #[must_use]
    pub fn first(&self) -> usize {
        self.first
    }

    /// Number of numbers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn part(self, range: &Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "no such part of a slice");
        Self { first: self.first + range.start, len: range.len(), ..self }
    }
}

/// A part of an allocation on a device that nothing else may touch. Not `Clone`: see [`SliceMut`].
#[derive(Debug)]
pub struct DeviceSliceMut<'a>(DeviceSlice<'a>);

impl<'a> DeviceSliceMut<'a> {
    /// Where it lies.
    #[must_use]
    pub fn place(&self) -> DeviceSlice<'_> {
        self.0
    }
}

/// Numbers to be read.
#[derive(Clone, Copy, Debug)]
pub enum Slice<'a, T = f32> {
    /// In the memory of the host.
    Host(&'a [T]),
    /// In the memory of a device.
    Device(DeviceSlice<'a>),
}

/// Numbers to be written.
#[derive(Debug)]
pub enum SliceMut<'a, T = f32> {
    /// In the memory of the host.
    Host(&'a mut [T]),
    /// In the memory of a device.
    Device(DeviceSliceMut<'a>),
}

impl<'a, T: Number> Slice<'a, T> {
    /// Number of numbers.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Host(values) => values.len(),
            Self::Device(slice) => slice.len,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    ///
    /// # Panics
    /// If there are no such numbers.
    #[must_use]
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::Host(values) => Self::Host(&values[range]),
            Self::Device(slice) => Self::Device(slice.part(&range)),
        }
    }

    /// The numbers, for a library of the host.
    ///
    /// # Panics
    /// If they lie on a device.
    #[must_use]
    pub fn on_host(self) -> &'a [T] {
        match self {
            Self::Host(values) => values,
            Self::Device(_) => panic!("a library of the host was given numbers of a device"),
        }
    }

    /// The numbers, copied where they lie on a device.
    #[must_use]
    pub fn to_host(self) -> Cow<'a, [T]> {
        match self {
            Self::Host(values) => Cow::Borrowed(values),
            Self::Device(slice) => {
                let mut values = vec![T::default(); slice.len];
                slice.memory.read(slice.first, T::host_mut(&mut values));
                Cow::Owned(values)
            }
        }
    }
}

impl<'a, T: Number> SliceMut<'a, T> {
    /// Number of numbers.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Host(values) => values.len(),
            Self::Device(slice) => slice.0.len,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same numbers for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> SliceMut<'_, T> {
        match self {
            Self::Host(values) => SliceMut::Host(values),
            Self::Device(slice) => SliceMut::Device(DeviceSliceMut(slice.0)),
        }
    }

    /// To be read only.
    #[must_use]
    pub fn as_slice(&self) -> Slice<'_, T> {
        match self {
            Self::Host(values) => Slice::Host(values),
            Self::Device(slice) => Slice::Device(slice.0),
        }
    }

    /// Some of them.
    ///
    /// # Panics
    /// If there are no such numbers.
    #[must_use]
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::Host(values) => Self::Host(&mut values[range]),
            Self::Device(slice) => Self::Device(DeviceSliceMut(slice.0.part(&range))),
        }
    }

    /// The first `n` and the rest.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn split_at(self, n: usize) -> (Self, Self) {
        match self {
            Self::Host(values) => {
                let (left, right) = values.split_at_mut(n);
                (Self::Host(left), Self::Host(right))
            }
            Self::Device(slice) => {
                let (left, right) = (slice.0.part(&(0..n)), slice.0.part(&(n..slice.0.len)));
                (Self::Device(DeviceSliceMut(left)), Self::Device(DeviceSliceMut(right)))
            }
        }
    }

    /// The numbers, for a library of the host.
    ///
    /// # Panics
    /// If they lie on a device.
    #[must_use]
    pub fn on_host(self) -> &'a mut [T] {
        match self {
            Self::Host(values) => values,
            Self::Device(_) => panic!("a library of the host was given numbers of a device"),
        }
    }

    /// Puts numbers of the host in their place.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn copy_from_host(&mut self, from: &[T]) {
        assert_eq!(self.len(), from.len(), "not as many numbers");
        match self {
            Self::Host(values) => values.copy_from_slice(from),
            Self::Device(slice) => slice.0.memory.write(slice.0.first, T::host(from)),
        }
    }
}

impl<'a, T> From<&'a [T]> for Slice<'a, T> {
    fn from(values: &'a [T]) -> Self {
        Self::Host(values)
    }
}

impl<'a, T> From<&'a Vec<T>> for Slice<'a, T> {
    fn from(values: &'a Vec<T>) -> Self {
        Self::Host(values)
    }
}

impl<'a, T, const N: usize> From<&'a [T; N]> for Slice<'a, T> {
    fn from(values: &'a [T; N]) -> Self {
        Self::Host(values)
    }
}

impl<'a, T> From<&'a mut [T]> for SliceMut<'a, T> {
    fn from(values: &'a mut [T]) -> Self {
        Self::Host(values)
    }
}

impl<'a, T> From<&'a mut Vec<T>> for SliceMut<'a, T> {
    fn from(values: &'a mut Vec<T>) -> Self {
        Self::Host(values)
    }
}

impl<'a, T, const N: usize> From<&'a mut [T; N]> for SliceMut<'a, T> {
    fn from(values: &'a mut [T; N]) -> Self {
        Self::Host(values)
    }
}

/// Numbers that belong to whoever holds this, in the memory that a kernel library works in.
#[derive(Debug)]
pub enum Buffer<T = f32> {
    /// In the memory of the host.
    Host(Vec<T>),
    /// In the memory of a device.
    Device(Box<dyn DeviceMemory>),
}

/// A copy in the memory of the host.
impl<T: Number> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Self::Host(self.all().to_host().into_owned())
    }
}

/// By their numbers, wherever they lie.
impl<T: Number + PartialEq> PartialEq for Buffer<T> {
    fn eq(&self, other: &Self) -> bool {
        self.all().to_host() == other.all().to_host()
    }
}

impl<T> Default for Buffer<T> {
    fn default() -> Self {
        Self::Host(Vec::new())
    }
}

impl<T: Number> Buffer<T> {
    /// Zeros in the memory of the host.
    ///
    /// # Errors
    /// If there is not enough.
    pub fn zeros_on_host(n: usize) -> Result<Self, MemoryRefused> {
        let mut values = Vec::new();
        let refused = |_| MemoryRefused { bytes: n.saturating_mul(size_of::<T>()) };
        values.try_reserve_exact(n).map_err(refused)?;
        values.resize(n, T::default());
        Ok(Self::Host(values))
    }

    /// Number of numbers.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Host(values) => values.len(),
            Self::Device(memory) => memory.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Host(values) => values.capacity() * size_of::<T>(),
            Self::Device(memory) => memory.len() * memory.format().n_bytes(),
        }
    }

    /// All of it, to be read.
    #[must_use]
    pub fn all(&self) -> Slice<'_, T> {
        match self {
            Self::Host(values) => Slice::Host(values),
            Self::Device(memory) => {
                let memory = memory.as_ref();
                Slice::Device(DeviceSlice { memory, first: 0, len: memory.len() })
            }
        }
    }

    /// All of it, on the host; a copy where it lies on a device.
    #[must_use]
    pub fn into_host(self) -> Vec<T> {
        match self {
            Self::Host(values) => values,
            Self::Device(_) => self.all().to_host().into_owned(),
        }
    }

    /// All of it, to be written.
    #[must_use]
    pub fn all_mut(&mut self) -> SliceMut<'_, T> {
        match self {
            Self::Host(values) => SliceMut::Host(values),
            Self::Device(memory) => {
                let memory: &dyn DeviceMemory = &**memory;
                let whole = DeviceSlice { memory, first: 0, len: memory.len() };
                SliceMut::Device(DeviceSliceMut(whole))
            }
        }
    }

    /// Some of it, to be read.
    ///
    /// # Panics
    /// If there are no such numbers.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Slice<'_, T> {
        self.all().part(range)
    }

    /// Some of it, to be written.
    ///
    /// # Panics
    /// If there are no such numbers.
    #[must_use]
    pub fn part_mut(&mut self, range: Range<usize>) -> SliceMut<'_, T> {
        self.all_mut().part(range)
    }
}

impl<T> From<Vec<T>> for Buffer<T> {
    fn from(values: Vec<T>) -> Self {
        Self::Host(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Memory of a device that is none.
    #[derive(Debug)]
    struct Elsewhere(Mutex<Vec<f32>>);

    impl DeviceMemory for Elsewhere {
        fn format(&self) -> Format {
            Format::F32
        }

        fn len(&self) -> usize {
            self.0.lock().expect("no test panicked").len()
        }

        fn read(&self, first: usize, to: HostMut<'_>) {
            let HostMut::F32(to) = to else { panic!("bytes") };
            to.copy_from_slice(&self.0.lock().expect("no test panicked")[first..][..to.len()]);
        }

        fn write(&self, first: usize, from: Host<'_>) {
            let Host::F32(from) = from else { panic!("bytes") };
            self.0.lock().expect("no test panicked")[first..][..from.len()].copy_from_slice(from);
        }

        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    fn elsewhere(values: &[f32]) -> Buffer {
        Buffer::Device(Box::new(Elsewhere(Mutex::new(values.to_vec()))))
    }

    #[test]
    fn parts_of_parts_count_from_the_start() {
        let values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        for mut buffer in [Buffer::Host(values.to_vec()), elsewhere(&values)] {
            assert_eq!(*buffer.part(1..5).part(1..3).to_host(), [2.0, 3.0]);
            let (mut left, mut right) = buffer.part_mut(1..5).split_at(1);
            left.copy_from_host(&[-1.0]);
            right.copy_from_host(&[-2.0, -3.0, -4.0]);
            right.reborrow().part(2..3).copy_from_host(&[-5.0]);
            assert_eq!(*right.as_slice().to_host(), [-2.0, -3.0, -5.0]);
            assert_eq!(*buffer.all().to_host(), [0.0, -1.0, -2.0, -3.0, -5.0, 5.0]);
            assert_eq!((buffer.len(), buffer.n_bytes(), buffer.is_empty()), (6, 24, false));
        }
    }

    #[test]
    #[should_panic(expected = "no such part of a slice")]
    fn a_part_past_the_end_of_a_part_is_refused_on_a_device() {
        let buffer = elsewhere(&[0.0; 6]);
        let _ = buffer.part(1..4).part(2..4);
    }

    #[test]
    #[should_panic(expected = "given numbers of a device")]
    fn numbers_of_a_device_are_no_numbers_of_the_host() {
        let _ = elsewhere(&[0.0]).all().on_host();
    }

    #[test]
    fn memory_that_does_not_exist_is_refused() {
        let refused = Buffer::<f32>::zeros_on_host(usize::MAX / 8).unwrap_err();
        assert_eq!(refused, MemoryRefused { bytes: usize::MAX / 8 * 4 });
    }
}
