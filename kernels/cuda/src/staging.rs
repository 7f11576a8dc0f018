//! The way between the host and the device: two buffers of memory that the device can reach.
//!
//! An upload is copied to a buffer and is then finished for the caller; the device fetches it when
//! its stream comes to it. Small uploads lie end to end in a buffer, so that the host waits only
//! when both are full. A download is cut into pieces of a buffer: while one is on its way, the one
//! before is taken out.

use cudarc::driver::{CudaEvent, DriverError, result};

use crate::device::{Device, lock};
use crate::error::CudaError;

/// Bytes of one buffer.
const BUFFER: usize = 32 << 20;
/// Uploads begin at multiples of this, so that the buffer can be seen as numbers.
const GRANULE: usize = 64;

/// Memory of the host that the device can reach.
#[derive(Debug)]
struct Pinned {
    start: *mut u8,
    /// Recorded behind the last copy from or to it.
    last: CudaEvent,
}

// SAFETY: the memory belongs to this alone, whichever thread holds it.
unsafe impl Send for Pinned {}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What is still on its way must not find the memory gone.
        let _ = self.last.synchronize();
        // SAFETY: it came from `malloc_host`, and nobody has a part of it.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}

/// The two buffers; made when first needed.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    buffers: Vec<Pinned>,
    /// Which of the two is being filled.
    current: usize,
    /// Bytes of it that are taken.
    filled: usize,
    /// While a graph is captured nothing may pass: a replay would carry what lies here then.
    pub(crate) closed: bool,
}

impl Staging {
    fn prepare(&mut self, device: &Device) -> Result<(), DriverError> {
        let context = device.stream().context();
        context.bind_to_thread()?;
        while self.buffers.len() < 2 {
            let last = context.new_event(None)?;
            // SAFETY: a call without a precondition; the context is current.
            let start = unsafe { result::malloc_host(BUFFER, 0)? }.cast();
            self.buffers.push(Pinned { start, last });
        }
        Ok(())
    }

    /// A range of a buffer that nothing on its way uses: its buffer and where it begins.
    fn take(&mut self, device: &Device, bytes: usize) -> Result<(usize, usize), DriverError> {
        self.prepare(device)?;
        if self.filled + bytes > BUFFER {
            self.buffers[self.current].last.record(device.stream())?;
            self.current = 1 - self.current;
            self.buffers[self.current].last.synchronize()?;
            self.filled = 0;
        }
        let begin = self.filled;
        self.filled = (begin + bytes).next_multiple_of(GRANULE);
        Ok((self.current, begin))
    }

    fn bytes(&mut self, buffer: usize, begin: usize, len: usize) -> &mut [u8] {
        assert!(begin + len <= BUFFER, "a range within the buffer");
        // SAFETY: the buffer is that long, and no copy that is on its way uses this range: `take`
        // waited for it, or gave it out just now.
        unsafe { std::slice::from_raw_parts_mut(self.buffers[buffer].start.add(begin), len) }
    }
}

/// Copies to the device: `fill` is asked for the bytes from an offset on, piece by piece.
///
/// Pieces begin at multiples of 64 bytes. The copy is in the stream when this returns.
pub(crate) fn upload(
    device: &Device,
    op: &'static str,
    to: u64,
    n_bytes: usize,
    mut fill: impl FnMut(usize, &mut [u8]),
) -> Result<(), CudaError> {
    let mut staging = lock(&device.staging);
    refuse_while_captured(device, &staging, op, "an upload")?;
    let failed = |error| device.earlier("an upload", op, error);
    for begin in (0..n_bytes).step_by(BUFFER) {
        let len = BUFFER.min(n_bytes - begin);
        let (buffer, at) = staging.take(device, len).map_err(failed)?;
        let piece = staging.bytes(buffer, at, len);
        fill(begin, piece);
        // SAFETY: the caller gives the start of an allocation of at least this length, and the
        // piece stays as it is until the stream has come past the copy (see `take`).
        unsafe { result::memcpy_htod_async(to + begin as u64, piece, device.stream().cu_stream()) }
            .map_err(failed)?;
    }
    Ok(())
}

/// Copies from the device: `drain` is given the bytes from an offset on, piece by piece. All that
/// was asked for before is done when this returns.
pub(crate) fn download(
    device: &Device,
    op: &'static str,
    from: u64,
    n_bytes: usize,
    mut drain: impl FnMut(usize, &[u8]),
) -> Result<(), CudaError> {
    let mut staging = lock(&device.staging);
    refuse_while_captured(device, &staging, op, "a download")?;
    let failed = |error| device.earlier("a download", op, error);
    let mut waiting: Option<(usize, usize, usize, usize)> = None;
    for begin in (0..n_bytes).step_by(BUFFER) {
        let len = BUFFER.min(n_bytes - begin);
        let (buffer, at) = staging.take(device, len).map_err(failed)?;
        let piece = staging.bytes(buffer, at, len);
        // SAFETY: as in `upload`; the piece is looked at only behind the event.
        unsafe {
            result::memcpy_dtoh_async(piece, from + begin as u64, device.stream().cu_stream())
        }
        .map_err(failed)?;
        staging.buffers[buffer].last.record(device.stream()).map_err(failed)?;
        if let Some(before) = waiting.replace((buffer, at, begin, len)) {
            finish(&mut staging, before, &mut drain).map_err(failed)?;
        }
    }
    if let Some(last) = waiting {
        finish(&mut staging, last, &mut drain).map_err(failed)?;
        // The stream has come past everything: both buffers are free from their start on.
        staging.filled = 0;
    }
    Ok(())
}

/// Waits for one piece of a download and hands it on.
fn finish(
    staging: &mut Staging,
    (buffer, at, begin, len): (usize, usize, usize, usize),
    drain: &mut impl FnMut(usize, &[u8]),
) -> Result<(), DriverError> {
    staging.buffers[buffer].last.synchronize()?;
    drain(begin, staging.bytes(buffer, at, len));
    Ok(())
}

fn refuse_while_captured(
    device: &Device,
    staging: &Staging,
    op: &'static str,
    doing: &'static str,
) -> Result<(), CudaError> {
    if staging.closed {
        let device = device.label().to_owned();
        return Err(CudaError::NotCapturable { device, op, doing });
    }
    Ok(())
}
