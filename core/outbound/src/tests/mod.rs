//! The client against real servers on this machine.

#![expect(clippy::disallowed_methods, reason = "a test measures time")]

mod chat_api;
mod courier;
mod guard;
mod mlflow;
pub(crate) mod server;
