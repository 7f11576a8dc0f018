//! What makes a text look like no prose: a hint for a person, no verdict.

use std::collections::BTreeMap;

/// A doubt about a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum QualityFlag {
    /// Fewer letters than 0.7 of what is not blank.
    LowAlphaRatio,
    /// Less than half of the lines end as sentences do.
    LowPunctEndings,
    /// Words are shorter than 3 or longer than 12 letters on average.
    AbnormalMeanWordLength,
    /// More than half of the paragraphs have fewer than 5 words.
    ShortParagraphs,
    /// The three lines that occur most often are more than 0.3 of all.
    RepeatedLines,
}

impl QualityFlag {
    /// Every flag.
    pub const ALL: [QualityFlag; 5] = [
        QualityFlag::LowAlphaRatio,
        QualityFlag::LowPunctEndings,
        QualityFlag::AbnormalMeanWordLength,
        QualityFlag::ShortParagraphs,
        QualityFlag::RepeatedLines,
    ];

    /// The word used in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            QualityFlag::LowAlphaRatio => "low_alpha_ratio",
            QualityFlag::LowPunctEndings => "low_punct_endings",
            QualityFlag::AbnormalMeanWordLength => "abnormal_mean_word_length",
            QualityFlag::ShortParagraphs => "short_paragraphs",
            QualityFlag::RepeatedLines => "repeated_lines",
        }
    }
}

const SENTENCE_ENDS: [char; 8] = ['.', '!', '?', '…', '"', '\'', ')', ']'];

/// The doubts about a text; code between fences is not looked at.
pub(super) fn flags(text: &str) -> Vec<QualityFlag> {
    let text = without_code(text);
    if text.trim().is_empty() {
        return Vec::new();
    }
    let (mut n_words, mut n_word_chars) = (0, 0);
    for word in words(&text) {
        n_words += 1;
        n_word_chars += word.chars().count();
    }
    if n_words == 0 {
        return vec![QualityFlag::LowAlphaRatio];
    }
    let n_letters = text.chars().filter(|c| c.is_alphabetic()).count();
    let n_visible = text.chars().filter(|c| !c.is_whitespace()).count();
    let lines: Vec<&str> =
        text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let n_ended = lines.iter().filter(|line| line.ends_with(SENTENCE_ENDS)).count();
    let (n_paragraphs, n_short) = paragraphs(&text);
    // In whole numbers, so that a share at a bound is no question of rounding.
    let holds = [
        10 * n_letters < 7 * n_visible,
        2 * n_ended < lines.len(),
        n_word_chars < 3 * n_words || n_word_chars > 12 * n_words,
        2 * n_short > n_paragraphs,
        lines.len() >= 3 && 10 * most_repeated(&lines) > 3 * lines.len(),
    ];
    QualityFlag::ALL
        .into_iter()
        .zip(holds)
        .filter(|(_, holds)| *holds)
        .map(|(flag, _)| flag)
        .collect()
}

/// Runs of letters, digits, `_` and apostrophes.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '\'')
        .filter(|word| !word.is_empty())
}

/// Paragraphs, and those of fewer than 5 words.
fn paragraphs(text: &str) -> (usize, usize) {
    let (mut n_paragraphs, mut n_short) = (0, 0);
    let mut n_words = None;
    for line in text.lines().chain([""]) {
        if line.trim().is_empty() {
            if let Some(n) = n_words.take() {
                n_paragraphs += 1;
                n_short += usize::from(n < 5);
            }
        } else {
            *n_words.get_or_insert(0) += words(line).count();
        }
    }
    (n_paragraphs, n_short)
}

/// How many lines are copies, counting the three that occur most often, each twice at least.
fn most_repeated(lines: &[&str]) -> usize {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in lines {
        *counts.entry(line).or_default() += 1;
    }
    let mut repeated: Vec<usize> = counts.into_values().filter(|&n| n >= 2).collect();
    repeated.sort_unstable_by(|a, b| b.cmp(a));
    repeated.iter().take(3).sum()
}

