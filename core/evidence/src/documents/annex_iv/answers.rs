//! What people wrote in the config: which keys have an answer, and which texts are none.

use serde_json::{Map, Value, json};

use super::requirements::{INSTRUCTIONS, Need, REQUIREMENTS};

/// Texts that stand where an answer is to come.
const PLACEHOLDERS: [&str; 24] = [
    "todo",
    "tbd",
    "tba",
    "tbc",
    "fixme",
    "xxx",
    "placeholder",
    "lorem ipsum",
    "to be determined",
    "to be defined",
    "to be decided",
    "to be done",
    "to be provided",
    "to be completed",
    "not specified",
    "not provided",
    "not yet provided",
    "not applicable",
    "not available",
    "unknown",
    "n/a",
    "na",
    "insert text",
    "your text here",
];
/// Texts that begin so are to come, too: `TODO: ask the lawyers`.
const BEGINNINGS: [&str; 4] = ["todo", "tbd", "fixme", "lorem ipsum"];

/// Whether a text is blank, or only stands for an answer that is to come. `not applicable` needs a
/// reason after it.
#[must_use]
pub fn is_placeholder(text: &str) -> bool {
    let text = text.trim().to_lowercase();
    let bare = text.trim_matches(|c: char| !c.is_alphanumeric());
    let is_bracketed = |open, close| text.starts_with(open) && text.ends_with(close);
    let begins = BEGINNINGS.iter().any(|word| {
        bare.strip_prefix(word).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
    });
    bare.is_empty()
        || PLACEHOLDERS.contains(&bare)
        || begins
        || is_bracketed('<', '>')
        || is_bracketed('[', ']')
}

/// The value without what is no answer: blanks, placeholders, empty lists and sections; `None` when
/// nothing is left.
#[must_use]
pub fn answer(value: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Bool(_) | Value::Number(_) => Some(value.clone()),
        Value::String(text) => (!is_placeholder(text)).then(|| json!(text.trim())),
        Value::Array(items) => {
            let items: Vec<Value> = items.iter().filter_map(answer).collect();
            (!items.is_empty()).then_some(Value::Array(items))
        }
        Value::Object(members) => {
            let members: Map<String, Value> =
                members.iter().filter_map(|(k, v)| Some((k.clone(), answer(v)?))).collect();
            (!members.is_empty()).then_some(Value::Object(members))
        }
    }
}

/// The sections of the config that people answer in, under the paths that they have there.
#[derive(Clone, Debug)]
pub struct Answers(Value);

impl Answers {
    /// From the sections `compliance`, `risk_assessment` and `data.governance`, where there are any.
    #[must_use]
    pub fn new(
        compliance: Option<&Map<String, Value>>,
        risk_assessment: Option<&Map<String, Value>>,
        governance: Option<&Map<String, Value>>,
    ) -> Self {
        Self(json!({
            "compliance": compliance,
            "risk_assessment": risk_assessment,
            "data": {"governance": governance},
        }))
    }

    /// What a key says, if that is an answer.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Value> {
        let found = key.split('.').try_fold(&self.0, |value, part| value.get(part))?;
        answer(found)
    }

    /// The same as text.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<String> {
        Some(self.get(key)?.as_str()?.to_owned())
    }

    /// The same as texts.
    #[must_use]
    pub fn texts(&self, key: &str) -> Vec<String> {
        let found = self.get(key);
        let items = found.as_ref().and_then(Value::as_array).into_iter().flatten();
        items.filter_map(|item| Some(item.as_str()?.to_owned())).collect()
    }

    /// What a need lacks, as the keys to write; empty when it is met. `has_run` is whether there is a
    /// run, or will be.
    #[must_use]
    pub fn lacking(&self, need: Need, has_run: bool) -> Vec<String> {
        let is_open = |key: &&&str| self.get(key).is_none();
        match need {
            Need::Key(key) => [key].iter().filter(is_open).map(|key| (*key).to_owned()).collect(),
            Need::AnyOf(keys) if keys.iter().any(|key| self.get(key).is_some()) => Vec::new(),
            Need::AnyOf(keys) => vec![keys.join(" or ")],
            Need::Run if has_run => Vec::new(),
            Need::Run => vec!["a training run".to_owned()],
            Need::Instructions => {
                let keys = INSTRUCTIONS.iter().flat_map(|item| item.keys);
                keys.filter(is_open).map(|key| (*key).to_owned()).collect()
            }
        }
    }
}

/// A point that would say `not provided`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenPoint {
    /// `1(a)` to `9`.
    pub point: &'static str,
    /// What is asked, in short.
    pub requirement: &'static str,
    /// The keys to write.
    pub keys: Vec<String>,
}

/// The points that a finished run with these answers would leave open, in order.
#[must_use]
pub fn open_points(answers: &Answers) -> Vec<OpenPoint> {
    let open = REQUIREMENTS.iter().map(|requirement| OpenPoint {
        point: requirement.point,
        requirement: requirement.requirement,
        keys: lacking(answers, requirement.needs, true),
    });
    open.filter(|open| !open.keys.is_empty()).collect()
}

/// What all needs together lack.
pub(super) fn lacking(answers: &Answers, needs: &[Need], has_run: bool) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for key in needs.iter().flat_map(|need| answers.lacking(*need, has_run)) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::{Answers, answer, is_placeholder, open_points};
    use serde_json::{Value, json};

    #[test]
    fn placeholders_are_no_answers_and_reasons_are() {
        for text in [
            "",
            "  \n",
            "TODO",
            "todo: ask",
            "TBD.",
            "...",
            "-",
            "?",
            "N/A",
            "Not applicable",
            "not applicable:",
            "<your text>",
            "[insert]",
            "Not specified",
            "Lorem ipsum dolor",
            "unknown",
            "\u{a0}",
        ] {
            assert!(is_placeholder(text), "{text:?}");
        }
        for text in [
            "not applicable: the system is no component of a product",
            "none: this is the first version",
            "Todoist answers",
            "Answers customers",
            "1.0.0",
            "unknown inputs are refused",
        ] {
            assert!(!is_placeholder(text), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_answer_is_left_out_at_every_depth() {
        let value =
            json!({"a": " x ", "b": "", "c": ["TBD", {"d": null}], "e": [1, "y"], "f": false});
        assert_eq!(answer(&value), Some(json!({"a": "x", "e": [1, "y"], "f": false})));
        assert_eq!(answer(&json!([[], {}, "-"])), None);
    }

    #[test]
    fn every_key_that_is_named_closes_its_point() {
        let nothing = Answers::new(None, None, None);
        let open = open_points(&nothing);
        // 1(c), 2(a) and 2(c) are what a run knows by itself.
        assert_eq!(open.len(), 20);
        let mut all = json!({});
        for key in open.iter().flat_map(|point| &point.keys) {
            for key in key.split(" or ").take(1) {
                let mut at = &mut all;
                for part in key.split('.') {
                    at = &mut at[part];
                }
                *at = json!("an answer");
            }
        }
        let section = |pointer: &str| all.pointer(pointer).and_then(Value::as_object);
        let answers = Answers::new(
            section("/compliance"),
            section("/risk_assessment"),
            section("/data/governance"),
        );
        assert_eq!(open_points(&answers), []);
    }
}
