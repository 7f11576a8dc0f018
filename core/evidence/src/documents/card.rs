//! The model card: README.md of the model folder. Short, and it claims nothing that was not
//! measured.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::evidence::{Evidence, Outcome};
use super::markdown::{fenced, inline, table_of};
use super::quantization::QuantizationEvidence;
use super::record::MergeEvidence;

/// The card's text.
///
/// # Panics
/// Never: writing to a string cannot fail.
#[must_use]
pub fn model_card(evidence: &Evidence) -> String {
    let base = &evidence.model_lineage.base_model;
    let mut card = front_matter(evidence);
    write!(card, "\n# {}_finetune\n\n", inline(tail(base))).expect("a string");
    let outcome = match evidence.outcome {
        Outcome::Promoted => "",
        // These bytes stay as they are when it is approved.
        Outcome::Staged => {
            " It may be used once people have approved it: `forgelm verify-bundle` says whether they \
             have."
        }
        Outcome::Reverted => " A gate rejected it.",
    };
    write!(
        card,
        "{} `{}`, fine-tuned with ForgeLM {}.{outcome}\n\n## Training\n\n",
        if is_adapter(evidence) { "An adapter for" } else { "A model made from" },
        inline(base),
        inline(&evidence.forgelm_version)
    )
    .expect("a string");
    table(&mut card, ("setting", "value"), &training_rows(evidence));
    card.push_str("\n## Metrics\n\n");
    let metrics: Vec<(String, String)> = evidence
        .metrics
        .iter()
        .filter(|(key, _)| !key.contains('/'))
        .map(|(key, value)| (key.clone(), format!("{value:.4}")))
        .collect();
    if metrics.is_empty() {
        card.push_str("None were recorded.\n");
    } else {
        table(&mut card, ("metric", "value"), &metrics);
    }
    card.push_str(&benchmarks(evidence));
    card.push_str(&safety(evidence));
    card.push_str(&limits(evidence));
    card.push_str(&configuration(evidence));
    card.push_str(&usage(evidence));
    card.push_str(&evidence_section(evidence));
    card
}

/// The card of a merged model.
///
/// # Panics
/// Never: writing to a string cannot fail.
#[must_use]
pub fn merge_card(evidence: &MergeEvidence) -> String {
    let derived = &evidence.derived;
    let mut matter = Map::new();
    matter.insert("tags".to_owned(), json!(["forgelm", "merge", derived.method]));
    matter.insert("base_model".to_owned(), json!(derived.base.path));
    matter.insert("library_name".to_owned(), json!("transformers"));
    let text = serde_yaml::to_string(&Value::Object(matter)).expect("plain values");
    let mut card = format!("---\n{text}---\n");
    write!(
        card,
        "\n# {}_merge\n\n{} models merged over `{}` with ForgeLM {}. It was not evaluated: check it \
         for your purpose before you use it.\n\n## Merge\n\n",
        inline(tail(&derived.base.path)),
        evidence.inputs.len(),
        inline(&derived.base.path),
        inline(&derived.forgelm_version)
    )
    .expect("a string");
    let mut rows = vec![("method".to_owned(), derived.method.clone())];
    rows.extend(derived.options.iter().map(|(key, value)| (key.clone(), plain(value))));
    rows.push(("date (UTC)".to_owned(), derived.finished_at.to_text_date()));
    table(&mut card, ("setting", "value"), &rows);
    card.push('\n');
    let models: Vec<(String, String)> = evidence
        .inputs
        .iter()
        .map(|model| (model.path.clone(), model.weight.unwrap_or(1.0).to_string()))
        .collect();
    table(&mut card, ("model", "weight"), &models);
    write!(
        card,
        "\n## Evidence\n\nRun `{}`, config `{}`. `compliance/merge_manifest.json` has the digests of \
         what went in and what came out; the signed record is `compliance/attestation.dsse.json` \
         (`forgelm verify-bundle`).\n",
        inline(&derived.run_id),
        inline(&derived.config_hash)
    )
    .expect("a string");
    card
}

