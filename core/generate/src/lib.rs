//! Text from a model, token by token: a sampler and the loop around it; and how likely a model finds
//! texts that are there already.
//!
//! It takes token ids and gives token ids; what they spell is the tokenizer's business, and who
//! sees them is the caller's. The same model, prompt, options and seed give the same tokens.
//! Start at [`Generator`], [`Scorer`] or [`FamilyScorer`].
#![expect(
    clippy::cast_possible_truncation,
    reason = "probabilities in f64 are stored as f32; token ids are below 2^32"
)]

mod families;
mod generator;
mod sampler;
mod scorer;

pub use families::{Continuation, FamilyOptions, FamilyScorer, Likelihood, shared_beginning};
pub use generator::{
    GenerateError, GenerateOptions, Generated, Generator, Request, RequestError, StopReason, Watch,
};
pub use sampler::{
    ADAPTIVE_ENTROPY_MAX, LogitStats, NotANumber, Sampler, Sampling, SamplingError, logit_stats,
};
pub use scorer::{ScoreError, ScoreRequest, Scorer};
