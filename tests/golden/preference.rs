//! The objectives of preference and reward learning against what TRL computed, from tokens to the
//! gradient of the adapter (`tests/data/golden/pref`; tolerances as stated there).
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a test"
)]

#[path = "model/batch.rs"]
mod batch;

use std::path::PathBuf;
use std::sync::Arc;

use batch::Batch;
use forgelm_artifact::safetensors::SafetensorsFile;
use forgelm_kernels_api::Compute;
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{Activations, Adapter, Decoder, Keep, ModelFiles, OpenModel, Pass, StepSize};
use forgelm_sdk::OptionValue;
use forgelm_sdk::trainer::{self, Loss, Role, Sequence, StepTotals};
use serde_json::Value;

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden").join(path)
}

fn tensors(path: &str) -> SafetensorsFile {
    SafetensorsFile::open(&golden(path)).expect("golden data is a safetensors file")
}

/// A tensor as rows of numbers.
fn rows(file: &SafetensorsFile, name: &str) -> Vec<Vec<i64>> {
    let width = file.tensor(name).expect("the tensor is there").shape[1];
    batch::integers(file, name).chunks(width).map(<[i64]>::to_vec).collect()
}

/// A tensor of floats, flat.
fn floats(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    file.tensor(name).and_then(|t| t.to_f32().ok()).expect("the tensor is there")
}

/// Answers as a trainer sees them, and as the model does.
#[derive(Default)]
struct Answers {
    batch: Batch,
    sequences: Vec<Sequence>,
    trained: Vec<u8>,
}

impl Answers {
    /// Adds a sequence; `is_answer` marks the tokens of the answer. With `prompts` those before
    /// it are scored too.
    fn push(&mut self, role: Role, record: usize, ids: &[i64], is_answer: &[bool], prompts: bool) {
        let labels: Vec<i64> = ids
            .iter()
            .zip(is_answer)
            .map(|(&id, &answer)| if answer || prompts { id } else { -100 })
            .collect();
        let start = self.batch.labels.len();
        self.batch.push(ids, &labels);
        let len = self.batch.labels.len() - start;
        self.sequences.push(Sequence { role, record: record as u64, start, len });
        let scored = is_answer.iter().skip(1).filter(|answer| **answer || prompts);
        self.trained.extend(scored.map(|&answer| u8::from(answer)));
    }

    /// Rows of `<prefix>input_ids` without their padding, the answer by `<prefix>completion_mask`.
    fn push_masked(
        &mut self,
        file: &SafetensorsFile,
        prefix: &str,
        roles: &[Role],
        records: &[usize],
    ) {
        let part = |name: &str| rows(file, &format!("{prefix}{name}"));
        let (ids, attended, answers) =
            (part("input_ids"), part("attention_mask"), part("completion_mask"));
        for (i, (&role, &record)) in roles.iter().zip(records).enumerate() {
            let len = attended[i].iter().filter(|&&m| m == 1).count();
            let is_answer: Vec<bool> = answers[i][..len].iter().map(|&m| m == 1).collect();
            self.push(role, record, &ids[i][..len], &is_answer, false);
        }
    }

    /// Rows of `<prefix>_input_ids`, the answer by `<prefix>_labels`.
    fn labelled(file: &SafetensorsFile, prefix: &str) -> Vec<(Vec<i64>, Vec<bool>)> {
        let part = |name: &str| rows(file, &format!("{prefix}_{name}"));
        let (ids, attended, labels) = (part("input_ids"), part("attention_mask"), part("labels"));
        ids.into_iter()
            .zip(attended)
            .zip(labels)
            .map(|((mut ids, attended), labels)| {
                ids.truncate(attended.iter().filter(|&&m| m == 1).count());
                let is_answer = labels[..ids.len()].iter().map(|&l| l != -100).collect();
                (ids, is_answer)
            })
            .collect()
    }
}

