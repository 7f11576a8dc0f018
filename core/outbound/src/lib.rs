//! What a run says to the world outside, or asks it: notices to a webhook, metrics to a monitor,
//! numbers to a tracker, questions to a model behind an API. Everything
//! that a config can make the program connect to goes through [`guard::Guard`].
//!
//! It refuses to know runs, models and signing keys: payloads are made from plain values, and what
//! signs is passed in. It refuses to fail: an error is told, and whoever sends goes on.
//!
//! Start reading at [`guard`], then [`courier`]; [`notice`] is what is said. [`chat_api`] is the one
//! part that waits for an answer.

pub mod address;
pub mod chat_api;
pub mod courier;
pub mod destination;
pub mod guard;
pub mod listen;
pub mod metrics;
pub mod mlflow;
pub mod notice;
mod protobuf;
pub mod redact;
mod resolve;
pub mod signed;
pub mod tensorboard;
#[cfg(test)]
mod tests;
pub mod wandb;
