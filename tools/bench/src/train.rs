//! A training run of a real model: tokens a second, the share of what the processor could do at
//! most, and memory. One case a process, so that the peak of the memory is that case's own.
//!
//! The limit is 4 floating-point operations a parameter and token (a frozen weight is used once
//! forward and once backward) over the peak that a loop of multiply-adds reaches in the same run.

use crate::clock::{Times, time};
use crate::peak::peak;
use forgelm_data::{Plan, PlanSettings, Role, Sequence, Sequences};
use forgelm_kernels_api::{Compute, Ops};
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{ALL_LINEAR, Adapter, Decoder, Keep, LoraConfig, ModelFiles, OpenModel};
use forgelm_plugin_trainer::sft::SFT;
use forgelm_run::memory::MemoryUse;
use forgelm_run::model::compute_name;
use forgelm_tensor::random::{Purpose, Stream};
use forgelm_train::feed::Feed;
use forgelm_train::optimizer::{Optimizer, OptimizerMemory, OptimizerSettings};
use forgelm_train::schedule::{Decay, Schedule};
use forgelm_train::session::{Cut, Parts, Session, Settings, memory_plan};
use forgelm_train::state::{Identity, State};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const USAGE: &str = "usage: forgelm-bench train MODEL [--case qv|qv-long|all] \
                     [--dtype float32|bfloat16] [--threads N] [--steps N]";

/// Which modules are adapted, at which rank, on how many sequences of which length.
struct Case {
    name: &'static str,
    r: usize,
    modules: &'static [&'static str],
    n_sequences: usize,
    len: usize,
}

const CASES: [Case; 3] = [
    Case { name: "qv", r: 8, modules: &["q_proj", "v_proj"], n_sequences: 4, len: 256 },
    Case { name: "qv-long", r: 8, modules: &["q_proj", "v_proj"], n_sequences: 1, len: 1024 },
    Case { name: "all", r: 16, modules: &[ALL_LINEAR], n_sequences: 4, len: 256 },
];

struct Arguments {
    model: PathBuf,
    case: &'static Case,
    compute: Compute,
    n_threads: usize,
    n_steps: usize,
}

/// Runs the benchmark.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let arguments = parse(arguments)?;
    let ops: Arc<dyn Ops> = Arc::new(Cpu::new(arguments.n_threads));
    let mut loaded = None;
    let load =
        time(|| loaded = Some(decoder_of(&arguments.model, Arc::clone(&ops), arguments.compute)));
    let decoder = loaded.ok_or("not loaded")??;
    let case = arguments.case;
    let train = sequences(case, decoder.config().vocab_size);
    let config = LoraConfig::new(case.r, 2.0 * case.r as f64, case.modules);
    let n_tokens = (case.n_sequences * case.len) as f64;
    let (mut best, mut total, mut rate) = (f64::INFINITY, 0.0, f64::NAN);
    let n_steps = arguments.n_steps as u64 + 1;
    let planned = steps(&decoder, config, &train, n_steps, &mut |step, loss, times| {
        let seconds = times.seconds(arguments.n_threads);
        println!("step {step}  loss {loss:.4}  {:.0} tokens/s", n_tokens / seconds);
        rate = rate.max(peak_rate(arguments.compute, arguments.n_threads));
        // The first step touches every buffer for the first time.
        if step > 0 {
            best = best.min(seconds);
            total += seconds;
        }
    })?;
    let limit = rate / (4.0 * decoder.config().n_parameters() as f64);
    let mean = n_tokens * arguments.n_steps as f64 / total;
    println!(
        "{} {} on {} threads ({}): mean {mean:.0} tokens/s, best {:.0}, limit {limit:.0}: {:.0} % \
         of it; loaded in {:.2} s; memory planned {:.0} MB, peak {:.0} MB",
        case.name,
        compute_name(arguments.compute),
        arguments.n_threads,
        ops.name(),
        n_tokens / best,
        100.0 * mean / limit,
        load.seconds(arguments.n_threads),
        planned as f64 / 1e6,
        MemoryUse::now().resident_peak.unwrap_or(0) as f64 / 1e6,
    );
    let what = format!("training, {}, {}", case.name, compute_name(arguments.compute));
    crate::result(&what, mean, limit, "tokens/s");
    Ok(())
}

/// The model of a folder or a GGUF file.
pub(crate) fn decoder_of(
    model: &Path,
    ops: Arc<dyn Ops>,
    compute: Compute,
) -> Result<Decoder, String> {
    let files = if model.is_dir() {
        ModelFiles::Folder(model.to_owned())
    } else {
        ModelFiles::Gguf(model.to_owned())
    };
    let open = OpenModel::open(&files).map_err(|error| error.to_string())?;
    open.load(ops, compute).map_err(|error| error.to_string())
}

/// Why steps were not made.
#[derive(Debug)]
pub(crate) enum Refused {
    /// They need more memory than there is.
    Memory(String),
    /// Anything else.
    Other(String),
}

impl From<String> for Refused {
    fn from(reason: String) -> Self {
        Self::Other(reason)
    }
}

