//! `pipeline:` several trainings, one after another.

use super::text_rule::{NOT_BLANK, STAGE_NAME};
use super::{Data, Evaluation, Lora, Model, Training};
use crate::declare::section;
use crate::run::Run;

section! {
    /// Several trainings, one after another.
    Pipeline {
        /// The folder of the pipeline's state and manifest; those of the stages lie in it.
        output_dir: String = "./pipeline_run".to_owned(), text(NOT_BLANK);
        /// The stages, at least one.
        stages: Vec<Stage> = Vec::new();
    }
}

section! {
    /// One training of a pipeline. A section given here replaces the root's as a whole.
    Stage {
        /// The stage's name, unique.
        name: String = String::new(), required("first"), text(STAGE_NAME);
        /// Replaces the root's `model`; without it the stage begins at the model of the stage before.
        model: Option<Model> = None;
        /// Replaces the root's `lora`.
        lora: Option<Lora> = None;
        /// Replaces the root's `training`; must name its `trainer_type`.
        training: Option<Training> = None;
        /// Replaces the root's `data`.
        data: Option<Data> = None;
        /// Replaces the root's `evaluation`.
        evaluation: Option<Evaluation> = None;
    }
}

impl Stage {
    /// The run that this stage is: its own sections, and the root's where it has none. The model is
    /// as configured; where it begins at the stage before, whoever runs it says so.
    #[must_use]
    pub fn run(&self, root: &Run) -> Run {
        let mut run = Run { pipeline: None, ..root.clone() };
        run.model = self.model.clone().unwrap_or(run.model);
        run.lora = self.lora.clone().unwrap_or(run.lora);
        run.training = self.training.clone().unwrap_or(run.training);
        run.data = self.data.clone().unwrap_or(run.data);
        run.evaluation = self.evaluation.clone().or(run.evaluation);
        // As for a run of its own: GaLore trains matrices of the base.
        if run.training.galore_enabled {
            run.lora.enabled = false;
        }
        if let Some(days) = run.evaluation.as_mut().and_then(|e| e.staging_ttl_days.take()) {
            run.retention.get_or_insert_with(Default::default).staging_ttl_days = days;
        }
        run
    }
}
