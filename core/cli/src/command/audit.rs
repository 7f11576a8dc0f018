//! `forgelm audit`.

use super::Context;
use crate::args::{AuditArgs, DedupMethod, LogLevel};
use crate::progress::count;
use forgelm_run::audit::{self, AuditRequest, AuditSettings, Audited, Dedup, Gate, SplitReport};
use forgelm_run::exit::Exit;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// Audits data files.
pub fn audit(args: &AuditArgs, context: &mut Context) -> Exit {
    if let Some((exit, text)) = refused(args) {
        return context.refused(exit, text);
    }
    let request = AuditRequest {
        input: args.input.clone(),
        output_dir: args.output.clone(),
        settings: AuditSettings {
            dedup: match args.dedup_method {
                DedupMethod::Simhash => Dedup::Simhash { distance: args.near_dup_threshold },
                DedupMethod::Minhash => Dedup::Minhash { similarity: args.jaccard_threshold },
            },
            quality_filter: !args.no_quality_filter,
            threads: usize::try_from(args.workers).unwrap_or(1),
        },
        allow_secrets: args.allow_secrets,
        allow_pii: args.allow_pii,
        signing_key: args.signing_key.clone(),
    };
    let audited = match audit::audit(&request, &context.environment()) {
        Ok(audited) => audited,
        Err(error) => return context.failed(&error),
    };
    let exit = audited.exit();
    let failure = failure(&audited);
    context.result(&text(&audited, args.verbose), &envelope(&audited, exit, failure.as_deref()));
    for (gate, what) in [(&audited.secrets_gate, "secrets"), (&audited.pii_gate, "personal data")] {
        if gate.status() == "suppressed" {
            let n = count(gate.critical_total);
            let text = format!("warning: {n} findings of critical {what}, allowed by a flag");
            context.progress.line(LogLevel::Warning, &text);
        }
    }
    if let Some(text) = failure {
        context.progress.line(LogLevel::Error, &format!("error: {text}"));
    }
    exit
}

/// What is asked for and not built.
fn refused(args: &AuditArgs) -> Option<(Exit, &'static str)> {
    if args.pii_ml {
        let text = "--pii-ml: this program has no model that finds names, and none can be installed\n  hint: \
                    without the flag, patterns find addresses, accounts, cards and national numbers";
        return Some((Exit::Runtime, text));
    }
    args.croissant.then_some((Exit::Config, "not available yet: --croissant"))
}

/// Why it is no success.
fn failure(audited: &Audited) -> Option<String> {
    let mut reasons = Vec::new();
    let gates = [
        (&audited.secrets_gate, "secrets", "--allow-secrets"),
        (&audited.pii_gate, "card or account numbers", "--allow-pii"),
    ];
    for (gate, what, flag) in gates.into_iter().filter(|(gate, ..)| gate.has_failed()) {
        let kinds = gate.critical_types.join(", ");
        let n = count(gate.critical_total);
        let places = places(audited, &gate.critical_types);
        reasons.push(format!(
            "{n} {what} in the data ({kinds}){places}\n  hint: remove them; if they are meant to be there, {flag}"
        ));
    }
    for (path, error, _) in &audited.report.unreadable {
        // A problem with a place names its file itself.
        let name = path.display().to_string();
        let is_named = error.starts_with(&name);
        reasons.push(if is_named { error.clone() } else { format!("{name}: {error}") });
    }
    if reasons.is_empty() && audited.report.n_samples() == 0 {
        reasons.push("no rows: nothing was audited".to_owned());
    }
    (!reasons.is_empty()).then(|| reasons.join("\n"))
}

/// Where the first findings of some kinds are.
fn places(audited: &Audited, kinds: &[&str]) -> String {
    let findings = audited.report.findings.iter();
    findings.filter(|finding| kinds.contains(&finding.kind.name())).fold(
        String::new(),
        |mut text, finding| {
            let (file, line) = (finding.file.display(), finding.line);
            let _ = write!(text, "\n  {file}:{line}: {}", finding.kind.name());
            text
        },
    )
}

