//! Rotary position embedding: inverse frequencies under each kind of scaling, and the tables of
//! cosines and sines that the `rope` op reads.
//!
//! Papers: Su et al. 2021, arXiv:2104.09864 (rotary embedding); Chen et al. 2023,
//! arXiv:2306.15595 (linear); Peng et al. 2023, arXiv:2309.00071 (YaRN, sec. 3.2 to 3.4); the
//! `llama3` rule is the one of Llama 3.1's published code.

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
    /// Each frequency divided by its own factor: how GGUF files store the `llama3` rule
    /// (`rope_freqs.weight`). Length D / 2.
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

/// The default attention factor of YaRN: `0.1 ln(factor) + 1` (eq. 22 of the paper).
#[must_use]
pub fn yarn_attention_factor(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

impl Rope {
    /// Inverse frequencies [D / 2], rounded to f32 as every implementation stores them.
    #[must_use]
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        let d = head_dim as f64;
        let base = |j: usize| self.theta.powf(-2.0 * j as f64 / d);
        let half = head_dim / 2;
        match &self.scaling {
            RopeScaling::Default => (0..half).map(|j| base(j) as f32).collect(),
            RopeScaling::Linear { factor } => {
                (0..half).map(|j| (base(j) / factor) as f32).collect()
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => (0..half)
                .map(|j| {
                    let frequency = base(j);
                    let turns = *original_max_position_embeddings as f64 * frequency
                        / (2.0 * std::f64::consts::PI);
                    let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor))
                        .clamp(0.0, 1.0);
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
            RopeScaling::Divisors(divisors) => divisors
                .iter()
                .enumerate()
                .map(|(j, &divisor)| (base(j) / f64::from(divisor)) as f32)
                .collect(),
        }
    }

    /// Cosines and sines of these positions, each [T, D / 2].
    #[must_use]
    pub fn tables(&self, head_dim: usize, positions: &[u32]) -> (Vec<f32>, Vec<f32>) {
        let inv_freq = self.inv_freq(head_dim);
        let n = positions.len() * inv_freq.len();
        let (mut cos, mut sin) = (vec![0.0; n], vec![0.0; n]);
        write_tables(&mut cos, &mut sin, positions, &inv_freq, self.attention_factor());
        (cos, sin)
    }

    /// Factor on cosines and sines.
    #[must_use]
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            RopeScaling::Default
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Divisors(_) => 1.0,
        }
    }
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
/// Shapes: `cos` and `sin` [T, D / 2] written, `positions` [T] and `inv_freq` [D / 2] read.
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
