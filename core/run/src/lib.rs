//! A run from config to evidence, and the commands that use a model: the only crate that sees a
//! whole config.
//!
//! It refuses to know the command line, the terminal and the environment: those come in as an
//! [`environment::Environment`] and go out as [`event::Event`]s. Start reading at
//! [`training::train`].

pub mod approval;
pub mod audit;
pub mod benchmark;
pub mod chat;
pub mod checkpoint;
pub mod compliance;
pub mod cosign;
pub mod cost;
mod course;
pub mod data;
mod derived;
pub mod distributed;
pub mod doctor;
pub mod dossier;
mod ended;
pub mod environment;
pub mod erasure;
pub mod error;
pub mod evaluators;
pub mod event;
mod event_json;
pub mod exit;
pub mod fit_check;
pub mod footprint;
pub mod gates;
mod judge;
pub mod kernels;
pub mod launch;
pub mod memory;
pub mod merge;
pub mod metrics;
pub mod model;
pub mod monitor;
pub mod outbound;
pub mod output;
pub mod overrides;
pub mod pipeline;
pub mod plan;
pub mod plugins;
mod prompt_rows;
pub mod quantize;
pub mod recovery;
mod remark;
pub mod reproduce;
pub mod resume;
pub mod retention;
pub mod reverse_pii;
mod rewards;
pub mod safety;
pub mod sample;
pub mod score;
pub mod serve;
pub mod settings;
mod subject;
pub mod synthetic;
mod traces;
pub mod training;
pub mod trust;
