//! Why a pipeline did not begin or go on.

use crate::exit::Exit;
use forgelm_evidence::Class;
use forgelm_evidence::pipeline::state::StateError;
use std::path::PathBuf;

/// See the variants.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The stages cannot be run as they are configured: every reason.
    #[error("{} of the pipeline; nothing was started", listed(.0))]
    Plan(Vec<String>),
    /// Flags that do not go together, or not with this config.
    #[error("{0}")]
    Flags(String),
    /// No stage has this name.
    #[error("{flag} {name}: there is no such stage; expected one of {names}")]
    NoSuchStage {
        /// The flag.
        flag: &'static str,
        /// As given.
        name: String,
        /// Those that are there.
        names: String,
    },
    /// The folder has a pipeline.
    #[error(
        "{}: it has a pipeline\n  hint: continue it with `--resume`, or choose another \
         `pipeline.output_dir`: nothing in this one is ever overwritten", .dir.display()
    )]
    Occupied {
        /// The folder.
        dir: PathBuf,
    },
    /// There is nothing to go on from.
    #[error("{}: {source}; {flag} goes on from one that is there", .dir.display())]
    State {
        /// The folder.
        dir: PathBuf,
        /// What asked for it.
        flag: &'static str,
        /// What is wrong with it.
        #[source]
        source: StateError,
    },
    /// Other stages, or in another order.
    #[error(
        "the pipeline in {} has other stages than the config, and is never continued with them\n  the \
         pipeline: {then}\n  the config:   {now}\n  hint: another `pipeline.output_dir` begins anew",
        .dir.display()
    )]
    Topology {
        /// The folder.
        dir: PathBuf,
        /// Names of the pipeline's stages.
        then: String,
        /// Names of the config's.
        now: String,
    },
    /// The config's bytes are not those with which the pipeline began.
    #[error(
        "the config changed since the pipeline began:\n{}\n  hint: continue with that config, or add \
         `--force-resume`, which is recorded", .changes.iter().map(|c| format!("  {c}")).collect::<Vec<_>>().join("\n")
    )]
    ConfigChanged {
        /// Each key, with both values.
        changes: Vec<String>,
    },
    /// The stage before has no model.
    #[error(
        "stage `{stage}` begins at the model of `{before}`, and there is none in {}\n  hint: run \
         `{before}` first, or name a model with `--input-model`", .path.display()
    )]
    NoInput {
        /// The stage.
        stage: String,
        /// The one before.
        before: String,
        /// Where its model would be.
        path: PathBuf,
    },
    /// A stage before the one that was asked for has no model that may be used.
    #[error(
        "--resume-from {requested}: the model of stage `{blocking}` is {status}\n  hint: {hint}"
    )]
    ResumeRefused {
        /// As given.
        requested: String,
        /// The stage in the way.
        blocking: String,
        /// What it is.
        status: &'static str,
        /// What to do.
        hint: String,
    },
    /// What a stage left is not what it signed, or cannot be compared with it.
    #[error("stage `{stage}`: its evidence does not verify\n{}", .lines.join("\n"))]
    Evidence {
        /// The stage.
        stage: String,
        /// What the verifier says.
        lines: Vec<String>,
        /// Which exit code this belongs to.
        class: Class,
    },
}

impl PipelineError {
    /// How the program ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::State { source: StateError::Unreadable(_), .. } => Exit::Runtime,
            Self::Plan(_)
            | Self::Flags(_)
            | Self::NoSuchStage { .. }
            | Self::Occupied { .. }
            | Self::State { source: StateError::Missing | StateError::Malformed(_), .. }
            | Self::Topology { .. }
            | Self::ConfigChanged { .. }
            | Self::NoInput { .. }
            | Self::ResumeRefused { .. } => Exit::Config,
            Self::Evidence { class, .. } => match class {
                Class::Accepted => Exit::Success,
                Class::NotCompared => Exit::Config,
                Class::Unreadable => Exit::Runtime,
                Class::Different => Exit::Integrity,
            },
        }
    }
}

/// Problems, one a line, and how many they are.
fn listed(problems: &[String]) -> String {
    let n = match problems.len() {
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    format!("{}\n{n}", problems.join("\n"))
}
