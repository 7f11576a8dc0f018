//! `--compliance-export`: the documents that a config alone gives. There is no run behind them: each
//! says so, none has a run's id, a metric or a signature, and `verify-annex-iv` refuses them.

use super::NamedFiles;
use super::facts;
use crate::data::{self, Sources};
use crate::derived::folder;
use crate::dossier::{self, VERSION};
use crate::environment::Environment;
use crate::error::RunError;
use crate::outbound;
use crate::plan::Plan;
use forgelm_artifact::UtcTime;
use forgelm_artifact::hash::{Hasher, sha256_file};
use forgelm_artifact::open::OpenError;
use forgelm_artifact::write::StagedDir;
use forgelm_config::{published_json, resolved_json};
use forgelm_evidence::documents::evidence::{
    DataProvenance, DatasetFingerprint, Evidence, ModelLineage, Outcome, RevisionRecord,
};
use forgelm_evidence::documents::facts::{DataFileRecord, TechnicalFacts};
use forgelm_evidence::documents::{INSTRUCTIONS_FILE, deployer_instructions, standalone_documents};
use serde_json::Map;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Writes the documents into `dir`, which must be empty or not there; all of them or none. Data files on
/// this machine are read for their digests; nothing is fetched. The names of what was written, sorted.
///
/// # Errors
/// If there is no `compliance` section, if the folder is in use, if a file that the config names cannot
/// be read, or if writing fails.
pub fn export(plan: &Plan, dir: &Path, env: &Environment) -> Result<Vec<String>, RunError> {
    if plan.run.compliance.is_none() {
        return Err(RunError::NoComplianceSection);
    }
    folder::check_empty(dir)?;
    folder::check_outside(dir, &inputs(plan))?;
    let named = NamedFiles::read(plan, env)?;
    let evidence = evidence(plan, named, env)?;
    let mut documents = standalone_documents(&evidence);
    let instructions = deployer_instructions(&evidence, "not trained yet");
    documents.push((INSTRUCTIONS_FILE, instructions.into_bytes()));
    let mut staged = StagedDir::new(dir)?;
    for (name, bytes) in &documents {
        staged.write(name, bytes)?;
    }
    folder::commit(staged)?;
    let mut names: Vec<String> = documents.iter().map(|(name, _)| (*name).to_owned()).collect();
    names.sort();
    Ok(names)
}

/// What the config reads.
fn inputs(plan: &Plan) -> Vec<PathBuf> {
    let data = &plan.run.data;
    let sets =
        std::iter::once(&data.dataset_name_or_path).chain(data.extra_datasets.iter().flatten());
    let model = &plan.run.model.name_or_path;
    sets.chain([model]).map(PathBuf::from).filter(|path| path.is_dir()).collect()
}

fn evidence(plan: &Plan, named: NamedFiles, env: &Environment) -> Result<Evidence, RunError> {
    let run = &plan.run;
    let config = resolved_json(run);
    let section = |name: &str| config[name].as_object().cloned();
    let now = env.clock.utc();
    let (provenance, data_files) = provenance(plan, now)?;
    Ok(Evidence {
        run_id: String::new(),
        pipeline_run_id: None,
        forgelm_version: VERSION.to_owned(),
        builder: dossier::builder(),
        config_hash: plan.config_hash.clone(),
        operator: dossier::operator(env)?,
        started_at: now,
        finished_at: now,
        generated_at: now,
        model_lineage: lineage(plan),
        training_parameters: dossier::parameters_of(plan),
        data_provenance: provenance,
        metrics: BTreeMap::new(),
        evaluations: Map::new(),
        compliance: section("compliance"),
        risk_assessment: section("risk_assessment"),
        monitoring: outbound::monitoring_record(run),
        monitoring_baseline: None,
        config: published_json(run),
        webhook_config: section("webhook").map(outbound::without_address),
        resource_usage: None,
        outcome: Outcome::Promoted,
        gates: Vec::new(),
        plugins: Vec::new(),
        technical: TechnicalFacts {
            is_standalone: true,
            data_files,
            previous: named.previous,
            attachments: named.attachments,
            ..facts::of_config(plan)
        },
    })
}

/// As configured; what a model really is shows only when it is loaded.
fn lineage(plan: &Plan) -> ModelLineage {
    let run = &plan.run;
    let is_local = Path::new(&run.model.name_or_path).exists();
    ModelLineage {
        base_model: run.model.name_or_path.clone(),
        base_model_revision: RevisionRecord {
            repo_id: run.model.name_or_path.clone(),
            revision_requested: run.model.revision.clone(),
            resolution_source: match (is_local, &run.model.revision) {
                (true, _) => "local_path",
                (false, Some(_)) => "pinned_unverified",
                (false, None) => "unresolved",
            }
            .to_owned(),
            ..RevisionRecord::default()
        },
        component_revisions: Vec::new(),
        backend: "native".to_owned(),
        adapter_method: dossier::method(run),
        quantization: dossier::quantization(&run.model).to_owned(),
        trust_remote_code: run.model.trust_remote_code,
    }
}

/// The data sets by content where they lie on this machine; of a hub only by name.
fn provenance(
    plan: &Plan,
    now: UtcTime,
) -> Result<(DataProvenance, Vec<DataFileRecord>), RunError> {
    let data = &plan.run.data;
    let mut files = Vec::new();
    let Sources { files: sets, .. } = data::find_local(plan)?;
    let mut prints = Vec::new();
    for set in &sets {
        let mut print = DatasetFingerprint {
            path: set.name.clone(),
            timestamp: now.to_string(),
            ..DatasetFingerprint::default()
        };
        if set.train.is_empty() {
            print.source = Some("huggingface_hub".to_owned());
            print.hf_revision_source = "unresolved".to_owned();
            print.hf_revision_reason = Some("nothing was fetched".to_owned());
        } else {
            print.hf_revision_source = "local_path".to_owned();
            let first = files.len();
            for path in set.train.iter().chain(&set.validation) {
                files.push(record(&set.name, path)?);
            }
            let own = &files[first..];
            print.size_bytes = Some(own.iter().map(|file| file.size_bytes).sum());
            print.sha256 = Some(together(own));
        }
        prints.push(print);
    }
    let mut prints = prints.into_iter();
    let fingerprint = prints.next().unwrap_or_default();
    let extras = data.extra_datasets.iter().flatten().cloned();
    let provenance = DataProvenance {
        primary_dataset: data.dataset_name_or_path.clone(),
        fingerprint,
        shuffle: data.shuffle,
        clean_text: data.clean_text,
        extra_datasets: extras.zip(prints).collect(),
    };
    Ok((provenance, files))
}

fn record(dataset: &str, path: &Path) -> Result<DataFileRecord, RunError> {
    let sha256 = sha256_file(path)?.to_string();
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    Ok(DataFileRecord {
        dataset: dataset.to_owned(),
        file: facts::name_within(dataset, path),
        sha256,
        size_bytes: std::fs::metadata(path).map_err(io)?.len(),
        rows: None,
        fields: Vec::new(),
    })
}

/// As a run has it: the digest of a single file, else one over all of them.
fn together(files: &[DataFileRecord]) -> String {
    if let [file] = files {
        return file.sha256.clone();
    }
    let mut hasher = Hasher::new();
    for file in files {
        hasher.update(file.sha256.as_bytes());
        hasher.update(b"\n");
    }
    hasher.finish().to_string()
}
