//! A quantizer whose rows are worked on by a device: they are copied there and back.

use forgelm_kernels_api::{Format, Host, HostMut, OnDevice, Placed};
use forgelm_sdk::Failed;
use forgelm_sdk::quantizer::{QuantizeOnDevice, Quantizer};

/// A quantizer on a device.
pub(super) struct QuantizedOnDevice<'a> {
    quantizer: &'a dyn Quantizer,
    quantizes: &'a dyn QuantizeOnDevice,
    device: &'a dyn OnDevice,
}

impl<'a> QuantizedOnDevice<'a> {
    /// `None` for a quantizer that does not work on a device.
    pub(super) fn new(quantizer: &'a dyn Quantizer, device: &'a dyn OnDevice) -> Option<Self> {
        let quantizes = quantizer.on_device()?;
        Some(Self { quantizer, quantizes, device })
    }
}

impl Quantizer for QuantizedOnDevice<'_> {
    fn bytes_per_row(&self, n_cols: usize) -> Result<usize, Failed> {
        self.quantizer.bytes_per_row(n_cols)
    }

    fn quantize(&self, rows: &[f32], n_cols: usize, bytes: &mut [u8]) -> Result<(), Failed> {
        let from = Placed::copied(self.device, Host::F32(rows))?;
        let to = Placed::zeros(self.device, Format::U8, bytes.len())?;
        self.quantizes.quantize(from.part, n_cols, to.part)?;
        Ok(self.device.download(to.part, HostMut::U8(bytes))?)
    }

    fn dequantize(&self, bytes: &[u8], n_cols: usize, rows: &mut [f32]) -> Result<(), Failed> {
        let from = Placed::copied(self.device, Host::U8(bytes))?;
        let to = Placed::zeros(self.device, Format::F32, rows.len())?;
        self.quantizes.dequantize(from.part, n_cols, to.part)?;
        Ok(self.device.download(to.part, HostMut::F32(rows))?)
    }
}
