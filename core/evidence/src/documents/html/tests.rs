//! The pages of a complete run, of a bare one, of a hostile one, and of a pipeline.

use serde_json::json;

use super::super::annex_iv::Surroundings;
use super::super::course::{Course, EvaluationPoint, Samples, Split, StepPoint};
use super::super::evidence::{Evidence, Gate, Outcome};
use super::super::record::FileRecord;
use super::run::run_report;
use super::{gates, pipeline_report};
use crate::documents::evidence::tests::evidence;
use crate::gate::{Bound, Check};

/// Text that means to be more than text.
const HOSTILE: &str =
    "</title></style><script>alert(1)</script> \"'><img src=x onerror=y> & \u{202e}abc";

fn course() -> Course {
    let step = |step: u64, loss: f64| StepPoint { step, loss, learning_rate: 2e-5, grad_norm: 0.5 };
    Course {
        steps: vec![step(1, 3.0), step(2, f64::NAN), step(3, 1.5)],
        evaluations: vec![
            EvaluationPoint { step: 0, loss: 3.25 },
            EvaluationPoint { step: 3, loss: 0.42 },
        ],
        splits: vec![Split {
            name: "training",
            n_records: 1200,
            n_tokens: 34_000,
            n_trained_tokens: 12_000,
            longest: Some(77),
            n_truncated: None,
        }],
        samples: Samples::Asked {
            question: "What is it?".to_owned(),
            expected: "A forge.".to_owned(),
            before: Some("I do not know".to_owned()),
            after: Some("A forge".to_owned()),
            n_masked: 2,
        },
    }
}

fn loss_check(limit_name: &str, limit: f64) -> Check {
    Check {
        measure: "eval_loss".to_owned(),
        value: 0.42,
        bound: Bound::AtMost,
        limit,
        limit_name: limit_name.to_owned(),
        n_samples: Some(60),
        interval: None,
    }
}

fn full() -> (Evidence, Surroundings) {
    let mut evidence = evidence();
    evidence.technical.course = course();
    evidence.metrics.insert("baseline_eval_loss".to_owned(), 3.25);
    evidence.gates[0].checks =
        vec![loss_check("`evaluation.max_acceptable_loss`", 0.5), loss_check("the baseline", 3.25)];
    let around = Surroundings {
        model_files: vec![FileRecord {
            name: "final_model/adapter_model.safetensors".to_owned(),
            sha256: "7".repeat(64),
            size_bytes: 3000,
        }],
        model_dir: Some("final_model".to_owned()),
        keyid: Some("SHA256:key".to_owned()),
        ..Surroundings::default()
    };
    (evidence, around)
}

/// Every opening tag has its end, in order; the names of the tags, and every id.
fn well_formed(page: &str) -> (Vec<String>, Vec<String>) {
    let void = ["meta", "!DOCTYPE"];
    let (mut open, mut names, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    let body =
        page.split_once("<style>").map_or(page, |(_, rest)| rest.split_once("</style>").unwrap().1);
    let mut rest = body;
    // The head before the style was read by eye: it has no text of others but the title.
    while let Some((_, after)) = rest.split_once('<') {
        let (tag, next) = after.split_once('>').expect("a tag ends");
        rest = next;
        if let Some(name) = tag.strip_prefix('/') {
            if ["head", "body", "html"].contains(&name) && open.is_empty() {
                continue;
            }
            assert_eq!(open.pop().as_deref(), Some(name), "before {next:.80}");
            continue;
        }
        let name = tag.split([' ', '\n']).next().unwrap().to_owned();
        if let Some((_, id)) = tag.split_once(" id=\"") {
            ids.push(id.split('"').next().unwrap().to_owned());
        }
        if !void.contains(&name.as_str()) && name != "body" {
            open.push(name.clone());
        }
        names.push(name);
    }
    assert_eq!(open, [] as [String; 0]);
    (names, ids)
}

#[test]
fn a_complete_run_shows_every_part_and_its_margins() {
    let (evidence, around) = full();
    let page = run_report(&evidence, &around).unwrap();
    let (names, ids) = well_formed(&page);
    for id in [
        "summary",
        "gates",
        "curves",
        "samples",
        "data",
        "training",
        "resources",
        "lineage",
        "signatures",
        "again",
    ] {
        assert_eq!(ids.iter().filter(|of| *of == id).count(), 1, "{id}");
        assert!(page.contains(&format!("<a href=\"#{id}\">")), "{id}");
    }
    let mut unique = ids.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), ids.len(), "an id is one place");
    assert_eq!(names.iter().filter(|name| *name == "svg").count(), 3);
    assert_eq!(names.iter().filter(|name| *name == "h1").count(), 1);
    let tables = names.iter().filter(|name| *name == "table").count();
    assert_eq!(names.iter().filter(|name| *name == "caption").count(), tables);
    for text in [
        "Accepted.",
        "Validation loss 3.2500 before training, 0.4200 after (-87.1 %).",
        "at most 0.5000 (evaluation.max_acceptable_loss)",
        "+0.0800 (+16.0 %)",
        "at most 3.2500 (the baseline)",
        "+2.8300 (+87.1 %)",
        "training loss: 3 at step 1, 1.5000 at step 3; lowest 1.5000 at step 3, highest 3 at step 1.",
        "validation loss: 3.2500 at step 0, 0.4200 at step 3",
        "<td class=\"number\">NaN</td>",
        "I do not know",
        "What looks like personal data or a secret is masked (2 places).",
        "34,000",
        "SHA256:key",
        "forgelm verify-bundle . --key signer.pub",
        "forgelm reproduce RUN --output again --key signer.pub",
        "2.9 KiB",
    ] {
        assert!(page.contains(text), "`{text}` is not in the page");
    }
}

