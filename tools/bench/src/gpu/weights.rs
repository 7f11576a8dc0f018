//! Random weights of any size: all tensors are beginnings of one block of numbers, so that a model
//! of 16 GB takes the host no more memory than its largest tensor.

use std::collections::BTreeMap;

use forgelm_model::{ModelConfig, Role, RotaryOrder, StoredTensor, TensorStore};
use forgelm_tensor::Dtype;

use super::shapes::NAMES;

/// 1.0 as bfloat16.
const ONE: u16 = 0x3F80;

/// A store whose tensors are all there, and all random.
pub(crate) struct RandomStore {
    shapes: BTreeMap<String, Vec<usize>>,
    /// Numbers in (-0.035, 0.035), the size of trained weights of a few thousand columns.
    matrix: Vec<u8>,
    /// Ones, for norms.
    vector: Vec<u8>,
}

impl RandomStore {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let dims = config.dims();
        let head = (!config.tie_word_embeddings).then_some(Role::Head);
        let roles = Role::always(config).into_iter().chain(head);
        let shapes: BTreeMap<_, _> =
            roles.map(|role| (role.hf_name(NAMES), role.shape(&dims))).collect();
        let longest = |is_vector: bool| {
            let of_kind = shapes.values().filter(|shape| (shape.len() == 1) == is_vector);
            of_kind.map(|shape| shape.iter().product::<usize>()).max().unwrap_or(0)
        };
        let matrix = (0..longest(false)).flat_map(|i| number(i as u32).to_le_bytes()).collect();
        let vector = (0..longest(true)).flat_map(|_| ONE.to_le_bytes()).collect();
        Self { shapes, matrix, vector }
    }
}

/// A bfloat16 with a random sign and mantissa, and an exponent of one of the two sizes below 0.035.
fn number(i: u32) -> u16 {
    let hash = i.wrapping_mul(2_654_435_761);
    let (sign, rest) = ((hash >> 16) as u16 & 0x8000, (hash >> 12) as u16 & 0xFF);
    // 0x3C00 is 2^-7: from 2^-7 to 2^-5
    sign | (0x3C00 + rest)
}

impl TensorStore for RandomStore {
    fn place(&self) -> String {
        "(random weights)".to_owned()
    }

    fn names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn tensor(&self, name: &str) -> Option<StoredTensor<'_>> {
        let shape = self.shapes.get(name)?.clone();
        let block = if shape.len() == 1 { &self.vector } else { &self.matrix };
        let n_bytes = 2 * shape.iter().product::<usize>();
        Some(StoredTensor { dtype: Dtype::Bf16, shape, bytes: &block[..n_bytes] })
    }

    fn name_of(&self, role: Role) -> String {
        role.hf_name(NAMES)
    }

    fn rotary_order(&self) -> RotaryOrder {
        RotaryOrder::HalfSplit
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn weights_have_both_signs_and_the_size_of_trained_ones() {
        let values: Vec<f32> =
            (0..10_000).map(|i| f32::from_bits(u32::from(number(i)) << 16)).collect();
        assert!(values.iter().all(|v| (2_f32.powi(-7)..2_f32.powi(-5)).contains(&v.abs())));
        let mean = values.iter().sum::<f32>() / 10_000.0;
        assert!(mean.abs() < 1e-3, "{mean}");
    }
}
