//! A model behind an API that a section of the config names: a judge, a teacher.

use super::route::{self, OutboundError};
use crate::environment::Environment;
use forgelm_config::Secret;
use forgelm_outbound::address::Reach;
use forgelm_outbound::chat_api::{ChatApi, ChatApiOptions, OpenError, Pace};
use forgelm_outbound::destination::Destination;
use forgelm_outbound::guard::{Guard, Trust};

/// What a section says of its API.
pub(crate) struct ApiSettings<'a> {
    /// The section, as `synthetic`.
    pub(crate) section: &'static str,
    /// The key that has the address, for messages.
    pub(crate) place: &'static str,
    /// The address.
    pub(crate) base: &'a str,
    /// As the API calls it.
    pub(crate) model: &'a str,
    pub(crate) key: Option<Secret>,
    /// That a request may take.
    pub(crate) seconds: u64,
    pub(crate) pace: Pace,
    pub(crate) allow_private: bool,
}

/// Opens it. Nothing is sent. What goes by `http://` only reaches addresses inside the network.
///
/// # Errors
/// If the address or the key cannot be used, or nothing may be sent there.
pub(crate) fn open_api(
    settings: &ApiSettings<'_>,
    offline: bool,
    env: &Environment,
) -> Result<ChatApi, OutboundError> {
    let ApiSettings { section, place, .. } = *settings;
    let refused = |source| OutboundError::Api { place, source };
    let destination = Destination::parse(settings.base);
    let destination = destination.map_err(|source| refused(OpenError::Address(source)))?;
    let reach = route::reach(offline, settings.allow_private);
    let reach = match (reach, destination.is_plain()) {
        (None, _) => return Err(OutboundError::ApiOffline { place, section }),
        (Some(_), true) if !settings.allow_private => {
            return Err(OutboundError::PlainApi { place, section });
        }
        (Some(_), true) => Reach::Inside,
        (Some(reach), false) => reach,
    };
    let options = ChatApiOptions {
        base: settings.base,
        model: settings.model,
        key: settings.key.as_ref().map(Secret::expose),
        pace: settings.pace,
    };
    let guard = Guard::new(reach, &Trust::Public, settings.seconds);
    ChatApi::open(&options, guard, env.clock.clone()).map_err(refused)
}

/// What a plan says of an API: scheme and host alone. None where it may not be asked.
pub(crate) fn api_contact(base: &str, offline: bool, allow_private: bool) -> Option<String> {
    let reach = route::reach(offline, allow_private)?;
    Some(format!("{}{}", route::shown(Some(base), None)?, route::limit(reach)))
}
