//! `approve` and `reject`.
//!
//! The order, each step only after the one before: lock; the log's chain and signed head; may this
//! person decide; everything that the run signed; the signed decision; its record; a new signed
//! head. An approval that completes the quorum then renames the folder and records that. A process
//! that is killed in between leaves a state that the log tells, and the next decision on the run
//! goes on from there.

use super::LOCK_FILE;
use super::error::ApprovalError;
use super::keys::{head_signer, with_own};
use super::place::{check_folder, check_log, find, places};
use crate::dossier::{self, VERSION, to_evidence};
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::Observer;
use forgelm_artifact::UtcTime;
use forgelm_artifact::hash::sha256_file;
use forgelm_artifact::lock::RunLock;
use forgelm_artifact::write;
use forgelm_evidence::Class;
use forgelm_evidence::approval::decision::{self, Clerk, Decision, REPORT, Verdict};
use forgelm_evidence::approval::policy::{self, Candidate};
use forgelm_evidence::approval::requests::{self, End, Request, Status};
use forgelm_evidence::approval::{GATE, final_name};
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::{AuditIdentity, AuditLog};
use forgelm_evidence::bundle::ATTESTATION;
use forgelm_evidence::bundle::verify::{BundleOptions, BundleReport, Moved, verify_bundle};
use forgelm_evidence::documents::evidence::Builder;
use forgelm_evidence::integrity::verify_integrity;
use forgelm_evidence::keys::RunSigner;
use forgelm_evidence::keys::lookup::{KeyCandidates, find_signing_key};
use forgelm_evidence::keys::trust::{TrustedKeys, Usage};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What somebody asks for.
pub struct DecisionRequest<'a> {
    /// The run.
    pub run_id: &'a str,
    /// Its output folder.
    pub output_dir: &'a Path,
    /// Why, for the log.
    pub comment: Option<&'a str>,
    /// In which role.
    pub role: Option<&'a str>,
    /// The key that signs the decision.
    pub approver_key: Option<&'a Path>,
    /// The key that signs the new head of the log. Without it the one that a run would find, but a key
    /// that was made on first use only where it signed the run; then the approver's.
    pub signing_key: Option<&'a Path>,
    /// Whose signatures are believed.
    pub keys: TrustedKeys,
    /// Whether a run that was not signed is accepted.
    pub allow_unsigned: bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decided {
    /// The model has its final name.
    Promoted {
        /// Who approved last.
        approver: String,
        /// The model.
        final_model: PathBuf,
        /// Whether this only finished what had been approved before.
        is_repair: bool,
    },
    /// More people must approve.
    Counted {
        /// Who approved now.
        approver: String,
        /// The staged model.
        staging: PathBuf,
        /// Of how many with this one.
        approvals: u64,
        /// How many must.
        quorum: u64,
    },
    /// The model stays where it is, and is not used.
    Rejected {
        /// Who.
        approver: String,
        /// The staged model.
        staging: PathBuf,
    },
}

/// Approves a staged model, and promotes it once enough have.
///
/// # Errors
/// [`ApprovalError`] and what the world refuses; the model is where it was then, but for
/// [`ApprovalError::Gap`].
pub fn approve(
    asked: &DecisionRequest<'_>,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Decided, RunError> {
    let mut desk = Desk::open(asked, Verdict::Approved, env, observer)?;
    if desk.is_promotion_due() {
        return desk.finish();
    }
    desk.refuse_closed()?;
    desk.refuse_person()?;
    let root = desk.check_staged()?;
    let now = env.clock.utc();
    let record = desk.sign(&root, now)?;
    let approvals = desk.request.approvals.len() as u64 + 1;
    let quorum = desk.request.policy.quorum;
    desk.audit.append(&AuditEvent::ApprovalApproved {
        gate: GATE.to_owned(),
        approver: desk.operator.clone(),
        role: asked.role.map(str::to_owned),
        comment: asked.comment.map(str::to_owned),
        keyid: record.keyid,
        report_sha256: record.report_sha256,
        decision_file: record.file,
        decision_sha256: record.sha256,
        approvals,
        quorum,
    })?;
    desk.sign_head()?;
    let approver = desk.operator.clone();
    if approvals < quorum {
        return Ok(Decided::Counted { approver, staging: desk.staging, approvals, quorum });
    }
    desk.promote(approver, asked.comment.map(str::to_owned), root, false)
}