#[test]
fn a_page_loads_and_runs_nothing() {
    let (evidence, around) = full();
    let page = run_report(&evidence, &around).unwrap();
    let (names, _) = well_formed(&page);
    for name in [
        "script", "img", "link", "iframe", "object", "embed", "form", "input", "base", "image",
        "use",
    ] {
        assert!(!names.contains(&name.to_owned()), "{name}");
    }
    assert!(page.contains("default-src 'none'"));
    let tags: Vec<&str> = page.split('<').skip(1).filter_map(|tag| tag.split('>').next()).collect();
    let style = page.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
    for mark in ["http://", "https://", "url(", "@import", "src=", "javascript:"] {
        assert!(!tags.iter().any(|tag| tag.contains(mark)) && !style.contains(mark), "{mark}");
    }
    let is_handler = |word: &str| word.starts_with("on") && word.contains('=');
    assert!(!tags.iter().any(|tag| tag.split_whitespace().any(is_handler)));
}

#[test]
fn text_of_others_stays_text() {
    let (mut evidence, mut around) = full();
    let plain = well_formed(&run_report(&evidence, &around).unwrap()).0;
    let hostile = || HOSTILE.to_owned();
    evidence.model_lineage.base_model = hostile();
    evidence.model_lineage.base_model_revision.repo_id = hostile();
    evidence.data_provenance.primary_dataset = hostile();
    evidence.operator = hostile();
    evidence.run_id = hostile();
    evidence.technical.objective = Some(hostile());
    evidence.metrics.insert(hostile(), 1.0);
    evidence.gates = vec![Gate {
        gate: "loss".to_owned(),
        passed: false,
        reason: Some(hostile()),
        checks: vec![loss_check(HOSTILE, 0.5)],
    }];
    evidence.technical.data_filters.insert(hostile(), json!({HOSTILE: [HOSTILE]}));
    evidence.training_parameters.target_modules = vec![hostile()];
    evidence.plugins =
        vec![json!({"name": HOSTILE, "library": HOSTILE, "kind": HOSTILE, "version": HOSTILE})];
    for key in ["intended_purpose", "known_limitations", "system_name"] {
        evidence.compliance.as_mut().unwrap().insert(key.to_owned(), json!(HOSTILE));
    }
    evidence.technical.course.samples = Samples::Asked {
        question: hostile(),
        expected: hostile(),
        before: Some(hostile()),
        after: Some(hostile()),
        n_masked: 0,
    };
    around.keyid = Some(hostile());
    around.model_dir = Some(hostile());
    around.model_files[0].name = hostile();
    let page = run_report(&evidence, &around).unwrap();
    let (names, _) = well_formed(&page);
    for name in ["script", "img", "title"] {
        let of = |names: &[String]| names.iter().filter(|other| *other == name).count();
        assert_eq!(of(&names), of(&plain), "{name}");
    }
    let title = page.split_once("<title>").unwrap().1.split_once("</title>").unwrap().0;
    assert!(title.contains("&lt;/title&gt;&lt;/style&gt;&lt;script&gt;"), "{title}");
    assert!(!page.contains('\u{202e}') && page.matches("alert(1)").count() > 15);
    assert_eq!(page.matches("<script").count(), 0);
}

