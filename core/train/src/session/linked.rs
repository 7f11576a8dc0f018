//! Whether the devices of a run's processes are linked, and by what.

use forgelm_collective::{CollectiveError, Members};
use forgelm_kernels_api::{DeviceLink, Ops, Seat};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// How the numbers of devices go from process to process.
#[derive(Debug)]
pub enum Linked {
    /// They lie on hosts anyway, or there is one process.
    Not,
    /// Through the memory of the hosts: why.
    ThroughHosts(String),
    /// From device to device.
    Devices {
        /// What does it.
        link: Arc<dyn DeviceLink>,
        /// The library behind it, with its version.
        library: String,
    },
}

impl Linked {
    /// What links them, where something does.
    #[must_use]
    pub fn link(&self) -> Option<&Arc<dyn DeviceLink>> {
        match self {
            Self::Devices { link, .. } => Some(link),
            Self::Not | Self::ThroughHosts(_) => None,
        }
    }

    /// The library that does, with its version.
    #[must_use]
    pub fn library(&self) -> Option<&str> {
        match self {
            Self::Devices { library, .. } => Some(library),
            Self::Not | Self::ThroughHosts(_) => None,
        }
    }
}

/// What a process has to link its device with.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    /// None without a device; the library, or why it cannot be used.
    library: Option<Result<String, String>>,
    host: String,
    uuid: [u8; 16],
}

/// Links the devices of these processes, if every one can, has the same library, and has its device for
/// itself. All of them call this, with the kernels that compute.
///
/// # Errors
/// If the processes do not tell each other.
pub fn link_devices(
    members: &Members,
    ops: Option<&dyn Ops>,
    host: &str,
    deadline: Duration,
) -> Result<Linked, CollectiveError> {
    let links = ops.and_then(|ops| ops.links());
    let own = Offer {
        library: links.as_ref().map(|links| match links {
            Ok(links) => Ok(links.library()),
            Err(why) => Err(why.clone()),
        }),
        host: host.to_owned(),
        uuid: links.as_ref().and_then(|links| links.as_ref().ok()).map_or([0; 16], |l| l.uuid()),
    };
    let offers: Vec<Offer> = members.all_gather_values(&own)?;
    let (rank, n_ranks) = (members.rank(), members.n_ranks());
    if n_ranks == 1 || offers.iter().all(|offer| offer.library.is_none()) {
        return Ok(Linked::Not);
    }
    if let Some(why) = why_not(&offers) {
        return Ok(Linked::ThroughHosts(why));
    }
    let Some(Ok(links)) = links else { return Ok(Linked::Not) };
    let id = (rank == 0).then(|| links.new_id().map_err(|error| error.to_string()));
    let ids: Vec<Option<Result<Vec<u8>, String>>> = members.all_gather_values(&id)?;
    let id = match ids.into_iter().flatten().next() {
        Some(Ok(id)) => id,
        Some(Err(why)) => return Ok(Linked::ThroughHosts(why)),
        None => return Ok(Linked::Not),
    };
    let made = links.link(&id, Seat { rank, n_ranks, deadline });
    let why = made.as_ref().err().map(ToString::to_string);
    let whys: Vec<Option<String>> = members.all_gather_values(&why)?;
    match (whys.into_iter().flatten().next(), made) {
        (None, Ok(link)) => Ok(Linked::Devices { link: link.into(), library: links.library() }),
        (Some(why), _) => Ok(Linked::ThroughHosts(why)),
        (None, Err(error)) => Ok(Linked::ThroughHosts(error.to_string())),
    }
}

/// Why the devices of these processes are not linked.
fn why_not(offers: &[Offer]) -> Option<String> {
    let mut first = None;
    for (rank, offer) in offers.iter().enumerate() {
        let library = match &offer.library {
            None => return Some(format!("the processor computes on rank {rank}")),
            Some(Err(why)) => return Some(format!("{why} (rank {rank})")),
            Some(Ok(library)) => library,
        };
        let of_leader = *first.get_or_insert(library);
        if library != of_leader {
            return Some(format!("there is {of_leader} on rank 0 and {library} on rank {rank}"));
        }
        let is_same = |other: &Offer| other.host == offer.host && other.uuid == offer.uuid;
        if let Some(other) = offers[..rank].iter().position(is_same) {
            return Some(format!(
                "ranks {other} and {rank} are on one device of `{}`, where {library} takes one each",
                offer.host
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(library: Option<Result<&str, &str>>, host: &str, device: u8) -> Offer {
        let library = library.map(|library| library.map(str::to_owned).map_err(str::to_owned));
        Offer { library, host: host.to_owned(), uuid: [device; 16] }
    }

    #[test]
    fn devices_are_linked_where_all_can_and_none_is_used_twice() {
        let (here, there) = (
            |device| offer(Some(Ok("NCCL 2")), "a", device),
            |device| offer(Some(Ok("NCCL 2")), "b", device),
        );
        assert_eq!(why_not(&[here(1), here(2), there(1)]), None);
        let other = |of| why_not(&[here(1), of]).expect("they are not linked");
        let twice = other(here(1));
        assert_eq!(twice, "ranks 0 and 1 are on one device of `a`, where NCCL 2 takes one each");
        let versions = other(offer(Some(Ok("NCCL 3")), "a", 2));
        assert_eq!(versions, "there is NCCL 2 on rank 0 and NCCL 3 on rank 1");
        let missing = other(offer(Some(Err("NCCL was not found")), "a", 2));
        assert_eq!(missing, "NCCL was not found (rank 1)");
        assert_eq!(other(offer(None, "a", 0)), "the processor computes on rank 1");
    }
}
