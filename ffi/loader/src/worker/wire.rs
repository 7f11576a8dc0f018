//! What the program and a worker say to each other: frames of a length and a JSON text.

use super::memory::Span;
use crate::conformance::Outcome;
use forgelm_sdk::evaluator::Report;
use forgelm_sdk::{Cause, Failed};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read as _, Write};
use std::os::unix::net::UnixStream;

/// Bytes of a frame, at most: lines of plugins and descriptors are far shorter.
const FRAME_MAX: u32 = 1 << 24;

/// What the program asks. The numbers of instances are the worker's.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Loads the library, if these are its bytes; the first question, and asked once.
    Load { path: Vec<u8>, sha256: String },
    /// Makes an instance.
    Create { kind: KindOf, index: usize, options: String, weights: Vec<u64> },
    /// Ends one.
    Destroy { kind: KindOf, instance: usize },
    /// A loss.
    Loss { instance: usize, batch: Batch },
    /// A piece of a merge: `pass` measures into `out` (f64), none merges into it (f32).
    Merge { instance: usize, pass: Option<usize>, piece: Piece, out: Span },
    /// The facts of a pass.
    Conclude { instance: usize, pass: usize, tensor: Tensor, sums: Span, facts: Span },
    /// Bytes of a row.
    RowBytes { instance: usize, n_cols: usize },
    /// Numbers to bytes.
    Quantize { instance: usize, n_cols: usize, rows: Span, bytes: Span },
    /// Bytes to numbers.
    Dequantize { instance: usize, n_cols: usize, bytes: Span, rows: Span },
    /// Rewards of answers: prompt, completion and record of each, UTF-8.
    Judge { instance: usize, answers: Vec<[Span; 3]> },
    /// A report, over the services that are offered meanwhile.
    Evaluate { instance: usize, offered: Offered },
    /// Opens the worker's device.
    OpenDevice,
    /// Tries what a merge method or a quantizer gives on that device.
    TryOnDevice { kind: KindOf, index: usize },
    /// What the conformance kit finds out about a collective, which joins this process.
    TryCollective { index: usize },
}

/// Which services there are for an evaluator.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Offered {
    pub score: bool,
    pub generate: bool,
    /// Number of records.
    pub held_out: Option<u64>,
}

/// What an evaluator in a worker asks of the program in the middle of its call.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Wish {
    /// Prompts and completions.
    Score(Vec<(String, String)>),
    /// Prompts, and options as JSON.
    Generate(Vec<String>, String),
    /// The first record, and how many.
    HeldOutScore(u64, usize),
    /// A record.
    HeldOutText(u64),
}

/// The answer to a [`Wish`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Served {
    /// Bits of each sum, since JSON has no infinity; and tokens.
    Scores(Vec<(u64, u64)>),
    Texts(Vec<String>),
    Refused {
        message: String,
        #[serde(with = "CauseOf")]
        cause: Cause,
    },
}

/// A [`Cause`] as it crosses.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Cause")]
enum CauseOf {
    Work,
    Argument,
    Cancelled,
    Deadline,
}

impl From<Failed> for Served {
    fn from(Failed { message, cause }: Failed) -> Self {
        Self::Refused { message, cause }
    }
}

/// A kind that has instances in a worker.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum KindOf {
    Trainer,
    MergeMethod,
    Quantizer,
    Reward,
    Evaluator,
}

/// What the worker says. A question has one `Answer` or `Failed`, after any number of the others. A
/// `Wish` is answered at once by one [`Served`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Say {
    Log { level: u32, target: String, message: String },
    Progress { event: String },
    Wish(Wish),
    Answer(Answer),
    Failed(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Loaded(Box<Loaded>),
    Created {
        instance: usize,
        reads_base: bool,
        passes: Vec<(usize, usize)>,
    },
    /// The sum as bits, since JSON has no NaN; metrics by name, bits of the sum and terms.
    Loss {
        loss_sum: u64,
        n_terms: u64,
        metrics: Vec<(String, u64, u64)>,
    },
    Bytes(usize),
    /// As bits, since JSON has no NaN; none where there is nothing to say.
    Rewards(Vec<Option<u64>>),
    Report(Report),
    /// The name of the device, or why there is none.
    Device(Result<String, String>),
    /// Whether it gives there what it gives on the processor; none where it takes no such tensors.
    TriedOnDevice(Option<Result<(), String>>),
    /// Properties, and whether they hold.
    Tried(Vec<(String, Outcome)>),
}

