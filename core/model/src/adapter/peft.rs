//! Adapter files in the layout of the PEFT library, so that other tools read ours and we read
//! theirs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use forgelm_artifact::pieces::{PieceToWrite, PiecedTensor, Pieces};
use forgelm_artifact::safetensors::{self, TensorToWrite};
use forgelm_artifact::{Quoted, json, open, write};
use forgelm_tensor::{Dtype, dequantize};
use serde_json::{Map, Value, json};

use super::{ALL_LINEAR, AdapterError, LoraConfig, LoraInit, TrainedBias};
use crate::config::ModelConfig;
use crate::trainable::{Adapter, NamedSlice, Selection, Trainable};

/// Name of the settings file.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Name of the tensor file.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// Name of the tensor file where weights of the base train, without an adapter.
pub const TRAINED_WEIGHTS: &str = "trained_weights.safetensors";
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
        if info.base_model_name_or_path.is_empty() {
            let cause = "`base_model_name_or_path` is missing; expected the model below".to_owned();
            return Err(AdapterError::Settings { place, cause });
        }
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
        let found = self.adapter.lora();
        let mut differences = found
            .map_or_else(Vec::new, |found| differences(found, expected, &self.adapter.all_linear));
        if let Some(base) = base.filter(|base| *base != self.info.base_model_name_or_path) {
            let found = &self.info.base_model_name_or_path;
            differences.push(format!("`base_model_name_or_path` is {found}, expected {base}"));
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(AdapterError::Differs { place: self.place.clone(), differences })
    }
}

/// What changes the meaning of the numbers and differs, each with both values. Dropout does not.
fn differences(found: &LoraConfig, expected: &LoraConfig, all_linear: &[String]) -> Vec<String> {
    let modules = |config: &LoraConfig| module_names(&config.target_modules, all_linear).join(", ");
    let is_pissa = |config: &LoraConfig| config.init == LoraInit::PrincipalComponents;
    let rows = [
        ("r", found.r.to_string(), expected.r.to_string()),
        ("lora_alpha", found.alpha.to_string(), expected.alpha.to_string()),
        ("use_rslora", found.rslora.to_string(), expected.rslora.to_string()),
        ("use_dora", found.dora.to_string(), expected.dora.to_string()),
        ("bias", found.bias.name().to_owned(), expected.bias.name().to_owned()),
        ("pissa", is_pissa(found).to_string(), is_pissa(expected).to_string()),
        ("target_modules", modules(found), modules(expected)),
    ];
    let differing = rows.into_iter().filter(|(_, found, expected)| found != expected);
    differing.map(|(key, a, b)| format!("`{key}` is {a}, expected {b}")).collect()
}

impl Trainable {
    /// The files that hold every trained number as it stands, by name: an adapter's two files, or
    /// the trained weights in f32.
    ///
    /// An adapter that began at principal components means something only on a base that lacks
    /// them: see [`Trainable::on_original_weights`] for one that others can use.
    #[must_use]
    pub fn to_files(&self, info: &PeftInfo) -> Vec<(&'static str, Vec<u8>)> {
        let slices = self.slices();
        let tensors: Vec<TensorToWrite<'_>> = slices
            .iter()
            .map(|s| TensorToWrite::f32(&s.name, &s.shape, &self.params()[s.range.clone()]))
            .collect();
        let tensors = safetensors::to_bytes(&tensors, &Self::files_metadata());
        let settings = self.settings_file(info);
        settings.into_iter().chain([(self.numbers_file(), tensors)]).collect()
    }

    /// The file of an adapter's settings; `None` where only weights of the base train.
    #[must_use]
    pub fn settings_file(&self, info: &PeftInfo) -> Option<(&'static str, Vec<u8>)> {
        let bytes = |config| json::pretty(&settings(config, &self.all_linear, info)).into_bytes();
        self.lora().map(|config| (ADAPTER_CONFIG, bytes(config)))
    }

