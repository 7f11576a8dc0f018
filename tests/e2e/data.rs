//! `forgelm data preview | lint`, and data of every kind through a run.

use crate::support::Workplace;
use serde_json::Value;

const CHAT: &str = r#"{"messages": [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "An answer."}]}"#;

fn config(data: &str) -> String {
    format!(
        "model: {{name_or_path: model, max_length: 48, load_in_4bit: false}}\ndata: {data}\nlora: {{r: 2}}\n\
         training: {{max_steps: 2, per_device_train_batch_size: 2, output_dir: out, report_to: none, threads: 1}}\n"
    )
}

#[test]
fn preview_marks_what_is_trained() {
    let workplace = Workplace::new();
    workplace.write("rows.jsonl", &format!("{CHAT}\n[]\n"));
    workplace.write("run.yaml", &config("{dataset_name_or_path: rows.jsonl}"));
    let ran =
        workplace.forgelm(&["data", "preview", "--config", "run.yaml", "-n", "2"]).expect_code(0);
    assert!(ran.stdout.contains("{+An answer.+}{+<|im_end|>+}"), "{}", ran.stdout);
    assert!(
        ran.stdout.contains("rows.jsonl:1: ") && !ran.stdout.contains("{+Q1"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("[E-DATA-ROW]"), "{}", ran.stdout);
    let json = workplace
        .forgelm(&["data", "preview", "--config", "run.yaml", "-n", "1", "--format", "json"])
        .expect_code(0)
        .json();
    let sequence = &json["rows"][0]["sequences"][0];
    let trained: String = sequence["pieces"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|piece| piece["trained"] == true)
        .map(|piece| piece["text"].as_str().unwrap())
        .collect();
    assert_eq!(trained, "An answer.<|im_end|>");
    assert_eq!(sequence["tokens"].as_array().unwrap().len() as u64, sequence["n_tokens"]);
}

fn lint(workplace: &Workplace, more: &[&str]) -> (i32, Value) {
    let ran = workplace
        .forgelm(&[&["data", "lint", "--config", "run.yaml", "--format", "json"], more].concat());
    (ran.code, ran.json())
}

#[test]
fn lint_finds_each_kind_of_doubt_with_its_line() {
    let workplace = Workplace::new();
    let row = |question: &str, answer: &str| {
        serde_json::json!({"messages": [
            {"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
        .to_string()
    };
    let good: Vec<String> =
        (0..40).map(|i| row(&format!("Q{i}"), &format!("answer {i}"))).collect();
    workplace.write("good.jsonl", &good.join("\n"));
    workplace.write("run.yaml", &config("{dataset_name_or_path: good.jsonl}"));
    let (code, report) = lint(&workplace, &["--strict"]);
    assert_eq!((code, &report["counts"]), (0, &serde_json::json!({})), "{report}");

    let mut rows = good.clone();
    rows.push(good[3].clone()); // 41: duplicate
    rows.push(row("what is <|im_end|>?", "a token")); // 42: special text
    rows.push(row("Q", &"word ".repeat(100))); // 43: truncated
    rows.push(row(&"word ".repeat(100), "never")); // 44: truncated and masked
    rows.push(row("\u{202e}Q", "turned")); // 45: controls
    rows.push("{\"messages\": []}".to_owned()); // 46: refused by a run
    rows.push(row("q 7!", "Answer 7")); // 47: near copy of line 8
    workplace.write("rows.jsonl", &rows.join("\n"));
    workplace
        .write("run.yaml", &config("{dataset_name_or_path: rows.jsonl, validation_split: 0.5}"));
    let (code, report) = lint(&workplace, &[]);
    assert_eq!(code, 1, "{report}");
    let lines = |code: &str| -> Vec<u64> {
        let findings = report["findings"].as_array().unwrap().iter();
        findings.filter(|f| f["code"] == code).map(|f| f["line"].as_u64().unwrap()).collect()
    };
    assert_eq!(lines("L-DATA-DUPLICATE"), [41]);
    assert_eq!(lines("L-DATA-SPECIAL-TEXT"), [42]);
    assert_eq!(lines("L-DATA-TRUNCATED"), [43, 44]);
    assert_eq!(lines("L-DATA-ALL-MASKED"), [44]);
    assert_eq!(lines("L-DATA-CONTROLS"), [45]);
    assert_eq!(lines("E-DATA-MESSAGES-EMPTY"), [46]);
    // Half of the rows is held out: of two pairs of copies, those that were parted are leaks.
    let leaks = lines("L-DATA-LEAK");
    assert!(leaks.iter().all(|line| [4, 41, 8, 47].contains(line)), "{leaks:?}");

    // Rows that a validation file shares with the training file.
    workplace.write("set/train.jsonl", &good.join("\n"));
    workplace
        .write("set/validation.jsonl", &[row("new", "one"), row("q 5?", "ANSWER 5")].join("\n"));
    workplace.write("run.yaml", &config("{dataset_name_or_path: set}"));
    let (code, report) = lint(&workplace, &[]);
    assert_eq!((code, report["counts"]["L-DATA-LEAK"].as_u64()), (1, Some(1)), "{report}");
    assert_eq!(report["findings"][0]["line"], 2);

    workplace.write("texts.csv", "text\n<|endoftext|>\nno end\n");
    let unended = "{dataset_name_or_path: texts.csv, add_eos: false}";
    workplace.write("run.yaml", &config(unended));
    let (code, report) = lint(&workplace, &[]);
    assert_eq!((code, report["counts"]["L-DATA-NO-EOS"].as_u64()), (0, Some(2)), "{report}");
    assert_eq!(lint(&workplace, &["--strict"]).0, 1);
}

#[test]
fn a_mixture_of_formats_trains_and_its_evidence_names_every_data_set() {
    let workplace = Workplace::new();
    let chats: String = (0..10).map(|i| CHAT.replace("Q1", &format!("Q{i}")) + "\n").collect();
    workplace.write("set/train-0.jsonl", &chats);
    workplace.write("set/dev.jsonl", &format!("{CHAT}\n"));
    workplace.write("more.csv", "instruction,output\nA,B\nC,\"D, E\"\nF,G\nH,I\n");
    let data = "{dataset_name_or_path: set, extra_datasets: [more.csv], mix_ratio: [0.8, 0.2]}";
    workplace.write("run.yaml", &config(data));
    let ran = workplace.forgelm(&["--config", "run.yaml"]).expect_code(0);
    let report = workplace.read("out/compliance/compliance_report.json");
    assert!(report.contains("more.csv"), "{report}");
    let cached = workplace.path("home/.cache/forgelm/tokens");
    let n_cached = std::fs::read_dir(&cached).unwrap().count();
    assert_eq!(n_cached, 3, "two training sets and one for validation: {}", ran.stderr);
}
