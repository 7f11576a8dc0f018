//! Fuzzing of the text that people write: configs, chat templates, rows of data.
//!
//! Longer: `cargo test -p forgelm_data --test fuzz_text -- --seconds 60 --seed 7`.

#![expect(clippy::disallowed_methods, reason = "a fuzzer has a deadline and keeps what it finds")]
#![expect(clippy::print_stdout, reason = "a test program without the test harness")]

mod engine;

use engine::Target;
use forgelm_config::{TrainerType, load_bytes};
use forgelm_data::{AuditSettings, DataError, Dedup};
use forgelm_privacy::{PII_MASK, SECRET_MASK, detect_pii, detect_secrets, mask_pii, mask_secrets};
use forgelm_tokenize::{ChatTemplate, Message, RenderOptions, SpanSearch, TemplateTokens};
use std::process::ExitCode;
use std::sync::OnceLock;

#[global_allocator]
static ALLOCATOR: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

fn targets() -> Vec<Target> {
    vec![
        Target::new("config", config, config_seeds(), CONFIG_WORDS, 4096),
        Target::new("template", template, template_seeds(), TEMPLATE_WORDS, 4096),
        Target::new("rows", rows, row_seeds(), ROW_WORDS, 512),
        Target::new("array", array, array_seeds(), ROW_WORDS, 512),
        Target::new("csv", csv, csv_seeds(), CSV_WORDS, 512),
        Target::new("parquet", parquet, parquet_seeds(), &["PAR1"], 4096),
        Target::new("pairs", pairs, pair_seeds(), PAIR_WORDS, 512),
        Target::new("audit", audit, row_seeds(), PRIVATE_WORDS, 512),
        Target::new("privacy", privacy, privacy_seeds(), PRIVATE_WORDS, 512),
    ]
}

fn main() -> ExitCode {
    engine::main(&targets())
}

const CONFIG_WORDS: &[&str] = &[
    "training:\n",
    "  learning_rate: 2e-5\n",
    "&a ",
    "*a",
    "<<: *a\n",
    "---\n",
    "\t",
    "!!binary",
    ".nan",
    "[[[[",
    "\u{feff}",
    "null",
    "999999999999999999999",
];
const TEMPLATE_WORDS: &[&str] = &[
    "{% for m in messages %}",
    "{% endfor %}",
    "{{ m['content'] }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% set x = x ~ x %}",
    "{% macro f() %}{{ f() }}{% endmacro %}",
    "range(1000000000)",
    "|tojson",
    ".__class__",
    "raise_exception('x')",
    "loop.index",
];
const PRIVATE_WORDS: &[&str] = &[
    "4111 1111 1111 1111",
    "DE89 3704 0044 0532 0130 00",
    "+90 532 123 4567",
    "a@b.example.com",
    "078-05-1120",
    "AKIA",
    "sk-ant-",
    "aB3aB3aB3aB3aB3aB3aB3aB3",
    "-----BEGIN PRIVATE KEY-----",
    "-----END PRIVATE KEY-----",
    "eyJhbGc",
    "[REDACTED]",
    "\u{fffd}",
    "```\n",
];
const CSV_WORDS: &[&str] = &["\"", "\"\"", ",", "\n", "\r\n", "text", "label", "\u{feff}", "\0"];
const PAIR_WORDS: &[&str] = &[
    "\"prompt\": ",
    "\"chosen\": ",
    "\"rejected\": ",
    "{\"role\": \"assistant\", \"content\": \"x\"}",
    "[",
    "]",
    "null",
    "\n",
    "é",
];
const ROW_WORDS: &[&str] = &[
    "{\"messages\": [",
    "{\"role\": \"user\", \"content\": \"x\"},",
    "{\"role\": \"assistant\", \"content\": \"y\"}",
    "]}\n",
    "\\ud800",
    "\\u0000",
    "null",
    "\"text\":",
    "<|im_end|>",
    "\r\n",
];

/// A config is accepted or refused, and each problem has a code.
fn config(bytes: &[u8]) -> String {
    match load_bytes(bytes, "run.yaml") {
        Ok(_) => "ok".to_owned(),
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            problems[0].code.as_str().to_owned()
        }
    }
}

fn config_seeds() -> Vec<Vec<u8>> {
    let minimal = "model:\n  name_or_path: m\ndata:\n  dataset_name_or_path: d.jsonl\n";
    let quickstart = include_str!("../../configs/quickstart.yaml");
    vec![minimal.into(), quickstart.into()]
}

/// A template renders or is refused; the spans of what it rendered lie in the text.
fn template(bytes: &[u8]) -> String {
    let source = String::from_utf8_lossy(bytes);
    let special = vec!["<|im_end|>".to_owned()];
    let tokens = TemplateTokens { eos: special[0].clone(), special, ..TemplateTokens::default() };
    let template = match ChatTemplate::compile(&source, tokens) {
        Ok(template) => template,
        Err(_) => return "not compiled".to_owned(),
    };
    let messages = [Message::new("user", "question?"), Message::new("assistant", "answer.")];
    let options =
        RenderOptions { spans: SpanSearch::Assistant, now: Some(0), ..RenderOptions::default() };
    match template.render(&messages, &options) {
        Err(_) => "not rendered".to_owned(),
        Ok(rendered) => {
            for span in &rendered.spans {
                assert!(rendered.text.get(span.start..span.end).is_some(), "{span:?}");
            }
            format!("rendered with {} spans", rendered.spans.len().min(4))
        }
    }
}

