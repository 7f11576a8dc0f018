//! The text of a row, for statistics; and every string in it, for searching.

use serde_json::{Map, Value};

/// Columns that together are a text.
const PAIRS: [(&str, &str); 3] =
    [("instruction", "output"), ("User", "Assistant"), ("prompt", "response")];
/// Columns that are one.
const SINGLE: [&str; 4] = ["text", "content", "completion", "prompt"];

/// The text of a row, from whichever layout it has; `None` if there is none.
pub(crate) fn text_of(row: &Map<String, Value>) -> Option<String> {
    let string = |column: &str| row.get(column).and_then(Value::as_str);
    let written = |column: &str| string(column).filter(|text| !text.trim().is_empty());
    for (first, second) in PAIRS {
        if string(first).is_some() && string(second).is_some() {
            let halves: Vec<&str> = [first, second].into_iter().filter_map(written).collect();
            if !halves.is_empty() {
                return Some(halves.join("\n"));
            }
        }
    }
    if let Some(text) = SINGLE.into_iter().find_map(written) {
        return Some(text.to_owned());
    }
    if let Some(text) = row.get("messages").and_then(contents) {
        return Some(text);
    }
    let halves = PAIRS.into_iter().flat_map(|(first, second)| [first, second]);
    if let Some(text) = halves.into_iter().find_map(written) {
        return Some(text.to_owned());
    }
    let answers = ["chosen", "rejected"].into_iter().filter_map(|column| {
        written(column).map(str::to_owned).or_else(|| row.get(column).and_then(contents))
    });
    let answers: Vec<String> = answers.collect();
    (!answers.is_empty()).then(|| answers.join("\n"))
}

/// What the turns of a conversation say.
fn contents(messages: &Value) -> Option<String> {
    let said = |message: &Value| {
        let content = message.get("content")?.as_str()?;
        (!content.trim().is_empty()).then(|| content.to_owned())
    };
    let said: Vec<String> = messages.as_array()?.iter().filter_map(said).collect();
    (!said.is_empty()).then(|| said.join("\n"))
}

/// Every string in a value, names of fields too.
pub(super) fn each_string(value: &Value, see: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => see(text),
        Value::Array(items) => items.iter().for_each(|item| each_string(item, see)),
        Value::Object(map) => {
            for (key, item) in map {
                see(key);
                each_string(item, see);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{each_string, text_of};
    use serde_json::json;

    #[test]
    fn the_text_of_every_layout() {
        for (row, expected) in [
            (json!({"text": "t", "instruction": "q", "output": "a"}), Some("q\na")),
            (json!({"User": " ", "Assistant": "a"}), Some("a")),
            (json!({"prompt": "p", "completion": "c"}), Some("c")),
            (json!({"prompt": "p", "response": ""}), Some("p")),
            (json!({"text": " ", "content": "c"}), Some("c")),
            (
                json!({"messages": [{"content": "a"}, {"content": null}, {"content": "b"}]}),
                Some("a\nb"),
            ),
            (json!({"instruction": "q"}), Some("q")),
            (json!({"chosen": "a", "rejected": [{"content": "b"}]}), Some("a\nb")),
            (json!({"prompt": "p", "chosen": "a", "rejected": "b"}), Some("p")),
            (json!({"text": "", "messages": []}), None),
            (json!({"other": "x"}), None),
        ] {
            assert_eq!(text_of(row.as_object().unwrap()).as_deref(), expected, "{row}");
        }
    }

    #[test]
    fn every_string_is_seen() {
        let mut seen = Vec::new();
        let row = json!({"a": ["b", {"c": "d"}, 1, null], "e": "f"});
        each_string(&row, &mut |text| seen.push(text.to_owned()));
        assert_eq!(seen, ["a", "b", "c", "d", "e", "f"]);
    }
}
