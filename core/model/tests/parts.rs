//! A model of which each process has a part: the same bits as the whole model, with as much memory as
//! its parts need, whoever runs how many passes.
#![expect(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a test"
)]
#![expect(clippy::print_stdout, reason = "what is skipped is skipped aloud")]

#[path = "../../../kernels/cuda/tests/support/opened.rs"]
mod opened;
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use forgelm_collective::threads::{Thread, ranks};
use forgelm_collective::{CollectiveError, Group, Settings};
use forgelm_kernels_api::{Compute, Ops, Rounding};
use forgelm_kernels_cpu::Cpu;
use forgelm_kernels_cuda::Cuda;
use forgelm_kernels_reference::Reference;
use forgelm_model::{
    ALL_LINEAR, Activations, Adapter, CachedSequence, Decoder, FourBitStorage, Holders, Keep,
    KvCache, LinearStorage, LoadOptions, LoraConfig, LoraInit, MemoryStore, ModelConfig, Pass,
    Prefetch, Scored, Selection, StepSize, TensorStore as _, Trainable,
};
use forgelm_tensor::random::{Purpose, Stream};
use forgelm_tensor::{FourBit, ScaleStorage};
use support::{Batch, noise, tiny_config, tiny_store};

/// Layers that outweigh vectors, and rows that are whole blocks.
fn config(is_tied: bool) -> ModelConfig {
    ModelConfig {
        hidden_size: 64,
        head_dim: 16,
        intermediate_size: 128,
        tie_word_embeddings: is_tied,
        ..tiny_config()
    }
}

fn cpu() -> Arc<dyn Ops> {
    Arc::new(Cpu::new(1))
}

fn four_bit() -> LoadOptions {
    let (kind, scales, rounding) = (FourBit::Nf4, ScaleStorage::Double, Rounding::Exact);
    let linear = LinearStorage::FourBit(FourBitStorage { kind, scales, rounding });
    LoadOptions { compute: Compute::Bf16, linear }
}

/// What trains, and numbers that it might have come to.
fn trainable(
    selection: impl Into<Selection>,
    decoder: &mut Decoder,
    store: &MemoryStore,
) -> Trainable {
    let stream = Stream::new(3, Purpose::LoraInit);
    let mut adapter = Adapter::new(selection, decoder.config(), &stream).unwrap();
    decoder.begin_alone(&mut adapter, store).unwrap();
    let n = adapter.n_params();
    for (p, add) in adapter.params_mut().iter_mut().zip(noise(77, n, 0.01)) {
        *p += add;
    }
    decoder.refresh(&mut adapter);
    adapter
}

/// The bits of log-probabilities and of a gradient, both ways in which the head is asked.
fn step_bits(decoder: &Decoder, adapter: &Trainable, keep: Keep, seed: u64) -> Vec<u32> {
    let batch = Batch::random(seed, &[7, 1, 12], decoder.config().vocab_size);
    let (rows, labels) = batch.scored();
    let size = StepSize { tokens_max: 20, scored_rows_max: 20 };
    let mut acts = Activations::new(decoder, Some(adapter), size, keep).unwrap();
    let pass = Pass { adapter: Some(adapter), batch: batch.input(), dropout: None };
    let scored = Scored { rows: &rows, labels: &labels };
    let mut bits = Vec::new();
    for is_formed in [true, false] {
        let mut logp = vec![0.0; rows.len()];
        decoder.forward(&pass, &mut acts);
        match is_formed {
            true => decoder.logprobs_with_gradient(&pass, &mut acts, scored, &mut logp),
            false => decoder.logprobs(&pass, &mut acts, scored, &mut logp),
        }
        let mut grads = vec![0.0; adapter.n_params()];
        let dlogp = vec![-1.0; rows.len()];
        decoder.backward(&pass, &mut acts, scored, &dlogp, &mut grads);
        assert!(grads.iter().any(|&g| g != 0.0));
        bits.extend(logp.iter().chain(&grads).map(|v| v.to_bits()));
    }
    bits
}

