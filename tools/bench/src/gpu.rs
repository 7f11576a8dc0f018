//! `forgelm-bench gpu`: what an NVIDIA device makes of all this, in one command and within a budget
//! of minutes: is it right, how fast is it, and how far is that from what the device can do.
//!
//! Each part is a process of its own, so that one that fails or hangs costs no other its device.
//! A part leaves a JSON file; in the end all of them become one page and one file of raw numbers.
//! Parts stand in [`PARTS`], the most informative first; what the budget has no time for is skipped
//! aloud. `--tiny` takes sizes that an emulated device can do: it tests this program, and what it
//! prints says so.

#![expect(
    clippy::disallowed_methods,
    reason = "it keeps a budget of time, and writes pages; a machine's tools are where its \
              environment says"
)]

mod arguments;
mod ceilings;
mod checks;
mod device;
mod finding;
mod kernels;
mod orchestra;
mod others;
mod page;
mod prediction;
pub(crate) mod shapes;
mod step;
mod weights;

use std::time::Instant;

use arguments::Arguments;
use device::Opened;
use finding::Finding;

/// What a part is told.
pub(crate) struct Context<'a> {
    /// Of the whole command.
    arguments: &'a Arguments,
    /// What this part may take, and when it began.
    seconds: f64,
    began: Instant,
}

/// One part.
struct Part {
    /// For `--only`, and of its file.
    name: &'static str,
    /// What it answers, for the page.
    title: &'static str,
    /// The share of a budget of 15 minutes that it may take, in minutes.
    minutes: f64,
    run: fn(&Context<'_>) -> Result<Finding, String>,
}

/// The most informative first.
static PARTS: [Part; 9] = [
    Part { name: "device", title: "The device", minutes: 0.3, run: device::run },
    Part { name: "ops", title: "Every op against f64 sums", minutes: 2.0, run: checks::run },
    Part { name: "tests", title: "Families and runs", minutes: 2.0, run: others::tests },
    Part { name: "ceilings", title: "What the device can do", minutes: 1.5, run: ceilings::run },
    Part { name: "kernels", title: "Kernels and their floors", minutes: 1.5, run: kernels::run },
    Part { name: "layer", title: "One layer of a step", minutes: 1.0, run: step::layer },
    Part { name: "step", title: "Whole steps", minutes: 2.5, run: step::steps },
    Part { name: "baseline", title: "PyTorch and PEFT", minutes: 2.5, run: others::baseline },
    Part { name: "sanitizer", title: "Memory and races", minutes: 1.7, run: others::sanitizer },
];

/// Runs the command, or the one part that its parent asked for.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let arguments = Arguments::parse(arguments)?;
    match &arguments.part {
        None => orchestra::conduct(&arguments),
        Some(name) => {
            let part = part_of(name)?;
            let (seconds, began) = (arguments.seconds, Instant::now());
            let context = Context { arguments: &arguments, seconds, began };
            (part.run)(&context)?.write(&arguments.parts, part.name)
        }
    }
}

fn part_of(name: &str) -> Result<&'static Part, String> {
    let names: Vec<_> = PARTS.iter().map(|part| part.name).collect();
    let found = PARTS.iter().find(|part| part.name == name);
    found.ok_or_else(|| format!("`{name}` is no part; expected one of {}", names.join(", ")))
}

impl Context<'_> {
    /// The first device, with the products of cuBLASLt where it is found.
    fn open(&self) -> Result<Opened, String> {
        device::open(self.arguments, device::Products::Best)
    }

    /// Whether there is time for more; if not, a note says what is left out.
    fn has_time_for(&self, what: &str, notes: &mut Vec<String>) -> bool {
        let has_time = self.began.elapsed().as_secs_f64() < self.seconds;
        if !has_time {
            notes.push(format!("Skipped: {what}: the part's {:.0} s are used up.", self.seconds));
        }
        has_time
    }

    /// Whether sizes are for an emulated device.
    fn is_tiny(&self) -> bool {
        self.arguments.tiny
    }
}
