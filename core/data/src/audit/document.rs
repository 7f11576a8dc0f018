//! The report as a document, its notes, and what its gates say.

use std::collections::BTreeMap;
use std::path::Path;

use forgelm_privacy::{PiiKind, SecretKind, Severity};
use serde_json::{Map, Value, json};

use super::{AuditReport, AuditSettings, Dedup, FindingKind, Overlap, SplitReport, minhash};

/// Whether something that was found fails an audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// Findings that fail it.
    pub critical_total: u64,
    /// Their kinds.
    pub critical_types: Vec<&'static str>,
    /// Findings that do not.
    pub advisory_total: u64,
    /// Their kinds.
    pub advisory_types: Vec<&'static str>,
    /// Whether a failure was allowed.
    pub is_allowed: bool,
}

impl Gate {
    /// Any secret fails.
    #[must_use]
    pub fn of_secrets(report: &AuditReport, is_allowed: bool) -> Gate {
        let counts = report.secrets.iter().map(|(&kind, &n)| (FindingKind::Secret(kind), n));
        Gate::of(counts, is_allowed)
    }

    /// Any number of a bank account or a card fails.
    #[must_use]
    pub fn of_pii(report: &AuditReport, is_allowed: bool) -> Gate {
        let counts = report.pii.iter().map(|(&kind, &n)| (FindingKind::Pii(kind), n));
        Gate::of(counts, is_allowed)
    }

    fn of(counts: impl Iterator<Item = (FindingKind, u64)>, is_allowed: bool) -> Gate {
        let (critical, advisory): (Vec<_>, Vec<_>) =
            counts.partition(|(kind, _)| kind.severity() == Severity::Critical);
        let total = |counts: &[(FindingKind, u64)]| counts.iter().map(|(_, n)| n).sum();
        let names =
            |counts: &[(FindingKind, u64)]| counts.iter().map(|(kind, _)| kind.name()).collect();
        Gate {
            critical_total: total(&critical),
            critical_types: names(&critical),
            advisory_total: total(&advisory),
            advisory_types: names(&advisory),
            is_allowed,
        }
    }

    /// `passed`, `failed`, or `suppressed` where a failure was allowed.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match (self.critical_total, self.is_allowed) {
            (0, _) => "passed",
            (_, true) => "suppressed",
            (_, false) => "failed",
        }
    }

    /// True if the audit fails by it.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.critical_total > 0 && !self.is_allowed
    }
}

impl AuditReport {
    /// Rows that are JSON, of all splits.
    #[must_use]
    pub fn n_samples(&self) -> u64 {
        self.splits.iter().map(|(_, split)| split.n_samples).sum()
    }

    /// Counts of personal data by kind and by severity.
    #[must_use]
    pub fn pii_severity(&self) -> Value {
        let mut by_tier: Map<String, Value> =
            Severity::ALL.iter().map(|tier| (tier.name().to_owned(), json!(0))).collect();
        let mut by_type = Map::new();
        for (kind, n) in &self.pii {
            let tier = kind.severity().name();
            by_tier[tier] = json!(by_tier[tier].as_u64().unwrap_or(0) + n);
            by_type.insert(kind.name().to_owned(), json!({"count": n, "tier": tier}));
        }
        let worst = self.pii.keys().map(|kind| kind.severity()).min();
        json!({
            "total": self.pii.values().sum::<u64>(),
            "by_tier": by_tier,
            "by_type": by_type,
            "worst_tier": worst.map(Severity::name),
        })
    }

    /// Counts of personal data.
    #[must_use]
    pub fn pii_summary(&self) -> Value {
        counts(&self.pii, PiiKind::name)
    }

    /// Counts of secrets.
    #[must_use]
    pub fn secrets_summary(&self) -> Value {
        counts(&self.secrets, SecretKind::name)
    }

    /// How many texts have a doubt; empty if none was judged.
    #[must_use]
    pub fn quality_summary(&self) -> Value {
        if !self.settings.quality_filter {
            return json!({});
        }
        let (mut n_flagged, mut n_evaluated) = (0, 0);
        let mut by_check = BTreeMap::new();
        for (_, split) in &self.splits {
            n_flagged += split.n_flagged;
            n_evaluated += split.n_evaluated;
            for (flag, n) in &split.flags {
                *by_check.entry(*flag).or_insert(0) += n;
            }
        }
        json!({
            "samples_flagged": n_flagged,
            "samples_evaluated": n_evaluated,
            "by_check": counts(&by_check, super::QualityFlag::name),
            "overall_quality_score": rounded(1.0 - ratio(n_flagged, n_evaluated)),
        })
    }

