//! `config.json` as Hugging Face writes it, in the newer form (`rope_parameters`) and the older
//! one (`rope_theta`, `rope_scaling`).

use std::error::Error;
use std::io::BufReader;
use std::path::Path;

use forgelm_artifact::open;
use serde_json::{Map, Value};

use super::{ConfigError, ModelConfig};
use crate::architecture::{AVAILABLE, Architecture, available_names, what_is_missing};
use crate::rope::{Rope, RopeScaling, yarn_attention_factor};

/// Longest `config.json` that is read.
const MAX_BYTES: u64 = 16 << 20;

/// Reads `config.json` and, when it is there, the end tokens of `generation_config.json`.
///
/// # Errors
/// If a file cannot be read, is not JSON, or describes a model that cannot be run.
pub fn read_config_json(folder: &Path) -> Result<ModelConfig, ConfigError> {
    let path = folder.join("config.json");
    let place = path.display().to_string();
    let mut config = ModelConfig::from_hf_json(&read_json(&path)?, &place)?;
    let generation = folder.join("generation_config.json");
    if generation.is_file() {
        let value = read_json(&generation)?;
        for id in token_ids(&value, "eos_token_id") {
            if !config.eos_token_ids.contains(&id) {
                config.eos_token_ids.push(id);
            }
        }
    }
    Ok(config)
}

fn read_json(path: &Path) -> Result<Value, ConfigError> {
    let place = path.display().to_string();
    let unreadable = |cause: String| ConfigError::Unreadable { place: place.clone(), cause };
    let (file, about) = open::regular(path).map_err(|e| match e.source() {
        Some(source) => unreadable(source.to_string()),
        None => unreadable("it is not a regular file".to_owned()),
    })?;
    if about.len() > MAX_BYTES {
        return Err(unreadable(format!(
            "it has {} bytes; at most {MAX_BYTES} are read",
            about.len()
        )));
    }
    serde_json::from_reader(BufReader::new(file)).map_err(|e| unreadable(e.to_string()))
}

/// One number or a list of them; anything else (null, absent) is none.
fn token_ids(value: &Value, key: &str) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value.get(key) {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(v) => one(v).into_iter().collect(),
        None => Vec::new(),
    }
}

impl ModelConfig {
    /// Reads the content of a `config.json`; `place` names it in messages.
    ///
    /// # Errors
    /// If a value is missing, wrong or contradicts another, or the family is not available.
    pub fn from_hf_json(value: &Value, place: &str) -> Result<Self, ConfigError> {
        let Some(map) = value.as_object() else {
            return Err(ConfigError::Wrong {
                place: place.to_owned(),
                key: "(the whole file)".to_owned(),
                found: "not an object".to_owned(),
                expected: "an object".to_owned(),
            });
        };
        let keys = Keys { place, prefix: "", map };
        let family = family(&keys)?;
        refuse_options(&keys)?;

        let hidden_size = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        let head_dim = match keys.size_or("head_dim", 0)? {
            0 if heads > 0 && hidden_size % heads == 0 => hidden_size / heads,
            0 => {
                return Err(ConfigError::Contradiction {
                    place: place.to_owned(),
                    what: format!(
                        "`hidden_size` is {hidden_size}, which is not a multiple of \
                         `num_attention_heads`, {heads}, and there is no `head_dim`"
                    ),
                });
            }
            given => given,
        };
        let max_position_embeddings = keys.size_or("max_position_embeddings", 2048)?;
        let config = Self {
            place: place.to_owned(),
            model_type: family.model_type.to_owned(),
            hidden_size,
            num_hidden_layers: keys.size("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: keys.size_or("num_key_value_heads", heads)?,
            head_dim,
            intermediate_size: keys.size("intermediate_size")?,
            vocab_size: keys.size("vocab_size")?,
            rms_norm_eps: keys.number_or("rms_norm_eps", 1e-6)? as f32,
            rope: rope(&keys, max_position_embeddings)?,
            sliding_window: if family.has_sliding_window {
                keys.optional_size("sliding_window")?
            } else {
                None
            },
            tie_word_embeddings: keys.boolean_or("tie_word_embeddings", false)?,
            max_position_embeddings,
            bos_token_id: token_ids(value, "bos_token_id").first().copied(),
            eos_token_ids: token_ids(value, "eos_token_id"),
        };
        config.validate()?;
        Ok(config)
    }
}

/// Finds the family, or says in what it differs.
fn family(keys: &Keys<'_>) -> Result<Architecture, ConfigError> {
    let class = keys
        .map
        .get("architectures")
        .and_then(Value::as_array)
        .and_then(|list| list.first())
        .and_then(Value::as_str);
    let model_type = keys.map.get("model_type").and_then(Value::as_str);
    let Some(name) = model_type.or(class) else {
        return Err(ConfigError::Missing {
            place: keys.place.to_owned(),
            key: "model_type".to_owned(),
        });
    };
    let found = AVAILABLE.iter().find(|a| a.model_type == name || a.class == name);
    match found {
        // A `llama` body under another head (a classifier, say) would train the wrong thing.
        Some(family) if class.is_none_or(|class| class == family.class) => Ok(*family),
        Some(family) => Err(ConfigError::NotAvailable {
            place: keys.place.to_owned(),
            what: format!("the class `{}` of a `{name}` model", class.unwrap_or_default()),
            hint: format!("expected `{}`", family.class),
        }),
        None => Err(ConfigError::NotAvailable {
            place: keys.place.to_owned(),
            what: match what_is_missing(name) {
                Some(lacks) => format!("the architecture `{name}` ({lacks})"),
                None => format!("the architecture `{name}`"),
            },
            hint: format!("available: {}", available_names()),
        }),
    }
}

/// Options that members of these families may have and the decoder lacks.
fn refuse_options(keys: &Keys<'_>) -> Result<(), ConfigError> {
    let refuse = |what: String, hint: &str| {
        Err(ConfigError::NotAvailable { place: keys.place.to_owned(), what, hint: hint.to_owned() })
    };
    for key in ["attention_bias", "mlp_bias"] {
        if keys.boolean_or(key, false)? {
            return refuse(
                format!("`{key}: true`"),
                "use a model whose linear layers have no bias",
            );
        }
    }
    for key in ["hidden_act", "hidden_activation"] {
        match keys.map.get(key).and_then(Value::as_str) {
            None | Some("silu" | "swish") => {}
            Some(other) => {
                return refuse(format!("`{key}: {other}`"), "available: `silu`");
            }
        }
    }
    let partial = keys.number_or("partial_rotary_factor", 1.0)?;
    if partial < 1.0 {
        return refuse(
            format!("`partial_rotary_factor: {partial}`"),
            "available: a rotary embedding over the whole head",
        );
    }
    if let Some(quantized) = keys.map.get("quantization_config").filter(|v| !v.is_null()) {
        let method = quantized.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        return refuse(
            format!("a folder whose weights are quantized (`quant_method: {method}`)"),
            "use the original weights, or a GGUF file",
        );
    }
    Ok(())
}

fn rope(keys: &Keys<'_>, max_position: usize) -> Result<Rope, ConfigError> {
    let newer = keys.object("rope_parameters")?;
    let older = keys.object("rope_scaling")?;
    let outer_theta = keys.number_or("rope_theta", 10_000.0)?;
    let Some(sub) = newer.or(older) else {
        return Ok(Rope { theta: outer_theta, scaling: RopeScaling::Default });
    };
    let theta = sub.number_or("rope_theta", outer_theta)?;
    let kind = sub.text("rope_type").or_else(|| sub.text("type")).unwrap_or("default");
    let original = |sub: &Keys<'_>| {
        let outer = keys.size_or("original_max_position_embeddings", max_position)?;
        sub.size_or("original_max_position_embeddings", outer)
    };
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: sub.number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: sub.number("factor")?,
            low_freq_factor: sub.number("low_freq_factor")?,
            high_freq_factor: sub.number("high_freq_factor")?,
            original_max_position_embeddings: original(&sub)?,
        },
        "yarn" => yarn(&sub, original(&sub)?)?,
        other => {
            return Err(ConfigError::NotAvailable {
                place: keys.place.to_owned(),
                what: format!("the rotary scaling `{other}`"),
                hint: "available: `default`, `linear`, `llama3`, `yarn`".to_owned(),
            });
        }
    };
    Ok(Rope { theta, scaling })
}

