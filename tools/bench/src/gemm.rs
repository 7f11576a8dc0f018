//! `forgelm-bench gemm`: products with frozen weights as a share of the peak.

use std::time::Duration;

use forgelm_kernels_api::{Compute, Ops, Write};
use forgelm_kernels_cpu::Cpu;

use crate::Options;
use crate::clock::Clock;
use crate::peak::peak;
use crate::shapes::{HIDDEN, MLP, Rows, VOCABULARY, numbers};

const TOKENS: [usize; 3] = [256, 1024, 2048];
const WEIGHTS: [(usize, usize); 4] =
    [(HIDDEN, HIDDEN), (MLP, HIDDEN), (HIDDEN, MLP), (VOCABULARY, HIDDEN)];
/// Rows of generation: limited by memory.
const FEW_TOKENS: [usize; 2] = [1, 8];

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let options = Options::parse(arguments)?;
    let threads = options.threads.map_or(vec![1, 2], |n| vec![n]);
    for n_threads in threads {
        let cpu = Cpu::new(n_threads);
        println!(
            "{} on {n_threads} thread(s), {:?} time",
            cpu.name(),
            Clock::for_threads(n_threads)
        );
        for compute in [Compute::F32, Compute::Bf16] {
            table(&cpu, compute, &options);
        }
    }
    Ok(())
}

/// Best of all rounds.
#[derive(Clone, Copy)]
struct Best {
    peak: f64,
    forward: f64,
    backward: f64,
}

fn table(cpu: &Cpu, compute: Compute, options: &Options) {
    println!("{compute:?}");
    println!("      M      N      K  peak GFLOP/s   forward  share  backward  share");
    let mut worst = f64::INFINITY;
    for (n, k) in WEIGHTS {
        let w = cpu.freeze(&Rows { n, k }, compute);
        for t in TOKENS {
            if options.quick && (t == 2048 || n == VOCABULARY && t > 256) {
                continue;
            }
            let best = measure(cpu, compute, &*w, t, options);
            let operations = 2.0 * (t * n) as f64 * k as f64;
            let (forward, backward) = (operations / best.forward, operations / best.backward);
            let shares = (forward / best.peak, backward / best.peak);
            worst = worst.min(shares.0).min(shares.1);
            println!(
                "{t:7}{n:7}{k:7}{:14.1}{:10.1}{:7.2}{:10.1}{:7.2}",
                best.peak / 1e9,
                forward / 1e9,
                shares.0,
                backward / 1e9,
                shares.1
            );
        }
        for t in FEW_TOKENS {
            let best = measure(cpu, compute, &*w, t, options);
            let gb = w.n_bytes() as f64 / 1e9;
            println!(
                "{t:7}{n:7}{k:7}              {:8.1} GB/s of weights forward",
                gb / best.forward
            );
        }
    }
    println!("worst share {worst:.2}");
}

fn measure(
    cpu: &Cpu,
    compute: Compute,
    w: &dyn forgelm_kernels_api::FrozenMatrix,
    t: usize,
    options: &Options,
) -> Best {
    let clock = Clock::for_threads(cpu.n_threads());
    let (n, k) = (w.n_rows(), w.n_cols());
    let (x, dy) = (numbers(t * k), numbers(t * n));
    let (mut y, mut dx) = (vec![0.0; t * n], vec![0.0; t * k]);
    let rounds = if options.quick { 3 } else { 6 };
    let round = Duration::from_millis(if options.quick { 30 } else { 60 });
    let mut best = Best { peak: 0.0, forward: f64::INFINITY, backward: f64::INFINITY };
    for _ in 0..rounds {
        best.peak = best.peak.max(peak(compute, cpu.n_threads()).unwrap_or(f64::NAN));
        let mut forward = || cpu.linear_forward(&mut y, &x, w, Write::Replace);
        best.forward = best.forward.min(clock.round(round, &mut forward));
        let mut backward = || cpu.linear_backward(&mut dx, &dy, w, Write::Replace);
        best.backward = best.backward.min(clock.round(round, &mut backward));
    }
    best
}
