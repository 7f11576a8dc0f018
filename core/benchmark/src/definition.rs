//! A task, from the keys of its file.

use crate::error::{TaskError, nearest};
use crate::filter::Pipeline;
use crate::metric::{MetricKind, MetricSpec};
use crate::preprocess::{Preprocessing, Processing};
use crate::scores::is_score;
use crate::source::{Entries, kind};
use serde_yaml::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How a task asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputType {
    /// Which of some texts the model finds the likeliest.
    MultipleChoice,
    /// How likely one text is.
    LogLikelihood,
    /// How likely a whole text is, in windows of what the model takes.
    LogLikelihoodRolling,
    /// What the model answers.
    GenerateUntil,
}

impl OutputType {
    const ALL: [(&'static str, Self); 4] = [
        ("multiple_choice", Self::MultipleChoice),
        ("loglikelihood", Self::LogLikelihood),
        ("loglikelihood_rolling", Self::LogLikelihoodRolling),
        ("generate_until", Self::GenerateUntil),
    ];
}

/// Where the rows of a task are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataSource {
    /// `dataset_path`: a hub id, a folder, or the name of a file format.
    pub path: String,
    /// `dataset_name`: a part of the data set.
    pub name: Option<String>,
    /// `dataset_kwargs.revision`.
    pub revision: Option<String>,
    /// `dataset_kwargs.data_dir`.
    pub dir: Option<String>,
    /// `dataset_kwargs.data_files`.
    pub files: Option<DataFiles>,
    /// The folder of the task's file, where there is one.
    pub folder: Option<PathBuf>,
}

/// Files of a data set, named one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataFiles {
    /// Of the split `train`.
    Train(Vec<String>),
    /// By split.
    BySplit(BTreeMap<String, Vec<String>>),
}

/// Text of a task: a number, a list, or a column or template.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Text {
    Number(i64),
    List(Vec<String>),
    /// The name of a column, where there is one of it; else a template.
    Template(String),
}

/// How examples are chosen and look.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Examples {
    pub(crate) is_first_n: bool,
    pub(crate) split: Option<String>,
    pub(crate) rows: Option<Vec<serde_json::Value>>,
    pub(crate) preprocessing: Option<Preprocessing>,
    pub(crate) text: Text,
    pub(crate) target: Text,
    pub(crate) choice: Option<Text>,
    pub(crate) gen_prefix: Option<String>,
    pub(crate) target_delimiter: String,
    pub(crate) delimiter: String,
}

/// How answers are generated: greedily.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Texts that end an answer and are not part of it. The model's own end is another.
    pub until: Vec<String>,
    /// Most tokens of an answer.
    pub max_gen_toks: usize,
}

/// A task.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// What it is called in tables.
    pub alias: Option<String>,
    /// Version of the definition, where it says one.
    pub version: Option<String>,
    /// Where it is defined.
    pub place: String,
    /// How it asks.
    pub output: OutputType,
    /// Where its rows are.
    pub data: DataSource,
    /// Things of the definition that have no effect here.
    pub notes: Vec<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) training_split: Option<String>,
    pub(crate) validation_split: Option<String>,
    pub(crate) test_split: Option<String>,
    pub(crate) preprocessing: Option<Preprocessing>,
    pub(crate) processing: Option<Processing>,
    pub(crate) description: String,
    pub(crate) text: Text,
    pub(crate) target: Text,
    pub(crate) choice: Option<Text>,
    pub(crate) gen_prefix: Option<String>,
    pub(crate) target_delimiter: String,
    pub(crate) examples: Examples,
    pub(crate) num_fewshot: Option<usize>,
    /// How its answers are generated.
    pub generation: Generation,
    pub(crate) repeats: usize,
    pub(crate) metrics: Vec<MetricSpec>,
    pub(crate) filters: Vec<Pipeline>,
}

/// Keys of a task that mean something here.
const KEYS: [&str; 30] = [
    "dataset_kwargs",
    "dataset_name",
    "dataset_path",
    "description",
    "doc_to_choice",
    "doc_to_decontamination_query",
    "doc_to_target",
    "doc_to_text",
    "fewshot_config",
    "fewshot_delimiter",
    "fewshot_split",
    "filter_list",
    "gen_prefix",
    "generation_kwargs",
    "metadata",
    "metric_list",
    "num_fewshot",
    "output_type",
    "process_docs",
    "process_results",
    "repeats",
    "should_decontaminate",
    "tag",
    "target_delimiter",
    "task",
    "task_alias",
    "test_split",
    "training_split",
    "unsafe_code",
    "validation_split",
];

