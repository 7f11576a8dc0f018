//! The model that a stage trains on top of, where the one that it begins at is an adapter: base and
//! adapter in one, in a folder of the pipeline.
//!
//! A new adapter on top of another one would be of no use to anybody else: no other program loads a
//! chain of adapters. With the two in one folder the result of a stage is an adapter like every other,
//! and its reference model is what it begins at. The price is one whole model on the disk for each
//! stage that follows an adapter.

use super::plan::START_MODELS;
use crate::derived::folder::check_room;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::model::{self, ModelRequest};
use crate::overrides;
use crate::settings;
use forgelm_artifact::hash::sha256_file;
use forgelm_artifact::json;
use forgelm_artifact::write::StagedDir;
use forgelm_config::Run;
use forgelm_evidence::pipeline::state::StartModel;
use forgelm_hub::ModelFiles;
use forgelm_kernels_api::RowSource as _;
use forgelm_model::{ADAPTER_WEIGHTS, LoadOptions};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What says that a folder is ours, and what it was made of.
const RECORD: &str = "start_model.json";

/// What is to be folded together.
pub(super) struct Folding<'a> {
    /// The pipeline's folder.
    pub(super) dir: &'a Path,
    /// The stage that begins there.
    pub(super) stage: &'a str,
    /// The adapter.
    pub(super) adapter: &'a Path,
    /// How the model of the stage is loaded.
    pub(super) request: ModelRequest,
    /// The run that trained the adapter, if it is a stage of this pipeline: an adapter that was trained
    /// beside weights in 4 bits belongs to their values as they ran.
    pub(super) trained_by: Option<&'a Run>,
}

impl Folding<'_> {
    /// Another adapter has another folder: what was trained on top of this one still needs it.
    fn place(&self, adapter_sha256: &str) -> String {
        let short = adapter_sha256.get(..12).unwrap_or(adapter_sha256);
        format!("{START_MODELS}/{}_{short}", self.stage)
    }

    /// The folder, made now, or before of the same adapter.
    pub(super) fn prepare(
        self,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<StartModel, RunError> {
        let adapter_sha256 = sha256_file(&self.adapter.join(ADAPTER_WEIGHTS))?.to_string();
        let target = self.dir.join(self.place(&adapter_sha256));
        let record = read_record(&target);
        if let Some(found) = record.as_ref().and_then(|record| self.same(record, &adapter_sha256)) {
            let files = ModelFiles::Folder(target.clone());
            if model::weights_sha256(&files).is_ok_and(|sha256| sha256 == found.sha256) {
                return Ok(found);
            }
        }
        if record.is_none() && target.symlink_metadata().is_ok() {
            return Err(RunError::OutputDir {
                dir: target,
                problem: "is not of this pipeline".to_owned(),
                hint: "move it away: the pipeline keeps the model there at which a stage begins",
            });
        }
        self.fold(target, adapter_sha256, env, observer)
    }

    /// What a record says, if it is of this adapter.
    fn same(&self, record: &Value, adapter_sha256: &str) -> Option<StartModel> {
        let text = |key: &str| record[key].as_str().map(str::to_owned);
        let found = StartModel {
            path: self.place(adapter_sha256),
            base_model: text("base_model")?,
            adapter_sha256: text("adapter_sha256")?,
            sha256: text("sha256")?,
        };
        (found.adapter_sha256 == adapter_sha256).then_some(found)
    }

    fn fold(
        self,
        target: PathBuf,
        adapter_sha256: String,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<StartModel, RunError> {
        let text = format!(
            "folding `{}` into its base, for stage `{}`",
            self.adapter.display(),
            self.stage
        );
        observer.observe(&Event::Notice(text));
        let found = model::find(&self.request, env, observer)?;
        let (ops, compute) = model::kernels(&found.kernels, &self.request)?;
        let options = match self.trained_by {
            Some(run) => settings::load_options(run, compute),
            None => LoadOptions::dense(compute),
        };
        let tensors = found.open.whole_tensors(None).map_err(forgelm_model::LoadError::from)?;
        let n_bytes = tensors.iter().map(|t| t.n_rows() * t.n_cols() * t.dtype().block_bytes());
        check_room(&target, n_bytes.map(|n| n as u64).sum())?;
        drop(tensors);
        let base_model = match &found.adapter {
            Some(loaded) => loaded.info.base_model_name_or_path.clone(),
            None => self.request.name.clone(),
        };
        let loaded = model::load_with(&found, ops, options, None)?;
        let mut dir = StagedDir::new(&target)?;
        if let Some(adapter) = &loaded.adapter {
            found.open.write_whole(&loaded.decoder, adapter, &mut dir)?;
        }
        for (name, text) in found.tokenizer.files()? {
            if !dir.path().join(&name).exists() {
                dir.write(&name, text.as_bytes())?;
            }
        }
        if !found.overrides.is_empty() {
            dir.write(overrides::FILE, found.overrides.to_json().as_bytes())?;
        }
        let sha256 = model::weights_sha256(&ModelFiles::Folder(dir.path().to_owned()))?;
        let record = json!({
            "stage": self.stage,
            "base_model": base_model,
            "base_sha256": loaded.sha256,
            "adapter": self.adapter,
            "adapter_sha256": adapter_sha256,
            "sha256": sha256,
        });
        dir.write(RECORD, json::pretty(&record).as_bytes())?;
        dir.commit_replacing()?;
        let path = self.place(&adapter_sha256);
        Ok(StartModel { path, base_model, adapter_sha256, sha256 })
    }
}

fn read_record(dir: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(dir.join(RECORD)).ok()?;
    serde_json::from_str(&text).ok().filter(Value::is_object)
}
