//! The command line, as data. What each flag does is in `core/run` or in the command's file.

mod annex_iv;
pub mod approval;
pub mod bundle;
mod checkpoint;
mod comm;
mod doctor;
pub mod gguf;
mod launch;
mod monitor;
mod plugin;
pub mod purge;
pub mod reproduce;
pub mod reverse_pii;
pub mod safety_eval;
pub mod score;
pub mod stamps;

pub use annex_iv::VerifyAnnexIvArgs;
use approval::{ApprovalsArgs, DecisionArgs};
use bundle::BundleArgs;
pub use checkpoint::CheckpointCommand;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
pub use comm::CommCommand;
pub use doctor::DoctorArgs;
use forgelm_artifact::UtcTime;
use forgelm_config::Device;
use gguf::VerifyGgufArgs;
pub use launch::LaunchArgs;
pub use monitor::MonitorArgs;
pub use plugin::{PluginCommand, PluginKind, PluginLanguage};
use purge::PurgeArgs;
use reproduce::ReproduceArgs;
use reverse_pii::ReversePiiArgs;
use safety_eval::SafetyEvalArgs;
use score::ScoreArgs;
use stamps::{CosignArgs, StampArgs};
use std::path::PathBuf;

/// Fine-tune a language model from one YAML file, and leave evidence that a stranger can verify.
#[derive(Debug, Parser)]
#[command(
    name = "forgelm",
    display_name = "ForgeLM",
    version,
    args_conflicts_with_subcommands = false,
    subcommand_negates_reqs = true,
    after_help = "Example:\n  forgelm --config configs/quickstart.yaml\n\n\
                  Exit codes: 0 ok, 1 config or input, 2 runtime, 3 gate, 4 awaiting approval,\n\
                  5 wizard cancelled, 6 integrity, 7 interrupted with a good checkpoint,\n\
                  8 refused for lack of memory or disk"
)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub output: Output,
    /// Flags of a run.
    #[command(flatten)]
    pub run: RunFlags,
    /// A command; without one, `--config` runs.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// How results and logs are shown.
#[derive(Debug, Clone, Args)]
pub struct Output {
    /// Format of the result on standard output.
    #[arg(long, alias = "format", global = true, value_enum, default_value_t = Format::Text)]
    pub output_format: Format,
    /// Only warnings and errors on standard error.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Least important kind of line on standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogLevel::Info, ignore_case = true)]
    pub log_level: LogLevel,
}

/// Format of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a person.
    Text,
    /// One document for a program.
    Json,
}

/// Importance of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum LogLevel {
    /// Everything.
    #[value(name = "DEBUG")]
    Debug,
    /// Progress and notices.
    #[value(name = "INFO")]
    Info,
    /// Warnings and errors.
    #[value(name = "WARNING")]
    Warning,
    /// Errors.
    #[value(name = "ERROR")]
    Error,
}

/// Flags of a config-driven run.
#[derive(Debug, Clone, Default, Args)]
#[command(group = ArgGroup::new("mode").multiple(false))]
pub struct RunFlags {
    /// The run as YAML.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the plan; read nothing but the config (and, with a `retention` section, how old what lies
    /// in the run's folder is), write nothing.
    #[arg(long, group = "mode")]
    pub dry_run: bool,
    /// Say whether the run fits into memory, its largest parts, and the cheapest change that fits;
    /// nothing is fetched or written.
    #[arg(long, group = "mode")]
    pub fit_check: bool,
    /// Score a model on the tasks of `evaluation.benchmark`; nothing is trained; exit 3 below `min_score`.
    #[arg(long, group = "mode", value_name = "MODEL")]
    pub benchmark_only: Option<PathBuf>,
    /// Merge the models of the `merge` section; nothing is trained.
    #[arg(long, group = "mode")]
    pub merge: bool,
    /// Let the teacher of the `synthetic` section answer its prompts; nothing is trained. Started again it
    /// goes on where it ended.
    #[arg(long, group = "mode")]
    pub generate_data: bool,
    /// Write the documents that the config alone gives, marked as not of a run; nothing is trained.
    #[arg(long, group = "mode", value_name = "DIR")]
    pub compliance_export: Option<PathBuf>,
    /// Continue from a checkpoint: the newest good one, or this folder. With a pipeline, go on where it
    /// stopped.
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "auto")]
    pub resume: Option<PathBuf>,
    /// Continue although the config changed since the checkpoint; the change is recorded.
    #[arg(long)]
    pub force_resume: bool,
    /// No network: everything must be local or cached.
    #[arg(long)]
    pub offline: bool,
    /// Refuse to start while a point of the technical documentation would say `not provided`.
    #[arg(long, conflicts_with_all = ["fit_check", "merge", "benchmark_only", "generate_data"])]
    pub strict_compliance: bool,
    /// Build a config by questions (not available yet).
    #[arg(long)]
    pub wizard: bool,
    /// Run one stage of a pipeline, at the model of the one before.
    #[arg(long, value_name = "NAME")]
    pub stage: Option<String>,
    /// Continue a pipeline from a stage: those before it are kept.
    #[arg(long, value_name = "NAME")]
    pub resume_from: Option<String>,
    /// Begin the stage of --stage at this model or adapter instead.
    #[arg(long, value_name = "MODEL")]
    pub input_model: Option<String>,
}

