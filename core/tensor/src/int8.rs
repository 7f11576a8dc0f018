//! Eight-bit whole numbers with one scale a row: experts that are kept but not trained.

/// `max |w| / 127` of a row.
pub(crate) fn scale(row: &[f32]) -> f32 {
    row.iter().fold(0.0_f32, |max, v| max.max(v.abs())) / 127.0
}

/// `round(w / scale)`, halves away from zero; 0 where the scale is 0.
#[expect(clippy::cast_possible_truncation, reason = "clamped to -127..=127")]
pub(crate) fn code(w: f32, scale: f32) -> i8 {
    if scale > 0.0 { (w / scale).round().clamp(-127.0, 127.0) as i8 } else { 0 }
}

/// What a code stands for.
pub(crate) fn value(code: i8, scale: f32) -> f32 {
    f32::from(code) * scale
}

/// A matrix as `q * scale`, with q in -127..=127.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8Rows {
    /// Columns.
    pub n_cols: usize,
    /// [N, K].
    pub codes: Vec<i8>,
    /// [N]: largest size of the row over 127.
    pub scales: Vec<f32>,
}

impl Int8Rows {
    /// No rows yet.
    #[must_use]
    pub fn new(n_cols: usize) -> Self {
        Self { n_cols, codes: Vec::new(), scales: Vec::new() }
    }

    /// Appends rows: `scale = max |w| / 127`, `q = round(w / scale)`, halves away from zero; a row
    /// of zeros has scale 0.
    ///
    /// # Panics
    /// If `rows` is not whole rows.
    pub fn push(&mut self, rows: &[f32]) {
        assert!(rows.len().is_multiple_of(self.n_cols), "rows is not [n, K]");
        for row in rows.chunks_exact(self.n_cols) {
            let scale = scale(row);
            self.codes.extend(row.iter().map(|&v| code(v, scale)));
            self.scales.push(scale);
        }
    }

    /// Rows `first..` as many as fit `out`.
    ///
    /// # Panics
    /// If `out` is not whole rows or reaches past the last one.
    pub fn dequantize(&self, first: usize, out: &mut [f32]) {
        assert!(out.len().is_multiple_of(self.n_cols), "out is not [n, K]");
        let codes = &self.codes[first * self.n_cols..][..out.len()];
        let rows = out.chunks_exact_mut(self.n_cols).zip(codes.chunks_exact(self.n_cols));
        for ((out, codes), &scale) in rows.zip(&self.scales[first..]) {
            for (out, &q) in out.iter_mut().zip(codes) {
                *out = value(q, scale);
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact values")]
mod tests {
    use super::Int8Rows;

    /// Largest size 2 is 127 steps: 1 is 63.5 steps, rounded to 64.
    #[test]
    fn rows_by_hand() {
        let mut rows = Int8Rows::new(4);
        rows.push(&[2.0, -2.0, 1.0, 0.0, 0.0, 0.0, 0.0, -0.0]);
        assert_eq!(rows.codes, [127, -127, 64, 0, 0, 0, 0, 0]);
        assert_eq!(rows.scales, [2.0 / 127.0, 0.0]);
        let mut back = [1.0; 8];
        rows.dequantize(0, &mut back);
        assert_eq!(back[..2], [127.0 * (2.0_f32 / 127.0), -127.0 * (2.0_f32 / 127.0)]);
        assert_eq!(back[3..], [0.0; 5]);
        let mut second = [1.0; 4];
        rows.dequantize(1, &mut second);
        assert_eq!(second, [0.0; 4]);
    }
}
