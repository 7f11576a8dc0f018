//! The step ledger of a run (`step_ledger.jsonl`): written as steps are made and, when a run is
//! reproduced, compared with that of the run.

use crate::error::RunError;
use forgelm_artifact::write::{self, AppendLog};
use forgelm_train::checkpoint;
use forgelm_train::ledger::{
    self, CheckpointEntry, Entry, EvaluationEntry, GENESIS, LEDGER_FORMAT, Start, StepEntry,
};
use forgelm_train::session::{Cut, Session, StepReport};
use forgelm_train::state::Identity;
use std::path::Path;

/// Name of the ledger in a run's folder.
pub const LEDGER_FILE: &str = "step_ledger.jsonl";

/// The ledger of the run that is reproduced.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// What the compared steps were made from.
    pub start: Start,
    /// The steps and evaluations to compare, in order.
    pub entries: Vec<Entry>,
    /// Whether the config still names the model and the data as it did.
    pub is_same_config: bool,
    /// Whether the run ends with the last of them.
    pub ends_there: bool,
}

/// The file, once the session stands.
#[derive(Default)]
pub(super) struct Ledger {
    file: Option<(AppendLog, String)>,
    expected: Option<Expected>,
    n_compared: usize,
}

impl Ledger {
    /// A ledger that compares as it goes, where there is something to compare with.
    pub(super) fn new(expected: Option<Expected>) -> Self {
        Self { expected, ..Self::default() }
    }

    /// Opens the file, for a session before its next step. Lines of later steps, which a killed run
    /// wrote after its last checkpoint, are dropped. Where the steps before are missing or were made
    /// from something else, a new start says so.
    pub(super) fn begin(
        &mut self,
        path: &Path,
        session: &Session<'_>,
        n_threads: usize,
    ) -> Result<(), RunError> {
        let state = session.state();
        let weights = session.weights_sha256(n_threads)?;
        let start = start_of(&state.identity, state.global_step, state.max_steps, weights);
        if let Some(expected) = &self.expected {
            check_start(expected, &start)?;
        }
        let kept = kept(path, &start);
        let head = kept.lines().last().map_or_else(|| GENESIS.to_owned(), ledger::head_after);
        write::atomic(path, kept.as_bytes())?;
        self.file = Some((AppendLog::open(path)?, head));
        if begins_anew(&kept, &start) {
            self.append(&Entry::Start(start))?;
        }
        Ok(())
    }

    /// Whether another run is compared with.
    pub(super) fn is_comparing(&self) -> bool {
        self.expected.is_some()
    }

    /// How the next step is to be cut, where it is compared.
    pub(super) fn expected_cut(&self) -> Option<Cut> {
        let mut coming = self.expected.iter().flat_map(|of| &of.entries[self.n_compared..]);
        coming.find_map(|entry| match entry {
            Entry::Step(step) => Some(step.cut),
            Entry::Start(_) | Entry::Evaluation(_) | Entry::Checkpoint(_) => None,
        })
    }

    /// Whether everything that was to be compared has been, and the run ends with it.
    pub(super) fn is_compared(&self) -> bool {
        self.expected
            .as_ref()
            .is_some_and(|of| of.ends_there && self.n_compared == of.entries.len())
    }

    /// A step was made.
    pub(super) fn step(
        &mut self,
        session: &Session<'_>,
        report: &StepReport,
        n_threads: usize,
    ) -> Result<(), RunError> {
        let step = session.state().global_step;
        self.add(Entry::Step(StepEntry {
            step,
            cut: session.cut(),
            units: session.units(step - 1),
            loss: report.loss,
            grad_norm: report.grad_norm,
            weights_sha256: session.weights_sha256(n_threads)?,
        }))
    }

    /// The validation split was scored.
    pub(super) fn evaluation(&mut self, step: u64, eval_loss: f64) -> Result<(), RunError> {
        self.add(Entry::Evaluation(EvaluationEntry { step, eval_loss }))
    }

    /// A checkpoint was written.
    pub(super) fn checkpoint(&mut self, step: u64, path: &Path) -> Result<(), RunError> {
        let optimizer_sha256 = checkpoint::optimizer_sha256(path)?;
        self.append(&Entry::Checkpoint(CheckpointEntry { step, optimizer_sha256 }))
    }

    /// Writes an entry, then compares it.
    fn add(&mut self, entry: Entry) -> Result<(), RunError> {
        self.append(&entry)?;
        let Some(expected) = &self.expected else { return Ok(()) };
        if let Some(then) = expected.entries.get(self.n_compared) {
            compare(then, &entry)?;
            self.n_compared += 1;
        }
        Ok(())
    }

    fn append(&mut self, entry: &Entry) -> Result<(), RunError> {
        let Some((log, head)) = &mut self.file else { return Ok(()) };
        let line = entry.to_line(head);
        log.append_line(&line)?;
        *head = ledger::head_after(&line);
        Ok(())
    }
}

