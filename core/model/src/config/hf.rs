//! `config.json` as Hugging Face writes it, in the newer form (`rope_parameters`) and the older
//! one (`rope_theta`, `rope_scaling`).

use std::error::Error;
use std::io::BufReader;
use std::path::Path;

use forgelm_artifact::open;
use forgelm_kernels_api::Activation;
use forgelm_tensor::{Dtype, dequantize, quantize};
use serde_json::Value;

use super::hf_rope::ropes;
use super::keys::Keys;
use super::quantization;
use super::{AttentionOptions, ConfigError, Experts, Labels, MlpOptions, ModelConfig, NormOptions};
use crate::architecture::{
    AVAILABLE, Architecture, AttentionBias, ExpertFamily, Windows, available_names, what_is_missing,
};
use crate::names::ModuleNames;

/// Longest `config.json` that is read.
const MAX_BYTES: u64 = 16 << 20;

/// Reads `config.json` and, when it is there, the end tokens of `generation_config.json`.
///
/// # Errors
/// If a file cannot be read, is not JSON, or describes a model that cannot be run.
pub fn read_config_json(folder: &Path) -> Result<ModelConfig, ConfigError> {
    let (value, place) = read_description(folder)?;
    let mut config = ModelConfig::from_hf_json(&value, &place)?;
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

/// Reads the `config.json` of a model that classifies sequences.
///
/// # Errors
/// As [`read_config_json`]; and if the model is no classifier.
pub fn read_classifier_json(folder: &Path) -> Result<ModelConfig, ConfigError> {
    let (value, place) = read_description(folder)?;
    ModelConfig::classifier_from_hf_json(&value, &place)
}

/// The content of `config.json`, and its name.
fn read_description(folder: &Path) -> Result<(Value, String), ConfigError> {
    let path = folder.join("config.json");
    Ok((read_json(&path)?, path.display().to_string()))
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
        Self::read(value, place, Head::NextToken)
    }

    /// As [`ModelConfig::from_hf_json`], of a model that classifies sequences.
    ///
    /// # Errors
    /// As [`ModelConfig::from_hf_json`]; and if the model is no classifier.
    pub fn classifier_from_hf_json(value: &Value, place: &str) -> Result<Self, ConfigError> {
        Self::read(value, place, Head::Labels)
    }

    fn read(value: &Value, place: &str, head: Head) -> Result<Self, ConfigError> {
        let Some(map) = value.as_object() else {
            return Err(ConfigError::Wrong {
                place: place.to_owned(),
                key: "(the whole file)".to_owned(),
                found: "not an object".to_owned(),
                expected: "an object".to_owned(),
            });
        };
        let keys = Keys { place, prefix: "", map };
        let family = family(&keys, head)?;
        refuse_options(&keys, &family)?;

        let hidden_size = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        let head_dim = match keys.size_or("head_dim", family.head_dim)? {
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
        let n_layers = keys.size("num_hidden_layers")?;
        if n_layers > MAX_LAYERS {
            let found = &map["num_hidden_layers"];
            return Err(keys.wrong("num_hidden_layers", found, &format!("at most {MAX_LAYERS}")));
        }
        let (sliding_window, windowed_layers) = windows(&keys, &family, n_layers)?;
        let (rope, local_rope) = ropes(&keys, &family, max_position_embeddings)?;
        let soft_cap = |key: &str, default: f64| -> Result<Option<f32>, ConfigError> {
            let gemma2 = family.post_norms && !family.local_rope;
            Ok(match (family.soft_caps, map.contains_key(key)) {
                (false, _) => None,
                (true, true) => keys.optional_number(key)?.map(|cap| cap as f32),
                (true, false) => gemma2.then_some(default as f32),
            })
        };
        let labels = match head {
            Head::NextToken => None,
            Head::Labels => Some(labels(&keys)?),
        };
        let config = Self {
            place: place.to_owned(),
            model_type: family.model_type.to_owned(),
            hidden_size,
            num_hidden_layers: n_layers,
            num_attention_heads: heads,
            num_key_value_heads: keys.size_or("num_key_value_heads", heads)?,
            head_dim,
            intermediate_size: keys.size("intermediate_size")?,
            vocab_size: keys.size("vocab_size")?,
            rms_norm_eps: keys.number_or("rms_norm_eps", 1e-6)? as f32,
            rope,
            sliding_window,
            attention: AttentionOptions {
                local_rope,
                windowed_layers,
                rotary_dim: rotary_dim(&keys, &family, head_dim)?,
                soft_cap: soft_cap("attn_logit_softcapping", 50.0)?,
                query_pre_attn_scalar: match family.post_norms {
                    true => Some(keys.number_or("query_pre_attn_scalar", 256.0)?),
                    false => None,
                },
                ..attention(&keys, &family)?
            },
            norms: NormOptions {
                stored_as_offsets: family.is_gemma,
                post_norms: family.post_norms,
            },
            mlp: MlpOptions {
                bias: family.mlp_bias && keys.boolean_or("mlp_bias", false)?,
                is_fused: family.is_fused,
                act: activation(&keys, &family)?,
            },
            experts: experts(&keys, &family, n_layers)?,
            embedding_scale: family.is_gemma.then(|| embedding_scale(&keys, hidden_size)),
            // Scores of labels are not capped.
            final_soft_cap: match labels {
                Some(_) => None,
                None => soft_cap("final_logit_softcapping", 30.0)?,
            },
            // What classifies is a matrix of its own.
            tie_word_embeddings: labels.is_none()
                && keys.boolean_or("tie_word_embeddings", family.is_tied)?,
            max_position_embeddings,
            bos_token_id: token_ids(value, "bos_token_id").first().copied(),
            eos_token_ids: token_ids(value, "eos_token_id"),
            labels,
            float8: quantization::read(&keys)?,
        };
        config.validate()?;
        Ok(config)
    }
}

/// What the head of a model is asked to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    NextToken,
    Labels,
}

