//! Noise on the token vectors in training (NEFTune).

use forgelm_kernels_api::Segment;
use forgelm_tensor::random::Stream;

use super::PackedInput;

/// Names the noise of one optimizer step: uniform in `[-m, m)` with `m = alpha / sqrt(L C)`.
///
/// Paper: Jain et al. 2023, arXiv:2310.05914, algorithm 1.
/// Ours differs in one thing: L is the length of the token's own sequence. Batches with padding
/// take the length of the padded row, so that a sequence's noise depends on what it is batched
/// with; here there is no padding, and it does not.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingNoise<'a> {
    /// The run's stream for this purpose.
    pub stream: &'a Stream,
    /// Optimizer step.
    pub step: u64,
    /// Scale.
    pub alpha: f64,
}

impl EmbeddingNoise<'_> {
    /// Adds the noise. Column c of a row takes word `c mod 4` of bits `c / 4` of the row's own
    /// stream, which its key names: neither batch nor packing decides.
    ///
    /// Shapes: `x` [T, C] added to.
    ///
    /// # Panics
    /// If `x` is not [T, C] or `batch.row_keys` is not [T].
    pub(super) fn add(&self, x: &mut [f32], batch: &PackedInput<'_>, c: usize) {
        assert_eq!(x.len(), batch.tokens.len() * c, "x is not [T, C]");
        assert_eq!(batch.row_keys.len(), batch.tokens.len(), "row_keys is not [T]");
        for &Segment { start, len } in batch.segments {
            let bound = (self.alpha / (len as f64 * c as f64).sqrt()) as f32;
            let rows = start..start + len;
            let x = x[rows.start * c..rows.end * c].chunks_exact_mut(c);
            for (x, &key) in x.zip(&batch.row_keys[rows]) {
                let row = self.stream.of_row(self.step, key);
                for (block, x) in x.chunks_mut(4).enumerate() {
                    for (x, word) in x.iter_mut().zip(row.bits(0, block as u64)) {
                        // 24 bits, from -1 to 1 without 1.
                        let unit = (word >> 8) as f32 / 8_388_608.0 - 1.0;
                        *x += bound * unit;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgelm_tensor::random::Purpose;
    use serde_json::Value;

    /// Noise of `rows` rows of each of `n` sequences.
    fn noise(n: usize, len: usize, c: usize, alpha: f64, step: u64) -> Vec<f32> {
        let t = n * len;
        let segments: Vec<_> = (0..n).map(|i| Segment { start: i * len, len }).collect();
        let row_keys: Vec<u64> =
            (0..t).map(|row| ((row / len) as u64) << 32 | (row % len) as u64).collect();
        let tokens = vec![0; t];
        let batch = PackedInput {
            tokens: &tokens,
            positions: &tokens,
            segments: &segments,
            row_keys: &row_keys,
        };
        let stream = Stream::new(42, Purpose::EmbeddingNoise);
        let mut x = vec![0.0; t * c];
        EmbeddingNoise { stream: &stream, step, alpha }.add(&mut x, &batch, c);
        x
    }

    /// Bound and standard deviation that the reference implementation gave over the same shapes.
    #[test]
    fn the_noise_has_the_bound_and_spread_of_the_reference() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/golden/misc/neftune.json");
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 3);
        for case in cases {
            let number = |key: &str| case[key].as_f64().unwrap();
            let size = |key: &str| usize::try_from(case[key].as_u64().unwrap()).unwrap();
            let (n, len, c) = (size("batch"), size("L"), size("D"));
            // Many steps, for a spread that is as sharp as the reference's.
            let values: Vec<f64> = (0..40)
                .flat_map(|step| noise(n, len, c, number("alpha"), step))
                .map(f64::from)
                .collect();
            let bound = number("bound");
            let largest = values.iter().fold(0.0_f64, |max, v| max.max(v.abs()));
            assert!(largest <= bound * (1.0 + 1e-6), "{largest} of {bound}");
            assert!(largest > 0.999 * bound, "{largest} of {bound}");
            let count = values.len() as f64;
            let mean = values.iter().sum::<f64>() / count;
            let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt();
            // Five standard errors of the mean, and of the deviation (kurtosis of a uniform: 9/5).
            let expected = number("expected_std");
            assert!(mean.abs() < 5.0 * expected / count.sqrt(), "mean {mean}");
            let error = expected * (0.2_f64 / count).sqrt();
            assert!((std - expected).abs() < 5.0 * error, "{std}, {expected}");
        }
    }

    #[test]
    fn the_noise_of_a_row_depends_on_step_and_row_alone() {
        let (two, one) = (noise(2, 5, 7, 5.0, 3), noise(1, 5, 7, 5.0, 3));
        assert_eq!(two[..35], one[..], "the first sequence, alone or not");
        assert_ne!(two[..35], two[35..], "another sequence");
        assert_ne!(one, noise(1, 5, 7, 5.0, 4), "another step");
    }
}
