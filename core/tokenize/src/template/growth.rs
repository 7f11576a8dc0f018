//! Lists that are added pay for their length.
//!
//! The engine adds lists lazily and charges one unit of fuel for it, so that a template which doubles a list
//! (`x + x`) a few dozen times describes more items than any memory holds, and falls over them later. Here both
//! operands of each `+` of the source go through a filter that charges fuel for the items of a list, and passes
//! everything else on. Templates that add strings and numbers render as before.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::generation;

/// The filter around an operand.
pub(super) const FILTER: &str = "__added";

/// Values nested deeper than this are not printed.
const DEPTH_MAX: usize = 100;

/// Words that end an operand.
const KEYWORDS: [&str; 8] = ["and", "or", "not", "in", "is", "if", "else", "recursive"];

/// An operand of `+`: a list pays for its items.
pub(super) fn added(state: &State, value: Value) -> Result<Value, Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Ok(value);
    }
    match value.len() {
        // A fresh one: empty lists of empty lists grow as well.
        Some(0) if !value.is_tuple() => Ok(Value::from(Vec::<Value>::new())),
        Some(len) => {
            state.consume_fuel(len as u64)?;
            Ok(value)
        }
        None => {
            let mut items = Vec::new();
            for item in value.try_iter()? {
                state.consume_fuel(1)?;
                items.push(item);
            }
            Ok(Value::from(items))
        }
    }
}

/// Pays for a value that is about to be printed: a list may hold itself twice, and that again.
pub(super) fn pay(state: &State, value: &Value) -> Result<(), Error> {
    walk(state, value, 0)
}

fn walk(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::new(ErrorKind::InvalidOperation, "value is nested too deep"));
    }
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        let is_map = value.kind() == ValueKind::Map;
        for item in value.try_iter()? {
            state.consume_fuel(1)?;
            walk(state, &if is_map { value.get_item(&item)? } else { item }, depth + 1)?;
        }
    }
    Ok(())
}

/// `sum` of numbers. The engine's own adds lists as well, and does not pay for them; Python's refuses texts.
pub(super) fn sum(state: &State, values: Value, options: Kwargs) -> Result<Value, Error> {
    let attribute: Option<Value> = options.get("attribute")?;
    let start: Option<Value> = options.get("start")?;
    options.assert_all_used()?;
    let (mut whole, mut real, mut is_whole) = (0_i64, 0.0, true);
    let mut add = |value: &Value| {
        let not_a_number = || Error::new(ErrorKind::InvalidOperation, "sum: expected numbers");
        let number = f64::try_from(value.clone()).map_err(|_| not_a_number())?;
        real += number;
        match i64::try_from(value.clone()).ok().and_then(|n| whole.checked_add(n)) {
            Some(sum) if value.is_integer() => whole = sum,
            _ => is_whole = false,
        }
        Ok::<_, Error>(())
    };
    start.iter().try_for_each(&mut add)?;
    for item in values.try_iter()? {
        state.consume_fuel(1)?;
        match &attribute {
            Some(name) => add(&item.get_item(name)?)?,
            None => add(&item)?,
        }
    }
    Ok(if is_whole { Value::from(whole) } else { Value::from(real) })
}

/// The source with the filter around each operand of `+`; lines stay where they are.
pub(super) fn guard(source: &str) -> String {
    let mut insertions = Vec::new();
    let mut at = 0;
    while let Some(found) = source[at..].find('{') {
        at += found;
        let piece = generation::piece(&source[at..]);
        if let Some((inside, is_statement)) = piece.expression() {
            let start = at + inside.start;
            Scan::new(&source[start..at + inside.end], start, &mut insertions).run(is_statement);
        }
        at += piece.text.len();
    }
    // Two at one place come from the left to the right.
    insertions.sort_by_key(|(at, _)| *at);
    let mut out = String::with_capacity(source.len() + 16 * insertions.len());
    let mut copied = 0;
    for (at, text) in insertions {
        out.push_str(&source[copied..at]);
        match text {
            Insertion::Open => out.push('('),
            Insertion::Close => out.push_str(&format!(")|{FILTER}")),
        }
        copied = at;
    }
    out.push_str(&source[copied..]);
    out
}

