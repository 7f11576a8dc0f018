//! Records to sequences of tokens, with a mark for each token that is trained.

use std::ops::Range;

use forgelm_sdk::trainer::Role;
use forgelm_tokenize::{
    ChatError, ChatTemplate, Message, RenderOptions, SpanSearch, TemplateError, TokenizeError,
    Tokenizer,
};

use crate::dataset::share;
use crate::parallel;
use crate::problem::{Code, DataProblem, Place, Problems};
use crate::record::{Content, Layout, Record, RecordKind};

/// Of the rows, this share may have nothing left to train.
pub(crate) const ALL_MASKED_MAX: f64 = 0.01;

/// A record as tokens, or one of its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Number of its record in the data set.
    pub record: u64,
    /// Its part in the record. Of labelled answers the desirable ones are `Chosen` and the others `Rejected`;
    /// a prompt that is still to be answered is a `Rollout`.
    pub role: Role,
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

    /// True if there is something to learn from it: a trained token, or a prompt to answer.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        if self.role == Role::Rollout { !self.tokens.is_empty() } else { self.n_trained() > 0 }
    }

    /// The prompt of this sequence with the answer of another: the mismatched pair by which KTO estimates a KL
    /// term, cut at `max_length`.
    #[must_use]
    pub fn mismatched(&self, other: &Sequence, max_length: usize) -> Sequence {
        let prompt = &self.tokens[..self.n_prompt()];
        let answer = &other.tokens[other.n_prompt()..];
        let mut tokens = [prompt, answer].concat();
        let mut trained = vec![false; prompt.len()];
        trained.resize(tokens.len(), true);
        tokens.truncate(max_length);
        trained.truncate(max_length);
        Sequence { record: self.record, role: Role::Kl, tokens, trained }
    }

    /// Tokens before the first trained one.
    fn n_prompt(&self) -> usize {
        self.trained.iter().take_while(|&&trained| !trained).count()
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
    /// Prompts of preferences begin with the BOS token if there is one (SimPO and ORPO, as TRL's trainers do),
    /// whether or not the tokenizer adds it to texts.
    pub bos_before_prompt: bool,
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
        if numbers.iter().any(|&i| self.lacks_template(&records[i].kind)) {
            return Err(TemplateError::None.into());
        }
        let mut rendered = Rendered::default();
        let mut problems = Problems::default();
        let mut masked = Problems::default();
        let each = |&number: &usize| self.render_record(&records[number], number as u64);
        for (one, &number) in
            parallel::map(self.settings.threads, numbers, each).iter_mut().zip(numbers)
        {
            match one {
                Err(problem) => problems.push((**problem).clone()),
                Ok(one) => {
                    rendered.statistics.add(one);
                    if one.is_usable() {
                        rendered.sequences.append(&mut one.sequences);
                    } else {
                        masked.push(self.nothing_left(&records[number].place()));
                    }
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems.into());
        }
        if share(masked.total, numbers.len() as u64) > ALL_MASKED_MAX {
            return Err(masked.into());
        }
        Ok(rendered)
    }

    /// True if a record cannot be rendered for want of a chat template.
    pub(crate) fn lacks_template(&self, kind: &RecordKind) -> bool {
        self.template.is_none() && kind.needs_template()
    }

    /// How rows of a layout become text, for the evidence.
    #[must_use]
    pub fn rendering(&self, layout: &Layout) -> &'static str {
        match layout {
            Layout::Messages | Layout::Turns { .. } if self.template.is_none() => "tags",
            Layout::Messages | Layout::Turns { .. } => "chat template of the model",
            _ => "plain text",
        }
    }

    /// What to say of a row that has nothing to train.
    pub(crate) fn nothing_left(&self, place: &Place<'_>) -> DataProblem {
        let found = format!("nothing is left to train within {} tokens", self.settings.max_length);
        let problem =
            DataProblem::row(Code::AllMasked, place, "", found, "at most 1 % of such rows");
        problem.hint("raise `model.max_length`, or shorten what comes before the answer")
    }

    pub(crate) fn settings(&self) -> &RenderSettings {
        &self.settings
    }

    pub(crate) fn tokenizer(&self) -> &'t Tokenizer {
        self.tokenizer
    }

    pub(crate) fn template(&self) -> Option<&'t ChatTemplate> {
        self.template
    }

    /// Renders one record under a number.
    pub(crate) fn render_record(
        &self,
        record: &Record,
        number: u64,
    ) -> Result<RenderedRecord, Box<DataProblem>> {
        let encoded = self.encode(&record.kind).map_err(|error| problem(record, &error))?;
        let max_length = self.settings.max_length;
        let mut rendered = RenderedRecord::default();
        for (role, mut encoded) in encoded {
            let n_tokens = encoded.tokens.len();
            rendered.longest = rendered.longest.max(n_tokens);
            rendered.is_truncated |= n_tokens > max_length;
            rendered.special_texts += encoded.special_texts;
            if role == Role::Rollout {
                // The end of a prompt is what is to be answered.
                let surplus = n_tokens.saturating_sub(max_length);
                encoded.tokens.drain(..surplus);
                encoded.trained.drain(..surplus);
            }
            encoded.tokens.truncate(max_length);
            encoded.trained.truncate(max_length);
            let Encoded { tokens, trained, .. } = encoded;
            rendered.sequences.push(Sequence { record: number, role, tokens, trained });
        }
        Ok(rendered)
    }

    fn encode(&self, kind: &RecordKind) -> Result<Vec<(Role, Encoded)>, ChatError> {
        let sole = |encoded| vec![(Role::Sole, encoded)];
        Ok(match kind {
            RecordKind::Text(text) => {
                sole(self.plain(text, std::slice::from_ref(&(0..text.len())))?)
            }
            RecordKind::Messages(messages) if self.template.is_none() => {
                sole(self.tagged(messages, "\n")?)
            }
            RecordKind::Turns(messages) if self.template.is_none() => {
                sole(self.tagged(messages, "")?)
            }
            RecordKind::Messages(messages) | RecordKind::Turns(messages) => {
                sole(self.messages(messages)?)
            }
            RecordKind::PromptCompletion { prompt, completion } => {
                sole(self.prompt_completion(prompt, completion)?)
            }
            RecordKind::Preference { prompt, chosen, rejected } => {
                let answers = self.answers(prompt, &[chosen, rejected])?;
                [Role::Chosen, Role::Rejected].into_iter().zip(answers).collect()
            }
            RecordKind::Labelled { prompt, completion, is_desirable } => {
                let role = if *is_desirable { Role::Chosen } else { Role::Rejected };
                self.answers(prompt, &[completion])?.into_iter().map(|e| (role, e)).collect()
            }
            RecordKind::Prompt { prompt, .. } => {
                let (tokens, special_texts) = self.prompt(prompt)?;
                let trained = vec![false; tokens.len()];
                vec![(Role::Rollout, Encoded { tokens, trained, special_texts })]
            }
        })
    }

    /// The tokens of a prompt: a text with what the tokenizer puts before texts, a conversation with the start
    /// of the assistant's turn.
    fn prompt(&self, prompt: &Content) -> Result<(Vec<u32>, usize), ChatError> {
        match prompt {
            Content::Text(text) => {
                let encoding = self.tokenizer.encode(text)?;
                Ok(([self.tokenizer.prefix_ids(), &encoding.ids].concat(), encoding.suppressed))
            }
            Content::Messages(messages) => {
                let chat = self.chat(messages, true)?;
                Ok((chat.0, chat.1))
            }
        }
    }

    /// A prompt with each of its answers.
    ///
    /// Prompt and answer are tokenized together; the answer begins where these tokens part from the prompt's own
    /// (of two answers at the earlier place), so that a merge across the border is the answer's. A text ends
    /// with the end token whatever `add_eos` says.
    ///
    /// Source: TRL 1.16, `tokenize_fn` of its DPO and KTO trainers.
    fn answers(&self, prompt: &Content, answers: &[&Content]) -> Result<Vec<Encoded>, ChatError> {
        let (mut prompt_ids, _) = self.prompt(prompt)?;
        let mut encoded = Vec::with_capacity(answers.len());
        for answer in answers {
            let (tokens, special_texts) = self.whole(prompt, answer)?;
            encoded.push(Encoded { tokens, trained: Vec::new(), special_texts });
        }
        if let Some(bos) = self.tokenizer.bos_id().filter(|_| self.settings.bos_before_prompt) {
            for tokens in encoded.iter_mut().map(|e| &mut e.tokens).chain([&mut prompt_ids]) {
                if tokens.first() != Some(&bos) {
                    tokens.insert(0, bos);
                }
            }
        }
        let common =
            |e: &Encoded| e.tokens.iter().zip(&prompt_ids).take_while(|(a, b)| a == b).count();
        let n_prompt = encoded.iter().map(common).min().unwrap_or(0);
        for e in &mut encoded {
            e.trained = (0..e.tokens.len()).map(|t| t >= n_prompt).collect();
        }
        Ok(encoded)
    }

    /// The tokens of a prompt and an answer together.
    fn whole(&self, prompt: &Content, answer: &Content) -> Result<(Vec<u32>, usize), ChatError> {
        match (prompt, answer) {
            (Content::Messages(prompt), Content::Messages(answer)) => {
                let whole: Vec<Message> = prompt.iter().chain(answer).cloned().collect();
                self.chat(&whole, false)
            }
            (Content::Text(prompt), Content::Text(answer)) => {
                let eos = self.tokenizer.eos_id();
                let whole = self.encode_ended(&format!("{prompt}{answer}"), eos)?;
                Ok((
                    [self.tokenizer.prefix_ids(), &whole.ids, &whole.end].concat(),
                    whole.suppressed,
                ))
            }
            // The reader of rows lets only two of a kind through.
            _ => Ok((Vec::new(), 0)),
        }
    }

    fn chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<(Vec<u32>, usize), ChatError> {
        let template = self.template.ok_or(ChatError::Template(TemplateError::None))?;
        let options = RenderOptions {
            add_generation_prompt,
            now: self.settings.template_now,
            ..RenderOptions::default()
        };
        let chat = self.tokenizer.encode_chat(template, messages, &options)?;
        Ok((chat.ids, chat.suppressed))
    }

    /// A conversation for a tokenizer without a template: a tag for each turn, `after` behind the last one.
    /// The assistant's texts are trained, with the line end that closes a turn.
    ///
    /// Source: ForgeLM's first implementation, whose rendering of every conversation this was.
    fn tagged(&self, messages: &[Message], after: &str) -> Result<Encoded, ChatError> {
        let mut text = String::new();
        let mut trained = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            text.push_str(&format!("[{}]\n", message.role.to_uppercase()));
            let start = text.len();
            text.push_str(&message.content);
            text.push_str(if i + 1 == messages.len() { after } else { "\n" });
            if message.role == "assistant" {
                trained.push(start..text.len());
            }
        }
        if self.settings.train_on_all {
            trained.clear();
            trained.push(0..text.len());
        }
        self.plain(&text, &trained)
    }

    fn prompt_completion(&self, prompt: &str, completion: &str) -> Result<Encoded, ChatError> {
        let whole = format!("{prompt}{completion}");
        let from = if self.settings.train_on_all { 0 } else { prompt.len() };
        let range = from..whole.len();
        self.plain(&whole, std::slice::from_ref(&range))
    }

    /// A user's text, with what the tokenizer puts around texts and the end token; the bytes in `ranges` are
    /// trained, and so is the end.
    fn plain(&self, text: &str, ranges: &[Range<usize>]) -> Result<Encoded, ChatError> {
        let eos = self.tokenizer.eos_id().filter(|_| self.settings.add_eos);
        let whole = self.encode_ended(text, eos)?;
        let mut tokens = self.tokenizer.prefix_ids().to_vec();
        let from_start = ranges.first().is_some_and(|range| range.start == 0);
        let mut trained = vec![from_start; tokens.len()];
        tokens.extend_from_slice(&whole.ids);
        let mut ranges = ranges.iter().peekable();
        for &(start, end) in &whole.offsets {
            while ranges.next_if(|range| range.end <= start).is_some() {}
            trained.push(ranges.peek().is_some_and(|range| range.start < end));
        }
        tokens.extend_from_slice(&whole.end);
        trained.resize(tokens.len(), true);
        Ok(Encoded { tokens, trained, special_texts: whole.suppressed })
    }

    /// A text without what the tokenizer puts before it, and the tokens that end it. A text that ends with the
    /// end token's text means the token.
    fn encode_ended(&self, text: &str, eos: Option<u32>) -> Result<Ended, ChatError> {
        let tokenizer = self.tokenizer;
        let eos_text = eos.and_then(|id| tokenizer.token_text(id)).filter(|eos| !eos.is_empty());
        let body = eos_text.and_then(|eos| text.strip_suffix(eos.as_str())).unwrap_or(text);
        let encoding = tokenizer.encode(body)?;
        let suffix = tokenizer.suffix_ids();
        let end = suffix.iter().copied().chain(eos.filter(|id| !suffix.contains(id))).collect();
        Ok(Ended {
            ids: encoding.ids,
            offsets: encoding.offsets,
            end,
            suppressed: encoding.suppressed,
        })
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

/// See [`Renderer::encode_ended`].
struct Ended {
    ids: Vec<u32>,
    offsets: Vec<(usize, usize)>,
    end: Vec<u32>,
    suppressed: usize,
}

/// A record rendered.
#[derive(Debug, Clone, Default)]
pub(crate) struct RenderedRecord {
    pub sequences: Vec<Sequence>,
    /// Tokens of its longest sequence before truncation.
    pub longest: usize,
    pub is_truncated: bool,
    pub special_texts: usize,
}

impl RenderedRecord {
    /// True if every part of it has something to learn from.
    pub fn is_usable(&self) -> bool {
        self.sequences.iter().all(Sequence::is_usable)
    }
}

impl TokenStatistics {
    pub(crate) fn add(&mut self, one: &RenderedRecord) {
        self.rows += 1;
        self.longest = self.longest.max(one.longest as u64);
        self.truncated += u64::from(one.is_truncated);
        self.special_texts += one.special_texts as u64;
        if !one.is_usable() {
            self.dropped += 1;
            return;
        }
        for sequence in &one.sequences {
            self.tokens += sequence.tokens.len() as u64;
            self.trained_tokens += sequence.n_trained() as u64;
        }
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
