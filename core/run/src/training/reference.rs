//! What the reference model says of the data, before the first step: read from the cache, or
//! computed and kept there.

use super::job::Job;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Reading};
use crate::model::{FoundModel, LoadedModel};
use forgelm_model::Trainable;
use forgelm_train::feed::Feed;
use forgelm_train::references::{Found, References, ReferencesError, Request};
use forgelm_train::state::Identity;

/// What reference log-probabilities are computed with, and where they are kept.
#[derive(Clone, Copy)]
pub(crate) struct ReferenceSource<'a> {
    pub(crate) loaded: &'a LoadedModel,
    pub(crate) found: &'a FoundModel,
    pub(crate) env: &'a Environment,
}

/// Those of a feed, from the cache or computed; `goes_on` as in [`References::prepare`].
pub(crate) fn prepare_references(
    source: ReferenceSource<'_>,
    feed: &Feed<'_>,
    (initial, identity): (&Trainable, &Identity),
    goes_on: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Found, RunError> {
    let ReferenceSource { loaded, found, env } = source;
    let model = format!(
        "{} {} {} {:?}",
        identity.model_sha256,
        identity.compute_dtype,
        identity.kernels,
        loaded.decoder.linear_formats()
    );
    let overrides = found.overrides.to_json();
    let request = Request {
        decoder: &loaded.decoder,
        initial,
        feed,
        model: &format!("{model} {overrides}"),
        dir: &env.cache_dir.join("references"),
    };
    References::prepare(&request, goes_on).map_err(|error| match error {
        ReferencesError::Stopped => RunError::StoppedBeforeStart,
        other => other.into(),
    })
}

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
        let source = ReferenceSource { loaded: self.loaded, found: self.found, env: self.env };
        let start = self.env.clock.monotonic();
        let (env, observer) = (self.env, &mut *self.observer);
        let found =
            prepare_references(source, &feed, (initial, identity), &mut |n_done, n_total| {
                observer.observe(&Event::Reference(Reading { n_done, n_total }));
                !env.stop_requested()
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
