//! Why a benchmark cannot be run.

use crate::exit::Exit;
use forgelm_benchmark::TaskError;
use forgelm_data::DataError;
use forgelm_hub::HubError;
use std::path::PathBuf;

/// Why a benchmark cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum BenchmarkError {
    /// `--benchmark-only` without tasks.
    #[error(
        "`evaluation.benchmark.tasks` is empty; expected at least one task for `--benchmark-only`\n  \
         hint: `tasks: [arc_easy, hellaswag]`"
    )]
    NoTasks,
    /// A task is not understood, or its rows do not fit it.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The files of a task's data cannot be told.
    #[error("benchmark task `{task}`: {problem}\n  hint: {hint}")]
    Files {
        /// The task.
        task: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// The data set of a task is not on this machine and cannot be fetched.
    #[error(
        "benchmark task `{task}`: the data set `{data_set}` is not here\n  hint: place its files as \
         `DIR/{data_set}/` and name DIR in `evaluation.benchmark.data_dir`"
    )]
    NotHere {
        /// The task.
        task: String,
        /// Its data set.
        data_set: String,
        /// Why it was not fetched.
        source: Box<HubError>,
    },
    /// Rows cannot be read.
    #[error(transparent)]
    Rows(#[from] DataError),
    /// There is a limit and nothing to compare with it.
    #[error(
        "`evaluation.benchmark.min_score` is set, and no task of `{}` has a score\n  hint: a score is \
         `acc_norm`, `acc`, `exact_match` or `acc_bytes`; a perplexity is none", .tasks.join(", ")
    )]
    NoScore {
        /// The tasks.
        tasks: Vec<String>,
    },
    /// A file of the results lies where something else is.
    #[error("`{}` is no folder; expected one for the benchmark's results", .path.display())]
    OutputDir {
        /// `evaluation.benchmark.output_dir`.
        path: PathBuf,
    },
    /// Two tasks or groups have one name.
    #[error("two benchmark tasks are named `{name}`; expected one of each name")]
    Twice {
        /// The name.
        name: String,
    },
    /// A request to stop came before all was asked.
    #[error("stopped as asked; the benchmark has no result")]
    Stopped,
    /// There is no memory for it.
    #[error("the benchmark: {reason}\n  hint: a smaller `evaluation.benchmark.batch_size`")]
    NoRoom {
        /// What there is no memory for.
        reason: String,
    },
    /// The measurement itself failed.
    #[error("the benchmark could not be measured: {reason}")]
    NotMeasured {
        /// Why.
        reason: String,
    },
}

impl BenchmarkError {
    /// The exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoTasks
            | Self::Files { .. }
            | Self::NoScore { .. }
            | Self::OutputDir { .. }
            | Self::Twice { .. } => Exit::Config,
            Self::Stopped => Exit::Interrupted,
            Self::NoRoom { .. } => Exit::Resources,
            Self::Task(error) => error.class().into(),
            Self::NotHere { source, .. } => source.class().into(),
            Self::Rows(error) => error.class().into(),
            Self::NotMeasured { .. } => Exit::Runtime,
        }
    }
}
