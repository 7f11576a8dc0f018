//! A staged model in `verify-bundle`: what people decided, and where its folder is now.
//!
//! The attestation names the staging folder, and a promotion changes nothing in it, so it stays as
//! it is: what it says of every byte is compared under the folder's new name. That the folder may
//! have that name is what the audit log says, and only as far as a checkpoint by a trusted key
//! covers the log. A folder that was renamed by hand is missing under the name that counts.

use serde_json::Value;

use super::{Check, FindingKind};
use crate::approval::decision::{Verdict, is_file_name};
use crate::approval::final_name;
use crate::approval::requests::{self, Approval, End, Granted, Request};
use crate::audit::LOG_FILE;
use crate::bundle::{ATTESTATION, COMPLIANCE_DIR};
use crate::class::Class;
use crate::dsse::statement::{PredicateType, Statement, is_subject_name};
use crate::files;
use crate::keys::trust::Usage;

/// A folder that has another name than the attestation says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The name that was signed.
    pub from: String,
    /// The name that it has.
    pub to: String,
}

impl Moved {
    /// Where a file is now.
    fn place(&self, name: &str) -> Option<String> {
        let rest = name.strip_prefix(&self.from)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| format!("{}{rest}", self.to))
    }
}

impl Check<'_> {
    /// Where a signed name is to be looked for.
    pub(super) fn place(&self, name: &str) -> String {
        let moved = self.moved.as_ref().and_then(|moved| moved.place(name));
        moved.unwrap_or_else(|| name.to_owned())
    }

    /// What became of the model: as the attestation says, and for a staged one as people decided.
    pub(super) fn decided(&mut self, statement: &Statement, is_log_good: bool) -> Option<String> {
        let text = |pointer: &str| statement.predicate.pointer(pointer).and_then(Value::as_str);
        let outcome = text("/outcome")?;
        if outcome != "staged" {
            return Some(outcome.to_owned());
        }
        self.moved.clone_from(&self.options.moved);
        if !is_log_good {
            return Some(outcome.to_owned());
        }
        let found = requests::read(&self.dir.join(LOG_FILE)).ok();
        let request = found.and_then(|found| found.of(text("/run_id")?).cloned());
        let Some(request) = request else {
            let reason = "the run is signed as staged, and the log has no request for its approval";
            self.add(LOG_FILE, FindingKind::Chain, Class::Different, reason);
            return Some(outcome.to_owned());
        };
        let root = text("/model/root_digest");
        self.decisions(&request, root);
        let word = match &request.end {
            None | Some(End::Expired { .. }) => outcome,
            Some(End::Rejected { approver, at, .. }) => {
                self.notes
                    .push(format!("rejected by {} at {at}", forgelm_artifact::Quoted(approver)));
                "rejected"
            }
            Some(End::Granted(granted)) => {
                self.granted(&request, granted, root);
                "promoted"
            }
        };
        Some(word.to_owned())
    }

    /// A promotion: enough people, the same bytes, the right name, and vouched for.
    fn granted(&mut self, request: &Request, granted: &Granted, root: Option<&str>) {
        let mut differs = |reason: String| {
            self.add(LOG_FILE, FindingKind::Chain, Class::Different, reason);
        };
        let line = granted.line;
        if root != Some(granted.model_root_sha256.as_str()) {
            differs(format!(
                "line {line}: another model was promoted than the one that was signed"
            ));
        }
        let is_named = granted.staging_path == request.staging_path
            && is_subject_name(&request.staging_path)
            && final_name(&request.staging_path) == Some(granted.final_path.as_str());
        if !is_named {
            differs(format!("line {line}: the folder got another name than it was staged for"));
            return;
        }
        let n_before = request.approvals.iter().filter(|a| a.line < line).count() as u64;
        if n_before < request.policy.quorum {
            let quorum = request.policy.quorum;
            differs(format!("line {line}: promoted with {n_before} of {quorum} approvals"));
        }
        if self.options.moved.is_none() {
            if line > self.signed_entries {
                let reason = format!(
                    "line {line}: the promotion is recorded after the newest checkpoint of a trusted \
                     key\n    hint: `forgelm approve` once more signs it"
                );
                self.add(LOG_FILE, FindingKind::Chain, Class::NotCompared, reason);
            }
            let (from, to) = (granted.staging_path.clone(), granted.final_path.clone());
            self.moved = Some(Moved { from, to });
        }
        let approvers: Vec<String> = request
            .approvals
            .iter()
            .map(|a| forgelm_artifact::Quoted(&a.approver).to_string())
            .collect();
        self.notes.push(format!(
            "approved by {} at {}; `{}` became `{}`",
            approvers.join(", "),
            granted.at,
            granted.staging_path,
            granted.final_path
        ));
    }

    /// Every signed decision in the folder is one that the log has, and every one of the log is there.
    fn decisions(&mut self, request: &Request, root: Option<&str>) {
        let approved = request.approvals.iter().map(|a| (Verdict::Approved, a.clone()));
        let rejected = match &request.end {
            Some(End::Rejected { approver, decision, prev_hash, at, line, .. }) => Some(Approval {
                approver: approver.clone(),
                role: None,
                keyid: None,
                at: at.clone(),
                decision: decision.clone(),
                prev_hash: prev_hash.clone(),
                line: *line,
            }),
            Some(End::Granted(_) | End::Expired { .. }) | None => None,
        };
        let recorded: Vec<(Verdict, Approval)> =
            approved.chain(rejected.map(|end| (Verdict::Rejected, end))).collect();
        let mut keyids = Vec::new();
        for (verdict, approval) in &recorded {
            let Some((file, sha256)) = &approval.decision else { continue };
            if !is_file_name(file) {
                let reason =
                    format!("line {}: the decision is in no file of decisions", approval.line);
                self.add(LOG_FILE, FindingKind::Chain, Class::Different, reason);
                continue;
            }
            match files::digest(self.dir, file) {
                Err(problem) => self.problem(file, &problem),
                Ok(found) if found.sha256 != *sha256 => {
                    let reason = "differs from what the log recorded";
                    self.add(file, FindingKind::Changed, Class::Different, reason);
                }
                Ok(_) => keyids.extend(self.decision(request, (*verdict, approval), file, root)),
            }
        }
        self.count_keys(request, &keyids);
        let Ok(found) = files::walk(self.dir, COMPLIANCE_DIR) else { return };
        let is_recorded = |name: &String| {
            recorded.iter().any(|(_, a)| a.decision.as_ref().is_some_and(|(file, _)| file == name))
        };
        for name in found.keys().filter(|name| is_file_name(name) && !is_recorded(name)) {
            // A process that was killed between the signature and its record leaves one.
            self.notes.push(format!("`{name}` is a decision that the log does not have"));
        }
    }

    /// One signed decision; the key that made it, if it is as it should be.
    fn decision(
        &mut self,
        request: &Request,
        (verdict, approval): (Verdict, &Approval),
        file: &str,
        root: Option<&str>,
    ) -> Option<String> {
        let mut keys = self.options.keys.clone();
        // Each person signs a file of their own: distinct keys are counted over all of them.
        keys.set_threshold_of(Usage::Approval, 1);
        let kind = PredicateType::ApprovalDecision;
        let (report, statement) = self.envelope_by(file, &keys, kind);
        if report.class != Class::Accepted {
            let reason = self.signature_reason(&report);
            self.add(file, FindingKind::Signature, report.class, reason);
        }
        let statement = statement?;
        let text = |key: &str| statement.predicate.get(key).and_then(Value::as_str);
        let expected = [
            ("run_id", Some(request.run_id.as_str())),
            ("decision", Some(verdict.as_str())),
            ("approver", Some(approval.approver.as_str())),
            ("staging_path", Some(request.staging_path.as_str())),
            ("staging_root_digest", root),
            ("audit_head_sha256", Some(approval.prev_hash.as_str())),
        ];
        for (key, expected) in expected {
            // Without an attestation there is no root digest to compare with.
            if text(key) != expected && (key != "staging_root_digest" || root.is_some()) {
                let reason = format!("its `{key}` is not that of the run and its log");
                self.add(file, FindingKind::Signature, Class::Different, reason);
            }
        }
        for subject in &statement.subjects {
            match files::digest(self.dir, &subject.name) {
                Ok(found) if found.sha256 == subject.sha256 => {}
                Ok(_) => {
                    let reason = format!("the approver was shown another `{}`", subject.name);
                    self.add(file, FindingKind::Signature, Class::Different, reason);
                }
                Err(problem) => self.problem(&subject.name, &problem),
            }
        }
        (report.class == Class::Accepted).then_some(report.keyid).flatten()
    }

    /// Where keys decide, as many of the approvers' keys as the policy, and the trust store, ask for.
    fn count_keys(&mut self, request: &Request, keyids: &[String]) {
        let Some(End::Granted(granted)) = &request.end else { return };
        let Some(approvers) = &request.policy.approvers else { return };
        let is_approver =
            |id: &&String| approvers.iter().any(|approver| approver.keyid.as_str() == id.as_str());
        let mut good: Vec<&String> = keyids.iter().filter(is_approver).collect();
        good.sort();
        good.dedup();
        let needed = usize::try_from(request.policy.quorum).unwrap_or(usize::MAX);
        let needed = needed.max(self.options.keys.threshold(Usage::Approval));
        if good.len() < needed {
            let reason = format!(
                "line {}: {} of the {needed} approvals are signed by a trusted approver's key",
                granted.line,
                good.len()
            );
            self.add(ATTESTATION, FindingKind::Signature, Class::NotCompared, reason);
        }
    }
}
