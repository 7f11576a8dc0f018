//! What tasks ask, as tokens, and what a model answers.
//!
//! Texts become tokens by the harness's rules: context and continuation are encoded whole and cut where
//! the context alone ends; what is too long loses its beginning. Special tokens that stand in a text
//! count, as they do there.

use crate::subject::{Subject, check_room_of};
use forgelm_benchmark::{Answer, Generation, Prepared, Request, python_trim_end};
use forgelm_generate::{
    Continuation, FamilyOptions, FamilyScorer, GenerateOptions, Generator, Request as Prompt,
    RequestError, Sampling, ScoreError, shared_beginning,
};
use forgelm_tokenize::Tokenizer;
use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Answers that grow at once, where nobody says how many.
const LANES: usize = 8;
/// Documents whose answers are asked for together.
const TOGETHER: usize = 64;

/// Why there are no answers.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum AskError {
    /// The run should stop.
    #[error("stopped as asked")]
    Stopped,
    /// There is no memory for them.
    #[error("{0}")]
    NoRoom(String),
    /// A request cannot be put to the model, or the model gives no number.
    #[error("{task}, row {row}: {problem}")]
    Row {
        /// The task.
        task: String,
        /// Of the rows that are asked, from 1.
        row: usize,
        /// What is wrong.
        problem: String,
    },
}

/// A continuation as tokens.
struct Tokens {
    tokens: Vec<u32>,
    n_context: usize,
}

/// A context and its tokens.
struct Encoded {
    text: Arc<str>,
    tokens: Arc<[u32]>,
}

/// Texts to tokens for one model.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// What stands before a text that has nothing before it.
    start: Option<u32>,
    /// Its text.
    start_text: Option<String>,
    /// Tokens that the model takes.
    n_max: usize,
    /// The context that was encoded last.
    last: RefCell<Option<Encoded>>,
}

impl<'a> Encoder<'a> {
    fn new(subject: &Subject<'a>) -> Self {
        let tokenizer = subject.language.tokenizer;
        let start = tokenizer.bos_id().or_else(|| tokenizer.eos_id());
        let start_text = start.and_then(|id| tokenizer.token_text(id));
        let last = RefCell::new(None);
        Self { tokenizer, start, start_text, n_max: subject.positions(), last }
    }

    /// Tokens of a text, without what the tokenizer puts before texts.
    fn plain(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.tokenizer.encode_with_specials(text);
        encoding.map(|encoding| encoding.ids).map_err(|error| error.to_string())
    }

    /// Tokens of a text, with what the tokenizer puts before texts, unless the text begins with it.
    fn whole(&self, text: &str) -> Result<Vec<u32>, String> {
        let starts = self.start_text.as_deref().is_some_and(|start| text.starts_with(start));
        let prefix = if starts { &[] } else { self.tokenizer.prefix_ids() };
        Ok([prefix, &self.plain(text)?].concat())
    }

    fn start(&self) -> Result<u32, String> {
        self.start.ok_or_else(|| "the tokenizer has no token to begin a text with".to_owned())
    }

    fn context(&self, context: &Arc<str>, text: &str) -> Result<Arc<[u32]>, String> {
        if let Some(last) = &*self.last.borrow()
            && Arc::ptr_eq(&last.text, context)
        {
            return Ok(Arc::clone(&last.tokens));
        }
        let tokens: Arc<[u32]> = self.whole(text)?.into();
        *self.last.borrow_mut() =
            Some(Encoded { text: Arc::clone(context), tokens: Arc::clone(&tokens) });
        Ok(tokens)
    }

    fn continuation(&self, context: &Arc<str>, continuation: &str) -> Result<Tokens, String> {
        let trimmed = python_trim_end(context);
        let (context_ids, continuation_ids) = if trimmed.is_empty() {
            // Nothing comes before: white space alone belongs to the continuation.
            let ids = self.plain(&format!("{context}{continuation}"))?;
            let start = self.start()?;
            match ids.split_first() {
                Some((first, rest)) if *first == start => (vec![start], rest.to_vec()),
                _ => (vec![start], ids),
            }
        } else {
            let moved = &context[trimmed.len()..];
            let context_ids = self.context(context, trimmed)?;
            let whole = self.whole(&format!("{trimmed}{moved}{continuation}"))?;
            let rest = whole.get(context_ids.len()..).unwrap_or_default().to_vec();
            (context_ids.to_vec(), rest)
        };
        let n = continuation_ids.len();
        if n == 0 {
            return Err(format!("`{continuation}` has no token of its own after its context"));
        }
        if n > self.n_max {
            let max = self.n_max;
            return Err(format!("a continuation of {n} tokens; the model takes {max}"));
        }
        let mut tokens = [context_ids, continuation_ids].concat();
        tokens.drain(..tokens.len().saturating_sub(self.n_max + 1));
        Ok(Tokens { n_context: tokens.len() - n, tokens })
    }

