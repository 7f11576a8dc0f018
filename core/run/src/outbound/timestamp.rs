//! The time stamp authority of `signing.timestamp_url`, asked for tokens over what a run signs.

use super::route::{self, OutboundError};
use crate::environment::Environment;
use crate::event::{Event, Observer};
use forgelm_config::Run;
use forgelm_evidence::timestamp::attach::{Stamping, Unstamped};
use forgelm_evidence::timestamp::{Authority, RESPONSE_BYTES_MAX};
use forgelm_outbound::destination::{Destination, DestinationError};
use forgelm_outbound::guard::{Guard, Post};

/// What a request may take, in seconds.
const DEADLINE: u64 = 10;
/// How often one is sent.
const N_TRIES: usize = 2;

/// An authority that may be asked.
pub(crate) struct TimeStamps {
    guard: Guard,
    destination: Destination,
    is_required: bool,
}

impl TimeStamps {
    /// The authority of a run's config, if it has one that may be reached. Nothing is sent.
    ///
    /// # Errors
    /// If the address or the file of certificates cannot be used, or tokens are required and nothing may
    /// be sent.
    pub(crate) fn open(
        run: &Run,
        offline: bool,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>, OutboundError> {
        let signing = run.signing();
        let Some(url) = signing.timestamp_url.as_ref().filter(|_| signing.enabled) else {
            return Ok(None);
        };
        let place = "signing.timestamp_url";
        let refused = |source: DestinationError| {
            let variable = None;
            OutboundError::Address { place, variable, source }
        };
        let destination = Destination::parse(url).map_err(refused)?;
        let bundle = signing.timestamp_ca_bundle.as_deref();
        let trust = route::trust("signing.timestamp_ca_bundle", bundle)?;
        let is_required = signing.require_timestamp;
        if offline || run.model.offline || env.offline {
            if is_required {
                return Err(OutboundError::StampsOffline);
            }
            let text = format!("{destination}: no time stamp is asked for offline");
            observer.observe(&Event::Notice(text));
            return Ok(None);
        }
        let Some(reach) = route::reach(false, signing.timestamp_allow_private_destinations) else {
            return Ok(None);
        };
        let guard = Guard::new(reach, &trust, DEADLINE);
        Ok(Some(Self { guard, destination, is_required }))
    }

    /// As whoever writes evidence takes it.
    pub(crate) fn stamping(&self) -> Stamping<'_> {
        Stamping { authority: self, is_required: self.is_required }
    }
}

/// Tells what got no time stamp.
pub(crate) fn tell_unstamped(unstamped: &[Unstamped], observer: &mut dyn Observer) {
    for Unstamped { file, reason } in unstamped {
        let text = format!("{file} has no time stamp, and is valid without one: {reason}");
        observer.observe(&Event::Warning(text));
    }
}

impl Authority for TimeStamps {
    fn ask(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        let post = Post {
            headers: &[
                ("Content-Type", "application/timestamp-query"),
                ("Accept", "application/timestamp-reply"),
            ],
            body: request,
            answer_bytes_max: RESPONSE_BYTES_MAX as u64,
        };
        let mut n_tries = 1;
        loop {
            match self.guard.post(&self.destination, post) {
                Ok(answer) => return Ok(answer.body),
                Err(error) if error.is_passing() && n_tries < N_TRIES => n_tries += 1,
                Err(error) => return Err(format!("{}: {error}", self.destination)),
            }
        }
    }
}
