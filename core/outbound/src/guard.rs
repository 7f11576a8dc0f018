//! The client behind every request that a config can send somewhere: it resolves the name once,
//! checks every address, and connects to a checked one.
//!
//! **Invariants:** no second look-up (a name whose answer changes gains nothing); no redirect is
//! followed; no proxy of the environment is used; one deadline covers the look-up, the connection,
//! TLS, and the answer to its last byte; of an answer no more is read than was asked for; an error
//! names no path, no query and no header.

use crate::address::{Blocked, Reach};
use crate::destination::Destination;
use crate::resolve::{Lookup, Resolve, Unresolved, system_lookup};
use std::fmt;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::{Connector as _, RustlsConnector, TcpConnector};
use ureq::{Agent, Body, RequestBuilder};

/// The shortest deadline of a request.
pub const SECONDS_MIN: u64 = 1;
/// The longest.
pub const SECONDS_MAX: u64 = 300;
/// An error's text, in characters.
const TEXT_MAX: usize = 200;

/// Whom TLS servers must have their certificate from.
#[derive(Clone, Default)]
pub enum Trust {
    /// The public authorities, as they are built into the program.
    #[default]
    Public,
    /// These certificates alone.
    Only(Arc<Vec<Certificate<'static>>>),
}

/// A file of certificates that has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("has no certificate; expected PEM with `-----BEGIN CERTIFICATE-----`")]
pub struct NoCertificate;

impl Trust {
    /// The certificates of a PEM file, in place of the public authorities.
    ///
    /// # Errors
    /// If there is none in it.
    pub fn only(pem: &[u8]) -> Result<Self, NoCertificate> {
        let certificate = |item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            Ok(_) | Err(_) => None,
        };
        let found: Vec<Certificate<'static>> = parse_pem(pem).filter_map(certificate).collect();
        if found.is_empty() { Err(NoCertificate) } else { Ok(Self::Only(Arc::new(found))) }
    }

    fn roots(&self) -> RootCerts {
        match self {
            Self::Public => RootCerts::WebPki,
            Self::Only(certificates) => RootCerts::Specific(Arc::clone(certificates)),
        }
    }
}

/// The client. One of them serves any number of requests, one after the other or at once.
#[derive(Clone)]
pub struct Guard {
    agent: Agent,
    deadline: Duration,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// From 200 to 299.
    pub status: u16,
    /// As much as was asked for.
    pub body: Vec<u8>,
}

/// What a server said, whatever it thought of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Any but 300 to 399.
    pub status: u16,
    /// The seconds of its `Retry-After`, where it has one in seconds.
    pub retry_after: Option<Duration>,
    /// As much as was asked for; of an error, no more than that.
    pub body: Vec<u8>,
}

/// Why a request came to nothing. No text has a path, a query, a header or an answer in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// The name stands for an address that may not be reached.
    #[error("{0}, which is not allowed")]
    Blocked(Blocked),
    /// The name stands for nothing.
    #[error("the name cannot be resolved: {0}")]
    Unresolved(String),
    /// Time ran out.
    #[error("no complete answer within {0} s")]
    Deadline(u64),
    /// It was sent elsewhere.
    #[error("status {0}: redirects are not followed")]
    Redirect(u16),
    /// Another status than success.
    #[error("status {0}")]
    Status(u16),
    /// More was answered than was asked for.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(u64),
    /// It could not be signed.
    #[error("it cannot be signed: {0}")]
    Unsigned(String),
    /// The certificate, or what else TLS needs.
    #[error("TLS: {0}")]
    Tls(String),
    /// The connection.
    #[error("{0}")]
    Connection(String),
}

impl GuardError {
    /// Whether another try may fare better.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        match self {
            Self::Unresolved(_) | Self::Deadline(_) | Self::Connection(_) | Self::Unsigned(_) => {
                true
            }
            Self::Status(status) => matches!(status, 408 | 425 | 429 | 500..=599),
            Self::Blocked(_) | Self::Redirect(_) | Self::TooLarge(_) | Self::Tls(_) => false,
        }
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Post<'a> {
    /// Names and values, beside those that HTTP needs.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
    /// Bytes of the answer that are read; more is an error. With 0 the answer is not read at all.
    pub answer_bytes_max: u64,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Get<'a> {
    /// Names and values, beside those that HTTP needs.
    pub headers: &'a [(&'a str, &'a str)],
    /// Bytes of the answer that are read; more is an error.
    pub answer_bytes_max: u64,
}

impl Guard {
    /// A client whose requests take `seconds` at most, from 1 to 300.
    #[must_use]
    pub fn new(reach: Reach, trust: &Trust, seconds: u64) -> Self {
        Self::with_lookup(reach, trust, seconds, Arc::new(system_lookup))
    }