impl Answers {
    /// The same, with the answers of one record side by side.
    fn side_by_side(self) -> Self {
        let mut order: Vec<usize> = (0..self.sequences.len()).collect();
        order.sort_by_key(|&i| (self.sequences[i].record, self.sequences[i].role as u32));
        let mut sorted = Self::default();
        for i in order {
            let segment = self.batch.segments[i];
            let sequence = self.sequences[i];
            let tokens = &self.batch.tokens[segment.start..segment.start + segment.len];
            let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
            let mut is_answer = vec![false; ids.len()];
            for row in sequence.rows() {
                let predicted = self.batch.rows[row] as usize + 1 - segment.start;
                is_answer[predicted] = self.trained[row] == 1;
            }
            sorted.push(sequence.role, sequence.record as usize, &ids, &is_answer, false);
        }
        sorted
    }
}

/// The pairs of the trainers that tokenize the two answers apart.
fn labelled_pairs(file: &SafetensorsFile, prompts: bool) -> Answers {
    let mut answers = Answers::default();
    let pairs = Answers::labelled(file, "chosen").into_iter();
    for (record, ((ids, is_answer), other)) in
        pairs.zip(Answers::labelled(file, "rejected")).enumerate()
    {
        answers.push(Role::Chosen, record, &ids, &is_answer, prompts);
        answers.push(Role::Rejected, record, &other.0, &other.1, false);
    }
    answers
}

/// What comes with rollouts.
#[derive(Default)]
struct Rollouts {
    advantage: Option<Vec<f32>>,
    old_logp: Option<Vec<f32>>,
}

/// The loss of a batch, its log-probabilities and the gradient of the adapter of the mean loss.
struct Measured {
    loss: Loss,
    logp: Vec<f32>,
    ref_logp: Vec<f32>,
    grads: Vec<f32>,
    adapter: Adapter,
}

impl Measured {
    fn mean(&self) -> f64 {
        self.loss.loss_sum / self.loss.n_terms as f64
    }

    fn metric(&self, name: &str) -> f64 {
        let metric = self.loss.metrics.iter().find(|m| m.name == name).expect("it is measured");
        metric.sum / metric.n_terms as f64
    }
}

fn measure(
    name: &str,
    options: &[(&str, OptionValue)],
    answers: &Answers,
    with: &Rollouts,
) -> Measured {
    let files = ModelFiles::Folder(golden("models/tiny-llama"));
    let open = OpenModel::open(&files).expect("the folder is good");
    let decoder = open.load(Arc::new(Cpu::new(2)), Compute::F32).expect("the weights are good");
    let policy = golden("pref/policy");
    let adapter = Adapter::load(&policy, decoder.config()).expect("PEFT wrote it").adapter;
    let ref_logp = log_probabilities(&decoder, None, &answers.batch);

    let descriptor = forgelm_plugin_trainer::TRAINERS.iter().find(|d| d.name == name);
    let trainer = (descriptor.expect("it is listed").build)(options).expect("good options");
    let mut step = StepTotals::default();
    step.add(&answers.sequences, &answers.trained);
    let mut acts = activations(&decoder, Some(&adapter));
    let n = answers.batch.labels.len();
    let (mut logp, mut dlogp) = (vec![0.0; n], vec![0.0; n]);
    let pass = Pass { adapter: Some(&adapter), batch: answers.batch.input(), dropout: None };
    decoder.forward(&pass, &mut acts);
    decoder.logprobs(&pass, &mut acts, answers.batch.scored(), &mut logp);
    let scored = trainer::Scored {
        sequences: &answers.sequences,
        labels: &answers.batch.labels,
        trained: &answers.trained,
        logp: &logp,
        ref_logp: Some(&ref_logp),
        advantage: with.advantage.as_deref(),
        old_logp: with.old_logp.as_deref(),
        step: &step,
    };
    let loss = trainer.loss(&scored, &mut dlogp).expect("none of ours gives up");
    let mut grads = vec![0.0; adapter.params().len()];
    decoder.backward(&pass, &mut acts, answers.batch.scored(), &dlogp, &mut grads);
    for g in &mut grads {
        *g /= loss.n_terms as f32;
    }
    Measured { loss, logp, ref_logp, grads, adapter }
}

