//! A host of one tensor, and models of a few numbers.

use forgelm_sdk::OptionValue;
use forgelm_sdk::merge_method::{Descriptor, Piece, Tensor};
use forgelm_sdk::random::philox4x32;

/// A base and the models that come from it, one tensor each.
pub struct Models {
    pub base: Vec<f32>,
    pub inputs: Vec<Vec<f32>>,
}

impl Models {
    /// The tensor's name.
    pub const NAME: &str = "model.layers.0.self_attn.q_proj.weight";

    pub fn new(base: &[f32], inputs: &[&[f32]]) -> Self {
        Self { base: base.to_vec(), inputs: inputs.iter().map(|input| input.to_vec()).collect() }
    }

    /// A base and two models near it.
    #[expect(clippy::cast_possible_truncation, reason = "random numbers as f32")]
    pub fn random(seed: u32, n: u32) -> Self {
        let values = |stream: u32, scale: f32| {
            let value = |i: u32| {
                let [word, ..] = philox4x32([i, stream, 0, 0], [seed, 0]);
                scale * (f64::from(word) / 2_147_483_648.0 - 1.0) as f32
            };
            (0..n).map(value).collect::<Vec<f32>>()
        };
        let base = values(0, 1.0);
        let near = |stream| base.iter().zip(values(stream, 0.1)).map(|(b, d)| b + d).collect();
        Self { inputs: vec![near(1), near(2)], base }
    }

    /// The first model as both inputs.
    pub fn twice(self) -> Self {
        let first = self.inputs[0].clone();
        Self { inputs: vec![first.clone(), first], ..self }
    }

    pub fn changes(&self, input: usize) -> Vec<f32> {
        self.inputs[input].iter().zip(&self.base).map(|(value, base)| value - base).collect()
    }

    pub fn merge(
        &self,
        method: &Descriptor,
        options: &[(&str, OptionValue)],
        weights: &[f64],
    ) -> Vec<f32> {
        self.merge_in_pieces(method, options, weights, self.base.len())
    }

    /// As a host does: every pass over all pieces, then every piece.
    pub fn merge_in_pieces(
        &self,
        method: &Descriptor,
        options: &[(&str, OptionValue)],
        weights: &[f64],
        piece_len: usize,
    ) -> Vec<f32> {
        let built = (method.build)(options, weights);
        let method = built.unwrap_or_else(|error| panic!("{}: {error}", method.name));
        let n = self.base.len();
        let mut known: Vec<f64> = Vec::new();
        for (number, pass) in method.passes().iter().enumerate() {
            let mut sums = vec![0.0; pass.n_sums];
            for start in (0..n).step_by(piece_len) {
                let mut own = vec![0.0; pass.n_sums];
                self.with_piece(start, piece_len, &known, |piece| {
                    method.measure(number, piece, &mut own).expect("measured");
                });
                sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
            }
            let mut facts = vec![0.0; pass.n_facts];
            let tensor = Tensor { name: Self::NAME, len: n, facts: &known };
            method.conclude(number, &tensor, &sums, &mut facts).expect("concluded");
            known.extend(facts);
        }
        let mut merged = vec![f32::NAN; n];
        for (i, out) in merged.chunks_mut(piece_len).enumerate() {
            self.with_piece(i * piece_len, piece_len, &known, |piece| {
                method.merge(piece, out).expect("merged");
            });
        }
        merged
    }

    fn with_piece(&self, start: usize, len: usize, facts: &[f64], f: impl FnOnce(&Piece<'_>)) {
        let n = self.base.len();
        let at = start..(start + len).min(n);
        let inputs: Vec<&[f32]> = self.inputs.iter().map(|input| &input[at.clone()]).collect();
        let tensor = Tensor { name: Self::NAME, len: n, facts };
        f(&Piece { tensor, start, base: Some(&self.base[at]), inputs: &inputs });
    }
}

/// Panics at the first value that is further away than `bound`.
pub fn assert_close(found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= bound, "at {i}: {f}, expected {e}");
    }
}
