//! The C border: what `ffi/include/forgelm.h` declares, and nothing else.
//!
//! The header is written by hand and is the reference; a test compares the names. This crate
//! refuses to decide anything: it turns pointers into borrowed Rust values, calls, and turns the
//! result into a status and out-pointers that stay untouched on failure. Panics end here.
//!
//! Start reading at [`mod@border`]; one file for each subject of the header.

#![expect(unsafe_code, reason = "a C border works on raw pointers")]

pub mod border;
pub mod cancel;
pub mod config;
pub mod engine;
pub mod error;
pub mod handle;
pub mod model;
mod options;
pub mod place;
pub mod plugin;
pub mod sign;
pub mod tensor;
pub mod train;
pub mod verify;
pub mod version;
pub mod work;
