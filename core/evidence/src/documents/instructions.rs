//! `deployer_instructions.md`: the instructions for use under Article 13, in the model folder.
//!
//! Every item of Article 13(3) is there, marked as given or not provided; what people wrote is
//! escaped, so that it stays text.

use serde_json::Value;

use super::annex_iv::{Answers, INSTRUCTIONS, answers};
use super::evidence::{Evidence, Outcome};
use super::markdown::{escaped, shown, table_of};

/// File name in the model folder.
pub const INSTRUCTIONS_FILE: &str = "deployer_instructions.md";

/// The text; `shown_model` is how documents name the model folder.
#[must_use]
pub fn deployer_instructions(evidence: &Evidence, shown_model: &str) -> String {
    let given = answers(evidence);
    let sections = [
        identity(evidence, &given, shown_model),
        purpose(&given),
        limitations(&given),
        performance(evidence, &given),
        oversight(&given),
        hardware(evidence, &given),
        incidents(&given),
        checklist(&given),
    ];
    let standalone = if evidence.technical.is_standalone {
        "\n**There was no training run: this text was made from a config alone.**\n"
    } else {
        match evidence.outcome {
            Outcome::Promoted => "",
            Outcome::Staged => {
                "\n**When this was written the model was not approved for use: the audit log and `forgelm approvals\n--show` say what was decided.**\n"
            }
            Outcome::Reverted => "\n**A gate rejected the model.**\n",
        }
    };
    let run = if evidence.technical.is_standalone {
        String::new()
    } else {
        format!("Run {}, ", escaped(&evidence.run_id))
    };
    format!(
        "# Instructions for use: {}\n\nMade by ForgeLM {} for the deployer, under Article 13 of \
         Regulation (EU) 2024/1689. {run}config {}, {}.\n{standalone}\n{}",
        escaped(&system_name(evidence, &given)),
        escaped(&evidence.forgelm_version),
        escaped(&evidence.config_hash),
        escaped(&evidence.generated_at.to_string()),
        sections.each_ref().map(|section| section.trim_end()).join("\n\n") + "\n",
    )
}

/// The system's name, else the last part of the base model's.
fn system_name(evidence: &Evidence, given: &Answers) -> String {
    let base = evidence.model_lineage.base_model.trim_end_matches('/');
    given
        .text("compliance.system_name")
        .unwrap_or_else(|| base.rsplit('/').next().unwrap_or(base).to_owned())
}

/// What a key says, ready to print.
fn said(given: &Answers, key: &str) -> String {
    let value = given.get(key);
    value.as_ref().map_or_else(|| "Not specified".to_owned(), shown)
}

fn line(given: &Answers, what: &str, key: &str) -> String {
    format!("{what}: {}\n", said(given, key))
}

fn identity(evidence: &Evidence, given: &Answers, shown_model: &str) -> String {
    let lineage = &evidence.model_lineage;
    let rows = [
        ("System", escaped(&system_name(evidence, given))),
        ("Version", said(given, "compliance.system_version")),
        ("Provider", said(given, "compliance.provider_name")),
        ("Contact", said(given, "compliance.provider_contact")),
        ("Base model", escaped(&lineage.base_model)),
        ("Fine-tuning method", escaped(&lineage.adapter_method)),
        ("Model location", escaped(shown_model)),
    ];
    let rows = rows.map(|(name, value)| (name.to_owned(), value));
    format!("## 1. System identity\n\n{}", table_of(("item", "value"), &rows))
}

fn purpose(given: &Answers) -> String {
    format!(
        "## 2. Intended purpose\n\n{}\n\n{}",
        said(given, "compliance.intended_purpose"),
        line(given, "Persons or groups", "compliance.annex_iv.design.intended_persons")
    )
}

fn limitations(given: &Answers) -> String {
    let misuse = given.texts("risk_assessment.foreseeable_misuse");
    let items: Vec<String> = if misuse.is_empty() {
        vec!["- Anything outside the intended purpose above\n".to_owned()]
    } else {
        misuse.iter().map(|item| format!("- {}\n", escaped(item))).collect()
    };
    format!(
        "## 3. Known limitations\n\n{}\n\nNot to be used for:\n\n{}\n{}",
        said(given, "compliance.known_limitations"),
        items.concat(),
        line(given, "Unintended outcomes", "compliance.annex_iv.unintended_outcomes")
    )
}

fn performance(evidence: &Evidence, given: &Answers) -> String {
    let rows: Vec<(String, String)> = evidence
        .metrics
        .iter()
        .filter(|(name, _)| !name.starts_with("resource/"))
        .map(|(name, value)| (escaped(name), format!("{value:.4}")))
        .collect();
    let table = if rows.is_empty() {
        "No metric was recorded.\n".to_owned()
    } else {
        table_of(("metric", "value"), &rows)
    };
    let lines = [
        (
            "Accuracy, robustness, cybersecurity",
            "compliance.annex_iv.instructions.expected_accuracy",
        ),
        ("For specific persons or groups", "compliance.annex_iv.group_performance"),
        ("Input data", "compliance.annex_iv.input_specification"),
        ("Pre-determined changes", "compliance.annex_iv.predetermined_changes"),
    ];
    let lines: String = lines.iter().map(|(what, key)| line(given, what, key) + "\n").collect();
    format!("## 4. Performance metrics\n\n{table}\n{lines}")
}

