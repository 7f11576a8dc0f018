//! Libraries in a process of their own: a crash or an endless loop of one is an error of the run.
//!
//! The worker is this program in another mode. It loads the library through the same loader, behind
//! the same ABI; arrays cross in shared memory, everything else in short messages over a socket. A
//! call is answered, or the worker is dead: by itself, or because it gave no sign of life for
//! [`WorkerProgram::silence_max`] and was killed. It has an environment of its own without the
//! program's secrets, its own process group, no core file, and dies with the program.
//!
//! Evaluators ask the program for scores and texts in the middle of a call. The program answers at
//! once, and its own time is no silence of the worker; nor is the time in which the worker's own kernels
//! work for the plugin.
//!
//! `client`, `process` and `instance` are the side of the program, `server` that of the worker,
//! `services` both ends of what evaluators ask, `wire` is what they say and `memory` what they share.

mod client;
mod instance;
mod memory;
mod process;
mod server;
mod services;
mod wire;

pub use server::serve;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct WorkerProgram {
    /// The program that calls [`serve`] when it is started with `args`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// How long a call may say nothing (no line, no progress, no answer) before its worker is
    /// killed.
    pub silence_max: Duration,
}

pub(crate) use client::load;
