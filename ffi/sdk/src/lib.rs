//! What a plugin's author implements: one trait a kind of plugin, over plain data.
//!
//! It refuses to know models, files and the host: what crosses the seam is numbers and borrowed
//! slices, and addresses of a [`device`], so that the same trait can be served by a table of C
//! functions. A crate becomes a plugin by [`export_plugin!`], and stays free of `unsafe`.
//! Start reading at [`trainer::Trainer`] or [`merge_method::MergeMethod`].

pub mod collective;
pub mod device;
pub mod evaluator;
pub mod export;
mod failed;
pub mod host;
pub mod kernels;
pub mod merge_method;
pub mod options;
pub mod quantizer;
pub mod random;
pub mod reward;
pub mod trainer;

pub use failed::{Cause, Failed};
pub use options::{OptionValue, OptionsError};
