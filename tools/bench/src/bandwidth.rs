//! The bandwidth of this machine's memory: every thread reads a part of its own of a buffer that is
//! much larger than the caches. In large pages, as the weights are: with small ones
//! this machine's memory gives less.

#![expect(unsafe_code, reason = "the standard library cannot ask for large pages")]

use std::time::Duration;

use crate::clock::round;

/// Numbers of the buffer: half a gigabyte.
const LEN: usize = 1 << 27;
/// Numbers of a cache line.
const LINE: usize = 16;

/// A buffer to read.
pub(crate) struct Bandwidth {
    memory: Vec<f32>,
    n_threads: usize,
}

impl Bandwidth {
    pub(crate) fn new(n_threads: usize) -> Self {
        let mut memory = Vec::<f32>::with_capacity(LEN);
        #[cfg(target_os = "linux")]
        {
            const PAGE: usize = 2 << 20;
            let skip = memory.as_ptr().align_offset(PAGE);
            let bytes = (LEN - skip) * size_of::<f32>() / PAGE * PAGE;
            // SAFETY: these pages lie inside the memory of the vector; the wish for large ones
            // changes nothing in what they hold, and it may be refused.
            unsafe {
                libc::madvise(memory.as_mut_ptr().add(skip).cast(), bytes, libc::MADV_HUGEPAGE);
            }
        }
        memory.resize(LEN, 1.0);
        Self { memory, n_threads }
    }

    /// Bytes a second, reading everything once.
    pub(crate) fn measure(&self) -> f64 {
        let part = LEN.div_ceil(self.n_threads);
        let mut all = || {
            std::thread::scope(|scope| {
                for part in self.memory.chunks(part) {
                    scope.spawn(move || read(part));
                }
            });
        };
        let seconds = round(Duration::ZERO, &mut all).seconds(self.n_threads);
        size_of_val(self.memory.as_slice()) as f64 / seconds
    }
}

/// Loads every cache line of the part, whatever the compiler makes of the rest of the program.
#[cfg(target_arch = "x86_64")]
fn read(part: &[f32]) {
    let n_lines = part.len() / LINE;
    if n_lines == 0 {
        return;
    }
    // SAFETY: `n_lines` whole lines are read from the start of the part and nothing is written;
    // the registers that change are declared.
    unsafe {
        std::arch::asm!(
            "2:",
            "movups xmm0, [{at}]",
            "movups xmm1, [{at} + 16]",
            "movups xmm2, [{at} + 32]",
            "movups xmm3, [{at} + 48]",
            "add {at}, 64",
            "dec {n}",
            "jnz 2b",
            at = inout(reg) part.as_ptr() => _,
            n = inout(reg) n_lines => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            options(readonly, nostack),
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn read(part: &[f32]) {
    let mut sums = [0.0_f32; LINE];
    for line in part.as_chunks::<LINE>().0 {
        for (sum, &x) in sums.iter_mut().zip(line) {
            *sum += x;
        }
    }
    std::hint::black_box(sums);
}
