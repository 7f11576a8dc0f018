//! Which rewards a run learns from, and what they read of the data.

mod by_model;

pub(crate) use by_model::RewardModel;

use crate::error::RunError;
use crate::model::{self, FoundModel};
use crate::plan::Plan;
use crate::plugins::{self, Used};
use forgelm_config::NamedPlugin;
use forgelm_data::{Prepared, read_columns};
use forgelm_model::MemoryPlan;
use forgelm_plugin::Registry;
use forgelm_tokenize::Tokenizer;
use forgelm_train::rollouts::{Judge, NamedReward, Rollouts};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Whether an answer ends as asked, and a little for its length.
const FORMAT: &str = "format_length";
/// Whether it is right, where the data says what is.
const RIGHT: &str = "math_answer";
/// The column that says what is right.
const GOLD: &str = "gold_answer";

/// How the policy of a run answers, and who judges it.
pub(crate) struct Answering {
    n_generations: usize,
    max_new_tokens: usize,
    context: usize,
    stop_ids: Vec<u32>,
    seed: u64,
    rewards: Vec<NamedReward>,
    used: Vec<Used>,
    columns: BTreeMap<u64, String>,
    /// The classifier that judges, if one does.
    pub(crate) model: Option<Arc<RewardModel>>,
    /// What the user should know.
    pub(crate) note: Option<String>,
}

impl Answering {
    /// Of a plan whose prompts are prepared.
    pub(crate) fn new(
        plan: &Plan,
        registry: &Registry,
        (found, model): (&FoundModel, Option<Arc<RewardModel>>),
        prepared: &Prepared,
    ) -> Result<Self, RunError> {
        let training = &plan.run.training;
        let positions = found.open.config().max_position_embeddings;
        let longest = longest_prompt(prepared, positions)?;
        let columns = columns(plan, prepared)?;
        let mut counted = Counted::default();
        let note = match &model {
            Some(model) => {
                check_readable(model, &columns, prepared)?;
                counted.rewards.push(RewardModel::reward(model));
                model.note()
            }
            None => counted.add_built_in(registry, &columns)?,
        };
        for reward in configured(plan) {
            counted.add(registry, &reward.name, &reward.options)?;
        }
        let Counted { rewards, used } = counted;
        Ok(Self {
            n_generations: training.grpo_num_generations,
            max_new_tokens: training.grpo_max_completion_length,
            context: (longest + training.grpo_max_completion_length).min(positions),
            stop_ids: model::stop_ids(&found.tokenizer, found.template.as_ref()),
            seed: training.seed,
            rewards,
            used,
            columns,
            model,
            note,
        })
    }

    /// As the steps take it.
    pub(crate) fn rollouts<'a>(&'a self, tokenizer: &'a Tokenizer) -> Rollouts<'a> {
        Rollouts {
            n_generations: self.n_generations,
            max_new_tokens: self.max_new_tokens,
            context: self.context,
            stop_ids: &self.stop_ids,
            judge: Judge { rewards: &self.rewards, tokenizer, columns: &self.columns },
            seed: self.seed,
        }
    }

    /// Every buffer that judging takes, by name and size; the classifier reads about as many tokens
    /// as the policy.
    pub(crate) fn memory_plan(&self) -> MemoryPlan {
        self.model.as_ref().map_or(MemoryPlan::default(), |model| model.memory_plan(self.context))
    }

    /// The rewards that are plugins, for the evidence.
    pub(crate) fn used(&self) -> &[Used] {
        &self.used
    }

    /// The rewards by name, for people.
    pub(crate) fn names(&self) -> String {
        self.rewards.iter().map(|reward| reward.name).collect::<Vec<_>>().join(" + ")
    }
}

/// Refuses prompts that the classifier cannot read.
fn check_readable(
    model: &RewardModel,
    columns: &BTreeMap<u64, String>,
    prepared: &Prepared,
) -> Result<(), RunError> {
    for (record, columns) in columns {
        if let Some(problem) = model.problem(columns) {
            let (file, line) = prepared.train.origin(*record).unwrap_or_default();
            return Err(RunError::Row { file, line, problem: format!("`prompt`: {problem}") });
        }
    }
    Ok(())
}

/// The rewards of a run, each once, and which of them are plugins.
#[derive(Default)]
struct Counted {
    rewards: Vec<NamedReward>,
    used: Vec<Used>,
}

