//! What a library of a device shows to others that work on it: plugins, and what runs them.
//!
//! Everything else reaches numbers of a device through [`DeviceMemory`] alone. Here they have
//! addresses, since that is what crosses a C interface. So the library checks each: a part that lies
//! in no memory that it gave out, or that was given back, is refused and never touched.

use std::fmt;

use crate::{DeviceMemory, Format, Host, HostMut};

/// Numbers on a device by their address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePart {
    /// Which device, from 0.
    pub device: i32,
    /// The first byte.
    pub address: u64,
    /// Number of numbers.
    pub len: usize,
    /// How they are stored.
    pub format: Format,
}

impl DevicePart {
    /// Bytes of it; `None` if no memory has as many.
    #[must_use]
    pub fn n_bytes(&self) -> Option<usize> {
        self.len.checked_mul(self.format.n_bytes())
    }
}

/// Why a device does not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceRefusal {
    /// What it was given cannot be used.
    Argument(String),
    /// Its memory is full.
    OutOfMemory(String),
    /// It failed, or work that was asked of it before did.
    Failed(String),
}

impl fmt::Display for DeviceRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Argument(text) | Self::OutOfMemory(text) | Self::Failed(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for DeviceRefusal {}

/// Numbers on a device and where they lie, for as long as this is there.
#[derive(Debug)]
pub struct Placed {
    /// Where.
    pub part: DevicePart,
    /// Given back when this is dropped.
    _memory: Box<dyn DeviceMemory>,
}

impl Placed {
    /// Zeros.
    ///
    /// # Errors
    /// As [`OnDevice`] has them.
    pub fn zeros(device: &dyn OnDevice, format: Format, len: usize) -> Result<Self, DeviceRefusal> {
        let memory = device.allocate(format, len)?;
        let unknown =
            || DeviceRefusal::Failed("the device does not know its own memory".to_owned());
        let part = device.part_of(&*memory).ok_or_else(unknown)?;
        Ok(Self { part, _memory: memory })
    }

    /// Numbers of the host.
    ///
    /// # Errors
    /// As [`OnDevice`] has them.
    pub fn copied(device: &dyn OnDevice, values: Host<'_>) -> Result<Self, DeviceRefusal> {
        let (format, len) = match values {
            Host::F32(values) => (Format::F32, values.len()),
            Host::U8(values) => (Format::U8, values.len()),
            Host::U32(values) => (Format::U32, values.len()),
        };
        let placed = Self::zeros(device, format, len)?;
        device.upload(placed.part, values)?;
        Ok(placed)
    }
}

/// The models that are merged.
#[derive(Clone, Copy, Debug)]
pub struct DeviceModels<'a> {
    /// [n] of each, f32.
    pub inputs: &'a [DevicePart],
    /// [n] of the base model, where it is read.
    pub base: Option<DevicePart>,
}

/// Which bits of magnitudes are counted: `bits` of them (11 at most) above the lowest `shift`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MagnitudeBits {
    /// Bits below those that are counted.
    pub shift: u32,
    /// How many are counted.
    pub bits: u32,
}

/// How a sign is elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Election {
    /// Each model has one vote.
    Votes,
    /// By the weighted sum.
    Sum,
}

/// Which changes are dropped: those whose random word is not below `kept_below`. Word j mod 4 of
/// `philox4x32([j / 4 low, j / 4 high, i, 0], key)` is that of element j of model i.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropMask {
    /// Names the tensor's masks.
    pub key: [u32; 2],
    /// 2^32 keeps all.
    pub kept_below: u64,
    /// Place of the first element in its tensor.
    pub start: usize,
}

/// A device, for those that work on it themselves.
///
/// All work goes through one stream in the order in which it was asked for. What gives numbers to
/// the host waits for it; the rest does not.
///
/// # Errors
/// Of every function: a part that is not in memory in use on this device, lengths that do not fit,
/// a result that overlaps what is read; full memory; a device that failed.
#[expect(clippy::missing_errors_doc, reason = "they are the same for all, and said above")]
pub trait OnDevice: Send + Sync {
    /// Which device, from 0, as DLPack counts devices of its kind.
    fn ordinal(&self) -> i32;

    /// The stream of everything, as the driver's handle.
    fn stream(&self) -> usize;

    /// Where a buffer of this library lies; `None` for one of another.
    fn part_of(&self, memory: &dyn DeviceMemory) -> Option<DevicePart>;

    /// Zeros.
    fn allocate(&self, format: Format, len: usize) -> Result<Box<dyn DeviceMemory>, DeviceRefusal>;

    /// Copies numbers of the host to the device, as many.
    fn upload(&self, to: DevicePart, from: Host<'_>) -> Result<(), DeviceRefusal>;

    /// Copies numbers of the device to the host, as many, after all that was asked for before.
    fn download(&self, from: DevicePart, to: HostMut<'_>) -> Result<(), DeviceRefusal>;

    /// Waits for all that was asked for.
    fn synchronize(&self) -> Result<(), DeviceRefusal>;

    /// `out = sum_i shares[i] inputs[i]`, summed in f64 in the order of the models.
    fn merge_linear(
        &self,
        out: DevicePart,
        inputs: &[DevicePart],
        shares: &[f64],
    ) -> Result<(), DeviceRefusal>;

    /// `out = a inputs[0] + b inputs[1]`, around the base if there is one.
    fn merge_slerp(
        &self,
        out: DevicePart,
        models: DeviceModels<'_>,
        coefficients: [f64; 2],
    ) -> Result<(), DeviceRefusal>;

    /// How many magnitudes of each model's changes have each value of some bits; with `prefixes`,
    /// of those whose bits above are their model's. Shapes: [models, 2^bits].
    fn ties_count(
        &self,
        models: DeviceModels<'_>,
        prefixes: Option<&[u32]>,
        bits: MagnitudeBits,
    ) -> Result<Vec<u64>, DeviceRefusal>;

    /// Trims changes whose magnitude's bits are below their model's threshold, elects a sign for
    /// each element, and adds the weighted mean of the changes that have it to the base.
    fn merge_ties(
        &self,
        out: DevicePart,
        models: DeviceModels<'_>,
        trimming: (&[u32], &[f64]),
        election: Election,
    ) -> Result<(), DeviceRefusal>;

    /// Drops changes at random and adds the rest, each times its model's factor, to the base.
    fn merge_dare(
        &self,
        out: DevicePart,
        models: DeviceModels<'_>,
        factors: &[f64],
        mask: DropMask,
    ) -> Result<(), DeviceRefusal>;

    /// Rows [R, `n_cols`] to codes of four bits and scales: see `quantize.cu`. Refuses a number that
    /// is not finite.
    fn quantize_four_bit(
        &self,
        bytes: DevicePart,
        rows: DevicePart,
        n_cols: usize,
        values: &[f32; 16],
    ) -> Result<(), DeviceRefusal>;

    /// The way back.
    fn dequantize_four_bit(
        &self,
        rows: DevicePart,
        bytes: DevicePart,
        n_cols: usize,
        values: &[f32; 16],
    ) -> Result<(), DeviceRefusal>;

    /// Rows [R, `n_cols`] to signed bytes and a scale each. Refuses a number that is not finite.
    fn quantize_int8(
        &self,
        bytes: DevicePart,
        rows: DevicePart,
        n_cols: usize,
    ) -> Result<(), DeviceRefusal>;

    /// The way back.
    fn dequantize_int8(
        &self,
        rows: DevicePart,
        bytes: DevicePart,
        n_cols: usize,
    ) -> Result<(), DeviceRefusal>;
}
