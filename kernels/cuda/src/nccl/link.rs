//! One communicator: what is sent through it, and how long is waited.

use std::ffi::c_int;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cudarc::driver::{CudaEvent, CudaStream, DriverError, result};
use forgelm_kernels_api::{DeviceLink, LinkError, Seat, Slice, SliceMut};

use super::HINT;
use super::functions::{Functions, IN_PROGRESS, Pointer, SUCCESS};
use crate::call::Numbers;
use crate::device::{Device, lock};
use crate::memory::resolve;

/// How long the host sleeps between two questions: short while an operation may be short.
const PAUSES: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));

/// See [`DeviceLink`].
pub(super) struct Link {
    seat: Seat,
    functions: Functions,
    /// None after a failure. Under this lock alone it is used.
    communicator: Mutex<Option<Communicator>>,
    stream: Arc<CudaStream>,
    /// The last to go.
    device: Arc<Device>,
}

/// A communicator that is not ended.
struct Communicator(Pointer);

// SAFETY: NCCL's functions may be called from every thread, with one communicator by one at a time.
unsafe impl Send for Communicator {}

/// Why an operation was not done.
enum Undone {
    Answer(c_int),
    Driver(DriverError),
    Late,
}

impl From<DriverError> for Undone {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

/// Bytes at an address that go to a process, or come from it.
struct Part {
    address: u64,
    n_bytes: usize,
    peer: usize,
}

impl Link {
    /// Links a device with those of the others.
    pub(super) fn new(
        device: &Arc<Device>,
        functions: Functions,
        id: &[u8],
        seat: Seat,
    ) -> Result<Self, LinkError> {
        let doing = || format!("linking devices on {}", place(seat));
        let of_driver = |error: DriverError| LinkError::Failed {
            doing: doing(),
            words: crate::error::DriverFault::from(error).to_string(),
            hint: HINT.to_owned(),
        };
        device.bind().map_err(|error| LinkError::Failed {
            doing: doing(),
            words: error.to_string(),
            hint: HINT.to_owned(),
        })?;
        let stream = device.stream().context().new_stream().map_err(of_driver)?;
        let (communicator, answer) = functions.begin(id, seat.rank, seat.n_ranks);
        let made = (!communicator.is_null()).then_some(Communicator(communicator));
        let (communicator, device) = (Mutex::new(made), Arc::clone(device));
        let this = Self { seat, functions, communicator, stream, device };
        let mut held = lock(&this.communicator);
        let pointer = held.as_ref().map_or(std::ptr::null_mut(), |held| held.0);
        let deadline = seat.deadline / 2;
        let linked = checked(answer).and_then(|()| this.settle(pointer, deadline));
        if let Err(undone) = linked {
            let error = this.error(&doing(), pointer, (undone, deadline));
            this.abort(&mut held);
            return Err(error);
        }
        drop(held);
        Ok(this)
    }

    /// Asks how it goes until it is done.
    fn settle(&self, communicator: Pointer, deadline: Duration) -> Result<(), Undone> {
        until(deadline, || match self.functions.state(communicator) {
            SUCCESS => Ok(true),
            IN_PROGRESS => Ok(false),
            failure => Err(Undone::Answer(failure)),
        })
    }

    fn error(
        &self,
        doing: &str,
        communicator: Pointer,
        (undone, deadline): (Undone, Duration),
    ) -> LinkError {
        let (doing, hint) = (doing.to_owned(), HINT.to_owned());
        let words = match undone {
            Undone::Late => {
                return LinkError::Late { doing, deadline, hint };
            }
            Undone::Answer(answer) => self.functions.words(answer, communicator),
            Undone::Driver(error) => crate::error::DriverFault::from(error).to_string(),
        };
        LinkError::Failed { doing, words, hint }
    }

    fn abort(&self, communicator: &mut Option<Communicator>) {
        if let Some(Communicator(pointer)) = communicator.take() {
            self.functions.abort(pointer);
        }
    }

