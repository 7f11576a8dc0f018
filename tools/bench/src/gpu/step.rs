//! A LoRA step on all linear layers, as a run makes it: forward, backward, clipping, AdamW. Beside
//! each stands what the ceilings of the same call predict.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use forgelm_data::Sequence;
use forgelm_kernels_api::Failure;
use forgelm_kernels_api::{Compute, Ops};
use forgelm_model::{ALL_LINEAR, Decoder, LoraConfig};
use serde_json::{Map, Value, json};

use super::Context;
use super::checks::message_of;
use super::device::Opened;
use super::finding::{Finding, Table};
use super::prediction::{self, Rates};
use super::shapes::{QWEN3_0_6B, QWEN3_8B, RANK, Shape, TINY};
use super::weights::RandomStore;
use crate::train::{Refused, sequence, steps as train};

/// Sequences of a micro-batch, and their length.
#[derive(Clone, Copy)]
pub(crate) struct Batch {
    pub n_sequences: usize,
    pub len: usize,
}

/// The batch that others publish, and the one that the prediction of the study is of.
const BATCHES: [Batch; 2] =
    [Batch { n_sequences: 2, len: 2048 }, Batch { n_sequences: 4, len: 2048 }];
const TINY_BATCH: Batch = Batch { n_sequences: 2, len: 16 };
/// Steps of a measurement; the first takes memory and loads kernels, and is left out.
const STEPS: u64 = 5;
/// Layers of the two models whose difference is measured.
const FEW_LAYERS: usize = 1;
const MORE_LAYERS: usize = 5;

pub(crate) fn batches(is_tiny: bool) -> Vec<Batch> {
    if is_tiny { vec![TINY_BATCH] } else { BATCHES.to_vec() }
}

/// Models of which whole steps are measured.
pub(crate) fn models(is_tiny: bool) -> Vec<Shape> {
    if is_tiny { vec![TINY] } else { vec![QWEN3_0_6B, QWEN3_8B] }
}

impl Batch {
    fn n_tokens(self) -> usize {
        self.n_sequences * self.len
    }

    fn name(self) -> String {
        format!("{} x {}", self.n_sequences, self.len)
    }

    fn sequences(self, vocabulary: usize) -> Vec<Sequence> {
        (0..self.n_sequences).map(|i| sequence(i, self.len, 0, vocabulary)).collect()
    }
}

/// The best of the steps, in seconds.
struct Measured {
    seconds: f64,
    loss: f64,
}

/// A layer alone: what a model of more layers takes longer, for each layer that it has more.
pub(crate) fn layer(context: &Context<'_>) -> Result<Finding, String> {
    let opened = context.open()?;
    let shape = if context.is_tiny() { TINY } else { QWEN3_8B };
    let mut report = Report::new(context);
    let [few, more] = [FEW_LAYERS, MORE_LAYERS].map(|n| decoder(&opened, &shape, n));
    let (few, more) = (few?, more?);
    for batch in batches(context.is_tiny()) {
        if !context.has_time_for(&batch.name(), &mut report.notes) {
            continue;
        }
        let pair = measure(&few, batch).and_then(|few| Ok((few, measure(&more, batch)?)));
        let found = pair.map(|(few, more)| Measured {
            seconds: (more.seconds - few.seconds) / (MORE_LAYERS - FEW_LAYERS) as f64,
            loss: more.loss,
        });
        let rates = report.rates(batch);
        let predicted = rates.map(|rates| prediction::layer(&shape, batch.len, &rates).seconds());
        report.add(&format!("a layer of {}", shape.name), batch, found, predicted);
    }
    report.notes.push(format!(
        "A layer is the difference of models of {MORE_LAYERS} and {FEW_LAYERS} layers, over {}.",
        MORE_LAYERS - FEW_LAYERS
    ));
    Ok(report.finding())
}

/// Whole steps.
pub(crate) fn steps(context: &Context<'_>) -> Result<Finding, String> {
    let opened = context.open()?;
    let mut report = Report::new(context);
    for shape in models(context.is_tiny()) {
        if !context.has_time_for(shape.name, &mut report.notes) {
            continue;
        }
        let room = opened.cuda.free_memory().unwrap_or(0);
        let weights = 2 * shape.config(shape.layers)?.n_parameters() as u64;
        if weights > room {
            report.notes.push(format!(
                "Skipped: {} has {weights} bytes of weights, and {room} bytes are free.",
                shape.name
            ));
            continue;
        }
        let model = match decoder(&opened, &shape, shape.layers) {
            Ok(model) => model,
            Err(refused) => {
                report.refuse(shape.name, refused);
                continue;
            }
        };
        for batch in batches(context.is_tiny()) {
            let what = format!("{}, {}", shape.name, batch.name());
            if !context.has_time_for(&what, &mut report.notes) {
                continue;
            }
            let found = measure(&model, batch);
            let rates = report.rates(batch);
            let predicted =
                rates.map(|rates| prediction::step(&shape, batch.len, &rates).seconds());
            report.add(shape.name, batch, found, predicted);
        }
    }
    Ok(report.finding())
}

