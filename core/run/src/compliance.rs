//! The technical documentation of a run: what must be answered before it starts, and what the run
//! knows when it ends.
//!
//! The documents themselves are made in `core/evidence`, from plain data; here that data is gathered,
//! and every file that the config names as an answer is read before anything starts.

pub mod export;
pub(crate) mod facts;
pub(crate) mod governance;
mod sources;
mod strict;

pub(crate) use sources::NamedFiles;
pub(crate) use strict::acknowledged;
pub use strict::{Strictness, check};
