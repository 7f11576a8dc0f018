//! `data_governance_report.json`: what is in each split of the data, what people say of it, and the
//! report of the data audit, if that was about this very data.

use std::collections::BTreeSet;

use forgelm_artifact::UtcTime;
use serde_json::{Map, Value, json};

use super::facts::Governance;
use super::report::object;

/// File name below the folder of documents.
pub const GOVERNANCE_REPORT: &str = "data_governance_report.json";

/// What the report is made from.
#[derive(Clone, Debug)]
pub struct GovernanceInputs {
    /// Time of the report.
    pub generated_at: UtcTime,
    /// Of this run.
    pub run_id: String,
    /// The data set as configured.
    pub primary_dataset: String,
    /// Number of data sets.
    pub n_datasets: u64,
    /// By name: counts, columns and lengths of each split.
    pub splits: Map<String, Value>,
    /// SHA-256 of every file that was trained or validated on.
    pub data_sha256: Vec<String>,
    /// `data.governance` of the config, if configured.
    pub answers: Option<Map<String, Value>>,
    /// Where the report of the data audit is expected.
    pub audit_path: String,
    /// What is there.
    pub audit: FoundAudit,
}

/// What lies where the report of the data audit is expected.
#[derive(Clone, Debug)]
pub enum FoundAudit {
    /// Nothing.
    Missing,
    /// Something that cannot be taken for one, and why.
    Unusable(String),
    /// A document.
    Document(Value),
}

/// The report, and whether the data audit is in it.
#[must_use]
pub fn governance_report(inputs: GovernanceInputs) -> Governance {
    let note = why_not(&inputs.audit, &inputs.data_sha256);
    let mut members = object(json!({
        "generated_at": inputs.generated_at.to_string(),
        "run_id": inputs.run_id,
        "primary_dataset": inputs.primary_dataset,
        "splits": inputs.splits,
    }));
    if let Some(answers) = inputs.answers {
        members.insert("governance".to_owned(), Value::Object(answers));
    }
    members.insert("data_sha256".to_owned(), json!(inputs.data_sha256));
    members.insert("data_audit_inlined".to_owned(), json!(note.is_none()));
    let missing_audit = note.is_some().then_some(inputs.audit_path);
    match (note, inputs.audit) {
        (None, FoundAudit::Document(document)) => {
            members.insert("data_audit".to_owned(), document);
        }
        (note, _) => {
            members.insert("data_audit_note".to_owned(), json!(note));
        }
    }
    Governance::Report {
        document: Value::Object(members),
        n_datasets: inputs.n_datasets,
        missing_audit,
    }
}

/// Why the report of the audit is not taken in: there is none, or it is about other data.
fn why_not(audit: &FoundAudit, data_sha256: &[String]) -> Option<String> {
    let document = match audit {
        FoundAudit::Missing => {
            return Some("there is no report of `forgelm audit` in the output folder".to_owned());
        }
        FoundAudit::Unusable(reason) => {
            return Some(format!("the report of the data audit cannot be used: {reason}"));
        }
        FoundAudit::Document(document) => document,
    };
    let inputs = document.get("inputs").and_then(Value::as_array);
    let audited: BTreeSet<&str> =
        inputs.into_iter().flatten().filter_map(|file| file.get("sha256")?.as_str()).collect();
    let n_open = data_sha256.iter().filter(|sha256| !audited.contains(sha256.as_str())).count();
    (n_open > 0).then(|| {
        format!(
            "the data audit is about other data: {n_open} of the {} files of this run are not among \
             the {} that it read",
            data_sha256.len(),
            audited.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{FoundAudit, Governance, GovernanceInputs, governance_report};
    use serde_json::{Value, json};

    fn report(audit: FoundAudit) -> (Value, Option<String>) {
        let found = governance_report(GovernanceInputs {
            generated_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            run_id: "fg-0123456789ab".to_owned(),
            primary_dataset: "data".to_owned(),
            n_datasets: 1,
            splits: json!({"train": {"sample_count": 3}}).as_object().unwrap().clone(),
            data_sha256: vec!["aa".to_owned(), "bb".to_owned()],
            answers: None,
            audit_path: "out/data_audit_report.json".to_owned(),
            audit,
        });
        match found {
            Governance::Report { document, missing_audit, .. } => (document, missing_audit),
            Governance::NotDue | Governance::Failed { .. } => panic!("{found:?}"),
        }
    }

    #[test]
    fn an_audit_of_this_data_is_taken_in_and_one_of_other_data_is_not() {
        let audit = |digests: &[&str]| {
            let inputs: Vec<Value> = digests.iter().map(|hex| json!({"sha256": hex})).collect();
            json!({"inputs": inputs, "total_samples": 3})
        };
        let whole = audit(&["bb", "aa", "cc"]);
        let (document, missing) = report(FoundAudit::Document(whole.clone()));
        assert_eq!((&document["data_audit"], missing), (&whole, None));
        assert_eq!(document["data_audit_inlined"], true);
        let (document, missing) = report(FoundAudit::Document(audit(&["aa", "dd"])));
        assert_eq!(document["data_audit_inlined"], false);
        assert!(document.get("data_audit").is_none());
        let note = document["data_audit_note"].as_str().unwrap();
        assert!(note.contains("1 of the 2 files"), "{note}");
        assert_eq!(missing.as_deref(), Some("out/data_audit_report.json"));
        let (document, _) = report(FoundAudit::Document(json!([])));
        assert_eq!(document["data_audit_inlined"], false);
        let (document, _) = report(FoundAudit::Missing);
        assert!(document["data_audit_note"].as_str().unwrap().contains("no report"));
        let (document, _) = report(FoundAudit::Unusable("not JSON".to_owned()));
        assert!(document["data_audit_note"].as_str().unwrap().ends_with("not JSON"));
    }
}
