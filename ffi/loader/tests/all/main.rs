//! Libraries as their authors build them: with the system's compilers, against the header alone.
//! Good ones are compared with the same method in Rust; bad ones are refused, or do no harm.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test, which writes files")]

mod batch;
mod build;
mod conformance;
mod good;
mod kernels;
mod misbehaves;
mod refused;
