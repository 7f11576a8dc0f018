//! Task files as keys with their places: YAML, with `include`.

use crate::builtin;
use crate::error::TaskError;
use forgelm_artifact::open;
use serde_yaml::Value;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Files inside files.
const DEPTH_MAX: usize = 8;
/// Bytes of a task file.
const BYTES_MAX: u64 = 1 << 20;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) value: Value,
    /// `FILE:LINE`, or `built-in task NAME`.
    pub(crate) place: String,
}

/// The keys of a task or a group, those of included files among them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entries {
    pub(crate) keys: BTreeMap<String, Entry>,
    /// The file itself.
    pub(crate) place: String,
    /// Where relative data files lie, beside the working directory.
    pub(crate) folder: Option<PathBuf>,
}

impl Entries {
    pub(crate) fn error(&self, key: &str, problem: String, hint: Option<&str>) -> TaskError {
        let place = self.keys.get(key).map_or(&self.place, |entry| &entry.place).clone();
        TaskError::Definition { place, problem, hint: hint.map(str::to_owned) }
    }

    /// The value of a key; none where it is not written or null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|entry| &entry.value).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, TaskError> {
        let wrong = |found: &Value| {
            self.error(key, format!("`{key}` is {}; expected a text", kind(found)), None)
        };
        self.get(key).map(|value| value.as_str().ok_or_else(|| wrong(value))).transpose()
    }

    pub(crate) fn whole(&self, key: &str) -> Result<Option<u64>, TaskError> {
        let wrong = |found: &Value| {
            let problem = format!("`{key}` is {}; expected a whole number", kind(found));
            self.error(key, problem, None)
        };
        self.get(key).map(|value| value.as_u64().ok_or_else(|| wrong(value))).transpose()
    }
}

/// Reads a task file and what it includes.
pub(crate) fn read_file(path: &Path) -> Result<Entries, TaskError> {
    read_nested(path, 0)
}

fn read_nested(path: &Path, depth: usize) -> Result<Entries, TaskError> {
    let place = path.display().to_string();
    let (file, _) = open::regular(path)?;
    let mut text = String::new();
    let io_error = |source| open::OpenError::Io { path: path.to_owned(), source };
    file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(io_error)?;
    if text.len() as u64 > BYTES_MAX {
        let problem = format!("more than {BYTES_MAX} bytes; expected a task");
        return Err(TaskError::Definition { place, problem, hint: None });
    }
    let folder = path.parent().map(Path::to_owned);
    parse(&text, &place, folder, depth)
}

/// Reads the text of a task; `folder` is where its includes are.
pub(crate) fn parse(
    text: &str,
    place: &str,
    folder: Option<PathBuf>,
    depth: usize,
) -> Result<Entries, TaskError> {
    let wrong = |place: String, problem: String, hint: Option<&str>| TaskError::Definition {
        place,
        problem,
        hint: hint.map(str::to_owned),
    };
    let mut value: Value = serde_yaml::from_str(text).map_err(|error| {
        let at = error.location().map(|at| format!(":{}", at.line())).unwrap_or_default();
        wrong(format!("{place}{at}"), error.to_string(), None)
    })?;
    value.apply_merge().map_err(|error| wrong(place.to_owned(), error.to_string(), None))?;
    let Value::Mapping(mapping) = value else {
        let problem = format!("{}; expected the keys of a task", kind(&value));
        return Err(wrong(place.to_owned(), problem, None));
    };
    let mut own = Entries { place: place.to_owned(), folder, ..Entries::default() };
    for (key, value) in mapping {
        let Value::String(key) = key else {
            let problem = format!("a key is {}; expected a text", kind(&key));
            return Err(wrong(place.to_owned(), problem, None));
        };
        let place = match line_of(text, &key) {
            Some(line) => format!("{place}:{line}"),
            None => place.to_owned(),
        };
        own.keys.insert(key, Entry { value, place });
    }
    let Some(include) = own.keys.remove("include") else { return Ok(own) };
    if depth >= DEPTH_MAX {
        let problem = format!("includes are nested deeper than {DEPTH_MAX}");
        return Err(wrong(include.place, problem, None));
    }
    let names = match &include.value {
        Value::String(name) => vec![name.clone()],
        Value::Sequence(names) if names.iter().all(Value::is_string) => {
            names.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        other => {
            let problem =
                format!("`include` is {}; expected a file or a list of them", kind(other));
            return Err(wrong(include.place, problem, None));
        }
    };
    let mut keys = BTreeMap::new();
    for name in names {
        let path = own.folder.as_deref().unwrap_or(Path::new("")).join(&name);
        let included = if own.folder.is_some() && path.is_file() {
            read_nested(&path, depth + 1)?
        } else if let Some(text) = builtin::text(&name) {
            parse(&text, &format!("built-in task {name}"), None, depth + 1)?
        } else {
            let problem = format!("`include: {name}`: no such file, and no built-in task");
            return Err(wrong(include.place, problem, None));
        };
        keys.extend(included.keys);
    }
    keys.extend(std::mem::take(&mut own.keys));
    own.keys = keys;
    Ok(own)
}

/// The line of a key of the document itself.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let begins = |line: &str| {
        let rest = [format!("{key}:"), format!("\"{key}\":"), format!("'{key}':")];
        rest.iter().any(|start| line.starts_with(start.as_str()))
    };
    text.lines().position(begins).map(|line| line + 1)
}

/// What a value is, in words.
pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(flag) => format!("`{flag}`"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text `{}`", text.chars().take(60).collect::<String>()),
        Value::Sequence(_) => "a list".to_owned(),
        Value::Mapping(_) => "a mapping".to_owned(),
        Value::Tagged(tagged) => match (&tagged.tag.to_string()[..], &tagged.value) {
            ("!function", Value::String(name)) => format!("the Python function `{name}`"),
            (tag, _) => format!("a value with the tag `{tag}`"),
        },
    }
}
