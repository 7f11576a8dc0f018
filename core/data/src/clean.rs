//! Cleaning of text columns.

/// Cleans a text and keeps its lines: control characters other than tab and line feed go, `\r\n` and `\r`
/// become `\n`, white space at line ends goes, more than one blank line in a row becomes one, and blank lines
/// at the ends go. Indentation and spaces inside lines stay, because code and lists need them.
///
/// Ours: upstream joins all words with single spaces, which destroys code.
#[must_use]
pub fn clean_text(text: &str) -> String {
    let unified = text.replace("\r\n", "\n").replace(['\r', '\u{b}', '\u{c}', '\u{85}'], "\n");
    let mut out = String::with_capacity(unified.len());
    let mut n_blank = 0;
    for line in unified.split('\n') {
        let kept: String = line.chars().filter(|&c| c == '\t' || !c.is_control()).collect();
        let line = kept.trim_end();
        if line.is_empty() {
            n_blank += 1;
            continue;
        }
        if !out.is_empty() {
            out.push_str(if n_blank > 0 { "\n\n" } else { "\n" });
        }
        n_blank = 0;
        out.push_str(line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::clean_text;

    #[test]
    fn code_and_lists_keep_their_lines_and_indentation() {
        let code = "def f():\n    if x:\n\treturn  1\n\n- a\n  - b";
        assert_eq!(clean_text(code), code);
    }

    #[test]
    fn controls_line_ends_and_surplus_blank_lines_go() {
        assert_eq!(clean_text("a\u{0}b\u{1b}c\u{9b}d"), "abcd");
        assert_eq!(clean_text("a  \r\nb\t\rc"), "a\nb\nc");
        assert_eq!(clean_text("\n\n a\n\n\n\nb \n\n"), " a\n\nb");
        assert_eq!(clean_text(" \n\t\n"), "");
        assert_eq!(clean_text("é 日本 🙂\u{a0}"), "é 日本 🙂");
    }

    #[test]
    fn cleaning_twice_changes_nothing_more() {
        for text in ["a \r\n\r\n\r\n b", "\u{7f}x\n \n\ny\t", ""] {
            let once = clean_text(text);
            assert_eq!(clean_text(&once), once);
        }
    }
}