impl Output {
    /// Format of the result.
    #[must_use]
    pub fn format(&self) -> Format {
        self.output_format
    }
}

impl RunFlags {
    /// The first flag given whose feature is not built yet.
    #[must_use]
    pub fn not_available(&self) -> Option<&'static str> {
        let given = [(self.wizard, "--wizard")];
        given.into_iter().find(|(is_given, _)| *is_given).map(|(_, flag)| flag)
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check, explain and print configs
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Try what runs need of this machine, user and program; exit 1 if something does not work
    Doctor(DoctorArgs),
    /// Look at the data of a run
    #[command(subcommand)]
    Data(DataCommand),
    /// Look for secrets, personal data, near-duplicates and leaks in data files; exit 3 if there are
    /// secrets, card numbers or bank accounts
    Audit(AuditArgs),
    /// Talk with a model
    Chat(ChatArgs),
    /// Log-probability of each token of given rows
    Score(ScoreArgs),
    /// Have a classifier judge a model's answers to prompts; exit 3 when too many are unsafe
    SafetyEval(SafetyEvalArgs),
    /// Compare a finished model's scores of fresh rows with those of its held-out rows
    Monitor(MonitorArgs),
    /// Write a model in fewer bytes: a GGUF file, or a folder
    Quantize(QuantizeArgs),
    /// Look at plugins, and begin one
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Make what joins the processes of several machines
    #[command(subcommand)]
    Comm(CommCommand),
    /// Start the processes of a run by the site's launcher, end a launcher that hangs, and start the run
    /// again after a process was lost
    Launch(LaunchArgs),
    /// Work with the checkpoints of a run
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// Serve another run of this program as the process of one of its plugins
    #[command(hide = true)]
    PluginWorker {
        /// Of the kernels that plugins get; 0: they get none
        threads: usize,
        /// Plugins are tried on a device
        #[arg(long)]
        device: bool,
    },
    /// List the models that wait for approval, or show what was decided on one
    Approvals(ApprovalsArgs),
    /// Approve a staged model; exit 4 while more people must
    Approve(DecisionArgs),
    /// Reject a staged model
    Reject(DecisionArgs),
    /// Make an Ed25519 signing key
    Keygen(KeygenArgs),
    /// Look at the keys that verifiers trust, and change them
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Sign what is there already: a file gets an envelope beside it, as PATH.dsse.json, and a model
    /// folder a `model.sig`
    Sign(SignArgs),
    /// Check the hash chain of an audit log
    VerifyAudit(VerifyAuditArgs),
    /// Check the files of a model folder against its `model_integrity.json`
    VerifyIntegrity(VerifyIntegrityArgs),
    /// Check the signature of one file, or of a model folder
    VerifySignature(VerifySignatureArgs),
    /// Check everything that a run signed
    VerifyBundle(VerifyBundleArgs),
    /// Pack the evidence of a run into one ZIP file, which `verify-bundle` reads
    Bundle(BundleArgs),
    /// Make a finished run again, or some of its steps, and compare: the same bits, or exit 6
    Reproduce(ReproduceArgs),
    /// Check a GGUF file: its header, the digest beside it, its signature
    VerifyGguf(VerifyGgufArgs),
    /// Check the technical documentation of a run, point by point of Annex IV
    VerifyAnnexIv(VerifyAnnexIvArgs),
    /// Remove a row of the data or what a run left, with a record of it; say what lies too long; hold
    /// everything back
    Purge(PurgeArgs),
    /// Say in which lines of data files someone is, and record that it was asked
    ReversePii(ReversePiiArgs),
}

