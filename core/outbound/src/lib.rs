//! What a run says to the world outside: notices to a webhook, metrics to a monitor. Everything
//! that a config can make the program connect to goes through [`guard::Guard`].
//!
//! It refuses to know runs, models and signing keys: payloads are made from plain values, and what
//! signs is passed in. It refuses to fail: an error is told, and whoever sends goes on.
//!
//! Start reading at [`guard`].

pub mod address;
pub mod destination;
pub mod guard;
mod resolve;
#[cfg(test)]
mod tests;
