//! Benchmarks as the lm-evaluation-harness defines them: tasks in its YAML, their prompts, filters,
//! metrics and standard errors.
//!
//! What it refuses to know: models, tokens, and where rows lie. Whoever runs a benchmark reads the rows
//! of a [`Task`]'s splits, makes a [`Prepared`] of them, asks a model its requests, and gives the
//! answers back for a [`TaskScores`].
//!
//! The harness whose numbers these are is version 0.4.13 (`tests/golden/benchmark.rs` compares). What
//! is not in the subset that is understood (Python functions, sampled answers, other metrics) is
//! refused by name.
//!
//! Invariants:
//! - the same rows and settings give the same requests, in the same order;
//! - a template cannot read files, the environment or the clock, and cannot run for long.
//!
//! Start reading at [`Library::find`], then [`Prepared::new`] and [`Prepared::scores`].
#![expect(
    clippy::cast_precision_loss,
    reason = "counts of rows, bytes and draws stay far below 2^53"
)]

mod builtin;
mod definition;
mod error;
mod fewshot;
mod filter;
mod library;
mod literal;
mod metric;
mod prepared;
mod preprocess;
mod prompt;
mod python_random;
mod scores;
mod source;
mod template;

pub use definition::{DataFiles, DataSource, Generation, OutputType, Task};
pub use error::TaskError;
pub use library::{Chosen, Group, Library};
pub use prepared::{Answer, Prepared, Request, Settings, Splits};
pub use scores::{GroupScores, MetricValue, Score, TaskScores, average};
pub use template::python_trim_end;
