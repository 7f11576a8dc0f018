//! Personal data: addresses of mail, bank accounts, cards, national numbers, telephones.

use std::ops::Range;
use std::sync::LazyLock;

use regex::bytes::Regex;

use crate::number;
use crate::span::{Found, Masked, mask, matches, pattern};

/// What masking leaves in place of personal data.
pub const PII_MASK: &str = "[REDACTED]";

/// What kind of personal data, in the order in which it is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PiiKind {
    /// An address of mail.
    Email,
    /// The number of a bank account (ISO 13616).
    Iban,
    /// The number of a payment card.
    CreditCard,
    /// A social security number of the United States.
    UsSsn,
    /// A French social security number (NIR).
    FrSsn,
    /// A Turkish identity number.
    TrId,
    /// What has the form of a German identity card's number.
    DeId,
    /// A telephone number, international or with its area in parentheses.
    Phone,
}

/// How bad it is that something is in a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Fails a gate.
    Critical,
    /// Names one person for good.
    High,
    /// Reaches a person.
    Medium,
    /// Often is something else.
    Low,
}

impl Severity {
    /// Every severity, the worst first.
    pub const ALL: [Severity; 4] =
        [Severity::Critical, Severity::High, Severity::Medium, Severity::Low];

    /// The word used in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Severity::Critical => "critical",
            Severity::High => "high",
            Severity::Medium => "medium",
            Severity::Low => "low",
        }
    }
}

impl PiiKind {
    /// Every kind.
    pub const ALL: [PiiKind; 8] = [
        PiiKind::Email,
        PiiKind::Iban,
        PiiKind::CreditCard,
        PiiKind::UsSsn,
        PiiKind::FrSsn,
        PiiKind::TrId,
        PiiKind::DeId,
        PiiKind::Phone,
    ];

    /// The word used in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PiiKind::Email => "email",
            PiiKind::Iban => "iban",
            PiiKind::CreditCard => "credit_card",
            PiiKind::UsSsn => "us_ssn",
            PiiKind::FrSsn => "fr_ssn",
            PiiKind::TrId => "tr_id",
            PiiKind::DeId => "de_id",
            PiiKind::Phone => "phone",
        }
    }

    /// How bad it is.
    #[must_use]
    pub fn severity(self) -> Severity {
        match self {
            PiiKind::Iban | PiiKind::CreditCard => Severity::Critical,
            PiiKind::UsSsn | PiiKind::FrSsn | PiiKind::TrId | PiiKind::DeId => Severity::High,
            PiiKind::Email => Severity::Medium,
            PiiKind::Phone => Severity::Low,
        }
    }

    fn find(self, text: &[u8]) -> Vec<Range<usize>> {
        match self {
            PiiKind::Email => matches(&EMAIL, text, |_| true),
            PiiKind::Iban => ibans(text),
            PiiKind::CreditCard => cards(text),
            PiiKind::UsSsn => matches(&US_SSN, text, is_us_ssn),
            PiiKind::FrSsn => matches(&FR_SSN, text, number::is_nir),
            PiiKind::TrId => matches(&TR_ID, text, number::is_tc_kimlik),
            PiiKind::DeId => matches(&DE_ID, text, |_| true),
            PiiKind::Phone => phones(text),
        }
    }

    /// Whether a text with so many digits, with or without an `@`, can have one.
    fn is_possible(self, n_digits: usize, has_at: bool) -> bool {
        let n_digits_min = match self {
            PiiKind::Email => return has_at,
            PiiKind::Iban => 2,
            PiiKind::CreditCard => 13,
            PiiKind::UsSsn => 9,
            PiiKind::FrSsn => 12,
            PiiKind::TrId => 11,
            PiiKind::DeId => 7,
            PiiKind::Phone => 5,
        };
        n_digits >= n_digits_min
    }
}

/// Labels of up to 63 characters, hyphens inside them only.
static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"\b[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,}")
});
static IBAN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}"));
static DIGITS: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b[0-9](?:[ -]*[0-9]){12,}"));
static US_SSN: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b"));
static FR_SSN: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"\b[12][0-9]{2}(?:0[1-9]|1[0-2])(?:2[AB]|[0-9]{2})[0-9]{6}(?:[0-9]{2})?\b")
});
static TR_ID: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b[0-9]{11}\b"));
static DE_ID: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b[A-Z][0-9]{7,8}[A-Z0-9]?\b"));
static PHONE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"\+[0-9]{1,3}[ .-]?[0-9]{2,4}[ .-]?[0-9]{2,4}(?:[ .-]?[0-9]{1,4})?\b",
        r"|\([0-9]{2,4}\)[ .-]?[0-9]{2,4}[ .-]?[0-9]{2,4}\b"
    ))
});

