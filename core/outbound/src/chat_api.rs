//! A model behind an HTTP API, asked one question at a time: the chat completions of OpenAI and of
//! everything compatible with it, Azure's form of them, and Anthropic's messages.
//!
//! It refuses to know what is asked, and what an answer is worth.
//!
//! **Invariants:** the key goes into one header and into no message; an answer is bounded in bytes and
//! a question in time; a question that may have been answered (time ran out) is not asked again, since
//! answers are paid for; no text of a server is repeated, but for the word that it calls an error by.

mod dialect;
mod endpoint;

use crate::destination::{Destination, DestinationError};
use crate::guard::{Guard, GuardError, Post};
pub use dialect::Dialect;
use dialect::{Found, read_answer, read_error};
pub use endpoint::DEFAULT_BASE;
use forgelm_artifact::Clock;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use ureq::http::HeaderValue;

/// Bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Tries of one question.
const TRIES_MAX: u32 = 8;
/// The longest pause that is chosen here; a server may ask for a longer one.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Questions in a row that every try failed for: the server is down.
const LOST_MAX: u32 = 3;
/// How often it is seen that nobody waits any more.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How fast questions follow each other, and how long one is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between the end of a try and the next one.
    pub delay: Duration,
    /// After the first failure; it doubles with each.
    pub first_pause: Duration,
    /// No try of a question begins later than this after its first.
    pub patience: Duration,
}

/// What an API is opened with.
pub struct ChatApiOptions<'a> {
    /// The base, such as `https://api.openai.com/v1`, or the whole endpoint.
    pub base: &'a str,
    /// As the API calls it.
    pub model: &'a str,
    /// Without one nothing is sent in its place.
    pub key: Option<&'a str>,
    /// How fast.
    pub pace: Pace,
}

/// Why an API cannot be asked at all. Nothing was sent, and no text repeats the address or the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The address.
    #[error(transparent)]
    Address(#[from] DestinationError),
    /// It names a user.
    #[error("has a user in it; expected an address, and the key in a variable")]
    User,
    /// The key.
    #[error("has characters that a key cannot have")]
    Key,
}

/// A question.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// How the model is to be.
    pub system: Option<&'a str>,
    /// What it is asked.
    pub user: &'a str,
    /// The longest answer.
    pub max_tokens: u64,
    /// Of sampling.
    pub temperature: f64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its text; may be empty.
    pub text: String,
    /// Whether it ended because it was too long.
    pub is_cut: bool,
    /// Requests that were sent for it.
    pub n_tries: u32,
}

/// No answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}{}", after(*.n_tries))]
pub struct Unanswered {
    /// Why.
    pub error: ChatError,
    /// Whether the next question would fare no better.
    pub is_final: bool,
    /// Requests that were sent for it.
    pub n_tries: u32,
}

fn after(n_tries: u32) -> String {
    if n_tries > 1 { format!(", after {n_tries} tries") } else { String::new() }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// Nobody waits for it any more.
    #[error("stopped as asked")]
    Stopped,
    /// The way there.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// What the server calls it.
    #[error("status {status}{}{}", shown(.code.as_deref()), hint(*.status))]
    Status {
        /// Outside 200 to 399.
        status: u16,
        /// The server's word for it, such as `model_not_found`.
        code: Option<String>,
    },
    /// Success, and no answer in it.
    #[error("the server's answer {0}")]
    Shape(&'static str),
}

fn shown(code: Option<&str>) -> String {
    code.map_or_else(String::new, |code| format!(" ({code})"))
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => ": the key is refused",
        404 | 405 => ": the address or the model's name is wrong",
        402 => ": the account has nothing left",
        _ => "",
    }
}

impl ChatError {
    /// Whether every other question would end the same way.
    fn is_final(&self) -> bool {
        match self {
            Self::Stopped => true,
            Self::Guard(error) => match error {
                GuardError::Blocked(_)
                | GuardError::Redirect(_)
                | GuardError::Tls(_)
                | GuardError::Unsigned(_) => true,
                GuardError::Unresolved(_)
                | GuardError::Deadline(_)
                | GuardError::Status(_)
                | GuardError::TooLarge(_)
                | GuardError::Connection(_) => false,
            },
            Self::Status { status, code } => {
                matches!(status, 401..=405) || code.as_deref() == Some("insufficient_quota")
            }
            Self::Shape(_) => false,
        }
    }

    /// Whether the same question may fare better in a while. One that ran out of time may have been
    /// answered, and paid for.
    fn is_passing(&self) -> bool {
        match self {
            Self::Guard(error) => {
                matches!(error, GuardError::Unresolved(_) | GuardError::Connection(_))
            }
            Self::Status { status, .. } => {
                matches!(status, 408 | 425 | 429 | 500..=599) && !self.is_final()
            }
            Self::Stopped | Self::Shape(_) => false,
        }
    }
}

