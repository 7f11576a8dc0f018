//! Requests for approval and what became of them, out of an audit log.
//!
//! Nothing is verified here: the chain, and which lines a trusted key vouches for, are
//! [`crate::audit::verify`]'s and the caller's business.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;

use forgelm_artifact::UtcTime;
use forgelm_artifact::open::{self, OpenError};
use serde_json::Value;

use super::policy::{Candidate, Policy, refusal};
use crate::audit::LINE_BYTES_MAX;
use crate::audit::scan::scan;
use crate::keys::KeyId;

/// One run that asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The run.
    pub run_id: String,
    /// Who ran it.
    pub operator: String,
    /// When it asked, as written.
    pub requested_at: String,
    /// The staged folder, relative to the output folder.
    pub staging_path: String,
    /// Of the run.
    pub config_hash: String,
    /// Why approval is needed.
    pub reason: String,
    /// Final numbers of the run.
    pub metrics: Value,
    /// Why gates rejected the model, where they did and it was kept.
    pub gate_failures: Vec<String>,
    /// Who may answer.
    pub policy: Policy,
    /// The approvals so far, in order.
    pub approvals: Vec<Approval>,
    /// How it ended.
    pub end: Option<End>,
    /// How many signed decisions were recorded.
    pub n_decisions: usize,
    /// Whether another run in the folder has asked since, before this one was answered.
    pub is_superseded: bool,
    /// Its line in the log, from 1.
    pub line: u64,
    /// Every line of the log about it.
    pub chain: Vec<Value>,
}

/// One person's approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// Who.
    pub approver: String,
    /// In which role.
    pub role: Option<String>,
    /// By which key.
    pub keyid: Option<String>,
    /// When, as written.
    pub at: String,
    /// The file of the signed decision and its SHA-256.
    pub decision: Option<(String, String)>,
    /// Hash of the line before, which a signed decision names.
    pub prev_hash: String,
    /// Its line, from 1.
    pub line: u64,
}

/// The end of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The folder has its final name.
    Granted(Granted),
    /// Somebody said no.
    Rejected {
        /// Who.
        approver: String,
        /// Why.
        comment: Option<String>,
        /// The file of the signed decision and its SHA-256.
        decision: Option<(String, String)>,
        /// Hash of the line before.
        prev_hash: String,
        /// When, as written.
        at: String,
        /// Its line, from 1.
        line: u64,
    },
    /// Nobody answered in time.
    Expired {
        /// Its line, from 1.
        line: u64,
    },
}

/// A promotion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Who approved last.
    pub approver: String,
    /// When, as written.
    pub at: String,
    /// The name that the folder had.
    pub staging_path: String,
    /// The name that it has.
    pub final_path: String,
    /// The root digest of its files.
    pub model_root_sha256: String,
    /// Its line, from 1.
    pub line: u64,
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It waits.
    Pending,
    /// Enough people approved, and the folder does not have its final name on record yet.
    Approved,
    /// Promoted.
    Granted,
    /// Rejected.
    Rejected,
    /// Too late.
    Expired,
    /// Another run has asked since.
    Superseded,
}

impl Status {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Granted => "granted",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
        }
    }
}

impl Request {
    /// When it asked.
    #[must_use]
    pub fn requested(&self) -> Option<UtcTime> {
        self.requested_at.parse().ok()
    }

    /// Whether it is too late at `now`.
    #[must_use]
    pub fn is_late(&self, now: UtcTime) -> bool {
        let limit = self.requested().and_then(|at| self.policy.expires_at(at));
        limit.is_some_and(|limit| now > limit)
    }

    /// Whether as many as the policy asks for have approved.
    #[must_use]
    pub fn has_quorum(&self) -> bool {
        self.approvals.len() as u64 >= self.policy.quorum
    }

    /// Where it stands at `now`.
    #[must_use]
    pub fn status(&self, now: UtcTime) -> Status {
        match &self.end {
            Some(End::Granted(_)) => Status::Granted,
            Some(End::Rejected { .. }) => Status::Rejected,
            Some(End::Expired { .. }) => Status::Expired,
            None if self.has_quorum() => Status::Approved,
            None if self.is_superseded => Status::Superseded,
            None if self.is_late(now) => Status::Expired,
            None => Status::Pending,
        }
    }

