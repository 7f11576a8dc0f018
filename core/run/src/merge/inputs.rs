//! What is merged: the base and the inputs, found, opened, checked against each other, hashed.

use super::same;
use crate::derived::folder;
use crate::derived::found::{FoundModel, files_of, hash};
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::model;
use crate::overrides::{self, Overrides};
use crate::plan::Plan;
use forgelm_config::Merge;
use forgelm_evidence::documents::record::FileRecord;
use forgelm_hub::ModelFiles;
use forgelm_model::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, LoadedAdapter, PeftInfo};
use forgelm_tokenize::Tokenizer;
use std::path::{Path, PathBuf};

/// One of the models that are merged.
pub struct Input {
    /// As configured.
    pub path: String,
    /// As configured.
    pub weight: f64,
    /// An adapter over the base, or a model of its own.
    pub kind: Kind,
}

/// See [`Input::kind`].
pub enum Kind {
    /// A whole model.
    Model(Box<FoundModel>),
    /// An adapter over the base.
    Adapter(Box<LoadedAdapter>),
}

/// Everything that a merge reads.
pub struct Inputs {
    /// The base, as configured.
    pub base_name: String,
    /// The base.
    pub base: FoundModel,
    /// What is merged.
    pub list: Vec<Input>,
}

impl Inputs {
    /// Finds and opens all, fetching models when that is needed and allowed.
    pub fn find(
        plan: &Plan,
        section: &Merge,
        offline: bool,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        let request = model::request_of(plan, offline);
        let find = |name: &str, revision: Option<String>, observer: &mut dyn Observer| {
            let mut options = env.hub_options();
            options.offline = request.offline || env.offline;
            options.revision = revision;
            options.token = request.token.clone().or_else(|| env.hub_token.clone());
            FoundModel::find(name, &options, observer)
        };
        if is_adapter(Path::new(&request.name)) {
            return Err(RunError::MergeInput {
                path: request.name.clone(),
                problem: "is an adapter; expected the base model of the merge".to_owned(),
                hint: "name the model that the adapters were trained on in \
                       `model.name_or_path`, and the adapters in `merge.models`",
            });
        }
        let base = find(&request.name, request.revision.clone(), observer)?;
        let mut list = Vec::new();
        for model in &section.models {
            let dir = Path::new(&model.path);
            let kind = if is_adapter(dir) {
                // Another base first: its adapter's shapes would be a riddle.
                let info = PeftInfo::read(dir)?;
                same::check_base(&model.path, &info, (&request.name, &base.resolved), observer)?;
                Kind::Adapter(Box::new(Adapter::load(dir, base.open.config())?))
            } else {
                Kind::Model(Box::new(find(&model.path, None, observer)?))
            };
            list.push(Input { path: model.path.clone(), weight: model.weight, kind });
        }
        Ok(Self { base_name: request.name, base, list })
    }

    /// Refuses models of another architecture, with other tensors or another tokenizer than the
    /// base.
    pub fn check(&self, observer: &mut dyn Observer) -> Result<(), RunError> {
        self.base.open.check_tensors()?;
        if self.base.tokenizer.is_none() {
            let text = format!("`{}` has no tokenizer; nor will the result", self.base_name);
            observer.observe(&Event::Warning(text));
        }
        for input in &self.list {
            let tokenizer = match &input.kind {
                Kind::Model(model) => {
                    same::check_architecture(&input.path, model, &self.base, observer)?;
                    model.open.check_tensors()?;
                    model.tokenizer.as_ref().map(|t| (t, is_gguf(&model.resolved.files)))
                }
                Kind::Adapter(_) => None,
            };
            let own = match &input.kind {
                Kind::Adapter(_) => adapter_tokenizer(Path::new(&input.path))?,
                Kind::Model(_) => None,
            };
            let tokenizer = tokenizer.or(own.as_ref().map(|t| (t, false)));
            let base = self.base.tokenizer.as_ref();
            if let (Some((own, own_gguf)), Some(base)) = (tokenizer, base) {
                let is_serialized_alike = own_gguf == is_gguf(&self.base.resolved.files);
                same::check_tokenizer(&input.path, own, base, is_serialized_alike, observer)?;
            }
        }
        Ok(())
    }

