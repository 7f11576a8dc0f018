//! What is made of an answer before it is compared.

use crate::definition::OutputType;
use crate::error::TaskError;
use crate::source::{Entries, kind};
use crate::template::python_trim;
use fancy_regex::Regex;
use serde_yaml::Value;
use std::collections::BTreeMap;

/// Filters one after another, and the name of it all.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    pub(crate) name: String,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Regex { regex: Regex, group_select: i64, fallback: String },
    RemoveWhitespace,
    Lowercase,
    Uppercase,
    TakeFirst,
    TakeFirstK(usize),
    MajorityVote,
}

const KNOWN: &str = "`regex`, `remove_whitespace`, `lowercase`, `uppercase`, `take_first`, \
                     `take_first_k` or `majority_vote`";

impl Pipeline {
    /// The pipelines of a task.
    pub(crate) fn list(entries: &Entries, output: OutputType) -> Result<Vec<Self>, TaskError> {
        const KEY: &str = "filter_list";
        let wrong = |problem: String| entries.error(KEY, problem, None);
        let Some(value) = entries.get(KEY) else {
            return Ok(vec![Self { name: "none".to_owned(), steps: vec![Step::TakeFirst] }]);
        };
        let lists = value.as_sequence().filter(|lists| !lists.is_empty()).ok_or_else(|| {
            wrong(format!("`{KEY}` is {}; expected a list of filters with names", kind(value)))
        })?;
        let mut pipelines = Vec::new();
        for list in lists {
            let name = list.get("name").and_then(Value::as_str);
            let steps = list.get("filter").and_then(Value::as_sequence);
            let (Some(name), Some(steps)) = (name, steps) else {
                let problem = format!("an entry of `{KEY}` has no `name` or no list `filter`");
                return Err(wrong(problem));
            };
            let steps = steps.iter().map(Step::parse).collect::<Result<Vec<_>, _>>();
            let steps = steps.map_err(|problem| wrong(format!("`{KEY}`, `{name}`: {problem}")))?;
            let is_last = |step: &Step| matches!(step, Step::TakeFirst);
            if steps.is_empty() || steps.iter().position(is_last) != Some(steps.len() - 1) {
                let problem =
                    format!("`{KEY}`, `{name}`: expected `take_first` as the last filter");
                return Err(wrong(problem));
            }
            if output != OutputType::GenerateUntil && steps.len() > 1 {
                let problem = format!(
                    "`{KEY}`, `{name}`: only answers are filtered; expected `take_first` alone"
                );
                return Err(wrong(problem));
            }
            pipelines.push(Self { name: name.to_owned(), steps });
        }
        Ok(pipelines)
    }

    /// The answer that is compared, of the answers to one prompt.
    pub(crate) fn apply(&self, answers: &[String]) -> String {
        let mut answers = answers.to_vec();
        for step in &self.steps {
            step.apply(&mut answers);
        }
        answers.into_iter().next().unwrap_or_default()
    }
}

impl Step {
    fn parse(value: &Value) -> Result<Self, String> {
        let name = value.get("function").and_then(Value::as_str).unwrap_or_default();
        let allowed: &[&str] = match name {
            "regex" => &["function", "regex_pattern", "group_select", "fallback"],
            "take_first_k" => &["function", "k"],
            _ => &["function"],
        };
        let keys = value.as_mapping().into_iter().flat_map(serde_yaml::Mapping::keys);
        for key in keys {
            if !key.as_str().is_some_and(|key| allowed.contains(&key)) {
                return Err(format!("the filter `{name}` has no option {}", kind(key)));
            }
        }
        let text = |key: &str, default: &str| {
            value.get(key).and_then(Value::as_str).unwrap_or(default).to_owned()
        };
        match name {
            "regex" => {
                let pattern = text("regex_pattern", r"#### (\-?[0-9\.\,]+)");
                let regex = Regex::new(&pattern)
                    .map_err(|error| format!("the pattern `{pattern}`: {error}"))?;
                let group_select = value.get("group_select").map_or(Some(0), Value::as_i64);
                let group_select = group_select.ok_or("`group_select` is not a whole number")?;
                Ok(Self::Regex { regex, group_select, fallback: text("fallback", "[invalid]") })
            }
            "remove_whitespace" => Ok(Self::RemoveWhitespace),
            "lowercase" => Ok(Self::Lowercase),
            "uppercase" => Ok(Self::Uppercase),
            "take_first" => Ok(Self::TakeFirst),
            "take_first_k" => {
                let k = value.get("k").and_then(Value::as_u64).filter(|&k| k > 0);
                let k = k.ok_or("`take_first_k` needs a number `k`")?;
                Ok(Self::TakeFirstK(usize::try_from(k).unwrap_or(usize::MAX)))
            }
            "majority_vote" => Ok(Self::MajorityVote),
            other => Err(format!("`{other}` is not a filter that is understood; expected {KNOWN}")),
        }
    }

