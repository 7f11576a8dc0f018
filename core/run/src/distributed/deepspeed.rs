//! DeepSpeed's settings: its presets, and its JSON files (`distributed.deepspeed_config`).
//!
//! A file may say how state is shared out, which is used; how DeepSpeed works, which has no effect here
//! and is named in a warning; and things that the run's config says, in which the two must agree. Everything
//! else is refused by name, all of it at once. [`keys`] is the list.

mod compare;
mod keys;
#[cfg(test)]
mod tests;

use compare::Said;
use forgelm_artifact::hash::sha256_bytes;
use forgelm_artifact::json::parse_unique;
use forgelm_config::{Code, Diagnostic, DistributedStrategy, LrSchedulerType, Place, Run, nearest};
use keys::{Key, Meaning, ROOT, Shape};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Larger is no file of settings.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How DeepSpeed would share out a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// 0: nothing; 2: gradients and optimizer state; 3: parameters too. Stage 1 is taken as 2.
    pub(crate) stage: u8,
    /// The optimizer's state is in main memory.
    pub(crate) offload_optimizer: bool,
    /// Parts of the weights are.
    pub(crate) offload_param: bool,
    /// Numbers travel while others are computed.
    pub(crate) overlap_comm: bool,
    /// Parameters are fetched before they are needed.
    pub(crate) prefetch: bool,
    /// The file, where it is one.
    pub(crate) file: Option<File>,
}

/// A file of DeepSpeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// As the config names it.
    pub(crate) path: String,
    /// SHA-256 of its bytes.
    pub(crate) sha256: String,
}

impl Settings {
    /// A preset of this name.
    fn preset(name: &str) -> Option<Self> {
        let (stage, is_offloaded) = match name {
            "zero2" => (2, false),
            "zero3" => (3, false),
            "zero3_offload" => (3, true),
            _ => return None,
        };
        Some(Self {
            stage,
            offload_optimizer: is_offloaded,
            offload_param: is_offloaded,
            overlap_comm: true,
            prefetch: true,
            file: None,
        })
    }

    /// As the evidence has the file; null for a preset.
    pub(crate) fn file_json(&self) -> Value {
        self.file.as_ref().map_or(
            Value::Null,
            |file| json!({"path": file.path, "sha256": file.sha256, "stage": self.stage}),
        )
    }
}

/// The settings of a run, with warnings; none where DeepSpeed is not asked for.
///
/// # Errors
/// Everything that is wrong with the file.
pub(crate) fn of(run: &Run) -> Result<(Option<Settings>, Vec<Diagnostic>), Vec<Diagnostic>> {
    let distributed = run.distributed.as_ref();
    let asked = distributed.filter(|of| of.strategy == Some(DistributedStrategy::Deepspeed));
    let Some(asked) = asked else { return Ok((None, Vec::new())) };
    let name = asked.deepspeed_config.as_deref().unwrap_or("zero2");
    if let Some(settings) = Settings::preset(name) {
        return Ok((Some(settings), Vec::new()));
    }
    let (settings, warnings) = read(name, run)?;
    Ok((Some(settings), warnings))
}

fn in_file(path: &str, diagnostic: Diagnostic) -> Diagnostic {
    Diagnostic { file: path.to_owned(), ..diagnostic }
}

fn read(path: &str, run: &Run) -> Result<(Settings, Vec<Diagnostic>), Vec<Diagnostic>> {
    let bytes = bytes_of(Path::new(path)).map_err(|message| {
        let hint =
            "`distributed.deepspeed_config` is `zero2`, `zero3`, `zero3_offload`, or a JSON file";
        let key = "distributed.deepspeed_config";
        vec![in_file(path, Diagnostic::error(Code::Syntax, key, message).hint(hint))]
    })?;
    let mut text = parse_unique(&bytes).map_err(|error| {
        let place = Place { line: error.line() as u64, column: error.column() as u64 };
        let what = Diagnostic::error(Code::Syntax, "", error.what()).at(Some(place));
        vec![in_file(path, what)]
    })?;
    let note = left_open(&mut text, run);
    let mut walk = Walk { run, problems: Vec::new(), ignored: Vec::new() };
    walk.section(&text, "", ROOT);
    let Walk { problems, ignored, .. } = walk;
    if !problems.is_empty() {
        return Err(problems.into_iter().map(|problem| in_file(path, problem)).collect());
    }
    let file = File { path: path.to_owned(), sha256: sha256_bytes(&bytes).to_string() };
    let zero = &text["zero_optimization"];
    let warnings = warnings(&ignored, zero).into_iter().chain(note);
    let warnings = warnings.map(|of| in_file(path, of)).collect();
    Ok((settings(zero, file), warnings))
}

