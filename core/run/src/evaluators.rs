//! Evaluators of a run: made before anything starts, asked about the tuned model at its end.

mod examined;

use crate::error::RunError;
use crate::plan::Plan;
use crate::plugins::{self, Plugins, Used};
pub(crate) use examined::{Examined, memory_plan};
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_sdk::evaluator::{Evaluator, Report};
use serde_json::{Value, json};

/// An evaluator that the config names.
pub(crate) struct Chosen {
    pub(crate) evaluator: Box<dyn Evaluator>,
    pub(crate) used: Used,
    /// Its name; from the second of that name on, with a number.
    pub(crate) label: String,
}

/// What an evaluator found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    pub(crate) used: Used,
    pub(crate) label: String,
    pub(crate) report: Report,
}

/// Makes the evaluators of a plan, with their options.
///
/// # Errors
/// If there is none of a name, or an option cannot be used.
pub(crate) fn build(plan: &Plan, plugins: &Plugins) -> Result<Vec<Chosen>, RunError> {
    let named = plan.run.plugins.as_ref().map_or(&[][..], |plugins| &plugins.evaluators);
    let mut chosen: Vec<Chosen> = Vec::new();
    for named in named {
        let plugin = plugins.registry().evaluator(&named.name)?;
        let options = plugins::options("plugins.evaluators", &named.options)?;
        let (mut label, mut n) = (named.name.clone(), 1);
        while chosen.iter().any(|other| other.label == label) {
            n += 1;
            label = format!("{}_{n}", named.name);
        }
        let evaluator = (plugin.build)(&options)?;
        chosen.push(Chosen { evaluator, used: Used::of(plugin, &options), label });
    }
    Ok(chosen)
}

impl Evaluated {
    /// The numbers of the report; not those inside of lists and objects.
    fn scores(&self) -> impl Iterator<Item = (&String, f64)> {
        self.report.iter().filter_map(|(key, value)| Some((key, value.as_f64()?)))
    }

    /// The scores, by `LABEL/KEY`.
    pub(crate) fn metrics(&self) -> impl Iterator<Item = (String, f64)> {
        self.scores().map(|(key, score)| (format!("{}/{key}", self.label), score))
    }

    /// As the audit log has it.
    pub(crate) fn audit_event(&self) -> AuditEvent {
        let origin = self.used.origin();
        AuditEvent::EvaluatorCompleted {
            evaluator: self.used.name().to_owned(),
            label: self.label.clone(),
            library: origin.library.clone(),
            library_sha256: origin.sha256.clone(),
            scores: self.scores().map(|(key, score)| (key.clone(), score)).collect(),
        }
    }

    /// As the documents have it.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "name": self.used.name(),
            "label": self.label,
            "options": self.used.options_json(),
            "report": self.report,
        })
    }

    /// One line for a person.
    pub(crate) fn line(&self) -> String {
        let shown = |(key, value): (&String, &Value)| match value {
            Value::Number(number) if number.is_f64() => {
                Some(format!("{key} {:.4}", number.as_f64()?))
            }
            Value::Number(_) | Value::Bool(_) | Value::String(_) => Some(format!("{key} {value}")),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        };
        let found: Vec<String> = self.report.iter().filter_map(shown).collect();
        format!("{}: {}", self.label, found.join(", "))
    }
}
