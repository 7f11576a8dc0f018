//! The step ledger: what each step read and what came of it, in a chain of lines.
//!
//! A line is a JSON object whose last member `prev` is the SHA-256 of the line before it (without
//! its newline; `genesis` for the first). No line has a time or the name of a run, so that a run
//! that was killed and continued has the same ledger as one that was not.

use crate::session::Cut;
use forgelm_artifact::hash::{Hasher, sha256_bytes};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// `prev` of the first line.
pub const GENESIS: &str = "genesis";

/// Version of the lines. Raised when an older program could not read a newer ledger.
pub const LEDGER_FORMAT: u32 = 1;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    /// What the steps that follow are made from.
    Start(Start),
    /// One optimizer step.
    Step(StepEntry),
    /// The validation split, after so many steps.
    Evaluation(EvaluationEntry),
    /// A checkpoint was written after so many steps.
    Checkpoint(CheckpointEntry),
}

/// See [`Entry::Start`]. With the weights and moments after `after_step` steps it decides all that
/// follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// [`LEDGER_FORMAT`].
    pub format: u32,
    /// Steps that were done before.
    pub after_step: u64,
    /// Steps in all.
    pub n_steps: u64,
    /// SHA-256 of the canonical JSON of the parts of the config that decide the weights.
    pub config_sha256: String,
    /// SHA-256 of the data.
    pub data_sha256: String,
    /// SHA-256 of the base model's weights.
    pub model_sha256: String,
    /// SHA-256 of the classifier that rewards answers.
    pub reward_model_sha256: Option<String>,
    /// `float32` or `bfloat16`.
    pub compute_dtype: String,
    /// Kernel library and instruction set.
    pub kernels: String,
    /// What chat templates took for the present, in seconds since 1970.
    pub template_now: i64,
    /// [`weights_sha256`] of what trains, before the next step.
    pub weights_sha256: String,
}

/// See [`Entry::Step`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepEntry {
    /// Counted from 1.
    pub step: u64,
    /// How steps are cut.
    pub cut: Cut,
    /// What each micro-batch read: indices of sequences, pairs or prompts of the training split.
    pub units: Vec<Vec<usize>>,
    /// Mean loss over the step's terms.
    pub loss: f64,
    /// Norm of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// [`weights_sha256`] of what trains, after the step.
    pub weights_sha256: String,
}

/// See [`Entry::Evaluation`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationEntry {
    /// Steps done.
    pub step: u64,
    /// Mean loss over the terms of the validation split.
    pub eval_loss: f64,
}

/// See [`Entry::Checkpoint`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointEntry {
    /// Steps done.
    pub step: u64,
    /// SHA-256 of its file of the optimizer's state; the weights are in the entry of the step.
    pub optimizer_sha256: String,
}

/// A line of a file.
#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    entry: Entry,
    prev: String,
}

/// Why a file is no ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct LedgerError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl Entry {
    /// Steps that were done when it was written.
    #[must_use]
    pub fn step(&self) -> u64 {
        match self {
            Self::Start(start) => start.after_step,
            Self::Step(step) => step.step,
            Self::Evaluation(evaluation) => evaluation.step,
            Self::Checkpoint(checkpoint) => checkpoint.step,
        }
    }

    /// Its line, without the newline.
    ///
    /// # Panics
    /// Never: the members are plain data.
    #[must_use]
    pub fn to_line(&self, prev: &str) -> String {
        let line = Line { entry: self.clone(), prev: prev.to_owned() };
        serde_json::to_string(&line).expect("plain data is serializable")
    }
}

/// What the `prev` of the next line is.
#[must_use]
pub fn head_after(line: &str) -> String {
    sha256_bytes(line.as_bytes()).as_str().to_owned()
}

/// Reads a ledger whose chain holds: its entries in order.
///
/// # Errors
/// The first line that is no entry, does not follow the line before it, or skips a step.
pub fn read(text: &str) -> Result<Vec<Entry>, LedgerError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut prev = GENESIS.to_owned();
    for (i, text) in text.lines().enumerate() {
        let failed = |reason: String| LedgerError { line: i + 1, reason };
        let line: Line =
            serde_json::from_str(text).map_err(|error| failed(format!("no entry: {error}")))?;
        if line.prev != prev {
            return Err(failed("it does not follow the line before it".to_owned()));
        }
        let done = entries.last().map_or(0, Entry::step);
        let expected = match &line.entry {
            Entry::Step(_) => done + 1,
            Entry::Start(start) if start.format > LEDGER_FORMAT => {
                let format = start.format;
                return Err(failed(format!("format {format}; this program reads {LEDGER_FORMAT}")));
            }
            // A run that began without a ledger starts one in the middle.
            Entry::Start(start) if entries.is_empty() => start.after_step,
            Entry::Start(_) | Entry::Evaluation(_) | Entry::Checkpoint(_) => done,
        };
        if line.entry.step() != expected {
            let found = line.entry.step();
            return Err(failed(format!("step {found} where {expected} is due")));
        }
        if entries.is_empty() && !matches!(line.entry, Entry::Start(_)) {
            return Err(failed("the first line must be a start".to_owned()));
        }
        entries.push(line.entry);
        prev = head_after(text);
    }
    Ok(entries)
}

/// Numbers of a block of [`weights_sha256`].
pub(crate) const BLOCK: usize = 1 << 20;