    /// Windows of a whole text: each token is scored once, after as much as fits.
    fn windows(&self, text: &str) -> Result<Vec<Tokens>, String> {
        let (ids, n_max) = (self.whole(text)?, self.n_max);
        let start = self.start()?;
        let first = ids.len().min(n_max);
        let mut windows = Vec::new();
        if first > 0 {
            let tokens = [&[start], &ids[..first]].concat();
            windows.push(Tokens { tokens, n_context: 1 });
        }
        let mut n_done = first;
        while n_done < ids.len() {
            let n = (ids.len() - n_done).min(n_max);
            let end = n_done + n;
            let tokens = ids[end - n_max - 1..end].to_vec();
            windows.push(Tokens { tokens, n_context: n_max + 1 - n });
            n_done = end;
        }
        Ok(windows)
    }
}

/// The answers of a model to everything that a task asks.
///
/// `n_together` texts go through the model at once, at most; without it as many as pay.
pub(super) fn ask(
    subject: &Subject<'_>,
    prepared: &Prepared,
    n_together: Option<usize>,
) -> Result<Vec<Answer>, AskError> {
    let asker = Asker { subject, prepared, n_together, encoder: Encoder::new(subject) };
    match prepared.requests.first() {
        Some(Request::Generate { .. }) => asker.generated(&prepared.task.generation),
        Some(Request::LogLikelihood { .. } | Request::Rolling { .. }) => asker.likelihoods(),
        None => Ok(Vec::new()),
    }
}

struct Asker<'a> {
    subject: &'a Subject<'a>,
    prepared: &'a Prepared,
    n_together: Option<usize>,
    encoder: Encoder<'a>,
}

