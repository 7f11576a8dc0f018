//! The services over the tiny model of the golden values.

use super::{Examined, LANES, Subject, check_room};
use crate::subject::Language;
use forgelm_data::{Sequence, Sequences};
use forgelm_generate::{ScoreRequest, Scorer};
use forgelm_kernels_api::Compute;
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{Decoder, ModelFiles, OpenModel};
use forgelm_sdk::evaluator::{Generate as _, HeldOut, Score, TextPair, TextScore};
use forgelm_sdk::trainer::Role;
use forgelm_sdk::{Cause, Failed, OptionValue};
use forgelm_tokenize::{ChatTemplate, Tokenizer};
use std::path::Path;
use std::sync::Arc;

struct Model {
    decoder: Decoder,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Model {
    fn tiny() -> Self {
        let folder = "../../tests/data/golden/models/tiny-llama";
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let open = OpenModel::open(&ModelFiles::Folder(folder.clone())).expect("a good folder");
        let tokenizer = Tokenizer::from_folder(&folder).expect("a good tokenizer");
        Self {
            decoder: open.load(Arc::new(Cpu::new(1)), Compute::F32).expect("good weights"),
            template: tokenizer.chat_template(None).expect("a template"),
            tokenizer,
        }
    }

    fn examined<'a>(
        &'a self,
        held_out: &'a Sequences,
        is_stopped: &'a dyn Fn() -> bool,
    ) -> Examined<'a> {
        let language = Language {
            tokenizer: &self.tokenizer,
            template: Some(&self.template),
            template_now: 0,
            stop_ids: &[2],
        };
        let subject = Subject { decoder: &self.decoder, adapter: None, language, is_stopped };
        Examined::new(subject, held_out).expect("readable")
    }

    /// Tokens of a text with their ends, and the log-probability of each but the first.
    fn whole(&self, text: &str) -> (Vec<u32>, Vec<usize>, Vec<f64>) {
        let encoding = self.tokenizer.encode_with_specials(text).expect("a text");
        let tokens = [self.tokenizer.prefix_ids(), &encoding.ids].concat();
        let prefix = self.tokenizer.prefix_ids().iter().map(|_| 0);
        let ends = prefix.chain(encoding.offsets.iter().map(|&(_, end)| end)).collect();
        let rows: Vec<u32> = (0..).take(tokens.len() - 1).collect();
        let request = ScoreRequest { tokens: &tokens, rows: &rows };
        let logps = Scorer::new(&self.decoder, None).score(&[request], &mut || true);
        let logps = logps.expect("scores").remove(0).into_iter().map(f64::from).collect();
        (tokens, ends, logps)
    }
}

fn nothing() -> Sequences {
    Sequences::pairs(Vec::new())
}

fn on() -> bool {
    false
}

/// Both services have a function of this name.
fn scored(examined: &Examined<'_>, pairs: &[TextPair<'_>]) -> Result<Vec<TextScore>, Failed> {
    Score::score(examined, pairs)
}

fn sequence(record: u64, role: Role, tokens: &[u32], n_prompt: usize) -> Sequence {
    let trained = (0..tokens.len()).map(|t| t >= n_prompt).collect();
    Sequence { record, role, tokens: tokens.to_vec(), trained }
}

fn close(found: TextScore, logps: &[f64]) {
    assert_eq!(found.n_tokens, logps.len() as u64);
    let expected: f64 = logps.iter().sum();
    assert!((found.logp_sum - expected).abs() < 1e-9, "{} for {expected}", found.logp_sum);
}

/// Cut at every character: a token belongs to the completion if one of its bytes does.
#[test]
fn a_token_across_the_border_is_scored_and_the_first_is_not() {
    let model = Model::tiny();
    let held_out = nothing();
    let examined = model.examined(&held_out, &on);
    let text = "What is the capital of France? Paris.";
    let (tokens, ends, logps) = model.whole(text);
    assert!(tokens.len() < text.len(), "some tokens have several bytes");
    let mut across = 0;
    for border in 0..text.len() {
        let (prompt, completion) = text.split_at(border);
        let score = scored(&examined, &[TextPair { prompt, completion }]).expect("a score")[0];
        let first = (1..tokens.len()).find(|&t| ends[t] > border).expect("the last reaches");
        close(score, &logps[first - 1..]);
        across += usize::from(first > 0 && ends[first - 1] < border);
    }
    assert!(across > 5, "{across} borders inside of tokens");
}

#[test]
fn what_cannot_be_scored_or_answered_is_an_argument_with_its_place() {
    let model = Model::tiny();
    let held_out = nothing();
    let examined = model.examined(&held_out, &on);
    let refused = |failed: Failed, expected: &str| {
        assert_eq!(failed.cause, Cause::Argument, "{failed}");
        assert!(failed.message.starts_with(expected), "{failed}");
    };
    let long = "a b c d ".repeat(300);
    let good = TextPair { prompt: "a", completion: "b c" };
    let pair = |prompt, completion| scored(&examined, &[good, TextPair { prompt, completion }]);
    refused(pair("a b", "").expect_err("nothing to score"), "pair 1: no token");
    let too_long = pair("", &long).expect_err("too long");
    assert!(too_long.message.ends_with(" tokens; the model takes 512"), "{too_long}");
    refused(too_long, "pair 1: ");
    let answer = |prompt: &str, option: (&str, OptionValue)| {
        examined.generate(&["a", prompt], &[option]).expect_err("refused")
    };
    let one = OptionValue::Number(1.0);
    refused(answer(&long, ("max_new_tokens", one.clone())), "prompt 1: the prompt has ");
    refused(answer("b", ("top_k", one.clone())), "`top_k` is not an option");
    refused(answer("b", ("max_new_tokens", OptionValue::Number(1.5))), "option `max_new_tokens`");
    refused(answer("b", ("temperature", OptionValue::Number(3.0))), "option `temperature`");
    refused(answer("b", ("chat", one)), "option `chat` is `1`; expected true or false");
    refused(examined.text(0).expect_err("no record"), "records 0 to 1 were asked for");
    refused(
        HeldOut::score(&examined, u64::MAX, 2).expect_err("no records"),
        "records 18446744073709551615 to ",
    );
}

