//! Runs the parts one after the other, each in a process and a share of what is left of the budget,
//! and writes the page.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::arguments::Arguments;
use super::finding::Finding;
use super::others::run_for;
use super::page::{self, Section};
use super::{PARTS, Part, part_of};

/// The budget that the shares of parts add up to.
const MINUTES: f64 = 15.0;
/// A part that would get less is skipped.
const SECONDS_MIN: f64 = 2.0;
/// A part that takes this many shares hangs.
const LATE: f64 = 3.0;

pub(crate) fn conduct(arguments: &Arguments) -> Result<(), String> {
    let started = Instant::now();
    let parts = wanted(arguments)?;
    let folder = tempfile::tempdir().map_err(|error| format!("a temporary folder: {error}"))?;
    let mut arguments = arguments.clone();
    folder.path().clone_into(&mut arguments.parts);
    let budget = 60.0 * arguments.minutes;
    let mut sections = Vec::new();
    for part in parts {
        let left = budget - started.elapsed().as_secs_f64();
        let share = (60.0 * part.minutes * arguments.minutes / MINUTES).min(left);
        println!("{} (at most {share:.0} of {left:.0} s that are left)", part.name);
        let finding = if share < SECONDS_MIN {
            Finding::skipped("the budget is used up")
        } else {
            perform(part, &arguments, share, left.min(LATE * share))?
        };
        for line in finding.notes.iter().filter(|note| note.starts_with("Skipped")) {
            println!("  {line}");
        }
        for problem in &finding.problems {
            println!("  problem: {problem}");
        }
        let is_blind = part.name == "device" && !finding.problems.is_empty();
        sections.push(Section { name: part.name, title: part.title, finding });
        if is_blind {
            break; // without a device nothing else has any
        }
    }
    let (page, raw) = write(&arguments, &sections)?;
    println!("{}\n{}", page.display(), raw.display());
    let problems = sections.iter().map(|section| section.finding.problems.len()).sum::<usize>();
    if problems == 0 { Ok(()) } else { Err(format!("{problems} problems were found")) }
}

fn wanted(arguments: &Arguments) -> Result<Vec<&'static Part>, String> {
    for name in &arguments.only {
        part_of(name)?;
    }
    let only = |part: &&Part| {
        // the page is named after the device
        let is_first = part.name == PARTS[0].name;
        arguments.only.is_empty() || is_first || arguments.only.iter().any(|n| n == part.name)
    };
    Ok(PARTS.iter().filter(only).collect())
}

/// A part, in a process of its own. It is told its share, and stopped when it hangs.
fn perform(part: &Part, arguments: &Arguments, share: f64, limit: f64) -> Result<Finding, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(this);
    command.args(arguments.for_part(part.name, share));
    let ended = run_for(limit, &mut command)?;
    let found = Finding::read(&arguments.parts, part.name);
    Ok(match (ended.code, found) {
        (Some(0), Some(finding)) => finding,
        (Some(0), None) => problem("it left nothing".to_owned()),
        (None, _) => problem(format!("it was stopped after {limit:.0} s")),
        (Some(code), _) => problem(format!("it ended with {code}: {}", ended.end())),
    })
}

fn problem(text: String) -> Finding {
    Finding { problems: vec![text], ..Finding::default() }
}

/// Where the page goes: what an emulated device did, or a tiny run, is not kept.
fn write(arguments: &Arguments, sections: &[Section]) -> Result<(PathBuf, PathBuf), String> {
    let kept = !arguments.tiny && !page::is_emulated(sections);
    let default = if kept { "docs/performance" } else { "target/gpu" };
    let folder = arguments.out.as_deref().unwrap_or(Path::new(default));
    let name = page::file_name(sections);
    let (page, raw) = (folder.join(format!("{name}.md")), folder.join(format!("{name}.json")));
    let io = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    std::fs::create_dir_all(folder).map_err(|error| io(folder, error))?;
    std::fs::write(&page, page::markdown(arguments, sections)).map_err(|e| io(&page, e))?;
    std::fs::write(&raw, page::raw(arguments, sections)).map_err(|e| io(&raw, e))?;
    Ok((page, raw))
}
