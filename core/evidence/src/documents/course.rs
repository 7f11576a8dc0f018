//! The course of a run: what happened between its first and its last step, for people who look at
//! curves. Plain data, which the run fills in when it has ended.

/// How a run went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Course {
    /// Steps in their order; of a long run no more than can be drawn, peaks and valleys kept.
    pub steps: Vec<StepPoint>,
    /// Evaluations in their order; step 0 is the model before training.
    pub evaluations: Vec<EvaluationPoint>,
    /// What was trained on and what was held out, in tokens.
    pub splits: Vec<Split>,
    /// A question, and what the model answered.
    pub samples: Samples,
}

/// An optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepPoint {
    /// 1-based.
    pub step: u64,
    /// Mean loss.
    pub loss: f64,
    /// That the step used.
    pub learning_rate: f64,
    /// Before clipping.
    pub grad_norm: f64,
}

/// The validation split, scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvaluationPoint {
    /// Steps done.
    pub step: u64,
    /// Mean loss.
    pub loss: f64,
}

/// Records of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// `training`, `held out`.
    pub name: &'static str,
    /// Records.
    pub n_records: u64,
    /// Their tokens.
    pub n_tokens: u64,
    /// Those that are trained, or scored.
    pub n_trained_tokens: u64,
    /// The longest, in tokens; none where it was not counted.
    pub longest: Option<u64>,
    /// Cut to the longest length allowed, likewise.
    pub n_truncated: Option<u64>,
}

/// One question of the data, before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Samples {
    /// Nothing was asked.
    #[default]
    None,
    /// Something was asked, and is not repeated in documents.
    LeftOut,
    /// What was asked, personal data and secrets masked.
    Asked {
        /// The question.
        question: String,
        /// What the data answers.
        expected: String,
        /// What the model answered before training; none where another process began the run.
        before: Option<String>,
        /// What the tuned model answers.
        after: Option<String>,
        /// Places that were masked.
        n_masked: u64,
    },
}
