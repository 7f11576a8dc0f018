//! The most multiply-adds that this machine can do: independent accumulators in registers, no
//! memory. Everything else is quoted as a share of it.
#![expect(unsafe_code, reason = "instructions that the compiler must neither move nor remove")]

use forgelm_kernels_api::Compute;
use forgelm_kernels_cpu::InstructionSet;

use crate::clock::{Times, time};

/// Accumulators: enough to hide the latency, few enough for the registers.
#[cfg(target_arch = "x86_64")]
const ACCUMULATORS: usize = 12;
/// Turns of the loop in a measurement: some milliseconds.
const TURNS: usize = 1_000_000;

/// Operations on this many threads, and what they took in one round; `None` where this program has
/// no loop for the processor.
pub(crate) fn peak(compute: Compute, n_threads: usize) -> Option<(f64, Times)> {
    let turns = loop_for(compute)?;
    let times = time(|| {
        std::thread::scope(|scope| {
            for _ in 1..n_threads {
                scope.spawn(|| (turns.run)(TURNS));
            }
            (turns.run)(TURNS);
        });
    });
    Some(((turns.operations * TURNS * n_threads) as f64, times))
}

struct Loop {
    run: fn(usize),
    /// Operations of one turn.
    operations: usize,
}

#[cfg(target_arch = "x86_64")]
fn loop_for(compute: Compute) -> Option<Loop> {
    let best = *InstructionSet::available().first()?;
    match (compute, best) {
        (Compute::F32, InstructionSet::Avx512 | InstructionSet::Avx512Bf16) => {
            Some(Loop { run: x86::f32_512, operations: 2 * 16 * 2 * ACCUMULATORS })
        }
        (Compute::F32, InstructionSet::Avx2) => {
            Some(Loop { run: x86::f32_256, operations: 2 * 8 * ACCUMULATORS })
        }
        (Compute::Bf16, InstructionSet::Avx512Bf16) => {
            Some(Loop { run: x86::bf16_512, operations: 2 * 32 * 2 * ACCUMULATORS })
        }
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn loop_for(_: Compute) -> Option<Loop> {
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    /// One loop over 12 or 24 accumulators, all zero: the speed does not depend on the values.
    macro_rules! turns {
        ($n:expr, $instruction:literal, $register:literal, $($accumulator:literal)*) => {
            // SAFETY: vector registers alone are read and written, all of them declared lost; the
            // caller chose this loop because the processor has the instruction.
            unsafe {
                asm!(
                    "2:",
                    $(concat!(
                        $instruction, " ", $register, $accumulator, ", ",
                        $register, "12, ", $register, "13"
                    ),)*
                    "dec {n}",
                    "jnz 2b",
                    n = inout(reg) $n => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
                    out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _,
                    out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _,
                    out("xmm14") _, out("xmm15") _,
                    options(nomem, nostack),
                );
            }
        };
    }

    pub(super) fn f32_512(n: usize) {
        turns!(n, "vfmadd231ps", "zmm", "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11"
            "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11");
    }

    pub(super) fn f32_256(n: usize) {
        turns!(n, "vfmadd231ps", "ymm", "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11");
    }

    pub(super) fn bf16_512(n: usize) {
        turns!(n, "vdpbf16ps", "zmm", "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11"
            "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11");
    }
}
