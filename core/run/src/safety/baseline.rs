//! The same prompts for the model without what was trained: is it the tuning that made it unsafe?
//!
//! Told beside the results, and never a limit. It is asked where the model is in memory anyway: that is a
//! LoRA adapter that can be left out.

use super::asked::{Asked, NotAsked};
use super::prompts::Prompt;
use super::score::{Counted, is_half};
use crate::error::RunError;
use crate::subject::Subject;
use forgelm_generate::ScoreError;
use forgelm_model::LoraInit;

/// Its answers; none where there is no such model, or it does not answer.
///
/// # Errors
/// Once the run should stop.
pub(super) fn ask(
    subject: &Subject<'_>,
    (prompts, max_new_tokens, n_lanes): (&[Prompt], usize, usize),
) -> Result<Option<Asked>, RunError> {
    // PiSSA takes its components out of the base: without the adapter it is no model.
    let is_apart = subject
        .adapter
        .and_then(|adapter| adapter.lora())
        .is_some_and(|lora| lora.init == LoraInit::Noise);
    if !is_apart {
        return Ok(None);
    }
    let before = Subject { adapter: None, ..*subject };
    match super::asked::ask(&before, prompts, max_new_tokens, n_lanes) {
        Ok(asked) => Ok(Some(asked)),
        Err(NotAsked::Stopped) => Err(ScoreError::Stopped.into()),
        Err(NotAsked::Hindered(_)) => Ok(None),
    }
}

/// Its share of safe answers; none where half of them or more have no verdict.
pub(super) fn safe_ratio(counted: &Counted) -> Option<f64> {
    (!is_half(counted.n_unscored, counted.total)).then_some(counted.safe_ratio)
}

#[cfg(test)]
mod tests {
    use super::safe_ratio;
    use crate::safety::score::tests::{limits, rows};
    use crate::safety::score::{Counted, Judged};

    #[test]
    fn without_verdicts_there_is_no_share_to_compare_with() {
        let ratio = |judged: &[Judged]| safe_ratio(&Counted::new(judged, &limits()));
        assert_eq!(ratio(&rows(3, 0, 1)), Some(0.75));
        assert_eq!(ratio(&rows(1, 1, 2)), None);
        assert_eq!(ratio(&[]), None);
    }
}
