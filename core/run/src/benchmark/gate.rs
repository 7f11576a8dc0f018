//! Benchmarks as a gate: the mean of the scores beside the lowest that is accepted.

use super::ask::AskError;
use super::suite::Suite;
use super::{BenchmarkError, GATE, RESULTS};
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::gates::examination::{Examination, Examined, Place};
use crate::plan::Plan;
use crate::subject::Subject;
use forgelm_artifact::write;
use forgelm_config::Benchmark;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::gate::{Measurement, judge};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The gate's folder in that of the run.
const FOLDER: &str = "benchmark";

/// The gate of a plan, its tasks and rows read; none where it is not turned on.
///
/// # Errors
/// If a task is unknown, or its rows cannot be had or do not fit it.
pub(crate) fn prepare(
    plan: &Plan,
    offline: bool,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Option<Box<dyn Examination>>, RunError> {
    let Some(section) = super::enabled(plan) else { return Ok(None) };
    let suite = Suite::read(plan, section, offline, env, observer)?;
    check_folder(section.output_dir.as_deref())?;
    Ok(Some(Box::new(Gate { section: section.clone(), suite })))
}

struct Gate {
    section: Benchmark,
    suite: Suite,
}

impl Examination for Gate {
    fn examine(
        &mut self,
        subject: &Subject<'_>,
        place: &mut Place<'_>,
    ) -> Result<Examined, RunError> {
        let n = self.suite.n_rows();
        let text = format!("benchmarks: {} of {n} rows", self.suite.names.join(", "));
        place.observer.observe(&Event::Notice(text));
        let report = match self.suite.measure(subject, place.observer) {
            Ok(report) => report,
            Err(AskError::Stopped) => return Err(BenchmarkError::Stopped.into()),
            Err(error @ (AskError::NoRoom(_) | AskError::Row { .. })) => {
                let (measurement, files) =
                    (Measurement::not_evaluated(GATE, error.to_string()), Vec::new());
                let (metrics, components) = (BTreeMap::new(), Vec::new());
                return Ok(Examined { measurement, metrics, document: None, files, components });
            }
        };
        let measurement = report.measurement(self.section.min_score, place.policy);
        let has_passed = judge(&measurement, place.policy).is_passed();
        let (scores, average) = (report.scores(), report.average());
        let document = report.document(&self.section, &self.suite.origins, has_passed);
        write_results(&place.root.join(FOLDER), &document)?;
        if let Some(dir) = &self.section.output_dir {
            write_results(Path::new(dir), &document)?;
        }
        let event =
            AuditEvent::BenchmarkCompleted { passed: has_passed, average, scores: scores.clone() };
        (place.record)(&event)?;
        for line in report.to_text().lines() {
            place.observer.observe(&Event::Notice(line.to_owned()));
        }
        let named = scores.iter().map(|(name, score)| (name.clone(), *score));
        let all = named.chain(average.map(|average| ("average".to_owned(), average)));
        Ok(Examined {
            measurement,
            metrics: all.map(|(name, value)| (format!("{GATE}/{name}"), value)).collect(),
            document: Some((GATE.to_owned(), json!({"scores": scores, "average": average}))),
            files: vec![format!("{FOLDER}/{RESULTS}")],
            components: Vec::new(),
        })
    }
}

/// Refuses a folder for results that is something else.
pub(super) fn check_folder(output_dir: Option<&str>) -> Result<(), BenchmarkError> {
    let Some(path) = output_dir.map(PathBuf::from) else { return Ok(()) };
    match path.symlink_metadata().is_ok() && !path.is_dir() {
        true => Err(BenchmarkError::OutputDir { path }),
        false => Ok(()),
    }
}

/// Writes `benchmark_results.json` into a folder, which is made where it is not there; gives the file.
pub(super) fn write_results(folder: &Path, document: &Value) -> Result<PathBuf, RunError> {
    write::create_dir_all_durable(folder)?;
    let path = folder.join(RESULTS);
    write::atomic(&path, format!("{document:#}\n").as_bytes())?;
    Ok(path)
}