    /// Whether a recorded approval is one that the policy counts: a line of a log is no reason to
    /// believe that it was written by who says so.
    fn counts(&self, approval: &Approval) -> bool {
        let keyid = approval.keyid.as_deref().and_then(KeyId::parse);
        let is_signed = approval.decision.is_some() && keyid.is_some();
        let keyid = keyid.filter(|_| is_signed);
        let candidate = Candidate {
            operator: &approval.approver,
            role: approval.role.as_deref(),
            keyid: keyid.as_ref(),
            run_keyid: None,
        };
        refusal(self, &candidate).is_none()
    }

    fn take(&mut self, line: &Line<'_>) {
        let decision = line.text("decision_file").zip(line.text("decision_sha256"));
        self.n_decisions += usize::from(decision.is_some());
        match line.event {
            _ if self.end.is_some() => {}
            "human_approval.approved" => {
                let approval = Approval {
                    approver: line.text("approver").unwrap_or_default(),
                    role: line.text("role"),
                    keyid: line.text("keyid"),
                    at: line.text("timestamp").unwrap_or_default(),
                    decision,
                    prev_hash: line.text("prev_hash").unwrap_or_default(),
                    line: line.number,
                };
                if self.counts(&approval) {
                    self.approvals.push(approval);
                }
            }
            "human_approval.granted" => {
                self.end = Some(End::Granted(Granted {
                    approver: line.text("approver").unwrap_or_default(),
                    at: line.text("timestamp").unwrap_or_default(),
                    staging_path: line.text("staging_path").unwrap_or_default(),
                    final_path: line.text("final_path").unwrap_or_default(),
                    model_root_sha256: line.text("model_root_sha256").unwrap_or_default(),
                    line: line.number,
                }));
            }
            "human_approval.rejected" => {
                self.end = Some(End::Rejected {
                    approver: line.text("approver").unwrap_or_default(),
                    comment: line.text("comment"),
                    decision,
                    prev_hash: line.text("prev_hash").unwrap_or_default(),
                    at: line.text("timestamp").unwrap_or_default(),
                    line: line.number,
                });
            }
            "human_approval.expired" => self.end = Some(End::Expired { line: line.number }),
            _ => {}
        }
    }
}

/// What a log says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requests {
    /// In the order in which they were asked. The first of a run's is the one that counts.
    pub requests: Vec<Request>,
    /// The first line that is no record, from 1, and what is wrong with it. It was passed over.
    pub problem: Option<(u64, String)>,
}

impl Requests {
    /// The request of a run.
    #[must_use]
    pub fn of(&self, run_id: &str) -> Option<&Request> {
        self.requests.iter().find(|request| request.run_id == run_id)
    }

    fn note(&mut self, line: u64, problem: &str) {
        self.problem.get_or_insert_with(|| (line, problem.to_owned()));
    }

    fn take(&mut self, line: &Line<'_>) {
        if line.event == "human_approval.required" && self.of(line.run_id).is_none() {
            match request(line) {
                Ok(request) => {
                    let open = self.requests.iter_mut().filter(|r| r.end.is_none());
                    open.filter(|r| !r.has_quorum()).for_each(|r| r.is_superseded = true);
                    self.requests.push(request);
                }
                Err(problem) => return self.note(line.number, &problem),
            }
        }
        if let Some(known) = self.requests.iter_mut().find(|r| r.run_id == line.run_id) {
            known.take(line);
            known.chain.push(line.value.clone());
        }
    }
}

/// One record of the log.
struct Line<'a> {
    number: u64,
    run_id: &'a str,
    event: &'a str,
    value: &'a Value,
}

impl Line<'_> {
    fn text(&self, key: &str) -> Option<String> {
        self.value.get(key)?.as_str().map(str::to_owned)
    }
}

fn request(line: &Line<'_>) -> Result<Request, String> {
    let text = |key: &str| line.text(key).ok_or_else(|| format!("`{key}` is not text"));
    Ok(Request {
        run_id: line.run_id.to_owned(),
        operator: text("operator")?,
        requested_at: text("timestamp")?,
        staging_path: text("staging_path")?,
        config_hash: text("config_hash")?,
        reason: text("reason")?,
        metrics: line.value["metrics"].clone(),
        gate_failures: line.value["gate_failures"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|reason| reason.as_str().map(str::to_owned))
            .collect(),
        policy: Policy::parse(&line.value["policy"])?,
        approvals: Vec::new(),
        end: None,
        n_decisions: 0,
        is_superseded: false,
        line: line.number,
        chain: Vec::new(),
    })
}

