//! Adapter files in the layout of the PEFT library, so that other tools read ours and we read
//! theirs.

use std::collections::BTreeMap;
use std::path::Path;

use forgelm_artifact::safetensors::{self, SafetensorsFile, TensorToWrite};
use forgelm_artifact::{Quoted, TensorView, json, open, write};
use forgelm_tensor::dequantize;
use serde_json::{Map, Value, json};

use super::{ALL_LINEAR, Adapter, AdapterError, LoraConfig, NamedSlice};
use crate::config::ModelConfig;

/// Name of the settings file.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Name of the tensor file.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// Longest settings file that is read.
const MAX_BYTES: u64 = 16 << 20;

/// Which model an adapter belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeftInfo {
    /// Name or path of the base.
    pub base_model_name_or_path: String,
    /// Its commit, when it has one.
    pub revision: Option<String>,
}

impl PeftInfo {
    /// Reads which model the adapter in `folder` belongs to, before that model is known.
    ///
    /// # Errors
    /// If the settings file cannot be read, or the adapter is of a kind that is not available.
    pub fn read(folder: &Path) -> Result<Self, AdapterError> {
        let path = folder.join(ADAPTER_CONFIG);
        let place = path.display().to_string();
        let (_, info) = parse_settings(&read_settings(&path, &place)?, &place)?;
        Ok(info)
    }
}

/// An adapter and what its settings file says of its base.
#[derive(Clone, Debug)]
pub struct LoadedAdapter {
    /// The adapter; its dropout is the one of the file.
    pub adapter: Adapter,
    /// Its base.
    pub info: PeftInfo,
    /// Folder it was read from, for messages.
    pub place: String,
}

impl LoadedAdapter {
    /// Checks that it is the adapter a run expects: same rank, alpha, scale rule, modules and,
    /// where `base` is given, the same base model. Dropout may differ.
    ///
    /// # Errors
    /// Names each difference with both values.
    pub fn check(&self, expected: &LoraConfig, base: Option<&str>) -> Result<(), AdapterError> {
        let found = self.adapter.config();
        let mut differences = Vec::new();
        let mut compare = |key: &str, found: String, expected: String| {
            if found != expected {
                differences.push(format!("`{key}` is {found}, expected {expected}"));
            }
        };
        compare("r", found.r.to_string(), expected.r.to_string());
        compare("lora_alpha", found.alpha.to_string(), expected.alpha.to_string());
        compare("use_rslora", found.rslora.to_string(), expected.rslora.to_string());
        compare(
            "target_modules",
            module_names(&found.target_modules, &self.adapter.all_linear).join(", "),
            module_names(&expected.target_modules, &self.adapter.all_linear).join(", "),
        );
        if let Some(base) = base {
            let found = self.info.base_model_name_or_path.clone();
            compare("base_model_name_or_path", found, base.to_owned());
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(AdapterError::Differs { place: self.place.clone(), differences })
    }
}

impl Adapter {
    /// The two files of the adapter, by name.
    #[must_use]
    pub fn to_files(&self, info: &PeftInfo) -> [(&'static str, Vec<u8>); 2] {
        let settings = json::pretty(&settings(self.config(), &self.all_linear, info));
        let slices = self.slices();
        let tensors: Vec<TensorToWrite<'_>> = slices
            .iter()
            .map(|s| TensorToWrite::f32(&s.name, &s.shape, &self.params()[s.range.clone()]))
            .collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        [
            (ADAPTER_CONFIG, settings.into_bytes()),
            (ADAPTER_WEIGHTS, safetensors::to_bytes(&tensors, &metadata)),
        ]
    }

    /// Writes the two files into `folder`, each whole or not at all.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn save(&self, folder: &Path, info: &PeftInfo) -> Result<(), write::WriteError> {
        for (name, bytes) in self.to_files(info) {
            write::atomic(&folder.join(name), &bytes)?;
        }
        Ok(())
    }

