//! The rows of one tensor to bytes, a few at a time on several threads, and what that loses.

use super::Work;
use forgelm_evidence::documents::quantization::QuantizedTensor;
use forgelm_kernels_api::RowSource;
use forgelm_sdk::quantizer::Quantizer;
use forgelm_tensor::Dtype;
use std::io;
use std::ops::Range;

/// Numbers that a thread converts at a time.
const PIECE: usize = 1 << 18;

/// Why a tensor could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// The method gave up.
    #[error("tensor `{tensor}`: the method gave up: {message}")]
    Method {
        /// The tensor.
        tensor: String,
        /// What the method said.
        message: String,
    },
    /// A number of the model, or one that came back, is none.
    #[error(
        "tensor `{tensor}`: row {row}, column {column} {what} {value}; expected a finite number"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// Where, from 0.
        row: usize,
        /// Where, from 0.
        column: usize,
        /// `is` or `becomes`.
        what: &'static str,
        /// The number.
        value: f32,
    },
    /// A request to stop came.
    #[error("stopped")]
    Stopped,
}

/// How the rows of a tensor are written.
#[derive(Clone, Copy)]
pub(super) enum Codec<'a> {
    /// In a format that this program writes itself.
    Own(Dtype),
    /// By the method.
    Method(&'a dyn Quantizer),
    /// As the values that the method leaves, in this format.
    Left(&'a dyn Quantizer, Dtype),
}

impl Codec<'_> {
    fn bytes_per_row(self, n_cols: usize) -> Result<usize, String> {
        match self {
            Self::Own(dtype) | Self::Left(_, dtype) => {
                dtype.row_bytes(n_cols).ok_or_else(|| format!("rows of {n_cols} in {dtype}"))
            }
            Self::Method(method) => method.bytes_per_row(n_cols).map_err(|e| e.to_string()),
        }
    }

    /// Bytes of some rows, and what they mean.
    fn there_and_back(self, rows: &[f32], n_cols: usize) -> Result<(Vec<u8>, Vec<f32>), String> {
        let mut back = vec![0.0; rows.len()];
        let bytes = match self {
            Self::Own(dtype) => {
                let bytes = forgelm_tensor::quantize(dtype, rows).map_err(|e| e.to_string())?;
                forgelm_tensor::dequantize(dtype, &bytes, &mut back).map_err(|e| e.to_string())?;
                bytes
            }
            Self::Left(method, dtype) => {
                let (_, left) = Self::Method(method).there_and_back(rows, n_cols)?;
                return Self::Own(dtype).there_and_back(&left, n_cols);
            }
            Self::Method(method) => {
                let n_rows = rows.len() / n_cols;
                let mut bytes = vec![0; n_rows * self.bytes_per_row(n_cols)?];
                method.quantize(rows, n_cols, &mut bytes).map_err(|e| e.to_string())?;
                method.dequantize(&bytes, n_cols, &mut back).map_err(|e| e.to_string())?;
                bytes
            }
        };
        Ok((bytes, back))
    }
}

/// What a tensor lost so far.
#[derive(Clone, Copy, Default)]
struct Loss {
    max: f64,
    sum_of_squares: f64,
    power: f64,
}

/// Some rows, converted.
struct Piece {
    bytes: Vec<u8>,
    loss: Loss,
}

/// Takes the bytes of whole rows.
type Take<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

/// Converts the rows of a tensor and hands their bytes to `take` in order.
///
/// **Numerics:** the same bytes and sums on any number of threads.
pub(super) fn convert(
    name: &str,
    rows: &dyn RowSource,
    codec: Codec<'_>,
    work: &Work<'_>,
    take: &mut Take<'_>,
) -> Result<QuantizedTensor, Ended> {
    in_pieces(name, rows, codec, (work, PIECE), take)
}