/// The bits of logits after a prompt and some tokens, without the adapter.
fn generation_bits(decoder: &Decoder, n_tokens: usize) -> Vec<u32> {
    let size = StepSize { tokens_max: 20, scored_rows_max: 20 };
    let mut acts = Activations::new(decoder, None, size, Keep::Nothing).unwrap();
    let mut cache = KvCache::new(decoder, 40);
    let mut logits = vec![0.0; decoder.config().vocab_size];
    let mut bits = Vec::new();
    for i in 0..n_tokens {
        let tokens: &[u32] = if i == 0 { &[3, 1, 4, 1, 5] } else { &[9] };
        let mut sequences = [CachedSequence { tokens, cache: &mut cache }];
        decoder.forward_cached(None, &mut sequences, &mut acts, &mut logits);
        bits.extend(logits.iter().map(|v| v.to_bits()));
    }
    bits
}

fn on_ranks<T: Send>(threads: Vec<Thread>, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    on_ranks_with(threads, Settings::with_deadline(Duration::from_secs(60)), work)
}

fn on_ranks_with<T: Send>(
    threads: Vec<Thread>,
    settings: Settings,
    work: impl Fn(Group) -> T + Sync,
) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let start = |thread: Thread| {
            scope.spawn(move || work(Group::open(|| Ok(Box::new(thread)), settings).unwrap()))
        };
        let handles: Vec<_> = threads.into_iter().map(start).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

fn holders(group: &Group, prefetch: Prefetch) -> Holders {
    let (everyone, members) = (group.members(), group.members());
    Holders { everyone, members, prefetch, link: None, call: b"come".to_vec() }
}

/// What is run on the whole model and on parts of it.
struct Case {
    config: ModelConfig,
    options: LoadOptions,
    selection: Selection,
    keep: Keep,
}

impl Case {
    fn lora(is_tied: bool, options: LoadOptions) -> Self {
        let selection = LoraConfig::new(4, 8.0, &[ALL_LINEAR]).into();
        Self { config: config(is_tied), options, selection, keep: Keep::Everything }
    }

    fn load(&self, ops: Arc<dyn Ops>, holders: Option<Holders>) -> (Decoder, Trainable) {
        let (config, store) = (self.config.clone(), tiny_store(&self.config));
        let loaded = Decoder::from_store_as(config, &store, ops, self.options, holders);
        let mut decoder = loaded.unwrap();
        let adapter = trainable(self.selection.clone(), &mut decoder, &store);
        (decoder, adapter)
    }

    /// Ranks run as many steps as they have, of batches of their own, and all give the bits that one
    /// process gives for these.
    fn assert_same_bits(
        &self,
        ops: &(dyn Fn() -> Arc<dyn Ops> + Sync),
        prefetch: Prefetch,
        n: usize,
    ) {
        let (whole, adapter) = self.load(ops(), None);
        let expected = |rank: usize| {
            let of_steps = (0..n - rank)
                .flat_map(|i| step_bits(&whole, &adapter, self.keep, (10 * rank + i) as u64));
            of_steps.collect::<Vec<u32>>()
        };
        let got = on_ranks(ranks(n), |group| {
            let rank = group.rank();
            let (decoder, adapter) = self.load(ops(), Some(holders(&group, prefetch)));
            let of_steps = (0..n - rank)
                .flat_map(|i| step_bits(&decoder, &adapter, self.keep, (10 * rank + i) as u64));
            let bits: Vec<u32> = of_steps.collect();
            decoder.accompany().unwrap();
            let n_bytes = decoder.weights_bytes();
            group.end().unwrap();
            (bits, n_bytes)
        });
        for (rank, (bits, n_bytes)) in got.iter().enumerate() {
            assert!(*bits == expected(rank), "rank {rank} of {n}, {prefetch:?}");
            let most = whole.weights_bytes() / n + whole.weights_bytes() / 10;
            assert!(*n_bytes <= most, "{n_bytes} bytes on rank {rank} of {n}: at most {most}");
        }
    }
}

