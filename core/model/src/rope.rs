//! Rotary position embedding: inverse frequencies under each kind of scaling, and the tables of
//! cosines and sines that the `rope` op reads.
//!
//! Papers: Su et al. 2021, arXiv:2104.09864 (rotary embedding); Chen et al. 2023,
//! arXiv:2306.15595 (linear); Peng et al. 2023, arXiv:2309.00071 (dynamic NTK, sec. 3.3, and
//! YaRN, sec. 3.2 to 3.4); Ding et al. 2024, arXiv:2402.13753 (LongRoPE); the `llama3` rule is the
//! one of Llama 3.1's published code.
//!
//! Two kinds depend on the length of the sequence. A packed batch holds many sequences: each has
//! the frequencies of its own length, as it would have alone. During generation the length is that
//! of the sequence so far; keys that are already cached keep the rotation they were given.

/// How the frequencies of a model trained on short sequences are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// How many times longer sequences become.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a linear blend between.
    Llama3 {
        /// How many times longer sequences become.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are stretched fully.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Longest sequence of the first training.
        original_max_position_embeddings: usize,
    },
    /// Low frequencies divided by `factor`, high ones kept, a ramp between in the index of the
    /// frequency; cosines and sines multiplied by the attention factor.
    Yarn {
        /// How many times longer sequences become.
        factor: f64,
        /// Longest sequence of the first training.
        original_max_position_embeddings: usize,
        /// Rotations within the original length above which a frequency is kept; usually 32.
        beta_fast: f64,
        /// Rotations within the original length below which it is stretched fully; usually 1.
        beta_slow: f64,
        /// Factor on cosines and sines.
        attention_factor: f64,
        /// Whether the ends of the ramp are rounded outward to whole indices.
        truncate: bool,
    },
    /// A larger base for sequences longer than those of training:
    /// `theta' = theta (factor L / original - (factor - 1))^(d / (d - 2))`.
    Dynamic {
        /// How fast the base grows.
        factor: f64,
        /// Longest sequence of the first training; up to it nothing changes.
        original_max_position_embeddings: usize,
    },
    /// Each frequency divided by its own factor, from one list for sequences up to the original
    /// length and from another beyond it; cosines and sines multiplied by the attention factor.
    Longrope {
        /// Divisors for short sequences. Length R / 2.
        short_factor: Vec<f32>,
        /// Divisors for long ones. Length R / 2.
        long_factor: Vec<f32>,
        /// Longest sequence of the first training.
        original_max_position_embeddings: usize,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
    /// Each frequency divided by its own factor: how GGUF files store the `llama3` rule
    /// (`rope_freqs.weight`). Length R / 2.
    Divisors(Vec<f32>),
}

/// The rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies: `theta^(-2 j / D)`.
    pub theta: f64,
    /// How they are stretched.
    pub scaling: RopeScaling,
}

/// The default attention factor of LongRoPE: `sqrt(1 + ln(factor) / ln(original))`.
#[must_use]
pub fn longrope_attention_factor(factor: f64, original: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() }
}

/// The default attention factor of YaRN: `0.1 ln(factor) + 1` (eq. 22 of the paper).
#[must_use]
pub fn yarn_attention_factor(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

impl Rope {
    /// Whether the frequencies differ from one length to another.
    #[must_use]
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. } | RopeScaling::Longrope { .. })
    }

    /// Inverse frequencies [R / 2] of a sequence of `seq_len` tokens, rounded to f32 as every
    /// implementation stores them. `rotary_dim` is R, the part of a head that is rotated.
    #[must_use]
    pub fn inv_freq(&self, rotary_dim: usize, seq_len: usize) -> Vec<f32> {
        let d = rotary_dim as f64;
        let base = |j: usize| self.theta.powf(-2.0 * j as f64 / d);
        let half = rotary_dim / 2;
        match &self.scaling {
            RopeScaling::Default => (0..half).map(|j| base(j) as f32).collect(),
            RopeScaling::Linear { factor } => {
                (0..half).map(|j| (base(j) / factor) as f32).collect()
            }
            RopeScaling::Llama3 { factor, .. } => (0..half)
                .map(|j| {
                    let (frequency, keep) = (base(j), self.kept_share(base(j)));
                    (frequency / factor * (1.0 - keep) + frequency * keep) as f32
                })
                .collect(),
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                truncate,
                ..
            } => {
                let (low, high) = yarn_ramp(
                    d,
                    self.theta,
                    *original_max_position_embeddings as f64,
                    [*beta_fast, *beta_slow],
                    *truncate,
                );
                (0..half)
                    .map(|j| {
                        let stretch = ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        let frequency = base(j);
                        (frequency / factor * stretch + frequency * (1.0 - stretch)) as f32
                    })
                    .collect()
            }
            RopeScaling::Dynamic { factor, original_max_position_embeddings } => {
                let stretch = seq_len.max(*original_max_position_embeddings) as f64
                    / *original_max_position_embeddings as f64;
                let growth = (factor * stretch - (factor - 1.0)).powf(d / (d - 2.0));
                let theta = self.theta * growth;
                (0..half).map(|j| theta.powf(-2.0 * j as f64 / d) as f32).collect()
            }
            RopeScaling::Longrope {
                short_factor,
                long_factor,
                original_max_position_embeddings,
                ..
            } => {
                let is_long = seq_len > *original_max_position_embeddings;
                divided(base, if is_long { long_factor } else { short_factor })
            }
            RopeScaling::Divisors(divisors) => divided(base, divisors),
        }
    }

    /// How much of a frequency the `llama3` rule keeps; all of it under other rules.
    fn kept_share(&self, frequency: f64) -> f64 {
        let RopeScaling::Llama3 {
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
            ..
        } = &self.scaling
        else {
            return 1.0;
        };
        let turns =
            *original_max_position_embeddings as f64 * frequency / (2.0 * std::f64::consts::PI);
        ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0)
    }

    /// What the `llama3` rule divides each frequency by: how GGUF files hold it.
    pub(crate) fn llama3_divisors(&self, rotary_dim: usize) -> Vec<f32> {
        let RopeScaling::Llama3 { factor, .. } = &self.scaling else { return Vec::new() };
        let frequency = |j: usize| self.theta.powf(-2.0 * j as f64 / rotary_dim as f64);
        let keep = (0..rotary_dim / 2).map(|j| self.kept_share(frequency(j)));
        keep.map(|keep| (1.0 / ((1.0 - keep) / factor + keep)) as f32).collect()
    }

    /// Cosines and sines of these positions of a sequence of `seq_len` tokens, each [T, R / 2].
    #[must_use]
    pub fn tables(
        &self,
        rotary_dim: usize,
        seq_len: usize,
        positions: &[u32],
    ) -> (Vec<f32>, Vec<f32>) {
        let inv_freq = self.inv_freq(rotary_dim, seq_len);
        let n = positions.len() * inv_freq.len();
        let (mut cos, mut sin) = (vec![0.0; n], vec![0.0; n]);
        write_tables(&mut cos, &mut sin, positions, &inv_freq, self.attention_factor());
        (cos, sin)
    }

    /// Factor on cosines and sines.
    #[must_use]
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. }
            | RopeScaling::Longrope { attention_factor, .. } => attention_factor as f32,
            RopeScaling::Default
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Dynamic { .. }
            | RopeScaling::Divisors(_) => 1.0,
        }
    }
}

