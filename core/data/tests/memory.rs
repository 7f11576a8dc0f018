//! Memory does not grow with what rows hold: tokens lie on disk.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a test, in a temporary folder"
)]

use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use forgelm_config::{Data, TrainerType};
use forgelm_data::{
    Plan, PlanSettings, PrepareRequest, RenderSettings, Renderer, find_files, pack, prepare,
};
use forgelm_tokenize::Tokenizer;

#[global_allocator]
static ALLOCATOR: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

/// One test at a time: the allocator counts for all.
static ALONE: Mutex<()> = Mutex::new(());

/// Tokens of a row, about.
const ROW_TOKENS: usize = 120;

/// Peak bytes of preparing `n` rows, planning and reading some batches.
fn peak_bytes(n: usize, tokenizer: &Tokenizer) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    for i in 0..n {
        let words = "a b ".repeat(ROW_TOKENS / 4 - 2 + i % 5);
        writeln!(file, "{{\"text\": \"row {i} {words}\"}}").unwrap();
    }
    file.into_inner().unwrap();
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let section = Data { dataset_name_or_path: path.display().to_string(), ..Data::default() };
    let settings = RenderSettings {
        max_length: 512,
        train_on_all: false,
        add_eos: true,
        template_now: None,
        bos_before_prompt: false,
        threads: 2,
    };
    let sources = [find_files("rows", &path).unwrap()];
    let cache_dir = &dir.path().join("cache");
    let trainer = TrainerType::Sft;
    let request = PrepareRequest { section: &section, trainer, sources: &sources, cache_dir };
    let prepared = prepare(&request, &Renderer::new(tokenizer, None, settings)).unwrap();
    let settings = PlanSettings {
        seed: 1,
        shuffle: true,
        per_device_train_batch_size: 8,
        gradient_accumulation_steps: 1,
        num_train_epochs: 1,
        max_steps: None,
        packed_to: None,
    };
    let plan = Plan::new(settings, &prepared.train.lengths());
    let mut n_tokens = 0;
    for step in 0..50 {
        for micro_batch in plan.step(step) {
            let read = prepared.train.read(&micro_batch).unwrap();
            n_tokens += pack(&read.iter().collect::<Vec<_>>()).tokens.len();
        }
    }
    assert!(n_tokens > 50 * 8 * ROW_TOKENS / 2, "{n_tokens} tokens were read");
    (ALLOCATOR.peak_usage() - before) as f64
}

#[test]
fn memory_is_an_index_of_the_rows_and_not_their_tokens() {
    let _alone = ALONE.lock().unwrap();
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/models/tokenizer");
    let tokenizer = Tokenizer::from_folder(&folder).unwrap();
    let (few, many) = (12_000, 60_000);
    let (small, large) = (peak_bytes(few, &tokenizer), peak_bytes(many, &tokenizer));
    let per_row = (large - small) / (many - few) as f64;
    // Tokens alone would be 480 bytes a row.
    assert!(per_row < 100.0, "{per_row:.0} bytes a row: {small} to {large}");
}

/// Whatever epoch and step is asked for, the order of one epoch is in memory, four bytes a row; it is
/// the same for who comes back at that step.
#[test]
fn fault_036_a_shuffle_takes_four_bytes_a_row_and_needs_no_past() {
    let _alone = ALONE.lock().unwrap();
    let n = 2_000_000;
    let settings = PlanSettings {
        seed: 3,
        shuffle: true,
        per_device_train_batch_size: 8,
        gradient_accumulation_steps: 2,
        num_train_epochs: 1000,
        max_steps: None,
        packed_to: None,
    };
    let lengths = vec![7; n];
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let plan = Plan::new(settings.clone(), &lengths);
    let steps = [0, plan.n_steps() - 1, plan.steps_per_epoch() + 5, 17];
    let seen: Vec<_> = steps.iter().map(|&step| plan.step(step)).collect();
    let peak = ALLOCATOR.peak_usage() - before;
    assert!(peak < 4 * n + 100_000, "{peak} bytes for {n} rows");
    for (&step, expected) in steps.iter().zip(&seen).rev() {
        assert_eq!(Plan::new(settings.clone(), &lengths).step(step), *expected, "step {step}");
    }
    assert!(seen[0] != seen[3], "another step has other rows");
}
