//! my_plugin: an evaluator for ForgeLM.
//!
//! As it comes, it is the mean log-probability of a token over some texts. Yours goes into
//! `evaluate`; the texts are in `TEXTS`. It sees the model through services of the host alone:
//! scores of texts, and answers to prompts.
#![forbid(unsafe_code)]

use forgelm_sdk::Failed;
use forgelm_sdk::evaluator::{Descriptor, Evaluator, Report, Services, TextPair};
use forgelm_sdk::options::Reader;

/// What comes first, and what is scored.
const TEXTS: [TextPair<'static>; 3] = [
    TextPair { prompt: "The sky is", completion: " blue." },
    TextPair { prompt: "Two and two are", completion: " four." },
    TextPair { prompt: "Fire is", completion: " hot." },
];

/// Options of the evaluator, read in `EVALUATORS`, are fields of it.
struct Method;

impl Evaluator for Method {
    /// Judges the model behind the services of the host; the report is one JSON object.
    fn evaluate(&self, model: &Services<'_>) -> Result<Report, Failed> {
        let score = model.score.ok_or_else(|| Failed::new("my_plugin needs `forgelm.score/1`"))?;
        let scores = score.score(&TEXTS)?;
        let sum: f64 = scores.iter().map(|score| score.logp_sum).sum();
        let n_tokens: u64 = scores.iter().map(|score| score.n_tokens).sum();
        let mut report = Report::new();
        report.insert("mean_logp".to_owned(), mean(sum, n_tokens).into());
        report.insert("n_tokens".to_owned(), n_tokens.into());
        Ok(report)
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53 tokens")]
fn mean(sum: f64, n: u64) -> f64 {
    sum / n.max(1) as f64
}

const EVALUATORS: &[Descriptor] = &[Descriptor {
    name: "my_plugin",
    summary: "mean log-probability of a token of some texts",
    source: "Jelinek et al. 1977",
    build: |options| {
        // let mut options = Reader::new(..); let shots = options.number("shots", 0.0, 0.0..=9.0)?;
        Reader::new("my_plugin", options).finish()?;
        Ok(Box::new(Method))
    },
}];

forgelm_sdk::export_plugin!(evaluators: EVALUATORS);
