//! What a run tells its observers. A closed list: progress lines, metrics and trackers read it,
//! and nothing reads back from them.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Something that happened in a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A line for who wants to know everything.
    Detail(String),
    /// A fact worth a line.
    Notice(String),
    /// Something that the user may want to change.
    Warning(String),
    /// Bytes of a file that is being fetched.
    Fetched {
        /// Its name.
        file: String,
        /// Bytes so far.
        n_bytes_done: u64,
        /// Bytes in all; 0 if not known.
        n_bytes_total: u64,
    },
    /// The model is in memory.
    ModelLoaded(ModelLoaded),
    /// The data set is tokenized.
    DataReady(DataReady),
    /// An answer of the model, before or after training.
    Sample(Sample),
    /// The reference model has read some more of the data.
    Reference(Reading),
    /// Step 1 comes next.
    Started(Started),
    /// An optimizer step is done.
    Step(Step),
    /// The validation split was scored.
    Evaluation(Evaluation),
    /// A checkpoint is on disk.
    Checkpoint(Checkpoint),
}

/// See [`Event::ModelLoaded`].
#[derive(Clone, Debug, PartialEq)]
pub struct ModelLoaded {
    /// As configured.
    pub name: String,
    /// Parameters of the base model.
    pub n_params: u64,
    /// Parameters of the adapter.
    pub n_trainable: u64,
    /// The kernel library, with its instruction set.
    pub kernels: String,
    /// `float32` or `bfloat16`.
    pub compute_dtype: &'static str,
    /// Worker threads.
    pub n_threads: usize,
    /// Time to load, in seconds.
    pub seconds: f64,
}

/// See [`Event::DataReady`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataReady {
    /// Records to train on.
    pub n_train: usize,
    /// Records held out.
    pub n_validation: usize,
    /// Tokens of the training records.
    pub n_tokens: u64,
    /// Those that are trained.
    pub n_trained_tokens: u64,
    /// Length of the longest record, in tokens.
    pub longest: u64,
    /// Records cut to the longest length allowed.
    pub n_truncated: u64,
}

/// See [`Event::Reference`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Units done.
    pub n_done: usize,
    /// Units in all.
    pub n_total: usize,
}

/// Whether a sample was taken before or after training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// With the model as it came.
    Before,
    /// With the tuned model.
    After,
}

/// See [`Event::Sample`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Before or after training.
    pub when: When,
    /// What was asked.
    pub question: String,
    /// What the data set answers.
    pub expected: String,
    /// What the model answered.
    pub answer: String,
}

/// See [`Event::Started`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Of this run.
    pub run_id: String,
    /// Optimizer steps in all.
    pub n_steps: u64,
    /// Steps already done, when resumed.
    pub n_steps_done: u64,
    /// The run's folder.
    pub output_dir: PathBuf,
    /// Planned memory, in bytes.
    pub memory_bytes_planned: u64,
}

/// See [`Event::Step`].
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// 1-based number of the step.
    pub step: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss over the step's terms: trained tokens, or pairs.
    pub loss: f64,
    /// Learning rate that the step used.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens in the step.
    pub n_tokens: u64,
    /// Trained tokens in the step.
    pub n_trained_tokens: u64,
    /// Trained tokens since the run began.
    pub n_trained_tokens_total: u64,
    /// Wall time of the step, in seconds.
    pub seconds: f64,
    /// Whether this step is due a line where lines are kept.
    pub log: bool,
    /// What the objective measures besides, each a mean.
    pub metrics: BTreeMap<String, f64>,
}

impl Step {
    /// All tokens of the step over its time.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a token count stays far below 2^53")]
    pub fn tokens_per_second(&self) -> f64 {
        self.n_tokens as f64 / self.seconds.max(1e-9)
    }
}

/// See [`Event::Evaluation`].
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Steps done when it was taken.
    pub step: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss over the terms of the validation split: trained tokens, or pairs.
    pub loss: f64,
    /// Trained tokens.
    pub n_trained_tokens: u64,
    /// Wall time, in seconds.
    pub seconds: f64,
    /// Whether it is the lowest so far.
    pub is_best: bool,
    /// What the objective measures besides, each a mean.
    pub metrics: BTreeMap<String, f64>,
}

/// See [`Event::Checkpoint`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Steps done.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

/// Anything that watches a run.
pub trait Observer {
    /// Called once for each event, in order, on the run's thread.
    fn observe(&mut self, event: &Event);
}
