//! A guard that writes its verdict.
//!
//! It reads question and answer through its own chat template, and several at once. How sure it is
//! comes from the token with which the verdict begins: the probability of the one word against the
//! other.

use super::asked::cut;
use super::classifier::NotJudged;
use super::score::Judged;
use super::verdict::Verdict;
use crate::model;
use crate::subject::check_room_of;
use forgelm_generate::{GenerateOptions, Generator, Request, Sampling, Watch};
use forgelm_model::Decoder;
use forgelm_tokenize::{ChatTemplate, Message, RenderOptions, Tokenizer};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// Longest conversation that a guard reads, and longest verdict, in tokens.
const CONVERSATION_TOKENS_MAX: usize = 4096;
const VERDICT_TOKENS_MAX: usize = 128;
/// Rounds of answers that are judged together: between these it is seen that work should stop.
const ROUNDS_TOGETHER: usize = 4;

/// Texts that a template must show the guard.
const QUESTION: &str = "fq7question";
const ANSWER: &str = "fq7answer";

/// A guard in memory.
pub(crate) struct Guard {
    decoder: Decoder,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    template_now: i64,
    stop_ids: Vec<u32>,
    words: Words,
}

/// Refuses a template that leaves out what was asked or answered: its guard would judge nothing.
pub(crate) fn check(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    template_now: i64,
) -> Result<(), String> {
    let chat = render(tokenizer, template, template_now, (QUESTION, ANSWER));
    let text =
        chat.map_err(|error| format!("its chat template does not take an answer: {error}"))?.1;
    match text.contains(QUESTION) && text.contains(ANSWER) {
        true => Words::of(tokenizer).map(drop),
        false => Err("its chat template leaves out what was asked or answered".to_owned()),
    }
}

/// Tokens and text of a question and its answer.
fn render(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    template_now: i64,
    (prompt, answer): (&str, &str),
) -> Result<(Vec<u32>, String), String> {
    let messages = [Message::new("user", prompt), Message::new("assistant", answer)];
    let options = RenderOptions {
        add_generation_prompt: true,
        now: Some(template_now),
        ..RenderOptions::default()
    };
    let chat = tokenizer.encode_chat(template, &messages, &options);
    chat.map(|chat| (chat.ids, chat.text)).map_err(|error| error.to_string())
}

impl Guard {
    pub(crate) fn new(
        decoder: Decoder,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        template_now: i64,
    ) -> Result<Self, String> {
        let stop_ids = model::stop_ids(&tokenizer, Some(&template));
        let words = Words::of(&tokenizer)?;
        Ok(Self { decoder, tokenizer, template, template_now, stop_ids, words })
    }

