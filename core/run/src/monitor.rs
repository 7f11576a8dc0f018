//! `forgelm monitor`: whether a finished model scores fresh rows as it scored the rows that its run
//! held out.
//!
//! The run's evidence is verified first, since a baseline that somebody changed would hide what is
//! looked for. Every comparison is a line of the run's audit log, and on drift a notice to the
//! webhook. Start reading at [`Watch::open`] and [`Watch::check`].

mod baseline;
mod drift;

pub use drift::{Comparison, Interval, ROWS_MIN, Sample, Verdict};

pub(crate) use baseline::{document, row_losses};

use crate::data;
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::exit::Exit;
use crate::model::{self, FoundModel, LoadedModel, ModelRequest};
use crate::outbound::{END_WAIT, Hook};
use crate::output::OutputDir;
use crate::plan::Plan;
use crate::settings;
use crate::subject::{Language, Subject};
use baseline::Baseline;
use forgelm_config::Run;
use forgelm_data::fingerprint;
use forgelm_evidence::Class;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::{AuditIdentity, AuditLog};
use forgelm_evidence::bundle::COMPLIANCE_DIR;
use forgelm_evidence::bundle::verify::{BundleOptions, verify_bundle};
use forgelm_evidence::documents::MONITORING_BASELINE;
use forgelm_evidence::keys::trust::TrustedKeys;
use forgelm_hub::Source;
use forgelm_model::LoadOptions;
use forgelm_outbound::notice::Notice;
use forgelm_sdk::Failed;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A baseline is a few kilobytes.
const BASELINE_BYTES_MAX: u64 = 1 << 20;
/// How often a wait looks whether it should end.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is watched.
pub struct MonitorRequest {
    /// The folder of a finished run.
    pub run: PathBuf,
    /// The fresh rows, in the layout of the run's data.
    pub data: PathBuf,
    /// A config whose `webhook` and `monitoring` count, if any.
    pub config: Option<PathBuf>,
    /// Whose signatures are accepted.
    pub keys: TrustedKeys,
    /// A run without signatures is accepted.
    pub allow_unsigned: bool,
    /// No network.
    pub offline: bool,
}

/// Why nothing can be compared.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The evidence is not accepted.
    #[error(
        "the evidence of the run is not accepted, so nothing is compared with it\n{}\n  hint: `--key` \
         names the public key that signed it", .lines.join("\n")
    )]
    Evidence {
        /// What was found.
        lines: Vec<String>,
        /// Of which kind.
        class: Class,
    },
    /// There is no baseline.
    #[error(
        "{}: no such file: the run recorded no baseline\n  hint: a run records one where \
         `monitoring.enabled` is true and `data.validation_split` or a split of the data holds rows out",
        .path.display()
    )]
    NoBaseline {
        /// The document.
        path: PathBuf,
    },
    /// It cannot be understood.
    #[error("{}: not a baseline: {problem}", .path.display())]
    NotABaseline {
        /// The document.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The rows were not scored.
    #[error("the rows were not scored: {0}")]
    Score(#[source] Failed),
}

impl MonitorError {
    /// The exit code that it leads to.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Evidence { class: Class::Different, .. } => Exit::Integrity,
            Self::Evidence { class: Class::Unreadable, .. } | Self::Score(_) => Exit::Runtime,
            Self::Evidence { .. } | Self::NoBaseline { .. } | Self::NotABaseline { .. } => {
                Exit::Config
            }
        }
    }
}

/// A model in memory, and what it is compared with.
pub struct Watch<'a> {
    env: &'a Environment,
    root: PathBuf,
    offline: bool,
    baseline: Baseline,
    plan: Plan,
    found: FoundModel,
    loaded: LoadedModel,
    /// Whose webhook is told.
    told: Option<Run>,
    every: Duration,
}

/// A comparison that is recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// The run.
    pub run_id: String,
    /// What was found.
    pub comparison: Comparison,
    /// SHA-256 over the digests of the files of fresh rows.
    pub data_sha256: String,
}

