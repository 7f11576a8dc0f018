//! Everything that can end a run without a model, and the exit code of each.
// long because: one list of all ends with their exit codes, and each variant has its message

use crate::approval::error::ApprovalError;
use crate::benchmark::BenchmarkError;
use crate::distributed::Different;
use crate::erasure::ErasureError;
use crate::exit::Exit;
use crate::monitor::MonitorError;
use crate::outbound::OutboundError;
use crate::pipeline::error::PipelineError;
use crate::plugins::EngineError;
use crate::quantize::QuantizeError;
use crate::retention::RetentionError;
use crate::reverse_pii::ReversePiiError;
use crate::safety::SafetyError;
use crate::synthetic::SyntheticError;
use forgelm_artifact::jsonl::JsonlError;
use forgelm_artifact::lock::LockError;
use forgelm_artifact::open::OpenError;
use forgelm_artifact::write::WriteError;
use forgelm_collective::CollectiveError;
use forgelm_config::{Color, Diagnostic, render};
use forgelm_data::{DataError, StoreError};
use forgelm_evidence::Class;
use forgelm_evidence::audit::log::AuditError;
use forgelm_evidence::audit::operator::NoOperator;
use forgelm_evidence::bundle::write::BundleError;
use forgelm_evidence::documents::annex_iv::OpenPoint;
use forgelm_evidence::keys::KeyError;
use forgelm_evidence::keys::store::KeyStoreError;
use forgelm_evidence::keys::trust::TrustError;
use forgelm_evidence::library::SignError;
use forgelm_evidence::sign::SignFileError;
use forgelm_generate::{GenerateError, ScoreError};
use forgelm_hub::HubError;
use forgelm_kernels_api::Failure;
use forgelm_kernels_cuda::CudaError;
use forgelm_loader::LibraryError;
use forgelm_merge::MergeError;
use forgelm_model::{AdapterError, ConfigError, LoadError, OutOfMemory, WholeModelError};
use forgelm_plugin::RegistryError;
use forgelm_sdk::{Failed, OptionsError};
use forgelm_tokenize::{ChatError, TemplateError, TokenizeError};
use forgelm_train::checkpoint::CheckpointError;
use forgelm_train::feed::FeedError;
use forgelm_train::optimizer::OptimizerError;
use forgelm_train::references::{FileError, ReferencesError};
use forgelm_train::rollouts::RolloutError;
use forgelm_train::session::{AllocateError, RestoreError, TooManyRanks};
use serde_json::{Value, json};
use std::error::Error;
use std::path::PathBuf;

