use std::time::Duration;

use forgelm_config::TrainerType;
use forgelm_data::{Code, RecordKind, open};

use crate::{assert_problem, open_bytes, open_skipping, problem, problems, row_problem, section};

const GOOD: &str =
    r#"{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}"#;

#[test]
fn fault_017_bad_json_late_in_a_file_is_found_before_training_and_named() {
    let mut text = format!("{GOOD}\n").repeat(5000);
    let at = text.len();
    text.push_str("{\"messages\": [}\n");
    text.push_str(GOOD);
    let found = problem(open_bytes("rows.jsonl", text.as_bytes()));
    assert_problem(&found, Code::Json, 5001, "");
    assert!(found.found.contains(&format!("at byte {}", at + 14)), "{found}");
    // Skipped when asked for: 1 of 5002 rows is below 1 %.
    let dataset = open_skipping(text.as_bytes()).unwrap();
    assert_eq!((dataset.records.len(), dataset.skipped.total), (5001, 1));
    assert_eq!(dataset.skipped.shown[0], found_in(&dataset, &found));
    assert_eq!(dataset.files[0].n_rows, 5002);
}

/// The same problem under the name of the file of this data set.
fn found_in(
    dataset: &forgelm_data::Dataset,
    found: &forgelm_data::DataProblem,
) -> forgelm_data::DataProblem {
    forgelm_data::DataProblem { file: dataset.files[0].path.clone(), ..found.clone() }
}

#[test]
fn fault_017_more_than_one_percent_is_not_skipped() {
    let text = format!("{GOOD}\n").repeat(98) + "[]\n3\n";
    let found = problems(open_skipping(text.as_bytes()));
    assert_eq!(found.shown[0].code, Code::TooManyBad);
    assert!(found.shown[0].found.contains("2 of 100 rows"), "{found}");
    let text = format!("{GOOD}\n").repeat(99) + "[]\n";
    assert_eq!(open_skipping(text.as_bytes()).unwrap().skipped.total, 1);
}

#[test]
fn all_problems_are_counted_and_the_first_ones_shown() {
    let text = "{}\n".repeat(3) + &format!("{GOOD}\n") + &"7\n".repeat(100);
    let found = problems(open_bytes("rows.jsonl", text.as_bytes()));
    // The first row decides the layout, and has none.
    assert_eq!((found.total, found.shown[0].code), (1, Code::Columns));
    let text = format!("{GOOD}\n") + &"7\n".repeat(100);
    let found = problems(open_bytes("rows.jsonl", text.as_bytes()));
    assert_eq!((found.total, found.shown.len()), (100, 20));
    let shown = found.to_string();
    assert!(
        shown.contains("rows.jsonl:2: a number; expected an object with named fields [E-DATA-ROW]"),
        "{shown}"
    );
    assert!(
        shown.ends_with("… and 80 more\n100 problems in the data; nothing was started"),
        "{shown}"
    );
}

#[test]
fn fault_018_last_line_without_line_end_and_empty_lines_are_accepted_and_empty_files_are_not() {
    let text = format!("\u{feff}\n\n{GOOD}\r\n  \n{GOOD}");
    let dataset = open_bytes("rows.jsonl", text.as_bytes()).unwrap();
    assert_eq!(dataset.records.iter().map(|r| r.line).collect::<Vec<_>>(), [3, 5]);
    for bytes in ["", "\n\n", "  \t \n ", "[]", " [ ] "] {
        let name = if bytes.contains('[') { "rows.json" } else { "rows.jsonl" };
        let found = problem(open_bytes(name, bytes.as_bytes()));
        assert_eq!((found.code, found.line), (Code::NoRows, None), "{bytes:?}");
    }
}

#[test]
fn fault_019_a_line_above_the_cap_is_refused_with_its_place() {
    let text = format!("{GOOD}\n{{\"messages\": \"{}", "x".repeat(17 << 20));
    let found = problem(open_bytes("rows.jsonl", text.as_bytes()));
    assert_problem(&found, Code::LineLength, 2, "");
    assert!(found.found.contains(&format!("byte {}", GOOD.len() + 1)), "{found}");
    let found = problem(open_bytes(
        "rows.json",
        format!("[{GOOD},\n\"{}\"]", "x".repeat(17 << 20)).as_bytes(),
    ));
    assert_problem(&found, Code::LineLength, 2, "");
}

