//! GaLore: moments of the gradient's projection to a low rank.
//!
//! Paper: Zhao et al. 2024, arXiv:2403.03507, algorithm 2; the projection types are those of its
//! reference implementation, galore-torch.
//!
//! **Ours** differs from galore-torch in two things: AdamW's `eps` is added to the corrected root
//! (as in the paper), not to the uncorrected one; and a modules' patterns must match the whole
//! path, all of them linear layers.

use super::OptimizerError;
use super::moments::place;
use forgelm_kernels_api::{
    Buffer, GemmDims, GemmLayout, MemoryRefused, Ops, Precision, Slice, SliceMut, Write,
};
use forgelm_model::NamedSlice;
use forgelm_tensor::linalg::svd_top;
use regex::Regex;

/// AdamW's `eps` in low rank: galore-torch's default.
pub const EPS: f32 = 1e-6;

/// Attention and MLP.
const DEFAULT_TARGETS: [&str; 2] = [".*.attn.*", ".*.mlp.*"];

/// Which side of the gradient is projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProjectionType {
    /// The shorter: the columns of a matrix with at least as many rows as columns.
    Std,
    /// The longer.
    ReverseStd,
    /// Columns.
    Right,
    /// Rows.
    Left,
    /// Both.
    Full,
}

/// How matrices are projected.
#[derive(Clone, Debug, PartialEq)]
pub struct GaloreSettings {
    /// Rank, at most what the matrix has.
    pub rank: usize,
    /// Steps between new projections.
    pub update_proj_gap: u64,
    /// Factor on the update.
    pub scale: f64,
    /// The side.
    pub projection: ProjectionType,
    /// Patterns of whole module paths; none means attention and MLP.
    pub target_modules: Option<Vec<String>>,
    /// Matrices are updated one by one during the backward pass.
    pub layerwise: bool,
}

impl GaloreSettings {
    /// Which slices are projected: weights, not vectors, of modules that a pattern matches.
    pub(super) fn targets(&self, slices: &[NamedSlice]) -> Result<Vec<bool>, OptimizerError> {
        let matched = self.matching(slices.iter().map(|slice| &slice.name))?;
        let is_target = |slice: &NamedSlice| {
            matched.contains(&slice.name) && !slice.matrix_shape().contains(&1)
        };
        Ok(slices.iter().map(is_target).collect())
    }

    /// Of these names of weights, those of modules that a pattern matches.
    ///
    /// # Errors
    /// If a pattern cannot be read, or nothing matches.
    pub fn matching<'n>(
        &self,
        names: impl IntoIterator<Item = &'n String>,
    ) -> Result<Vec<String>, OptimizerError> {
        let defaults = || DEFAULT_TARGETS.iter().map(ToString::to_string).collect();
        let texts: Vec<String> = self.target_modules.clone().unwrap_or_else(defaults);
        let patterns = texts.iter().map(|text| pattern(text));
        let patterns: Vec<Regex> = patterns.collect::<Result<_, _>>()?;
        let is_match = |module: &str| patterns.iter().any(|p| p.is_match(module));
        let (mut matched, mut first) = (Vec::new(), None);
        for name in names {
            let module = name.strip_suffix(".weight");
            first = first.or(module);
            if module.is_some_and(is_match) {
                matched.push(name.clone());
            }
        }
        if matched.is_empty() {
            let first = first.unwrap_or("none").to_owned();
            return Err(OptimizerError::NoTarget { patterns: texts, first });
        }
        Ok(matched)
    }
}

/// A pattern that must match the whole of a text.
fn pattern(text: &str) -> Result<Regex, OptimizerError> {
    Regex::new(&format!(r"\A(?:{text})\z")).map_err(|error| OptimizerError::Pattern {
        pattern: text.to_owned(),
        reason: error.to_string().lines().last().unwrap_or_default().trim().to_owned(),
    })
}

/// The singular vectors of a gradient that span what is kept of it, [m, n] before.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    shape: [usize; 2],
    rank: usize,
    gap: u64,
    scale: f64,
    /// [m, rank], or empty when rows are kept.
    pub left: Buffer,
    /// [rank, n], or empty when columns are kept.
    pub right: Buffer,
}

