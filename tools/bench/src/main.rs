//! Measures the kernels against what this machine can do at most.
//!
//! `forgelm-bench gemm` prints the speed of products with frozen weights as a share of the peak
//! that a loop of multiply-adds reaches in the same run; `forgelm-bench ops` the time of every other
//! op; `train`, `generate` and `load` run a real model. Machines are shared: every number is the best of
//! several rounds, rounds of what is compared alternate, and ratios are what to quote. `cluster`
//! measures nothing: it reckons what many ranks would take. A subcommand is one file and one line in [`COMMANDS`].
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a program that prints measurements"
)]

mod bandwidth;
mod clock;
mod cluster;
mod data;
mod gemm;
mod generate;
mod gpu;
mod link;
mod load;
mod merge;
mod ops;
mod packed;
mod peak;
mod shape;
mod shapes;
mod train;

use std::process::ExitCode;

use shapes::{MODELS, Model};

/// Name, summary, and what runs with the arguments that follow the name.
type Command = (&'static str, &'static str, fn(&[String]) -> Result<(), String>);

const COMMANDS: [Command; 12] = [
    ("cluster", "a step on many ranks, on paper: memory, bytes, time, checkpoints", cluster::run),
    ("data", "rows of a file to packed batches: rows/s, tokens/s, memory", data::run),
    ("gemm", "products with frozen weights, as a share of this machine's peak", gemm::run),
    ("ops", "milliseconds and GB/s of every other op at the shapes of SmolLM2-135M", ops::run),
    ("generate", "new tokens of a real model: tokens/s, share of the bandwidth", generate::run),
    ("gpu", "an NVIDIA device: is it right, how fast, how far from what it can do", gpu::run),
    ("link", "what a sum over all processes and a gather take: ms", link::run),
    ("load", "weights of a real model from disk to memory: MB/s, beside reading alone", load::run),
    ("merge", "models merged by each method: MB/s, beside copying one", merge::run),
    ("packed", "products with weights in blocks, against dense weights", packed::run),
    ("shape", "prompts, frozen layers and ragged batches: what is not computed", shape::run),
    ("train", "a training run of a real model: tokens/s, share of the limit, memory", train::run),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("", String::as_str);
    let Some((_, _, run)) = COMMANDS.iter().find(|(command, _, _)| *command == name) else {
        eprintln!("usage: forgelm-bench COMMAND [--threads N] [--quick] [--model NAME]");
        for (name, summary, _) in COMMANDS {
            eprintln!("  {name:8} {summary}");
        }
        return ExitCode::from(1);
    };
    match run(&arguments[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(1)
        }
    }
}

/// Prints a row of the table of `cargo xtask bench`: what was measured, and what the machine could
/// do at most, found in the same run.
pub(crate) fn result(what: &str, measured: f64, limit: f64, unit: &str) {
    let share = 100.0 * measured / limit;
    println!("result\t{what}\t{measured:.0} {unit}\t{limit:.0} {unit}\t{share:.0} %");
}

/// What all subcommands understand.
pub(crate) struct Options {
    /// Only this number of threads.
    pub threads: Option<usize>,
    /// Fewer and shorter rounds.
    pub quick: bool,
    /// Whose shapes are measured, where a subcommand knows several.
    pub model: Model,
}

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self { threads: None, quick: false, model: MODELS[0] };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--model" => {
                    let name = rest.next().ok_or("--model: a name is missing")?;
                    let known = MODELS.iter().find(|model| model.name == name);
                    let names = MODELS.map(|model| model.name).join(", ");
                    options.model =
                        *known.ok_or_else(|| format!("--model: `{name}` is none of {names}"))?;
                }
                "--threads" => {
                    let value = rest.next().and_then(|v| v.parse().ok()).filter(|&n| n > 0);
                    options.threads = Some(value.ok_or("--threads: expected a number above 0")?);
                }
                other => return Err(format!("`{other}` is not a known option")),
            }
        }
        Ok(options)
    }
}
