//! Records to sequences of tokens, with a mark for each token that is trained.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use forgelm_tokenize::{
    ChatError, ChatTemplate, Message, RenderOptions, SpanSearch, TemplateError, TokenizeError,
    Tokenizer,
};

use crate::dataset::share;
use crate::problem::{Code, DataProblem, Problems};
use crate::record::{Record, RecordKind};

/// Of the rows, this share may have nothing left to train.
const ALL_MASKED_MAX: f64 = 0.01;

/// Records that a thread takes at once.
const CHUNK: usize = 64;

/// A record as tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sequence {
    /// Number of its record in the data set.
    pub record: u64,
    /// The tokens, at most `max_length`.
    pub tokens: Vec<u32>,
    /// For each token whether it is a target. The first token never is, whatever this says: nothing predicts it.
    pub trained: Vec<bool>,
}

impl Sequence {
    /// Number of tokens that are predicted and trained.
    #[must_use]
    pub fn n_trained(&self) -> usize {
        self.trained.iter().skip(1).filter(|&&trained| trained).count()
    }
}

/// How records become tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenderSettings {
    /// `model.max_length`: longer sequences keep their start.
    pub max_length: usize,
    /// `data.train_on: all`: every token of a conversation is trained, not the assistant's alone.
    pub train_on_all: bool,
    /// `data.add_eos`: texts end with the end-of-sequence token.
    pub add_eos: bool,
    /// `data.template_now` in seconds since 1970, UTC.
    pub template_now: Option<i64>,
    /// Threads to use; the result does not depend on it.
    pub threads: usize,
}

/// What a set of records came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenStatistics {
    /// Records read.
    pub rows: u64,
    /// Tokens of the sequences kept.
    pub tokens: u64,
    /// Of these, predicted and trained.
    pub trained_tokens: u64,
    /// The longest sequence before truncation.
    pub longest: u64,
    /// Sequences that were truncated.
    pub truncated: u64,
    /// Records dropped because nothing was left to train.
    pub dropped: u64,
    /// Texts that look like special tokens and were kept as plain text, over all records.
    pub special_texts: u64,
}

/// Sequences and what is to be said about them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// The sequences that have something to train, in the order of the records.
    pub sequences: Vec<Sequence>,
    /// Counts.
    pub statistics: TokenStatistics,
}

/// Why records could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// There is no template for conversations.
    #[error(transparent)]
    NoTemplate(#[from] TemplateError),
    /// Rows that the template or the tokenizer cannot take.
    #[error(transparent)]
    Problems(#[from] Problems),
}

/// Turns records into sequences.
pub struct Renderer<'t> {
    tokenizer: &'t Tokenizer,
    template: Option<&'t ChatTemplate>,
    settings: RenderSettings,
}

impl<'t> Renderer<'t> {
    /// A renderer with a tokenizer, and a template if there may be conversations.
    #[must_use]
    pub fn new(
        tokenizer: &'t Tokenizer,
        template: Option<&'t ChatTemplate>,
        settings: RenderSettings,
    ) -> Self {
        Renderer { tokenizer, template, settings }
    }