/// Of pairs the chosen answer counts; records without one are left out.
#[test]
fn held_out_records_are_the_answers_that_are_wanted() {
    let model = Model::tiny();
    let (tokens, _, logps) = model.whole("What is it? A red bird.");
    let other = model.whole("What is it? No.").0;
    let n_prompt = model.whole("What is it?").0.len();
    let pairs = Sequences::pairs(vec![
        sequence(7, Role::Chosen, &tokens, n_prompt),
        sequence(7, Role::Rejected, &other, n_prompt),
        sequence(9, Role::Rejected, &other, n_prompt),
        sequence(9, Role::Chosen, &tokens, n_prompt),
    ]);
    let examined = model.examined(&pairs, &on);
    assert_eq!(examined.n_records(), 2);
    let scores = HeldOut::score(&examined, 0, 2).expect("scores");
    scores.into_iter().for_each(|score| close(score, &logps[n_prompt - 1..]));
    let text = examined.text(1).expect("a record");
    assert_eq!((text.prompt.as_str(), text.completion.as_str()), ("What is it?", " A red bird."));
    // The texts of a record are scored as the record is.
    let pair = TextPair { prompt: &text.prompt, completion: &text.completion };
    close(scored(&examined, &[pair]).expect("a score")[0], &logps[n_prompt - 1..]);
    // A mixture may have a record twice.
    let labelled = Sequences::from(vec![
        sequence(1, Role::Rejected, &other, n_prompt),
        sequence(2, Role::Chosen, &tokens, n_prompt),
        sequence(2, Role::Chosen, &tokens, n_prompt),
    ]);
    let examined = model.examined(&labelled, &on);
    assert_eq!(examined.n_records(), 2);
    assert_eq!(HeldOut::score(&examined, 0, 2).expect("scores").len(), 2);
}

#[test]
fn an_answer_is_a_function_of_its_prompt_and_the_options() {
    let model = Model::tiny();
    let held_out = nothing();
    let examined = model.examined(&held_out, &on);
    let number = OptionValue::Number;
    let options = |seed, is_chat| {
        [
            ("max_new_tokens", number(7.0)),
            ("temperature", number(1.0)),
            ("top_p", number(0.9)),
            ("seed", number(seed)),
            ("chat", OptionValue::Flag(is_chat)),
        ]
    };
    let prompts: Vec<String> = (0..9 * LANES + 3).map(|i| format!("Item {} is", i % 40)).collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let together = examined.generate(&prompts, &options(5.0, false)).expect("answers");
    assert_eq!(together.len(), prompts.len());
    for i in [0, 1, 33, 40, 66] {
        let alone = examined.generate(&prompts[i..=i], &options(5.0, false)).expect("an answer");
        assert_eq!(alone[0], together[i], "prompt {i}");
    }
    assert_eq!(together[1], together[41], "the same prompt");
    let others = examined.generate(&prompts, &options(6.0, false)).expect("answers");
    assert_ne!(together, others);
    let chat = examined.generate(&prompts, &options(5.0, true)).expect("answers");
    assert_ne!(together, chat);
}

#[test]
fn a_request_to_stop_ends_every_service() {
    let model = Model::tiny();
    let tokens = model.whole("A red bird.").0;
    let pairs = Sequences::pairs(vec![
        sequence(0, Role::Chosen, &tokens, 1),
        sequence(0, Role::Rejected, &tokens, 1),
    ]);
    let stopped = || true;
    let examined = model.examined(&pairs, &stopped);
    let pair = TextPair { prompt: "a", completion: " b" };
    let refused = scored(&examined, &[pair]);
    assert_eq!(refused.expect_err("stopped").cause, Cause::Cancelled);
    let answered = examined.generate(&["a"], &[]);
    assert_eq!(answered.expect_err("stopped").cause, Cause::Cancelled);
    let refused = HeldOut::score(&examined, 0, 1);
    assert_eq!(refused.expect_err("stopped").cause, Cause::Cancelled);
}

/// Where the system has room, nothing is said; where it has not, how much there is.
#[test]
fn what_there_is_no_memory_for_is_refused_with_its_size() {
    assert!(check_room("scores of 3 tokens at once", 1).is_ok());
    let refused = check_room("answers", 1 << 60).expect_err("more than any machine has");
    let expected = "answers need 1152921504606846976 bytes of memory, and ";
    assert!(refused.starts_with(expected), "{refused}");
    assert!(refused.contains(" leaves "), "{refused}");
}
