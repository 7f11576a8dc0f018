//! Files: everything the engine writes, and every foreign byte it reads.
//!
//! It is the only crate that writes files ([`write`], [`lock`]), and the only one that reads
//! formats other people's programs wrote ([`safetensors`], [`gguf`], [`jsonl`], [`json`]). It
//! refuses to know what a model, a run or a manifest is.
//!
//! **Invariants:**
//! - a reader never panics, never allocates more than a small multiple of what the file holds, and
//!   never reads outside it, whatever the bytes (`tests/fuzz`);
//! - a file or folder under its final name is complete, at every moment, also when the machine
//!   stops (`tests/crash.rs`);
//! - names that come from a file are escaped before they reach a message.
//!
//! Errors carry the file first. [`Class`] says which exit code an error belongs to.

mod class;
mod counted;
pub mod disk;
pub mod gguf;
pub mod hash;
pub mod json;
pub mod jsonl;
pub mod lock;
pub mod map;
pub mod open;
pub mod pieces;
mod quoted;
pub mod safetensors;
pub mod sharded;
pub mod time;
mod view;
pub mod write;

pub use class::Class;
pub use disk::Disk;
pub use pieces::Pieces;
pub use quoted::Quoted;
pub use sharded::ShardedModel;
pub use time::{Clock, FixedClock, UtcTime};
pub use view::TensorView;
