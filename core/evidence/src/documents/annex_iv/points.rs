//! The points of Annex IV for one run: what people answered, what the run knows, and what shows it.

use serde_json::{Map, Value, json};

use super::Surroundings;
use super::answers::{Answers, lacking};
use super::changes::changes;
use super::requirements::{INSTRUCTIONS, Need, REQUIREMENTS, Requirement};
use crate::audit::LOG_FILE;
use crate::bundle::COMPLIANCE_DIR;
use crate::documents::croissant::CROISSANT;
use crate::documents::cyclonedx::MLBOM;
use crate::documents::evidence::Evidence;
use crate::documents::instructions::INSTRUCTIONS_FILE;
use crate::documents::report::{gates, model_lineage, object};
use crate::integrity::INTEGRITY_FILE;

/// How a sub-point is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Something is missing.
    NotProvided,
    /// Somebody says so, and nothing shows it.
    Statement,
    /// Files or events show it.
    Evidence,
}

impl Status {
    /// The word in documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotProvided => "not_provided",
            Self::Statement => "statement",
            Self::Evidence => "evidence",
        }
    }

    /// The status of a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::NotProvided, Self::Statement, Self::Evidence]
            .into_iter()
            .find(|status| status.as_str() == word)
    }
}

/// Every sub-point by its number; `document` is what stands beside them.
pub(super) fn points(
    evidence: &Evidence,
    given: &Answers,
    around: &Surroundings,
    document: &Map<String, Value>,
) -> Value {
    let run = Run { evidence, given, around, document };
    let rows = REQUIREMENTS.iter().map(|asked| (asked.point.to_owned(), run.point(asked)));
    Value::Object(rows.collect())
}

struct Run<'a> {
    evidence: &'a Evidence,
    given: &'a Answers,
    around: &'a Surroundings,
    document: &'a Map<String, Value>,
}

