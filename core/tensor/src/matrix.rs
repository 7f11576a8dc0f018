//! Matrices that are quantized when they are read, a few rows at a time: no dense copy exists.

use std::ops::Range;

use forgelm_kernels_api::{
    BlockFormat, BlockRows, BlockSource, Codes, Factor, FactorRows, Factors, Rounding, RowSource,
};

use crate::{
    BlockScales, DynamicMap, FOUR_BIT_BLOCK, FourBit, FourBitTensor, FourBitWriter, Int8Rows,
    NESTED_BLOCK, round_to_bf16, round_to_f16,
};

/// How the scales of four-bit blocks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleStorage {
    /// An f32 for each block of 64.
    Single,
    /// Eight bits, in blocks of 256 of their own.
    Double,
}

/// Weights that are read at a time.
const PIECE: usize = 1 << 20;

/// Reads some rows, a few at a time.
fn in_pieces(source: &dyn RowSource, rows: Range<usize>, mut take: impl FnMut(&[f32])) {
    let n_cols = source.n_cols();
    let at_a_time = (PIECE / n_cols.max(1)).clamp(1, rows.len().max(1));
    let mut piece = vec![0.0; at_a_time * n_cols];
    for first in rows.clone().step_by(at_a_time) {
        let len = (rows.end - first).min(at_a_time) * n_cols;
        source.read_rows(first, &mut piece[..len]);
        take(&piece[..len]);
    }
}

/// Works on all rows, a part of them on each thread; each part but the last has a multiple of
/// `step` rows, and the results come in the order of the rows.
fn in_parts<T: Send>(
    source: &dyn RowSource,
    (n_threads, step): (usize, usize),
    each: impl Fn(Range<usize>) -> T + Sync,
) -> Vec<T> {
    let n_rows = source.n_rows();
    let of_part = n_rows.div_ceil(step).div_ceil(n_threads.max(1)).max(1) * step;
    let parts = (0..n_rows).step_by(of_part).map(|first| first..(first + of_part).min(n_rows));
    std::thread::scope(|scope| {
        let each = &each;
        let mut parts = parts.collect::<Vec<_>>().into_iter();
        let own = parts.next();
        let others: Vec<_> = parts.map(|rows| scope.spawn(move || each(rows))).collect();
        let others = others.into_iter().map(|part| part.join().expect("no part panics"));
        own.map(each).into_iter().chain(others).collect()
    })
}

/// Rows that hold whole blocks of four bits.
fn rows_of_whole_blocks(n_cols: usize) -> usize {
    let mut rows = FOUR_BIT_BLOCK;
    while rows > 1 && (rows / 2 * n_cols).is_multiple_of(FOUR_BIT_BLOCK) {
        rows /= 2;
    }
    rows
}

/// A matrix in four bits, as kernels read it.
#[derive(Debug)]
pub struct FourBitMatrix {
    n_rows: usize,
    n_cols: usize,
    tensor: FourBitTensor,
    format: BlockFormat,
}

impl FourBitMatrix {
    /// Quantizes the rows of a source, flattened row by row. The values that it stands for are
    /// rounded as `rounding` says.
    ///
    /// Numerics: the same bits on any number of threads.
    #[must_use]
    pub fn quantize(
        source: &dyn RowSource,
        kind: FourBit,
        scales: ScaleStorage,
        rounding: Rounding,
        n_threads: usize,
    ) -> Self {
        let (n_rows, n_cols) = (source.n_rows(), source.n_cols());
        let mut parts = in_parts(source, (n_threads, rows_of_whole_blocks(n_cols)), |rows| {
            let mut writer = FourBitWriter::new(kind, rows.len() * n_cols);
            in_pieces(source, rows, |piece| writer.push(piece));
            writer
        })
        .into_iter();
        let mut writer = parts.next().unwrap_or_else(|| FourBitWriter::new(kind, 0));
        parts.for_each(|part| writer.append(part));
        Self::new(writer.finish(scales == ScaleStorage::Double), n_rows, n_cols, rounding)
    }

    /// The matrix of a tensor that is quantized already. The values that it stands for are rounded
    /// as `rounding` says.
    ///
    /// # Panics
    /// If the tensor has another number of values.
    #[must_use]
    pub fn new(tensor: FourBitTensor, n_rows: usize, n_cols: usize, rounding: Rounding) -> Self {
        assert_eq!(tensor.n_values, n_rows * n_cols, "the tensor is not [N, K]");
        let scale = match &tensor.scales {
            BlockScales::Single(_) => Factors::Plain,
            BlockScales::Double(nested) => Factors::Nested {
                values: Box::new(*DynamicMap::Signed.values()),
                outer_len: NESTED_BLOCK,
                offset: Some(nested.offset),
            },
        };
        let format = BlockFormat {
            codes: Codes::Four { values: *tensor.kind.values() },
            group_len: FOUR_BIT_BLOCK,
            scale,
            min: None,
            rounding,
        };
        Self { n_rows, n_cols, tensor, format }
    }
}

impl RowSource for FourBitMatrix {
    fn n_rows(&self) -> usize {
        self.n_rows
    }

