//! What can go wrong on a device, with what was being done when it did.

use std::fmt::Write as _;
use std::sync::Arc;

use cudarc::driver::DriverError;
use forgelm_kernels_api::Failure;
use thiserror::Error;

use crate::call::{Argument, Grid};
use crate::libraries::Availability;

/// What the driver answered.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{name} ({code}): {text}")]
pub struct DriverFault {
    /// The number of the error.
    pub code: u32,
    /// Its name, as `CUDA_ERROR_ILLEGAL_ADDRESS`.
    pub name: String,
    /// The driver's own words.
    pub text: String,
}

impl From<DriverError> for DriverFault {
    fn from(error: DriverError) -> Self {
        let words = |text: Result<&std::ffi::CStr, DriverError>| match text {
            Ok(text) => text.to_string_lossy().into_owned(),
            Err(_) => "an error that the driver has no words for".to_owned(),
        };
        let (name, text) = (words(error.error_name()), words(error.error_string()));
        Self { code: error.0 as u32, name, text }
    }
}

impl DriverFault {
    /// Whether memory ran out.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        self.code == cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32
    }
}

/// A launch, for messages: what ran, and how it was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The op that asked for it.
    pub op: &'static str,
    /// Name of the kernel.
    pub kernel: Arc<str>,
    /// Blocks, threads and shared memory.
    pub grid: Grid,
    /// What it was given: addresses and sizes.
    pub arguments: Vec<Argument>,
}

impl std::fmt::Display for Launched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { op, kernel, grid: Grid { blocks: [x, y, z], threads, shared_bytes }, .. } = self;
        write!(
            f,
            "`{kernel}` of `{op}` ({x} x {y} x {z} blocks of {threads} threads, {shared_bytes} \
             bytes of shared memory, arguments"
        )?;
        for argument in &self.arguments {
            write!(f, " {argument}")?;
        }
        f.write_str(")")
    }
}

/// Why something on a device failed.
#[derive(Clone, Debug, Error)]
pub enum CudaError {
    /// There is nothing to work on.
    #[error("{0}")]
    NotUsable(Availability),
    /// There are fewer devices.
    #[error("there is no CUDA device {ordinal}: this machine has {n_devices}, counted from 0")]
    NoSuchDevice {
        /// What was asked for.
        ordinal: usize,
        /// What there is.
        n_devices: usize,
    },
    /// The device is older than what the kernels are written for.
    #[error(
        "{device} has compute capability {}.{}; the kernels need 8.0 (Ampere) or later",
        capability.0, capability.1
    )]
    TooOld {
        /// Which device.
        device: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// A call of the driver failed.
    #[error("{device}: {doing} failed")]
    Driver {
        /// Which device.
        device: String,
        /// What was being done.
        doing: &'static str,
        /// What the driver said.
        #[source]
        fault: DriverFault,
    },
    /// The driver refused a launch.
    #[error("{device}: {launched} was refused")]
    Launch {
        /// Which device.
        device: String,
        /// Which launch.
        launched: Box<Launched>,
        /// What the driver said.
        #[source]
        fault: DriverFault,
    },
    /// Something that was started earlier has failed: the driver does not say what.
    #[error("{device}: work before {doing} of `{op}` failed; {}", last_launches(launches))]
    Earlier {
        /// Which device.
        device: String,
        /// The op in which it was noticed.
        op: &'static str,
        /// What was being done when it was noticed.
        doing: &'static str,
        /// The last launches, the last one first.
        launches: Vec<Launched>,
        /// What the driver said.
        #[source]
        fault: Box<DriverFault>,
    },
    /// The memory of the device is full.
    #[error(
        "{device}: {bytes} bytes do not fit: {in_use} bytes of its {total} are in use here, {free} \
         are free"
    )]
    OutOfMemory {
        /// Which device.
        device: String,
        /// What was asked for.
        bytes: usize,
        /// What this program uses.
        in_use: usize,
        /// What is free, here and in the driver.
        free: usize,
        /// All memory of the device.
        total: usize,
    },
    /// No form of a kernel runs on this device.
    #[error("{device}: no kernel `{kernel}` for {architecture}: {}", reasons.join("; "))]
    NoImage {
        /// Which device.
        device: String,
        /// Which kernel.
        kernel: String,
        /// The architecture of the device.
        architecture: String,
        /// What was tried, and why each failed.
        reasons: Vec<String>,
    },
    /// Something that cannot be repeated was asked for while a graph is captured.
    #[error("{device}: {doing} in `{op}` cannot be captured: run the same calls once before")]
    NotCapturable {
        /// Which device.
        device: String,
        /// The op that did it.
        op: &'static str,
        /// What it did.
        doing: &'static str,
    },
}

fn last_launches(launches: &[Launched]) -> String {
    match launches {
        [] => "nothing had been launched".to_owned(),
        [one] => format!("the last launch was {one}"),
        [last, before @ ..] => {
            let mut text = format!("the last launches were {last}");
            for launch in before {
                let _ = write!(text, ", before it {launch}");
            }
            text
        }
    }
}

impl From<&CudaError> for Failure {
    fn from(error: &CudaError) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            let _ = write!(text, ": {inner}");
            cause = inner.source();
        }
        match error {
            CudaError::OutOfMemory { .. } => Self::out_of_memory(text),
            _ => Self::new(text),
        }
    }
}

/// Ends an op that cannot go on: a device that failed gives no results.
pub(crate) fn fail(error: &CudaError) -> ! {
    Failure::from(error).end()
}

/// [`fail`]s unless something went well.
pub(crate) fn must<T>(result: Result<T, CudaError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => fail(&error),
    }
}