/// `forgelm config …`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a config: keys, types, ranges, rules between keys
    Check {
        /// The config.
        file: PathBuf,
    },
    /// Print the JSON Schema of configs
    Schema,
    /// Say what a key means
    Explain {
        /// For example `training.learning_rate`.
        key: String,
    },
    /// Print a config
    Show {
        /// With every default filled in, secrets redacted.
        #[arg(long, required = true)]
        resolved: bool,
        /// The config.
        file: PathBuf,
    },
    /// Print a config that has every key, with comments
    Reference,
}

/// `forgelm data …`.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Print the first rows as the model will see them, trained tokens marked
    Preview {
        /// Which data, of which run.
        #[command(flatten)]
        run: DataArgs,
        /// Rows to print.
        #[arg(short, long, default_value_t = 3)]
        n: usize,
    },
    /// Check all rows; exit 1 if a run would refuse or be misled by them
    Lint {
        /// Which data, of which run.
        #[command(flatten)]
        run: DataArgs,
        /// Doubts fail the check too.
        #[arg(long)]
        strict: bool,
    },
}

/// The run whose data is meant.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// The run as YAML.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// No network.
    #[arg(long)]
    pub offline: bool,
}

/// `forgelm audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// A data file, or a folder of them: JSON lines, JSON, CSV, Parquet.
    pub input: PathBuf,
    /// Where `data_audit_report.json` goes.
    #[arg(long, value_name = "DIR", default_value = "./audit")]
    pub output: PathBuf,
    /// Signs the report; without it, the key of `FORGELM_SIGNING_KEY_FILE` or `FORGELM_SIGNING_KEY`, if
    /// there is one.
    #[arg(long, value_name = "KEY")]
    pub signing_key: Option<PathBuf>,
    /// Show splits without a finding too.
    #[arg(long)]
    pub verbose: bool,
    /// With `simhash`, bits in which the fingerprints of near-duplicates may differ.
    #[arg(long, value_name = "BITS", default_value_t = 3)]
    pub near_dup_threshold: u32,
    /// How near-duplicates are found.
    #[arg(long, value_enum, default_value_t = DedupMethod::Simhash)]
    pub dedup_method: DedupMethod,
    /// With `minhash`, the least share of words that near-duplicates have in common.
    #[arg(long, value_name = "SHARE", default_value_t = 0.85, value_parser = unit)]
    pub jaccard_threshold: f64,
    /// Judge whether texts look like prose; on unless switched off.
    #[arg(long, overrides_with = "no_quality_filter")]
    pub quality_filter: bool,
    /// Do not judge texts.
    #[arg(long)]
    pub no_quality_filter: bool,
    /// Add a Croissant description (not available yet).
    #[arg(long)]
    pub croissant: bool,
    /// Look for names with a model (not available).
    #[arg(long)]
    pub pii_ml: bool,
    /// Language of that model.
    #[arg(long, value_name = "CODE", default_value = "en")]
    pub pii_ml_language: String,
    /// Threads; the report is the same for any number.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub workers: u32,
    /// Secrets are told and fail nothing.
    #[arg(long)]
    pub allow_secrets: bool,
    /// Personal data is told and fails nothing.
    #[arg(long)]
    pub allow_pii: bool,
}

/// How near-duplicates are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DedupMethod {
    /// By fingerprints of 64 bits.
    Simhash,
    /// By the share of their words that texts have in common; 528 bytes a row.
    Minhash,
}

/// `forgelm chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// A model: folder, `.gguf` file, adapter folder, hub id or `pypi:NAME==VERSION`.
    pub model: String,
    /// Where it is computed: `auto` (the first NVIDIA device, where there is one), `cpu`, `cuda:N`.
    #[arg(long, default_value = "auto", value_parser = device)]
    pub device: Device,
    /// An adapter folder on top of it.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// System prompt.
    #[arg(long)]
    pub system: Option<String>,
    /// 0 takes the likeliest token; up to 2.
    #[arg(long, default_value_t = 0.7, value_parser = temperature)]
    pub temperature: f32,
    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_new_tokens: u32,
    /// Print each answer when it is complete.
    #[arg(long)]
    pub no_stream: bool,
    /// Seed of the sampling.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// No network.
    #[arg(long)]
    pub offline: bool,
}

