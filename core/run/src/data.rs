//! The data of a run: which files, as which tokens; and what a person may want to see of it.

use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::model::{self, FoundModel};
use crate::plan::Plan;
use crate::sample::Question;
use forgelm_config::TrainerType;
use forgelm_data::{
    DataProblem, PrepareRequest, Prepared, RenderSettings, Renderer, Sequences, SourceFiles,
    find_files, is_hub_id,
};
use forgelm_hub::{RevisionRecord, resolve_dataset};
use std::path::Path;

pub use forgelm_data::{LintReport, Piece, PreviewRow, PreviewSequence, Role};
pub use forgelm_tokenize::ControlFilter;

/// Records that are looked at for a question to ask.
const QUESTION_RECORDS_MAX: usize = 8;

/// The files of a run's data sets, all on this machine.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Of `dataset_name_or_path` and of each of `extra_datasets`.
    pub files: Vec<SourceFiles>,
    /// For those from a hub, which commit.
    pub revisions: Vec<Option<RevisionRecord>>,
}

/// Finds the data sets of a plan, fetching those of a hub when that is needed and allowed, and
/// looks at the first rows of each: a wrong file is better found before a model is fetched.
///
/// # Errors
/// If one cannot be found or fetched, or its first rows cannot be used.
pub fn find(
    plan: &Plan,
    offline: bool,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Sources, RunError> {
    let sources = find_unchecked(plan, offline, env, observer)?;
    for files in &sources.files {
        let trainer = plan.run.training.trainer_type;
        forgelm_data::check_first_rows(files, &plan.run.data, trainer)?;
    }
    Ok(sources)
}

fn find_unchecked(
    plan: &Plan,
    offline: bool,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Sources, RunError> {
    let data = &plan.run.data;
    let mut sources = Sources { files: Vec::new(), revisions: Vec::new() };
    let extras = data.extra_datasets.iter().flatten();
    for name in std::iter::once(&data.dataset_name_or_path).chain(extras) {
        let (files, revision) = if is_hub_id(name) {
            let mut options = env.hub_options();
            options.offline = offline || plan.run.model.offline || env.offline;
            let own = plan.run.auth.as_ref().and_then(|auth| auth.hf_token.clone());
            options.token = own.or_else(|| env.hub_token.clone());
            "dataset".clone_into(&mut options.role);
            let resolved =
                resolve_dataset(name, &options, &mut |event| model::report(event, observer))?;
            (find_files(name, &resolved.folder)?, Some(resolved.revision))
        } else {
            (find_files(name, Path::new(name))?, None)
        };
        sources.files.push(files);
        sources.revisions.push(revision);
    }
    Ok(sources)
}

/// The data sets of a plan as far as they lie on this machine; one of a hub has no files. Nothing is
/// fetched.
///
/// # Errors
/// If one cannot be found.
pub(crate) fn find_local(plan: &Plan) -> Result<Sources, RunError> {
    let data = &plan.run.data;
    let extras = data.extra_datasets.iter().flatten();
    let mut sources = Sources { files: Vec::new(), revisions: Vec::new() };
    for name in std::iter::once(&data.dataset_name_or_path).chain(extras) {
        sources.files.push(match is_hub_id(name) {
            true => SourceFiles { name: name.clone(), ..SourceFiles::default() },
            false => find_files(name, Path::new(name))?,
        });
        sources.revisions.push(None);
    }
    Ok(sources)
}

/// Looks at the first rows of the data sets of a plan that lie on this machine. Nothing is fetched.
///
/// # Errors
/// If one cannot be found, or its first rows cannot be used.
pub(crate) fn check_local(plan: &Plan) -> Result<(), RunError> {
    let trainer = plan.run.training.trainer_type;
    let sources = find_local(plan)?;
    for files in sources.files.iter().filter(|files| !files.train.is_empty()) {
        forgelm_data::check_first_rows(files, &plan.run.data, trainer)?;
    }
    Ok(())
}

/// How a plan renders rows.
fn render_settings(plan: &Plan, template_now: i64) -> RenderSettings {
    let run = &plan.run;
    let trainer = run.training.trainer_type;
    RenderSettings {
        max_length: run.model.max_length,
        train_on_all: run.data.train_on == forgelm_config::TrainOn::All,
        add_eos: run.data.add_eos,
        template_now: Some(template_now),
        bos_before_prompt: matches!(trainer, TrainerType::Simpo | TrainerType::Orpo),
        threads: run.training.threads.unwrap_or_else(model::all_cores),
    }
}

fn renderer<'t>(plan: &Plan, found: &'t FoundModel, template_now: i64) -> Renderer<'t> {
    let settings = render_settings(plan, template_now);
    Renderer::new(&found.tokenizer, found.template.as_ref(), settings)
}

