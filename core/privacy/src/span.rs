//! Places in a text, and the text without what is there.

use std::collections::BTreeMap;
use std::ops::Range;

use regex::bytes::{Regex, RegexBuilder};

/// Masking a text may bring neighbors together that look like something again.
const PASSES_MAX: usize = 16;

/// Something found: bytes `start..end` of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<K> {
    /// What it is.
    pub kind: K,
    /// Its first byte.
    pub start: usize,
    /// The byte after its last one.
    pub end: usize,
}

/// A text with what was found replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masked<K> {
    /// The text.
    pub text: String,
    /// How much of each kind was replaced.
    pub counts: BTreeMap<K, u64>,
}

/// A pattern over bytes; classes and boundaries are those of ASCII.
pub(crate) fn pattern(text: &str) -> Regex {
    RegexBuilder::new(text).unicode(false).build().expect("a pattern of this crate")
}

/// The matches of a pattern that pass a check.
pub(crate) fn matches(
    pattern: &Regex,
    text: &[u8],
    is_valid: impl Fn(&[u8]) -> bool,
) -> Vec<Range<usize>> {
    pattern.find_iter(text).filter(|m| is_valid(m.as_bytes())).map(|m| m.range()).collect()
}

/// Replaces what `detect` finds until it finds nothing. Where two overlap the kind that comes first
/// in its order is replaced.
pub(crate) fn mask<K: Copy + Ord>(
    text: &str,
    replacement: &str,
    detect: impl Fn(&str) -> Vec<Found<K>>,
) -> Masked<K> {
    let mut masked = Masked { text: text.to_owned(), counts: BTreeMap::new() };
    for _ in 0..PASSES_MAX {
        let found = apart(detect(&masked.text));
        if found.is_empty() {
            break;
        }
        let mut text = String::with_capacity(masked.text.len());
        let mut at = 0;
        for found in &found {
            text.push_str(&masked.text[at..found.start]);
            text.push_str(replacement);
            at = found.end;
            *masked.counts.entry(found.kind).or_default() += 1;
        }
        text.push_str(&masked.text[at..]);
        masked.text = text;
    }
    masked
}

/// Without those that overlap one of a kind that comes first; by place.
fn apart<K: Copy + Ord>(mut found: Vec<Found<K>>) -> Vec<Found<K>> {
    found.sort_by_key(|found| (found.kind, found.start));
    let mut kept: BTreeMap<usize, Found<K>> = BTreeMap::new();
    for found in found {
        let before = kept.range(..found.end).next_back();
        if before.is_none_or(|(_, before)| before.end <= found.start) {
            kept.insert(found.start, found);
        }
    }
    kept.into_values().collect()
}