fn activations(decoder: &Decoder, adapter: Option<&Adapter>) -> Activations {
    let size = StepSize { tokens_max: 512, scored_rows_max: 512 };
    Activations::new(decoder, adapter, size, Keep::Everything).expect("there is memory")
}

fn log_probabilities(decoder: &Decoder, adapter: Option<&Adapter>, batch: &Batch) -> Vec<f32> {
    let mut acts = activations(decoder, adapter);
    let mut logp = vec![0.0; batch.labels.len()];
    let pass = Pass { adapter, batch: batch.input(), dropout: None };
    decoder.forward(&pass, &mut acts);
    decoder.logprobs(&pass, &mut acts, batch.scored(), &mut logp);
    logp
}

/// Loss, metrics that both name, and the gradient of every tensor of the adapter.
fn check(case: &str, measured: &Measured, metrics: &[&str]) {
    let text = std::fs::read_to_string(golden(&format!("pref/{case}/golden.json")));
    let about: Value = serde_json::from_str(&text.expect("it is in the tree")).expect("JSON");
    let near = |name: &str, found: f64, expected: &Value, tolerance: f64| {
        let expected = expected.as_f64().expect("a number");
        let bound = tolerance * (1.0 + expected.abs());
        assert!((found - expected).abs() <= bound, "{case}: {name} is {found}, not {expected}");
    };
    near("loss", measured.mean(), &about["loss"], 1e-5);
    for name in metrics {
        near(name, measured.metric(name), &about["metrics"][name], 1e-4);
    }
    let expected = tensors(&format!("pref/{case}/grads.safetensors"));
    let slices = measured.adapter.slices();
    assert_eq!(expected.names().count(), slices.len(), "{case}: another number of tensors");
    for slice in slices {
        let expected = floats(&expected, &slice.name);
        let found = &measured.grads[slice.range];
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let size = norm(&mut expected.iter().map(|&v| f64::from(v)));
        let distance =
            norm(&mut found.iter().zip(&expected).map(|(&a, &b)| f64::from(a) - f64::from(b)));
        assert!(distance <= 1e-4 * size, "{case}: {} is {} off", slice.name, distance / size);
    }
}

const PAIR_METRICS: [&str; 4] =
    ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"];

fn dpo_answers(case: &str) -> Answers {
    let file = tensors(&format!("pref/{case}/batch.safetensors"));
    let mut rows = Answers::default();
    let roles = [[Role::Chosen; 4], [Role::Rejected; 4]].concat();
    rows.push_masked(&file, "", &roles, &[0, 1, 2, 3, 0, 1, 2, 3]);
    rows.side_by_side()
}

#[test]
fn dpo_is_trls() {
    let number = OptionValue::Number;
    let sigmoid =
        measure("dpo", &[("beta", number(0.1))], &dpo_answers("dpo"), &Rollouts::default());
    check("dpo", &sigmoid, &PAIR_METRICS);
    check("dpo", &sigmoid, &["logps/chosen", "logps/rejected"]);
    let options = [("beta", number(0.1)), ("loss_type", OptionValue::Text("ipo".to_owned()))];
    let ipo = measure("dpo", &options, &dpo_answers("dpo-ipo"), &Rollouts::default());
    check("dpo-ipo", &ipo, &PAIR_METRICS);
}

#[test]
fn simpo_is_trls() {
    let answers = labelled_pairs(&tensors("pref/simpo/batch.safetensors"), false);
    let options = [("beta", OptionValue::Number(2.0)), ("gamma", OptionValue::Number(0.5))];
    let measured = measure("simpo", &options, &answers, &Rollouts::default());
    check("simpo", &measured, &PAIR_METRICS);
    check("simpo", &measured, &["logps/chosen", "logps/rejected"]);
}