/// A model with random weights.
fn decoder(opened: &Opened, shape: &Shape, n_layers: usize) -> Result<Decoder, Refused> {
    let load = || {
        let config = shape.config(n_layers)?;
        let ops = Arc::clone(&opened.cuda) as Arc<dyn Ops>;
        let store = RandomStore::new(&config);
        let decoder = Decoder::from_store(config, &store, ops, Compute::Bf16);
        Ok(decoder.map_err(|error| error.to_string())?)
    };
    caught(load)
}

/// Steps of a model. What does not fit says so.
fn measure(decoder: &Decoder, batch: Batch) -> Result<Measured, Refused> {
    let run = || {
        let lora = LoraConfig::new(RANK, 2.0 * RANK as f64, &[ALL_LINEAR]);
        let sequences = batch.sequences(decoder.config().vocab_size);
        let mut best = Measured { seconds: f64::INFINITY, loss: f64::NAN };
        train(decoder, lora, &sequences, STEPS, &mut |step, loss, times| {
            if step > 0 {
                best.seconds = best.seconds.min(times.wall());
            }
            best.loss = loss;
        })?;
        Ok(best)
    };
    caught(run)
}

/// What a device has no room for within a step, and what fails.
fn caught<T>(run: impl FnOnce() -> Result<T, Refused>) -> Result<T, Refused> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let message = message_of(panic.as_ref());
        Err(match panic.downcast_ref::<Failure>() {
            Some(failure) if failure.is_out_of_memory() => Refused::Memory(message),
            _ => Refused::Other(message),
        })
    })
}

/// The table in the making.
struct Report {
    ceilings: Option<Finding>,
    kernels: Option<Finding>,
    table: Table,
    notes: Vec<String>,
    problems: Vec<String>,
    numbers: Map<String, Value>,
}

impl Report {
    fn new(context: &Context<'_>) -> Self {
        let before = |part| Finding::read(&context.arguments.parts, part);
        let columns =
            ["what", ">batch", ">ms", ">tokens/s", ">predicted tokens/s", ">% of it", ">loss"];
        Self {
            ceilings: before("ceilings"),
            kernels: before("kernels"),
            table: Table::new(&columns),
            notes: vec![format!(
                "LoRA of rank {RANK} on all linear layers, random weights in bfloat16, every token \
                 trained, all activations kept; the best of {} steps on the host's clock, each of \
                 them to the end of the device's work. The prediction is a sum of products, \
                 attention, elementwise traffic and sides of adapters at the rates of the tables \
                 above (`tools/bench/src/gpu/prediction.rs`).",
                STEPS - 1
            )],
            problems: Vec::new(),
            numbers: Map::new(),
        }
    }

    fn rates(&self, batch: Batch) -> Option<Rates> {
        let (ceilings, kernels) = (self.ceilings.as_ref()?, self.kernels.as_ref()?);
        Rates::found(ceilings, kernels, batch.n_tokens(), batch.len)
    }

    /// A model that is too large for this device is no fault of anything.
    fn refuse(&mut self, name: &str, refused: Refused) {
        match refused {
            Refused::Memory(reason) => self.notes.push(format!("Skipped: {name}: {reason}.")),
            Refused::Other(problem) => self.problems.push(format!("{name}: {problem}")),
        }
    }

    /// `predicted` is in seconds a token.
    fn add(
        &mut self,
        what: &str,
        batch: Batch,
        found: Result<Measured, Refused>,
        predicted: Option<f64>,
    ) {
        let name = format!("{what}, {}", batch.name());
        let found = match found {
            Ok(found) => found,
            Err(refused) => return self.refuse(&name, refused),
        };
        let rate = batch.n_tokens() as f64 / found.seconds;
        let none = || "none".to_owned();
        self.table.row(&[
            what.to_owned(),
            batch.name(),
            format!("{:.2}", found.seconds * 1e3),
            format!("{rate:.0}"),
            predicted.map_or_else(none, |seconds| format!("{:.0}", 1.0 / seconds)),
            predicted.map_or_else(none, |seconds| format!("{:.0}", 100.0 * rate * seconds)),
            format!("{:.3}", found.loss),
        ]);
        if !found.loss.is_finite() {
            self.problems.push(format!("{name}: the loss is {}", found.loss));
        }
        self.numbers.insert(
            name,
            json!({
                "seconds": found.seconds,
                "tokens_per_second": rate,
                "predicted_tokens_per_second": predicted.map(|seconds| 1.0 / seconds),
            }),
        );
    }

    fn finding(self) -> Finding {
        Finding {
            tables: vec![self.table],
            notes: self.notes,
            problems: self.problems,
            numbers: Value::Object(self.numbers),
        }
    }
}
