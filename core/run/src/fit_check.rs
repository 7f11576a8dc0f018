//! `--fit-check`: whether a run fits into memory, its largest parts, and the cheapest change that
//! makes it fit. Nothing is fetched, no weight is read, nothing is written.
//!
//! The sum is the one that the run itself is held to ([`crate::footprint`]). When the model is not
//! on this machine, its sizes are guessed from its name by the published rule of thumb.

#![expect(clippy::cast_precision_loss, reason = "sizes are shown, and compared with shares")]

use crate::data;
use crate::distributed::Strategy;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::footprint;
use crate::kernels::Chosen;
use crate::memory::{self, Room};
use crate::model;
use crate::plan::Plan;
use crate::plugins::Plugins;
use crate::recovery::{Ladder, Rung};
use crate::rewards::RewardModel;
use crate::settings;
use crate::training;
use crate::training::room::{Inputs, change};
use crate::training::tokenized::TokenizedData;
use forgelm_config::{Run, TargetModules};
use forgelm_kernels_api::{Compute, Ops};
use forgelm_model::{LinearStorage, MemoryPlan};
use forgelm_train::optimizer::Optimizer;
use forgelm_train::session::Cut;
use serde_json::{Value, json};
use std::fmt::Write as _;

mod by_name;

pub(crate) use by_name::qlora_largest;

/// Above this share of what there is, a run is tight.
const FITS: f64 = 0.85;
/// Above this one, it does not fit.
const TIGHT: f64 = 0.95;
/// Numbers of processes that are looked at: with these the bits are those of one.
const PROCESSES: [usize; 3] = [2, 4, 8];
const GIB: f64 = (1_u64 << 30) as f64;

/// Whether a run fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// At most 85 % of what there is.
    Fits,
    /// At most 95 %.
    Tight,
    /// More.
    Oom,
    /// The system does not say what there is.
    Unknown,
}

impl Verdict {
    fn of(total: u64, available: Option<u64>) -> Self {
        let Some(available) = available else { return Self::Unknown };
        let share = total as f64 / (available as f64).max(1.0);
        match share {
            share if share <= FITS => Self::Fits,
            share if share <= TIGHT => Self::Tight,
            _ => Self::Oom,
        }
    }

