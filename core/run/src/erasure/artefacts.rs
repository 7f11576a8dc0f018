//! `forgelm purge --run-id`: a staged model, or the documents of a run.
//!
//! The attestation of the run, its public key and its audit log stay: they hold digests and names, and
//! show with the signed statement what was there and who removed it.

use super::ErasureError;
use super::log::{Done, Record, Target};
use super::targets::{check_inside, documents, predicate, staged};
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::plan::read_config;
use crate::remark;
use crate::retention::hold;
use forgelm_artifact::lock::RunLock;
use forgelm_artifact::open::OpenError;
use forgelm_artifact::write;
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::audit::entries::read_entries;
use forgelm_evidence::bundle::ATTESTATION;
use forgelm_evidence::erasure::subjects;
use forgelm_evidence::keys::KeyError;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Which of what a run left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArtefactKind {
    /// The model that waits for approval, or was rejected.
    Staging,
    /// The documents and their signatures.
    Artefacts,
}

impl ArtefactKind {
    /// The word on the command line and in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Staging => "staging",
            Self::Artefacts => "artefacts",
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// The run.
    pub run_id: String,
    /// What of it.
    pub kind: ArtefactKind,
    /// Its folder.
    pub output_dir: PathBuf,
    /// Its config, for a hold and the name of the model's folder.
    pub config: Option<PathBuf>,
    /// Why.
    pub justification: Option<String>,
    /// Whether nothing is removed.
    pub dry_run: bool,
    /// The key that signs what was removed.
    pub signing_key: Option<PathBuf>,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct ErasedRun {
    request: RunRequest,
    /// Below the folder, with `/`.
    targets: Vec<String>,
    bytes_freed: u64,
    statement: Option<String>,
    warnings: Vec<String>,
}

/// Removes it, or says what would be removed.
///
/// # Errors
/// If anything is not as it must be, before anything is removed; or if removing fails: the error of that,
/// and the log says what went before.
pub fn purge_run(
    request: &RunRequest,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<ErasedRun, RunError> {
    let dir = &request.output_dir;
    check_run_id(&request.run_id)?;
    if !dir.is_dir() {
        return Err(ErasureError::Target {
            path: dir.clone(),
            problem: "no such folder".to_owned(),
            hint: "`--output-dir` names the folder of the run",
        }
        .into());
    }
    let run = request.config.as_deref().map(read_config).transpose()?.map(|loaded| loaded.run);
    hold::check(&[dir], run.as_ref())?;
    let justification = request.justification.as_deref();
    let justification =
        justification.map(|text| remark::recorded("--justification", text)).transpose()?;
    check_reason(request, justification.is_some())?;
    let operator = dossier::operator(env)?;
    let signer = match request.dry_run {
        true => None,
        false => Some(dossier::key_by_default(request.signing_key.clone(), env, observer)?),
    };
    let signer = signer.map(|key| key.ok_or(KeyError::NoPlace)).transpose()?.map(|key| key.signer);
    let lock = match request.dry_run {
        true => None,
        // A run that works in the folder would write again what goes.
        false => Some(RunLock::acquire(dir, &request.run_id, env.clock.utc())?),
    };
    let target = Target {
        kind: request.kind.as_str(),
        id: request.run_id.clone(),
        salt: None,
        corpus: None,
        dir: dir.clone(),
        justification,
        dry_run: request.dry_run,
    };
    let mut record =
        Record::begin(target, request.run_id.clone(), operator, signer.as_deref(), env)?;
    let final_model =
        run.as_ref().map_or("final_model", |run| run.training.final_model_dir.as_str());
    if lock.is_some() {
        // A purge that was stopped may have left a folder under a temporary name.
        write::remove_leftovers(dir)?;
    }
    let mut removed = Vec::new();
    let erased = erase(request, final_model, &record, &mut removed);
    drop(lock);
    let (targets, bytes, statement) = match erased {
        Ok(erased) => erased,
        Err(error) => return Err(record.failed(error, None, removed)),
    };
    let warnings = warnings(request)?;
    record.completed(Done {
        bytes_freed: if request.dry_run { 0 } else { bytes },
        files_modified: removed,
        statement: statement.clone(),
        ..Done::default()
    })?;
    record.sign_head()?;
    for warning in &warnings {
        observer.observe(&Event::Warning(warning.clone()));
    }
    Ok(ErasedRun { request: request.clone(), targets, bytes_freed: bytes, statement, warnings })
}

/// The identifier becomes a part of names.
fn check_run_id(run_id: &str) -> Result<(), RunError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !run_id.is_empty() && !run_id.starts_with('.') && run_id.chars().all(is_plain) {
        return Ok(());
    }
    let shown = forgelm_artifact::Quoted(run_id);
    let problem = format!("{shown} is no run; expected one such as fg-0123456789ab");
    Err(ErasureError::Flag { flag: "--run-id", problem }.into())
}

/// Article 18 keeps the documents of a high-risk system for ten years: that they go all the same is a
/// decision, and is written down.
fn check_reason(request: &RunRequest, has_reason: bool) -> Result<(), RunError> {
    if has_reason || request.kind != ArtefactKind::Artefacts {
        return Ok(());
    }
    let Some(predicate) = predicate(&request.output_dir.join(ATTESTATION)) else { return Ok(()) };
    let is_of_run = predicate.get("run_id").and_then(Value::as_str) == Some(&request.run_id);
    let tiers = predicate.get("risk").and_then(Value::as_object).into_iter().flatten();
    let strict = tiers
        .filter_map(|(_, tier)| tier.as_str())
        .find(|tier| ["high-risk", "unacceptable"].contains(tier));
    match strict {
        Some(tier) if is_of_run => {
            let problem = format!(
                "missing; the run is `{tier}`, and Article 18 of Regulation (EU) 2024/1689 keeps its \
                 documents for ten years: say why they go all the same"
            );
            Err(ErasureError::Flag { flag: "--justification", problem }.into())
        }
        _ => Ok(()),
    }
}

type Erased = (Vec<String>, u64, Option<String>);

fn erase(
    request: &RunRequest,
    final_model: &str,
    record: &Record<'_>,
    removed: &mut Vec<String>,
) -> Result<Erased, RunError> {
    let dir = &request.output_dir;
    let targets = match request.kind {
        ArtefactKind::Staging => staged(dir, final_model, &request.run_id)?,
        ArtefactKind::Artefacts => documents(dir, &request.run_id)?,
    };
    if targets.is_empty() {
        let run_id = request.run_id.clone();
        return Err(ErasureError::NoMatchingArtefacts { dir: dir.clone(), run_id }.into());
    }
    for name in &targets {
        check_inside(dir, name)?;
    }
    let subjects = subjects(dir, &targets)?;
    let sizes = subjects.iter().map(|s| Ok(dir.join(&s.name).symlink_metadata()?.len()));
    let bytes: u64 = sizes
        .sum::<std::io::Result<u64>>()
        .map_err(|source| OpenError::Io { path: dir.clone(), source })?;
    if request.dry_run {
        return Ok((targets, bytes, None));
    }
    let statement = record.sign(subjects)?;
    for name in &targets {
        let path = dir.join(name);
        let is_folder = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        let gone = if is_folder { write::remove_dir(&path) } else { write::remove_file(&path) };
        gone.map_err(ErasureError::from)?;
        removed.push(name.clone());
    }
    Ok((targets, bytes, statement))
}

/// What stays.
fn warnings(request: &RunRequest) -> Result<Vec<String>, RunError> {
    let dir = &request.output_dir;
    let mut warnings = Vec::new();
    if request.kind == ArtefactKind::Staging {
        let entries = read_entries(&dir.join(LOG_FILE))?;
        let of_run = entries.iter().rev().filter(|entry| entry.run_id == request.run_id);
        let decision = of_run.map(|entry| entry.event.as_str());
        if decision.clone().find(|event| event.starts_with("human_approval."))
            == Some("human_approval.required")
        {
            let text = "nobody had decided about the staged model: it waited for approval";
            warnings.push(text.to_owned());
        }
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut checkpoints: Vec<String> =
            names.filter(|name| name.starts_with("checkpoint-")).collect();
        checkpoints.sort();
        if !checkpoints.is_empty() {
            let names = checkpoints.join(", ");
            warnings.push(format!("checkpoints of the folder have weights too, and stay: {names}"));
        }
    }
    Ok(warnings)
}

impl ErasedRun {
    /// The JSON document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let request = &self.request;
        let mut document = json!({
            "success": true,
            "mode": "run",
            "kind": request.kind.as_str(),
            "dry_run": request.dry_run,
            "run_id": request.run_id,
        });
        if request.dry_run {
            document["would_delete"] = json!(self.targets);
        } else {
            document["deleted"] = json!(self.targets);
            document["bytes_freed"] = json!(self.bytes_freed);
            document["statement"] = json!(self.statement);
        }
        document["warnings"] = json!(self.warnings);
        document
    }

    /// The lines for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let verb = if self.request.dry_run { "would remove" } else { "removed" };
        let dir = self.request.output_dir.display();
        let mut text = String::new();
        for target in &self.targets {
            text.push_str(&format!("{verb} {dir}/{target}\n"));
        }
        text.push_str(&format!("{} bytes of run {}\n", self.bytes_freed, self.request.run_id));
        if let Some(statement) = &self.statement {
            text.push_str(&format!("signed in {dir}/{statement}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::check_run_id;

    #[test]
    fn what_is_no_name_is_no_run() {
        check_run_id("fg-0123456789ab").expect("a run");
        for bad in ["", ".", "..", "../x", "a/b", "a b", "ü"] {
            assert!(check_run_id(bad).is_err(), "{bad}");
        }
    }
}
