//! Sums of products in f64.

/// Terms that are packed at once.
const DEPTH: usize = 256;
/// Rows and columns of a tile of the result.
const TILE: usize = 4;

/// `out[i, j] += sum over l of x(i, l) y(j, l)`.
///
/// Shapes: `out` [m, n] added to; `dims` = [m, n, depth].
///
/// Numerics: panels of 256 terms in order, each summed in order.
pub fn products(
    out: &mut [f64],
    dims: [usize; 3],
    x: impl Fn(usize, usize) -> f64,
    y: impl Fn(usize, usize) -> f64,
) {
    let [m, n, depth] = dims;
    assert_eq!(out.len(), m * n, "out is not [m, n]");
    let (mut x_panel, mut y_panel) = (Vec::new(), Vec::new());
    for start in (0..depth).step_by(DEPTH) {
        let terms = start..depth.min(start + DEPTH);
        pack(&mut x_panel, m, terms.clone(), &x);
        pack(&mut y_panel, n, terms.clone(), &y);
        let tile_len = terms.len();
        for (ti, x_tile) in x_panel.chunks_exact(tile_len).enumerate() {
            for (tj, y_tile) in y_panel.chunks_exact(tile_len).enumerate() {
                let sums = tile(x_tile, y_tile);
                for (a, row) in sums.iter().enumerate().take(m - ti * TILE) {
                    let first = (ti * TILE + a) * n + tj * TILE;
                    let width = TILE.min(n - tj * TILE);
                    let out = &mut out[first..first + width];
                    out.iter_mut().zip(row).for_each(|(out, sum)| *out += sum);
                }
            }
        }
    }
}

/// Rows in groups of [`TILE`], term by term; missing rows are zero.
fn pack(
    panel: &mut Vec<[f64; TILE]>,
    n_rows: usize,
    terms: std::ops::Range<usize>,
    at: &impl Fn(usize, usize) -> f64,
) {
    panel.clear();
    for first in (0..n_rows).step_by(TILE) {
        for l in terms.clone() {
            let value = |a: usize| if first + a < n_rows { at(first + a, l) } else { 0.0 };
            panel.push([value(0), value(1), value(2), value(3)]);
        }
    }
}

fn tile(x: &[[f64; TILE]], y: &[[f64; TILE]]) -> [[f64; TILE]; TILE] {
    let mut sums = [[0.0; TILE]; TILE];
    for (x, y) in x.iter().zip(y) {
        for a in 0..TILE {
            for b in 0..TILE {
                sums[a][b] += x[a] * y[b];
            }
        }
    }
    sums
}

/// `sum of x y`, in eight lanes that are added at the end.
pub fn sum_of_products(x: &[f64], y: &[f64]) -> f64 {
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<8>(), y.as_chunks::<8>());
    let mut lanes = [0.0; 8];
    for (x, y) in xs.iter().zip(ys) {
        for l in 0..8 {
            lanes[l] += x[l] * y[l];
        }
    }
    let rest: f64 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    lanes.into_iter().sum::<f64>() + rest
}
