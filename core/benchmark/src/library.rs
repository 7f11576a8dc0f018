//! Names to tasks: built-in ones, and those of files.

use crate::builtin;
use crate::definition::Task;
use crate::error::{TaskError, nearest};
use crate::scores::is_score;
use crate::source::{self, Entries, kind};
use serde_yaml::Value;
use std::path::{Path, PathBuf};

/// Groups inside groups.
const DEPTH_MAX: usize = 8;

/// A task or a group that was asked for.
#[derive(Clone, Debug)]
pub enum Chosen {
    /// A task.
    Task(Box<Task>),
    /// Tasks whose mean is one score.
    Group(Group),
}

/// Tasks whose mean is one score.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// What it is called in tables.
    pub alias: Option<String>,
    /// Its tasks and groups.
    pub members: Vec<Chosen>,
    pub(crate) aggregates: Vec<Aggregate>,
}

/// A metric of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Aggregate {
    pub(crate) metric: String,
    /// None: every filter that its tasks have.
    pub(crate) filters: Option<Vec<String>>,
    pub(crate) weight_by_size: bool,
}

impl Chosen {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Task(task) => &task.name,
            Self::Group(group) => &group.name,
        }
    }

    /// Every task in it, in order.
    #[must_use]
    pub fn tasks(&self) -> Vec<&Task> {
        match self {
            Self::Task(task) => vec![task],
            Self::Group(group) => group.members.iter().flat_map(Self::tasks).collect(),
        }
    }
}

impl Group {
    /// Whether it has means of its own; else it is a list of its members.
    #[must_use]
    pub fn has_means(&self) -> bool {
        !self.aggregates.is_empty()
    }

    /// Whether one of its means is a share of right answers.
    #[must_use]
    pub fn has_score(&self) -> bool {
        let tasks: Vec<&Task> = self.members.iter().flat_map(Chosen::tasks).collect();
        self.aggregates.iter().any(|aggregate| {
            is_score(&aggregate.metric)
                && tasks.iter().any(|task| task.has_metric(&aggregate.metric))
        })
    }
}

/// Where names are looked up.
#[derive(Clone, Debug, Default)]
pub struct Library {
    /// Task files beside the one that is being read.
    beside: Option<PathBuf>,
}

impl Library {
    /// The task, the group, or the tasks of the tag that a name stands for. A name that ends in `.yaml`
    /// or `.yml` is a file; any other is a built-in.
    ///
    /// # Errors
    /// If there is none of that name, or its definition is not understood.
    pub fn find(name: &str) -> Result<Vec<Chosen>, TaskError> {
        Self::default().look_up(name, 0)
    }

    /// Whether a name is that of a file.
    #[must_use]
    pub fn is_file_name(name: &str) -> bool {
        is_file_name(name)
    }

    /// Every built-in task and group.
    #[must_use]
    pub fn names() -> Vec<String> {
        builtin::names()
    }