/// Reads the log at `path`. Lines that are no records are passed over and named.
///
/// # Errors
/// If there is no such file, or it cannot be read.
pub fn read(path: &Path) -> Result<Requests, OpenError> {
    let (file, _) = open::regular(path)?;
    read_lines(file).map_err(|source| OpenError::Io { path: path.to_owned(), source })
}

fn read_lines(file: impl Read) -> std::io::Result<Requests> {
    let mut found = Requests::default();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut bytes = Vec::with_capacity(4096);
    for number in 1.. {
        bytes.clear();
        reader.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut bytes)?;
        match bytes.last() {
            None => break,
            Some(b'\n') => {
                bytes.pop();
            }
            Some(_) if bytes.len() > LINE_BYTES_MAX => {
                found.note(number, "longer than 16 MiB");
                break;
            }
            Some(_) => found.note(number, "torn: it has no end"),
        }
        let Ok(facts) = scan(&bytes) else {
            found.note(number, "no audit record");
            continue;
        };
        let (Some(run_id), Some(event)) = (facts.run_id, facts.event) else {
            found.note(number, "no audit record");
            continue;
        };
        if !event.starts_with("human_approval.") {
            continue;
        }
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(value) => found.take(&Line { number, run_id, event, value: &value }),
            Err(_) => found.note(number, "no audit record"),
        }
    }
    Ok(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{End, Request, Status, read, read_lines};
    use crate::approval::policy::tests::policy;
    use forgelm_artifact::UtcTime;
    use forgelm_artifact::write::atomic;
    use serde_json::{Value, json};

    pub(crate) fn request(run_id: &str) -> Request {
        Request {
            run_id: run_id.to_owned(),
            operator: "alice@host".to_owned(),
            requested_at: "2026-01-01T00:00:00.000000+00:00".to_owned(),
            staging_path: format!("final_model.staging.{run_id}"),
            config_hash: "sha256:0".to_owned(),
            reason: "require_human_approval=true".to_owned(),
            metrics: json!({}),
            gate_failures: Vec::new(),
            policy: policy(),
            approvals: Vec::new(),
            end: None,
            n_decisions: 0,
            is_superseded: false,
            line: 1,
            chain: Vec::new(),
        }
    }

    fn required(run_id: &str, quorum: u64) -> Value {
        let mut policy = policy();
        policy.quorum = quorum;
        json!({
            "timestamp": "2026-01-01T00:00:00.000000+00:00", "run_id": run_id,
            "operator": "alice@host", "event": "human_approval.required", "prev_hash": "x",
            "staging_path": format!("final_model.staging.{run_id}"), "config_hash": "sha256:0",
            "reason": "r", "metrics": {}, "policy": policy.to_json(),
        })
    }

    fn answer(run_id: &str, event: &str, approver: &str) -> Value {
        json!({
            "timestamp": "2026-01-02T00:00:00.000000+00:00", "run_id": run_id,
            "operator": approver, "event": format!("human_approval.{event}"), "prev_hash": "x",
            "approver": approver, "final_path": "final_model",
        })
    }

    fn log(lines: &[Value]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit_log.jsonl");
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        atomic(&path, text.as_bytes()).unwrap();
        (dir, path)
    }

    fn statuses(lines: &[Value]) -> Vec<Status> {
        let (_dir, path) = log(lines);
        let now = UtcTime(1_767_400_000_000_000);
        read(&path).unwrap().requests.iter().map(|request| request.status(now)).collect()
    }

    #[test]
    fn the_state_of_a_request_is_what_the_log_says() {
        let one = |events: &[&str], quorum| {
            let answers = events.iter().map(|event| answer("fg-1", event, event));
            let lines: Vec<Value> = [required("fg-1", quorum)].into_iter().chain(answers).collect();
            statuses(&lines)[0]
        };
        assert_eq!(one(&[], 1), Status::Pending);
        assert_eq!(one(&["approved"], 2), Status::Pending);
        assert_eq!(one(&["approved"], 1), Status::Approved, "the promotion is due");
        assert_eq!(one(&["approved", "granted"], 1), Status::Granted);
        assert_eq!(one(&["rejected"], 1), Status::Rejected);
        assert_eq!(one(&["rejected", "granted"], 1), Status::Rejected, "the first end counts");
        assert_eq!(one(&["expired"], 1), Status::Expired);
        assert_eq!(one(&["refused"], 1), Status::Pending, "a refusal ends nothing");
    }

    #[test]
    fn a_later_run_takes_the_place_of_one_that_still_waits_and_the_first_policy_of_a_run_counts() {
        let lines = [required("fg-1", 2), required("fg-1", 1), required("fg-2", 1)];
        assert_eq!(statuses(&lines), [Status::Superseded, Status::Pending]);
        let (_dir, path) = log(&lines);
        assert_eq!(read(&path).unwrap().of("fg-1").unwrap().policy.quorum, 2);
        let answered =
            [required("fg-1", 1), answer("fg-1", "rejected", "bob"), required("fg-2", 1)];
        assert_eq!(statuses(&answered), [Status::Rejected, Status::Pending]);
    }

    #[test]
    fn lines_that_the_policy_does_not_count_are_not_counted() {
        let approved = |by: &[&str]| {
            let answers = by.iter().map(|by| answer("fg-1", "approved", by));
            let lines: Vec<Value> = [required("fg-1", 2)].into_iter().chain(answers).collect();
            statuses(&lines)[0]
        };
        assert_eq!(approved(&["bob", "carol"]), Status::Approved);
        assert_eq!(approved(&["bob", "bob"]), Status::Pending, "the same person");
        assert_eq!(approved(&["bob", "alice@host"]), Status::Pending, "who trained");
        let mut keyed = required("fg-1", 1);
        keyed["policy"]["approvers"] = json!([{"keyid": "01".repeat(32), "label": null}]);
        let mut signed = answer("fg-1", "approved", "bob");
        assert_eq!(statuses(&[keyed.clone(), signed.clone()])[0], Status::Pending, "unsigned");
        signed["keyid"] = json!("01".repeat(32));
        assert_eq!(statuses(&[keyed.clone(), signed.clone()])[0], Status::Pending, "no decision");
        signed["decision_file"] = json!("compliance/approval.fg-1.dsse.json");
        signed["decision_sha256"] = json!("00".repeat(32));
        assert_eq!(statuses(&[keyed.clone(), signed.clone()])[0], Status::Approved);
        signed["keyid"] = json!("02".repeat(32));
        assert_eq!(statuses(&[keyed, signed])[0], Status::Pending, "another key");
    }

    #[test]
    fn a_request_is_late_after_its_days() {
        let mut request = request("fg-1");
        request.policy.expires_days = Some(1);
        let at = |text: &str| text.parse().unwrap();
        assert_eq!(request.status(at("2026-01-02T00:00:00Z")), Status::Pending);
        assert_eq!(request.status(at("2026-01-02T00:00:01Z")), Status::Expired);
        request.end = Some(End::Expired { line: 2 });
        assert_eq!(request.status(at("2026-01-01T00:00:00Z")), Status::Expired);
    }

    /// Whoever may write the folder may write anything into the log.
    #[test]
    fn no_byte_of_a_log_makes_it_panic_or_approves_a_run() {
        let answers = [required("fg-1", 2), answer("fg-1", "approved", "bob")];
        let (_dir, path) = log(&answers);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            for byte in [b'"', b'\n', b'{', b'9', 0, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                let found = read_lines(&bad[..]).unwrap();
                let is_approved = |request: &Request| request.has_quorum();
                assert!(!found.requests.iter().any(is_approved), "byte {at} as {byte}");
            }
            assert!(read_lines(&good[..at]).unwrap().requests.len() <= 1);
        }
    }

    #[test]
    fn lines_that_are_no_records_are_passed_over_and_the_first_is_named() {
        let (_dir, path) = log(&[required("fg-1", 1)]);
        let good = std::fs::read_to_string(&path).unwrap();
        let mut odd = required("fg-2", 1);
        odd["policy"] = json!({"quorum": 1});
        let cases = [
            (format!("{good}{{\n{good}"), 2, "no audit record"),
            (format!("{good}{{\"a\": 1"), 2, "torn"),
            (format!("[]\n{good}"), 1, "no audit record"),
            (format!("{good}{odd}\n"), 2, "policy"),
        ];
        for (text, line, problem) in cases {
            atomic(&path, text.as_bytes()).unwrap();
            let found = read(&path).unwrap();
            assert_eq!(found.requests.len(), 1, "{text}");
            let (at, said) = found.problem.unwrap();
            assert!(at == line && said.contains(problem), "{at}: {said}: {text}");
        }
        assert!(read(&path.with_file_name("none")).is_err());
    }
}
