//! Where the messages' contents and the assistant's turns lie in a rendered conversation.
//!
//! Contents are found by rendering a second time with a private-use character before and after each. If the
//! text without these characters is the text of the first rendering, then they are where the contents are.
//! Templates that trim contents need the characters inside the white space; templates that do more to a
//! content than trimming lose it, and this is said rather than guessed.

use std::borrow::Cow;

use super::{ChatTemplate, Message, RenderOptions, Rendered, SpanSearch, TemplateError};

/// A part of a rendered text, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// What it is.
    pub kind: SpanKind,
}

/// What a part of a rendered text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// What the assistant said, with the token that ends its turn.
    Assistant,
    /// The content of a message, whoever wrote it.
    Content {
        /// Index of the message.
        message: usize,
    },
}

/// First of the planes for private use; two characters for each message and two for the generation tags.
const FIRST_PRIVATE: u32 = 0xF_0000;
const LAST_PRIVATE: u32 = 0x10_FFFD;

pub(super) fn render(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions,
) -> Result<Rendered, TemplateError> {
    let plain: Vec<Cow<'_, str>> = messages.iter().map(|m| Cow::from(m.content.as_str())).collect();
    let Some(marks) = Marks::unused(template, messages) else {
        let reason =
            "the conversation uses all private characters or has too many messages".to_owned();
        return Err(TemplateError::Failed { line: 1, reason });
    };
    let session = Session { template, messages, options, marks };
    let (text, generations) = session.render(&plain)?;
    if options.spans == SpanSearch::None {
        return Ok(Rendered { text, ..Rendered::default() });
    }
    let (mut found, lost) = session.locate(&text);
    found.sort_by_key(|&(start, end, _)| (start, end));
    let assistants = match (options.spans, template.marks_generation) {
        (SpanSearch::Content, _) | (SpanSearch::None, _) => Vec::new(),
        (SpanSearch::Assistant, true) => generations,
        (SpanSearch::Assistant, false) => session.turns(&text, &found, &lost)?,
    };
    let content = |&(start, end, message)| Span { start, end, kind: SpanKind::Content { message } };
    let mut spans: Vec<Span> = found.iter().map(content).collect();
    spans.extend(assistants.into_iter().map(|(start, end)| Span {
        start,
        end,
        kind: SpanKind::Assistant,
    }));
    spans.sort_by_key(|span| (span.start, span.end));
    Ok(Rendered { text, spans, lost })
}

/// Private characters that neither the messages nor the template use.
#[derive(Clone, Copy)]
struct Marks {
    base: u32,
    n_messages: u32,
}

impl Marks {
    fn unused(template: &ChatTemplate, messages: &[Message]) -> Option<Marks> {
        let n_messages = u32::try_from(messages.len()).ok()?;
        let n = n_messages.checked_mul(2)?.checked_add(2)?;
        let in_extra = |message: &Message| {
            if message.extra.is_empty() {
                return None;
            }
            let extra = serde_json::Value::Object(message.extra.clone()).to_string();
            extra.chars().map(u32::from).max()
        };
        let texts = messages.iter().map(|m| m.content.as_str()).chain([template.source.as_str()]);
        let largest =
            texts.filter_map(largest_char).chain(messages.iter().filter_map(in_extra)).max();
        let base = largest.map_or(FIRST_PRIVATE, |c| FIRST_PRIVATE.max(c + 1));
        (base.checked_add(n)? <= LAST_PRIVATE).then_some(Marks { base, n_messages })
    }