    /// What the base or the adapters change of the model's own description, where all that say
    /// something say the same.
    pub fn overrides(&self) -> Result<Overrides, RunError> {
        let mut agreed = self.base.overrides.clone();
        for input in &self.list {
            let own = match &input.kind {
                Kind::Model(model) => model.overrides.clone(),
                Kind::Adapter(_) => Overrides::read(Path::new(&input.path))?,
            };
            if agreed.is_empty() {
                agreed = own;
            } else if !own.is_empty() && own != agreed {
                return Err(RunError::MergeInput {
                    path: input.path.clone(),
                    problem: format!(
                        "was trained with other rotary scaling or windows ({}) than a model before \
                         it ({})",
                        own.to_json().trim(),
                        agreed.to_json().trim()
                    ),
                    hint: "only models that run under one description can be merged",
                });
            }
        }
        Ok(agreed)
    }

    /// The files beside the weights: those of the base, and what the models change of its
    /// description.
    pub fn companions(&self) -> Result<Vec<(String, Vec<u8>)>, RunError> {
        let mut files = folder::companions(&self.base)?;
        let changes = self.overrides()?;
        if !changes.is_empty() {
            files.push((overrides::FILE.to_owned(), changes.to_json().into_bytes()));
        }
        Ok(files)
    }

    /// Folders and files that are read.
    pub fn paths(&self) -> Vec<PathBuf> {
        let own = self.list.iter().map(|input| match &input.kind {
            Kind::Model(model) => model.resolved.files.path().to_owned(),
            Kind::Adapter(_) => PathBuf::from(&input.path),
        });
        std::iter::once(self.base.resolved.files.path().to_owned()).chain(own).collect()
    }

    /// The files of the base and of each input by content, in order.
    pub fn hash(&self, n_threads: usize) -> Result<Vec<Vec<FileRecord>>, RunError> {
        let mut jobs: Vec<(usize, PathBuf)> = Vec::new();
        let add = |jobs: &mut Vec<_>, model: usize, paths: Vec<PathBuf>| {
            jobs.extend(paths.into_iter().map(|path| (model, path)));
        };
        add(&mut jobs, 0, files_of(&self.base.resolved.files)?);
        for (i, input) in self.list.iter().enumerate() {
            let paths = match &input.kind {
                Kind::Model(model) => files_of(&model.resolved.files)?,
                Kind::Adapter(_) => [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
                    .map(|name| Path::new(&input.path).join(name))
                    .into(),
            };
            add(&mut jobs, i + 1, paths);
        }
        let mut files = vec![Vec::new(); self.list.len() + 1];
        for (model, file) in hash(jobs, n_threads)? {
            files[model].push(file);
        }
        for files in &mut files {
            files.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(files)
    }

    /// What was hashed must be what was merged.
    pub fn check_unchanged(&self) -> Result<(), RunError> {
        let models = self.list.iter().filter_map(|input| match &input.kind {
            Kind::Model(model) => Some(model.as_ref()),
            Kind::Adapter(_) => None,
        });
        match std::iter::once(&self.base).chain(models).find(|model| !model.open.is_unchanged()) {
            None => Ok(()),
            Some(model) => Err(RunError::Changed { path: model.resolved.files.path().to_owned() }),
        }
    }
}

fn is_adapter(dir: &Path) -> bool {
    dir.join(ADAPTER_CONFIG).is_file()
}

pub(super) fn is_gguf(files: &ModelFiles) -> bool {
    matches!(files, ModelFiles::Gguf(_))
}

fn adapter_tokenizer(dir: &Path) -> Result<Option<Tokenizer>, RunError> {
    // A config alone, without the vocabulary, says nothing.
    let has_one = dir.join("tokenizer.json").is_file();
    Ok(has_one.then(|| Tokenizer::from_folder(dir)).transpose()?)
}
