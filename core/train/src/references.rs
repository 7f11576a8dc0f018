//! What the reference model says of the data: one log-probability for each scored row, computed
//! once, before the first step, and kept on disk under a digest of everything that decides it.
//!
//! The reference is what training begins from. An adapter that changes nothing yet is switched off
//! (the same weights run without it); what begins elsewhere (magnitudes, principal components,
//! weights of the base) runs as it begins. There is no second copy of any weight.

mod file;

use crate::feed::{Feed, Split};
pub use file::FileError;
use file::{Numbers, NumbersWriter};
use forgelm_artifact::hash::{Hasher, sha256_bytes};
use forgelm_artifact::write::{self, WriteError};
use forgelm_data::{PackedBatch, ScoredRows, Sequence, StoreError, pack_scoring};
use forgelm_model::{
    Activations, Decoder, Keep, LoraInit, OutOfMemory, PackedInput, Pass, Scored, StepSize,
    Trainable, TrainedBias,
};
use std::io;
use std::path::Path;

/// Part of the key of every file: another number when the same inputs give other log-probabilities.
const VERSION: u32 = 2;

/// The reference model's log-probabilities of the units that a run reads: those of the unit's own
/// scored rows, then those of its mismatched pair.
#[derive(Debug)]
pub struct References {
    numbers: Numbers,
    /// Units of the training split, ascending.
    train: Vec<u32>,
}

/// What references are computed from.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The base model.
    pub decoder: &'a Decoder,
    /// What trains, as it begins.
    pub initial: &'a Trainable,
    /// The data.
    pub feed: &'a Feed<'a>,
    /// Everything that decides the numbers of the base model: its digest, its format, its kernels.
    pub model: &'a str,
    /// Where files are kept; any of them may be removed at any time between runs.
    pub dir: &'a Path,
}

/// References, and where they came from.
#[derive(Debug)]
pub struct Found {
    /// The log-probabilities.
    pub references: References,
    /// Tokens that went through the reference model; 0 when they were on disk.
    pub n_tokens: u64,
    /// What the user should know.
    pub note: Option<String>,
}

