//! A finished run made again, or some of its steps, from its evidence alone: the same bits, or the
//! first step that differs.
//!
//! The run's ledger says what each step read and what came of it. [`Reproduction::of`] turns the
//! run's folder into a plan and the steps to compare; [`crate::training::train`] runs it as any
//! other, in a folder of its own, and stops at the first difference. The folder of the run is only
//! read. Its evidence must have been verified before.

use crate::error::RunError;
use crate::output::{OutputDir, Start as Folder};
use crate::plan::Plan;
use crate::resume::Resume;
use crate::training::ledger::{Expected, LEDGER_FILE};
use crate::training::{Outcome, Request};
use forgelm_artifact::hash::sha256_file;
use forgelm_artifact::open::{self, OpenError};
use forgelm_config::{Run, load_bytes};
use forgelm_evidence::bundle::COMPLIANCE_DIR;
use forgelm_train::checkpoint;
use forgelm_train::ledger::{self, Entry, Start};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The config of a run, among its documents.
const CONFIG: &str = "config.json";

/// Largest file that is read whole.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Sections that decide no weights and speak of the world in which the run was made.
const LEFT_OUT: [&str; 8] = [
    "auth",
    "compliance",
    "evaluation",
    "monitoring",
    "retention",
    "risk_assessment",
    "signing",
    "webhook",
];

/// Files of a model's folder that say when and by whom it was made.
const OF_THE_RUN: [&str; 4] =
    ["README.md", "deployer_instructions.md", "model.sig", "model_integrity.json"];

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReproduceRequest {
    /// The run's folder.
    pub run: PathBuf,
    /// Where the reproduction goes: a folder that is empty or not there.
    pub output: PathBuf,
    /// First and last step, counted from 1; none for all of them.
    pub steps: Option<RangeInclusive<u64>>,
    /// Where the base model is, when not where the config says.
    pub model: Option<String>,
    /// Where the data is, when not where the config says.
    pub data: Option<String>,
    /// No network.
    pub offline: bool,
}

/// A run that is ready to be made again.
#[derive(Clone, Debug)]
pub struct Reproduction {
    /// What runs.
    pub plan: Plan,
    /// What it is compared with.
    pub request: Request,
    steps: RangeInclusive<u64>,
    /// The checkpoint that the steps follow.
    after_step: u64,
    model_files: BTreeMap<String, String>,
}

/// A run that came out the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Same {
    /// The steps that were compared.
    pub steps: RangeInclusive<u64>,
    /// Files of the tuned model that were compared; none when it was not made again.
    pub model_files: Vec<String>,
}

impl Reproduction {
    /// From the folder of a run.
    ///
    /// # Errors
    /// If the run has no ledger or config, its ledger does not hold, or there are no such steps.
    pub fn of(request: &ReproduceRequest) -> Result<Self, RunError> {
        let path = request.run.join(LEDGER_FILE);
        let text = text_of(&path)?;
        let refused = |text: String| RunError::NotReproducible(text);
        let entries = ledger::read(&text)
            .map_err(|error| refused(format!("`{}`: {error}", path.display())))?;
        let n_done = entries.last().map_or(0, Entry::step);
        let first = entries.first().map_or(0, Entry::step) + 1;
        let steps = request.steps.clone().unwrap_or(first..=n_done);
        let (from, to) = (*steps.start(), *steps.end());
        if from < first || to > n_done || from > to {
            return Err(refused(format!(
                "steps {from}-{to} were asked for, and the ledger has {first}-{n_done}"
            )));
        }
        let (from_checkpoint, start) = begin(&request.run, &entries, from)?;
        let compared = entries.iter().filter(|entry| match entry {
            Entry::Step(step) => step.step > start.after_step && step.step <= to,
            // The one before step 1 belongs to a run from the beginning.
            Entry::Evaluation(evaluation) => {
                let is_after = evaluation.step > start.after_step || start.after_step == 0;
                is_after && evaluation.step <= to
            }
            Entry::Start(_) | Entry::Checkpoint(_) => false,
        });
        let plan = plan_of(request)?;
        let mut model_files = model_files(&request.run)?;
        if request.model.is_some() {
            // What describes an adapter names the base as the run's config did.
            model_files.retain(|name, _| name.ends_with(".safetensors"));
        }
        let expected = Expected {
            entries: compared.cloned().collect(),
            is_same_config: request.model.is_none() && request.data.is_none(),
            ends_there: to < n_done,
            start: start.clone(),
        };
        Ok(Self {
            plan,
            after_step: start.after_step,
            steps,
            model_files,
            request: Request {
                resume: from_checkpoint.map_or(Resume::No, Resume::From),
                // What must be the same is compared by its digest, more strictly.
                force_resume: true,
                offline: request.offline,
                strict_compliance: false,
                pipeline_run_id: None,
                expected: Some(expected),
            },
        })
    }

