//! What a plugin's author implements: one trait a kind of plugin, over plain data.
//!
//! It refuses to know models, files, devices and the host: what crosses the seam is numbers and
//! borrowed slices, so that the same trait can be served by a table of C functions.
//! Start reading at [`trainer::Trainer`] or [`merge_method::MergeMethod`].

pub mod merge_method;
pub mod options;
pub mod trainer;

pub use options::{OptionValue, OptionsError};
