//! What matches a query: the text as it is, or however its kind may be written.

use super::ReversePiiError;
use forgelm_evidence::identifier::Identifiers;
use regex::{Regex, RegexBuilder, escape};
use std::ops::Range;

/// Fewer characters than this would match half of everything.
const SIGNIFICANT_MIN: usize = 4;
/// What may stand between the digits of a number.
const SEPARATORS: &str = r"[\s().\-/\u{2010}-\u{2015}]*";
/// A compiled pattern is at most this large.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// What a query is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentifierKind {
    /// The text as it is.
    Literal,
    /// An address of mail, in any case.
    Email,
    /// A telephone number, with any separators.
    Phone,
    /// A Turkish identity number.
    TrId,
    /// A social security number of the United States.
    UsSsn,
    /// The number of a bank account.
    Iban,
    /// The number of a payment card.
    CreditCard,
    /// A regular expression.
    Custom,
}

impl IdentifierKind {
    /// The word on the command line and in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Literal => "literal",
            Self::Email => "email",
            Self::Phone => "phone",
            Self::TrId => "tr_id",
            Self::UsSsn => "us_ssn",
            Self::Iban => "iban",
            Self::CreditCard => "credit_card",
            Self::Custom => "custom",
        }
    }
}

/// A compiled query. It runs in a time linear in the text, whatever the text is.
#[derive(Clone, Debug)]
pub struct Pattern {
    regex: Regex,
    /// What may not stand directly before and after a match.
    edge: Edge,
}

/// The neighbors that make a match a part of something longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    Free,
    /// Characters of an address of mail.
    Address,
    /// Digits.
    Digits,
    /// Letters and digits.
    Word,
}

impl Pattern {
    /// For a query of a kind.
    pub fn of(kind: IdentifierKind, query: &str) -> Result<Self, ReversePiiError> {
        let digits = |c: &char| c.is_ascii_digit();
        let (text, edge) = match kind {
            IdentifierKind::Literal => (escape(query), Edge::Free),
            IdentifierKind::Custom => (query.to_owned(), Edge::Free),
            IdentifierKind::Email => (format!("(?i){}", escape(query)), Edge::Address),
            IdentifierKind::Phone => {
                // `+` and `00` are the same prefix, and a text may have neither.
                let national = query.trim_start_matches('+');
                let rest = national.strip_prefix("00").unwrap_or(national);
                let prefix = match rest.len() < query.len() {
                    true => format!("(?:0{SEPARATORS}0{SEPARATORS})?"),
                    false => String::new(),
                };
                (prefix + &spread(kind, rest.chars().filter(digits))?, Edge::Digits)
            }
            IdentifierKind::TrId | IdentifierKind::UsSsn | IdentifierKind::CreditCard => {
                (spread(kind, query.chars().filter(digits))?, Edge::Digits)
            }
            IdentifierKind::Iban => {
                let significant = query.chars().filter(char::is_ascii_alphanumeric);
                (format!("(?i){}", spread(kind, significant)?), Edge::Word)
            }
        };
        // What the parser says repeats the query, which may be a person's.
        let refused = |_| ReversePiiError::Flag {
            flag: "--query",
            problem:
                "no regular expression, or one that is too large; groups that look around and \
                      references back are none"
                    .to_owned(),
        };
        let regex = RegexBuilder::new(&text).size_limit(PATTERN_BYTES_MAX).build();
        Ok(Self { regex: regex.map_err(refused)?, edge })
    }

    /// For the digests of a query, under both schemes.
    pub fn of_digests(identifiers: &Identifiers, query: &str) -> Self {
        let text = format!("{}|{}", identifiers.digest(query), identifiers.digest_v1(query));
        Self { regex: Regex::new(&text).expect("two digests are a pattern"), edge: Edge::Free }
    }

    /// The first match in a text.
    pub fn find(&self, text: &str) -> Option<Range<usize>> {
        let mut from = 0;
        while let Some(found) = self.regex.find_at(text, from) {
            if self.stands_alone(&text[..found.start()], &text[found.end()..]) {
                return Some(found.range());
            }
            // One character further than the match began.
            from = found.start() + text[found.start()..].chars().next().map_or(1, char::len_utf8);
            if from > text.len() {
                break;
            }
        }
        None
    }

