//! `forgelm-bench packed`: products with weights that stay in blocks, against the same products
//! with dense weights, round by round.

use std::time::Duration;

use forgelm_kernels_api::{Compute, FrozenMatrix, Ops, Rounding, RowSource, Write};
use forgelm_kernels_cpu::Cpu;
use forgelm_tensor::{FourBit, FourBitMatrix, Int8Matrix, ScaleStorage};

use crate::Options;
use crate::clock::{Times, round};
use crate::shapes::{HIDDEN, MLP, Rows, numbers};

const TOKENS: [usize; 4] = [1, 8, 128, 1024];
const WEIGHTS: [(usize, usize); 3] = [(HIDDEN, HIDDEN), (MLP, HIDDEN), (HIDDEN, MLP)];
const FORMATS: [&str; 3] = ["nf4", "nf4 double", "int8 rows"];

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let options = Options::parse(arguments)?;
    let threads = options.threads.map_or(vec![1, 2], |n| vec![n]);
    for n_threads in threads {
        let cpu = Cpu::new(n_threads);
        for compute in [Compute::Bf16, Compute::F32] {
            println!("{} on {n_threads} thread(s), {compute:?}", cpu.name());
            println!(
                "weight       format        MB  of dense      T   forward  of dense  backward"
            );
            for (n, k) in WEIGHTS {
                report(&cpu, compute, &Rows { n, k }, &options);
            }
        }
    }
    Ok(())
}

fn packed(cpu: &Cpu, compute: Compute, rows: &Rows, format: &str) -> Box<dyn FrozenMatrix> {
    let four = |scales| FourBitMatrix::quantize(rows, FourBit::Nf4, scales, Rounding::Exact, 1);
    let source: Box<dyn RowSource> = match format {
        "nf4" => Box::new(four(ScaleStorage::Single)),
        "nf4 double" => Box::new(four(ScaleStorage::Double)),
        _ => Box::new(Int8Matrix::quantize(rows, 1)),
    };
    cpu.freeze_packed(&*source, compute).unwrap_or_else(|| cpu.freeze(&*source, compute))
}

fn report(cpu: &Cpu, compute: Compute, rows: &Rows, options: &Options) {
    let (n, k) = (rows.n, rows.k);
    let dense = cpu.freeze(rows, compute);
    let packed = FORMATS.map(|format| packed(cpu, compute, rows, format));
    let weights: Vec<&dyn FrozenMatrix> =
        std::iter::once(&*dense).chain(packed.iter().map(|w| &**w)).collect();
    for t in TOKENS {
        let (x, dy) = (numbers(t * k), numbers(t * n));
        let (mut y, mut dx) = (vec![0.0; t * n], vec![0.0; t * k]);
        let length = Duration::from_millis(10);
        let mut best = vec![[Times::MAX; 2]; weights.len()];
        for _ in 0..if options.quick { 3 } else { 8 } {
            for (best, &w) in best.iter_mut().zip(&weights) {
                let mut forward =
                    || cpu.linear_forward((&mut y).into(), (&x).into(), w, Write::Replace);
                best[0] = best[0].min(round(length, &mut forward));
                let mut backward =
                    || cpu.linear_backward((&mut dx).into(), (&dy).into(), w, Write::Replace);
                best[1] = best[1].min(round(length, &mut backward));
            }
        }
        let seconds = |i: usize, way: usize| best[i][way].seconds(cpu.n_threads());
        for (i, format) in FORMATS.iter().enumerate() {
            let bytes = weights[i + 1].n_bytes() as f64;
            println!(
                "{n:5} x {k:5} {format:10}{:6.2}{:8.0} %{t:7}{:7.3} ms{:7.0} %{:8.0} %",
                bytes / 1e6,
                100.0 * bytes / dense.n_bytes() as f64,
                1e3 * seconds(i + 1, 0),
                100.0 * seconds(i + 1, 0) / seconds(0, 0),
                100.0 * seconds(i + 1, 1) / seconds(0, 1),
            );
        }
    }
}