    /// Sends and receives, and waits until both are done.
    fn exchange(
        &self,
        op: &'static str,
        (own, n_sent): (Numbers, Ranges<'_>),
        (parts, n_received): (Numbers, Ranges<'_>),
    ) -> Result<(), LinkError> {
        let rank = self.seat.rank;
        self.device.refuse_in_capture(op, "a call of another process");
        let sent = self.cut(op, own, n_sent);
        let received = self.cut(op, parts, n_received);
        let (from, to) = (&sent[rank], &received[rank]);
        assert_eq!(from.n_bytes, to.n_bytes, "`{op}`: of this process to itself");
        assert_eq!(own.format, parts.format, "`{op}`: formats");
        let mut held = lock(&self.communicator);
        let Some(&Communicator(communicator)) = held.as_ref() else {
            return Err(LinkError::Ended);
        };
        let done = self.run(communicator, &sent, &received);
        done.map_err(|undone| {
            let doing = format!("`{op}` of devices on {}", place(self.seat));
            let error = self.error(&doing, communicator, (undone, self.seat.deadline));
            self.abort(&mut held);
            error
        })
    }

    fn run(&self, communicator: Pointer, sent: &[Part], received: &[Part]) -> Result<(), Undone> {
        let rank = self.seat.rank;
        self.stream.context().bind_to_thread()?;
        self.stream.wait(&self.device.stream().record_event(None)?)?;
        let (from, to) = (&sent[rank], &received[rank]);
        if from.n_bytes > 0 && from.address != to.address {
            let stream = self.stream.cu_stream();
            // SAFETY: both are parts of allocations, which the caller holds until this is done.
            unsafe { result::memcpy_dtod_async(to.address, from.address, from.n_bytes, stream) }?;
        }
        let is_others = |part: &&Part| part.peer != rank && part.n_bytes > 0;
        let with = (communicator, self.stream.cu_stream().cast());
        let call = || {
            let mut answer = SUCCESS;
            for part in sent.iter().filter(is_others) {
                // SAFETY: as above.
                let called =
                    unsafe { self.functions.send((part.address, part.n_bytes), part.peer, with) };
                answer = first_failure(answer, called);
            }
            for part in received.iter().filter(is_others) {
                let bytes = (part.address, part.n_bytes);
                // SAFETY: as above.
                let called = unsafe { self.functions.receive(bytes, part.peer, with) };
                answer = first_failure(answer, called);
            }
            answer
        };
        checked(self.functions.grouped(call))?;
        let deadline = self.seat.deadline;
        self.settle(communicator, deadline)?;
        let end: CudaEvent = self.stream.record_event(None)?;
        until(deadline, || match end.try_is_complete() {
            // A peer that is lost shows here, and not at the event.
            Ok(false) => checked(self.functions.state(communicator)).map(|()| false),
            Ok(true) => Ok(true),
            Err(error) => Err(error.into()),
        })
    }

    /// The parts of the processes, one after the other.
    ///
    /// # Panics
    /// If they are not the whole, or not as many as there are processes.
    fn cut(&self, op: &'static str, whole: Numbers, ranges: Ranges<'_>) -> Vec<Part> {
        let n_ranks = self.seat.n_ranks;
        let counts: Vec<usize> = match ranges {
            Ranges::OneAfterAnother(counts) => counts.to_vec(),
            Ranges::TheSame => vec![whole.len; n_ranks],
        };
        assert_eq!(counts.len(), n_ranks, "`{op}`: counts of processes");
        if let Ranges::OneAfterAnother(_) = ranges {
            let n: usize = counts.iter().sum();
            assert_eq!(n, whole.len, "`{op}`: numbers by the counts");
        }
        let n_bytes = whole.format.n_bytes();
        let mut address = whole.address;
        let part = |(peer, count): (usize, usize)| {
            let part = Part { address, n_bytes: count * n_bytes, peer };
            if let Ranges::OneAfterAnother(_) = ranges {
                address += part.n_bytes as u64;
            }
            part
        };
        counts.into_iter().enumerate().map(part).collect()
    }

    fn gather(
        &self,
        op: &'static str,
        own: Numbers,
        all: Numbers,
        n_of: &[usize],
    ) -> Result<(), LinkError> {
        self.exchange(op, (own, Ranges::TheSame), (all, Ranges::OneAfterAnother(n_of)))
    }
}

/// Which numbers are for which process.
#[derive(Clone, Copy)]
enum Ranges<'a> {
    /// So many for each, in the order of the ranks.
    OneAfterAnother(&'a [usize]),
    /// All for each.
    TheSame,
}

/// Asks until the answer is yes. The time is that of the pauses alone: never less than the deadline.
fn until(deadline: Duration, is_done: impl Fn() -> Result<bool, Undone>) -> Result<(), Undone> {
    let (mut waited, mut pause) = (Duration::ZERO, PAUSES.0);
    while !is_done()? {
        if waited >= deadline {
            return Err(Undone::Late);
        }
        std::thread::sleep(pause);
        waited += pause;
        pause = (2 * pause).min(PAUSES.1);
    }
    Ok(())
}

fn first_failure(before: c_int, answer: c_int) -> c_int {
    if matches!(before, SUCCESS | IN_PROGRESS) { answer } else { before }
}

fn checked(answer: c_int) -> Result<(), Undone> {
    match answer {
        SUCCESS | IN_PROGRESS => Ok(()),
        failure => Err(Undone::Answer(failure)),
    }
}

fn place(seat: Seat) -> String {
    format!("rank {} of {}", seat.rank, seat.n_ranks)
}

/// Where numbers of the device lie.
fn on_device<T>(device: &Device, op: &str, numbers: Slice<'_, T>) -> Numbers {
    match numbers {
        Slice::Device(place) => resolve(device, op, place),
        Slice::Host(_) => panic!("{op}: numbers of the host between devices"),
    }
}

impl DeviceLink for Link {
    fn seat(&self) -> Seat {
        self.seat
    }

    fn all_to_all(
        &self,
        own: Slice<'_>,
        n_sent: &[usize],
        parts: SliceMut<'_>,
        n_received: &[usize],
    ) -> Result<(), LinkError> {
        let op = "all_to_all";
        let own = on_device(&self.device, op, own);
        let parts = on_device(&self.device, op, parts.as_slice());
        let sent = (own, Ranges::OneAfterAnother(n_sent));
        self.exchange(op, sent, (parts, Ranges::OneAfterAnother(n_received)))
    }

    fn all_gather(
        &self,
        own: Slice<'_>,
        all: SliceMut<'_>,
        n_of: &[usize],
    ) -> Result<(), LinkError> {
        let op = "all_gather";
        let all = on_device(&self.device, op, all.as_slice());
        self.gather(op, on_device(&self.device, op, own), all, n_of)
    }

    fn all_gather_bytes(
        &self,
        own: Slice<'_, u8>,
        all: SliceMut<'_, u8>,
        n_of: &[usize],
    ) -> Result<(), LinkError> {
        let op = "all_gather_bytes";
        let all = on_device(&self.device, op, all.as_slice());
        self.gather(op, on_device(&self.device, op, own), all, n_of)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("device", &self.device.label())
            .field("seat", &self.seat)
            .finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut held = lock(&self.communicator);
        let Some(&Communicator(pointer)) = held.as_ref() else { return };
        // What others still read of this process goes first, but not for ever.
        let is_bound = self.device.bind().is_ok();
        let ended = checked(self.functions.finalize(pointer));
        let ended = ended.and_then(|()| self.settle(pointer, self.seat.deadline));
        if is_bound && ended.is_ok() {
            self.functions.destroy(pointer);
            *held = None;
        } else {
            self.abort(&mut held);
        }
    }
}
