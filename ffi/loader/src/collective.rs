//! Collectives of a library, as the trait that the host calls.
//!
//! Nothing watches them: each call has a deadline of its own, and joining waits for slow hosts. They
//! work in the program itself: a process of its own would be another one than the launcher started.

use crate::border::{Caller, Poison, call, first_missing, table};
use crate::error::Problem;
use crate::factory::{self, Offer};
use crate::float_mode::KeepFloatMode;
use crate::host::Host;
use forgelm_abi::{forgelm_collective, forgelm_collective_descriptor, forgelm_collective_factory};
use forgelm_plugin::{Collectives, Kind, Origin, Plugin};
use forgelm_sdk::collective::Collective;
use forgelm_sdk::{Failed, OptionValue, OptionsError};
use std::ffi::{CStr, c_void};
use std::ptr::null;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The collectives behind a factory; none if it is null.
pub(crate) fn offers(
    factory: *const c_void,
    host: &'static Host,
    origin: &Arc<Origin>,
) -> Result<Vec<Plugin<Collectives>>, Problem> {
    let read = |_: &forgelm_collective_descriptor, entry: Offer<forgelm_collective_factory>| {
        let entry = Offer { caller: entry.caller.unwatched(), ..entry };
        let build: Arc<<Collectives as Kind>::Build> =
            Arc::new(move |options: &[(&str, OptionValue)]| {
                let collective = Foreign::create(&entry, options)?;
                Ok(Box::new(collective) as Box<dyn Collective>)
            });
        Ok(((), build))
    };
    factory::offers(factory, host, origin, read)
}

/// An instance. It is no `Send`: the header wants all calls on the thread that made it.
struct Foreign {
    table: Rc<Table>,
    rank: usize,
    size: usize,
    library: String,
    caller: Caller,
    /// Of all that were split from one: what one of them panicked with, no other calls again.
    poison: Rc<Poison>,
}

/// The instance of a plugin, destroyed with the last that uses it, and before what it was split from.
struct Table {
    instance: *const forgelm_collective,
    _whole: Option<Rc<Table>>,
}

impl Drop for Table {
    fn drop(&mut self) {
        let _mode = KeepFloatMode::new();
        // SAFETY: checked when it was created, and not destroyed before.
        if let Some(destroy) = unsafe { (*self.instance).destroy } {
            // SAFETY: the plugin's own function with its own instance; no call is running.
            unsafe { destroy(self.instance) };
        }
    }
}

fn missing(found: &forgelm_collective) -> Option<&'static str> {
    first_missing(&[
        (found.destroy.is_none(), "destroy"),
        (found.rank.is_none(), "rank"),
        (found.size.is_none(), "size"),
        (found.library.is_none(), "library"),
        (found.all_to_all.is_none(), "all_to_all"),
        (found.all_gather.is_none(), "all_gather"),
        (found.broadcast.is_none(), "broadcast"),
        (found.barrier.is_none(), "barrier"),
        (found.split.is_none(), "split"),
        (found.abort.is_none(), "abort"),
    ])
}

impl Foreign {
    fn create(
        entry: &Offer<forgelm_collective_factory>,
        options: &[(&str, OptionValue)],
    ) -> Result<Self, OptionsError> {
        let create = |options, out, err| {
            let create = entry.factory.create?;
            // SAFETY: the plugin's own function with its own table; the rest lives long enough.
            Some(unsafe {
                create(entry.factory, entry.host.table(), entry.index, options, out, err)
            })
        };
        let instance = entry.create(options, "forgelm_collective", missing, create)?;
        let table = Rc::new(Table { instance, _whole: None });
        let made = Self::of(table, entry.caller.clone(), Rc::default());
        made.map_err(|failed| OptionsError::Refused { message: failed.message })
    }

    /// Asks an instance, of which no function is missing, who it is.
    fn of(table: Rc<Table>, caller: Caller, poison: Rc<Poison>) -> Result<Self, Failed> {
        // SAFETY: checked when it was created; so are its functions.
        let found = unsafe { &*table.instance };
        let (Some(rank), Some(size), Some(library)) = (found.rank, found.size, found.library)
        else {
            return Err(caller.failed("`rank`, `size` or `library` is NULL"));
        };
        let _mode = KeepFloatMode::new();
        // SAFETY: the plugin's own functions with its own instance; so below.
        let (rank, size) = unsafe { (rank(table.instance), size(table.instance)) };
        if rank >= size {
            let what = format!("it is rank {rank} of {size}; expected a rank below their number");
            return Err(caller.failed(&what));
        }
        // SAFETY: as above.
        let library = unsafe { library(table.instance) };
        if library.is_null() {
            return Err(caller.failed("its library has no name"));
        }
        // SAFETY: not null; a text that ends with NUL and lives as long as the instance.
        let library = unsafe { CStr::from_ptr(library) }.to_string_lossy().into_owned();
        Ok(Self { table, rank: rank as usize, size: size as usize, library, caller, poison })
    }

    fn table(&self) -> &forgelm_collective {
        // SAFETY: checked when it was created, and there as long as this.
        unsafe { &*self.table.instance }
    }

    fn null(&self, function: &str) -> Failed {
        self.caller.failed(&format!("`{function}` is NULL"))
    }

