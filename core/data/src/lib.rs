//! From a data file to packed batches.
//!
//! ```text
//! files -> rows -> records -> sequences -> token cache -> mixture, split -> plan -> packed batch
//! find     source  record     render       store          mix, split        plan    batch
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
//! Start reading at [`prepare`], then [`Renderer`], [`Plan`] and [`pack`].

#![expect(
    clippy::result_large_err,
    reason = "a problem carries its place, and there is one at most for a row"
)]

mod answers;
mod audit;
mod batch;
mod cached;
mod clean;
mod dataset;
mod description;
mod fields;
mod find;
mod lint;
mod mix;
mod packing;
mod parallel;
mod plan;
mod prepare;
mod preview;
mod problem;
mod record;
mod render;
mod rows;
mod sequences;
mod shape;
mod source;
mod split;
mod splits;
mod store;

pub use forgelm_sdk::trainer::Role;

pub use audit::{
    AuditFinding, AuditReport, AuditSettings, AuditedFile, Dedup, FindingKind, Gate, Overlap,
    QualityFlag, SplitReport, TextLength, audit,
};
pub use batch::{PackedBatch, PackedSequence, ScoredRows, pack, pack_scoring};
pub use cached::{CachedTokens, cached_tokens};
pub use clean::clean_text;
pub use dataset::{
    DataFile, Dataset, check_first_rows, fingerprint, open, read_columns, read_record,
};
pub use find::{SourceFiles, find_files, is_hub_id};
pub use lint::{Finding, LintCode, LintReport, lint};
pub use mix::Mixed;
pub use packing::best_fit_decreasing;
pub use plan::{Plan, PlanSettings, evaluation_batches, mismatched_partners};
pub use prepare::{PrepareRequest, Prepared, prepare};
pub use preview::{Piece, PreviewRow, PreviewSequence, preview};
pub use problem::{Code, DataError, DataProblem, Problems};
pub use record::{Content, Layout, Record, RecordKind};
pub use render::{RenderError, RenderSettings, Rendered, Renderer, Sequence, TokenStatistics};
pub use rows::{Row, list_data_files, read_rows};
pub use sequences::Sequences;
pub use shape::Shape;
pub use split::{SPLIT_SEED, Split, split};
pub use splits::{SplitSheet, describe_splits};
pub use store::{StoreError, TokenStore};