/// Rejects a staged model, which stays where it is.
///
/// Unlike an approval it does not ask whether the staged files are as they were: a model that
/// somebody changed can always be rejected.
///
/// # Errors
/// As [`approve`].
pub fn reject(
    asked: &DecisionRequest<'_>,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Decided, RunError> {
    let mut desk = Desk::open(asked, Verdict::Rejected, env, observer)?;
    if desk.is_promotion_due() {
        desk.finish()?;
        desk.request.end = requests::read(&asked.output_dir.join(LOG_FILE))?
            .of(asked.run_id)
            .and_then(|request| request.end.clone());
    }
    desk.refuse_closed()?;
    desk.refuse_person()?;
    let root = match desk.staging.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() && desk.approver.is_some() => {
            decision::root_of_folder(&desk.staging)?
        }
        _ => String::new(),
    };
    let now = env.clock.utc();
    let record = desk.sign(&root, now)?;
    desk.audit.append(&AuditEvent::ApprovalRejected {
        gate: GATE.to_owned(),
        approver: desk.operator.clone(),
        role: asked.role.map(str::to_owned),
        comment: asked.comment.map(str::to_owned),
        keyid: record.keyid,
        report_sha256: record.report_sha256,
        decision_file: record.file,
        decision_sha256: record.sha256,
        staging_path: desk.request.staging_path.clone(),
        open_seconds: open_seconds(&desk.request, now),
    })?;
    desk.sign_head()?;
    Ok(Decided::Rejected { approver: desk.operator, staging: desk.staging })
}

/// Everything that a decision needs, checked as far as every decision needs it.
struct Desk<'a> {
    asked: &'a DecisionRequest<'a>,
    /// Whose signatures are believed, the approver's own with them.
    keys: TrustedKeys,
    verdict: Verdict,
    env: &'a Environment,
    request: Request,
    /// Whether a trusted key vouches for how the request ended.
    is_covered: bool,
    operator: String,
    builder: Builder,
    approver: Option<Arc<RunSigner>>,
    /// None where the run was not signed.
    signer: Option<Arc<RunSigner>>,
    staging: PathBuf,
    final_model: PathBuf,
    audit: AuditLog,
    _locks: [RunLock; 2],
}

/// What the log says of a signed decision.
struct Record {
    report_sha256: Option<String>,
    keyid: Option<String>,
    file: Option<String>,
    sha256: Option<String>,
}

impl<'a> Desk<'a> {
    fn open(
        asked: &'a DecisionRequest<'a>,
        verdict: Verdict,
        env: &'a Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        let dir = asked.output_dir;
        check_folder(dir)?;
        let now = env.clock.utc();
        let locks = [
            RunLock::acquire_as(dir, LOCK_FILE, asked.run_id, now)?,
            RunLock::acquire(dir, asked.run_id, now)?,
        ];
        let request = find(dir, asked.run_id)?;
        let (staging, final_model) = places(dir, &request)?;
        let is_signed = dir.join(ATTESTATION).symlink_metadata().is_ok();
        let covered = check_log(asked, env)?;
        let is_covered = !is_signed || end_line(&request).is_none_or(|line| line <= covered);
        let operator = dossier::operator(env)?;
        let passphrase = || env.signing_key_passphrase.as_ref().and_then(to_evidence);
        let approver = asked.approver_key.map(|path| {
            let flag = Some(path.to_owned());
            find_signing_key(&KeyCandidates {
                flag,
                passphrase: passphrase(),
                ..KeyCandidates::default()
            })
        });
        let approver = approver.transpose()?.map(|found| found.signer);
        let keys = with_own(asked.keys.clone(), approver.as_deref(), now)?;
        let signer = match is_signed {
            false => None,
            true => Some(head_signer(asked, env, observer)?),
        };
        if let Some(signer) = &signer {
            let keyid = signer.key.id();
            if !keys.may_sign(&keyid, Usage::Checkpoint, now) {
                let keyid = keyid.to_string();
                return Err(ApprovalError::HeadKey { keyid }.into());
            }
        }
        let identity = AuditIdentity {
            run_id: request.run_id.clone(),
            operator: operator.clone(),
            secret: env.audit_secret.as_ref().and_then(to_evidence),
            allow_reroot: false,
        };
        let audit = AuditLog::open(dir, identity, env.clock.clone())?;
        Ok(Self {
            asked,
            keys,
            verdict,
            env,
            request,
            is_covered,
            operator,
            builder: dossier::builder(),
            approver,
            signer,
            staging,
            final_model,
            audit,
            _locks: locks,
        })
    }

