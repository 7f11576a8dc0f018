//! Training: the loop body, the optimizer, the schedule, the state and its checkpoints.
//!
//! It refuses to know configs, files of data, terminals and evidence: it is handed sequences, a
//! plan of batches and a model, and returns reports. When a step, an evaluation or a checkpoint is
//! due is decided above, in core/run. Start reading at [`session::Session`].
//!
//! **Invariant:** a batch is a function of the step, and everything else that decides later bits
//! is in the adapter, the optimizer and [`state::State`]: a run that is killed and resumed ends with
//! the same bits (`tests/e2e/resume.rs`, `tests/sim`).

pub mod checkpoint;
pub mod feed;
pub mod flops;
pub mod ledger;
pub mod optimizer;
pub mod references;
pub mod rollouts;
pub mod schedule;
pub mod session;
pub mod state;
