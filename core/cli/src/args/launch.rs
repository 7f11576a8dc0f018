//! `forgelm launch`.

use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;

/// `forgelm launch`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  forgelm launch --restarts 3 -- mpirun -np 4 forgelm --config run.yaml\n\n\
                  Exit code: that of the command; where it hung, that of the run"
)]
pub struct LaunchArgs {
    /// How often a run that lost a process is started again, from its newest checkpoint.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub restarts: u32,
    /// Seconds that the command may go on after the run has ended, and again after it was asked to end.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub grace: u32,
    /// Where the process of rank 0 says how its run ended; when not given, a file of this machine. Where that
    /// process is on another machine, a file that both see.
    #[arg(long, value_name = "FILE")]
    pub status: Option<PathBuf>,
    /// The launcher, and what it starts.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}
