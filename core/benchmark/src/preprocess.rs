//! What the harness does in Python around some published tasks, by name.

use fancy_regex::Regex;
use serde_json::{Map, Value, json};

/// What is made of a row before it is asked: new columns beside its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preprocessing {
    /// `query`, `choices` and `gold` of HellaSwag.
    Hellaswag,
    /// `choices`, `gold` and `rest` of WinoGrande: the sentence with each option up to the gap, and
    /// what follows the gap.
    Winogrande,
}

/// How the answers of one document become its score, where no metric says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processing {
    /// The share of probability that falls to the true answers of TruthfulQA.
    TruthfulMc2,
}

impl Preprocessing {
    const ALL: [(&'static str, Self); 2] =
        [("builtin.hellaswag", Self::Hellaswag), ("builtin.winogrande", Self::Winogrande)];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(other, _)| *other == name).map(|(_, found)| *found)
    }

    pub(crate) fn names() -> String {
        Self::ALL.map(|(name, _)| format!("`{name}`")).join(", ")
    }

    /// Adds the columns; the error is a sentence.
    pub(crate) fn apply(self, row: &mut Map<String, Value>) -> Result<(), String> {
        let text = |key: &str| {
            let found = row.get(key).and_then(Value::as_str);
            found.map(str::to_owned).ok_or_else(|| format!("`{key}` is not a text"))
        };
        let new = match self {
            Self::Hellaswag => {
                let endings = row.get("endings").and_then(Value::as_array);
                let endings = endings.and_then(|all| all.iter().map(Value::as_str).collect());
                let endings: Vec<&str> = endings.ok_or("`endings` is not a list of texts")?;
                let gold = row.get("label").and_then(number).ok_or("`label` is not a number")?;
                let context = format!("{} {}", text("ctx_a")?, capitalized(&text("ctx_b")?));
                let query = format!("{}: {context}", text("activity_label")?);
                let choices: Vec<String> = endings.iter().map(|text| without_marks(text)).collect();
                vec![
                    ("query", json!(without_marks(&query))),
                    ("choices", json!(choices)),
                    ("gold", json!(gold)),
                ]
            }
            Self::Winogrande => {
                let sentence = text("sentence")?;
                let (before, after) =
                    sentence.split_once('_').ok_or("`sentence` has no `_` where the gap is")?;
                let with = |option: String| format!("{before}{option}");
                let gold = match text("answer")?.as_str() {
                    "1" => 0,
                    "2" => 1,
                    other => return Err(format!("`answer` is `{other}`; expected `1` or `2`")),
                };
                vec![
                    ("choices", json!([with(text("option1")?), with(text("option2")?)])),
                    ("gold", json!(gold)),
                    ("rest", json!(crate::template::python_trim(after))),
                ]
            }
        };
        row.extend(new.into_iter().map(|(key, value)| (key.to_owned(), value)));
        Ok(())
    }
}

impl Processing {
    const ALL: [(&'static str, Self); 1] = [("builtin.truthfulqa_mc2", Self::TruthfulMc2)];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(other, _)| *other == name).map(|(_, found)| *found)
    }

    pub(crate) fn names() -> String {
        Self::ALL.map(|(name, _)| format!("`{name}`")).join(", ")
    }

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, other)| *other == self).map_or("", |(name, _)| name)
    }

    /// What it must know of a row: for each choice whether it is true.
    pub(crate) fn labels(self, row: &Value) -> Result<Vec<bool>, String> {
        let labels = row["mc2_targets"]["labels"].as_array();
        let labels = labels.ok_or("`mc2_targets.labels` is not a list")?;
        Ok(labels.iter().map(|label| number(label) == Some(1)).collect())
    }

    /// The score, from the logarithm of each choice's probability.
    pub(crate) fn score(self, logps: &[f64], labels: &[bool]) -> f64 {
        let all: f64 = logps.iter().map(|logp| logp.exp()).sum();
        let of_true = logps.iter().zip(labels).filter(|(_, is_true)| **is_true);
        of_true.map(|(logp, _)| logp.exp() / all).sum()
    }
}

/// A number, or a text that is one.
fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// Python's `str.capitalize`.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars.as_str().to_lowercase().chars()).collect()
}

/// Without the marks that the pages left that HellaSwag was made of.
fn without_marks(text: &str) -> String {
    let text = crate::template::python_trim(text).replace(" [title]", ". ");
    let unmarked = match Regex::new(r"\[.*?\]") {
        Ok(marks) => marks.replace_all(&text, "").into_owned(),
        Err(_) => text,
    };
    unmarked.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::{Preprocessing, Processing};
    use serde_json::{Value, json};

    fn with_columns(of: Preprocessing, row: Value) -> Result<Value, String> {
        let Value::Object(mut row) = row else { panic!("an object") };
        of.apply(&mut row).map(|()| Value::Object(row))
    }

    /// By `lm_eval/tasks/hellaswag/utils.py` of 0.4.13.
    #[test]
    fn hellaswag_rows_lose_their_marks() {
        let row = json!({
            "activity_label": "Baking", "ctx_a": "A man [title] stands.", "ctx_b": "he BAKES a  cake",
            "endings": [" one [step] two ", "three"], "label": "1",
        });
        let found = with_columns(Preprocessing::Hellaswag, row.clone()).unwrap();
        assert_eq!(found["query"], "Baking: A man. stands. He bakes a cake");
        assert_eq!(found["choices"], json!(["one two", "three"]));
        assert_eq!((&found["gold"], &found["label"]), (&json!(1), &json!("1")));
        let mut wrong = row;
        wrong["label"] = json!("");
        assert!(with_columns(Preprocessing::Hellaswag, wrong).unwrap_err().contains("`label`"));
    }

    #[test]
    fn winogrande_sentences_are_cut_at_the_gap() {
        let row = json!({
            "sentence": "Ann saw Bo, so _ waved. ", "option1": "Ann", "option2": "Bo", "answer": "2",
        });
        let found = with_columns(Preprocessing::Winogrande, row).unwrap();
        assert_eq!(found["choices"], json!(["Ann saw Bo, so Ann", "Ann saw Bo, so Bo"]));
        assert_eq!((&found["gold"], &found["rest"]), (&json!(1), &json!("waved.")));
        let no_gap = json!({"sentence": "a", "option1": "b", "option2": "c", "answer": "1"});
        assert!(with_columns(Preprocessing::Winogrande, no_gap).unwrap_err().contains("gap"));
    }

    #[test]
    fn the_share_of_the_true_answers() {
        let row = json!({"mc2_targets": {"labels": [1, 0, 1]}});
        let labels = Processing::TruthfulMc2.labels(&row).unwrap();
        assert_eq!(labels, [true, false, true]);
        let logps = [0.1_f64.ln(), 0.2_f64.ln(), 0.3_f64.ln()];
        // (0.1 + 0.3) / 0.6
        assert!((Processing::TruthfulMc2.score(&logps, &labels) - 2.0 / 3.0).abs() < 1e-12);
    }
}
