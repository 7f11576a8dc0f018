//! Rules for texts, each with the words that a message uses.

use crate::spec::TextRule;

/// Not empty and not only blanks.
pub const NOT_BLANK: TextRule = ("not blank", |t| !t.trim().is_empty());

/// A revision: a commit, a branch or tag, or the SHA-256 of a file.
pub const REVISION: TextRule = (
    "a commit, tag, branch or SHA-256; 1 to 255 characters, no white space, not beginning with `-`",
    |t| {
        !t.is_empty()
            && t.chars().count() <= 255
            && !t.starts_with('-')
            && !t.chars().any(|c| c.is_whitespace() || c.is_control())
    },
);

/// A folder within another one.
pub const SUBFOLDER: TextRule = ("a relative path without `..`", |t| {
    !t.trim().is_empty()
        && !t.starts_with(['/', '\\', '~'])
        && t.split(['/', '\\']).all(|part| part != ".." && !part.ends_with(':'))
        && t.split(['/', '\\']).any(|part| !part.is_empty() && part != ".")
});

/// The name of a pipeline stage.
pub const STAGE_NAME: TextRule = ("1 to 32 of `a`-`z`, `0`-`9`, `_`", |t| {
    (1..=32).contains(&t.len())
        && t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
});

/// A language tag (BCP 47), in its plain form.
pub const LANGUAGE: TextRule = ("a language code such as `en` or `pt-BR`", |t| {
    let mut parts = t.split('-');
    let first = parts.next().unwrap_or_default();
    (2..=3).contains(&first.len())
        && first.bytes().all(|b| b.is_ascii_lowercase())
        && parts.all(|part| {
            (2..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
        })
});

/// A calendar date.
pub const DATE: TextRule = ("a date, YYYY-MM-DD", is_date);

fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts.as_slice() else {
        return false;
    };
    if (year.len(), month.len(), day.len()) != (4, 2, 2)
        || !text.bytes().all(|b| b.is_ascii_digit() || b == b'-')
    {
        return false;
    }
    let number = |s: &str| s.parse::<u32>().unwrap_or(0);
    let (year, month, day) = (number(year), number(month), number(day));
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 0,
    };
    (1..=days).contains(&day)
}