    /// Reads an adapter folder for `model`.
    ///
    /// # Errors
    /// If a file cannot be read, the adapter is of a kind that is not available, or its tensors
    /// are not those that its settings and the model promise.
    pub fn load(folder: &Path, model: &ModelConfig) -> Result<LoadedAdapter, AdapterError> {
        let path = folder.join(ADAPTER_CONFIG);
        let place = path.display().to_string();
        let settings = read_settings(&path, &place)?;
        let (config, info) = parse_settings(&settings, &place)?;
        let mut adapter = Self::zeroed(config, model)?;
        adapter.fill(&folder.join(ADAPTER_WEIGHTS))?;
        Ok(LoadedAdapter { adapter, info, place: folder.display().to_string() })
    }

    fn fill(&mut self, path: &Path) -> Result<(), AdapterError> {
        let place = path.display().to_string();
        let file = SafetensorsFile::open(path)?;
        let slices = self.slices();
        let mut differences = Vec::new();
        for slice in &slices {
            match file.tensor(&slice.name) {
                None => differences.push(format!("tensor `{}` is missing", slice.name)),
                Some(tensor) => {
                    let out = &mut self.params[slice.range.clone()];
                    differences.extend(copy_tensor(slice, &tensor, out).err());
                }
            }
        }
        for name in file.names().filter(|name| slices.iter().all(|s| s.name != *name)) {
            differences.push(format!("tensor {} has no part in this model", Quoted(name)));
        }
        if differences.is_empty() {
            return Ok(());
        }
        let more = differences.len().saturating_sub(MAX_DIFFERENCES);
        differences.truncate(MAX_DIFFERENCES);
        if more > 0 {
            differences.push(format!("and {more} more"));
        }
        Err(AdapterError::Differs { place, differences })
    }
}

/// Differences that a message lists.
const MAX_DIFFERENCES: usize = 4;

fn copy_tensor(slice: &NamedSlice, tensor: &TensorView<'_>, out: &mut [f32]) -> Result<(), String> {
    if tensor.shape != slice.shape {
        return Err(format!(
            "tensor `{}` has shape {:?}, expected {:?}",
            slice.name, tensor.shape, slice.shape
        ));
    }
    dequantize(tensor.dtype, tensor.bytes, out)
        .map_err(|e| format!("tensor `{}`: {e}", slice.name))?;
    match out.iter().find(|v| !v.is_finite()) {
        None => Ok(()),
        Some(bad) => Err(format!("tensor `{}` has the value {bad}", slice.name)),
    }
}

fn read_settings(path: &Path, place: &str) -> Result<Map<String, Value>, AdapterError> {
    let (file, about) = open::regular(path)?;
    if about.len() > MAX_BYTES {
        let cause = format!("it has {} bytes; at most {MAX_BYTES} are read", about.len());
        return Err(AdapterError::Settings { place: place.to_owned(), cause });
    }
    let reader = std::io::BufReader::new(file);
    serde_json::from_reader(reader).map_err(|e| AdapterError::Settings {
        place: place.to_owned(),
        cause: format!("not valid JSON: {e}"),
    })
}

/// Last names of modules, sorted, with `all-linear` spelled out.
fn module_names(targets: &[String], all_linear: &[String]) -> Vec<String> {
    let mut names = match targets.iter().any(|t| t == ALL_LINEAR) {
        true => all_linear.to_vec(),
        false => targets.to_vec(),
    };
    names.sort();
    names.dedup();
    names
}

fn whole_or_fraction(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 9e15 { json!(x as i64) } else { json!(x) }
}

fn settings(config: &LoraConfig, all_linear: &[String], info: &PeftInfo) -> Value {
    let alphas: Map<String, Value> =
        config.alpha_pattern.iter().map(|(k, v)| (k.clone(), whole_or_fraction(*v))).collect();
    json!({
        "alpha_pattern": alphas,
        "base_model_name_or_path": info.base_model_name_or_path,
        "bias": "none",
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": whole_or_fraction(config.alpha),
        // The shortest decimal of the f32, not its digits as an f64.
        "lora_dropout": config.dropout.to_string().parse::<f64>().unwrap_or(0.0),
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": config.rank_pattern,
        "revision": info.revision,
        "target_modules": module_names(&config.target_modules, all_linear),
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": config.rslora,
    })
}

/// Settings that change what the numbers mean, and the values under which they do not.
fn refuse_other_kinds(map: &Map<String, Value>, place: &str) -> Result<(), AdapterError> {
    let plain = |key: &str| match map.get(key) {
        None | Some(Value::Null | Value::Bool(false)) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(object)) => object.is_empty(),
        Some(_) => false,
    };
    let refuse = |what: String| Err(AdapterError::NotAvailable { place: place.to_owned(), what });
    match map.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        other => return refuse(format!("an adapter of type `{}`", other.unwrap_or("(none)"))),
    }
    match map.get("bias").and_then(Value::as_str) {
        None | Some("none") => {}
        Some(other) => return refuse(format!("`bias: {other}`")),
    }
    if let Some(init) = map.get("init_lora_weights").and_then(Value::as_str)
        && !matches!(init, "gaussian" | "true" | "orthogonal")
    {
        // These change the base weights, which an adapter file does not hold.
        return refuse(format!("`init_lora_weights: {init}`"));
    }
    for key in [
        "use_dora",
        "fan_in_fan_out",
        "lora_bias",
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "exclude_modules",
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
        "alora_invocation_tokens",
        "use_bdlora",
        "use_qalora",
    ] {
        if !plain(key) {
            return refuse(format!("an adapter with `{key}`"));
        }
    }
    Ok(())
}

