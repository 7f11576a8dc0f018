//! Who answers: a model behind an API, one on this machine, or a file.

use super::answers_file::AnswersFile;
use super::local::LocalTeacher;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::Observer;
use crate::outbound::{ApiSettings, open_api};
use crate::plan::Plan;
use forgelm_config::{Secret, Synthetic, TeacherBackend};
use forgelm_outbound::chat_api::{ChatApi, ChatError, Pace, Question};
use serde_json::{Value, json};
use std::time::Duration;

/// What a teacher is told where the config says nothing.
const SYSTEM: &str = "You are a helpful assistant.";
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(300);

/// An answer.
pub(super) struct Said {
    pub(super) text: String,
    /// Whether it ended because it was too long.
    pub(super) is_cut: bool,
    /// Requests that were sent for it.
    pub(super) n_tries: u32,
}

/// Why nobody is asked any more.
pub(super) enum Ended {
    Stopped,
    Because(String),
}

/// A teacher that was found.
pub(super) enum Teacher {
    Api { api: Box<ChatApi>, asked: Asked },
    Local { local: Box<LocalTeacher>, asked: Asked },
    File { answers: AnswersFile, name: String },
}

/// How it is asked.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) system: String,
    /// Whether `system` is the user's own.
    pub(super) is_own_system: bool,
    pub(super) max_new_tokens: u64,
    pub(super) temperature: f64,
    pub(super) seed: u64,
}

impl Teacher {
    /// The teacher of a section, with its key and address, or its files.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub(super) fn find(
        (plan, section): (&Plan, &Synthetic),
        answers: Option<AnswersFile>,
        offline: bool,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        if let Some(answers) = answers {
            return Ok(Self::File { answers, name: section.seed_file.clone() });
        }
        let is_own_system = !section.system_prompt.is_empty();
        let system = if is_own_system { section.system_prompt.as_str() } else { SYSTEM };
        let asked = Asked {
            model: section.teacher_model.clone(),
            system: system.to_owned(),
            is_own_system,
            max_new_tokens: section.max_new_tokens,
            temperature: section.temperature,
            seed: plan.run.training.seed,
        };
        match section.teacher_backend {
            TeacherBackend::Local | TeacherBackend::File => {
                let revision = section.teacher_revision.clone();
                let local = LocalTeacher::find(plan, &asked, revision, offline, env, observer)?;
                Ok(Self::Local { local: Box::new(local), asked })
            }
            TeacherBackend::Api => {
                let settings = ApiSettings {
                    section: "synthetic",
                    place: "synthetic.api_base",
                    base: &section.api_base,
                    model: &section.teacher_model,
                    key: key(section, env)?,
                    seconds: section.api_timeout,
                    pace: Pace {
                        delay: Duration::from_secs_f64(section.api_delay),
                        first_pause: FIRST_PAUSE,
                        patience: PATIENCE,
                    },
                    allow_private: section.allow_private_destinations,
                };
                let api = Box::new(open_api(&settings, offline, env)?);
                Ok(Self::Api { api, asked })
            }
        }
    }

    /// Loads a local teacher, so that what it is is known before anything is written.
    pub(super) fn load(&mut self) -> Result<(), RunError> {
        match self {
            Self::Local { local, .. } => local.load(),
            Self::Api { .. } | Self::File { .. } => Ok(()),
        }
    }

    /// For a person.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Api { api, asked } => format!("`{}` at {}", asked.model, api.destination()),
            Self::Local { asked, .. } => format!("`{}`", asked.model),
            Self::File { name, .. } => format!("the file {name}"),
        }
    }

    /// The model, or the file.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Api { asked, .. } | Self::Local { asked, .. } => &asked.model,
            Self::File { name, .. } => name,
        }
    }

    /// Everything that decides an answer but its prompt.
    pub(super) fn identity(&self, plan: &Plan, section: &Synthetic) -> Value {
        let format = section.output_format.as_str();
        let backend = section.teacher_backend.as_str();
        let (more, asked) = match self {
            Self::File { .. } => return json!({"backend": backend, "output_format": format}),
            Self::Api { api, asked } => {
                (json!({"api_base": section.api_base, "dialect": api.dialect().as_str()}), asked)
            }
            Self::Local { local, asked } => {
                let seed = plan.run.training.seed;
                (json!({"sha256": local.sha256(), "seed": seed}), asked)
            }
        };
        json!({
            "backend": backend,
            "model": asked.model,
            "revision": section.teacher_revision,
            "of_backend": more,
            "system": asked.system,
            "system_in_rows": asked.is_own_system,
            "max_new_tokens": asked.max_new_tokens,
            "temperature": asked.temperature,
            "output_format": format,
        })
    }

    /// What is known of an answer before it is asked for: that of a file.
    pub(super) fn known(&self, prompt: &str) -> Option<&str> {
        match self {
            Self::File { answers, .. } => Some(answers.answer(prompt)),
            Self::Api { .. } | Self::Local { .. } => None,
        }
    }

    /// Prompts that are asked together: what is answered and not kept yet is lost by a kill.
    pub(super) fn batch_size(&self) -> usize {
        match self {
            Self::Api { .. } | Self::File { .. } => 1,
            Self::Local { .. } => LocalTeacher::TOGETHER,
        }
    }

    /// The answer to each prompt, by its number, or why there is none.
    pub(super) fn answer(
        &mut self,
        prompts: &[(usize, &str)],
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<Result<Said, String>>, Ended> {
        match self {
            Self::File { answers, .. } => Ok(prompts
                .iter()
                .map(|(_, prompt)| {
                    Ok(Said { text: answers.answer(prompt).to_owned(), is_cut: false, n_tries: 1 })
                })
                .collect()),
            Self::Local { local, asked } => local.answer(asked, prompts, is_stopped),
            Self::Api { api, asked } => {
                prompts.iter().map(|(_, prompt)| ask(api, asked, prompt, is_stopped)).collect()
            }
        }
    }
}

/// One question to an API. What would not get better for the others ends it all.
fn ask(
    api: &mut ChatApi,
    asked: &Asked,
    prompt: &str,
    is_stopped: &dyn Fn() -> bool,
) -> Result<Result<Said, String>, Ended> {
    let question = Question {
        system: Some(&asked.system),
        user: prompt,
        max_tokens: asked.max_new_tokens,
        temperature: asked.temperature,
    };
    match api.ask(&question, is_stopped) {
        Ok(said) => Ok(Ok(Said { text: said.text, is_cut: said.is_cut, n_tries: said.n_tries })),
        Err(unanswered) if unanswered.error == ChatError::Stopped => Err(Ended::Stopped),
        Err(unanswered) if unanswered.is_final => Err(Ended::Because(format!(
            "the teacher at {} cannot be asked: {unanswered}",
            api.destination()
        ))),
        Err(unanswered) => Ok(Err(unanswered.to_string())),
    }
}

/// The key of the API: written, or in the variable that is named; none where neither is.
fn key(section: &Synthetic, env: &Environment) -> Result<Option<Secret>, RunError> {
    if let Some(key) = section.api_key.as_ref().filter(|key| !key.is_empty()) {
        return Ok(Some(key.clone()));
    }
    let Some(name) = &section.api_key_env else { return Ok(None) };
    let missing = || RunError::Variable { key: "synthetic.api_key_env", name: name.clone() };
    (env.variable)(name).map(Secret::new).map(Some).ok_or_else(missing)
}