fn text(audited: &Audited, is_verbose: bool) -> String {
    let report = &audited.report;
    let names: Vec<&str> = report.splits.iter().map(|(name, _)| name.as_str()).collect();
    let mut text = format!(
        "{} rows in {} split{}: {}\n",
        count(report.n_samples()),
        names.len(),
        if names.len() == 1 { "" } else { "s" },
        names.join(", ")
    );
    let mut clean = Vec::new();
    for (name, split) in &report.splits {
        let found = split_lines(split);
        if found.is_empty() && !is_verbose {
            clean.push(name.as_str());
            continue;
        }
        let _ = writeln!(text, "{name}: {} rows", count(split.n_samples));
        if let (true, Some(length)) = (is_verbose, &split.text_length) {
            let _ = writeln!(
                text,
                "  characters: {} to {}, {} on average, half up to {}",
                length.min, length.max, length.mean, length.p50
            );
        }
        for line in found {
            let _ = writeln!(text, "  {line}");
        }
    }
    if !clean.is_empty() {
        let _ = writeln!(text, "nothing found in: {}", clean.join(", "));
    }
    for finding in &report.findings {
        let (file, line) = (finding.file.display(), finding.line);
        let (kind, tier) = (finding.kind.name(), finding.kind.severity().name());
        let _ = writeln!(text, "{file}:{line}: {tier}: {kind}");
    }
    for overlap in report.overlaps.iter().filter(|overlap| overlap.worst_rate() > 0.0) {
        let ([a, b], [n_a, n_b]) = (&overlap.splits, overlap.leaked);
        let _ = writeln!(text, "leakage: {n_a} rows of {a} are in {b}, {n_b} rows of {b} in {a}");
    }
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    let _ = writeln!(
        text,
        "secrets: {}; personal data: {}; report: {}",
        audited.secrets_gate.status(),
        audited.pii_gate.status(),
        audited.report_path.display()
    );
    if let Some(signature) = &audited.signature {
        let _ = writeln!(text, "signed: {}", signature.display());
    }
    text
}

/// What there is to say of a split.
fn split_lines(split: &SplitReport) -> Vec<String> {
    let listed = |counts: Vec<(&'static str, u64)>| {
        let kinds: Vec<String> =
            counts.iter().map(|(name, n)| format!("{} {name}", count(*n))).collect();
        kinds.join(", ")
    };
    let secrets = listed(split.secrets.iter().map(|(kind, &n)| (kind.name(), n)).collect());
    let pii = listed(split.pii.iter().map(|(kind, &n)| (kind.name(), n)).collect());
    let flags = listed(split.flags.iter().map(|(flag, &n)| (flag.name(), n)).collect());
    let drift = split.drift_columns.len();
    let lines = [
        (!secrets.is_empty(), format!("secrets: {secrets}")),
        (!pii.is_empty(), format!("personal data: {pii}")),
        (split.near_duplicate_pairs > 0, {
            format!("near-duplicates: {} pairs", count(split.near_duplicate_pairs))
        }),
        (!flags.is_empty(), format!("quality: {flags}")),
        (split.n_empty > 0, format!("without a text: {}", count(split.n_empty))),
        (drift > 0, format!("columns that rows do not usually have: {drift}")),
        (split.parse_errors > 0, format!("not JSON: {}", count(split.parse_errors))),
        (split.decode_errors > 0, format!("not UTF-8: {}", count(split.decode_errors))),
        (split.error.is_some(), "not read to its end".to_owned()),
    ];
    lines.into_iter().filter(|(is_there, _)| *is_there).map(|(_, line)| line).collect()
}

fn envelope(audited: &Audited, exit: Exit, failure: Option<&str>) -> Value {
    let report = &audited.report;
    let splits: Map<String, Value> =
        report.splits.iter().map(|(name, split)| (name.clone(), json!(split.n_samples))).collect();
    let pairs: Vec<String> = report.overlaps.iter().map(audit::Overlap::name).collect();
    let mut envelope = json!({"success": exit == Exit::Success});
    if let Some(text) = failure {
        envelope["error"] = json!(text);
        envelope["exit_code"] = json!(exit.code());
    }
    let more = json!({
        "report_path": audited.report_path,
        "signature": audited.signature,
        "generated_at": audited.generated_at,
        "source_input": audited.source_input,
        "total_samples": report.n_samples(),
        "splits": splits,
        "pii_summary": report.pii_summary(),
        "pii_severity": report.pii_severity(),
        "secrets_summary": report.secrets_summary(),
        "secrets_gate": gate(&audited.secrets_gate, "allow_secrets", false),
        "pii_gate": gate(&audited.pii_gate, "allow_pii", true),
        "findings": report.findings_list(),
        "quality_summary": report.quality_summary(),
        "near_duplicate_pairs_per_split": report.pairs_per_split(),
        "near_duplicate_summary": report.near_duplicate_summary(),
        "cross_split_leakage_pairs": pairs,
        "notes": report.notes,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        envelope[key] = value.clone();
    }
    envelope
}

fn gate(gate: &Gate, flag: &str, has_advisory: bool) -> Value {
    let mut value = json!({
        "status": gate.status(),
        "severity": (gate.critical_total > 0).then_some("critical"),
        "critical_total": gate.critical_total,
        "critical_types": gate.critical_types,
    });
    if has_advisory {
        value["advisory_total"] = json!(gate.advisory_total);
        value["advisory_types"] = json!(gate.advisory_types);
    }
    value[flag] = json!(gate.is_allowed);
    value
}