fn template_seeds() -> Vec<Vec<u8>> {
    let smollm2 = include_str!("../data/golden/models/smollm2-tokenizer/chat_template.jinja");
    let tiny = include_str!("../data/golden/models/tokenizer/chat_template.jinja");
    vec![smollm2.into(), tiny.into()]
}

/// Every row becomes a record or a problem with a code.
fn rows(bytes: &[u8]) -> String {
    open_as("rows.jsonl", TrainerType::Sft, bytes)
}

fn array(bytes: &[u8]) -> String {
    open_as("rows.json", TrainerType::Sft, bytes)
}

fn csv(bytes: &[u8]) -> String {
    open_as("rows.csv", TrainerType::Sft, bytes)
}

fn parquet(bytes: &[u8]) -> String {
    open_as("rows.parquet", TrainerType::Sft, bytes)
}

fn pairs(bytes: &[u8]) -> String {
    open_as("pairs.jsonl", TrainerType::Dpo, bytes)
}

fn open_as(name: &str, trainer: TrainerType, bytes: &[u8]) -> String {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let path = DIR.get_or_init(|| tempfile::tempdir().expect("a folder")).path().join(name);
    std::fs::write(&path, bytes).expect("written");
    let section = forgelm_config::Data {
        dataset_name_or_path: path.display().to_string(),
        ..forgelm_config::Data::default()
    };
    match forgelm_data::open(&section, trainer) {
        Ok(dataset) => {
            assert!(!dataset.records.is_empty(), "a data set without a record");
            "ok".to_owned()
        }
        Err(DataError::Problems(problems)) => {
            problems.shown.first().map_or("none", |problem| problem.code.name()).to_owned()
        }
        Err(error) => panic!("a file that can be read gave {error}"),
    }
}

/// An audit reads whatever is there to its end, or says why not.
fn audit(bytes: &[u8]) -> String {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let path = DIR.get_or_init(|| tempfile::tempdir().expect("a folder")).path().join("rows.jsonl");
    std::fs::write(&path, bytes).expect("written");
    let settings =
        AuditSettings { dedup: Dedup::Simhash { distance: 3 }, quality_filter: true, threads: 1 };
    let report = forgelm_data::audit(&path, &settings).expect("the file is there");
    let (name, split) = &report.splits[0];
    assert_eq!(name, "train");
    assert!(split.n_empty + split.n_evaluated == split.n_samples, "{split:?}");
    let document = report.document("rows.jsonl", &path, "now");
    assert_eq!(document["inputs"][0]["sha256"].is_null(), !report.unreadable.is_empty());
    let kinds: Vec<_> = report.findings.iter().map(|finding| finding.kind.name()).collect();
    let errors = (split.parse_errors > 0, split.decode_errors > 0, split.error.is_some());
    format!("{kinds:?} {errors:?}")
}

/// What was masked has no finding.
fn privacy(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let without = mask_pii(&text, PII_MASK);
    assert_eq!(detect_pii(&without.text), [], "{:?}", without.text);
    let secrets = mask_secrets(&text, SECRET_MASK);
    assert_eq!(detect_secrets(&secrets.text), [], "{:?}", secrets.text);
    format!("{:?} {:?}", without.counts.keys(), secrets.counts.keys())
}

fn privacy_seeds() -> Vec<Vec<u8>> {
    PRIVATE_WORDS.iter().map(|word| format!("a {word} b").into_bytes()).collect()
}

fn array_seeds() -> Vec<Vec<u8>> {
    vec![b"[{\"text\": \"a, ]\"},\n {\"text\": \"b\"}]".to_vec(), b"\xef\xbb\xbf[ ]".to_vec()]
}

fn csv_seeds() -> Vec<Vec<u8>> {
    vec![
        b"text\na\n\"b, \"\"c\"\"\nd\"\n".to_vec(),
        b"System,User,Assistant\r\n,Q,A\r\n".to_vec(),
        b"prompt,completion,label\nP,C,true\n".to_vec(),
    ]
}

fn parquet_seeds() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../data/formats/chat-snappy.parquet").to_vec(),
        include_bytes!("../data/formats/labelled-gzip.parquet").to_vec(),
    ]
}

fn pair_seeds() -> Vec<Vec<u8>> {
    let chat = "{\"chosen\": [{\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \"assistant\", \
                \"content\": \"a\"}], \"rejected\": [{\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \
                \"assistant\", \"content\": \"b\"}]}";
    let text = "{\"prompt\": \"P\", \"chosen\": \"a\", \"rejected\": \"b\"}\n";
    vec![chat.into(), text.into(), b"{\"chosen\": \"x a\", \"rejected\": \"x b\"}".to_vec()]
}

fn row_seeds() -> Vec<Vec<u8>> {
    let data = include_str!("../../configs/data/forgelm_cli.jsonl");
    let few: String = data.lines().take(3).map(|line| format!("{line}\n")).collect();
    let text = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
    let pairs =
        "{\"instruction\": \"a\", \"output\": \"b\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}";
    vec![few.into(), text.into(), pairs.into()]
}