#[test]
fn parts_of_a_model_give_the_bits_of_the_whole() {
    for n in [1, 2, 3, 4] {
        for prefetch in [Prefetch::Before, Prefetch::AfterInBackward, Prefetch::Never] {
            Case::lora(n % 2 == 0, LoadOptions::dense(Compute::F32))
                .assert_same_bits(&cpu, prefetch, n);
        }
    }
}

#[test]
fn also_in_other_formats_and_where_other_things_train() {
    let dora = LoraConfig { dora: true, ..LoraConfig::new(4, 8.0, &["q_proj", "down_proj"]) };
    let init = LoraInit::PrincipalComponents;
    let pissa = LoraConfig { init, ..LoraConfig::new(4, 8.0, &[ALL_LINEAR]) };
    let high = LoraConfig::new(4, 8.0, &["model.layers.2.self_attn.o_proj"]);
    let name = |last: &str| format!("model.layers.1.{last}.weight");
    let weights = vec![name("mlp.up_proj"), "lm_head.weight".to_owned(), name("input_layernorm")];
    let dense = LoadOptions::dense(Compute::Bf16);
    let cases = [
        (four_bit(), LoraConfig::new(4, 8.0, &[ALL_LINEAR]).into(), Keep::LayerInputs),
        (dense, dora.into(), Keep::LayerInputs),
        (dense, pissa.into(), Keep::Everything),
        (dense, high.into(), Keep::Everything),
        (dense, Selection::Weights(weights), Keep::Everything),
    ];
    for (options, selection, keep) in cases {
        let case = Case { config: config(false), options, selection, keep };
        case.assert_same_bits(&cpu, Prefetch::Before, 2);
        case.assert_same_bits(&|| Arc::new(Reference), Prefetch::Never, 2);
    }
}

/// Parts are in the memory of the host, and what comes of them on the device.
#[test]
fn also_where_a_device_computes() {
    let Some((_alone, [device])) = opened::emulated_devices() else { return };
    let cuda: Arc<dyn Ops> = Arc::new(Cuda::new(device, 1));
    for options in [four_bit(), LoadOptions::dense(Compute::F32)] {
        let case = Case::lora(false, options);
        case.assert_same_bits(&|| Arc::clone(&cuda), Prefetch::Before, 2);
    }
}

#[test]
fn tokens_come_one_after_the_other_on_those_who_have_any_left() {
    let case = Case::lora(true, LoadOptions::dense(Compute::F32));
    let (whole, _) = case.load(cpu(), None);
    let got = on_ranks(ranks(3), |group| {
        let holders = holders(&group, Prefetch::Before);
        let (decoder, _) = case.load(cpu(), Some(holders));
        let bits = generation_bits(&decoder, [2, 0, 5][group.rank()]);
        decoder.accompany().unwrap();
        bits
    });
    for (bits, n_tokens) in got.iter().zip([2, 0, 5]) {
        assert!(*bits == generation_bits(&whole, n_tokens), "{n_tokens} tokens");
    }
}

#[test]
fn processes_of_one_host_hold_a_model_without_those_of_another() {
    let case = Case::lora(false, LoadOptions::dense(Compute::Bf16));
    let (whole, adapter) = case.load(cpu(), None);
    let of_host = [0, 0, 1, 1, 1];
    let n_steps = [1, 2, 0, 3, 1];
    let got = on_ranks(ranks(of_host.len()), |group| {
        let (rank, host) = (group.rank(), of_host[group.rank()]);
        let members = group.members_with(host).unwrap();
        let holders = Holders { members, ..holders(&group, Prefetch::Before) };
        let (decoder, adapter) = case.load(cpu(), Some(holders));
        let steps = 0..n_steps[rank];
        let bits: Vec<Vec<u32>> =
            steps.map(|seed| step_bits(&decoder, &adapter, Keep::Everything, seed)).collect();
        decoder.accompany().unwrap();
        (bits, decoder.weights_bytes())
    });
    for (rank, (bits, n_bytes)) in got.into_iter().enumerate() {
        let steps = 0..n_steps[rank];
        let expected: Vec<Vec<u32>> =
            steps.map(|seed| step_bits(&whole, &adapter, Keep::Everything, seed)).collect();
        assert!(bits == expected, "rank {rank}");
        let n_holders = of_host.iter().filter(|host| **host == of_host[rank]).count();
        assert!(n_bytes <= whole.weights_bytes() / n_holders + whole.weights_bytes() / 10);
    }
}