/// A library.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Loaded {
    pub library: String,
    pub version: String,
    pub abi: String,
    pub notes: Vec<String>,
    pub trainers: Vec<(Described, TrainerNeeds)>,
    pub merge_methods: Vec<(Described, MergeNeeds)>,
    pub quantizers: Vec<Described>,
    pub evaluators: Vec<Described>,
    pub rewards: Vec<Described>,
    pub collectives: Vec<Described>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Described {
    pub name: String,
    pub summary: String,
    pub source: String,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct TrainerNeeds {
    /// As in the header.
    pub records: u32,
    pub reference: bool,
    pub rollouts: bool,
    pub prompts: bool,
    pub dropout: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct MergeNeeds {
    pub is_whole_tensor: bool,
    pub n_inputs_min: usize,
    pub n_inputs_max: usize,
}

/// What a trainer reads, and where its gradient goes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Batch {
    /// Role, record, start and length of each sequence.
    pub sequences: Span,
    pub labels: Span,
    pub trained: Span,
    pub logp: Span,
    pub ref_logp: Option<Span>,
    pub advantage: Option<Span>,
    pub old_logp: Option<Span>,
    /// Sequences, scored and trained rows of each role.
    pub totals: Span,
    pub dlogp: Span,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Tensor {
    pub name: String,
    pub len: usize,
    pub facts: Span,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub tensor: Tensor,
    pub start: usize,
    pub base: Option<Span>,
    pub inputs: Vec<Span>,
}

/// Writes one frame, in one call of the system.
pub(crate) fn send(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = u32::try_from(frame.len() - 4).ok().filter(|&length| length <= FRAME_MAX);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "too long"))?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    to.write_all(&frame)
}

/// Reads one frame; an error of the kind `UnexpectedEof` when the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(from: &UnixStream) -> io::Result<T> {
    let mut frames = Frames::default();
    loop {
        if let Some(message) = frames.next(from)? {
            return Ok(message);
        }
    }
}

/// Frames of a socket that is read with a timeout: what came of one waits for the rest.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// The next message; `None` if the timeout of the socket passed first.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other side is gone, `InvalidData` for what is no message.
    pub(crate) fn next<T: DeserializeOwned>(&mut self, from: &UnixStream) -> io::Result<Option<T>> {
        loop {
            let needed = match self.bytes.first_chunk() {
                None => 4,
                Some(&length) => {
                    let length = u32::from_le_bytes(length);
                    if length > FRAME_MAX {
                        let what = "a frame that is too long";
                        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                    }
                    4 + length as usize
                }
            };
            let n_had = self.bytes.len();
            if n_had >= 4 && n_had == needed {
                let message = serde_json::from_slice(&self.bytes[4..]);
                self.bytes.clear();
                return message
                    .map(Some)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e));
            }
            self.bytes.resize(needed, 0);
            let read = { from }.read(&mut self.bytes[n_had..]);
            self.bytes.truncate(n_had + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(None),
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_frame_in_pieces_is_put_together_and_a_broken_one_is_told() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let mut frames = Frames::default();
        let mut whole = Vec::new();
        send(&mut whole, &Say::Failed("it broke".to_owned())).unwrap();
        for byte in &whole[..whole.len() - 1] {
            ours.write_all(&[*byte]).unwrap();
            assert!(frames.next::<Say>(&theirs).unwrap().is_none());
        }
        ours.write_all(&whole[whole.len() - 1..]).unwrap();
        let Some(Say::Failed(why)) = frames.next(&theirs).unwrap() else { panic!("no failure") };
        assert_eq!(why, "it broke");
        for broken in [&[3, 0, 0, 0, b'x', b'y', b'z'][..], &[0; 4], &[255; 4]] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(broken).unwrap();
            let error = receive::<Say>(&theirs).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
        drop(ours);
        let error = frames.next::<Say>(&theirs).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
