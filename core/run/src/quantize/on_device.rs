//! A quantizer whose rows are worked on by a device: they are copied there and back.

use forgelm_kernels_api::{
    DeviceMemory, DevicePart, DeviceRefusal, Format, Host, HostMut, OnDevice,
};
use forgelm_sdk::Failed;
use forgelm_sdk::quantizer::{QuantizeOnDevice, Quantizer};

/// A quantizer on a device.
pub(super) struct QuantizedOnDevice<'a> {
    quantizer: &'a dyn Quantizer,
    quantizes: &'a dyn QuantizeOnDevice,
    device: &'a dyn OnDevice,
}

/// Memory of the device, given back when this is dropped, and where it lies.
struct Placed {
    part: DevicePart,
    _memory: Box<dyn DeviceMemory>,
}

impl<'a> QuantizedOnDevice<'a> {
    /// `None` for a quantizer that does not work on a device.
    pub(super) fn new(quantizer: &'a dyn Quantizer, device: &'a dyn OnDevice) -> Option<Self> {
        let quantizes = quantizer.on_device()?;
        Some(Self { quantizer, quantizes, device })
    }

    fn room(&self, format: Format, len: usize) -> Result<Placed, Failed> {
        let memory = self.device.allocate(format, len).map_err(failed)?;
        let part = self.device.part_of(&*memory);
        let part = part.ok_or_else(|| Failed::new("the device does not know its own memory"))?;
        Ok(Placed { part, _memory: memory })
    }
}

fn failed(refusal: DeviceRefusal) -> Failed {
    Failed::new(refusal.to_string())
}

impl Quantizer for QuantizedOnDevice<'_> {
    fn bytes_per_row(&self, n_cols: usize) -> Result<usize, Failed> {
        self.quantizer.bytes_per_row(n_cols)
    }

    fn quantize(&self, rows: &[f32], n_cols: usize, bytes: &mut [u8]) -> Result<(), Failed> {
        let (from, to) = (self.room(Format::F32, rows.len())?, self.room(Format::U8, bytes.len())?);
        self.device.upload(from.part, Host::F32(rows)).map_err(failed)?;
        self.quantizes.quantize(from.part, n_cols, to.part)?;
        self.device.download(to.part, HostMut::U8(bytes)).map_err(failed)
    }

    fn dequantize(&self, bytes: &[u8], n_cols: usize, rows: &mut [f32]) -> Result<(), Failed> {
        let (from, to) = (self.room(Format::U8, bytes.len())?, self.room(Format::F32, rows.len())?);
        self.device.upload(from.part, Host::U8(bytes)).map_err(failed)?;
        self.quantizes.dequantize(from.part, n_cols, to.part)?;
        self.device.download(to.part, HostMut::F32(rows)).map_err(failed)
    }
}
