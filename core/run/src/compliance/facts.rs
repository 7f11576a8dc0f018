//! What a run knows for its technical documentation.

use crate::course;
use crate::dossier::Dossier;
use crate::plan::Plan;
use forgelm_config::{PluginIsolation, resolved_json};
use forgelm_data::DataFile;
use forgelm_evidence::documents::facts::{DataFileRecord, Governance, TechnicalFacts};
use forgelm_evidence::documents::shown_config;
use forgelm_evidence::keys::lookup::FoundKey;
use forgelm_model::ModelConfig;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Everything but the governance report.
pub(crate) fn technical(dossier: &Dossier<'_>, key: Option<&FoundKey>) -> TechnicalFacts {
    let plan = dossier.plan;
    let config = dossier.loaded.decoder.config();
    TechnicalFacts {
        architecture: architecture(config),
        objective: Some(dossier.objective.to_owned()),
        input: object(json!({
            "rendering": dossier.data.rendering,
            "layout": dossier.data.layout,
            "max_length": plan.run.model.max_length,
            "context_length": config.max_position_embeddings,
            "train_on": plan.run.data.train_on.to_string(),
        })),
        data_files: data_files(dossier),
        data_filters: object(json!({
            "clean_text": plan.run.data.clean_text,
            "on_bad_row": plan.run.data.on_bad_row.to_string(),
            "rows_skipped": dossier.data.skipped.total,
            "rows_without_trained_text":
                dossier.data.statistics.iter().map(|s| s.dropped).sum::<u64>(),
            "sequences_truncated":
                dossier.data.statistics.iter().map(|s| s.truncated).sum::<u64>(),
        })),
        guards: guards(dossier, key),
        previous: dossier.named.previous.clone(),
        attachments: dossier.named.attachments.clone(),
        governance: Governance::NotDue,
        course: course::course(dossier),
        ..of_config(plan)
    }
}

/// What is known from a config and the machine alone.
pub(crate) fn of_config(plan: &Plan) -> TechnicalFacts {
    let config = resolved_json(&plan.run);
    TechnicalFacts {
        governance_answers: config["data"]["governance"].as_object().cloned(),
        system: system(),
        languages: plan.run.compliance.as_ref().map_or_else(Vec::new, |c| c.language.clone()),
        config: Some(shown_config(&config)),
        ..TechnicalFacts::default()
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn architecture(config: &ModelConfig) -> Map<String, Value> {
    object(json!({
        "model_type": config.model_type,
        "n_parameters": config.n_parameters(),
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "n_experts": config.dims().e,
        "tie_word_embeddings": config.tie_word_embeddings,
    }))
}

fn data_files(dossier: &Dossier<'_>) -> Vec<DataFileRecord> {
    let sets = dossier.data.mixture.iter().zip(&dossier.data.files);
    let record = |dataset: &str, file: &DataFile| DataFileRecord {
        dataset: dataset.to_owned(),
        file: name_within(dataset, &file.path),
        sha256: file.sha256.to_string(),
        size_bytes: file.n_bytes,
        rows: Some(file.n_rows),
        fields: Vec::new(),
    };
    sets.flat_map(|(set, files)| files.iter().map(|file| record(&set.name, file))).collect()
}

/// A file's path within its data set: nobody needs to know where a cache is.
pub(crate) fn name_within(dataset: &str, path: &Path) -> String {
    let within = path.strip_prefix(dataset).ok().filter(|rest| !rest.as_os_str().is_empty());
    let name = || path.file_name().map(Path::new);
    within.or_else(name).unwrap_or(path).display().to_string()
}

/// What was in effect against attacks on this training.
fn guards(dossier: &Dossier<'_>, key: Option<&FoundKey>) -> Vec<String> {
    let plan = dossier.plan;
    let found = &dossier.found.resolved.revision;
    let mut guards = vec![
        "no code of a model folder is run, and no pickled file is read".to_owned(),
        "every data file is compared with its digest again after training".to_owned(),
        "the audit log is a chain of hashes, synced line by line".to_owned(),
        "every file of the result is listed with its digest and read back".to_owned(),
        format!("the weights of the base model have the SHA-256 {}", dossier.loaded.sha256),
    ];
    if let Some(revision) = &found.revision_pinned {
        guards.push(format!("the base model is pinned to revision {revision}"));
    }
    if plan.run.model.offline {
        guards.push("no network (`model.offline`)".to_owned());
    }
    if dossier.env.audit_secret.is_some() {
        guards.push("every line of the audit log has an HMAC".to_owned());
    }
    if let Some(found) = key {
        let (keyid, origin) = (found.signer.key.id(), found.signer.origin.as_str());
        guards.push(format!("documents are signed with Ed25519 by {keyid} ({origin})"));
    }
    if let Some(plugins) = &plan.run.plugins {
        if plugins.require_signed {
            guards.push("libraries without a trusted signature are refused".to_owned());
        }
        if !plugins.paths.is_empty() && plugins.isolation != PluginIsolation::InProcess {
            guards.push("libraries of others run in a process of their own".to_owned());
        }
    }
    guards
}

/// Operating system, processor and its instructions, as the machine itself says; what it does not say
/// is not there.
fn system() -> Map<String, Value> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let line = |text: &str, key: &str, mark: char| {
        let value = text.lines().find_map(|line| {
            let (name, value) = line.split_once(mark)?;
            (name.trim() == key).then(|| value.trim().trim_matches('"').to_owned())
        });
        value.filter(|value| !value.is_empty())
    };
    let cpu = read("/proc/cpuinfo");
    let flags = line(&cpu, "flags", ':').or_else(|| line(&cpu, "Features", ':'));
    let mut features: Vec<&str> = flags
        .iter()
        .flat_map(|flags| flags.split_whitespace())
        .filter(|flag| {
            let vector = ["avx", "amx", "fma", "f16c", "sse4", "asimd", "sve", "bf16", "i8mm"];
            vector.iter().any(|prefix| flag.starts_with(prefix))
        })
        .collect();
    features.sort_unstable();
    features.dedup();
    let known = json!({
        "os": line(&read("/etc/os-release"), "PRETTY_NAME", '='),
        "kernel": Some(read("/proc/sys/kernel/osrelease").trim().to_owned()).filter(|k| !k.is_empty()),
        "architecture": std::env::consts::ARCH,
        "cpu": line(&cpu, "model name", ':'),
        "cpu_features": features,
    });
    object(known).into_iter().filter(|(_, value)| !value.is_null() && *value != json!([])).collect()
}

#[cfg(test)]
mod tests {
    use super::{name_within, system};
    use std::path::Path;

    #[test]
    fn files_are_named_within_their_data_set() {
        let name = |dataset, path| name_within(dataset, Path::new(path));
        assert_eq!(name("data.jsonl", "data.jsonl"), "data.jsonl");
        assert_eq!(name("sets/a.jsonl", "sets/a.jsonl"), "a.jsonl");
        assert_eq!(name("sets", "sets/train/0.jsonl"), "train/0.jsonl");
        assert_eq!(name("org/set", "cache/hub/blobs/train.parquet"), "train.parquet");
    }

    #[test]
    fn the_machine_says_what_it_is() {
        let found = system();
        assert_eq!(found["architecture"], std::env::consts::ARCH);
        if cfg!(target_os = "linux") {
            assert!(found["kernel"].as_str().is_some_and(|text| !text.contains('\n')));
        }
    }
}