    /// Name of the file that holds every trained number.
    #[must_use]
    pub fn numbers_file(&self) -> &'static str {
        if self.lora().is_some() { ADAPTER_WEIGHTS } else { TRAINED_WEIGHTS }
    }

    /// What that file says besides.
    #[must_use]
    pub fn files_metadata() -> BTreeMap<String, String> {
        BTreeMap::from([("format".to_owned(), "pt".to_owned())])
    }

    /// The trained numbers of some ranges of the buffer, which this process has, for a file that holds
    /// only these.
    #[must_use]
    pub fn pieces(&self, ranges: &[Range<usize>]) -> Vec<PieceToWrite<'static>> {
        let numbers = self.numbers().to_host();
        let piece = |slice: &NamedSlice, range: &Range<usize>| {
            let start = slice.range.start.max(range.start);
            let end = slice.range.end.min(range.end);
            if start >= end {
                return None;
            }
            let values = &numbers[self.place(&(start..end))];
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            Some(PieceToWrite {
                name: slice.name.clone().into(),
                dtype: Dtype::F32,
                shape: slice.shape.clone().into(),
                elements: start - slice.range.start..end - slice.range.start,
                bytes: bytes.into(),
            })
        };
        let slices = self.slices();
        let of_range = |range| slices.iter().filter_map(move |slice| piece(slice, range));
        ranges.iter().flat_map(of_range).collect()
    }

    /// Writes the files into `folder`, each whole or not at all.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn save(&self, folder: &Path, info: &PeftInfo) -> Result<(), write::WriteError> {
        for (name, bytes) in self.to_files(info) {
            write::atomic(&folder.join(name), &bytes)?;
        }
        Ok(())
    }

    /// Reads an adapter folder for `model`. Before it runs,
    /// [`Decoder::refresh`](crate::Decoder::refresh) forms what is derived from its numbers.
    ///
    /// # Errors
    /// If a file cannot be read, the adapter is of a kind that is not available, or its tensors
    /// are not those that its settings and the model promise.
    pub fn load(folder: &Path, model: &ModelConfig) -> Result<LoadedAdapter, AdapterError> {
        let path = folder.join(ADAPTER_CONFIG);
        let place = path.display().to_string();
        let settings = read_settings(&path, &place)?;
        let (config, info) = parse_settings(&settings, &place)?;
        if config.init == LoraInit::PrincipalComponents {
            // The base it needs is not in the folder.
            let what = "`init_lora_weights: pissa`".to_owned();
            return Err(AdapterError::NotAvailable { place, what });
        }
        refuse_shards(folder)?;
        let mut adapter = Self::zeroed(Selection::Adapter(config), model)?;
        adapter.fill(&Pieces::open(&[folder.join(ADAPTER_WEIGHTS)])?)?;
        Ok(LoadedAdapter { adapter, info, place: folder.display().to_string() })
    }

    /// Puts the numbers of a folder that [`Trainable::to_files`] filled in the place of its own.
    /// [`Decoder::refresh`](crate::Decoder::refresh) comes after it.
    ///
    /// # Errors
    /// If a file cannot be read, or they hold something else than what trains here.
    pub fn restore(&mut self, folder: &Path) -> Result<(), AdapterError> {
        let numbers = folder.join(self.numbers_file());
        self.restore_from(folder, &[numbers])
    }

    /// [`Trainable::restore`] where the numbers lie in pieces: files of
    /// [`Trainable::pieces`], all of them, in their order.
    ///
    /// # Errors
    /// As [`Trainable::restore`].
    pub fn restore_from(&mut self, folder: &Path, numbers: &[PathBuf]) -> Result<(), AdapterError> {
        let Some(expected) = self.lora() else { return self.fill(&Pieces::open(numbers)?) };
        let path = folder.join(ADAPTER_CONFIG);
        let place = path.display().to_string();
        let (found, _) = parse_settings(&read_settings(&path, &place)?, &place)?;
        let differences = differences(&found, expected, &self.all_linear);
        if !differences.is_empty() {
            return Err(AdapterError::Differs { place, differences });
        }
        self.fill(&Pieces::open(numbers)?)
    }

    fn fill(&mut self, file: &Pieces) -> Result<(), AdapterError> {
        let place = file.path().display().to_string();
        let slices = self.slices();
        let mut differences = Vec::new();
        for slice in &slices {
            match file.tensor(&slice.name) {
                None => differences.push(format!("tensor `{}` is missing", slice.name)),
                Some(tensor) => {
                    let mut values = vec![0.0; slice.range.len()];
                    match copy_tensor(slice, &tensor, &mut values) {
                        Ok(()) => self.put(&slice.range, &values),
                        Err(difference) => differences.push(difference),
                    }
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

/// A checkpoint in shards is an adapter that only the run which goes on from it can read.
fn refuse_shards(folder: &Path) -> Result<(), AdapterError> {
    let (weights, index) = (folder.join(ADAPTER_WEIGHTS), "adapter_model-00001-of-");
    let is_shard = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(index);
    let mut entries = folder.read_dir().into_iter().flatten().flatten();
    if !weights.exists() && entries.any(|entry| is_shard(&entry.file_name())) {
        return Err(AdapterError::InShards { place: folder.display().to_string() });
    }
    Ok(())
}

/// Differences that a message lists.
const MAX_DIFFERENCES: usize = 4;

fn copy_tensor(
    slice: &NamedSlice,
    tensor: &PiecedTensor<'_>,
    out: &mut [f32],
) -> Result<(), String> {
    if tensor.shape != slice.shape {
        return Err(format!(
            "tensor `{}` has shape {:?}, expected {:?}",
            slice.name, tensor.shape, slice.shape
        ));
    }
    for (elements, bytes) in &tensor.parts {
        dequantize(tensor.dtype, bytes, &mut out[elements.clone()])
            .map_err(|e| format!("tensor `{}`: {e}", slice.name))?;
    }
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
        "bias": config.bias.name(),
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": match config.init {
            LoraInit::Noise => json!(true),
            LoraInit::PrincipalComponents => json!("pissa"),
        },
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
        "use_dora": config.dora,
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
    if let Some(init) = map.get("init_lora_weights").and_then(Value::as_str)
        && !matches!(init, "gaussian" | "true" | "orthogonal" | "pissa")
    {
        // These change the base weights, which an adapter file does not hold.
        return refuse(format!("`init_lora_weights: {init}`"));
    }
    for key in [
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
    let is_true = |key: &str| map.get(key).and_then(Value::as_bool).unwrap_or(false);
    let bias = match map.get("bias").and_then(Value::as_str) {
        None | Some("none") => TrainedBias::None,
        Some("all") => TrainedBias::All,
        Some("lora_only") => TrainedBias::LoraOnly,
        Some(_) => return Err(wrong("bias", "`none`, `all` or `lora_only`")),
    };
    let is_pissa = map.get("init_lora_weights").and_then(Value::as_str) == Some("pissa");
    let config = LoraConfig {
        r,
        alpha,
        dropout: map.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0) as f32,
        target_modules,
        rslora: is_true("use_rslora"),
        dora: is_true("use_dora"),
        init: if is_pissa { LoraInit::PrincipalComponents } else { LoraInit::Noise },
        bias,
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
