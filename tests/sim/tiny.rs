//! A tiny run: the golden tiny model, sixteen short sequences, a session.

use forgelm_data::{Plan, PlanSettings, Sequence, Sequences};
use forgelm_kernels_api::Compute;
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{Adapter, Decoder, Keep, LoraConfig, ModelFiles, OpenModel};
use forgelm_plugin_trainer::sft::SFT;
use forgelm_sdk::trainer::{Role, Trainer};
use forgelm_tensor::random::{Purpose, Stream};
use forgelm_train::optimizer::{Optimizer, OptimizerSettings};
use forgelm_train::schedule::{Decay, Schedule};
use forgelm_train::session::{Parts, Session, Settings};
use forgelm_train::state::{Identity, State};
use std::path::Path;
use std::sync::Arc;

pub const LEARNING_RATE: f64 = 5e-3;
const SEED: u64 = 7;

/// The objective that ships.
pub fn sft() -> &'static dyn Trainer {
    Box::leak((SFT.build)(&[]).expect("it has no options"))
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

pub fn tiny_decoder(n_threads: usize) -> Decoder {
    let dir =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/models/tiny-llama");
    let open = OpenModel::open(&ModelFiles::Folder(dir)).expect("the golden model opens");
    open.load(Arc::new(Cpu::new(n_threads)), Compute::F32).expect("the golden model loads")
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
        trainer: &'a dyn Trainer,
    ) -> Self {
        let config = LoraConfig { dropout, ..LoraConfig::new(4, 8.0, &["q_proj", "down_proj"]) };
        let adapter = Adapter::new(config, decoder.config(), &Stream::new(SEED, Purpose::LoraInit))
            .expect("the modules exist");
        let optimizer = optimizer(&adapter, OptimizerSettings::adamw(0.01));
        let state = State::new(30, Identity::default());
        Self::from_parts(decoder, settings, trainer, (adapter, optimizer, state))
    }

    pub fn from_parts(
        decoder: &'a Decoder,
        settings: PlanSettings,
        trainer: &'a dyn Trainer,
        parts: (Adapter, Optimizer, State),
    ) -> Self {
        Self::with_noise(decoder, settings, trainer, parts, (None, Keep::Everything))
    }

    pub fn with_noise(
        decoder: &'a Decoder,
        settings: PlanSettings,
        trainer: &'a dyn Trainer,
        (adapter, optimizer, state): (Adapter, Optimizer, State),
        (noise_alpha, keep): (Option<f64>, Keep),
    ) -> Self {
        let train = leaked(Sequences::from(sequences()));
        let validation = leaked(Sequences::from(sequences()[..4].to_vec()));
        let plan = leaked(Plan::new(settings, &train.lengths()));
        let session = Session::new(Parts {
            decoder,
            trainer,
            train,
            validation,
            plan,
            keep,
            settings: Settings {
                schedule: Schedule::new(Decay::Linear, LEARNING_RATE, 0.1, plan.n_steps()),
                max_grad_norm: 1.0,
                noise_alpha,
                seed: SEED,
            },
            adapter,
            optimizer,
            state,
        })
        .expect("there is memory for a tiny run");
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