fn start_of(identity: &Identity, after_step: u64, n_steps: u64, weights_sha256: String) -> Start {
    let mut config = identity.config.clone();
    if let Some(sections) = config.as_object_mut() {
        // Gates judge the weights, and decide none of them.
        sections.shift_remove("evaluation");
    }
    let config = forgelm_config::python_json(&config);
    Start {
        format: LEDGER_FORMAT,
        after_step,
        n_steps,
        config_sha256: forgelm_artifact::hash::sha256_bytes(config.as_bytes()).as_str().to_owned(),
        data_sha256: identity.data_sha256.clone(),
        model_sha256: identity.model_sha256.clone(),
        reward_model_sha256: identity.reward_model_sha256.clone(),
        compute_dtype: identity.compute_dtype.clone(),
        kernels: identity.kernels.clone(),
        template_now: identity.template_now,
        weights_sha256,
    }
}

/// The lines of a ledger up to the step where a run goes on; nothing where they do not reach it.
fn kept(path: &Path, start: &Start) -> String {
    if start.after_step == 0 {
        return String::new();
    }
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // A kill may have torn the last line.
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    let Ok(entries) = ledger::read(whole) else { return String::new() };
    let n_kept = entries.iter().take_while(|entry| entry.step() <= start.after_step).count();
    let reaches = entries[..n_kept].last().is_some_and(|last| last.step() == start.after_step);
    if !reaches {
        return String::new();
    }
    whole.split_inclusive('\n').take(n_kept).collect()
}

/// Whether what follows the kept lines is made from something else than they were.
fn begins_anew(kept: &str, start: &Start) -> bool {
    let entries = ledger::read(kept).unwrap_or_default();
    let weights = entries.iter().rev().find_map(|entry| match entry {
        Entry::Step(step) => Some(&step.weights_sha256),
        Entry::Start(start) => Some(&start.weights_sha256),
        Entry::Evaluation(_) | Entry::Checkpoint(_) => None,
    });
    let made_from = entries.iter().rev().find_map(|entry| match entry {
        Entry::Start(start) => Some(start),
        Entry::Step(_) | Entry::Evaluation(_) | Entry::Checkpoint(_) => None,
    });
    let same = made_from.is_some_and(|before| {
        let (after_step, weights_sha256) = (start.after_step, start.weights_sha256.clone());
        *start == Start { after_step, weights_sha256, ..before.clone() }
    });
    !same || weights != Some(&start.weights_sha256)
}

/// What this run is made from must be what the reproduced one was made from.
fn check_start(expected: &Expected, start: &Start) -> Result<(), RunError> {
    let then = &expected.start;
    let none = || "none".to_owned();
    let reward = |of: &Start| of.reward_model_sha256.clone().unwrap_or_else(none);
    let config = |of: &Start| match expected.is_same_config {
        true => of.config_sha256.clone(),
        false => none(),
    };
    for (what, then, now) in [
        ("the kernels", then.kernels.clone(), start.kernels.clone()),
        ("the compute dtype", then.compute_dtype.clone(), start.compute_dtype.clone()),
        ("the data (SHA-256)", then.data_sha256.clone(), start.data_sha256.clone()),
        ("the base model (SHA-256)", then.model_sha256.clone(), start.model_sha256.clone()),
        ("the reward model (SHA-256)", reward(then), reward(start)),
        ("the config (SHA-256)", config(then), config(start)),
        ("the number of steps", then.n_steps.to_string(), start.n_steps.to_string()),
        ("what trains (SHA-256)", then.weights_sha256.clone(), start.weights_sha256.clone()),
    ] {
        if then != now {
            return Err(RunError::Diverged { step: start.after_step, what, then, now });
        }
    }
    Ok(())
}

fn compare(then: &Entry, now: &Entry) -> Result<(), RunError> {
    if then == now {
        return Ok(());
    }
    let (what, was, is) = match (then, now) {
        (Entry::Step(then), Entry::Step(now)) => {
            let fields = [
                ("the step", then.step.to_string(), now.step.to_string()),
                ("the batch", format!("{:?}", then.units), format!("{:?}", now.units)),
                ("the cut", format!("{:?}", then.cut), format!("{:?}", now.cut)),
                ("the loss", then.loss.to_string(), now.loss.to_string()),
                ("the gradient's norm", then.grad_norm.to_string(), now.grad_norm.to_string()),
                ("the weights (SHA-256)", then.weights_sha256.clone(), now.weights_sha256.clone()),
            ];
            let differs = fields.into_iter().find(|(_, then, now)| then != now);
            differs.unwrap_or(("the step", String::new(), String::new()))
        }
        (Entry::Evaluation(then), Entry::Evaluation(now)) if then.step == now.step => {
            ("the validation loss", then.eval_loss.to_string(), now.eval_loss.to_string())
        }
        _ => ("what happens", format!("{then:?}"), format!("{now:?}")),
    };
    Err(RunError::Diverged { step: now.step(), what, then: was, now: is })
}
