use forgelm_config::{Data, TrainerType};
use forgelm_data::{
    DataError, LintCode, LintReport, PrepareRequest, RenderSettings, Renderer, find_files, lint,
};
use forgelm_tokenize::{ChatTemplate, TemplateTokens, Tokenizer};
use serde_json::{Value, json};

use crate::golden;

const SETTINGS: RenderSettings = RenderSettings {
    max_length: 64,
    train_on_all: false,
    add_eos: true,
    template_now: None,
    bos_before_prompt: false,
    threads: 2,
};

/// A row from a question and its answer.
type Row = fn(&str, &str) -> Value;

/// The formats of rows for `sft`.
const FORMATS: [(&str, Row); 5] = [
    ("text", |q, a| json!({"text": format!("{q} {a}")})),
    (
        "messages",
        |q, a| json!({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}),
    ),
    ("instruction", |q, a| json!({"instruction": q, "output": a})),
    ("User", |q, a| json!({"System": "Be brief.", "User": q, "Assistant": a})),
    ("prompt", |q, a| json!({"prompt": format!("{q} "), "completion": a})),
];

/// A chat template that ends no turn.
const ENDLESS: &str = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}";
/// One that begins with two BOS tokens.
const TWICE: &str = "{{ bos_token }}{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n\
                     {{ m.content }}<|im_end|>\n{% endfor %}";

struct Case<'a> {
    rows: &'a [Value],
    validation: &'a [Value],
    template: Option<&'a str>,
    settings: RenderSettings,
}

impl<'a> Case<'a> {
    fn new(rows: &'a [Value]) -> Self {
        Case { rows, validation: &[], template: None, settings: SETTINGS }
    }

    fn try_lint(&self) -> Result<LintReport, DataError> {
        let tokenizer = Tokenizer::from_folder(&golden().join("models/tokenizer")).unwrap();
        let own = tokenizer.chat_template(None).unwrap();
        let other = self.template.map(template);
        let renderer =
            Renderer::new(&tokenizer, Some(other.as_ref().unwrap_or(&own)), self.settings);
        let dir = tempfile::tempdir().unwrap();
        let text = |rows: &[Value]| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
        std::fs::write(dir.path().join("train.jsonl"), text(self.rows)).unwrap();
        if !self.validation.is_empty() {
            std::fs::write(dir.path().join("validation.jsonl"), text(self.validation)).unwrap();
        }
        let sources = [find_files("data", dir.path()).unwrap()];
        let section = Data { validation_split: Some(0.5), ..Data::default() };
        let request = PrepareRequest {
            section: &section,
            trainer: TrainerType::Sft,
            sources: &sources,
            cache_dir: dir.path(),
        };
        lint(&request, &renderer)
    }

    /// Code and line of each finding, and whether it is an error.
    fn lint(&self) -> Vec<(&'static str, u64, bool)> {
        let report = self.try_lint().unwrap();
        assert_eq!(report.n_rows, (self.rows.len() + self.validation.len()) as u64);
        assert_eq!(report.n_errors, report.findings.iter().filter(|f| f.is_error).count() as u64);
        report.findings.iter().map(|f| (f.code, f.line.unwrap(), f.is_error)).collect()
    }
}

fn template(text: &str) -> ChatTemplate {
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
    let [bos, _, eos] = special.clone();
    let tokens = TemplateTokens { bos, eos, special: special.to_vec(), ..Default::default() };
    ChatTemplate::compile(text, tokens).unwrap()
}

fn found(code: LintCode, line: u64) -> (&'static str, u64, bool) {
    (code.name(), line, code.is_error())
}

/// Rows that differ, with nothing to be said of them.
fn good(row: Row) -> Vec<Value> {
    (0..4).map(|i| row(&format!("What is {i}?"), &format!("It is {}.", i + 10))).collect()
}

#[test]
fn good_rows_of_every_format_have_no_finding() {
    for (format, row) in FORMATS {
        assert_eq!(Case::new(&good(row)).lint(), [], "{format}");
    }
}

#[test]
fn a_row_longer_than_the_limit_is_truncated_in_every_format() {
    for (format, row) in FORMATS {
        let mut rows = good(row);
        rows[2] = row("Tell me more.", &"many words ".repeat(60));
        assert_eq!(Case::new(&rows).lint(), [found(LintCode::Truncated, 3)], "{format}");
    }
}

#[test]
fn fault_025_a_row_whose_answer_is_cut_off_is_all_masked_in_every_format_with_a_prompt() {
    for (format, row) in FORMATS.into_iter().filter(|(format, _)| *format != "text") {
        let mut rows = good(row);
        rows[1] = row(&"many words ".repeat(60), "Yes.");
        let expected = [found(LintCode::AllMasked, 2), found(LintCode::Truncated, 2)];
        assert_eq!(Case::new(&rows).lint(), expected, "{format}");
    }
}

