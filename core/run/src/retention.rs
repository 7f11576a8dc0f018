//! How long what a run leaves may lie there: what is older than the config allows, and what holds all
//! of it back.
//!
//! ```text
//! the folder -> facts -> scan (pure) -> violations -> check-policy prints them
//!                                                 `-> enforce records them, warns, or refuses the run
//! ```
//!
//! It never removes anything: that is [`crate::erasure`], which a person asks for. Start reading at
//! [`scan::violations`].

pub mod enforce;
pub mod facts;
pub mod hold;
pub mod scan;

use crate::environment::Environment;
use crate::error::RunError;
use crate::exit::Exit;
use crate::plan::read_config;
use forgelm_config::{Retention, Run};
use scan::Violation;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Why something does not start, or is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// `retention.enforce: block_on_excess`.
    #[error(
        "{}: {} older than the config allows, and `retention.enforce` is `block_on_excess`; nothing was \
         started\n{}\n  hint: `forgelm purge --run-id` removes staged models and documents; the rest is yours to move or remove, and a \
         longer horizon under `retention` keeps it",
        .dir.display(),
        if .violations.len() == 1 { "1 thing is".to_owned() } else { format!("{} things are", .violations.len()) },
        .violations.iter().map(|v| format!("  {v}")).collect::<Vec<_>>().join("\n")
    )]
    Excess {
        /// The run's folder.
        dir: PathBuf,
        /// What is too old.
        violations: Vec<Violation>,
    },
    /// Something is to be removed from what is held.
    #[error("{reason}; nothing was removed\n  hint: {hint}")]
    Held {
        /// What holds it, and why.
        reason: String,
        /// How that ends.
        hint: &'static str,
    },
    /// A hold is placed or released that is there already, or is not.
    #[error("{}: {problem}", .path.display())]
    Hold {
        /// The file that says so.
        path: PathBuf,
        /// What is in the way.
        problem: String,
    },
    /// A remark that cannot be recorded.
    #[error("`{flag}`: {problem}")]
    Remark {
        /// The flag that gave it.
        flag: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl RetentionError {
    /// How the program ends.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Excess { .. } => Exit::Gate,
            Self::Held { .. } | Self::Hold { .. } | Self::Remark { .. } => Exit::Config,
        }
    }

    /// What a program is told beside the message.
    #[must_use]
    pub fn details(&self) -> Value {
        match self {
            Self::Excess { violations, .. } => json!({"violations": scan::to_json(violations)}),
            Self::Held { .. } | Self::Hold { .. } | Self::Remark { .. } => json!({}),
        }
    }
}

/// What `purge --check-policy` was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRequest {
    /// The config with the horizons.
    pub config: Option<PathBuf>,
    /// The run's folder; those of the config when not given.
    pub output_dir: Option<PathBuf>,
}

/// What `purge --check-policy` found.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyReport {
    /// The folder that was looked into; of a pipeline its own, the first of several.
    pub dir: PathBuf,
    /// What is older than its horizon.
    pub violations: Vec<Violation>,
    /// Why nothing is purged, where something holds it.
    pub held: Option<String>,
    /// Why nothing could be found.
    pub note: Option<&'static str>,
}

/// Looks for what is older than the config allows. Nothing is written or recorded.
///
/// # Errors
/// If the config cannot be used, or the folder cannot be read.
pub fn check_policy(request: &PolicyRequest, env: &Environment) -> Result<PolicyReport, RunError> {
    let run = request.config.as_deref().map(read_config).transpose()?.map(|loaded| loaded.run);
    let of_config = run.as_ref().map(places).unwrap_or_default();
    let first = of_config.first().map(|(_, dir)| dir.clone());
    let dir = request.output_dir.clone().or(first).unwrap_or_else(|| PathBuf::from("."));
    let held = hold::reason(&dir, run.as_ref())?;
    let nothing = |note| PolicyReport {
        dir: dir.clone(),
        violations: Vec::new(),
        held: held.clone(),
        note: Some(note),
    };
    let Some(run) = run else { return Ok(nothing("no --config: there are no horizons")) };
    let Some(retention) = &run.retention else {
        return Ok(nothing("the config has no `retention` section: there are no horizons"));
    };
    let mut violations = match &request.output_dir {
        Some(dir) => look(&run, retention, dir, env)?,
        None => Vec::new(),
    };
    for (run, dir) in of_config.iter().filter(|_| request.output_dir.is_none()) {
        violations.extend(look(run, run.retention.as_ref().unwrap_or(retention), dir, env)?);
    }
    Ok(PolicyReport { dir, violations, held, note: None })
}

/// The folders that a config is for, each with the run whose horizons hold there: of a pipeline its
/// own and those of its stages.
fn places(run: &Run) -> Vec<(Run, PathBuf)> {
    let place = |run: Run| {
        let dir = PathBuf::from(&run.training.output_dir);
        (run, dir)
    };
    match &run.pipeline {
        None => vec![place(run.clone())],
        Some(section) => {
            let own = (run.clone(), PathBuf::from(&section.output_dir));
            let stages = section.stages.iter().map(|stage| place(stage.run(run)));
            std::iter::once(own).chain(stages).collect()
        }
    }
}

/// What in `dir` is older than the horizons of `retention`.
fn look(
    run: &Run,
    retention: &Retention,
    dir: &Path,
    env: &Environment,
) -> Result<Vec<Violation>, RunError> {
    let found = facts::read(dir, &run.training.final_model_dir, &env.cache_dir)?;
    Ok(scan::violations(retention, &found, env.clock.utc()))
}

impl PolicyReport {
    /// The JSON document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut document = json!({
            "success": true,
            "violations": scan::to_json(&self.violations),
        });
        match self.note {
            Some(note) => document["note"] = json!(note),
            None => document["count"] = json!(self.violations.len()),
        }
        document["output_dir"] = json!(self.dir);
        document["legal_hold"] = json!(self.held);
        document
    }

    /// The lines for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for violation in &self.violations {
            let _ = writeln!(text, "{violation}");
        }
        let dir = self.dir.display();
        let _ = match (self.note, self.violations.len()) {
            (Some(note), _) => writeln!(text, "{dir}: {note}"),
            (None, 0) => writeln!(text, "{dir}: nothing is older than its horizon"),
            (None, 1) => {
                writeln!(text, "{dir}: 1 thing is older than its horizon; nothing was removed")
            }
            (None, n) => writeln!(
                text,
                "{dir}: {n} things are older than their horizons; nothing was removed"
            ),
        };
        if let Some(held) = &self.held {
            let _ = writeln!(text, "nothing may be purged: {held}");
        }
        text
    }
}
