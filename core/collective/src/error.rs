//! Why processes could not speak to each other.

use forgelm_sdk::Failed;

/// Why the processes of a run could not do something together. There is no way on then: a run ends,
/// and is started again from its last checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// The collective could not be opened.
    #[error("the processes of the run did not find each other: {0}")]
    Open(String),
    /// It failed, or a process gave no sign.
    #[error("rank {rank} of {n_ranks}: {source}")]
    Failed {
        /// This process.
        rank: usize,
        /// Of how many.
        n_ranks: usize,
        /// What went wrong.
        source: Failed,
    },
    /// It failed before, or the group has ended.
    #[error("the processes of the run no longer speak to each other")]
    Ended,
    /// What came is not what this program sends: a bug, or another program.
    #[error("rank {rank} was sent something that it does not understand: {what}")]
    Nonsense {
        /// This process.
        rank: usize,
        /// What came.
        what: String,
    },
}
