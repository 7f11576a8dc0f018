//! The notice of a decision on a staged model, by the config that the run left. No file of a run has an
//! address: only one that a variable names (`webhook.url_env`) is found again.

use super::END_WAIT;
use super::hook::Hook;
use crate::approval::decide::Decided;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::reproduce;
use forgelm_outbound::notice::Notice;
use std::collections::BTreeMap;
use std::path::Path;

/// Tells that the run of a folder was approved or rejected. What cannot be told is a warning: the
/// decision stands.
pub fn tell_decision(
    run_dir: &Path,
    run_id: &str,
    (decided, comment): (&Decided, Option<&str>),
    env: &Environment,
    observer: &mut dyn Observer,
) {
    let notice = match decided {
        Decided::Counted { .. } => return,
        Decided::Promoted { .. } => Notice::Succeeded { metrics: final_metrics(run_dir) },
        Decided::Rejected { .. } => {
            let comment = comment.map_or_else(String::new, |comment| format!(": {comment}"));
            Notice::Failed { reason: format!("human_approval.rejected{comment}") }
        }
    };
    let undelivered = match tell(run_dir, run_id, &notice, env, observer) {
        Ok(undelivered) => undelivered,
        Err(error) => vec![error.chain()],
    };
    for reason in undelivered {
        let text = format!("webhook: `{}` was not delivered: {reason}", notice.event());
        observer.observe(&Event::Warning(text));
    }
}

fn tell(
    run_dir: &Path,
    run_id: &str,
    notice: &Notice,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Vec<String>, RunError> {
    let run = reproduce::config_of(run_dir)?;
    let offline = run.model.offline || env.offline;
    let Some(mut hook) = Hook::of_run(&run, offline, env, observer)? else {
        return Ok(Vec::new());
    };
    hook.of_finished(run_id);
    hook.tell(notice);
    Ok(hook.finish(END_WAIT).into_iter().map(|failed| failed.reason).collect())
}

/// The numbers that the run ended with.
fn final_metrics(run_dir: &Path) -> BTreeMap<String, f64> {
    let metrics = reproduce::document(run_dir, "training_manifest.json").unwrap_or_default();
    let metrics = metrics["final_metrics"].as_object().into_iter().flatten();
    metrics.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect()
}