    fn at(self, offset: u32) -> char {
        char::from_u32(self.base + offset).unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    fn generation(self) -> (char, char) {
        (self.at(0), self.at(1))
    }

    /// The characters before and after the content of a message.
    fn content(self, message: usize) -> (char, char) {
        let message = u32::try_from(message).unwrap_or(self.n_messages);
        (self.at(2 + 2 * message), self.at(3 + 2 * message))
    }

    /// The number of a mark, if the character is one.
    fn number(self, c: char) -> Option<u32> {
        let number = u32::from(c).checked_sub(self.base)?;
        (number < 2 + 2 * self.n_messages).then_some(number)
    }
}

fn largest_char(text: &str) -> Option<u32> {
    // UTF-8 sorts as the code points do: planes 15 and 16 begin with bytes F3 and F4.
    if text.bytes().any(|b| b >= 0xF3) { text.chars().map(u32::from).max() } else { None }
}

/// Where the mark of an edge goes when a content begins or ends with white space.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edge {
    Outside,
    Inside,
}

#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
}

/// Start, end, message.
type Found = (usize, usize, usize);

struct Session<'a> {
    template: &'a ChatTemplate,
    messages: &'a [Message],
    options: &'a RenderOptions,
    marks: Marks,
}

impl Session<'_> {
    /// The text, and what lies between the generation tags.
    fn render(
        &self,
        contents: &[Cow<'_, str>],
    ) -> Result<(String, Vec<(usize, usize)>), TemplateError> {
        let raw = self.template.render_text(
            self.messages,
            contents,
            self.marks.generation(),
            self.options,
        )?;
        let read = self.read(&raw);
        Ok((read.text, read.generations))
    }

    /// Renders with marks around contents; `None` where the template's answer changes with them.
    fn render_marked(&self, edges: &[Option<(Edge, Edge)>], text: &str) -> Option<Read> {
        let contents: Vec<Cow<'_, str>> = self
            .messages
            .iter()
            .zip(edges)
            .enumerate()
            .map(|(i, (message, edge))| match edge {
                Some(edge) => Cow::from(self.mark(i, &message.content, *edge)),
                None => Cow::from(message.content.as_str()),
            })
            .collect();
        let markers = self.marks.generation();
        // A template that fails only with the marks looks into the content: the content is lost to us.
        let raw =
            self.template.render_text(self.messages, &contents, markers, self.options).ok()?;
        let read = self.read(&raw);
        (read.text == text).then_some(read)
    }

    fn mark(&self, message: usize, content: &str, (left, right): (Edge, Edge)) -> String {
        let (open, close) = self.marks.content(message);
        let core = content.trim();
        let lead = content.len() - content.trim_start().len();
        // In a content of white space alone the marks stand together at its end.
        let (lead, core) = if core.is_empty() { (content, "") } else { (&content[..lead], core) };
        let tail = &content[lead.len() + core.len()..];
        let mut out = String::with_capacity(content.len() + 8);
        out.extend((left == Edge::Outside).then_some(open));
        out.push_str(lead);
        out.extend((left == Edge::Inside).then_some(open));
        out.push_str(core);
        out.extend((right == Edge::Inside).then_some(close));
        out.push_str(tail);
        out.extend((right == Edge::Outside).then_some(close));
        out
    }

    /// Finds all contents, and the messages whose content is lost.
    fn locate(&self, text: &str) -> (Vec<Found>, Vec<usize>) {
        let n = self.messages.len();
        let outside = Some((Edge::Outside, Edge::Outside));
        if let Some(read) = self.render_marked(&vec![outside; n], text) {
            return self.sort_out(read);
        }
        let mut edges = vec![Some((Edge::Inside, Edge::Inside)); n];
        if self.render_marked(&edges, text).is_none() {
            // Some message's content matters to the template: find out which, one at a time.
            for i in 0..n {
                let mut alone = vec![None; n];
                alone[i] = edges[i];
                if self.render_marked(&alone, text).is_none() {
                    edges[i] = None;
                }
            }
        }
        self.move_outside(&mut edges, text);
        match self.render_marked(&edges, text) {
            Some(read) => self.sort_out(read),
            None => (Vec::new(), (0..n).collect()),
        }
    }

    /// Moves each mark outside the white space where the template kept that white space.
    fn move_outside(&self, edges: &mut [Option<(Edge, Edge)>], text: &str) {
        for (i, message) in self.messages.iter().enumerate() {
            let content = message.content.as_str();
            for side in [Side::Left, Side::Right] {
                let Some(now) = edges[i] else { continue };
                let (trimmed, tried) = match side {
                    Side::Left => (content.trim_start(), (Edge::Outside, now.1)),
                    Side::Right => (content.trim_end(), (now.0, Edge::Outside)),
                };
                let mut alone = vec![None; edges.len()];
                alone[i] = Some(tried);
                // Without white space on this side both places are the same.
                if trimmed.len() == content.len() || self.render_marked(&alone, text).is_some() {
                    edges[i] = Some(tried);
                }
            }
        }
    }

    /// Contents by message, and the messages that have none or a broken one.
    fn sort_out(&self, read: Read) -> (Vec<Found>, Vec<usize>) {
        let is_lost = |i: &usize| {
            read.broken.contains(i) || !read.contents.iter().any(|&(_, _, message)| message == *i)
        };
        let lost: Vec<usize> = (0..self.messages.len()).filter(is_lost).collect();
        let kept =
            read.contents.iter().copied().filter(|(_, _, message)| !read.broken.contains(message));
        (kept.collect(), lost)
    }

    /// The assistant's turns in a template that does not mark them.
    fn turns(
        &self,
        text: &str,
        found: &[Found],
        lost: &[usize],
    ) -> Result<Vec<(usize, usize)>, TemplateError> {
        let is_assistant = |message: usize| self.messages[message].role == "assistant";
        if let Some(&message) = lost.iter().find(|&&message| is_assistant(message)) {
            return Err(TemplateError::AssistantLost { message });
        }
        let mut turns = Vec::new();
        for (i, &(start, end, message)) in found.iter().enumerate() {
            if !is_assistant(message) {
                continue;
            }
            // A turn that appears twice (as a title, say) would be trained twice.
            if found.iter().filter(|f| f.2 == message).count() > 1 {
                return Err(TemplateError::AssistantLost { message });
            }
            let next = found.get(i + 1).map_or(text.len(), |f| f.0.max(end));
            turns.push((start, end + self.end_of_turn_len(&text[end..next])));
        }
        Ok(turns)
    }

    /// Length of what follows a turn up to and including the special token that ends it, or 0.
    fn end_of_turn_len(&self, literal: &str) -> usize {
        let tokens = &self.template.tokens;
        let begins = |special: &&String| {
            let is_bos = **special == tokens.bos && tokens.bos != tokens.eos;
            !is_bos && !special.is_empty()
        };
        let after = literal.trim_start();
        let special =
            tokens.special.iter().filter(begins).filter(|s| after.starts_with(s.as_str()));
        special.map(|s| literal.len() - after.len() + s.len()).max().unwrap_or(0)
    }

    /// Takes the marks out of a text.
    fn read(&self, raw: &str) -> Read {
        let mut read = Read::default();
        let mut generation = None;
        let mut open: Vec<Option<usize>> = vec![None; self.messages.len()];
        read.text.reserve(raw.len());
        for c in raw.chars() {
            let Some(number) = self.marks.number(c) else {
                read.text.push(c);
                continue;
            };
            let at = read.text.len();
            match number {
                0 => generation = Some(at),
                1 => read.generations.extend(generation.take().map(|start| (start, at))),
                number => {
                    let message = (number as usize - 2) / 2;
                    let opens = number % 2 == 0;
                    match (opens, open[message].take()) {
                        (true, None) => open[message] = Some(at),
                        (false, Some(start)) => read.contents.push((start, at, message)),
                        _ => read.broken.push(message),
                    }
                }
            }
        }
        let unclosed = open.iter().enumerate().filter_map(|(i, open)| open.map(|_| i));
        read.broken.extend(unclosed);
        read
    }
}

/// A rendered text without its marks.
#[derive(Default)]
struct Read {
    text: String,
    generations: Vec<(usize, usize)>,
    contents: Vec<Found>,
    /// Messages with one mark of a pair.
    broken: Vec<usize>,
}
