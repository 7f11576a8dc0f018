//! A classifier with a head of labels.

use super::classifier::NotJudged;
use super::score::Judged;
use super::verdict::Verdict;
use crate::subject::check_room;
use forgelm_model::{Activations, Classifier};
use forgelm_tokenize::Tokenizer;

/// Longest text that is classified, in tokens; of one that is longer the beginning is.
const TOKENS_MAX: usize = 2048;

/// A classifier in memory, with what makes tokens for it.
pub(crate) struct Head {
    classifier: Classifier,
    tokenizer: Tokenizer,
    /// In the order of the head's rows.
    labels: Vec<String>,
}

impl Head {
    pub(crate) fn new(classifier: Classifier, tokenizer: Tokenizer, labels: Vec<String>) -> Self {
        Self { classifier, tokenizer, labels }
    }

    /// The likeliest label of each answer to a prompt, and its probability.
    pub(crate) fn judge(
        &self,
        pairs: &[(&str, &str)],
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<Judged>, NotJudged> {
        let read: Vec<_> = pairs.iter().map(|pair| self.tokens(*pair)).collect();
        let longest = read.iter().flatten().map(|(tokens, _)| tokens.len()).max().unwrap_or(1);
        let n_bytes = self.classifier.memory_plan(longest).total_bytes();
        let what = format!("labels of texts of {longest} tokens");
        check_room(&what, n_bytes).map_err(NotJudged::Hindered)?;
        let acts = self.classifier.activations(longest);
        let mut acts = acts.map_err(|error| NotJudged::Hindered(error.to_string()))?;
        let mut judged = Vec::with_capacity(pairs.len());
        for read in read {
            if is_stopped() {
                return Err(NotJudged::Stopped);
            }
            let label = read.and_then(|(tokens, is_cut)| self.label(&tokens, is_cut, &mut acts));
            judged.push(label.unwrap_or_else(Judged::failed));
        }
        Ok(judged)
    }

    /// The text that such classifiers are trained on, and whether it was cut.
    fn tokens(&self, (prompt, answer): (&str, &str)) -> Result<(Vec<u32>, bool), String> {
        let text = format!("[INST] {prompt} [/INST] {answer}");
        let encoded = self.tokenizer.encode(&text).map_err(|error| error.to_string())?;
        let tokenizer = &self.tokenizer;
        let (prefix, suffix) = (tokenizer.prefix_ids(), tokenizer.suffix_ids());
        let longest = TOKENS_MAX.min(self.classifier.config().max_position_embeddings);
        let room = longest.saturating_sub(prefix.len() + suffix.len());
        let kept = &encoded.ids[..encoded.ids.len().min(room)];
        let tokens = [prefix, kept, suffix].concat();
        match tokens.is_empty() {
            true => Err("prompt and answer have no tokens".to_owned()),
            false => Ok((tokens, encoded.ids.len() > room)),
        }
    }

    fn label(
        &self,
        tokens: &[u32],
        is_cut: bool,
        acts: &mut Activations,
    ) -> Result<Judged, String> {
        let mut logits = vec![0.0; self.classifier.num_labels()];
        self.classifier.score(tokens, acts, &mut logits);
        let (best, confidence) = softmax_top(&logits)?;
        let label = self.labels[best].clone();
        let verdict = Verdict::of_label(&label);
        Ok(Judged { verdict, label, confidence, raw: None, error: None, is_cut })
    }
}

/// The largest logit's place, and its probability.
fn softmax_top(logits: &[f32]) -> Result<(usize, f64), String> {
    if let Some(bad) = logits.iter().find(|logit| !logit.is_finite()) {
        return Err(format!("the classifier gives {bad} for a label"));
    }
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    let top = f64::from(logits[best]);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - top).exp()).sum();
    Ok((best, 1.0 / sum))
}

#[cfg(test)]
mod tests {
    use super::softmax_top;

    #[test]
    fn the_likeliest_label_has_its_softmax() {
        let (best, confidence) = softmax_top(&[0.0, 3.0_f32.ln()]).expect("numbers");
        assert_eq!(best, 1);
        assert!((confidence - 0.75).abs() < 1e-6);
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(softmax_top(&[0.0, bad]).expect_err("no number").contains("gives"));
        }
    }
}
