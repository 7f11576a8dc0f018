//! `forgelm comm`.

use clap::Subcommand;
use std::path::PathBuf;

/// `forgelm comm …`.
#[derive(Debug, Subcommand)]
pub enum CommCommand {
    /// Compile the library that joins processes by MPI, with this machine's own compiler for it
    Build {
        /// The compiler of the MPI whose mpirun or srun starts the processes.
        #[arg(long, value_name = "PATH", default_value = "mpicc")]
        mpicc: PathBuf,
        /// Where sources and library go; when not given, `collectives` in the folder of your own
        /// plugins, where runs of several processes look for it.
        #[arg(long, value_name = "FOLDER")]
        output: Option<PathBuf>,
    },
}
