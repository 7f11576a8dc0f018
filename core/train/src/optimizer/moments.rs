//! What an optimizer remembers of one parameter.

use super::{At, Kind};
use forgelm_kernels_api::{
    Adafactor, AdafactorMoments, AdamW, Blocks8bit, Buffer, MemoryRefused, Ops, Slice, SliceMut,
};
use std::borrow::Cow;

/// Parameters with fewer elements keep moments in f32: bitsandbytes' `min_8bit_size`.
const MIN_8BIT: usize = 4096;

/// Constants of a unit.
#[derive(Clone, Copy)]
pub struct Rule {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f32,
    pub weight_decay: f32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Moments {
    /// AdamW in f32. Shapes: as the parameter.
    Both { m: Buffer, v: Buffer },
    /// AdamW in 8 bits.
    EightBit { m: Stored8bit, v: Stored8bit },
    /// Adafactor of a matrix: one a row, one a column.
    Factored { rows: Buffer, columns: Buffer },
    /// Adafactor of a vector.
    Whole(Buffer),
}

/// See [`Blocks8bit`].
#[derive(Clone, Debug, PartialEq)]
pub struct Stored8bit {
    pub codes: Buffer<u8>,
    pub absmax: Buffer,
}

impl Stored8bit {
    fn zero(n: usize) -> Self {
        Self { codes: vec![0; n].into(), absmax: zeros(n.div_ceil(Blocks8bit::BLOCK)) }
    }

    fn blocks(&mut self) -> Blocks8bit<'_> {
        Blocks8bit { codes: self.codes.all_mut(), absmax: self.absmax.all_mut() }
    }
}

/// A part of the state, to be written.
#[derive(Clone)]
pub enum Values<'a> {
    F32(Cow<'a, [f32]>),
    U8(Cow<'a, [u8]>),
}

impl Values<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::U8(codes) => codes.len(),
        }
    }
}

/// A part of the state, to be read.
pub enum ValuesMut<'a> {
    F32(&'a mut Buffer),
    U8(&'a mut Buffer<u8>),
}

impl ValuesMut<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::U8(codes) => codes.len(),
        }
    }
}

impl Moments {
    /// Before the first step.
    pub fn zero(kind: Kind, shape: [usize; 2]) -> Self {
        let n = shape[0] * shape[1];
        match kind {
            Kind::AdamW8bit if n >= MIN_8BIT => {
                Self::EightBit { m: Stored8bit::zero(n), v: Stored8bit::zero(n) }
            }
            Kind::AdamW | Kind::AdamW8bit => Self::Both { m: zeros(n), v: zeros(n) },
            // Of a matrix of one row or column the factored moments say the same.
            Kind::Adafactor if shape.contains(&1) => Self::Whole(zeros(n)),
            Kind::Adafactor => Self::Factored { rows: zeros(shape[0]), columns: zeros(shape[1]) },
        }
    }

