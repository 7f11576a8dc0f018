//! `forgelm-bench gemm`: products with frozen weights as a share of the peak.

use std::time::Duration;

use forgelm_kernels_api::{Compute, Ops, Write};
use forgelm_kernels_cpu::Cpu;

use crate::Options;
use crate::clock::{Times, round};
use crate::peak::peak;
use crate::shapes::{Rows, numbers};

const TOKENS: [usize; 3] = [256, 1024, 2048];
/// Rows of generation: limited by memory.
const FEW_TOKENS: [usize; 2] = [1, 8];

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let options = Options::parse(arguments)?;
    let threads = options.threads.map_or(vec![1, 2], |n| vec![n]);
    for n_threads in threads {
        let cpu = Cpu::new(n_threads);
        let model = options.model.name;
        println!("{} on {n_threads} thread(s), the weights of {model}", cpu.name());
        for compute in [Compute::F32, Compute::Bf16] {
            table(&cpu, compute, &options);
        }
    }
    Ok(())
}

/// Best of all rounds.
#[derive(Clone, Copy)]
struct Best {
    /// Operations of the loop that `peak` times.
    peak_operations: f64,
    peak: Times,
    forward: Times,
    backward: Times,
}

fn table(cpu: &Cpu, compute: Compute, options: &Options) {
    let n_threads = cpu.n_threads();
    println!("{compute:?}, GFLOP/s");
    println!("      M      N      K     peak   forward  share  backward  share");
    let alone = one_thread(compute);
    let mut worst = (f64::INFINITY, f64::NAN);
    let mut n_disturbed = 0;
    for (n, k) in options.model.weights() {
        let w = cpu.freeze(&Rows { n, k }, compute);
        for t in TOKENS {
            if options.quick && (t == 2048 || n == options.model.vocabulary && t > 256) {
                continue;
            }
            let best = measure(cpu, compute, &*w, t, options);
            let operations = 2.0 * (t * n) as f64 * k as f64;
            let peak = best.peak_operations / best.peak.seconds(n_threads);
            let forward = operations / best.forward.seconds(n_threads);
            let backward = operations / best.backward.seconds(n_threads);
            let disturbed = peak < 0.95 * alone * n_threads as f64;
            if disturbed {
                n_disturbed += 1;
            } else {
                let slower = forward.min(backward);
                if slower / peak < worst.0 / worst.1 || worst.1.is_nan() {
                    worst = (slower, peak);
                }
            }
            println!(
                "{t:7}{n:7}{k:7}{:9.1}{:10.1}{:7.2}{:10.1}{:7.2}{}",
                peak / 1e9,
                forward / 1e9,
                forward / peak,
                backward / 1e9,
                backward / peak,
                if disturbed { "  disturbed: the peak itself was not reached" } else { "" },
            );
        }
        for t in FEW_TOKENS {
            let best = measure(cpu, compute, &*w, t, options);
            let rate = w.n_bytes() as f64 / best.forward.seconds(n_threads);
            println!("{t:7}{n:7}{k:7}{:19.1} GB/s of weights forward", rate / 1e9);
        }
    }
    let (slowest, peak) = worst;
    println!("worst share {:.2}; {n_disturbed} rows disturbed by other programs", slowest / peak);
    let model = options.model.name;
    let what = format!("slowest product of {model}, {compute:?}, {n_threads} thread(s)");
    crate::result(&what, slowest / 1e9, peak / 1e9, "GFLOP/s");
}

/// The peak of one thread by its processor clock, which others cannot disturb.
fn one_thread(compute: Compute) -> f64 {
    (0..5)
        .filter_map(|_| peak(compute, 1))
        .map(|(operations, times)| operations / times.seconds(1))
        .fold(f64::NAN, f64::max)
}

fn measure(
    cpu: &Cpu,
    compute: Compute,
    w: &dyn forgelm_kernels_api::FrozenMatrix,
    t: usize,
    options: &Options,
) -> Best {
    let (n, k) = (w.n_rows(), w.n_cols());
    let (x, dy) = (numbers(t * k), numbers(t * n));
    let (mut y, mut dx) = (vec![0.0; t * n], vec![0.0; t * k]);
    let rounds = if options.quick { 3 } else { 6 };
    let length = Duration::from_millis(if options.quick { 30 } else { 60 });
    let mut best = Best {
        peak_operations: f64::NAN,
        peak: Times::MAX,
        forward: Times::MAX,
        backward: Times::MAX,
    };
    for _ in 0..rounds {
        if let Some((operations, times)) = peak(compute, cpu.n_threads()) {
            best.peak_operations = operations;
            best.peak = best.peak.min(times);
        }
        let mut forward = || cpu.linear_forward((&mut y).into(), (&x).into(), w, Write::Replace);
        best.forward = best.forward.min(round(length, &mut forward));
        let mut backward =
            || cpu.linear_backward((&mut dx).into(), (&dy).into(), w, Write::Replace);
        best.backward = best.backward.min(round(length, &mut backward));
    }
    best
}
