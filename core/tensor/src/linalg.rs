//! Singular values and vectors.
//!
//! Inputs and results are f32, everything between is f64, in one order on one thread: the same
//! matrix gives the same bits everywhere. It refuses to know what the matrices are for.
//!
//! The method: the eigenvectors of the Gram matrix of the shorter side are its singular vectors;
//! those of the longer side are the matrix times them, over their lengths. Products of f32 numbers
//! are exact in f64, so that singular values come out within about `sqrt(2^-52)`, 1.5e-8, of the
//! largest: below what rounding the matrix to f32 has already cost. Vectors of values too small
//! for that (their lengths are mostly error) are made orthogonal explicitly, and so are those of
//! zero, so that both sides are orthonormal for matrices of any rank.
//!
//! Start reading at [`svd_top`].
#![expect(clippy::cast_possible_truncation, reason = "f64 inside, f32 outside")]

mod eigen;
mod product;

use product::{products, sum_of_products};

/// Singular values below this part of the largest have vectors that are made orthogonal by
/// subtraction: above it the error of the Gram matrix keeps them orthogonal to 1e-10.
const SMALL: f64 = 1e-3;

/// Singular values below this part of the largest are zero as far as f32 input can tell; their
/// vectors on the longer side are any that complete the basis.
const ZERO: f64 = 1e-14;

/// `a = u diag(s) vt`.
///
/// Shapes: of a matrix [m, n] with k singular values kept: `u` [m, k], `s` [k], `vt` [k, n], all
/// row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Svd {
    /// Left singular vectors, one a column.
    pub u: Vec<f32>,
    /// Singular values, the largest first, none negative.
    pub s: Vec<f32>,
    /// Right singular vectors, one a row.
    pub vt: Vec<f32>,
}

/// Every singular value and vector: k = min(m, n).
///
/// Shapes: `a` [m, n] row-major read. See [`svd_top`].
///
/// # Panics
/// If `a` is not [m, n].
#[must_use]
pub fn svd_thin(m: usize, n: usize, a: &[f32]) -> Svd {
    svd_top(m, n, a, m.min(n))
}

/// The `k` largest singular values with their vectors; k is at most min(m, n), more are not there.
///
/// The sign of a pair of vectors is fixed: the largest component on the shorter side (the first of
/// equals) is positive. A matrix that holds a number that is not finite gives NaN everywhere.
///
/// Shapes: `a` [m, n] row-major read.
///
/// Paper: Golub and Van Loan, Matrix Computations, sections 8.3 and 8.6; orthogonalization twice,
/// as Giraud, Langou, Rozloznik and van den Eshof 2005 show to be enough.
///
/// # Panics
/// If `a` is not [m, n].
#[must_use]
pub fn svd_top(m: usize, n: usize, a: &[f32], k: usize) -> Svd {
    assert_eq!(a.len(), m * n, "a is not [m, n]");
    let k = k.min(m).min(n);
    if k == 0 {
        return Svd { u: Vec::new(), s: Vec::new(), vt: Vec::new() };
    }
    if a.iter().any(|x| !x.is_finite()) {
        let nan = |len| vec![f32::NAN; len];
        return Svd { u: nan(m * k), s: nan(k), vt: nan(k * n) };
    }
    let side = if m <= n { Shorter::Rows } else { Shorter::Columns };
    let matrix = Matrix { a, short: m.min(n), long: m.max(n), side };
    let short = matrix.vectors_of_the_shorter_side(k);
    let (s, long) = matrix.vectors_of_the_longer_side(&short, k);
    let (m_vectors, n_vectors) = match side {
        Shorter::Rows => (short, long),
        Shorter::Columns => (long, short),
    };
    Svd {
        u: transposed(&m_vectors, k, m),
        s: s.into_iter().map(|s| s as f32).collect(),
        vt: n_vectors.into_iter().map(|v| v as f32).collect(),
    }
}

#[derive(Clone, Copy)]
enum Shorter {
    Rows,
    Columns,
}

/// A matrix, read as [short, long].
#[derive(Clone, Copy)]
struct Matrix<'a> {
    a: &'a [f32],
    short: usize,
    long: usize,
    side: Shorter,
}

