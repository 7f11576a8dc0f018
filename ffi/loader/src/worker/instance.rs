//! Instances in a worker, as the traits that the engine calls.

use super::client::unexpected;
use super::memory::{Memory, Span};
use super::process::Shared;
use super::wire::{self, Answer, Ask, Batch, KindOf, Offered};
use crate::border::Caller;
use crate::quantizer::check_row_bytes;
use crate::trainer::kept_name;
use forgelm_sdk::Failed;
use forgelm_sdk::evaluator::{Evaluator, Report, Services};
use forgelm_sdk::host::Level;
use forgelm_sdk::merge_method::{MergeMethod, Pass, Piece, Tensor};
use forgelm_sdk::quantizer::Quantizer;
use forgelm_sdk::reward::{Answer as GivenAnswer, Reward};
use forgelm_sdk::trainer::{Loss, Metric, Scored, Trainer};
use std::sync::PoisonError;

/// An instance in a worker.
pub(super) struct Instance {
    pub(super) worker: Shared,
    pub(super) kind: KindOf,
    pub(super) number: usize,
    pub(super) caller: Caller,
}

impl Instance {
    /// One call. `arrays` are the bytes of its arrays, which `place` puts into the shared memory; it
    /// says where the worker writes. `take` reads that.
    fn call<R>(
        &self,
        arrays: &[usize],
        place: impl FnOnce(&mut Memory) -> (Ask, Span),
        take: impl FnOnce(&Memory, Span, Answer) -> Option<R>,
    ) -> Result<R, Failed> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        worker.memory.begin(arrays).map_err(|error| {
            self.caller.failed(&format!("no memory to share with its worker: {error}"))
        })?;
        let (question, written) = place(&mut worker.memory);
        let answer = worker.ask(&question);
        let is_alive = worker.is_alive();
        let answer = answer.map_err(|why| self.failed(why, is_alive))?;
        take(&worker.memory, written, answer).ok_or_else(|| self.caller.failed(&unexpected()))
    }

    /// The loader in the worker has said whose failure it is; of a death it cannot.
    fn failed(&self, why: String, is_alive: bool) -> Failed {
        if is_alive { Failed::new(why) } else { self.caller.failed(&why) }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        // A worker that is gone has no instances.
        if worker.is_alive()
            && let Err(why) = worker.ask(&Ask::Destroy { kind: self.kind, instance: self.number })
        {
            let text = self.caller.failed(&format!("while it was destroyed: {why}")).message;
            (worker.services.log)(Level::Warning, "loader", &text);
        }
    }
}

impl Trainer for Instance {
    fn loss(&self, scored: &Scored<'_>, dlogp: &mut [f32]) -> Result<Loss, Failed> {
        let sequences: Vec<u64> = scored
            .sequences
            .iter()
            .flat_map(|s| [s.role as u64, s.record, s.start as u64, s.len as u64])
            .collect();
        let roles = scored.step.0.iter();
        let totals: Vec<u64> =
            roles.flat_map(|role| [role.n_sequences, role.n_scored, role.n_trained]).collect();
        let n = dlogp.len();
        let bytes = |values: Option<&[f32]>| size_of_val(values.unwrap_or_default());
        let arrays = [
            size_of_val(&*sequences),
            size_of_val(scored.labels),
            scored.trained.len(),
            size_of_val(scored.logp),
            bytes(scored.ref_logp),
            bytes(scored.advantage),
            bytes(scored.old_logp),
            size_of_val(&*totals),
            size_of_val(dlogp),
        ];
        let place = |memory: &mut Memory| {
            let batch = Batch {
                sequences: memory.put(&sequences),
                labels: memory.put(scored.labels),
                trained: memory.put(scored.trained),
                logp: memory.put(scored.logp),
                ref_logp: scored.ref_logp.map(|values| memory.put(values)),
                advantage: scored.advantage.map(|values| memory.put(values)),
                old_logp: scored.old_logp.map(|values| memory.put(values)),
                totals: memory.put(&totals),
                dlogp: memory.room::<f32>(n),
            };
            (Ask::Loss { instance: self.number, batch }, batch.dlogp)
        };
        self.call(&arrays, place, |memory, written, answer| {
            let Answer::Loss { loss_sum, n_terms, metrics } = answer else { return None };
            dlogp.copy_from_slice(memory.slice(written));
            let metric = |(name, sum, n_terms): (String, u64, u64)| {
                let name = kept_name(&name);
                Metric { name, sum: f64::from_bits(sum), n_terms }
            };
            let metrics = metrics.into_iter().map(metric).collect();
            Some(Loss { loss_sum: f64::from_bits(loss_sum), n_terms, metrics })
        })
    }
}

/// A merge method in a worker, with what does not change.
pub(super) struct Merger {
    pub(super) instance: Instance,
    pub(super) reads_base: bool,
    pub(super) passes: Vec<Pass>,
}

impl Merger {
    /// Bytes of the arrays of a piece.
    fn bytes(piece: &Piece<'_>) -> Vec<usize> {
        let arrays = piece.inputs.iter().copied().chain(piece.base);
        arrays.map(size_of_val).chain([size_of_val(piece.tensor.facts)]).collect()
    }

    fn place(memory: &mut Memory, piece: &Piece<'_>) -> wire::Piece {
        wire::Piece {
            tensor: place_tensor(memory, &piece.tensor),
            start: piece.start,
            base: piece.base.map(|values| memory.put(values)),
            inputs: piece.inputs.iter().map(|values| memory.put(values)).collect(),
        }
    }
}