impl Counted {
    /// The reward that every prompt has, and the one of prompts that say what is right, where the first
    /// does; what the user should know.
    fn add_built_in(
        &mut self,
        registry: &Registry,
        columns: &BTreeMap<u64, String>,
    ) -> Result<Option<String>, RunError> {
        self.add(registry, FORMAT, &[])?;
        let has_gold: Vec<bool> = columns.values().map(|columns| has_gold(columns)).collect();
        if !has_gold.first().is_some_and(|first| *first) {
            return Ok(None);
        }
        self.add(registry, RIGHT, &[])?;
        let n_without = has_gold.iter().filter(|has| !**has).count();
        Ok((n_without > 0)
            .then(|| format!("{n_without} prompts have no `{GOLD}`: no answer to them is right")))
    }

    fn add(&mut self, registry: &Registry, name: &str, given: &[String]) -> Result<(), RunError> {
        if self.rewards.iter().any(|other| other.name == name) {
            let problem = format!(
                "`{name}` counts already; expected each reward once\n  hint: take it out of the list"
            );
            return Err(RunError::Rewards { problem });
        }
        let options = plugins::options("plugins.rewards", given)?;
        let plugin = registry.reward(name)?;
        let reward = (plugin.build)(&options)?;
        self.rewards.push(NamedReward { name: plugin.name, reward });
        self.used.push(Used::of(plugin, &options));
        Ok(())
    }
}

/// `plugins.rewards` of a plan.
fn configured(plan: &Plan) -> &[NamedPlugin] {
    plan.run.plugins.as_ref().map_or(&[], |plugins| &plugins.rewards)
}

/// Rewards are for trainers whose policy answers: in another run they would be left out in silence.
pub(crate) fn check_none(plan: &Plan) -> Result<(), RunError> {
    let Some(first) = configured(plan).first() else { return Ok(()) };
    let problem = format!(
        "`{}` would reward nothing; expected a trainer that learns from the model's own answers\n  hint: \
         `training.trainer_type: grpo`",
        first.name
    );
    Err(RunError::Rewards { problem })
}

/// The longest prompt in tokens; each must leave room for an answer.
fn longest_prompt(prepared: &Prepared, positions: usize) -> Result<usize, RunError> {
    let train = &prepared.train;
    let mut longest = 1;
    for unit in 0..train.len() {
        let n_tokens = train.n_tokens(unit);
        if n_tokens >= positions {
            let (file, line) = train.origin(train.record(unit)).unwrap_or_default();
            let problem = format!(
                "`prompt` has {n_tokens} tokens, and the model knows {positions} positions: no \
                 room is left for an answer\n  hint: lower `model.max_length`, which keeps the end \
                 of a prompt"
            );
            return Err(RunError::Row { file, line, problem });
        }
        longest = longest.max(n_tokens);
    }
    Ok(longest)
}

/// The other columns of every prompt, by its record.
fn columns(plan: &Plan, prepared: &Prepared) -> Result<BTreeMap<u64, String>, RunError> {
    let train = &prepared.train;
    let mut places: BTreeMap<PathBuf, BTreeMap<u64, Vec<u64>>> = BTreeMap::new();
    for unit in 0..train.len() {
        let record = train.record(unit);
        if let Some((file, line)) = train.origin(record) {
            places.entry(file).or_default().entry(line).or_default().push(record);
        }
    }
    let mut columns = BTreeMap::new();
    for (file, records) in places {
        let lines: BTreeSet<u64> = records.keys().copied().collect();
        for (line, text) in read_columns(&file, &plan.run.data, &lines)? {
            for record in records.get(&line).into_iter().flatten() {
                columns.insert(*record, text.clone());
            }
        }
    }
    Ok(columns)
}

/// Whether a record says what is right: 0 and false do, null and an empty text do not.
fn has_gold(columns: &str) -> bool {
    let columns: Value = serde_json::from_str(columns).unwrap_or_default();
    !matches!(&columns[GOLD], Value::Null) && columns[GOLD] != ""
}

#[cfg(test)]
mod tests {
    use super::has_gold;

    #[test]
    fn zero_and_false_are_answers_and_nothing_is_none() {
        for columns in [r#"{"gold_answer": 0}"#, r#"{"gold_answer": false}"#] {
            assert!(has_gold(columns), "{columns}");
        }
        for columns in ["{}", r#"{"gold_answer": null}"#, r#"{"gold_answer": ""}"#] {
            assert!(!has_gold(columns), "{columns}");
        }
    }
}
