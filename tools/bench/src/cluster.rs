//! `forgelm-bench cluster`: runs on many GPUs, on paper. What a rank holds and sends, how long a step
//! takes in a simulation, and how far apart checkpoints should be, as the tables of
//! docs/performance/distributed.md, which a test compares with them.
//!
//! Nothing here was measured on a GPU: rates and links are assumptions, and options change them.

mod checkpoint;
mod machine;
mod measured;
mod models;
mod page;
mod step;
mod timeline;

use machine::{Cluster, Link};
use models::Work;

const USAGE: &str = "usage: forgelm-bench cluster [--gpus N,..] [--tokens N] [--micro-batches N] \
                     [--tflops N] [--per-host N] [--near-gbs N] [--far-gbs N] [--no-overlap]";

/// Everything that is assumed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Assumed {
    /// Numbers of GPUs, one a rank.
    pub n_gpus: Vec<usize>,
    pub work: Work,
    /// Of which the number of ranks is set for each table.
    pub cluster: Cluster,
}

impl Default for Assumed {
    fn default() -> Self {
        Self {
            n_gpus: vec![8, 64, 1024],
            work: Work {
                n_tokens: 4096,
                n_micro_batches: 4,
                rate: 400e12,
                copy: 2e12,
                overlaps: true,
            },
            cluster: Cluster {
                n_ranks: 8,
                per_host: 8,
                near: Link { latency: 1e-6, bandwidth: 300e9 },
                far: Link { latency: 2e-6, bandwidth: 50e9 },
                adding: 1e12,
            },
        }
    }
}

/// Prints the tables.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let assumed = parse(arguments)?;
    println!("{}", page::all(&assumed));
    Ok(())
}

fn parse(arguments: &[String]) -> Result<Assumed, String> {
    let mut assumed = Assumed::default();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == "--no-overlap" {
            assumed.work.overlaps = false;
            continue;
        }
        let value = words.next().ok_or(USAGE)?;
        let count = |text: &str| text.parse().ok().filter(|&n| n > 0).ok_or(USAGE);
        let number = || value.parse().ok().filter(|&n: &f64| n > 0.0).ok_or(USAGE);
        match word.as_str() {
            "--gpus" => assumed.n_gpus = value.split(',').map(count).collect::<Result<_, _>>()?,
            "--tokens" => assumed.work.n_tokens = count(value)?,
            "--micro-batches" => assumed.work.n_micro_batches = count(value)?,
            "--per-host" => assumed.cluster.per_host = count(value)?,
            "--tflops" => assumed.work.rate = 1e12 * number()?,
            "--near-gbs" => assumed.cluster.near.bandwidth = 1e9 * number()?,
            "--far-gbs" => assumed.cluster.far.bandwidth = 1e9 * number()?,
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(assumed)
}

#[cfg(test)]
mod tests {
    use super::{Assumed, USAGE, parse};

    fn parsed(text: &str) -> Result<Assumed, String> {
        parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_change_what_is_assumed() {
        let mut expected = Assumed { n_gpus: vec![16, 32], ..Assumed::default() };
        expected.cluster.far.bandwidth = 25e9;
        expected.work.overlaps = false;
        assert_eq!(parsed("--gpus 16,32 --no-overlap --far-gbs 25"), Ok(expected));
        for wrong in ["--gpus", "--gpus 0", "--far-gbs -1", "--nodes 2"] {
            assert_eq!(parsed(wrong), Err(USAGE.to_owned()), "{wrong}");
        }
    }
}
