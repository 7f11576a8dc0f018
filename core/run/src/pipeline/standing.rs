//! What a stage has come to, from its own evidence. The state of the pipeline is a hint and no more: a
//! stage may have ended without it being written there, and what is written there may be gone.

use super::desk::Desk;
use super::error::PipelineError;
use super::plan::StagePlan;
use crate::dossier::to_evidence;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::plan::Plan;
use crate::reproduce;
use crate::resume::{self, Resume};
use crate::training::{Outcome, how_it_ended};
use crate::trust;
use forgelm_evidence::Class;
use forgelm_evidence::bundle::verify::{BundleOptions, Finding, FindingKind, verify_bundle};
use forgelm_evidence::keys::trust::TrustedKey;
use forgelm_evidence::model::MODEL_SIGNATURE;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// See the module.
pub(super) enum Standing {
    /// It has no folder, or an empty one.
    Nothing,
    /// It has begun, and did not end with all its evidence.
    Unfinished,
    /// It has a model, and everything that it signed is as it was.
    Done(Facts),
    /// It has ended otherwise: its model waits, or was rejected or reverted.
    Ended(Box<Outcome>),
    /// It has ended, and files that it signed are gone.
    Incomplete(String),
}

/// What a finished stage says of itself.
pub(super) struct Facts {
    /// Its run.
    pub(super) run_id: Option<String>,
    /// Its final numbers.
    pub(super) metrics: BTreeMap<String, f64>,
    /// What gates said against it.
    pub(super) gate_failures: Vec<String>,
}

impl Facts {
    /// From the documents in the folder of a run.
    pub(super) fn of(dir: &std::path::Path) -> Self {
        let report = reproduce::document(dir, "compliance_report.json").unwrap_or_default();
        // Those of the training manifest are rounded.
        let metrics = report["evaluation_results"]["metrics"].as_object().into_iter().flatten();
        let metrics = metrics.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)));
        let gates = report["gates"].as_array().cloned().unwrap_or_default();
        let failed = gates.iter().filter(|gate| gate["passed"] == Value::Bool(false));
        Self {
            run_id: report["run_id"].as_str().map(str::to_owned),
            metrics: metrics.collect(),
            gate_failures: failed
                .filter_map(|gate| gate["reason"].as_str())
                .map(str::to_owned)
                .collect(),
        }
    }
}

/// An observer that says nothing.
struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _event: &Event) {}
}

impl Desk<'_> {
    /// Looks at what a stage left.
    ///
    /// # Errors
    /// If what it signed was changed, or cannot be compared.
    pub(super) fn standing(&self, stage: &StagePlan, plan: &Plan) -> Result<Standing, RunError> {
        let root = plan.output.root();
        let is_empty = std::fs::read_dir(root).map_or(true, |mut entries| entries.next().is_none());
        if is_empty {
            return Ok(Standing::Nothing);
        }
        match how_it_ended(plan, self.env.clock.utc()) {
            None => Ok(Standing::Unfinished),
            Some(Outcome::AlreadyComplete { .. }) => self.verified(stage, root.to_owned()),
            Some(other) => Ok(Standing::Ended(Box::new(other))),
        }
    }

    fn verified(&self, stage: &StagePlan, root: PathBuf) -> Result<Standing, RunError> {
        let mut keys = trust::trusted_keys(None, self.env)?;
        if let Some(found) = &self.parts.key {
            let (public, label) = (found.signer.key.public(), found.signer.label.clone());
            if keys.find(&public.id()).is_none() {
                keys.add(TrustedKey::unlimited(public, label));
            }
        }
        let secret = self.env.audit_secret.as_ref().and_then(to_evidence);
        let report = verify_bundle(
            &root,
            &BundleOptions {
                keys,
                secret: secret.as_ref(),
                allow_unsigned: !self.plan.root.run.signing().enabled,
                ..BundleOptions::default()
            },
        );
        if report.class == Class::Accepted {
            return Ok(Standing::Done(Facts::of(&root)));
        }
        let mut gone = report.findings.iter().filter(|found| found.kind == FindingKind::Missing);
        // The signature of a model's folder differs too, where a file of it is gone.
        let follows = |found: &Finding| {
            found.kind == FindingKind::Signature && found.file.ends_with(MODEL_SIGNATURE)
        };
        let n = gone.clone().count();
        let are_gone = |found: &Finding| found.kind == FindingKind::Missing || follows(found);
        if let Some(first) = gone.next().filter(|_| report.findings.iter().all(are_gone)) {
            return Ok(Standing::Incomplete(format!("`{}` is gone ({n} in all)", first.file)));
        }
        Err(PipelineError::Evidence {
            stage: stage.name.clone(),
            lines: report.to_lines().into_iter().map(|line| format!("  {line}")).collect(),
            class: report.class,
        }
        .into())
    }
}

/// Why the run in the folder of `plan` is not the one that would go on there; none where it is, or there
/// is nothing to compare. `model_sha256` is that of the model that it would begin at, where it is known.
pub(super) fn difference(
    plan: &Plan,
    model_sha256: Option<&str>,
) -> Result<Option<String>, RunError> {
    let Some(from) = resume::choose(&Resume::Newest, &plan.output, &mut Silent)? else {
        return Ok(None);
    };
    let identity = &from.state.identity;
    if identity.config != plan.identity() {
        return Ok(Some("its config, or the model that it begins at, is another one".to_owned()));
    }
    let is_same = model_sha256.is_none_or(|sha256| sha256 == identity.model_sha256);
    Ok((!is_same).then(|| "the model that it begins at is another one".to_owned()))
}
