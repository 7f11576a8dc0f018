//! Drafts for who provides a general-purpose AI model (Article 53): `annex_xi.md`, `downstream.md`
//! (Annex XII) and `gpai_summary.md` (the Commission's template for the public summary of training
//! content), where the config has `compliance.gpai`.
//!
//! Every item is answered by what the run knows, by what people wrote, or by "not provided" with the key
//! to write. They are about the fine-tuning: what trained the base is its provider's to tell.
//!
//! Start reading at [`annex_xi`]; the tables are in [`items`].

mod calendar;
mod compute;
mod items;
mod known;

use std::fmt::Write as _;

use serde_json::Value;

use super::annex_iv::{Answers, answers};
use super::evidence::Evidence;
use super::inventory::model_name;
use super::markdown::{escaped, shown};
use items::{ANNEX_XI, ANNEX_XII, Item, SUMMARY};

/// File names below the folder of documents.
pub const ANNEX_XI_FILE: &str = "annex_xi.md";
/// The one for those who build on the model.
pub const DOWNSTREAM_FILE: &str = "downstream.md";
/// The one for the public.
pub const SUMMARY_FILE: &str = "gpai_summary.md";

/// Annex XI: the technical documentation for the AI Office and authorities.
#[must_use]
pub fn annex_xi(evidence: &Evidence) -> Option<String> {
    let more = "## Exception\n\nArticle 53(2): models under a free and open-source license whose weights, \
                architecture and use are public need neither this document nor the one of Annex XII, \
                unless they have systemic risk. The copyright policy and the public summary stay due.\n";
    draft(evidence, "Technical documentation", "Annex XI", &ANNEX_XI, more)
}

/// Annex XII: for those who build on the model.
#[must_use]
pub fn downstream(evidence: &Evidence) -> Option<String> {
    draft(evidence, "Information for downstream providers", "Annex XII", &ANNEX_XII, "")
}

/// The public summary of training content.
#[must_use]
pub fn summary(evidence: &Evidence) -> Option<String> {
    let of = "the Commission's template under Article 53(1)(d)";
    draft(evidence, "Summary of training content", of, &SUMMARY, "")
}

fn draft(evidence: &Evidence, title: &str, of: &str, items: &[Item], more: &str) -> Option<String> {
    let section = evidence.compliance.as_ref()?.get("gpai")?;
    if !section.is_object() {
        return None;
    }
    let given = answers(evidence);
    let run = if evidence.technical.is_standalone {
        "**There was no training run: this text was made from a config alone.**".to_owned()
    } else {
        format!("Run {}, outcome {}.", escaped(&evidence.run_id), evidence.outcome.as_str())
    };
    let mut text = format!(
        "# {title}: {}\n\nA draft after {of} of Regulation (EU) 2024/1689, about the fine-tuning alone. \
         Nothing here is legal advice. Made by ForgeLM {}, config {}, {}. {run}\n",
        escaped(&model_name(evidence)),
        escaped(&evidence.forgelm_version),
        escaped(&evidence.config_hash),
        escaped(&evidence.generated_at.to_string()),
    );
    let mut n_open = 0;
    for item in items {
        n_open += usize::from(write_item(&mut text, item, evidence, &given));
    }
    let _ =
        write!(text, "\n## Open\n\n{n_open} of {} items have something missing.\n", items.len());
    if !more.is_empty() {
        let _ = write!(text, "\n{more}");
    }
    let _ = write!(text, "\n## Dates (as of {})\n\n", calendar::AS_OF);
    known::calendar().iter().for_each(|line| text.push_str(&format!("- {line}\n")));
    Some(text)
}

/// One item; whether something of it is missing.
fn write_item(text: &mut String, item: &Item, evidence: &Evidence, given: &Answers) -> bool {
    let _ = write!(text, "\n## {} {}\n\n", item.number, item.asked);
    let known: Vec<String> =
        item.facts.iter().flat_map(|fact| fact.lines(evidence, given)).collect();
    for line in &known {
        let _ = writeln!(text, "- {}", escaped(line));
    }
    let mut is_open = false;
    for keys in item.keys {
        let said: Vec<(&str, Value)> =
            keys.iter().filter_map(|key| Some((*key, given.get(key)?))).collect();
        for (key, value) in &said {
            let name = key.rsplit('.').next().unwrap_or(key);
            let _ = writeln!(text, "- {}: {}", escaped(name), shown(value));
        }
        // What was measured needs no estimate.
        let is_needed = known.is_empty() || !keys.contains(&"compliance.gpai.energy_estimate");
        if said.is_empty() && is_needed {
            let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
            let _ = writeln!(text, "- not provided: {}", keys.join(" or "));
            is_open = true;
        }
    }
    if item.keys.is_empty() && known.is_empty() {
        text.push_str("- not provided: a training run\n");
        is_open = true;
    }
    is_open
}

#[cfg(test)]
mod tests;
