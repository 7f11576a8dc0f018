//! Evidence: what a run can prove, and how a stranger checks it.
//!
//! - [`audit`]: the hash-chained log of everything a run decides, and its verifier;
//! - [`approval`]: what people decided on a staged model;
//! - [`keys`]: Ed25519 keys, key files, the trust store;
//! - [`dsse`]: signature envelopes over in-toto statements;
//! - [`erasure`]: signed statements of what was removed on purpose;
//! - [`library`]: signatures of shared libraries;
//! - [`model`]: signatures of model folders;
//! - [`sign`]: signatures of files that are there already;
//! - [`timestamp`]: trusted time: tokens of others over our signatures;
//! - [`cosign`]: more signatures in the attestation of a run;
//! - [`identifier`]: identifiers of people and rows as keyed digests;
//! - [`integrity`]: `model_integrity.json`, the digests of a model folder;
//! - [`gguf`]: the verifier of GGUF files;
//! - [`manifest_hash`]: the digest of a manifest within itself;
//! - [`annex_iv`]: the verifier of `annex_iv_metadata.json`;
//! - [`pipeline`]: the verifier of a pipeline's manifest;
//! - [`gate`]: what gates measured, and the verdict that follows from it;
//! - [`documents`]: one plain [`documents::Evidence`] and the documents made from it;
//! - [`bundle`]: writing and signing all of that in order, and verifying it again.
//!
//! It refuses to know the engine, the environment, the clock and the terminal: all values are
//! passed in, and verifiers return what they found, never print it.
//!
//! **Invariants:** every verification ends in accepted or in a named reason; 6 only for "compared
//! and different" ([`class::Class`]); one changed byte in any signed file, envelope, model file or
//! audit line is noticed and the file is named (`src/tests/mutations.rs`); signed bytes are verified
//! before they are parsed.
//!
//! Start reading at [`bundle::write::write_bundle`] and [`bundle::verify::verify_bundle`].

pub mod annex_iv;
pub mod approval;
pub mod audit;
pub mod bundle;
pub mod checkpoint;
pub mod class;
pub mod cosign;
mod digest;
pub mod documents;
pub mod dsse;
pub mod erasure;
mod files;
pub mod gate;
pub mod gguf;
pub mod identifier;
pub mod integrity;
pub mod keys;
pub mod library;
pub mod manifest_hash;
pub mod model;
pub mod pipeline;
mod secret;
pub mod sign;
pub mod signature;
pub mod strict_json;
#[cfg(test)]
mod tests;
mod text;
pub mod timestamp;

pub use class::Class;
pub use secret::Secret;

/// `builder.name` of every statement this program signs.
pub const BUILDER_NAME: &str = "forgelm";
