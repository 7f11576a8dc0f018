//! A classifier as the reward of answers: its first logit, for prompt and answer in its own chat
//! template.

use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::memory;
use crate::model::{self, ModelRequest};
use crate::plan::Plan;
use crate::plugins::Plugins;
use crate::score::read_messages;
use forgelm_artifact::hash::{Hasher, sha256_file};
use forgelm_evidence::documents::evidence::{ComponentRevision, RevisionRecord};
use forgelm_hub::{HubOptions, ModelFiles, ResolvedModel, Source, resolve};
use forgelm_kernels_api::Compute;
use forgelm_model::{Activations, Classifier, MemoryPlan, OpenModel};
use forgelm_sdk::Failed;
use forgelm_sdk::reward::{Answer, Reward};
use forgelm_tokenize::{ChatTemplate, Message, RenderOptions, Tokenizer};
use forgelm_train::rollouts::NamedReward;
use serde_json::Value;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The part that it plays, as records have it, and its name in the metrics.
const ROLE: &str = "grpo_reward_model";

const NO_TEMPLATE: &str = "the prompt is a conversation, and the reward model has no chat template";

/// A classifier in memory, with what makes tokens for it.
pub(crate) struct RewardModel {
    classifier: Classifier,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    template_now: i64,
    /// Grow to the longest sequence.
    buffers: Mutex<Option<Activations>>,
    revision: RevisionRecord,
    /// Of everything that it judges with.
    pub(crate) digest: String,
}