#[test]
fn orpo_is_trls() {
    let answers = labelled_pairs(&tensors("pref/orpo/batch.safetensors"), true);
    let options = [("beta", OptionValue::Number(0.1))];
    let measured = measure("orpo", &options, &answers, &Rollouts::default());
    check("orpo", &measured, &PAIR_METRICS);
    check("orpo", &measured, &["nll_loss", "log_odds_ratio", "log_odds_chosen"]);
}

#[test]
fn kto_is_trls() {
    let file = tensors("pref/kto/batch.safetensors");
    let label = batch::integers(&file, "label");
    let roles: Vec<Role> =
        label.iter().map(|&l| if l == 1 { Role::Chosen } else { Role::Rejected }).collect();
    let mut answers = Answers::default();
    answers.push_masked(&file, "", &roles, &[0, 1, 2, 3]);
    answers.push_masked(&file, "KL_", &[Role::Kl; 4], &[0, 1, 2, 3]);
    let options = [("beta", OptionValue::Number(0.1))];
    let measured = measure("kto", &options, &answers, &Rollouts::default());
    check("kto", &measured, &["kl", "rewards/chosen", "rewards/rejected"]);
    check("kto", &measured, &["logps/chosen", "logps/rejected"]);
}

#[test]
fn grpo_is_trls() {
    let number = OptionValue::Number;
    let flag = OptionValue::Flag;
    let word = |text: &str| OptionValue::Text(text.to_owned());
    let cases = [
        ("grpo", vec![("loss_type", word("grpo")), ("kl_bias_correction", flag(true))]),
        ("grpo-plainkl", vec![("loss_type", word("grpo"))]),
        ("grpo-dapo", vec![("epsilon_high", number(0.28)), ("kl_bias_correction", flag(true))]),
    ];
    for (case, mut options) in cases {
        options.push(("beta", number(0.04)));
        let file = tensors(&format!("pref/{case}/batch.safetensors"));
        let part = |name: &str| rows(&file, name);
        let (prompts, prompt_masks) = (part("prompt_ids"), part("prompt_mask"));
        let (ids, masks) = (part("completion_ids"), part("completion_mask"));
        let mut answers = Answers::default();
        for i in 0..ids.len() {
            let kept = prompts[i].iter().zip(&prompt_masks[i]).filter(|(_, m)| **m == 1);
            let mut tokens: Vec<i64> = kept.map(|(&id, _)| id).collect();
            let mut is_answer = vec![false; tokens.len()];
            let len = masks[i].iter().filter(|&&m| m == 1).count();
            tokens.extend_from_slice(&ids[i][..len]);
            is_answer.resize(tokens.len(), true);
            answers.push(Role::Rollout, 0, &tokens, &is_answer, false);
        }
        // Their rows are padded to the longest answer; ours are not.
        let unpadded = |name: &str| -> Vec<f32> {
            let (values, masks) = (floats(&file, name), masks.concat());
            values.iter().zip(&masks).filter(|(_, m)| **m == 1).map(|(&v, _)| v).collect()
        };
        let with = Rollouts {
            advantage: Some(floats(&file, "advantages")),
            old_logp: Some(unpadded("old_per_token_logps")),
        };
        let measured = measure("grpo", &options, &answers, &with);
        for (found, name) in [
            (&measured.logp, "policy_per_token_logps"),
            (&measured.ref_logp, "ref_per_token_logps"),
        ] {
            for (a, b) in found.iter().zip(&unpadded(name)) {
                assert!((a - b).abs() <= 1e-4, "{case}: {name} {a}, not {b}");
            }
        }
        check(case, &measured, &["kl", "clip_ratio/low_mean", "clip_ratio/high_mean"]);
    }
}