/// `forgelm quantize`.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// A model: folder, `.gguf` file, hub id or `pypi:NAME==VERSION`.
    #[arg(long)]
    pub model: String,
    /// Revision of a model of the hub.
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// A quantizer: `q4_k`, `q6_k`, `q8_0`, `q4_0` and `q4_1` make a GGUF file, `nf4` and `fp4` a folder
    /// for bitsandbytes, others a folder of the values that they leave.
    #[arg(long)]
    pub method: String,
    /// An option of the method.
    #[arg(long = "option", value_name = "KEY=VALUE")]
    pub options: Vec<String>,
    /// The folder that is made; it must be empty or not there.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Where it is computed: `auto` (the first NVIDIA device, where there is one), `cpu`, `cuda:N`.
    #[arg(long, default_value = "auto", value_parser = device)]
    pub device: Device,
    /// Worker threads; all cores without it.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// The private key that signs; without it, as in a run.
    #[arg(long, value_name = "KEY")]
    pub signing_key: Option<PathBuf>,
    /// No network.
    #[arg(long)]
    pub offline: bool,
}

/// `forgelm keygen`.
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// Where the private key goes; the public one goes beside it as `KEY.pub`.
    #[arg(long, value_name = "KEY")]
    pub out: PathBuf,
    /// Its name, for people: in both files, in what it signs, and in trust stores.
    #[arg(long, value_name = "LABEL")]
    pub label: Option<String>,
    /// The environment variable with a passphrase that encrypts the private key.
    #[arg(long, value_name = "VARIABLE")]
    pub passphrase_env: Option<String>,
}

/// `forgelm keys …`.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// The keys of a trust store, and what each may sign
    List {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// All about one key of it
    Show {
        /// Its id, the first eight digits of it or more, or its label.
        key: String,
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Trust a public key from now on; begins the store if it is not there
    Trust(TrustKeyArgs),
    /// Trust a key no longer
    Revoke(RevokeKeyArgs),
    /// Let a new key follow an old one, by a statement that both sign
    Rotate(RotateKeysArgs),
}

/// Which trust store.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The trust store (JSON); without it, that of FORGELM_TRUSTED_KEYS.
    #[arg(long, value_name = "FILE")]
    pub trusted_keys: Option<PathBuf>,
}