#[test]
fn a_copy_of_an_earlier_row_is_found_in_every_format() {
    for (format, row) in FORMATS {
        let mut rows = good(row);
        rows.push(rows[0].clone());
        // A row that differs in case is no copy.
        rows.push(row("WHAT IS 1?", "It is 11."));
        let case = Case { validation: &[row("Other?", "Other.")], ..Case::new(&rows) };
        assert_eq!(case.lint(), [found(LintCode::Duplicate, 5)], "{format}");
        let report = case.try_lint().unwrap();
        assert!(report.findings[0].message.ends_with("train.jsonl:1"), "{report:?}");
    }
}

#[test]
fn fault_026_a_row_held_out_and_trained_is_a_leak_in_every_format() {
    for (format, row) in FORMATS {
        let rows = good(row);
        let validation = [row("Other?", "Other."), row("what  is 2", "It is 12!")];
        let case = Case { validation: &validation, ..Case::new(&rows) };
        assert_eq!(case.lint(), [found(LintCode::Leak, 2)], "{format}: case and signs aside");
        // Without a validation split: between the rows that the run would hold out and the others.
        let rows: Vec<Value> = (0..8).map(|_| row("The same?", "The same.")).collect();
        let report = Case::new(&rows).try_lint().unwrap();
        assert_eq!(report.counts[LintCode::Leak.name()], 4, "{format}: half of them");
        assert_eq!(report.counts[LintCode::Duplicate.name()], 7, "{format}");
    }
}

#[test]
fn fault_033_text_of_a_special_token_is_found_in_every_format() {
    for (format, row) in FORMATS {
        let mut rows = good(row);
        rows[3] = row("What does <|im_start|> mean?", "A turn begins.");
        assert_eq!(Case::new(&rows).lint(), [found(LintCode::SpecialText, 4)], "{format}");
        let report = Case::new(&rows).try_lint().unwrap();
        assert!(report.findings[0].message.starts_with("1 text"), "{report:?}");
    }
}

#[test]
fn fault_054_controls_are_found_in_every_format() {
    for (format, row) in FORMATS {
        let mut rows = good(row);
        rows[0] = row("What is \u{202e}0\u{202c}?", "It is 10.");
        // The columns of instructions are cleaned when they are read.
        let is_cleaned = ["instruction", "User", "text"].contains(&format);
        let found = Case::new(&rows).lint();
        if !is_cleaned || !found.is_empty() {
            assert_eq!(found, [self::found(LintCode::Controls, 1)], "{format}");
        }
    }
}

#[test]
fn fault_034_a_secret_is_found_in_every_format_and_not_repeated() {
    let token = format!("hf_{}", "aB3d".repeat(9));
    for (format, row) in FORMATS {
        let mut rows = good(row);
        rows[1] = row("What is 1?", &format!("It is {token}."));
        let report = Case::new(&rows).try_lint().unwrap();
        let secrets = report.findings.iter().filter(|f| f.code == LintCode::Secret.name());
        let secrets: Vec<_> = secrets.map(|f| (f.line, f.message.as_str())).collect();
        let expected = (Some(2), "looks like a secret: huggingface_token");
        assert_eq!(secrets, [expected], "{format}");
        assert!(!format!("{report:?}").contains("aB3d"), "{format}");
    }
}

#[test]
fn trained_text_without_an_end_is_found_in_every_format() {
    let settings = RenderSettings { add_eos: false, ..SETTINGS };
    for (format, row) in FORMATS {
        let rows = good(row);
        let case = Case { settings, template: Some(ENDLESS), ..Case::new(&rows) };
        let expected: Vec<_> = (1..=4).map(|line| found(LintCode::NoEos, line)).collect();
        assert_eq!(case.lint(), expected, "{format}");
    }
}

/// Only a template can do it: text of a row never becomes a special token.
#[test]
fn fault_060_two_bos_tokens_are_found() {
    for (format, row) in FORMATS {
        let rows = good(row);
        let has_template = !["text", "prompt"].contains(&format);
        let expected: Vec<_> =
            (1..=4).filter(|_| has_template).map(|line| found(LintCode::DoubleBos, line)).collect();
        let case = Case { template: Some(TWICE), ..Case::new(&rows) };
        assert_eq!(case.lint(), expected, "{format}");
        let mut rows = good(row);
        rows[0] = row("<|endoftext|><|endoftext|>What is 0?", "It is 10.");
        let expected = [found(LintCode::SpecialText, 1)];
        assert_eq!(Case::new(&rows).lint(), expected, "{format}: as text");
    }
}

#[test]
fn what_a_run_would_refuse_is_found_under_its_code() {
    let rows = [json!({"text": "a"}), json!({"text": 7}), json!({"text": ""}), json!({"x": "b"})];
    let found = Case::new(&rows).lint();
    let expected = [
        ("E-DATA-FIELD-TYPE", 2, true),
        ("E-DATA-EMPTY", 3, true),
        ("E-DATA-FIELD-MISSING", 4, true),
    ];
    assert_eq!(found, expected);
}

#[test]
fn every_code_has_a_name_of_its_own_and_a_hint() {
    let names: std::collections::BTreeSet<_> = LintCode::ALL.iter().map(|c| c.name()).collect();
    assert_eq!(names.len(), 9);
    assert!(LintCode::ALL.iter().all(|code| !code.hint().is_empty()));
}
