//! Text that grows on an emulated NVIDIA device, beside the processor.
#![expect(clippy::print_stdout, reason = "a test says what it skips")]

#[path = "../../../kernels/cuda/tests/support/opened.rs"]
mod opened;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};

use forgelm_generate::{GenerateOptions, Generated, Generator, Request, Sampling, Watch};
use forgelm_kernels_api::{Compute, Ops};
use forgelm_kernels_cpu::Cpu;
use forgelm_kernels_cuda::Cuda;
use forgelm_kernels_emulator as emulator;
use forgelm_model::{Decoder, ModelFiles, OpenModel};

/// An emulated device, alone; `None`, aloud, where there is none.
fn device() -> Option<(MutexGuard<'static, ()>, Arc<dyn Ops>)> {
    let (alone, [device]) = opened::emulated_devices()?;
    Some((alone, Arc::new(Cuda::new(device, 1))))
}

fn tiny_llama(ops: Arc<dyn Ops>) -> Decoder {
    let folder = "../../tests/data/golden/models/tiny-llama";
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
    let open = OpenModel::open(&ModelFiles::Folder(folder)).expect("the folder is good");
    open.load(ops, Compute::F32).expect("the weights are good")
}

fn options(sampling: Sampling, seed: u64) -> GenerateOptions {
    GenerateOptions { max_new_tokens: 12, sampling, seed, stop_ids: Vec::new(), reuse_cache: false }
}

/// Prompts of several lengths, more of them than lanes.
fn texts(decoder: &Decoder, sampling: Sampling) -> Vec<Generated> {
    let prompts: Vec<Vec<u32>> = (0..5).map(|i| (40 + i..49 + 3 * i).collect()).collect();
    let options: Vec<GenerateOptions> = (0..5).map(|seed| options(sampling, seed)).collect();
    let requests: Vec<Request<'_>> =
        prompts.iter().zip(&options).map(|(prompt, options)| Request { prompt, options }).collect();
    let mut generator = Generator::with_lanes(decoder, None, 64, 3).expect("there is memory");
    generator.generate_all(&requests, &mut |_, _| ControlFlow::Continue(())).expect("good prompts")
}

const RULES: [Sampling; 4] = [
    Sampling::GREEDY,
    Sampling { temperature: 0.7, top_k: 50, top_p: 0.9, repetition_penalty: 1.1, adaptive: None },
    Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, adaptive: None },
    // Looks at the whole distribution first: chosen on the host.
    Sampling {
        temperature: 1.0,
        top_k: 5,
        top_p: 1.0,
        repetition_penalty: 1.3,
        adaptive: Some(5.0),
    },
];

#[test]
fn the_device_draws_the_tokens_that_the_processor_draws() {
    let Some((_alone, cuda)) = device() else { return };
    let (on_device, on_host) = (tiny_llama(cuda), tiny_llama(Arc::new(Cpu::new(1))));
    for sampling in RULES {
        assert_eq!(texts(&on_device, sampling), texts(&on_host, sampling), "{sampling:?}");
    }
}

/// Of a step come back the tokens and nothing as wide as the vocabulary.
#[test]
fn logits_stay_on_the_device() {
    let Some((_alone, cuda)) = device() else { return };
    let decoder = tiny_llama(cuda);
    let prompt: Vec<u32> = (40..60).collect();
    let bytes_for = |max_new_tokens| {
        let options = GenerateOptions { max_new_tokens, ..options(RULES[1], 0) };
        let mut generator = Generator::new(&decoder, None, 64).expect("there is memory");
        emulator::reset_counters();
        generator.generate(&prompt, &options, &mut |_| ControlFlow::Continue(())).expect("good");
        emulator::counters().bytes_to_host
    };
    assert_eq!(bytes_for(9) - bytes_for(1), 8 * 2 * 4, "a token and whether it is one");
}

/// Sees logits, which must be there for it.
struct Largest(Vec<u32>);

impl Watch for Largest {
    fn logits(&mut self, _request: usize, _n_new: usize, logits: &[f32]) {
        let largest = (0..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1));
        self.0.push(largest.expect("a token").0);
    }

    fn token(&mut self, _request: usize, _token: u32) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

#[test]
fn who_watches_sees_the_logits_of_the_device() {
    let Some((_alone, cuda)) = device() else { return };
    let decoder = tiny_llama(cuda);
    let mut generator = Generator::new(&decoder, None, 64).expect("there is memory");
    let (options, mut largest) = (options(Sampling::GREEDY, 0), Largest(Vec::new()));
    let request = Request { prompt: &[40, 41, 42], options: &options };
    let texts = generator.generate_watched(&[request], &mut largest).expect("a good prompt");
    assert_eq!(texts[0].tokens, largest.0);
}
