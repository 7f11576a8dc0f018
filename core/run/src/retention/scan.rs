//! What is older than its horizon: a function of the log's entries, the files, and the time.
//!
//! An age counts from what the log says of the thing itself, never from the first line of a log that
//! is older than the thing. A staged model's days begin when it is rejected: one that waits for a
//! decision is not overdue.

use forgelm_artifact::UtcTime;
use forgelm_config::Retention;
use forgelm_evidence::audit::entries::AuditEntry;
use serde_json::{Value, json};
use std::fmt;
use std::path::PathBuf;

/// What something in a run's folder is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The audit log.
    AuditLog,
    /// A staged model, of this run where its name or a file in it says so.
    Staging {
        /// The run.
        run_id: Option<String>,
        /// Whether the folder's name has the run.
        is_in_name: bool,
    },
    /// The folder of documents and signatures.
    ComplianceBundle,
    /// The report of a data audit.
    DataAuditReport,
    /// What data was made from: a folder or file of this name.
    RawDocuments(&'static str),
    /// The checkpoint of a step.
    Checkpoint(u64),
    /// Tokens of the run's data, in the cache.
    TokenCache,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AuditLog => f.write_str("audit_log"),
            Self::Staging { run_id: Some(run_id), is_in_name: true } => {
                write!(f, "staging_dir[{run_id}]")
            }
            Self::Staging { .. } => f.write_str("staging_dir"),
            Self::ComplianceBundle => f.write_str("compliance_bundle"),
            Self::DataAuditReport => f.write_str("data_audit_report"),
            Self::RawDocuments(name) => write!(f, "raw_documents[{name}]"),
            Self::Checkpoint(step) => write!(f, "checkpoint[{step}]"),
            Self::TokenCache => f.write_str("token_cache"),
        }
    }
}

/// Something that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artefact {
    /// What.
    pub kind: Kind,
    /// Where.
    pub path: PathBuf,
    /// When the file system says that it was last written; of raw documents the oldest.
    pub modified: UtcTime,
}

/// Everything that a scan needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// What the audit log says, in its order.
    pub entries: Vec<AuditEntry>,
    /// What is there.
    pub artefacts: Vec<Artefact>,
}

/// Where an age is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgeSource {
    /// An event of the audit log.
    Audit,
    /// The file system.
    Mtime,
}

impl AgeSource {
    /// The word in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Mtime => "mtime",
        }
    }
}

/// Something older than its horizon.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// What it is.
    pub kind: String,
    /// Where it is.
    pub path: String,
    /// Its age in days, to a tenth.
    pub age_days: f64,
    /// The most that is allowed.
    pub horizon_days: u64,
    /// Where the age is known from.
    pub age_source: AgeSource,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "retention violation kind={} path={} age_days={:.1} horizon_days={} age_source={}",
            self.kind,
            self.path,
            self.age_days,
            self.horizon_days,
            self.age_source.as_str()
        )
    }
}

/// As reports list them.
#[must_use]
pub fn to_json(violations: &[Violation]) -> Value {
    let entry = |v: &Violation| {
        json!({
            "artefact_kind": v.kind,
            "path": v.path,
            "age_days": v.age_days,
            "horizon_days": v.horizon_days,
            "age_source": v.age_source.as_str(),
        })
    };
    violations.iter().map(entry).collect()
}

const MICROSECONDS_PER_DAY: f64 = 86_400e6;

/// What is older than its horizon at `now`, in the order of the facts. A horizon of 0 days is none.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "days of a calendar and of a config")]
pub fn violations(retention: &Retention, facts: &Facts, now: UtcTime) -> Vec<Violation> {
    let mut found = Vec::new();
    for artefact in &facts.artefacts {
        let horizon_days = horizon(retention, &artefact.kind);
        let Some((since, age_source)) = since(artefact, &facts.entries) else { continue };
        let age = (now.0.saturating_sub(since.0)) as f64 / MICROSECONDS_PER_DAY;
        if horizon_days > 0 && age > horizon_days as f64 {
            found.push(Violation {
                kind: artefact.kind.to_string(),
                path: artefact.path.display().to_string(),
                age_days: (age * 10.0).round() / 10.0,
                horizon_days,
                age_source,
            });
        }
    }
    found
}

