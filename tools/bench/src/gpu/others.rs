//! Parts that are other programs: tests that cargo built, NVIDIA's compute-sanitizer, PyTorch.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Context;
use super::finding::{Finding, Table};
use super::shapes::{RANK, Shape};
use super::step::{batches, models};

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None` if it was stopped.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub seconds: f64,
}

/// Runs a program for as long as it may take at most, then stops it.
pub(crate) fn run_for(seconds: f64, command: &mut Command) -> Result<Ended, String> {
    let started = Instant::now();
    // Files, not pipes: whoever is slow to read a pipe holds the program up.
    let files = [scratch()?, scratch()?];
    let handle = |i: usize| files[i].try_clone().map_err(|error| error.to_string());
    command.stdin(Stdio::null()).stdout(handle(0)?).stderr(handle(1)?);
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
    let code = loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            // ended by a signal: 128 and its number, as shells say
            break Some(status.code().unwrap_or(128));
        }
        if started.elapsed().as_secs_f64() > seconds {
            let _gone = child.kill();
            let _status = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let [stdout, stderr] = files.map(read_all);
    Ok(Ended { code, stdout, stderr, seconds: started.elapsed().as_secs_f64() })
}

/// A file without a name, gone with the process.
fn scratch() -> Result<std::fs::File, String> {
    tempfile::tempfile().map_err(|error| format!("a temporary file: {error}"))
}

fn read_all(mut file: std::fs::File) -> String {
    use std::io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    let _start = file.rewind();
    let _n = file.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Ended {
    /// The last lines of what it wrote.
    pub(crate) fn end(&self) -> String {
        let text = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(6)..].join(" / ")
    }
}

/// A program in one of the folders of `PATH`, or of these.
fn find(name: &str, folders: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(folders.iter().map(PathBuf::from));
    places.map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Test programs on the device: each must run at least one test, and none may be skipped.
pub(crate) fn tests(context: &Context<'_>) -> Result<Finding, String> {
    let programs = &context.arguments.tests;
    if programs.is_empty() {
        return Ok(Finding::skipped(
            "no test program was given with `--tests`; `tools/bench/gpu` builds them",
        ));
    }
    let mut finding = Finding::default();
    let mut table = Table::new(&["tests", ">seconds", "result"]);
    let mut left = context.seconds;
    for asked in programs {
        let (program, tests) = asked.split_once('=').unwrap_or((asked, ""));
        let name = test_name(program.as_ref());
        let mut command = Command::new(program);
        command
            .args(["--nocapture", "--test-threads=1"])
            .args([tests].iter().filter(|t| !t.is_empty()));
        command.env("FORGELM_TEST_DEVICE", "1");
        if !context.arguments.libraries.is_empty() {
            let folders = std::env::join_paths(&context.arguments.libraries);
            command.env("FORGELM_CUDA_PATH", folders.map_err(|error| error.to_string())?);
        }
        let ended = run_for(left, &mut command)?;
        left = (left - ended.seconds).max(1.0);
        let result = match verdict(&ended) {
            Ok(passed) => passed,
            Err(problem) => {
                finding.problems.push(format!("{name}: {problem}"));
                problem
            }
        };
        table.row(&[name, format!("{:.0}", ended.seconds), result]);
    }
    finding.numbers = json!({ "programs": programs.len(), "failed": finding.problems.len() });
    finding.tables.push(table);
    Ok(finding)
}

/// `device-0123456789abcdef` is `device`.
fn test_name(program: &Path) -> String {
    let name = program.file_stem().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    match name.rsplit_once('-') {
        Some((name, hash)) if hash.len() == 16 => name.to_owned(),
        _ => name,
    }
}

fn verdict(ended: &Ended) -> Result<String, String> {
    let skipped = [&ended.stdout, &ended.stderr]
        .iter()
        .find_map(|text| text.lines().find(|line| line.contains("skipped: ")));
    match (ended.code, skipped) {
        (None, _) => Err(format!("stopped after {:.0} s", ended.seconds)),
        (Some(0), Some(line)) => Err(line.trim().to_owned()),
        (Some(0), None) => {
            let line = ended.stdout.lines().find(|line| line.starts_with("test result: ok. "));
            let line = line.ok_or("it says nothing of tests")?;
            let passed = line.trim_start_matches("test result: ok. ");
            match passed.split(';').next() {
                Some(passed) if passed != "0 passed" => Ok(passed.to_owned()),
                _ => Err("it ran no test".to_owned()),
            }
        }
        (Some(code), _) => Err(format!("ended with {code}: {}", ended.end())),
    }
}

/// compute-sanitizer over the part `ops`, each allocation one of the driver's own.
pub(crate) fn sanitizer(context: &Context<'_>) -> Result<Finding, String> {
    let folders = ["/usr/local/cuda/bin", "/opt/cuda/bin"];
    let Some(program) = find("compute-sanitizer", &folders) else {
        return Ok(Finding::skipped("`compute-sanitizer` was not found"));
    };
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut finding = Finding::default();
    let mut table = Table::new(&["tool", ">seconds", "result"]);
    for tool in ["memcheck", "racecheck"] {
        let mut command = Command::new(&program);
        command.args(["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]).arg(&this);
        // Its own folder: the results of the part that was measured stay.
        let folder = context.arguments.parts.join(tool);
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        let mut arguments = context.arguments.clone();
        arguments.parts = folder;
        command.args(arguments.for_part("ops", context.seconds / 2.0)).arg("--strict");
        let ended = run_for(context.seconds / 2.0, &mut command)?;
        let result = match ended.code {
            Some(0) => "found nothing".to_owned(),
            // Not a fault of a kernel: too little time.
            None => format!("stopped after {:.0} s, nothing found till then", ended.seconds),
            Some(code) => {
                let problem = format!("ended with {code}: {}", ended.end());
                finding.problems.push(format!("{tool}: {problem}"));
                problem
            }
        };
        table.row(&[tool.to_owned(), format!("{:.0}", ended.seconds), result]);
    }
    finding.tables.push(table);
    finding.numbers = json!({ "failed": finding.problems.len() });
    Ok(finding)
}

/// The same steps in PyTorch, transformers and PEFT, where an interpreter has them.
pub(crate) fn baseline(context: &Context<'_>) -> Result<Finding, String> {
    const SCRIPT: &str = include_str!("../../gpu_baseline.py");
    let shapes: Vec<Value> = models(context.is_tiny()).iter().map(of_shape).collect();
    let batches: Vec<Value> = batches(context.is_tiny())
        .iter()
        .map(|batch| json!([batch.n_sequences, batch.len]))
        .collect();
    let asked = json!({
        "models": shapes,
        "batches": batches,
        "rank": RANK,
        "is_tiny": context.is_tiny(),
        "seconds": context.seconds * 0.9,
    });
    let mut command = Command::new(&context.arguments.python);
    command.args([OsStr::new("-c"), OsStr::new(SCRIPT)]).arg(asked.to_string());
    let ended = match run_for(context.seconds, &mut command) {
        Ok(ended) => ended,
        Err(problem) => return Ok(Finding::skipped(problem)),
    };
    read_baseline(&ended)
}

fn of_shape(shape: &Shape) -> Value {
    json!({ "name": shape.name, "config": shape.hf_json(shape.layers) })
}

/// Lines of JSON: `{"skipped": ..}`, `{"versions": ..}`, or one result each.
fn read_baseline(ended: &Ended) -> Result<Finding, String> {
    let columns = ["model", "variant", ">batch", ">ms", ">tokens/s", ">peak GB", ">loss"];
    let mut table = Table::new(&columns);
    let mut finding = Finding::default();
    let mut numbers = Vec::new();
    for line in ended.stdout.lines().filter(|line| line.starts_with('{')) {
        let line: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        if line["skipped"].is_string() {
            finding.notes.push(format!("Skipped: {}.", text("skipped")));
        } else if line["versions"].is_string() {
            finding.notes.push(format!("Versions: {}.", text("versions")));
        } else {
            let number = |key: &str, digits: usize| {
                line[key].as_f64().map_or_else(|| "none".to_owned(), |n| format!("{n:.digits$}"))
            };
            table.row(&[
                text("model"),
                text("variant"),
                text("batch"),
                number("ms", 2),
                number("tokens_per_second", 0),
                number("peak_gb", 2),
                number("loss", 3),
            ]);
            numbers.push(line);
        }
    }
    match ended.code {
        Some(0) => {}
        None => finding.notes.push(format!("Stopped after {:.0} s.", ended.seconds)),
        Some(code) => finding.problems.push(format!("ended with {code}: {}", ended.end())),
    }
    if !table.rows.is_empty() {
        finding.tables.push(table);
    }
    finding.numbers = json!({ "results": numbers });
    Ok(finding)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Ended, read_baseline, run_for, test_name, verdict};

    fn ended(code: Option<i32>, stdout: &str) -> Ended {
        Ended { code, stdout: stdout.to_owned(), stderr: String::new(), seconds: 3.0 }
    }

    #[test]
    fn a_program_that_takes_too_long_is_stopped() {
        let ended = run_for(0.1, Command::new("sleep").arg("30")).unwrap();
        assert!(ended.code.is_none() && ended.seconds < 10.0, "{ended:?}");
        let ended = run_for(10.0, Command::new("sh").args(["-c", "echo a; echo b >&2; exit 3"]));
        let ended = ended.unwrap();
        assert_eq!((ended.code, &*ended.stdout, &*ended.stderr), (Some(3), "a\n", "b\n"));
        assert!(run_for(1.0, &mut Command::new("/no/such/program")).is_err());
    }

    #[test]
    fn tests_that_were_skipped_or_are_none_are_problems() {
        let of = |code, text: &str| verdict(&ended(code, text));
        let passed = "test result: ok. 2 passed; 0 failed; 0 ignored";
        assert_eq!(of(Some(0), passed), Ok("2 passed".to_owned()));
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored";
        assert_eq!(of(Some(0), none), Err("it ran no test".to_owned()));
        let skipped = format!("skipped: no NVIDIA device\n{passed}");
        assert_eq!(of(Some(0), &skipped), Err("skipped: no NVIDIA device".to_owned()));
        assert_eq!(of(None, passed), Err("stopped after 3 s".to_owned()));
        assert_eq!(of(Some(101), "a\nb"), Err("ended with 101: a / b".to_owned()));
        assert_eq!(test_name("target/x/device-0123456789abcdef".as_ref()), "device");
        assert_eq!(test_name("a-test".as_ref()), "a-test");
    }

    #[test]
    fn a_baseline_is_a_table_of_what_it_printed() {
        let text = "noise\n{\"versions\": \"torch 1\"}\n\
            {\"model\": \"m\", \"variant\": \"v\", \"batch\": \"1 x 2\", \"ms\": 1.5, \
            \"tokens_per_second\": 7.0, \"peak_gb\": null, \"loss\": 2.0}\n";
        let finding = read_baseline(&ended(Some(0), text)).unwrap();
        assert_eq!(finding.notes, ["Versions: torch 1."]);
        assert_eq!(finding.tables[0].rows, [["m", "v", "1 x 2", "1.50", "7", "none", "2.000"]]);
        let failed = read_baseline(&ended(Some(1), "")).unwrap();
        assert_eq!(failed.problems, ["ended with 1: "]);
    }
}
