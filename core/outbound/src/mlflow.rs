//! A run on an MLflow server, through its REST API 2.0.
//!
//! [`payload`] makes the bodies, [`client`] sends them, [`queue`] does so on a thread of its own.
//! Numbers keep the time at which they were measured, so that one that is sent twice is one number.
//!
//! Source: the REST API page of MLflow; limits are those of its `log-batch`.

mod client;
mod payload;
pub mod queue;

pub use client::Server;

/// A number of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name; see [`metric_name`].
    pub name: String,
    /// The number.
    pub value: f64,
    /// Steps done.
    pub step: u64,
    /// Milliseconds since 1970.
    pub at_ms: i64,
}

/// What a run is called and was made with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The experiment.
    pub experiment: String,
    /// The run.
    pub name: String,
    /// Its id here: a try that got no answer is found again by it.
    pub run_id: String,
    /// Names and values of tags.
    pub tags: Vec<(String, String)>,
    /// Names and values of parameters.
    pub params: Vec<(String, String)>,
    /// The run on the server that is continued, if one is.
    pub continues: Option<Ids>,
}

/// A run as the server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The experiment.
    pub experiment_id: String,
    /// The run.
    pub run_id: String,
}

/// How a run ended, in the server's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// With a model, kept or not.
    Finished,
    /// With an error.
    Failed,
    /// Stopped on request, or not ended yet.
    Killed,
}

impl Status {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }
}

/// A name that the server takes: what it refuses becomes `_`.
#[must_use]
pub fn metric_name(name: &str) -> String {
    const LENGTH_MAX: usize = 250;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-. :/".contains(c);
    name.chars().map(|c| if allowed(c) { c } else { '_' }).take(LENGTH_MAX).collect()
}
