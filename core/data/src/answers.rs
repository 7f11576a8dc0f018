//! Rows of prompts and answers: preferences, labelled answers, prompts alone.

use forgelm_tokenize::Message;
use serde_json::Value;

use crate::fields::{Fields, kind};
use crate::problem::{Code, DataProblem};
use crate::record::{Content, RecordKind, Rules};

/// `chosen` and `rejected`, with `prompt` or with a beginning that both have.
///
/// Where `prompt` is a text and the answers are conversations, the conversations begin with the prompt: it is
/// taken from them, as TRL does.
pub(crate) fn preference(fields: &Fields<'_, '_>) -> Result<RecordKind, DataProblem> {
    let fields = &uncleaned(fields);
    let chosen = content(fields, "chosen")?;
    let rejected = content(fields, "rejected")?;
    let prompt = match fields.columns.get("prompt") {
        None | Some(Value::Null) => None,
        Some(Value::String(_)) if matches!(chosen, Content::Messages(_)) => None,
        Some(_) => Some(content(fields, "prompt")?),
    };
    let same_kind =
        |a: &Content, b: &Content| std::mem::discriminant(a) == std::mem::discriminant(b);
    if !same_kind(&chosen, &rejected) || prompt.as_ref().is_some_and(|p| !same_kind(p, &chosen)) {
        let found = "texts and conversations in one row";
        return Err(fields.problem(
            Code::FieldType,
            "rejected",
            found,
            "all texts, or all lists of messages",
        ));
    }
    if chosen == rejected {
        let found = "the same answer as `chosen`";
        return Err(fields.problem(Code::Same, "rejected", found, "another answer"));
    }
    let (prompt, chosen, rejected) = match prompt {
        Some(prompt) => (prompt, chosen, rejected),
        None => implicit_prompt(fields, chosen, rejected)?,
    };
    check_answer(fields, "chosen", &prompt, &chosen)?;
    check_answer(fields, "rejected", &prompt, &rejected)?;
    Ok(RecordKind::Preference { prompt, chosen, rejected })
}

/// `prompt`, `completion`, and `label` as a truth value or the numbers 1 and 0.
pub(crate) fn labelled(fields: &Fields<'_, '_>) -> Result<RecordKind, DataProblem> {
    let fields = &uncleaned(fields);
    let prompt = content(fields, "prompt")?;
    let completion = match (&prompt, content(fields, "completion")?) {
        (Content::Messages(_), Content::Text(text)) => {
            Content::Messages(vec![Message::new("assistant", text)])
        }
        (Content::Text(_), Content::Messages(_)) => {
            let expected = "a text, as `prompt` is";
            return Err(fields.problem(
                Code::FieldType,
                "completion",
                "a list of messages",
                expected,
            ));
        }
        (_, completion) => completion,
    };
    check_answer(fields, "completion", &prompt, &completion)?;
    let is_desirable = match fields.value("label")? {
        Value::Bool(label) => *label,
        Value::Number(n) if n.as_u64() == Some(1) => true,
        Value::Number(n) if n.as_u64() == Some(0) => false,
        other => {
            let found = match other {
                Value::String(text) => {
                    format!(
                        "the text `{}`",
                        text.chars().filter(|c| !c.is_control()).take(20).collect::<String>()
                    )
                }
                Value::Number(n) => n.to_string(),
                other => kind(other).to_owned(),
            };
            let expected = "true or false (or 1 or 0), without quotes";
            return Err(fields.problem(Code::Label, "label", found, expected));
        }
    };
    Ok(RecordKind::Labelled { prompt, completion, is_desirable })
}

/// `prompt`, and every column, this one too, for the rewards.
pub(crate) fn prompt(fields: &Fields<'_, '_>) -> Result<RecordKind, DataProblem> {
    let fields = &uncleaned(fields);
    let prompt = content(fields, "prompt")?;
    if let Content::Messages(messages) = &prompt
        && messages.last().is_some_and(|last| last.role == "assistant")
    {
        let found = "ends with a turn of the assistant";
        return Err(fields.problem(
            Code::EndsWithAssistant,
            "prompt",
            found,
            "the user's turn at the end",
        ));
    }
    let columns = fields.columns.iter().map(|(name, value)| (name.clone(), value.clone()));
    Ok(RecordKind::Prompt { prompt, columns: columns.collect() })
}

/// Cleaning would take the space between prompt and answer.
fn uncleaned<'r, 'a>(fields: &Fields<'r, 'a>) -> Fields<'r, 'a> {
    let rules = Rules { clean_text: false, ..fields.rules };
    Fields { row: fields.row, columns: fields.columns, rules }
}

fn content(fields: &Fields<'_, '_>, field: &str) -> Result<Content, DataProblem> {
    match fields.value(field)? {
        Value::Array(_) => fields.messages(field, false).map(Content::Messages),
        Value::String(_) => fields.text(field).map(Content::Text),
        other => {
            Err(fields.problem(Code::FieldType, field, kind(other), "a text or a list of messages"))
        }
    }
}

/// An answer ends with the assistant, and the turns of prompt and answer follow each other.
fn check_answer(
    fields: &Fields<'_, '_>,
    field: &str,
    prompt: &Content,
    answer: &Content,
) -> Result<(), DataProblem> {
    match (prompt, answer) {
        (Content::Messages(prompt), Content::Messages(answer)) => {
            let whole: Vec<Message> = prompt.iter().chain(answer).cloned().collect();
            fields.check_order(&whole, field, true)
        }
        (_, Content::Text(text)) if text.is_empty() => {
            Err(fields.problem(Code::Empty, field, "nothing after the prompt", "an answer"))
        }
        _ => Ok(()),
    }
}

/// The beginning that both answers have.
///
/// Of conversations by turns. Of texts by characters; where they part after a space, the space belongs to the
/// answers. (TRL, `extract_prompt`.)
fn implicit_prompt(
    fields: &Fields<'_, '_>,
    chosen: Content,
    rejected: Content,
) -> Result<(Content, Content, Content), DataProblem> {
    let differ = |what: &str| {
        let found = format!("does not begin as `chosen` does, and the row has no `prompt`{what}");
        fields.problem(
            Code::PromptDiffers,
            "rejected",
            found,
            "the same prompt before both answers",
        )
    };
    match (chosen, rejected) {
        (Content::Text(chosen), Content::Text(rejected)) => {
            let mut end = chosen
                .char_indices()
                .zip(rejected.chars())
                .find(|((_, a), b)| a != b)
                .map_or(chosen.len().min(rejected.len()), |((at, _), _)| at);
            if chosen[..end].ends_with(' ') {
                end -= 1;
            }
            if end == 0 {
                return Err(differ(""));
            }
            let part = |text: &str| Content::Text(text.to_owned());
            Ok((part(&chosen[..end]), part(&chosen[end..]), part(&rejected[end..])))
        }
        (Content::Messages(mut chosen), Content::Messages(mut rejected)) => {
            let n = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
            if n == 0 {
                return Err(differ(""));
            }
            let answers = (chosen.split_off(n), rejected.split_off(n));
            if answers.0.is_empty() || answers.1.is_empty() {
                let found = "one of the two is the beginning of the other";
                return Err(fields.problem(Code::Same, "rejected", found, "two answers"));
            }
            Ok((
                Content::Messages(chosen),
                Content::Messages(answers.0),
                Content::Messages(answers.1),
            ))
        }
        _ => Err(differ("")),
    }
}
