//! `--benchmark-only MODEL`: the benchmarks of a config on a model that is there.

use super::ask::AskError;
use super::error::BenchmarkError;
use super::gate::{check_folder, write_results};
use super::suite::Suite;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, ModelLoaded, Observer};
use crate::exit::Exit;
use crate::gates;
use crate::model::{self, ModelRequest};
use crate::overrides::Overrides;
use crate::plan::Plan;
use crate::settings;
use crate::subject::{Language, Subject};
use forgelm_evidence::gate::{Verdict, judge};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What the benchmarks came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Benchmarked {
    /// As it was asked for.
    pub model_path: String,
    /// Each score by its name.
    pub scores: Map<String, Value>,
    /// Their mean; none where there is no score.
    pub average: Option<f64>,
    /// The verdict beside `evaluation.benchmark.min_score`.
    pub verdict: Verdict,
    /// A table for people.
    pub table: String,
    /// Where the results are.
    pub file: PathBuf,
}

impl Benchmarked {
    /// The exit code: 3 below the limit, 2 where the evidence does not suffice.
    #[must_use]
    pub fn exit(&self) -> Exit {
        gates::exit_of(&self.verdict)
    }

    /// The result. Where it is not passed, whoever prints it adds `error`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let has_passed = self.verdict.is_passed();
        let mut result = json!({
            "success": has_passed,
            "model_path": self.model_path,
            "benchmark": {
                "scores": self.scores,
                "average": self.average,
                "passed": has_passed,
            },
            "results_file": self.file,
        });
        if let Some(reason) = self.verdict.reason() {
            result["failure_reason"] = json!(reason);
        }
        result
    }
}

/// Asks a model the tasks of `evaluation.benchmark`, whether that gate is turned on or not.
///
/// # Errors
/// If there are no tasks, one of them, its rows or the model cannot be used, or the measurement fails.
pub fn benchmark_only(
    plan: &Plan,
    model_path: &Path,
    offline: bool,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Benchmarked, RunError> {
    let evaluation = plan.run.evaluation.as_ref();
    let section = evaluation.and_then(|evaluation| evaluation.benchmark.as_ref());
    let section = section.filter(|section| !section.tasks.is_empty());
    let section = section.ok_or(BenchmarkError::NoTasks)?;
    for warning in &plan.warnings {
        observer.observe(&Event::Warning(warning.to_string()));
    }
    let suite = Suite::read(plan, section, offline, env, observer)?;
    check_folder(section.output_dir.as_deref())?;
    // The config's revision and template are those of the model that it trains.
    let request = ModelRequest {
        name: model_path.display().to_string(),
        revision: None,
        chat_template: None,
        overrides: Overrides::default(),
        ..model::request_of(plan, offline)
    };
    let found = model::find(&request, env, observer)?;
    let start = env.clock.monotonic();
    let (ops, compute) = model::kernels(&found.kernels, &request)?;
    // As training would hold it: in 4 bits where the config says so.
    let options = settings::load_options(&plan.run, compute);
    let loaded = model::load_with(&found, ops, options, None)?;
    let decoder = &loaded.decoder;
    observer.observe(&Event::ModelLoaded(ModelLoaded {
        name: request.name.clone(),
        n_params: decoder.config().n_parameters() as u64,
        n_trainable: 0,
        kernels: decoder.ops().name().to_owned(),
        compute_dtype: model::compute_name(decoder.compute()),
        n_threads: decoder.ops().n_threads(),
        seconds: (env.clock.monotonic() - start).as_secs_f64(),
    }));
    let stop_ids = model::stop_ids(&found.tokenizer, found.template.as_ref());
    let subject = Subject {
        decoder,
        adapter: loaded.adapter.as_ref(),
        language: Language {
            tokenizer: &found.tokenizer,
            template: found.template.as_ref(),
            template_now: env.clock.utc().0.div_euclid(1_000_000),
            stop_ids: &stop_ids,
        },
        is_stopped: &|| env.stop_requested(),
    };
    let report = suite.measure(&subject, observer).map_err(|error| match error {
        AskError::Stopped => BenchmarkError::Stopped,
        AskError::NoRoom(reason) => BenchmarkError::NoRoom { reason },
        AskError::Row { .. } => BenchmarkError::NotMeasured { reason: error.to_string() },
    })?;
    let policy = gates::policy(evaluation);
    let verdict = judge(&report.measurement(section.min_score, policy), policy);
    let mut document = report.document(section, &suite.origins, verdict.is_passed());
    document["model"] = json!({
        "path": request.name,
        "sha256": loaded.sha256,
        "revision": found.resolved.revision.revision_resolved,
        "compute_dtype": model::compute_name(decoder.compute()),
    });
    let folder = match &section.output_dir {
        Some(dir) => PathBuf::from(dir),
        None => model_path.parent().unwrap_or(Path::new("")).join("benchmark"),
    };
    let file = write_results(&folder, &document)?;
    Ok(Benchmarked {
        model_path: request.name.clone(),
        scores: report.scores().into_iter().map(|(name, score)| (name, json!(score))).collect(),
        average: report.average(),
        verdict,
        table: report.to_text(),
        file,
    })
}
