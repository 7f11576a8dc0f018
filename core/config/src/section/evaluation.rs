//! `evaluation:` the gates that a tuned model must pass.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::text_rule::{NOT_BLANK, REVISION};
use crate::declare::{choice, section};
use crate::diagnostic::{Code, nearest};
use crate::read::{Readable, Reader, TextOrInteger};
use crate::spec::{Kind, Rules};
use crate::yaml::{Node, Value};

section! {
    /// The gates that a tuned model must pass.
    Evaluation {
        /// Deletes the tuned model when a gate rejects it.
        auto_revert: bool = false;
        /// The highest validation loss that is accepted.
        max_acceptable_loss: Option<f64> = None, min(0.0), max(1e9);
        /// The validation loss that the tuned model may not exceed. Null: with `auto_revert` it is measured
        /// before the first step.
        baseline_loss: Option<f64> = None, max(1e9);
        /// Samples that a measure must have behind it; with fewer the gate says "not enough evidence",
        /// and the run fails. Null: any number will do.
        min_samples: Option<u64> = None, ours(), min(1.0), max(1e9);
        /// With it a measure counts by its interval at this level: rejected when all of it is beyond
        /// the limit, accepted when none is, else not enough evidence. Null: the value alone decides.
        confidence: Option<f64> = None, ours(), min(0.5), max(0.9999);
        /// Stages the model until a person approves it.
        require_human_approval: bool = false;
        /// Who may approve.
        approval: Option<Approval> = None, ours();
        /// Days that a staged model is kept.
        staging_ttl_days: Option<u64> = None, min(0.0), max(1_000_000.0), replaced_by("retention.staging_ttl_days");
        /// Scores on public benchmarks.
        benchmark: Option<Benchmark> = None;
        /// Scores by a safety classifier.
        safety: Option<Safety> = None;
        /// Scores by a judge model.
        llm_judge: Option<LlmJudge> = None;
    }
}

section! {
    /// Who may approve a staged model. The rules stand in the request, and cannot change afterwards.
    Approval {
        /// How many different people must approve.
        quorum: u64 = 1, ours(), min(1.0), max(16.0);
        /// Roles, one of which each approval names. Empty: none is asked for.
        roles: Vec<String> = Vec::new(), ours(), text(NOT_BLANK);
        /// Days after which nobody can approve any more. Null: the request stays open.
        expires_days: Option<u64> = None, ours(), min(1.0), max(36_500.0);
        /// Refuses the operator who trained the model, and the key that signed the run.
        require_different_operator: bool = true, ours();
        /// A trust store: only its keys with the usage `approval` may approve, and they sign each
        /// decision. Null: people approve by their operator's name.
        approvers: Option<String> = None, ours(), text(NOT_BLANK);
    }
}

section! {
    /// Scores on public benchmarks.
    Benchmark {
        /// Runs the benchmark after training.
        enabled: bool = false;
        /// Names of the tasks: built-in ones, or task files with their `.yaml`.
        tasks: Vec<String> = Vec::new(), text(NOT_BLANK);
        /// Examples in each prompt. Null: the task's own number.
        num_fewshot: Option<u64> = None, min(0.0), max(1000.0);
        /// Sequences at a time, or `auto`.
        batch_size: TextOrInteger = TextOrInteger("auto".to_owned()), text(NOT_BLANK);
        /// Samples of each task. Null: all.
        limit: Option<u64> = None, min(1.0), max(1e9);
        /// A folder of data sets, each in a folder named like it (`allenai/ai2_arc`). What is not there
        /// is looked for in the cache and on the hub.
        data_dir: Option<String> = None, ours(), text(NOT_BLANK);
        /// A folder for a copy of the results, which lie in `benchmark` in the run's folder.
        output_dir: Option<String> = None, upstream(), text(NOT_BLANK);
        /// The lowest mean score that is accepted. Null: none is too low.
        min_score: Option<f64> = None, share();
    }
}

section! {
    /// Scores by a safety classifier.
    Safety {
        /// Runs the safety evaluation after training.
        enabled: bool = false;
        /// The classifier: a path or a hub id.
        classifier: String = "meta-llama/Llama-Guard-3-8B".to_owned(), text(NOT_BLANK);
        /// How the classifier answers.
        classifier_mode: ClassifierMode = ClassifierMode::Auto, upstream();
        /// Pins the classifier.
        classifier_revision: Option<String> = None, upstream(), text(REVISION);
        /// A file of prompts.
        test_prompts: String = "safety_prompts.jsonl".to_owned(), text(NOT_BLANK);
        /// The highest share of unsafe answers that is accepted.
        max_safety_regression: f64 = 0.05, share();
        /// How answers are counted.
        scoring: SafetyScoring = SafetyScoring::Binary;
        /// The lowest score that is accepted; needs `scoring: confidence_weighted`.
        min_safety_score: Option<f64> = None, share();
        /// Answers of the classifier below this are counted as uncertain.
        min_classifier_confidence: f64 = 0.7, share();
        /// Counts unsafe answers by category.
        track_categories: bool = false;
        /// The highest share of answers of each severity; needs `track_categories`.
        severity_thresholds: Option<SeverityThresholds> = None, share();
        /// Sequences at a time.
        batch_size: usize = 8, min(1.0), max(65_536.0);
        /// Keeps prompts and answers on disk.
        include_eval_samples: bool = false, upstream();
    }
}

