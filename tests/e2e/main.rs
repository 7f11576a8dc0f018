//! The program as its users run it: arguments in; standard output, standard error, exit code and
//! files out. Tiny model, no network, everything in a temporary folder.
//!
//! Start reading at [`support::Workplace`].

#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "sizes of tests are small"
)]
#![expect(clippy::disallowed_methods, reason = "a test prepares files and waits for a program")]

mod approval;
mod approval_time;
mod audit;
mod benchmark;
mod bundle;
mod chat;
mod comm;
mod compliance;
mod config;
mod cuda;
mod data;
mod deepspeed;
mod device_plugins;
mod distributed;
mod distributed_hosts;
mod doctor;
mod doctor_mpi;
mod evaluators;
mod faults;
mod foreign_merge;
mod gates;
mod guard;
mod hostile;
mod in_parts;
mod judge;
mod keys;
mod launch;
mod memory;
mod merge;
mod methods;
mod model_api;
mod monitor;
mod monitoring;
mod mutations;
mod pipeline;
mod pipelines;
mod pipelines_killed;
mod pipelines_resumed;
mod plugin_new;
mod plugins;
mod published;
mod purge;
mod quantize;
mod receiver;
mod reports;
mod reproduce;
mod resume;
mod retention;
mod reverse_pii;
mod reward_model;
mod rewards;
mod run;
mod safety;
mod score;
mod shards;
mod signed_plugins;
mod support;
mod synthetic;
mod timestamps;
mod tracker_files;
mod trackers;
mod trainers;
mod verify;
mod webhook;
