//! A quantizer makes fewer bytes of rows of numbers, and numbers of them again.
//!
//! It sees rows of a matrix, each by itself: the host reads and writes files, cuts matrices into
//! blocks of rows, and runs blocks on its threads.

use crate::Failed;
use crate::device::DevicePart;
use crate::options::{OptionValue, OptionsError};

/// A format of numbers.
///
/// Every function is a function of its arguments alone, and a row does not depend on the others.
/// R is the number of rows, C the numbers of a row, B the bytes of a row.
pub trait Quantizer: Send + Sync {
    /// B for rows of `n_cols` numbers.
    ///
    /// # Errors
    /// If the format has no rows of that width.
    fn bytes_per_row(&self, n_cols: usize) -> Result<usize, Failed>;

    /// Numbers to bytes.
    ///
    /// Shapes: `rows` [R, C] read, `bytes` [R, B] written.
    ///
    /// # Errors
    /// If the numbers cannot be written so.
    fn quantize(&self, rows: &[f32], n_cols: usize, bytes: &mut [u8]) -> Result<(), Failed>;

    /// Bytes to numbers.
    ///
    /// Shapes: `bytes` [R, B] read, `rows` [R, C] written.
    ///
    /// # Errors
    /// If the bytes are not of this format.
    fn dequantize(&self, bytes: &[u8], n_cols: usize, rows: &mut [f32]) -> Result<(), Failed>;

    /// The format on the device that the run computes on, if it can be had there.
    fn on_device(&self) -> Option<&dyn QuantizeOnDevice> {
        None
    }
}

/// A quantizer that is given numbers of a device. It gives the same bits as [`Quantizer`] with those
/// of the host: which of the two is called depends on the machine.
pub trait QuantizeOnDevice: Send + Sync {
    /// As [`Quantizer::quantize`].
    ///
    /// # Errors
    /// If the numbers cannot be written so, or the device fails.
    fn quantize(&self, rows: DevicePart, n_cols: usize, bytes: DevicePart) -> Result<(), Failed>;

    /// As [`Quantizer::dequantize`].
    ///
    /// # Errors
    /// If the bytes are not of this format, or the device fails.
    fn dequantize(&self, bytes: DevicePart, n_cols: usize, rows: DevicePart) -> Result<(), Failed>;
}

/// The entry of one quantizer in its library's list.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Its name in a config; equals the file's name.
    pub name: &'static str,
    /// One line for a person.
    pub summary: &'static str,
    /// Where the format was published.
    pub source: &'static str,
    /// Builds the quantizer from its options.
    pub build: Build,
}

/// Makes a quantizer from its options.
pub type Build = fn(options: &[(&str, OptionValue)]) -> Result<Box<dyn Quantizer>, OptionsError>;
