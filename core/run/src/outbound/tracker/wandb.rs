//! An offline run of Weights & Biases below `wandb/`: nobody is contacted, and `wandb sync` sends it
//! whenever its owner wants.
//!
//! A step has one row there, so that a row waits until the next step begins: what ends in the middle
//! lacks its last one, which `metrics.jsonl` has.

use super::Row;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::Started;
use crate::exit::Exit;
use crate::plan::Plan;
use crate::training::Outcome;
use forgelm_artifact::UtcTime;
use forgelm_artifact::write::{self, RecordFile, WriteError};
use forgelm_config::resolved_json;
use forgelm_evidence::documents::shown_config;
use forgelm_outbound::tensorboard::tag;
use forgelm_outbound::wandb::{About, Log};
use std::path::PathBuf;

const PROJECT: &str = "WANDB_PROJECT";
const ENTITY: &str = "WANDB_ENTITY";
const GROUP: &str = "WANDB_RUN_GROUP";
/// The project where no other is named.
const DEFAULT_PROJECT: &str = "forgelm";
/// Sections of the config that the run shows.
const SECTIONS: [&str; 4] = ["model", "lora", "training", "data"];

/// A run in a folder of its own.
pub(super) struct Wandb {
    /// Where the folders of runs are.
    root: PathBuf,
    about: About,
    /// The folder of this run, once there is one.
    dir: Option<PathBuf>,
    open: Option<(RecordFile, Log)>,
    waiting: Option<Row>,
}

impl Wandb {
    pub(super) fn new(plan: &Plan, env: &Environment) -> Self {
        let config = shown_config(&resolved_json(&plan.run));
        let shown = |section: &&str| Some(((*section).to_owned(), config.get(*section)?.clone()));
        let variable = |name: &str| (env.variable)(name).filter(|text| !text.is_empty());
        let about = About {
            entity: variable(ENTITY).unwrap_or_default(),
            project: variable(PROJECT).unwrap_or_else(|| DEFAULT_PROJECT.to_owned()),
            group: variable(GROUP).unwrap_or_default(),
            name: plan.run.name(),
            producer: format!("forgelm {}", crate::dossier::VERSION),
            config: SECTIONS.iter().filter_map(shown).collect(),
            ..About::default()
        };
        let root = plan.output.root().join("wandb");
        Self { root, about, dir: None, open: None, waiting: None }
    }

    /// Begins a run of this process. One that continues another is a run of its own: the service cannot
    /// take back what was sent of the other one.
    pub(super) fn start(&mut self, started: &Started, now: UtcTime) -> Option<String> {
        let run_id = started.run_id.clone();
        let dir = self.root.join(format!("offline-run-{}-{run_id}", moment(now)));
        let about = About { run_id, started_us: now.0, ..self.about.clone() };
        let begun = begin(&dir, &about);
        self.dir = Some(dir);
        match begun {
            Ok(open) => {
                self.open = Some(open);
                None
            }
            Err(error) => Some(format!("wandb: nothing is written: {error}")),
        }
    }

    pub(super) fn put(&mut self, row: &Row) -> Option<String> {
        match &mut self.waiting {
            Some(waiting) if row.step <= waiting.step => {
                for (name, value) in &row.values {
                    waiting.values.retain(|(known, _)| known != name);
                    waiting.values.push((name.clone(), *value));
                }
                waiting.at = row.at;
                None
            }
            _ => {
                let problem = self.flush();
                self.waiting = Some(row.clone());
                problem
            }
        }
    }

    fn flush(&mut self) -> Option<String> {
        let row = self.waiting.take()?;
        let (_, log) = self.open.as_mut()?;
        let values: Vec<(String, f64)> =
            row.values.iter().map(|(name, value)| (tag(name), *value)).collect();
        let bytes = log.row(row.at.0, row.step, &values);
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Option<String> {
        let (file, _) = self.open.as_mut()?;
        let error = file.append(bytes).err()?;
        // What follows would lie where no reader looks for it.
        self.open = None;
        Some(format!("wandb: nothing more is written: {error}"))
    }

    pub(super) fn finish(&mut self, result: &Result<Outcome, RunError>) -> Option<String> {
        let exit = match result {
            Ok(Outcome::Interrupted { .. }) => Exit::Interrupted,
            Ok(_) => Exit::Success,
            Err(error) => error.exit(),
        };
        let problem = self.flush();
        let (_, log) = self.open.as_mut()?;
        let bytes = log.exit(exit.code());
        let problem = problem.or_else(|| self.write(&bytes));
        let (mut file, _) = self.open.take()?;
        let unsynced = file.sync().err();
        let unsynced = unsynced
            .map(|error| format!("wandb: the file of the run may not be complete: {error}"));
        problem.or(unsynced)
    }

    /// How to send it.
    pub(super) fn notice(&self) -> Option<String> {
        let dir = self.dir.as_ref().filter(|dir| dir.exists())?;
        Some(format!("wandb: an offline run; `wandb sync {}` sends it", dir.display()))
    }
}

fn begin(dir: &std::path::Path, about: &About) -> Result<(RecordFile, Log), WriteError> {
    write::create_dir_all_durable(dir)?;
    let mut file = RecordFile::create(&dir.join(format!("run-{}.wandb", about.run_id)))?;
    let (log, head) = Log::begin(about);
    file.append(&head)?;
    Ok((file, log))
}

/// `20261201_150256`, as the client names folders.
fn moment(now: UtcTime) -> String {
    let digits: String = now.to_text_seconds().chars().filter(char::is_ascii_digit).collect();
    let (date, time) = digits.split_at(digits.len().min(8));
    format!("{date}_{}", time.get(..6).unwrap_or(time))
}

#[cfg(test)]
mod tests {
    use super::moment;
    use forgelm_artifact::UtcTime;

    #[test]
    fn a_moment_is_written_as_the_client_names_folders() {
        assert_eq!(moment(UtcTime(1_700_000_001_500_000)), "20231114_221321");
    }
}
