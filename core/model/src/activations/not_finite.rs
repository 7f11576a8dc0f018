//! Where in a forward pass the first number that is not finite stands: for the message of a step
//! that is given up, never on the way of one that is not.

use super::{Activations, Keep, Rows};

/// A number that is not finite, in the last forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFiniteAt {
    /// The layer whose tensor it is; `None` for token vectors.
    pub layer: Option<usize>,
    /// The tensor, as the memory plan names it.
    pub tensor: &'static str,
    /// Packed row, 0-based.
    pub row: usize,
    /// The number.
    pub value: f32,
}

impl Activations {
    /// The first number that is not finite, in the order in which a forward pass makes them, as far
    /// as it was kept: with [`Keep::Everything`] the tensor within the layer, else the layer by its
    /// output. Layers below the first adapted one share their place and count as the layer above.
    #[must_use]
    pub fn first_not_finite(&self) -> Option<NotFiniteAt> {
        let t = self.n_tokens;
        let found = self.inputs.iter().position(|rows| bad(rows, t).is_some());
        let from = match found {
            // The input of the lowest kept layer: token vectors, or what lies below.
            Some(0) => {
                let (row, value) = bad(&self.inputs[0], t)?;
                let layer = self.first_layer.checked_sub(1);
                let tensor = if layer.is_some() { "residual stream" } else { "token vectors" };
                return Some(NotFiniteAt { layer, tensor, row, value });
            }
            Some(input) => input - 1,
            // A tensor within a layer whose output is finite all the same.
            None => 0,
        };
        if self.keep == Keep::Everything {
            let within = (from..self.layers.len()).find_map(|slot| self.within(slot));
            if within.is_some() {
                return within;
            }
        }
        let (row, value) = bad(&self.inputs[found?], t)?;
        let layer = Some(self.first_layer + from);
        Some(NotFiniteAt { layer, tensor: "residual stream", row, value })
    }

    fn within(&self, slot: usize) -> Option<NotFiniteAt> {
        let layer = &self.layers[slot];
        let tensors = [
            ("queries", &layer.q),
            ("keys", &layer.k),
            ("values", &layer.v),
            ("attention output", &layer.attn),
            ("residual stream after attention", &layer.x_mid),
            ("gate", &layer.gate),
            ("up", &layer.up),
        ];
        tensors.into_iter().find_map(|(tensor, rows)| {
            let (row, value) = bad(rows, self.n_tokens)?;
            Some(NotFiniteAt { layer: Some(self.first_layer + slot), tensor, row, value })
        })
    }
}

/// The first row with a number that is not finite, and the number.
fn bad(rows: &Rows, t: usize) -> Option<(usize, f32)> {
    if rows.width == 0 || rows.data.len() < t * rows.width {
        return None;
    }
    let values = rows.get(t).to_host();
    let at = values.iter().position(|v| !v.is_finite())?;
    Some((at / rows.width, values[at]))
}