/// Keys of the harness that need what is not here.
const REFUSED: [&str; 4] = ["custom_dataset", "doc_to_audio", "doc_to_image", "use_prompt"];

/// Keys of `fewshot_config`.
const EXAMPLE_KEYS: [&str; 10] = [
    "doc_to_choice",
    "doc_to_target",
    "doc_to_text",
    "fewshot_delimiter",
    "gen_prefix",
    "process_docs",
    "sampler",
    "samples",
    "split",
    "target_delimiter",
];

impl Task {
    /// A task from its keys.
    ///
    /// # Errors
    /// At the first that is not understood.
    pub(crate) fn parse(entries: &Entries) -> Result<Self, TaskError> {
        check_keys(entries)?;
        let name = entries.text("task")?.ok_or_else(|| {
            entries.error("task", "no `task`; expected the name of the task".to_owned(), None)
        })?;
        let output = output_type(entries)?;
        let mut notes = Vec::new();
        if entries.get("should_decontaminate").and_then(Value::as_bool) == Some(true) {
            notes.push(format!("`{name}`: `should_decontaminate` has no effect"));
        }
        let delimiter = entries.text("fewshot_delimiter")?.unwrap_or("\n\n").to_owned();
        let choice = entries.get("doc_to_choice").map(|v| text(entries, "doc_to_choice", v));
        let own = Examples {
            is_first_n: false,
            split: entries.text("fewshot_split")?.map(str::to_owned),
            rows: None,
            preprocessing: preprocessing(entries, "process_docs", entries.get("process_docs"))?,
            text: needed_text(entries, "doc_to_text", output)?,
            target: needed_text(entries, "doc_to_target", output)?,
            choice: choice.transpose()?,
            gen_prefix: entries.text("gen_prefix")?.map(str::to_owned),
            target_delimiter: entries.text("target_delimiter")?.unwrap_or(" ").to_owned(),
            delimiter: delimiter.clone(),
        };
        if output == OutputType::MultipleChoice && own.choice.is_none() {
            let problem = "no `doc_to_choice`; `multiple_choice` expects the choices".to_owned();
            return Err(entries.error("output_type", problem, None));
        }
        let examples = examples(entries, &own)?;
        let metrics = MetricSpec::list(entries, output)?;
        let processing = processing(entries, output)?;
        if let (Some(processing), Some(other)) =
            (processing, metrics.iter().find(|metric| metric.kind != MetricKind::Acc))
        {
            let (of, other) = (processing.name(), other.kind.name());
            let problem = format!("`metric_list` has `{other}`, and `{of}` gives `acc` alone");
            return Err(entries.error("metric_list", problem, None));
        }
        let text_of = |key: &str| Ok::<_, TaskError>(entries.text(key)?.map(str::to_owned));
        let repeats = entries.whole("repeats")?.unwrap_or(1);
        Ok(Self {
            name: name.to_owned(),
            alias: text_of("task_alias")?,
            version: version(entries),
            place: entries.place.clone(),
            output,
            data: data_source(entries)?,
            notes,
            tags: tags(entries)?,
            training_split: text_of("training_split")?,
            validation_split: text_of("validation_split")?,
            test_split: text_of("test_split")?,
            preprocessing: own.preprocessing,
            processing,
            description: text_of("description")?.unwrap_or_default(),
            text: own.text,
            target: own.target,
            choice: own.choice,
            gen_prefix: own.gen_prefix,
            target_delimiter: own.target_delimiter,
            examples,
            num_fewshot: few_shot(entries)?,
            generation: generation(entries, &delimiter)?,
            repeats: usize::try_from(repeats).unwrap_or(usize::MAX).clamp(1, 1024),
            metrics,
            filters: Pipeline::list(entries, output)?,
        })
    }

    /// The split whose rows are asked.
    ///
    /// # Errors
    /// If the task names none.
    pub fn asked_split(&self) -> Result<&str, TaskError> {
        let split = self.test_split.as_deref().or(self.validation_split.as_deref());
        split.ok_or_else(|| TaskError::Definition {
            place: self.place.clone(),
            problem: format!("`{}` has no `test_split` and no `validation_split`", self.name),
            hint: None,
        })
    }

