//! The sections of the config, one file each. A struct's fields are the keys of the YAML.

mod annex_iv;
mod compliance;
mod data;
mod distributed;
mod evaluation;
mod gpai;
mod lora;
mod merge;
mod model;
mod pipeline;
mod retention;
mod rope_scaling;
mod signing;
mod synthetic;
mod text_rule;
mod training;
mod webhook;

pub use annex_iv::{
    AnnexIv, AppliedStandard, DataSheet, Design, DesignChoice, Instructions, MetricRationale,
    PredeterminedChange, Testing,
};
pub use compliance::{Compliance, MetricsExport, Monitoring, RiskAssessment, RiskTier};
pub use data::{Data, Governance, OnBadRow, TrainOn};
pub use distributed::{
    Distributed, DistributedStrategy, FsdpBackwardPrefetch, FsdpStateDictType, FsdpStrategy,
};
pub use evaluation::{
    Approval, Benchmark, ClassifierMode, Evaluation, HarmSeverity, LlmJudge, Safety, SafetyScoring,
    SeverityThresholds,
};
pub use gpai::{Gpai, GpaiSources};
pub use lora::{Lora, LoraBias, LoraMethod, TargetModules};
pub use merge::{Merge, MergeMethod, MergeModel, SlerpOver, TiesVariant};
pub use model::{Backend, Model, Moe, Multimodal, QuantComputeDtype, QuantType};
pub use pipeline::{Pipeline, Stage};
pub use retention::{Retention, RetentionEnforce};
pub use rope_scaling::{RopeScaling, RopeType};
pub use signing::{Auth, NamedPlugin, PluginIsolation, Plugins, RequireProvisioned, Signing};
pub use synthetic::{Synthetic, SyntheticFormat, TeacherBackend};
pub use training::{
    ComputeDtype, GaloreOptim, GaloreProjType, LrSchedulerType, Optim, ReportTo, TrainerType,
    Training,
};
pub use webhook::{Webhook, WebhookFormat};
