//! Where the data may have gone before a row was taken out: weights, texts made from it, messages.

use super::copies::Copy;
use super::log::Record;
use crate::environment::Environment;
use crate::error::RunError;
use crate::traces::Traces;
use forgelm_config::Run;
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::audit::entries::read_entries;
use forgelm_evidence::audit::event::AuditEvent;
use std::collections::BTreeSet;
use std::path::Path;

/// The folder of the record, and the world.
pub struct Reach<'a> {
    pub dir: &'a Path,
    pub env: &'a Environment,
}

impl Reach<'_> {
    /// Records what the data may have reached, and says it in words.
    pub fn warn(
        &self,
        record: &mut Record<'_>,
        left: &[&Copy],
        run: Option<&Run>,
    ) -> Result<Vec<String>, RunError> {
        let mut warnings = Vec::new();
        let weights: Vec<&&Copy> = left.iter().filter(|copy| copy.kind.is_weights()).collect();
        let named: BTreeSet<&String> =
            weights.iter().filter_map(|copy| copy.run_id.as_ref()).collect();
        let mut run_ids: Vec<String> = named.into_iter().cloned().collect();
        // A model whose evidence names other data learned nothing from this one.
        let model = self.dir.join("final_model");
        let is_known = Traces::read(self.dir).is_some_and(|traces| !traces.data.is_empty());
        let is_doubtful = weights.is_empty() && model.is_dir() && !is_known;
        if !weights.is_empty() || is_doubtful {
            if run_ids.is_empty() {
                run_ids = self.run_ids()?;
            }
            let paths: Vec<String> = match is_doubtful {
                true => vec![model.display().to_string()],
                false => weights.iter().map(|copy| copy.path.display().to_string()).collect(),
            };
            let (places, runs) = (paths.join(", "), run_ids.join(", "));
            warnings.push(match is_doubtful {
                true => format!(
                    "{places}: no evidence says what it was trained on; if it was this row, the row cannot be \
                     erased from it (run: {runs})"
                ),
                false => format!(
                    "weights that trained on the row keep what they learned, and it cannot be erased from \
                     them: {places} of {runs}; only training again without the row does"
                ),
            });
            record.warn(|target_kind, target_id, corpus_path| {
                AuditEvent::DataErasureWarningMemorisation {
                    target_kind,
                    target_id,
                    corpus_path,
                    affected_run_ids: run_ids,
                    weights: paths,
                }
            })?;
        }
        let synthetic_files = synthetic(self.dir);
        if !synthetic_files.is_empty() {
            let files = synthetic_files.join(", ");
            warnings.push(format!("texts made from the data may repeat the row: {files}"));
            record.warn(|target_kind, target_id, corpus_path| {
                AuditEvent::DataErasureWarningSyntheticDataPresent {
                    target_kind,
                    target_id,
                    corpus_path,
                    synthetic_files,
                }
            })?;
        }
        let webhook_targets: Vec<String> =
            run.into_iter().flat_map(|run| webhook_targets(run, self.env)).collect();
        if !webhook_targets.is_empty() {
            let targets = webhook_targets.join(", ");
            warnings
                .push(format!("messages of runs went to {targets}: ask there for their copies"));
            record.warn(|target_kind, target_id, corpus_path| {
                AuditEvent::DataErasureWarningExternalCopies {
                    target_kind,
                    target_id,
                    corpus_path,
                    webhook_targets,
                }
            })?;
        }
        Ok(warnings)
    }

    /// The runs of the folder where no evidence names one: of staged models, else of approvals.
    fn run_ids(&self) -> Result<Vec<String>, RunError> {
        let entries = std::fs::read_dir(self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut found: BTreeSet<String> =
            names.filter_map(|name| Some(name.split_once(".staging.")?.1.to_owned())).collect();
        if found.is_empty() {
            let entries = read_entries(&self.dir.join(LOG_FILE))?.into_iter();
            let of_approval = entries.filter(|entry| entry.event.starts_with("human_approval."));
            found.extend(of_approval.map(|entry| entry.run_id));
        }
        let unknown = found.is_empty().then(|| "unknown".to_owned());
        Ok(found.into_iter().chain(unknown).collect())
    }
}

/// Files of `synthetic_data*.jsonl`, by name.
fn synthetic(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut found: Vec<String> = names
        .filter(|name| name.starts_with("synthetic_data") && name.ends_with(".jsonl"))
        .filter(|name| !name.ends_with(".provenance.jsonl"))
        .collect();
    found.sort();
    found
}

/// Where a config sends messages, as `scheme://host`.
fn webhook_targets(run: &Run, env: &Environment) -> Vec<String> {
    let Some(webhook) = &run.webhook else { return Vec::new() };
    let by_name = webhook.url_env.as_deref().filter(|name| !name.is_empty());
    let urls = [
        webhook.url.clone().filter(|url| !url.is_empty()),
        by_name.and_then(|name| (env.variable)(name)),
    ];
    let mut found: Vec<String> = urls.into_iter().flatten().map(|url| host(&url)).collect();
    found.sort();
    found.dedup();
    found
}

/// An address without what may be secret in it.
fn host(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "an address".to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}")
}
