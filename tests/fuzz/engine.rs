//! A small fuzzer: mutates seeds, runs targets, and holds them to three promises. No input makes a
//! target panic, hold more memory than a multiple of the input, or take longer than a second.
//!
//! It is deterministic: the same seed gives the same inputs in the same order; only how many of
//! them fit the time differs. It has no view into the code, but an input with a new outcome (the
//! target says in a text what came of it) joins the corpus, which leads it through layers of checks.
//!
//! To fuzz the parsers of another crate: include this file with `#[path]`, list [`Target`]s, make
//! [`peak_alloc::PeakAlloc`] the global allocator, and call [`main`]. Arguments: `--seed N`,
//! `--seconds N` (per target), `--save DIR` (writes inputs with new outcomes), or a target's name.

use peak_alloc::PeakAlloc;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One parser under test.
pub struct Target {
    /// Its name, also that of its folder in the corpus.
    pub name: &'static str,
    /// Feeds bytes to the parser. Returns what came of it, for people and for telling outcomes
    /// apart (numbers in it do not count); an error message is just right.
    pub run: fn(&[u8]) -> String,
    /// Where mutation begins: small, valid inputs.
    pub seeds: Vec<Vec<u8>>,
    /// Words worth inserting.
    pub words: &'static [&'static str],
    /// Bytes held at once per byte of input, beyond [`MEMORY_BASE`].
    pub memory_factor: usize,
}

impl Target {
    /// A target that begins with `seeds` and what is stored under its name.
    pub fn new(
        name: &'static str,
        run: fn(&[u8]) -> String,
        seeds: Vec<Vec<u8>>,
        words: &'static [&'static str],
        memory_factor: usize,
    ) -> Self {
        Self { name, run, seeds: [seeds, stored(name)].concat(), words, memory_factor }
    }
}

/// Memory that any input may cost.
const MEMORY_BASE: usize = 1 << 20;
/// Time that any input may cost, and time after which a run is given up.
const SLOW: Duration = Duration::from_secs(1);
const HUNG: Duration = Duration::from_secs(20);
/// Longest input made.
const INPUT_BYTES_MAX: usize = 1 << 16;
/// Most inputs kept, the seeds included.
const CORPUS_MAX: usize = 2000;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % (n.max(1) as u64)).unwrap_or(0)
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    3,
    7,
    8,
    32,
    255,
    999,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    1 << 62,
    1 << 63,
    u64::MAX,
];
const TEXT_NUMBERS: [&str; 10] = [
    "0",
    "-1",
    "1e999",
    "0.5",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "99999999999999999999999",
    "1e-400",
    "-0",
];

/// Changes `input` in one place.
fn mutate(random: &mut Random, input: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    let at = random.below(input.len() + 1);
    let end = (at + 1 + random.below(32)).min(input.len());
    match random.below(13) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.pick(&[0, 1, 9, 10, 34, 44, 92, 125, 128, 255]),
        2 => input.truncate(at),
        3 => drop(input.drain(at.min(end)..end)),
        4 => {
            let piece = input[at.min(end)..end].to_vec();
            input.splice(at..at, piece);
        }
        5 => {
            let from = random.below(other.len() + 1);
            let to = (from + 1 + random.below(256)).min(other.len());
            input.splice(at..at, other[from.min(to)..to].iter().copied());
        }
        6 | 7 => {
            let width = random.pick(&[1, 2, 4, 8]);
            let number = random.pick(&NUMBERS).to_le_bytes();
            if let Some(place) = input.get_mut(at..at + width) {
                place.copy_from_slice(&number[..width]);
            }
        }
        8 if at + 8 <= input.len() => {
            let place = &mut input[at..at + 8];
            let old = u64::from_le_bytes(place.try_into().unwrap_or_default());
            let step = random.pick(&[1, u64::MAX, 8, 32]);
            place.copy_from_slice(&old.wrapping_add(step).to_le_bytes());
        }
        9 if !words.is_empty() => {
            let word = random.pick(words);
            input.splice(at..at, word.bytes());
        }
        10 | 11 => replace_text_number(random, input),
        _ => {
            let byte = random.next().to_le_bytes()[0];
            input.splice(at..at, std::iter::repeat_n(byte, 1 + end.saturating_sub(at)));
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

/// Puts another number in place of a run of digits.
fn replace_text_number(random: &mut Random, input: &mut Vec<u8>) {
    let from = random.below(input.len() + 1);
    let Some(start) = input[from..].iter().position(u8::is_ascii_digit) else { return };
    let start = from + start;
    let len = input[start..].iter().take_while(|b| b.is_ascii_digit()).count();
    let number = random.pick(&TEXT_NUMBERS);
    input.splice(start..start + len, number.bytes());
}

/// What is running now, for the thread that watches.
type Running = Arc<Mutex<Option<(&'static str, Vec<u8>, Instant)>>>;

/// Ends the process if one run takes far too long, after saving its input.
fn watch(running: &Running) {
    let running = Arc::clone(running);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = running.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some((name, input, _)) = now.filter(|(_, _, start)| start.elapsed() > HUNG) {
                println!("{}", report(name, &input, "does not end"));
                std::process::abort();
            }
        }
    });
}

/// Saves an input that broke a promise and says where.
fn report(name: &str, input: &[u8], what: &str) -> String {
    let path = std::env::temp_dir().join(format!("forgelm-fuzz-{name}-{}", std::process::id()));
    match std::fs::write(&path, input) {
        Ok(()) => {
            format!("{name}: {what}; the input ({} bytes) is in {}", input.len(), path.display())
        }
        Err(error) => format!("{name}: {what}; the input cannot be saved: {error}: {input:02x?}"),
    }
}

