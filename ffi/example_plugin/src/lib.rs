//! A plugin in Rust: an evaluator, a quantizer and a merge method, each as small as it can be.
//! Nothing in it is `unsafe`, and one line at the end makes it a plugin.
#![forbid(unsafe_code)]

use forgelm_sdk::evaluator::{self, Evaluator, Report, Services, TextPair};
use forgelm_sdk::host::{self, Level};
use forgelm_sdk::kernels::Kernels;
use forgelm_sdk::merge_method::{self, MergeMethod, Needs, Pass, Piece, Scope, Tensor};
use forgelm_sdk::options::Reader;
use forgelm_sdk::quantizer::{self, Quantizer};
use forgelm_sdk::{Failed, OptionValue, OptionsError};
use serde_json::json;

/// How often the model thinks a true sentence likelier than a false one.
struct Truths;

const QUESTIONS: [(&str, &str, &str); 3] = [
    ("The sky is", " blue.", " a fish."),
    ("Two and two are", " four.", " a song."),
    ("Fire is", " hot.", " written."),
];

impl Evaluator for Truths {
    fn evaluate(&self, model: &Services<'_>) -> Result<Report, Failed> {
        let score = model.score.ok_or_else(|| Failed::new("truths needs `forgelm.score/1`"))?;
        let pairs: Vec<TextPair<'_>> = QUESTIONS
            .iter()
            .flat_map(|(prompt, good, bad)| {
                [TextPair { prompt, completion: good }, TextPair { prompt, completion: bad }]
            })
            .collect();
        let scores = score.score(&pairs)?;
        let n_right = scores.chunks(2).filter(|two| two[0].logp_sum > two[1].logp_sum).count();
        host::log(Level::Info, "truths", &format!("{n_right} of {}", QUESTIONS.len()));
        let mut report = Report::new();
        report.insert("n_right".to_owned(), json!(n_right));
        report.insert("n_questions".to_owned(), json!(QUESTIONS.len()));
        if let Some(generate) = model.generate {
            let options = [("max_new_tokens", OptionValue::Number(8.0))];
            let answers = generate.generate(&[QUESTIONS[0].0], &options)?;
            report.insert("answer".to_owned(), json!(answers[0]));
        }
        Ok(report)
    }
}

/// Bytes of a scale in front of each row.
const SCALE: usize = size_of::<f32>();
/// Rows of a task.
const ROWS: usize = 16;

/// One signed byte a number, one scale a row: `x = scale * code / 127`.
struct Absmax;

impl Quantizer for Absmax {
    fn bytes_per_row(&self, n_cols: usize) -> Result<usize, Failed> {
        match n_cols {
            0 => Err(Failed::new("a row of no numbers")),
            _ => Ok(SCALE + n_cols),
        }
    }

    /// On the host's threads, where it offers them; a row's bytes are the same either way.
    fn quantize(&self, rows: &[f32], n_cols: usize, bytes: &mut [u8]) -> Result<(), Failed> {
        let n_bytes = self.bytes_per_row(n_cols)?;
        let some_rows = |first: usize, bytes: &mut [u8]| {
            let rows = rows[first * n_cols..].chunks(n_cols);
            rows.zip(bytes.chunks_mut(n_bytes)).for_each(|(row, bytes)| quantize_row(row, bytes));
            Ok(())
        };
        match Kernels::of_host() {
            Some(kernels) => {
                kernels.for_chunks(bytes, ROWS * n_bytes, |i, bytes| some_rows(i * ROWS, bytes))
            }
            None => some_rows(0, bytes),
        }
    }