    fn status(&self) -> Status {
        self.request.status(self.env.clock.utc())
    }

    /// Enough have approved, and what follows from it is not all done or not all vouched for.
    fn is_promotion_due(&self) -> bool {
        match self.status() {
            Status::Approved => true,
            Status::Granted => !self.is_covered,
            Status::Pending | Status::Rejected | Status::Expired | Status::Superseded => false,
        }
    }

    /// Ends here, on record, when the request was answered or is too old.
    fn refuse_closed(&mut self) -> Result<(), RunError> {
        let what = match self.status() {
            Status::Pending | Status::Approved => return Ok(()),
            Status::Granted => "was approved already".to_owned(),
            Status::Rejected => "was rejected already".to_owned(),
            Status::Superseded => "was followed by another run that asks for approval".to_owned(),
            Status::Expired => {
                let days = self.request.policy.expires_days.unwrap_or_default();
                if self.request.end.is_none() {
                    const SECONDS_PER_DAY: u64 = 86_400;
                    let open = open_seconds(&self.request, self.env.clock.utc());
                    let age_days = open / SECONDS_PER_DAY;
                    self.audit.append(&AuditEvent::ApprovalExpired { age_days })?;
                }
                format!("could be approved for {days} days, which are over")
            }
        };
        self.refused(&what)?;
        let run_id = self.request.run_id.clone();
        Err(ApprovalError::Closed { run_id, what }.into())
    }

    /// Ends here, on record, when this person may not decide.
    fn refuse_person(&mut self) -> Result<(), RunError> {
        let run_keyid = decision::run_signer(self.asked.output_dir);
        let keyid = self.approver.as_ref().map(|signer| signer.key.id());
        let candidate = Candidate {
            operator: &self.operator,
            role: self.asked.role,
            keyid: keyid.as_ref(),
            run_keyid: run_keyid.as_deref(),
        };
        let Some(refusal) = policy::refusal(&self.request, &candidate) else { return Ok(()) };
        self.refused(&refusal.to_string())?;
        let run_id = self.request.run_id.clone();
        Err(ApprovalError::Refused { run_id, refusal }.into())
    }

    fn refused(&mut self, reason: &str) -> Result<(), RunError> {
        self.audit.append(&AuditEvent::ApprovalRefused {
            gate: GATE.to_owned(),
            decision: self.verdict.as_str().to_owned(),
            reason: reason.to_owned(),
        })?;
        Ok(())
    }

    fn verify(&self, moved: Option<Moved>) -> BundleReport {
        let secret = self.env.audit_secret.as_ref().and_then(to_evidence);
        verify_bundle(
            self.asked.output_dir,
            &BundleOptions {
                weights_left_out: false,
                keys: self.keys.clone(),
                secret: secret.as_ref(),
                require_hmac: false,
                allow_unsigned: self.asked.allow_unsigned,
                moved,
            },
        )
    }

