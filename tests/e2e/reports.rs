//! The page of a run.

use crate::compliance::Facts;
use crate::published::between;
use crate::support::{Ran, Workplace};
use serde_json::{Value, json};

const REPORT: &str = "out/compliance/report.html";

/// What the page says of facts that other documents have too.
pub(crate) fn add_facts(facts: &mut Facts, workplace: &Workplace) {
    let page = workplace.read(REPORT);
    for (fact, name) in [
        ("run id", "run"),
        ("config hash", "config"),
        ("base model", "base model"),
        ("method", "method"),
        ("trainer", "trainer"),
        ("data set", "data set"),
        ("purpose", "intended purpose"),
    ] {
        let row = format!("<th scope=\"row\">{name}</th><td>");
        facts.put(fact, "report.html", &json!(between(&page, &row, "</td>")));
    }
    let row = "<th scope=\"row\">eval_loss</th><td class=\"number\">";
    facts.put("loss", "report.html", &json!(between(&page, row, "</td>")));
}

/// A number as the page writes it.
fn shown(value: &Value) -> String {
    format!("{:.4}", value.as_f64().unwrap())
}

#[test]
fn the_report_has_the_numbers_of_the_run_and_is_signed_with_it() {
    let workplace = Workplace::new();
    workplace.edit_config("max_steps: 12", "max_steps: 12\n  logging_steps: 1");
    let gate = "evaluation:\n  auto_revert: true\n  max_acceptable_loss: 100\n";
    workplace.write("run.yaml", &(workplace.read("run.yaml") + gate));
    let ran = workplace.run().expect_stdout("report    out/compliance/report.html");
    let page = workplace.read(REPORT);
    let report: Value =
        serde_json::from_str(&workplace.read("out/compliance/compliance_report.json")).unwrap();
    let metrics = &report["evaluation_results"]["metrics"];
    let (before, after) = (&metrics["baseline_eval_loss"], &metrics["eval_loss"]);
    for text in [
        "Accepted.",
        &format!("Validation loss {} before training, {} after", shown(before), shown(after)),
        report["run_id"].as_str().unwrap(),
        report["config_hash"].as_str().unwrap(),
        report["data_provenance"]["fingerprint"]["sha256"].as_str().unwrap(),
        report["model_lineage"]["base_model_revision"]["sha256"].as_str().unwrap(),
        "at most 100 (evaluation.max_acceptable_loss)",
        "out/final_model".split_once('/').unwrap().1,
        "What is item",
    ] {
        assert!(page.contains(text), "`{text}` is not in the report");
    }
    // The loss of every step is on the page, as the file of metrics has it.
    let lines = workplace.json_lines("out/metrics.jsonl");
    let losses: Vec<String> = lines.iter().filter_map(|line| line.get("loss")).map(shown).collect();
    assert_eq!(losses.len(), 12);
    for loss in &losses {
        assert!(page.contains(&format!("<td class=\"number\">{loss}</td>")), "{loss}");
    }
    let points = page.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(points.split(' ').count(), 12, "{points}");
    // The question and what was answered are those that were shown.
    let answer = ran.stderr.lines().find(|line| line.contains("What is item")).unwrap();
    let question = answer.split("What is item").nth(1).unwrap().split('?').next().unwrap();
    assert!(page.contains(&format!("What is item{question}?")), "{answer}");
    // It is one of the documents: listed, signed by itself, and bound to the run.
    workplace
        .forgelm(&["verify-signature", REPORT, "--key", "out/compliance/signing_key.pub"])
        .expect_code(0);
    let verify = ["verify-bundle", "out", "--key", "out/compliance/signing_key.pub"];
    workplace.forgelm(&verify).expect_code(0);
    workplace.write(REPORT, &page.replace("Accepted.", "Excellent."));
    workplace.forgelm(&verify).expect_code(6).expect_stderr("compliance/report.html");
}

#[test]
fn a_report_says_when_a_gate_rejected_the_model() {
    let workplace = Workplace::new();
    let gate = "evaluation:\n  auto_revert: true\n  max_acceptable_loss: 0.001\n";
    workplace.write("run.yaml", &(workplace.read("run.yaml") + gate));
    workplace.forgelm(&["--config", "run.yaml"]).expect_code(3);
    let page = workplace.read(REPORT);
    for text in ["Rejected.", "beyond the limit", "There is no tuned model", "is above `evaluation"]
    {
        assert!(page.contains(text), "{text}");
    }
}

#[test]
fn what_the_data_says_of_persons_is_not_in_the_report() {
    let row = |i: usize| {
        serde_json::json!({"messages": [
            {"role": "user", "content": format!("Who is person{i}@example.org?")},
            {"role": "assistant", "content": format!("A secret of person{i}@example.org.")},
        ]})
        .to_string()
    };
    let rows: Vec<String> = (0..24).map(row).collect();
    let masked = Workplace::new();
    masked.write("data.jsonl", &(rows.join("\n") + "\n"));
    masked.run();
    let page = masked.read(REPORT);
    assert!(!page.contains("@example.org") && page.contains("is masked ("), "masked");
    assert!(page.contains("A secret of "));
    // Where the config says that there is personal data, nothing of it is repeated.
    masked.edit_config(
        "dataset_name_or_path: data.jsonl",
        "dataset_name_or_path: data.jsonl\n  governance: {personal_data_included: true}",
    );
    masked.edit_config("output_dir: out", "output_dir: second");
    masked.run();
    let page = masked.read("second/compliance/report.html");
    assert!(!page.contains("A secret of") && page.contains("It is not repeated here"));
}

#[test]
fn a_continued_run_draws_all_of_its_steps() {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    workplace.write("run.yaml", &config.replace("max_steps: 12", "max_steps: 400"));
    let mut child = workplace.start(&["--config", "run.yaml"]);
    let path = workplace.path("out/checkpoint-4");
    while !path.exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    workplace.write("run.yaml", &config);
    let newest = std::fs::read_dir(workplace.path("out")).unwrap().count();
    assert!(newest > 3);
    let ran: Ran = workplace.forgelm(&[
        "--config",
        "run.yaml",
        "--resume",
        "out/checkpoint-4",
        "--force-resume",
    ]);
    ran.expect_code(0);
    let page = workplace.read(REPORT);
    let points = page.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(points.split(' ').count(), 12, "{points}");
    assert!(
        page.contains("which went on from a checkpoint"),
        "the question was asked by the first"
    );
}
