//! A tiny run: the golden tiny model, sixteen short sequences, a session.

use forgelm_data::{Plan, PlanSettings, Sequence, Sequences};
use forgelm_kernels_api::{Compute, Ops};
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{
    Adapter, Decoder, Holders, Keep, LoadOptions, LoraConfig, ModelFiles, OpenModel,
};
use forgelm_plugin_trainer::{dpo::DPO, grpo::GRPO, kto::KTO, orpo::ORPO, sft::SFT, simpo::SIMPO};
use forgelm_sdk::Failed;
use forgelm_sdk::reward::{Answer, Reward};
use forgelm_sdk::trainer::{Descriptor, Needs, Records, Role, Trainer};
use forgelm_tensor::random::{Purpose, Stream};
use forgelm_tokenize::Tokenizer;
use forgelm_train::feed::{Feed, Mismatched};
use forgelm_train::optimizer::{Optimizer, OptimizerSettings};
use forgelm_train::references::{References, Request};
use forgelm_train::rollouts::{Judge, NamedReward, Rollouts};
use forgelm_train::schedule::{Decay, Schedule};
use forgelm_train::session::{Cut, Parts, Session, Settings, Team};
use forgelm_train::state::{Identity, State};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub const LEARNING_RATE: f64 = 5e-3;
const SEED: u64 = 7;

/// An objective and what it asks for.
#[derive(Clone, Copy)]
pub struct Objective<'a> {
    pub trainer: &'a dyn Trainer,
    pub needs: Needs,
    pub learning_rate: f64,
}

impl Objective<'_> {
    pub fn of(descriptor: &Descriptor) -> Objective<'static> {
        let trainer = (descriptor.build)(&[]).expect("it needs no options");
        let needs = descriptor.needs;
        Objective { trainer: Box::leak(trainer), needs, learning_rate: LEARNING_RATE }
    }
}

pub fn sft() -> Objective<'static> {
    Objective::of(&SFT)
}

/// The objectives that learn from answers, by name: from two kinds of them, and from their own.
pub fn of_answers() -> Vec<(&'static str, Objective<'static>)> {
    [DPO, SIMPO, ORPO, KTO, GRPO].iter().map(|of| (of.name, Objective::of(of))).collect()
}

/// Sixteen pairs of a prompt of 2 to 5 tokens with two answers of 2 to 9 tokens, the chosen one of
/// lower token ids.
fn pairs() -> Vec<Sequence> {
    let answer = |i: u32, role: Role, len: u32, first: u32| {
        let prompt = (0..2 + i % 4).map(|t| 100 + (i * 31 + t * 7) % 150);
        let tokens: Vec<u32> =
            prompt.chain((0..len).map(|t| first + (i * 5 + t * 13) % 40)).collect();
        let n_prompt = tokens.len() - len as usize;
        let trained = (0..tokens.len()).map(|t| t >= n_prompt).collect();
        Sequence { record: u64::from(i), role, tokens, trained }
    };
    let pair =
        |i| [answer(i, Role::Chosen, 2 + i % 8, 5), answer(i, Role::Rejected, 9 - i % 7, 300)];
    (0..16).flat_map(pair).collect()
}

/// One answer of each pair, by turns the chosen and the rejected one.
fn labelled() -> Vec<Sequence> {
    pairs().chunks_exact(2).enumerate().map(|(i, pair)| pair[i % 2].clone()).collect()
}

/// Sixteen prompts of 2 to 5 tokens.
fn prompts() -> Vec<Sequence> {
    let prompt = |pair: &[Sequence]| {
        let n = pair[0].tokens.len() - pair[0].n_trained();
        let (tokens, trained) = (pair[0].tokens[..n].to_vec(), vec![false; n]);
        Sequence { role: Role::Rollout, tokens, trained, ..pair[0] }
    };
    pairs().chunks_exact(2).map(prompt).collect()
}

/// The data of an objective, and the first quarter of it again to validate on.
fn data(records: Records) -> [Sequences; 2] {
    match records {
        Records::Text => [sequences().into(), sequences()[..4].to_vec().into()],
        Records::Preference => [Sequences::pairs(pairs()), Sequences::pairs(pairs()[..8].to_vec())],
        Records::Labelled => [labelled().into(), labelled()[..4].to_vec().into()],
        Records::Prompt => [prompts().into(), Sequences::default()],
    }
}

