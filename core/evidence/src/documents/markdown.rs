//! Markdown in which text of others stays text: no link, no heading, no HTML, no line of its own.

use serde_json::Value;
use std::fmt::Write as _;

/// Characters that turn the direction of what follows them, or are not seen: what a reader sees would
/// not be what is written.
pub(super) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Text that cannot leave its line, its cell or its code span: what could is left out.
pub(super) fn inline(text: &str) -> String {
    const SPECIAL: &[char] = &['`', '|', '[', ']', '(', ')', '<', '>', '*', '#'];
    text.chars()
        .filter(|c| !SPECIAL.contains(c))
        .map(|c| if is_hidden(c) { ' ' } else { c })
        .collect()
}

/// Text with every punctuation character of CommonMark escaped, on one line, trimmed.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let line: String = text.chars().map(|c| if is_hidden(c) { ' ' } else { c }).collect();
    for c in line.trim().chars() {
        if c.is_ascii_punctuation() {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A value of the config as one line.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => escaped(text),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join("; "),
        Value::Object(members) => {
            let parts =
                members.iter().map(|(key, value)| format!("{}: {}", escaped(key), shown(value)));
            parts.collect::<Vec<_>>().join(", ")
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => escaped(&value.to_string()),
    }
}

/// A table of two columns whose cells are ready.
pub(super) fn table_of(head: (&str, &str), rows: &[(String, String)]) -> String {
    let mut table = format!("| {} | {} |\n|---|---|\n", head.0, head.1);
    for (key, value) in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| {key} | {value} |");
    }
    table
}

/// A block of code: the fence is longer than any run of backticks in it.
pub(super) fn fenced(language: &str, text: &str) -> String {
    let runs = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(runs.max(2) + 1);
    let end = if text.ends_with('\n') { "" } else { "\n" };
    format!("{fence}{language}\n{text}{end}{fence}\n")
}

#[cfg(test)]
mod tests {
    use super::{escaped, fenced, inline};

    /// Text that means to be more than text.
    pub(crate) const HOSTILE: &str = "# A\n---\n<script>alert(1)</script> [x](javascript:y) ![i](http://h) | `b` **c** www.d.e \u{202e}f";

    #[test]
    fn inline_text_stays_inline() {
        assert_eq!(inline("a`b|c\r\nd<script>"), "abc  dscript");
        let text = inline(HOSTILE);
        assert!(!text.contains(['\n', '<', '[', '`', '|', '\u{202e}']), "{text}");
    }

    #[test]
    fn escaped_text_has_every_mark_behind_a_backslash() {
        assert_eq!(escaped("  a_b\n<c> [d](e)  "), "a\\_b \\<c\\> \\[d\\]\\(e\\)");
        let text = escaped(HOSTILE);
        let mut before = ' ';
        for c in text.chars() {
            if before == '\\' {
                before = ' ';
                continue;
            }
            assert!(c == '\\' || !c.is_ascii_punctuation(), "{c} in {text}");
            assert!(!c.is_control() && c != '\u{202e}');
            before = c;
        }
    }

    #[test]
    fn a_fence_is_longer_than_what_is_in_it() {
        assert_eq!(fenced("yaml", "a"), "```yaml\na\n```\n");
        let block = fenced("", "x\n`````\ny\n");
        assert!(block.starts_with("``````\n") && block.ends_with("\n``````\n"), "{block}");
    }
}
