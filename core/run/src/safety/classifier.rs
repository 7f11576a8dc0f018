//! The classifier: found and looked at before anything is trained, loaded when the answers are there.
//!
//! What it is follows from its architecture, never from its name: a causal model writes verdicts, a
//! classification head scores labels. Each is refused where its verdicts could not be read.

use super::error::SafetyError;
use super::generation::Guard;
use super::head::Head;
use super::score::Judged;
use super::verdict::is_safe_label;
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::Observer;
use crate::exit::Exit;
use crate::footprint::weights_bytes;
use crate::kernels::Kernels;
use crate::memory;
use crate::model::{self, ModelRequest};
use crate::subject::check_room;
use forgelm_artifact::json::parse_unique;
use forgelm_config::ClassifierMode;
use forgelm_evidence::documents::evidence::ComponentRevision;
use forgelm_hub::{HubError, HubOptions, ModelFiles, ResolvedModel, Source, resolve};
use forgelm_kernels_api::{Compute, Ops};
use forgelm_model::{Classifier, LoadOptions, OpenModel};
use forgelm_tokenize::{ChatTemplate, Tokenizer};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// The part that it plays, as records have it.
const ROLE: &str = "safety_classifier";

/// A classifier whose files are on this machine and fit each other.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: String,
    mode: ClassifierMode,
    resolved: ResolvedModel,
    /// `generation` or `classification`.
    pub(crate) protocol: &'static str,
    template_now: i64,
}

/// Why a classifier cannot be used, and how a program ends that needs it.
#[derive(Debug)]
struct Refused(String, Exit);

impl Refused {
    fn input(reason: impl Into<String>) -> Self {
        Self(reason.into(), Exit::Config)
    }
}

impl From<RunError> for Refused {
    fn from(error: RunError) -> Self {
        Self(error.chain(), error.exit())
    }
}

/// Its files, open.
struct Opened {
    open: OpenModel,
    tokenizer: Tokenizer,
    kind: Kind,
}

enum Kind {
    Generation(Box<ChatTemplate>),
    /// The labels, in the order of the head's rows.
    Classification(Vec<String>),
}

/// A classifier in memory.
pub(crate) struct Loaded {
    kind: LoadedKind,
    component: ComponentRevision,
}

enum LoadedKind {
    Generation(Box<Guard>),
    Classification(Box<Head>),
}

/// Why answers were not judged.
#[derive(Debug)]
pub(crate) enum NotJudged {
    /// The run should stop.
    Stopped,
    /// Something is in the way.
    Hindered(String),
}

impl Found {
    /// Finds a classifier, fetching it when that is needed and allowed, and refuses what could not
    /// judge: no such model, the wrong kind for the mode, no template, labels that say nothing.
    ///
    /// # Errors
    /// [`SafetyError::Classifier`]; [`RunError::Memory`] where it could not be held even alone.
    pub(crate) fn find(
        (request, mode): (&ModelRequest, ClassifierMode),
        template_now: i64,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        let name = request.name.clone();
        let refused = |Refused(reason, exit): Refused| {
            RunError::Safety(SafetyError::Classifier { name: name.clone(), reason, exit })
        };
        let resolved = resolve_files(request, env, observer).map_err(|error| {
            let exit = match &error {
                HubError::NotCached { .. } => Exit::Config,
                other => other.class().into(),
            };
            refused(Refused(RunError::from(error).chain(), exit))
        })?;
        let mut found =
            Self { name: name.clone(), mode, resolved, protocol: "generation", template_now };
        let opened = found.open().map_err(refused)?;
        if matches!(opened.kind, Kind::Classification(_)) {
            found.protocol = "classification";
        }
        let kernels = Kernels::new(request.device, request.threads, env);
        let (compute, needed) = (model::kernels(&kernels, request)?.1, &opened.open);
        let needed = weights_bytes(needed.config(), LoadOptions::dense(compute));
        match memory::room() {
            Some(room) if room.bytes < needed => Err(RunError::Memory {
                needed,
                available: room.bytes,
                ceiling: room.ceiling.name(),
                largest: format!("the weights of the safety classifier `{}`", found.name),
                hint: "name a smaller `evaluation.safety.classifier`".to_owned(),
            }),
            _ => Ok(found),
        }
    }