/// What is worth knowing of a file in which nothing is wrong.
fn warnings(ignored: &[String], zero: &Value) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    if !ignored.is_empty() {
        let message = format!("has no effect here: {}", ignored.join(", "));
        let key = "distributed.deepspeed_config";
        warnings.push(Diagnostic::warning(Code::IgnoredKey, key, message));
    }
    if zero["stage"] == 1 {
        let key = "zero_optimization.stage";
        let message = format!(
            "`{key}: 1` is taken as 2: the gradients are shared out too, which needs less memory and \
             gives the same bits"
        );
        warnings.push(Diagnostic::note(Code::IgnoredKey, key, message));
    }
    warnings
}

/// Takes out a `WarmupLR` that says nothing but `auto`, as presets have it: the schedule is the run's,
/// and the note says so where it is another.
fn left_open(text: &mut Value, run: &Run) -> Option<Diagnostic> {
    let scheduler = text.get("scheduler")?;
    let params = scheduler["params"].as_object();
    let is_open = params.is_none_or(|params| params.values().all(is_auto));
    let schedule = run.training.lr_scheduler_type;
    if scheduler["type"] != "WarmupLR" || !is_open || schedule == LrSchedulerType::Constant {
        return None;
    }
    text.as_object_mut()?.shift_remove("scheduler");
    let message = format!(
        "`scheduler` is left to the run's config, whose `training.lr_scheduler_type` is `{schedule}`; \
         `WarmupLR` would be `constant`"
    );
    Some(Diagnostic::note(Code::IgnoredKey, "scheduler", message))
}

/// What `zero_optimization` says, which was looked at.
fn settings(zero: &Value, file: File) -> Settings {
    let is_offloaded = |name: &str| zero[name]["device"] == "cpu";
    let stage = match zero["stage"].as_u64() {
        None | Some(0) => 0,
        Some(1 | 2) => 2,
        Some(_) => 3,
    };
    Settings {
        stage,
        offload_optimizer: is_offloaded("offload_optimizer"),
        offload_param: is_offloaded("offload_param"),
        overlap_comm: zero["overlap_comm"].as_bool().unwrap_or(stage == 3),
        prefetch: zero["stage3_prefetch_bucket_size"].as_f64().is_none_or(|n| n > 0.0),
        file: Some(file),
    }
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error| format!("cannot be read: {error}");
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err("is no file".to_owned());
    }
    if metadata.len() > FILE_BYTES_MAX {
        let n = metadata.len();
        return Err(format!("has {n} bytes; expected at most {FILE_BYTES_MAX}"));
    }
    std::fs::read(path).map_err(unreadable)
}

/// A walk through a file, beside the list of keys.
struct Walk<'a> {
    run: &'a Run,
    problems: Vec<Diagnostic>,
    /// Paths of what has no effect, in backticks.
    ignored: Vec<String>,
}