/// The card of a quantized model.
///
/// # Panics
/// Never: writing to a string cannot fail.
#[must_use]
pub fn quantization_card(evidence: &QuantizationEvidence) -> String {
    let derived = &evidence.derived;
    let mut matter = Map::new();
    matter.insert("tags".to_owned(), json!(["forgelm", "quantized", derived.method]));
    matter.insert("base_model".to_owned(), json!(derived.base.path));
    let text = serde_yaml::to_string(&Value::Object(matter)).expect("plain values");
    let mut card = format!("---\n{text}---\n");
    write!(
        card,
        "\n# {}_{}\n\n`{}`, quantized with ForgeLM {}. It was not evaluated: check it for your \
         purpose before you use it.\n\n## Quantization\n\n",
        inline(tail(&derived.base.path)),
        inline(&derived.method),
        inline(&derived.base.path),
        inline(&derived.forgelm_version)
    )
    .expect("a string");
    let mut rows = vec![("method".to_owned(), derived.method.clone())];
    rows.extend(derived.options.iter().map(|(key, value)| (key.clone(), plain(value))));
    rows.extend(derived.metrics.iter().map(|(key, value)| (key.clone(), format!("{value}"))));
    rows.push(("date (UTC)".to_owned(), derived.finished_at.to_text_date()));
    table(&mut card, ("setting", "value"), &rows);
    write!(
        card,
        "\n## Evidence\n\nRun `{}`. `compliance/quantize_manifest.json` has the error of every \
         tensor and the digests of what went in and what came out; the signed record is \
         `compliance/attestation.dsse.json` (`forgelm verify-bundle`).\n",
        inline(&derived.run_id),
    )
    .expect("a string");
    card
}

/// A JSON value without quotes around a text.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The last part of a model's name.
fn tail(name: &str) -> &str {
    name.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or(name)
}

/// Whether the folder holds an adapter, not a whole model.
fn is_adapter(evidence: &Evidence) -> bool {
    let saved_as = evidence.training_parameters.more.get("saved_as").and_then(Value::as_str);
    saved_as.is_none_or(|saved_as| saved_as == "adapter")
}

fn front_matter(evidence: &Evidence) -> String {
    let parameters = &evidence.training_parameters;
    let mut tags = vec!["forgelm", "fine-tuned"];
    if parameters.lora_r > 0 {
        tags.push("lora");
    }
    if parameters.dora {
        tags.push("dora");
    }
    if parameters.trainer_type != "sft" {
        tags.push(&parameters.trainer_type);
    }
    if evidence.model_lineage.quantization != "none" && parameters.lora_r > 0 {
        tags.push("qlora");
    }
    if evidence.evaluations.contains_key("safety") {
        tags.push("safety-evaluated");
    }
    let mut matter = Map::new();
    let languages = &evidence.technical.languages;
    if !languages.is_empty() {
        matter.insert("language".to_owned(), json!(languages));
    }
    matter.insert("tags".to_owned(), json!(tags));
    matter.insert("base_model".to_owned(), json!(evidence.model_lineage.base_model));
    let library = if is_adapter(evidence) { "peft" } else { "transformers" };
    matter.insert("library_name".to_owned(), json!(library));
    let text = serde_yaml::to_string(&Value::Object(matter)).expect("plain values");
    format!("---\n{text}---\n")
}

fn training_rows(evidence: &Evidence) -> Vec<(String, String)> {
    let (lineage, p) = (&evidence.model_lineage, &evidence.training_parameters);
    let revision = lineage.base_model_revision.revision_resolved.as_deref();
    let sha256 = lineage.base_model_revision.sha256.as_deref();
    let rows = [
        ("base model", lineage.base_model.clone()),
        ("base model revision", revision.or(sha256).unwrap_or("not known").to_owned()),
        ("engine", lineage.backend.clone()),
        ("method", lineage.adapter_method.clone()),
        ("rank", p.lora_r.to_string()),
        ("alpha", p.lora_alpha.to_string()),
        ("DoRA", if p.dora { "yes" } else { "no" }.to_owned()),
        ("target modules", p.target_modules.join(", ")),
        ("trainer", p.trainer_type.clone()),
        ("epochs", p.epochs.to_string()),
        ("batch size", format!("{} x {}", p.batch_size, p.gradient_accumulation_steps)),
        ("learning rate", p.learning_rate.to_string()),
        ("max length", p.max_length.to_string()),
        ("quantization", lineage.quantization.clone()),
        ("data set", evidence.data_provenance.primary_dataset.clone()),
        ("seed", p.seed.to_string()),
        ("date (UTC)", evidence.generated_at.to_text_date()),
    ];
    rows.map(|(key, value)| (key.to_owned(), value)).into()
}