impl Projection {
    pub fn new(settings: &GaloreSettings, shape: [usize; 2]) -> Self {
        let [m, n] = shape;
        let rank = settings.rank.min(m).min(n);
        let (is_left, is_right) = match settings.projection {
            ProjectionType::Std => (m < n, m >= n),
            ProjectionType::ReverseStd => (m >= n, m < n),
            ProjectionType::Right => (false, true),
            ProjectionType::Left => (true, false),
            ProjectionType::Full => (true, true),
        };
        let zeros = |is_there, len| Buffer::from(vec![0.0; if is_there { len } else { 0 }]);
        Self {
            shape,
            rank,
            gap: settings.update_proj_gap.max(1),
            scale: settings.scale,
            left: zeros(is_left, m * rank),
            right: zeros(is_right, rank * n),
        }
    }

    /// Shape of what is projected.
    pub fn low_shape(&self) -> [usize; 2] {
        let [m, n] = self.shape;
        let side = |vectors: &Buffer, len| if vectors.is_empty() { len } else { self.rank };
        [side(&self.left, m), side(&self.right, n)]
    }

    pub fn n_bytes(&self) -> usize {
        self.left.n_bytes() + self.right.n_bytes()
    }

    /// Gradient and step in low rank, and what lies between two products.
    pub fn low_bytes(&self) -> usize {
        let [m, n] = self.shape;
        let [low_m, low_n] = self.low_shape();
        (2 * low_m * low_n + self.rank * m.max(n)) * size_of::<f32>()
    }

    /// What the singular vectors are computed in: the Gram matrix, its eigenvectors, and vectors
    /// of both sides, in f64.
    pub fn refresh_bytes(&self) -> usize {
        let [m, n] = self.shape;
        let short = m.min(n);
        (2 * short * short + self.rank * (m + n)) * size_of::<f64>()
    }

    /// Whether this 1-based step starts with a new projection.
    pub fn is_due(&self, step: u64) -> bool {
        (step - 1).is_multiple_of(self.gap)
    }

    /// Moves the vectors to where a kernel library works.
    pub fn place(&mut self, ops: &dyn Ops) -> Result<(), MemoryRefused> {
        place(ops, &mut self.left)?;
        place(ops, &mut self.right)
    }

    /// Takes the singular vectors of a gradient. Its scale does not matter.
    pub fn refresh(&mut self, ops: &dyn Ops, grad: &[f32]) {
        let [m, n] = self.shape;
        let svd = svd_top(m, n, grad, self.rank);
        if !self.left.is_empty() {
            self.left = svd.u.into();
        }
        if !self.right.is_empty() {
            self.right = svd.vt.into();
        }
        self.place(ops).unwrap_or_else(|refused| refused.end("projections of GaLore"));
    }

    /// `scale * left^T grad right^T`, of the sides that there are.
    #[expect(clippy::cast_possible_truncation, reason = "kernels work in f32")]
    pub fn project(&self, ops: &dyn Ops, grad: Slice<'_>, scale: f64) -> Buffer {
        let ([m, n], k, scale) = (self.shape, self.rank, scale as f32);
        let [low_m, low_n] = self.low_shape();
        let mut low = zeros(ops, low_m * low_n);
        let replace = Write::Replace;
        let rows = (!self.left.is_empty()).then(|| {
            let mut rows = zeros(ops, k * n);
            let dims = GemmDims { m: k, n, k: m };
            let (left, tn) = (self.left.all(), GemmLayout::Tn);
            ops.gemm(rows.all_mut(), left, grad, tn, dims, scale, replace);
            rows
        });
        match (rows, self.right.is_empty()) {
            (Some(rows), true) => rows,
            (Some(rows), false) => {
                let dims = GemmDims { m: k, n: k, k: n };
                let (right, nt) = (self.right.all(), GemmLayout::Nt);
                ops.gemm(low.all_mut(), rows.all(), right, nt, dims, 1.0, replace);
                low
            }
            (None, _) => {
                let dims = GemmDims { m, n: k, k: n };
                let (right, nt) = (self.right.all(), GemmLayout::Nt);
                ops.gemm(low.all_mut(), grad, right, nt, dims, scale, replace);
                low
            }
        }
    }