/// The class of a family's classifier, which transformers names after the body.
fn classifier_class(family: &Architecture) -> String {
    let body = family.class.strip_suffix("ForCausalLM").unwrap_or(family.class);
    // Gemma 3 with images has the shorter name.
    let text = if family.model_type == "gemma3_text" { "Text" } else { "" };
    format!("{body}{text}ForSequenceClassification")
}

/// Labels as transformers reads them: `id2label`, else `num_labels`, else two.
fn labels(keys: &Keys<'_>) -> Result<Labels, ConfigError> {
    let num_labels = match keys.given("id2label") {
        Some(Value::Object(names)) => names.len(),
        Some(other) => return Err(keys.wrong("id2label", other, "an object")),
        None => keys.size_or("num_labels", 2)?,
    };
    if num_labels == 0 || num_labels > LABELS_MAX {
        let expected = format!("from 1 to {LABELS_MAX} labels");
        return Err(keys.wrong("id2label", &Value::from(num_labels), &expected));
    }
    let pad_token_id = match keys.given("pad_token_id").and_then(Value::as_i64) {
        Some(id) => u32::try_from(id).ok(),
        None => None,
    };
    Ok(Labels { num_labels, pad_token_id })
}

/// No classifier is near this.
const LABELS_MAX: usize = 1 << 20;

/// No model is near this; it keeps lists by layer small.
pub(super) const MAX_LAYERS: usize = 65_536;

fn attention(keys: &Keys<'_>, family: &Architecture) -> Result<AttentionOptions, ConfigError> {
    let (qkv_bias, o_bias) = match family.attention_bias {
        AttentionBias::Never => (false, false),
        AttentionBias::Qkv => (true, false),
        AttentionBias::QkvUnlessOff => (keys.boolean_or("qkv_bias", true)?, false),
        AttentionBias::IfAsked => {
            let asked = keys.boolean_or("attention_bias", false)?;
            (asked, asked)
        }
    };
    Ok(AttentionOptions {
        qkv_bias,
        o_bias,
        is_fused: family.is_fused,
        qk_norm: family.qk_norm,
        ..AttentionOptions::default()
    })
}

/// The root of the width, in the number format of the published weights: that is the factor with
/// which they were trained.
fn embedding_scale(keys: &Keys<'_>, hidden_size: usize) -> f32 {
    let scale = (hidden_size as f64).sqrt() as f32;
    let dtype = match keys.text("dtype").or_else(|| keys.text("torch_dtype")) {
        Some("bfloat16") => Dtype::Bf16,
        Some("float16") => Dtype::F16,
        Some(_) | None => return scale,
    };
    let mut rounded = [scale];
    let bytes = quantize(dtype, &rounded).expect("one number has a half");
    dequantize(dtype, &bytes, &mut rounded).expect("two bytes are one half");
    rounded[0]
}

