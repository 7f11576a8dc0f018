use forgelm_data::{Code, Layout, RecordKind};
use forgelm_tokenize::Message;

use crate::{assert_problem, open_bytes, problem, row_problem};

fn kind(row: &str) -> RecordKind {
    open_bytes("rows.jsonl", row.as_bytes()).unwrap().records.remove(0).kind
}

fn messages(messages: &[(&str, &str)]) -> Vec<Message> {
    messages.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

#[test]
fn every_layout_of_the_specification_is_read() {
    let text = r#"{"text": " a\n  b "}"#;
    assert_eq!(kind(text), RecordKind::Text(" a\n  b".to_owned()));
    let conversation = messages(&[("user", "U"), ("assistant", "A")]);
    for row in [
        r#"{"messages": [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}], "id": 7}"#,
        r#"{"User": "U", "Assistant": "A"}"#,
        r#"{"instruction": "U", "output": "A"}"#,
        r#"{"instruction": "U", "response": "A", "System": ""}"#,
        r#"{"User": "U", "instruction": "x", "Assistant": "A", "output": "y", "response": "z"}"#,
        r#"{"User": "U", "Assistant": "A", "text": "x"}"#,
        r#"{"prompt": [{"role": "user", "content": "U"}], "completion": [{"role": "assistant", "content": "A"}]}"#,
        r#"{"prompt": [{"role": "user", "content": "U"}], "completion": "A"}"#,
    ] {
        let kind = kind(row);
        assert_eq!(kind.conversation(), Some(&conversation[..]), "{row}");
        assert_eq!(
            matches!(kind, RecordKind::Turns(_)),
            row.contains("ser\"") && !row.contains('[') || row.contains("instruction"),
            "{row}"
        );
    }
    let with_system = messages(&[("system", "S"), ("user", "U"), ("assistant", "A")]);
    assert_eq!(
        kind(r#"{"System": "S", "User": "U", "Assistant": "A"}"#),
        RecordKind::Turns(with_system)
    );
    let plain =
        RecordKind::PromptCompletion { prompt: "2+2= ".to_owned(), completion: "4".to_owned() };
    assert_eq!(kind(r#"{"prompt": "2+2= ", "completion": "4"}"#), plain);
    assert_eq!(kind(r#"{"prompt": "2+2= ", "response": "4"}"#), plain);
    let dataset = open_bytes("rows.jsonl", text.as_bytes()).unwrap();
    assert_eq!(dataset.layout, Layout::Text);
    assert_eq!(dataset.layout.name(), "text");
}

#[test]
fn columns_of_another_trainer_are_recognized() {
    for (row, part) in [
        (r#"{"chosen": "a", "rejected": "b"}"#, "preference pairs; `trainer_type: dpo` would fit"),
        (r#"{"completion": "a", "label": true}"#, "binary feedback; `trainer_type: kto` would fit"),
        (r#"{"prompt": "a"}"#, "prompts alone; `trainer_type: grpo` would fit"),
        (
            r#"{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}"#,
            "columns `a`, `b`, `c`, `d`, `e`, …, which look like an unknown layout",
        ),
    ] {
        let found = row_problem(row);
        assert_problem(&found, Code::Columns, 1, "");
        assert!(found.found.contains(part), "{found}");
        assert!(found.expected.contains("`messages`"), "{found}");
    }
}

#[test]
fn later_rows_must_have_the_layout_of_the_first() {
    let text = "{\"text\": \"a\"}\n{\"messages\": []}\n";
    assert_problem(
        &problem(open_bytes("rows.jsonl", text.as_bytes())),
        Code::FieldMissing,
        2,
        "text",
    );
    for (row, code, field) in [
        (r#"{"text": null}"#, Code::FieldType, "text"),
        (r#"{"text": 3}"#, Code::FieldType, "text"),
        (r#"{"text": "  \n"}"#, Code::Empty, "text"),
        (r#"{"User": "a", "Assistant": ["b"]}"#, Code::FieldType, "Assistant"),
        (r#"{"User": "a", "Assistant": "b", "System": 3}"#, Code::FieldType, "System"),
        (r#"{"prompt": "a", "completion": 4}"#, Code::FieldType, "completion"),
        (r#"{"text": "a", "text": "b"}"#, Code::Json, ""),
    ] {
        assert_problem(&row_problem(row), code, 1, field);
    }
}

#[test]
fn an_array_of_rows_is_read_like_lines_and_problems_keep_their_lines() {
    let text = "\u{feff}[\n  {\"text\": \"a, ]\\\"}\"},\n\n  {\"text\":\n   \"b\"}\n]\n";
    let dataset = open_bytes("rows.json", text.as_bytes()).unwrap();
    let lines: Vec<u64> = dataset.records.iter().map(|record| record.line).collect();
    assert_eq!(lines, [2, 4]);
    assert_eq!(dataset.records[0].kind, RecordKind::Text("a, ]\"}".to_owned()));
    // The same rows a line each, under the same ending.
    assert_eq!(
        open_bytes("rows.json", b"{\"text\": \"a\"}\n{\"text\": \"b\"}").unwrap().records.len(),
        2
    );
    for (text, line) in [
        ("[\n{\"text\": \"a\"}\n", 3),
        ("[\n{\"text\": \"a\"}]\nx", 3),
        ("[{\"text\": \"a\"},\n{\"text\" \"b\"}]", 2),
        ("[\n{\"text\": \"a\n\"}]", 2),
    ] {
        let found = problem(open_bytes("rows.json", text.as_bytes()));
        assert_eq!((found.code, found.line), (Code::Json, Some(line)), "{text:?}: {found}");
    }
    assert_problem(&problem(open_bytes("rows.json", b"[\"\xFF\"]")), Code::Utf8, 1, "");
}

#[test]
fn the_fingerprint_is_that_of_the_bytes() {
    let bytes = b"{\"text\": \"a\"}\n";
    let dataset = open_bytes("rows.jsonl", bytes).unwrap();
    assert_eq!(dataset.fingerprint(), forgelm_artifact::hash::sha256_bytes(bytes));
    assert_eq!(dataset.files[0].n_bytes, bytes.len() as u64);
    let array = b"[{\"text\": \"a\"}] ";
    assert_eq!(
        open_bytes("rows.json", array).unwrap().fingerprint(),
        forgelm_artifact::hash::sha256_bytes(array)
    );
    assert_ne!(
        open_bytes("rows.jsonl", b"{\"text\": \"b\"}\n").unwrap().fingerprint(),
        dataset.fingerprint()
    );
}
