//! What launchers tell the processes that they start.

use crate::environment::Environment;
use crate::error::RunError;

/// Number of processes: Open MPI, MPICH and others with its process manager, Slurm.
const VARIABLES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Processes that a launcher started, and the variable that says so.
pub(super) fn launched(env: &Environment) -> Option<(usize, &'static str)> {
    VARIABLES.into_iter().find_map(|name| Some(((env.variable)(name)?.parse().ok()?, name)))
}

/// This process among them, where there is a launcher.
const RANKS: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"];

/// Whether this is the process that will lead, as far as the launcher says; without one it is.
#[must_use]
pub fn is_first(env: &Environment) -> bool {
    RANKS.into_iter().find_map(|name| (env.variable)(name)).is_none_or(|rank| rank == "0")
}

/// This process among those of its host: Open MPI, MPICH's process manager, Slurm.
const LOCAL_RANKS: [&str; 3] = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];

/// Which of the processes of its host this one is; without a launcher, the first.
pub(crate) fn local_rank(env: &Environment) -> usize {
    let rank = LOCAL_RANKS.into_iter().find_map(|name| (env.variable)(name)?.parse().ok());
    rank.unwrap_or_default()
}

/// What runs in one process is not started by a launcher in several: they would write into one folder.
///
/// # Errors
/// If it was.
pub fn refuse_many(env: &Environment, why: &str) -> Result<(), RunError> {
    match launched(env) {
        Some((n_ranks, variable)) if n_ranks > 1 => {
            Err(RunError::ManyProcesses { n_ranks, variable, why: why.to_owned() })
        }
        Some(_) | None => Ok(()),
    }
}