    /// What the plugin relies on: a count for each rank, and as many bytes as they say.
    fn check(&self, name: &str, n_bytes: &[usize], len: usize) -> Result<(), Failed> {
        let sum = n_bytes.iter().try_fold(0_usize, |sum, &n| sum.checked_add(n));
        if n_bytes.len() == self.size && sum == Some(len) {
            return Ok(());
        }
        Err(Failed::argument(format!(
            "`{name}` has {len} bytes, and its counts {n_bytes:?}; expected a count for each of {} \
             ranks, which say together how many bytes there are",
            self.size
        )))
    }
}

/// As the header has it: 0 is no deadline, and a shorter one than a millisecond is no such thing.
fn milliseconds(deadline: Duration) -> u64 {
    if deadline == Duration::MAX {
        return 0;
    }
    u64::try_from(deadline.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

impl Collective for Foreign {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn library(&self) -> String {
        self.library.clone()
    }

    fn all_to_all(
        &mut self,
        sent: &[u8],
        sent_bytes: &[usize],
        received: &mut [u8],
        received_bytes: &[usize],
        deadline: Duration,
    ) -> Result<(), Failed> {
        self.check("sent", sent_bytes, sent.len())?;
        self.check("received", received_bytes, received.len())?;
        let all_to_all = self.table().all_to_all.ok_or_else(|| self.null("all_to_all"))?;
        call(&self.caller, &self.poison, |err| {
            // SAFETY: the plugin's own function; there are as many counts as ranks, and as many bytes
            // as they say, which live until it returns.
            unsafe {
                all_to_all(
                    self.table.instance,
                    sent.as_ptr().cast(),
                    sent_bytes.as_ptr(),
                    received.as_mut_ptr().cast(),
                    received_bytes.as_ptr(),
                    milliseconds(deadline),
                    err,
                )
            }
        })
    }

    fn all_gather(
        &mut self,
        own: &[u8],
        all: &mut [u8],
        n_bytes: &[usize],
        deadline: Duration,
    ) -> Result<(), Failed> {
        self.check("all", n_bytes, all.len())?;
        if own.len() != n_bytes[self.rank] {
            let (found, expected) = (own.len(), n_bytes[self.rank]);
            let what = format!("`own` has {found} bytes; expected {expected}, as its count says");
            return Err(Failed::argument(what));
        }
        let all_gather = self.table().all_gather.ok_or_else(|| self.null("all_gather"))?;
        call(&self.caller, &self.poison, |err| {
            // SAFETY: as in `all_to_all`.
            unsafe {
                all_gather(
                    self.table.instance,
                    own.as_ptr().cast(),
                    all.as_mut_ptr().cast(),
                    n_bytes.as_ptr(),
                    milliseconds(deadline),
                    err,
                )
            }
        })
    }

    fn broadcast(
        &mut self,
        bytes: &mut [u8],
        root: usize,
        deadline: Duration,
    ) -> Result<(), Failed> {
        let broadcast = self.table().broadcast.ok_or_else(|| self.null("broadcast"))?;
        // One that is too large is no rank either, which the plugin says.
        let root = u32::try_from(root).unwrap_or(u32::MAX);
        call(&self.caller, &self.poison, |err| {
            let (first, n) = (bytes.as_mut_ptr().cast(), bytes.len());
            // SAFETY: the plugin's own function; the bytes live until it returns.
            unsafe { broadcast(self.table.instance, first, n, root, milliseconds(deadline), err) }
        })
    }

    fn barrier(&mut self, deadline: Duration) -> Result<(), Failed> {
        let barrier = self.table().barrier.ok_or_else(|| self.null("barrier"))?;
        call(&self.caller, &self.poison, |err| {
            // SAFETY: the plugin's own function with its own instance.
            unsafe { barrier(self.table.instance, milliseconds(deadline), err) }
        })
    }

    fn split(&mut self, color: u32, deadline: Duration) -> Result<Box<dyn Collective>, Failed> {
        let split = self.table().split.ok_or_else(|| self.null("split"))?;
        let mut part = null();
        call(&self.caller, &self.poison, |err| {
            let deadline = milliseconds(deadline);
            // SAFETY: the plugin's own function with its own instance; `part` outlives the call.
            unsafe { split(self.table.instance, color, deadline, &raw mut part, err) }
        })?;
        // SAFETY: null or an instance, which is ours until `destroy`.
        let found = unsafe { table(part, "forgelm_collective", || "the part".to_owned()) };
        let problem = match found.map(missing) {
            Ok(None) => {
                let table = Table { instance: part, _whole: Some(Rc::clone(&self.table)) };
                let (caller, poison) = (self.caller.clone(), Rc::clone(&self.poison));
                return Ok(Box::new(Self::of(Rc::new(table), caller, poison)?));
            }
            Ok(Some(field)) => Problem::Null { what: format!("forgelm_collective.{field}") },
            Err(problem) => problem,
        };
        Err(self.caller.failed(&problem.to_string()))
    }

    fn abort(&mut self, exit_code: i32) {
        if let Some(abort) = self.table().abort {
            let _mode = KeepFloatMode::new();
            // SAFETY: the plugin's own function with its own instance.
            unsafe { abort(self.table.instance, exit_code) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::milliseconds;
    use std::time::Duration;

    #[test]
    fn a_deadline_is_never_rounded_down_to_none() {
        assert_eq!(milliseconds(Duration::MAX), 0, "no deadline");
        assert_eq!(milliseconds(Duration::ZERO), 1);
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::from_micros(1500)), 2);
        assert_eq!(milliseconds(Duration::from_secs(30)), 30_000);
        assert_eq!(milliseconds(Duration::from_secs(u64::MAX)), u64::MAX);
    }
}
