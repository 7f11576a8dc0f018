//! Eigenvectors of a symmetric matrix: Householder's tridiagonal form, then implicit QL.
//!
//! Paper: Martin, Reinsch and Wilkinson 1968 (tridiagonal form); Bowdler, Martin, Reinsch and
//! Wilkinson 1968 (QL); Golub and Van Loan, algorithms 8.3.1 and 8.3.3.
//!
//! The rotations of QL are written down and applied to the vectors some rows at a time, so that
//! what they touch stays in the cache.

use super::product::sum_of_products;

/// Rows of the matrix of vectors that are rotated together.
const PANEL: usize = 16;
/// Rotations that are written down before they are applied.
const PENDING: usize = 1 << 15;

/// The eigenvectors of the `k` largest eigenvalues, the largest first. Equal eigenvalues keep
/// their order.
///
/// Shapes: `a` [n, n], symmetric, read in its lower triangle; the result [k, n], one a row,
/// orthonormal.
pub fn top_eigenvectors(n: usize, a: Vec<f64>, k: usize) -> Vec<f64> {
    let mut form = Tridiagonal::new(n, a);
    let mut panels = Panels::identity(n);
    form.diagonalize(&mut panels);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| form.diagonal[j].total_cmp(&form.diagonal[i]));
    let mut vectors = panels.columns(&order[..k]);
    form.apply_reflections(&mut vectors);
    vectors
}

/// `a = q t q^T`, q a product of reflections.
struct Tridiagonal {
    n: usize,
    /// Of t.
    diagonal: Vec<f64>,
    /// Of t: element i joins i and i + 1; the last is zero.
    beside: Vec<f64>,
    /// Row i holds the vector of the reflection that cleared row i left of column i - 1, in its
    /// first i elements; its squared length is 2, or the row is zero.
    reflections: Vec<f64>,
}

impl Tridiagonal {
    /// From the last row up, so that the rows still to come stay one block at the start.
    fn new(n: usize, mut a: Vec<f64>) -> Self {
        let (mut diagonal, mut beside) = (vec![0.0; n], vec![0.0; n]);
        let mut p = vec![0.0; n];
        for i in (1..n).rev() {
            diagonal[i] = a[i * n + i];
            let (above, row) = a.split_at_mut(i * n);
            let v = &mut row[..i];
            beside[i - 1] = reflection(v);
            if v.iter().all(|&x| x == 0.0) {
                continue;
            }
            let p = &mut p[..i];
            symmetric_product(p, above, n, v);
            // a' = a - v w^T - w v^T with w = p - (p.v / 2) v.
            let half = 0.5 * sum_of_products(p, v);
            p.iter_mut().zip(&*v).for_each(|(p, v)| *p -= half * v);
            for (r, row) in above.chunks_exact_mut(n).enumerate() {
                let (v_r, w_r) = (v[r], p[r]);
                let terms = row[..=r].iter_mut().zip(&*v).zip(&*p);
                terms.for_each(|((a, v), w)| *a -= v_r * w + w_r * v);
            }
        }
        diagonal[0] = a[0];
        Self { n, diagonal, beside, reflections: a }
    }

    /// Turns eigenvectors [k, n] of t into those of a.
    fn apply_reflections(&self, vectors: &mut [f64]) {
        let n = self.n;
        for vector in vectors.chunks_exact_mut(n) {
            for i in 1..n {
                let v = &self.reflections[i * n..i * n + i];
                let along = sum_of_products(v, &vector[..i]);
                vector[..i].iter_mut().zip(v).for_each(|(x, v)| *x -= along * v);
            }
        }
    }

    /// Implicit QL: the diagonal becomes the eigenvalues, `panels` the eigenvectors of t.
    ///
    /// 50 sweeps for one eigenvalue are far beyond what finite numbers need (two are usual); then
    /// the element beside it is dropped as it stands.
    fn diagonalize(&mut self, panels: &mut Panels) {
        let (d, e) = (&mut self.diagonal, &mut self.beside);
        let norm = d.iter().chain(&*e).fold(0.0_f64, |a, b| a.max(b.abs()));
        // The Gram matrix is not more exact than this.
        let negligible = norm * f64::EPSILON;
        for l in 0..self.n {
            for _ in 0..50 {
                let m = (l..self.n - 1).find(|&m| {
                    e[m].abs() <= f64::EPSILON * (d[m].abs() + d[m + 1].abs())
                        || e[m].abs() <= negligible
                });
                let m = m.unwrap_or(self.n - 1);
                if m == l {
                    break;
                }
                sweep(d, e, l..m, panels);
            }
            e[l] = 0.0;
        }
        panels.flush();
    }
}