/// Why a run or a command ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The config has problems: all of them.
    #[error("{}", render(.0, Color::Off).trim_end())]
    Config(Vec<Diagnostic>),
    /// A file given on the command line cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The model could not be found or fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device that was asked for cannot be used.
    #[error(
        "`{device}` cannot be used: {source}\n  hint: `training.device: cpu` computes on the processor"
    )]
    Device {
        /// As `training.device` names it.
        device: forgelm_config::Device,
        /// Why.
        source: Box<CudaError>,
    },
    /// A device failed, or memory is full.
    #[error("{}\n  hint: {}", .0, failure_hint(.0))]
    Failed(#[from] Failure),
    /// The model's description does not fit what belongs to it.
    #[error(transparent)]
    ModelConfig(#[from] ConfigError),
    /// The adapter cannot be made, read or used.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A whole model cannot be written.
    #[error(transparent)]
    WholeModel(#[from] WholeModelError),
    /// The optimizer cannot be made for these parameters.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// The tokenizer cannot be read or used.
    #[error(transparent)]
    Tokenize(#[from] TokenizeError),
    /// The chat template cannot be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A conversation cannot become tokens.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Tokens cannot be read back.
    #[error(transparent)]
    Tokens(#[from] StoreError),
    /// What a step reads is not there.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// There is nothing from the reference model.
    #[error(transparent)]
    References(#[from] ReferencesError),
    /// A run cannot be compared with another.
    #[error("not reproducible: {0}")]
    NotReproducible(String),
    /// A run that was reproduced is not the same.
    #[error(
        "after step {step}, {what} is not that of the run\n  the run: {then}\n  now:     {now}"
    )]
    Diverged {
        /// Steps done.
        step: u64,
        /// What differs.
        what: &'static str,
        /// In the run.
        then: String,
        /// In its reproduction.
        now: String,
    },
    /// A file of a run that was reproduced is not the same.
    #[error("`{}` is not that of the run\n  the run: {then}\n  now:     {now}", .path.display())]
    DivergedFile {
        /// The file, in the reproduction.
        path: PathBuf,
        /// Its SHA-256 in the run.
        then: String,
        /// And now.
        now: String,
    },
    /// The run's folder is not where it was.
    #[error("{}: the folder of the run was removed or moved while it worked\n  {rescued}", .dir.display())]
    FolderGone {
        /// Where it was.
        dir: PathBuf,
        /// What became of the state.
        rescued: String,
    },
    /// A request to stop came before the first step.
    #[error("stopped before the first step\n  hint: `--resume` begins it again")]
    StoppedBeforeStart,
    /// A row of a file of rows cannot be read.
    #[error(transparent)]
    Rows(#[from] JsonlError),
    /// A row given to `score` cannot be used.
    #[error("{}:{line}: {problem}", .file.display())]
    Row {
        /// The file.
        file: PathBuf,
        /// 1-based line.
        line: u64,
        /// What is wrong.
        problem: String,
    },
    /// No trainer of that name.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A library of plugins cannot be used.
    #[error(transparent)]
    Plugin(#[from] LibraryError),
    /// The collective that the config names cannot be used.
    #[error("`distributed.engine`: {0}")]
    Engine(#[from] EngineError),
    /// The signature of a library contradicts it, or cannot be looked at.
    #[error(
        "{}: its signature does not hold ({state}): {reason}\n  hint: get the library and its signature \
         again, from who signed it", .path.display()
    )]
    Signature {
        /// The library.
        path: PathBuf,
        /// The state, as verifiers call it.
        state: &'static str,
        /// Why.
        reason: String,
        /// Which exit code this belongs to.
        class: Class,
    },
    /// `plugins.require_signed`, and no trusted key signed it.
    #[error(
        "{}: has no trusted signature ({state}): {reason}; expected one because of \
         `plugins.require_signed`\n  hint: `forgelm plugin sign` makes one; the trust store says whose \
         count", .path.display()
    )]
    Unsigned {
        /// The library.
        path: PathBuf,
        /// The state, as verifiers call it.
        state: &'static str,
        /// Why.
        reason: String,
    },
    /// The trust store cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The trust store was not changed.
    #[error(transparent)]
    KeyStore(#[from] KeyStoreError),
    /// A file cannot be signed.
    #[error(transparent)]
    SignFile(#[from] SignFileError),
    /// A library cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// A trainer of a library is for other records.
    #[error(
        "`plugins.trainer`: `{name}` of {origin} is for {needed}, and `training.trainer_type: \
         {trainer_type}` reads {read}\n  hint: `training.trainer_type` says what the records look like"
    )]
    TrainerRecords {
        /// The trainer.
        name: String,
        /// Its library.
        origin: String,
        /// What it is for.
        needed: &'static str,
        /// As configured.
        trainer_type: &'static str,
        /// What is read.
        read: &'static str,
    },
    /// A library that should run in a process of its own, in a host that starts none.
    #[error(
        "`plugins.isolation`: this host starts no process for plugins\n  hint: `plugins.isolation: \
         in_process` runs them in the program"
    )]
    NoPluginWorker,
    /// An option of a plugin that is no `key=value`.
    #[error("`{place}`: `{given}`; expected `key=value`")]
    PluginOption {
        /// The key of the config, or the flag.
        place: &'static str,
        /// As given.
        given: String,
    },
    /// Rewards that no answer of this run would get, or one that is named twice.
    #[error("`plugins.rewards`: {problem}")]
    Rewards {
        /// What is wrong with them.
        problem: String,
    },
    /// An option for a plugin of a library, where none is named.
    #[error(
        "`{place}`: `{given}` is for no {kind}; expected `{name}`\n  hint: options of what ships with \
         ForgeLM are keys of `{ours}`"
    )]
    LooseOption {
        /// The key of the config.
        place: &'static str,
        /// As given.
        given: String,
        /// What it would be for, in words.
        kind: &'static str,
        /// The key that names one.
        name: &'static str,
        /// The section that has the options of ours.
        ours: &'static str,
    },
    /// An option that a plugin refuses.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A plugin that the config names refuses its options, or what else it is made from.
    #[error("`{place}`: `{name}` of {origin}: {source}")]
    NamedOptions {
        /// The key that names it.
        place: &'static str,
        /// The plugin.
        name: String,
        /// Its library.
        origin: String,
        /// What it said.
        source: Box<OptionsError>,
    },
    /// The run's folder cannot take the run.
    #[error("{}: {problem}\n  hint: {hint}", .dir.display())]
    OutputDir {
        /// The folder.
        dir: PathBuf,
        /// What is in the way.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// Another process works in the folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The checkpoint to continue from cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The run that wrote the checkpoint is not the one that would continue.
    #[error(
        "{}: was written by another run:\n{}\n  hint: continue with the config of that run, start \
         afresh in another `training.output_dir`, or add `--force-resume`, which is recorded",
        .checkpoint.display(), differences.iter().map(|d| format!("  {d}")).collect::<Vec<_>>().join("\n")
    )]
    OtherRun {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// Each difference, with both values.
        differences: Vec<String>,
    },
    /// What `--resume` names does not exist.
    #[error("--resume {}: no such folder", .path.display())]
    NoCheckpoint {
        /// As given.
        path: PathBuf,
    },
    /// A variable of the environment that the config names is not there.
    #[error(
        "`{key}` names the environment variable `{name}`, which is not set or is empty\n  hint: set \
         it before the run starts"
    )]
    Variable {
        /// The key of the config.
        key: &'static str,
        /// The variable.
        name: String,
    },
    /// A finished run cannot be monitored.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// What is to be told to the world outside cannot be.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// Nobody knows who runs this.
    #[error(transparent)]
    Operator(#[from] NoOperator),
    /// The signing key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A key made on first use signs nothing of high risk.
    #[error(
        "signing: no key was provided, and the key made on first use is not enough {why}\n  hint: \
         make one with `forgelm keygen --out KEY` and name it in `signing.key_file`"
    )]
    KeyNotProvisioned {
        /// What asks for a provided key.
        why: &'static str,
    },
    /// The audit log could not be written: what needs the record does not happen.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The documents could not be written or signed.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The plan needs more memory than there is.
    #[error(
        "the run needs {needed} bytes of memory and {ceiling} leaves {available}; the largest parts \
         are {largest}\n  hint: {hint}"
    )]
    Memory {
        /// Planned, in bytes.
        needed: u64,
        /// Available, in bytes.
        available: u64,
        /// What sets the limit.
        ceiling: &'static str,
        /// The largest buffers of the plan.
        largest: String,
        /// The cheapest change.
        hint: String,
    },
    /// Memory ran out in the middle, and the step cannot be cut any smaller.
    #[error(
        "step {step}: {needed} bytes of memory are needed and {ceiling} leaves {available}; the batch \
         is at its smallest, {batch_size}\n  hint: free some memory and continue with `--resume`; \
         `training.oom_recovery_min_batch_size` is the floor"
    )]
    OutOfRoom {
        /// 1-based number of the step.
        step: u64,
        /// Needed, in bytes.
        needed: u64,
        /// Available, in bytes.
        available: u64,
        /// What sets the limit.
        ceiling: &'static str,
        /// Sequences in a micro-batch.
        batch_size: usize,
    },
    /// What is written needs more room than the disk has.
    #[error(
        "{}: the run needs {needed} bytes of disk and {available} are free\n  hint: {hint}",
        .dir.display()
    )]
    Disk {
        /// The run's folder.
        dir: PathBuf,
        /// Needed, in bytes.
        needed: u64,
        /// Free, in bytes.
        available: u64,
        /// What to do.
        hint: &'static str,
    },
    /// A benchmark cannot be run.
    #[error(transparent)]
    Benchmark(#[from] BenchmarkError),
    /// `--merge` with a config that merges nothing.
    #[error(
        "`merge.enabled` is not true: there is nothing to merge\n  hint: name the models in \
         `merge.models` and write `enabled: true` under `merge`"
    )]
    NothingToMerge,
    /// A method that merges another number of models.
    #[error("the merge method `{method}` was given {found} models; expected {}", numbers(*min, *max))]
    NumberOfModels {
        /// The method.
        method: String,
        /// Models given.
        found: usize,
        /// Fewest.
        min: usize,
        /// Most.
        max: usize,
    },
    /// A model that cannot be merged with the others.
    #[error("merge: `{path}` {problem}\n  hint: {hint}")]
    MergeInput {
        /// As configured.
        path: String,
        /// What is wrong, with both sides.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// A model that cannot be quantized.
    #[error("quantize: `{path}` {problem}\n  hint: {hint}")]
    QuantizeInput {
        /// As named.
        path: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// The quantization was given up.
    #[error("quantize: {0}; nothing was written")]
    Quantize(#[from] QuantizeError),
    /// The merge was given up.
    #[error("merge: {0}; nothing was written")]
    Merge(#[from] MergeError),
    /// The system refused memory that was planned.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// There are no buffers for a step.
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    /// The processes of the run cannot go on together.
    #[error("{}{}", .0, lost_hint(.0))]
    Collective(#[from] CollectiveError),
    /// Something happened on one of the processes of a run.
    #[error("rank {rank}: {source}")]
    OnRank {
        /// Which.
        rank: usize,
        /// What.
        source: Box<RunError>,
    },
    /// The processes of a run would not do the same.
    #[error("the processes of this run differ\n{}", of_ranks(.0))]
    RanksDiffer(Vec<Different>),
    /// Processes could not write their part of a checkpoint.
    #[error(
        "a checkpoint in shards was not written; the one before it is good\n{}{}", of_ranks(.failed),
        if *.no_room { "" } else { SHARDS_HINT }
    )]
    ShardsNotWritten {
        /// Each, with what is wrong.
        failed: Vec<Different>,
        /// Whether disks are full, and nothing else is wrong.
        no_room: bool,
    },
    /// Several processes of what one process does.
    #[error(
        "{n_ranks} processes were started (`{variable}`), and {why}\n  hint: start one process, or \
         write `distributed: {{strategy: ...}}` for one run of all of them"
    )]
    ManyProcesses {
        /// Processes.
        n_ranks: usize,
        /// Which variable says so.
        variable: &'static str,
        /// Why there must be one.
        why: String,
    },
    /// More processes than a step has work for.
    #[error(transparent)]
    TooManyRanks(#[from] TooManyRanks),
    /// The file of overrides beside a model is not one.
    #[error("{}: not overrides of a model: {problem}", .path.display())]
    Overrides {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A sliding window for a family that has none.
    #[error(
        "`training.sliding_window_attention`: models of the family `{model_type}` attend to all \
         that came before\n  hint: remove the key"
    )]
    NoWindow {
        /// The family.
        model_type: String,
    },
    /// A step gave a number that is not finite: nothing was updated, or only layers above it.
    #[error(
        "step {step}: {what} is {value}, from {rows}; {}, and the last checkpoint is good\n  hint: a \
         lower `training.learning_rate` often helps; `{}` says more",
        if *.is_torn { "the layers above it were already updated" } else { "nothing was updated" },
        .replay.display()
    )]
    NotFinite {
        /// 1-based number of the step.
        step: u64,
        /// The tensor, with its layer.
        what: String,
        /// The number.
        value: f64,
        /// File and line of the rows that it comes from.
        rows: String,
        /// The file that says more.
        replay: PathBuf,
        /// Whether layers above it were updated before it was found.
        is_torn: bool,
    },
    /// The trainer gave up in the middle of a step.
    #[error(
        "{0}; nothing was updated, and the last checkpoint is good\n  hint: mend or remove the \
         plugin, and continue with `--resume`"
    )]
    Trainer(#[from] Failed),
    /// An evaluator gave up.
    #[error(
        "{source}\n  the tuned model is in `{}`, without evidence\n  hint: mend or remove the \
         evaluator, and continue with `--resume`", .final_model.display()
    )]
    Evaluator {
        /// What it said.
        source: Failed,
        /// The tuned model.
        final_model: PathBuf,
    },
    /// What a host asked of a model cannot be answered.
    #[error("{0}")]
    Request(String),
    /// Gates could not say anything about the tuned model.
    #[error(
        "{}\n  the tuned model is in `{}`, without evidence\n  hint: mend what the gate needs, and \
         continue with `--resume`: nothing is trained again", .gates.join("\n"), .final_model.display()
    )]
    NotEnoughEvidence {
        /// Each gate and why.
        gates: Vec<String>,
        /// The tuned model.
        final_model: PathBuf,
    },
    /// A decision on a staged model was not taken.
    #[error(transparent)]
    Approval(#[from] ApprovalError),
    /// A gate with a threshold, and nothing that it could compare with it.
    #[error(
        "`evaluation.max_acceptable_loss` and `evaluation.baseline_loss` are compared with the \
         validation loss, and no record is held out\n  hint: `data.validation_split: 0.1` holds some \
         out, or remove the thresholds"
    )]
    NothingToJudge,
    /// Texts could not be scored.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// Step after step has no gradient.
    #[error(
        "step {step}: nothing is being learned, the gradient of the last {n} steps was zero\n  \
         hint: are the trained tokens and `lora.target_modules` what was meant?"
    )]
    NothingLearned {
        /// 1-based number of the step.
        step: u64,
        /// Steps in a row.
        n: u64,
    },
    /// Text could not be generated.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A file of the base model or the data changed while the run used it.
    #[error("{}: changed while the run was using it; what was trained on is not known", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A reward model in a file that cannot hold a classifier.
    #[error(
        "`training.grpo_reward_model`: `{name}` is a GGUF file, which has no head that classifies\n  \
         hint: name a folder or a hub id with a `...ForSequenceClassification` model"
    )]
    RewardModel {
        /// As configured.
        name: String,
    },
    /// Points of Annex IV that may not stay open.
    #[error(
        "{why}: {} points of the technical documentation would say \"not provided\"; nothing was \
         started\n{}\n  hint: `not applicable: <reason>` is an answer; `forgelm config explain KEY` \
         says what each key is for", .points.len(), open_points(.points)
    )]
    OpenPoints {
        /// What asks for them.
        why: String,
        /// Each with the keys that answer it.
        points: Vec<OpenPoint>,
    },
    /// A file that the config names as an answer cannot be used.
    #[error("`{key}`: {}: {reason}\n  hint: {hint}", .path.display())]
    NamedFile {
        /// The key of the config.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// Which exit code this belongs to.
        class: Class,
        /// What to do.
        hint: &'static str,
    },
    /// Documents for a config that has nothing to put into them.
    #[error(
        "there is no `compliance` section: nothing to write documents from\n  hint: `forgelm config explain compliance` lists its keys"
    )]
    NoComplianceSection,
    /// The governance report of a strict run could not be made.
    #[error("data_governance_report.json: {reason}; the tuned model is in `{}`, without evidence", .final_model.display())]
    Governance {
        /// Why.
        reason: String,
        /// The tuned model.
        final_model: PathBuf,
    },
    /// Something lies in the run's folder for longer than the config allows, or is held there.
    #[error(transparent)]
    Retention(#[from] RetentionError),
    /// Something cannot be removed.
    #[error(transparent)]
    Erasure(#[from] ErasureError),
    /// Nobody can be looked for.
    #[error(transparent)]
    ReversePii(#[from] ReversePiiError),
    /// A pipeline did not begin or go on.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The safety of a model cannot be evaluated.
    #[error(transparent)]
    Safety(#[from] SafetyError),
    /// No rows are generated, or no more.
    #[error(transparent)]
    Synthetic(#[from] SyntheticError),
    /// A feature that is not built yet.
    #[error("not available yet: {0}")]
    NotAvailable(String),
}

/// A range of numbers in words.
fn numbers(min: usize, max: usize) -> String {
    match max {
        usize::MAX => format!("at least {min}"),
        _ if min == max => format!("exactly {min}"),
        _ => format!("{min} to {max}"),
    }
}

impl From<RestoreError> for RunError {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Checkpoint(error) => error.into(),
            RestoreError::Collective(error) => error.into(),
        }
    }
}

/// What helps when processes no longer speak to each other; nothing where they never did.
fn lost_hint(error: &CollectiveError) -> &'static str {
    match error {
        CollectiveError::Open(_) => "",
        CollectiveError::Failed { .. }
        | CollectiveError::Ended
        | CollectiveError::Nonsense { .. } => {
            "\n  hint: the last checkpoint is good: start the same command again with `--resume`"
        }
    }
}

/// What helps where processes do not see the same files.
const SHARDS_HINT: &str = "\n  hint: all hosts must see `training.output_dir`, as the same folder; where \
     they do not, `distributed.fsdp_state_dict_type: FULL_STATE_DICT` has rank 0 write everything";

/// One line for each thing in which a process differs from the leader.
fn of_ranks(different: &[Different]) -> String {
    let mut lines = Vec::new();
    for Different { rank, host, differences } in different {
        lines.extend(differences.iter().map(|what| format!("  rank {rank} ({host}): {what}")));
    }
    lines.join("\n")
}

/// One line a point: what is asked, and the keys that answer it.
fn open_points(points: &[OpenPoint]) -> String {
    let line = |open: &OpenPoint| {
        let keys: Vec<String> =
            open.keys.iter().map(|key| format!("`{}`", key.replace(" or ", "` or `"))).collect();
        format!("  {}: {}\n      write {}", open.point, open.requirement, keys.join(", "))
    };
    points.iter().map(line).collect::<Vec<_>>().join("\n")
}

impl RunError {
    /// How the program ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Trust(error) if error.is_runtime() => Exit::Runtime,
            Self::Config(_)
            | Self::ModelConfig(_)
            | Self::Adapter(_)
            | Self::Optimizer(_)
            | Self::Tokenize(_)
            | Self::Template(_)
            | Self::Chat(_)
            | Self::Row { .. }
            | Self::Registry(_)
            | Self::Plugin(_)
            | Self::Engine(_)
            | Self::Unsigned { .. }
            | Self::Trust(_)
            | Self::Sign(SignError::Name { .. })
            | Self::TrainerRecords { .. }
            | Self::NoPluginWorker
            | Self::PluginOption { .. }
            | Self::Rewards { .. }
            | Self::LooseOption { .. }
            | Self::OutputDir { .. }
            | Self::OtherRun { .. }
            | Self::Overrides { .. }
            | Self::NoWindow { .. }
            | Self::NoCheckpoint { .. }
            | Self::Variable { .. }
            | Self::Operator(_)
            | Self::KeyNotProvisioned { .. }
            | Self::NothingToMerge
            | Self::NothingToJudge
            | Self::NumberOfModels { .. }
            | Self::MergeInput { .. }
            | Self::RewardModel { .. }
            | Self::QuantizeInput { .. }
            | Self::NotReproducible(_)
            | Self::OpenPoints { .. }
            | Self::Request(_)
            | Self::NoComplianceSection
            | Self::RanksDiffer(_)
            | Self::ManyProcesses { .. }
            | Self::TooManyRanks(_)
            | Self::NotAvailable(_) => Exit::Config,
            Self::Device { source, .. } => of_device(source),
            Self::Failed(failure) if failure.is_out_of_memory() => Exit::Resources,
            Self::Failed(_) => Exit::Runtime,
            Self::Diverged { .. } | Self::DivergedFile { .. } => Exit::Integrity,
            Self::Benchmark(error) => error.exit(),
            Self::Monitor(error) => error.exit(),
            Self::Outbound(error) => error.exit(),
            Self::Approval(error) => error.exit(),
            Self::Retention(error) => error.exit(),
            Self::Erasure(error) => error.exit(),
            Self::ReversePii(error) => error.exit(),
            Self::Pipeline(error) => error.exit(),
            Self::Safety(error) => error.exit(),
            Self::Synthetic(error) => error.exit(),
            Self::Options(error) => of_options(error),
            Self::NamedOptions { source, .. } => of_options(source),
            // As for a model that is loaded: its files are damaged.
            Self::Quantize(QuantizeError::NotFinite { what: "is", .. }) => Exit::Integrity,
            Self::Quantize(
                QuantizeError::NotFinite { .. }
                | QuantizeError::Method { .. }
                | QuantizeError::Stopped,
            ) => Exit::Runtime,
            Self::Merge(MergeError::Write(error)) => error.class().into(),
            Self::Merge(
                MergeError::Method { .. } | MergeError::NotStorable { .. } | MergeError::Stopped,
            ) => Exit::Runtime,
            Self::KeyStore(KeyStoreError::Write(error)) => error.class().into(),
            Self::KeyStore(error) if error.is_runtime() => Exit::Runtime,
            Self::KeyStore(_) => Exit::Config,
            Self::SignFile(error) => error.class().into(),
            Self::Open(error) => error.class().into(),
            Self::Hub(error) => error.class().into(),
            Self::Load(error) => error.class().into(),
            Self::Data(error) => error.class().into(),
            Self::Tokens(error)
            | Self::Feed(FeedError::Tokens(error))
            | Self::References(ReferencesError::Tokens(error)) => error.class().into(),
            Self::Feed(FeedError::Rollouts(RolloutError::OutOfMemory(_))) => Exit::Resources,
            Self::Feed(FeedError::Rollouts(
                RolloutError::Generate { .. } | RolloutError::Judge(_),
            )) => Exit::Runtime,
            Self::Feed(FeedError::References(error))
            | Self::References(ReferencesError::File(error)) => match error {
                FileError::Io { .. } => Exit::Runtime,
                FileError::Damaged { .. } => Exit::Integrity,
            },
            Self::References(ReferencesError::Write(error)) => error.class().into(),
            Self::References(ReferencesError::OutOfMemory(_)) => Exit::Resources,
            Self::References(ReferencesError::Stopped) | Self::StoppedBeforeStart => {
                Exit::Interrupted
            }
            Self::Rows(error) => error.class().into(),
            Self::Lock(error) => error.class().into(),
            Self::Write(error)
            | Self::WholeModel(WholeModelError::Write(error))
            | Self::Sign(SignError::Write(error)) => error.class().into(),
            Self::Signature { class, .. } | Self::NamedFile { class, .. } => match class {
                Class::Accepted => Exit::Success,
                Class::NotCompared => Exit::Config,
                Class::Unreadable => Exit::Runtime,
                Class::Different => Exit::Integrity,
            },
            Self::WholeModel(
                WholeModelError::Weights(_)
                | WholeModelError::Adapter(_)
                | WholeModelError::Config(_),
            ) => Exit::Config,
            Self::Checkpoint(CheckpointError::Damaged { .. }) => Exit::Integrity,
            Self::Checkpoint(
                CheckpointError::Newer { .. }
                | CheckpointError::Whole { .. }
                | CheckpointError::Adapter(_)
                | CheckpointError::Optimizer { .. },
            ) => Exit::Config,
            Self::Key(error) | Self::Sign(SignError::Key(error)) if error.is_runtime() => {
                Exit::Runtime
            }
            Self::Key(_) | Self::Sign(SignError::Key(_)) => Exit::Config,
            Self::Audit(error) if error.is_config() => Exit::Config,
            Self::Audit(_)
            | Self::Bundle(_)
            | Self::Governance { .. }
            | Self::FolderGone { .. }
            | Self::NotFinite { .. }
            | Self::Trainer(_)
            | Self::Evaluator { .. }
            | Self::NotEnoughEvidence { .. }
            | Self::NothingLearned { .. }
            | Self::Score(ScoreError::NotFinite { .. })
            | Self::Generate(_) => Exit::Runtime,
            Self::Score(ScoreError::OutOfMemory(_)) => Exit::Resources,
            Self::Score(ScoreError::Stopped) => Exit::Interrupted,
            Self::Memory { .. }
            | Self::OutOfRoom { .. }
            | Self::Disk { .. }
            | Self::OutOfMemory(_)
            | Self::Allocate(AllocateError::OutOfMemory(_) | AllocateError::OnOthers(_)) => {
                Exit::Resources
            }
            Self::OnRank { source, .. } => source.exit(),
            Self::Collective(CollectiveError::Open(_)) => Exit::Config,
            Self::ShardsNotWritten { no_room: true, .. } => Exit::Resources,
            Self::ShardsNotWritten { .. }
            | Self::Collective(_)
            | Self::Allocate(AllocateError::Collective(_)) => Exit::Runtime,
            Self::Changed { .. } => Exit::Integrity,
        }
    }

    /// What a program is told beside the message.
    #[must_use]
    pub fn details(&self) -> Value {
        match self {
            Self::Retention(error) => error.details(),
            _ => json!({}),
        }
    }

    /// The message with the causes below it, each once.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let line = error.to_string();
            if !text.contains(&line) {
                text.push_str("\n  because: ");
                text.push_str(&line);
            }
            cause = error.source();
        }
        text
    }
}

