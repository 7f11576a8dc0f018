//! From keys of the config to a client and an address.

use crate::environment::Environment;
use crate::event::{Event, Observer};
use crate::exit::Exit;
use forgelm_artifact::open;
use forgelm_outbound::address::Reach;
use forgelm_outbound::chat_api::OpenError;
use forgelm_outbound::destination::{Destination, DestinationError};
use forgelm_outbound::guard::{NoCertificate, Trust};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A file of certificates that is larger is none.
const CERTIFICATES_BYTES_MAX: u64 = 4 << 20;

/// What a config names and nothing can be sent to. No text repeats an address.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The address.
    #[error("`{place}`{} {source}", shown_variable(.variable.as_deref()))]
    Address {
        /// The key.
        place: &'static str,
        /// The environment variable that it names, where that is what was read.
        variable: Option<String>,
        /// What is wrong.
        source: DestinationError,
    },
    /// `require_https`, and it is not.
    #[error(
        "`{place}` is an `http://` address, and `webhook.require_https` is true\n  hint: use \
         `https://`"
    )]
    NotHttps {
        /// The key.
        place: &'static str,
    },
    /// The file of certificates cannot be read.
    #[error("`{place}`: cannot be read")]
    Certificates {
        /// The key.
        place: &'static str,
        /// The cause.
        #[source]
        source: open::OpenError,
    },
    /// The file has none.
    #[error("`{place}`: {}: {source}", .path.display())]
    NoCertificate {
        /// The key.
        place: &'static str,
        /// The file.
        path: PathBuf,
        /// What was expected.
        source: NoCertificate,
    },
    /// A model behind an API that cannot be asked.
    #[error("`{place}` {source}")]
    Api {
        /// The key.
        place: &'static str,
        /// What is wrong.
        source: OpenError,
    },
    /// `http://`, and the section does not allow addresses inside the network.
    #[error(
        "`{place}` is an `http://` address: what is asked, and the key, can be read on the way\n  hint: \
         `https://`; or `{section}.allow_private_destinations: true`, and then `http://` only reaches \
         addresses inside the network"
    )]
    PlainApi {
        /// The key.
        place: &'static str,
        /// Where `allow_private_destinations` is.
        section: &'static str,
    },
    /// A model behind an API, offline.
    #[error(
        "`{place}`: nothing is asked offline\n  hint: without `--offline`; or \
         `{section}.allow_private_destinations: true` for an API inside the network"
    )]
    ApiOffline {
        /// The key.
        place: &'static str,
        /// Where `allow_private_destinations` is.
        section: &'static str,
    },
    /// Time stamps are required where nothing may be sent.
    #[error(
        "`signing.require_timestamp` is true, and nothing is sent offline\n  hint: without `--offline`, \
         or without `require_timestamp`"
    )]
    StampsOffline,
    /// A tracker whose address nobody named.
    #[error(
        "`training.report_to` is `mlflow`, and the variable `{variable}` is not set\n  hint: the address \
         of the server, as in `http://127.0.0.1:5000`; or another `report_to`"
    )]
    NoTracker {
        /// The variable.
        variable: &'static str,
    },
    /// No address of this machine.
    #[error(
        "`monitoring.listen` is `{address}`; expected `ADDRESS:PORT` in numbers, such as \
         `127.0.0.1:9464`"
    )]
    Listen {
        /// As written.
        address: String,
    },
    /// Another program has it, or this machine does not.
    #[error("`monitoring.listen`: {address} cannot be listened at")]
    NotFree {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// No thread for it.
    #[error("no thread for what is sent")]
    Thread(#[source] std::io::Error),
}

impl OutboundError {
    /// The exit code that it leads to.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Certificates { source, .. } => source.class().into(),
            Self::NotFree { .. } | Self::Thread(_) => Exit::Runtime,
            Self::Address { .. }
            | Self::NotHttps { .. }
            | Self::Api { .. }
            | Self::PlainApi { .. }
            | Self::ApiOffline { .. }
            | Self::StampsOffline
            | Self::NoCertificate { .. }
            | Self::NoTracker { .. }
            | Self::Listen { .. } => Exit::Config,
        }
    }
}

fn shown_variable(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!(": the variable `{name}`"))
}

/// The address of a section: the variable that it names, where it is set, else the one that is
/// written. None where there is neither.
pub(super) fn destination(
    env: &Environment,
    (place, written): (&'static str, Option<&str>),
    (place_env, variable): (&'static str, Option<&str>),
) -> Result<Option<Destination>, OutboundError> {
    let found = variable.and_then(|name| Some((name, (env.variable)(name)?)));
    let (place, text, variable) = match (&found, written.filter(|text| !text.is_empty())) {
        (Some((name, text)), _) => (place_env, text.as_str(), Some((*name).to_owned())),
        (None, Some(text)) => (place, text, None),
        (None, None) => return Ok(None),
    };
    let destination = Destination::parse(text);
    let destination =
        destination.map_err(|source| OutboundError::Address { place, variable, source })?;
    Ok(Some(destination))
}

/// An address as a plan shows it; the environment is not asked.
pub(crate) fn shown(written: Option<&str>, variable: Option<&str>) -> Option<String> {
    let written =
        written.filter(|text| !text.is_empty()).map(|text| match Destination::parse(text) {
            Ok(destination) => destination.to_string(),
            Err(_) => "an address that cannot be read".to_owned(),
        });
    match (variable, written) {
        (Some(name), Some(written)) => Some(format!("the address in `{name}`, or {written}")),
        (Some(name), None) => Some(format!("the address in `{name}`")),
        (None, written) => written,
    }
}

/// What a plan says of how far requests may go.
pub(crate) fn limit(reach: Reach) -> &'static str {
    match reach {
        Reach::Public | Reach::PublicAndInside => "",
        Reach::Inside => " (if it is inside the network)",
    }
}

/// How far requests may go; none where nothing may be sent at all.
pub(crate) fn reach(offline: bool, allow_private: bool) -> Option<Reach> {
    match (offline, allow_private) {
        (false, false) => Some(Reach::Public),
        (false, true) => Some(Reach::PublicAndInside),
        (true, true) => Some(Reach::Inside),
        (true, false) => None,
    }
}

/// As [`reach`] for a section of the config, which says whether it allows private destinations: a warning
/// where nothing may be sent, or what is sent can be read.
pub(super) fn reach_or_warn(
    (section, allow_private): (&str, bool),
    destination: &Destination,
    offline: bool,
    observer: &mut dyn Observer,
) -> Option<Reach> {
    let mut warn = |text: String| observer.observe(&Event::Warning(text));
    let Some(reach) = reach(offline, allow_private) else {
        warn(format!(
            "{section} {destination}: nothing is sent offline; with \
             `{section}.allow_private_destinations` one inside the network is"
        ));
        return None;
    };
    if destination.is_plain() {
        warn(format!("{section} {destination}: what is sent can be read on the way"));
    }
    Some(reach)
}

/// Whom to trust: the certificates of this file alone, where one is named.
pub(super) fn trust(place: &'static str, path: Option<&str>) -> Result<Trust, OutboundError> {
    let Some(path) = path.map(Path::new) else { return Ok(Trust::Public) };
    let refused = |source| OutboundError::Certificates { place, source };
    let (file, _) = open::regular(path).map_err(refused)?;
    let mut bytes = Vec::new();
    let read = file.take(CERTIFICATES_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(|source| refused(open::OpenError::Io { path: path.to_owned(), source }))?;
    Trust::only(&bytes).map_err(|source| OutboundError::NoCertificate {
        place,
        path: path.to_owned(),
        source,
    })
}
