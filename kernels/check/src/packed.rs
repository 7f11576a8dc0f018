//! Weights that stay in blocks: everything is equal, to the last bit, to the same numbers frozen
//! densely (whose products [`linear`](crate::linear) compares with the reference).

use std::ops::Range;

use forgelm_kernels_api::{
    BlockFormat, BlockRows, BlockSource, Codes, Compute, Factor, FactorRows, Factors, FrozenMatrix,
    Ops, Pieces, Rounding, RowSource, Slice, Write,
};
use forgelm_kernels_reference::Reference;

use crate::{Outcome, bits_of, indices, numbers};

/// (T, N, K): less and more rows than a task has, panels that are not full, a sum in more than one
/// block, more panels than are unpacked at a time, and columns that are turned in parts which cut
/// groups in two.
pub const SIZES: [(usize, usize, usize); 7] = [
    (1, 50, 64),
    (3, 48, 128),
    (5, 131, 192),
    (129, 97, 64),
    (140, 60, 1280),
    (150, 900, 1280),
    (2, 60, 2560),
];

/// Formats that are tried with every size.
pub const FORMATS: [&str; 8] =
    ["nf4", "nf4 double", "q4_1", "q4_k", "q6_k", "int8 rows", "fp16", "bf16"];

/// A format of this name; values and factors are random where the format leaves them open.
fn format(name: &str, k: usize) -> BlockFormat {
    let four = |seed| {
        let mut values = [0.0; 16];
        values.copy_from_slice(&numbers(seed, 16));
        Codes::Four { values }
    };
    let nested = |outer_len, offset| {
        let values = numbers(7, 256).try_into().expect("256 numbers");
        Factors::Nested { values, outer_len, offset }
    };
    let (codes, group_len, scale, min) = match name {
        "nf4" | "fp16" | "bf16" => (four(1), 64, Factors::Plain, None),
        "nf4 double" => (four(2), 64, nested(5, Some(0.25)), None),
        "q4_1" => (four(3), 32, Factors::Plain, Some(Factors::Plain)),
        "q4_k" => (four(4), 32, nested(2, None), Some(nested(2, None))),
        "q6_k" => (Codes::Eight, 16, nested(4, None), None),
        "int8 rows" => (Codes::Eight, k, Factors::Plain, None),
        other => panic!("no format `{other}`"),
    };
    let rounding = match name {
        "fp16" => Rounding::F16,
        "bf16" => Rounding::Bf16,
        _ => Rounding::Exact,
    };
    BlockFormat { codes, group_len, scale, min, rounding }
}

/// A random matrix of a format.
struct Blocks {
    n: usize,
    k: usize,
    format: BlockFormat,
    codes: Vec<u8>,
    scale: (FactorRows, Vec<f32>),
    min: Option<(FactorRows, Vec<f32>)>,
}

impl Blocks {
    fn random(name: &str, n: usize, k: usize) -> Self {
        let format = format(name, k);
        let n_groups = n * format.n_groups(k);
        let limit = match format.codes {
            Codes::Four { .. } => 16,
            Codes::Eight => 256,
        };
        let factors = |format: &Factors, seed| match format {
            // Half-precision numbers, except in the format that needs all bits.
            Factors::Plain if name == "int8 rows" => {
                (FactorRows::Plain(numbers(seed, n_groups)), Vec::new())
            }
            Factors::Plain => {
                let halves = indices(seed, n_groups, 2048).into_iter();
                let halves = halves.map(|i| (i as f32 - 1024.0) / 4096.0).collect();
                (FactorRows::Plain(halves), Vec::new())
            }
            Factors::Nested { outer_len, .. } => {
                let bytes = indices(seed, n_groups, 256).into_iter().map(|i| i as u8).collect();
                (FactorRows::Nested(bytes), numbers(seed + 1, n_groups.div_ceil(*outer_len)))
            }
        };
        Self {
            n,
            k,
            codes: indices(11, n * k, limit).into_iter().map(|i| i as u8).collect(),
            scale: factors(&format.scale, 20),
            min: format.min.as_ref().map(|min| factors(min, 30)),
            format,
        }
    }
}

impl BlockSource for Blocks {
    fn format(&self) -> &BlockFormat {
        &self.format
    }

    fn read_blocks(&self, rows: Range<usize>) -> BlockRows {
        let n_groups = self.format.n_groups(self.k);
        let groups = rows.start * n_groups..rows.end * n_groups;
        let cut = |(factors, _): &(FactorRows, Vec<f32>)| match factors {
            FactorRows::Plain(all) => FactorRows::Plain(all[groups.clone()].to_vec()),
            FactorRows::Nested(all) => FactorRows::Nested(all[groups.clone()].to_vec()),
        };
        BlockRows {
            codes: self.codes[rows.start * self.k..rows.end * self.k].to_vec(),
            scale: cut(&self.scale),
            min: self.min.as_ref().map(cut),
        }
    }

    fn outer(&self, factor: Factor) -> Vec<f32> {
        match factor {
            Factor::Scale => self.scale.1.clone(),
            Factor::Min => self.min.as_ref().map_or_else(Vec::new, |min| min.1.clone()),
        }
    }
}