/// The reflection `1 - v v^T` that maps `x` to a multiple of its last axis: x becomes v, and the
/// multiple is returned. A zero v stands for no reflection.
fn reflection(x: &mut [f64]) -> f64 {
    let last = x.len() - 1;
    let rest = sum_of_products(&x[..last], &x[..last]);
    let alpha = x[last];
    if rest == 0.0 {
        x.fill(0.0);
        return alpha;
    }
    let length = (rest + alpha * alpha).sqrt();
    let onto = if alpha > 0.0 { -length } else { length };
    x[last] = alpha - onto;
    let factor = (2.0 / (rest + x[last] * x[last])).sqrt();
    x.iter_mut().for_each(|x| *x *= factor);
    onto
}

/// `p = a v` from the lower triangle of rows of stride n.
fn symmetric_product(p: &mut [f64], a: &[f64], n: usize, v: &[f64]) {
    p.fill(0.0);
    for (r, row) in a.chunks_exact(n).enumerate() {
        let row = &row[..=r];
        let v_r = v[r];
        p[r] += sum_of_products(row, &v[..=r]);
        p[..r].iter_mut().zip(&row[..r]).for_each(|(p, a)| *p += a * v_r);
    }
}

/// One implicit QL sweep over the block from `l` to `m` inclusive, which is what `at` spans.
fn sweep(d: &mut [f64], e: &mut [f64], at: std::ops::Range<usize>, panels: &mut Panels) {
    let (l, m) = (at.start, at.end);
    let g = (d[l + 1] - d[l]) / (2.0 * e[l]);
    let r = g.hypot(1.0);
    let mut g = d[m] - d[l] + e[l] / (g + r.copysign(g));
    let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
    for i in at.rev() {
        let (f, b) = (s * e[i], c * e[i]);
        let r = f.hypot(g);
        e[i + 1] = r;
        if r == 0.0 {
            d[i + 1] -= p;
            e[m] = 0.0;
            return;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        let r = (d[i] - g) * s + 2.0 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        panels.rotate(Rotation { column: i, c, s });
    }
    d[l] -= p;
    e[l] = g;
    e[m] = 0.0;
}

/// Columns i and i + 1 become `c a - s b` and `s a + c b`.
#[derive(Clone, Copy)]
struct Rotation {
    column: usize,
    c: f64,
    s: f64,
}

/// A square matrix in panels of [`PANEL`] rows, each column by column.
struct Panels {
    n: usize,
    panels: Vec<Vec<[f64; PANEL]>>,
    pending: Vec<Rotation>,
}

impl Panels {
    fn identity(n: usize) -> Self {
        let mut panels = vec![vec![[0.0; PANEL]; n]; n.div_ceil(PANEL)];
        for i in 0..n {
            panels[i / PANEL][i][i % PANEL] = 1.0;
        }
        Self { n, panels, pending: Vec::with_capacity(PENDING) }
    }

    fn rotate(&mut self, rotation: Rotation) {
        self.pending.push(rotation);
        if self.pending.len() == PENDING {
            self.flush();
        }
    }

    fn flush(&mut self) {
        for panel in &mut self.panels {
            for &Rotation { column, c, s } in &self.pending {
                let (left, right) = panel.split_at_mut(column + 1);
                let (a, b) = (&mut left[column], &mut right[0]);
                for l in 0..PANEL {
                    (a[l], b[l]) = (c * a[l] - s * b[l], s * a[l] + c * b[l]);
                }
            }
        }
        self.pending.clear();
    }

    /// These columns, one a row of the result.
    fn columns(&self, numbers: &[usize]) -> Vec<f64> {
        let mut rows = Vec::with_capacity(numbers.len() * self.n);
        for &column in numbers {
            let all = self.panels.iter().flat_map(|panel| &panel[column]);
            rows.extend(all.take(self.n));
        }
        rows
    }
}
