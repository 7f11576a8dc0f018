//! Merging: tensors of several models to one, written and synced, beside copying one model's file.
//!
//! What a merge adds in the program, hashes of what is read and written and their signatures, is
//! not in these figures.

use crate::clock::time;
use forgelm_artifact::sharded::SHARD_BYTES_MAX;
use forgelm_artifact::write::{StagedDir, remove_dir};
use forgelm_kernels_api::RowSource;
use forgelm_loader::search::{Places, find};
use forgelm_loader::{HostServices, Library, Loader};
use forgelm_merge::{Settings, Source, Tensor, write_merged};
use forgelm_model::{ModelFiles, OpenModel, WholeTensor};
use forgelm_plugin::{MergeMethods, Plugin};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const USAGE: &str =
    "usage: forgelm-bench merge BASE MODEL MODEL [--out DIR] [--threads N] [--rounds N]";

struct Arguments {
    models: Vec<PathBuf>,
    out: PathBuf,
    n_threads: usize,
    rounds: usize,
}

/// Rows of a model's file.
struct FileRows<'a>(&'a WholeTensor<'a>);

impl RowSource for FileRows<'_> {
    fn n_rows(&self) -> usize {
        self.0.n_rows()
    }

    fn n_cols(&self) -> usize {
        self.0.n_cols()
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        self.0.read_rows(first_row, out);
    }
}

impl Source for FileRows<'_> {
    fn release(&self) {
        self.0.release();
    }
}

/// The methods that ship with ForgeLM, loaded as the program loads them.
fn bundled() -> Result<Library, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let program = std::env::current_exe().map_err(|error| text(&error))?;
    let places = Places { program_dir: program.parent().map(PathBuf::from), ..Places::default() };
    let found = find(&places).map_err(|error| text(&error))?;
    let is_wanted = |path: &Path| path.ends_with("libforgelm_plugin_merge_method.so");
    let path = found.iter().map(|found| &found.path).find(|path| is_wanted(path));
    let path = path.ok_or("libforgelm_plugin_merge_method.so is not beside this program")?;
    let loaded = Loader::new(HostServices::silent()).load(path).map_err(|error| text(&error))?;
    Ok(loaded.expect("nothing was loaded before"))
}

/// Runs the benchmark.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let arguments = parse(arguments)?;
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let open = |path: &PathBuf| {
        OpenModel::open(&ModelFiles::Folder(path.clone())).map_err(|error| text(&error))
    };
    let open: Vec<OpenModel> = arguments.models.iter().map(open).collect::<Result<_, _>>()?;
    let whole: Vec<Vec<WholeTensor<'_>>> =
        open.iter().map(whole_tensors).collect::<Result<_, _>>()?;
    let rows: Vec<Vec<FileRows<'_>>> =
        whole.iter().map(|tensors| tensors.iter().map(FileRows).collect()).collect();
    let bytes = |t: &WholeTensor<'_>| t.n_rows() * t.n_cols() * t.dtype().block_bytes();
    let n_bytes: usize = whole[0].iter().map(bytes).sum();
    let rate = |seconds: f64| n_bytes as f64 / seconds / 1e6;
    let single = arguments.models[1].join("model.safetensors");
    for method in &bundled()?.offers.merge_methods {
        let (mut copying, mut merging) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..arguments.rounds {
            copying = copying.min(wall(|| copy(&single, &arguments.out))?);
            merging = merging.min(wall(|| merge(method, &whole[0], &rows, &arguments))?);
        }
        println!(
            "{:6} {} models of {:.0} MB: {merging:.2} s, {:.0} MB/s written; copying one {:.0} MB/s",
            method.name,
            rows.len() - 1,
            n_bytes as f64 / 1e6,
            rate(merging),
            rate(copying),
        );
        crate::result(&format!("merging, {}", method.name), rate(merging), rate(copying), "MB/s");
    }
    Ok(())
}

fn whole_tensors(model: &OpenModel) -> Result<Vec<WholeTensor<'_>>, String> {
    model.whole_tensors(None).map_err(|error| error.to_string())
}

fn wall(call: impl FnOnce() -> io::Result<()>) -> Result<f64, String> {
    let mut result = Ok(());
    let times = time(|| result = call());
    result.map_err(|error| error.to_string())?;
    Ok(times.seconds(2))
}

fn merge(
    method: &Plugin<MergeMethods>,
    base: &[WholeTensor<'_>],
    rows: &[Vec<FileRows<'_>>],
    arguments: &Arguments,
) -> io::Result<()> {
    let weights = vec![1.0; rows.len() - 1];
    let built = (method.build)(&[], &weights).map_err(io::Error::other)?;
    let tensor = |t: usize| Tensor {
        name: base[t].name(),
        dtype: base[t].dtype(),
        shape: base[t].shape(),
        base: &rows[0][t],
        inputs: rows[1..].iter().map(|rows| Some(&rows[t] as &dyn Source)).collect(),
    };
    let settings = Settings {
        scope: method.needs.scope,
        n_threads: arguments.n_threads,
        shard_bytes_max: SHARD_BYTES_MAX,
        is_stopped: &|| false,
    };
    let mut dir = StagedDir::new(&arguments.out).map_err(io::Error::other)?;
    let tensors = (0..base.len()).map(tensor).collect();
    write_merged(&mut dir, tensors, built.as_ref(), settings).map_err(io::Error::other)?;
    dir.commit().map_err(io::Error::other)?;
    remove_dir(&arguments.out).map_err(io::Error::other)
}

/// One file through a buffer to another, synced as a merge syncs its own.
fn copy(from: &Path, out: &Path) -> io::Result<()> {
    let mut dir = StagedDir::new(out).map_err(io::Error::other)?;
    let copied = dir.write_with("model.safetensors", |w| {
        let mut file = File::open(from)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                n => w.write_all(&buffer[..n])?,
            }
        }
    });
    copied.map_err(io::Error::other)
}

fn parse(arguments: &[String]) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        models: Vec::new(),
        out: std::env::temp_dir().join("forgelm-bench-merge"),
        n_threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        rounds: 3,
    };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| USAGE.to_owned());
        let number = |text: &String| text.parse().map_err(|_| USAGE.to_owned());
        match word.as_str() {
            "--out" => parsed.out = PathBuf::from(value()?),
            "--threads" => parsed.n_threads = number(value()?)?,
            "--rounds" => parsed.rounds = number(value()?)?,
            other if other.starts_with("--") => return Err(USAGE.to_owned()),
            model => parsed.models.push(PathBuf::from(model)),
        }
    }
    // slerp merges two.
    if parsed.models.len() == 3 { Ok(parsed) } else { Err(USAGE.to_owned()) }
}
