//! Greedy text of a small model against what the transformers library gives.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use forgelm_generate::{
    GenerateError, GenerateOptions, Generated, Generator, Request, Sampling, StopReason, Watch,
    shared_beginning,
};
use forgelm_kernels_api::Compute;
use forgelm_kernels_cpu::Cpu;
use forgelm_kernels_reference::Reference;
use forgelm_model::{Adapter, Decoder, LoraConfig, ModelFiles, OpenModel};
use forgelm_tensor::random::{Purpose, Stream};

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden").join(path)
}

fn tiny_llama() -> Decoder {
    let open = OpenModel::open(&ModelFiles::Folder(golden("models/tiny-llama")));
    let open = open.expect("the folder is good");
    open.load(Arc::new(Reference), Compute::F32).expect("the weights are good")
}

/// Prompt and the 24 tokens that follow it.
fn expected() -> (Vec<u32>, Vec<u32>) {
    let text = std::fs::read_to_string(golden("forward/tiny-llama/golden.json"));
    let json: serde_json::Value =
        serde_json::from_str(&text.expect("golden data is in the tree")).expect("it is JSON");
    let ids = |key: &str| {
        serde_json::from_value(json["greedy"][key].clone()).expect("a list of token ids")
    };
    (ids("prompt"), ids("new"))
}

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens,
        sampling: Sampling::GREEDY,
        seed: 0,
        stop_ids: Vec::new(),
        reuse_cache: false,
    }
}

fn all(_: u32) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    let decoder = tiny_llama();
    let (prompt, new) = expected();
    assert_eq!(new.len(), 24);
    let mut generator = Generator::new(&decoder, None, 64).expect("there is memory");
    let mut seen = Vec::new();
    let mut note = |token| {
        seen.push(token);
        ControlFlow::Continue(())
    };
    let found = generator.generate(&prompt, &options(24), &mut note).expect("a good prompt");
    assert_eq!(found, Generated { tokens: new.clone(), reason: StopReason::MaxNewTokens });
    assert_eq!(seen, new);
}

#[test]
fn a_conversation_that_reuses_the_cache_says_the_same() {
    let decoder = tiny_llama();
    let (prompt, new) = expected();
    let mut generator = Generator::new(&decoder, None, 64).expect("there is memory");
    let mut reuse = options(10);
    reuse.reuse_cache = true;
    let first = generator.generate(&prompt, &reuse, &mut all).expect("a good prompt");
    assert_eq!(first.tokens, new[..10]);
    let mut longer = prompt.clone();
    longer.extend_from_slice(&first.tokens);
    let second = generator.generate(&longer, &reuse, &mut all).expect("a good prompt");
    assert_eq!(second.tokens, new[10..20]);
    // Back to the first prompt: the cache is cut, not trusted.
    let again = generator.generate(&prompt, &reuse, &mut all).expect("a good prompt");
    assert_eq!(again.tokens, new[..10]);
}