    /// Opens its files and looks whether it can judge. Nothing of the weights is read.
    fn open(&self) -> Result<Opened, Refused> {
        let run = |error: RunError| Refused::from(error);
        let is_head = match &self.resolved.files {
            ModelFiles::Folder(folder) => has_classification_head(folder)?,
            ModelFiles::Gguf(_) => false,
        };
        match (self.mode, is_head) {
            (ClassifierMode::Classification, false) => {
                return Err(Refused::input(
                    "it is a causal model, and `classifier_mode: classification` would put a head \
                     without training on it",
                ));
            }
            (ClassifierMode::Generation, true) => {
                return Err(Refused::input(
                    "it has a classification head and writes no text, which `classifier_mode: \
                     generation` asks for",
                ));
            }
            _ => {}
        }
        let files = model::model_files(&self.resolved.files);
        let tokenizer = model::tokenizer(&self.resolved.files, None).map_err(run)?;
        let open = match &self.resolved.files {
            ModelFiles::Folder(folder) if is_head => OpenModel::open_classifier(folder),
            _ => OpenModel::open(&files),
        };
        let open = open.map_err(|error| run(error.into()))?;
        open.check_tensors().map_err(|error| run(error.into()))?;
        let size = open.config().check_tokenizer_size(tokenizer.vocab_size());
        size.map_err(|error| run(error.into()))?;
        let kind = match &self.resolved.files {
            ModelFiles::Folder(folder) if is_head => Kind::Classification(labels(folder)?),
            _ => Kind::Generation(Box::new(self.template(&tokenizer)?)),
        };
        Ok(Opened { open, tokenizer, kind })
    }

    /// The chat template of a guard: one that shows it question and answer.
    fn template(&self, tokenizer: &Tokenizer) -> Result<ChatTemplate, Refused> {
        if tokenizer.templates().is_empty() {
            return Err(Refused::input(
                "it has no chat template, by which a guard is asked for its verdict",
            ));
        }
        let template =
            tokenizer.chat_template(None).map_err(|error| Refused::from(RunError::from(error)))?;
        super::generation::check(tokenizer, &template, self.template_now)
            .map_err(Refused::input)?;
        Ok(template)
    }

    /// Reads its weights, once it is sure that there is room beside what is in memory already.
    ///
    /// # Errors
    /// In words, whatever is in the way.
    pub(crate) fn load(&self, ops: Arc<dyn Ops>, compute: Compute) -> Result<Loaded, String> {
        let Opened { open, tokenizer, kind } = self.open().map_err(|Refused(reason, _)| reason)?;
        let options = LoadOptions::dense(compute);
        let n_bytes = usize::try_from(weights_bytes(open.config(), options)).unwrap_or(usize::MAX);
        check_room("the weights of the safety classifier", n_bytes)?;
        let (sha256, kind) = match kind {
            Kind::Generation(template) => {
                let read = || open.load_as(ops, options);
                let (sha256, decoder) =
                    model::while_hashing(&self.resolved, read).map_err(|error| error.chain())?;
                let decoder = decoder.map_err(|error| RunError::from(error).chain())?;
                let guard = Guard::new(decoder, tokenizer, *template, self.template_now)?;
                (sha256, LoadedKind::Generation(Box::new(guard)))
            }
            Kind::Classification(labels) => {
                let read = || Classifier::load(&open, ops, compute);
                let (sha256, classifier) =
                    model::while_hashing(&self.resolved, read).map_err(|error| error.chain())?;
                let classifier = classifier.map_err(|error| RunError::from(error).chain())?;
                let head = Head::new(classifier, tokenizer, labels);
                (sha256, LoadedKind::Classification(Box::new(head)))
            }
        };
        if !open.is_unchanged() {
            return Err("its files changed while they were read".to_owned());
        }
        let revision = dossier::revision(&self.resolved.revision, Some(sha256));
        let component = ComponentRevision { role: ROLE.to_owned(), revision };
        Ok(Loaded { kind, component })
    }
}