/// The client of one API and model.
pub struct ChatApi {
    guard: Guard,
    destination: Destination,
    dialect: Dialect,
    model: String,
    /// Never shown.
    key: Option<String>,
    pace: Pace,
    clock: Arc<dyn Clock>,
    is_first: bool,
    /// Newer models of OpenAI know the bound of an answer by another name.
    bounds_completion: bool,
    n_lost: u32,
}

impl ChatApi {
    /// Finds out how an address is asked. Nothing is sent.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        options: &ChatApiOptions<'_>,
        guard: Guard,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        let (destination, dialect) = endpoint::of(options.base, options.model)?;
        if destination.has_user() {
            return Err(OpenError::User);
        }
        let key = options.key.map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned);
        if key.as_deref().is_some_and(|key| HeaderValue::from_str(key).is_err()) {
            return Err(OpenError::Key);
        }
        Ok(Self {
            guard,
            destination,
            dialect,
            model: options.model.to_owned(),
            key,
            pace: options.pace,
            clock,
            is_first: true,
            bounds_completion: false,
            n_lost: 0,
        })
    }

    /// Where questions go; shows scheme and host alone.
    #[must_use]
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// How it is spoken to.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Asks, again where another try may help, and waits between tries.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub fn ask(
        &mut self,
        question: &Question<'_>,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Said, Unanswered> {
        let start = self.clock.monotonic();
        let mut pause = self.pace.first_pause;
        let mut n_tries = 0;
        loop {
            let delay = if self.is_first { Duration::ZERO } else { self.pace.delay };
            if !wait(delay, is_stopped) {
                return Err(Unanswered { error: ChatError::Stopped, is_final: true, n_tries });
            }
            self.is_first = false;
            n_tries += 1;
            let (error, retry_after) = match self.try_once(question) {
                Ok(found) => {
                    self.n_lost = 0;
                    return Ok(Said { text: found.text, is_cut: found.is_cut, n_tries });
                }
                Err(failed) => failed,
            };
            if self.is_other_bound(&error) {
                self.bounds_completion = true;
                continue;
            }
            // What the server asks for counts, but it holds up nobody for longer than the patience.
            let next = retry_after.unwrap_or(pause).max(self.pace.delay);
            let spent = self.clock.monotonic().saturating_sub(start);
            let is_over = n_tries >= TRIES_MAX || spent.saturating_add(next) > self.pace.patience;
            if !error.is_passing() || is_over {
                self.n_lost = if error.is_passing() { self.n_lost + 1 } else { 0 };
                let is_final = error.is_final() || self.n_lost >= LOST_MAX;
                return Err(Unanswered { error, is_final, n_tries });
            }
            if !wait(next.saturating_sub(self.pace.delay), is_stopped) {
                return Err(Unanswered { error: ChatError::Stopped, is_final: true, n_tries });
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn try_once(&self, question: &Question<'_>) -> Result<Found, (ChatError, Option<Duration>)> {
        let body = self.dialect.body(&self.model, question, self.bounds_completion).to_string();
        let value = self.key.as_deref().map(|key| self.dialect.key_header(key));
        let mut headers =
            vec![("Content-Type", "application/json"), ("Accept", "application/json")];
        headers.extend(self.dialect.headers());
        headers.extend(value.as_ref().map(|(name, value)| (*name, value.as_str())));
        let post =
            Post { headers: &headers, body: body.as_bytes(), answer_bytes_max: ANSWER_BYTES_MAX };
        let reply = self.guard.exchange(&self.destination, post).map_err(|e| (e.into(), None))?;
        match reply.status {
            200..=299 => read_answer(self.dialect, &reply.body)
                .map_err(|what| (ChatError::Shape(what), None)),
            status => {
                let code = read_error(&reply.body, self.key.as_deref());
                Err((ChatError::Status { status, code }, reply.retry_after))
            }
        }
    }

    /// Whether the server wants `max_completion_tokens`: it means the same, and is only then sent.
    fn is_other_bound(&self, error: &ChatError) -> bool {
        let ChatError::Status { status: 400, code: Some(code) } = error else { return false };
        let is_of_openai = matches!(self.dialect, Dialect::OpenAi | Dialect::Azure);
        !self.bounds_completion && is_of_openai && code == "unsupported_parameter"
    }
}

/// Waits; false as soon as nobody waits any more.
fn wait(how_long: Duration, is_stopped: &dyn Fn() -> bool) -> bool {
    let mut left = how_long;
    while !left.is_zero() && !is_stopped() {
        let slice = left.min(LOOK_EVERY);
        thread::sleep(slice);
        left -= slice;
    }
    !is_stopped()
}
