//! What devices send each other without the host in between.
//!
//! A link moves numbers and adds nothing: sums between processes are made by the ops, in an order
//! that does not depend on the library or on the number of processes. Every process makes the same
//! calls in the same order, from one thread at a time. Start reading at [`DeviceLinks`].

use std::fmt;
use std::time::Duration;

use crate::memory::{Slice, SliceMut};

/// A device that can be linked with those of other processes.
pub trait DeviceLinks: Send + Sync {
    /// The library that links them, with its version, as `NCCL 2.27.3`.
    fn library(&self) -> String;

    /// What tells this device from all others of its host.
    fn uuid(&self) -> [u8; 16];

    /// What the processes of a new link know it by: one of them makes it, and tells the others.
    ///
    /// # Errors
    /// If the library refuses.
    fn new_id(&self) -> Result<Vec<u8>, LinkError>;

    /// Links this device with those of the other processes, all of which call this. No two of them
    /// have the same device.
    ///
    /// # Errors
    /// If the library refuses, or one of them does not come before the deadline.
    fn link(&self, id: &[u8], seat: Seat) -> Result<Box<dyn DeviceLink>, LinkError>;
}

/// A process among those of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Which it is.
    pub rank: usize,
    /// Of how many, p.
    pub n_ranks: usize,
    /// How long the others may let it wait in each call. For the link it is half as long: who waits in
    /// vain can say so before the others give up.
    pub deadline: Duration,
}

/// Devices that are linked. All work that was asked of a device before a call comes before it; when
/// a call returns, what it wrote is there.
///
/// After an error the link is gone: every later call is [`LinkError::Ended`].
///
/// # Panics
/// All calls do if numbers lie on the host or on another device, are not all of one format, or are
/// not as many as the counts say: bugs of the caller.
pub trait DeviceLink: Send + Sync + fmt::Debug {
    /// The place of this process.
    fn seat(&self) -> Seat;

    /// Gives each process its part of `own`, and gets one of each.
    ///
    /// Shapes: `own` [sum of `n_sent`] read, `parts` [sum of `n_received`] written, both by rank;
    /// `n_sent` and `n_received` [p]. What one sends is what the other receives.
    ///
    /// # Errors
    /// If the library fails, or a process gives nothing before the deadline.
    fn all_to_all(
        &self,
        own: Slice<'_>,
        n_sent: &[usize],
        parts: SliceMut<'_>,
        n_received: &[usize],
    ) -> Result<(), LinkError>;

    /// What each process has, by rank.
    ///
    /// Shapes: `own` [`n_of`\[rank\]] read, `all` [sum of `n_of`] written, `n_of` [p].
    ///
    /// # Errors
    /// As [`DeviceLink::all_to_all`].
    fn all_gather(
        &self,
        own: Slice<'_>,
        all: SliceMut<'_>,
        n_of: &[usize],
    ) -> Result<(), LinkError>;

    /// [`DeviceLink::all_gather`] of bytes: parts of frozen matrices.
    ///
    /// # Errors
    /// As [`DeviceLink::all_to_all`].
    fn all_gather_bytes(
        &self,
        own: Slice<'_, u8>,
        all: SliceMut<'_, u8>,
        n_of: &[usize],
    ) -> Result<(), LinkError>;
}

/// Why devices could not be linked, or not send each other something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkError {
    /// The library refused or failed.
    Failed {
        /// What was being done, on which process of how many.
        doing: String,
        /// The library's words.
        words: String,
        /// Where more can be learned.
        hint: String,
    },
    /// Another process gave nothing.
    Late {
        /// What was being done, on which process of how many.
        doing: String,
        /// How long it was waited for.
        deadline: Duration,
        /// Where more can be learned.
        hint: String,
    },
    /// It failed before.
    Ended,
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { doing, words, hint } => {
                write!(f, "{doing} failed: {words}\n  hint: {hint}")
            }
            Self::Late { doing, deadline, hint } => write!(
                f,
                "{doing}: not done within {} s; another process stands still, has ended, or cannot \
                 be reached\n  hint: {hint}",
                deadline.as_secs_f64()
            ),
            Self::Ended => f.write_str("the devices are no longer linked"),
        }
    }
}

impl std::error::Error for LinkError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_was_done_and_where_to_look() {
        let (doing, hint) = ("`all_to_all` on rank 1 of 2".to_owned(), "look there".to_owned());
        let late = LinkError::Late {
            doing: doing.clone(),
            deadline: Duration::from_millis(2500),
            hint: hint.clone(),
        };
        let expected = "`all_to_all` on rank 1 of 2: not done within 2.5 s; another process stands \
                        still, has ended, or cannot be reached\n  hint: look there";
        assert_eq!(late.to_string(), expected);
        let failed = LinkError::Failed { doing, words: "no cable".to_owned(), hint };
        let expected = "`all_to_all` on rank 1 of 2 failed: no cable\n  hint: look there";
        assert_eq!(failed.to_string(), expected);
    }
}