    /// Everything that the run signed is as it was, and the two folders are as they must be before a
    /// promotion; the root digest of the model.
    fn check_staged(&self) -> Result<String, RunError> {
        let place = |path: &Path, problem: &str| ApprovalError::Place {
            path: path.to_owned(),
            problem: problem.to_owned(),
        };
        match self.staging.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                return Err(place(&self.staging, "is no folder; expected the staged model").into());
            }
            Err(_) => return Err(place(&self.staging, "the staged model is not there").into()),
        }
        if self.final_model.symlink_metadata().is_ok() {
            return Err(place(
                &self.final_model,
                "exists already, and is never replaced\n  hint: move it away, and approve again",
            )
            .into());
        }
        self.check_evidence(None, &self.staging)
    }

    /// Everything that the run signed is as it was, with the model in `folder`; its root digest.
    fn check_evidence(&self, moved: Option<Moved>, folder: &Path) -> Result<String, RunError> {
        let report = self.verify(moved);
        let evidence = |lines: Vec<String>, class| ApprovalError::Evidence {
            lines: lines.into_iter().map(|line| format!("  {line}")).collect(),
            class,
        };
        if report.class != Class::Accepted {
            return Err(evidence(report.to_lines(), report.class).into());
        }
        let integrity = verify_integrity(folder);
        if integrity.class != Class::Accepted {
            return Err(evidence(integrity.to_lines(), integrity.class).into());
        }
        if self.signer.is_some() && report.run_id.as_deref() != Some(self.request.run_id.as_str()) {
            let line = "compliance/attestation.dsse.json: is of another run".to_owned();
            return Err(evidence(vec![line], Class::Different).into());
        }
        match report.model_root_digest {
            Some(root) => Ok(root),
            None => Ok(decision::root_of_folder(folder)?),
        }
    }

    fn clerk<'b>(&'b self, signed_at: &'b str) -> Clerk<'b> {
        Clerk {
            request: &self.request,
            operator: &self.operator,
            version: VERSION,
            builder: &self.builder,
            signed_at,
        }
    }

    /// Signs the decision, where the person has a key.
    fn sign(&self, root: &str, now: UtcTime) -> Result<Record, RunError> {
        let report = self.asked.output_dir.join(REPORT);
        // A model whose report is gone can still be rejected.
        let report_sha256 = sha256_file(&report).ok().map(|sha256| sha256.to_string());
        let Some(signer) = &self.approver else {
            return Ok(Record { report_sha256, keyid: None, file: None, sha256: None });
        };
        let file = decision::file_name(&self.request.run_id, self.request.n_decisions + 1);
        let decided = Decision {
            verdict: self.verdict,
            role: self.asked.role,
            comment: self.asked.comment,
            staging_root_digest: root,
            audit_head_sha256: self.audit.head_sha256().unwrap_or_default(),
            open_seconds: open_seconds(&self.request, now),
            file: &file,
        };
        let signed_at = now.to_string();
        let sha256 =
            self.clerk(&signed_at).sign_decision(self.asked.output_dir, &decided, signer)?;
        let keyid = Some(signer.key.id().to_string());
        Ok(Record { report_sha256, keyid, file: Some(file), sha256: Some(sha256) })
    }

    fn sign_head(&self) -> Result<(), RunError> {
        if let Some(signer) = &self.signer {
            let signed_at = self.env.clock.utc().to_string();
            self.clerk(&signed_at).sign_head(self.asked.output_dir, signer)?;
        }
        Ok(())
    }

    /// Gives the folder its final name, and records it.
    fn promote(
        mut self,
        approver: String,
        comment: Option<String>,
        root: String,
        is_repair: bool,
    ) -> Result<Decided, RunError> {
        write::rename_new(&self.staging, &self.final_model)?;
        self.record_promotion(&approver, comment, root)?;
        Ok(Decided::Promoted { approver, final_model: self.final_model, is_repair })
    }

    fn record_promotion(
        &mut self,
        approver: &str,
        comment: Option<String>,
        root: String,
    ) -> Result<(), RunError> {
        let granted = AuditEvent::ApprovalGranted {
            gate: GATE.to_owned(),
            approver: approver.to_owned(),
            comment,
            promote_strategy: "rename".to_owned(),
            staging_path: self.request.staging_path.clone(),
            final_path: final_name(&self.request.staging_path).unwrap_or_default().to_owned(),
            model_root_sha256: root,
            open_seconds: open_seconds(&self.request, self.env.clock.utc()),
        };
        self.audit.append(&granted).map_err(|source| ApprovalError::Gap {
            final_model: self.final_model.clone(),
            source,
        })?;
        self.sign_head()
    }

    /// Finishes a promotion that was decided and cut off: renames, records or signs what is missing.
    fn finish(&mut self) -> Result<Decided, RunError> {
        let last = self.request.approvals.last();
        let approver = last.map_or_else(|| self.operator.clone(), |last| last.approver.clone());
        let is_moved = self.staging.symlink_metadata().is_err();
        if is_moved {
            let from = self.request.staging_path.clone();
            let to = final_name(&from).unwrap_or_default().to_owned();
            let final_model = self.final_model.clone();
            let root = self.check_evidence(Some(Moved { from, to }), &final_model)?;
            match self.request.end {
                None => self.record_promotion(&approver, None, root)?,
                Some(_) => self.sign_head()?,
            }
        } else {
            let root = self.check_staged()?;
            write::rename_new(&self.staging, &self.final_model)?;
            self.record_promotion(&approver, None, root)?;
        }
        let final_model = self.final_model.clone();
        Ok(Decided::Promoted { approver, final_model, is_repair: true })
    }
}

fn end_line(request: &Request) -> Option<u64> {
    request.end.as_ref().map(|end| match end {
        End::Granted(granted) => granted.line,
        End::Rejected { line, .. } | End::Expired { line } => *line,
    })
}

fn open_seconds(request: &Request, now: UtcTime) -> u64 {
    let asked = request.requested().unwrap_or(now);
    u64::try_from((now.0 - asked.0) / 1_000_000).unwrap_or(0)
}
