//! Status numbers and the error object.

use std::ffi::{CString, c_char};

use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use serde_json::{Value, json};

use crate::config::problem;

/// How a call ended: the numbers of the header, which never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// A config or an input is wrong.
    ConfigError = 1,
    /// The world refused.
    RuntimeError = 2,
    /// The model was judged not good enough.
    GateRejected = 3,
    /// The model is staged.
    AwaitingApproval = 4,
    /// A dialog was cancelled.
    Cancelled = 5,
    /// Something was compared and differs.
    IntegrityError = 6,
    /// Stopped, with a good checkpoint.
    Interrupted = 7,
    /// Refused for lack of memory or disk.
    NoResources = 8,
    /// A bug of ours, caught.
    Panic = 64,
    /// An argument that no caller may pass.
    InvalidArgument = 65,
    /// The object is at work.
    Busy = 66,
}

impl Status {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::Ok,
        Self::ConfigError,
        Self::RuntimeError,
        Self::GateRejected,
        Self::AwaitingApproval,
        Self::Cancelled,
        Self::IntegrityError,
        Self::Interrupted,
        Self::NoResources,
        Self::Panic,
        Self::InvalidArgument,
        Self::Busy,
    ];

    /// Its name for people.
    #[must_use]
    pub const fn name(self) -> &'static std::ffi::CStr {
        match self {
            Self::Ok => c"ok",
            Self::ConfigError => c"config error",
            Self::RuntimeError => c"runtime error",
            Self::GateRejected => c"gate rejected",
            Self::AwaitingApproval => c"awaiting approval",
            Self::Cancelled => c"cancelled",
            Self::IntegrityError => c"integrity error",
            Self::Interrupted => c"interrupted",
            Self::NoResources => c"no resources",
            Self::Panic => c"panic",
            Self::InvalidArgument => c"invalid argument",
            Self::Busy => c"busy",
        }
    }
}

/// Why a call failed, before it crosses the border.
#[derive(Debug)]
pub struct Failure {
    /// Its number.
    pub status: Status,
    /// What went wrong.
    pub message: String,
    /// What else is known of it, as a JSON object.
    pub details: Value,
}

impl Failure {
    /// A failure with its message.
    #[must_use]
    pub fn new(status: Status, message: &str) -> Self {
        Self { status, message: message.to_owned(), details: json!({}) }
    }

    /// An argument, by its name in the header, that is not what it must be.
    #[must_use]
    pub fn argument(name: &str, what: &str) -> Self {
        Self::new(Status::InvalidArgument, &format!("`{name}` {what}"))
    }
}

impl From<Exit> for Status {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Success => Self::Ok,
            Exit::Config => Self::ConfigError,
            Exit::Runtime => Self::RuntimeError,
            Exit::Gate => Self::GateRejected,
            Exit::AwaitingApproval => Self::AwaitingApproval,
            Exit::WizardCancelled => Self::Cancelled,
            Exit::Integrity => Self::IntegrityError,
            Exit::Interrupted => Self::Interrupted,
            Exit::Resources => Self::NoResources,
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let mut details = error.details();
        if let RunError::Config(problems) = &error {
            details["problems"] = problems.iter().map(problem).collect();
        }
        Self { status: error.exit().into(), message: error.chain(), details }
    }
}

/// The error object of the header.
#[expect(non_camel_case_types, reason = "its name in C")]
pub struct forgelm_error {
    status: Status,
    message: CString,
    details: CString,
}

impl From<Failure> for forgelm_error {
    fn from(failure: Failure) -> Self {
        let c = |text: String| CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
        let details = c(failure.details.to_string());
        Self { status: failure.status, message: c(failure.message), details }
    }
}

/// The name of a status.
#[unsafe(no_mangle)]
pub extern "C" fn forgelm_status_name(status: i32) -> *const c_char {
    let known = Status::ALL.into_iter().find(|known| *known as i32 == status);
    known.map_or(c"unknown status", Status::name).as_ptr()
}

/// The status of a failed call.
///
/// # Safety
/// `error` is NULL or an error of this library that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_error_status(error: *const forgelm_error) -> i32 {
    // SAFETY: NULL or valid by this function's contract.
    let error = unsafe { error.as_ref() };
    error.map_or(Status::InvalidArgument, |error| error.status) as i32
}

/// What went wrong; empty for NULL.
///
/// # Safety
/// `error` is NULL or an error of this library that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_error_message(error: *const forgelm_error) -> *const c_char {
    // SAFETY: NULL or valid by this function's contract.
    let error = unsafe { error.as_ref() };
    error.map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

/// What else is known, as JSON; `{}` for NULL.
///
/// # Safety
/// `error` is NULL or an error of this library that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_error_details(error: *const forgelm_error) -> *const c_char {
    // SAFETY: NULL or valid by this function's contract.
    let error = unsafe { error.as_ref() };
    error.map_or(c"{}".as_ptr(), |error| error.details.as_ptr())
}

/// Frees an error; NULL is fine.
///
/// # Safety
/// `error` is NULL or an error of this library that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_error_free(error: *mut forgelm_error) {
    if !error.is_null() {
        // SAFETY: every error handed out is made by `Box::into_raw` in `border::call`.
        drop(unsafe { Box::from_raw(error) });
    }
}
