//! Nothing is in here: this crate is its test programs.
//!
//! `invariants/` are the house rules; test programs that belong to a crate (`e2e`, `sim`, ...)
//! are declared in that crate's Cargo.toml and only their sources live in this folder.
