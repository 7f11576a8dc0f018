//! What comes after the last step: the best weights, a sample.

use super::job::Job;
use crate::error::RunError;
use crate::event::{Event, When};
use crate::sample::Voice;
use forgelm_model::Trainable;
use forgelm_train::checkpoint;
use forgelm_train::session::Session;

impl Job<'_> {
    /// The weights with the lowest validation loss, where there is one.
    pub(super) fn restore_best(&mut self, session: &mut Session<'_>) -> Result<(), RunError> {
        let state = session.state();
        let Some(best) = state.best_global_step.filter(|&best| best != state.global_step) else {
            return Ok(());
        };
        let path = checkpoint::path(self.plan.output.root(), best);
        let best_weights = checkpoint::load_adapter(&path, session.adapter())?;
        let text = format!("step {best} had the lowest validation loss; its weights are kept");
        self.observer.observe(&Event::Notice(text));
        session.replace_params(best_weights.params());
        Ok(())
    }

    pub(super) fn sample(
        &mut self,
        when: When,
        adapter: Option<&Trainable>,
    ) -> Result<(), RunError> {
        let (Some(question), Some(template)) = (&self.data.question, &self.found.template) else {
            return Ok(());
        };
        let voice = Voice {
            tokenizer: &self.found.tokenizer,
            template,
            stop_ids: &self.stop_ids,
            now: Some(self.template_now),
        };
        let sample = question.ask(when, &self.loaded.decoder, adapter, &voice)?;
        self.observer.observe(&Event::Sample(sample));
        Ok(())
    }

    /// The data must still be what was read: evidence about other bytes would be false.
    pub(super) fn check_unchanged(&self) -> Result<(), RunError> {
        for file in self.data.prepared.files.iter().flatten() {
            if forgelm_artifact::hash::sha256_file(&file.path)? != file.sha256 {
                return Err(RunError::Changed { path: file.path.clone() });
            }
        }
        Ok(())
    }
}
