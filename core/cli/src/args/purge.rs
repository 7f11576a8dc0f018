//! The command line of `forgelm purge`.

use clap::{ArgGroup, Args, ValueEnum};
use std::path::PathBuf;

/// `forgelm purge`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(false))]
pub struct PurgeArgs {
    /// Take the row with this `id` or `row_id` out of the data.
    #[arg(long, value_name = "ID", group = "what", requires = "corpus")]
    pub row_id: Option<String>,
    /// Remove what this run left.
    #[arg(long, value_name = "RUN", group = "what")]
    pub run_id: Option<String>,
    /// Say what lies in a run's folder for longer than the config allows; nothing is removed or recorded.
    #[arg(long, group = "what")]
    pub check_policy: bool,
    /// Hold everything in the folder back from purging, for this reason.
    #[arg(long, value_name = "REASON", group = "what")]
    pub hold: Option<String>,
    /// End the hold, for this reason.
    #[arg(long, value_name = "REASON", group = "what")]
    pub release: Option<String>,
    /// The data that the row is in: one file of JSON lines.
    #[arg(long, value_name = "FILE")]
    pub corpus: Option<PathBuf>,
    /// Whether several rows with the identifier may go.
    #[arg(long, value_enum, default_value_t = RowMatches::One)]
    pub row_matches: RowMatches,
    /// What of the run: the staged model, or its documents. Audit logs are never removed.
    #[arg(long, value_enum)]
    pub kind: Option<PurgeKind>,
    /// Why; recorded with personal data masked.
    #[arg(long, value_name = "TEXT")]
    pub justification: Option<String>,
    /// Say and record what would be removed, and remove nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// With `--row-id`: remove tokens of the data from the cache too.
    #[arg(long, requires = "row_id")]
    pub erase_caches: bool,
    /// With `--row-id`: look for runs that trained on the data in this folder too; several with one
    /// `--search` each.
    #[arg(long, value_name = "DIR", requires = "row_id")]
    pub search: Vec<PathBuf>,
    /// The private key that signs what was removed; without it, as in a run.
    #[arg(long, value_name = "KEY")]
    pub signing_key: Option<PathBuf>,
    /// The run's folder, whose log has the record. Without it: the folder of the data; with
    /// `--check-policy` the config's `training.output_dir`; else the folder that one is in.
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// The config with the `retention` section.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How many rows may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RowMatches {
    /// Exactly one.
    One,
    /// All that match.
    All,
}

/// What of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PurgeKind {
    /// A staged model.
    Staging,
    /// Documents and their signatures.
    Artefacts,
}
