use forgelm_config::TrainerType;
use forgelm_data::{Code, Content, DataProblem, RecordKind};
use forgelm_tokenize::Message;

use crate::{assert_problem, open_bytes_for, problem, problems};

const ASK: &str = r#"{"role": "user", "content": "Q"}"#;
const GOOD: &str = r#"{"role": "assistant", "content": "good"}"#;
const BAD: &str = r#"{"role": "assistant", "content": "bad"}"#;

fn kind(trainer: TrainerType, row: &str) -> RecordKind {
    open_bytes_for(trainer, "rows.jsonl", row.as_bytes()).unwrap().records.remove(0).kind
}

fn wrong(trainer: TrainerType, row: &str) -> DataProblem {
    problem(open_bytes_for(trainer, "rows.jsonl", row.as_bytes()))
}

fn text(text: &str) -> Content {
    Content::Text(text.to_owned())
}

fn turn(role: &str, content: &str) -> Content {
    Content::Messages(vec![Message::new(role, content)])
}

#[test]
fn preferences_are_texts_or_conversations_with_their_prompt_said_or_shared() {
    let texts = RecordKind::Preference {
        prompt: text("What is"),
        chosen: text(" it"),
        rejected: text(" no"),
    };
    for row in [
        r#"{"prompt": "What is", "chosen": " it", "rejected": " no"}"#,
        // Where texts part after a space, the space belongs to the answers.
        r#"{"chosen": "What is it", "rejected": "What is no"}"#,
    ] {
        for trainer in [TrainerType::Dpo, TrainerType::Simpo, TrainerType::Orpo] {
            assert_eq!(kind(trainer, row), texts, "{row}");
        }
    }
    let turns = RecordKind::Preference {
        prompt: turn("user", "Q"),
        chosen: turn("assistant", "good"),
        rejected: turn("assistant", "bad"),
    };
    for row in [
        format!(r#"{{"prompt": [{ASK}], "chosen": [{GOOD}], "rejected": [{BAD}]}}"#),
        format!(r#"{{"chosen": [{ASK}, {GOOD}], "rejected": [{ASK}, {BAD}]}}"#),
        // The prompt as a text beside whole conversations.
        format!(r#"{{"prompt": "Q", "chosen": [{ASK}, {GOOD}], "rejected": [{ASK}, {BAD}]}}"#),
    ] {
        assert_eq!(kind(TrainerType::Dpo, &row), turns, "{row}");
    }
    let cut = kind(TrainerType::Dpo, r#"{"chosen": "éa", "rejected": "éb"}"#);
    let expected =
        RecordKind::Preference { prompt: text("é"), chosen: text("a"), rejected: text("b") };
    assert_eq!(cut, expected);
}

#[test]
fn fault_023_preferences_that_say_nothing_are_named_and_a_few_are_left_out() {
    for (row, code, field) in [
        (r#"{"prompt": "P", "chosen": "a", "rejected": "a"}"#, Code::Same, "rejected"),
        (r#"{"prompt": "P", "chosen": "", "rejected": "a"}"#, Code::Empty, "chosen"),
        (r#"{"chosen": "a", "rejected": "b"}"#, Code::PromptDiffers, "rejected"),
        (r#"{"chosen": "P a", "rejected": "P a b"}"#, Code::Empty, "chosen"),
        (r#"{"prompt": "P", "chosen": "a", "rejected": []}"#, Code::MessagesEmpty, "rejected"),
        (r#"{"prompt": "P", "chosen": 3, "rejected": "b"}"#, Code::FieldType, "chosen"),
    ] {
        assert_problem(&wrong(TrainerType::Dpo, row), code, 1, field);
    }
    let ends = format!(r#"{{"prompt": [{ASK}], "chosen": [{GOOD}], "rejected": [{BAD}, {ASK}]}}"#);
    assert_problem(&wrong(TrainerType::Dpo, &ends), Code::EndsWithUser, 1, "rejected");
    let twice =
        format!(r#"{{"prompt": [{ASK}, {GOOD}], "chosen": [{GOOD}], "rejected": [{BAD}]}}"#);
    assert_problem(&wrong(TrainerType::Dpo, &twice), Code::AssistantTwice, 1, "chosen[2]");
    let good = "{\"prompt\": \"P\", \"chosen\": \"a\", \"rejected\": \"b\"}\n";
    let same = "{\"prompt\": \"P\", \"chosen\": \"a\", \"rejected\": \"a\"}\n";
    let few = good.repeat(99) + same;
    let dataset = open_bytes_for(TrainerType::Dpo, "rows.jsonl", few.as_bytes()).unwrap();
    assert_eq!((dataset.records.len(), dataset.skipped.total), (99, 1));
    let many = good.repeat(98) + &same.repeat(2);
    let refused = problems(open_bytes_for(TrainerType::Dpo, "rows.jsonl", many.as_bytes()));
    assert_eq!((refused.shown[0].code, refused.shown[1].line), (Code::TooManyBad, Some(99)));
}

#[test]
fn fault_024_labels_are_truth_values_or_one_and_zero() {
    let row = |label: &str| format!(r#"{{"prompt": "P", "completion": " a", "label": {label}}}"#);
    for (label, expected) in [("true", true), ("1", true), ("false", false), ("0", false)] {
        let expected = RecordKind::Labelled {
            prompt: text("P"),
            completion: text(" a"),
            is_desirable: expected,
        };
        assert_eq!(kind(TrainerType::Kto, &row(label)), expected);
    }
    for label in ["\"true\"", "null", "2", "1.0", "-1", "[]"] {
        assert_problem(&wrong(TrainerType::Kto, &row(label)), Code::Label, 1, "label");
    }
    let chat = format!(r#"{{"prompt": [{ASK}], "completion": "good", "label": true}}"#);
    let RecordKind::Labelled { completion, .. } = kind(TrainerType::Kto, &chat) else {
        panic!("labelled")
    };
    assert_eq!(completion, turn("assistant", "good"));
    let mixed = format!(r#"{{"prompt": "P", "completion": [{GOOD}], "label": true}}"#);
    assert_problem(&wrong(TrainerType::Kto, &mixed), Code::FieldType, 1, "completion");
}

#[test]
fn prompts_keep_their_columns_for_rewards() {
    let RecordKind::Prompt { prompt, columns } =
        kind(TrainerType::Grpo, r#"{"prompt": "2+2", "gold_answer": "4", "level": 3}"#)
    else {
        panic!("a prompt")
    };
    assert_eq!(prompt, text("2+2"));
    assert_eq!(
        serde_json::Value::Object(columns),
        serde_json::json!({"prompt": "2+2", "gold_answer": "4", "level": 3})
    );
    let chat = format!(r#"{{"prompt": [{ASK}]}}"#);
    assert!(matches!(
        kind(TrainerType::Grpo, &chat),
        RecordKind::Prompt { prompt: Content::Messages(_), .. }
    ));
    let answered = format!(r#"{{"prompt": [{ASK}, {GOOD}]}}"#);
    assert_problem(&wrong(TrainerType::Grpo, &answered), Code::EndsWithAssistant, 1, "prompt");
}

#[test]
fn columns_of_another_trainer_are_said_with_the_trainer_that_fits() {
    for (trainer, row, part) in [
        (TrainerType::Dpo, r#"{"messages": []}"#, "conversations; `trainer_type: sft` would fit"),
        (TrainerType::Kto, r#"{"chosen": "a", "rejected": "b"}"#, "`trainer_type: dpo` would fit"),
        (TrainerType::Grpo, r#"{"instruction": "a", "output": "b"}"#, "instructions with answers"),
        (
            TrainerType::Dpo,
            r#"{"prompt": "a", "completion": "b", "label": true}"#,
            "`trainer_type: kto`",
        ),
        (TrainerType::Kto, r#"{"text": "a"}"#, "look like texts"),
    ] {
        let found = wrong(trainer, row);
        assert_problem(&found, Code::Columns, 1, "");
        assert!(found.found.contains(part), "{found}");
    }
}
