//! Families of continuations against the same texts scored whole, one by one.

#![expect(clippy::cast_possible_truncation, reason = "sizes of tests are small")]

use std::path::PathBuf;
use std::sync::Arc;

use forgelm_generate::{
    Continuation, FamilyOptions, FamilyScorer, Likelihood, ScoreError, ScoreRequest, Scorer,
};
use forgelm_kernels_api::Compute;
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{Adapter, Decoder, LoraConfig, ModelFiles, OpenModel};
use forgelm_tensor::random::{Purpose, Stream};

fn model(name: &str) -> (OpenModel, Decoder) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/models");
    let open = OpenModel::open(&ModelFiles::Folder(path.join(name))).expect("a good folder");
    let decoder = open.load(Arc::new(Cpu::new(2)), Compute::F32).expect("good weights");
    (open, decoder)
}

fn adapter(decoder: &Decoder) -> Adapter {
    let lora = LoraConfig::new(5, 10.0, &["all-linear"]);
    let stream = Stream::new(3, Purpose::LoraInit);
    let mut adapter = Adapter::new(lora, decoder.config(), &stream).expect("good settings");
    for (i, param) in adapter.params_mut().iter_mut().enumerate() {
        *param = 0.1 * stream.uniform(1, i as u64) - 0.05;
    }
    adapter
}

fn tokens(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 5 + (i * 37 + seed * 101 + i * i * seed) % 500).collect()
}

/// Texts and how many tokens of each are context, by family.
type Texts = Vec<Vec<(Vec<u32>, usize)>>;

/// Families of every shape: with and without a common base, of one and several texts, with
/// continuations of one token and of many, with contexts that part before their end, and one of which
/// nothing is shared.
fn texts() -> Texts {
    let base = tokens(1, 40);
    let choice = |context: &[u32], seed, n| ([context, &tokens(seed, n)].concat(), context.len());
    let mut families = Texts::new();
    for i in 2..9 {
        let context = [base.clone(), tokens(i, 3 + i as usize * 2)].concat();
        let choices =
            (0..4).map(|k| choice(&context, 50 + i * 4 + k, 1 + (k as usize * i as usize) % 11));
        families.push(choices.collect());
    }
    // One token each, all after the same context.
    let context = [base.clone(), tokens(20, 9)].concat();
    families.push((0..4).map(|k| choice(&context, 90 + k, 1)).collect());
    // Contexts that differ, and the same continuation.
    let parted = (0..2).map(|k| {
        let context = [base.clone(), tokens(30, 6), tokens(31 + k, 4)].concat();
        choice(&context, 40, 5)
    });
    families.push(parted.collect());
    // Of its own, and longer than anything.
    families.push(vec![(tokens(60, 90), 80)]);
    families.push(vec![(tokens(61, 2), 1), (tokens(62, 3), 1)]);
    families
}

fn requests(texts: &Texts) -> Vec<Vec<Continuation<'_>>> {
    texts
        .iter()
        .map(|family| {
            family
                .iter()
                .map(|(tokens, n_context)| Continuation { tokens, n_context: *n_context })
                .collect()
        })
        .collect()
}

fn scored(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    texts: &Texts,
    options: FamilyOptions,
) -> Vec<Vec<Likelihood>> {
    let mut scorer = FamilyScorer::new(decoder, adapter);
    scorer.score(&requests(texts), options, &mut || true).expect("scores")
}

/// The same, each text whole and alone.
fn alone(decoder: &Decoder, adapter: Option<&Adapter>, texts: &Texts) -> Vec<Vec<f64>> {
    let mut scorer = Scorer::new(decoder, adapter);
    let mut one = |(tokens, n_context): &(Vec<u32>, usize)| {
        let rows: Vec<u32> = (*n_context as u32 - 1..tokens.len() as u32 - 1).collect();
        let request = [ScoreRequest { tokens, rows: &rows }];
        let logps = scorer.score(&request, &mut || true).expect("scores");
        logps[0].iter().map(|&logp| f64::from(logp)).sum()
    };
    texts.iter().map(|family| family.iter().map(&mut one).collect()).collect()
}

#[test]
fn a_family_has_the_scores_of_its_texts_alone() {
    let texts = texts();
    for name in ["tiny-llama", "tiny-gemma2", "tiny-qwen3"] {
        let (_, decoder) = model(name);
        let trained = adapter(&decoder);
        for adapter in [None, Some(&trained)] {
            let expected = alone(&decoder, adapter, &texts);
            for needs_greedy in [false, true] {
                let options = FamilyOptions { needs_greedy, n_texts_max: None };
                let found = scored(&decoder, adapter, &texts, options);
                for (f, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert_eq!(found.len(), expected.len());
                    for (k, (found, expected)) in found.iter().zip(expected).enumerate() {
                        let distance = (found.logp - expected).abs();
                        assert!(distance < 2e-4, "{name} {f} {k}: {} {expected}", found.logp);
                    }
                }
            }
        }
    }
}

#[test]
fn a_family_does_not_depend_on_its_batch() {
    let texts = texts();
    let (_, decoder) = model("tiny-llama");
    let of = |n_texts_max| {
        scored(&decoder, None, &texts, FamilyOptions { needs_greedy: false, n_texts_max })
    };
    let together = of(None);
    for n in [1, 3, 7] {
        assert_eq!(of(Some(n)), together, "{n} texts at a time");
    }
    // More families than fit into one pass.
    let many: Texts = (0..40).flat_map(|_| texts.clone()).collect();
    let found = scored(&decoder, None, &many, FamilyOptions::default());
    for copy in found.chunks(texts.len()) {
        assert_eq!(copy, together);
    }
}

#[test]
fn greedy_continuations_are_found_to_be() {
    let (_, decoder) = model("tiny-llama");
    let options = FamilyOptions { needs_greedy: true, n_texts_max: None };
    let context = tokens(3, 20);
    // The likeliest next token, by asking for all.
    let every: Texts = vec![
        (0..512).map(|next| ([context.clone(), vec![next]].concat(), context.len())).collect(),
    ];
    let found = scored(&decoder, None, &every, options);
    let best =
        (0..512).max_by(|&a, &b| found[0][a].logp.total_cmp(&found[0][b].logp)).expect("one");
    let greedy: Vec<usize> = (0..512).filter(|&i| found[0][i].is_greedy).collect();
    assert_eq!(greedy, [best]);
    let total: f64 = found[0].iter().map(|likelihood| likelihood.logp.exp()).sum();
    assert!((total - 1.0).abs() < 1e-6, "{total}");
    // A likeliest token and then another is not greedy.
    let other = u32::from(best == 7) + 7;
    let then = |token| ([context.clone(), vec![best as u32, token]].concat(), context.len());
    let found = scored(&decoder, None, &vec![(0..512).map(then).collect()], options);
    assert_eq!(found[0].iter().filter(|likelihood| likelihood.is_greedy).count(), 1);
    let wrong = vec![vec![([context.clone(), vec![other, 3]].concat(), context.len())]];
    assert!(!scored(&decoder, None, &wrong, options)[0][0].is_greedy);
}

#[test]
fn it_stops_when_it_is_asked_to() {
    let texts = texts();
    let (_, decoder) = model("tiny-llama");
    let mut scorer = FamilyScorer::new(&decoder, None);
    let mut n = 0;
    let mut twice = || {
        n += 1;
        n < 3
    };
    let options = FamilyOptions { needs_greedy: false, n_texts_max: Some(1) };
    let stopped = scorer.score(&requests(&texts), options, &mut twice);
    assert_eq!(stopped, Err(ScoreError::Stopped));
    assert_eq!(n, 3);
}
