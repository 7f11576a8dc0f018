//! Events as JSON objects, for hosts that watch a run: the name under `event`, then the members of the
//! event under their own names.

use crate::event::{Event, When};
use serde_json::{Value, json};

impl Event {
    /// Its name: `detail`, `notice`, `warning`, `fetched`, `model_loaded`, `data_ready`, `sample`,
    /// `reference`, `started`, `step`, `evaluation` or `checkpoint`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Detail(_) => "detail",
            Self::Notice(_) => "notice",
            Self::Warning(_) => "warning",
            Self::Fetched { .. } => "fetched",
            Self::ModelLoaded(_) => "model_loaded",
            Self::DataReady(_) => "data_ready",
            Self::Sample(_) => "sample",
            Self::Reference(_) => "reference",
            Self::Started(_) => "started",
            Self::Step(_) => "step",
            Self::Evaluation(_) => "evaluation",
            Self::Checkpoint(_) => "checkpoint",
        }
    }

    /// The object. Numbers that are not finite are null.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut object = match self {
            Self::Detail(text) | Self::Notice(text) | Self::Warning(text) => json!({"text": text}),
            Self::Fetched { file, n_bytes_done, n_bytes_total } => json!({
                "file": file,
                "n_bytes_done": n_bytes_done,
                "n_bytes_total": n_bytes_total,
            }),
            Self::ModelLoaded(loaded) => json!({
                "name": loaded.name,
                "n_params": loaded.n_params,
                "n_trainable": loaded.n_trainable,
                "kernels": loaded.kernels,
                "compute_dtype": loaded.compute_dtype,
                "n_threads": loaded.n_threads,
                "seconds": loaded.seconds,
            }),
            Self::DataReady(data) => json!({
                "n_train": data.n_train,
                "n_validation": data.n_validation,
                "n_tokens": data.n_tokens,
                "n_trained_tokens": data.n_trained_tokens,
                "longest": data.longest,
                "n_truncated": data.n_truncated,
            }),
            Self::Sample(sample) => json!({
                "when": match sample.when {
                    When::Before => "before",
                    When::After => "after",
                },
                "question": sample.question,
                "expected": sample.expected,
                "answer": sample.answer,
            }),
            Self::Reference(reading) => {
                json!({"n_done": reading.n_done, "n_total": reading.n_total})
            }
            Self::Started(started) => json!({
                "run_id": started.run_id,
                "n_steps": started.n_steps,
                "n_steps_done": started.n_steps_done,
                "output_dir": started.output_dir,
                "memory_bytes_planned": started.memory_bytes_planned,
            }),
            Self::Step(step) => json!({
                "step": step.step,
                "epoch": step.epoch,
                "loss": step.loss,
                "learning_rate": step.learning_rate,
                "grad_norm": step.grad_norm,
                "n_tokens": step.n_tokens,
                "n_trained_tokens": step.n_trained_tokens,
                "seconds": step.seconds,
                "metrics": step.metrics,
            }),
            Self::Evaluation(evaluation) => json!({
                "step": evaluation.step,
                "epoch": evaluation.epoch,
                "loss": evaluation.loss,
                "n_trained_tokens": evaluation.n_trained_tokens,
                "seconds": evaluation.seconds,
                "is_best": evaluation.is_best,
                "metrics": evaluation.metrics,
            }),
            Self::Checkpoint(checkpoint) => {
                json!({"step": checkpoint.step, "path": checkpoint.path})
            }
        };
        object["event"] = json!(self.name());
        object
    }
}

#[cfg(test)]
mod tests {
    use crate::event::{Checkpoint, Event};

    #[test]
    fn an_event_names_itself() {
        let event = Event::Checkpoint(Checkpoint { step: 3, path: "out/checkpoint-3".into() });
        let json = event.to_json();
        assert_eq!((&json["event"], &json["step"]), (&"checkpoint".into(), &3.into()));
        assert_eq!(Event::Notice("x".to_owned()).to_json()["text"], "x");
    }
}