fn of_device(error: &CudaError) -> Exit {
    match error {
        CudaError::OutOfMemory { .. } => Exit::Resources,
        CudaError::NotUsable(_)
        | CudaError::NoSuchDevice { .. }
        | CudaError::TooOld { .. }
        | CudaError::Driver { .. }
        | CudaError::Launch { .. }
        | CudaError::Earlier { .. }
        | CudaError::NoImage { .. }
        | CudaError::NotCapturable { .. } => Exit::Runtime,
    }
}

/// What helps when what was opened cannot go on.
fn failure_hint(failure: &Failure) -> &'static str {
    if failure.is_out_of_memory() {
        "end what else uses the memory, lower `training.per_device_train_batch_size` or \
         `model.max_length`, or set `model.load_in_4bit`; `--resume` goes on from the last checkpoint"
    } else {
        "`--resume` goes on from the last checkpoint; with `--device cpu` the processor computes"
    }
}

fn of_options(error: &OptionsError) -> Exit {
    match error {
        OptionsError::Unknown { .. }
        | OptionsError::Value { .. }
        | OptionsError::Json { .. }
        | OptionsError::Refused { .. }
        | OptionsError::Weights { .. } => Exit::Config,
        // A plugin's process died while it was made.
        OptionsError::Died { .. } => Exit::Runtime,
    }
}