impl From<Refused> for String {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Memory(reason) | Refused::Other(reason) => reason,
        }
    }
}

/// Trains on all sequences at once, step after step; `after` is told the step, its loss and its
/// times. Returns the memory planned, in bytes.
pub(crate) fn steps(
    decoder: &Decoder,
    config: LoraConfig,
    train: &[Sequence],
    n_steps: u64,
    after: &mut dyn FnMut(u64, f64, Times),
) -> Result<usize, Refused> {
    let n_sequences = train.len();
    let (train, validation) = (Sequences::from(train.to_vec()), Sequences::default());
    let plan = Plan::new(plan_settings(n_sequences, n_steps), &train.lengths());
    let adapter = Adapter::new(config, decoder.config(), &Stream::new(0, Purpose::LoraInit))
        .map_err(|error| error.to_string())?;
    let optimizer = Optimizer::new(OptimizerSettings::adamw(0.01), &adapter.slices())
        .map_err(|error| error.to_string())?;
    let state_bytes = optimizer.n_bytes();
    let optimizer_memory = OptimizerMemory { state_bytes, ..OptimizerMemory::default() };
    let feed = Feed::new(SFT.needs, (&train, &validation), &plan);
    let size = feed.largest_step(Cut { batch_size: n_sequences, accumulation: 1 });
    let (config, engine) = (decoder.config(), decoder.engine());
    let buffers = memory_plan(config, &adapter, optimizer_memory, size, Keep::Everything, engine);
    let planned = buffers.total_bytes() + decoder.weights_bytes();
    let trainer = (SFT.build)(&[]).map_err(|error| error.to_string())?;
    let mut session = Session::new(Parts {
        decoder,
        trainer: trainer.as_ref(),
        feed,
        keep: Keep::Everything,
        settings: Settings {
            schedule: Schedule::new(Decay::Constant, 1e-4, 0.0, n_steps),
            max_grad_norm: 1.0,
            noise_alpha: None,
            seed: 0,
        },
        adapter,
        optimizer,
        state: State::new(n_steps, Identity::default()),
        team: None,
    })
    .map_err(|out_of_memory| Refused::Memory(out_of_memory.to_string()))?;
    for step in 0..n_steps {
        let mut report = None;
        let times = time(|| report = Some(session.step()));
        let report =
            report.ok_or_else(|| "no step".to_owned())?.map_err(|error| error.to_string())?;
        after(step, report.loss, times);
    }
    Ok(planned)
}

/// Operations a second that a loop of multiply-adds reaches now; NaN where there is no such loop.
fn peak_rate(compute: Compute, n_threads: usize) -> f64 {
    let round = || peak(compute, n_threads).map(|(n, times)| n / times.seconds(n_threads));
    (0..8).filter_map(|_| round()).fold(f64::NAN, f64::max)
}

fn parse(arguments: &[String]) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        model: PathBuf::new(),
        case: &CASES[0],
        compute: Compute::Bf16,
        n_threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n_steps: 5,
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if !argument.starts_with("--") {
            parsed.model = argument.into();
            continue;
        }
        let value = rest.next().ok_or(USAGE)?;
        let number = || value.parse().ok().filter(|&n| n > 0).ok_or(USAGE);
        match (argument.as_str(), value.as_str()) {
            ("--case", name) => {
                parsed.case = CASES.iter().find(|case| case.name == name).ok_or(USAGE)?;
            }
            ("--dtype", "float32") => parsed.compute = Compute::F32,
            ("--dtype", "bfloat16") => parsed.compute = Compute::Bf16,
            ("--threads", _) => parsed.n_threads = number()?,
            ("--steps", _) => parsed.n_steps = number()?,
            _ => return Err(USAGE.to_owned()),
        }
    }
    if parsed.model.as_os_str().is_empty() { Err(USAGE.to_owned()) } else { Ok(parsed) }
}

/// Random tokens, every one of them trained, as in the measurements that these are set beside.
fn sequences(case: &Case, vocab_size: usize) -> Vec<Sequence> {
    (0..case.n_sequences).map(|i| sequence(i, case.len, 0, vocab_size)).collect()
}

/// Random tokens, of which the first `n_prompt` are not trained.
pub(crate) fn sequence(i: usize, len: usize, n_prompt: usize, vocab_size: usize) -> Sequence {
    let stream = Stream::new(0, Purpose::Sampling);
    let token = |t: usize| (stream.uniform(i as u64, t as u64) * vocab_size as f32) as u32;
    Sequence {
        record: i as u64,
        role: Role::Sole,
        tokens: (0..len).map(token).collect(),
        trained: (0..len).map(|t| t >= n_prompt).collect(),
    }
}

fn plan_settings(n_sequences: usize, n_steps: u64) -> PlanSettings {
    PlanSettings {
        seed: 0,
        shuffle: false,
        per_device_train_batch_size: n_sequences,
        gradient_accumulation_steps: 1,
        num_train_epochs: 1,
        max_steps: Some(n_steps),
        packed_to: None,
    }
}