enum Insertion {
    Open,
    Close,
}

/// What lies between two operators of the precedence of `+`.
#[derive(Default)]
struct Operand {
    /// Its first and last byte that are no white space.
    range: Option<(usize, usize)>,
    /// Whether there is more in it than one string or number, neither of which is a list.
    is_more: bool,
    /// Behind `is`: the name of a test.
    is_test: bool,
    /// Behind `+`.
    is_added: bool,
}

struct Scan<'s> {
    text: &'s str,
    /// Of `text` in the source.
    start: usize,
    at: usize,
    operands: Vec<Operand>,
    insertions: &'s mut Vec<(usize, Insertion)>,
}

impl<'s> Scan<'s> {
    fn new(text: &'s str, start: usize, insertions: &'s mut Vec<(usize, Insertion)>) -> Self {
        Scan { text, start, at: 0, operands: vec![Operand::default()], insertions }
    }

    fn run(mut self, is_statement: bool) {
        let mut is_first_word = is_statement;
        let mut before = b' ';
        while let Some(&byte) = self.text.as_bytes().get(self.at) {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' => {
                    self.at += 1;
                    continue;
                }
                b'\'' | b'"' => self.take(string_len(self.rest()), false),
                b'0'..=b'9' => self.take(number_len(self.rest()), false),
                b'(' | b'[' | b'{' => {
                    self.take(1, true);
                    self.operands.push(Operand::default());
                }
                b')' | b']' | b'}' => {
                    self.end();
                    if self.operands.len() > 1 {
                        self.operands.pop();
                    }
                    self.take(1, true);
                }
                b'+' if self.is_begun() => {
                    self.operand().is_added = true;
                    self.next_operand();
                    self.operand().is_added = true;
                    self.at += 1;
                }
                b'-' | b'~' | b',' | b':' | b'=' | b'<' | b'>' | b'!' if self.is_begun() => {
                    self.next_operand();
                    self.at += 1;
                }
                b',' | b':' | b'=' | b'<' | b'>' | b'!' | b'~' => self.at += 1,
                _ if is_word(byte) => {
                    let len = self.rest().bytes().take_while(|b| is_word(*b)).count();
                    let word = &self.rest()[..len];
                    let is_name = matches!(before, b'.' | b'|');
                    if (is_first_word || KEYWORDS.contains(&word)) && !is_name {
                        let is_test = word == "is" || (word == "not" && self.is_test());
                        self.next_operand();
                        self.operand().is_test = is_test;
                        self.at += len;
                    } else {
                        self.take(len, true);
                    }
                    is_first_word = false;
                }
                _ => self.take(1, true),
            }
            before = byte;
        }
        while !self.operands.is_empty() {
            self.end();
            self.operands.pop();
        }
    }

    fn rest(&self) -> &'s str {
        &self.text[self.at..]
    }

    fn operand(&mut self) -> &mut Operand {
        self.operands.last_mut().expect("the last one is popped at the end")
    }

    fn is_begun(&mut self) -> bool {
        self.operand().range.is_some()
    }

    /// Right behind `is`.
    fn is_test(&mut self) -> bool {
        let operand = self.operand();
        operand.is_test && operand.range.is_none()
    }

    /// Bytes that belong to the operand.
    fn take(&mut self, len: usize, is_more: bool) {
        let (first, last) = (self.start + self.at, self.start + self.at + len);
        let operand = self.operand();
        operand.is_more |= is_more || operand.range.is_some();
        let first = operand.range.map_or(first, |range| range.0);
        operand.range = Some((first, last));
        self.at += len;
    }

    fn next_operand(&mut self) {
        self.end();
        *self.operand() = Operand::default();
    }

    /// Puts the filter around an operand that is added and may be a list.
    fn end(&mut self) {
        let operand = std::mem::take(self.operand());
        let may_be_list = operand.is_added && operand.is_more && !operand.is_test;
        if let Some((first, last)) = operand.range.filter(|_| may_be_list) {
            self.insertions.push((first, Insertion::Open));
            self.insertions.push((last, Insertion::Close));
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn string_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut i = 1;
    while i < bytes.len() && bytes[i] != bytes[0] {
        i += 1 + usize::from(bytes[i] == b'\\');
    }
    // Whole characters, also where the text ends within a string.
    let mut end = (i + 1).min(bytes.len());
    while !text.is_char_boundary(end) {
        end += 1;
    }
    end
}

/// Digits, and an exponent with its sign.
fn number_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|b| is_word(**b)).count();
    let mut len = digits(0);
    if bytes.get(len) == Some(&b'.') && bytes.get(len + 1).is_some_and(u8::is_ascii_digit) {
        len += 1 + digits(len + 1);
    }
    let is_decimal = !bytes.starts_with(b"0x");
    let ends_with_e = matches!(bytes[len - 1], b'e' | b'E') && is_decimal;
    if ends_with_e && matches!(bytes.get(len), Some(b'+' | b'-')) {
        len += 1 + digits(len + 1);
    }
    len
}

