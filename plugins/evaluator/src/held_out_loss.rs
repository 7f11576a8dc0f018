//! The loss of texts that the model was not trained on: of the run's validation split, or of a file.
//!
//! Papers: Jelinek et al. 1977, "Perplexity, a measure of the difficulty of speech recognition tasks";
//! Miller 2024, arXiv:2411.00640, on standard errors of evaluations.
//!
//! With the sum L_i of -log p over the n_i tokens of record i, and N = sum n_i:
//!
//! ```text
//! loss        = sum L_i / N
//! perplexity  = exp(loss)
//! loss_stderr = sqrt( k/(k-1) * sum (L_i - loss n_i)^2 ) / N        over k records
//! ```
//!
//! Tokens of one record are not independent, records are: the error is that of a mean of clusters.
//! Ours: times k/(k-1), for few records. There is none for a single one.
//!
//! Options: `file`, JSON lines of `prompt` and `completion`, of which the completion counts, or of
//! `text`. It is read when the evaluator is made, and its SHA-256 stands in the report. Without it
//! the validation split counts, rendered and masked as in training.

use forgelm_sdk::evaluator::{
    Descriptor, Evaluator, HeldOut, Report, Score, Services, TextPair, TextScore,
};
use forgelm_sdk::host;
use forgelm_sdk::options::Reader;
use forgelm_sdk::{Cause, Failed, OptionValue, OptionsError};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use std::path::Path;

/// The entry in the kind's list.
pub const HELD_OUT_LOSS: Descriptor = Descriptor {
    name: "held_out_loss",
    summary: "mean loss a token over held-out records, with its standard error",
    source: "Jelinek et al. 1977; Miller 2024, arXiv:2411.00640",
    build,
};

/// Records that are asked for at once: between these it is told how far the work is.
const TOGETHER: usize = 256;

fn build(options: &[(&str, OptionValue)]) -> Result<Box<dyn Evaluator>, OptionsError> {
    let mut options = Reader::new(HELD_OUT_LOSS.name, options);
    let file = options.text("file")?;
    options.finish()?;
    let texts = file.map(|file| Texts::read(Path::new(file))).transpose();
    let texts = texts.map_err(|message| OptionsError::Refused { message })?;
    Ok(Box::new(HeldOutLoss { texts }))
}

struct HeldOutLoss {
    /// Those of a file; else the validation split counts.
    texts: Option<Texts>,
}

impl Evaluator for HeldOutLoss {
    fn evaluate(&self, model: &Services<'_>) -> Result<Report, Failed> {
        let missing = |id: &str| Failed::new(format!("held_out_loss needs `{id}`"));
        let (scores, data) = match &self.texts {
            Some(texts) => {
                let score = model.score.ok_or_else(|| missing("forgelm.score/1"))?;
                let data = json!({"file": texts.file, "sha256": texts.sha256});
                (score_texts(score, texts)?, data)
            }
            None => {
                let held_out = model.held_out.ok_or_else(|| missing("forgelm.held_out/1"))?;
                (score_records(held_out)?, json!("validation split"))
            }
        };
        let mut report = report(&scores)?;
        report.insert("data".to_owned(), data);
        Ok(report)
    }
}

fn score_texts(score: &dyn Score, texts: &Texts) -> Result<Vec<TextScore>, Failed> {
    let Texts { file, pairs, .. } = texts;
    let mut scores = Vec::with_capacity(pairs.len());
    for part in pairs.chunks(TOGETHER) {
        tell(scores.len(), pairs.len())?;
        let place = |failed: Failed| match failed.cause {
            Cause::Argument => {
                let message = format!("{file}, from text {} on: {failed}", scores.len());
                Failed { message, ..failed }
            }
            Cause::Work | Cause::Cancelled | Cause::Deadline => failed,
        };
        let part: Vec<TextPair<'_>> =
            part.iter().map(|(prompt, completion)| TextPair { prompt, completion }).collect();
        let part = score.score(&part).map_err(place)?;
        scores.extend(part);
    }
    Ok(scores)
}

fn score_records(held_out: &dyn HeldOut) -> Result<Vec<TextScore>, Failed> {
    let n_records = usize::try_from(held_out.n_records()).unwrap_or(usize::MAX);
    if n_records == 0 {
        return Err(Failed::new(
            "the run holds out no record\n  hint: `data.validation_split` or files of a validation \
             split hold some out; or name texts with the option `file`",
        ));
    }
    let mut scores = Vec::new();
    while scores.len() < n_records {
        tell(scores.len(), n_records)?;
        let n = (n_records - scores.len()).min(TOGETHER);
        scores.extend(held_out.score(scores.len() as u64, n)?);
    }
    Ok(scores)
}

