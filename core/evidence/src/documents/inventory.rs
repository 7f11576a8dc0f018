//! What went into a model and what came out, by name and digest: what the lists for other programs
//! (CycloneDX, SPDX, Croissant) have in common.

use serde_json::Value;

use super::evidence::{DatasetFingerprint, Evidence};
use super::facts::DataFileRecord;
use crate::audit::event::number;
use crate::digest::sha256_hex;

/// A data set with its files.
pub(super) struct DataSet<'a> {
    /// As configured.
    pub(super) name: &'a str,
    /// What pins it.
    pub(super) print: &'a DatasetFingerprint,
    /// Its files by content, where they were read.
    pub(super) files: Vec<&'a DataFileRecord>,
}

impl DataSet<'_> {
    /// In words: how many rows and bytes, where that is known.
    pub(super) fn size_text(&self) -> String {
        let part = |n: Option<u64>, what: &str| n.map(|n| format!("{n} {what}"));
        let files = (!self.files.is_empty()).then_some(self.files.len() as u64);
        let parts = [
            part(self.print.rows, "rows used"),
            part(files, "files"),
            part(self.print.size_bytes, "bytes"),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// The data sets in the order of the config. Files of two sets of one name are those of both.
pub(super) fn data_sets(evidence: &Evidence) -> Vec<DataSet<'_>> {
    let data = &evidence.data_provenance;
    let extras = data.extra_datasets.iter().map(|(name, print)| (name.as_str(), print));
    let named = std::iter::once((data.primary_dataset.as_str(), &data.fingerprint)).chain(extras);
    let files = &evidence.technical.data_files;
    named
        .map(|(name, print)| DataSet {
            name,
            print,
            files: files.iter().filter(|file| file.dataset == name).collect(),
        })
        .collect()
}

/// A shared library that took part, with the methods that came from it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Library {
    pub(super) name: String,
    pub(super) version: String,
    /// 64 hex digits; none where it was not recorded.
    pub(super) sha256: Option<String>,
    /// `kind: name`, in the order of the record.
    pub(super) methods: Vec<String>,
}

/// Every library once, in the order of the record.
pub(super) fn libraries(evidence: &Evidence) -> Vec<Library> {
    let text = |plugin: &Value, key: &str| plugin.get(key)?.as_str().map(str::to_owned);
    let mut found: Vec<Library> = Vec::new();
    for plugin in &evidence.plugins {
        let name = text(plugin, "library").or_else(|| text(plugin, "name"));
        let library = Library {
            name: name.unwrap_or_else(|| "unnamed".to_owned()),
            version: text(plugin, "version").unwrap_or_default(),
            sha256: text(plugin, "sha256").filter(|hex| is_sha256(hex)),
            methods: Vec::new(),
        };
        let kind = text(plugin, "kind").unwrap_or_else(|| "plugin".to_owned());
        let method = format!("{kind}: {}", text(plugin, "name").unwrap_or_default());
        let is_it =
            |other: &&mut Library| (&other.name, &other.sha256) == (&library.name, &library.sha256);
        match found.iter_mut().find(is_it) {
            Some(same) if same.methods.contains(&method) => {}
            Some(same) => same.methods.push(method),
            None => found.push(Library { methods: vec![method], ..library }),
        }
    }
    found
}

/// The metrics that are results, as text: what a run used is no result.
pub(super) fn results(evidence: &Evidence) -> Vec<(&str, String)> {
    let results = evidence.metrics.iter().filter(|(name, _)| !name.starts_with("resource/"));
    results.map(|(name, value)| (name.as_str(), plain(&number(*value)))).collect()
}

/// A JSON value without quotes around a text.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Joules of the training, where they were measured.
pub(super) fn joules(evidence: &Evidence) -> Option<f64> {
    evidence.resource_usage.as_ref()?.get("energy_joules")?.as_f64()
}

/// What the tuned model is called: the system's name, else the last part of the base's.
pub(super) fn model_name(evidence: &Evidence) -> String {
    let given = super::annex_iv::answers(evidence);
    let base = evidence.model_lineage.base_model.trim_end_matches('/');
    given
        .text("compliance.system_name")
        .unwrap_or_else(|| format!("{}_finetune", base.rsplit(['/', ':']).next().unwrap_or(base)))
}

/// The revision of the base, else the digest of its weights.
pub(super) fn base_version(evidence: &Evidence) -> Option<&str> {
    let revision = &evidence.model_lineage.base_model_revision;
    revision.revision_resolved.as_deref().or(revision.sha256.as_deref())
}

/// Whether a text is a SHA-256 as we write it.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A name for this run's document of a kind that nobody else has and that is always the same: a UUID
/// (RFC 9562, version 8) of a SHA-256 over kind, run id and config hash.
pub(super) fn uuid(evidence: &Evidence, kind: &str) -> String {
    let text = format!("forgelm\n{kind}\n{}\n{}", evidence.run_id, evidence.config_hash);
    let hex = sha256_hex(text.as_bytes());
    // The variant's two bits are 10: one of 8, 9, a, b.
    let variant = match hex.as_bytes()[16] {
        b'0' | b'4' | b'8' | b'c' => '8',
        b'1' | b'5' | b'9' | b'd' => '9',
        b'2' | b'6' | b'a' | b'e' => 'a',
        _ => 'b',
    };
    format!(
        "{}-{}-8{}-{variant}{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..32]
    )
}

#[cfg(test)]
mod tests {
    use super::{Library, libraries, uuid};
    use crate::documents::evidence::tests::evidence;
    use serde_json::json;

    #[test]
    fn a_library_of_several_methods_is_one() {
        let mut evidence = evidence();
        let of = |kind: &str, name: &str, sha256: &str| {
            json!({"kind": kind, "name": name, "library": "forgelm_trainers", "version": "0.1.0",
                   "sha256": sha256})
        };
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        evidence.plugins = vec![
            of("trainer", "sft", &a),
            of("trainer", "dpo", &a),
            of("trainer", "sft", &a),
            of("trainer", "sft", &b),
            json!({"sha256": "A"}),
        ];
        let library = |sha256: &str, methods: &[&str]| Library {
            name: "forgelm_trainers".to_owned(),
            version: "0.1.0".to_owned(),
            sha256: Some(sha256.to_owned()),
            methods: methods.iter().map(|&text| text.to_owned()).collect(),
        };
        let found = libraries(&evidence);
        assert_eq!(found[0], library(&a, &["trainer: sft", "trainer: dpo"]));
        assert_eq!(found[1], library(&b, &["trainer: sft"]));
        assert_eq!((found.len(), &found[2].name[..], &found[2].sha256), (3, "unnamed", &None));
    }

    #[test]
    fn a_uuid_has_its_form_and_follows_from_the_run() {
        let mut evidence = evidence();
        let first = uuid(&evidence, "a");
        assert_eq!(first, uuid(&evidence, "a"));
        assert_ne!(first, uuid(&evidence, "b"));
        let parts: Vec<usize> = first.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&first[14..15], "8");
        assert!("89ab".contains(&first[19..20]), "{first}");
        "fg-000000000000".clone_into(&mut evidence.run_id);
        assert_ne!(first, uuid(&evidence, "a"));
    }
}