fn place_tensor(memory: &mut Memory, tensor: &Tensor<'_>) -> wire::Tensor {
    let name = tensor.name.to_owned();
    wire::Tensor { name, len: tensor.len, facts: memory.put(tensor.facts) }
}

impl MergeMethod for Merger {
    fn reads_base(&self) -> bool {
        self.reads_base
    }

    fn passes(&self) -> &[Pass] {
        &self.passes
    }

    fn measure(&self, pass: usize, piece: &Piece<'_>, sums: &mut [f64]) -> Result<(), Failed> {
        let mut arrays = Self::bytes(piece);
        arrays.push(size_of_val(sums));
        let place = |memory: &mut Memory| {
            let piece = Self::place(memory, piece);
            let out = memory.put(sums);
            let (instance, pass) = (self.instance.number, Some(pass));
            (Ask::Merge { instance, pass, piece, out }, out)
        };
        // one borrow to write them, one to read them back
        let measured = self.instance.call(&arrays, place, |memory, written, answer| {
            matches!(answer, Answer::Done).then(|| memory.slice::<f64>(written).to_vec())
        })?;
        sums.copy_from_slice(&measured);
        Ok(())
    }

    fn conclude(
        &self,
        pass: usize,
        tensor: &Tensor<'_>,
        sums: &[f64],
        facts: &mut [f64],
    ) -> Result<(), Failed> {
        let arrays = [size_of_val(tensor.facts), size_of_val(sums), size_of_val(facts)];
        let place = |memory: &mut Memory| {
            let tensor = place_tensor(memory, tensor);
            let sums = memory.put(sums);
            let facts = memory.room::<f64>(facts.len());
            let instance = self.instance.number;
            (Ask::Conclude { instance, pass, tensor, sums, facts }, facts)
        };
        let concluded = self.instance.call(&arrays, place, |memory, written, answer| {
            matches!(answer, Answer::Done).then(|| memory.slice::<f64>(written).to_vec())
        })?;
        facts.copy_from_slice(&concluded);
        Ok(())
    }

    fn merge(&self, piece: &Piece<'_>, out: &mut [f32]) -> Result<(), Failed> {
        let mut arrays = Self::bytes(piece);
        arrays.push(size_of_val(out));
        let n = out.len();
        let place = |memory: &mut Memory| {
            let piece = Self::place(memory, piece);
            let out = memory.room::<f32>(n);
            (Ask::Merge { instance: self.instance.number, pass: None, piece, out }, out)
        };
        self.instance.call(&arrays, place, |memory, written, answer| {
            matches!(answer, Answer::Done).then(|| out.copy_from_slice(memory.slice(written)))
        })
    }
}

impl Quantizer for Instance {
    fn bytes_per_row(&self, n_cols: usize) -> Result<usize, Failed> {
        let place =
            |_: &mut Memory| (Ask::RowBytes { instance: self.number, n_cols }, Span::default());
        let n_bytes = self.call(&[], place, |_, _, answer| match answer {
            Answer::Bytes(bytes) => Some(bytes),
            _ => None,
        })?;
        check_row_bytes(&self.caller, n_cols, n_bytes)
    }

    fn quantize(&self, rows: &[f32], n_cols: usize, bytes: &mut [u8]) -> Result<(), Failed> {
        let n = bytes.len();
        let place = |memory: &mut Memory| {
            let (rows, bytes) = (memory.put(rows), memory.room::<u8>(n));
            (Ask::Quantize { instance: self.number, n_cols, rows, bytes }, bytes)
        };
        self.call(&[size_of_val(rows), n], place, |memory, written, answer| {
            matches!(answer, Answer::Done).then(|| bytes.copy_from_slice(memory.slice(written)))
        })
    }

    fn dequantize(&self, bytes: &[u8], n_cols: usize, rows: &mut [f32]) -> Result<(), Failed> {
        let n = rows.len();
        let place = |memory: &mut Memory| {
            let (bytes, rows) = (memory.put(bytes), memory.room::<f32>(n));
            (Ask::Dequantize { instance: self.number, n_cols, bytes, rows }, rows)
        };
        self.call(&[bytes.len(), size_of_val(rows)], place, |memory, written, answer| {
            matches!(answer, Answer::Done).then(|| rows.copy_from_slice(memory.slice(written)))
        })
    }
}

impl Reward for Instance {
    fn judge(&self, answers: &[GivenAnswer<'_>]) -> Result<Vec<Option<f64>>, Failed> {
        let texts = |answer: &GivenAnswer<'_>| {
            [answer.prompt, answer.completion, answer.record].map(|text| text.len())
        };
        let arrays: Vec<usize> = answers.iter().flat_map(texts).collect();
        let place = |memory: &mut Memory| {
            let put = |answer: &GivenAnswer<'_>| {
                let texts = [answer.prompt, answer.completion, answer.record];
                texts.map(|text| memory.put(text.as_bytes()))
            };
            let answers = answers.iter().map(put).collect();
            (Ask::Judge { instance: self.number, answers }, Span::default())
        };
        self.call(&arrays, place, |_, _, answer| {
            let Answer::Rewards(rewards) = answer else { return None };
            Some(rewards.into_iter().map(|bits| bits.map(f64::from_bits)).collect())
        })
    }
}

impl Evaluator for Instance {
    fn evaluate(&self, model: &Services<'_>) -> Result<Report, Failed> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let question = Ask::Evaluate { instance: self.number, offered: Offered::of(model) };
        match worker.ask_over(&question, model) {
            Ok(Answer::Report(report)) => Ok(report),
            Ok(_) => Err(self.caller.failed(&unexpected())),
            Err(why) => Err(self.failed(why, worker.is_alive())),
        }
    }
}