fn horizon(retention: &Retention, kind: &Kind) -> u64 {
    match kind {
        Kind::AuditLog => retention.audit_log_retention_days,
        Kind::Staging { .. } => retention.staging_ttl_days,
        Kind::ComplianceBundle | Kind::DataAuditReport | Kind::Checkpoint(_) => {
            retention.ephemeral_artefact_retention_days
        }
        Kind::RawDocuments(_) | Kind::TokenCache => retention.raw_documents_retention_days,
    }
}

/// When the days of something begin; `None` while they have not begun.
fn since(artefact: &Artefact, entries: &[AuditEntry]) -> Option<(UtcTime, AgeSource)> {
    let by_mtime = Some((artefact.modified, AgeSource::Mtime));
    let last = |event: &str| entries.iter().rev().find(|entry| entry.event == event);
    let by_audit = |entry: &AuditEntry| Some((entry.time, AgeSource::Audit));
    match &artefact.kind {
        Kind::AuditLog => entries.first().map_or(by_mtime, by_audit),
        Kind::ComplianceBundle => last("compliance.artifacts_exported").map_or(by_mtime, by_audit),
        Kind::Staging { run_id: Some(run_id), .. } => staged(run_id, entries, by_mtime),
        Kind::Staging { run_id: None, .. }
        | Kind::DataAuditReport
        | Kind::RawDocuments(_)
        | Kind::Checkpoint(_)
        | Kind::TokenCache => by_mtime,
    }
}

