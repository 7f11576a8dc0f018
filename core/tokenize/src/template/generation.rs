//! `{% generation %}` and `{% endgeneration %}`: Hugging Face's extension for what the assistant wrote.
//!
//! The engine knows no such tag, so each becomes tags that it knows and that print a marker. The line
//! numbers of the source stay as they are.

/// Variables that hold the markers.
pub(super) const OPEN: &str = "__generation_open";
pub(super) const CLOSE: &str = "__generation_close";

/// The source with its generation tags replaced, and whether there were any.
pub(super) fn mark(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len() + 64);
    let mut marked = false;
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let tag = piece(from).text;
        match parse(tag) {
            Some(Tag { name: "generation", left, right }) => {
                marked = true;
                out.push_str(&format!(
                    "{{%{left} if true %}}{{{{ {OPEN} }}}}{{% if true {right}%}}"
                ));
                push_line_feeds(&mut out, tag);
            }
            Some(Tag { name: "endgeneration", left, right }) => {
                marked = true;
                out.push_str(&format!("{{%{left} endif %}}{{{{ {CLOSE} }}}}{{% endif {right}%}}"));
                push_line_feeds(&mut out, tag);
            }
            _ => out.push_str(tag),
        }
        rest = &from[tag.len()..];
    }
    out.push_str(rest);
    (out, marked)
}

/// A part of the source that begins with a brace: a comment, a tag, a block without template text in it, or the
/// brace alone.
pub(super) struct Piece<'s> {
    pub(super) text: &'s str,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Expression,
    Statement,
    Other,
}

impl Piece<'_> {
    /// Where the expression of a tag lies in it, without white-space signs, and whether it begins with the name
    /// of a statement.
    pub(super) fn expression(&self) -> Option<(std::ops::Range<usize>, bool)> {
        let ends = self.text.len() >= 4 && (self.text.ends_with("}}") || self.text.ends_with("%}"));
        if self.kind == Kind::Other || !ends {
            return None;
        }
        let inside = &self.text[2..self.text.len() - 2];
        let start = 2 + usize::from(inside.starts_with(['-', '+']));
        let end =
            self.text.len() - 2 - usize::from(inside.len() > 1 && inside.ends_with(['-', '+']));
        Some((start..end.max(start), self.kind == Kind::Statement))
    }
}

/// The piece at the start of `from`, which begins with a brace.
pub(super) fn piece(from: &str) -> Piece<'_> {
    let (len, kind) = match from.as_bytes().get(1) {
        Some(b'#') => (from.find("#}").map_or(from.len(), |end| end + 2), Kind::Other),
        Some(b'{') => (tag_len(from, "}}"), Kind::Expression),
        Some(b'%') => (tag_len(from, "%}"), Kind::Statement),
        _ => (1, Kind::Other),
    };
    match parse(&from[..len]) {
        Some(Tag { name: "raw", .. }) => {
            Piece { text: &from[..raw_len(from, len)], kind: Kind::Other }
        }
        _ => Piece { text: &from[..len], kind },
    }
}

struct Tag<'s> {
    name: &'s str,
    left: &'s str,
    right: &'s str,
}

/// The name and the white-space signs of `{%- name … -%}`.
fn parse(tag: &str) -> Option<Tag<'_>> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let sign = |at: Option<&str>| match at {
        Some("-") => "-",
        Some("+") => "+",
        _ => "",
    };
    let left = sign(inner.get(..1));
    let right = sign(inner.len().checked_sub(1).and_then(|last| inner.get(last..)));
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let inner = inner.strip_suffix(['-', '+']).unwrap_or(inner);
    let name = inner.trim_start();
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
    let arguments = name[end..].trim();
    let name = &name[..end];
    (arguments.is_empty() || name == "raw").then_some(Tag { name, left, right })
}

/// Length of a tag, to `end` outside of string literals.
fn tag_len(from: &str, end: &str) -> usize {
    let bytes = from.as_bytes();
    let mut quote = None;
    let mut i = 2;
    while i < bytes.len() {
        match (quote, bytes[i]) {
            (Some(_), b'\\') => i += 1,
            (Some(q), c) if q == c => quote = None,
            (None, c @ (b'\'' | b'"')) => quote = Some(c),
            (None, _) if bytes[i..].starts_with(end.as_bytes()) => return i + end.len(),
            _ => {}
        }
        i += 1;
    }
    from.len()
}

/// Length of `{% raw %} … {% endraw %}`, whose inside is no template.
fn raw_len(from: &str, opening: usize) -> usize {
    let mut at = opening;
    while let Some(found) = from[at..].find("{%") {
        let start = at + found;
        let len = tag_len(&from[start..], "%}");
        if parse(&from[start..start + len]).is_some_and(|tag| tag.name == "endraw") {
            return start + len;
        }
        at = start + 2;
    }
    from.len()
}

/// A tag over several lines stays as many lines long, so that errors name the right one.
fn push_line_feeds(out: &mut String, tag: &str) {
    let n = tag.matches('\n').count();
    if n > 0 {
        out.push_str("{#");
        out.extend(std::iter::repeat_n('\n', n));
        out.push_str("#}");
    }
}

#[cfg(test)]
mod tests {
    use super::mark;

    #[test]
    fn tags_become_markers_and_keep_their_white_space_signs() {
        let (out, marked) = mark("a{%- generation -%}b{% endgeneration %}c");
        assert!(marked);
        assert_eq!(
            out,
            "a{%- if true %}{{ __generation_open }}{% if true -%}b{% endif %}{{ __generation_close }}{% endif %}c"
        );
    }

    #[test]
    fn comments_strings_and_raw_blocks_are_left_alone() {
        for source in [
            "{# {% generation %} #}x",
            "{{ '{% generation %}' }}",
            "{% if x == \"%} {% generation %}\" %}y{% endif %}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% generation",
            "{%",
            "{",
            "plain { text } é",
        ] {
            assert_eq!(mark(source), (source.to_owned(), false), "{source}");
        }
    }
}
