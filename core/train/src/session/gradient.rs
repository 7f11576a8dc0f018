//! Where a session has its gradient: of everything, or of one part of the model after the other.

use super::not_finite::{BadSlice, layer_of};
use super::{Session, pass};
use forgelm_data::PackedBatch;
use forgelm_kernels_api::{Buffer, Ops, Precision};
use forgelm_model::{Descent, DropoutStep, OutOfMemory, PartialGradient, Scored, Trainable};
use std::ops::Range;

/// The gradient of what trains.
pub(super) enum Gradient {
    /// Of everything, added up over the micro-batches of a step.
    Whole(Buffer),
    /// Of one part after the other, each used as soon as the pass down has left it: where layers are
    /// updated one by one, and where processes add parts up between them.
    ByPart(PartialGradient),
}

impl Gradient {
    /// Its buffer.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(super) fn new(
        trainable: &Trainable,
        ops: &dyn Ops,
        is_by_part: bool,
    ) -> Result<Self, OutOfMemory> {
        if is_by_part {
            return Ok(Self::ByPart(PartialGradient::new(trainable, ops)?));
        }
        let n_params = trainable.n_params();
        let bytes = n_params * size_of::<f32>();
        let buffer = "gradient of the trained numbers".to_owned();
        let values = ops.allocate(n_params, Precision::Exact);
        let values = values.map_err(|_| OutOfMemory { buffer, bytes, total: bytes })?;
        Ok(Self::Whole(values))
    }

    /// # Panics
    /// If it is by part: a bug of the caller.
    pub(super) fn whole(&self) -> &Buffer {
        match self {
            Self::Whole(values) => values,
            Self::ByPart(_) => panic!("there is no gradient of everything"),
        }
    }

    /// # Panics
    /// If it is whole: a bug of the caller.
    pub(super) fn by_part(&self) -> &PartialGradient {
        match self {
            Self::ByPart(part) => part,
            Self::Whole(_) => panic!("the gradient does not come part by part"),
        }
    }
}

impl Session<'_> {
    /// Adds the gradient of a batch that just went forward to that of everything.
    pub(super) fn backward(&mut self, batch: &PackedBatch, step: u64) {
        let stream = &self.dropout;
        let dropout = self.feed.needs.dropout.then_some(DropoutStep { stream, step });
        let pass = pass(&self.adapter, batch, dropout);
        let scored = Scored { rows: &batch.scored_rows, labels: &batch.labels };
        let dlogp = &self.buffers.dlogp[..batch.labels.len()];
        let Gradient::Whole(values) = &mut self.gradient else {
            panic!("there is no gradient of everything");
        };
        self.decoder.backward(&pass, &mut self.activations, scored, dlogp, values.all_mut());
    }

    /// One part of that: see [`Decoder::descend`](forgelm_model::Decoder::descend).
    pub(super) fn descend(
        &mut self,
        descent: &mut Descent,
        batch: &PackedBatch,
        step: u64,
    ) -> Option<Vec<Range<usize>>> {
        let stream = &self.dropout;
        let dropout = self.feed.needs.dropout.then_some(DropoutStep { stream, step });
        let pass = pass(&self.adapter, batch, dropout);
        let scored = Scored { rows: &batch.scored_rows, labels: &batch.labels };
        let given = (scored, &self.buffers.dlogp[..batch.labels.len()]);
        let Gradient::ByPart(part) = &mut self.gradient else {
            panic!("the gradient does not come part by part");
        };
        self.decoder.descend(descent, &pass, &mut self.activations, given, part)
    }

    /// The first slice of the gradient within some ranges that has a number which is not finite: its
    /// name, its layer, the number.
    pub(super) fn bad_slice(&self, within: &[Range<usize>]) -> Option<BadSlice> {
        let is_within = |range: &Range<usize>| {
            within.iter().any(|of| of.start <= range.start && range.end <= of.end)
        };
        let slices = self.adapter.slices().into_iter();
        slices.filter(|slice| is_within(&slice.range)).find_map(|slice| {
            let values = match &self.gradient {
                Gradient::Whole(values) => values.part(slice.range),
                Gradient::ByPart(part) => part.of(slice.range),
            };
            let bad = values.to_host().iter().copied().find(|d| !d.is_finite())?;
            let what = format!("the gradient of `{}`", slice.name);
            Some((what, layer_of(&slice.name), f64::from(bad)))
        })
    }
}