    /// Renders the records with these numbers, in this order, on several threads.
    ///
    /// # Errors
    /// All rows that cannot be rendered, or that more than 1 % have nothing left to train.
    ///
    /// # Panics
    /// If a number is not that of a record.
    pub fn render(&self, records: &[Record], numbers: &[usize]) -> Result<Rendered, RenderError> {
        let holds_messages = |&i: &usize| matches!(records[i].kind, RecordKind::Messages(_));
        if self.template.is_none() && numbers.iter().any(holds_messages) {
            return Err(TemplateError::None.into());
        }
        let mut rendered = Rendered::default();
        let mut problems = Problems::default();
        let mut masked = Vec::new();
        for (one, &number) in self.render_in_parallel(records, numbers).into_iter().zip(numbers) {
            match one {
                Err(problem) => problems.push(*problem),
                Ok(one) => {
                    rendered.statistics.add(&one, self.settings.max_length);
                    if one.sequence.n_trained() > 0 {
                        rendered.sequences.push(one.sequence);
                    } else {
                        masked.push(number);
                    }
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems.into());
        }
        if share(masked.len() as u64, numbers.len() as u64) > ALL_MASKED_MAX {
            return Err(self.all_masked(records, &masked, numbers.len()).into());
        }
        Ok(rendered)
    }

    /// The length in tokens before truncation does not matter here: what is left after it does.
    fn all_masked(&self, records: &[Record], masked: &[usize], n_rows: usize) -> Problems {
        let mut problems = Problems::default();
        for &number in masked {
            let found = format!(
                "nothing is left to train within {} tokens ({} of {n_rows} rows are like this)",
                self.settings.max_length,
                masked.len()
            );
            let problem = DataProblem::row(
                Code::AllMasked,
                &records[number].place(),
                "",
                found,
                "at most 1 % of the rows",
            );
            problems.push(
                problem.hint("raise `model.max_length`, or shorten what comes before the answer"),
            );
        }
        problems
    }

    fn render_in_parallel(
        &self,
        records: &[Record],
        numbers: &[usize],
    ) -> Vec<Result<One, Box<DataProblem>>> {
        let n_chunks = numbers.len().div_ceil(CHUNK);
        let n_threads = self.settings.threads.clamp(1, n_chunks.max(1));
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                let Some(numbers) = numbers.chunks(CHUNK).nth(chunk) else { return done };
                let results: Vec<_> =
                    numbers.iter().map(|&number| self.render_one(records, number)).collect();
                done.push((chunk, results));
            }
        };
        let mut chunks = if n_threads == 1 {
            work()
        } else {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(work)).collect();
                threads
                    .into_iter()
                    .flat_map(|t| t.join().expect("rendering does not panic"))
                    .collect()
            })
        };
        chunks.sort_by_key(|(chunk, _)| *chunk);
        chunks.into_iter().flat_map(|(_, results)| results).collect()
    }

    fn render_one(&self, records: &[Record], number: usize) -> Result<One, Box<DataProblem>> {
        let record = &records[number];
        let encoded = match &record.kind {
            RecordKind::Text(text) => self.text(text),
            RecordKind::Messages(messages) => self.messages(messages),
            RecordKind::PromptCompletion { prompt, completion } => {
                self.prompt_completion(prompt, completion)
            }
        };
        let Encoded { mut tokens, mut trained, special_texts } =
            encoded.map_err(|error| problem(record, &error))?;
        let n_tokens = tokens.len();
        tokens.truncate(self.settings.max_length);
        trained.truncate(self.settings.max_length);
        Ok(One {
            sequence: Sequence { record: number as u64, tokens, trained },
            n_tokens,
            special_texts,
        })
    }

    /// A text, with what the tokenizer puts around texts, and the end token.
    fn text(&self, text: &str) -> Result<Encoded, ChatError> {
        self.plain(text, 0..text.len())
    }

    fn prompt_completion(&self, prompt: &str, completion: &str) -> Result<Encoded, ChatError> {
        let whole = format!("{prompt}{completion}");
        let from = if self.settings.train_on_all { 0 } else { prompt.len() };
        let to = whole.len();
        self.plain(&whole, from..to)
    }

    /// A user's text whose bytes in `range` are trained.
    fn plain(&self, text: &str, range: Range<usize>) -> Result<Encoded, ChatError> {
        let tokenizer = self.tokenizer;
        let eos = tokenizer.eos_id().filter(|_| self.settings.add_eos);
        // A text that ends with the end token's text means the token.
        let eos_text = eos.and_then(|id| tokenizer.token_text(id)).filter(|eos| !eos.is_empty());
        let body = eos_text.and_then(|eos| text.strip_suffix(eos.as_str())).unwrap_or(text);
        let encoding = tokenizer.encode(body)?;
        let mut tokens = tokenizer.prefix_ids().to_vec();
        let mut trained = vec![range.start == 0; tokens.len()];
        tokens.extend_from_slice(&encoding.ids);
        trained.extend(
            encoding.offsets.iter().map(|&(start, end)| start < range.end && range.start < end),
        );
        let is_end = |id: u32| tokenizer.suffix_ids().contains(&id);
        let end = tokenizer.suffix_ids().iter().copied().chain(eos.filter(|&id| !is_end(id)));
        tokens.extend(end);
        trained.resize(tokens.len(), true);
        Ok(Encoded { tokens, trained, special_texts: encoding.suppressed })
    }

    fn messages(&self, messages: &[Message]) -> Result<Encoded, ChatError> {
        let template = self.template.ok_or(ChatError::Template(TemplateError::None))?;
        let spans =
            if self.settings.train_on_all { SpanSearch::None } else { SpanSearch::Assistant };
        let options =
            RenderOptions { spans, now: self.settings.template_now, ..RenderOptions::default() };
        let chat = self.tokenizer.encode_chat(template, messages, &options)?;
        let trained =
            if self.settings.train_on_all { vec![true; chat.ids.len()] } else { chat.assistant };
        Ok(Encoded { tokens: chat.ids, trained, special_texts: chat.suppressed })
    }
}

struct Encoded {
    tokens: Vec<u32>,
    trained: Vec<bool>,
    special_texts: usize,
}

/// A record rendered.
struct One {
    sequence: Sequence,
    /// Before truncation.
    n_tokens: usize,
    special_texts: usize,
}

impl TokenStatistics {
    fn add(&mut self, one: &One, max_length: usize) {
        let n_trained = one.sequence.n_trained();
        self.rows += 1;
        self.longest = self.longest.max(one.n_tokens as u64);
        self.truncated += u64::from(one.n_tokens > max_length);
        self.special_texts += one.special_texts as u64;
        if n_trained == 0 {
            self.dropped += 1;
            return;
        }
        self.tokens += one.sequence.tokens.len() as u64;
        self.trained_tokens += n_trained as u64;
    }
}

fn problem(record: &Record, error: &ChatError) -> Box<DataProblem> {
    let (code, field) = match error {
        ChatError::Template(TemplateError::AssistantLost { message }) => {
            (Code::Template, Some(*message))
        }
        ChatError::Template(_) => (Code::Template, None),
        ChatError::SpecialText { message, .. } => (Code::SpecialText, Some(*message)),
        ChatError::Tokenize(TokenizeError::SpecialFromText { .. }) => (Code::SpecialText, None),
        ChatError::Tokenize(_) => (Code::Tokenize, None),
    };
    let field = field.map_or(String::new(), |message| format!("messages[{message}]"));
    Box::new(DataProblem::row(code, &record.place(), field, error.to_string(), ""))
}
