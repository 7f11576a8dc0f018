//! How an op ends that cannot go on. Ops return nothing: on a processor nothing fails, and a device
//! that fails does so far from whoever could answer.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::memory::MemoryRefused;

/// Why an op could not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    message: String,
    is_out_of_memory: bool,
}

impl Failure {
    /// A device that failed.
    #[must_use]
    pub fn new(message: String) -> Self {
        Self { message, is_out_of_memory: false }
    }

    /// Memory that is full; everything else is well.
    #[must_use]
    pub fn out_of_memory(message: String) -> Self {
        Self { message, is_out_of_memory: true }
    }

    /// Whether less memory would have sufficed.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        self.is_out_of_memory
    }

    /// Ends what is being done, up to the next [`caught`]. Nothing is printed.
    pub fn end(self) -> ! {
        resume_unwind(Box::new(self))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl MemoryRefused {
    /// Ends work that cannot do without a buffer of this name.
    pub fn end(self, buffer: &str) -> ! {
        let bytes = self.bytes;
        Failure::out_of_memory(format!("{bytes} bytes for `{buffer}` are not available")).end()
    }
}

/// Does some work with ops. What they were writing when they ended holds anything.
///
/// # Errors
/// If an op could not go on. Other panics go on.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    // AssertUnwindSafe: ops hold nothing that a failure leaves half-changed; what callers hold is
    // theirs to know, as after any error.
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| match payload.downcast::<Failure>() {
        Ok(failure) => *failure,
        Err(payload) => resume_unwind(payload),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_for_want_of_memory_is_told_from_what_fails() {
        assert_eq!(caught(|| 7), Ok(7));
        let refused = caught(|| MemoryRefused { bytes: 12 }.end("keys")).unwrap_err();
        assert!(refused.is_out_of_memory());
        assert_eq!(refused.to_string(), "12 bytes for `keys` are not available");
        let failed = caught(|| Failure::new("cuda:0: gone".to_owned()).end()).unwrap_err();
        assert_eq!(
            (failed.to_string().as_str(), failed.is_out_of_memory()),
            ("cuda:0: gone", false)
        );
    }

    #[test]
    fn a_bug_is_no_failure() {
        let bug = catch_unwind(|| caught(|| std::panic::panic_any(3_u8))).unwrap_err();
        assert_eq!(bug.downcast_ref(), Some(&3_u8));
    }
}