    /// The split that examples are taken from; none where the definition has them itself.
    ///
    /// # Errors
    /// If the task names none.
    pub fn examples_split(&self) -> Result<Option<&str>, TaskError> {
        if let Some(split) = &self.examples.split {
            return Ok(Some(split));
        }
        if self.examples.rows.is_some() {
            return Ok(None);
        }
        match self.training_split.as_deref().or(self.validation_split.as_deref()) {
            Some(split) => Ok(Some(split)),
            None => self.asked_split().map(Some),
        }
    }

    pub(crate) fn has_metric(&self, name: &str) -> bool {
        self.metrics.iter().any(|metric| metric.kind.name() == name)
    }

    /// Whether one of its metrics is a share of right answers.
    #[must_use]
    pub fn has_score(&self) -> bool {
        self.metrics.iter().any(|metric| is_score(metric.kind.name()))
    }

    /// Examples in each prompt: `asked` for, unless the task is defined without any.
    #[must_use]
    pub fn n_examples(&self, asked: Option<usize>) -> usize {
        match (self.num_fewshot, asked) {
            (Some(0), _) => 0,
            (own, asked) => asked.or(own).unwrap_or(0),
        }
    }
}

fn check_keys(entries: &Entries) -> Result<(), TaskError> {
    for (key, entry) in &entries.keys {
        if let Some(function) = tagged(&entry.value) {
            let problem = format!("`{key}` has {function}; no Python can run here");
            let hint = "write it as a template, or use the built-in task of that name";
            return Err(entries.error(key, problem, Some(hint)));
        }
        let is_null = entry.value.is_null();
        if (REFUSED.contains(&key.as_str()) && !is_null)
            || (key == "unsafe_code" && entry.value.as_bool() != Some(false))
        {
            let problem = format!("`{key}` is not available here");
            return Err(entries.error(key, problem, None));
        }
        if !KEYS.contains(&key.as_str()) && !REFUSED.contains(&key.as_str()) {
            let hint = nearest(key, KEYS).map(|near| format!("did you mean `{near}`?"));
            let problem = format!("`{key}` is not a key of a task that is understood");
            return Err(entries.error(key, problem, hint.as_deref()));
        }
    }
    Ok(())
}

/// The first value with a tag, in words.
fn tagged(value: &Value) -> Option<String> {
    match value {
        Value::Tagged(_) => Some(kind(value)),
        Value::Sequence(items) => items.iter().find_map(tagged),
        Value::Mapping(map) => map.values().find_map(tagged),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn output_type(entries: &Entries) -> Result<OutputType, TaskError> {
    let Some(word) = entries.text("output_type")? else { return Ok(OutputType::GenerateUntil) };
    let found = OutputType::ALL.iter().find(|(name, _)| *name == word);
    found.map(|(_, output)| *output).ok_or_else(|| {
        let known: Vec<String> =
            OutputType::ALL.iter().map(|(name, _)| format!("`{name}`")).collect();
        let problem = format!("`output_type` is `{word}`; expected one of {}", known.join(", "));
        entries.error("output_type", problem, None)
    })
}

fn needed_text(entries: &Entries, key: &str, output: OutputType) -> Result<Text, TaskError> {
    match entries.get(key) {
        Some(value) => text(entries, key, value),
        None if output == OutputType::LogLikelihoodRolling => Ok(Text::Template(String::new())),
        None => {
            let problem = format!("no `{key}`; expected a column or a template");
            Err(entries.error(key, problem, None))
        }
    }
}

fn text(entries: &Entries, key: &str, value: &Value) -> Result<Text, TaskError> {
    let wrong = || {
        let problem = format!("`{key}` is {}; expected a text, a number or a list", kind(value));
        entries.error(key, problem, None)
    };
    match value {
        Value::Number(number) => number.as_i64().map(Text::Number).ok_or_else(wrong),
        Value::String(text) => Ok(Text::Template(text.clone())),
        Value::Sequence(items) => texts(items.iter()).map(Text::List).ok_or_else(wrong),
        // The harness takes the values of a mapping.
        Value::Mapping(map) => texts(map.values()).map(Text::List).ok_or_else(wrong),
        Value::Null | Value::Bool(_) | Value::Tagged(_) => Err(wrong()),
    }
}

fn texts<'v>(items: impl Iterator<Item = &'v Value>) -> Option<Vec<String>> {
    items.map(|item| item.as_str().map(str::to_owned)).collect()
}

/// A text or a list of them.
fn text_list(entries: &Entries, key: &str, value: &Value) -> Result<Vec<String>, TaskError> {
    let found = match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Sequence(items) => texts(items.iter()),
        _ => None,
    };
    found.ok_or_else(|| {
        let problem = format!("`{key}` is {}; expected a text or a list of texts", kind(value));
        entries.error(key, problem, None)
    })
}