impl<'a> Watch<'a> {
    /// Verifies the run's evidence, reads its baseline, and loads its model.
    ///
    /// # Errors
    /// If the evidence is not accepted, there is no baseline, or the model cannot be loaded.
    pub fn open(
        request: &MonitorRequest,
        env: &'a Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        verify(request, env, observer)?;
        let baseline = read_baseline(&request.run)?;
        let told = request.config.as_deref().map(crate::plan::read_config).transpose()?;
        let told = told.map(|loaded| loaded.run);
        let hours = told.as_ref().and_then(|run| run.monitoring.as_ref());
        let hours = hours.map_or(baseline.check_interval_hours, |m| m.check_interval_hours);
        let plan = plan_of(request, &baseline)?;
        let training = &plan.run.training;
        let offline = request.offline || plan.run.model.offline;
        let model_request = ModelRequest {
            offline,
            compute: training.compute_dtype,
            device: model::device_of(&plan.run),
            threads: training.threads,
            chat_template: plan.run.model.chat_template.clone(),
            ..ModelRequest::named(plan.output.final_model().display().to_string())
        };
        let found = model::find(&model_request, env, observer)?;
        let (ops, compute) = model::kernels(&found.kernels, &model_request)?;
        // An adapter was measured over the base as it was held then.
        let options = match &found.adapter {
            Some(_) => settings::load_options(&plan.run, compute),
            None => LoadOptions::dense(compute),
        };
        let loaded = model::load_with(&found, ops, options, None)?;
        Ok(Self {
            env,
            root: request.run.clone(),
            offline,
            baseline,
            plan,
            found,
            loaded,
            told,
            every: Duration::from_secs(hours.saturating_mul(3600)),
        })
    }

    /// Scores the fresh rows as they are now, compares, records, and tells the webhook of drift.
    ///
    /// # Errors
    /// If the rows cannot be read or scored, or the comparison cannot be recorded.
    pub fn check(&self, observer: &mut dyn Observer) -> Result<Checked, RunError> {
        let sources = data::find(&self.plan, self.offline, self.env, observer)?;
        let (now, env) = (self.baseline.template_now, self.env);
        let prepared = data::prepare(&self.plan, &sources, &self.found, now, env)?;
        let language = Language {
            tokenizer: &self.found.tokenizer,
            template: self.found.template.as_ref(),
            template_now: now,
            stop_ids: &[],
        };
        let subject = Subject {
            decoder: &self.loaded.decoder,
            adapter: self.loaded.adapter.as_ref(),
            language,
            is_stopped: &|| env.stop_requested(),
        };
        let mut losses = Vec::new();
        for rows in [&prepared.train, &prepared.validation] {
            losses.extend(row_losses(subject, rows)?);
        }
        let checked = Checked {
            run_id: self.baseline.run_id.clone(),
            comparison: Comparison::new(
                self.baseline.held_out,
                Sample::of(&losses),
                self.baseline.confidence,
            ),
            data_sha256: fingerprint(&prepared.files.concat()).as_str().to_owned(),
        };
        self.record(&checked)?;
        if checked.comparison.verdict() == Verdict::Drift {
            self.alert(&checked, observer)?;
        }
        Ok(checked)
    }