fn tell(n_done: usize, n_records: usize) -> Result<(), Failed> {
    match host::progress(&json!({"records_done": n_done, "records": n_records}).to_string()) {
        true => Err(Failed::cancelled()),
        false => Ok(()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn report(scores: &[TextScore]) -> Result<Map<String, Value>, Failed> {
    let n_tokens: u64 = scores.iter().map(|score| score.n_tokens).sum();
    let total = n_tokens as f64;
    let loss = -scores.iter().map(|score| score.logp_sum).sum::<f64>() / total;
    if !loss.is_finite() {
        return Err(Failed::new(format!("the loss over {n_tokens} tokens is {loss}")));
    }
    let mut report = Map::from_iter([
        ("loss".to_owned(), json!(loss)),
        ("n_tokens".to_owned(), json!(n_tokens)),
        ("n_records".to_owned(), json!(scores.len())),
    ]);
    if scores.len() > 1 {
        let k = scores.len() as f64;
        let apart = |score: &TextScore| (-score.logp_sum - loss * score.n_tokens as f64).powi(2);
        let variance = k / (k - 1.0) * scores.iter().map(apart).sum::<f64>();
        report.insert("loss_stderr".to_owned(), json!(variance.sqrt() / total));
    }
    // A model that knows nothing can have one that is no number of JSON.
    if loss.exp().is_finite() {
        report.insert("perplexity".to_owned(), json!(loss.exp()));
    }
    Ok(report)
}

/// The texts of a file.
struct Texts {
    file: String,
    sha256: String,
    pairs: Vec<(String, String)>,
}

impl Texts {
    fn read(path: &Path) -> Result<Self, String> {
        let file = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| format!("{file}: {error}"))?;
        let text = str::from_utf8(&bytes).map_err(|error| format!("{file}: {error}"))?;
        let mut pairs = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let problem = |problem| format!("{file}:{}: {problem}", i + 1);
            pairs.push(pair(line).map_err(problem)?);
        }
        if pairs.is_empty() {
            return Err(format!("{file}: no texts; expected at least one"));
        }
        let digest = Sha256::digest(&bytes);
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { file, sha256, pairs })
    }
}

