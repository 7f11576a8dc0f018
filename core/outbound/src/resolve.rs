//! A name to addresses that were all looked at, within the deadline of the request.

use crate::address::{Blocked, Reach};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::thread;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Looks a name up, with its port.
pub type Lookup = Arc<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// As the operating system does it.
///
/// # Errors
/// If the name stands for nothing, or nobody could be asked.
pub fn system_lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok((host, port).to_socket_addrs()?.collect())
}

/// Why a name gives no address to connect to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unresolved {
    #[error("{0}")]
    Blocked(Blocked),
    #[error("no address")]
    NoAddress,
    #[error("{0}")]
    Lookup(String),
}

/// Resolves once, and lets nothing through that was not looked at.
pub(crate) struct Resolve {
    pub(crate) reach: Reach,
    pub(crate) lookup: Lookup,
}

/// As many as the library takes.
const ADDRESSES_MAX: usize = 16;

impl Resolve {
    fn addresses(&self, uri: &Uri, timeout: NextTimeout) -> Result<Vec<SocketAddr>, ureq::Error> {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(usual);
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        // A look-up cannot be broken off: it is left behind when its time is over.
        let (sender, receiver) = mpsc::sync_channel(1);
        let lookup = Arc::clone(&self.lookup);
        thread::spawn(move || sender.send(lookup(&host, port)).ok());
        match receiver.recv_timeout(*timeout.after) {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(error)) => Err(other(Unresolved::Lookup(error.to_string()))),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(ureq::Error::Timeout(timeout.reason)),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(other(Unresolved::Lookup("the look-up broke off".to_owned())))
            }
        }
    }
}

fn other(error: Unresolved) -> ureq::Error {
    ureq::Error::Other(Box::new(error))
}

impl Resolver for Resolve {
    fn resolve(
        &self,
        uri: &Uri,
        _config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let addresses = self.addresses(uri, timeout)?;
        // All of them, not only those that are tried: one bad answer makes the name suspect.
        for address in &addresses {
            let checked = self.reach.check(address.ip());
            checked.map_err(|blocked| other(Unresolved::Blocked(blocked)))?;
        }
        let mut resolved = self.empty();
        for address in addresses.into_iter().take(ADDRESSES_MAX) {
            resolved.push(address);
        }
        if resolved.is_empty() {
            return Err(other(Unresolved::NoAddress));
        }
        Ok(resolved)
    }
}

impl fmt::Debug for Resolve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolve").field("reach", &self.reach).finish_non_exhaustive()
    }
}
