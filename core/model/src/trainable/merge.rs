//! A weight with its adapter folded in.

use super::{AdaptedModule, Trainable};

impl Trainable {
    /// Rows `first..` of the weight with its adapter folded in: `W + s B A`, and with magnitudes
    /// each row brought to its magnitude. What a merged model stores.
    ///
    /// Shapes: `rows` [n, n_in]: rows of W, replaced. Sums in f64, rounded to f32 once.
    ///
    /// # Panics
    /// If `rows` is not whole rows of the weight of `module`.
    pub fn merge_rows(&self, module: &AdaptedModule, first: usize, rows: &mut [f32]) {
        assert!(rows.len().is_multiple_of(module.n_in), "not whole rows of this module");
        assert!(first + rows.len() / module.n_in <= module.n_out, "rows past the last one");
        let (a, b) = (self.a(module).to_host(), self.b(module).to_host());
        let mut sums = vec![0.0_f64; module.n_in];
        for (i, row) in rows.chunks_exact_mut(module.n_in).enumerate() {
            let b = &b[(first + i) * module.r..][..module.r];
            sums.fill(0.0);
            for (&b, a) in b.iter().zip(a.chunks_exact(module.n_in)) {
                for (sum, &a) in sums.iter_mut().zip(a) {
                    *sum += f64::from(b) * f64::from(a);
                }
            }
            for (sum, &w) in sums.iter_mut().zip(&*row) {
                *sum = f64::from(w) + f64::from(module.scale) * *sum;
            }
            let factor = self.row_factor(module, first + i, &sums);
            for (value, &sum) in row.iter_mut().zip(&sums) {
                *value = (factor * sum) as f32;
            }
        }
    }

    /// Magnitude over norm of one row; 1 without magnitudes.
    fn row_factor(&self, module: &AdaptedModule, row: usize, values: &[f64]) -> f64 {
        let Some(range) = &module.magnitude else { return 1.0 };
        let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
        f64::from(self.params.part(range.start + row..range.start + row + 1).to_host()[0]) / norm
    }
}
