//! Layer-wise updates: the same numbers as an update of everything at once, in less memory.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    reason = "a test"
)]

use std::sync::{Arc, Mutex, MutexGuard};

use forgelm_data::{Plan, PlanSettings, Role as SequenceRole, Sequence, Sequences};
use forgelm_kernels_api::Compute;
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{
    AttentionOptions, Decoder, Keep, MemoryStore, MlpOptions, ModelConfig, NormOptions, Role, Rope,
    RopeScaling, Selection, Trainable,
};
use forgelm_plugin_trainer::sft::SFT;
use forgelm_sdk::Failed;
use forgelm_sdk::trainer::{Loss, Scored, Trainer};
use forgelm_tensor::random::{Purpose, Stream};
use forgelm_train::feed::Feed;
use forgelm_train::optimizer::{
    GaloreSettings, Kind, Optimizer, OptimizerSettings, ProjectionType,
};
use forgelm_train::schedule::{Decay, Schedule};
use forgelm_train::session::{Cut, Parts, Session, Settings, StepError, memory_plan};
use forgelm_train::state::{Identity, State};

#[global_allocator]
static ALLOCATOR: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

/// One test at a time: the allocator counts for all.
static ALONE: Mutex<()> = Mutex::new(());

const N_STEPS: u64 = 4;
const N_LAYERS: usize = 12;

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Twelve layers of 64 x 256: a layer is a twelfth of what trains.
fn config(is_tied: bool) -> ModelConfig {
    ModelConfig {
        place: "tiny".to_owned(),
        model_type: "llama".to_owned(),
        hidden_size: 64,
        num_hidden_layers: N_LAYERS,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        intermediate_size: 256,
        vocab_size: 40,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::Default },
        sliding_window: None,
        attention: AttentionOptions {
            windowed_layers: vec![false; N_LAYERS],
            ..Default::default()
        },
        norms: NormOptions::default(),
        mlp: MlpOptions::default(),
        experts: None,
        embedding_scale: None,
        final_soft_cap: None,
        tie_word_embeddings: is_tied,
        max_position_embeddings: 64,
        bos_token_id: Some(0),
        eos_token_ids: vec![1],
        labels: None,
        float8: None,
    }
}

fn store(config: &ModelConfig) -> MemoryStore {
    let mut store = MemoryStore::named(config.module_names());
    let stream = Stream::new(7, Purpose::LoraInit);
    let head = (!config.tie_word_embeddings).then_some(Role::Head);
    for (i, role) in Role::always(config).into_iter().chain(head).enumerate() {
        let shape = role.shape(&config.dims());
        let n: usize = shape.iter().product();
        let size = shape.get(1).map_or(0.1, |&k| (3.0 / k as f32).sqrt());
        let offset = if shape.len() == 1 { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..n)
            .map(|j| offset + (2.0 * stream.uniform(i as u64, j as u64) - 1.0) * size)
            .collect();
        store.insert(&role.hf_name(config.module_names()), &shape, &values);
    }
    store
}

fn sequences(n: usize) -> Sequences {
    let stream = Stream::new(1, Purpose::Sampling);
    let sequence = |i: usize| Sequence {
        record: i as u64,
        role: SequenceRole::Sole,
        tokens: (0..9 + i % 4)
            .map(|t| (stream.uniform(i as u64, t as u64) * 40.0) as u32)
            .collect(),
        trained: (0..9 + i % 4).map(|t| t > 2).collect(),
    };
    Sequences::from((0..n).map(sequence).collect::<Vec<_>>())
}

fn settings(kind: Kind, layerwise: bool) -> OptimizerSettings {
    let galore = GaloreSettings {
        rank: 4,
        update_proj_gap: 3,
        scale: 0.25,
        projection: ProjectionType::Std,
        target_modules: None,
        layerwise,
    };
    OptimizerSettings { galore: Some(galore), ..OptimizerSettings::new(kind, 0.01) }
}

/// A loss that is finite and a gradient that is not.
struct TooSteep;

impl Trainer for TooSteep {
    fn loss(&self, scored: &Scored<'_>, dlogp: &mut [f32]) -> Result<Loss, Failed> {
        dlogp.fill(f32::MAX);
        Ok(Loss { loss_sum: 1.0, n_terms: scored.logp.len() as u64, ..Loss::default() })
    }
}

/// What a run left: the numbers, the losses and norms, and the most memory that its steps took
/// beside what was there before the session.
struct Ran {
    params: Vec<f32>,
    reports: Vec<(f64, f64)>,
    /// What the plan says of it.
    planned: usize,
    peak: usize,
    error: Option<StepError>,
}

