//! Rules between fields: conflicts are errors, doubtful combinations are warnings. A rule is
//! silent when one of its keys already has a problem of its own. Rules also settle what one key
//! says about another: forwarded names, switches that another key turns on.

mod engine;
mod gates;
mod monitoring;
mod pipeline;
mod retention;

use crate::diagnostic::{Code, Diagnostic};
use crate::read::Written;
use crate::run::Run;
use crate::section::{Data, Evaluation, Lora, Model, Training};

/// Checks a run and settles what follows from its keys. `problems` are those already known.
pub fn check(run: &mut Run, written: &Written, problems: &[Diagnostic]) -> Vec<Diagnostic> {
    let broken: Vec<&str> = problems.iter().map(|d| d.key.as_str()).collect();
    let mut findings = Findings { written, broken: &broken, found: Vec::new() };
    settle(run, &mut findings);
    let root = Scope::root(run);
    if run.pipeline.is_some() {
        pipeline::check(run, &root, &mut findings);
    } else {
        engine::check(&root, run, &mut findings);
        gates::check_scope(&root, &mut findings);
    }
    gates::check_root(run, &mut findings);
    monitoring::check(run, &mut findings);
    retention::check_root(run, &mut findings);
    findings.found
}

/// The sections that make one training, and the paths under which they are written.
#[derive(Clone)]
struct Scope<'a> {
    model: (&'a Model, String),
    lora: (&'a Lora, String),
    training: (&'a Training, String),
    data: (&'a Data, String),
    evaluation: Option<(&'a Evaluation, String)>,
}

impl<'a> Scope<'a> {
    fn root(run: &'a Run) -> Self {
        Self {
            model: (&run.model, "model".to_owned()),
            lora: (&run.lora, "lora".to_owned()),
            training: (&run.training, "training".to_owned()),
            data: (&run.data, "data".to_owned()),
            evaluation: run.evaluation.as_ref().map(|e| (e, "evaluation".to_owned())),
        }
    }

    fn in_model(&self, key: &str) -> String {
        format!("{}.{key}", self.model.1)
    }
    fn in_lora(&self, key: &str) -> String {
        format!("{}.{key}", self.lora.1)
    }
    fn in_training(&self, key: &str) -> String {
        format!("{}.{key}", self.training.1)
    }
    fn in_data(&self, key: &str) -> String {
        format!("{}.{key}", self.data.1)
    }
}

/// Collects what the rules find.
struct Findings<'a> {
    written: &'a Written,
    broken: &'a [&'a str],
    found: Vec<Diagnostic>,
}

impl Findings<'_> {
    /// Adds a finding about these keys, placed at the first of them that is written; the message
    /// may use [`Self::at`] for the others.
    fn add(&mut self, keys: &[&str], finding: Diagnostic) {
        let related = |a: &str, b: &str| a == b || a.starts_with(&format!("{b}."));
        let known = self.broken.iter().any(|b| keys.iter().any(|k| related(b, k) || related(k, b)));
        if known || self.found.iter().any(|f| f.key == finding.key && f.message == finding.message)
        {
            return;
        }
        let place = keys.iter().find_map(|key| self.written.place(key));
        self.found.push(finding.at(place));
    }

    fn error(&mut self, code: Code, keys: &[&str], message: String, hint: &str) {
        self.add(keys, Diagnostic::error(code, keys[0], message).hint(hint));
    }

    fn warn(&mut self, code: Code, keys: &[&str], message: String) {
        self.add(keys, Diagnostic::warning(code, keys[0], message));
    }

    fn note(&mut self, keys: &[&str], message: String) {
        self.add(keys, Diagnostic::note(Code::Doubtful, keys[0], message));
    }

    /// ` (line 12)` for a written key, and nothing for one that has its default.
    fn at(&self, key: &str) -> String {
        self.written.place(key).map_or_else(String::new, |p| format!(" (line {})", p.line))
    }
}

/// Settles keys that other keys decide.
fn settle(run: &mut Run, findings: &mut Findings<'_>) {
    settle_unwritten(run, findings);
    // GaLore trains matrices of the base, as its note says: there is no adapter.
    if run.training.galore_enabled {
        run.lora.enabled = false;
    }
    settle_staging_days(run, findings);
    let evaluations = run.evaluation.iter_mut().map(|e| ("evaluation".to_owned(), e));
    let stages = run.pipeline.iter_mut().flat_map(|p| p.stages.iter_mut().enumerate());
    let stages = stages.filter_map(|(i, stage)| {
        stage.evaluation.as_mut().map(|e| (format!("pipeline.stages[{i}].evaluation"), e))
    });
    for (path, evaluation) in evaluations.chain(stages) {
        gates::settle_categories(&path, evaluation, findings);
    }
    if let Some(webhook) = &run.webhook
        && webhook.url.as_deref().is_some_and(|url| !url.is_empty())
        && webhook.url_env.is_some()
    {
        let message = "`webhook.url` and `webhook.url_env` are both set; the variable counts \
                       where it is set";
        let keys = ["webhook.url_env", "webhook.url"];
        findings.warn(Code::Doubtful, &keys, message.to_owned());
    }
    if let Some(webhook) = run.webhook.as_mut().filter(|w| w.timeout < 1) {
        let message = format!("`webhook.timeout` is {}; 1 second is used", webhook.timeout);
        findings.warn(Code::OutOfRange, &["webhook.timeout"], message);
        webhook.timeout = 1;
    }
}

/// A default that is off where it is not written, and the record says so: 4-bit weights change the
/// result.
fn settle_unwritten(run: &mut Run, findings: &mut Findings<'_>) {
    let stages = run.pipeline.iter_mut().flat_map(|p| p.stages.iter_mut().enumerate());
    let mut models = vec![("model".to_owned(), &mut run.model)];
    for (i, stage) in stages {
        models.extend(stage.model.as_mut().map(|m| (format!("pipeline.stages[{i}].model"), m)));
    }
    for (path, model) in models {
        let key = format!("{path}.load_in_4bit");
        if !findings.written.contains(&key) {
            model.load_in_4bit = false;
            findings.note(
                &[&key],
                format!("`{key}` is not written and is off; `true` keeps frozen weights in 4 bits"),
            );
        }
    }
}

/// `evaluation.staging_ttl_days` is the old name of `retention.staging_ttl_days`.
fn settle_staging_days(run: &mut Run, findings: &mut Findings<'_>) {
    const OLD: &str = "evaluation.staging_ttl_days";
    const NEW: &str = "retention.staging_ttl_days";
    let Some(old) = run.evaluation.as_mut().and_then(|e| e.staging_ttl_days.take()) else {
        return;
    };
    let new = run.retention.as_ref().map(|r| r.staging_ttl_days);
    if findings.written.contains(NEW) && new != Some(old) {
        let message = format!(
            "Conflicting staging_ttl_days values: `{OLD}` is {old}, `{NEW}`{} is {}",
            findings.at(NEW),
            new.unwrap_or_default()
        );
        findings.error(Code::Conflict, &[OLD, NEW], message, "keep the one under `retention`");
        return;
    }
    run.retention.get_or_insert_with(Default::default).staging_ttl_days = old;
    let message = format!("`{OLD}` is deprecated; it is read as `{NEW}`");
    findings.add(
        &[OLD],
        Diagnostic::warning(Code::Deprecated, OLD, message)
            .hint("write it under `retention`; the old name goes away"),
    );
}
