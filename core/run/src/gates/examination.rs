//! What a gate that asks the tuned model is: prepared before the training, asked after it.

use crate::environment::Environment;
use crate::error::RunError;
use crate::event::Observer;
use crate::subject::Subject;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::documents::evidence::ComponentRevision;
use forgelm_evidence::gate::{Measurement, Policy};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A gate whose inputs are read and checked.
pub(crate) trait Examination {
    /// Asks the model. Results go into files below the run's folder, and what the gate's catalogue
    /// demands into the log. What hinders the measurement itself (no memory, no classifier, no
    /// answer) is a [`Measurement::not_evaluated`], not an error.
    ///
    /// # Errors
    /// What cannot be written or recorded; any, once the run should stop.
    fn examine(
        &mut self,
        subject: &Subject<'_>,
        place: &mut Place<'_>,
    ) -> Result<Examined, RunError>;
}

/// Where and with what a gate works.
pub(crate) struct Place<'a> {
    /// The run's folder.
    pub(crate) root: &'a Path,
    /// How much evidence a verdict needs: the level of intervals.
    pub(crate) policy: Policy,
    pub(crate) env: &'a Environment,
    /// Puts an event into the log.
    pub(crate) record: &'a mut dyn FnMut(&AuditEvent) -> Result<(), RunError>,
    pub(crate) observer: &'a mut dyn Observer,
}

/// What an examination found.
#[derive(Clone, Debug)]
pub(crate) struct Examined {
    /// What the verdict follows from. Its gate is `benchmark`, `safety` or `judge`, as `model.reverted`
    /// says it too.
    pub(crate) measurement: Measurement,
    /// Numbers for the run's metrics, as `benchmark/average`.
    pub(crate) metrics: BTreeMap<String, f64>,
    /// The key and value among the documents' `evaluation_results`, as `benchmark`.
    pub(crate) document: Option<(String, Value)>,
    /// Files that were written, relative to the run's folder: the evidence covers them.
    pub(crate) files: Vec<String>,
    /// Models that took part.
    pub(crate) components: Vec<ComponentRevision>,
}