    /// As the report says it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fits => "FITS",
            Self::Tight => "TIGHT",
            Self::Oom => "OOM",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// A change of the config and the memory that the run then needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What to write.
    pub text: String,
    /// Sum of the plan then, in bytes.
    pub total: u64,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct FitCheck {
    /// Whether the run fits.
    pub verdict: Verdict,
    /// Every part of its memory.
    pub memory: MemoryPlan,
    /// What this process can have in all, in bytes, and what sets that.
    pub available: Option<Room>,
    /// Whether the model's sizes are guessed.
    pub is_guess: bool,
    /// Weights of the base model.
    pub n_params: u64,
    /// How they are held.
    pub quant_scheme: &'static str,
    /// Changes that need less memory, when there is little.
    pub recommendations: Vec<Change>,
    /// The first of them, or of their combinations, that fits.
    pub cheapest_change: Option<Change>,
    /// What each process takes where several share the run: how many, and the sum of the plan then.
    pub on_processes: Vec<(usize, u64)>,
    /// What the numbers rest on.
    pub notes: Vec<String>,
}

/// Checks a run.
///
/// # Errors
/// If something other than the model or the data stands in the way: those become notes.
pub fn fit_check(
    plan: &Plan,
    plugins: &Plugins,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<FitCheck, RunError> {
    let held = footprint::held_now();
    match on_this_machine((plan, plugins), env, observer) {
        Ok(check) => Ok(check),
        Err(error) => {
            observer.observe(&Event::Detail(error.chain()));
            let reason = error.to_string();
            let reason = reason.lines().next().unwrap_or_default();
            let mut check = by_name::estimate(&plan.run, held);
            check.notes.push(format!("model or data could not be read here: {reason}"));
            Ok(check)
        }
    }
}

/// From the model's own sizes and the data's own lengths.
fn on_this_machine(
    (plan, plugins): (&Plan, &Plugins),
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<FitCheck, RunError> {
    let method = (plan, plugins);
    let model_request = model::request_of(plan, true);
    let sources = data::find(plan, true, env, observer)?;
    let found = model::find(&model_request, env, observer)?;
    let now = training::template_now(plan, env.clock.utc());
    let reward_model = RewardModel::find(method, true, now, env, observer)?;
    let models = (&found, reward_model);
    let data = TokenizedData::new(method, &sources, models, now, env, observer)?;
    let adapter = training::new_trainable(plan, &found)?;
    let Chosen { ops, fallback } = plugins.choose()?;
    if let Some(fallback) = &fallback {
        fallback.tell(observer);
    }
    let compute = model::compute(model_request.compute, ops.as_ref());
    let options = settings::load_options(&plan.run, compute);
    let held = footprint::held_beside(ops.as_ref());
    let n_threads = ops.n_threads();
    let optimizer = settings::optimizer(&plan.run);
    let optimizer = Optimizer::planned_memory(&optimizer, &adapter.slices(), n_threads)?;
    let inputs = Inputs {
        plan,
        data: &data,
        found: &found,
        adapter: &adapter,
        optimizer,
        options,
        ops: ops.as_ref(),
        held,
        n_holders: 1,
        parts_on_host: false,
        n_ranks: 1,
    };
    let configured = inputs.configured();
    let ladder = Ladder::of(&plan.run);
    let mut check = FitCheck::of(
        inputs.memory(ladder.first(configured)),
        held,
        found.open.config().n_parameters() as u64,
        Some(ops.as_ref()),
    );
    check.quant_scheme = match (options.linear, options.compute) {
        (LinearStorage::FourBit(_), _) => "4bit",
        (_, Compute::F32) => "fp32",
        (_, Compute::Bf16) => "bf16",
    };
    let [statistics, _] = &data.prepared.statistics;
    check.notes.push(format!(
        "measured on the data: the longest row has {} tokens, the largest micro-batch is planned",
        statistics.longest
    ));
    check.advise(&inputs, configured);
    check.share_out(&inputs, ladder.first(configured));
    Ok(check)
}

impl FitCheck {
    fn of(memory: MemoryPlan, held: u64, n_params: u64, ops: Option<&dyn Ops>) -> Self {
        let room = ops.map_or_else(memory::room, memory::room_of);
        let available = room.map(|room| Room { bytes: room.bytes.saturating_add(held), ..room });
        Self {
            verdict: Verdict::of(memory.total_bytes() as u64, available.map(|room| room.bytes)),
            memory,
            available,
            is_guess: false,
            n_params,
            quant_scheme: "fp32",
            recommendations: Vec::new(),
            cheapest_change: None,
            on_processes: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Sum of the plan, in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.memory.total_bytes() as u64
    }

    fn available_bytes(&self) -> Option<u64> {
        self.available.map(|room| room.bytes)
    }

    /// Recommendations, cheapest first, and the first that fits.
    fn advise(&mut self, inputs: &Inputs<'_>, configured: Cut) {
        if matches!(self.verdict, Verdict::Fits | Verdict::Unknown) {
            return;
        }
        // A layer-wise optimizer takes one micro-batch a step.
        let is_recovering = !inputs.optimizer.is_layerwise;
        let any = Ladder { gradient_checkpointing: None, is_recovering, min_batch_size: 1 };
        let changes = any.rungs(configured).skip(1).map(|rung: Rung| Change {
            text: change(configured, rung),
            total: inputs.memory(rung).total_bytes() as u64,
        });
        self.recommendations = changes.filter(|change| change.total < self.total()).collect();
        let fits =
            |change: &&Change| Verdict::of(change.total, self.available_bytes()) != Verdict::Oom;
        self.cheapest_change = self.recommendations.iter().find(fits).cloned();
        let run = &inputs.plan.run;
        if run.model.max_length > 1024 {
            self.notes.push("half of `model.max_length` halves the longest rows".to_owned());
        }
        if run.lora.r > 16 {
            self.notes.push("`lora.r` of 8 to 16 is often enough".to_owned());
        }
    }

    /// What each of several processes takes, where the config has a strategy for them: of as many as
    /// the micro-batches of a step allow.
    fn share_out(&mut self, inputs: &Inputs<'_>, rung: Rung) {
        let Some(strategy) = Strategy::of(inputs.plan) else { return };
        let is_device = inputs.ops.free_memory().is_some();
        let updates_elsewhere = strategy.updates_on_host && is_device;
        let n_most = inputs.n_micro_batches(rung.cut);
        for n in PROCESSES.into_iter().filter(|n| *n <= n_most) {
            let optimizer = strategy.optimizer_memory(inputs.optimizer, n, updates_elsewhere);
            let n_holders = strategy.n_holders(n);
            // Where devices are not linked, their parts are in main memory too.
            let parts_on_host = strategy.holding.is_some_and(|holding| holding.is_offloaded);
            let inputs = Inputs { optimizer, n_holders, parts_on_host, n_ranks: n, ..*inputs };
            let memory = inputs.memory(rung);
            self.on_processes.push((n, memory.total_bytes() as u64));
        }
        self.notes.push(
            "the estimate is that of one process; several on one machine share its memory"
                .to_owned(),
        );
    }

    /// The document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let sum = |names: &[&str]| self.sum(names);
        let (base, adapter, optimizer) = (sum(&[WEIGHTS]), sum(&ADAPTER), sum(&[MOMENTS]));
        let rest = self.total() - base - adapter - optimizer;
        let largest: Vec<Value> = footprint::largest(&self.memory, 5)
            .into_iter()
            .map(|buffer| json!({"name": buffer.name, "gb": gib(buffer.bytes as u64)}))
            .collect();
        let shown =
            |change: &Change| json!({"change": change.text, "estimated_gb": gib(change.total)});
        let on_processes: Vec<Value> = self
            .on_processes
            .iter()
            .map(|(n, total)| json!({"processes": n, "estimated_gb_each": gib(*total)}))
            .collect();
        json!({
            "success": true,
            "verdict": self.verdict.name(),
            "estimated_gb": gib(self.total()),
            "available_gb": self.available_bytes().map(gib),
            "hypothetical": self.is_guess || self.available.is_none(),
            "ceiling": self.available.map(|room| room.ceiling.name()),
            "breakdown": {
                "base_model_gb": gib(base),
                "lora_adapter_gb": gib(adapter),
                "optimizer_state_gb": gib(optimizer),
                "activations_gb": gib(rest - sum(&[PROGRAM])),
                "galore_buffers_gb": 0.0,
                "program_gb": gib(sum(&[PROGRAM])),
                "total_estimated_gb": gib(self.total()),
                "quant_scheme": self.quant_scheme,
                "estimated_param_count_b": (self.n_params as f64 / 1e7).round() / 100.0,
                "estimation_caveat": self.caveat(),
            },
            "largest": largest,
            "recommendations": self.recommendations.iter().map(shown).collect::<Vec<_>>(),
            "cheapest_change": self.cheapest_change.as_ref().map(shown),
            "on_processes": on_processes,
            "notes": self.notes,
        })
    }

    /// The report for a person.
    #[must_use]
    pub fn to_text(&self) -> String {
        let line = "-".repeat(72);
        let mut text = format!("{line}\nmemory of this run\n{line}\n");
        let mut row = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<12}{value}");
        };
        row("estimate", mib(self.total()));
        match self.available {
            Some(room) => {
                row("available", format!("{}, by {}", mib(room.bytes), room.ceiling.name()));
                let (total, bytes) = (self.total(), room.bytes);
                let margin = if total <= bytes {
                    format!("{} to spare", mib(bytes - total))
                } else {
                    format!("{} short", mib(total - bytes))
                };
                row("margin", margin);
            }
            None => row("available", "not known".to_owned()),
        }
        row("verdict", self.verdict.name().to_owned());
        for (n, total) in &self.on_processes {
            row(&format!("on {n}"), format!("{} each", mib(*total)));
        }
        let _ = writeln!(text, "largest parts");
        for buffer in footprint::largest(&self.memory, 6) {
            let _ = writeln!(text, "  {:<40}{:>12}", buffer.name, mib(buffer.bytes as u64));
        }
        if let Some(change) = &self.cheapest_change {
            let _ = writeln!(
                text,
                "cheapest change that fits: {} ({})",
                change.text,
                mib(change.total)
            );
        }
        for (i, change) in self.recommendations.iter().enumerate() {
            let _ = writeln!(text, "  {}. {}: {}", i + 1, change.text, mib(change.total));
        }
        for note in self.notes.iter().map(String::as_str).chain([self.caveat()]) {
            let _ = writeln!(text, "note: {note}");
        }
        text.push_str(&line);
        text.push('\n');
        text
    }

    fn caveat(&self) -> &'static str {
        if self.is_guess {
            "sizes are guessed from the model's name"
        } else {
            "the peak of the run is within 10 % of this sum"
        }
    }

