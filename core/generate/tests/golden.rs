//! Greedy text of a small model against what the transformers library gives.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use forgelm_generate::{
    GenerateError, GenerateOptions, Generated, Generator, Sampling, StopReason,
};
use forgelm_kernels_api::Compute;
use forgelm_kernels_reference::Reference;
use forgelm_model::{Decoder, ModelFiles, OpenModel};

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