impl RowSource for Blocks {
    fn n_rows(&self) -> usize {
        self.n
    }

    fn n_cols(&self) -> usize {
        self.k
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        let plain = Reference.freeze_packed(self, Compute::F32).expect("the reference unpacks all");
        plain.read_rows(first_row, out);
    }

    fn blocks(&self) -> Option<&dyn BlockSource> {
        Some(self)
    }
}

/// The numbers of a source, without its blocks.
struct Dense {
    n: usize,
    k: usize,
    data: Vec<f32>,
}

impl RowSource for Dense {
    fn n_rows(&self) -> usize {
        self.n
    }

    fn n_cols(&self) -> usize {
        self.k
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.data[first_row * self.k..][..out.len()]);
    }
}

/// Both directions, rows of a table and the wide end, in both compute formats.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (i, &(t, n, k)) in SIZES.iter().enumerate() {
        for name in FORMATS {
            let blocks = Blocks::random(name, n, k);
            let mut data = vec![0.0; n * k];
            blocks.read_rows(0, &mut data);
            let rows = Dense { n, k, data };
            for compute in [Compute::F32, Compute::Bf16] {
                let write = if i % 2 == 0 { Write::Replace } else { Write::Add };
                let name = format!("packed {name} T={t} N={n} K={k} {compute:?} {write:?}");
                let dense = library.freeze(&rows, compute);
                let packed = library.freeze_packed(&blocks, compute).expect("blocks are kept");
                // Every other time what is put together of the bytes of both.
                let [dense, packed] = match i % 2 {
                    0 => [dense, packed],
                    _ => [dense, packed].map(|w| again(library, &*w, &name)),
                };
                assert!(library.freeze_packed(&rows, compute).is_none(), "{name}: no blocks");
                assert_eq!((packed.n_rows(), packed.n_cols()), (n, k), "{name}");
                let results = [&*dense, &*packed].map(|w| {
                    let mut bits = Vec::new();
                    let mut all = vec![0.0; n * k];
                    w.read_rows(0, &mut all);
                    let (mut y, x) = (numbers(40, t * n), numbers(41, t * k));
                    library.linear_forward((&mut y).into(), (&x).into(), w, write);
                    let (mut dx, dy) = (numbers(42, t * k), numbers(43, t * n));
                    library.linear_backward((&mut dx).into(), (&dy).into(), w, write);
                    let tokens = indices(44, t, n);
                    let mut table = vec![0.0; t * k];
                    library.embedding_forward((&mut table).into(), &tokens, w);
                    bits.push(bits_of(&[&all]));
                    bits.push(bits_of(&[&y]));
                    bits.push(bits_of(&[&dx]));
                    bits.push(bits_of(&[&table]));
                    if t < 100 {
                        bits.push(wide_end(library, w, &x, &tokens));
                    }
                    bits
                });
                for (part, (dense, packed)) in results[0].iter().zip(&results[1]).enumerate() {
                    let part = ["rows", "y", "dx", "table", "logp"][part];
                    assert!(dense == packed, "{name}: {part} differs from the dense weight's");
                }
                let [_, packed] = results;
                outcomes.push(Outcome { name, bits: packed.concat() });
            }
        }
    }
    outcomes
}

/// The matrix of the same bytes in other memory.
fn again(library: &dyn Ops, w: &dyn FrozenMatrix, name: &str) -> Box<dyn FrozenMatrix> {
    let (form, bytes) = w.take_apart();
    assert_eq!(form.n_bytes(), bytes.len(), "{name}: bytes of the form");
    // As from two processes, at a border that no part of the matrix has: from the host, and from
    // where the library works.
    let third = bytes.len() / 3;
    let here = library.place_bytes(bytes.clone()).expect("there is memory for a copy");
    let copies = [Slice::from(&bytes), here.all()].map(|all| {
        let pieces = [all.part(0..third), all.part(third..bytes.len())];
        let copy = form.put_together(&mut Pieces::from_iter(pieces));
        assert_eq!(copy.n_bytes(), w.n_bytes(), "{name}: memory of the copy");
        assert!(copy.take_apart().1 == bytes, "{name}: bytes of the copy");
        copy
    });
    let [_, copy] = copies;
    copy
}

fn wide_end(library: &dyn Ops, head: &dyn FrozenMatrix, x: &[f32], labels: &[u32]) -> Vec<u32> {
    let (mut logp, mut lse) = (vec![0.0; labels.len()], vec![0.0; labels.len()]);
    library.token_logprobs_forward(
        (&mut logp).into(),
        (&mut lse).into(),
        x.into(),
        head,
        labels,
        None,
    );
    let mut dx = vec![0.0; x.len()];
    let dlogp = numbers(45, labels.len());
    library.token_logprobs_backward(
        (&mut dx).into(),
        (&dlogp).into(),
        (&lse).into(),
        x.into(),
        head,
        labels,
        None,
    );
    bits_of(&[&logp, &lse, &dx])
}
