//! A model as evaluators see it: scores, answers and held-out records.

use crate::error::RunError;
use crate::subject::{AnswerError, Subject, check_room};
use forgelm_data::{Sequence, Sequences};
use forgelm_generate::{
    GenerateError, GenerateOptions, Generator, Sampling, ScoreError, ScoreRequest, Scorer,
};
use forgelm_model::{Adapter, Engine, MemoryPlan, ModelConfig};
use forgelm_sdk::evaluator::{Generate, HeldOut, RecordText, Score, Services, TextPair, TextScore};
use forgelm_sdk::options::Reader;
use forgelm_sdk::trainer::Role;
use forgelm_sdk::{Failed, OptionValue};
use forgelm_tokenize::Message;
use std::cell::RefCell;

/// Answers that grow at once.
const LANES: usize = 8;
/// Held-out records that are in memory at once.
const RECORDS_TOGETHER: usize = 256;
/// Tokens of an answer, at most, where an evaluator does not say how many.
const ANSWER_TOKENS: usize = 256;

/// Every buffer of an evaluator that asks for texts like those of the run, by name and size: scores of
/// its longest, and answers of the usual length. What one asks for beyond that is refused where there
/// is no room for it.
pub(crate) fn memory_plan(
    model: &ModelConfig,
    adapter: Option<&Adapter>,
    longest: usize,
    engine: Engine<'_>,
) -> MemoryPlan {
    let context = longest.saturating_add(ANSWER_TOKENS).min(model.max_position_embeddings);
    let mut plan = Scorer::memory_plan(model, adapter, longest, engine);
    let generation = Generator::memory_plan(model, adapter, context, LANES, engine);
    plan.buffers.extend(generation.buffers);
    plan
}

/// A model, its language, and the records that the run holds out.
pub(crate) struct Examined<'a> {
    subject: Subject<'a>,
    held_out: &'a Sequences,
    /// Units of `held_out` that have an answer that is wanted.
    records: Vec<usize>,
    scorer: RefCell<Scorer<'a>>,
}

impl<'a> Examined<'a> {
    /// # Errors
    /// If the held-out records cannot be read.
    pub(crate) fn new(subject: Subject<'a>, held_out: &'a Sequences) -> Result<Self, RunError> {
        let mut records = Vec::new();
        for unit in 0..held_out.len() {
            if held_out.read(&[unit])?.iter().any(is_wanted) {
                records.push(unit);
            }
        }
        let scorer = RefCell::new(Scorer::new(subject.decoder, subject.adapter));
        Ok(Self { subject, held_out, records, scorer })
    }