/// Everything that looks like personal data, kind by kind. A place can be of two kinds.
#[must_use]
pub fn detect_pii(text: &str) -> Vec<Found<PiiKind>> {
    let bytes = text.as_bytes();
    let n_digits = bytes.iter().filter(|b| b.is_ascii_digit()).count();
    let has_at = bytes.contains(&b'@');
    let mut found = Vec::new();
    for kind in PiiKind::ALL.into_iter().filter(|kind| kind.is_possible(n_digits, has_at)) {
        let places = kind.find(bytes).into_iter();
        found.extend(places.map(|place| Found { kind, start: place.start, end: place.end }));
    }
    found
}

/// A text without its personal data; [`PII_MASK`] is the usual replacement.
#[must_use]
pub fn mask_pii(text: &str, replacement: &str) -> Masked<PiiKind> {
    mask(text, replacement, detect_pii)
}

fn is_word(byte: Option<&u8>) -> bool {
    byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
}

/// Area, group and serial have values that are never given out.
fn is_us_ssn(text: &[u8]) -> bool {
    let (area, group, serial) = (&text[..3], &text[4..6], &text[7..]);
    area != b"000" && area != b"666" && area[0] != b'9' && group != b"00" && serial != b"0000"
}

/// Not behind a word: `5+123` is a sum.
fn phones(text: &[u8]) -> Vec<Range<usize>> {
    let is_alone = |at: usize| at == 0 || !is_word(text.get(at - 1));
    PHONE.find_iter(text).map(|m| m.range()).filter(|place| is_alone(place.start)).collect()
}

/// As much as the pattern takes, up to a word's end; or, where words follow that are no part of it,
/// as much as the country's accounts have.
fn ibans(text: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(candidate) = IBAN.find_at(text, from) {
        let (start, longest) = (candidate.start(), candidate.end());
        let is_end = |end: usize| text[end - 1] != b' ' && !is_word(text.get(end));
        let end = (start + 15..=longest)
            .rev()
            .find(|&end| is_end(end))
            .filter(|&end| number::is_iban(&text[start..end]))
            .or_else(|| {
                let n = number::iban_len(&text[start..start + 2])?;
                let plain = (start..longest).filter(|&at| text[at] != b' ');
                let end = plain.take(n).last()? + 1;
                (is_end(end) && number::is_iban(&text[start..end])).then_some(end)
            });
        from = end.unwrap_or(start + 1);
        found.extend(end.map(|end| start..end));
    }
    found
}

/// How card numbers are written, apart from in one piece.
const GROUPS: [&[usize]; 5] =
    [&[4, 4, 4, 4], &[4, 6, 5], &[4, 6, 4], &[4, 4, 4, 4, 3], &[4, 3, 3, 3]];

/// In a run of digits, spaces and hyphens: what it begins with, however it is grouped; and inside of
/// it, or before an expiry date, what is grouped as cards are. Any piece of a table of numbers would
/// pass Luhn's check one time in ten.
fn cards(text: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for run in DIGITS.find_iter(text) {
        let places: Vec<usize> = run.range().filter(|&at| text[at].is_ascii_digit()).collect();
        let mut i = 0;
        while i < places.len() {
            match card_at(text, &places, i) {
                Some(n) => {
                    found.push(places[i]..places[i + n - 1] + 1);
                    i += n;
                }
                None => i += 1,
            }
        }
    }
    found
}

/// How many digits from digit `i` of a run on are a card's number.
fn card_at(text: &[u8], places: &[usize], i: usize) -> Option<usize> {
    if places[i] > 0 && is_word(text.get(places[i] - 1)) {
        return None;
    }
    let n_max = (places.len() - i).min(19);
    let ends = (13..=n_max).rev().filter(|&n| !is_word(text.get(places[i + n - 1] + 1)));
    for (nth, n) in ends.enumerate() {
        let places = &places[i..i + n];
        let digits: Vec<u8> = places.iter().map(|&at| text[at]).collect();
        let is_whole = i == 0 && nth == 0;
        if (is_whole || is_grouped(text, places))
            && number::has_issuer(&digits)
            && number::is_luhn(&digits)
        {
            return Some(n);
        }
    }
    None
}

/// In one piece, or in groups of usual sizes with the same single character between them.
fn is_grouped(text: &[u8], places: &[usize]) -> bool {
    let mut groups = vec![1];
    let mut between = None;
    for pair in places.windows(2) {
        match pair[1] - pair[0] {
            1 => *groups.last_mut().expect("one from the beginning") += 1,
            2 if between.is_none_or(|b| b == text[pair[0] + 1]) => {
                between = Some(text[pair[0] + 1]);
                groups.push(1);
            }
            _ => return false,
        }
    }
    groups.len() == 1 || GROUPS.contains(&&groups[..])
}
