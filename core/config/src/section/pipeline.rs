//! `pipeline:` several trainings, one after another.

use super::text_rule::{NOT_BLANK, STAGE_NAME};
use super::{Data, Evaluation, Lora, Model, Training};
use crate::declare::section;

section! {
    /// Several trainings, one after another.
    Pipeline {
        /// The folder of the pipeline's state and manifest.
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