    /// Waits until the next check is due; false when it was asked to stop meanwhile.
    #[must_use]
    pub fn wait(&self) -> bool {
        let start = self.env.clock.monotonic();
        while self.env.clock.monotonic().saturating_sub(start) < self.every {
            if self.env.stop_requested() {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        !self.env.stop_requested()
    }

    fn record(&self, checked: &Checked) -> Result<(), RunError> {
        let identity = AuditIdentity {
            run_id: self.baseline.run_id.clone(),
            operator: dossier::operator(self.env)?,
            secret: self.env.audit_secret.as_ref().and_then(dossier::to_evidence),
            allow_reroot: false,
        };
        let mut audit = AuditLog::open(&self.root, identity, self.env.clock.clone())?;
        let Comparison { baseline, fresh, confidence, interval } = checked.comparison;
        audit.append(&AuditEvent::MonitoringCheckCompleted {
            verdict: checked.comparison.verdict().as_str().to_owned(),
            baseline_rows: baseline.n_rows,
            baseline_mean: baseline.mean,
            fresh_rows: fresh.n_rows,
            fresh_mean: fresh.mean,
            difference: checked.comparison.difference(),
            interval_low: interval.map(|interval| interval.low),
            interval_high: interval.map(|interval| interval.high),
            confidence,
            data_sha256: checked.data_sha256.clone(),
        })?;
        Ok(())
    }

    fn alert(&self, checked: &Checked, observer: &mut dyn Observer) -> Result<(), RunError> {
        let offline = self.offline || self.env.offline;
        let told = self.told.as_ref();
        let is_wanted = told.and_then(|run| run.monitoring.as_ref());
        if !is_wanted.map_or(self.baseline.alert_on_drift, |m| m.alert_on_drift) {
            return Ok(());
        }
        let hook = match told {
            Some(run) => Hook::of_run(run, offline, self.env, observer)?,
            None => None,
        };
        let Some(mut hook) = hook else {
            let text = "nobody is told of the drift: `--config` names the config with the webhook";
            observer.observe(&Event::Warning(text.to_owned()));
            return Ok(());
        };
        hook.of_finished(&checked.run_id);
        if hook.signs() {
            let key = dossier::key_by_default(None, self.env, observer)?;
            hook.sign_with(key.as_ref());
        }
        hook.tell(&Notice::Drifted { reason: checked.sentence(), metrics: checked.numbers() });
        for failure in hook.finish(END_WAIT) {
            let text = format!(
                "webhook {}: `{}` was not delivered: {}",
                failure.destination, failure.label, failure.reason
            );
            observer.observe(&Event::Warning(text));
        }
        Ok(())
    }
}

/// Nothing is compared with what may have been changed.
fn verify(
    request: &MonitorRequest,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<(), RunError> {
    let secret = env.audit_secret.as_ref().and_then(dossier::to_evidence);
    let report = verify_bundle(
        &request.run,
        &BundleOptions {
            keys: request.keys.clone(),
            secret: secret.as_ref(),
            require_hmac: false,
            weights_left_out: false,
            moved: None,
            allow_unsigned: request.allow_unsigned,
        },
    );
    if report.class != Class::Accepted {
        let (lines, class) = (report.to_lines(), report.class);
        return Err(MonitorError::Evidence { lines, class }.into());
    }
    for note in &report.notes {
        observer.observe(&Event::Warning(note.clone()));
    }
    Ok(())
}

fn read_baseline(run: &Path) -> Result<Baseline, RunError> {
    let path = run.join(COMPLIANCE_DIR).join(MONITORING_BASELINE);
    if !path.exists() {
        return Err(MonitorError::NoBaseline { path }.into());
    }
    let (file, _) = forgelm_artifact::open::regular(&path)?;
    let mut text = String::new();
    file.take(BASELINE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|source| forgelm_artifact::open::OpenError::Io { path: path.clone(), source })?;
    Baseline::parse(&text).map_err(|problem| MonitorError::NotABaseline { path, problem }.into())
}

/// The run's config with the fresh rows for its data, and the folder as it is now.
fn plan_of(request: &MonitorRequest, baseline: &Baseline) -> Result<Plan, RunError> {
    let mut run = baseline.run.clone();
    run.data.dataset_name_or_path = request.data.display().to_string();
    run.data.extra_datasets = None;
    run.data.mix_ratio = None;
    let root = request.run.display().to_string();
    let output = OutputDir::new(&root, &run.training.final_model_dir);
    let source = Source::parse(&output.final_model().display().to_string())?;
    Ok(Plan {
        run,
        warnings: Vec::new(),
        config_hash: String::new(),
        source,
        output,
        deepspeed: None,
    })
}

impl Checked {
    /// The numbers in a sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Comparison { baseline, fresh, confidence, interval } = &self.comparison;
        let means = format!(
            "mean loss {:.4} on {} fresh rows, {:.4} on {} held-out rows",
            fresh.mean, fresh.n_rows, baseline.mean, baseline.n_rows
        );
        match interval {
            None => format!("{means}; at least {ROWS_MIN} of each are needed"),
            Some(Interval { low, high, .. }) => format!(
                "{means}: a difference of {:+.4}, with {} % confidence from {low:+.4} to {high:+.4}",
                self.comparison.difference(),
                // 0.99 is 99, not 99.00000000000001
                format!("{:.4}", 100.0 * confidence).trim_end_matches('0').trim_end_matches('.'),
            ),
        }
    }

    fn numbers(&self) -> BTreeMap<String, f64> {
        let Comparison { baseline, fresh, confidence, interval } = &self.comparison;
        let mut numbers = BTreeMap::from([
            ("baseline_mean".to_owned(), baseline.mean),
            ("fresh_mean".to_owned(), fresh.mean),
            ("difference".to_owned(), self.comparison.difference()),
            ("confidence".to_owned(), *confidence),
        ]);
        if let Some(Interval { low, high, .. }) = interval {
            numbers.insert("interval_low".to_owned(), *low);
            numbers.insert("interval_high".to_owned(), *high);
        }
        numbers
    }

    /// The JSON result.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let Comparison { baseline, fresh, confidence, interval } = &self.comparison;
        let verdict = self.comparison.verdict();
        json!({
            "success": verdict == Verdict::NoDrift,
            "verdict": verdict.as_str(),
            "run_id": self.run_id,
            "baseline": baseline.to_json(),
            "fresh": fresh.to_json(),
            "difference": self.comparison.difference(),
            "confidence": confidence,
            "interval": interval.map(|interval| json!([interval.low, interval.high])),
            "degrees_of_freedom": interval.map(|interval| interval.degrees_of_freedom),
            "data_sha256": self.data_sha256,
        })
    }

    /// How one check ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self.comparison.verdict() {
            Verdict::NoDrift => Exit::Success,
            Verdict::Drift => Exit::Gate,
            Verdict::TooFewRows => Exit::Config,
        }
    }
}