fn staged(
    run_id: &str,
    entries: &[AuditEntry],
    by_mtime: Option<(UtcTime, AgeSource)>,
) -> Option<(UtcTime, AgeSource)> {
    let of_run = || entries.iter().rev().filter(|entry| entry.run_id == run_id);
    let decision = of_run().find(|entry| entry.event.starts_with("human_approval."));
    match decision.map(|entry| (entry.time, entry.event.as_str())) {
        Some((time, "human_approval.rejected" | "human_approval.expired")) => {
            Some((time, AgeSource::Audit))
        }
        // It waits for a decision; or it was approved, and the folder is on its way.
        Some(_) => None,
        None => {
            // Commands that only looked at it or tried to remove it make it no younger.
            let is_of_the_run = |entry: &&AuditEntry| {
                !["data.", "retention."].iter().any(|prefix| entry.event.starts_with(prefix))
            };
            let last = of_run().find(is_of_the_run);
            last.map_or(by_mtime, |entry| Some((entry.time, AgeSource::Audit)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AgeSource, Artefact, Facts, Kind, violations};
    use forgelm_artifact::UtcTime;
    use forgelm_config::Retention;
    use forgelm_evidence::audit::entries::AuditEntry;
    use std::path::PathBuf;

    const DAY: i64 = 86_400_000_000;

    fn entry(day: i64, run_id: &str, event: &str) -> AuditEntry {
        AuditEntry { time: UtcTime(day * DAY), run_id: run_id.to_owned(), event: event.to_owned() }
    }

    fn artefact(kind: Kind, day: i64) -> Artefact {
        Artefact { kind, path: PathBuf::from("out/x"), modified: UtcTime(day * DAY) }
    }

    fn staging(run_id: &str) -> Kind {
        Kind::Staging { run_id: Some(run_id.to_owned()), is_in_name: true }
    }

    /// Kind, age and source of what is found at `day`.
    fn found(facts: &Facts, retention: &Retention, day: i64) -> Vec<(String, f64, AgeSource)> {
        let found = violations(retention, facts, UtcTime(day * DAY));
        found.into_iter().map(|v| (v.kind, v.age_days, v.age_source)).collect()
    }

    #[test]
    fn a_staged_model_is_overdue_only_days_after_its_rejection() {
        let retention = Retention::default();
        let mut facts = Facts {
            entries: vec![
                entry(0, "fg-a", "training.started"),
                entry(1, "fg-a", "human_approval.required"),
            ],
            artefacts: vec![artefact(staging("fg-a"), 1)],
        };
        assert_eq!(found(&facts, &retention, 400), [], "it waits for a decision");
        facts.entries.push(entry(100, "fg-a", "human_approval.rejected"));
        facts.entries.push(entry(106, "fg-a", "data.erasure_requested"));
        assert_eq!(found(&facts, &retention, 107), [], "exactly seven days are no excess");
        let expected = [("staging_dir[fg-a]".to_owned(), 8.0, AgeSource::Audit)];
        assert_eq!(found(&facts, &retention, 108), expected);
    }

    #[test]
    fn without_a_decision_in_the_log_the_last_event_of_the_run_counts_then_the_file() {
        let retention = Retention::default();
        let facts = Facts {
            entries: vec![
                entry(0, "fg-old", "training.started"),
                entry(50, "fg-a", "pipeline.completed"),
                entry(58, "fg-a", "data.erasure_requested"),
            ],
            artefacts: vec![
                artefact(staging("fg-a"), 0),
                artefact(Kind::Staging { run_id: None, is_in_name: false }, 40),
            ],
        };
        let expected = [
            ("staging_dir[fg-a]".to_owned(), 9.0, AgeSource::Audit),
            ("staging_dir".to_owned(), 19.0, AgeSource::Mtime),
        ];
        assert_eq!(found(&facts, &retention, 59), expected);
    }

    #[test]
    fn a_fresh_bundle_in_an_old_folder_is_fresh() {
        let retention = Retention::default();
        let facts = Facts {
            entries: vec![
                entry(0, "fg-old", "compliance.artifacts_exported"),
                entry(1999, "fg-new", "compliance.artifacts_exported"),
            ],
            artefacts: vec![artefact(Kind::ComplianceBundle, 0), artefact(Kind::AuditLog, 1999)],
        };
        // The log itself is as old as its first line: 2000 days, and 1825 are allowed.
        let expected = [("audit_log".to_owned(), 2000.0, AgeSource::Audit)];
        assert_eq!(found(&facts, &retention, 2000), expected);
        let bundle = ("compliance_bundle".to_owned(), 91.0, AgeSource::Audit);
        assert_eq!(found(&facts, &retention, 2090)[0], bundle);
    }

    #[test]
    fn each_kind_has_its_horizon_and_zero_is_for_ever() {
        let all = [
            (Kind::AuditLog, 1825),
            (Kind::Staging { run_id: None, is_in_name: false }, 7),
            (Kind::ComplianceBundle, 90),
            (Kind::DataAuditReport, 90),
            (Kind::Checkpoint(8), 90),
            (Kind::RawDocuments("raw_documents"), 90),
            (Kind::TokenCache, 90),
        ];
        let forever = Retention {
            audit_log_retention_days: 0,
            staging_ttl_days: 0,
            ephemeral_artefact_retention_days: 0,
            raw_documents_retention_days: 0,
            ..Retention::default()
        };
        for (kind, horizon) in all {
            let facts = Facts { entries: vec![], artefacts: vec![artefact(kind, 0)] };
            assert_eq!(found(&facts, &Retention::default(), horizon), []);
            let over = found(&facts, &Retention::default(), horizon + 1);
            assert_eq!(over.len(), 1, "{facts:?}");
            assert_eq!(over[0].2, AgeSource::Mtime);
            assert_eq!(found(&facts, &forever, 1_000_000), []);
        }
        // A clock that was set back makes nothing old.
        let facts = Facts { entries: vec![], artefacts: vec![artefact(Kind::AuditLog, 5000)] };
        assert_eq!(found(&facts, &Retention::default(), 0), []);
    }
}
