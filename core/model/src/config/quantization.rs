//! `quantization_config` of `config.json`: how the weights of a folder are quantized.
//!
//! Known are four bits by bitsandbytes, whose tensors say all else themselves, and FP8 in the two
//! ways it is published in: `fp8` (DeepSeek, Qwen) and `compressed-tensors`.

use forgelm_kernels_api::Float8;
use serde_json::{Map, Value};

use super::ConfigError;
use super::keys::Keys;
use crate::float8::{Float8Storage, ScaleOf};

/// What can be read, for hints.
const HINT: &str = "use the original weights, a GGUF file, four bits by bitsandbytes \
                    (`load_in_4bit`), or FP8 (`fp8`; `float-quantized` of `compressed-tensors`)";

/// How weights in FP8 are scaled; nothing where none are.
///
/// # Errors
/// If the weights are quantized in a way that cannot be read.
pub(super) fn read(keys: &Keys<'_>) -> Result<Option<Float8Storage>, ConfigError> {
    let Some(given) = keys.given("quantization_config") else { return Ok(None) };
    let Some(map) = given.as_object() else {
        return Err(keys.wrong("quantization_config", given, "an object"));
    };
    let keys = Keys { place: keys.place, prefix: "quantization_config.", map };
    match keys.text("quant_method").unwrap_or("unknown") {
        "bitsandbytes" if is_four_bit(map) => Ok(None),
        "fp8" => fine_grained(&keys).map(Some),
        "compressed-tensors" => compressed_tensors(&keys).map(Some),
        method => Err(refusal(
            &keys,
            format!("a folder whose weights are quantized (`quant_method: {method}`)"),
        )),
    }
}

fn is_four_bit(map: &Map<String, Value>) -> bool {
    let is = |key: &str, value: &Value| map.get(key).is_none_or(|found| found == value);
    map.get("load_in_4bit") == Some(&Value::Bool(true))
        && is("bnb_4bit_quant_storage", &Value::from("uint8"))
}

fn refusal(keys: &Keys<'_>, what: String) -> ConfigError {
    ConfigError::NotAvailable { place: keys.place.to_owned(), what, hint: HINT.to_owned() }
}

/// FP8 as DeepSeek and Qwen publish it: a scale for each block, or for each weight. How activations
/// are scaled is of no matter to weights.
fn fine_grained(keys: &Keys<'_>) -> Result<Float8Storage, ConfigError> {
    let format = match keys.given("fmt").map(Value::as_str) {
        None | Some(Some("e4m3" | "e4m3fn")) => Float8::E4m3,
        Some(Some("e5m2")) => Float8::E5m2,
        Some(_) => {
            return Err(keys.wrong("fmt", &keys.map["fmt"], "`e4m3` or `e5m2`"));
        }
    };
    let scale = match keys.given("weight_block_size") {
        None => ScaleOf::Weight,
        Some(block) => block_of(keys, "weight_block_size", block)?,
    };
    Ok(Float8Storage { format, scales: vec![scale] })
}

/// FP8 as `compressed-tensors` writes it: groups of modules, each with a way to scale.
fn compressed_tensors(keys: &Keys<'_>) -> Result<Float8Storage, ConfigError> {
    for key in ["sparsity_config", "transform_config"] {
        let is_something = |map: &Map<String, Value>| {
            !map.is_empty() && map.get("format") != Some(&Value::from("dense"))
        };
        if keys.given(key).and_then(Value::as_object).is_some_and(is_something) {
            return Err(refusal(keys, format!("`{key}` of `compressed-tensors`")));
        }
    }
    let groups = keys.given("config_groups").and_then(Value::as_object);
    let groups = groups.ok_or_else(|| keys.missing("config_groups"))?;
    let mut scales = Vec::new();
    for (name, group) in groups {
        let prefix = "quantization_config.config_groups.";
        let wrong = || Keys { prefix, ..*keys }.wrong(name, group, "an object");
        let group = group.as_object().ok_or_else(wrong)?;
        let of_group = |key: &str| group.get(key).filter(|value| !value.is_null());
        let format = of_group("format").or(keys.given("format")).and_then(Value::as_str);
        let Some(weights) = of_group("weights").and_then(Value::as_object) else { continue };
        let weights =
            Keys { place: keys.place, prefix: "quantization_config.weights.", map: weights };
        if !matches!(format, Some("float-quantized" | "naive-quantized")) || !is_float8(&weights) {
            let format = format.unwrap_or("unknown");
            let bits = weights.given("num_bits").unwrap_or(&Value::Null);
            let kind = weights.text("type").unwrap_or("unknown");
            return Err(refusal(
                keys,
                format!("`{format}` of `compressed-tensors` (`{name}`: {bits} bits, `{kind}`)"),
            ));
        }
        let scale = scale_of(&weights)?;
        if !scales.contains(&scale) {
            scales.push(scale);
        }
    }
    match scales.is_empty() {
        true => Err(refusal(keys, "`compressed-tensors` that quantizes no weights".to_owned())),
        false => Ok(Float8Storage { format: Float8::E4m3, scales }),
    }
}

/// Symmetric floats of eight bits.
fn is_float8(weights: &Keys<'_>) -> bool {
    weights.given("num_bits") == Some(&Value::from(8))
        && weights.text("type") == Some("float")
        && weights.given("symmetric") != Some(&Value::Bool(false))
}

/// What has a scale of its own in a group.
fn scale_of(weights: &Keys<'_>) -> Result<ScaleOf, ConfigError> {
    match weights.text("strategy") {
        Some("tensor") => Ok(ScaleOf::Weight),
        Some("channel") => Ok(ScaleOf::Row),
        Some("block") => {
            let block = weights.given("block_structure");
            block_of(weights, "block_structure", block.unwrap_or(&Value::Null))
        }
        _ => {
            let found = weights.given("strategy").unwrap_or(&Value::Null);
            Err(weights.wrong("strategy", found, "`tensor`, `channel` or `block`"))
        }
    }
}

/// Rows and columns of a block.
fn block_of(keys: &Keys<'_>, key: &str, block: &Value) -> Result<ScaleOf, ConfigError> {
    let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    let sizes: Option<Vec<usize>> =
        block.as_array().and_then(|list| list.iter().map(size).collect());
    match sizes.as_deref() {
        Some([rows, cols]) => Ok(ScaleOf::Block(*rows, *cols)),
        _ => Err(keys.wrong(key, block, "two sizes, rows and columns of a block")),
    }
}
