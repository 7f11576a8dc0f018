//! The report of a training run.

use maud::{Markup, html};
use serde_json::Value;

use super::super::annex_iv::Surroundings;
use super::super::course::Samples;
use super::super::evidence::{Evidence, Outcome};
use super::super::inventory::{data_sets, model_name};
use super::super::report::training_parameters;
use super::number::{bytes, count, member, real, seconds, value, words};
use super::page::{Part, page, pairs, table};
use super::{curves, gates, proof};

/// The page; none for documents of a config that was not run.
pub(crate) fn run_report(evidence: &Evidence, around: &Surroundings) -> Option<String> {
    if evidence.technical.is_standalone {
        return None;
    }
    let title = format!("Run report: {}", model_name(evidence));
    let parts = [
        Part { id: "summary", title: "Summary", body: summary(evidence) },
        Part { id: "gates", title: "Gates", body: gates::part(evidence) },
        Part { id: "curves", title: "Curves", body: curves::part(evidence) },
        Part { id: "samples", title: "Before and after", body: samples(evidence) },
        Part { id: "data", title: "Data", body: data(evidence) },
        Part { id: "training", title: "Training", body: training(evidence) },
        Part { id: "resources", title: "Resources", body: resources(evidence) },
        Part { id: "lineage", title: "Lineage", body: proof::lineage(evidence, around) },
        Part { id: "signatures", title: "Signatures", body: proof::signatures(evidence, around) },
        Part { id: "again", title: "Make it again", body: proof::again(evidence) },
    ];
    let foot = html! {
        p { "Made by ForgeLM " (evidence.forgelm_version) " at " (evidence.generated_at) ". The numbers are those of "
            code { "compliance_report.json" } "; curves are drawn from " code { "metrics.jsonl" } "." }
    };
    Some(page(&title, &verdict(evidence, around), &parts, &foot))
}

/// What became of the model, in a sentence.
fn verdict(evidence: &Evidence, around: &Surroundings) -> Markup {
    let dir = around.model_dir.as_deref().unwrap_or("the model's folder");
    let n_failed = evidence.gates.iter().filter(|gate| !gate.passed).count();
    let (class, word, text) = match (evidence.outcome, n_failed) {
        (Outcome::Promoted, 0) => ("good", "Accepted.", format!("The tuned model is in {dir}.")),
        (Outcome::Promoted, _) => (
            "wait",
            "Kept.",
            format!("A gate rejected the tuned model; the config keeps it, in {dir}."),
        ),
        (Outcome::Staged, _) => {
            let text = format!(
                "The tuned model is in {dir} until people have approved it. When this page was written \
                 they had not: the audit log says what was decided."
            );
            ("wait", "Waits for approval.", text)
        }
        (Outcome::Reverted, _) => {
            ("bad", "Rejected.", "A gate rejected the tuned model, and it is deleted.".to_owned())
        }
    };
    let metric = |name: &str| evidence.metrics.get(name).copied();
    let loss = match (metric("baseline_eval_loss"), metric("eval_loss")) {
        (Some(before), Some(after)) => {
            let change = if before.abs() > 0.0 && before.is_finite() && after.is_finite() {
                format!(" ({:+.1} %)", 100.0 * (after - before) / before.abs())
            } else {
                String::new()
            };
            Some(format!(
                "Validation loss {} before training, {} after{change}.",
                real(before),
                real(after)
            ))
        }
        (None, Some(after)) => Some(format!("Validation loss {}.", real(after))),
        (_, None) => None,
    };
    html! {
        div class={ "verdict " (class) } {
            p { b class=(class) { (word) } " " (text) }
            @if let Some(loss) = loss { p { (loss) } }
        }
    }
}