/// [`convert`], with about so many numbers in a piece.
fn in_pieces(
    name: &str,
    rows: &dyn RowSource,
    codec: Codec<'_>,
    (work, numbers): (&Work<'_>, usize),
    take: &mut Take<'_>,
) -> Result<QuantizedTensor, Ended> {
    let (n_rows, n_cols) = (rows.n_rows(), rows.n_cols());
    let at_a_time = (numbers / n_cols.max(1)).max(1);
    let pieces: Vec<Range<usize>> = (0..n_rows)
        .step_by(at_a_time)
        .map(|first| first..(first + at_a_time).min(n_rows))
        .collect();
    let mut loss = Loss::default();
    for pieces in pieces.chunks(work.n_threads.max(1)) {
        if (work.is_stopped)() {
            return Err(Ended::Refused(QuantizeError::Stopped));
        }
        let done: Vec<Result<Piece, QuantizeError>> = std::thread::scope(|scope| {
            let start = |of: &Range<usize>| {
                scope.spawn({
                    let of = of.clone();
                    move || piece(name, rows, codec, of)
                })
            };
            let threads: Vec<_> = pieces.iter().map(start).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        for piece in done {
            let piece = piece.map_err(Ended::Refused)?;
            loss.max = loss.max.max(piece.loss.max);
            loss.sum_of_squares += piece.loss.sum_of_squares;
            loss.power += piece.loss.power;
            take(&piece.bytes).map_err(Ended::Write)?;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let n = (n_rows * n_cols).max(1) as f64;
    let of_row = codec.bytes_per_row(n_cols).unwrap_or(0);
    Ok(QuantizedTensor {
        name: name.to_owned(),
        format: String::new(),
        n_values: (n_rows * n_cols) as u64,
        bytes_before: 0,
        bytes_after: (n_rows * of_row) as u64,
        max_error: loss.max,
        rms_error: (loss.sum_of_squares / n).sqrt(),
        rms: (loss.power / n).sqrt(),
    })
}

/// Why a conversion ended early.
pub(super) enum Ended {
    /// The tensor.
    Refused(QuantizeError),
    /// The file.
    Write(io::Error),
}

fn piece(
    name: &str,
    source: &dyn RowSource,
    codec: Codec<'_>,
    rows: Range<usize>,
) -> Result<Piece, QuantizeError> {
    let n_cols = source.n_cols();
    let mut values = vec![0.0; rows.len() * n_cols];
    source.read_rows(rows.start, &mut values);
    let finite =
        |values: &[f32], what: &'static str| match values.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(place) => Err(QuantizeError::NotFinite {
                tensor: name.to_owned(),
                row: rows.start + place / n_cols,
                column: place % n_cols,
                what,
                value: values[place],
            }),
        };
    finite(&values, "is")?;
    let converted = codec.there_and_back(&values, n_cols);
    let (bytes, back) =
        converted.map_err(|message| QuantizeError::Method { tensor: name.to_owned(), message })?;
    finite(&back, "becomes")?;
    let mut loss = Loss::default();
    for (&v, &b) in values.iter().zip(&back) {
        let error = f64::from(b) - f64::from(v);
        loss.max = loss.max.max(error.abs());
        loss.sum_of_squares += error * error;
        loss.power += f64::from(v) * f64::from(v);
    }
    Ok(Piece { bytes, loss })
}

#[cfg(test)]
mod tests {
    use super::{Codec, Ended, convert, in_pieces};
    use crate::quantize::Work;
    use forgelm_kernels_api::RowSource;
    use forgelm_sdk::Failed;
    use forgelm_sdk::quantizer::Quantizer;
    use forgelm_tensor::Dtype;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Loses nothing.
    struct Exact;

    impl Quantizer for Exact {
        fn bytes_per_row(&self, n_cols: usize) -> Result<usize, Failed> {
            Ok(4 * n_cols)
        }

        fn quantize(&self, rows: &[f32], _: usize, bytes: &mut [u8]) -> Result<(), Failed> {
            for (bytes, v) in bytes.chunks_exact_mut(4).zip(rows) {
                bytes.copy_from_slice(&v.to_le_bytes());
            }
            Ok(())
        }

        fn dequantize(&self, bytes: &[u8], _: usize, rows: &mut [f32]) -> Result<(), Failed> {
            for (v, bytes) in rows.iter_mut().zip(bytes.as_chunks().0) {
                *v = f32::from_le_bytes(*bytes);
            }
            Ok(())
        }
    }

    struct Row([f32; 2]);

    impl RowSource for Row {
        fn n_rows(&self) -> usize {
            1
        }

        fn n_cols(&self) -> usize {
            2
        }

        fn read_rows(&self, _: usize, out: &mut [f32]) {
            out.copy_from_slice(&self.0);
        }
    }

    /// Numbers 0, 1, 2, ... in rows of three, but for one.
    struct Rows {
        n_rows: usize,
        nan_row: Option<usize>,
    }

    impl RowSource for Rows {
        fn n_rows(&self) -> usize {
            self.n_rows
        }

        fn n_cols(&self) -> usize {
            3
        }

        fn read_rows(&self, first: usize, out: &mut [f32]) {
            for (row, out) in (first..).zip(out.chunks_exact_mut(3)) {
                for (column, out) in out.iter_mut().enumerate() {
                    *out = f32::from(u16::try_from(3 * row + column).expect("a small tensor"));
                }
                if self.nan_row == Some(row) {
                    out[2] = f32::NAN;
                }
            }
        }
    }

    /// Is done with the first row last of all that are at work.
    struct FirstIsLast<'a> {
        n_before: usize,
        n_done: &'a AtomicUsize,
    }

    impl Quantizer for FirstIsLast<'_> {
        fn bytes_per_row(&self, n_cols: usize) -> Result<usize, Failed> {
            Exact.bytes_per_row(n_cols)
        }

        fn quantize(&self, rows: &[f32], n_cols: usize, bytes: &mut [u8]) -> Result<(), Failed> {
            let is_first = rows[0].to_bits() == 0;
            while is_first && self.n_done.load(Ordering::Acquire) < self.n_before {
                std::thread::yield_now();
            }
            self.n_done.fetch_add(1, Ordering::AcqRel);
            Exact.quantize(rows, n_cols, bytes)
        }

        fn dequantize(&self, bytes: &[u8], n_cols: usize, rows: &mut [f32]) -> Result<(), Failed> {
            Exact.dequantize(bytes, n_cols, rows)
        }
    }

    #[test]
    fn pieces_are_joined_in_the_order_of_rows_whichever_is_done_first() {
        let whole: Vec<u8> = (0..21_u16).flat_map(|v| f32::from(v).to_le_bytes()).collect();
        for n_threads in 1..=4 {
            // Less than a row, a row, two with one left over, and all of them.
            for numbers in [1, 3, 6, 1 << 20] {
                let n_pieces =
                    if numbers > 21 { 1 } else { 7_usize.div_ceil((numbers / 3).max(1)) };
                let n_done = AtomicUsize::new(0);
                let n_before = n_threads.min(n_pieces) - 1;
                let quantizer = FirstIsLast { n_before, n_done: &n_done };
                let is_stopped = &|| false;
                let work = Work { method: "exact", quantizer: &quantizer, n_threads, is_stopped };
                let mut taken = Vec::new();
                let rows = Rows { n_rows: 7, nan_row: None };
                let codec = Codec::Method(&quantizer);
                let done = in_pieces("w", &rows, codec, (&work, numbers), &mut |bytes| {
                    taken.extend_from_slice(bytes);
                    Ok(())
                });
                let Ok(done) = done else { panic!("it can be converted") };
                assert_eq!(taken, whole, "{n_threads} threads, {numbers} numbers");
                assert_eq!((done.n_values, done.bytes_after), (21, 84));
                assert_eq!(n_done.load(Ordering::Acquire), n_pieces);

                let rows = Rows { n_rows: 7, nan_row: Some(5) };
                let refused = in_pieces("w", &rows, codec, (&work, numbers), &mut |_| Ok(()));
                let Err(Ended::Refused(refused)) = refused else { panic!("NaN is refused") };
                let expected = "tensor `w`: row 5, column 2 is NaN; expected a finite number";
                assert_eq!(refused.to_string(), expected);
            }
        }
    }

    /// What is told of a folder of values is about the values that are in it.
    #[test]
    fn the_format_of_the_file_is_part_of_what_is_lost() {
        let work = Work { method: "exact", quantizer: &Exact, n_threads: 1, is_stopped: &|| false };
        // Half a step of bfloat16 above 1.
        let row = Row([1.0 + 2.0_f32.powi(-8), 2.0]);
        let mut bytes = Vec::new();
        let codec = Codec::Left(&Exact, Dtype::Bf16);
        let done = convert("w", &row, codec, &work, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        let Ok(done) = done else { panic!("it can be converted") };
        assert_eq!(bytes, [0x80, 0x3f, 0x00, 0x40]);
        assert!((done.max_error - 2.0_f64.powi(-8)).abs() < 1e-12, "{}", done.max_error);
        assert_eq!(done.bytes_after, 4);
        let too_large = convert(
            "w",
            &Row([1e38, 0.0]),
            Codec::Left(&Exact, Dtype::F16),
            &work,
            &mut |_| Ok(()),
        );
        assert!(too_large.is_err(), "an infinity in the file");
    }
}