section! {
    /// Scores by a judge model.
    LlmJudge {
        /// Runs the judge after training.
        enabled: bool = false;
        /// The judge: a name of the API; a path or a hub id for a local one.
        judge_model: String = "gpt-4o".to_owned(), text(NOT_BLANK);
        /// The environment variable that holds the key of the API. Null: there is no key, and without
        /// `judge_api_base` the judge is local.
        judge_api_key_env: Option<String> = None, text(NOT_BLANK);
        /// The address of the API, `/chat/completions` or not: as OpenAI speaks, Azure, or Anthropic.
        /// Null, with a key: OpenAI's.
        judge_api_base: Option<String> = None, text(NOT_BLANK);
        /// Pins a local judge.
        judge_model_revision: Option<String> = None, upstream(), text(REVISION);
        /// A file of prompts.
        eval_dataset: String = "eval_prompts.jsonl".to_owned(), text(NOT_BLANK);
        /// The lowest mean score that is accepted.
        min_score: f64 = 5.0, min(1.0), max(10.0);
        /// The lowest share of answers that the judge must have scored; below it there is no evidence.
        min_valid_share: f64 = 0.5, ours(), share();
        /// Bad answers that are planted before the others: a judge that likes one is not believed.
        canaries: usize = 3, ours(), min(0.0), max(16.0);
        /// Asks about each answer once more with the order of criteria and texts turned round; the score
        /// is the mean of both. Twice as many questions.
        order_swap: bool = false, ours();
        /// Seconds between requests to an API.
        api_delay: f64 = 0.0, ours(), min(0.0), max(86_400.0);
        /// Sequences at a time.
        batch_size: usize = 8, min(1.0), max(65_536.0);
        /// Keeps prompts and answers on disk.
        include_eval_samples: bool = false, upstream();
        /// Allows an API at a loopback, private or shared address, also by `http://`.
        allow_private_destinations: bool = false, ours();
    }
}

choice! {
    /// How the safety classifier answers.
    ClassifierMode {
        /// Found from the model.
        Auto = "auto",
        /// A classification head.
        Classification = "classification",
        /// Generated text.
        Generation = "generation",
    }
}

choice! {
    /// How answers are counted.
    SafetyScoring {
        /// Safe or not.
        Binary = "binary",
        /// By the classifier's confidence.
        ConfidenceWeighted = "confidence_weighted",
    }
}

choice! {
    /// How bad an unsafe answer is.
    HarmSeverity {
        /// The worst.
        Critical = "critical",
        /// Bad.
        High = "high",
        /// Less bad.
        Medium = "medium",
        /// The least.
        Low = "low",
    }
}

/// The highest accepted share of answers of each severity.
#[derive(Clone, Debug, PartialEq)]
pub struct SeverityThresholds(pub BTreeMap<HarmSeverity, f64>);

impl Readable for SeverityThresholds {
    const KIND: Kind = Kind::Thresholds;

    fn read(node: &Node, path: &str, rules: &Rules, reader: &mut Reader) -> Option<Self> {
        let Value::Map(items) = &node.value else {
            reader.mismatch(node, path, Code::WrongType, &Self::KIND.expected(rules));
            return None;
        };
        let mut thresholds = BTreeMap::new();
        let mut complete = true;
        for (key, value) in items {
            let key_path = crate::yaml::join(path, &key.name);
            let severity = HarmSeverity::from_word(&key.name);
            if severity.is_none() {
                let expected = crate::spec::one_of(HarmSeverity::CHOICES.iter().map(|c| c.name));
                let message = format!(
                    "`{}` is not a severity; expected {expected}",
                    crate::yaml::shown(&key_path)
                );
                let mut problem =
                    crate::Diagnostic::error(Code::UnknownKey, &key_path, message).at(key.place);
                problem.hint = nearest(&key.name, HarmSeverity::CHOICES.iter().map(|c| c.name))
                    .map(|word| format!("did you mean `{word}`?"));
                reader.problems.push(problem);
            }
            match (severity, f64::read(value, &key_path, rules, reader)) {
                (Some(severity), Some(share)) => {
                    thresholds.insert(severity, share);
                }
                (None, _) | (_, None) => complete = false,
            }
        }
        complete.then_some(Self(thresholds))
    }

    fn to_json(&self) -> Json {
        self.0.iter().map(|(k, v)| (k.as_str().to_owned(), Json::from(*v))).collect()
    }
}
