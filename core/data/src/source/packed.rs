//! Compressed data files: gzip and Zstandard, read as the text in them.
//!
//! Memory is bounded by the window of the format (at most 128 MiB with Zstandard), and the work by
//! the size of the file: a file whose text is a great deal larger than itself is refused.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::{Hashing, State};
use crate::problem::{Code, DataProblem};

/// Text of this size is never too much.
const FREE_BYTES: u64 = 64 << 20;
/// Above it, text may be this many times as large as the file. Rows of text shrink to a tenth,
/// repeated ones to a fiftieth.
const RATIO_MAX: u64 = 200;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// By the extension of a name.
    pub(super) fn of_extension(extension: &str) -> Packing {
        match extension {
            "gz" => Packing::Gzip,
            "zst" => Packing::Zstd,
            _ => Packing::Plain,
        }
    }

    /// The text of a file.
    pub(super) fn unpack(self, file: Hashing, state: &Rc<RefCell<State>>) -> Box<dyn Read> {
        let file = BufReader::with_capacity(1 << 16, file);
        let inner: Box<dyn Read> = match self {
            Packing::Plain => return Box::new(file),
            Packing::Gzip => Box::new(MultiGzDecoder::new(file)),
            Packing::Zstd => Box::new(Frames { file: Some(file), frame: None }),
        };
        Box::new(Bounded { inner, state: Rc::clone(state), n_bytes: 0 })
    }
}

/// What is wrong with a compressed file, on its way through [`io::Error`].
#[derive(Debug)]
enum Fault {
    /// The text is too large for the file.
    Bomb { n_packed: u64 },
    /// Not the format, damaged, or cut off.
    Broken { what: String },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Bomb { n_packed } => write!(
                f,
                "the first {n_packed} bytes hold more than {RATIO_MAX} times as much text"
            ),
            Fault::Broken { what } => write!(f, "cannot be decompressed: {what}"),
        }
    }
}

impl std::error::Error for Fault {}

/// The fault of a compressed file behind an error of reading; `None` for an error of the system.
pub(super) fn problem(path: &Path, error: &io::Error) -> Option<DataProblem> {
    let fault = error.get_ref()?.downcast_ref::<Fault>()?;
    let (expected, hint) = match fault {
        Fault::Bomb { .. } => (
            format!("text of at most {RATIO_MAX} times the size of its file"),
            "decompress the file yourself if it is meant so",
        ),
        Fault::Broken { .. } => {
            ("a whole gzip or Zstandard file".to_owned(), "was it copied or downloaded whole?")
        }
    };
    Some(DataProblem::file(Code::Compressed, path, fault.to_string(), expected).hint(hint))
}

/// Text that may not be too much for its file.
struct Bounded {
    inner: Box<dyn Read>,
    state: Rc<RefCell<State>>,
    n_bytes: u64,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(n) => {
                self.n_bytes += n as u64;
                let n_packed = self.state.borrow().n_bytes;
                if self.n_bytes > FREE_BYTES && self.n_bytes / RATIO_MAX > n_packed {
                    return Err(io::Error::other(Fault::Bomb { n_packed }));
                }
                Ok(n)
            }
            // The disk, not the format.
            Err(error) if self.state.borrow().has_failed => Err(error),
            Err(error) => {
                let what = match error.kind() {
                    io::ErrorKind::UnexpectedEof => "it ends in the middle".to_owned(),
                    _ => error.to_string(),
                };
                Err(io::Error::other(Fault::Broken { what }))
            }
        }
    }
}

type Packed = BufReader<Hashing>;

/// A frame of which something is still to be read.
struct Frame {
    file: Packed,
    decoder: FrameDecoder,
}

impl Frame {
    /// Text of the frame; 0 at its end, when it agreed with its checksum.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let decoder = &mut self.decoder;
        while decoder.can_collect() == 0 && !decoder.is_finished() {
            let one = BlockDecodingStrategy::UptoBlocks(1);
            decoder.decode_blocks(&mut self.file, one).map_err(io::Error::other)?;
        }
        let n = decoder.read(buffer)?;
        let stored = decoder.get_checksum_from_data().filter(|_| n == 0 && !buffer.is_empty());
        if stored.is_some() && stored != decoder.get_calculated_checksum() {
            return Err(io::Error::other("a checksum does not match"));
        }
        Ok(n)
    }
}

/// The frames of a Zstandard file, one after the other.
struct Frames {
    /// Between frames.
    file: Option<Packed>,
    frame: Option<Frame>,
}

impl Frames {
    /// Opens the next frame; false at the end of the file.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            let Some(mut file) = self.file.take() else { return Ok(false) };
            if io::BufRead::fill_buf(&mut file)?.is_empty() {
                return Ok(false);
            }
            let mut decoder = FrameDecoder::new();
            match decoder.init(&mut file) {
                Ok(()) => {
                    self.frame = Some(Frame { file, decoder });
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let n = io::copy(&mut file.by_ref().take(length.into()), &mut io::sink())?;
                    if n < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    self.file = Some(file);
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(frame) = &mut self.frame else {
                if self.next_frame()? {
                    continue;
                }
                return Ok(0);
            };
            let n = frame.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            self.file = self.frame.take().map(|frame| frame.file);
        }
    }
}
