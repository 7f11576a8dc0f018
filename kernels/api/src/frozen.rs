//! Weights that never change: read once, packed into whatever form the kernels like best.

use std::any::Any;
use std::collections::VecDeque;
use std::io::Read;

use crate::blocks::BlockSource;
use crate::float8::Float8Rows;
use crate::memory::Slice;

/// The number format in which products of a frozen weight are formed. Sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// Both factors f32.
    F32,
    /// Both factors rounded to bfloat16 (round to nearest even).
    Bf16,
}

/// Where the rows of a frozen matrix come from: a mapped file, a quantized block, a test's vector.
///
/// Packing asks for a few rows at a time, so that no dense copy of the whole matrix need exist.
pub trait RowSource: Sync {
    /// N, the number of rows (out features; for an embedding, the vocabulary).
    fn n_rows(&self) -> usize;

    /// K, the number of columns (in features).
    fn n_cols(&self) -> usize;

    /// Writes rows `first_row..` to `out`, as many as fit it.
    ///
    /// Shapes: `out` [n, K] written.
    ///
    /// # Panics
    /// If `out` is not whole rows or reaches past the last row: a bug in the caller.
    fn read_rows(&self, first_row: usize, out: &mut [f32]);

    /// The same matrix in blocks, if it is quantized: a kernel library may keep it so. The values
    /// are equal to those of [`RowSource::read_rows`] to the last bit.
    fn blocks(&self) -> Option<&dyn BlockSource> {
        None
    }

    /// The same matrix in floats of eight bits, if it is stored so: a library of a device takes them
    /// there as they are. The values are equal to those of [`RowSource::read_rows`] to the last bit.
    fn float8(&self) -> Option<Float8Rows<'_>> {
        None
    }
}

/// Rows in memory.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a> {
    /// K.
    pub n_cols: usize,
    /// [N, K].
    pub values: &'a [f32],
}

impl RowSource for Dense<'_> {
    fn n_rows(&self) -> usize {
        self.values.len() / self.n_cols
    }

    fn n_cols(&self) -> usize {
        self.n_cols
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.values[first_row * self.n_cols..][..out.len()]);
    }
}

/// A weight packed by [`Ops::freeze`](crate::Ops::freeze). Only the library that packed it can
/// look inside.
pub trait FrozenMatrix: Send + Sync {
    /// N, the number of rows.
    fn n_rows(&self) -> usize;

    /// K, the number of columns.
    fn n_cols(&self) -> usize;

    /// Memory held, in bytes.
    fn n_bytes(&self) -> usize;

    /// Rows `first_row..` as the kernels see them: after rounding to the compute format.
    ///
    /// Shapes: `out` [n, K] written.
    fn read_rows(&self, first_row: usize, out: &mut [f32]);

    /// Its bytes as the library lays them out, in the memory of the host, and what is left without
    /// them: for processes that hold a part of each weight.
    fn take_apart(&self) -> (Box<dyn MatrixForm>, Vec<u8>);

    /// For the library that packed it.
    fn as_any(&self) -> &dyn Any;
}

/// A packed weight without its bytes. Processes that packed the same weight with the same library have
/// the same form of it, and the same bytes.
pub trait MatrixForm: Send + Sync {
    /// How many bytes [`FrozenMatrix::take_apart`] gave.
    fn n_bytes(&self) -> usize;

    /// The weight again, of the bytes that [`FrozenMatrix::take_apart`] gave, which may lie on the host
    /// or where the library works: in new memory, where it keeps weights.
    ///
    /// Ends with a [`Failure`](crate::Failure) if there is no memory for it.
    ///
    /// # Panics
    /// If there are fewer bytes: a bug in the caller.
    fn put_together(&self, bytes: &mut Pieces<'_>) -> Box<dyn FrozenMatrix>;
}

/// Bytes that lie in several places, to be read one place after the other. All lie on the host, where
/// this is a [`Read`], or all where the library works.
#[derive(Debug)]
pub struct Pieces<'a>(VecDeque<Slice<'a, u8>>);

impl<'a> Pieces<'a> {
    /// The next ones that lie in one place, at most `n`; `None` behind the last.
    pub fn next(&mut self, n: usize) -> Option<Slice<'a, u8>> {
        while let Some(piece) = self.0.pop_front() {
            let len = piece.len();
            if len > n {
                self.0.push_front(piece.part(n..len));
            }
            if len > 0 {
                return Some(piece.part(0..len.min(n)));
            }
        }
        None
    }

    /// Whether they lie on the host.
    #[must_use]
    pub fn are_on_host(&self) -> bool {
        self.0.iter().all(|piece| matches!(piece, Slice::Host(_)))
    }
}

impl<'a> FromIterator<Slice<'a, u8>> for Pieces<'a> {
    fn from_iter<I: IntoIterator<Item = Slice<'a, u8>>>(pieces: I) -> Self {
        Self(pieces.into_iter().collect())
    }
}

impl Read for Pieces<'_> {
    /// # Panics
    /// If they lie on a device.
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let Some(piece) = self.next(to.len()) else { return Ok(0) };
        to[..piece.len()].copy_from_slice(piece.on_host());
        Ok(piece.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_as_one_whole() {
        let (one, two) = ([1, 2, 3], [4, 5]);
        let pieces = || Pieces::from_iter([(&one).into(), (&[]).into(), Slice::from(&two)]);
        let mut read = Vec::new();
        let mut some = pieces();
        assert!(some.are_on_host());
        assert_eq!(*some.next(2).expect("there are some").to_host(), [1, 2]);
        assert_eq!(*some.next(9).expect("there are some").to_host(), [3]);
        some.read_to_end(&mut read).expect("memory does not fail");
        assert_eq!(read, [4, 5]);
        assert!(some.next(1).is_none());
        let mut four = [0; 4];
        pieces().read_exact(&mut four).expect("there are as many");
        assert_eq!(four, [1, 2, 3, 4]);
    }
}