    /// The kernels of the run.
    #[must_use]
    pub fn kernels(&self) -> &str {
        self.request.expected.as_ref().map_or("", |expected| &expected.start.kernels)
    }

    /// What will be made again, for a person.
    #[must_use]
    pub fn to_text(&self) -> String {
        let (from, to) = (self.steps.start(), self.steps.end());
        match self.after_step {
            0 => format!("steps 1 to {to} are made again from the base model"),
            after if after + 1 == *from => {
                format!("steps {from} to {to} are made again from the checkpoint of step {after}")
            }
            after => format!(
                "steps {} to {to} are made again: the checkpoint before step {from} is that of \
                 step {after}",
                after + 1
            ),
        }
    }

    /// The last comparison, once the steps are done: the files of the tuned model, where it was made
    /// again.
    ///
    /// # Errors
    /// If a file differs or cannot be read, or the run was interrupted.
    pub fn finish(&self, outcome: &Outcome) -> Result<Same, RunError> {
        let made = match outcome {
            Outcome::Compared { .. } => None,
            Outcome::Completed(completed) | Outcome::Staged(completed) => {
                Some(&completed.final_model)
            }
            // Gates are left out of a reproduction.
            Outcome::Reverted(_) => None,
            Outcome::Interrupted { step, .. } => {
                let text = format!("interrupted after step {step}, all of them the same so far");
                return Err(RunError::NotReproducible(text));
            }
            Outcome::AlreadyComplete { .. }
            | Outcome::AlreadyRejected { .. }
            | Outcome::AlreadyReverted { .. }
            | Outcome::Waiting { .. } => {
                let text = "the output folder has a run already".to_owned();
                return Err(RunError::NotReproducible(text));
            }
        };
        let mut compared = Vec::new();
        for (name, then) in made.iter().flat_map(|_| &self.model_files) {
            let path = made.map(|dir| dir.join(name)).unwrap_or_default();
            let now = sha256_file(&path)?.as_str().to_owned();
            if now != *then {
                return Err(RunError::DivergedFile { path, then: then.clone(), now });
            }
            compared.push(name.clone());
        }
        Ok(Same { steps: self.steps.clone(), model_files: compared })
    }
}

impl Same {
    /// For a person.
    #[must_use]
    pub fn to_text(&self) -> String {
        let (from, to) = (self.steps.start(), self.steps.end());
        let files = match self.model_files.as_slice() {
            [] => String::new(),
            files => format!("; the tuned model is the same: {}", files.join(", ")),
        };
        format!("OK: steps {from} to {to} came out the same, bit for bit{files}")
    }

    /// For a program.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "success": true,
            "first_step": self.steps.start(),
            "last_step": self.steps.end(),
            "model_files": self.model_files,
        })
    }
}

/// The newest checkpoint before a step whose moments are those of the ledger, and what its steps are
/// made from; without one, the beginning.
fn begin(run: &Path, entries: &[Entry], first: u64) -> Result<(Option<PathBuf>, Start), RunError> {
    let before = entries.iter().filter(|entry| entry.step() < first);
    let saved = before.filter_map(|entry| match entry {
        Entry::Checkpoint(saved) if saved.step > 0 => Some(saved),
        Entry::Start(_) | Entry::Step(_) | Entry::Evaluation(_) | Entry::Checkpoint(_) => None,
    });
    for saved in saved.collect::<Vec<_>>().into_iter().rev() {
        let path = checkpoint::path(run, saved.step);
        let is_there = path.is_dir()
            && checkpoint::verify(&path).is_ok()
            && checkpoint::optimizer_sha256(&path)? == saved.optimizer_sha256;
        let weights = entries.iter().find_map(|entry| match entry {
            Entry::Step(step) if step.step == saved.step => Some(&step.weights_sha256),
            _ => None,
        });
        let start = entries.iter().rev().find_map(|entry| match entry {
            Entry::Start(start) if start.after_step < first => Some(start),
            _ => None,
        });
        if let (true, Some(weights), Some(start)) = (is_there, weights, start) {
            let weights_sha256 = weights.clone();
            let start = Start { after_step: saved.step, weights_sha256, ..start.clone() };
            return Ok((Some(path), start));
        }
    }
    match entries.first() {
        Some(Entry::Start(start)) if start.after_step == 0 => Ok((None, start.clone())),
        _ => Err(RunError::NotReproducible(format!(
            "the ledger does not begin with step 1, and there is no checkpoint before step {first}"
        ))),
    }
}

