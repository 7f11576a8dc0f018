//! The governance report of a run: its splits as they were trained on, and the report of the data audit
//! that lies in the run's folder, if it is about the same data.

use crate::audit::REPORT_FILE;
use crate::dossier::Dossier;
use forgelm_artifact::UtcTime;
use forgelm_artifact::open::{self, OpenError};
use forgelm_config::resolved_json;
use forgelm_data::{DataFile, Shape, SplitSheet, describe_splits};
use forgelm_evidence::documents::facts::{DataField, FieldKind, Governance};
use forgelm_evidence::documents::governance::{FoundAudit, GovernanceInputs, governance_report};
use forgelm_evidence::strict_json::{DOCUMENT_LIMITS, parse};
use serde_json::{Map, Value, json};
use std::io::{ErrorKind, Read as _};
use std::path::Path;

/// The report, or why there is none; and the columns of each data file, in their order.
pub(crate) fn report(dossier: &Dossier<'_>, now: UtcTime) -> (Governance, Vec<Vec<DataField>>) {
    match describe_splits(dossier.data) {
        Ok(splits) => {
            let fields = fields(dossier, &splits);
            (of_splits(dossier, now, &splits), fields)
        }
        Err(error) => (Governance::Failed { reason: error.to_string() }, Vec::new()),
    }
}

/// The columns of each data file, as the rows of both splits have them.
fn fields(dossier: &Dossier<'_>, splits: &[SplitSheet; 2]) -> Vec<Vec<DataField>> {
    let of_file = |file: &DataFile| {
        let mut all = Shape::Null;
        let found = splits.iter().filter_map(|split| split.shapes.get(&file.path));
        found.for_each(|shape| all.take(shape.clone()));
        match kind(&all) {
            FieldKind::Object(fields) => fields,
            _ => Vec::new(),
        }
    };
    dossier.data.files.iter().flatten().map(of_file).collect()
}

fn kind(shape: &Shape) -> FieldKind {
    match shape {
        Shape::Boolean => FieldKind::Boolean,
        Shape::Integer => FieldKind::Integer,
        Shape::Number => FieldKind::Number,
        Shape::Text => FieldKind::Text,
        Shape::List(items) => FieldKind::List(Box::new(kind(items))),
        Shape::Object(members) => FieldKind::Object(
            members
                .iter()
                .map(|(name, shape)| DataField { name: name.clone(), kind: kind(shape) })
                .collect(),
        ),
        Shape::Null | Shape::Mixed => FieldKind::Other,
    }
}

fn of_splits(
    dossier: &Dossier<'_>,
    now: UtcTime,
    [train, validation]: &[SplitSheet; 2],
) -> Governance {
    let mut splits = Map::new();
    splits.insert("train".to_owned(), split(train));
    if validation.n_samples > 0 {
        splits.insert("validation".to_owned(), split(validation));
    }
    let run = &dossier.plan.run;
    let path = dossier.plan.output.root().join(REPORT_FILE);
    governance_report(GovernanceInputs {
        generated_at: now,
        run_id: dossier.run_id.to_owned(),
        primary_dataset: run.data.dataset_name_or_path.clone(),
        n_datasets: dossier.data.mixture.len() as u64,
        splits,
        data_sha256: dossier
            .data
            .files
            .iter()
            .flatten()
            .map(|file| file.sha256.to_string())
            .collect(),
        answers: resolved_json(run)["data"]["governance"].as_object().cloned(),
        audit: found_audit(&path),
        audit_path: path.display().to_string(),
    })
}

fn split(sheet: &SplitSheet) -> Value {
    let mut members = Map::from_iter([
        ("sample_count".to_owned(), json!(sheet.n_samples)),
        ("columns".to_owned(), json!(sheet.columns)),
    ]);
    if let Some(length) = &sheet.text_length {
        let lengths = json!({
            "min": length.min,
            "max": length.max,
            "mean": length.mean,
            "median": length.p50,
            "p95": length.p95,
        });
        members.insert("text_length".to_owned(), lengths);
    }
    Value::Object(members)
}

fn found_audit(path: &Path) -> FoundAudit {
    let mut bytes = Vec::new();
    let cap = DOCUMENT_LIMITS.size_bytes as u64 + 1;
    let read = open::regular(path).and_then(|(file, _)| {
        let read = file.take(cap).read_to_end(&mut bytes);
        read.map_err(|source| OpenError::Io { path: path.to_owned(), source })
    });
    match read {
        Err(OpenError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            return FoundAudit::Missing;
        }
        Err(error) => return FoundAudit::Unusable(error.to_string()),
        Ok(_) => {}
    }
    match parse(&bytes, DOCUMENT_LIMITS) {
        Ok(document) => FoundAudit::Document(document),
        Err(error) => FoundAudit::Unusable(error.to_string()),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test makes files")]
mod tests {
    use super::found_audit;
    use forgelm_evidence::documents::governance::FoundAudit;

    #[test]
    fn whatever_lies_there_is_a_document_or_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("data_audit_report.json");
        assert!(matches!(found_audit(&path), FoundAudit::Missing));
        for bytes in [&b"{"[..], b"\xff", b"{\"a\": 1, \"a\": 2}", b""] {
            std::fs::write(&path, bytes).expect("written");
            assert!(matches!(found_audit(&path), FoundAudit::Unusable(_)), "{bytes:?}");
        }
        std::fs::write(&path, "{\"inputs\": []}").expect("written");
        assert!(matches!(found_audit(&path), FoundAudit::Document(_)));
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir(&path).expect("made");
        assert!(matches!(found_audit(&path), FoundAudit::Unusable(_)));
    }
}
