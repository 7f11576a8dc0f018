//! Weights that a folder has in floats of eight bits (FP8), and their scales in tensors beside.
//!
//! `NAME.weight` holds a byte a value, `NAME.weight_scale_inv` (or `NAME.weight_scale`) the factor of
//! each block, row or of all of it: in spite of its name it multiplies. Beside them may be scales of
//! activations, which say nothing of weights.

use forgelm_artifact::TensorView;
use forgelm_kernels_api::{Float8, Float8Layout, Float8Rows};
use forgelm_tensor::Dtype;

/// What `quantization_config` says of weights in FP8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Float8Storage {
    /// Format of the codes.
    pub format: Float8,
    /// What a scale may be of; the first that fits a tensor is it.
    pub scales: Vec<ScaleOf>,
}

/// What has a scale of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleOf {
    /// The whole weight.
    Weight,
    /// Each row.
    Row,
    /// Each block of so many rows and columns; those at the ends may be smaller.
    Block(usize, usize),
}

/// The scales of a weight, and how it lies under them.
#[derive(Debug)]
pub struct Float8Scales {
    layout: Float8Layout,
    scales: Vec<f32>,
}

impl Float8Scales {
    /// The weight whose codes these are.
    pub(crate) fn rows<'a>(&'a self, codes: &'a [u8]) -> Float8Rows<'a> {
        Float8Rows { layout: self.layout, codes, scales: &self.scales }
    }
}

/// How the scales of weights are called after the weight's name.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// How scales of activations are called, in the place of the last part of the weight's name.
const OF_ACTIVATIONS: [&str; 3] = ["input_scale", "activation_scale", "output_scale"];

/// Scales of cached keys and values, in a layer's attention.
const OF_CACHES: [&str; 3] = [".self_attn.q_scale", ".self_attn.k_scale", ".self_attn.v_scale"];

/// The name of the weight that a tensor scales.
pub(crate) fn scaled_by(name: &str) -> Option<&str> {
    SCALES.iter().find_map(|suffix| name.strip_suffix(suffix))
}

/// Whether a tensor scales activations of a folder whose weights are in FP8.
pub(crate) fn is_of_activations(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    OF_ACTIVATIONS.contains(&last) || OF_CACHES.iter().any(|suffix| name.ends_with(suffix))
}

/// The number format of codes.
pub(crate) fn dtype_of(format: Float8) -> Dtype {
    match format {
        Float8::E4m3 => Dtype::F8E4m3,
        Float8::E5m2 => Dtype::F8E5m2,
    }
}

/// Reads the scales of the weight of this name and shape; nothing where it is not in FP8.
///
/// # Errors
/// What is wrong, as a message without the file.
pub(crate) fn read<'a>(
    view: &dyn Fn(&str) -> Option<TensorView<'a>>,
    storage: &Float8Storage,
    name: &str,
    shape: &[usize],
) -> Result<Option<Float8Scales>, String> {
    let dtype = match view(name).map(|tensor| tensor.dtype) {
        Some(dtype @ (Dtype::F8E4m3 | Dtype::F8E5m2)) => dtype,
        Some(_) | None => return Ok(None),
    };
    let expected = dtype_of(storage.format);
    if dtype != expected {
        return Err(format!("tensor `{name}` is {dtype}; `quantization_config` says {expected}"));
    }
    let &[n_rows, n_cols] = shape else {
        return Err(format!(
            "tensor `{name}` has the experts of a layer in {dtype}; expected a tensor for each"
        ));
    };
    let names = SCALES.map(|suffix| format!("{name}{suffix}"));
    let found = names.iter().find_map(|name| Some((name, view(name)?)));
    let Some((name, tensor)) = found else {
        let [first, second] = names;
        return Err(format!(
            "tensor `{name}` is {dtype}, but its scale is missing; expected a tensor `{first}` or `{second}`"
        ));
    };
    let layout = layout_of(storage, [n_rows, n_cols], name, &tensor)?;
    let scales = values(name, &tensor, storage.format)?;
    Ok(Some(Float8Scales { layout, scales }))
}

/// How a weight lies under a tensor of scales.
fn layout_of(
    storage: &Float8Storage,
    [n_rows, n_cols]: [usize; 2],
    name: &str,
    scales: &TensorView<'_>,
) -> Result<Float8Layout, String> {
    let format = storage.format;
    let fits = |of: &&ScaleOf| match **of {
        ScaleOf::Weight => scales.n_values() == 1,
        ScaleOf::Row => matches!(scales.shape, [n] | [n, 1] if *n == n_rows),
        ScaleOf::Block(rows, cols) => {
            *scales.shape == [n_rows.div_ceil(rows), n_cols.div_ceil(cols)]
        }
    };
    let layout = |of: &ScaleOf| {
        let (block_rows, block_cols) = match *of {
            ScaleOf::Weight => (n_rows, n_cols),
            ScaleOf::Row => (1, n_cols),
            ScaleOf::Block(rows, cols) => (rows, cols),
        };
        Float8Layout { format, n_cols, block_rows, block_cols }
    };
    storage.scales.iter().find(fits).map(layout).ok_or_else(|| {
        let expected: Vec<String> = storage
            .scales
            .iter()
            .map(|of| match *of {
                ScaleOf::Weight => "one number".to_owned(),
                ScaleOf::Row => format!("{:?}", [n_rows, 1]),
                ScaleOf::Block(rows, cols) => {
                    let shape = [n_rows.div_ceil(rows), n_cols.div_ceil(cols)];
                    format!("{shape:?}, one for each block of {rows} x {cols}")
                }
            })
            .collect();
        format!(
            "tensor `{name}` has shape {:?}; expected {} of a weight {:?}",
            scales.shape,
            expected.join(" or "),
            [n_rows, n_cols]
        )
    })
}

/// The scales, none of which makes a code something that is no number.
fn values(name: &str, tensor: &TensorView<'_>, format: Float8) -> Result<Vec<f32>, String> {
    if !matches!(tensor.dtype, Dtype::F32 | Dtype::Bf16 | Dtype::F16) {
        return Err(format!("tensor `{name}` is {}; expected F32, BF16 or F16", tensor.dtype));
    }
    let scales = tensor.to_f32().map_err(|e| format!("tensor `{name}`: {e}"))?;
    match scales.iter().position(|scale| !(scale * format.max()).is_finite()) {
        None => Ok(scales),
        Some(at) => Err(format!("tensor `{name}`: scale {at} is {}", scales[at])),
    }
}