fn oversight(given: &Answers) -> String {
    let lines = [
        ("Measures", "compliance.annex_iv.human_oversight"),
        ("Technical measures for interpretation", "compliance.annex_iv.interpretation_measures"),
        ("Explanations of the output", "compliance.annex_iv.instructions.explanations"),
        ("Interpretation of the output", "compliance.annex_iv.instructions.output_interpretation"),
    ];
    let lines: String = lines.iter().map(|(what, key)| line(given, what, key) + "\n").collect();
    format!("## 5. Human oversight\n\n{lines}")
}

fn hardware(evidence: &Evidence, given: &Answers) -> String {
    let usage = evidence.resource_usage.as_ref();
    let peak = usage.and_then(|usage| usage.get("memory_bytes_peak")).and_then(Value::as_u64);
    let measured = match peak {
        Some(bytes) => format!("Training used {bytes} bytes of memory at most.\n\n"),
        None => String::new(),
    };
    let lines = [
        ("Hardware", "compliance.annex_iv.intended_hardware"),
        (
            "Lifetime, maintenance and care",
            "compliance.annex_iv.instructions.lifetime_and_maintenance",
        ),
    ];
    let lines: String = lines.iter().map(|(what, key)| line(given, what, key) + "\n").collect();
    format!("## 6. Hardware\n\n{measured}{lines}")
}

fn incidents(given: &Answers) -> String {
    format!(
        "## 7. Incident reporting\n\nReport serious incidents to the provider: {}.\n\n{}",
        said(given, "compliance.provider_contact"),
        line(given, "Logs", "compliance.annex_iv.instructions.log_collection")
    )
}

fn checklist(given: &Answers) -> String {
    let rows: Vec<(String, String)> = INSTRUCTIONS
        .iter()
        .map(|item| {
            let open: Vec<String> = item
                .keys
                .iter()
                .filter(|key| given.get(key).is_none())
                .map(|key| format!("`{key}`"))
                .collect();
            let word = match open.as_slice() {
                [] => "given".to_owned(),
                open => format!("not provided: {}", open.join(", ")),
            };
            (format!("{}: {}", item.item, item.requirement), word)
        })
        .collect();
    format!("## Article 13(3), item by item\n\n{}", table_of(("item", "status"), &rows))
}

#[cfg(test)]
mod tests {
    use super::deployer_instructions;
    use crate::documents::evidence::tests::evidence;
    use serde_json::json;

    #[test]
    fn every_item_is_marked_and_what_is_missing_names_its_key() {
        let mut evidence = evidence();
        let text = deployer_instructions(&evidence, "out/final_model");
        assert!(text.starts_with("# Instructions for use: base\\-7b\n"), "{text}");
        assert_eq!(text.matches("\n| 13(3)").count(), 12);
        assert_eq!(text.matches("| given |").count(), 0);
        assert!(text.contains(
            "| 13(3)(b)(i): intended purpose | not provided: `compliance.intended_purpose` |"
        ));
        assert!(text.contains("- Anything outside the intended purpose above"));
        let section = evidence.compliance.as_mut().unwrap();
        section.insert("intended_purpose".to_owned(), json!("Answer customers"));
        section.insert("provider_contact".to_owned(), json!("ai@acme.example"));
        let risks = evidence.risk_assessment.as_mut().unwrap();
        risks.insert("foreseeable_misuse".to_owned(), json!(["legal advice"]));
        let text = deployer_instructions(&evidence, "out/final_model");
        assert_eq!(text.matches("| given |").count(), 2, "{text}");
        assert!(text.contains("- legal advice\n"), "{text}");
        assert!(text.contains("| eval\\_loss | 0.4200 |"));
    }

    #[test]
    fn hostile_text_stays_text() {
        let mut evidence = evidence();
        let hostile = "x\n# Approved\n<img src=x onerror=y> [a](javascript:b) | `c`";
        let section = evidence.compliance.as_mut().unwrap();
        for key in ["system_name", "intended_purpose", "known_limitations", "provider_name"] {
            section.insert(key.to_owned(), json!(hostile));
        }
        let risks = evidence.risk_assessment.as_mut().unwrap();
        risks.insert("foreseeable_misuse".to_owned(), json!([hostile]));
        let text = deployer_instructions(&evidence, hostile);
        assert!(!text.contains("\n# Approved"), "{text}");
        // Every mark stands behind a backslash.
        assert_eq!(text.matches('<').count(), text.matches("\\<").count(), "{text}");
        assert!(!text.contains("](javascript") && !text.contains(" | `c`"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with('#')).count(), 9, "{text}");
    }
}
