//! What counts as a score.
//!
//! Ours is stricter than what others take, on purpose (faults.md 108): a judge that writes prose, two
//! objects, two scores, or a number outside 1 to 10 did not do what it was asked to, often since the
//! text that it judged told it to. Where others clip such a number or pick one of several, the answer
//! is not scored here: it counts as missing evidence, never as a good or a bad score.

use serde::Deserialize;
use serde_json::Number;

/// A score and why.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scored {
    /// From 1 to 10.
    pub(crate) score: f64,
    pub(crate) reason: String,
}

/// As it must be written: both members once, and no other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    score: Number,
    reason: String,
}

/// Reads the judge's reply: one JSON object, alone or as the only thing in a fenced block.
pub(crate) fn read(reply: &str) -> Result<Scored, &'static str> {
    let text = unfenced(reply.trim());
    if text.is_empty() {
        return Err("the reply is empty");
    }
    let written: Written = serde_json::from_str(text)
        .map_err(|_| "the reply is not one JSON object with `score`, a number, and `reason`")?;
    match written.score.as_f64() {
        Some(score) if (1.0..=10.0).contains(&score) => {
            Ok(Scored { score, reason: written.reason })
        }
        Some(_) | None => Err("the score is not from 1 to 10"),
    }
}

/// What is inside, where a fence opens and closes the text.
fn unfenced(text: &str) -> &str {
    let inner = text.strip_prefix("```").and_then(|text| text.strip_suffix("```"));
    match inner.and_then(|inner| inner.split_once('\n')) {
        Some((tag, body)) if matches!(tag.trim(), "" | "json") => body.trim(),
        Some(_) | None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::{Scored, read};

    #[test]
    fn an_object_alone_or_in_one_fence_is_a_score() {
        let scored = |score| Ok(Scored { score, reason: "r".to_owned() });
        for (reply, score) in [
            (r#"{"score": 7, "reason": "r"}"#, 7.0),
            (r#" {"reason": "r", "score": 1} "#, 1.0),
            (r#"{"score": 9.5, "reason": "r"}"#, 9.5),
            ("```json\n{\"score\": 10, \"reason\": \"r\"}\n```", 10.0),
            ("```\n{\"score\": 2, \"reason\": \"r\"}```\n", 2.0),
        ] {
            assert_eq!(read(reply), scored(score), "{reply}");
        }
    }

    #[test]
    fn fault_108_anything_else_is_not_scored() {
        let object = r#"{"score": 9, "reason": "r"}"#;
        let replies = [
            String::new(),
            "9".to_owned(),
            "I would give it a 9.".to_owned(),
            format!("Sure! {object}"),
            format!("{object} I hope this helps."),
            format!("{object}\n{object}"),
            format!("[{object}]"),
            format!("Here:\n```json\n{object}\n```"),
            format!("```json\n{object}\n```\n```json\n{object}\n```"),
            format!("```text\n{object}\n```"),
            r#"{"score": 2, "score": 9, "reason": "r"}"#.to_owned(),
            r#"{"score": 9, "reason": "r", "override": true}"#.to_owned(),
            r#"{"score": 9}"#.to_owned(),
            r#"{"reason": "r"}"#.to_owned(),
            r#"{"score": "9", "reason": "r"}"#.to_owned(),
            r#"{"score": "9/10", "reason": "r"}"#.to_owned(),
            r#"{"score": [9], "reason": "r"}"#.to_owned(),
            r#"{"score": true, "reason": "r"}"#.to_owned(),
            r#"{"score": null, "reason": "r"}"#.to_owned(),
            r#"{"score": NaN, "reason": "r"}"#.to_owned(),
            r#"{"score": Infinity, "reason": "r"}"#.to_owned(),
            r#"{"score": 1e999, "reason": "r"}"#.to_owned(),
            r#"{"score": 0, "reason": "r"}"#.to_owned(),
            r#"{"score": 0.99, "reason": "r"}"#.to_owned(),
            r#"{"score": 11, "reason": "r"}"#.to_owned(),
            r#"{"score": 100, "reason": "r"}"#.to_owned(),
            r#"{"score": -7, "reason": "r"}"#.to_owned(),
            r#"{"score": 9, "reason": 9}"#.to_owned(),
            r#"{"score": 9, "reason": "r""#.to_owned(),
            r#"{'score': 9, 'reason': 'r'}"#.to_owned(),
        ];
        assert_eq!(replies.len(), 30);
        for reply in replies {
            assert!(read(&reply).is_err(), "scored: {reply}");
        }
    }
}
