//! Weights that a folder has in the layout of bitsandbytes: four bits a value, and their scales in
//! tensors beside.
//!
//! `NAME` holds two codes a byte, `NAME.absmax` the scale of each block of 64, `NAME.quant_map` what
//! the codes stand for, and `NAME.quant_state.bitsandbytes__nf4` (or `fp4`) is JSON with the shape and
//! the number format of the weight. Scales that are quantized themselves have bytes in `absmax`, and
//! `NAME.nested_absmax` and `NAME.nested_quant_map`.

use forgelm_artifact::TensorView;
use forgelm_artifact::json::parse_unique;
use forgelm_kernels_api::Rounding;
use forgelm_tensor::{
    BlockScales, Dtype, DynamicMap, FOUR_BIT_BLOCK, FourBit, FourBitMatrix, FourBitTensor,
    NESTED_BLOCK, NestedScales,
};
use serde_json::{Value, json};

/// A weight in four bits.
#[derive(Debug)]
pub struct FourBitWeight {
    /// Its rows.
    pub matrix: FourBitMatrix,
    /// What its codes stand for.
    pub kind: FourBit,
    /// The number format that it has when it is dense.
    pub dense: Dtype,
}

/// What each tensor beside a weight is called after the weight's name.
const BESIDE: [&str; 6] = [
    ".absmax",
    ".quant_map",
    ".nested_absmax",
    ".nested_quant_map",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
];

/// The name of the weight that a tensor stands beside.
pub(crate) fn weight_of(name: &str) -> Option<&str> {
    BESIDE.iter().find_map(|suffix| name.strip_suffix(suffix))
}

/// The name of the tensor that says how a weight is stored, for both kinds.
pub(crate) fn state_names(name: &str) -> [(FourBit, String); 2] {
    [FourBit::Nf4, FourBit::Fp4]
        .map(|kind| (kind, format!("{name}.quant_state.bitsandbytes__{}", kind.name())))
}

/// Reads the weight of this name and shape.
///
/// # Errors
/// What is wrong, as a message without the file.
pub(crate) fn read<'a>(
    view: &dyn Fn(&str) -> Option<TensorView<'a>>,
    name: &str,
    (kind, state_name): &(FourBit, String),
    [n_rows, n_cols]: [usize; 2],
) -> Result<FourBitWeight, String> {
    let tensor = |suffix: &str| {
        let name = format!("{name}{suffix}");
        view(&name).ok_or_else(|| format!("tensor `{name}` is missing"))
    };
    let state = view(state_name).ok_or_else(|| format!("tensor `{state_name}` is missing"))?;
    let state = parse_unique(state.bytes).map_err(|e| format!("tensor `{state_name}`: {e}"))?;
    let expect = |key: &str, expected: Value| match state.get(key) {
        Some(found) if *found == expected => Ok(()),
        found => Err(format!(
            "tensor `{state_name}`: `{key}` is {}; expected {expected}",
            found.unwrap_or(&Value::Null)
        )),
    };
    expect("quant_type", json!(kind.name()))?;
    expect("blocksize", json!(FOUR_BIT_BLOCK))?;
    expect("shape", json!([n_rows, n_cols]))?;
    let dense = match state["dtype"].as_str() {
        Some("bfloat16") => Dtype::Bf16,
        Some("float16") => Dtype::F16,
        Some("float32") => Dtype::F32,
        _ => {
            return Err(format!(
                "tensor `{state_name}`: `dtype` is {}; expected a float",
                state["dtype"]
            ));
        }
    };
    let n_values = n_rows * n_cols;
    let n_blocks = n_values.div_ceil(FOUR_BIT_BLOCK);
    let sized = |view: TensorView<'a>, suffix: &str, dtype: Dtype, n: usize| {
        if view.dtype == dtype && view.n_values() == n {
            return Ok(view);
        }
        let (found, shape) = (view.dtype, view.shape);
        Err(format!("tensor `{name}{suffix}` is {found} {shape:?}; expected {n} values of {dtype}"))
    };
    let floats = |suffix: &str, n: usize| -> Result<Vec<f32>, String> {
        let view = sized(tensor(suffix)?, suffix, Dtype::F32, n)?;
        let values = view.to_f32().map_err(|e| e.to_string())?;
        match values.iter().find(|v| !v.is_finite()) {
            None => Ok(values),
            Some(bad) => Err(format!("tensor `{name}{suffix}` has the value {bad}")),
        }
    };
    let codes = sized(tensor("")?, "", Dtype::U8, n_values.div_ceil(2))?;
    let map = |suffix: &str, expected: &[f32]| match floats(suffix, expected.len())? {
        found if found == expected => Ok(()),
        _ => Err(format!("tensor `{name}{suffix}` is not the map of bitsandbytes")),
    };
    map(".quant_map", kind.values())?;
    let scales = match state.get("nested_offset").and_then(Value::as_f64) {
        None => BlockScales::Single(floats(".absmax", n_blocks)?),
        Some(offset) => {
            expect("nested_blocksize", json!(NESTED_BLOCK))?;
            map(".nested_quant_map", DynamicMap::Signed.values())?;
            let codes = sized(tensor(".absmax")?, ".absmax", Dtype::U8, n_blocks)?.bytes.to_vec();
            let absmax = floats(".nested_absmax", n_blocks.div_ceil(NESTED_BLOCK))?;
            BlockScales::Double(NestedScales { codes, absmax, offset: offset as f32 })
        }
    };
    let tensor = FourBitTensor { kind: *kind, n_values, packed: codes.bytes.to_vec(), scales };
    let largest = if dense == Dtype::F16 { 65_504.0 } else { f32::MAX };
    for block in 0..n_blocks {
        let scale = tensor.scale(block);
        if !scale.is_finite() || scale.abs() > largest {
            return Err(format!("tensor `{name}.absmax`: the scale of block {block} is {scale}"));
        }
    }
    // What bitsandbytes makes of the blocks has the number format of the weight.
    let rounding = match dense {
        Dtype::F16 => Rounding::F16,
        Dtype::Bf16 => Rounding::Bf16,
        _ => Rounding::Exact,
    };
    let matrix = FourBitMatrix::new(tensor, n_rows, n_cols, rounding);
    Ok(FourBitWeight { matrix, kind: *kind, dense })
}