    /// `param += galore_scale * left delta right`, of the sides that there are.
    #[expect(clippy::cast_possible_truncation, reason = "kernels work in f32")]
    pub fn add_back(&self, ops: &dyn Ops, param: SliceMut<'_>, delta: Slice<'_>) {
        let ([m, n], k, scale) = (self.shape, self.rank, self.scale as f32);
        let whole = GemmDims { m, n, k };
        let (nn, left, right) = (GemmLayout::Nn, self.left.all(), self.right.all());
        if self.right.is_empty() {
            ops.gemm(param, left, delta, nn, whole, scale, Write::Add);
        } else if self.left.is_empty() {
            ops.gemm(param, delta, right, nn, whole, scale, Write::Add);
        } else {
            let mut rows = zeros(ops, m * k);
            let dims = GemmDims { m, n: k, k };
            ops.gemm(rows.all_mut(), left, delta, nn, dims, 1.0, Write::Replace);
            ops.gemm(param, rows.all(), right, nn, whole, scale, Write::Add);
        }
    }
}

/// Numbers in low rank.
///
/// Ends with a [`Failure`](forgelm_kernels_api::Failure) if there is no memory for them.
pub fn zeros(ops: &dyn Ops, n: usize) -> Buffer {
    let made = ops.allocate(n, Precision::Exact);
    made.unwrap_or_else(|refused| refused.end("numbers in low rank"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(name: &str, shape: [usize; 2]) -> NamedSlice {
        NamedSlice { name: name.to_owned(), shape: shape.to_vec(), range: 0..0 }
    }

    fn settings(patterns: Option<&[&str]>) -> GaloreSettings {
        GaloreSettings {
            rank: 4,
            update_proj_gap: 200,
            scale: 0.25,
            projection: ProjectionType::Std,
            target_modules: patterns.map(|p| p.iter().map(ToString::to_string).collect()),
            layerwise: false,
        }
    }

    #[test]
    fn patterns_match_whole_paths_of_matrices() {
        let slices = [
            slice("model.layers.0.self_attn.q_proj.weight", [8, 8]),
            slice("model.layers.0.self_attn.q_proj.bias", [8, 1]),
            slice("model.layers.0.mlp.up_proj.weight", [8, 8]),
            slice("model.embed_tokens.weight", [8, 8]),
            slice("model.layers.0.self_attn.q_norm.weight", [8, 1]),
        ];
        for (patterns, expected) in [
            (None, [true, false, true, false, false]),
            (Some(&["model"] as &[&str]), [false; 5]),
            (Some(&["up_proj"]), [false; 5]),
            (Some(&[r".*\.(up|down)_proj"]), [false, false, true, false, false]),
            (Some(&["a|.*tokens"]), [false, false, false, true, false]),
        ] {
            let found = settings(patterns).targets(&slices);
            if expected.contains(&true) {
                assert_eq!(found, Ok(expected.to_vec()), "{patterns:?}");
            } else {
                let error = found.unwrap_err();
                assert!(matches!(error, OptimizerError::NoTarget { .. }), "{error}");
                assert!(error.to_string().contains("`model.layers.0.self_attn.q_proj`"), "{error}");
            }
        }
    }

    #[test]
    fn a_pattern_that_cannot_be_read_is_named() {
        let error = settings(Some(&["(attn"])).targets(&[]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`(attn` is not a pattern: error: unclosed group"), "{text}");
    }

    #[test]
    fn shapes_follow_the_side() {
        for (projection, tall, wide) in [
            (ProjectionType::Std, [9, 4], [4, 9]),
            (ProjectionType::ReverseStd, [4, 7], [7, 4]),
            (ProjectionType::Right, [9, 4], [7, 4]),
            (ProjectionType::Left, [4, 7], [4, 9]),
            (ProjectionType::Full, [4, 4], [4, 4]),
        ] {
            let settings = GaloreSettings { projection, ..settings(None) };
            assert_eq!(Projection::new(&settings, [9, 7]).low_shape(), tall, "{projection:?}");
            assert_eq!(Projection::new(&settings, [7, 9]).low_shape(), wide, "{projection:?}");
        }
        let large = GaloreSettings { rank: 100, ..settings(None) };
        assert_eq!(Projection::new(&large, [9, 7]).low_shape(), [9, 7], "there are no more");
    }
}
