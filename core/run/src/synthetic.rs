//! `forgelm --config FILE --generate-data`: rows of data that a teacher answers prompts for.
//!
//! **Invariants:** an answer is on the disk before the next prompt is asked, and what was answered (and
//! paid for) is never asked again, whenever the process is killed; rows of other settings are never
//! mixed with these, nor overwritten; of every row it is known which prompt, which teacher, and when.
//!
//! Start reading at [`generate`]; [`journal`] is what makes a start continue.

mod answers_file;
mod error;
mod journal;
mod local;
mod manifest;
mod row;
mod teacher;

pub use error::SyntheticError;

use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::outbound::api_contact;
use crate::plan::Plan;
use crate::prompt_rows::{OtherJson, PromptRows};
use answers_file::AnswersFile;
use forgelm_artifact::lock::RunLock;
use forgelm_artifact::write;
use forgelm_config::{Run, Synthetic, TeacherBackend};
use journal::{Answered, Journal, Places, Tried};
use manifest::{Counts, Manifest};
use std::path::{Path, PathBuf};
use teacher::{Ended, Teacher};

/// Errors that are told one by one.
const ERRORS_MAX: usize = 10;
/// Times that progress is told.
const N_NOTICES: usize = 10;

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Prompts.
    pub n_total: usize,
    /// Prompts that have a row.
    pub n_rows: usize,
    /// Rows that were there before.
    pub n_before: usize,
    /// Rows whose answer ended because it was too long.
    pub n_cut: usize,
    /// The first prompts that have none, and why.
    pub errors: Vec<String>,
    /// As configured.
    pub min_success_rate: f64,
    /// The rows.
    pub output_file: PathBuf,
    /// What is known of them, signed where a key signs.
    pub manifest: PathBuf,
    /// It took.
    pub seconds: f64,
}

impl Generated {
    /// The share of prompts that have a row.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "rows stay far below 2^53")]
    pub fn success_rate(&self) -> f64 {
        self.n_rows as f64 / self.n_total.max(1) as f64
    }

    /// Whether there are rows, and enough of them.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.n_rows > 0 && self.success_rate() >= self.min_success_rate
    }
}

/// The section of a run, where it is on.
fn section(run: &Run) -> Option<&Synthetic> {
    run.synthetic.as_ref().filter(|synthetic| synthetic.enabled)
}

/// What a plan says of it.
pub(crate) fn plan_line(run: &Run) -> Option<String> {
    let section = section(run)?;
    let teacher = match section.teacher_backend {
        TeacherBackend::Api => {
            let private = section.allow_private_destinations;
            let who = api_contact(&section.api_base, run.model.offline, private);
            let who = who.unwrap_or_else(|| "an API that may not be asked offline".to_owned());
            format!("`{}` at {who}", section.teacher_model)
        }
        TeacherBackend::Local => format!("`{}`", section.teacher_model),
        TeacherBackend::File => format!("the file {}", section.seed_file),
    };
    Some(format!("rows of {teacher} into {}, with --generate-data", section.output_file))
}

