//! From a data file to packed batches.
//!
//! ```text
//! file -> rows -> records -> sequences -> plan -> packed batch
//!         rows    record     render       plan    batch
//! ```
//!
//! What it refuses to know: models, devices, optimizers, and the wall clock. A row that cannot be used is
//! found before step 1 and named with file, line and field; nothing is coerced.
//!
//! Invariants:
//! - the batch of a step is a pure function of (seed, step): no iterator has a state to save
//!   (test `a_batch_is_a_function_of_the_step`);
//! - cutting a step into micro-batches changes neither its sequences nor any key of a row
//!   (tests `a_step_has_the_same_sequences_however_it_is_cut`, `row_keys_do_not_depend_on_the_cut`);
//! - rendering gives the same sequences on any number of threads.
//!
//! Start reading at [`open`], then [`Renderer`], [`Plan`] and [`pack`].

#![expect(
    clippy::result_large_err,
    reason = "a problem carries its place, and there is one at most for a row"
)]

mod batch;
mod clean;
mod dataset;
mod packing;
mod plan;
mod problem;
mod record;
mod render;
mod rows;
mod split;

pub use batch::{PackedBatch, PackedSequence, pack};
pub use clean::clean_text;
pub use dataset::{DataFile, Dataset, open};
pub use packing::best_fit_decreasing;
pub use plan::{Plan, PlanSettings, evaluation_batches};
pub use problem::{Code, DataError, DataProblem, Problems};
pub use record::{Layout, Record, RecordKind};
pub use render::{RenderError, RenderSettings, Rendered, Renderer, Sequence, TokenStatistics};
pub use split::{SPLIT_SEED, Split, split};
