//! Generation with a real model: tokens a second, and the share of what the memory could give.
//!
//! The limit of a step is the time in which the memory gives every weight once; all texts of a
//! batch share it. The bandwidth is measured between the rounds of the same run.

use crate::bandwidth::Bandwidth;
use crate::clock::time;
use forgelm_generate::{GenerateOptions, Generator, Request, Sampling};
use forgelm_kernels_api::{Compute, Ops};
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{Decoder, ModelFiles, OpenModel};
use forgelm_run::memory::MemoryUse;
use forgelm_run::model::compute_name;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

const USAGE: &str = "usage: forgelm-bench generate MODEL [--batch N] [--dtype float32|bfloat16] \
                     [--prompt N] [--tokens N] [--threads N] [--rounds N]";

struct Arguments {
    model: PathBuf,
    compute: Compute,
    batch: usize,
    /// Tokens of a prompt.
    prompt: usize,
    /// New tokens of each text.
    tokens: usize,
    n_threads: usize,
    rounds: usize,
}

/// Runs the benchmark.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let arguments = parse(arguments)?;
    let Arguments { compute, batch, tokens, n_threads, .. } = arguments;
    let ops: Arc<dyn Ops> = Arc::new(Cpu::new(n_threads));
    let files = if arguments.model.is_dir() {
        ModelFiles::Folder(arguments.model.clone())
    } else {
        ModelFiles::Gguf(arguments.model.clone())
    };
    let open = OpenModel::open(&files).map_err(|error| error.to_string())?;
    let decoder = open.load(Arc::clone(&ops), compute).map_err(|error| error.to_string())?;
    drop(open);
    let bandwidth = Bandwidth::new(n_threads);
    let prompts = prompts(&arguments, decoder.config().vocab_size);
    let mut generation = Generation {
        generator: Generator::with_lanes(&decoder, None, arguments.prompt + tokens + 1, batch)
            .map_err(|error| error.to_string())?,
        prompts,
        n_threads,
    };
    // The first touches every buffer for the first time.
    generation.seconds(2)?;
    let (mut prompt, mut whole, mut bytes) = (f64::INFINITY, f64::INFINITY, 0.0_f64);
    for _ in 0..arguments.rounds {
        bytes = bytes.max(bandwidth.measure());
        prompt = prompt.min(generation.seconds(1)?);
        whole = whole.min(generation.seconds(tokens)?);
        bytes = bytes.max(bandwidth.measure());
    }
    let n_tokens = (batch * tokens) as f64;
    let n_steps = (tokens - 1) as f64;
    let steps_a_second = n_steps / (whole - prompt);
    let read = bytes_a_step(&decoder, &arguments, &generation.generator);
    println!(
        "{} batch {batch} on {n_threads} threads ({}): {:.1} tokens/s with the prompts, {:.1} \
         without; {:.1} of {:.1} GB/s: {:.0} % of the bandwidth; prompts of {} tokens in {:.1} ms; \
         peak {:.0} MB",
        compute_name(compute),
        ops.name(),
        n_tokens / whole,
        batch as f64 * steps_a_second,
        steps_a_second * read / 1e9,
        bytes / 1e9,
        100.0 * steps_a_second * read / bytes,
        arguments.prompt,
        prompt * 1e3,
        MemoryUse::now().resident_peak.unwrap_or(0) as f64 / 1e6,
    );
    let what = format!("generation, batch {batch}, {}", compute_name(compute));
    let limit = batch as f64 * bytes / read;
    crate::result(&what, batch as f64 * steps_a_second, limit, "tokens/s");
    Ok(())
}

struct Generation<'a> {
    generator: Generator<'a>,
    prompts: Vec<Vec<u32>>,
    n_threads: usize,
}

impl Generation<'_> {
    /// What `tokens` new tokens of every text take.
    fn seconds(&mut self, tokens: usize) -> Result<f64, String> {
        let options = GenerateOptions {
            max_new_tokens: tokens,
            sampling: Sampling::GREEDY,
            seed: 0,
            stop_ids: Vec::new(),
            reuse_cache: false,
        };
        let requests: Vec<Request<'_>> =
            self.prompts.iter().map(|prompt| Request { prompt, options: &options }).collect();
        let mut generated = None;
        let times = time(|| {
            let all = &mut |_, _| ControlFlow::Continue(());
            generated = Some(self.generator.generate_all(&requests, all));
        });
        let generated = generated.ok_or("nothing ran")?.map_err(|error| error.to_string())?;
        if generated.iter().any(|text| text.tokens.len() != tokens) {
            return Err("a text is shorter than was asked".to_owned());
        }
        Ok(times.seconds(self.n_threads))
    }
}

/// Every weight, and on average half of the keys and values that there are at the end.
fn bytes_a_step(decoder: &Decoder, arguments: &Arguments, generator: &Generator<'_>) -> f64 {
    let capacity = generator.cache_bytes() as f64;
    let positions = (arguments.prompt + arguments.tokens).next_multiple_of(256) as f64;
    let mean = arguments.prompt as f64 + arguments.tokens as f64 / 2.0;
    decoder.weights_bytes() as f64 + capacity * (mean / positions).min(1.0)
}

fn prompts(arguments: &Arguments, vocab_size: usize) -> Vec<Vec<u32>> {
    let token = |i: usize, t: usize| ((i * 7919 + t * 104_729 + 1000) % vocab_size) as u32;
    (0..arguments.batch).map(|i| (0..arguments.prompt).map(|t| token(i, t)).collect()).collect()
}

fn parse(arguments: &[String]) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        model: PathBuf::new(),
        compute: Compute::Bf16,
        batch: 1,
        prompt: 32,
        tokens: 64,
        n_threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        rounds: 3,
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if !argument.starts_with("--") {
            parsed.model = argument.into();
            continue;
        }
        let value = rest.next().ok_or(USAGE)?;
        let number = |least: usize| value.parse().ok().filter(|&n| n >= least).ok_or(USAGE);
        match (argument.as_str(), value.as_str()) {
            ("--dtype", "float32") => parsed.compute = Compute::F32,
            ("--dtype", "bfloat16") => parsed.compute = Compute::Bf16,
            ("--batch", _) => parsed.batch = number(1)?,
            ("--prompt", _) => parsed.prompt = number(1)?,
            ("--tokens", _) => parsed.tokens = number(2)?,
            ("--threads", _) => parsed.n_threads = number(1)?,
            ("--rounds", _) => parsed.rounds = number(1)?,
            _ => return Err(USAGE.to_owned()),
        }
    }
    if parsed.model.as_os_str().is_empty() { Err(USAGE.to_owned()) } else { Ok(parsed) }
}
