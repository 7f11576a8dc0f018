//! Dates and thresholds around Article 53 that change without our doing: data, each with its source.
//! Documents print them with the month in which they were looked up.

/// When everything here was looked up last.
pub(super) const AS_OF: &str = "2026-07";

/// A date and what holds from it.
pub(super) struct Date {
    pub(super) date: &'static str,
    pub(super) what: &'static str,
}

/// In order. From secondary sources: the Official Journal counts.
pub(super) const CALENDAR: [Date; 4] = [
    Date { date: "2025-07-24", what: "first publication of the template for the public summary" },
    Date { date: "2025-08-02", what: "duties of providers of general-purpose AI models apply" },
    Date { date: "2025-12-05", what: "the template adopted as C(2025) 8311" },
    Date { date: "2026-08-02", what: "powers of enforcement of the Commission apply" },
];

/// A modification whose compute is above this share of the compute that trained the original makes who
/// does it a provider (the Commission's guidelines on providers of general-purpose AI models).
pub(super) const SHARE: f64 = 1.0 / 3.0;
/// What stands for the original's compute where it is not known, in floating-point operations.
pub(super) const BASE_UNKNOWN: f64 = 1e23;
/// The same where the original has systemic risk.
pub(super) const BASE_UNKNOWN_SYSTEMIC: f64 = 1e25;
/// Ranges of the size of training texts in the template: below this many tokens, in it, above it.
pub(super) const TOKEN_RANGES: [(f64, &str); 2] =
    [(1e9, "less than 1 billion tokens"), (1e13, "1 billion to 10 trillion tokens")];
/// Above the last range.
pub(super) const TOKENS_ABOVE: &str = "more than 10 trillion tokens";