/// Why there are no references.
#[derive(Debug, thiserror::Error)]
pub enum ReferencesError {
    /// The data cannot be read.
    #[error(transparent)]
    Tokens(#[from] StoreError),
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// There is no memory for a pass over the model.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The caller wants to stop.
    #[error("stopped before the reference model had read the data")]
    Stopped,
}

impl References {
    /// Reads them from disk, or computes and keeps them. `goes_on` hears the units done and those in
    /// all, and may stop.
    ///
    /// Memory: a pass over the largest unit, and 12 bytes for each unit afterwards.
    ///
    /// # Errors
    /// If something cannot be read or written, there is no memory, or `goes_on` stops it.
    pub fn prepare(
        request: &Request<'_>,
        goes_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Found, ReferencesError> {
        let train = request.feed.visited();
        let key = request.key(&train)?;
        let path = request.dir.join(format!("{key}.logp"));
        let n_units = train.len() + request.feed.validation.len();
        let note = match Numbers::open(&path) {
            Ok(numbers) if numbers.len() == n_units => {
                let references = Self { numbers, train };
                return Ok(Found { references, n_tokens: 0, note: None });
            }
            Ok(_) => Some(format!("{}: another number of units; made again", path.display())),
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(FileError::Damaged { what, .. }) => {
                Some(format!("{}: {what}: the cache is damaged; it is made again", path.display()))
            }
            Err(error) => return Err(error.into()),
        };
        let n_tokens = request.write(&path, &train, goes_on)?;
        let references = Self { numbers: Numbers::open(&path)?, train };
        Ok(Found { references, n_tokens, note })
    }

    /// The log-probabilities of a unit.
    ///
    /// # Panics
    /// If the run does not read that unit: a bug in the caller.
    pub(crate) fn read(&self, split: Split, unit: usize) -> Result<Vec<f32>, FileError> {
        let at = match split {
            Split::Train => self
                .train
                .binary_search_by_key(&unit, |&unit| unit as usize)
                .expect("a unit of the plan"),
            Split::Validation => self.train.len() + unit,
        };
        self.numbers.read(at)
    }
}

impl Request<'_> {
    fn units<'u>(&self, train: &'u [u32]) -> impl Iterator<Item = (Split, usize)> + use<'u> {
        let train = train.iter().map(|&unit| (Split::Train, unit as usize));
        train.chain((0..self.feed.validation.len()).map(|unit| (Split::Validation, unit)))
    }

    /// Everything of a unit that the reference model reads.
    fn sequences(&self, (split, unit): (Split, usize)) -> Result<Vec<Sequence>, StoreError> {
        let mut sequences = self.feed.sequences(split).read(&[unit])?;
        sequences.extend(self.feed.mismatched_of(split, unit)?);
        Ok(sequences)
    }

    /// Whether what trains changes nothing at its start, so that it need not run.
    fn begins_at_the_base(&self) -> bool {
        self.initial.lora().is_some_and(|lora| {
            lora.init == LoraInit::Noise && !lora.dora && lora.bias == TrainedBias::None
        })
    }

    /// What runs beside the weights.
    fn policy(&self) -> Option<&Trainable> {
        (!self.begins_at_the_base()).then_some(self.initial)
    }

    /// A digest of everything that decides a number: the tokens, the base model, and an adapter that
    /// does not begin at it.
    fn key(&self, train: &[u32]) -> Result<String, StoreError> {
        let mut hasher = Hasher::new();
        let adapter = match self.policy() {
            None => "none".to_owned(),
            // Weights of the base begin at the base, whose digest is in `model`.
            Some(initial) if initial.lora().is_none() => format!("{:?}", initial.selection()),
            Some(initial) => {
                let bytes: Vec<u8> =
                    initial.params().iter().flat_map(|p| p.to_le_bytes()).collect();
                format!("{:?} {}", initial.selection(), sha256_bytes(&bytes))
            }
        };
        let prompts = self.feed.needs.prompts;
        hasher.update(format!("{VERSION}\n{}\n{adapter}\n{prompts}\n", self.model).as_bytes());
        for at in self.units(train) {
            for sequence in self.sequences(at)? {
                let head =
                    [sequence.role as u32, u32::try_from(sequence.tokens.len()).unwrap_or(0)];
                let marks = sequence.tokens.iter().zip(&sequence.trained);
                let marks = marks.flat_map(|(&token, &trained)| [token, u32::from(trained)]);
                let bytes: Vec<u8> =
                    head.into_iter().chain(marks).flat_map(u32::to_le_bytes).collect();
                hasher.update(&bytes);
            }
        }
        Ok(hasher.finish().to_string())
    }

    fn write(
        &self,
        path: &Path,
        train: &[u32],
        goes_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<u64, ReferencesError> {
        write::create_dir_all_durable(self.dir)?;
        let mut failure = None;
        let mut n_tokens = 0;
        let written = write::atomic_with(path, |out| {
            let mut writer = NumbersWriter::new(out)?;
            let result = self.compute(train, goes_on, &mut |numbers| writer.push(numbers));
            match result {
                Ok(n) => n_tokens = n,
                Err(ComputeError::Write(error)) => return Err(error),
                Err(ComputeError::Other(error)) => {
                    failure = Some(error);
                    return Err(io::Error::other("the reference model could not read the data"));
                }
            }
            writer.finish()
        });
        if let Some(error) = failure {
            return Err(error);
        }
        written?;
        Ok(n_tokens)
    }

    /// Scores every unit, in order; `sink` gets the numbers of each.
    ///
    /// The batches are a function of the data: no bit depends on how a step is cut. They hold what
    /// the largest unit has, so that no step of the run needs less memory.
    fn compute(
        &self,
        train: &[u32],
        goes_on: &mut dyn FnMut(usize, usize) -> bool,
        sink: &mut dyn FnMut(&[f32]) -> io::Result<()>,
    ) -> Result<u64, ComputeError> {
        let size = self.feed.largest_unit();
        let acts = Activations::new(
            self.decoder,
            self.policy(),
            StepSize { scored_rows_max: size.tokens_max, ..size },
            Keep::Nothing,
        );
        let mut scorer = Scorer {
            decoder: self.decoder,
            policy: self.policy(),
            rows: self.feed.scored_rows(),
            acts: acts.map_err(ReferencesError::from)?,
            waiting: Vec::new(),
            n_waiting: 0,
            unit: Vec::new(),
            sink,
        };
        let n_units = train.len() + self.feed.validation.len();
        let mut n_tokens = 0;
        for (done, at) in self.units(train).enumerate() {
            let sequences = self.sequences(at).map_err(ReferencesError::from)?;
            let n = sequences.len();
            for (i, sequence) in sequences.into_iter().enumerate() {
                n_tokens += sequence.tokens.len() as u64;
                scorer.push(sequence, i + 1 == n)?;
            }
            if !goes_on(done + 1, n_units) {
                return Err(ReferencesError::Stopped.into());
            }
        }
        scorer.flush()?;
        Ok(n_tokens)
    }
}

