//! Collectives as a table: `forgelm.collective/1`.

use super::border::{
    Refusal, borrowed, call, destroy, given, guard, hand_out, leak_features, leak_text, object_of,
    read_options, size, values, values_mut,
};
use crate::collective::{Collective, Descriptor};
use forgelm_abi::{
    forgelm_collective, forgelm_collective_descriptor, forgelm_collective_factory, forgelm_host,
    forgelm_plugin_error, forgelm_status, forgelm_str,
};
use std::cell::RefCell;
use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};
use std::time::Duration;

pub(super) type Factory =
    super::factory::Factory<forgelm_collective_factory, forgelm_collective_descriptor, Descriptor>;

/// The factory of these.
pub(super) fn factory(list: &'static [Descriptor], needs: &[&str]) -> &'static Factory {
    let features = leak_features(needs);
    let table = forgelm_collective_factory {
        struct_size: size::<forgelm_collective_factory>(),
        reserved: 0,
        count: Some(Factory::count),
        descriptor: Some(Factory::descriptor),
        create: Some(create),
    };
    Factory::leak(table, list, |of| described(of, features))
}

fn described(of: &Descriptor, features: *const *const c_char) -> forgelm_collective_descriptor {
    forgelm_collective_descriptor {
        struct_size: size::<forgelm_collective_descriptor>(),
        reserved: 0,
        name: leak_text(of.name),
        summary: leak_text(of.summary),
        source: leak_text(of.source),
        features,
    }
}

/// An instance, and what of it is asked for without an error record.
struct Joined {
    collective: RefCell<Box<dyn Collective>>,
    rank: u32,
    size: u32,
    library: CString,
}

impl Joined {
    fn new(collective: Box<dyn Collective>) -> Result<Box<Self>, Refusal> {
        let narrow = |n: usize| {
            u32::try_from(n).map_err(|_| Refusal::argument("more ranks than an u32 can count"))
        };
        let (rank, size) = (narrow(collective.rank())?, narrow(collective.size())?);
        // A NUL inside would end the text early; nothing else could.
        let library = CString::new(collective.library().replace('\0', " ")).unwrap_or_default();
        Ok(Box::new(Self { collective: RefCell::new(collective), rank, size, library }))
    }

    fn n_ranks(&self) -> usize {
        self.size as usize
    }
}

fn table() -> forgelm_collective {
    forgelm_collective {
        struct_size: size::<forgelm_collective>(),
        reserved: 0,
        plugin_data: null_mut(),
        destroy: Some(destroy::<forgelm_collective, Joined>),
        rank: Some(rank),
        size: Some(size_of_world),
        library: Some(library),
        all_to_all: Some(all_to_all),
        all_gather: Some(all_gather),
        broadcast: Some(broadcast),
        barrier: Some(barrier),
        split: Some(split),
        abort: Some(abort),
        get_extension: None,
    }
}

/// 0 stands for no deadline.
fn deadline(milliseconds: u64) -> Duration {
    if milliseconds == 0 { Duration::MAX } else { Duration::from_millis(milliseconds) }
}

/// The bytes of all parts together.
fn sum(n_bytes: &[usize], name: &str) -> Result<usize, Refusal> {
    let add = |sum: usize, &n: &usize| sum.checked_add(n);
    let sum = n_bytes.iter().try_fold(0, add);
    sum.ok_or_else(|| Refusal::argument(format!("`{name}` are more bytes than memory has")))
}

unsafe extern "C" fn create(
    factory: *const forgelm_collective_factory,
    _host: *const forgelm_host,
    index: u32,
    options_json: forgelm_str,
    out: *mut *const forgelm_collective,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    guard(err, || {
        // SAFETY: the host hands back the table that it was given.
        let descriptor = unsafe { Factory::entry(factory, index, "collective") }?;
        // SAFETY: the text is borrowed for the call.
        let options = unsafe { read_options(options_json) }?;
        let joined = Joined::new((descriptor.build)(&borrowed(&options))?)?;
        // SAFETY: `out` is the host's.
        unsafe { hand_out(out, table(), joined) }
    })
}

unsafe extern "C" fn rank(table: *const forgelm_collective) -> u32 {
    // SAFETY: the host hands back the table that it was given.
    let joined = unsafe { object_of::<_, Joined>(table) };
    joined.map_or(0, |joined| joined.rank)
}

unsafe extern "C" fn size_of_world(table: *const forgelm_collective) -> u32 {
    // SAFETY: as above.
    let joined = unsafe { object_of::<_, Joined>(table) };
    joined.map_or(0, |joined| joined.size)
}

unsafe extern "C" fn library(table: *const forgelm_collective) -> *const c_char {
    // SAFETY: as above.
    let joined = unsafe { object_of::<_, Joined>(table) };
    joined.map_or(null(), |joined| joined.library.as_ptr())
}

unsafe extern "C" fn all_to_all(
    table: *const forgelm_collective,
    sent: *const c_void,
    sent_bytes: *const usize,
    received: *mut c_void,
    received_bytes: *const usize,
    deadline_ms: u64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |joined: &Joined| {
        // SAFETY: the header promises one count for each rank; so below.
        let sent_bytes = unsafe { values(sent_bytes, joined.n_ranks(), "sent_bytes") }?;
        // SAFETY: as above.
        let received_bytes = unsafe { values(received_bytes, joined.n_ranks(), "received_bytes") }?;
        let (n_sent, n_received) = (sum(sent_bytes, "sent")?, sum(received_bytes, "received")?);
        // SAFETY: as many bytes as the counts say, borrowed for the call; so below.
        let sent = unsafe { values(sent.cast::<u8>(), n_sent, "sent") }?;
        // SAFETY: as above, and they do not overlap.
        let received = unsafe { values_mut(received.cast::<u8>(), n_received, "received") }?;
        let mut collective = joined.collective.borrow_mut();
        let deadline = deadline(deadline_ms);
        Ok(collective.all_to_all(sent, sent_bytes, received, received_bytes, deadline)?)
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_collective, Joined>(table, err, body) }
}

unsafe extern "C" fn all_gather(
    table: *const forgelm_collective,
    own: *const c_void,
    all: *mut c_void,
    n_bytes: *const usize,
    deadline_ms: u64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |joined: &Joined| {
        // SAFETY: the header promises one count for each rank.
        let n_bytes = unsafe { values(n_bytes, joined.n_ranks(), "n_bytes") }?;
        let n_own = n_bytes.get(joined.rank as usize).copied().unwrap_or_default();
        // SAFETY: as many bytes as the counts say, borrowed for the call; so below.
        let own = unsafe { values(own.cast::<u8>(), n_own, "own") }?;
        // SAFETY: as above, and they do not overlap.
        let all = unsafe { values_mut(all.cast::<u8>(), sum(n_bytes, "all")?, "all") }?;
        let mut collective = joined.collective.borrow_mut();
        Ok(collective.all_gather(own, all, n_bytes, deadline(deadline_ms))?)
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_collective, Joined>(table, err, body) }
}

unsafe extern "C" fn broadcast(
    table: *const forgelm_collective,
    bytes: *mut c_void,
    n_bytes: usize,
    root: u32,
    deadline_ms: u64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |joined: &Joined| {
        if root >= joined.size {
            let expected = joined.size;
            let message = format!("root is {root}; expected one of {expected} ranks");
            return Err(Refusal::argument(message));
        }
        // SAFETY: as many bytes as the host says, its own during the call.
        let bytes = unsafe { values_mut(bytes.cast::<u8>(), n_bytes, "bytes") }?;
        let mut collective = joined.collective.borrow_mut();
        Ok(collective.broadcast(bytes, root as usize, deadline(deadline_ms))?)
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_collective, Joined>(table, err, body) }
}

unsafe extern "C" fn barrier(
    table: *const forgelm_collective,
    deadline_ms: u64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body =
        |joined: &Joined| Ok(joined.collective.borrow_mut().barrier(deadline(deadline_ms))?);
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_collective, Joined>(table, err, body) }
}

unsafe extern "C" fn split(
    parent: *const forgelm_collective,
    color: u32,
    deadline_ms: u64,
    out: *mut *const forgelm_collective,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |joined: &Joined| {
        // SAFETY: null or the host's.
        let _ = unsafe { given(out, "out") }?;
        let part = joined.collective.borrow_mut().split(color, deadline(deadline_ms))?;
        // SAFETY: `out` is the host's.
        unsafe { hand_out(out, table(), Joined::new(part)?) }
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_collective, Joined>(parent, err, body) }
}

/// After a panic too: an instance that may only be destroyed still knows its library.
unsafe extern "C" fn abort(table: *const forgelm_collective, exit_code: i32) {
    // SAFETY: the host hands back the table that it was given.
    if let Some(joined) = unsafe { object_of::<_, Joined>(table) } {
        // What panics here returns, as the header allows.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            joined.collective.borrow_mut().abort(exit_code);
        }));
    }
}