    /// Pairs of near-duplicates in each split.
    #[must_use]
    pub fn pairs_per_split(&self) -> Value {
        let pairs = self
            .splits
            .iter()
            .map(|(name, split)| (name.clone(), json!(split.near_duplicate_pairs)));
        Value::Object(pairs.collect())
    }

    /// Pairs of near-duplicates, and how they were looked for.
    #[must_use]
    pub fn near_duplicate_summary(&self) -> Value {
        let mut summary = self.settings.dedup.document();
        summary["pairs_per_split"] = self.pairs_per_split();
        summary
    }

    /// The first findings, each with its place.
    #[must_use]
    pub fn findings_list(&self) -> Value {
        let finding = |finding: &super::AuditFinding| {
            json!({
                "file": finding.file,
                "line": finding.line,
                "type": finding.kind.name(),
                "tier": finding.kind.severity().name(),
            })
        };
        Value::Array(self.findings.iter().map(finding).collect())
    }

    /// The whole report. `input` is the path as it was given, `path` the absolute one.
    #[must_use]
    pub fn document(&self, input: &str, path: &Path, generated_at: &str) -> Value {
        let splits = self
            .splits
            .iter()
            .map(|(name, split)| (name.clone(), split_document(split, &self.settings)));
        let inputs = self.inputs.iter().map(|file| {
            let (sha256, size) = match &file.read {
                Some((sha256, n_bytes)) => (Some(sha256.as_str()), Some(n_bytes)),
                None => (None, None),
            };
            json!({"path": file.path, "split": file.split, "sha256": sha256, "size_bytes": size})
        });
        let pairs: Map<_, _> = self.overlaps.iter().map(overlap_document).collect();
        let mut overlap = self.settings.dedup.document();
        overlap["pairs"] = Value::Object(pairs);
        json!({
            "generated_at": generated_at,
            "forgelm_version": env!("CARGO_PKG_VERSION"),
            "source_path": path,
            "source_input": input,
            "parameters": {
                "dedup": self.settings.dedup.document(),
                "token_hash": "xxh3-64, seed 0",
                "quality_filter": self.settings.quality_filter,
            },
            "inputs": inputs.collect::<Vec<_>>(),
            "total_samples": self.n_samples(),
            "splits": splits.collect::<Map<_, _>>(),
            "cross_split_overlap": overlap,
            "pii_summary": self.pii_summary(),
            "pii_severity": self.pii_severity(),
            "secrets_summary": self.secrets_summary(),
            "findings": self.findings_list(),
            "near_duplicate_summary": self.near_duplicate_summary(),
            "quality_summary": self.quality_summary(),
            "notes": self.notes,
        })
    }
}

impl Dedup {
    /// The method and what it was given.
    fn document(self) -> Value {
        match self {
            Dedup::Simhash { distance } => {
                json!({"method": "simhash", "hamming_threshold": distance})
            }
            Dedup::Minhash { similarity } => json!({
                "method": "minhash",
                "jaccard_threshold": similarity,
                "num_perm": minhash::N_PERMUTATIONS,
                "seed": minhash::SEED,
            }),
        }
    }
}

impl Overlap {
    /// As the report calls it: `train__test`.
    #[must_use]
    pub fn name(&self) -> String {
        self.splits.join("__")
    }

    /// The larger of the two shares of leaked rows.
    #[must_use]
    pub fn worst_rate(&self) -> f64 {
        let rate = |i: usize| rounded(ratio(self.leaked[i], self.rows[i]));
        rate(0).max(rate(1))
    }
}

fn overlap_document(overlap: &Overlap) -> (String, Value) {
    let mut pair = Map::new();
    for (i, name) in overlap.splits.iter().enumerate() {
        pair.insert(format!("leaked_rows_in_{name}"), json!(overlap.leaked[i]));
        let rate = rounded(ratio(overlap.leaked[i], overlap.rows[i]));
        pair.insert(format!("leak_rate_{name}"), json!(rate));
    }
    (overlap.name(), Value::Object(pair))
}

