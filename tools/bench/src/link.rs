//! `forgelm-bench link`: what it takes to add arrays of all processes, and to put parts of all of them
//! together, as training does both. Under a launcher with the library of `forgelm comm build`, which
//! is in a folder of `FORGELM_PLUGIN_PATH`; with `--threads N` on threads of this process.

use crate::clock::time;
use forgelm_collective::{CollectiveError, Group, Settings, threads};
use forgelm_loader::search::{Places, find};
use forgelm_loader::{HostServices, Loader};
use forgelm_plugin::{Collectives, Kind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const USAGE: &str = "usage: forgelm-bench link [--threads N] [--rounds N] [--numbers N,..]";

/// File name of the library that `forgelm comm build` makes.
const LIBRARY: &str = "libforgelm_mpi.so";

/// How long a process waits for the others.
const DEADLINE: Duration = Duration::from_secs(120);

struct Arguments {
    n_threads: Option<usize>,
    rounds: usize,
    /// Lengths of the arrays.
    numbers: Vec<usize>,
}

/// Runs the benchmark.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let arguments = parse(arguments)?;
    let settings = Settings::with_deadline(DEADLINE);
    let Some(n_threads) = arguments.n_threads else {
        let build = library()?;
        let group = Group::open(move || build(&[]), settings).map_err(|error| error.to_string())?;
        return on_rank(group, &arguments);
    };
    std::thread::scope(|scope| {
        let start = |thread: threads::Thread| {
            scope.spawn(|| {
                let group = Group::open(|| Ok(Box::new(thread)), settings);
                on_rank(group.map_err(|error| error.to_string())?, &arguments)
            })
        };
        let ranks: Vec<_> = threads::ranks(n_threads).into_iter().map(start).collect();
        ranks.into_iter().try_for_each(|rank| rank.join().map_err(|_| "a rank panicked")?)
    })
}

/// Joins the processes of a launcher, as the program does.
fn library() -> Result<Arc<<Collectives as Kind>::Build>, String> {
    #[expect(clippy::disallowed_methods, reason = "a tool may ask its environment")]
    let variable = std::env::var_os("FORGELM_PLUGIN_PATH").unwrap_or_default();
    let variable: Vec<PathBuf> = std::env::split_paths(&variable).collect();
    let found = find(&Places { variable, ..Places::default() }).map_err(|e| e.to_string())?;
    let is_wanted = |path: &Path| path.ends_with(LIBRARY);
    let path = found.iter().map(|found| &found.path).find(|path| is_wanted(path));
    let path = path.ok_or_else(|| {
        format!("{LIBRARY} is in no folder of FORGELM_PLUGIN_PATH\n  hint: `forgelm comm build`")
    })?;
    let loaded = Loader::new(HostServices::silent()).load(path).map_err(|e| e.to_string())?;
    let offers = loaded.ok_or("it was loaded before")?.offers;
    let collective = offers.collectives.first().ok_or("it has no collective")?;
    Ok(Arc::clone(&collective.build))
}

/// What a rank does; the leader prints.
fn on_rank(group: Group, arguments: &Arguments) -> Result<(), String> {
    let (rank, p) = (group.rank(), group.n_ranks());
    if group.is_leader() {
        println!("{p} ranks, {}; times are medians of {}", group.library(), arguments.rounds);
        println!("numbers   MB sent each way   reduce ms   gather ms");
    }
    for &n in &arguments.numbers {
        let ranges: Vec<Range<usize>> = (0..p).map(|r| r * n / p..(r + 1) * n / p).collect();
        let (mut reduces, mut gathers) = (Vec::new(), Vec::new());
        for _ in 0..arguments.rounds {
            let (reduce, gather) = exchange(&group, &ranges).map_err(|e| e.to_string())?;
            reduces.push(reduce);
            gathers.push(gather);
        }
        if group.is_leader() {
            let sent = 4.0 * (n - ranges[rank].len()) as f64 / 1e6;
            let [reduce, gather] = [reduces, gathers].map(|of| 1e3 * median(of));
            println!("{n:9} {sent:17.3} {reduce:11.3} {gather:11.3}");
        }
    }
    group.end().map_err(|error| error.to_string())
}

/// Seconds of one reduce and of one gather, which all ranks begin together.
fn exchange(group: &Group, ranges: &[Range<usize>]) -> Result<(f64, f64), CollectiveError> {
    let n = ranges.last().map_or(0, |last| last.end);
    let own = vec![1.0_f32; n];
    group.all_gather(Vec::new())?;
    let (n_with, of_all) = (group.n_ranks(), ranges.to_vec());
    let mut part = Ok(Vec::new());
    let reduce = time(|| {
        let sum = group.start(move |line| line.reduce_scatter(&own, &of_all, n_with));
        part = sum.wait();
    });
    let part = part?;
    group.all_gather(Vec::new())?;
    let mut whole = Ok(Vec::new());
    let gather = time(|| whole = group.all_gather_ranges(part, ranges.to_vec()));
    assert_eq!(whole?.len(), n, "parts of all ranks");
    Ok((reduce.wall(), gather.wall()))
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn parse(arguments: &[String]) -> Result<Arguments, String> {
    let numbers = [1 << 8, 1 << 16, 1 << 18, 1 << 20, 1 << 22].to_vec();
    let mut parsed = Arguments { n_threads: None, rounds: 15, numbers };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or(USAGE)?;
        let number = |text: &str| text.parse().ok().filter(|&n| n > 0).ok_or(USAGE);
        match word.as_str() {
            "--threads" => parsed.n_threads = Some(number(value)?),
            "--rounds" => parsed.rounds = number(value)?,
            "--numbers" => {
                parsed.numbers = value.split(',').map(number).collect::<Result<_, _>>()?
            }
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::{USAGE, run};

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn threads_exchange_arrays_of_every_length() {
        assert_eq!(run(&words("--threads 3 --rounds 2 --numbers 2,64")), Ok(()));
    }

    #[test]
    fn arguments_are_checked() {
        for wrong in ["--threads", "--threads 0", "--numbers 1,x", "--ranks 2"] {
            assert_eq!(run(&words(wrong)), Err(USAGE.to_owned()), "{wrong}");
        }
    }
}
