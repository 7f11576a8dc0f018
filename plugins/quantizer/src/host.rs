//! A format that the host knows, as a quantizer.

use forgelm_sdk::device::{DeviceKernels, DevicePart};
use forgelm_sdk::kernels::Kernels;
use forgelm_sdk::options::Reader;
use forgelm_sdk::quantizer::{QuantizeOnDevice, Quantizer};
use forgelm_sdk::{Failed, OptionValue, OptionsError};

/// The quantizer of a format without options.
pub(crate) fn build(
    format: &'static str,
    options: &[(&str, OptionValue)],
) -> Result<Box<dyn Quantizer>, OptionsError> {
    Reader::new(format, options).finish()?;
    let kernels = Kernels::of_host().ok_or_else(|| OptionsError::Refused {
        message: format!("`{format}` needs the host's `forgelm.kernels/1`, and there is none"),
    })?;
    Ok(Box::new(OfHost { format, kernels }))
}

struct OfHost {
    format: &'static str,
    kernels: Kernels,
}

impl Quantizer for OfHost {
    fn bytes_per_row(&self, n_cols: usize) -> Result<usize, Failed> {
        self.kernels.bytes_per_row(self.format, n_cols)
    }

    fn quantize(&self, rows: &[f32], n_cols: usize, bytes: &mut [u8]) -> Result<(), Failed> {
        self.kernels.quantize(self.format, rows, n_cols, bytes)
    }

    fn dequantize(&self, bytes: &[u8], n_cols: usize, rows: &mut [f32]) -> Result<(), Failed> {
        self.kernels.dequantize(self.format, bytes, n_cols, rows)
    }

    fn on_device(&self) -> Option<&dyn QuantizeOnDevice> {
        ON_DEVICE.contains(&self.format).then_some(self)
    }
}

/// Formats that the host has on a device too.
const ON_DEVICE: [&str; 3] = ["nf4", "fp4", "int8"];

impl QuantizeOnDevice for OfHost {
    fn quantize(&self, rows: DevicePart, n_cols: usize, bytes: DevicePart) -> Result<(), Failed> {
        DeviceKernels::needed()?.quantize(self.format, rows, n_cols, bytes)
    }

    fn dequantize(&self, bytes: DevicePart, n_cols: usize, rows: DevicePart) -> Result<(), Failed> {
        DeviceKernels::needed()?.dequantize(self.format, bytes, n_cols, rows)
    }
}
