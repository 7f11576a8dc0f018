//! Scores of a small model: alone and together, with one thread and several, and what is refused.

use std::path::PathBuf;
use std::sync::Arc;

use forgelm_generate::{ScoreError, ScoreRequest, Scorer};
use forgelm_kernels_api::Compute;
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{Adapter, Decoder, LoraConfig, ModelFiles, OpenModel};
use forgelm_tensor::random::{Purpose, Stream};

fn tiny_llama(threads: usize, compute: Compute) -> Decoder {
    let folder = "../../tests/data/golden/models/tiny-llama";
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
    let open = OpenModel::open(&ModelFiles::Folder(folder)).expect("the folder is good");
    open.load(Arc::new(Cpu::new(threads)), compute).expect("the weights are good")
}

fn adapter(decoder: &Decoder, fill: impl Fn(usize) -> f32) -> Adapter {
    let lora = LoraConfig::new(5, 10.0, &["all-linear"]);
    let stream = Stream::new(3, Purpose::LoraInit);
    let mut adapter = Adapter::new(lora, decoder.config(), &stream).expect("good settings");
    adapter.params_mut().iter_mut().enumerate().for_each(|(i, param)| *param = fill(i));
    adapter
}

/// Texts of many lengths, more than one pass of them; every row of a text, some, one or none.
fn texts() -> Vec<(Vec<u32>, Vec<u32>)> {
    let lengths = [3_u32, 40, 250, 1, 2, 200, 90, 17, 60, 61, 62, 63, 5, 128];
    let text = |(i, &n): (usize, &u32)| {
        let tokens = (0..n).map(|t| (t * 37 + 5 + u32::try_from(i).expect("few")) % 512).collect();
        let rows = match i % 3 {
            0 => (0..n - 1).collect(),
            1 => (0..n - 1).filter(|row| row % 3 == 1).collect(),
            _ => (0..n - 1).skip(n as usize - 2).collect(),
        };
        (tokens, rows)
    };
    lengths.iter().enumerate().map(text).collect()
}

fn requests(texts: &[(Vec<u32>, Vec<u32>)]) -> Vec<ScoreRequest<'_>> {
    texts.iter().map(|(tokens, rows)| ScoreRequest { tokens, rows }).collect()
}

fn score(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    requests: &[ScoreRequest<'_>],
) -> Vec<Vec<u32>> {
    let scores = Scorer::new(decoder, adapter).score(requests, &mut || true).expect("good texts");
    scores.iter().map(|logps| logps.iter().map(|logp| logp.to_bits()).collect()).collect()
}

#[test]
fn a_score_does_not_depend_on_its_batch() {
    let texts = texts();
    let requests = requests(&texts);
    for compute in [Compute::F32, Compute::Bf16] {
        let (one, three) = (tiny_llama(1, compute), tiny_llama(3, compute));
        let stream = Stream::new(3, Purpose::LoraInit);
        let adapter = adapter(&one, |i| 0.1 * stream.uniform(1, i as u64) - 0.05);
        for adapter in [None, Some(&adapter)] {
            let alone: Vec<Vec<u32>> = requests
                .iter()
                .flat_map(|request| score(&one, adapter, std::slice::from_ref(request)))
                .collect();
            assert_eq!(alone.iter().map(Vec::len).sum::<usize>(), 239);
            assert_eq!(score(&one, adapter, &requests), alone, "{compute:?}, one thread");
            assert_eq!(score(&three, adapter, &requests), alone, "{compute:?}, three threads");
            // Which rows of a text are scored changes none of them.
            let all: Vec<u32> = (0..249).collect();
            let whole = [ScoreRequest { tokens: &texts[2].0, rows: &all }];
            assert_eq!(score(&one, adapter, &whole)[0][248], alone[2][0], "{compute:?}");
        }
    }
}

#[test]
fn a_model_without_numbers_and_a_request_to_stop_are_told() {
    let decoder = tiny_llama(1, Compute::F32);
    let texts = texts();
    let requests = requests(&texts);
    let broken = adapter(&decoder, |_| f32::NAN);
    let refused = Scorer::new(&decoder, Some(&broken)).score(&requests, &mut || true);
    assert_eq!(refused, Err(ScoreError::NotFinite { request: 0, token: 1 }));
    let mut n_passes = 0;
    let mut once = || {
        n_passes += 1;
        n_passes == 1
    };
    let stopped = Scorer::new(&decoder, None).score(&requests, &mut once);
    assert_eq!((stopped, n_passes), (Err(ScoreError::Stopped), 2));
}