/// Runs one input; its outcome, or the promise it broke.
fn check(target: &Target, running: &Running, input: &[u8]) -> Result<String, String> {
    let start = Instant::now();
    *running.lock().unwrap_or_else(PoisonError::into_inner) =
        Some((target.name, input.to_vec(), start));
    let before = PeakAlloc.current_usage();
    PeakAlloc.reset_peak_usage();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let n_bytes = PeakAlloc.peak_usage().saturating_sub(before);
    let took = start.elapsed();
    *running.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let n_bytes_max = MEMORY_BASE + target.memory_factor * input.len();
    match outcome {
        Err(_) => Err("panics".to_owned()),
        Ok(_) if n_bytes > n_bytes_max => {
            Err(format!("holds {n_bytes} bytes; expected at most {n_bytes_max}"))
        }
        // A busy machine may have been slow, not the parser: it gets another try.
        Ok(_) if took > SLOW => {
            let start = Instant::now();
            (target.run)(input);
            let again = start.elapsed();
            if again > SLOW { Err(format!("takes {again:?}")) } else { Ok(String::new()) }
        }
        Ok(outcome) => Ok(outcome),
    }
}

/// An outcome without its numbers and quoted names.
fn signature(outcome: &str) -> String {
    let mut out = String::new();
    let (mut opened, mut is_escaped) = (None, false);
    for c in outcome.chars() {
        match opened {
            Some(quote) if c == quote && !is_escaped => opened = None,
            None if matches!(c, '"' | '`') => opened = Some(c),
            None if !c.is_ascii_digit() => out.push(c),
            _ => {}
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    out
}

struct Options {
    seed: u64,
    seconds: u64,
    save: Option<PathBuf>,
    only: Option<String>,
}

fn options() -> Options {
    let mut options = Options { seed: 1, seconds: 3, save: None, only: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok());
        match argument.as_str() {
            "--seed" => options.seed = number().unwrap_or(options.seed),
            "--seconds" => options.seconds = number().unwrap_or(options.seconds),
            "--save" => options.save = arguments.next().map(PathBuf::from),
            // What test runners pass.
            other if other.starts_with('-') => {}
            name => options.only = Some(name.to_owned()),
        }
    }
    options
}

/// Fuzzes every target and says how many inputs each has had; fails if a promise is broken.
pub fn main(targets: &[Target]) -> ExitCode {
    let options = options();
    let running = Running::default();
    watch(&running);
    std::panic::set_hook(Box::new(|_| {}));
    canary(&running);
    let mut broken = Vec::new();
    let chosen = |target: &&Target| options.only.as_deref().is_none_or(|o| o == target.name);
    for target in targets.iter().filter(chosen) {
        match fuzz(target, &options, &running) {
            Ok(line) => println!("{line}"),
            Err(line) => broken.push(line),
        }
    }
    for line in &broken {
        println!("FAILED {line} (seed {})", options.seed);
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Planted faults must be found, else nothing here means anything.
fn canary(running: &Running) {
    let planted =
        |run| Target { name: "canary", run, seeds: Vec::new(), words: &[], memory_factor: 1 };
    let panics = check(&planted(|input| input[1].to_string()), running, &[0]);
    assert_eq!(panics, Err("panics".to_owned()));
    let greedy = planted(|input| vec![0_u8; input.len() << 26].len().to_string());
    let holds = check(&greedy, running, &[0]).expect_err("64 MiB for one byte");
    assert!(holds.starts_with("holds 6710"), "{holds}");
    let fine = check(&planted(|input| input.len().to_string()), running, &[0]);
    assert_eq!(fine, Ok("1".to_owned()));
}

fn fuzz(target: &Target, options: &Options, running: &Running) -> Result<String, String> {
    let start = Instant::now();
    let mut random = Random(options.seed);
    let mut corpus = target.seeds.clone();
    assert!(!corpus.is_empty(), "{}: no seeds", target.name);
    let broken = |input: &[u8], what: String| report(target.name, input, &what);
    let mut outcomes = BTreeSet::new();
    for seed in &corpus {
        let outcome = check(target, running, seed).map_err(|e| broken(seed, e))?;
        outcomes.insert(signature(&outcome));
    }
    let mut n_inputs = corpus.len();
    while start.elapsed() < Duration::from_secs(options.seconds) {
        let mut input = corpus[random.below(corpus.len())].clone();
        for _ in 0..1 + random.below(4) {
            let other = random.below(corpus.len());
            mutate(&mut random, &mut input, &corpus[other], target.words);
        }
        let outcome = check(target, running, &input).map_err(|e| broken(&input, e))?;
        n_inputs += 1;
        if corpus.len() < CORPUS_MAX && outcomes.insert(signature(&outcome)) {
            if let Some(dir) = options.save.as_ref().filter(|_| input.len() <= 1024) {
                let path = dir.join(target.name).join(format!("{:03}", outcomes.len()));
                let saved = std::fs::create_dir_all(dir.join(target.name))
                    .and_then(|()| std::fs::write(&path, &input));
                saved.map_err(|error| format!("{}: {error}", path.display()))?;
            }
            corpus.push(input);
        }
    }
    let (name, n_outcomes) = (target.name, outcomes.len());
    Ok(format!("{name}: {n_inputs} inputs, {n_outcomes} outcomes, seed {}", options.seed))
}

/// The stored inputs of a target: every file of `tests/data/hostile/<name>/`, in order.
fn stored(name: &str) -> Vec<Vec<u8>> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/hostile");
    let Ok(listing) = std::fs::read_dir(root.join(name)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = listing.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}