/// The run's config, for a run in another folder that tells nobody.
fn plan_of(request: &ReproduceRequest) -> Result<Plan, RunError> {
    let name = request.run.join(COMPLIANCE_DIR).join(CONFIG).display().to_string();
    let mut config = document(&request.run, CONFIG)?;
    let output = request.output.display().to_string();
    if let Some(sections) = config.as_object_mut() {
        for section in LEFT_OUT {
            sections.shift_remove(section);
        }
    }
    let nobody = "none".to_owned();
    for (section, key, value) in [
        ("training", "output_dir", Some(&output)),
        ("training", "report_to", Some(&nobody)),
        ("model", "name_or_path", request.model.as_ref()),
        ("data", "dataset_name_or_path", request.data.as_ref()),
    ] {
        if let (Some(value), Some(values)) = (value, config[section].as_object_mut()) {
            values.insert(key.to_owned(), json!(value));
        }
    }
    // What processes share out decides no bit, and its file may be gone.
    if let Some(values) = config.get_mut("distributed").and_then(Value::as_object_mut) {
        values.shift_remove("deepspeed_config");
    }
    let bytes = config.to_string().into_bytes();
    let mut plan = Plan::of_loaded(load_bytes(&bytes, &name).map_err(RunError::Config)?, &name)?;
    // The run was told of them.
    plan.warnings.clear();
    OutputDir::check(&plan.output, &[&request.run], Folder::Fresh)?;
    Ok(plan)
}

/// What the run says of the files of its model.
fn model_files(run: &Path) -> Result<BTreeMap<String, String>, RunError> {
    let config = document(run, CONFIG)?;
    let folder = config["training"]["final_model_dir"].as_str().unwrap_or("final_model");
    let staged = id_of(run).map(|run_id| format!("{folder}.staging.{run_id}"));
    let mut places = [Some(folder.to_owned()), staged].into_iter().flatten();
    let path = places.find_map(|folder| {
        Some(run.join(folder).join("model_integrity.json")).filter(|path| path.exists())
    });
    // Where a gate took the model back there is none.
    let Some(path) = path else { return Ok(BTreeMap::new()) };
    let record: Value = serde_json::from_str(&text_of(&path)?)
        .map_err(|error| RunError::NotReproducible(format!("`{}`: {error}", path.display())))?;
    let files = record["artifacts"].as_array().into_iter().flatten();
    let file = |entry: &Value| {
        let name = entry["file"].as_str().filter(|name| !OF_THE_RUN.contains(name))?;
        Some((name.to_owned(), entry["sha256"].as_str()?.to_owned()))
    };
    Ok(files.filter_map(file).collect())
}

/// The run's id, as its report says.
fn id_of(run: &Path) -> Option<String> {
    let report = document(run, "compliance_report.json").ok()?;
    report["run_id"].as_str().map(str::to_owned)
}

/// A document of a run.
///
/// # Errors
/// If it cannot be read, or is no JSON.
pub(crate) fn document(run: &Path, name: &str) -> Result<Value, RunError> {
    let path = run.join(COMPLIANCE_DIR).join(name);
    serde_json::from_str(&text_of(&path)?)
        .map_err(|error| RunError::NotReproducible(format!("`{}`: {error}", path.display())))
}

/// The config that a run left.
///
/// # Errors
/// If it cannot be read, or is none.
pub(crate) fn config_of(run: &Path) -> Result<Run, RunError> {
    let path = run.join(COMPLIANCE_DIR).join(CONFIG);
    let text = text_of(&path)?;
    let loaded = load_bytes(text.as_bytes(), &path.display().to_string());
    loaded.map(|loaded| loaded.run).map_err(RunError::Config)
}

fn text_of(path: &Path) -> Result<String, RunError> {
    let (file, metadata) = open::regular(path)?;
    let n_bytes = metadata.len();
    let refused = |text: String| RunError::NotReproducible(format!("`{}` {text}", path.display()));
    if n_bytes > FILE_BYTES_MAX {
        return Err(refused(format!("has {n_bytes} bytes; at most {FILE_BYTES_MAX} are read")));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    String::from_utf8(bytes).map_err(|_| refused("is not UTF-8".to_owned()))
}