    fn apply(&self, answers: &mut Vec<String>) {
        match self {
            Self::Regex { regex, group_select, fallback } => {
                for answer in answers {
                    let found = selected(regex, answer, *group_select);
                    *answer = found.unwrap_or_else(|| fallback.clone());
                }
            }
            Self::RemoveWhitespace => {
                answers.iter_mut().for_each(|a| *a = python_trim(a).to_owned());
            }
            Self::Lowercase => answers.iter_mut().for_each(|a| *a = a.to_lowercase()),
            Self::Uppercase => answers.iter_mut().for_each(|a| *a = a.to_uppercase()),
            Self::TakeFirst => answers.truncate(1),
            Self::TakeFirstK(k) => answers.truncate(*k),
            Self::MajorityVote => {
                let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
                answers.iter().for_each(|answer| *counts.entry(answer).or_default() += 1);
                let most = counts.values().copied().max().unwrap_or(0);
                // Of those, the one that came first.
                let voted = answers.iter().find(|answer| counts[answer.as_str()] == most).cloned();
                *answers = voted.into_iter().collect();
            }
        }
    }
}

/// The match that `group_select` says, as Python's `findall` gives matches; negative counts from the end.
/// Of several groups the first that is not empty. None without a match, or where all groups are empty.
fn selected(regex: &Regex, answer: &str, group_select: i64) -> Option<String> {
    // A pattern that needs too many steps finds nothing, as one that does not match.
    let found: Vec<_> = regex.captures_iter(answer).map_while(Result::ok).collect();
    let at = match usize::try_from(group_select) {
        Ok(at) => at,
        Err(_) => found.len().checked_sub(usize::try_from(group_select.unsigned_abs()).ok()?)?,
    };
    let captures = found.get(at)?;
    let group = |i: usize| captures.get(i).map_or("", |group| group.as_str());
    let text = match captures.len() {
        1 => group(0),
        2 => group(1),
        n => (1..n).map(group).find(|text| !text.is_empty())?,
    };
    Some(python_trim(text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::Pipeline;
    use crate::definition::OutputType;
    use crate::source::parse;

    fn pipelines(yaml: &str) -> Result<Vec<Pipeline>, String> {
        let entries = parse(yaml, "t.yaml", None, 0).unwrap();
        Pipeline::list(&entries, OutputType::GenerateUntil).map_err(|error| error.to_string())
    }

    fn applied(steps: &str, answers: &[&str]) -> String {
        let yaml =
            format!("filter_list: [{{name: n, filter: [{steps}, {{function: take_first}}]}}]");
        let answers: Vec<String> = answers.iter().map(|&a| a.to_owned()).collect();
        pipelines(&yaml).unwrap()[0].apply(&answers)
    }

    /// The values are those of `lm_eval.filters` 0.4.13.
    #[test]
    fn answers_are_extracted_as_the_harness_does() {
        let strict = r#"{function: regex, regex_pattern: '#### (\-?[0-9\.\,]+)'}"#;
        assert_eq!(applied(strict, &["so #### 1,200. And #### 7"]), "1,200.");
        assert_eq!(applied(strict, &["no number"]), "[invalid]");
        let flexible =
            r#"{function: regex, group_select: -1, regex_pattern: '(-?[$0-9.,]{2,})|(-?[0-9]+)'}"#;
        assert_eq!(applied(flexible, &["it is 12, or 7"]), "7");
        assert_eq!(applied(flexible, &["it is 12, or $70.5"]), "$70.5");
        assert_eq!(applied(flexible, &["none"]), "[invalid]");
        let look = r#"{function: regex, regex_pattern: '(?<=answer is )(.*)(?=\.)', fallback: ''}"#;
        assert_eq!(applied(look, &["The answer is  B ."]), "B");
        assert_eq!(applied(look, &["?"]), "");
        let past_the_end = r#"{function: regex, group_select: 3, regex_pattern: 'a'}"#;
        assert_eq!(applied(past_the_end, &["a a"]), "[invalid]");
        assert_eq!(applied("{function: remove_whitespace}", &["\u{1c} a \n"]), "a");
        assert_eq!(applied("{function: lowercase}", &["Ab"]), "ab");
        assert_eq!(applied("{function: majority_vote}", &["b", "a", "c", "a", "b"]), "b");
        assert_eq!(applied("{function: take_first_k, k: 2}", &["x", "y", "z"]), "x");
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (yaml, text) in [
            ("[{function: multi_choice_regex}]", "`multi_choice_regex` is not a filter"),
            ("[{function: regex, regex_pattern: '('}]", "the pattern `(`"),
            ("[{function: regex, group: 1}]", "no option the text `group`"),
            (
                "[{function: take_first}, {function: lowercase}]",
                "expected `take_first` as the last",
            ),
            ("[]", "expected `take_first` as the last"),
        ] {
            let refused = pipelines(&format!("filter_list:\n- {{name: n, filter: {yaml}}}"));
            let refused = refused.expect_err(yaml);
            assert!(refused.contains(text), "{refused}");
            assert!(refused.starts_with("t.yaml:1: "), "{refused}");
        }
    }
}
