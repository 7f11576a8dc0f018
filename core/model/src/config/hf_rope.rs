//! The rotary embedding in `config.json`, newer form and older, and the override of a run.

use serde_json::{Map, Value};

use super::keys::Keys;
use super::{ConfigError, ModelConfig};
use crate::architecture::Architecture;
use crate::rope::{Rope, RopeScaling, longrope_attention_factor, yarn_attention_factor};

/// What the dictionary does not say itself.
#[derive(Clone, Copy)]
struct Around {
    theta: f64,
    original: usize,
    max_position: usize,
}

/// The rotary embedding, and that of windowed layers where it is another.
pub(super) fn ropes(
    keys: &Keys<'_>,
    family: &Architecture,
    max_position: usize,
) -> Result<(Rope, Option<Rope>), ConfigError> {
    let around = Around {
        theta: keys.number_or("rope_theta", family.rope_theta)?,
        original: keys.size_or("original_max_position_embeddings", max_position)?,
        max_position,
    };
    let newer = keys.object("rope_parameters")?;
    let older = keys.object("rope_scaling")?;
    let plain = |theta| Rope { theta, scaling: RopeScaling::Default };
    let global = |sub: Option<Keys<'_>>| match sub {
        Some(sub) => rope(&sub, around),
        None => Ok(plain(around.theta)),
    };
    if !family.local_rope {
        return Ok((global(newer.or(older))?, None));
    }
    let local_theta = keys.number_or("rope_local_base_freq", 10_000.0)?;
    let Some(newer) = newer else { return Ok((global(older)?, Some(plain(local_theta)))) };
    let local = match newer.object("sliding_attention")? {
        Some(sub) => rope(&sub, Around { theta: local_theta, ..around })?,
        None => plain(local_theta),
    };
    Ok((global(newer.object("full_attention")?)?, Some(local)))
}

fn rope(sub: &Keys<'_>, around: Around) -> Result<Rope, ConfigError> {
    let theta = sub.number_or("rope_theta", around.theta)?;
    let kind = sub.text("rope_type").or_else(|| sub.text("type")).unwrap_or("default");
    let original = sub.size_or("original_max_position_embeddings", around.original)?;
    if original == 0 {
        let expected = "a number above 0";
        return Err(sub.wrong("original_max_position_embeddings", &Value::from(0), expected));
    }
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: sub.number("factor")? },
        "dynamic" => RopeScaling::Dynamic {
            factor: sub.number("factor")?,
            original_max_position_embeddings: original,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: sub.number("factor")?,
            low_freq_factor: sub.number("low_freq_factor")?,
            high_freq_factor: sub.number("high_freq_factor")?,
            original_max_position_embeddings: original,
        },
        "yarn" => yarn(sub, original, around)?,
        // The first Phi-3 files call it `su`.
        "longrope" | "su" => longrope(sub, original, around)?,
        other => {
            return Err(ConfigError::NotAvailable {
                place: sub.place.to_owned(),
                what: format!("the rotary scaling `{other}`"),
                hint: "available: `default`, `linear`, `dynamic`, `llama3`, `yarn`, `longrope`"
                    .to_owned(),
            });
        }
    };
    Ok(Rope { theta, scaling })
}

fn yarn(sub: &Keys<'_>, original: usize, around: Around) -> Result<RopeScaling, ConfigError> {
    let factor = match sub.optional_number("factor")? {
        Some(factor) => factor,
        None => around.max_position as f64 / original as f64,
    };
    let (mscale, mscale_all) =
        (sub.number_or("mscale", 0.0)?, sub.number_or("mscale_all_dim", 0.0)?);
    let attention_factor = match sub.optional_number("attention_factor")? {
        Some(given) => given,
        None if mscale != 0.0 && mscale_all != 0.0 => {
            yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, mscale_all)
        }
        None => yarn_attention_factor(factor, 1.0),
    };
    // Zero means the default, as in the published code.
    let beta = |key: &str, default: f64| -> Result<f64, ConfigError> {
        Ok(Some(sub.number_or(key, default)?).filter(|beta| *beta != 0.0).unwrap_or(default))
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        attention_factor,
        truncate: sub.boolean_or("truncate", true)?,
    })
}

fn longrope(sub: &Keys<'_>, original: usize, around: Around) -> Result<RopeScaling, ConfigError> {
    let factor = match sub.optional_number("factor")? {
        Some(factor) => factor,
        None => around.max_position as f64 / original as f64,
    };
    let attention_factor = match sub.optional_number("attention_factor")? {
        Some(given) => given,
        None => longrope_attention_factor(factor, original),
    };
    Ok(RopeScaling::Longrope {
        short_factor: sub.numbers("short_factor")?,
        long_factor: sub.numbers("long_factor")?,
        original_max_position_embeddings: original,
        attention_factor,
    })
}

impl ModelConfig {
    /// Puts another rotary scaling in the place of the model's own: the dictionary
    /// `training.rope_scaling` of a run, in the form of `config.json`. What it does not say stays:
    /// the base, and as original length that of the model's own scaling or else its longest
    /// sequence. Windowed layers with a rotary embedding of their own keep it.
    ///
    /// # Errors
    /// If a number is missing or cannot be right; nothing changes then.
    pub fn override_rope_scaling(
        &mut self,
        settings: &Map<String, Value>,
    ) -> Result<(), ConfigError> {
        let original = match &self.rope.scaling {
            RopeScaling::Llama3 { original_max_position_embeddings: n, .. }
            | RopeScaling::Dynamic { original_max_position_embeddings: n, .. }
            | RopeScaling::Yarn { original_max_position_embeddings: n, .. }
            | RopeScaling::Longrope { original_max_position_embeddings: n, .. } => *n,
            RopeScaling::Default | RopeScaling::Linear { .. } | RopeScaling::Divisors(_) => {
                self.max_position_embeddings
            }
        };
        let around =
            Around { theta: self.rope.theta, original, max_position: self.max_position_embeddings };
        let keys = Keys { place: &self.place, prefix: "rope_scaling.", map: settings };
        let mut changed = self.clone();
        changed.rope = rope(&keys, around)?;
        changed.validate()?;
        *self = changed;
        Ok(())
    }
}