    /// Bytes of [`Moments::zero`].
    pub fn planned_bytes(kind: Kind, shape: [usize; 2]) -> usize {
        let n = shape[0] * shape[1];
        match kind {
            Kind::AdamW8bit if n >= MIN_8BIT => 2 * (n + 4 * n.div_ceil(Blocks8bit::BLOCK)),
            Kind::AdamW | Kind::AdamW8bit => 8 * n,
            Kind::Adafactor if shape.contains(&1) => 4 * n,
            Kind::Adafactor => 4 * (shape[0] + shape[1]),
        }
    }

    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Both { m, v } => m.n_bytes() + v.n_bytes(),
            Self::EightBit { m, v } => {
                [m, v].iter().map(|stored| stored.codes.n_bytes() + stored.absmax.n_bytes()).sum()
            }
            Self::Factored { rows, columns } => rows.n_bytes() + columns.n_bytes(),
            Self::Whole(v) => v.n_bytes(),
        }
    }

    /// Moves them to where a kernel library works.
    pub fn place(&mut self, ops: &dyn Ops) -> Result<(), MemoryRefused> {
        for (_, part) in self.parts_mut() {
            match part {
                ValuesMut::F32(part) => place(ops, part)?,
                ValuesMut::U8(part) => {
                    if let Buffer::Host(codes) = part {
                        *part = ops.place_bytes(std::mem::take(codes))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// One step. Shapes: `param`, `grad` as the moments were made for.
    #[expect(clippy::cast_possible_truncation, reason = "kernels work in f32")]
    pub fn step(
        &mut self,
        ops: &dyn Ops,
        rule: Rule,
        param: SliceMut<'_>,
        grad: Slice<'_>,
        at: At,
    ) {
        let (lr, grad_scale) = (at.learning_rate as f32, at.grad_scale as f32);
        let Rule { beta1, beta2, eps, weight_decay } = rule;
        let adamw = AdamW { lr, beta1, beta2, eps, weight_decay, grad_scale, step: at.step };
        // Options of Trainer's `optim=adafactor`.
        let adafactor = Adafactor {
            lr,
            eps: 1e-30,
            clip_threshold: 1.0,
            weight_decay,
            grad_scale,
            step: at.step,
        };
        match self {
            Self::Both { m, v } => ops.adamw_step(param, m.all_mut(), v.all_mut(), grad, &adamw),
            Self::EightBit { m, v } => {
                ops.adamw_8bit_step(param, m.blocks(), v.blocks(), grad, &adamw);
            }
            Self::Factored { rows, columns } => {
                let moments =
                    AdafactorMoments::Factored { rows: rows.all_mut(), columns: columns.all_mut() };
                ops.adafactor_step(param, moments, grad, &adafactor);
            }
            Self::Whole(v) => {
                let moments = AdafactorMoments::Whole(v.all_mut());
                ops.adafactor_step(param, moments, grad, &adafactor);
            }
        }
    }

    /// Every part under its name.
    pub fn parts(&self) -> Vec<(&'static str, Values<'_>)> {
        match self {
            Self::Both { m, v } => {
                vec![("m", Values::F32(m.all().to_host())), ("v", Values::F32(v.all().to_host()))]
            }
            Self::EightBit { m, v } => vec![
                ("m.codes", Values::U8(m.codes.all().to_host())),
                ("m.absmax", Values::F32(m.absmax.all().to_host())),
                ("v.codes", Values::U8(v.codes.all().to_host())),
                ("v.absmax", Values::F32(v.absmax.all().to_host())),
            ],
            Self::Factored { rows, columns } => {
                vec![
                    ("rows", Values::F32(rows.all().to_host())),
                    ("columns", Values::F32(columns.all().to_host())),
                ]
            }
            Self::Whole(v) => vec![("v", Values::F32(v.all().to_host()))],
        }
    }

    /// As [`Moments::parts`], to be filled.
    pub fn parts_mut(&mut self) -> Vec<(&'static str, ValuesMut<'_>)> {
        match self {
            Self::Both { m, v } => vec![("m", ValuesMut::F32(m)), ("v", ValuesMut::F32(v))],
            Self::EightBit { m, v } => vec![
                ("m.codes", ValuesMut::U8(&mut m.codes)),
                ("m.absmax", ValuesMut::F32(&mut m.absmax)),
                ("v.codes", ValuesMut::U8(&mut v.codes)),
                ("v.absmax", ValuesMut::F32(&mut v.absmax)),
            ],
            Self::Factored { rows, columns } => {
                vec![("rows", ValuesMut::F32(rows)), ("columns", ValuesMut::F32(columns))]
            }
            Self::Whole(v) => vec![("v", ValuesMut::F32(v))],
        }
    }
}

/// Zeros in the memory of the host.
fn zeros(n: usize) -> Buffer {
    vec![0.0; n].into()
}

/// Moves numbers of the host to where a kernel library works.
pub fn place(ops: &dyn Ops, buffer: &mut Buffer) -> Result<(), MemoryRefused> {
    if let Buffer::Host(values) = buffer {
        *buffer = ops.place(std::mem::take(values))?;
    }
    Ok(())
}
