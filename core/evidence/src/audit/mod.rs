//! The audit log: an append-only chain of JSON lines, and its verifier.
//!
//! `<out>/audit_log.jsonl` holds one object per line. Every line names the SHA-256 of the line
//! before it, so that nothing in the middle can change; the genesis manifest beside it pins the
//! first line, and a signed checkpoint ([`crate::checkpoint`]) pins the last. With a secret, each
//! line also carries an HMAC.
//!
//! **Invariants** (tests in `log.rs` and `verify.rs`):
//! - a record is on disk before the action that needs it goes on;
//! - any number of processes appending at once make one valid chain;
//! - a torn last line is repaired only by a recorded event that keeps the torn bytes.

pub mod entries;
pub mod event;
mod genesis;
pub mod head;
mod line;
pub mod log;
pub mod operator;
mod recovery;
pub(crate) mod scan;
pub mod verify;

/// File name of the log, at the top of the output folder.
pub const LOG_FILE: &str = "audit_log.jsonl";
/// File name of the genesis manifest beside the log.
pub const GENESIS_FILE: &str = "audit_log.jsonl.manifest.json";
/// `prev_hash` of the first line.
pub const GENESIS: &str = "genesis";
/// Longest line that is written or read, in bytes.
pub const LINE_BYTES_MAX: usize = 16 << 20;
