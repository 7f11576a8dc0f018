//! Bytes from device to device through NVIDIA's NCCL, where it is installed.
//!
//! It only moves them: nothing is added here, so that no bit depends on the version of NCCL or on
//! the number of processes. Every call is grouped sends and receives on a stream of its own, which
//! waits for the stream of everything else by an event; the host waits for its end.
//!
//! **Invariant:** nothing waits for ever. Communicators do not block (`blocking = 0`, which came with
//! 2.14: hence [`VERSION_MIN`]): each call is asked how it goes until it is done or the deadline has
//! passed, and the communicator is aborted then. (`kernels/cuda/tests/nccl.rs`)
//!
//! Not run on two GPUs yet: what is shown is that it works on a stand-in for NCCL, and that the real
//! library has these functions. Start reading at [`Nccl::open`].

mod functions;
mod link;

use std::ffi::c_int;
use std::fmt;

use forgelm_kernels_api::{DeviceLink, DeviceLinks, LinkError, Seat};
use libloading::Library;

use crate::Cuda;
use crate::libraries::{Found, NCCL};
use functions::Functions;
use link::Link;

/// The first version with communicators that do not block.
const VERSION_MIN: i32 = 21_400;

/// Where more can be learned.
pub(crate) const HINT: &str = "`NCCL_DEBUG=INFO` lets NCCL tell what it does, and \
                               `FORGELM_NO_NCCL=1` leaves it alone";

/// Why devices are not linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NcclUnused {
    /// The options of the device say so.
    SwitchedOff,
    /// It was not found.
    Missing,
    /// It is older than 2.14; this one.
    TooOld(String),
    /// The library has not this function: it is another one.
    Lacks(&'static str),
}

impl fmt::Display for NcclUnused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SwitchedOff => f.write_str("is switched off"),
            Self::Missing => f.write_str("was not found"),
            Self::TooOld(version) => {
                write!(f, "is {version}; 2.14 or later is needed, whose calls do not wait for ever")
            }
            Self::Lacks(name) => write!(f, "has no function `{name}`: it is no NCCL"),
        }
    }
}

/// NCCL, loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nccl {
    functions: Functions,
    version: i32,
}

impl Nccl {
    /// Looks its functions up. It stays loaded.
    pub(crate) fn open(found: &Found) -> Result<Self, NcclUnused> {
        let library = match found {
            Found::Missing => None,
            // SAFETY: as in `Libraries::find`, which has opened it before.
            Found::At(file) => unsafe { Library::new(file) }.ok(),
            // SAFETY: as above.
            Found::ByLoader => NCCL.0.iter().find_map(|name| unsafe { Library::new(*name) }.ok()),
        };
        let library: &'static Library = Box::leak(Box::new(library.ok_or(NcclUnused::Missing)?));
        // An older one may lack some of the others.
        let version = functions::version_of(library);
        let version = version.ok_or(NcclUnused::Lacks("ncclGetVersion"))?;
        if version < VERSION_MIN {
            return Err(NcclUnused::TooOld(dotted(version)));
        }
        let functions = Functions::of(library).map_err(NcclUnused::Lacks)?;
        Ok(Self { functions, version })
    }

    /// As `2.32.3`.
    pub(crate) fn version(&self) -> String {
        dotted(self.version)
    }
}

/// Since 2.9 versions are numbered as 20900; before, 2.8.4 was 2804.
fn dotted(version: c_int) -> String {
    let unit = if version < 10_000 { 1000 } else { 10_000 };
    format!("{}.{}.{}", version / unit, version % unit / 100, version % 100)
}

impl DeviceLinks for Cuda {
    fn library(&self) -> String {
        let version = self.device().nccl().as_ref().map(Nccl::version);
        format!("NCCL {}", version.unwrap_or_default())
    }

    fn uuid(&self) -> [u8; 16] {
        self.device().facts().uuid
    }

    fn new_id(&self) -> Result<Vec<u8>, LinkError> {
        let nccl = self.device().nccl().as_ref().map_err(|_| LinkError::Ended)?;
        let functions = nccl.functions;
        functions.new_id().map_err(|answer| LinkError::Failed {
            doing: "making an id for NCCL".to_owned(),
            words: functions.words(answer, std::ptr::null_mut()),
            hint: HINT.to_owned(),
        })
    }

    fn link(&self, id: &[u8], seat: Seat) -> Result<Box<dyn DeviceLink>, LinkError> {
        let nccl = self.device().nccl().as_ref().map_err(|_| LinkError::Ended)?;
        Ok(Box::new(Link::new(self.device(), nccl.functions, id, seat)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_nvidia_numbers_them() {
        assert_eq!(dotted(23_203), "2.32.3");
        assert_eq!(dotted(21_400), "2.14.0");
        assert_eq!(dotted(2804), "2.8.4");
    }
}
