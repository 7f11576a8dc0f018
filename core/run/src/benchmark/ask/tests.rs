//! Answers of the tiny model to golden tasks beside those that the lm-evaluation-harness 0.4.13 gets
//! of it (tools/golden/benchmark.py).

use super::{AskError, ask};
use crate::subject::{Language, Subject};
use forgelm_benchmark::{Answer, Chosen, DataFiles, Library, Prepared, Settings, Splits, Task};
use forgelm_kernels_api::Compute;
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{Decoder, ModelFiles, OpenModel};
use forgelm_tokenize::Tokenizer;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden").join(name)
}

struct Model {
    decoder: Decoder,
    tokenizer: Tokenizer,
}

impl Model {
    fn tiny() -> Self {
        let folder = golden("models/tiny-llama");
        let open = OpenModel::open(&ModelFiles::Folder(folder.clone())).expect("a good folder");
        Self {
            decoder: open.load(Arc::new(Cpu::new(1)), Compute::F32).expect("good weights"),
            tokenizer: Tokenizer::from_folder(&folder).expect("a good tokenizer"),
        }
    }

    fn ask(
        &self,
        prepared: &Prepared,
        n_together: Option<usize>,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<Answer>, AskError> {
        let tokenizer = &self.tokenizer;
        let language = Language { tokenizer, template: None, template_now: 0, stop_ids: &[] };
        let subject = Subject { decoder: &self.decoder, adapter: None, language, is_stopped };
        ask(&subject, prepared, n_together)
    }
}

fn read(name: &str) -> String {
    std::fs::read_to_string(golden("benchmark").join(name)).expect("a golden file")
}

fn prepared(name: &str, case: &Value) -> Prepared {
    let path = golden("benchmark").join(format!("{name}.yaml"));
    let found = Library::find(path.to_str().expect("a path")).expect("a good task");
    let [Chosen::Task(task)] = &found[..] else { panic!("{name} is a group") };
    let rows = |task: &Task, split: &str| -> Vec<Value> {
        let Some(DataFiles::BySplit(files)) = &task.data.files else { panic!("{task:?}") };
        let text: String = files[split].iter().map(|file| read(file)).collect();
        text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
    };
    let asked = task.asked_split().expect("a split");
    let examples = task.examples_split().expect("a split").filter(|&split| split != asked);
    let splits = Splits {
        asked: rows(task, asked),
        examples: examples.map(|split| rows(task, split)).unwrap_or_default(),
    };
    let count = |key: &str| case[key].as_u64().map(|n| usize::try_from(n).expect("small"));
    let settings = Settings { limit: count("limit"), num_fewshot: count("n_shot") };
    Prepared::new((**task).clone(), splits, settings).expect("good rows")
}

fn assert_answers(name: &str, prepared: &Prepared, answers: &[Answer], case: &Value) {
    let documents = case["documents"].as_array().expect("documents");
    let given = documents.iter().flat_map(|of| of["answers"].as_array().expect("answers"));
    let given: Vec<&Value> = given.collect();
    assert_eq!(answers.len(), given.len(), "{name}");
    let near = |found: f64, wanted: &Value| {
        let wanted = wanted.as_f64().expect("a number");
        assert!((found - wanted).abs() <= 1e-4 * wanted.abs(), "{name}: {found}, {wanted}");
    };
    for (answer, given) in answers.iter().zip(given) {
        match answer {
            Answer::Text(text) => assert_eq!(text, given.as_str().expect("a text"), "{name}"),
            Answer::Rolling(logp) => near(*logp, given),
            Answer::LogLikelihood { logp, is_greedy } => {
                near(*logp, &given[0]);
                if prepared.needs_greedy() {
                    assert_eq!(*is_greedy, given[1].as_bool().expect("a boolean"), "{name}");
                }
            }
        }
    }
}

#[test]
fn answers_are_those_of_the_harness_for_every_kind_of_request() {
    let model = Model::tiny();
    let expected: Value = serde_json::from_str(&read("expected.json")).expect("JSON");
    let mut n_kinds = [0; 3];
    for (name, case) in
        expected.as_object().expect("cases").iter().filter(|(name, _)| *name != "all")
    {
        let prepared = prepared(name, case);
        let answers = model.ask(&prepared, None, &|| false).expect("answers");
        assert_answers(name, &prepared, &answers, case);
        let kind = match answers[0] {
            Answer::LogLikelihood { .. } => 0,
            Answer::Rolling(_) => 1,
            Answer::Text(_) => 2,
        };
        n_kinds[kind] += 1;
    }
    assert_eq!(n_kinds, [18, 1, 3]);
}

#[test]
fn answers_do_not_depend_on_how_many_are_asked_together() {
    let model = Model::tiny();
    let expected: Value = serde_json::from_str(&read("expected.json")).expect("JSON");
    for name in ["choice_3shot", "whole", "answer"] {
        let prepared = prepared(name, &expected[name]);
        let alone = model.ask(&prepared, Some(1), &|| false).expect("answers");
        for n in [None, Some(2), Some(5), Some(1000)] {
            let together = model.ask(&prepared, n, &|| false).expect("answers");
            assert_eq!(together, alone, "{name}, {n:?} together");
        }
    }
}

#[test]
fn asking_ends_when_it_should_stop() {
    let model = Model::tiny();
    let expected: Value = serde_json::from_str(&read("expected.json")).expect("JSON");
    for name in ["choice_3shot", "whole", "answer"] {
        let prepared = prepared(name, &expected[name]);
        let stopped = model.ask(&prepared, None, &|| true);
        assert_eq!(stopped, Err(AskError::Stopped), "{name}");
    }
}
