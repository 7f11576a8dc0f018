use super::items::{ANNEX_XI, ANNEX_XII, SUMMARY};
use super::{annex_xi, downstream, summary};
use crate::documents::evidence::Evidence;
use crate::tests::published::{full, hostile};
use serde_json::{Value, json};

fn with_gpai(gpai: Value) -> Evidence {
    let mut evidence = full();
    evidence.compliance.as_mut().unwrap().insert("gpai".to_owned(), gpai);
    evidence
}

/// Every key of the three tables, answered.
fn everything() -> Evidence {
    let mut evidence = full();
    let mut all = json!({"compliance": evidence.compliance.clone().unwrap()});
    for keys in ANNEX_XI.iter().chain(&ANNEX_XII).chain(&SUMMARY).flat_map(|item| item.keys) {
        let mut at = &mut all;
        for part in keys[0].split('.') {
            at = &mut at[part];
        }
        *at = json!(format!("the answer of {}", keys[0]));
    }
    evidence.compliance = all["compliance"].as_object().cloned();
    evidence
}

#[test]
fn without_the_section_nothing_is_drafted() {
    for gpai in [None, Some(Value::Null)] {
        let mut evidence = full();
        if let Some(value) = gpai {
            evidence.compliance.as_mut().unwrap().insert("gpai".to_owned(), value);
        }
        assert_eq!(
            (annex_xi(&evidence), downstream(&evidence), summary(&evidence)),
            (None, None, None)
        );
    }
}

#[test]
fn an_item_says_what_is_known_or_which_key_is_missing() {
    let evidence = with_gpai(json!({"license": "TBD", "base_training_flops": 4.5e15}));
    let text = annex_xi(&evidence).unwrap();
    assert!(
        text.contains("## 1.1(f) the license\n\n- not provided: `compliance.gpai.license`\n"),
        "{text}"
    );
    assert!(text.contains("- n\\_parameters\\: 134515008\n"), "{text}");
    assert!(text.contains("- 1\\.500e15 floating\\-point operations\\, counted\n"), "{text}");
    assert!(text.contains("\\: not above one third\\,"), "{text}");
    assert!(text.contains("2\\.000 kWh"), "measured energy needs no estimate: {text}");
    assert!(!text.contains("energy_estimate"), "{text}");
    assert!(text.contains("10 of 14 items have something missing"), "{text}");
    let text = downstream(&evidence).unwrap();
    assert!(text.contains("- context of the model\\: 8192 tokens\n"), "{text}");
    let text = summary(&evidence).unwrap();
    assert!(text.contains("less than 1 billion tokens"), "{text}");
    assert!(text.contains("- 2025-08-02: duties of providers"), "{text}");
}

#[test]
fn with_every_answer_nothing_is_open() {
    let evidence = everything();
    for (text, items) in [
        (annex_xi(&evidence).unwrap(), ANNEX_XI.len()),
        (downstream(&evidence).unwrap(), ANNEX_XII.len()),
        (summary(&evidence).unwrap(), SUMMARY.len()),
    ] {
        assert!(!text.contains("not provided"), "{text}");
        assert!(text.contains(&format!("\n0 of {items} items")), "{text}");
        assert_eq!(
            text.matches("\n## ").count(),
            items + 2 + usize::from(text.contains("## Exception"))
        );
    }
}

/// Every mark of people's text stands behind a backslash, and nobody begins a line.
#[test]
fn hostile_text_stays_text() {
    let mut evidence = hostile();
    let gpai = everything().compliance.unwrap()["gpai"].clone();
    let text = "x\n# Approved\n- [a](javascript:b) <img src=x> | `c` \u{202e}";
    let mut gpai = gpai;
    gpai.as_object_mut()
        .unwrap()
        .values_mut()
        .for_each(|value| *value = json!([text, {"a": text}]));
    evidence.compliance.as_mut().unwrap().insert("gpai".to_owned(), gpai);
    for text in [annex_xi(&evidence), downstream(&evidence), summary(&evidence)] {
        let text = text.unwrap();
        for line in text.lines() {
            let is_ours = line.is_empty()
                || ["# ", "## ", "- ", "A draft after", "Article 53(2)"]
                    .iter()
                    .any(|own| line.starts_with(own))
                || line.contains(" items have something missing");
            assert!(is_ours, "{line}");
            assert!(!line.starts_with("# Approved"), "{line}");
        }
        assert_eq!(text.matches('<').count(), text.matches("\\<").count());
        assert!(!text.contains("](javascript") && !text.contains('\u{202e}'));
    }
}

#[test]
fn a_config_alone_is_marked() {
    let mut evidence = everything();
    evidence.technical.is_standalone = true;
    assert!(annex_xi(&evidence).unwrap().contains("**There was no training run"));
}
