//! The config contract: one YAML file to a checked [`Run`].
//!
//! Every section and key is declared once, in `section/`; the parser, the checks, [`explain`],
//! [`json_schema`] and [`reference_yaml`] read the same tables. This crate knows no files, no
//! environment and no clock: it takes text and the name under which messages mention it.
//!
//! Invariants, each held by a test: all problems are reported at once, with line, column, key,
//! what was found and what was expected; a key is read or refused, never ignored without a word;
//! secrets are never printed; text of any kind costs bounded time and memory.
//!
//! Start at [`load`] and at `run.rs`, where the root is declared.

mod available;
mod declare;
mod device;
mod diagnostic;
mod dump;
mod environment;
mod explain;
mod hash;
mod read;
mod reference;
mod rules;
mod run;
mod scalar;
mod schema;
mod secret;
mod section;
pub mod spec;
mod yaml;

pub use available::not_available;
pub use device::{Device, NoDevice};
pub use diagnostic::{Code, Color, Diagnostic, Place, Severity, nearest, render};
pub use dump::{published_json, resolved_json, resolved_yaml};
pub use environment::{EnvironmentKey, environment_keys};
pub use explain::{explain, key_paths, nearest_keys};
pub use hash::{config_hash, python_json};
pub use read::{TextOrInteger, Written};
pub use reference::reference_yaml;
pub use run::{Loaded, RawRun, Run, load, load_bytes};
pub use schema::json_schema;
pub use secret::{REDACTED, Secret};
pub use section::{
    AnnexIv, AppliedStandard, Approval, Auth, Backend, Benchmark, ClassifierMode, Compliance,
    ComputeDtype, Data, DataSheet, Design, DesignChoice, Distributed, DistributedStrategy,
    Evaluation, FsdpBackwardPrefetch, FsdpStateDictType, FsdpStrategy, GaloreOptim, GaloreProjType,
    Governance, Gpai, GpaiSources, HarmSeverity, Instructions, LlmJudge, Lora, LoraBias,
    LoraMethod, LrSchedulerType, Merge, MergeMethod, MergeModel, MetricRationale, MetricsExport,
    Model, Moe, Monitoring, Multimodal, NamedPlugin, OnBadRow, Optim, Pipeline, PluginIsolation,
    Plugins, PredeterminedChange, QuantComputeDtype, QuantType, ReportTo, RequireProvisioned,
    Retention, RetentionEnforce, RiskAssessment, RiskTier, RopeScaling, RopeType, Safety,
    SafetyScoring, SeverityThresholds, Signing, SlerpOver, Stage, Synthetic, SyntheticFormat,
    TargetModules, TeacherBackend, Testing, TiesVariant, TrainOn, TrainerType, Training, Webhook,
    WebhookFormat,
};
pub use yaml::FILE_BYTES_MAX;
