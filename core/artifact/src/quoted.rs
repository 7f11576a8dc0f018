//! Foreign text in messages.

use std::fmt;

/// Shows text of unknown origin between double quotes: control characters and quotes escaped, and
/// cut after 80 characters.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(pub &'a str);

/// Longest text shown whole.
const SHOWN_CHARS_MAX: usize = 80;

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        f.write_str("\"")?;
        for c in chars.by_ref().take(SHOWN_CHARS_MAX) {
            // `escape_debug` leaves bidirectional controls alone; they reorder a terminal's line.
            if is_bidi_control(c) {
                write!(f, "{}", c.escape_unicode())?;
            } else if c == '\'' {
                f.write_str("'")?;
            } else {
                write!(f, "{}", c.escape_debug())?;
            }
        }
        let n_hidden = chars.count();
        f.write_str("\"")?;
        if n_hidden > 0 {
            write!(f, "... ({n_hidden} more characters)")?;
        }
        Ok(())
    }
}

const fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A parser's message that may repeat foreign text: controls escaped, cut after 300 characters.
pub(crate) fn one_line(message: &str) -> String {
    let mut out = String::new();
    for c in message.chars().take(300) {
        if c.is_control() || is_bidi_control(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::Quoted;

    #[test]
    fn controls_are_escaped_and_long_text_is_cut() {
        assert_eq!(Quoted("a\0\n\u{1b}[31m\"").to_string(), r#""a\0\n\u{1b}[31m\"""#);
        assert_eq!(Quoted("\u{202e}x").to_string(), r#""\u{202e}x""#);
        assert_eq!(Quoted("é'").to_string(), "\"é'\"");
        let long = Quoted(&"x".repeat(100)).to_string();
        assert_eq!(long, format!("\"{}\"... (20 more characters)", "x".repeat(80)));
    }
}
