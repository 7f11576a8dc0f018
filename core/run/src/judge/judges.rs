//! The judge itself: a model behind an API, or one that is loaded here once training has ended.

use super::answers;
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::Observer;
use crate::model::{self, FoundModel, LoadedModel, ModelRequest};
use crate::outbound::{ApiSettings, open_api};
use crate::overrides::Overrides;
use crate::plan::Plan;
use crate::subject::{AnswerError, Language, Subject, check_room};
use forgelm_config::{LlmJudge, Secret};
use forgelm_evidence::documents::evidence::ComponentRevision;
use forgelm_kernels_api::Compute;
use forgelm_outbound::chat_api::{ChatApi, ChatError, Pace, Question};
use forgelm_tokenize::Message;
use serde_json::{Value, json};
use std::time::Duration;

/// The part that it plays, as records have it.
const ROLE: &str = "llm_judge";
/// Tokens of a reply.
const REPLY_TOKENS: usize = 200;
/// Seconds that a request may take.
const SECONDS: u64 = 30;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(120);

/// What the judge said to one question, or why nothing.
pub(super) type Reply = Result<String, String>;

/// Why the judge is not asked any more.
pub(super) enum Ended {
    /// The run should stop.
    Stopped,
    /// It cannot be.
    Because(String),
}

/// A judge that was found.
pub(super) enum Judge {
    Api { api: Box<ChatApi>, model: String },
    Local(Box<LocalJudge>),
}

/// A judge on this machine.
pub(super) struct LocalJudge {
    request: ModelRequest,
    found: FoundModel,
    loaded: Option<LoadedModel>,
    stop_ids: Vec<u32>,
    batch_size: usize,
}

impl Judge {
    /// The judge of a section, with its key and address, or its files.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub(super) fn find(
        (plan, section): (&Plan, &LlmJudge),
        offline: bool,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        let model = section.judge_model.clone();
        if let Some(base) = super::base(section) {
            let key = section.judge_api_key_env.as_deref().map(|name| {
                let missing = || RunError::Variable {
                    key: "evaluation.llm_judge.judge_api_key_env",
                    name: name.to_owned(),
                };
                (env.variable)(name).map(Secret::new).ok_or_else(missing)
            });
            let settings = ApiSettings {
                section: "evaluation.llm_judge",
                place: "evaluation.llm_judge.judge_api_base",
                base,
                model: &model,
                key: key.transpose()?,
                seconds: SECONDS,
                pace: Pace {
                    delay: Duration::from_secs_f64(section.api_delay),
                    first_pause: FIRST_PAUSE,
                    patience: PATIENCE,
                },
                allow_private: section.allow_private_destinations,
            };
            let offline = offline || plan.run.model.offline || env.offline;
            let api = Box::new(open_api(&settings, offline, env)?);
            return Ok(Self::Api { api, model });
        }
        let request = ModelRequest {
            name: model,
            revision: section.judge_model_revision.clone(),
            chat_template: None,
            overrides: Overrides::default(),
            ..model::request_of(plan, offline)
        };
        let found = model::find(&request, env, observer)?;
        let stop_ids = model::stop_ids(&found.tokenizer, found.template.as_ref());
        let batch_size = section.batch_size;
        Ok(Self::Local(Box::new(LocalJudge { request, found, loaded: None, stop_ids, batch_size })))
    }

    /// For a person: the model, and where it is.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Api { api, model } => format!("`{model}` at {}", api.destination()),
            Self::Local(local) => format!("`{}`", local.request.name),
        }
    }

    /// As documents have it: without path and query of an address.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Api { api, model } => json!({
                "backend": "api",
                "model": model,
                "destination": api.destination().to_string(),
                "dialect": api.dialect().as_str(),
            }),
            Self::Local(local) => json!({
                "backend": "local",
                "model": local.request.name,
                "sha256": local.loaded.as_ref().map(|loaded| loaded.sha256.clone()),
            }),
        }
    }

    /// Which revision of a local judge took part.
    pub(super) fn component(&self) -> Option<ComponentRevision> {
        let Self::Local(local) = self else { return None };
        let sha256 = local.loaded.as_ref()?.sha256.clone();
        let revision = dossier::revision(&local.found.resolved.revision, Some(sha256));
        Some(ComponentRevision { role: ROLE.to_owned(), revision })
    }

    /// Loads a local judge; an API has nothing to load.
    pub(super) fn load(&mut self) -> Result<(), Ended> {
        match self {
            Self::Api { .. } => Ok(()),
            Self::Local(local) => local.load().map_err(|why| {
                Ended::Because(format!(
                    "the judge `{}` cannot be loaded: {why}",
                    local.request.name
                ))
            }),
        }
    }

    /// What it says to each question.
    pub(super) fn replies(
        &mut self,
        questions: &[String],
        subject: &Subject<'_>,
    ) -> Result<Vec<Reply>, Ended> {
        match self {
            Self::Api { api, .. } => {
                questions.iter().map(|question| ask(api, question, subject)).collect()
            }
            Self::Local(local) => local.replies(questions, subject),
        }
    }
}

/// One question to an API. What would not get better for the others ends it all.
fn ask(api: &mut ChatApi, question: &str, subject: &Subject<'_>) -> Result<Reply, Ended> {
    let question = Question {
        system: None,
        user: question,
        max_tokens: REPLY_TOKENS as u64,
        temperature: 0.0,
    };
    match api.ask(&question, subject.is_stopped) {
        Ok(said) => Ok(Ok(said.text)),
        Err(unanswered) if unanswered.error == ChatError::Stopped => Err(Ended::Stopped),
        Err(unanswered) if unanswered.is_final => Err(Ended::Because(format!(
            "the judge at {} cannot be asked: {unanswered}",
            api.destination()
        ))),
        Err(unanswered) => Ok(Err(unanswered.to_string())),
    }
}

impl LocalJudge {
    fn load(&mut self) -> Result<(), String> {
        if self.loaded.is_some() {
            return Ok(());
        }
        let kernels = model::kernels(&self.found.kernels, &self.request);
        let bytes_each = match kernels.map_err(|error| error.chain())?.1 {
            Compute::F32 => 4,
            Compute::Bf16 => 2,
        };
        let n_bytes = self.found.open.config().n_parameters() * bytes_each;
        check_room("its weights", n_bytes)?;
        let loaded = model::load(&self.found, &self.request).map_err(|error| error.chain())?;
        self.loaded = Some(loaded);
        Ok(())
    }

    fn replies(&self, questions: &[String], of: &Subject<'_>) -> Result<Vec<Reply>, Ended> {
        let Some(loaded) = &self.loaded else {
            return Err(Ended::Because("the judge is not loaded".to_owned()));
        };
        let subject = Subject {
            decoder: &loaded.decoder,
            adapter: loaded.adapter.as_ref(),
            language: Language {
                tokenizer: &self.found.tokenizer,
                template: self.found.template.as_ref(),
                template_now: of.language.template_now,
                stop_ids: &self.stop_ids,
            },
            is_stopped: of.is_stopped,
        };
        let tokens = questions.iter().map(|question| match subject.language.template {
            Some(_) => subject.conversation(&[Message::new("user", question.as_str())]),
            None => subject.text(question),
        });
        let options = answers::greedy(REPLY_TOKENS, &self.stop_ids);
        answers::of(&subject, tokens.collect(), &options, self.batch_size.max(1)).map_err(|error| {
            match error {
                AnswerError::Stopped => Ended::Stopped,
                error => Ended::Because(format!("the judge did not answer: {error}")),
            }
        })
    }
}