#[cfg(test)]
mod tests {
    use super::guard;

    #[test]
    fn operands_that_may_be_lists_go_through_the_filter() {
        for (source, expected) in [
            ("{{ a + b }}", "{{ (a)|__added + (b)|__added }}"),
            ("{{- 'a' + m['b'] + 'c' -}}", "{{- 'a' + (m['b'])|__added + 'c' -}}"),
            ("{{+ a+1 +}}", "{{+ (a)|__added+1 +}}"),
            (
                "{% set x = x[1:n + 1] + [2] %}",
                "{% set x = (x[1:(n)|__added + 1])|__added + ([2])|__added %}",
            ),
            ("{% if not a + b is string %}", "{% if not (a)|__added + (b)|__added is string %}"),
            (
                "{{ f(a + g(b + c), d=e + 'x') }}",
                "{{ f((a)|__added + (g((b)|__added + (c)|__added))|__added, d=(e)|__added + 'x') }}",
            ),
            ("{{ a - b + c * 2|abs }}", "{{ a - (b)|__added + (c * 2|abs)|__added }}"),
            (
                "{% for m in a + b if m.is + 1 recursive %}",
                "{% for m in (a)|__added + (b)|__added if (m.is)|__added + 1 recursive %}",
            ),
            ("{{ -a + +b }}", "{{ (-a)|__added + (+b)|__added }}"),
            ("{{ x is not defined + y }}", "{{ x is not defined + (y)|__added }}"),
            ("{{ 1e+5 + 1.5E-3 + \"é\\\"+\" }}", "{{ 1e+5 + 1.5E-3 + \"é\\\"+\" }}"),
            ("{{ {'a': b + c}['a'] }}", "{{ {'a': (b)|__added + (c)|__added}['a'] }}"),
            (
                "{{ a if b + c else d + e }}",
                "{{ a if (b)|__added + (c)|__added else (d)|__added + (e)|__added }}",
            ),
        ] {
            assert_eq!(guard(source), expected);
        }
    }

    #[test]
    fn text_comments_and_raw_blocks_are_left_alone() {
        for source in [
            "a + b",
            "{# a + b #}",
            "{% raw %}{{ a + b }}{% endraw %}",
            "{%+ if true +%}x{%+ endif -%}",
            "{{ 'a + b' }}",
            "{ a + b }",
            "{{ 'a + b",
            "{{",
        ] {
            assert_eq!(guard(source), source);
        }
    }
}