fn split_document(split: &SplitReport, settings: &AuditSettings) -> Value {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    if let Some((path, error)) = &split.error {
        put("error", json!(error));
        put("path", json!(path));
    }
    put("sample_count", json!(split.n_samples));
    if !split.columns.is_empty() {
        put("columns", json!(split.columns));
    }
    if !split.drift_columns.is_empty() {
        put("schema_drift_columns", json!(split.drift_columns));
    }
    if split.n_non_objects > 0 {
        put("non_object_rows", json!(split.n_non_objects));
    }
    if let Some(length) = &split.text_length {
        put(
            "text_length",
            json!({
                "min": length.min, "max": length.max, "mean": length.mean,
                "p50": length.p50, "p95": length.p95,
            }),
        );
    }
    if split.n_samples > 0 {
        put("null_or_empty_count", json!(split.n_empty));
        put("null_or_empty_rate", json!(rounded(ratio(split.n_empty, split.n_samples))));
        let key = match settings.dedup {
            Dedup::Simhash { .. } => "simhash_distinct",
            Dedup::Minhash { .. } => "minhash_distinct",
        };
        put(key, json!(split.n_distinct));
    }
    if !split.pii.is_empty() {
        put("pii_counts", counts(&split.pii, PiiKind::name));
    }
    if !split.secrets.is_empty() {
        put("secrets_counts", counts(&split.secrets, SecretKind::name));
    }
    if settings.quality_filter && split.n_samples > 0 {
        put("quality_samples_evaluated", json!(split.n_evaluated));
        put("quality_samples_flagged", json!(split.n_flagged));
        put("quality_flags_counts", counts(&split.flags, super::QualityFlag::name));
    }
    put("near_duplicate_pairs", json!(split.near_duplicate_pairs));
    if split.parse_errors > 0 {
        put("parse_errors", json!(split.parse_errors));
    }
    if split.decode_errors > 0 {
        put("decode_errors", json!(split.decode_errors));
    }
    Value::Object(map)
}

fn counts<K: Copy>(counts: &BTreeMap<K, u64>, name: impl Fn(K) -> &'static str) -> Value {
    Value::Object(counts.iter().map(|(&kind, n)| (name(kind).to_owned(), json!(n))).collect())
}

#[expect(clippy::cast_precision_loss, reason = "a share with four decimals")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn rounded(share: f64) -> f64 {
    (share * 1e4).round() / 1e4
}

/// What a reader of the report should know, in words.
pub(super) fn notes(report: &AuditReport) -> Vec<String> {
    let mut notes = Vec::new();
    for (name, split) in &report.splits {
        if let Some((path, error)) = &split.error {
            notes.push(format!("{name}: {} was not read to its end: {error}", path.display()));
        }
        if split.parse_errors > 0 {
            notes.push(format!("{name}: {} rows are not JSON", split.parse_errors));
        }
        if split.decode_errors > 0 {
            notes.push(format!("{name}: {} rows are not UTF-8", split.decode_errors));
        }
        if !split.are_pairs_complete {
            notes.push(format!("{name}: near-duplicates were counted in part, at least"));
        }
    }
    notes.push(match report.pii.values().sum::<u64>() {
        0 => "no personal data was flagged".to_owned(),
        n => format!("{n} places look like personal data: {}", listed(&report.pii, PiiKind::name)),
    });
    let n_secrets: u64 = report.secrets.values().sum();
    if n_secrets > 0 {
        let kinds = listed(&report.secrets, SecretKind::name);
        notes.push(format!("CRITICAL: {n_secrets} secrets: {kinds}; remove them and revoke them"));
    }
    let n_flagged: u64 = report.splits.iter().map(|(_, split)| split.n_flagged).sum();
    if n_flagged > 0 {
        notes.push(format!("{n_flagged} texts look like no prose"));
    }
    let worst = report.overlaps.iter().max_by(|a, b| a.worst_rate().total_cmp(&b.worst_rate()));
    if let Some(worst) = worst.filter(|worst| worst.worst_rate() > 0.0) {
        let [a, b] = &worst.splits;
        notes
            .push(format!("leakage: {a} and {b} share rows ({:.2} %)", worst.worst_rate() * 100.0));
    }
    let n_pairs: u64 = report.splits.iter().map(|(_, split)| split.near_duplicate_pairs).sum();
    if n_pairs > 0 {
        notes.push(format!("{n_pairs} pairs of near-duplicates within splits"));
    }
    notes
}

fn listed<K: Copy>(counts: &BTreeMap<K, u64>, name: impl Fn(K) -> &'static str) -> String {
    let kinds: Vec<String> =
        counts.iter().map(|(&kind, n)| format!("{n} {}", name(kind))).collect();
    kinds.join(", ")
}