fn parse_settings(
    map: &Map<String, Value>,
    place: &str,
) -> Result<(LoraConfig, PeftInfo), AdapterError> {
    refuse_other_kinds(map, place)?;
    let wrong = |key: &str, expected: &str| AdapterError::Settings {
        place: place.to_owned(),
        cause: match map.get(key) {
            None => format!("`{key}` is missing; expected {expected}"),
            Some(found) => format!("`{key}` is {found}; expected {expected}"),
        },
    };
    let whole = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let r = map.get("r").and_then(whole).ok_or_else(|| wrong("r", "a whole number"))?;
    let alpha = map
        .get("lora_alpha")
        .and_then(Value::as_f64)
        .ok_or_else(|| wrong("lora_alpha", "a number"))?;
    let target_modules = match map.get("target_modules") {
        Some(Value::String(word)) if word == ALL_LINEAR => vec![word.clone()],
        Some(Value::Array(list)) => list
            .iter()
            .map(|v| v.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| wrong("target_modules", "a list of names"))?,
        _ => return Err(wrong("target_modules", "a list of names, or `all-linear`")),
    };
    let config = LoraConfig {
        r,
        alpha,
        dropout: map.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0) as f32,
        target_modules,
        rslora: map.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        rank_pattern: pattern(map, "rank_pattern", place, &whole)?,
        alpha_pattern: pattern(map, "alpha_pattern", place, &Value::as_f64)?,
    };
    let text = |key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
    let info = PeftInfo {
        base_model_name_or_path: text("base_model_name_or_path").unwrap_or_default(),
        revision: text("revision"),
    };
    Ok((config, info))
}

/// Values by module name. PEFT reads the names as regular expressions; plain names mean the same
/// under both readings, and anything else is refused rather than guessed.
fn pattern<T>(
    map: &Map<String, Value>,
    key: &str,
    place: &str,
    read: &dyn Fn(&Value) -> Option<T>,
) -> Result<BTreeMap<String, T>, AdapterError> {
    let refuse = |what: String| AdapterError::NotAvailable { place: place.to_owned(), what };
    let Some(Value::Object(entries)) = map.get(key) else { return Ok(BTreeMap::new()) };
    entries
        .iter()
        .map(|(name, value)| {
            let name = name.strip_prefix('^').unwrap_or(name);
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
            if !name.chars().all(is_plain) {
                return Err(refuse(format!("`{key}` with the expression {}", Quoted(name))));
            }
            let value = read(value)
                .ok_or_else(|| refuse(format!("`{key}` with the value {value} for `{name}`")))?;
            Ok((name.to_owned(), value))
        })
        .collect()
}