    fn stands_alone(&self, before: &str, after: &str) -> bool {
        let (last, mut next) = (before.chars().next_back(), after.chars());
        let first = next.next();
        let is_part = |c: Option<char>, more: &str| {
            c.is_some_and(|c| c.is_alphanumeric() || more.contains(c))
        };
        match self.edge {
            Edge::Free => true,
            Edge::Word => !is_part(last, "") && !is_part(first, ""),
            Edge::Digits => {
                let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
                !is_digit(last) && !is_digit(first)
            }
            // A dot ends a sentence, or goes on to a longer name.
            Edge::Address => {
                let goes_on = first == Some('.') && is_part(next.next(), "");
                !is_part(last, "._%+-") && !is_part(first, "-_") && !goes_on
            }
        }
    }
}

/// The characters with anything between them that people write there.
fn spread(
    kind: IdentifierKind,
    characters: impl Iterator<Item = char>,
) -> Result<String, ReversePiiError> {
    let characters: Vec<String> = characters.map(String::from).collect();
    if characters.len() < SIGNIFICANT_MIN {
        let problem = format!(
            "{} letters and digits that count; expected at least {SIGNIFICANT_MIN} for `--type {}`",
            characters.len(),
            kind.as_str()
        );
        return Err(ReversePiiError::Flag { flag: "--query", problem });
    }
    Ok(characters.join(SEPARATORS))
}

#[cfg(test)]
mod tests {
    use super::{IdentifierKind, Pattern};

    fn is_found(kind: IdentifierKind, query: &str, text: &str) -> bool {
        Pattern::of(kind, query).expect("a pattern").find(text).is_some()
    }

    #[test]
    fn each_kind_is_found_however_it_is_written_and_not_as_a_part_of_another() {
        use IdentifierKind::{CreditCard, Email, Iban, Literal, Phone, TrId, UsSsn};
        let found = [
            (Literal, "a.b", "xa.by"),
            (Email, "eve@example.org", "write to Eve@Example.ORG."),
            (Email, "eve@example.org", "steve@example.org, eve@example.org"),
            (Phone, "+49 30 1234567", "tel (0049) 30/123-45 67"),
            (Phone, "0049 30 1234567", "+49301234567"),
            (TrId, "10000000146", "no. 100 000 001 46"),
            (UsSsn, "078-05-1120", "078051120"),
            (Iban, "DE89 3704 0044 0532 0130 00", "de89370400440532013000"),
            (CreditCard, "5555555555554444", "5555 5555 5555 4444"),
        ];
        for (kind, query, text) in found {
            assert!(is_found(kind, query, text), "{query} in {text}");
        }
        let not_found = [
            (Literal, "a.b", "axb"),
            (Literal, "eve", "Eve"),
            (Email, "eve@example.org", "steve@example.org"),
            (Email, "eve@example.org", "eve@example.org.uk"),
            (Phone, "+49 30 1234567", "+49 30 12345678"),
            (TrId, "10000000146", "9100000001461"),
            (Iban, "DE89 3704 0044 0532 0130 00", "XDE89370400440532013000"),
        ];
        for (kind, query, text) in not_found {
            assert!(!is_found(kind, query, text), "{query} in {text}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_without_being_repeated() {
        for query in ["(secret", "(?=secret)", "secret{1000}{1000}"] {
            let error =
                Pattern::of(IdentifierKind::Custom, query).expect_err("refused").to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(is_found(IdentifierKind::Custom, r"ev[ea]\b", "eva"));
        for query in ["12", "+ 1", "ab"] {
            assert!(Pattern::of(IdentifierKind::Phone, query).is_err());
        }
    }

    #[test]
    fn an_expression_that_blows_up_elsewhere_takes_linear_time() {
        let text = "a".repeat(100_000) + "!";
        assert!(!is_found(IdentifierKind::Custom, "(a+)+$", &text));
    }

    #[test]
    fn an_empty_match_at_the_end_ends_the_search() {
        assert!(is_found(IdentifierKind::Custom, "$", "ü"));
        let pattern = Pattern::of(IdentifierKind::Email, "é").expect("a pattern");
        assert_eq!(pattern.find("ééé é"), Some(7..9));
    }
}