/// The scores of a benchmark, if there was one.
fn benchmarks(evidence: &Evidence) -> String {
    let Some(found) = evidence.evaluations.get("benchmark") else { return String::new() };
    let scores = found.get("scores").and_then(Value::as_object);
    let number = |value: &Value| value.as_f64().map_or_else(|| plain(value), |v| format!("{v:.4}"));
    let mut rows: Vec<(String, String)> =
        scores.into_iter().flatten().map(|(task, score)| (task.clone(), number(score))).collect();
    rows.extend(found.get("average").map(|value| ("average".to_owned(), number(value))));
    let mut text = "\n## Benchmarks\n\n".to_owned();
    table(&mut text, ("task", "score"), &rows);
    text
}

/// What the safety evaluation found, if there was one.
fn safety(evidence: &Evidence) -> String {
    let found = evidence.evaluations.get("safety").and_then(Value::as_object);
    let Some(found) = found else { return String::new() };
    let rows: Vec<(String, String)> =
        found.iter().map(|(key, value)| (key.clone(), plain(value))).collect();
    let mut text = "\n## Safety\n\n".to_owned();
    table(&mut text, ("what", "value"), &rows);
    text
}

/// The config, without secrets and what concerns nobody else.
fn configuration(evidence: &Evidence) -> String {
    let Some(config) = &evidence.technical.config else { return String::new() };
    let yaml = serde_yaml::to_string(config).expect("plain values");
    format!("\n## Configuration\n\n{}", fenced("yaml", &yaml))
}

