//! The CPU library against the reference, on every instruction set of this processor.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test, which says what it skips")]

use forgelm_kernels_api::{Compute, Ops};
use forgelm_kernels_check::{
    attention, compare_all, elementwise, embedding, gemm, glu, linear, optimizers, rms_norm, rope,
    token_logprobs,
};
use forgelm_kernels_cpu::{Cpu, InstructionSet};

/// Outcomes that the lists must give: nothing may be skipped silently.
fn n_outcomes() -> usize {
    2 * linear::CASES.len()
        + 3 * gemm::CASES.len()
        + 2 * embedding::CASES.len()
        + rms_norm::CASES.len()
        + 2 * rope::CASES.len()
        + attention::CASES.len()
        + attention::CACHED.len()
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
    assert_eq!(one.len(), 188);
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
fn plain_code_is_the_reference_on_any_number_of_threads() {
    check(InstructionSet::Plain);
}

#[test]
fn every_instruction_set_has_a_test() {
    assert_eq!(InstructionSet::ALL.len(), 4);
    assert!(InstructionSet::available().contains(&InstructionSet::Plain));
}