fn run(
    (config, selection): (&ModelConfig, &Selection),
    optimizer: OptimizerSettings,
    keep: Keep,
    trainer: &dyn Trainer,
) -> Ran {
    // A second one takes memory of its own only if it comes to do something.
    let ops = Arc::new(Cpu::new(1));
    let store = store(config);
    let mut decoder = Decoder::from_store(config.clone(), &store, ops, Compute::F32).unwrap();
    let mut adapter = Trainable::zeroed(selection.clone(), config).unwrap();
    decoder.begin(&mut adapter, &store).unwrap();
    let (train, validation) = (sequences(8), Sequences::default());
    let plan_settings = PlanSettings {
        seed: 0,
        shuffle: true,
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: 1,
        num_train_epochs: 1,
        max_steps: Some(N_STEPS),
        packed_to: None,
    };
    let plan = Plan::new(plan_settings, &train.lengths());
    let slices = adapter.slices();
    let planned = Optimizer::planned_memory(&optimizer, &slices, 2).unwrap();
    let feed = Feed::new(SFT.needs, (&train, &validation), &plan);
    let size = feed.largest_step(Cut { batch_size: 2, accumulation: 1 });
    let planned =
        memory_plan(config, &adapter, planned, size, keep, decoder.engine()).total_bytes();
    let optimizer = Optimizer::new(optimizer, &slices).unwrap();
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let mut session = Session::new(Parts {
        decoder: &decoder,
        trainer,
        feed,
        keep,
        settings: Settings {
            schedule: Schedule::new(Decay::Constant, 1e-2, 0.0, N_STEPS),
            max_grad_norm: 1e9,
            noise_alpha: None,
            seed: 0,
        },
        adapter,
        optimizer,
        state: State::new(N_STEPS, Identity::default()),
        team: None,
    })
    .unwrap();
    let (mut reports, mut error) = (Vec::new(), None);
    for _ in 0..N_STEPS {
        match session.step() {
            Ok(report) => reports.push((report.loss, report.grad_norm)),
            Err(failed) => {
                error = Some(failed);
                break;
            }
        }
    }
    let peak = ALLOCATOR.peak_usage() - before;
    Ran { params: session.adapter().params().to_vec(), reports, planned, peak, error }
}

fn sft() -> Box<dyn Trainer> {
    (SFT.build)(&[]).unwrap()
}

fn layers() -> Selection {
    let names = |layer: usize| {
        ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
            .map(|module| format!("model.layers.{layer}.{module}.weight"))
    };
    Selection::Weights((0..N_LAYERS).flat_map(names).collect())
}

#[test]
fn layers_one_by_one_give_the_bits_of_all_at_once() {
    let _alone = alone();
    for is_tied in [false, true] {
        let config = config(is_tied);
        for selection in [layers(), Selection::Everything] {
            for kind in [Kind::AdamW, Kind::AdamW8bit, Kind::Adafactor] {
                for keep in [Keep::Everything, Keep::LayerInputs] {
                    let of = |layerwise| {
                        let settings = settings(kind, layerwise);
                        run((&config, &selection), settings, keep, sft().as_ref())
                    };
                    let (whole, by_layer) = (of(false), of(true));
                    let case = format!("{kind:?}, tied {is_tied}, {keep:?}");
                    assert!(whole.params == by_layer.params, "{case}");
                    for (a, b) in whole.reports.iter().zip(&by_layer.reports) {
                        assert_eq!(a.0.to_bits(), b.0.to_bits(), "{case}");
                        assert!((a.1 - b.1).abs() < 1e-9 * a.1, "{case}: {a:?} and {b:?}");
                    }
                    assert_eq!(by_layer.reports.len(), N_STEPS as usize, "{case}");
                }
            }
        }
    }
}

/// The gradient of twelve layers becomes that of one.
#[test]
fn the_gradient_of_one_layer_is_all_that_is_held() {
    let _alone = alone();
    let config = config(false);
    let of = |layerwise| {
        let settings = settings(Kind::AdamW, layerwise);
        let ran = run((&config, &layers()), settings, Keep::LayerInputs, sft().as_ref());
        [ran.planned, ran.peak]
    };
    let (whole, by_layer) = (of(false), of(true));
    let layer_bytes = (2 * 64 * 64 + 3 * 64 * 256) * 4;
    let saved = (N_LAYERS - 1) * layer_bytes;
    assert_eq!(whole[0] - by_layer[0], saved, "planned");
    let measured = whole[1] - by_layer[1];
    assert!(measured > saved * 49 / 50, "saved {measured} of {saved} bytes");
}

#[test]
fn a_gradient_that_is_not_finite_is_named_before_its_layer_is_updated() {
    let _alone = alone();
    let config = config(false);
    let settings = settings(Kind::AdamW, true);
    let ran = run((&config, &layers()), settings, Keep::Everything, &TooSteep);
    let error = ran.error.expect("the gradient is not finite");
    let text = error.to_string();
    let StepError::NotFinite { step, what, layer, is_torn, .. } = error else { panic!("{text}") };
    assert_eq!((step, layer, is_torn), (1, Some(N_LAYERS - 1), false), "{text}");
    assert!(what.starts_with("the gradient of `model.layers.11."), "{text}");
    assert!(text.contains("nothing was updated"), "{text}");
}
