//! my_plugin: a quantizer for ForgeLM.
//!
//! As it comes, a row is one scale and one signed byte a number: `x = scale * code / 127`. Yours
//! goes into the three functions of `Method`. A row must not depend on the others.
#![forbid(unsafe_code)]

use forgelm_sdk::Failed;
use forgelm_sdk::options::Reader;
use forgelm_sdk::quantizer::{Descriptor, Quantizer};

/// Options of the format, read in `QUANTIZERS`, are fields of it.
struct Method;

/// Bytes of the scale in front of the codes of a row.
const SCALE: usize = size_of::<f32>();

impl Quantizer for Method {
    fn bytes_per_row(&self, n_cols: usize) -> Result<usize, Failed> {
        match n_cols {
            0 => Err(Failed::new("a row of no numbers")),
            _ => Ok(SCALE + n_cols),
        }
    }

    /// `rows` [R, `n_cols`] read, `bytes` [R, bytes per row] written.
    fn quantize(&self, rows: &[f32], n_cols: usize, bytes: &mut [u8]) -> Result<(), Failed> {
        for (row, bytes) in rows.chunks(n_cols).zip(bytes.chunks_mut(SCALE + n_cols)) {
            let scale = row.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            let (to_scale, codes) = bytes.split_at_mut(SCALE);
            to_scale.copy_from_slice(&scale.to_le_bytes());
            for (code, x) in codes.iter_mut().zip(row) {
                let scaled = if scale > 0.0 { x / scale * 127.0 } else { 0.0 };
                *code = rounded(scaled).cast_unsigned();
            }
        }
        Ok(())
    }

    /// `bytes` [R, bytes per row] read, `rows` [R, `n_cols`] written.
    fn dequantize(&self, bytes: &[u8], n_cols: usize, rows: &mut [f32]) -> Result<(), Failed> {
        for (row, bytes) in rows.chunks_mut(n_cols).zip(bytes.chunks(SCALE + n_cols)) {
            let (scale, codes) = bytes.split_at(SCALE);
            let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
            for (x, code) in row.iter_mut().zip(codes) {
                *x = scale * f32::from(code.cast_signed()) / 127.0;
            }
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "at most 127 in size")]
fn rounded(scaled: f32) -> i8 {
    scaled.round() as i8
}

const QUANTIZERS: &[Descriptor] = &[Descriptor {
    name: "my_plugin",
    summary: "one signed byte a number, one scale a row",
    source: "Dettmers et al. 2022, arXiv:2208.07339, sec. 2.1",
    build: |options| {
        // let mut options = Reader::new(..); let bits = options.number("bits", 8.0, 2.0..=8.0)?;
        Reader::new("my_plugin", options).finish()?;
        Ok(Box::new(Method))
    },
}];

forgelm_sdk::export_plugin!(quantizers: QUANTIZERS);
