use super::{Answer, Prepared, Request, Settings, Splits, words};
use crate::library::{Chosen, Library};
use serde_json::{Value, json};

/// A task of a file with these lines.
fn task(lines: &str) -> crate::Task {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.yaml");
    let yaml = format!("task: t\ndataset_path: d\ntest_split: test\n{lines}");
    forgelm_artifact::write::atomic(&path, yaml.as_bytes()).unwrap();
    match Library::find(path.to_str().unwrap()).unwrap().remove(0) {
        Chosen::Task(task) => *task,
        Chosen::Group(group) => panic!("{group:?}"),
    }
}

const CHOICE: &str = "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_target: a\n\
                      doc_to_choice: c\n";

fn prepare(lines: &str, asked: &[Value], settings: Settings) -> Result<Prepared, String> {
    let splits = Splits { asked: asked.to_vec(), examples: Vec::new() };
    Prepared::new(task(lines), splits, settings).map_err(|error| error.to_string())
}

#[test]
fn rows_that_do_not_fit_the_task_are_refused_with_their_place() {
    let good = json!({"q": "Q", "a": 0, "c": ["x", "y"]});
    let none = Settings::default();
    for (row, text) in [
        (json!({"q": "Q", "a": 2, "c": ["x", "y"]}), "none of the 2 choices"),
        (json!({"q": "Q", "a": "z", "c": ["x", "y"]}), "none of the 2 choices"),
        (json!({"q": "Q", "a": 0, "c": []}), "gives no choice"),
        (json!({"q": "Q", "a": 0, "c": ["x", ""]}), "choice 1, counted from 0, is empty"),
        (json!({"q": "Q", "a": 0, "c": ["x", 1]}), "expected a list of texts"),
        (json!({"q": "Q", "a": {}, "c": ["x"]}), "expected a text or a number"),
        (json!({"q": 3, "a": 0, "c": ["x"]}), "expected a text"),
        (json!(3), "is not an object"),
    ] {
        let refused = prepare(CHOICE, &[good.clone(), row], none).err().unwrap();
        assert!(refused.contains(text), "{refused}");
        assert!(refused.contains("benchmark task `t`: split `test`, row 2: "), "{refused}");
    }
    let refused = prepare(CHOICE, &[], none).err().unwrap();
    assert!(refused.contains("split `test`: no rows"), "{refused}");
    let refused = prepare(
        "output_type: loglikelihood\ndoc_to_text: '{{nowhere}}'\ndoc_to_target: q\n",
        std::slice::from_ref(&good),
        none,
    );
    assert!(refused.err().unwrap().contains("undefined"), "a column that is not there");
    let few = Settings { num_fewshot: Some(3), limit: None };
    let refused = prepare(CHOICE, &[good.clone(), good.clone()], few).err().unwrap();
    assert!(refused.contains("`evaluation.benchmark.num_fewshot`"), "{refused}");
    let refused = prepare("doc_to_text: '{{'\ndoc_to_target: a\n", &[good], none).err().unwrap();
    assert!(refused.contains("`{{`: the template cannot be used"), "{refused}");
}

#[test]
fn a_limit_asks_the_first_rows_and_knows_how_many_there_are() {
    let rows: Vec<Value> = (0..5).map(|i| json!({"q": i.to_string(), "a": i})).collect();
    let settings = Settings { limit: Some(2), num_fewshot: None };
    let prepared = prepare("doc_to_text: q\ndoc_to_target: a\n", &rows, settings).unwrap();
    let context = |text: &str| Request::Generate { context: text.into() };
    assert_eq!(prepared.requests, [context("0"), context("1")]);
    let scores = prepared.scores(&[Answer::Text("0".into()), Answer::Text("2".into())]);
    assert_eq!((scores.n_samples, scores.n_rows), (2, 5));
    assert!((scores.score().unwrap().value - 0.5).abs() < 1e-12);
    assert!(!prepared.needs_greedy());
}

#[test]
fn a_task_without_examples_of_its_own_stays_without() {
    let rows = [json!({"q": "Q", "a": "A"})];
    let asked = Settings { limit: None, num_fewshot: Some(3) };
    let lines = "num_fewshot: 0\ndoc_to_text: q\ndoc_to_target: a\n";
    assert_eq!(prepare(lines, &rows, asked).unwrap().n_examples, 0);
}

#[test]
fn words_are_counted_as_python_splits_them() {
    for (text, n) in [("", 1), ("a", 1), ("a b", 2), (" a  b\n", 4), ("a\u{1f}b", 2)] {
        assert_eq!(words(text), n, "{text:?}");
    }
}