fn request<'a>(plan: &'a Plan, sources: &'a Sources, env: &'a Environment) -> PrepareRequest<'a> {
    PrepareRequest {
        section: &plan.run.data,
        trainer: plan.run.training.trainer_type,
        sources: &sources.files,
        cache_dir: &env.cache_dir,
    }
}

/// Tokenizes, mixes and splits the data of a plan.
///
/// # Errors
/// All rows that cannot be used, or that the disk failed.
pub fn prepare(
    plan: &Plan,
    sources: &Sources,
    found: &FoundModel,
    template_now: i64,
    env: &Environment,
) -> Result<Prepared, RunError> {
    let renderer = renderer(plan, found, template_now);
    Ok(forgelm_data::prepare(&request(plan, sources, env), &renderer)?)
}

/// A question to ask before and after training: held out, if anything is.
///
/// # Errors
/// If a file cannot be read again.
pub fn question(plan: &Plan, prepared: &Prepared) -> Result<Option<Question>, RunError> {
    for sequences in [&prepared.validation, &prepared.train] {
        for unit in 0..sequences.len().min(QUESTION_RECORDS_MAX) {
            if let Some(question) = question_of(plan, sequences, unit)? {
                return Ok(Some(question));
            }
        }
    }
    Ok(None)
}

fn question_of(
    plan: &Plan,
    sequences: &Sequences,
    unit: usize,
) -> Result<Option<Question>, RunError> {
    let Some((file, line)) = sequences.origin(sequences.record(unit)) else { return Ok(None) };
    let trainer = plan.run.training.trainer_type;
    let record = forgelm_data::read_record(&file, line, &plan.run.data, trainer)?;
    Ok(Question::first(record.iter()))
}

/// Rows of the training data as the model will see them, and how rows become text.
///
/// # Errors
/// If data or model cannot be found or read.
pub fn preview(
    plan: &Plan,
    n: usize,
    offline: bool,
    template_now: i64,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Vec<Result<PreviewRow, DataProblem>>, RunError> {
    let sources = find_unchecked(plan, offline, env, observer)?;
    let found = model::find(&model::request_of(plan, offline), env, observer)?;
    let renderer = renderer(plan, &found, template_now);
    let trainer = plan.run.training.trainer_type;
    let files = sources.files.iter().flat_map(|source| source.train.iter().cloned());
    let files: Vec<_> = files.collect();
    Ok(forgelm_data::preview(&files, &plan.run.data, trainer, &renderer, n)?)
}

/// What is doubtful in the data of a plan. Nothing is written.
///
/// # Errors
/// If data or model cannot be found or read.
pub fn lint(
    plan: &Plan,
    offline: bool,
    template_now: i64,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<LintReport, RunError> {
    let sources = find_unchecked(plan, offline, env, observer)?;
    let found = model::find(&model::request_of(plan, offline), env, observer)?;
    let renderer = renderer(plan, &found, template_now);
    let report = forgelm_data::lint(&request(plan, &sources, env), &renderer)?;
    for source in &sources.files {
        for file in &source.left_out {
            let text = format!("{}: named after no split, and left out", file.display());
            observer.observe(&Event::Warning(text));
        }
    }
    Ok(report)
}