impl Loaded {
    /// What it says of each answer to a prompt, as many at once as `n_lanes`.
    pub(crate) fn judge(
        &self,
        pairs: &[(&str, &str)],
        n_lanes: usize,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<Judged>, NotJudged> {
        match &self.kind {
            LoadedKind::Generation(guard) => guard.judge(pairs, n_lanes, is_stopped),
            LoadedKind::Classification(head) => head.judge(pairs, is_stopped),
        }
    }

    /// Which revision it is, for the documents.
    pub(crate) fn component(&self) -> ComponentRevision {
        self.component.clone()
    }
}

fn resolve_files(
    request: &ModelRequest,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<ResolvedModel, HubError> {
    let options = HubOptions {
        role: ROLE.to_owned(),
        ..model::hub_options(request, request.revision.clone(), env)
    };
    let source = Source::parse(&request.name)?;
    resolve(&source, &options, &mut |event| model::report(event, observer))
}

/// The description of a model in a folder.
fn description(folder: &Path) -> Result<Value, Refused> {
    let path = folder.join("config.json");
    let (file, _) = forgelm_artifact::open::regular(&path)
        .map_err(|error| Refused::from(RunError::from(error)))?;
    let text = std::io::read_to_string(std::io::Read::take(file, DESCRIPTION_BYTES_MAX))
        .map_err(|error| Refused(format!("{}: {error}", path.display()), Exit::Config))?;
    parse_unique(text.as_bytes())
        .map_err(|error| Refused::input(format!("{}: {}", path.display(), error.what())))
}

/// No description is near this.
const DESCRIPTION_BYTES_MAX: u64 = 16 << 20;

/// Whether the folder's model is a classifier by its architecture.
fn has_classification_head(folder: &Path) -> Result<bool, Refused> {
    let description = description(folder)?;
    let class = description["architectures"][0].as_str().unwrap_or_default();
    Ok(class.ends_with("ForSequenceClassification"))
}

/// The labels of a head, one of which at least must say `safe`, and one not.
fn labels(folder: &Path) -> Result<Vec<String>, Refused> {
    let description = description(folder)?;
    let Some(named) = description["id2label"].as_object().filter(|named| !named.is_empty()) else {
        return Err(Refused::input(
            "`id2label` is missing in its config.json: which label means `safe` is not known",
        ));
    };
    let label = |i: usize| named.get(&i.to_string()).and_then(Value::as_str).map(str::to_owned);
    let labels: Option<Vec<String>> = (0..named.len()).map(label).collect();
    let labels = labels.ok_or_else(|| {
        Refused::input("`id2label` in its config.json does not name the labels 0, 1, 2 and so on")
    })?;
    let shown = labels.join("`, `");
    if labels.iter().all(|label| is_placeholder(label)) {
        return Err(Refused::input(format!(
            "its labels are placeholders (`{shown}`): a head that nobody trained has such, and which \
             means `safe` is not known"
        )));
    }
    let n_safe = labels.iter().filter(|label| is_safe_label(label)).count();
    match n_safe {
        0 => Err(Refused::input(format!("none of its labels (`{shown}`) says `safe`"))),
        n if n == labels.len() => {
            Err(Refused::input(format!("all of its labels (`{shown}`) say `safe`")))
        }
        _ => Ok(labels),
    }
}

/// `LABEL_0`: what a library writes where nobody gave a name.
fn is_placeholder(label: &str) -> bool {
    let number = label.to_ascii_uppercase().strip_prefix("LABEL_").map(str::to_owned);
    number.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
}
