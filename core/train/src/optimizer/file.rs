//! The state of an optimizer as `optimizer.safetensors`.
//!
//! Plain AdamW: `m` and `v`, both as long as the flat buffer. The others: `NAME.PART` of each
//! parameter, `PART` one of `m`, `v`, `m.codes`, `m.absmax`, `v.codes`, `v.absmax`, `rows`,
//! `columns`, and the projection's `left` and `right`. The metadata `optimizer` names the rule; a
//! file without it is of plain AdamW.

use super::moments::{Moments, Values, ValuesMut};
use super::{Kind, Optimizer};
use forgelm_artifact::Pieces;
use forgelm_artifact::safetensors::{self, TensorToWrite};
use forgelm_kernels_api::Buffer;
use forgelm_tensor::Dtype;
use std::borrow::Cow;
use std::collections::BTreeMap;

const OPTIMIZER: &str = "optimizer";

/// Why a state cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It is another rule's.
    #[error(
        "the state of the optimizer `{found}`; this run uses `{expected}`\n  hint: continue with \
         the optimizer that the checkpoint was made with, or start a fresh run"
    )]
    OtherOptimizer {
        /// Name of the rule.
        found: String,
        /// Name of this run's.
        expected: &'static str,
    },
    /// A part is missing or of another size.
    #[error("{0}")]
    Part(String),
}

pub(super) struct Part<'a> {
    name: String,
    pub(super) values: Values<'a>,
}

impl Optimizer {
    pub(super) fn is_flat(&self) -> bool {
        self.settings.kind == Kind::AdamW && self.settings.galore.is_none()
    }

    /// The file's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let metadata = self.file_metadata();
        let flat = self.is_flat().then(|| self.flat());
        let parts = match &flat {
            Some([m, v]) => vec![
                Part { name: "m".to_owned(), values: Values::F32(Cow::Borrowed(m)) },
                Part { name: "v".to_owned(), values: Values::F32(Cow::Borrowed(v)) },
            ],
            None => self.parts(),
        };
        let shapes: Vec<[usize; 1]> = parts.iter().map(|part| [part.values.len()]).collect();
        let tensors: Vec<TensorToWrite<'_>> =
            parts.iter().zip(&shapes).map(|(part, shape)| tensor(part, shape)).collect();
        safetensors::to_bytes(&tensors, &metadata)
    }

    /// What the file says besides.
    #[must_use]
    pub fn file_metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(OPTIMIZER.to_owned(), self.settings.name().to_owned())])
    }

    fn flat(&self) -> [Vec<f32>; 2] {
        let mut all = [Vec::new(), Vec::new()];
        for unit in &self.units {
            if let Moments::Both { m, v } = &unit.moments {
                all[0].extend_from_slice(&m.all().to_host());
                all[1].extend_from_slice(&v.all().to_host());
            }
        }
        all
    }

    pub(super) fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = Vec::new();
        for unit in &self.units {
            let mut add = |part: &str, values| {
                parts.push(Part { name: format!("{}.{part}", unit.name), values });
            };
            for (part, values) in unit.moments.parts() {
                add(part, values);
            }
            if let Some(projection) = &unit.projection {
                for (part, values) in [("left", &projection.left), ("right", &projection.right)] {
                    if !values.is_empty() {
                        add(part, Values::F32(values.all().to_host()));
                    }
                }
            }
        }
        parts
    }

    /// Takes the state out of a file.
    ///
    /// # Errors
    /// If it is of another optimizer, or does not fit the parameters.
    pub fn read(&mut self, file: &Pieces) -> Result<(), StateError> {
        let expected = self.settings.name();
        let found = file.metadata().get(OPTIMIZER).map_or("adamw", String::as_str);
        if found != expected {
            return Err(StateError::OtherOptimizer { found: found.to_owned(), expected });
        }
        if self.is_flat() {
            return self.read_flat(file);
        }
        let mut n_parts = 0;
        for unit in &mut self.units {
            let name = &unit.name;
            let mut take = |part: &str, values| {
                n_parts += 1;
                read(file, &format!("{name}.{part}"), values)
            };
            for (part, values) in unit.moments.parts_mut() {
                take(part, values)?;
            }
            if let Some(projection) = &mut unit.projection {
                let sides = [("left", &mut projection.left), ("right", &mut projection.right)];
                for (part, values) in sides.into_iter().filter(|(_, values)| !values.is_empty()) {
                    take(part, ValuesMut::F32(values))?;
                }
            }
        }
        let n_found = file.names().count();
        if n_found == n_parts {
            return Ok(());
        }
        Err(StateError::Part(format!("{n_found} tensors; this run's optimizer has {n_parts}")))
    }

    fn read_flat(&mut self, file: &Pieces) -> Result<(), StateError> {
        let mut all = self.flat().map(Buffer::from);
        let [m, v] = &mut all;
        read(file, "m", ValuesMut::F32(m))?;
        read(file, "v", ValuesMut::F32(v))?;
        let mut start = 0;
        for unit in &mut self.units {
            if let Moments::Both { m, v } = &mut unit.moments {
                let part = start..start + m.len();
                m.all_mut().copy_from_host(all[0].part(part.clone()).on_host());
                v.all_mut().copy_from_host(all[1].part(part.clone()).on_host());
                start = part.end;
            }
        }
        Ok(())
    }
}

fn tensor<'a>(part: &'a Part<'a>, shape: &'a [usize; 1]) -> TensorToWrite<'a> {
    match &part.values {
        Values::F32(values) => TensorToWrite::f32(&part.name, shape, values),
        Values::U8(codes) => {
            TensorToWrite { name: &part.name, dtype: Dtype::U8, shape, bytes: Cow::Borrowed(codes) }
        }
    }
}

fn read(file: &Pieces, name: &str, mut to: ValuesMut<'_>) -> Result<(), StateError> {
    let no_part = |text: String| StateError::Part(text);
    let tensor = file.tensor(name).ok_or_else(|| no_part(format!("no tensor `{name}`")))?;
    let n_expected = to.len();
    let n_found = tensor.n_values();
    if n_found != n_expected {
        return Err(no_part(format!(
            "`{name}` has {n_found} values; this run's optimizer has {n_expected}"
        )));
    }
    let expected = match to {
        ValuesMut::U8(_) => Dtype::U8,
        ValuesMut::F32(_) => Dtype::F32,
    };
    if tensor.dtype != expected {
        let found = tensor.dtype;
        return Err(no_part(format!("`{name}` is {found}; expected {expected}")));
    }
    for (elements, bytes) in tensor.parts {
        match &mut to {
            ValuesMut::U8(codes) => codes.part_mut(elements).copy_from_host(bytes),
            ValuesMut::F32(values) => {
                let read: Vec<f32> =
                    bytes.as_chunks().0.iter().map(|&of| f32::from_le_bytes(of)).collect();
                values.part_mut(elements).copy_from_host(&read);
            }
        }
    }
    Ok(())
}