    fn dequantize(&self, bytes: &[u8], n_cols: usize, rows: &mut [f32]) -> Result<(), Failed> {
        for (row, bytes) in rows.chunks_mut(n_cols).zip(bytes.chunks(SCALE + n_cols)) {
            let (scale, codes) = bytes.split_at(SCALE);
            let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
            for (x, code) in row.iter_mut().zip(codes) {
                *x = scale * f32::from(code.cast_signed()) / 127.0;
            }
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "at most 127 in size")]
fn quantize_row(row: &[f32], bytes: &mut [u8]) {
    let scale = row.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    let (to_scale, codes) = bytes.split_at_mut(SCALE);
    to_scale.copy_from_slice(&scale.to_le_bytes());
    for (code, x) in codes.iter_mut().zip(row) {
        let rounded = if scale > 0.0 { (x / scale * 127.0).round() } else { 0.0 };
        *code = (rounded as i8).cast_unsigned();
    }
}

/// The mean of the inputs, as long as their mean: `y = m * norm(x_0) / norm(m)`.
struct Normed {
    weights: Vec<f64>,
}

const PASSES: [Pass; 1] = [Pass { n_sums: 2, n_facts: 1 }];

impl Normed {
    fn mean(&self, piece: &Piece<'_>, i: usize) -> f64 {
        let values = piece.inputs.iter().map(|input| f64::from(input[i]));
        self.weights.iter().zip(values).map(|(weight, x)| weight * x).sum()
    }
}

impl MergeMethod for Normed {
    fn reads_base(&self) -> bool {
        false
    }

    fn passes(&self) -> &[Pass] {
        &PASSES
    }

    fn measure(&self, _pass: usize, piece: &Piece<'_>, sums: &mut [f64]) -> Result<(), Failed> {
        for i in 0..piece.inputs[0].len() {
            sums[0] += f64::from(piece.inputs[0][i]).powi(2);
            sums[1] += self.mean(piece, i).powi(2);
        }
        Ok(())
    }

    fn conclude(
        &self,
        _pass: usize,
        tensor: &Tensor<'_>,
        sums: &[f64],
        facts: &mut [f64],
    ) -> Result<(), Failed> {
        if sums[1] <= 0.0 {
            return Err(Failed::new(format!("the mean of `{}` is zero", tensor.name)));
        }
        facts[0] = (sums[0] / sums[1]).sqrt();
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
    fn merge(&self, piece: &Piece<'_>, out: &mut [f32]) -> Result<(), Failed> {
        for (i, y) in out.iter_mut().enumerate() {
            *y = (piece.tensor.facts[0] * self.mean(piece, i)) as f32;
        }
        Ok(())
    }
}

fn normed(
    options: &[(&str, OptionValue)],
    weights: &[f64],
) -> Result<Box<dyn MergeMethod>, OptionsError> {
    Reader::new("normed", options).finish()?;
    let sum: f64 = weights.iter().sum();
    assert!(sum > 0.0, "a panic of a plugin: the weights add up to {sum}");
    Ok(Box::new(Normed { weights: weights.iter().map(|weight| weight / sum).collect() }))
}

const EVALUATORS: &[evaluator::Descriptor] = &[evaluator::Descriptor {
    name: "truths",
    summary: "share of true sentences that are likelier than false ones",
    source: "an example",
    build: |options| {
        Reader::new("truths", options).finish()?;
        Ok(Box::new(Truths))
    },
}];

const QUANTIZERS: &[quantizer::Descriptor] = &[quantizer::Descriptor {
    name: "absmax",
    summary: "one signed byte a number, one scale a row",
    source: "an example",
    build: |options| {
        Reader::new("absmax", options).finish()?;
        Ok(Box::new(Absmax))
    },
}];

const MERGE_METHODS: &[merge_method::Descriptor] = &[merge_method::Descriptor {
    name: "normed",
    summary: "mean of the tensors with the norm of the first",
    source: "an example",
    needs: Needs { scope: Scope::Elements, n_inputs_min: 1, n_inputs_max: 16 },
    build: normed,
}];

forgelm_sdk::export_plugin!(
    evaluators: EVALUATORS,
    quantizers: QUANTIZERS,
    merge_methods: MERGE_METHODS,
);