    fn sum(&self, names: &[&str]) -> u64 {
        let named = self.memory.buffers.iter().filter(|b| names.contains(&b.name.as_str()));
        named.map(|buffer| buffer.bytes as u64).sum()
    }
}

const WEIGHTS: &str = "packed weights";
const ADAPTER: [&str; 4] = [
    "trained numbers",
    "trained numbers as the kernels read them",
    "gradient of the trained numbers",
    "gradient of a layer",
];
const MOMENTS: &str = "optimizer state";
const PROGRAM: &str = "program, tokenizer and data";

/// GiB with two decimals.
fn gib(bytes: u64) -> f64 {
    (bytes as f64 / GIB * 100.0).round() / 100.0
}

fn mib(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

/// Modules that an adapter of this config has in each layer.
fn n_target_modules(run: &Run) -> u64 {
    match &run.lora.target_modules {
        TargetModules::AllLinear => 7,
        TargetModules::Suffixes(names) => names.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_follow_the_shares() {
        for (total, verdict) in [
            (850, Verdict::Fits),
            (851, Verdict::Tight),
            (950, Verdict::Tight),
            (951, Verdict::Oom),
        ] {
            assert_eq!(Verdict::of(total, Some(1000)), verdict, "{total}");
        }
        assert_eq!(Verdict::of(1, None), Verdict::Unknown);
    }
}