impl Walk<'_> {
    fn problem(&mut self, code: Code, path: &str, message: String, hint: Option<String>) {
        let problem = Diagnostic::error(code, path, message);
        self.problems.push(match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        });
    }

    fn section(&mut self, value: &Value, path: &str, keys: &'static [Key]) {
        let Value::Object(object) = value else {
            let shown = if path.is_empty() { "the file".to_owned() } else { format!("`{path}`") };
            let message = format!("{shown} is {value}; expected an object");
            return self.problem(Code::WrongType, path, message, None);
        };
        for (name, value) in object {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match keys.iter().find(|key| key.name == name) {
                Some(key) => self.key(value, &path, &key.meaning),
                None => self.unknown(name, &path, keys),
            }
        }
    }

    fn unknown(&mut self, name: &str, path: &str, keys: &'static [Key]) {
        let meant = nearest(name, keys.iter().map(|key| key.name));
        let hint = match (meant, section_of(name, "", ROOT)) {
            (Some(meant), _) => Some(format!("did you mean `{meant}`?")),
            (None, Some(place)) => Some(format!("it is written `{place}`")),
            (None, None) => None,
        };
        let message = format!("`{path}` is not a known key of DeepSpeed");
        self.problem(Code::UnknownKey, path, message, hint);
    }

    fn key(&mut self, value: &Value, path: &str, meaning: &Meaning) {
        match meaning {
            // DeepSpeed's own page writes `false` for what is not there.
            Meaning::Section(_) if value.is_null() || *value == false => {}
            Meaning::Section(keys) => self.section(value, path, keys),
            Meaning::NoEffect if is_auto(value) => {}
            Meaning::NoEffect => self.ignored.push(format!("`{path}`")),
            Meaning::Off { also, .. } if is_off(value, *also) => {}
            Meaning::Off { why, .. } => {
                let message = format!("`{path}: {}` is not supported: {why}", shown(value));
                let hint = Some("remove the key".to_owned());
                self.problem(Code::NotAvailable, path, message, hint);
            }
            Meaning::As(_) if is_auto(value) => {}
            Meaning::As(said) => self.compare(value, path, &said(self.run)),
            Meaning::Used(shape) => self.used(value, path, *shape),
        }
    }

    fn compare(&mut self, value: &Value, path: &str, said: &Said) {
        if said.is(value) {
            return;
        }
        let Said { key, shown: there, accepted } = said;
        let words = accepted.iter().map(|word| format!("`{}`", shown(word)));
        let expected = words.chain(["`auto`".to_owned()]).collect::<Vec<_>>().join(" or ");
        let message = format!(
            "`{path}` is `{}`; expected {expected}, since `{key}` is `{there}`",
            shown(value)
        );
        let hint = "the run's config decides: write `auto`, or remove the key".to_owned();
        self.problem(Code::Conflict, path, message, Some(hint));
    }

    fn used(&mut self, value: &Value, path: &str, shape: Shape) {
        let is_count = |value: &Value| value.as_f64().is_some_and(|n| n >= 0.0 && n.fract() == 0.0);
        let (is_right, expected) = match shape {
            Shape::Stage => (value.as_u64().is_some_and(|n| n <= 3), "0, 1, 2 or 3"),
            Shape::Switch => (value.is_boolean() || is_auto(value), "true or false"),
            Shape::Count => (is_count(value) || is_auto(value), "a number of elements, or `auto`"),
            Shape::Device => {
                let known = [Some("cpu"), Some("none")];
                (known.contains(&value.as_str()), "`cpu` or `none`")
            }
        };
        if !is_right {
            let message = format!("`{path}` is `{}`; expected {expected}", shown(value));
            let hint = (value.as_str() == Some("nvme"))
                .then(|| "nothing is kept on disk between steps: `cpu` is main memory".to_owned());
            self.problem(Code::OutOfRange, path, message, hint);
        }
    }
}

/// Where a key of this name is, in another section.
fn section_of(name: &str, path: &str, keys: &'static [Key]) -> Option<String> {
    keys.iter().find_map(|key| {
        let path =
            if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
        match &key.meaning {
            _ if key.name == name => Some(path),
            Meaning::Section(keys) => section_of(name, &path, keys),
            _ => None,
        }
    })
}

/// Whether a value is left to the run's config.
fn is_auto(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("auto")
}

fn is_off(value: &Value, also: Option<&str>) -> bool {
    let also = also.and_then(|text| serde_json::from_str::<Value>(text).ok());
    let is_also = match (also, value) {
        (Some(Value::Number(also)), Value::Number(found)) => also.as_f64() == found.as_f64(),
        (Some(also), found) => also == *found,
        (None, _) => false,
    };
    is_also
        || is_auto(value)
        || match value {
            Value::Bool(on) => !on,
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(object) => is_switched_off(object),
            Value::Null => true,
        }
}

fn is_switched_off(object: &Map<String, Value>) -> bool {
    object.is_empty() || object.get("enabled") == Some(&Value::Bool(false))
}

/// A value as a message repeats it: a text without its quotes, and not more than a line.
fn shown(value: &Value) -> String {
    const CHARS_MAX: usize = 60;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let line: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    match line.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
