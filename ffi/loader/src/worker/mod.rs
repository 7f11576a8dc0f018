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
//! Only a worker that is started to try plugins on a device has one, of its own: see `on_device`.
//!
//! `client`, `process`, `instance` and `on_device` are the side of the program, `server` that of the
//! worker, `services` both ends of what evaluators ask, `wire` is what they say and `memory` what they
//! share.

mod client;
mod instance;
mod memory;
mod on_device;
mod process;
mod server;
mod services;
mod wire;

pub use client::InWorker;
pub use server::serve;

use forgelm_kernels_api::Ops;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Opens the device of a worker, or says why there is none; the same one each time.
pub type OpenDevice = dyn Fn() -> Result<Arc<dyn Ops>, String> + Send + Sync;

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
pub(crate) use on_device::try_on_device;