    pub(crate) fn services(&self) -> Services<'_> {
        Services { score: Some(self), generate: Some(self), held_out: Some(self) }
    }

    /// Scores texts, each with its scored rows; `what` names them in messages.
    fn scores(
        &self,
        (what, first): (&str, u64),
        texts: &[(Vec<u32>, Vec<u32>)],
    ) -> Result<Vec<TextScore>, Failed> {
        let requests: Vec<ScoreRequest<'_>> =
            texts.iter().map(|(tokens, rows)| ScoreRequest { tokens, rows }).collect();
        let longest = texts.iter().map(|(tokens, _)| tokens.len()).max().unwrap_or(0);
        let n_bytes = self.scorer.borrow().still_needed(longest);
        if n_bytes > 0 {
            let what = format!("scores of {longest} tokens at once");
            check_room(&what, n_bytes).map_err(Failed::new)?;
        }
        let logps = self.scorer.borrow_mut().score(&requests, &mut || !(self.subject.is_stopped)());
        let logps = logps.map_err(|error| match error {
            ScoreError::Stopped => Failed::cancelled(),
            ScoreError::OutOfMemory(error) => Failed::new(error.to_string()),
            ScoreError::NotFinite { request, token } => Failed::new(format!(
                "{what} {}: the model gives no finite number for token {token}",
                first + request as u64
            )),
        })?;
        let score = |logps: &Vec<f32>| TextScore {
            logp_sum: logps.iter().map(|&logp| f64::from(logp)).sum(),
            n_tokens: logps.len() as u64,
        };
        Ok(logps.iter().map(score).collect())
    }

    /// Tokens of a pair, and the rows that predict those which reach into the completion.
    fn cut(&self, pair: &TextPair<'_>) -> Result<(Vec<u32>, Vec<u32>), String> {
        let tokenizer = self.subject.language.tokenizer;
        let text = [pair.prompt, pair.completion].concat();
        let encoding = tokenizer.encode_with_specials(&text).map_err(|error| error.to_string())?;
        let prefix = tokenizer.prefix_ids();
        let tokens = [prefix, &encoding.ids].concat();
        if tokens.len() > self.subject.positions() {
            let (found, positions) = (tokens.len(), self.subject.positions());
            return Err(format!("{found} tokens; the model takes {positions}"));
        }
        let is_scored = encoding.offsets.iter().map(|&(_, end)| end > pair.prompt.len());
        let rows = (0_u32..).zip(std::iter::repeat_n(false, prefix.len()).chain(is_scored));
        let rows: Vec<u32> = rows
            .filter_map(|(token, is_scored)| token.checked_sub(1).filter(|_| is_scored))
            .collect();
        match rows.is_empty() {
            true => Err("no token of the completion has something before it".to_owned()),
            false => Ok((tokens, rows)),
        }
    }

    /// Tokens of a prompt.
    fn prompt(&self, prompt: &str, is_chat: bool) -> Result<Vec<u32>, String> {
        match is_chat {
            false => self.subject.text(prompt),
            true => self
                .subject
                .conversation(&[Message::new("user", prompt)])
                .map_err(|problem| format!("`chat`: {problem}")),
        }
    }

    /// The wanted sequence of each of these records.
    fn records(&self, first: u64, n: usize) -> Result<Vec<Sequence>, Failed> {
        let n_records = self.records.len();
        let range =
            usize::try_from(first).ok().and_then(|first| Some(first..first.checked_add(n)?));
        let units = range.and_then(|range| self.records.get(range)).ok_or_else(|| {
            let last = first.saturating_add(n as u64);
            Failed::argument(format!(
                "records {first} to {last} were asked for; the run holds out {n_records}"
            ))
        })?;
        let mut sequences: Vec<Sequence> = Vec::with_capacity(n);
        for &unit in units {
            let read = self.held_out.read(&[unit]);
            let read = read.map_err(|error| Failed::new(error.to_string()))?;
            sequences.extend(read.into_iter().find(is_wanted));
        }
        Ok(sequences)
    }
}

/// Whether a sequence is an answer as it should be.
fn is_wanted(sequence: &Sequence) -> bool {
    matches!(sequence.role, Role::Sole | Role::Chosen)
}

impl Score for Examined<'_> {
    fn score(&self, pairs: &[TextPair<'_>]) -> Result<Vec<TextScore>, Failed> {
        let cut = |(i, pair): (usize, &TextPair<'_>)| {
            self.cut(pair).map_err(|problem| Failed::argument(format!("pair {i}: {problem}")))
        };
        let texts = pairs.iter().enumerate().map(cut).collect::<Result<Vec<_>, _>>()?;
        self.scores(("pair", 0), &texts)
    }
}

impl Generate for Examined<'_> {
    fn generate(
        &self,
        prompts: &[&str],
        options: &[(&str, OptionValue)],
    ) -> Result<Vec<String>, Failed> {
        let (options, is_chat) = generate_options(options, self.subject.language.stop_ids)?;
        let tokens = |(i, prompt): (usize, &&str)| {
            self.prompt(prompt, is_chat)
                .map_err(|problem| Failed::argument(format!("prompt {i}: {problem}")))
        };
        let prompts = prompts.iter().enumerate().map(tokens).collect::<Result<Vec<_>, _>>()?;
        self.subject.answers(&prompts, &options, LANES).map_err(|error| match &error {
            AnswerError::Stopped => Failed::cancelled(),
            AnswerError::NoRoom(_) | AnswerError::NoText(_) => Failed::new(error.to_string()),
            AnswerError::Prompt { source, .. } => match source {
                GenerateError::NotANumber(_) => Failed::new(error.to_string()),
                GenerateError::Sampling(_)
                | GenerateError::EmptyPrompt
                | GenerateError::PromptTooLong { .. }
                | GenerateError::UnknownToken { .. } => Failed::argument(error.to_string()),
            },
        })
    }
}

