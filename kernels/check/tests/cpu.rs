//! The CPU library against the reference, on every instruction set of this processor.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test, which says what it skips"
)]

use std::ops::Range;

use forgelm_kernels_api::{Compute, LowRank, Ops, RowSource, Write};
use forgelm_kernels_check::{
    attention, columns, compare_all, elementwise, embedding, float8, gemm, glu, linear, optimizers,
    packed, rms_norm, rope, routing, rows, token_logprobs,
};
use forgelm_kernels_cpu::{Cpu, InstructionSet};

/// Outcomes that the lists must give: nothing may be skipped silently.
fn n_outcomes() -> usize {
    2 * linear::CASES.len()
        + 2 * linear::LOW_RANK.len()
        + 2 * packed::SIZES.len() * packed::FORMATS.len()
        + 3 * gemm::CASES.len()
        + 2 * embedding::CASES.len()
        + 2 * float8::CASES.len()
        + rms_norm::CASES.len()
        + columns::CASES.len()
        + 3 * rope::CASES.len()
        + 2 * rows::CASES.len()
        + 2 * routing::CASES.len()
        + 1 // what is not a number goes to experts too
        + 2 * attention::CASES.len()
        + 2 * attention::CACHED.len()
        + 2 * glu::CASES.len()
        + 2 * token_logprobs::CASES.len()
        + elementwise::DROPOUT.len()
        + 3 * elementwise::LENGTHS.len()
        + optimizers::LENGTHS.len()
        + optimizers::MATRICES.len()
}

/// Compares on 1 thread, and asks for the same bits on 2 and 3.
fn check(set: InstructionSet) {
    let Some(cpu) = Cpu::with_instruction_set(1, set) else {
        println!("skipped: this processor has no {}", set.name());
        return;
    };
    assert_eq!(cpu.name(), format!("cpu/{}", set.name()));
    assert_eq!(cpu.prefers(Compute::Bf16), set == InstructionSet::Avx512Bf16);
    let one = compare_all(&cpu);
    assert_eq!(one.len(), n_outcomes());
    assert_eq!(one.len(), 232 + 112 + 18 + 12 + 8 + 13 + 18);
    for n_threads in [2, 3] {
        let cpu = Cpu::with_instruction_set(n_threads, set).unwrap();
        assert_eq!(cpu.n_threads(), n_threads);
        let more = compare_all(&cpu);
        for (one, more) in one.iter().zip(&more) {
            assert!(one == more, "{} differs on {n_threads} threads", one.name);
        }
    }
}

#[test]
fn avx512bf16_is_the_reference_on_any_number_of_threads() {
    check(InstructionSet::Avx512Bf16);
}

#[test]
fn avx512_is_the_reference_on_any_number_of_threads() {
    check(InstructionSet::Avx512);
}

#[test]
fn avx2_is_the_reference_on_any_number_of_threads() {
    check(InstructionSet::Avx2);
}

#[test]
fn neon_is_the_reference_on_any_number_of_threads() {
    check(InstructionSet::Neon);
}

#[test]
fn plain_code_is_the_reference_on_any_number_of_threads() {
    check(InstructionSet::Plain);
}

#[test]
fn every_instruction_set_has_a_test() {
    assert_eq!(InstructionSet::ALL.len(), 5);
    assert!(InstructionSet::available().contains(&InstructionSet::Plain));
}

/// Numbers of any size that depend on where they stand.
fn number(i: usize) -> f32 {
    let hash = (i as u32).wrapping_mul(2_654_435_761) ^ 0x9e37_79b9;
    let hash = hash.wrapping_mul(hash | 1);
    ((hash >> 8) as f32 / 8_388_608.0 - 1.0) * [0.01, 1.0, 30.0][i % 3]
}

struct Rows(usize, usize);

impl RowSource for Rows {
    fn n_rows(&self) -> usize {
        self.0
    }

    fn n_cols(&self) -> usize {
        self.1
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = number(first_row * self.1 + i + 7);
        }
    }
}

/// Generation relies on it: a text must not depend on how many others grow beside it.
#[test]
fn a_row_does_not_depend_on_its_batch() {
    const T: usize = 70;
    const R: usize = 3;
    const BATCHES: [usize; 9] = [1, 2, 3, 4, 7, 8, 16, 12, 17];
    // Weights of less than a panel, of parts of panels, and with several blocks along the sum.
    let sizes = [(1, 3), (47, 96), (49, 577), (48 * 5 + 20, 1601), (700, 64)];
    for set in InstructionSet::available() {
        let cpu = Cpu::with_instruction_set(2, set).unwrap();
        for ((n, k), compute) in sizes.iter().flat_map(|&s| [(s, Compute::F32), (s, Compute::Bf16)])
        {
            let w = cpu.freeze(&Rows(n, k), compute);
            let x: Vec<f32> = (0..T * k).map(number).collect();
            for write in [Write::Replace, Write::Add] {
                let whole: Vec<f32> = (0..T * n).map(|i| number(i + 3)).collect();
                let (mut whole, mut apart) = (whole.clone(), whole);
                cpu.linear_forward((&mut whole).into(), (&x).into(), &*w, write);
                let mut row = 0;
                for rows in BATCHES {
                    let y = &mut apart[row * n..(row + rows) * n];
                    cpu.linear_forward(
                        y.into(),
                        (&x[row * k..(row + rows) * k]).into(),
                        &*w,
                        write,
                    );
                    row += rows;
                }
                assert_eq!(row, T);
                let same = whole.iter().zip(&apart).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{}: {n} x {k}, {compute:?}, {write:?}", set.name());

                let (u, v) = (&x[..T * R], (0..n * R).map(|i| number(i + 11)).collect::<Vec<_>>());
                let low_rank = |rows: Range<usize>| LowRank {
                    u: (&u[rows.start * R..rows.end * R]).into(),
                    v: (&v).into(),
                    scale: 0.5,
                };
                cpu.linear_forward_low_rank(
                    (&mut whole).into(),
                    (&x).into(),
                    &*w,
                    low_rank(0..T),
                    write,
                );
                let mut row = 0;
                for rows in BATCHES {
                    let y = &mut apart[row * n..(row + rows) * n];
                    let (x, term) = (&x[row * k..(row + rows) * k], low_rank(row..row + rows));
                    cpu.linear_forward_low_rank(y.into(), x.into(), &*w, term, write);
                    row += rows;
                }
                let same = whole.iter().zip(&apart).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{}: {n} x {k}, {compute:?}, {write:?}, rank {R}", set.name());
            }
        }
    }
}