impl Run<'_> {
    fn point(&self, asked: &Requirement) -> Value {
        let has_run = !self.evidence.technical.is_standalone;
        let missing = lacking(self.given, asked.needs, has_run);
        let mut answer = self.stated(asked);
        answer.extend(self.known(asked.point));
        let shown = self.shown(asked.point);
        let status = match (missing.is_empty(), shown.is_empty()) {
            (false, _) => Status::NotProvided,
            (true, false) => Status::Evidence,
            (true, true) => Status::Statement,
        };
        let mut row = object(json!({
            "requirement": asked.requirement,
            "status": status.as_str(),
            "answer": (!answer.is_empty()).then_some(answer),
            "evidence": shown,
        }));
        if !missing.is_empty() {
            row.insert("missing".to_owned(), json!(missing));
        }
        Value::Object(row)
    }

    /// What people wrote under the keys of a point, by the last part of the key.
    fn stated(&self, asked: &Requirement) -> Map<String, Value> {
        let keys = asked.needs.iter().flat_map(|need| match need {
            Need::Key(key) => std::slice::from_ref(key),
            Need::AnyOf(keys) => keys,
            Need::Run | Need::Instructions => &[],
        });
        let named = |key: &&str| {
            let name = key.rsplit('.').next().unwrap_or(key);
            Some((name.to_owned(), self.given.get(key)?))
        };
        keys.chain(asked.more).filter_map(named).collect()
    }

    /// What the run knows about a point.
    fn known(&self, point: &str) -> Map<String, Value> {
        let (evidence, facts) = (self.evidence, &self.evidence.technical);
        let known = match point {
            "1(c)" => json!({
                "program": {"name": crate::BUILDER_NAME, "version": evidence.forgelm_version,
                    "target": evidence.builder.target, "commit": evidence.builder.commit},
                "plugins": evidence.plugins,
                "system": facts.system,
            }),
            "1(d)" => json!({
                "saved_as": evidence.training_parameters.more.get("saved_as"),
                "folder": self.around.model_dir,
            }),
            "1(e)" => self.resources(&["memory_bytes_peak", "threads", "kernels", "gpu_count"]),
            "1(h)" => self.instructions(),
            "2(a)" => json!({
                "model_lineage": model_lineage(evidence),
                "stages": self.stages(),
            }),
            "2(b)" => json!({"objective": facts.objective}),
            "2(c)" => json!({
                "architecture": facts.architecture,
                "computational_resources": evidence.resource_usage,
            }),
            "2(d)" => json!({
                "data_files": self.data_files(),
                "filters": facts.data_filters,
            }),
            "2(g)" | "4" => {
                json!({"metrics": self.document.get("performance_metrics"), "gates": gates(evidence)})
            }
            "2(h)" => json!({"in_effect_while_training": facts.guards}),
            "3" => json!({"input": facts.input}),
            "5" => json!({"risk_assessment": evidence.risk_assessment}),
            "6" => self.change_log(),
            "9" => json!({"monitoring": evidence.monitoring}),
            _ => json!({}),
        };
        let is_known = |value: &Value| match value {
            Value::Null => false,
            Value::Array(items) => !items.is_empty(),
            Value::Object(members) => !members.is_empty(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        };
        object(known).into_iter().filter(|(_, value)| is_known(value)).collect()
    }

    fn resources(&self, keys: &[&str]) -> Value {
        let usage = self.evidence.resource_usage.as_ref();
        let found =
            keys.iter().filter_map(|key| Some(((*key).to_owned(), usage?.get(*key)?.clone())));
        let found: Map<String, Value> = found.collect();
        if found.is_empty() { json!({}) } else { json!({"measured_while_training": found}) }
    }

    /// The items of Article 13(3), each given or not.
    fn instructions(&self) -> Value {
        let word = |is_given| if is_given { "given" } else { "not_provided" };
        let items = INSTRUCTIONS.iter().map(|item| {
            let is_given = item.keys.iter().all(|key| self.given.get(key).is_some());
            (item.item.to_owned(), json!(word(is_given)))
        });
        json!({"article_13_3": items.collect::<Map<_, _>>()})
    }

    /// What was done, in order, with what went in and came out by content.
    fn stages(&self) -> Value {
        if self.evidence.technical.is_standalone {
            return Value::Null;
        }
        let lineage = &self.evidence.model_lineage;
        let data = &self.evidence.data_provenance;
        let extras = data.extra_datasets.iter().map(|(_, print)| &print.sha256);
        let digests: Vec<_> = std::iter::once(&data.fingerprint.sha256).chain(extras).collect();
        json!([
            {"stage": "base model", "name": lineage.base_model,
                "sha256": lineage.base_model_revision.sha256},
            {"stage": "data", "name": data.primary_dataset, "sha256": digests},
            {"stage": "training", "method": lineage.adapter_method,
                "trainer": self.evidence.training_parameters.trainer_type,
                "config_hash": self.evidence.config_hash},
            {"stage": "result", "folder": self.around.model_dir,
                "outcome": self.evidence.outcome.as_str()},
        ])
    }

    fn data_files(&self) -> Vec<Value> {
        let row = |file: &crate::documents::facts::DataFileRecord| {
            json!({
                "dataset": file.dataset,
                "file": file.file,
                "sha256": file.sha256,
                "size_bytes": file.size_bytes,
                "rows": file.rows,
            })
        };
        self.evidence.technical.data_files.iter().map(row).collect()
    }

    fn change_log(&self) -> Value {
        let Some(previous) = &self.evidence.technical.previous else { return json!({}) };
        json!({
            "previous": {
                "file": previous.file,
                "sha256": previous.sha256,
                "manifest_hash": previous.document.pointer("/metadata/manifest_hash"),
                "run_id": previous.document.get("run_id"),
                "system_version": previous.document.pointer("/system_identification/system_version"),
                "signature": previous.signature,
                "keyid": previous.keyid,
            },
            "changes_since": changes(&previous.document, self.document),
        })
    }

    /// The files and events that show a point.
    fn shown(&self, point: &str) -> Vec<Value> {
        let model = |name: &str| {
            self.around.model_dir.as_ref().map(|dir| format!("{dir}/{name}")).unwrap_or_default()
        };
        let document = |name: &str| format!("{COMPLIANCE_DIR}/{name}");
        let file = |name: String| self.file(&name);
        let event = |name: &str| {
            let is_there = !self.evidence.technical.is_standalone;
            is_there.then(|| json!({"file": LOG_FILE, "event": name}))
        };
        let attached = |key: &str| {
            let files = self.evidence.technical.attachments.iter();
            let found = files.filter(|file| file.key == key);
            found
                .map(|file| json!({"file": file.file, "sha256": file.sha256, "is_input": true}))
                .collect::<Vec<_>>()
        };
        let previous = || {
            let previous = self.evidence.technical.previous.as_ref()?;
            Some(json!({"file": previous.file, "sha256": previous.sha256, "is_input": true}))
        };
        let report = || file(document("compliance_report.json"));
        match point {
            "1(a)" | "6" => previous().into_iter().collect(),
            "1(c)" => [report(), file(document(MLBOM))].into_iter().flatten().collect(),
            "1(d)" => [file(model(INTEGRITY_FILE)), event("model.integrity_verified")]
                .into_iter()
                .flatten()
                .collect(),
            "1(h)" => file(model(INSTRUCTIONS_FILE)).into_iter().collect(),
            "2(a)" => {
                [report(), file(document("training_manifest.json")), event("pipeline.initialized")]
                    .into_iter()
                    .flatten()
                    .collect()
            }
            "2(c)" => report().into_iter().collect(),
            "2(d)" => [
                file(document("data_provenance.json")),
                file(document("data_governance_report.json")),
                file(document(CROISSANT)),
            ]
            .into_iter()
            .flatten()
            .collect(),
            "2(g)" => [report(), file("metrics.jsonl".to_owned()), event("training.started")]
                .into_iter()
                .flatten()
                .collect(),
            "2(h)" => event("signing.key_loaded")
                .filter(|_| self.around.keyid.is_some())
                .into_iter()
                .chain(file(model(INTEGRITY_FILE)))
                .collect(),
            "5" => file(document("risk_assessment.json")).into_iter().collect(),
            "8" => attached("compliance.annex_iv.declaration_of_conformity_file"),
            "9" => attached("compliance.annex_iv.post_market_plan_file"),
            _ => Vec::new(),
        }
    }

    /// A file by content, if it is one of the run's.
    fn file(&self, name: &str) -> Option<Value> {
        let sha256 = self.around.digests.get(name)?;
        Some(json!({"file": name, "sha256": sha256}))
    }
}