/// Prompt and completion of a line; a text has no prompt.
fn pair(line: &str) -> Result<(String, String), String> {
    let row: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| format!("is no JSON object: {error}"))?;
    let text = |key: &str| match row.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("`{key}` is {other}; expected a text")),
    };
    match (text("text")?, text("prompt")?, text("completion")?) {
        (Some(text), None, None) => Ok((String::new(), text)),
        (None, Some(prompt), Some(completion)) => Ok((prompt, completion)),
        _ => {
            let keys: Vec<&str> = row.keys().map(String::as_str).collect();
            let found = keys.join(", ");
            Err(format!("has {found}; expected `prompt` and `completion`, or `text` alone"))
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test makes files")]
mod tests {
    use super::*;

    /// Record i has i + 1 tokens with -log p = 1, 2, 6 in all.
    struct Three;

    impl HeldOut for Three {
        fn n_records(&self) -> u64 {
            3
        }

        fn score(&self, first: u64, n: usize) -> Result<Vec<TextScore>, Failed> {
            let all = [(1, -1.0), (2, -2.0), (3, -6.0)];
            let score = |(n_tokens, logp_sum)| TextScore { logp_sum, n_tokens };
            let first = usize::try_from(first).expect("small");
            Ok(all[first..first + n].iter().copied().map(score).collect())
        }

        fn text(&self, _record: u64) -> Result<forgelm_sdk::evaluator::RecordText, Failed> {
            unreachable!("the loss reads no texts")
        }
    }

    /// A completion's score is its bytes, a token each.
    struct Bytes;

    impl Score for Bytes {
        fn score(&self, pairs: &[TextPair<'_>]) -> Result<Vec<TextScore>, Failed> {
            let score = |pair: &TextPair<'_>| {
                let n = u32::try_from(pair.completion.len()).expect("short");
                TextScore { logp_sum: -2.0 * f64::from(n), n_tokens: u64::from(n) }
            };
            Ok(pairs.iter().map(score).collect())
        }
    }

    struct Refuses;

    impl Score for Refuses {
        fn score(&self, _pairs: &[TextPair<'_>]) -> Result<Vec<TextScore>, Failed> {
            Err(Failed::argument("pair 1: too long"))
        }
    }

    fn close(report: &Report, key: &str, expected: f64) {
        let found = report[key].as_f64().expect("a number");
        assert!((found - expected).abs() < 1e-12, "{key} is {found}; expected {expected}");
    }

    /// 9 over 6 tokens: 1.5. Apart from it: 1 - 1.5, 2 - 3, 6 - 4.5; squares 0.25, 1, 2.25 add up to
    /// 3.5; sqrt(3/2 * 3.5) / 6 = 0.381881307912987.
    #[test]
    fn loss_and_standard_error_by_hand() {
        let evaluator = build(&[]).expect("no options");
        let model = Services { held_out: Some(&Three), ..Services::default() };
        let report = evaluator.evaluate(&model).expect("a report");
        close(&report, "loss", 1.5);
        close(&report, "perplexity", 1.5_f64.exp());
        close(&report, "loss_stderr", 0.381_881_307_912_987);
        assert_eq!((&report["n_tokens"], &report["n_records"]), (&json!(6), &json!(3)));
        assert_eq!(report["data"], "validation split");
        let missing = evaluator.evaluate(&Services::default()).expect_err("no service");
        assert_eq!(missing.message, "held_out_loss needs `forgelm.held_out/1`");
    }

    /// A single record has no standard error, and a model that gives no numbers no loss.
    #[test]
    fn what_cannot_be_said_is_not_said() {
        let one = report(&[TextScore { logp_sum: -3.0, n_tokens: 2 }]).expect("a report");
        assert!(!one.contains_key("loss_stderr"));
        let hopeless = report(&[TextScore { logp_sum: -2000.0, n_tokens: 2 }]).expect("a report");
        assert!(!hopeless.contains_key("perplexity"));
        for bad in [TextScore { logp_sum: f64::NAN, n_tokens: 1 }, TextScore::default()] {
            let refused = report(&[bad]).expect_err("no loss").message;
            assert!(refused.ends_with("tokens is NaN"), "{refused}");
        }
    }

    #[test]
    fn a_file_of_texts_counts_in_place_of_the_split() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("held.jsonl").display().to_string();
        let lines = "{\"prompt\": \"abc\", \"completion\": \"de\"}\n\n{\"text\": \"fgh\"}\n";
        std::fs::write(&file, lines).expect("written");
        let option = [("file", OptionValue::Text(file.clone()))];
        let evaluator = build(&option).expect("a good file");
        let model = Services { score: Some(&Bytes), ..Services::default() };
        let report = evaluator.evaluate(&model).expect("a report");
        close(&report, "loss", 2.0);
        close(&report, "loss_stderr", 0.0);
        assert_eq!((&report["n_tokens"], &report["n_records"]), (&json!(5), &json!(2)));
        assert_eq!(report["data"]["file"], file);
        assert_eq!(report["data"]["sha256"].as_str().map(str::len), Some(64));
        let failed = evaluator.evaluate(&Services { score: Some(&Refuses), ..model });
        let failed = failed.expect_err("refused").message;
        assert!(failed.ends_with("held.jsonl, from text 0 on: pair 1: too long"), "{failed}");
        for (line, expected) in [
            ("[]", "is no JSON object"),
            ("{\"text\": 3}", "`text` is 3; expected a text"),
            (
                "{\"prompt\": \"a\"}",
                "has prompt; expected `prompt` and `completion`, or `text` alone",
            ),
            (
                "{\"text\": \"a\", \"prompt\": \"b\", \"completion\": \"c\"}",
                "has text, prompt, comp",
            ),
        ] {
            std::fs::write(&file, format!("{{\"text\": \"fine\"}}\n{line}\n")).expect("written");
            let refused = build(&option).err().expect("refused").to_string();
            assert!(refused.contains(&format!("held.jsonl:2: {expected}")), "{refused}");
        }
        std::fs::write(&file, "\n").expect("written");
        let refused = build(&option).err().expect("refused").to_string();
        assert!(refused.ends_with("no texts; expected at least one"), "{refused}");
        std::fs::remove_file(&file).expect("removed");
        assert!(build(&option).err().expect("refused").to_string().contains("held.jsonl: "));
    }
}