fn summary(evidence: &Evidence) -> Markup {
    let steps = evidence.training_parameters.more.get("steps").map(value);
    let wall = evidence.finished_at.0.saturating_sub(evidence.started_at.0);
    #[expect(clippy::cast_precision_loss, reason = "seconds are shown")]
    let wall = wall as f64 / 1e6;
    let section = |key: &str| {
        let text = evidence.compliance.as_ref().and_then(|s| s.get(key)).and_then(Value::as_str);
        text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let rows = [
        ("run", Some(evidence.run_id.clone())),
        ("pipeline", evidence.pipeline_run_id.clone()),
        ("operator", Some(evidence.operator.clone())),
        ("started", Some(evidence.started_at.to_string())),
        ("finished", Some(format!("{}, after {}", evidence.finished_at, seconds(wall)))),
        ("base model", Some(evidence.model_lineage.base_model.clone())),
        ("method", Some(evidence.model_lineage.adapter_method.clone())),
        ("trainer", Some(evidence.training_parameters.trainer_type.clone())),
        ("objective", evidence.technical.objective.clone()),
        ("steps", steps),
        ("data set", Some(evidence.data_provenance.primary_dataset.clone())),
        ("intended purpose", section("intended_purpose")),
        ("known limitations", section("known_limitations")),
        ("risk tier", section("risk_classification")),
        ("config", Some(evidence.config_hash.clone())),
    ];
    let rows: Vec<(String, String)> =
        rows.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    let results: Vec<Vec<String>> = evidence
        .metrics
        .iter()
        .filter(|(name, _)| !name.starts_with("resource/"))
        .map(|(name, number)| vec![name.clone(), real(*number)])
        .collect();
    html! {
        (pairs("The run", &rows))
        details {
            summary { "Every final number" }
            (table("Final numbers, under the names of metrics.jsonl", &["name", "value"], &[false, true], &results))
        }
    }
}

fn samples(evidence: &Evidence) -> Markup {
    match &evidence.technical.course.samples {
        Samples::None => {
            html! { p { "No question was asked: the data has none that a user asks and it answers, or the model has no chat template." } }
        }
        Samples::LeftOut => html! {
            p { "A question of the data was asked before and after training, and shown while the run worked. \
                 It is not repeated here: the config says that the data has personal data." }
        },
        Samples::Asked { question, expected, before, after, n_masked } => {
            let not_asked = "Not asked by this process, which went on from a checkpoint.";
            html! {
                p { "One question of the data, answered greedily, at most 64 tokens. It shows a manner, and \
                     measures nothing." }
                h3 { "Question" } blockquote dir="auto" { (question) }
                h3 { "Before training" }
                @match before {
                    Some(answer) => blockquote dir="auto" { (shown(answer)) },
                    None => p.note { (not_asked) },
                }
                h3 { "After training" }
                @match after {
                    Some(answer) => blockquote dir="auto" { (shown(answer)) },
                    None => p.note { (not_asked) },
                }
                h3 { "What the data answers" } blockquote dir="auto" { (expected) }
                @if *n_masked > 0 {
                    p.note { "What looks like personal data or a secret is masked (" (count(*n_masked)) " places)." }
                }
            }
        }
    }
}

fn shown(answer: &str) -> &str {
    if answer.trim().is_empty() { "(an empty answer)" } else { answer }
}

fn data(evidence: &Evidence) -> Markup {
    let provenance = &evidence.data_provenance;
    let mut sets = Vec::new();
    let mut files = Vec::new();
    for set in data_sets(evidence) {
        let rows = set.print.rows.map_or_else(|| "not counted".to_owned(), count);
        let size = set.print.size_bytes.map_or_else(|| "not known".to_owned(), bytes);
        let revision = set.print.hf_revision.clone();
        let source = match (&set.print.source, revision) {
            (Some(source), Some(revision)) => format!("{source}, revision {revision}"),
            (Some(source), None) => source.clone(),
            (None, _) => "this machine".to_owned(),
        };
        sets.push(vec![set.name.to_owned(), rows, size, source]);
        for file in set.files {
            let columns = file.fields.iter().map(|field| field.name.clone()).collect::<Vec<_>>();
            files.push(vec![
                file.file.clone(),
                file.rows.map_or_else(|| "–".to_owned(), count),
                bytes(file.size_bytes),
                if columns.is_empty() { "–".to_owned() } else { columns.join(", ") },
                file.sha256.clone(),
            ]);
        }
    }
    let splits: Vec<Vec<String>> = evidence
        .technical
        .course
        .splits
        .iter()
        .map(|split| {
            let known = [split.n_records, split.n_tokens, split.n_trained_tokens].map(Some);
            let numbers = known.into_iter().chain([split.longest, split.n_truncated]);
            let shown = numbers.map(|n| n.map_or_else(|| "–".to_owned(), count));
            std::iter::once(split.name.to_owned()).chain(shown).collect()
        })
        .collect();
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let mut handled = vec![("shuffled".to_owned(), yes(provenance.shuffle))];
    let members = evidence.technical.data_filters.iter().chain(&evidence.technical.input);
    handled.extend(members.map(|(key, of)| (words(key), value(of))));
    let governance = evidence.technical.governance_answers.iter().flatten();
    let governance: Vec<(String, String)> = governance
        .filter(|(_, of)| {
            !matches!(of, Value::String(text) if text.trim().is_empty()) && !of.is_null()
        })
        .map(|(key, of)| (words(key), value(of)))
        .collect();
    html! {
        (table("Data sets", &["data set", "rows used", "size", "from"], &[false, true, true], &sets))
        @if !splits.is_empty() {
            (table(
                "Records and tokens",
                &["", "records", "tokens", "trained or scored", "longest", "cut"],
                &[false, true, true, true, true, true],
                &splits,
            ))
        }
        @if !files.is_empty() {
            (table("Files", &["file", "rows", "size", "columns", "SHA-256"], &[false, true, true], &files))
        }
        (pairs("How rows were read", &handled))
        @if !governance.is_empty() { (pairs("What the provider says of the data", &governance)) }
    }
}

fn training(evidence: &Evidence) -> Markup {
    let parameters = training_parameters(evidence);
    let rows: Vec<(String, String)> = parameters
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, of)| !of.is_null())
        .map(|(key, of)| (words(key), value(of)))
        .collect();
    html! { (pairs("Parameters in effect", &rows)) }
}

