//! Requests to a server, each tried a few times.

use super::payload::{self, METRICS_MAX, PARAMS_MAX};
use super::{About, Ids, Metric, Status};
use crate::destination::Destination;
use crate::guard::{Get, Guard, GuardError, Post};
use serde_json::{Value, json};
use std::time::Duration;

/// Below the server's address.
const API: &str = "api/2.0/mlflow";
/// Tries after the first.
const N_RETRIES: u32 = 3;
/// Before the second try; each pause is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// What an answer may have.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// A server, with what it wants to know of who asks.
#[derive(Debug)]
pub struct Server {
    /// The client.
    pub guard: Guard,
    /// Its address; user and password or a token are a part of it.
    pub address: Destination,
}

/// Waits before another try; false when nobody waits for it any more.
pub(super) type Pause<'a> = &'a dyn Fn(Duration) -> bool;

impl Server {
    /// The run on the server: the one that is continued, else a new one.
    pub(super) fn begin(&self, about: &About, at_ms: i64, pause: Pause<'_>) -> Result<Ids, String> {
        if let Some(ids) = &about.continues {
            match self.post("runs/update", &payload::goes_on(ids), pause) {
                Ok(_) => return Ok(ids.clone()),
                // It was deleted there: then it is a new one.
                Err(GuardError::Status(400 | 404)) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        let experiment_id = self.experiment(&about.experiment, pause)?;
        let ids = self.create(about, experiment_id, at_ms, pause)?;
        for some in about.params.chunks(PARAMS_MAX) {
            let body = payload::params(&ids, some);
            self.post("runs/log-batch", &body, pause).map_err(|error| error.to_string())?;
        }
        Ok(ids)
    }

    fn experiment(&self, name: &str, pause: Pause<'_>) -> Result<String, String> {
        let query = [("experiment_name", name)];
        let found = |answer: &Value| text(answer, "/experiment/experiment_id");
        match self.get("experiments/get-by-name", &query, pause) {
            Ok(answer) => return found(&answer),
            Err(GuardError::Status(404)) => {}
            Err(error) => return Err(error.to_string()),
        }
        match self.post("experiments/create", &json!({"name": name}), pause) {
            Ok(answer) => text(&answer, "/experiment_id"),
            // Somebody else was faster.
            Err(GuardError::Status(400)) => {
                let answer = self.get("experiments/get-by-name", &query, pause);
                found(&answer.map_err(|error| error.to_string())?)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// A new run. A try that got no answer may have made it all the same: it is looked for before the
    /// next one.
    fn create(
        &self,
        about: &About,
        experiment_id: String,
        at_ms: i64,
        pause: Pause<'_>,
    ) -> Result<Ids, String> {
        let body = payload::create_run(about, &experiment_id, at_ms);
        let search = payload::search_run(about, &experiment_id);
        let mut tries = Tries::new();
        let run_id = loop {
            let error = match self.post_once("runs/create", &body) {
                Ok(answer) => break text(&answer, "/run/info/run_id")?,
                Err(error) => error,
            };
            if !tries.goes_on(&error, pause) {
                return Err(error.to_string());
            }
            let found = self.post_once("runs/search", &search);
            if let Some(run_id) = found.ok().and_then(|of| text(&of, "/runs/0/info/run_id").ok()) {
                break run_id;
            }
        };
        Ok(Ids { experiment_id, run_id })
    }

    /// Sends numbers, [`METRICS_MAX`] of them at most.
    pub(super) fn log(
        &self,
        ids: &Ids,
        some: &[Metric],
        pause: Pause<'_>,
    ) -> Result<(), GuardError> {
        debug_assert!(some.len() <= METRICS_MAX, "the caller cuts");
        self.post("runs/log-batch", &payload::metrics(ids, some), pause).map(|_| ())
    }

    pub(super) fn end(
        &self,
        ids: &Ids,
        status: Status,
        at_ms: i64,
        pause: Pause<'_>,
    ) -> Result<(), GuardError> {
        self.post("runs/update", &payload::ended(ids, status, at_ms), pause).map(|_| ())
    }

    fn get(
        &self,
        path: &str,
        query: &[(&str, &str)],
        pause: Pause<'_>,
    ) -> Result<Value, GuardError> {
        let to = self.address.below(&format!("{API}/{path}"), query);
        let get = Get { headers: &[], answer_bytes_max: ANSWER_BYTES_MAX };
        tried(pause, || self.guard.get(&to, get).and_then(|answer| parsed(&answer.body)))
    }

    fn post(&self, path: &str, body: &Value, pause: Pause<'_>) -> Result<Value, GuardError> {
        tried(pause, || self.post_once(path, body))
    }

    fn post_once(&self, path: &str, body: &Value) -> Result<Value, GuardError> {
        let to = self.address.below(&format!("{API}/{path}"), &[]);
        let body = body.to_string();
        let headers = [("Content-Type", "application/json")];
        let post =
            Post { headers: &headers, body: body.as_bytes(), answer_bytes_max: ANSWER_BYTES_MAX };
        self.guard.post(&to, post).and_then(|answer| parsed(&answer.body))
    }
}

fn tried<T>(
    pause: Pause<'_>,
    attempt: impl Fn() -> Result<T, GuardError>,
) -> Result<T, GuardError> {
    let mut tries = Tries::new();
    loop {
        match attempt() {
            Err(error) if tries.goes_on(&error, pause) => {}
            other => return other,
        }
    }
}

/// How often it was tried.
struct Tries {
    n_left: u32,
    pause: Duration,
}

impl Tries {
    const fn new() -> Self {
        Self { n_left: N_RETRIES, pause: FIRST_PAUSE }
    }

    /// Whether there is another try after this error, once it is time for it.
    fn goes_on(&mut self, error: &GuardError, pause: Pause<'_>) -> bool {
        if self.n_left == 0 || !error.is_passing() {
            return false;
        }
        self.n_left -= 1;
        let waited = pause(self.pause);
        self.pause *= 2;
        waited
    }
}

/// An answer; one without a body says nothing.
fn parsed(body: &[u8]) -> Result<Value, GuardError> {
    if body.trim_ascii().is_empty() {
        return Ok(Value::Null);
    }
    let no_json =
        |_| GuardError::Connection("the answer is no JSON: is this an MLflow server?".to_owned());
    serde_json::from_slice(body).map_err(no_json)
}

/// A text in an answer; ids are numbers in some servers' words.
fn text(answer: &Value, place: &str) -> Result<String, String> {
    match answer.pointer(place) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        _ => {
            Err(format!("the answer has no `{}`", place.trim_start_matches('/').replace('/', ".")))
        }
    }
}