fn activation(keys: &Keys<'_>, family: &Architecture) -> Result<Activation, ConfigError> {
    let key = if family.is_gemma && family.post_norms { "hidden_activation" } else { "hidden_act" };
    match keys.text(key) {
        None => Ok(family.act),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        // The first Gemma files say `gelu` and mean the approximation.
        Some("gelu") if family.is_gemma => Ok(Activation::GeluTanh),
        Some(other) => Err(ConfigError::NotAvailable {
            place: keys.place.to_owned(),
            what: format!("`{key}: {other}`"),
            hint: "available: `silu`, `gelu_pytorch_tanh`".to_owned(),
        }),
    }
}

fn rotary_dim(
    keys: &Keys<'_>,
    family: &Architecture,
    head_dim: usize,
) -> Result<Option<usize>, ConfigError> {
    let outer = keys.number_or("partial_rotary_factor", 1.0)?;
    let factor = match keys.object("rope_parameters")? {
        Some(newer) => newer.number_or("partial_rotary_factor", outer)?,
        None => outer,
    };
    if factor >= 1.0 {
        return Ok(None);
    }
    if !family.is_fused {
        return Err(ConfigError::NotAvailable {
            place: keys.place.to_owned(),
            what: format!("`partial_rotary_factor: {factor}` of a `{}` model", family.model_type),
            hint: "available in this family: a rotary embedding over the whole head".to_owned(),
        });
    }
    Ok(Some((head_dim as f64 * factor.max(0.0)) as usize))
}

/// The window, and which layers have it.
fn windows(
    keys: &Keys<'_>,
    family: &Architecture,
    n_layers: usize,
) -> Result<(Option<usize>, Vec<bool>), ConfigError> {
    let none = || vec![false; n_layers];
    if family.windows == Windows::Never {
        return Ok((None, none()));
    }
    let default = if family.post_norms { Some(4096) } else { None };
    let window = keys.optional_size("sliding_window")?.or(default);
    let used = keys.boolean_or("use_sliding_window", false)?;
    let first = keys.size_or("max_window_layers", 28)?;
    let by_layer = |is_windowed: &dyn Fn(usize) -> bool| (0..n_layers).map(is_windowed).collect();
    let layers: Vec<bool> = match family.windows {
        Windows::Never => none(),
        Windows::Always => by_layer(&|_| window.is_some()),
        Windows::FromLayer => by_layer(&|layer| used && layer >= first),
        Windows::AlternateBelow => by_layer(&|layer| used && layer % 2 == 0 && layer < first),
        Windows::WhenUsed => by_layer(&|_| used),
        Windows::AllButEvery(n) => {
            let n = match keys.size_or("sliding_window_pattern", n)? {
                0 => return Err(keys.wrong("sliding_window_pattern", &Value::from(0), "above 0")),
                n => n,
            };
            by_layer(&|layer| !(layer + 1).is_multiple_of(n))
        }
    };
    // The newer form names the kind of each layer, but not in families where it never varies.
    let varies = !matches!(family.windows, Windows::Always | Windows::WhenUsed);
    let layers = match keys.given("layer_types").filter(|_| varies) {
        Some(kinds) => layer_kinds(keys, kinds, n_layers)?,
        None => layers,
    };
    if window.is_none() && layers.contains(&true) {
        return Err(keys.missing("sliding_window"));
    }
    Ok((window.filter(|_| layers.contains(&true)), layers))
}

fn layer_kinds(keys: &Keys<'_>, kinds: &Value, n_layers: usize) -> Result<Vec<bool>, ConfigError> {
    let expected = || format!("a list of {n_layers}, each `full_attention` or `sliding_attention`");
    let list = kinds.as_array().filter(|list| list.len() == n_layers);
    let list = list.ok_or_else(|| keys.wrong("layer_types", kinds, &expected()))?;
    let kind = |value: &Value| match value.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        Some(_) | None => Err(keys.wrong("layer_types", value, &expected())),
    };
    list.iter().map(kind).collect()
}

