//! What `forgelm launch` and the runs that it starts tell each other, and whether a run is started again.
//!
//! The process of rank 0 leaves a [`Status`] in a file that [`STATUS`] names: where its run is, and how it
//! ended. A launcher that hangs although the run is over, and a run that lost a process, are told from
//! others by it. Nothing here starts or ends a process.

use crate::distributed::is_first;
use crate::environment::Environment;
use crate::error::RunError;
use crate::exit::Exit;
use crate::plan::Plan;
use forgelm_artifact::write;
use forgelm_collective::CollectiveError;
use forgelm_train::checkpoint;
use forgelm_train::session::AllocateError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The variable with the file of the status.
pub const STATUS: &str = "FORGELM_LAUNCH_STATUS";
/// The variable that is 1 where a run is started again, and goes on from its newest checkpoint.
pub const RESUME: &str = "FORGELM_LAUNCH_RESUME";

/// Longest wait before a run is started again.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What rank 0 says of its run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The run's folder, in which its checkpoints are.
    pub run_dir: PathBuf,
    /// How it ended, once it has.
    pub exit_code: Option<u8>,
    /// Whether it ended because another process gave no sign.
    pub is_lost: bool,
}

impl Status {
    /// The one of a file; `None` where no run has begun.
    #[must_use]
    pub fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    }
}

/// The status as rank 0 keeps it.
#[derive(Debug)]
pub struct Report {
    file: PathBuf,
    status: Status,
}

impl Report {
    /// A run begins; `None` where nobody asks, or another process of the run tells.
    ///
    /// # Errors
    /// If the status cannot be written: it is on another machine, perhaps.
    pub fn begin(plan: &Plan, env: &Environment) -> Result<Option<Self>, RunError> {
        let Some(file) = (env.variable)(STATUS).filter(|_| is_first(env)) else { return Ok(None) };
        let run_dir = plan.output.root();
        let run_dir = std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.to_owned());
        let status = Status { run_dir, ..Status::default() };
        let report = Self { file: file.into(), status };
        report.write()?;
        Ok(Some(report))
    }

    /// It failed, in the middle perhaps: whether because of another process.
    pub fn failed(&mut self, error: &RunError) {
        self.status.is_lost |= is_lost(error);
    }

    /// It has ended.
    ///
    /// # Errors
    /// If the status cannot be written.
    pub fn end(&mut self, exit: Exit) -> Result<(), RunError> {
        self.status.exit_code = Some(exit.code());
        self.write()
    }

    fn write(&self) -> Result<(), RunError> {
        let text = serde_json::to_vec(&self.status).expect("plain data is serializable");
        Ok(write::atomic(&self.file, &text)?)
    }
}

fn is_lost(error: &RunError) -> bool {
    match error {
        RunError::OnRank { source, .. } => is_lost(source),
        RunError::Collective(error) | RunError::Allocate(AllocateError::Collective(error)) => {
            matches!(error, CollectiveError::Failed { .. } | CollectiveError::Ended)
        }
        _ => false,
    }
}

/// The step of the newest good checkpoint.
#[must_use]
pub fn newest_step(run_dir: &Path) -> Option<u64> {
    let (newest, _) = checkpoint::newest(run_dir).ok()?;
    Some(checkpoint::read_state(&newest?).ok()?.global_step)
}

/// How a command that was to run a job has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// Its exit code; 128 and the number of a signal.
    pub code: u8,
    /// What rank 0 said.
    pub status: Option<&'a Status>,
    /// The newest checkpoint that is there.
    pub step: Option<u64>,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Stop(Why),
    /// It is started again, after a while.
    Again(Duration),
}

/// Why a run is not started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It did what it was to do.
    Done,
    /// It ended by itself: a restart would end in the same way.
    ByItself,
    /// Rank 0 never said that a run begins.
    NotBegun,
    /// As often as was allowed.
    UsedUp(u32),
    /// The last start came no further than the one before.
    NoProgress(Option<u64>),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::ByItself => f.write_str("the run ended by itself, which a restart does not mend"),
            Self::NotBegun => f.write_str("no run had begun, which a restart does not mend"),
            Self::UsedUp(0) => f.write_str("it is started again only where `--restarts` says so"),
            Self::UsedUp(n) => write!(f, "it was started again {n} times, as `--restarts` allows"),
            Self::NoProgress(step) => {
                let newest = step.map_or("there is none".to_owned(), |n| format!("step {n}"));
                write!(
                    f,
                    "no checkpoint was made since the start before this one ({newest}): what stops it \
                     is no machine that failed once"
                )
            }
        }
    }
}

