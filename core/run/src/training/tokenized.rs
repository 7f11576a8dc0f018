//! The data of a run as tokens, and the order in which they come.

use crate::data::{self, Sources};
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{DataReady, Event, Observer};
use crate::model::FoundModel;
use crate::plan::Plan;
use crate::sample::Question;
use crate::settings;
use forgelm_data::Prepared;

/// The training and validation sequences of a run and the order in which they come.
pub(crate) struct TokenizedData {
    pub(crate) prepared: Prepared,
    pub(crate) plan: forgelm_data::Plan,
    pub(crate) question: Option<Question>,
}

impl TokenizedData {
    pub(crate) fn new(
        plan: &Plan,
        sources: &Sources,
        found: &FoundModel,
        template_now: i64,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        let prepared = data::prepare(plan, sources, found, template_now, env)?;
        let lengths = prepared.train.lengths();
        let order = forgelm_data::Plan::new(settings::data_plan(&plan.run), &lengths);
        let question = data::question(plan, &prepared)?;
        let data = Self { prepared, plan: order, question };
        data.report(observer);
        Ok(data)
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
        if validation.is_empty() {
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
