//! The tasks that a config names, with their rows, and what a model scores on them.

use super::ask::{AskError, ask};
use super::error::BenchmarkError;
use super::n_together;
use super::report::{Named, Report, Scored};
use super::rows::RowFinder;
use crate::environment::Environment;
use crate::event::{Event, Observer};
use crate::plan::Plan;
use crate::subject::Subject;
use forgelm_benchmark::{
    Chosen, Group, GroupScores, Library, Prepared, Settings, Task, TaskScores,
};
use forgelm_config::Benchmark;
use forgelm_data::DataFile;
use std::collections::BTreeSet;
use std::path::Path;

/// Where the rows of a task came from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) task: String,
    /// `dataset_path` and `dataset_name`.
    pub(super) data_set: String,
    /// The commit of a data set of the hub.
    pub(super) revision: Option<String>,
    pub(super) files: Vec<DataFile>,
}

/// Tasks whose rows are read.
pub(super) struct Suite {
    /// The names of `evaluation.benchmark.tasks`.
    pub(super) names: Vec<String>,
    /// What has a score each, in the order of the config.
    asked: Vec<Asked>,
    /// Each task once, whatever groups it is in.
    tasks: Vec<Prepared>,
    pub(super) origins: Vec<Origin>,
    n_together: Option<usize>,
}

/// A task or a group that is named, or stands in a group without means of its own.
enum Asked {
    Task(String),
    Group(Group),
}

impl Asked {
    fn name(&self) -> &str {
        match self {
            Self::Task(name) => name,
            Self::Group(group) => &group.name,
        }
    }
}

impl Suite {
    /// Reads the tasks and their rows.
    ///
    /// # Errors
    /// If there is no such task, its rows cannot be had or do not fit it, or nothing has a score and
    /// `min_score` is set.
    pub(super) fn read(
        plan: &Plan,
        section: &Benchmark,
        offline: bool,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self, BenchmarkError> {
        let mut chosen = Vec::new();
        for name in &section.tasks {
            chosen.extend(Library::find(name)?);
        }
        let data_dir = section.data_dir.as_deref().map(Path::new);
        let finder = RowFinder { plan, offline, data_dir, env };
        let settings = Settings {
            limit: section.limit.map(whole),
            num_fewshot: section.num_fewshot.map(whole),
        };
        let mut suite = Self {
            names: section.tasks.clone(),
            asked: Vec::new(),
            tasks: Vec::new(),
            origins: Vec::new(),
            n_together: n_together(section),
        };
        for task in chosen.iter().flat_map(Chosen::tasks) {
            suite.add(task, &finder, settings, observer)?;
        }
        let has_score = chosen.iter().map(|chosen| suite.ask_for(chosen, observer)).fold(
            false,
            // Each of them is asked for.
            |any, has_score| any | has_score,
        );
        let mut seen = BTreeSet::new();
        if let Some(twice) = suite.asked.iter().find(|asked| !seen.insert(asked.name())) {
            let name = twice.name().to_owned();
            return Err(BenchmarkError::Twice { name });
        }
        if section.min_score.is_some() && !has_score {
            return Err(BenchmarkError::NoScore { tasks: section.tasks.clone() });
        }
        Ok(suite)
    }

    fn add(
        &mut self,
        task: &Task,
        finder: &RowFinder<'_>,
        settings: Settings,
        observer: &mut dyn Observer,
    ) -> Result<(), BenchmarkError> {
        if let Some(same) = self.tasks.iter().find(|other| other.task.name == task.name) {
            let name = task.name.clone();
            return match same.task.place == task.place {
                true => Ok(()),
                false => Err(BenchmarkError::Twice { name }),
            };
        }
        for note in &task.notes {
            observer.observe(&Event::Notice(format!("benchmark task `{}`: {note}", task.name)));
        }
        let needs_examples = task.n_examples(settings.num_fewshot) > 0;
        let rows = finder.read(task, needs_examples, observer)?;
        let name = task.data.name.iter().map(|name| format!(" ({name})"));
        self.origins.push(Origin {
            task: task.name.clone(),
            data_set: task.data.path.clone() + &name.collect::<String>(),
            revision: rows.revision,
            files: rows.files,
        });
        self.tasks.push(Prepared::new(task.clone(), rows.splits, settings)?);
        Ok(())
    }

    /// Puts it on the list of what is scored; says whether a score is among it.
    fn ask_for(&mut self, chosen: &Chosen, observer: &mut dyn Observer) -> bool {
        let (asked, has_score) = match chosen {
            Chosen::Task(task) => (Asked::Task(task.name.clone()), task.has_score()),
            Chosen::Group(group) if group.has_means() => {
                (Asked::Group(group.clone()), group.has_score())
            }
            Chosen::Group(group) => {
                let members = group.members.iter();
                let found: Vec<bool> =
                    members.map(|member| self.ask_for(member, observer)).collect();
                return found.contains(&true);
            }
        };
        if !has_score {
            let name = asked.name();
            let text = format!(
                "the benchmark task `{name}` has no score: none of its metrics is a share of right \
                 answers; it does not count in the average"
            );
            observer.observe(&Event::Warning(text));
        }
        self.asked.push(asked);
        has_score
    }

    /// Rows of all tasks.
    pub(super) fn n_rows(&self) -> usize {
        self.tasks.iter().map(Prepared::n_documents).sum()
    }

    /// Asks a model everything.
    pub(super) fn measure(
        &self,
        subject: &Subject<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Report, AskError> {
        let mut tasks: Vec<TaskScores> = Vec::with_capacity(self.tasks.len());
        for prepared in &self.tasks {
            let n = prepared.n_documents();
            observer.observe(&Event::Detail(format!("{}: {n} rows", prepared.task.name)));
            let answers = ask(subject, prepared, self.n_together)?;
            tasks.push(prepared.scores(&answers));
        }
        let task = |name: &str| tasks.iter().find(|scores| scores.name == name);
        let mut named = Vec::new();
        for asked in &self.asked {
            match asked {
                Asked::Task(name) => named.extend(task(name).map(Named::of_task)),
                Asked::Group(group) => {
                    let of = group.members.iter().flat_map(Chosen::tasks);
                    let of: Vec<&TaskScores> = of.filter_map(|of| task(&of.name)).collect();
                    named.push(Named::of_group(&GroupScores::of(group, &of)));
                }
            }
        }
        let names = self.names.clone();
        Ok(Report { names, named, tasks: tasks.iter().map(Scored::of).collect() })
    }
}

/// Counts of a config are below 2^53.
fn whole(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