fn resources(evidence: &Evidence) -> Markup {
    let Some(usage) = &evidence.resource_usage else {
        return html! { p { "Nothing was measured." } };
    };
    let usage = Value::Object(usage.clone());
    let number = |key: &str| member(&usage, key);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of bytes")]
    let peak = number("memory_bytes_peak").map(|n| bytes(n as u64));
    let speed = number("tokens").zip(number("training_duration_seconds")).filter(|(_, s)| *s > 0.0);
    let known = [
        ("training took", number("training_duration_seconds").map(seconds)),
        ("processor time, over all threads", number("cpu_seconds").map(seconds)),
        ("threads", number("threads").map(real)),
        ("kernels", usage.get("kernels").map(value)),
        ("memory at most", peak),
        ("tokens", number("tokens").map(real)),
        ("tokens per second", speed.map(|(n, s)| real((n / s).round()))),
        ("trained tokens", number("trained_tokens").map(real)),
        ("arithmetic", number("flops").map(|flops| format!("{} TFLOP", real(flops / 1e12)))),
        (
            "energy of the processors",
            Some(match number("energy_joules") {
                Some(joules) => format!("{} kWh", real(joules / 3.6e6)),
                None => "not measured".to_owned(),
            }),
        ),
        ("estimated cost", number("estimated_cost_usd").map(|usd| format!("{usd:.4} US dollars"))),
    ];
    let rows: Vec<(String, String)> =
        known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    let system: Vec<(String, String)> =
        evidence.technical.system.iter().map(|(key, of)| (words(key), value(of))).collect();
    html! {
        (pairs("What the run used", &rows))
        @if !system.is_empty() { (pairs("The machine", &system)) }
    }
}