/// SHA-256 over the SHA-256 digests of blocks of 2^20 numbers, each number as four bytes,
/// little-endian: blocks are hashed on as many threads as given. Shapes: [P].
#[must_use]
pub fn weights_sha256(params: &[f32], n_threads: usize) -> String {
    let blocks: Vec<&[f32]> = params.chunks(BLOCK).collect();
    let n_threads = NonZeroUsize::new(n_threads.min(blocks.len())).map_or(1, NonZeroUsize::get);
    let mut digests = vec![[0; 32]; blocks.len()];
    let hash_all = |blocks: &[&[f32]], digests: &mut [[u8; 32]]| {
        blocks.iter().zip(digests).for_each(|(block, digest)| *digest = block_sha256(block));
    };
    if n_threads == 1 {
        hash_all(&blocks, &mut digests);
    } else {
        let share = blocks.len().div_ceil(n_threads);
        std::thread::scope(|scope| {
            for (blocks, digests) in blocks.chunks(share).zip(digests.chunks_mut(share)) {
                scope.spawn(move || hash_all(blocks, digests));
            }
        });
    }
    of_blocks(&digests)
}

/// [`weights_sha256`], of the digests of all blocks.
pub(crate) fn of_blocks(digests: &[[u8; 32]]) -> String {
    sha256_bytes(digests.as_flattened()).as_str().to_owned()
}

/// The digest of a block.
pub(crate) fn block_sha256(numbers: &[f32]) -> [u8; 32] {
    const AT_ONCE: usize = 4096;
    let mut hasher = Hasher::new();
    let mut bytes = [0; 4 * AT_ONCE];
    for numbers in numbers.chunks(AT_ONCE) {
        let bytes = &mut bytes[..4 * numbers.len()];
        for (bytes, number) in bytes.chunks_exact_mut(4).zip(numbers) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        hasher.update(bytes);
    }
    hasher.finish_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(after_step: u64) -> Entry {
        Entry::Start(Start {
            format: LEDGER_FORMAT,
            after_step,
            n_steps: 4,
            config_sha256: "c".to_owned(),
            data_sha256: "d".to_owned(),
            model_sha256: "m".to_owned(),
            reward_model_sha256: None,
            compute_dtype: "float32".to_owned(),
            kernels: "cpu/avx2".to_owned(),
            template_now: 0,
            weights_sha256: "w".to_owned(),
        })
    }

    fn step(step: u64) -> Entry {
        Entry::Step(StepEntry {
            step,
            cut: Cut { batch_size: 2, accumulation: 1 },
            units: vec![vec![0, 1]],
            loss: 0.1 + 0.2,
            grad_norm: 1e-7,
            weights_sha256: "w".to_owned(),
        })
    }

    fn text(entries: &[Entry]) -> String {
        let mut prev = GENESIS.to_owned();
        let mut text = String::new();
        for entry in entries {
            let line = entry.to_line(&prev);
            prev = head_after(&line);
            text += &(line + "\n");
        }
        text
    }

    #[test]
    fn entries_read_back_as_they_were_written() {
        let evaluation = Entry::Evaluation(EvaluationEntry { step: 2, eval_loss: 1.0 / 3.0 });
        let saved = CheckpointEntry { step: 2, optimizer_sha256: "o".to_owned() };
        let entries = [start(0), step(1), step(2), evaluation, Entry::Checkpoint(saved), step(3)];
        assert_eq!(read(&text(&entries)).as_deref(), Ok(entries.as_slice()));
        let continued = [start(7), step(8), start(8), step(9)];
        assert_eq!(read(&text(&continued)).as_deref(), Ok(continued.as_slice()));
        assert_eq!(read(""), Ok(vec![]));
    }

    #[test]
    fn every_changed_moved_or_missing_line_is_found() {
        let good = text(&[start(0), step(1), step(2), step(3)]);
        let lines: Vec<&str> = good.lines().collect();
        let line_of = |lines: &[&str]| read(&lines.join("\n")).expect_err("found").line;
        assert_eq!(line_of(&[lines[0], lines[2], lines[3]]), 2, "one is missing");
        assert_eq!(line_of(&[lines[0], lines[2], lines[1], lines[3]]), 2, "two are swapped");
        assert_eq!(line_of(&[lines[1], lines[2]]), 1, "the start is missing");
        let changed = lines[1].replace("0.30000000000000004", "0.3");
        assert_ne!(changed, lines[1]);
        assert_eq!(line_of(&[lines[0], &changed, lines[2]]), 3, "one has another number");
        assert_eq!(read(&text(&[start(0), step(2)])).expect_err("found").line, 2, "a step skipped");
        assert_eq!(read(&text(&[step(1)])).expect_err("found").line, 1, "no start");
        let torn = &good[..good.len() - 20];
        assert_eq!(read(torn).expect_err("found").line, 4);
    }

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    fn the_digest_of_weights_depends_on_every_bit_and_on_no_thread() {
        let mut params: Vec<f32> = (0..3 * BLOCK + 5).map(|i| i as f32 * 0.5).collect();
        let one = weights_sha256(&params, 1);
        for n_threads in [2, 3, 8] {
            assert_eq!(weights_sha256(&params, n_threads), one);
        }
        let bytes: Vec<u8> = params.iter().flat_map(|x| x.to_le_bytes()).collect();
        let digests = bytes.chunks(4 * BLOCK).map(|block| {
            let mut hasher = Hasher::new();
            hasher.update(block);
            hasher.finish_raw()
        });
        let digests: Vec<u8> = digests.flatten().collect();
        assert_eq!(one, sha256_bytes(&digests).as_str(), "as the page of the format says");
        params[2 * BLOCK] = f32::from_bits(params[2 * BLOCK].to_bits() ^ 1);
        assert_ne!(weights_sha256(&params, 1), one);
        assert_ne!(weights_sha256(&[0.0], 1), weights_sha256(&[-0.0], 1));
    }
}