#[test]
fn fault_020_invalid_utf8_surrogates_and_nul_are_named_by_byte_offset() {
    let mut bytes = format!("{GOOD}\n").into_bytes();
    let start = bytes.len();
    bytes.extend(b"{\"text\": \"caf\xE9\"}\n");
    let found = problem(open_bytes("rows.jsonl", &bytes));
    assert_problem(&found, Code::Utf8, 2, "");
    assert!(found.found.contains(&format!("byte 0xe9 at byte {}", start + 13)), "{found}");

    let found = row_problem(r#"{"text": "ok \ud83d\ude00 \\ud800 half \ud83d"}"#);
    assert_problem(&found, Code::Surrogate, 1, "");
    assert!(found.found.contains(r"`\ud83d`) at byte 39"), "{found}");

    let found = problem(open_bytes("rows.jsonl", b"{\"text\": \"a\0b\"}"));
    assert_problem(&found, Code::Nul, 1, "");
    assert!(found.found.contains("byte 11"), "{found}");
    let found = row_problem(r#"{"messages": [{"role": "assistant", "content": "a\u0000b"}]}"#);
    assert_problem(&found, Code::Nul, 1, "messages[0].content");
    assert!(found.found.contains("byte 49"), "{found}");
    // Cleaning, which is on by default for text columns, takes it out.
    let dataset = open_bytes("rows.jsonl", br#"{"text": "a\u0000b"}"#).unwrap();
    assert_eq!(dataset.records[0].kind, RecordKind::Text("ab".to_owned()));
    // Mixed normal forms are text like any other, and stay as they are.
    let dataset = open_bytes("rows.jsonl", "{\"text\": \"é e\u{301}\"}".as_bytes()).unwrap();
    assert_eq!(dataset.records[0].kind, RecordKind::Text("é e\u{301}".to_owned()));
}

#[test]
fn fault_021_each_wrong_conversation_has_its_code_and_field() {
    let messages = |list: &str| format!("{{\"messages\": {list}}}");
    let m = |role: &str, content: &str| format!(r#"{{"role": "{role}", "content": "{content}"}}"#);
    let list = |parts: &[String]| messages(&format!("[{}]", parts.join(", ")));
    let (system, user, assistant) = (m("system", "S"), m("user", "U"), m("assistant", "A"));
    for (row, code, field) in [
        (messages("[]"), Code::MessagesEmpty, "messages"),
        (messages("null"), Code::FieldType, "messages"),
        (messages("\"text\""), Code::FieldType, "messages"),
        (messages("[3]"), Code::FieldType, "messages[0]"),
        (
            list(&[user.clone(), r#"{"role": "assistant", "content": null}"#.to_owned()]),
            Code::ContentNull,
            "messages[1].content",
        ),
        (list(&[r#"{"role": "assistant"}"#.to_owned()]), Code::ContentNull, "messages[0].content"),
        (
            list(&[r#"{"role": "user", "content": [{"type": "text", "text": "x"}]}"#.to_owned()]),
            Code::ContentParts,
            "messages[0].content",
        ),
        (
            list(&[r#"{"role": "user", "content": 3}"#.to_owned()]),
            Code::FieldType,
            "messages[0].content",
        ),
        (list(&[m("human", "x")]), Code::Role, "messages[0].role"),
        (list(&[r#"{"content": "x"}"#.to_owned()]), Code::Role, "messages[0].role"),
        (list(&[r#"{"role": 1, "content": "x"}"#.to_owned()]), Code::Role, "messages[0].role"),
        (
            list(&[system.clone(), system.clone(), user.clone(), assistant.clone()]),
            Code::SystemTwice,
            "messages[1]",
        ),
        (
            list(&[user.clone(), system.clone(), assistant.clone()]),
            Code::SystemTwice,
            "messages[1]",
        ),
        (list(&[user.clone(), assistant.clone(), user.clone()]), Code::EndsWithUser, "messages"),
        (list(std::slice::from_ref(&user)), Code::NoAssistant, "messages"),
        (
            list(&[user.clone(), assistant.clone(), assistant.clone()]),
            Code::AssistantTwice,
            "messages[2]",
        ),
        (list(&[user.clone(), m("assistant", "")]), Code::Empty, "messages[1].content"),
    ] {
        assert_problem(&row_problem(&row), code, 1, field);
    }
    // What is left to the template.
    for row in [
        list(&[user.clone(), user.clone(), assistant.clone()]),
        list(&[system, user, assistant.clone()]),
        list(&[assistant]),
    ] {
        assert!(open_bytes("rows.jsonl", row.as_bytes()).is_ok(), "{row}");
    }
}

#[test]
fn fault_022_further_fields_may_change_their_type_between_rows() {
    let row = |calls: &str| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": "U"}}, {{"role": "assistant", "content": "A", "tool_calls": {calls}}}]}}"#
        )
    };
    let text = [
        row("null"),
        row("[]"),
        row(r#"[{"name": "f", "arguments": {"x": 1}}]"#),
        row(r#""f(1)""#),
    ]
    .join("\n");
    let dataset = open_bytes("rows.jsonl", text.as_bytes()).unwrap();
    assert_eq!(dataset.records.len(), 4);
    let RecordKind::Messages(messages) = &dataset.records[3].kind else { panic!("messages") };
    assert_eq!(messages[1].extra["tool_calls"], serde_json::json!("f(1)"));
}

#[test]
fn fault_028_a_single_row_is_a_data_set() {
    let dataset = open_bytes("rows.jsonl", GOOD.as_bytes()).unwrap();
    assert_eq!(dataset.records.len(), 1);
    let split = forgelm_data::split(1, None);
    assert_eq!((split.train, split.validation), (vec![0], vec![]));
}

#[test]
fn fault_035_pipes_devices_and_folders_are_refused_without_blocking() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("rows.jsonl");
    let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    assert!(make_pipe(&name));
    let (send, receive) = std::sync::mpsc::channel();
    let of_pipe = section(&pipe);
    std::thread::spawn(move || send.send(open(&of_pipe, TrainerType::Sft)));
    let found = problem(receive.recv_timeout(Duration::from_secs(10)).expect("does not block"));
    assert_eq!(found.code, Code::FileKind);
    assert!(found.found.contains("pipe"), "{found}");

    let device = problem(open(&section(std::path::Path::new("/dev/null")), TrainerType::Sft));
    assert_eq!(device.code, Code::FileKind);
    // A folder is a data set of the files in it.
    let folder = problem(open(&section(dir.path()), TrainerType::Sft));
    assert_eq!((folder.code, folder.line), (Code::NoRows, None));
    let folder_as_file = dir.path().join("x.jsonl");
    std::fs::create_dir(&folder_as_file).unwrap();
    assert_eq!(problem(open(&section(&folder_as_file), TrainerType::Sft)).code, Code::NoRows);
}

fn make_pipe(path: &std::ffi::CStr) -> bool {
    std::process::Command::new("mkfifo")
        .arg(path.to_str().unwrap())
        .status()
        .is_ok_and(|status| status.success())
}

#[test]
fn files_that_are_missing_or_of_other_formats_are_named() {
    let missing =
        problem(open(&section(std::path::Path::new("/nowhere/rows.jsonl")), TrainerType::Sft));
    assert_eq!(missing.code, Code::File);
    assert_eq!(
        missing.to_string(),
        "/nowhere/rows.jsonl: does not exist; expected a file that ends in `.jsonl`, `.json`, `.csv` \
         (also with `.gz` or `.zst`) or `.parquet`, a folder of such files, or the id of a data set on a hub [E-DATA-FILE]"
    );
    for (name, code) in [
        ("a.csv", Code::NoRows),
        ("a.parquet", Code::Parquet),
        ("a.txt", Code::Format),
        ("a", Code::Format),
    ] {
        assert_eq!(problem(open_bytes(name, b"x")).code, code, "{name}");
    }
    let hub = problem(open(&section(std::path::Path::new("owner/data-set")), TrainerType::Sft));
    assert!(hub.found.contains("a data set on a hub"), "{hub}");
}

/// They are neither opened nor taken for text.
#[test]
fn fault_031_032_documents_and_images_are_refused_by_name_and_by_content() {
    for (name, bytes) in [
        ("a.pdf", &b"%PDF-1.7\n"[..]),
        ("a.docx", b"PK\x03\x04"),
        ("a.epub", b"PK\x03\x04"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0"),
        ("a.gif", b"GIF89a"),
    ] {
        let found = problem(open_bytes(name, bytes));
        assert_eq!(found.code, Code::Format, "{name}: {found}");
        assert!(found.expected.contains("`.jsonl`"), "{found}");
        let found = problems(open_bytes("renamed.jsonl", bytes)).shown.remove(0);
        let is_named = matches!(found.code, Code::Json | Code::Utf8 | Code::Nul);
        assert!(is_named && found.line == Some(1), "{name}: {found}");
    }
}