/// Generates the rows of a plan that are not there yet.
///
/// # Errors
/// Everything in [`RunError`]; rows that are there stay, and another start goes on after them.
pub fn generate(
    plan: &Plan,
    offline: bool,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Generated, RunError> {
    let (started_at, start) = (env.clock.utc(), env.clock.monotonic());
    let Some(section) = section(&plan.run) else { return Err(SyntheticError::Off.into()) };
    let offline = offline || plan.run.model.offline || env.offline;
    let (prompts, answers) = prompts(section, observer)?;
    let places = Places::of(Path::new(&section.output_file));
    check_places(section, &places)?;
    let operator = dossier::operator(env)?;
    let key = dossier::signing_key(plan, env, observer)?;
    let mut teacher = Teacher::find((plan, section), answers, offline, env, observer)?;
    teacher.load()?;

    let dir = places.rows.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    write::create_dir_all_durable(dir)?;
    let _lock = RunLock::acquire_as(dir, &places.lock_name(), "--generate-data", started_at)?;
    let identity = teacher.identity(plan, section);
    let keys = journal::keys(&identity, &prompts, |prompt| teacher.known(prompt));
    let wanted = journal::Wanted { prompts: &prompts, keys, format: section.output_format };
    let system = Some(section.system_prompt.as_str()).filter(|text| !text.is_empty());
    let journal = Journal::open(places.clone(), wanted, env.clock.as_ref(), observer)?;
    let mut journal = journal.with_system(system);
    let pending = journal.pending();
    let n_before = journal.n_answered();
    let text = format!(
        "{} prompts for {}: {} rows are there, {} are asked for",
        prompts.len(),
        teacher.shown(),
        n_before,
        pending.len()
    );
    observer.observe(&Event::Notice(text));

    let mut errors = Vec::new();
    if !pending.is_empty() {
        // It is of fewer rows, and says that a start has come to its end.
        manifest::remove(&places)?;
        errors = ask(&mut teacher, (&prompts, &pending), &mut journal, env, observer)?;
    }
    let counts =
        Counts { n_total: prompts.len(), n_rows: journal.n_answered(), n_cut: journal.n_cut() };
    let generated = Generated {
        n_total: counts.n_total,
        n_rows: counts.n_rows,
        n_before,
        n_cut: counts.n_cut,
        errors,
        min_success_rate: section.min_success_rate,
        output_file: places.rows.clone(),
        manifest: places.manifest.clone(),
        seconds: (env.clock.monotonic() - start).as_secs_f64(),
    };
    if !pending.is_empty() || !manifest::is_there(&places, key.as_ref()) {
        manifest::remove(&places)?;
        let manifest = Manifest { plan, places: &places, identity, counts, operator, started_at };
        manifest.write(key.as_ref(), env)?;
    }
    warn(section, &generated, observer);
    Ok(generated)
}

/// Asks for what is pending, and keeps each answer before the next is asked for.
fn ask(
    teacher: &mut Teacher,
    (prompts, pending): (&[String], &[usize]),
    journal: &mut Journal<'_>,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Vec<String>, RunError> {
    let every = pending.len().div_ceil(N_NOTICES).max(1);
    let (mut n_asked, mut errors) = (0, Vec::new());
    let is_stopped = || env.stop_requested();
    let unfinished = |n_rows: usize| (n_rows, prompts.len());
    for batch in pending.chunks(teacher.batch_size()) {
        let asked: Vec<(usize, &str)> =
            batch.iter().map(|&index| (index, prompts[index].as_str())).collect();
        let replies = if env.stop_requested() {
            Err(Ended::Stopped)
        } else {
            teacher.answer(&asked, &is_stopped)
        };
        let replies = replies.map_err(|ended| {
            let (n_rows, n_total) = unfinished(journal.n_answered());
            match ended {
                Ended::Stopped => SyntheticError::Stopped { n_rows, n_total },
                Ended::Because(reason) => SyntheticError::Ended { reason, n_rows, n_total },
            }
        })?;
        for (&index, reply) in batch.iter().zip(replies) {
            let failed = match reply {
                Ok(said) if said.text.trim().is_empty() => {
                    journal.keep_empty(index, Tried { by: teacher.name(), n: said.n_tries })?;
                    Some("empty response".to_owned())
                }
                Ok(said) => {
                    let tried = Tried { by: teacher.name(), n: said.n_tries };
                    let answered = Answered { text: &said.text, is_cut: said.is_cut };
                    journal.keep(index, answered, tried)?;
                    None
                }
                Err(why) => Some(why),
            };
            if let Some(why) = failed.filter(|_| errors.len() < ERRORS_MAX) {
                errors.push(format!("Prompt {}: {why}", index + 1));
            }
            n_asked += 1;
            if n_asked % every == 0 && n_asked < pending.len() {
                let text = format!("{n_asked} of {} prompts asked", pending.len());
                observer.observe(&Event::Notice(text));
            }
        }
    }
    Ok(errors)
}

/// The prompts, and the answers to them where they are in the same file.
fn prompts(
    section: &Synthetic,
    observer: &mut dyn Observer,
) -> Result<(Vec<String>, Option<AnswersFile>), RunError> {
    let path = Path::new(&section.seed_file);
    if section.teacher_backend == TeacherBackend::File {
        let answers = AnswersFile::read(path, observer)?;
        return Ok((answers.prompts(), Some(answers)));
    }
    let is_named = !section.seed_file.is_empty();
    if is_named && (path.exists() || section.seed_prompts.is_empty()) {
        let key = ("synthetic.seed_file", path);
        let rows = PromptRows::read(key, OtherJson::Text, observer)?;
        if !section.seed_prompts.is_empty() {
            let text = "`synthetic.seed_prompts` has no effect: `synthetic.seed_file` is there";
            observer.observe(&Event::Warning(text.to_owned()));
        }
        return Ok((rows.prompts, None));
    }
    if is_named {
        let text = format!("{} is not there: `synthetic.seed_prompts` are asked", path.display());
        observer.observe(&Event::Warning(text));
    }
    let prompts = section.seed_prompts.iter().filter(|prompt| !prompt.trim().is_empty());
    let prompts: Vec<String> = prompts.cloned().collect();
    match prompts.is_empty() {
        true => Err(SyntheticError::NoPrompts.into()),
        false => Ok((prompts, None)),
    }
}

/// What is written is not what is read.
fn check_places(section: &Synthetic, places: &Places) -> Result<(), SyntheticError> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let seed = real(Path::new(&section.seed_file));
    let written = [&places.rows, &places.provenance, &places.manifest];
    match written.into_iter().any(|path| real(path) == seed) {
        true => Err(SyntheticError::SameFile { path: seed }),
        false => Ok(()),
    }
}

fn warn(section: &Synthetic, generated: &Generated, observer: &mut dyn Observer) {
    if 1.0 - generated.success_rate() > section.sanity_failure_rate {
        let text = format!(
            "{} of {} prompts have no row, more than `synthetic.sanity_failure_rate` {}",
            generated.n_total - generated.n_rows,
            generated.n_total,
            section.sanity_failure_rate
        );
        observer.observe(&Event::Warning(text));
    }
    if generated.n_cut > 0 {
        let text = format!(
            "{} answers were cut off at `synthetic.max_new_tokens`; the provenance says which",
            generated.n_cut
        );
        observer.observe(&Event::Warning(text));
    }
}