#[test]
fn a_run_of_which_little_is_known_has_its_page_too() {
    let mut evidence = evidence();
    evidence.gates.clear();
    evidence.resource_usage = None;
    evidence.metrics.clear();
    evidence.compliance = None;
    let page = run_report(&evidence, &Surroundings::default()).unwrap();
    well_formed(&page);
    for text in [
        "No gate was asked",
        "No step is recorded.",
        "No question was asked",
        "Nothing was measured.",
        "There is no tuned model",
        "Nothing is signed: ",
    ] {
        assert!(page.contains(text), "{text}");
    }
    evidence.technical.is_standalone = true;
    assert_eq!(run_report(&evidence, &Surroundings::default()), None, "there was no run");
}

#[test]
fn what_became_of_the_model_is_said_first() {
    let (mut evidence, around) = full();
    let said = |evidence: &Evidence| {
        let page = run_report(evidence, &around).unwrap();
        let verdict = page.split_once("<div class=\"verdict ").unwrap().1;
        verdict.split_once("</b>").unwrap().0.split('>').next_back().unwrap().to_owned()
    };
    assert_eq!(said(&evidence), "Accepted.");
    evidence.outcome = Outcome::Staged;
    assert_eq!(said(&evidence), "Waits for approval.");
    evidence.gates[0].passed = false;
    evidence.outcome = Outcome::Promoted;
    assert_eq!(said(&evidence), "Kept.");
    evidence.outcome = Outcome::Reverted;
    assert_eq!(said(&evidence), "Rejected.");
    evidence.technical.course.samples = Samples::LeftOut;
    let page = run_report(&evidence, &around).unwrap();
    assert!(page.contains("the config says that the data has personal data"));
}

#[test]
fn the_curve_of_the_loss_has_the_limits_of_its_gate_and_no_others() {
    let (mut evidence, _) = full();
    let limits = |evidence: &Evidence| {
        gates::loss_limits(evidence).into_iter().map(|(_, limit)| limit).collect::<Vec<_>>()
    };
    assert_eq!(limits(&evidence), [0.5, 3.25]);
    evidence.gates[0].checks = vec![loss_check("the largest number", f64::MAX)];
    assert_eq!(limits(&evidence), [] as [f64; 0], "no limit is no line");
    evidence.gates[0] = Gate { gate: "safety".to_owned(), ..full().0.gates[0].clone() };
    assert_eq!(limits(&evidence), [] as [f64; 0], "limits of other gates are no losses");
}

#[test]
fn a_pipeline_shows_its_chain_and_links_what_lies_below_it() {
    let stage = |name: &str, documents: &str, status: &str| {
        json!({
            "name": name, "trainer_type": "sft", "status": status, "input_model": "org/base",
            "output_model": "s/final_model", "metrics": {"eval_loss": 0.5}, "gate_decision": "passed",
            "duration_seconds": 61.0, "training_manifest": documents,
        })
    };
    let manifest = json!({
        "forgelm_version": "0.1.0", "generated_at": "2026-01-01T02:00:00+00:00",
        "pipeline_run_id": "pl_2026-01-01_a1b2c3", "final_status": "stopped_at_stage", "stopped_at": "c",
        "stages": [
            stage("a", "stage 1/compliance/annex_iv_metadata.json", "completed"),
            stage(HOSTILE, "../../etc/compliance/annex_iv_metadata.json", "completed"),
            stage("c", "/tmp/compliance/annex_iv_metadata.json", "completed"),
            stage("d", "javascript:alert(1)/x", "completed"),
            stage("e", "s5/compliance/annex_iv_metadata.json", "skipped_due_to_prior_revert"),
        ],
    });
    let page = pipeline_report(&manifest);
    let (names, _) = well_formed(&page);
    assert!(!names.contains(&"script".to_owned()));
    let links: Vec<&str> =
        page.split("<a href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let links: Vec<&&str> = links.iter().filter(|link| !link.starts_with('#')).collect();
    assert_eq!(
        links,
        [&"../stage%201/compliance/report.html", &"../javascript%3Aalert%281%29/report.html"]
    );
    for text in
        ["Stopped.", "4 of 5 stages are completed.", "1 min 1 s", "skipped_due_to_prior_revert"]
    {
        assert!(page.contains(text), "{text}");
    }
    // Whatever is in the place of a manifest, there is a page.
    for odd in [json!(null), json!([]), json!({"stages": [1, null, {"metrics": 3}]})] {
        well_formed(&pipeline_report(&odd));
    }
}