/// `forgelm keys trust`.
#[derive(Debug, Args)]
pub struct TrustKeyArgs {
    /// The public key (PEM), as `forgelm keygen` leaves it in KEY.pub.
    pub public_key: PathBuf,
    /// What it may sign; several with commas.
    #[arg(long, required = true, value_delimiter = ',', value_parser = USAGES)]
    pub usage: Vec<String>,
    /// Its name; without it, the one that the file gives it.
    #[arg(long, value_name = "LABEL")]
    pub label: Option<String>,
    /// What it signs before this time (RFC 3339, or a date) is refused.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub not_before: Option<UtcTime>,
    /// What it signs after this time is refused.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub not_after: Option<UtcTime>,
    /// Which store.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// `forgelm keys revoke`.
#[derive(Debug, Args)]
pub struct RevokeKeyArgs {
    /// Its id, the first eight digits of it or more, or its label.
    pub key: String,
    /// After `compromised` nothing that it signed is valid; after the others what it signed before is.
    #[arg(long, value_parser = ["superseded", "retired", "compromised"])]
    pub reason: String,
    /// From when on (RFC 3339, or a date); now without it.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub at: Option<UtcTime>,
    /// The private key of the store that signs a statement of this; the revoked one may.
    #[arg(long, value_name = "KEY")]
    pub signing_key: Option<PathBuf>,
    /// Which store.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// `forgelm keys rotate`.
#[derive(Debug, Args)]
pub struct RotateKeysArgs {
    /// The private key that is in the store.
    #[arg(long, value_name = "KEY")]
    pub old_key: PathBuf,
    /// The private key that follows it.
    #[arg(long, value_name = "KEY")]
    pub new_key: PathBuf,
    /// The environment variable with the new key's passphrase, where it is not
    /// FORGELM_SIGNING_KEY_PASSPHRASE too.
    #[arg(long, value_name = "VARIABLE")]
    pub new_passphrase_env: Option<String>,
    /// The new key's name; without it, the one of its file, else that of the old one.
    #[arg(long, value_name = "LABEL")]
    pub label: Option<String>,
    /// Until when the old key is trusted (RFC 3339, or a date); now without it.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub at: Option<UtcTime>,
    /// Which store.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// The words of a trust store.
const USAGES: [&str; 7] =
    ["manifest", "run", "model", "checkpoint", "approval", "export", "plugin"];

/// A moment; a date is its first one.
///
/// # Errors
/// What is expected.
pub fn parse_time(text: &str) -> Result<UtcTime, String> {
    let is_date = text.len() == "2026-01-01".len();
    let whole = if is_date { format!("{text}T00:00:00Z") } else { text.to_owned() };
    whole
        .parse()
        .map_err(|_| format!("`{text}` is not a time; expected 2026-01-01T00:00:00Z or a date"))
}

/// `forgelm sign`.
#[derive(Debug, Args)]
pub struct SignArgs {
    /// Files and model folders.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// What they are; without it, by their names.
    #[arg(long = "type", value_name = "TYPE", value_parser = ["compliance-manifest", "data-audit", "model-export"])]
    pub kind: Option<String>,
    /// The private key; without it, as in a run.
    #[arg(long, value_name = "KEY")]
    pub signing_key: Option<PathBuf>,
    /// One more signature in the envelopes that are there. The output folder of a run gets one in its
    /// attestation, once everything in it verifies.
    #[arg(long)]
    pub add: bool,
    /// Whose signature a run must have before.
    #[command(flatten)]
    pub cosign: CosignArgs,
}

/// Whose signatures are accepted.
#[derive(Debug, Clone, Default, Args)]
pub struct TrustArgs {
    /// A public key (PEM) to trust; several with one `--key` each.
    #[arg(long, value_name = "PUB")]
    pub key: Vec<PathBuf>,
    /// A trust store (JSON).
    #[arg(long, value_name = "FILE")]
    pub trusted_keys: Option<PathBuf>,
    /// Accept what has no signature, with a warning.
    #[arg(long)]
    pub allow_unsigned: bool,
    /// How many of the trusted keys must have signed; without it, what the trust store says, else one.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub threshold: Option<u8>,
    /// Whose time stamps are accepted.
    #[command(flatten)]
    pub stamps: StampArgs,
}

/// `forgelm verify-audit`.
#[derive(Debug, Args)]
pub struct VerifyAuditArgs {
    /// The log, or the folder that has it.
    pub path: PathBuf,
    /// Refuse lines without an HMAC.
    #[arg(long)]
    pub require_hmac: bool,
    /// Refuse a log whose checkpoint no trusted key signed; so it is wherever keys are named.
    #[arg(long, conflicts_with = "allow_unsigned")]
    pub require_signature: bool,
    /// Whose checkpoint of the log is accepted.
    #[command(flatten)]
    pub trust: TrustArgs,
}

/// `forgelm verify-integrity`.
#[derive(Debug, Args)]
pub struct VerifyIntegrityArgs {
    /// The model folder.
    pub dir: PathBuf,
}

/// `forgelm verify-signature`.
#[derive(Debug, Args)]
pub struct VerifySignatureArgs {
    /// The signed file or model folder.
    pub path: PathBuf,
    /// Its envelope; `PATH.dsse.json`, or `model.sig` of a folder, when not given.
    #[arg(long, value_name = "FILE")]
    pub signature: Option<PathBuf>,
    /// What it must be signed as; by its name when not given.
    #[arg(long = "type", value_name = "TYPE", value_parser = TYPES)]
    pub kind: Option<String>,
    /// Whose signature is accepted.
    #[command(flatten)]
    pub trust: TrustArgs,
}

/// What `verify-signature` can be asked for.
const TYPES: [&str; 7] = [
    "compliance-manifest",
    "audit-checkpoint",
    "approval-decision",
    "plugin-library",
    "data-audit",
    "model-export",
    "model-folder",
];

/// `forgelm verify-bundle`.
#[derive(Debug, Args)]
pub struct VerifyBundleArgs {
    /// Output folder of a run, or an archive that `forgelm bundle` made.
    pub dir: PathBuf,
    /// Whose signatures are accepted.
    #[command(flatten)]
    pub trust: TrustArgs,
}

fn unit(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.0..=1.0).contains(&number) {
        Ok(number)
    } else {
        Err(format!("{number} is not in 0 to 1"))
    }
}

pub(crate) fn device(text: &str) -> Result<Device, String> {
    text.parse().map_err(|_| "expected `auto`, `cpu` or `cuda:N`".to_owned())
}

fn temperature(text: &str) -> Result<f32, String> {
    let number: f32 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.0..=2.0).contains(&number) {
        Ok(number)
    } else {
        Err(format!("{number} is not in 0 to 2"))
    }
}