/// Sixteen sequences of 3 to 18 tokens, the first tokens of each not trained.
pub fn sequences() -> Vec<Sequence> {
    let token = |i: u32, t: u32| 5 + (i * 37 + t * (11 + i % 3)) % 500;
    (0..16)
        .map(|i| {
            let len = 3 + i;
            Sequence {
                record: u64::from(i),
                role: Role::Sole,
                tokens: (0..len).map(|t| token(i, t)).collect(),
                trained: (0..len).map(|t| t > len / 3).collect(),
            }
        })
        .collect()
}

fn tiny_llama() -> PathBuf {
    tiny("tiny-llama")
}

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/models").join(name)
}

pub fn tiny_decoder(n_threads: usize) -> Decoder {
    tiny_decoder_of(n_threads, None)
}

/// That of a process which has a part of each weight.
pub fn tiny_decoder_of(n_threads: usize, holders: Option<Holders>) -> Decoder {
    tiny_decoder_on(Arc::new(Cpu::new(n_threads)), holders)
}

/// That of other kernels.
pub fn tiny_decoder_on(ops: Arc<dyn Ops>, holders: Option<Holders>) -> Decoder {
    tiny_open("tiny-llama", ops, holders).1
}

/// A golden model of this name.
pub fn tiny_open(name: &str, ops: Arc<dyn Ops>, holders: Option<Holders>) -> (OpenModel, Decoder) {
    let open = OpenModel::open(&ModelFiles::Folder(tiny(name))).expect("the golden model opens");
    let options = LoadOptions::dense(Compute::F32);
    let decoder = open.load_part(ops, options, holders).expect("the golden model loads");
    (open, decoder)
}

pub fn plan_settings(batch_size: usize, accumulation: usize) -> PlanSettings {
    PlanSettings {
        seed: SEED,
        shuffle: true,
        per_device_train_batch_size: batch_size,
        gradient_accumulation_steps: accumulation,
        num_train_epochs: 1,
        max_steps: Some(30),
        packed_to: None,
    }
}

/// What a session borrows lives as long as the test: a few kilobytes, never freed.
fn leaked<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

pub fn optimizer(adapter: &Adapter, settings: OptimizerSettings) -> Optimizer {
    Optimizer::new(settings, &adapter.slices()).expect("nothing is projected")
}

fn fresh_adapter(decoder: &Decoder, dropout: f32) -> Adapter {
    let config = LoraConfig { dropout, ..LoraConfig::new(4, 8.0, &["q_proj", "down_proj"]) };
    Adapter::new(config, decoder.config(), &Stream::new(SEED, Purpose::LoraInit))
        .expect("the modules exist")
}

/// What the reference model says of all the data.
fn references(decoder: &Decoder, feed: &Feed<'_>) -> References {
    let dir = tempfile::tempdir().expect("a folder");
    let initial = fresh_adapter(decoder, 0.0);
    let request = Request { decoder, initial: &initial, feed, model: "tiny", dir: dir.path() };
    References::prepare(&request, &mut |_, _| true).expect("the data can be read").references
}

/// Answers to a prompt.
const GROUP: usize = 4;

/// A step of as many answers as it would have sequences.
fn of_prompts(settings: PlanSettings) -> PlanSettings {
    let n = settings.per_device_train_batch_size * settings.gradient_accumulation_steps;
    PlanSettings {
        per_device_train_batch_size: n / GROUP,
        gradient_accumulation_steps: 1,
        ..settings
    }
}

/// Small letters in an answer.
struct SmallLetters;

