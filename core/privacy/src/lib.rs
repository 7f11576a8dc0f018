//! Personal data and secrets in a text: found, and masked.
//!
//! Patterns over bytes, each with a check where its numbers have one (Luhn, mod 97, key digits). It
//! refuses to know where texts come from, and what is done about what it finds. What it returns are
//! places and counts, never the text that was found, so that nothing of it reaches a log.
//!
//! Word boundaries are those of ASCII: in a text without spaces between words, such as Chinese, a
//! number beside letters is found too.
//!
//! **Invariants:**
//! - time is linear in the text, whatever it holds (the patterns have no backtracking, and checks
//!   look at a bounded piece);
//! - a text that was masked has no finding (`masked_texts_have_no_finding`).
//!
//! Start reading at [`detect_pii`] and [`detect_secrets`].

mod number;
mod pii;
mod secret;
mod span;

pub use pii::{PII_MASK, PiiKind, Severity, detect_pii, mask_pii};
pub use secret::{SECRET_MASK, SecretKind, detect_secrets, mask_secrets};
pub use span::{Found, Masked};
