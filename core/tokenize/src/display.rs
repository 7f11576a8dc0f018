//! Making generated text safe to show in a terminal.

/// Removes what would steer a terminal instead of being shown: control characters other than tab and line
/// feed, whole escape sequences (CSI, OSC and the other string commands, two-byte escapes), and the
/// characters that turn the writing direction.
///
/// Keeps its state between pieces, so that a sequence cut in two is still removed. The text itself is for
/// the caller to keep: this is for display only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControlFilter {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// In `ESC [ … final byte`.
    Csi,
    /// In an OSC, DCS, APC, PM or SOS string, which ends with BEL or ESC `\`.
    CommandString,
    /// After ESC inside such a string.
    CommandStringEscape,
}

impl ControlFilter {
    /// Starts outside any sequence.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The part of a piece that may be shown.
    pub fn push(&mut self, piece: &str) -> String {
        piece.chars().filter(|&c| self.shows(c)).collect()
    }

    fn shows(&mut self, c: char) -> bool {
        let (next, shown) = match (self.state, c) {
            (State::CommandString, '\u{7}' | '\u{9c}') => (State::Text, false),
            (State::CommandString, '\u{1b}') => (State::CommandStringEscape, false),
            (State::CommandString, _) => (State::CommandString, false),
            (State::CommandStringEscape, '\\') => (State::Text, false),
            (State::CommandStringEscape, '\u{1b}') => (State::CommandStringEscape, false),
            (State::CommandStringEscape, _) => (State::CommandString, false),
            // ESC aborts whatever was open and starts anew, as terminals do.
            (_, '\u{1b}') => (State::Escape, false),
            (_, '\u{9b}') => (State::Csi, false),
            (_, '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}') => (State::CommandString, false),
            (State::Escape, '[') => (State::Csi, false),
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => (State::CommandString, false),
            // Intermediate bytes, as in `ESC ( B`.
            (State::Escape, ' '..='/') => (State::Escape, false),
            (State::Escape, '0'..='~') => (State::Text, false),
            (State::Csi, ' '..='?') => (State::Csi, false),
            (State::Csi, '@'..='~') => (State::Text, false),
            (_, c) => (State::Text, !is_control(c) && !is_direction(c)),
        };
        self.state = next;
        shown
    }
}

/// Counts the characters that [`ControlFilter`] would hide or that have no width: a report for texts that
/// look cleaner than they are.
#[must_use]
pub fn control_characters(text: &str) -> usize {
    text.chars().filter(|&c| is_control(c) || is_direction(c) || is_invisible(c)).count()
}

fn is_control(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
}

/// Bidirectional embeddings, overrides, isolates and marks.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}' | '\u{2060}' | '\u{feff}' | '\u{ad}')
}

#[cfg(test)]
mod tests {
    use super::{ControlFilter, control_characters};

    fn shown(pieces: &[&str]) -> String {
        let mut filter = ControlFilter::new();
        pieces.iter().map(|piece| filter.push(piece)).collect()
    }

    #[test]
    fn escape_sequences_are_hidden_whole_even_when_cut_between_pieces() {
        assert_eq!(shown(&["a\u{1b}[31mred\u{1b}[0m"]), "ared");
        assert_eq!(shown(&["a\u{1b}", "[3", "1mred"]), "ared");
        assert_eq!(shown(&["x\u{1b}]0;title\u{7}y"]), "xy");
        assert_eq!(shown(&["x\u{1b}]8;;http://a\u{1b}\\link\u{1b}]8;;\u{1b}\\"]), "xlink");
        assert_eq!(shown(&["a\u{1b}(Bb\u{1b}Mc"]), "abc");
        assert_eq!(shown(&["a\u{9b}2Jb"]), "ab");
    }

    #[test]
    fn controls_and_direction_marks_are_hidden_and_lines_are_kept() {
        assert_eq!(shown(&["a\rb\u{8}\u{7}\tc\nd"]), "ab\tc\nd");
        assert_eq!(shown(&["\u{202e}abc\u{202c}"]), "abc");
        assert_eq!(shown(&["日本 🙂 é"]), "日本 🙂 é");
    }

    #[test]
    fn control_characters_are_counted() {
        assert_eq!(control_characters("plain\n\ttext"), 0);
        assert_eq!(control_characters("a\u{200b}b\u{202e}c\u{1b}[0m"), 3);
    }
}
