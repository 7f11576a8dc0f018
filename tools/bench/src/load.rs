//! Loading: from a model's files to packed weights, beside reading the same files and nothing else.
//!
//! Warm, with the files in the page cache, and cold, after the system was asked to forget them.
#![expect(unsafe_code, reason = "the standard library cannot ask for a file to be forgotten")]

use crate::clock::time;
use forgelm_kernels_api::{Compute, Ops};
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{ModelFiles, OpenModel};
use forgelm_run::model::compute_name;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const USAGE: &str =
    "usage: forgelm-bench load MODEL [--dtype float32|bfloat16] [--threads N] [--rounds N]";
/// Bytes of one read.
const PIECE: usize = 1 << 20;

struct Arguments {
    model: PathBuf,
    compute: Compute,
    n_threads: usize,
    rounds: usize,
}

/// Runs the benchmark.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let arguments = parse(arguments)?;
    let files = weight_files(&arguments.model).map_err(|error| error.to_string())?;
    let ops: Arc<dyn Ops> = Arc::new(Cpu::new(arguments.n_threads));
    for is_cold in [false, true] {
        let (mut reading, mut loading, mut n_bytes) = (f64::INFINITY, f64::INFINITY, 0);
        for _ in 0..arguments.rounds {
            forget(&files, is_cold)?;
            reading = reading.min(wall(|| read_all(&files).map(|n| n_bytes = n))?);
            forget(&files, is_cold)?;
            loading = loading.min(wall(|| load(&arguments, &ops))?);
        }
        let rate = |seconds: f64| n_bytes as f64 / seconds / 1e6;
        let kind = if is_cold { "cold" } else { "warm" };
        println!(
            "{} {kind}: {:.0} MB; reading alone {:.0} MB/s, loading {:.0} MB/s ({:.2} s): {:.0} % of it",
            compute_name(arguments.compute),
            n_bytes as f64 / 1e6,
            rate(reading),
            rate(loading),
            loading,
            100.0 * reading / loading,
        );
        let what = format!("loading, {kind}, {}", compute_name(arguments.compute));
        crate::result(&what, rate(loading), rate(reading), "MB/s");
    }
    Ok(())
}

/// Wall time of one call: also on one thread, since reading waits.
fn wall(call: impl FnOnce() -> io::Result<()>) -> Result<f64, String> {
    let mut result = Ok(());
    let times = time(|| result = call());
    result.map_err(|error| error.to_string())?;
    Ok(times.seconds(2))
}

fn load(arguments: &Arguments, ops: &Arc<dyn Ops>) -> io::Result<()> {
    let files = if arguments.model.is_dir() {
        ModelFiles::Folder(arguments.model.clone())
    } else {
        ModelFiles::Gguf(arguments.model.clone())
    };
    let open = OpenModel::open(&files).map_err(io::Error::other)?;
    let decoder = open.load(Arc::clone(ops), arguments.compute).map_err(io::Error::other)?;
    std::hint::black_box(decoder.weights_bytes());
    Ok(())
}

fn weight_files(model: &Path) -> io::Result<Vec<PathBuf>> {
    if !model.is_dir() {
        return Ok(vec![model.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(model)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_all(files: &[PathBuf]) -> io::Result<usize> {
    let mut piece = vec![0; PIECE];
    let mut sum = 0;
    for path in files {
        let mut file = File::open(path)?;
        loop {
            match file.read(&mut piece)? {
                0 => break,
                n => sum += n,
            }
        }
    }
    Ok(sum)
}

/// Asks the system to drop what it holds of the files.
fn forget(files: &[PathBuf], is_cold: bool) -> Result<(), String> {
    for path in files.iter().filter(|_| is_cold) {
        let file = File::open(path).map_err(|error| error.to_string())?;
        // SAFETY: the descriptor is open; the call changes nothing but the page cache.
        let status =
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        if status != 0 {
            return Err(io::Error::from_raw_os_error(status).to_string());
        }
    }
    Ok(())
}

fn parse(arguments: &[String]) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        model: PathBuf::new(),
        compute: Compute::Bf16,
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
        let number = || value.parse().ok().filter(|&n| n > 0).ok_or(USAGE);
        match (argument.as_str(), value.as_str()) {
            ("--dtype", "float32") => parsed.compute = Compute::F32,
            ("--dtype", "bfloat16") => parsed.compute = Compute::Bf16,
            ("--threads", _) => parsed.n_threads = number()?,
            ("--rounds", _) => parsed.rounds = number()?,
            _ => return Err(USAGE.to_owned()),
        }
    }
    if parsed.model.as_os_str().is_empty() { Err(USAGE.to_owned()) } else { Ok(parsed) }
}