impl Matrix<'_> {
    /// Element of row i of the shorter side, column j of the longer.
    #[inline]
    fn at(&self, i: usize, j: usize) -> f64 {
        f64::from(match self.side {
            Shorter::Rows => self.a[i * self.long + j],
            Shorter::Columns => self.a[j * self.short + i],
        })
    }

    /// Eigenvectors [k, short] of the Gram matrix, those of the largest eigenvalues first.
    fn vectors_of_the_shorter_side(&self, k: usize) -> Vec<f64> {
        let n = self.short;
        let mut gram = vec![0.0; n * n];
        products(&mut gram, [n, n, self.long], |i, l| self.at(i, l), |j, l| self.at(j, l));
        let mut vectors = eigen::top_eigenvectors(n, gram, k);
        for vector in vectors.chunks_exact_mut(n) {
            let largest =
                vector.iter().fold(0.0_f64, |a, &b| if b.abs() > a.abs() { b } else { a });
            if largest < 0.0 {
                vector.iter_mut().for_each(|x| *x = -*x);
            }
        }
        vectors
    }

    /// Singular values [k] and the vectors [k, long] that go with `short` [k, short]. Values of
    /// neighbors that rounding exchanged are made equal.
    fn vectors_of_the_longer_side(&self, short: &[f64], k: usize) -> (Vec<f64>, Vec<f64>) {
        let mut long = vec![0.0; k * self.long];
        let at = |j: usize, i: usize| self.at(i, j);
        products(&mut long, [k, self.long, self.short], |i, l| short[i * self.short + l], at);
        let mut basis = Basis { len: self.long, rows: long };
        let lengths: Vec<f64> = (0..k).map(|i| length(basis.row(i))).collect();
        let largest = lengths.iter().copied().fold(0.0, f64::max);
        let mut values = Vec::with_capacity(k);
        for (i, &s) in lengths.iter().enumerate() {
            if s > SMALL * largest {
                basis.scale(i, 1.0 / s);
                values.push(s);
            } else {
                let s = basis.orthogonalize(i, ZERO * largest);
                values.push(s);
            }
        }
        for i in 1..k {
            values[i] = f64::min(values[i], values[i - 1]);
        }
        (values, basis.rows)
    }
}

/// Vectors that become orthonormal one after the other.
struct Basis {
    len: usize,
    rows: Vec<f64>,
}

impl Basis {
    fn row(&self, i: usize) -> &[f64] {
        &self.rows[i * self.len..(i + 1) * self.len]
    }

    fn scale(&mut self, i: usize, factor: f64) {
        self.rows[i * self.len..(i + 1) * self.len].iter_mut().for_each(|x| *x *= factor);
    }

    /// Makes row i orthogonal to those before it and of length one; returns its length before
    /// that. At or below `zero` the row carries no direction and is replaced by one that does.
    fn orthogonalize(&mut self, i: usize, zero: f64) -> f64 {
        let s = self.subtract_projections(i);
        if s > zero {
            self.scale(i, 1.0 / s);
            // What was left may be small against what was taken away: again, on unit length.
            let rest = self.subtract_projections(i);
            if rest > 0.5 {
                self.scale(i, 1.0 / rest);
                return s;
            }
        }
        self.replace(i);
        0.0
    }

    /// Returns the length that is left.
    fn subtract_projections(&mut self, i: usize) -> f64 {
        let (before, row) = self.rows.split_at_mut(i * self.len);
        let row = &mut row[..self.len];
        for other in before.chunks_exact(self.len) {
            let along = sum_of_products(other, row);
            row.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
        }
        length(row)
    }

    /// Row i becomes the unit axis that the rows before it hold least of, made orthogonal.
    fn replace(&mut self, i: usize) {
        let mut held = vec![0.0; self.len];
        for row in self.rows[..i * self.len].chunks_exact(self.len) {
            held.iter_mut().zip(row).for_each(|(h, x)| *h += x * x);
        }
        let least = (0..self.len).fold(0, |a, b| if held[b] < held[a] { b } else { a });
        let row = &mut self.rows[i * self.len..(i + 1) * self.len];
        row.fill(0.0);
        row[least] = 1.0;
        for _ in 0..3 {
            let rest = self.subtract_projections(i);
            self.scale(i, 1.0 / rest);
        }
    }
}

fn length(x: &[f64]) -> f64 {
    sum_of_products(x, x).sqrt()
}

/// Rows [k, n] of vectors as columns [n, k].
fn transposed(rows: &[f64], k: usize, n: usize) -> Vec<f32> {
    let mut columns = vec![0.0; rows.len()];
    for i in 0..k {
        for j in 0..n {
            columns[j * k + i] = rows[i * n + j] as f32;
        }
    }
    columns
}