impl HeldOut for Examined<'_> {
    fn n_records(&self) -> u64 {
        self.records.len() as u64
    }

    fn score(&self, first: u64, n: usize) -> Result<Vec<TextScore>, Failed> {
        let mut scores = Vec::new();
        while scores.len() < n {
            let from = first.saturating_add(scores.len() as u64);
            let sequences = self.records(from, (n - scores.len()).min(RECORDS_TOGETHER))?;
            let text = |sequence: Sequence| {
                let is_trained = sequence.trained.iter().skip(1);
                let rows = (0_u32..).zip(is_trained).filter_map(|(row, &is)| is.then_some(row));
                (sequence.tokens, rows.collect())
            };
            let texts: Vec<(Vec<u32>, Vec<u32>)> = sequences.into_iter().map(text).collect();
            scores.extend(self.scores(("record", from), &texts)?);
        }
        Ok(scores)
    }

    fn text(&self, record: u64) -> Result<RecordText, Failed> {
        let sequences = self.records(record, 1)?;
        let Some(Sequence { tokens, trained, .. }) = sequences.first() else {
            return Ok(RecordText::default());
        };
        let tokenizer = self.subject.language.tokenizer;
        let n_prefix = if tokens.starts_with(tokenizer.prefix_ids()) {
            tokenizer.prefix_ids().len()
        } else {
            0
        };
        let first_trained = (1..tokens.len()).find(|&t| trained[t]).unwrap_or(tokens.len());
        let n_prompt = first_trained.max(n_prefix);
        let decode = |tokens: &[u32]| {
            tokenizer.decode(tokens).map_err(|error| Failed::new(error.to_string()))
        };
        let (prompt, whole) = (decode(&tokens[n_prefix..n_prompt])?, decode(&tokens[n_prefix..])?);
        // Cut out of the whole: a decoder may drop a space that a text begins with.
        let completion = match whole.strip_prefix(&prompt) {
            Some(rest) => rest.to_owned(),
            None => decode(&tokens[n_prompt..])?,
        };
        Ok(RecordText { prompt, completion })
    }
}

/// Options of `forgelm.generate/1`; and whether prompts are turns of a chat.
#[expect(clippy::cast_possible_truncation, reason = "within these ranges")]
fn generate_options(
    given: &[(&str, OptionValue)],
    stop_ids: &[u32],
) -> Result<(GenerateOptions, bool), Failed> {
    let read = || {
        let mut options = Reader::new("forgelm.generate/1", given);
        let max_new_tokens = options.whole("max_new_tokens", ANSWER_TOKENS as u64, 1..=1 << 32)?;
        let temperature = options.number("temperature", 0.0, 0.0..=2.0)?;
        let top_p = options.number("top_p", 1.0, 1e-6..=1.0)?;
        let seed = options.whole("seed", 0, 0..=1 << 53)?;
        let is_chat = options.flag("chat", false)?;
        options.finish()?;
        let (temperature, top_p) = (temperature as f32, top_p as f32);
        let sampling = match temperature > 0.0 {
            true => Sampling { temperature, top_p, ..Sampling::GREEDY },
            false => Sampling::GREEDY,
        };
        let options = GenerateOptions {
            max_new_tokens: max_new_tokens as usize,
            sampling,
            seed,
            stop_ids: stop_ids.to_vec(),
            reuse_cache: false,
        };
        Ok((options, is_chat))
    };
    read().map_err(|error: forgelm_sdk::OptionsError| Failed::argument(error.to_string()))
}

#[cfg(test)]
mod tests;