impl Asker<'_> {
    fn wrong(&self, row: usize, problem: String) -> AskError {
        AskError::Row { task: self.prepared.task.name.clone(), row: row + 1, problem }
    }

    fn likelihoods(&self) -> Result<Vec<Answer>, AskError> {
        let mut encoded: Vec<Vec<Tokens>> = Vec::new();
        // By window of a whole text, or by family: the document.
        let mut rows = Vec::new();
        for (row, range) in self.prepared.documents().enumerate() {
            let wrong = |problem| self.wrong(row, problem);
            let requests = &self.prepared.requests[range];
            if let [Request::Rolling { text }] = requests {
                let windows = self.encoder.windows(text).map_err(wrong)?;
                rows.extend(windows.iter().map(|_| row));
                encoded.extend(windows.into_iter().map(|window| vec![window]));
                continue;
            }
            let family = requests.iter().map(|request| match request {
                Request::LogLikelihood { context, continuation } => {
                    self.encoder.continuation(context, continuation)
                }
                other => Err(format!("{other:?} is another kind of request")),
            });
            encoded.push(family.collect::<Result<_, _>>().map_err(wrong)?);
            rows.push(row);
        }
        let families: Vec<Vec<Continuation<'_>>> = encoded
            .iter()
            .map(|family| {
                family
                    .iter()
                    .map(|of| Continuation { tokens: &of.tokens, n_context: of.n_context })
                    .collect()
            })
            .collect();
        let longest = |family: &Vec<Tokens>| family.iter().map(|of| of.tokens.len()).sum::<usize>();
        let n_rows = encoded.iter().map(longest).max().unwrap_or(0);
        let (decoder, adapter) = (self.subject.decoder, self.subject.adapter);
        let what = format!("likelihoods of texts of {n_rows} tokens");
        check_room_of(decoder, &what, |config, engine| {
            FamilyScorer::memory_plan(config, adapter, n_rows, engine)
        })
        .map_err(AskError::NoRoom)?;
        let mut scorer = FamilyScorer::new(decoder, adapter);
        let options = FamilyOptions {
            needs_greedy: self.prepared.needs_greedy(),
            n_texts_max: self.n_together,
        };
        let mut goes_on = || !(self.subject.is_stopped)();
        let found =
            scorer.score(&families, options, &mut goes_on).map_err(|error| match error {
                ScoreError::Stopped => AskError::Stopped,
                ScoreError::OutOfMemory(error) => AskError::NoRoom(error.to_string()),
                ScoreError::NotFinite { request, token } => {
                    let problem = format!("the model gives no finite number for token {token}");
                    self.wrong(rows[request], problem)
                }
            })?;
        if matches!(self.prepared.requests.first(), Some(Request::Rolling { .. })) {
            let mut sums = vec![0.0; self.prepared.n_documents()];
            for (row, windows) in rows.iter().zip(&found) {
                sums[*row] += windows.iter().map(|likelihood| likelihood.logp).sum::<f64>();
            }
            return Ok(sums.into_iter().map(Answer::Rolling).collect());
        }
        let answer = |likelihood: forgelm_generate::Likelihood| Answer::LogLikelihood {
            logp: likelihood.logp,
            is_greedy: likelihood.is_greedy,
        };
        Ok(found.into_iter().flatten().map(answer).collect())
    }

    fn generated(&self, generation: &Generation) -> Result<Vec<Answer>, AskError> {
        let n_new = generation.max_gen_toks;
        let n_max = self.encoder.n_max;
        let room = n_max.checked_sub(n_new).filter(|&room| room > 0).ok_or_else(|| {
            let problem =
                format!("answers of {n_new} tokens are asked for, and the model takes {n_max}");
            self.wrong(0, problem)
        })?;
        let mut prompts = Vec::with_capacity(self.prepared.requests.len());
        for (row, request) in self.prepared.requests.iter().enumerate() {
            let Request::Generate { context } = request else {
                return Err(self.wrong(row, format!("{request:?} is another kind of request")));
            };
            let mut tokens =
                self.encoder.whole(context).map_err(|problem| self.wrong(row, problem))?;
            tokens.drain(..tokens.len().saturating_sub(room));
            if tokens.is_empty() {
                tokens.push(self.encoder.start().map_err(|problem| self.wrong(row, problem))?);
            }
            prompts.push(tokens);
        }
        let tokenizer = self.subject.language.tokenizer;
        let end = tokenizer.eos_id().and_then(|id| tokenizer.token_text(id));
        let mut until = generation.until.clone();
        until.extend(end.filter(|end| !generation.until.contains(end)));
        until.retain(|text| !text.is_empty());
        let options = GenerateOptions {
            max_new_tokens: n_new,
            sampling: Sampling::GREEDY,
            seed: 0,
            stop_ids: tokenizer.eos_ids(),
            reuse_cache: false,
        };
        // The examples, where they are the same for all. The last token of a prompt has to run.
        let before_last: Vec<&[u32]> =
            prompts.iter().map(|prompt| &prompt[..prompt.len() - 1]).collect();
        let beginning = shared_beginning(&before_last);
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let context = (longest + n_new).min(n_max);
        let n_lanes = self.n_together.unwrap_or(LANES).min(prompts.len()).max(1);
        let (decoder, adapter) = (self.subject.decoder, self.subject.adapter);
        // A beginning takes no more than one lane more.
        let n_caches = n_lanes + usize::from(!beginning.is_empty());
        let what = format!("{n_lanes} answers at once, each of {context} tokens with its prompt,");
        check_room_of(decoder, &what, |config, engine| {
            Generator::memory_plan(config, adapter, context, n_caches, engine)
        })
        .map_err(AskError::NoRoom)?;
        let generator = Generator::with_lanes(decoder, adapter, context, n_lanes);
        let mut generator = generator.map_err(|error| AskError::NoRoom(error.to_string()))?;
        generator.share(beginning).map_err(|error| self.wrong(0, error.to_string()))?;
        let mut answers = Vec::with_capacity(prompts.len());
        for together in prompts.chunks(TOGETHER.max(n_lanes)) {
            let first = answers.len();
            let texts = self.together(&mut generator, together, &options, &until).map_err(|at| {
                let AtRow { row, problem } = at;
                self.wrong(first + row, problem)
            });
            if (self.subject.is_stopped)() {
                return Err(AskError::Stopped);
            }
            answers.extend(texts?.into_iter().map(Answer::Text));
        }
        Ok(answers)
    }

    /// Answers to some prompts, each cut at the first text that ends it.
    fn together(
        &self,
        generator: &mut Generator<'_>,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        until: &[String],
    ) -> Result<Vec<String>, AtRow> {
        let tokenizer = self.subject.language.tokenizer;
        let requests: Vec<Prompt<'_>> =
            prompts.iter().map(|prompt| Prompt { prompt, options }).collect();
        let mut grown: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
        let mut goes_on = |request: usize, token: u32| {
            grown[request].push(token);
            // Special tokens count: some tasks end their answers with one.
            let ends = tokenizer
                .decode(&grown[request])
                .is_ok_and(|text| until.iter().any(|end| text.contains(end.as_str())));
            match ends || (self.subject.is_stopped)() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let generated = generator.generate_all(&requests, &mut goes_on);
        let generated = generated.map_err(|RequestError { request, source }| AtRow {
            row: request,
            problem: source.to_string(),
        })?;
        let text = |(row, tokens): (usize, &Vec<u32>)| {
            let text = tokenizer
                .decode_without_specials(tokens)
                .map_err(|error| AtRow { row, problem: error.to_string() })?;
            let cut = |text: String, end: &String| match text.split_once(end.as_str()) {
                Some((before, _)) => before.to_owned(),
                None => text,
            };
            Ok(until.iter().fold(text, cut))
        };
        generated.iter().map(|generated| &generated.tokens).enumerate().map(text).collect()
    }
}

/// What is wrong with one of several prompts.
struct AtRow {
    row: usize,
    problem: String,
}

#[cfg(test)]
mod tests;
