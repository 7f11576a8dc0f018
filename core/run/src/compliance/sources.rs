//! The files that the config names as answers: read before anything starts, and bound by content.

use crate::environment::Environment;
use crate::error::RunError;
use crate::plan::Plan;
use crate::trust::trusted_keys;
use forgelm_artifact::Class;
use forgelm_artifact::hash::sha256_file;
use forgelm_artifact::open::OpenError;
use forgelm_evidence::annex_iv::{PreviousProblem, read_previous};
use forgelm_evidence::documents::facts::{Attachment, PreviousManifest};
use std::path::Path;

const PREVIOUS: &str = "compliance.previous_manifest";
const DECLARATION: &str = "compliance.annex_iv.declaration_of_conformity_file";
const PLAN: &str = "compliance.annex_iv.post_market_plan_file";

/// What was found in them.
#[derive(Clone, Debug, Default)]
pub(crate) struct NamedFiles {
    pub previous: Option<PreviousManifest>,
    pub attachments: Vec<Attachment>,
}

impl NamedFiles {
    /// Reads them.
    ///
    /// # Errors
    /// If one is not there, cannot be read, or was changed after it was signed.
    pub fn read(plan: &Plan, env: &Environment) -> Result<Self, RunError> {
        let Some(section) = &plan.run.compliance else { return Ok(Self::default()) };
        let previous = section.previous_manifest.as_deref().map(|file| previous(file, plan, env));
        let annex = section.annex_iv.as_ref();
        let named = [
            (DECLARATION, annex.and_then(|annex| annex.declaration_of_conformity_file.as_deref())),
            (PLAN, annex.and_then(|annex| annex.post_market_plan_file.as_deref())),
        ];
        let attachments = named.into_iter().filter_map(|(key, file)| Some(attachment(key, file?)));
        Ok(Self {
            previous: previous.transpose()?,
            attachments: attachments.collect::<Result<_, _>>()?,
        })
    }
}

fn previous(file: &str, plan: &Plan, env: &Environment) -> Result<PreviousManifest, RunError> {
    let store = plan.run.signing().trusted_keys;
    let keys = trusted_keys(store.as_deref().map(Path::new), env)?;
    read_previous(Path::new(file), &keys).map_err(|PreviousProblem { class, reason }| {
        RunError::NamedFile {
            key: PREVIOUS,
            path: file.into(),
            reason,
            class,
            hint: "name the `annex_iv_metadata.json` of the version before, as it was written",
        }
    })
}

fn attachment(key: &'static str, file: &str) -> Result<Attachment, RunError> {
    let path = Path::new(file);
    match sha256_file(path) {
        Ok(sha256) => Ok(Attachment { key, file: file.to_owned(), sha256: sha256.to_string() }),
        Err(error) => Err(RunError::NamedFile {
            key,
            path: path.to_owned(),
            class: match error.class() {
                Class::Runtime => forgelm_evidence::Class::Unreadable,
                Class::Input | Class::Integrity | Class::Resources => {
                    forgelm_evidence::Class::NotCompared
                }
            },
            reason: match &error {
                OpenError::NotAFile { kind, .. } => format!("a {kind}; expected a file"),
                OpenError::Io { source, .. } => format!("cannot be read: {source}"),
            },
            hint: "name a file that is there: the documents have its digest",
        }),
    }
}