fn tags(entries: &Entries) -> Result<Vec<String>, TaskError> {
    entries.get("tag").map_or(Ok(Vec::new()), |tag| text_list(entries, "tag", tag))
}

fn few_shot(entries: &Entries) -> Result<Option<usize>, TaskError> {
    let n = entries.whole("num_fewshot")?;
    Ok(n.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
}

fn version(entries: &Entries) -> Option<String> {
    match entries.get("metadata")?.get("version")? {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn preprocessing(
    entries: &Entries,
    key: &str,
    value: Option<&Value>,
) -> Result<Option<Preprocessing>, TaskError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    let found = value.as_str().and_then(Preprocessing::named);
    found.map(Some).ok_or_else(|| {
        let known = Preprocessing::names();
        let problem = format!("`{key}` is {}; expected one of {known}", kind(value));
        entries.error(key, problem, None)
    })
}

fn processing(entries: &Entries, output: OutputType) -> Result<Option<Processing>, TaskError> {
    let Some(value) = entries.get("process_results") else { return Ok(None) };
    let found = value.as_str().and_then(Processing::named);
    match found {
        Some(found) if output == OutputType::MultipleChoice => Ok(Some(found)),
        _ => {
            let problem = format!(
                "`process_results` is {}; expected {} with `output_type: multiple_choice`",
                kind(value),
                Processing::names()
            );
            Err(entries.error("process_results", problem, None))
        }
    }
}

fn examples(entries: &Entries, own: &Examples) -> Result<Examples, TaskError> {
    const KEY: &str = "fewshot_config";
    let Some(config) = entries.get(KEY) else { return Ok(own.clone()) };
    let wrong = |problem: String| entries.error(KEY, problem, None);
    let Value::Mapping(map) = config else {
        return Err(wrong(format!("`{KEY}` is {}; expected a mapping", kind(config))));
    };
    let mut examples = own.clone();
    for (key, value) in map {
        let key = key.as_str().filter(|key| EXAMPLE_KEYS.contains(key)).ok_or_else(|| {
            let known = EXAMPLE_KEYS.map(|key| format!("`{key}`")).join(", ");
            wrong(format!("`{KEY}` has {}; expected one of {known}", kind(key)))
        })?;
        let plain = || {
            let problem = format!("`{KEY}.{key}` is {}; expected a text", kind(value));
            value.as_str().map(str::to_owned).ok_or_else(|| wrong(problem))
        };
        match key {
            "sampler" => match value.as_str() {
                Some("first_n") => examples.is_first_n = true,
                Some("default") => {}
                _ => {
                    let found = kind(value);
                    return Err(wrong(format!(
                        "`{KEY}.sampler` is {found}; expected `default` or `first_n`"
                    )));
                }
            },
            "samples" if value.is_null() => examples.rows = None,
            "samples" => {
                let rows: Option<Vec<serde_json::Value>> = value.as_sequence().and_then(|rows| {
                    rows.iter().map(|row| serde_json::to_value(row).ok()).collect()
                });
                let rows = rows.filter(|rows| rows.iter().all(serde_json::Value::is_object));
                let problem =
                    format!("`{KEY}.samples` is {}; expected a list of rows", kind(value));
                examples.rows = Some(rows.ok_or_else(|| wrong(problem))?);
            }
            "process_docs" => {
                examples.preprocessing = preprocessing(entries, KEY, Some(value))?;
            }
            _ if value.is_null() => {}
            "split" => examples.split = Some(plain()?),
            "doc_to_text" => examples.text = text(entries, KEY, value)?,
            "doc_to_target" => examples.target = text(entries, KEY, value)?,
            "doc_to_choice" => examples.choice = Some(text(entries, KEY, value)?),
            "gen_prefix" => examples.gen_prefix = Some(plain()?),
            "fewshot_delimiter" => examples.delimiter = plain()?,
            _ => examples.target_delimiter = plain()?,
        }
    }
    Ok(examples)
}

fn data_source(entries: &Entries) -> Result<DataSource, TaskError> {
    const KEY: &str = "dataset_kwargs";
    let path = entries.text("dataset_path")?.ok_or_else(|| {
        let problem = "no `dataset_path`; expected a folder or the id of a data set".to_owned();
        entries.error("dataset_path", problem, None)
    })?;
    let mut source = DataSource {
        path: path.to_owned(),
        name: entries.text("dataset_name")?.map(str::to_owned),
        folder: entries.folder.clone(),
        ..DataSource::default()
    };
    let Some(given) = entries.get(KEY) else { return Ok(source) };
    let wrong = |problem: String| entries.error(KEY, problem, None);
    let Value::Mapping(map) = given else {
        return Err(wrong(format!("`{KEY}` is {}; expected a mapping", kind(given))));
    };
    for (key, value) in map {
        let plain = |key: &str| {
            let problem = format!("`{KEY}.{key}` is {}; expected a text", kind(value));
            value.as_str().map(str::to_owned).ok_or_else(|| wrong(problem))
        };
        match key.as_str() {
            Some("data_files") => source.files = Some(data_files(entries, KEY, value)?),
            Some("data_dir") => source.dir = Some(plain("data_dir")?),
            Some("revision") => source.revision = Some(plain("revision")?),
            // No code of a data set runs here, trusted or not.
            Some("trust_remote_code") => {}
            _ => {
                return Err(wrong(format!(
                    "`{KEY}` has {}; expected `data_files`, `data_dir` or `revision`",
                    kind(key)
                )));
            }
        }
    }
    Ok(source)
}

fn data_files(entries: &Entries, key: &str, value: &Value) -> Result<DataFiles, TaskError> {
    let Value::Mapping(map) = value else {
        return text_list(entries, key, value).map(DataFiles::Train);
    };
    let mut by_split = BTreeMap::new();
    for (split, files) in map {
        let split = split.as_str().ok_or_else(|| {
            let problem = format!("`{key}.data_files` has {}; expected a split", kind(split));
            entries.error(key, problem, None)
        })?;
        by_split.insert(split.to_owned(), text_list(entries, key, files)?);
    }
    Ok(DataFiles::BySplit(by_split))
}

fn generation(entries: &Entries, delimiter: &str) -> Result<Generation, TaskError> {
    const KEY: &str = "generation_kwargs";
    let mut generation = Generation { until: vec![delimiter.to_owned()], max_gen_toks: 256 };
    let Some(given) = entries.get(KEY) else { return Ok(generation) };
    let wrong = |problem: String| entries.error(KEY, problem, None);
    let Value::Mapping(map) = given else {
        return Err(wrong(format!("`{KEY}` is {}; expected a mapping", kind(given))));
    };
    let get = |key: &str| map.get(key).filter(|value| !value.is_null());
    for key in map.keys() {
        match key.as_str() {
            Some(
                "until"
                | "do_sample"
                | "temperature"
                | "max_gen_toks"
                | "max_new_tokens"
                | "max_tokens"
                | "max_completion_tokens"
                | "top_p"
                | "top_k",
            ) => {}
            _ => {
                return Err(wrong(format!("`{KEY}` has {}, which is not understood", kind(key))));
            }
        }
    }
    let is_sampled = get("do_sample").and_then(Value::as_bool);
    let temperature = get("temperature").and_then(|value| match value {
        Value::String(text) => text.parse().ok(),
        value => value.as_f64(),
    });
    if is_sampled.unwrap_or(temperature.unwrap_or(0.0) > 0.0) {
        let problem = format!("`{KEY}` asks for sampled answers; expected greedy ones");
        let hint = "write `do_sample: false`: a gate should give the same verdict again";
        return Err(entries.error(KEY, problem, Some(hint)));
    }
    if let Some(until) = get("until") {
        generation.until = text_list(entries, KEY, until)?;
    }
    let names = ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"];
    if let Some((name, value)) = names.iter().find_map(|name| Some((name, get(name)?))) {
        let n = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
        generation.max_gen_toks = n.ok_or_else(|| {
            wrong(format!("`{KEY}.{name}` is {}; expected a number above 0", kind(value)))
        })?;
    }
    Ok(generation)
}