fn experts(
    keys: &Keys<'_>,
    family: &Architecture,
    n_layers: usize,
) -> Result<Option<Experts>, ConfigError> {
    let Some(kind) = family.experts else { return Ok(None) };
    let is_mixtral = kind == ExpertFamily::Mixtral;
    // Older files of the Qwen families call it `num_experts`, newer ones as Mixtral does.
    let (older, newer) = ("num_experts", "num_local_experts");
    let num_experts = match keys.optional_size(newer)? {
        Some(n) => n,
        None => match keys.optional_size(older)? {
            Some(n) => n,
            None => return Err(keys.missing(if is_mixtral { newer } else { older })),
        },
    };
    let width = if is_mixtral { "intermediate_size" } else { "moe_intermediate_size" };
    let step = keys.size_or("decoder_sparse_step", 1)?;
    let dense: Vec<u64> = match keys.given("mlp_only_layers") {
        None => Vec::new(),
        Some(list) => {
            let numbers = list.as_array().map(|l| l.iter().map(Value::as_u64).collect());
            let numbers: Option<Option<Vec<u64>>> = numbers;
            let wrong = || keys.wrong("mlp_only_layers", list, "a list of layer numbers");
            numbers.flatten().ok_or_else(wrong)?
        }
    };
    let is_sparse = |layer: usize| {
        let on_step = step > 0 && (layer + 1).is_multiple_of(step);
        is_mixtral || (num_experts > 0 && on_step && !dense.contains(&(layer as u64)))
    };
    let shared = match kind {
        ExpertFamily::Qwen2 => Some(keys.size("shared_expert_intermediate_size")?),
        ExpertFamily::Mixtral | ExpertFamily::Qwen3 => None,
    };
    Ok(Some(Experts {
        num_experts,
        num_experts_per_tok: keys.size("num_experts_per_tok")?,
        intermediate_size: keys.size(width)?,
        shared_intermediate_size: shared,
        norm_topk_prob: is_mixtral || keys.boolean_or("norm_topk_prob", false)?,
        layers: (0..n_layers).map(is_sparse).collect(),
        router_aux_loss_coef: keys.number_or("router_aux_loss_coef", 0.001)? as f32,
        output_router_logits: keys.boolean_or("output_router_logits", false)?,
        names: if is_mixtral { ModuleNames::Mixtral } else { ModuleNames::Qwen },
    }))
}

/// Finds the family, or says in what it differs.
fn family(keys: &Keys<'_>, head: Head) -> Result<Architecture, ConfigError> {
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
    match (found, head) {
        // A `llama` body under another head (a classifier, say) would train the wrong thing.
        (Some(family), Head::NextToken) if class.is_none_or(|class| class == family.class) => {
            Ok(*family)
        }
        (Some(family), Head::Labels) if class == Some(&classifier_class(family)) => Ok(*family),
        (Some(family), _) => Err(ConfigError::NotAvailable {
            place: keys.place.to_owned(),
            what: match class {
                Some(class) => format!("the class `{class}` of a `{name}` model"),
                None => format!("a `{name}` model that names no class (`architectures`)"),
            },
            hint: match head {
                Head::NextToken => format!("expected `{}`", family.class),
                Head::Labels => format!("expected a classifier, `{}`", classifier_class(family)),
            },
        }),
        (None, _) => Err(ConfigError::NotAvailable {
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
fn refuse_options(keys: &Keys<'_>, family: &Architecture) -> Result<(), ConfigError> {
    let refuse = |what: String, hint: &str| {
        Err(ConfigError::NotAvailable { place: keys.place.to_owned(), what, hint: hint.to_owned() })
    };
    let never = family.attention_bias == AttentionBias::Never;
    for (key, is_known) in [("attention_bias", !never), ("mlp_bias", family.mlp_bias)] {
        if !is_known && keys.boolean_or(key, false)? {
            return refuse(
                format!("`{key}: true` of a `{}` model", family.model_type),
                "use a model whose linear layers have no bias",
            );
        }
    }
    match keys.given("use_bidirectional_attention") {
        None | Some(Value::Bool(false)) => {}
        Some(other) => {
            return refuse(
                format!("`use_bidirectional_attention: {other}`"),
                "available: attention to earlier tokens",
            );
        }
    }
    Ok(())
}