fn yarn(sub: &Keys<'_>, original: usize) -> Result<RopeScaling, ConfigError> {
    let factor = sub.number("factor")?;
    let given = sub.number_or("attention_factor", 0.0)?;
    let (mscale, mscale_all) =
        (sub.number_or("mscale", 0.0)?, sub.number_or("mscale_all_dim", 0.0)?);
    let attention_factor = if given > 0.0 {
        given
    } else if mscale > 0.0 && mscale_all > 0.0 {
        yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, mscale_all)
    } else {
        yarn_attention_factor(factor, 1.0)
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast: sub.number_or("beta_fast", 32.0)?,
        beta_slow: sub.number_or("beta_slow", 1.0)?,
        attention_factor,
        truncate: sub.boolean_or("truncate", true)?,
    })
}

/// Typed reads of one object, with errors that name the key and what was found.
struct Keys<'a> {
    place: &'a str,
    prefix: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    fn given(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> ConfigError {
        ConfigError::Wrong {
            place: self.place.to_owned(),
            key: format!("{}{key}", self.prefix),
            found: shortened(found),
            expected: expected.to_owned(),
        }
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.given(key) else { return Ok(None) };
        // Some files write whole numbers as `8192.0`.
        let whole = value.as_u64().or_else(|| {
            value
                .as_f64()
                .filter(|x| *x >= 0.0 && x.fract() == 0.0 && *x < 9.0e15)
                .map(|x| x as u64)
        });
        match whole.and_then(|n| usize::try_from(n).ok()) {
            Some(size) => Ok(Some(size)),
            None => Err(self.wrong(key, value, "a whole number, not negative")),
        }
    }

    fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, ConfigError> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    fn missing(&self, key: &str) -> ConfigError {
        ConfigError::Missing { place: self.place.to_owned(), key: format!("{}{key}", self.prefix) }
    }

    fn optional_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.given(key) else { return Ok(None) };
        match value.as_f64().filter(|x| x.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, value, "a number")),
        }
    }

    fn number(&self, key: &str) -> Result<f64, ConfigError> {
        self.optional_number(key)?.ok_or_else(|| self.missing(key))
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64, ConfigError> {
        Ok(self.optional_number(key)?.unwrap_or(default))
    }

    fn boolean_or(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.given(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.given(key).and_then(Value::as_str)
    }

    fn object(&self, key: &'static str) -> Result<Option<Keys<'a>>, ConfigError> {
        match self.given(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let prefix = match key {
                    "rope_parameters" => "rope_parameters.",
                    _ => "rope_scaling.",
                };
                Ok(Some(Keys { place: self.place, prefix, map }))
            }
            Some(other) => Err(self.wrong(key, other, "an object or null")),
        }
    }
}

/// A value for a message: long ones (a list of a million numbers) are cut.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