    fn look_up(&self, name: &str, depth: usize) -> Result<Vec<Chosen>, TaskError> {
        if is_file_name(name) {
            let path = self.beside.as_deref().unwrap_or(Path::new("")).join(name);
            let library = Self { beside: Some(path.parent().unwrap_or(Path::new("")).to_owned()) };
            return Ok(vec![library.chosen(&source::read_file(&path)?, depth)?]);
        }
        if let Some(found) = self.look_beside(name, depth)? {
            return Ok(found);
        }
        if let Some(text) = builtin::text(name).filter(|_| !builtin::PARTS.contains(&name)) {
            let entries = source::parse(&text, &format!("built-in task {name}"), None, 0)?;
            return Ok(vec![Self::default().chosen(&entries, depth)?]);
        }
        let mut tagged = Vec::new();
        for other in builtin::names() {
            let Some(text) = builtin::text(&other) else { continue };
            let place = format!("built-in task {other}");
            let entries = source::parse(&text, &place, None, 0)?;
            if !is_group(&entries) {
                let task = Task::parse(&entries)?;
                if task.tags.iter().any(|tag| tag == name) {
                    tagged.push(Chosen::Task(Box::new(task)));
                }
            }
        }
        if !tagged.is_empty() {
            return Ok(tagged);
        }
        let names = builtin::names();
        let hint = match nearest(name, names.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`? A file is named with its `.yaml`"),
            None => "a task of your own is named by its file, with its `.yaml`".to_owned(),
        };
        Err(TaskError::Unknown { name: name.to_owned(), hint: Some(hint) })
    }

    /// The task, group or tag among the files beside the one that is read.
    fn look_beside(&self, name: &str, depth: usize) -> Result<Option<Vec<Chosen>>, TaskError> {
        let Some(folder) = &self.beside else { return Ok(None) };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let Ok(listed) = std::fs::read_dir(folder) else { return Ok(None) };
        let mut paths: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.to_str().is_some_and(is_file_name));
        paths.sort();
        let mut tagged = Vec::new();
        for path in paths {
            // A file of another kind that lies here is nobody's task.
            let Ok(entries) = source::read_file(&path) else { continue };
            let is_it = |key: &str| entries.get(key).and_then(Value::as_str) == Some(name);
            if is_it(if is_group(&entries) { "group" } else { "task" }) {
                return Ok(Some(vec![self.chosen(&entries, depth)?]));
            }
            let has_tag = match entries.get("tag") {
                Some(Value::String(tag)) => tag == name,
                Some(Value::Sequence(tags)) => tags.iter().any(|tag| tag.as_str() == Some(name)),
                _ => false,
            };
            if has_tag && !is_group(&entries) {
                tagged.push(self.chosen(&entries, depth)?);
            }
        }
        Ok((!tagged.is_empty()).then_some(tagged))
    }

    fn chosen(&self, entries: &Entries, depth: usize) -> Result<Chosen, TaskError> {
        match is_group(entries) {
            true => self.group(entries, depth).map(Chosen::Group),
            false => Task::parse(entries).map(|task| Chosen::Task(Box::new(task))),
        }
    }

    fn group(&self, entries: &Entries, depth: usize) -> Result<Group, TaskError> {
        const KEYS: [&str; 6] =
            ["aggregate_metric_list", "group", "group_alias", "metadata", "tag", "task"];
        if depth >= DEPTH_MAX {
            let problem = format!("groups are nested deeper than {DEPTH_MAX}");
            return Err(entries.error("task", problem, None));
        }
        if let Some(key) = entries.keys.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let problem = format!("`{key}` is not a key of a group that is understood");
            return Err(entries.error(key, problem, None));
        }
        let names: Vec<&str> = match entries.get("task") {
            Some(Value::String(name)) => vec![name],
            Some(Value::Sequence(names)) if names.iter().all(Value::is_string) => {
                names.iter().filter_map(Value::as_str).collect()
            }
            _ => {
                let problem = "`task` of a group is no list of names; give each task a file";
                return Err(entries.error("task", problem.to_owned(), None));
            }
        };
        let mut members = Vec::new();
        for name in names {
            members.extend(self.look_up(name, depth + 1)?);
        }
        Ok(Group {
            name: entries.text("group")?.unwrap_or_default().to_owned(),
            alias: entries.text("group_alias")?.map(str::to_owned),
            members,
            aggregates: aggregates(entries)?,
        })
    }
}

fn is_file_name(name: &str) -> bool {
    let extension = Path::new(name).extension();
    extension.is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn is_group(entries: &Entries) -> bool {
    entries.get("group").is_some()
}

fn aggregates(entries: &Entries) -> Result<Vec<Aggregate>, TaskError> {
    const KEY: &str = "aggregate_metric_list";
    let wrong = |problem: String| entries.error(KEY, problem, None);
    let list = match entries.get(KEY) {
        None => return Ok(Vec::new()),
        Some(Value::Sequence(list)) => list.clone(),
        Some(one) => vec![one.clone()],
    };
    let mut aggregates = Vec::new();
    for entry in &list {
        let mut aggregate =
            Aggregate { metric: String::new(), filters: None, weight_by_size: true };
        for (key, value) in entry.as_mapping().into_iter().flatten() {
            let is_read = match (key.as_str().unwrap_or_default(), value) {
                ("metric", Value::String(name)) => {
                    aggregate.metric.clone_from(name);
                    true
                }
                ("weight_by_size", Value::Bool(flag)) => {
                    aggregate.weight_by_size = *flag;
                    true
                }
                ("aggregation", Value::String(how)) => how == "mean",
                ("higher_is_better", Value::Bool(_)) | ("filter_list", Value::Null) => true,
                ("filter_list", Value::String(name)) => {
                    aggregate.filters = Some(vec![name.clone()]);
                    true
                }
                ("filter_list", Value::Sequence(names)) => {
                    let names: Option<Vec<String>> =
                        names.iter().map(|name| name.as_str().map(str::to_owned)).collect();
                    aggregate.filters = names;
                    aggregate.filters.is_some()
                }
                _ => false,
            };
            if !is_read {
                let (key, value) = (key.as_str().unwrap_or_default(), kind(value));
                return Err(wrong(format!("`{KEY}`: `{key}` is {value}, which is not understood")));
            }
        }
        if aggregate.metric.is_empty() {
            return Err(wrong(format!("an entry of `{KEY}` has no `metric`")));
        }
        aggregates.push(aggregate);
    }
    Ok(aggregates)
}

#[cfg(test)]
mod tests;