/// Why the numbers could not be made: the disk, or anything else.
enum ComputeError {
    Write(io::Error),
    Other(ReferencesError),
}

impl From<io::Error> for ComputeError {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl From<ReferencesError> for ComputeError {
    fn from(error: ReferencesError) -> Self {
        Self::Other(error)
    }
}

/// Sequences on their way through the model, as many at once as there is room for.
struct Scorer<'a> {
    decoder: &'a Decoder,
    policy: Option<&'a Trainable>,
    rows: ScoredRows,
    acts: Activations,
    /// Each with whether it is the last of its unit.
    waiting: Vec<(Sequence, bool)>,
    n_waiting: usize,
    /// Numbers of the unit whose last sequence has not come yet.
    unit: Vec<f32>,
    sink: &'a mut dyn FnMut(&[f32]) -> io::Result<()>,
}

impl Scorer<'_> {
    fn push(&mut self, sequence: Sequence, is_last: bool) -> io::Result<()> {
        if self.n_waiting + sequence.tokens.len() > self.acts.size().tokens_max {
            self.flush()?;
        }
        self.n_waiting += sequence.tokens.len();
        self.waiting.push((sequence, is_last));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let refs: Vec<&Sequence> = self.waiting.iter().map(|(sequence, _)| sequence).collect();
        let batch = pack_scoring(&refs, self.rows);
        let logp = self.score(&batch);
        for (sequence, (_, is_last)) in batch.sequences.iter().zip(&self.waiting) {
            self.unit.extend_from_slice(&logp[sequence.start..sequence.start + sequence.len]);
            if *is_last {
                (self.sink)(&self.unit)?;
                self.unit.clear();
            }
        }
        self.waiting.clear();
        self.n_waiting = 0;
        Ok(())
    }

    fn score(&mut self, batch: &PackedBatch) -> Vec<f32> {
        let mut logp = vec![0.0; batch.labels.len()];
        if batch.tokens.is_empty() {
            return logp;
        }
        let pass = Pass { adapter: self.policy, batch: packed_input(batch), dropout: None };
        self.decoder.forward(&pass, &mut self.acts);
        let scored = Scored { rows: &batch.scored_rows, labels: &batch.labels };
        self.decoder.logprobs(&pass, &mut self.acts, scored, &mut logp);
        logp
    }
}

/// A packed batch as the model reads it.
pub(crate) fn packed_input(batch: &PackedBatch) -> PackedInput<'_> {
    PackedInput {
        tokens: &batch.tokens,
        positions: &batch.positions,
        segments: &batch.segments,
        row_keys: &batch.row_keys,
    }
}
