//! Tasks against the lm-evaluation-harness 0.4.13: the same requests from the same rows, and from its
//! answers the same metrics with the same standard errors. Values by tools/golden/benchmark.py.

use forgelm_benchmark::{
    Answer, Chosen, DataFiles, GroupScores, Library, MetricValue, Prepared, Request, Settings,
    Splits, Task, TaskScores,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/benchmark")
}

fn read(name: &str) -> String {
    let path = folder().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn expected() -> Value {
    serde_json::from_str(&read("expected.json")).expect("JSON")
}

fn find(name: &str) -> Chosen {
    let path = folder().join(format!("{name}.yaml"));
    let mut found = Library::find(path.to_str().expect("a path")).expect("a good task");
    assert_eq!(found.len(), 1);
    found.remove(0)
}

/// The rows of a split that the task's file names.
fn rows(task: &Task, split: &str) -> Vec<Value> {
    let Some(DataFiles::BySplit(files)) = &task.data.files else { panic!("{task:?}") };
    let text: String = files[split].iter().map(|file| read(file)).collect();
    text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
}

fn prepared(task: &Task, settings: Settings) -> Prepared {
    let asked = task.asked_split().expect("a split");
    let examples = task.examples_split().expect("a split").filter(|&split| split != asked);
    let splits = Splits {
        asked: rows(task, asked),
        examples: examples.map(|split| rows(task, split)).unwrap_or_default(),
    };
    Prepared::new(task.clone(), splits, settings).expect("good rows")
}

fn count(value: &Value) -> Option<usize> {
    value.as_u64().map(|n| usize::try_from(n).expect("small"))
}

fn texts(request: &Request) -> Vec<&str> {
    match request {
        Request::LogLikelihood { context, continuation } => vec![context, continuation],
        Request::Rolling { text } => vec![text],
        Request::Generate { context } => vec![context],
    }
}

fn answer(request: &Request, given: &Value) -> Answer {
    match request {
        Request::LogLikelihood { .. } => Answer::LogLikelihood {
            logp: given[0].as_f64().expect("a number"),
            is_greedy: given[1].as_bool().expect("a boolean"),
        },
        Request::Rolling { .. } => Answer::Rolling(given.as_f64().expect("a number")),
        Request::Generate { .. } => Answer::Text(given.as_str().expect("a text").to_owned()),
    }
}

fn assert_metrics(name: &str, found: &[MetricValue], expected: &Value) {
    let expected = expected.as_object().expect("metrics");
    assert_eq!(found.len() * 2, expected.len(), "{name}: a value and an error of each");
    for MetricValue { metric, filter, value, std_error } in found {
        let of = |key: String| &expected[&key];
        let wanted = of(format!("{metric},{filter}")).as_f64().expect("a number");
        assert!(
            (value - wanted).abs() <= 1e-9 * wanted.abs(),
            "{name} {metric}: {value}, {wanted}"
        );
        let wanted = of(format!("{metric}_stderr,{filter}")).as_f64();
        match (std_error, wanted) {
            (None, None) => {}
            (Some(error), Some(wanted)) => assert!(
                (error - wanted).abs() <= 1e-9 * wanted.abs(),
                "{name} {metric}: error {error}, {wanted}"
            ),
            other => panic!("{name} {metric}: {other:?}"),
        }
    }
}

/// Asks one case and gives what the harness's answers come to.
fn check(name: &str, case: &Value) -> TaskScores {
    let Chosen::Task(task) = find(name) else { panic!("{name} is a group") };
    let settings = Settings { limit: count(&case["limit"]), num_fewshot: count(&case["n_shot"]) };
    let prepared = prepared(&task, settings);
    let documents = case["documents"].as_array().expect("documents");
    assert_eq!(prepared.n_documents(), documents.len(), "{name}");
    let mut answers = Vec::new();
    for (i, (range, document)) in prepared.documents().zip(documents).enumerate() {
        let requests = &prepared.requests[range];
        let arguments = document["arguments"].as_array().expect("arguments");
        assert_eq!(requests.len(), arguments.len(), "{name}, document {i}");
        for (k, (request, arguments)) in requests.iter().zip(arguments).enumerate() {
            let arguments: Vec<&str> = arguments
                .as_array()
                .expect("texts")
                .iter()
                .map(|text| text.as_str().expect("a text"))
                .collect();
            assert_eq!(texts(request), arguments, "{name}, document {i}, request {k}");
            answers.push(answer(request, &document["answers"][k]));
        }
    }
    let scores = prepared.scores(&answers);
    assert_metrics(name, &scores.metrics, &case["metrics"]);
    scores
}

#[test]
fn requests_and_metrics_are_those_of_the_harness() {
    let expected = expected();
    let mut scores = BTreeMap::new();
    for (name, case) in expected.as_object().expect("cases") {
        if name != "all" {
            scores.insert(name.as_str(), check(name, case));
        }
    }
    assert_eq!(scores.len(), 22);
    // What the metrics of some of them are: 0 in the harness and 0 here would say little.
    assert!(scores["choice"].metrics.iter().any(|metric| metric.value > 0.1));
    assert!(scores["passage"].metrics[0].value > 100.0);
    let share = scores["own_truthfulqa_mc2"].metrics[0].value;
    assert!(share > 0.0 && share < 0.5, "{share}: a share, not a count of rows");
}

#[test]
fn a_group_has_the_means_of_the_harness() {
    let expected = expected();
    let Chosen::Group(group) = find("all") else { panic!("a group") };
    let names = ["choice", "own_piqa", "own_boolq"];
    let scores = names.map(|name| {
        // Without examples, as the harness ran the group.
        let Chosen::Task(task) = find(name) else { panic!("{name} is a group") };
        let prepared = prepared(&task, Settings::default());
        let case = &expected["all"]["members"][name];
        let given = case.as_array().expect("answers");
        let answers: Vec<Answer> = prepared
            .requests
            .iter()
            .zip(given)
            .map(|(request, given)| answer(request, given))
            .collect();
        prepared.scores(&answers)
    });
    let of = GroupScores::of(&group, &scores.each_ref());
    assert_eq!(of.n_samples, 14 + 5 + 5);
    assert_metrics("all", &of.metrics, &expected["all"]["metrics"]);
}