impl Reward for SmallLetters {
    fn judge(&self, answers: &[Answer<'_>]) -> Result<Vec<Option<f64>>, Failed> {
        let is_small = |c: char| f64::from(u8::from(c.is_ascii_lowercase()));
        let reward = |answer: &Answer<'_>| Some(answer.completion.chars().map(is_small).sum());
        Ok(answers.iter().map(reward).collect())
    }
}

/// Answers of at most 8 tokens, rewarded for their small letters.
fn rollouts() -> Rollouts<'static> {
    let tokenizer = Tokenizer::from_folder(&tiny_llama()).expect("the golden tokenizer opens");
    Rollouts {
        n_generations: GROUP,
        max_new_tokens: 8,
        context: 16,
        stop_ids: &[2],
        judge: Judge {
            rewards: leaked(vec![NamedReward {
                name: "small_letters",
                reward: Box::new(SmallLetters),
            }]),
            tokenizer: leaked(tokenizer),
            columns: leaked(BTreeMap::new()),
        },
        seed: SEED,
    }
}

pub struct Run<'a> {
    pub session: Session<'a>,
}

impl<'a> Run<'a> {
    pub fn new(decoder: &'a Decoder, settings: PlanSettings, dropout: f32) -> Self {
        Self::with_trainer(decoder, settings, dropout, sft())
    }

    pub fn with_trainer(
        decoder: &'a Decoder,
        settings: PlanSettings,
        dropout: f32,
        objective: Objective<'a>,
    ) -> Self {
        let adapter = fresh_adapter(decoder, dropout);
        let optimizer = optimizer(&adapter, OptimizerSettings::adamw(0.01));
        let state = State::new(30, Identity::default());
        Self::from_parts(decoder, settings, objective, (adapter, optimizer, state))
    }

    pub fn from_parts(
        decoder: &'a Decoder,
        settings: PlanSettings,
        objective: Objective<'a>,
        parts: (Adapter, Optimizer, State),
    ) -> Self {
        Self::with_noise(decoder, settings, objective, parts, (None, Keep::Everything))
    }

    pub fn with_noise(
        decoder: &'a Decoder,
        settings: PlanSettings,
        Objective { trainer, needs, learning_rate }: Objective<'a>,
        (adapter, optimizer, state): (Adapter, Optimizer, State),
        (noise_alpha, keep): (Option<f64>, Keep),
    ) -> Self {
        let objective = Objective { trainer, needs, learning_rate };
        let (parts, more) = ((adapter, optimizer, state), (noise_alpha, keep));
        Self::with_team(decoder, settings, objective, parts, more, None)
    }

    /// One of the processes of a run.
    pub fn with_team(
        decoder: &'a Decoder,
        settings: PlanSettings,
        Objective { trainer, needs, learning_rate }: Objective<'a>,
        (adapter, optimizer, state): (Adapter, Optimizer, State),
        (noise_alpha, keep): (Option<f64>, Keep),
        team: Option<Team<'a>>,
    ) -> Self {
        let [train, validation] = leaked(data(needs.records));
        let cut = Cut {
            batch_size: settings.per_device_train_batch_size,
            accumulation: settings.gradient_accumulation_steps,
        };
        let settings = if needs.rollouts { of_prompts(settings) } else { settings };
        let plan = leaked(Plan::new(settings, &train.lengths()));
        let mut feed = Feed::new(needs, (train, validation), plan);
        if Feed::needs_mismatched(needs) {
            let n_records = [train.len(), validation.len()];
            feed.mismatched = Some(leaked(Mismatched::new(n_records, 64, SEED, true)));
        }
        if needs.reference {
            feed.references = Some(leaked(references(decoder, &feed)));
        }
        if needs.rollouts {
            feed.rollouts = Some(rollouts());
        }
        let mut session = Session::new(Parts {
            decoder,
            trainer,
            feed,
            keep,
            settings: Settings {
                schedule: Schedule::new(Decay::Linear, learning_rate, 0.1, plan.n_steps()),
                max_grad_norm: 1.0,
                noise_alpha,
                seed: SEED,
            },
            adapter,
            optimizer,
            state,
            team,
        })
        .expect("there is memory for a tiny run");
        // Others are told by the leader.
        if team.is_none_or(|team| team.group.is_leader()) {
            session.allocate(cut, keep).expect("there is memory for a tiny run");
        }
        Self { session }
    }

    /// Takes `n` steps.
    pub fn steps(&mut self, n: usize) -> &Adapter {
        for _ in 0..n {
            self.session.step().expect("finite");
        }
        self.session.adapter()
    }
}