/// The leader runs passes of its own while the others wait for its commands, and takes its time.
#[test]
fn the_leader_has_the_others_accompany_it() {
    let case = Case::lora(true, LoadOptions::dense(Compute::F32));
    let (whole, _) = case.load(cpu(), None);
    let expected = generation_bits(&whole, 2);
    let settings = Settings::with_deadline(Duration::from_millis(2000));
    // Longer than the others wait for a sign.
    let takes_its_time = || std::thread::sleep(Duration::from_millis(4000));
    let heard = on_ranks_with(ranks(3), settings, |group| {
        let (decoder, _) = case.load(cpu(), Some(holders(&group, Prefetch::Before)));
        let mut heard = Vec::new();
        if group.is_leader() {
            group.told();
            for _ in 0..2 {
                assert!(generation_bits(&decoder, 2) == expected);
                takes_its_time();
                assert!(generation_bits(&decoder, 2) == expected);
                decoder.let_go().unwrap();
            }
            group.tell(b"end".to_vec()).unwrap();
        } else {
            while heard.last().is_none_or(|word| word != b"end") {
                heard.push(group.listen().unwrap());
                if heard.last().is_some_and(|word| word == b"come") {
                    decoder.accompany().unwrap();
                }
            }
        }
        drop(decoder);
        group.end().unwrap();
        heard
    });
    for heard in &heard[1..] {
        assert_eq!(heard.concat(), b"comecomeend");
    }
}

/// What each rank sends in a step that all make: its part of each unit to the others, layers twice.
#[test]
fn as_many_bytes_are_sent_as_must_be() {
    let case = Case::lora(false, LoadOptions::dense(Compute::F32));
    let store = tiny_store(&case.config);
    let (mut once, mut layers) = (0, 0);
    for name in store.names() {
        let tensor = store.tensor(&name).unwrap();
        match tensor.shape.len() {
            2 if name.starts_with("model.layers.") => layers += tensor.bytes.len() as u64,
            2 => once += tensor.bytes.len() as u64,
            // Whole on every process.
            _ => {}
        }
    }
    for n in [2, 4] {
        let sent = on_ranks(ranks(n), |group| {
            let holders = holders(&group, Prefetch::Before);
            // Packed without padding.
            let (decoder, adapter) = case.load(Arc::new(Reference), Some(holders));
            let before = group.n_bytes_sent();
            step_bits(&decoder, &adapter, Keep::Everything, 1);
            group.n_bytes_sent() - before
        });
        // Two steps: seven passes are announced, and where the second asks for the head again, it is
        // there still.
        let announced = 7 * 8;
        let own = 2 * (once + 2 * layers) / n as u64;
        assert_eq!(sent, vec![(own + announced) * (n as u64 - 1); n], "{n} ranks");
    }
}

#[test]
fn a_process_that_is_lost_ends_the_pass_with_its_error() {
    let case = Case::lora(false, LoadOptions::dense(Compute::F32));
    for n_good in [0, 3, 9, 12] {
        let mut threads = ranks(2);
        let broken = threads.remove(1).failing_after(n_good);
        threads.insert(1, broken);
        let ended = on_ranks(threads, |group| {
            let holders = holders(&group, Prefetch::Before);
            let (decoder, adapter) = case.load(cpu(), Some(holders));
            let step = || step_bits(&decoder, &adapter, Keep::Everything, 1);
            let error = catch_unwind(AssertUnwindSafe(step)).unwrap_err();
            error.downcast::<CollectiveError>().is_ok()
        });
        assert_eq!(ended, [true, true], "after {n_good} calls");
    }
}
