//! The pass down, one part of the model at a time, so that a part can be updated as soon as its
//! gradient is final and the gradient of everything never exists.

use std::ops::Range;

use super::grads::{Grads, PartialGradient};
use super::{Decoder, Pass, Scored};
use crate::activations::{Activations, Stage};
use crate::adapter::AdaptedModule;
use crate::names::Role;
use crate::trainable::Trainable;

/// Weights whose gradients are final together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The head, unless it is the embedding, and the last norm.
    Head,
    /// A decoder layer.
    Layer(usize),
    /// The embedding.
    Embedding,
}

impl Part {
    /// The part of a weight; `None` for what never trains.
    pub(crate) fn of(role: Role) -> Option<Self> {
        match role {
            Role::Head | Role::FinalNorm => Some(Self::Head),
            Role::Norm(layer, _) | Role::Linear(layer, _) | Role::Bias(layer, _) => {
                Some(Self::Layer(layer))
            }
            Role::Embedding => Some(Self::Embedding),
            Role::RopeDivisors => None,
        }
    }
}

/// How far a pass down has come.
#[derive(Debug)]
pub struct Descent {
    next: Option<Part>,
}

impl Descent {
    /// Before the head.
    #[must_use]
    pub fn begin() -> Self {
        Self { next: Some(Part::Head) }
    }
}

impl Decoder {
    /// One part of [`Decoder::backward`], from the head down: the slices of what trains whose
    /// gradient is final now and lies in `grad` until the next call; `None` when the pass is
    /// through. Together the calls compute what `backward` does, to the bit.
    ///
    /// `pass` and `scored` are the same in every call, but the numbers of slices that were returned
    /// may have changed ([`Decoder::change`]).
    ///
    /// Shapes: `dlogp` [R] read.
    ///
    /// # Panics
    /// As [`Decoder::backward`].
    pub fn descend(
        &self,
        descent: &mut Descent,
        pass: &Pass<'_>,
        acts: &mut Activations,
        (scored, dlogp): (Scored<'_>, &[f32]),
        grad: &mut PartialGradient,
    ) -> Option<Vec<Range<usize>>> {
        let part = descent.next?;
        let trainable = pass.adapter.expect("backward needs something that trains");
        grad.open(trainable, part, self.ops.as_ref());
        let mut grads = Grads::Part(grad);
        let above = match part {
            Part::Head => {
                self.check_backward(pass, acts, dlogp.len());
                self.head_backward(trainable, acts, (scored, dlogp), &mut grads);
                self.dims.l
            }
            Part::Layer(layer) => {
                let goes_on = self.step(pass).layer_backward(layer, pass, acts, &mut grads);
                if goes_on { layer } else { 0 }
            }
            Part::Embedding => {
                self.embedding_backward(pass, acts, &mut grads);
                acts.stage = Stage::Empty;
                descent.next = None;
                return Some(trainable.part(part));
            }
        };
        descent.next = Some(if above > trainable.first_layer() {
            Part::Layer(above - 1)
        } else {
            Part::Embedding
        });
        Some(trainable.part(part))
    }
}

impl Trainable {
    /// The slices of each part of the model that has some, in the order in which
    /// [`Decoder::descend`] leaves the parts. Adapters of a layer are one slice.
    #[must_use]
    pub fn descending_parts(&self) -> Vec<Vec<Range<usize>>> {
        let layers = (0..self.n_layers()).rev().map(Part::Layer);
        let parts = std::iter::once(Part::Head).chain(layers).chain([Part::Embedding]);
        parts.map(|part| self.part(part)).filter(|slices| !slices.is_empty()).collect()
    }

    /// The slices of a part of the model.
    pub(crate) fn part(&self, part: Part) -> Vec<Range<usize>> {
        let of_part = |module: &&AdaptedModule| Part::Layer(module.layer) == part;
        let mut modules = self.modules().iter().filter(of_part);
        let adapters = modules.next().map(|first| {
            let last = modules.next_back().unwrap_or(first);
            first.a.start..last.end()
        });
        let tensors = self.base_tensors().filter(|(role, _)| Part::of(*role) == Some(part));
        adapters.into_iter().chain(tensors.map(|(_, range)| range)).collect()
    }
}
