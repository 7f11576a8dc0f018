//! Scores of a model on public benchmarks, as a gate after training and by themselves
//! (`--benchmark-only`).
//!
//! [`suite::Suite`] reads the tasks and their rows before anything is loaded, so that whatever is wrong
//! with them is said at once; it then asks a model. [`report::Report`] is what that came to.

mod ask;
mod error;
mod gate;
pub mod only;
mod report;
mod rows;
mod suite;

pub use error::BenchmarkError;
pub(crate) use gate::prepare;

use crate::plan::Plan;
use forgelm_benchmark::Library;
use forgelm_config::Benchmark;

/// Name of the gate in documents.
pub(crate) const GATE: &str = "benchmark";
/// The results, relative to the folder that they are put into.
const RESULTS: &str = "benchmark_results.json";

/// Texts that go through the model at once; none where the program decides.
fn n_together(section: &Benchmark) -> Option<usize> {
    section.batch_size.0.parse().ok()
}

/// The section of a plan whose gate is turned on.
pub(crate) fn enabled(plan: &Plan) -> Option<&Benchmark> {
    let section = plan.run.evaluation.as_ref()?.benchmark.as_ref();
    section.filter(|section| section.enabled)
}

/// What the plan says of the gate.
pub(crate) fn plan_line(section: &Benchmark) -> String {
    let tasks = section.tasks.join(", ");
    match section.min_score {
        Some(score) => format!("no mean score below {score} on {tasks}"),
        None => format!("scores on {tasks} are told"),
    }
}

/// Files and folders that the gate reads.
pub(crate) fn reads(plan: &Plan) -> Vec<String> {
    let Some(section) = enabled(plan) else { return Vec::new() };
    let files = section.tasks.iter().filter(|name| Library::is_file_name(name)).cloned();
    let data = match &section.data_dir {
        Some(dir) => format!("{dir} (data of benchmarks)"),
        None => "data of benchmarks (from the cache, once fetched)".to_owned(),
    };
    files.chain([data]).collect()
}

/// Whom the gate may contact.
pub(crate) fn contacts(plan: &Plan) -> Option<String> {
    enabled(plan).map(|_| "the hub, for data of benchmarks that is not here".to_owned())
}