/// Counts starts.
#[derive(Debug)]
pub struct Restarts {
    n_max: u32,
    n_done: u32,
    /// The newest checkpoint when the run was last started again.
    step: Option<Option<u64>>,
}

impl Restarts {
    /// At most so many.
    #[must_use]
    pub fn at_most(n_max: u32) -> Self {
        Self { n_max, n_done: 0, step: None }
    }

    /// How often the run was started again.
    #[must_use]
    pub fn n_done(&self) -> u32 {
        self.n_done
    }

    /// What follows an end.
    pub fn after(&mut self, ended: Ended<'_>) -> Next {
        if self.n_max == 0 && ended.code != 0 {
            return Next::Stop(Why::UsedUp(0));
        }
        match ended.status {
            _ if ended.code == 0 => return Next::Stop(Why::Done),
            None => return Next::Stop(Why::NotBegun),
            Some(Status { exit_code: Some(_), is_lost: false, .. }) => {
                return Next::Stop(Why::ByItself);
            }
            // Rank 0 was ended before it could say how: by the launcher, or with its machine. Another
            // rank may have ended the job with a code of ours.
            Some(Status { exit_code: None, .. }) if is_of_a_run(ended.code) => {
                return Next::Stop(Why::ByItself);
            }
            Some(Status { exit_code: Some(_) | None, .. }) => {}
        }
        if self.step == Some(ended.step) {
            return Next::Stop(Why::NoProgress(ended.step));
        }
        if self.n_done == self.n_max {
            return Next::Stop(Why::UsedUp(self.n_done));
        }
        self.step = Some(ended.step);
        self.n_done += 1;
        let wait = 1_u64.checked_shl(self.n_done - 1).unwrap_or(u64::MAX);
        Next::Again(Duration::from_secs(wait).min(WAIT_MAX))
    }
}

/// Whether a run of ours ends so because of what was asked of it; [`Exit::Runtime`] is what a lost process
/// gives too.
fn is_of_a_run(code: u8) -> bool {
    let exit = Exit::of_code(i32::from(code));
    exit.code() == code && exit != Exit::Runtime
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(exit_code: Option<u8>, is_lost: bool) -> Status {
        Status { run_dir: "/out".into(), exit_code, is_lost }
    }

    fn after(restarts: &mut Restarts, code: u8, of: Status, step: Option<u64>) -> Next {
        restarts.after(Ended { code, status: Some(&of), step })
    }

    #[test]
    fn only_what_a_restart_can_mend_is_started_again() {
        let next = |code, of: Option<Status>| {
            let ended = Ended { code, status: of.as_ref(), step: Some(4) };
            Restarts::at_most(3).after(ended)
        };
        let again = Next::Again(Duration::from_secs(1));
        let (done, itself) = (Next::Stop(Why::Done), Next::Stop(Why::ByItself));
        assert_eq!(next(0, Some(status(Some(0), false))), done);
        assert_eq!(next(2, Some(status(Some(2), true))), again, "rank 0 misses another");
        assert_eq!(next(2, Some(status(Some(2), false))), itself, "its disk is full");
        assert_eq!(next(137, Some(status(None, false))), again, "killed by signal 9");
        assert_eq!(next(2, Some(status(None, false))), again, "another rank misses rank 0");
        for code in [1, 3, 4, 5, 6, 7, 8] {
            assert_eq!(next(code, Some(status(Some(code), false))), itself, "{code}");
            assert_eq!(next(code, Some(status(None, false))), itself, "{code} of another rank");
        }
        assert_eq!(next(137, None), Next::Stop(Why::NotBegun));
        assert_eq!(next(127, None), Next::Stop(Why::NotBegun));
    }

    #[test]
    fn starts_come_later_and_later_and_end_where_nothing_is_gained() {
        let mut restarts = Restarts::at_most(8);
        for (i, seconds) in [1, 2, 4, 8, 16, 32, 60, 60].into_iter().enumerate() {
            let next = after(&mut restarts, 137, status(None, false), Some(i as u64));
            assert_eq!(next, Next::Again(Duration::from_secs(seconds)), "{i}");
        }
        let next = after(&mut restarts, 137, status(None, false), Some(9));
        assert_eq!(next, Next::Stop(Why::UsedUp(8)));

        for step in [None, Some(4)] {
            let mut restarts = Restarts::at_most(8);
            let lost = || status(Some(2), true);
            assert!(matches!(after(&mut restarts, 2, lost(), step), Next::Again(_)));
            let next = after(&mut restarts, 2, lost(), step);
            assert_eq!(next, Next::Stop(Why::NoProgress(step)), "the first start counts too");
        }
        let next = after(&mut Restarts::at_most(0), 137, status(None, false), None);
        assert_eq!(next, Next::Stop(Why::UsedUp(0)));
    }
}