#[test]
fn it_ends_at_a_stop_token_at_the_context_and_at_the_callers_word() {
    let decoder = tiny_llama();
    let (prompt, new) = expected();
    let mut generator = Generator::new(&decoder, None, 20).expect("there is memory");
    let mut stop = options(24);
    stop.stop_ids = vec![new[5]];
    let found = generator.generate(&prompt, &stop, &mut all).expect("a good prompt");
    assert_eq!(found.tokens, new[..5]);
    assert_eq!(found.reason, StopReason::StopToken(new[5]));

    let found = generator.generate(&prompt, &options(24), &mut all).expect("a good prompt");
    assert_eq!((found.tokens.len(), found.reason), (20 - prompt.len(), StopReason::ContextFull));

    let mut n = 0;
    let mut three = |_| {
        n += 1;
        if n == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let found = generator.generate(&prompt, &options(24), &mut three).expect("a good prompt");
    assert_eq!(found, Generated { tokens: new[..3].to_vec(), reason: StopReason::Caller });
}

#[test]
fn prompts_that_cannot_run_are_refused() {
    let decoder = tiny_llama();
    let mut generator = Generator::new(&decoder, None, 8).expect("there is memory");
    let mut refused = |prompt: &[u32]| {
        generator.generate(prompt, &options(1), &mut all).expect_err("a bad prompt")
    };
    assert_eq!(refused(&[]), GenerateError::EmptyPrompt);
    assert_eq!(refused(&[1; 8]), GenerateError::PromptTooLong { found: 8, context: 8 });
    assert_eq!(refused(&[512]), GenerateError::UnknownToken { token: 512, vocab_size: 512 });
}

/// Requests of every length, some sampled, some that stop early or ask for nothing.
fn mixed() -> Vec<(Vec<u32>, GenerateOptions)> {
    let (prompt, new) = expected();
    let long: Vec<u32> = (0..45).map(|i| (i * 37 + 5) % 512).collect();
    let sampling = Sampling { temperature: 1.0, top_k: 20, top_p: 0.95, ..Sampling::GREEDY };
    let sampled = |seed, n| GenerateOptions { sampling, seed, ..options(n) };
    let stopped = GenerateOptions { stop_ids: vec![new[5]], ..options(24) };
    vec![
        (prompt.clone(), options(24)),
        (long.clone(), sampled(7, 9)),
        (prompt.clone(), stopped),
        (vec![3], sampled(8, 13)),
        (prompt.clone(), options(0)),
        (long[..8].to_vec(), GenerateOptions { sampling: Sampling::default(), ..options(17) }),
        (long, options(30)),
        (prompt, sampled(9, 24)),
    ]
}

fn run_all(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    lanes: usize,
    requests: &[(Vec<u32>, GenerateOptions)],
) -> Vec<Generated> {
    let mut generator =
        Generator::with_lanes(decoder, adapter, 64, lanes).expect("there is memory");
    let requests: Vec<Request<'_>> =
        requests.iter().map(|(prompt, options)| Request { prompt, options }).collect();
    let mut seen = vec![Vec::new(); requests.len()];
    let mut note = |n: usize, token| {
        seen[n].push(token);
        ControlFlow::Continue(())
    };
    let found = generator.generate_all(&requests, &mut note).expect("good prompts");
    for (n, found) in found.iter().enumerate() {
        assert_eq!(found.tokens, seen[n], "request {n}");
    }
    found
}

#[test]
fn a_request_does_not_depend_on_its_batch() {
    let open = OpenModel::open(&ModelFiles::Folder(golden("models/tiny-llama")));
    let open = open.expect("the folder is good");
    let requests = mixed();
    for compute in [Compute::F32, Compute::Bf16] {
        let load = |threads| open.load(Arc::new(Cpu::new(threads)), compute).expect("good weights");
        let (one, three) = (load(1), load(3));
        let lora = LoraConfig::new(5, 10.0, &["all-linear"]);
        let stream = Stream::new(3, Purpose::LoraInit);
        let mut adapter = Adapter::new(lora, one.config(), &stream).expect("good settings");
        for (i, param) in adapter.params_mut().iter_mut().enumerate() {
            *param = 0.1 * stream.uniform(1, i as u64) - 0.05;
        }
        for adapter in [None, Some(&adapter)] {
            let alone: Vec<Generated> = requests
                .iter()
                .flat_map(|request| run_all(&one, adapter, 1, std::slice::from_ref(request)))
                .collect();
            assert!(alone.iter().filter(|found| found.tokens.len() > 8).count() >= 4);
            for lanes in [1, 3, 8, 20] {
                assert_eq!(run_all(&three, adapter, lanes, &requests), alone, "{lanes} lanes");
            }
        }
    }
}

#[test]
fn a_beginning_that_prompts_share_changes_no_token() {
    let decoder = tiny_llama();
    let (prompt, _) = expected();
    let examples: Vec<u32> = prompt.iter().copied().cycle().take(24).collect();
    let requests: Vec<(Vec<u32>, GenerateOptions)> = (0..6)
        .map(|i| match i {
            // One that begins otherwise, and one that ends where the beginning does.
            4 => (prompt.clone(), options(12)),
            5 => (examples.clone(), options(12)),
            _ => ([&examples[..], &[3 + i, 7], &prompt[..2]].concat(), options(12)),
        })
        .collect();
    let before_last: Vec<&[u32]> =
        requests.iter().map(|(prompt, _)| &prompt[..prompt.len() - 1]).collect();
    assert_eq!(shared_beginning(&before_last), &examples[..23]);
    assert!(shared_beginning(&before_last[3..5]).is_empty(), "half of them is not most");
    let alone = run_all(&decoder, None, 1, &requests);
    for (n_shared, lanes) in [(23, 1), (23, 3), (20, 8), (24, 2)] {
        let mut generator = Generator::with_lanes(&decoder, None, 64, lanes).expect("memory");
        generator.share(&examples[..n_shared]).expect("a beginning");
        let asked: Vec<Request<'_>> =
            requests.iter().map(|(prompt, options)| Request { prompt, options }).collect();
        let found = generator.generate_all(&asked, &mut |_, _| ControlFlow::Continue(()));
        assert_eq!(found.expect("answers"), alone, "{n_shared} tokens, {lanes} lanes");
    }
}

#[test]
fn several_texts_at_once_are_those_of_transformers() {
    let (_, new) = expected();
    let found = run_all(&tiny_llama(), None, 3, &mixed());
    assert_eq!(found[0], Generated { tokens: new.clone(), reason: StopReason::MaxNewTokens });
    let stop = StopReason::StopToken(new[5]);
    assert_eq!(found[2], Generated { tokens: new[..5].to_vec(), reason: stop });
    assert_eq!(found[4], Generated { tokens: Vec::new(), reason: StopReason::MaxNewTokens });
    assert_eq!(found[6].reason, StopReason::ContextFull);
    assert_eq!(found[6].tokens.len(), 64 - 45);
}

#[test]
fn a_caller_may_end_one_request_of_several() {
    let decoder = tiny_llama();
    let (prompt, new) = expected();
    let mut generator = Generator::with_lanes(&decoder, None, 64, 2).expect("there is memory");
    let greedy = options(12);
    let request = Request { prompt: &prompt, options: &greedy };
    let mut n_second = 0;
    let mut three = |n, _| {
        n_second += usize::from(n == 1);
        if n == 1 && n_second == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let found = generator.generate_all(&[request; 2], &mut three).expect("good prompts");
    assert_eq!(found[0].tokens, new[..12]);
    assert_eq!(found[1], Generated { tokens: new[..3].to_vec(), reason: StopReason::Caller });
}

/// Keeps the largest logit before each choice, and what was chosen.
#[derive(Default)]
struct Largest {
    before: Vec<(usize, usize, u32)>,
    chosen: Vec<(usize, u32)>,
}

impl Watch for Largest {
    fn logits(&mut self, request: usize, n_new: usize, logits: &[f32]) {
        let largest = (0_u32..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1));
        self.before.push((request, n_new, largest.expect("a token").0));
    }

    fn token(&mut self, request: usize, token: u32) -> ControlFlow<()> {
        self.chosen.push((request, token));
        ControlFlow::Continue(())
    }
}

#[test]
fn who_watches_sees_the_logits_that_each_token_is_chosen_from() {
    let decoder = tiny_llama();
    let (prompt, _) = expected();
    let options = options(6);
    let requests = [
        Request { prompt: &prompt, options: &options },
        Request { prompt: &prompt[..3], options: &options },
    ];
    let mut generator = Generator::with_lanes(&decoder, None, 64, 2).unwrap();
    let mut watch = Largest::default();
    let generated = generator.generate_watched(&requests, &mut watch).unwrap();
    let plain = generator.generate_all(&requests, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!(generated, plain);
    for (request, generated) in generated.iter().enumerate() {
        let of_it = |seen: &&(usize, usize, u32)| seen.0 == request;
        let before: Vec<_> = watch.before.iter().filter(of_it).collect();
        let n_new: Vec<usize> = before.iter().map(|seen| seen.1).collect();
        assert_eq!(n_new, [0, 1, 2, 3, 4, 5]);
        let largest: Vec<u32> = before.iter().map(|seen| seen.2).collect();
        assert_eq!(largest, generated.tokens, "greedily");
    }
    assert_eq!(watch.chosen.len(), 12);
}

#[test]
fn one_bad_request_of_several_is_named_before_anything_runs() {
    let decoder = tiny_llama();
    let mut generator = Generator::with_lanes(&decoder, None, 8, 2).expect("there is memory");
    let greedy = options(1);
    let hot = GenerateOptions {
        sampling: Sampling { temperature: 3.0, ..Sampling::GREEDY },
        ..options(1)
    };
    let good = Request { prompt: &[1, 2], options: &greedy };
    let mut refused = |bad| {
        let mut n_tokens = 0;
        let mut count = |_, _| {
            n_tokens += 1;
            ControlFlow::Continue(())
        };
        let error = generator.generate_all(&[good, bad], &mut count).expect_err("a bad request");
        assert_eq!((error.request, n_tokens), (1, 0));
        error.to_string()
    };
    let empty = Request { prompt: &[], options: &greedy };
    assert_eq!(refused(empty), "request 1: the prompt has no tokens; expected at least one");
    let unheard = Request { prompt: &[1], options: &hot };
    assert_eq!(refused(unheard), "request 1: `temperature` is 3; expected from 0 to 2");
    let unknown = Request { prompt: &[600], options: &greedy };
    let expected = "request 1: the prompt has token 600; the model knows tokens below 512";
    assert_eq!(refused(unknown), expected);
}

#[test]
fn a_long_context_costs_memory_only_when_it_is_used() {
    let decoder = tiny_llama();
    let (prompt, _) = expected();
    let mut generator = Generator::new(&decoder, None, 1 << 20).expect("there is memory");
    assert_eq!(generator.cache_bytes(), 0);
    generator.generate(&prompt, &options(2), &mut all).expect("a good prompt");
    let dims = decoder.dims();
    let row = 2 * dims.l * dims.kv_width() * size_of::<f32>();
    assert_eq!(generator.cache_bytes(), 256.min(generator.context()) * row);
}
