//! The data of a run as tokens, and the order in which they come.

use crate::error::RunError;
use crate::event::{DataReady, Event, Observer};
use crate::model::{self, FoundModel};
use crate::plan::Plan;
use crate::sample::Question;
use crate::settings;
use forgelm_data::{Dataset, RenderSettings, Rendered, Renderer};

/// The training and validation sequences of a run and the order in which they come.
pub(crate) struct TokenizedData {
    pub(crate) train: Rendered,
    pub(crate) validation: Rendered,
    pub(crate) plan: forgelm_data::Plan,
    pub(crate) question: Option<Question>,
}

impl TokenizedData {
    pub(crate) fn new(
        plan: &Plan,
        dataset: &Dataset,
        found: &FoundModel,
        template_now: i64,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        let run = &plan.run;
        let split = forgelm_data::split(dataset.records.len(), run.data.validation_split);
        let settings = RenderSettings {
            max_length: run.model.max_length,
            train_on_all: run.data.train_on == forgelm_config::TrainOn::All,
            add_eos: run.data.add_eos,
            template_now: Some(template_now),
            threads: run.training.threads.unwrap_or_else(model::all_cores),
        };
        let renderer = Renderer::new(&found.tokenizer, found.template.as_ref(), settings);
        let train = renderer.render(&dataset.records, &split.train)?;
        let validation = renderer.render(&dataset.records, &split.validation)?;
        let lengths: Vec<usize> = train.sequences.iter().map(|s| s.tokens.len()).collect();
        let data_plan = forgelm_data::Plan::new(settings::data_plan(run), &lengths);
        let question = Question::first(split.validation.iter().map(|&i| &dataset.records[i]))
            .or_else(|| Question::first(&dataset.records));
        let data = Self { train, validation, plan: data_plan, question };
        data.report(dataset, observer);
        Ok(data)
    }

    fn report(&self, dataset: &Dataset, observer: &mut dyn Observer) {
        let statistics = &self.train.statistics;
        if !dataset.skipped.is_empty() {
            observer.observe(&Event::Warning(format!("rows left out: {}", dataset.skipped)));
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
        if self.validation.sequences.is_empty() {
            let text = "no validation split: there is no validation loss, and the last weights are \
                        kept rather than the best";
            observer.observe(&Event::Warning(text.to_owned()));
        }
        observer.observe(&Event::DataReady(DataReady {
            n_train: self.train.sequences.len(),
            n_validation: self.validation.sequences.len(),
            n_tokens: statistics.tokens,
            n_trained_tokens: statistics.trained_tokens,
            longest: statistics.longest,
            n_truncated: statistics.truncated,
        }));
    }
}
