//! A teacher on this machine.

use super::error::SyntheticError;
use super::teacher::{Asked, Ended, Said};
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::Observer;
use crate::model::{self, FoundModel, LoadedModel, ModelRequest};
use crate::overrides::Overrides;
use crate::plan::Plan;
use crate::subject::{check_room, check_room_of};
use forgelm_generate::{GenerateOptions, Generator, Request, Sampling, StopReason};
use forgelm_kernels_api::Compute;
use forgelm_tokenize::{Message, RenderOptions};
use std::ops::ControlFlow;

/// The likeliest tokens among which one is drawn, as Transformers does by default.
const TOP_K: usize = 50;

/// A model, found and then loaded.
pub(super) struct LocalTeacher {
    request: ModelRequest,
    found: FoundModel,
    loaded: Option<LoadedModel>,
    stop_ids: Vec<u32>,
    now: i64,
}

impl LocalTeacher {
    /// Prompts that are answered together.
    pub(super) const TOGETHER: usize = 8;

    pub(super) fn find(
        plan: &Plan,
        asked: &Asked,
        revision: Option<String>,
        offline: bool,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        let request = ModelRequest {
            name: asked.model.clone(),
            revision,
            chat_template: None,
            overrides: Overrides::default(),
            ..model::request_of(plan, offline)
        };
        let found = model::find(&request, env, observer)?;
        let stop_ids = model::stop_ids(&found.tokenizer, found.template.as_ref());
        // A template that asks for the date gets one that stays: answers do not depend on the day.
        Ok(Self { request, found, loaded: None, stop_ids, now: 0 })
    }

    pub(super) fn load(&mut self) -> Result<(), RunError> {
        let bytes_each = match model::kernels(&self.found.kernels, &self.request)?.1 {
            Compute::F32 => 4,
            Compute::Bf16 => 2,
        };
        let name = self.request.name.clone();
        check_room("its weights", self.found.open.config().n_parameters() * bytes_each)
            .map_err(|problem| SyntheticError::Teacher { name, problem })?;
        self.loaded = Some(model::load(&self.found, &self.request)?);
        Ok(())
    }

    /// Of its weights, once it is loaded.
    pub(super) fn sha256(&self) -> Option<&str> {
        self.loaded.as_ref().map(|loaded| loaded.sha256.as_str())
    }

    pub(super) fn answer(
        &self,
        asked: &Asked,
        prompts: &[(usize, &str)],
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<Result<Said, String>>, Ended> {
        let Some(loaded) = &self.loaded else {
            return Err(Ended::Because("the teacher is not loaded".to_owned()));
        };
        let tokens: Vec<Result<Vec<u32>, String>> =
            prompts.iter().map(|(_, prompt)| self.tokens(asked, prompt)).collect();
        let options: Vec<GenerateOptions> =
            prompts.iter().map(|(index, _)| self.options(asked, *index)).collect();
        let together: Vec<usize> = (0..prompts.len()).filter(|&i| tokens[i].is_ok()).collect();
        let requests: Vec<Request<'_>> = together
            .iter()
            .filter_map(|&i| {
                let prompt = tokens[i].as_deref().ok()?;
                Some(Request { prompt, options: &options[i] })
            })
            .collect();
        let mut said = self.generate(loaded, &requests, is_stopped)?.into_iter();
        let each = tokens.iter().map(|tokens| match tokens {
            Ok(_) => said.next().unwrap_or_else(|| Err("no answer".to_owned())),
            Err(why) => Err(why.clone()),
        });
        Ok(each.collect())
    }

    /// The answers to requests; one that fails is told apart from the others.
    fn generate(
        &self,
        loaded: &LoadedModel,
        requests: &[Request<'_>],
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<Result<Said, String>>, Ended> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let config = loaded.decoder.config();
        let longest = requests.iter().map(|request| request.prompt.len()).max().unwrap_or(0);
        let n_new =
            requests.iter().map(|request| request.options.max_new_tokens).max().unwrap_or(0);
        let context = longest.saturating_add(n_new).min(config.max_position_embeddings);
        let adapter = loaded.adapter.as_ref();
        let fits = |n_lanes: usize| {
            let what = format!("{n_lanes} answers of {context} tokens");
            check_room_of(&loaded.decoder, &what, |config, engine| {
                Generator::memory_plan(config, adapter, context, n_lanes, engine)
            })
        };
        // Half as many at once where there is no room for all.
        let mut n_lanes = requests.len();
        while n_lanes > 1 && fits(n_lanes).is_err() {
            n_lanes /= 2;
        }
        fits(n_lanes).map_err(Ended::Because)?;
        let generator = Generator::with_lanes(&loaded.decoder, adapter, context, n_lanes);
        let mut generator = generator.map_err(|error| Ended::Because(error.to_string()))?;
        let mut goes_on = |_, _| match is_stopped() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let generated = match generator.generate_all(requests, &mut goes_on) {
            Ok(generated) => generated.into_iter().map(Ok).collect(),
            Err(_) => {
                let alone = requests.iter().map(|request| {
                    let generated =
                        generator.generate_all(std::slice::from_ref(request), &mut goes_on);
                    match generated {
                        Ok(mut one) => one.pop().ok_or_else(|| "no answer".to_owned()),
                        Err(error) => Err(error.source.to_string()),
                    }
                });
                alone.collect::<Vec<_>>()
            }
        };
        if is_stopped() {
            return Err(Ended::Stopped);
        }
        let said = generated.into_iter().map(|generated| {
            let generated = generated?;
            let text = self.found.tokenizer.decode_without_specials(&generated.tokens);
            let is_cut =
                matches!(generated.reason, StopReason::MaxNewTokens | StopReason::ContextFull);
            let text = text.map_err(|error| error.to_string())?.trim().to_owned();
            Ok(Said { text, is_cut, n_tries: 1 })
        });
        Ok(said.collect())
    }

    /// Each prompt has random numbers of its own, whichever start asks it.
    fn options(&self, asked: &Asked, index: usize) -> GenerateOptions {
        #[expect(clippy::cast_possible_truncation, reason = "temperatures are small numbers")]
        let temperature = asked.temperature as f32;
        let sampling = match temperature > 0.0 {
            true => Sampling { temperature, top_k: TOP_K, ..Sampling::GREEDY },
            false => Sampling::GREEDY,
        };
        GenerateOptions {
            max_new_tokens: usize::try_from(asked.max_new_tokens).unwrap_or(usize::MAX),
            sampling,
            seed: asked.seed.wrapping_add(index as u64),
            stop_ids: self.stop_ids.clone(),
            reuse_cache: false,
        }
    }

    fn tokens(&self, asked: &Asked, prompt: &str) -> Result<Vec<u32>, String> {
        let tokenizer = &self.found.tokenizer;
        let Some(template) = &self.found.template else {
            let text = format!("{}\n\nUser: {prompt}\nAssistant:", asked.system);
            let encoding = tokenizer.encode(&text).map_err(|error| error.to_string())?;
            return Ok([tokenizer.prefix_ids(), &encoding.ids].concat());
        };
        let options = RenderOptions {
            add_generation_prompt: true,
            now: Some(self.now),
            ..RenderOptions::default()
        };
        let user = Message::new("user", prompt);
        let whole = [Message::new("system", asked.system.as_str()), user.clone()];
        match tokenizer.encode_chat(template, &whole, &options) {
            Ok(chat) => Ok(chat.ids),
            // Some templates know no system message; one of ours can go, the user's own cannot.
            Err(_) if !asked.is_own_system => tokenizer
                .encode_chat(template, &[user], &options)
                .map(|chat| chat.ids)
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}
