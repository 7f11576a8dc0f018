//! What of a run's folder is of which run, and really in the folder.

use super::ErasureError;
use crate::error::RunError;
use crate::retention::facts::{staging_name, staging_run_id};
use forgelm_artifact::open::{self, OpenError};
use forgelm_evidence::bundle::{ATTESTATION, COMPLIANCE_DIR, PUBLIC_KEY};
use forgelm_evidence::dsse::statement::Statement;
use forgelm_evidence::dsse::{Envelope, SUFFIX};
use forgelm_evidence::erasure::is_statement;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

/// A document is far smaller.
const DOCUMENT_BYTES_MAX: u64 = 64 << 20;

/// Documents that say whose folder it is.
const REPORTS: [&str; 2] = ["compliance_report.json", "training_manifest.json"];
/// Documents that do not say of which run they are.
const WITHOUT_A_RUN: [&str; 6] = [
    "annex_iv_metadata.json",
    "config.json",
    "data_governance_report.json",
    "data_provenance.json",
    "risk_assessment.json",
    "training_manifest.yaml",
];

/// Folders of the run's staged model.
pub fn staged(dir: &Path, final_model: &str, run_id: &str) -> Result<Vec<String>, RunError> {
    let plain = staging_name(final_model);
    let mut targets = Vec::new();
    let named = format!("{plain}.{run_id}");
    if dir.join(&named).symlink_metadata().is_ok() {
        targets.push(named);
    }
    let is_there = dir.join(&plain).symlink_metadata().is_ok();
    if is_there && staging_run_id(&dir.join(&plain))?.as_deref() == Some(run_id) {
        targets.push(plain);
    }
    Ok(targets)
}

/// Files of the folder of documents that are of the run: what its attestation names, what says so
/// itself, and what has the run in its name. Signatures come first: a machine that stops in between
/// leaves no signature without its document.
pub fn documents(dir: &Path, run_id: &str) -> Result<Vec<String>, RunError> {
    let folder = dir.join(COMPLIANCE_DIR);
    let failed = |source| OpenError::Io { path: folder.clone(), source };
    match folder.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source).into()),
        // A link to a folder elsewhere: nothing in it is the run's.
        Ok(_) => check_inside(dir, COMPLIANCE_DIR)?,
    }
    let mut attested = attested(dir, run_id);
    // Nothing was signed: the folder has the documents of one run, and its report says of which.
    let is_report = |name: &str| run_in(&folder.join(name)).as_deref() == Some(run_id);
    if !dir.join(ATTESTATION).exists() && REPORTS.iter().any(|name| is_report(name)) {
        attested.extend(WITHOUT_A_RUN.iter().map(|name| format!("{COMPLIANCE_DIR}/{name}")));
    }
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(file) = entry.file_name().into_string() else { continue };
        let name = format!("{COMPLIANCE_DIR}/{file}");
        let is_kept = [ATTESTATION, PUBLIC_KEY].contains(&name.as_str()) || is_statement(&name);
        if is_kept || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let is_of_run = attested.contains(&name)
            || has_run_in_name(&file, run_id)
            || run_in(&entry.path()).as_deref() == Some(run_id);
        if is_of_run {
            found.insert(name);
        }
    }
    // A document whose signature is the run's is the run's, and the other way round.
    let pairs: Vec<String> = found
        .iter()
        .map(|name| match name.strip_suffix(SUFFIX) {
            Some(document) => document.to_owned(),
            None => format!("{name}{SUFFIX}"),
        })
        .filter(|name| dir.join(name).symlink_metadata().is_ok_and(|found| found.is_file()))
        .collect();
    found.extend(pairs);
    let (signatures, documents): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|name| name.ends_with(SUFFIX));
    Ok(signatures.into_iter().chain(documents).collect())
}

/// What the attestation of the run names.
fn attested(dir: &Path, run_id: &str) -> BTreeSet<String> {
    let statement = bytes(&dir.join(ATTESTATION))
        .and_then(|bytes| Envelope::parse(&bytes).ok())
        .and_then(|envelope| Statement::parse(&envelope.payload).ok());
    let of_run = statement.filter(|statement| {
        statement.predicate.get("run_id").and_then(Value::as_str) == Some(run_id)
    });
    let subjects = of_run.into_iter().flat_map(|statement| statement.subjects);
    subjects.map(|subject| subject.name).collect()
}

/// The run that a file says it is of: a signature's statement, or a document's own member.
fn run_in(path: &Path) -> Option<String> {
    let run_id = |value: &Value| Some(value.get("run_id")?.as_str()?.to_owned());
    if path.to_str().is_some_and(|path| path.ends_with(SUFFIX)) {
        return run_id(&predicate(path)?);
    }
    let document: Value = serde_json::from_slice(&bytes(path)?).ok()?;
    run_id(&document)
}

/// What a signature's statement says, whoever signed it.
pub fn predicate(path: &Path) -> Option<Value> {
    let envelope = Envelope::parse(&bytes(path)?).ok()?;
    Some(Statement::parse(&envelope.payload).ok()?.predicate)
}

fn bytes(path: &Path) -> Option<Vec<u8>> {
    let (file, _) = open::regular(path).ok()?;
    let mut bytes = Vec::new();
    file.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Whether a name has the run as a part between `_`, `-`, `.`, or its ends.
fn has_run_in_name(name: &str, run_id: &str) -> bool {
    let is_end = |c: Option<char>| c.is_none_or(|c| "_-.".contains(c));
    name.match_indices(run_id).any(|(at, _)| {
        let (before, after) = (&name[..at], &name[at + run_id.len()..]);
        is_end(before.chars().next_back()) && is_end(after.chars().next())
    })
}

/// What is removed is really in the folder.
pub fn check_inside(dir: &Path, name: &str) -> Result<(), RunError> {
    let path = dir.join(name);
    let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    let is_inside = match (path.canonicalize(), dir.canonicalize()) {
        (Ok(path), Ok(dir)) => path.starts_with(&dir) && path != dir,
        _ => false,
    };
    if is_inside && !is_link {
        return Ok(());
    }
    Err(ErasureError::PathTraversalRefused { path, dir: dir.to_owned() }.into())
}

#[cfg(test)]
mod tests {
    use super::has_run_in_name;

    #[test]
    fn a_run_in_a_name_stands_alone() {
        for name in ["approval.fg-1.dsse.json", "fg-1", "x_fg-1-y", "fg-12.fg-1"] {
            assert!(has_run_in_name(name, "fg-1"), "{name}");
        }
        for name in ["fg-12", "xfg-1", "fg-1x.json", ""] {
            assert!(!has_run_in_name(name, "fg-1"), "{name}");
        }
    }
}
