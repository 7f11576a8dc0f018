//! Blocks without their bytes, and back: see [`FrozenMatrix::take_apart`].

use std::io::Read;

use forgelm_kernels_api::{BlockFormat, Compute, FrozenMatrix, MatrixForm, Pieces};

use super::{FactorPanels, PackedBlocks};
use crate::frozen::{CpuMatrix, read_exactly};

impl PackedBlocks {
    pub(crate) fn take_apart(&self) -> (Box<dyn MatrixForm>, Vec<u8>) {
        let mut bytes = self.codes.clone();
        self.scale.append_to(&mut bytes);
        if let Some(min) = &self.min {
            min.append_to(&mut bytes);
        }
        let form = BlocksForm {
            n: self.n,
            k: self.k,
            compute: self.compute,
            format: self.format.clone(),
            n_codes: self.codes.len(),
            scale: self.scale.form(),
            min: self.min.as_ref().map(FactorPanels::form),
            flush: self.flush,
        };
        (Box::new(form), bytes)
    }
}

/// [`PackedBlocks`] without codes and factors.
struct BlocksForm {
    n: usize,
    k: usize,
    compute: Compute,
    format: BlockFormat,
    n_codes: usize,
    scale: FactorForm,
    min: Option<FactorForm>,
    flush: bool,
}

/// How factors are kept, and how many there are.
#[derive(Clone, Copy)]
enum FactorForm {
    Plain(usize),
    Half(usize),
    Nested { n_bytes: usize, n_outer: usize },
}

impl FactorForm {
    fn n_bytes(self) -> usize {
        match self {
            Self::Plain(n) => n * size_of::<f32>(),
            Self::Half(n) => n * size_of::<u16>(),
            Self::Nested { n_bytes, n_outer } => n_bytes + n_outer * size_of::<f32>(),
        }
    }

    fn put_together(self, bytes: &mut dyn Read) -> FactorPanels {
        match self {
            Self::Plain(n) => FactorPanels::Plain(numbers(bytes, n)),
            Self::Half(n) => FactorPanels::Half(numbers(bytes, n)),
            Self::Nested { n_bytes, n_outer } => FactorPanels::Nested {
                bytes: numbers(bytes, n_bytes),
                outer: numbers(bytes, n_outer),
            },
        }
    }
}

/// The next `n` numbers.
fn numbers<T: bytemuck::Pod>(bytes: &mut dyn Read, n: usize) -> Vec<T> {
    let mut numbers = vec![T::zeroed(); n];
    read_exactly(bytes, bytemuck::cast_slice_mut(&mut numbers));
    numbers
}

impl MatrixForm for BlocksForm {
    fn n_bytes(&self) -> usize {
        self.n_codes + self.scale.n_bytes() + self.min.map_or(0, FactorForm::n_bytes)
    }

    fn put_together(&self, bytes: &mut Pieces<'_>) -> Box<dyn FrozenMatrix> {
        let codes = numbers(bytes, self.n_codes);
        let scale = self.scale.put_together(bytes);
        let min = self.min.map(|min| min.put_together(bytes));
        let &Self { n, k, compute, flush, .. } = self;
        let format = self.format.clone();
        let packed = PackedBlocks { n, k, compute, format, codes, scale, min, flush };
        Box::new(CpuMatrix::Blocks(Box::new(packed)))
    }
}

impl FactorPanels {
    fn form(&self) -> FactorForm {
        match self {
            Self::Plain(factors) => FactorForm::Plain(factors.len()),
            Self::Half(factors) => FactorForm::Half(factors.len()),
            Self::Nested { bytes, outer } => {
                FactorForm::Nested { n_bytes: bytes.len(), n_outer: outer.len() }
            }
        }
    }

    fn append_to(&self, all: &mut Vec<u8>) {
        match self {
            Self::Plain(factors) => all.extend_from_slice(bytemuck::cast_slice(factors)),
            Self::Half(factors) => all.extend_from_slice(bytemuck::cast_slice(factors)),
            Self::Nested { bytes, outer } => {
                all.extend_from_slice(bytes);
                all.extend_from_slice(bytemuck::cast_slice(outer));
            }
        }
    }
}
