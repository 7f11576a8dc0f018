//! `retention:` how long artifacts of a run are kept.

use crate::declare::{choice, section};

section! {
    /// How long artifacts of a run are kept; 0 means for ever.
    Retention {
        /// Days for the audit log.
        audit_log_retention_days: u64 = 1825, min(0.0), max(1_000_000.0);
        /// Days for a staged model, from its rejection on.
        staging_ttl_days: u64 = 7, min(0.0), max(1_000_000.0);
        /// Days for compliance bundles, data audit reports and checkpoints.
        ephemeral_artefact_retention_days: u64 = 90, min(0.0), max(1_000_000.0);
        /// Days for raw documents, and for tokens of the run's data in the cache.
        raw_documents_retention_days: u64 = 90, min(0.0), max(1_000_000.0);
        /// What happens when something is older, before the run starts.
        enforce: RetentionEnforce = RetentionEnforce::LogOnly;
        /// Nothing of the run is purged while this is true: a dispute or an inquiry needs it.
        legal_hold: bool = false;
    }
}

choice! {
    /// What happens when something is older than its horizon.
    RetentionEnforce {
        /// An entry in the audit log.
        LogOnly = "log_only",
        /// The entry, and a warning.
        WarnOnExcess = "warn_on_excess",
        /// The run does not start: exit 3.
        BlockOnExcess = "block_on_excess",
    }
}
