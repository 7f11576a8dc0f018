//! Why a decision was not taken.

use crate::exit::Exit;
use forgelm_evidence::Class;
use forgelm_evidence::approval::policy::Refusal;
use forgelm_evidence::audit::log::AuditError;
use forgelm_evidence::audit::verify::AuditRejection;
use std::path::PathBuf;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    /// Fewer people could approve than must.
    #[error(
        "`evaluation.approval.approvers`: `{store}` has {found} keys that may approve, and \
         `evaluation.approval.quorum` is {needed}\n  hint: `forgelm keys trust PUB --usage approval \
         --trusted-keys {store}` adds one"
    )]
    TooFewApprovers {
        /// The trust store.
        store: String,
        /// Keys in it.
        found: usize,
        /// Needed.
        needed: usize,
    },
    /// There is no run.
    #[error("{}: {problem}; expected the output folder of a run", .dir.display())]
    NoFolder {
        /// The folder.
        dir: PathBuf,
        /// What is there.
        problem: &'static str,
    },
    /// A line of the log is no record.
    #[error(
        "{}:{line}: {problem}; nothing is decided on such a log\n  hint: a line that a crash tore is \
         repaired, with a record, by the run's `--resume`", .path.display()
    )]
    Log {
        /// The log.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong.
        problem: String,
    },
    /// The chain of the log does not hold.
    #[error("{0}; nothing was decided")]
    Chain(AuditRejection),
    /// The signed head of the log contradicts it.
    #[error("{}: {reason}; nothing was decided", .path.display())]
    Head {
        /// The log.
        path: PathBuf,
        /// Why.
        reason: String,
        /// Which exit code this belongs to.
        class: Class,
    },
    /// No such run asks for approval.
    #[error("run `{run_id}` asks for no approval in {}{}", .dir.display(), others(.known))]
    Unknown {
        /// As given.
        run_id: String,
        /// The output folder.
        dir: PathBuf,
        /// The runs that do.
        known: Vec<String>,
    },
    /// The request was answered, or cannot be any more.
    #[error("run `{run_id}` {what}; this is recorded, and nothing else was done")]
    Closed {
        /// The run.
        run_id: String,
        /// What became of it.
        what: String,
    },
    /// Somebody who may not decide.
    #[error("run `{run_id}`: {refusal}; this is recorded, and nothing else was done\n  hint: {}", .refusal.hint())]
    Refused {
        /// The run.
        run_id: String,
        /// Why.
        refusal: Refusal,
    },
    /// The key that would sign the new head of the log is not believed here.
    #[error(
        "the new head of the log would be signed by key {keyid}, which is not trusted here for \
         `checkpoint`: nobody could verify the run any more\n  hint: `--signing-key KEY` names another \
         one; `--key PUB` or `--trusted-keys FILE` say whom to trust"
    )]
    HeadKey {
        /// Its id.
        keyid: String,
    },
    /// The trust store knows the approver's key, and does not let it approve.
    #[error(
        "the approver's key {keyid} is in the trust store, and is not trusted for `approval` now\n  \
         hint: `forgelm keys show {keyid}` says why"
    )]
    ApproverKey {
        /// Its id.
        keyid: String,
    },
    /// The folders are not as they must be.
    #[error("{}: {problem}", .path.display())]
    Place {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// What was staged is not what was signed.
    #[error("the evidence of the run does not hold, and nothing was decided:\n{}", .lines.join("\n"))]
    Evidence {
        /// What the verifier says.
        lines: Vec<String>,
        /// Which exit code this belongs to.
        class: Class,
    },
    /// The folder has its final name, and the log does not say so.
    #[error(
        "{}: the model was promoted, and this could not be recorded\n  hint: `forgelm approve` once \
         more records it", .final_model.display()
    )]
    Gap {
        /// The model.
        final_model: PathBuf,
        /// Why.
        #[source]
        source: AuditError,
    },
}

fn others(runs: &[String]) -> String {
    match runs {
        [] => "\n  hint: no run there does".to_owned(),
        runs => format!("\n  hint: these do: {}", runs.join(", ")),
    }
}

impl ApprovalError {
    /// How the program ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        let of_class = |class: &Class| match class {
            Class::Accepted => Exit::Success,
            Class::NotCompared => Exit::Config,
            Class::Unreadable => Exit::Runtime,
            Class::Different => Exit::Integrity,
        };
        match self {
            Self::TooFewApprovers { .. }
            | Self::NoFolder { .. }
            | Self::Log { .. }
            | Self::Unknown { .. }
            | Self::Closed { .. }
            | Self::Refused { .. }
            | Self::HeadKey { .. }
            | Self::ApproverKey { .. }
            | Self::Place { .. } => Exit::Config,
            Self::Chain(rejection) => of_class(&rejection.class()),
            Self::Evidence { class, .. } | Self::Head { class, .. } => of_class(class),
            Self::Gap { .. } => Exit::Runtime,
        }
    }
}
