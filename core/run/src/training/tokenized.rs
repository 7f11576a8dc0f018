//! The data of a run as tokens, and the order in which they come.

use crate::data::{self, Sources};
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{DataReady, Event, Observer};
use crate::model::FoundModel;
use crate::plan::Plan;
use crate::plugins::{Plugins, Used};
use crate::rewards::{Answering, RewardModel};
use crate::sample::Question;
use crate::settings;
use forgelm_data::Prepared;
use forgelm_model::MemoryPlan;
use forgelm_sdk::trainer::Needs;
use forgelm_tokenize::Tokenizer;
use forgelm_train::feed::{Feed, Mismatched};
use std::sync::Arc;

/// The training and validation sequences of a run and the order in which they come.
pub(crate) struct TokenizedData {
    pub(crate) prepared: Prepared,
    pub(crate) plan: forgelm_data::Plan,
    pub(crate) needs: Needs,
    mismatched: Option<Mismatched>,
    answering: Option<Answering>,
    pub(crate) question: Option<Question>,
}

impl TokenizedData {
    pub(crate) fn new(
        (plan, plugins): (&Plan, &Plugins),
        sources: &Sources,
        (found, reward_model): (&FoundModel, Option<Arc<RewardModel>>),
        template_now: i64,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        let needs = plugins.trainer(plan)?.needs;
        let prepared = data::prepare(plan, sources, found, template_now, env)?;
        let lengths = prepared.train.lengths();
        let order = forgelm_data::Plan::new(settings::data_plan(&plan.run), &lengths);
        let question = data::question(plan, &prepared)?;
        let mismatched = Feed::needs_mismatched(needs).then(|| {
            let n_records = [prepared.train.len(), prepared.validation.len()];
            let training = &plan.run.training;
            Mismatched::new(
                n_records,
                plan.run.model.max_length,
                training.seed,
                plan.run.data.shuffle,
            )
        });
        let answering = needs
            .rollouts
            .then(|| Answering::new(plan, plugins.registry(), (found, reward_model), &prepared))
            .transpose()?;
        let data = Self { prepared, plan: order, needs, mismatched, answering, question };
        data.report(observer);
        Ok(data)
    }

    /// The rewards that take part.
    pub(crate) fn rewards(&self) -> &[Used] {
        self.answering.as_ref().map_or(&[], Answering::used)
    }

    /// What steps are made of; without what the reference model says.
    pub(crate) fn feed<'a>(&'a self, tokenizer: &'a Tokenizer) -> Feed<'a> {
        let Prepared { train, validation, .. } = &self.prepared;
        Feed {
            mismatched: self.mismatched.as_ref(),
            rollouts: self.answering.as_ref().map(|answering| answering.rollouts(tokenizer)),
            ..Feed::new(self.needs, (train, validation), &self.plan)
        }
    }

    /// Every buffer that judging answers takes, by name and size.
    pub(crate) fn judging_memory(&self) -> MemoryPlan {
        self.answering.as_ref().map_or(MemoryPlan::default(), Answering::memory_plan)
    }

    /// The classifier that judges answers, if one does.
    pub(crate) fn reward_model(&self) -> Option<&RewardModel> {
        self.answering.as_ref().and_then(|answering| answering.model.as_deref())
    }

    fn report(&self, observer: &mut dyn Observer) {
        let Prepared { train, validation, statistics: [statistics, _], skipped, .. } =
            &self.prepared;
        for note in &self.prepared.notes {
            observer.observe(&Event::Warning(note.clone()));
        }
        if !skipped.is_empty() {
            observer.observe(&Event::Warning(format!("rows left out: {skipped}")));
        }
        if self.prepared.rendering == "tags" {
            let text = "the tokenizer has no chat template: conversations are written with the \
                        tags [USER] and [ASSISTANT]";
            observer.observe(&Event::Warning(text.to_owned()));
        }
        if statistics.dropped > 0 {
            let text =
                format!("{} records have nothing to train and were left out", statistics.dropped);
            observer.observe(&Event::Warning(text));
        }
        if statistics.special_texts > 0 {
            let text = format!(
                "the data has {} texts that look like special tokens; they are kept as plain text",
                statistics.special_texts
            );
            observer.observe(&Event::Warning(text));
        }
        if let Some(answering) = &self.answering {
            let text = format!("answers are rewarded by {}", answering.names());
            observer.observe(&Event::Notice(text));
            if let Some(note) = &answering.note {
                observer.observe(&Event::Warning(note.clone()));
            }
        } else if validation.is_empty() {
            let text = "no validation split: there is no validation loss, and the last weights are \
                        kept rather than the best";
            observer.observe(&Event::Warning(text.to_owned()));
        }
        observer.observe(&Event::DataReady(DataReady {
            n_train: train.len(),
            n_validation: validation.len(),
            n_tokens: statistics.tokens,
            n_trained_tokens: statistics.trained_tokens,
            longest: statistics.longest,
            n_truncated: statistics.truncated,
        }));
    }
}
