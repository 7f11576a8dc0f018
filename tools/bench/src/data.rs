//! Rows of a file to packed batches: tokenization, the token cache, packing, reading back.

use crate::clock::time;
use forgelm_config::{Data, TrainerType};
use forgelm_data::{
    Plan, PlanSettings, PrepareRequest, Prepared, RenderSettings, Renderer, find_files, pack,
    prepare,
};
use forgelm_run::memory::MemoryUse;
use forgelm_tokenize::Tokenizer;
use std::path::PathBuf;

const USAGE: &str = "usage: forgelm-bench data TOKENIZER_DIR DATA CACHE_DIR [--threads N] [--length N]\n\
                     \n  Tokenizes DATA into CACHE_DIR (which should be empty), then again from the cache.";

/// Steps whose batches are read back.
const STEPS: u64 = 1000;

struct Arguments {
    paths: [PathBuf; 3],
    threads: usize,
    max_length: usize,
}

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let arguments = parse(arguments)?;
    let [tokenizer, data, cache_dir] = &arguments.paths;
    let shown = |error: &dyn std::fmt::Display| error.to_string();
    let tokenizer = Tokenizer::from_folder(tokenizer).map_err(|e| shown(&e))?;
    let template = tokenizer.chat_template(None).ok();
    let settings = RenderSettings {
        max_length: arguments.max_length,
        train_on_all: false,
        add_eos: true,
        template_now: Some(0),
        bos_before_prompt: false,
        threads: arguments.threads,
    };
    let renderer = Renderer::new(&tokenizer, template.as_ref(), settings);
    let name = data.display().to_string();
    let section = Data { dataset_name_or_path: name.clone(), ..Data::default() };
    let sources = [find_files(&name, data).map_err(|e| shown(&e))?];
    let request = PrepareRequest {
        section: &section,
        trainer: TrainerType::Sft,
        sources: &sources,
        cache_dir,
    };
    for what in ["tokenized", "from the cache"] {
        let mut prepared = None;
        let seconds = time(|| prepared = Some(prepare(&request, &renderer))).wall();
        let prepared = prepared.ok_or("nothing")?.map_err(|e| shown(&e))?;
        report(what, &prepared, seconds);
    }
    let prepared = prepare(&request, &renderer).map_err(|e| shown(&e))?;
    batches(&prepared, arguments.max_length)
}

fn report(what: &str, prepared: &Prepared, seconds: f64) {
    let [train, validation] = prepared.statistics;
    let (rows, tokens) = (train.rows + validation.rows, train.tokens + validation.tokens);
    println!(
        "{what}: {rows} rows, {tokens} tokens in {seconds:.2} s: {:.0} rows/s, {:.2} M tokens/s; \
         peak {:.0} MB",
        rows as f64 / seconds,
        tokens as f64 / seconds / 1e6,
        peak_megabytes(),
    );
}

fn batches(prepared: &Prepared, max_length: usize) -> Result<(), String> {
    let settings = PlanSettings {
        seed: 42,
        shuffle: true,
        per_device_train_batch_size: 8,
        gradient_accumulation_steps: 1,
        num_train_epochs: 1,
        max_steps: None,
        packed_to: Some(max_length),
    };
    for packed_to in [settings.packed_to, None] {
        let settings = PlanSettings { packed_to, ..settings.clone() };
        let mut plan = None;
        let planning = time(|| plan = Some(Plan::new(settings, &prepared.train.lengths()))).wall();
        let plan = plan.ok_or("no plan")?;
        let n_steps = plan.n_steps().min(STEPS);
        let (mut n_tokens, mut failed) = (0, None);
        let reading = time(|| {
            for step in 0..n_steps {
                for micro_batch in plan.step(step) {
                    match prepared.train.read(&micro_batch) {
                        Ok(read) => n_tokens += pack(&read.iter().collect::<Vec<_>>()).tokens.len(),
                        Err(error) => failed = Some(error.to_string()),
                    }
                }
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        println!(
            "{}: {} units planned in {planning:.2} s; {n_steps} steps read at {:.1} M tokens/s; peak {:.0} MB",
            if packed_to.is_some() { "packed" } else { "not packed" },
            plan.n_units(),
            n_tokens as f64 / reading.wall() / 1e6,
            peak_megabytes(),
        );
    }
    Ok(())
}

fn peak_megabytes() -> f64 {
    MemoryUse::now().resident_peak.unwrap_or(0) as f64 / 1e6
}

fn parse(arguments: &[String]) -> Result<Arguments, String> {
    let mut paths = Vec::new();
    let mut threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut max_length = 2048;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if !argument.starts_with("--") {
            paths.push(PathBuf::from(argument));
            continue;
        }
        let value = rest.next().and_then(|v| v.parse().ok()).filter(|&n| n > 0).ok_or(USAGE)?;
        match argument.as_str() {
            "--threads" => threads = value,
            "--length" => max_length = value,
            _ => return Err(USAGE.to_owned()),
        }
    }
    let paths = paths.try_into().map_err(|_| USAGE.to_owned())?;
    Ok(Arguments { paths, threads, max_length })
}