    /// What it says of each answer. One that it cannot be asked about has no verdict.
    pub(crate) fn judge(
        &self,
        pairs: &[(&str, &str)],
        n_lanes: usize,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<Judged>, NotJudged> {
        let read: Vec<Result<Read, String>> = pairs.iter().map(|pair| self.read(*pair)).collect();
        let longest = read.iter().flatten().map(|read| read.tokens.len()).max().unwrap_or(1);
        let (mut generator, n_lanes) = self.generator(longest, n_lanes.min(pairs.len()))?;
        let mut judged = Vec::with_capacity(pairs.len());
        for together in read.chunks(ROUNDS_TOGETHER * n_lanes) {
            judged.extend(self.together(&mut generator, together, is_stopped)?);
        }
        Ok(judged)
    }

    /// As many lanes as there is room for.
    fn generator(
        &self,
        longest: usize,
        n_lanes: usize,
    ) -> Result<(Generator<'_>, usize), NotJudged> {
        let context = longest + VERDICT_TOKENS_MAX;
        let mut n_lanes = n_lanes.max(1);
        loop {
            let what = format!("{n_lanes} verdicts at once, each of {context} tokens,");
            let room = check_room_of(&self.decoder, &what, |config, engine| {
                Generator::memory_plan(config, None, context, n_lanes, engine)
            });
            match room {
                Err(_) if n_lanes > 1 => n_lanes /= 2,
                Err(error) => return Err(NotJudged::Hindered(error)),
                Ok(()) => {
                    let generator = Generator::with_lanes(&self.decoder, None, context, n_lanes);
                    let generator =
                        generator.map_err(|error| NotJudged::Hindered(error.to_string()))?;
                    return Ok((generator, n_lanes));
                }
            }
        }
    }

    /// Verdicts that are asked for together; one by one where that fails, so that one conversation
    /// takes no other with it.
    fn together(
        &self,
        generator: &mut Generator<'_>,
        read: &[Result<Read, String>],
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<Judged>, NotJudged> {
        let good: Vec<&Read> = read.iter().flatten().collect();
        let verdicts = match self.verdicts(generator, &good, is_stopped) {
            Ok(verdicts) => verdicts,
            Err(_) if is_stopped() => return Err(NotJudged::Stopped),
            Err(_) => {
                let mut verdicts = Vec::with_capacity(good.len());
                for read in &good {
                    let alone = self.verdicts(generator, &[*read], is_stopped);
                    if is_stopped() {
                        return Err(NotJudged::Stopped);
                    }
                    verdicts.push(match alone {
                        Ok(mut alone) => alone.swap_remove(0),
                        Err(error) => Judged::failed(error),
                    });
                }
                verdicts
            }
        };
        if is_stopped() {
            return Err(NotJudged::Stopped);
        }
        let mut verdicts = verdicts.into_iter();
        let all = read.iter().map(|read| match read {
            Ok(_) => verdicts.next().expect("one for each that was asked"),
            Err(error) => Judged::failed(error.clone()),
        });
        Ok(all.collect())
    }

    fn verdicts(
        &self,
        generator: &mut Generator<'_>,
        read: &[&Read],
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<Judged>, String> {
        let options = GenerateOptions {
            max_new_tokens: VERDICT_TOKENS_MAX,
            sampling: Sampling::GREEDY,
            seed: 0,
            stop_ids: self.stop_ids.clone(),
            reuse_cache: false,
        };
        let requests: Vec<Request<'_>> =
            read.iter().map(|read| Request { prompt: &read.tokens, options: &options }).collect();
        let mut weighing = Weighing {
            guard: self,
            is_stopped,
            odds: vec![0.0; read.len()],
            has_begun: vec![false; read.len()],
        };
        let generated = generator.generate_watched(&requests, &mut weighing);
        let generated = generated.map_err(|error| error.source.to_string())?;
        let judged =
            generated.iter().zip(&weighing.odds).zip(read).map(|((generated, odds), read)| {
                let text = self.tokenizer.decode_without_specials(&generated.tokens);
                Ok(of_text(text.map_err(|error| error.to_string())?, *odds, read.is_cut))
            });
        judged.collect()
    }

    /// Question and answer as the guard reads them. Of an answer that is too long the beginning is
    /// judged.
    fn read(&self, (prompt, answer): (&str, &str)) -> Result<Read, String> {
        let positions = self.decoder.config().max_position_embeddings;
        let room = CONVERSATION_TOKENS_MAX.min(positions.saturating_sub(VERDICT_TOKENS_MAX));
        let render = |answer: &str| {
            render(&self.tokenizer, &self.template, self.template_now, (prompt, answer))
        };
        let (tokens, _) = render(answer)?;
        if tokens.len() <= room {
            return Ok(Read { tokens, is_cut: false });
        }
        let n_answer = self.tokenizer.encode(answer).map_err(|error| error.to_string())?.ids.len();
        let left = n_answer.saturating_sub(tokens.len() - room);
        let shorter = cut(&self.tokenizer, answer, left)?;
        let (tokens, _) = render(shorter.as_deref().unwrap_or(answer))?;
        // A cut in the middle of a word may take a token more.
        match tokens.len() <= room + VERDICT_TOKENS_MAX / 2 && left > 0 {
            true => Ok(Read { tokens, is_cut: true }),
            false => {
                Err(format!("question and answer do not fit into the {room} tokens of the guard"))
            }
        }
    }
}

/// A conversation as tokens.
struct Read {
    tokens: Vec<u32>,
    is_cut: bool,
}

/// A verdict and how sure it is: `odds` are the logarithm of the odds of safe against unsafe.
fn of_text(text: String, odds: f64, is_cut: bool) -> Judged {
    let verdict = Verdict::parse(&text);
    let safe = 1.0 / (1.0 + (-odds).exp());
    let confidence = match &verdict {
        Verdict::Safe => safe,
        Verdict::Unsafe(_) => 1.0 - safe,
        Verdict::Malformed => 0.0,
    };
    let confidence = if confidence.is_finite() { confidence } else { 0.0 };
    Judged { label: verdict.label(), verdict, confidence, raw: Some(text), error: None, is_cut }
}

/// Weighs the two words at the token with which the verdict begins.
struct Weighing<'a> {
    guard: &'a Guard,
    is_stopped: &'a dyn Fn() -> bool,
    /// Of each request, as it stood when its verdict began.
    odds: Vec<f64>,
    has_begun: Vec<bool>,
}

impl Watch for Weighing<'_> {
    fn logits(&mut self, request: usize, _n_new: usize, logits: &[f32]) {
        if !self.has_begun[request] {
            self.odds[request] = self.guard.words.odds(logits);
        }
    }

    fn token(&mut self, request: usize, token: u32) -> ControlFlow<()> {
        if !self.has_begun[request] {
            // Line ends may stand before the word.
            let text = self.guard.tokenizer.decode(&[token]).unwrap_or_default();
            self.has_begun[request] = !text.trim().is_empty();
        }
        match (self.is_stopped)() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// Tokens with which the two words begin, in any spelling that counts.
#[derive(Debug)]
struct Words {
    safe: BTreeSet<u32>,
    not_safe: BTreeSet<u32>,
}

impl Words {
    fn of(tokenizer: &Tokenizer) -> Result<Self, String> {
        let begins = |words: [&str; 3]| {
            let mut first = BTreeSet::new();
            for word in words {
                for lead in ["", " ", "\n", "\n\n"] {
                    let ids = tokenizer.encode(&format!("{lead}{word}")).map(|encoded| encoded.ids);
                    let is_word = |id: &u32| {
                        tokenizer.decode(&[*id]).is_ok_and(|text| !text.trim().is_empty())
                    };
                    first.extend(ids.unwrap_or_default().into_iter().find(is_word));
                }
            }
            first
        };
        let safe = begins(["safe", "Safe", "SAFE"]);
        let not_safe = begins(["unsafe", "Unsafe", "UNSAFE"]);
        let words = Self {
            safe: safe.difference(&not_safe).copied().collect(),
            not_safe: not_safe.difference(&safe).copied().collect(),
        };
        match words.safe.is_empty() || words.not_safe.is_empty() {
            true => Err("its tokenizer begins `safe` and `unsafe` with the same token".to_owned()),
            false => Ok(words),
        }
    }

    /// Logarithm of the odds of safe against unsafe.
    fn odds(&self, logits: &[f32]) -> f64 {
        let mass = |ids: &BTreeSet<u32>| {
            let of =
                |id: &u32| logits.get(*id as usize).map_or(f64::NEG_INFINITY, |l| f64::from(*l));
            let largest = ids.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
            largest + ids.iter().map(|id| (of(id) - largest).exp()).sum::<f64>().ln()
        };
        mass(&self.safe) - mass(&self.not_safe)
    }
}

#[cfg(test)]
mod tests {
    use super::{Words, of_text};
    use std::collections::BTreeSet;

    #[test]
    fn confidence_is_the_probability_of_the_word_against_the_other() {
        let words = Words { safe: BTreeSet::from([0, 2]), not_safe: BTreeSet::from([1]) };
        // exp: 2, 3, 1 and one that counts for neither.
        let logits = [2.0_f32.ln(), 3.0_f32.ln(), 0.0, 50.0];
        let odds = words.odds(&logits);
        assert!((odds - 0.0).abs() < 1e-6, "3 against 3: {odds}");
        let odds = words.odds(&[3.0_f32.ln(), 0.0, f32::NEG_INFINITY]);
        assert!((of_text("safe".to_owned(), odds, false).confidence - 0.75).abs() < 1e-6);
        assert!((of_text("unsafe\nS1".to_owned(), odds, false).confidence - 0.25).abs() < 1e-6);
        assert!(of_text("maybe".to_owned(), odds, false).confidence.abs() < 1e-12);
        let broken = of_text("safe".to_owned(), f64::NAN, false);
        assert!(broken.confidence.abs() < 1e-12, "{}", broken.confidence);
    }
}