impl RewardModel {
    /// The reward model of a plan, found, checked and loaded in float32; `None` where it names none,
    /// or has no answers to judge.
    pub(crate) fn find(
        (plan, plugins): (&Plan, &Plugins),
        offline: bool,
        template_now: i64,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Option<Arc<Self>>, RunError> {
        let training = &plan.run.training;
        let Some(name) = &training.grpo_reward_model else { return Ok(None) };
        if !plugins.trainer(plan)?.needs.rollouts {
            return Ok(None);
        }
        let request = ModelRequest {
            name: name.clone(),
            revision: training.grpo_reward_model_revision.clone(),
            ..model::request_of(plan, offline)
        };
        let resolved = resolve_files(&request, env, observer)?;
        let ModelFiles::Folder(folder) = &resolved.files else {
            return Err(RunError::RewardModel { name: name.clone() });
        };
        let open = OpenModel::open_classifier(folder)?;
        open.check_tensors()?;
        let tokenizer = Tokenizer::from_folder(folder)?;
        open.config().check_tokenizer_size(tokenizer.vocab_size())?;
        let template = match tokenizer.templates().is_empty() {
            true => None,
            false => Some(tokenizer.chat_template(None)?),
        };
        check_room(open.config().n_parameters())?;
        let ops = plugins.kernels()?;
        let load = || Classifier::load(&open, ops, Compute::F32);
        let (sha256, classifier) = model::while_hashing(&resolved, load)?;
        let classifier = classifier?;
        let digest = digest(folder, &sha256)?;
        if !open.is_unchanged() {
            return Err(RunError::Changed { path: folder.clone() });
        }
        let text = format!("reward model `{name}`: {} label(s)", classifier.num_labels());
        observer.observe(&Event::Notice(text));
        Ok(Some(Arc::new(Self {
            classifier,
            tokenizer,
            template,
            template_now,
            buffers: Mutex::new(None),
            revision: dossier::revision(&resolved.revision, Some(sha256)),
            digest,
        })))
    }

    /// As the judge of answers.
    pub(super) fn reward(model: &Arc<Self>) -> NamedReward {
        NamedReward { name: ROLE, reward: Box::new(ByModel(Arc::clone(model))) }
    }

    /// What the user should know.
    pub(super) fn note(&self) -> Option<String> {
        let n = self.classifier.num_labels();
        (n != 1).then(|| format!("the reward model has {n} labels: the first is the reward"))
    }

    /// Every buffer that judging answers of this length takes, by name and size.
    pub(super) fn memory_plan(&self, n_tokens: usize) -> MemoryPlan {
        let n_tokens = n_tokens.min(self.longest());
        let bytes = self.classifier.memory_plan(n_tokens).total_bytes();
        let mut plan = MemoryPlan::default();
        plan.add("activations of the reward model", bytes);
        plan
    }

    /// What is wrong with the prompt of a record, if the model cannot read it.
    pub(super) fn problem(&self, record: &str) -> Option<String> {
        self.tokens(&Answer { prompt: "", completion: "", record }).err()
    }

    /// Which revision it is, for the documents.
    pub(crate) fn component(&self) -> ComponentRevision {
        ComponentRevision { role: ROLE.to_owned(), revision: self.revision.clone() }
    }

    fn longest(&self) -> usize {
        self.classifier.config().max_position_embeddings
    }

    /// Prompt and answer as the classifier reads them; of what is too long, the end.
    fn tokens(&self, answer: &Answer<'_>) -> Result<Vec<u32>, String> {
        let record: Value = serde_json::from_str(answer.record).map_err(|e| e.to_string())?;
        let prompt = &record["prompt"];
        let mut tokens = match (&self.template, prompt) {
            (Some(template), _) => self.conversation(template, prompt, answer.completion)?,
            (None, Value::String(prompt)) => {
                let text = format!("{prompt}{}", answer.completion);
                let encoded = self.tokenizer.encode(&text).map_err(|error| error.to_string())?;
                [self.tokenizer.prefix_ids(), &encoded.ids, self.tokenizer.suffix_ids()].concat()
            }
            (None, _) => return Err(NO_TEMPLATE.to_owned()),
        };
        if tokens.is_empty() {
            return Err("prompt and answer have no tokens".to_owned());
        }
        Ok(tokens.split_off(tokens.len().saturating_sub(self.longest())))
    }

    /// A prompt that is a text is what a user said.
    fn conversation(
        &self,
        template: &ChatTemplate,
        prompt: &Value,
        completion: &str,
    ) -> Result<Vec<u32>, String> {
        let mut messages = match prompt {
            Value::String(text) => vec![Message::new("user", text.as_str())],
            messages => read_messages(messages, "prompt")?,
        };
        messages.push(Message::new("assistant", completion));
        let options = RenderOptions { now: Some(self.template_now), ..RenderOptions::default() };
        let chat = self.tokenizer.encode_chat(template, &messages, &options);
        chat.map(|chat| chat.ids).map_err(|error| error.to_string())
    }

    /// The first logit of a sequence.
    fn score(&self, tokens: &[u32]) -> Result<f64, String> {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_enough = |acts: &Activations| acts.size().tokens_max >= tokens.len();
        let mut acts = match buffers.take().filter(is_enough) {
            Some(acts) => acts,
            None => self.classifier.activations(tokens.len()).map_err(|error| error.to_string())?,
        };
        let mut logits = vec![0.0; self.classifier.num_labels()];
        self.classifier.score(tokens, &mut acts, &mut logits);
        *buffers = Some(acts);
        Ok(f64::from(logits[0]))
    }
}

/// Refuses weights for which there is no memory, before any is read.
fn check_room(n_parameters: usize) -> Result<(), RunError> {
    let needed = (n_parameters * size_of::<f32>()) as u64;
    match memory::room() {
        Some(room) if room.bytes < needed => Err(RunError::Memory {
            needed,
            available: room.bytes,
            ceiling: room.ceiling.name(),
            largest: "the weights of the reward model, in float32".to_owned(),
            hint: "name a smaller `training.grpo_reward_model`".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// A digest of all that decides what the model says of an answer: weights, description, tokenizer and
/// template.
fn digest(folder: &Path, weights: &str) -> Result<String, RunError> {
    let mut hasher = Hasher::new();
    hasher.update(weights.as_bytes());
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let path = folder.join(name);
        if path.is_file() {
            hasher.update(name.as_bytes());
            hasher.update(sha256_file(&path)?.as_str().as_bytes());
        }
    }
    Ok(hasher.finish().as_str().to_owned())
}

fn resolve_files(
    request: &ModelRequest,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<ResolvedModel, RunError> {
    let options = HubOptions {
        role: ROLE.to_owned(),
        ..model::hub_options(request, request.revision.clone(), env)
    };
    let source = Source::parse(&request.name)?;
    Ok(resolve(&source, &options, &mut |event| model::report(event, observer))?)
}

struct ByModel(Arc<RewardModel>);

impl Reward for ByModel {
    fn judge(&self, answers: &[Answer<'_>]) -> Result<Vec<Option<f64>>, Failed> {
        let judged = answers.iter().map(|answer| {
            let tokens = self.0.tokens(answer)?;
            Ok(Some(self.0.score(&tokens)?))
        });
        judged.collect::<Result<_, String>>().map_err(Failed::new)
    }
}