    fn n_cols(&self) -> usize {
        self.n_cols
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        self.tensor.dequantize(first_row * self.n_cols, out);
        match self.format.rounding {
            Rounding::Exact => {}
            Rounding::F16 => round_to_f16(out),
            Rounding::Bf16 => round_to_bf16(out),
        }
    }

    /// Only where no block belongs to two rows.
    fn blocks(&self) -> Option<&dyn BlockSource> {
        self.n_cols.is_multiple_of(FOUR_BIT_BLOCK).then_some(self)
    }
}

impl BlockSource for FourBitMatrix {
    fn format(&self) -> &BlockFormat {
        &self.format
    }

    fn read_blocks(&self, rows: Range<usize>) -> BlockRows {
        let values = rows.start * self.n_cols..rows.end * self.n_cols;
        let blocks = values.start / FOUR_BIT_BLOCK..values.end / FOUR_BIT_BLOCK;
        let packed = &self.tensor.packed[values.start / 2..values.end / 2];
        let scale = match &self.tensor.scales {
            BlockScales::Single(scales) => FactorRows::Plain(scales[blocks].to_vec()),
            BlockScales::Double(nested) => FactorRows::Nested(nested.codes[blocks].to_vec()),
        };
        let codes = packed.iter().flat_map(|byte| [byte >> 4, byte & 15]).collect();
        BlockRows { codes, scale, min: None }
    }

    fn outer(&self, factor: Factor) -> Vec<f32> {
        match (&self.tensor.scales, factor) {
            (BlockScales::Double(nested), Factor::Scale) => nested.absmax.clone(),
            (BlockScales::Double(_) | BlockScales::Single(_), _) => Vec::new(),
        }
    }
}

/// A matrix in eight bits, with one scale a row, as kernels read it.
#[derive(Debug)]
pub struct Int8Matrix {
    rows: Int8Rows,
    format: BlockFormat,
}

impl Int8Matrix {
    /// Quantizes the rows of a source.
    ///
    /// Numerics: the same bits on any number of threads.
    #[must_use]
    pub fn quantize(source: &dyn RowSource, n_threads: usize) -> Self {
        let n_cols = source.n_cols();
        let mut parts = in_parts(source, (n_threads, 1), |rows| {
            let mut part = Int8Rows::new(n_cols);
            in_pieces(source, rows, |piece| part.push(piece));
            part
        })
        .into_iter();
        let mut rows = parts.next().unwrap_or_else(|| Int8Rows::new(n_cols));
        for part in parts {
            rows.codes.extend(part.codes);
            rows.scales.extend(part.scales);
        }
        let format = BlockFormat {
            codes: Codes::Eight,
            group_len: source.n_cols(),
            scale: Factors::Plain,
            min: None,
            rounding: Rounding::Exact,
        };
        Self { rows, format }
    }
}

impl RowSource for Int8Matrix {
    fn n_rows(&self) -> usize {
        self.rows.scales.len()
    }

    fn n_cols(&self) -> usize {
        self.rows.n_cols
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        self.rows.dequantize(first_row, out);
    }

    fn blocks(&self) -> Option<&dyn BlockSource> {
        Some(self)
    }
}

impl BlockSource for Int8Matrix {
    fn format(&self) -> &BlockFormat {
        &self.format
    }

    fn read_blocks(&self, rows: Range<usize>) -> BlockRows {
        let codes = &self.rows.codes[rows.start * self.rows.n_cols..rows.end * self.rows.n_cols];
        BlockRows {
            codes: codes.iter().map(|q| q.cast_unsigned()).collect(),
            scale: FactorRows::Plain(self.rows.scales[rows].to_vec()),
            min: None,
        }
    }

    fn outer(&self, _: Factor) -> Vec<f32> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use forgelm_kernels_api::{Rounding, RowSource};

    use super::{FourBitMatrix, Int8Matrix, ScaleStorage};
    use crate::FourBit;

    struct Waves {
        n_rows: usize,
        n_cols: usize,
    }

    impl RowSource for Waves {
        fn n_rows(&self) -> usize {
            self.n_rows
        }

        fn n_cols(&self) -> usize {
            self.n_cols
        }

        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        fn read_rows(&self, first_row: usize, out: &mut [f32]) {
            for (i, out) in (first_row * self.n_cols..).zip(out) {
                *out = (i as f32 * 0.7).sin();
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        for (n_rows, n_cols) in [(1, 64), (7, 64), (130, 24), (65, 7), (64, 63), (3, 1), (9, 1000)]
        {
            let source = Waves { n_rows, n_cols };
            for scales in [ScaleStorage::Single, ScaleStorage::Double] {
                let of = |n_threads| {
                    let kind = FourBit::Nf4;
                    FourBitMatrix::quantize(&source, kind, scales, Rounding::Exact, n_threads)
                };
                let one = of(1);
                for n_threads in [2, 3, 16] {
                    let many = of(n_threads);
                    assert_eq!(many.tensor, one.tensor, "{n_rows} x {n_cols}, {n_threads} threads");
                }
            }
            let one = Int8Matrix::quantize(&source, 1);
            for n_threads in [2, 3, 16] {
                assert_eq!(Int8Matrix::quantize(&source, n_threads).rows, one.rows, "{n_threads}");
            }
        }
    }
}