/// How the model is used.
fn usage(evidence: &Evidence) -> String {
    let base = &evidence.model_lineage.base_model;
    let chat = fenced("sh", "forgelm chat .");
    // Names of other kinds mean nothing to other programs.
    let is_foreign = base.contains(':') || base.to_lowercase().ends_with(".gguf");
    if !is_adapter(evidence) || is_foreign {
        return format!("\n## Use\n\nIn this folder:\n\n{chat}");
    }
    let revision = evidence.model_lineage.base_model_revision.revision_resolved.as_ref();
    let revision = revision.map_or_else(String::new, |name| format!(", revision={}", json!(name)));
    let python = format!(
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n\
         base = AutoModelForCausalLM.from_pretrained({}{revision})\n\
         model = PeftModel.from_pretrained(base, \".\")\n",
        json!(base)
    );
    format!("\n## Use\n\nIn this folder:\n\n{chat}\n{}", fenced("python", &python))
}

fn limits(evidence: &Evidence) -> String {
    let section = evidence.compliance.as_ref();
    let text = |key: &str| {
        let value = section.and_then(|s| s.get(key)).and_then(Value::as_str);
        inline(value.map(str::trim).filter(|t| !t.is_empty()).unwrap_or("Not specified."))
    };
    let mut tested = vec!["the loss above"];
    for (key, name) in [("safety", "safety"), ("benchmark", "benchmarks"), ("llm_judge", "a judge")]
    {
        if evidence.evaluations.contains_key(key) {
            tested.push(name);
        }
    }
    format!(
        "\n## Use and limits\n\nIntended purpose: {}\n\nKnown limitations: {}\n\n\
         What was evaluated: {}. Nothing else is known about how this model behaves; check it for \
         your purpose before you use it.\n",
        text("intended_purpose"),
        text("known_limitations"),
        tested.join(", ")
    )
}

fn evidence_section(evidence: &Evidence) -> String {
    format!(
        "\n## Evidence\n\nRun `{}`, config `{}`. `deployer_instructions.md` has the instructions for use; \
         `model_integrity.json` lists the digests of this folder; the signed record of the run is `compliance/attestation.dsse.json` in its output \
         folder (`forgelm verify-bundle`).\n\nMade by ForgeLM {}.\n",
        inline(&evidence.run_id),
        inline(&evidence.config_hash),
        inline(&evidence.forgelm_version)
    )
}

fn table(card: &mut String, head: (&str, &str), rows: &[(String, String)]) {
    let rows: Vec<_> = rows.iter().map(|(key, value)| (inline(key), inline(value))).collect();
    card.push_str(&table_of(head, &rows));
}

#[cfg(test)]
mod tests {
    use super::model_card;
    use crate::documents::evidence::tests::evidence;
    use serde_json::json;

    #[test]
    fn the_card_says_what_was_done_and_what_was_not() {
        let mut evidence = evidence();
        evidence.data_provenance.primary_dataset = "a|b\n# x".to_owned();
        let card = model_card(&evidence);
        assert!(
            card.starts_with(
                "---\ntags:\n- forgelm\n- fine-tuned\n- lora\nbase_model: org/base-7b\n"
            )
        );
        assert!(card.contains("\n# base-7b_finetune\n"));
        assert!(card.contains("| eval_loss | 0.4200 |"));
        assert!(!card.contains("benchmark/x"));
        assert!(card.contains("| data set | ab  x |"), "{card}");
        assert!(card.contains("Intended purpose: Not specified."));
        assert!(card.contains("What was evaluated: the loss above. Nothing else"));
        assert!(card.contains("| learning rate | 0.00002 |"));
    }

    #[test]
    fn hostile_names_stay_in_their_places() {
        let mut evidence = evidence();
        let hostile = "x\n---\nlicense: mit\n```\n# Safe\n<script> [a](b) `c` | \"d";
        hostile.clone_into(&mut evidence.model_lineage.base_model);
        hostile.clone_into(&mut evidence.data_provenance.primary_dataset);
        evidence
            .compliance
            .as_mut()
            .unwrap()
            .insert("known_limitations".to_owned(), json!(hostile));
        evidence.technical.config = Some(json!({"model": {"name_or_path": hostile}}));
        evidence.technical.languages = vec!["en".to_owned(), "de".to_owned()];
        let card = model_card(&evidence);
        let (matter, text) = card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
        let matter: serde_json::Value = serde_yaml::from_str(matter).unwrap();
        assert_eq!(matter["base_model"], hostile);
        assert_eq!(matter["language"], json!(["en", "de"]));
        assert_eq!(matter.get("license"), None);
        // Outside of the blocks of code there is nothing but our own marks.
        let mut fence: Option<String> = None;
        for line in text.lines() {
            match &fence {
                Some(open) => {
                    if line == open {
                        fence = None;
                    }
                }
                None if line.starts_with("```") => {
                    let ticks = line.len() - line.trim_start_matches('`').len();
                    fence = Some("`".repeat(ticks));
                }
                None => {
                    assert!(!line.contains("<script") && !line.contains("](b)"), "{line}");
                    assert!(line != "# Safe" && line != "license: mit", "{line}");
                }
            }
        }
        assert_eq!(fence, None, "{card}");
        assert!(card.contains("````yaml\n"), "{card}");
    }

    #[test]
    fn what_was_evaluated_has_its_own_section() {
        let mut evidence = evidence();
        assert!(!model_card(&evidence).contains("## Benchmarks"));
        let benchmark = json!({"scores": {"arc": 0.51234}, "average": 0.51234});
        evidence.evaluations.insert("benchmark".to_owned(), benchmark);
        evidence.evaluations.insert("safety".to_owned(), json!({"safety_score": 0.99}));
        let card = model_card(&evidence);
        assert!(
            card.contains("| arc | 0.5123 |") && card.contains("| average | 0.5123 |"),
            "{card}"
        );
        assert!(card.contains("| safety_score | 0.99 |"));
        assert!(card.contains("- safety-evaluated\n"));
        assert!(card.contains(
            "base = AutoModelForCausalLM.from_pretrained(\"org/base-7b\", revision=\"0123"
        ));
    }
}