/// A text without its fenced blocks (CommonMark 4.5); one that never closes is text.
fn without_code(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let fences: Vec<Option<Fence<'_>>> = lines.iter().map(|line| fence(line)).collect();
    // The longest fence of each mark that could close a block on a line or below it: what never closes
    // is known without a search, which would be one of all lines for each of them.
    let mut closing = vec![[0; 2]; lines.len() + 1];
    for at in (0..lines.len()).rev() {
        closing[at] = closing[at + 1];
        if let Some(fence) = fences[at].as_ref().filter(|fence| fence.rest.trim().is_empty()) {
            let longest = &mut closing[at][usize::from(fence.mark == '~')];
            *longest = fence.len.max(*longest);
        }
    }
    let mut kept = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let opens = fences[at].as_ref().filter(|open| {
            let has_end = closing[at + 1][usize::from(open.mark == '~')] >= open.len;
            has_end && (open.mark == '~' || !open.rest.contains('`'))
        });
        let Some(open) = opens else {
            kept.push(lines[at]);
            at += 1;
            continue;
        };
        let closes = |fence: &Option<Fence<'_>>| {
            fence.as_ref().is_some_and(|fence| {
                fence.mark == open.mark && fence.len >= open.len && fence.rest.trim().is_empty()
            })
        };
        at += 2 + fences[at + 1..].iter().position(closes).unwrap_or(lines.len());
    }
    kept.join("\n")
}

/// A line of at least three backticks or tildes, indented by at most three spaces.
struct Fence<'t> {
    mark: char,
    len: usize,
    /// What follows them.
    rest: &'t str,
}

fn fence(line: &str) -> Option<Fence<'_>> {
    let text = line.trim_start_matches(' ');
    let mark = text.chars().next().filter(|c| ['`', '~'].contains(c))?;
    let rest = text.trim_start_matches(mark);
    let len = text.len() - rest.len();
    (len >= 3 && line.len() - text.len() <= 3).then_some(Fence { mark, len, rest })
}

#[cfg(test)]
mod tests {
    use super::{QualityFlag, flags, without_code};

    #[test]
    fn each_flag_begins_where_it_is_said_to() {
        let prose = "This is a sentence of words.";
        for (text, expected) in [
            (prose.to_owned(), vec![]),
            (" \n ".to_owned(), vec![]),
            ("... !!!".to_owned(), vec![QualityFlag::LowAlphaRatio]),
            // 7 of 10 are letters, then 6 of 10.
            ("abcdefg (1)".to_owned() + "\n" + prose + " four five six.", vec![]),
            (
                "Seven letters or 12 34 56 78 90 12 34 56 78.".to_owned(),
                vec![QualityFlag::LowAlphaRatio, QualityFlag::AbnormalMeanWordLength],
            ),
            (format!("{prose}\nthis line does not end"), vec![]),
            (
                format!("{prose}\nthis line does not end\nnor does this"),
                vec![QualityFlag::LowPunctEndings],
            ),
            ("ab cd ef gh ij kl.".to_owned(), vec![QualityFlag::AbnormalMeanWordLength]),
            ("abc def ghi jkl mno.".to_owned(), vec![]),
            (format!("{prose}\n\nShort one."), vec![]),
            (format!("{prose}\n\nShort one.\n\nOne more."), vec![QualityFlag::ShortParagraphs]),
            // 2 of 6 lines are the same; of 7 it is less than 0.3.
            (
                format!("{prose}\n{prose}\n{prose} A\n{prose} B.\n{prose} C.\n{prose} D."),
                vec![QualityFlag::RepeatedLines],
            ),
            (
                format!(
                    "{prose}\n{prose}\n{prose} A\n{prose} B.\n{prose} C.\n{prose} D.\n{prose} E."
                ),
                vec![],
            ),
        ] {
            assert_eq!(flags(&text), expected, "{text}");
        }
    }

    #[test]
    fn fenced_code_is_left_out_and_an_open_fence_is_text() {
        for (text, expected) in [
            ("a\n```rust\nx = 1\n```\nb", "a\nb"),
            ("a\n   ~~~\n```\n~~~~\nb", "a\nb"),
            ("a\n    ```\nb\n    ```", "a\n    ```\nb\n    ```"),
            ("a\n```\nb", "a\n```\nb"),
            ("````\n```\n````", ""),
            ("```a`\nb\n```", "```a`\nb\n```"),
        ] {
            assert_eq!(without_code(text), expected, "{text:?}");
        }
        // Fences without end: a search for each would take an hour.
        let open = "~~~a\n".repeat(1 << 20);
        assert_eq!(without_code(&open).len(), open.len() - 1);
    }
}
