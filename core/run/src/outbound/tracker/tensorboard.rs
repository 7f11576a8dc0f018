//! Event files below `runs/`, which TensorBoard reads while the run works.

use super::{Row, folder_name};
use crate::event::Started;
use crate::plan::Plan;
use forgelm_artifact::UtcTime;
use forgelm_artifact::write::{self, RecordFile};
use forgelm_outbound::tensorboard::{restart, scalars, tag, version};
use std::path::PathBuf;

/// How the names of event files begin, before the second in which they were begun.
const PREFIX: &str = "events.out.tfevents.";

/// Where the event files of a run are.
pub(super) struct Board {
    dir: PathBuf,
    file: Option<RecordFile>,
}

impl Board {
    pub(super) fn new(plan: &Plan) -> Self {
        let dir = plan.output.root().join("runs").join(folder_name(&plan.run.name()));
        Self { dir, file: None }
    }

    /// Begins a file of this process. Where a run is continued, what another process wrote beyond the
    /// checkpoint is dropped by whoever reads the folder.
    pub(super) fn start(&mut self, started: &Started, now: UtcTime) -> Option<String> {
        let seconds = seconds(now);
        #[expect(clippy::cast_possible_truncation, reason = "whole seconds")]
        let whole = (seconds as i64).max(self.latest().map_or(0, |latest| latest + 1));
        let name = format!("{PREFIX}{whole:010}.{}", started.run_id);
        let mut head = version(seconds);
        if started.n_steps_done > 0 {
            head.extend(restart(seconds, started.n_steps_done + 1));
        }
        let begun = write::create_dir_all_durable(&self.dir)
            .and_then(|()| RecordFile::create(&self.dir.join(name)))
            .and_then(|mut file| file.append(&head).map(|()| file));
        match begun {
            Ok(file) => {
                self.file = Some(file);
                None
            }
            Err(error) => Some(format!("tensorboard: nothing is written: {error}")),
        }
    }

    /// The second in the name of the last file that is there. Readers take files in the order of their
    /// names, so that one that goes on has a later one, also within the same second.
    fn latest(&self) -> Option<i64> {
        let names =
            std::fs::read_dir(&self.dir).ok()?.filter_map(|entry| Some(entry.ok()?.file_name()));
        let second = |name: std::ffi::OsString| {
            name.to_str()?.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
        };
        names.filter_map(second).max()
    }

    pub(super) fn put(&mut self, row: &Row) -> Option<String> {
        let file = self.file.as_mut()?;
        let values: Vec<(String, f64)> =
            row.values.iter().map(|(name, value)| (tag(name), *value)).collect();
        let error = file.append(&scalars(seconds(row.at), row.step, &values)).err()?;
        // Once is enough: the disk is full, or the folder is gone.
        self.file = None;
        Some(format!("tensorboard: nothing more is written: {error}"))
    }

    pub(super) fn finish(&mut self) -> Option<String> {
        let error = self.file.take()?.sync().err()?;
        Some(format!("tensorboard: the event file may not be complete: {error}"))
    }
}

/// Seconds since 1970.
#[expect(clippy::cast_precision_loss, reason = "microseconds of this millennium fit")]
fn seconds(at: UtcTime) -> f64 {
    at.0 as f64 / 1e6
}
