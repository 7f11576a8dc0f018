//! What the reference model says of the data, before the first step: read from the cache, or
//! computed and kept there.

use super::job::Job;
use crate::error::RunError;
use crate::event::{Event, Reading};
use forgelm_model::Trainable;
use forgelm_train::references::{References, ReferencesError, Request};
use forgelm_train::state::Identity;

impl Job<'_> {
    /// `None` where the objective has no reference.
    pub(super) fn references(
        &mut self,
        initial: &Trainable,
        identity: &Identity,
    ) -> Result<Option<References>, RunError> {
        let feed = self.data.feed(&self.found.tokenizer);
        if !feed.needs.reference {
            return Ok(None);
        }
        let model = format!(
            "{} {} {} {:?}",
            identity.model_sha256,
            identity.compute_dtype,
            identity.kernels,
            self.loaded.decoder.linear_formats()
        );
        let overrides = self.found.overrides.to_json();
        let request = Request {
            decoder: &self.loaded.decoder,
            initial,
            feed: &feed,
            model: &format!("{model} {overrides}"),
            dir: &self.env.cache_dir.join("references"),
        };
        let start = self.env.clock.monotonic();
        let (env, observer) = (self.env, &mut *self.observer);
        let found = References::prepare(&request, &mut |n_done, n_total| {
            observer.observe(&Event::Reference(Reading { n_done, n_total }));
            !env.stop_requested()
        });
        let found = found.map_err(|error| match error {
            ReferencesError::Stopped => RunError::StoppedBeforeStart,
            other => other.into(),
        })?;
        if let Some(note) = found.note {
            self.observer.observe(&Event::Warning(note));
        }
        let seconds = (self.env.clock.monotonic() - start).as_secs_f64();
        let text = match found.n_tokens {
            0 => "reference log-probabilities: found in the cache".to_owned(),
            n => format!("reference log-probabilities: {n} tokens read in {seconds:.1} s"),
        };
        self.observer.observe(&Event::Notice(text));
        Ok(Some(found.references))
    }
}