/// Frequencies, each divided by its own factor.
fn divided(base: impl Fn(usize) -> f64, divisors: &[f32]) -> Vec<f32> {
    divisors.iter().enumerate().map(|(j, &d)| (base(j) / f64::from(d)) as f32).collect()
}

/// Ends of YaRN's ramp as indices of frequencies.
fn yarn_ramp(d: f64, theta: f64, original: f64, betas: [f64; 2], truncate: bool) -> (f64, f64) {
    let index =
        |beta: f64| d * (original / (2.0 * std::f64::consts::PI * beta)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (index(betas[0]), index(betas[1]));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(d - 1.0));
    // As the published code: a ramp of no width would divide by zero.
    if high <= low { (low, low + 0.001) } else { (low, high) }
}

/// Writes the cosines and sines of each row's position.
///
/// The angle is the f32 product of position and inverse frequency, as the models saw it when they
/// were trained.
///
/// Shapes: `cos` and `sin` [T, R / 2] written, `positions` [T] and `inv_freq` [R / 2] read.
pub(crate) fn write_tables(
    cos: &mut [f32],
    sin: &mut [f32],
    positions: &[u32],
    inv_freq: &[f32],
    attention_factor: f32,
) {
    let half = inv_freq.len();
    assert_eq!(cos.len(), positions.len() * half, "cos is not [T, D / 2]");
    assert_eq!(sin.len(), cos.len(), "sin is not [T, D / 2]");
    let rows = cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half));
    for (&position, (cos, sin)) in positions.iter().zip(rows) {
        for j in 0..half {
            let angle = f64::from(position as f32 * inv_freq[j]);
            let (s, c) = angle.sin_cos();
            cos[j] = c as f32 * attention_factor;
            sin[j] = s as f32 * attention_factor;
        }
    }
}

/// The rotary embedding of some layers with what does not depend on the batch computed once.
#[derive(Debug)]
pub(crate) struct Rotary {
    rope: Rope,
    rotary_dim: usize,
    /// Frequencies of a sequence within the original length.
    inv_freq: Vec<f32>,
}

impl Rotary {
    pub(crate) fn new(rope: Rope, rotary_dim: usize) -> Self {
        let inv_freq = rope.inv_freq(rotary_dim, 0);
        Self { rope, rotary_dim, inv_freq }
    }

    /// Writes the tables of one sequence, of which `positions` are the rows at hand.
    ///
    /// Shapes: `cos` and `sin` [T, R / 2] written, `positions` [T] read.
    pub(crate) fn write(&self, cos: &mut [f32], sin: &mut [f32], positions: &[u32]) {
        let factor = self.rope.attention_factor();
        if !self.rope.depends_on_length() {
            return write_tables(cos, sin, positions, &self.inv_freq, factor);
        }
        let seq_len = positions.iter().max().map_or(0, |&last| last as usize + 1);
        let inv_freq = self.rope.inv_freq(self.rotary_dim, seq_len);
        write_tables(cos, sin, positions, &inv_freq, factor);
    }
}

#[cfg(test)]
mod tests {
    use super::{Rope, RopeScaling};

    /// Wavelengths of Llama 3.2's heads: short ones are kept, long ones stretched by the factor.
    #[test]
    fn divisors_of_llama_3_give_its_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let rope = Rope { theta: 500_000.0, scaling };
        let divisors = rope.llama3_divisors(64);
        assert_eq!((divisors.len(), divisors[0], divisors[31]), (32, 1.0, 32.0));
        assert!(divisors.windows(2).all(|pair| pair[0] <= pair[1]));
        let divided = Rope { scaling: RopeScaling::Divisors(divisors), ..rope.clone() };
        for (a, b) in rope.inv_freq(64, 1).into_iter().zip(divided.inv_freq(64, 1)) {
            assert!((a - b).abs() <= a * 2.0 * f32::EPSILON, "{a} and {b}");
        }
    }
}