    /// As [`Guard::new`], with names looked up elsewhere.
    #[must_use]
    pub fn with_lookup(reach: Reach, trust: &Trust, seconds: u64, lookup: Lookup) -> Self {
        let deadline = Duration::from_secs(seconds.clamp(SECONDS_MIN, SECONDS_MAX));
        let config = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .max_idle_connections(0)
            .timeout_global(Some(deadline))
            .user_agent(concat!("forgelm/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(trust.roots()).build())
            .build();
        // Neither a proxy nor a pool is in this chain: what is connected to was resolved here.
        let connector = TcpConnector::default().chain(RustlsConnector::default());
        let agent = Agent::with_parts(config, connector, Resolve { reach, lookup });
        Self { agent, deadline }
    }

    /// The longest that a request takes.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// [`GuardError`]; an answer with another status than 200 to 299 is one.
    pub fn post(&self, to: &Destination, post: Post<'_>) -> Result<Answer, GuardError> {
        let response = self.send(to, post)?;
        self.answer(response, post.answer_bytes_max)
    }

    /// As [`Guard::post`], for a server that explains its errors: a status is no error but a redirect.
    ///
    /// # Errors
    /// [`GuardError`].
    pub fn exchange(&self, to: &Destination, post: Post<'_>) -> Result<Reply, GuardError> {
        let mut response = self.send(to, post)?;
        let status = response.status().as_u16();
        let seconds = response.headers().get("Retry-After").and_then(|value| value.to_str().ok());
        let retry_after =
            seconds.and_then(|text| text.trim().parse().ok().map(Duration::from_secs));
        let body = match self.read(&mut response, post.answer_bytes_max) {
            Ok(body) => body,
            Err(error) if (200..=299).contains(&status) => return Err(error),
            // The status says enough.
            Err(_) => Vec::new(),
        };
        Ok(Reply { status, retry_after, body })
    }

    /// Sends a request; what comes back is not sent elsewhere.
    fn send(&self, to: &Destination, post: Post<'_>) -> Result<Response<Body>, GuardError> {
        let request = with_headers(self.agent.post(to.uri()), post.headers, to);
        let response = request.send(post.body).map_err(|error| self.error(error))?;
        stays(response)
    }

    /// Asks for something and waits for the answer.
    ///
    /// # Errors
    /// As [`Guard::post`].
    pub fn get(&self, to: &Destination, get: Get<'_>) -> Result<Answer, GuardError> {
        let request = with_headers(self.agent.get(to.uri()), get.headers, to);
        let response = request.call().map_err(|error| self.error(error))?;
        self.answer(stays(response)?, get.answer_bytes_max)
    }

    /// An answer of which only the good kind is wanted.
    fn answer(&self, mut response: Response<Body>, bytes_max: u64) -> Result<Answer, GuardError> {
        let status = response.status().as_u16();
        if !(200..=299).contains(&status) {
            return Err(GuardError::Status(status));
        }
        Ok(Answer { status, body: self.read(&mut response, bytes_max)? })
    }

    /// The body, which may have `bytes_max` bytes; with 0 it is not read.
    fn read(&self, response: &mut Response<Body>, bytes_max: u64) -> Result<Vec<u8>, GuardError> {
        let mut body = Vec::new();
        if bytes_max > 0 {
            // One byte more than allowed is enough to be refused.
            let mut reader = response.body_mut().as_reader().take(bytes_max + 1);
            reader.read_to_end(&mut body).map_err(|error| self.error(error.into()))?;
            if body.len() as u64 > bytes_max {
                return Err(GuardError::TooLarge(bytes_max));
            }
        }
        Ok(body)
    }

    fn error(&self, error: ureq::Error) -> GuardError {
        match error {
            ureq::Error::Other(other) => match other.downcast::<Unresolved>() {
                Ok(unresolved) => match *unresolved {
                    Unresolved::Blocked(blocked) => GuardError::Blocked(blocked),
                    Unresolved::NoAddress => GuardError::Unresolved("it has no address".to_owned()),
                    Unresolved::Lookup(text) => GuardError::Unresolved(shortened(&text)),
                },
                Err(other) => GuardError::Connection(shortened(&other.to_string())),
            },
            ureq::Error::Timeout(_) => GuardError::Deadline(self.deadline.as_secs()),
            ureq::Error::HostNotFound => GuardError::Unresolved("no such name".to_owned()),
            ureq::Error::Tls(text) => GuardError::Tls(text.to_owned()),
            ureq::Error::Rustls(error) => GuardError::Tls(shortened(&error.to_string())),
            // In here an error of TLS or of time comes as one of reading or writing.
            ureq::Error::Io(error) => match error.kind() {
                std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => {
                    GuardError::Deadline(self.deadline.as_secs())
                }
                std::io::ErrorKind::InvalidData => GuardError::Tls(shortened(&error.to_string())),
                _ if is_timeout(&error) => GuardError::Deadline(self.deadline.as_secs()),
                _ => GuardError::Connection(shortened(&error.to_string())),
            },
            ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => {
                GuardError::Connection("the answer is not HTTP".to_owned())
            }
            // Texts of the others may repeat the address.
            _ => GuardError::Connection("the request could not be sent".to_owned()),
        }
    }
}

/// A request with its headers, and who asks.
fn with_headers<B>(
    request: RequestBuilder<B>,
    headers: &[(&str, &str)],
    to: &Destination,
) -> RequestBuilder<B> {
    let who = to.authorization().map(|value| ("Authorization", value));
    headers
        .iter()
        .copied()
        .chain(who)
        .fold(request, |request, (name, value)| request.header(name, value))
}

/// Nothing is sent elsewhere because an answer says so.
fn stays(response: Response<Body>) -> Result<Response<Body>, GuardError> {
    match response.status().as_u16() {
        status @ 300..=399 => Err(GuardError::Redirect(status)),
        _ => Ok(response),
    }
}

/// Whether the library's own error of time is in this one.
fn is_timeout(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    matches!(inner, Some(ureq::Error::Timeout(_)))
}

/// A text of the system or of a library, cut to what fits a line.
fn shortened(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
