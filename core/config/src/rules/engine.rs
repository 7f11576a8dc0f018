//! Rules between model, adapter, training and data.

use super::{Findings, Scope};
use crate::device::Device;
use crate::diagnostic::Code;
use crate::run::Run;
use crate::section::{
    Backend, Distributed, DistributedStrategy, FsdpStrategy, QuantComputeDtype, TrainerType,
};

pub fn check(scope: &Scope<'_>, run: &Run, findings: &mut Findings<'_>) {
    model(scope, findings);
    adapter(scope, findings);
    schedule(scope, findings);
    trainer(scope, findings);
    ignored(scope, findings);
    galore(scope, run, findings);
    distributed(scope, run, findings);
    data(scope, findings);
}

fn model(scope: &Scope<'_>, findings: &mut Findings<'_>) {
    let model = scope.model.0;
    let name = scope.in_model("name_or_path");
    let revision = scope.in_model("revision");
    let trust = scope.in_model("trust_remote_code");
    let backend = scope.in_model("backend");
    if model.trust_remote_code {
        let message = format!("`{trust}` has no effect: no code from a model folder runs here");
        findings.warn(Code::IgnoredKey, &[&trust], message);
    }
    if model.backend == Backend::Unsloth {
        let message = format!("`{backend}` is `unsloth`; the native engine runs in its place");
        findings.note(&[&backend], message);
        if model.trust_remote_code {
            let message =
                format!("`{backend}` is `unsloth` and `{trust}`{} is true", findings.at(&trust));
            findings.warn(Code::Doubtful, &[&backend, &trust], message);
        }
    }
    if model.load_in_4bit && model.bnb_4bit_compute_dtype == QuantComputeDtype::Float32 {
        let (dtype, bits) =
            (scope.in_model("bnb_4bit_compute_dtype"), scope.in_model("load_in_4bit"));
        let message = format!(
            "`{dtype}` is `float32` with `{bits}`{}: slow for little gain",
            findings.at(&bits)
        );
        findings.warn(Code::Doubtful, &[&dtype, &bits], message);
    }
    if let Some(value) = &model.revision {
        let local = model.name_or_path.starts_with(['/', '.', '~'])
            || model.name_or_path.to_ascii_lowercase().ends_with(".gguf");
        if local {
            let message = format!(
                "`{revision}` has no effect on the local path in `{name}`{}",
                findings.at(&name)
            );
            findings.warn(Code::IgnoredKey, &[&revision, &name], message);
        } else {
            moving_ref(&revision, value, findings);
        }
    }
    if let Some(moe) = &model.moe {
        let key = scope.in_model("moe.experts_to_train");
        if moe.experts_to_train != "all" && moe.chosen_experts().is_none() {
            let message =
                format!("`{key}` is not `all` or a list of numbers; all experts are trained");
            findings.warn(Code::WrongType, &[&key], message);
        }
    }
}

/// Warns about a revision that can point to something else tomorrow.
pub fn moving_ref(key: &str, value: &str, findings: &mut Findings<'_>) {
    let hex = |text: &str, len| {
        text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let pinned = hex(value, 40) || hex(value.strip_prefix("sha256:").unwrap_or(value), 64);
    if !pinned {
        let shown = crate::diagnostic::quoted(value);
        let message =
            format!("`{key}` is {shown}, which can move; a commit or a SHA-256 pins the model");
        findings.warn(Code::Doubtful, &[key], message);
    }
}

fn adapter(scope: &Scope<'_>, findings: &mut Findings<'_>) {
    let lora = scope.lora.0;
    let method = scope.in_lora("method");
    let r = scope.in_lora("r");
    if lora.r > 64 && !lora.is_rslora() {
        let message = format!("`{r}` is {}: above 64 the scale alpha / r fades", lora.r);
        findings.add(
            &[&r],
            crate::Diagnostic::warning(Code::Doubtful, &r, message)
                .hint("`lora.method: rslora` scales by alpha / sqrt(r)"),
        );
    }
    for (on, key) in [(lora.use_dora, "use_dora"), (lora.use_rslora, "use_rslora")] {
        if on && lora.is_pissa() {
            let switch = scope.in_lora(key);
            let message = format!(
                "`{method}` is `pissa` and `{switch}`{} is true: both apply",
                findings.at(&switch)
            );
            findings.warn(Code::Doubtful, &[&method, &switch], message);
        }
    }
    if lora.is_pissa() && scope.model.0.backend == Backend::Unsloth {
        let backend = scope.in_model("backend");
        let message = format!(
            "`{method}` is `pissa` and `{backend}`{} is `unsloth`, which does not have it",
            findings.at(&backend)
        );
        findings.error(
            Code::Conflict,
            &[&method, &backend],
            message,
            "write `backend: transformers`",
        );
    }
    if !lora.enabled && scope.model.0.load_in_4bit && !scope.training.0.galore_enabled {
        let enabled = scope.in_lora("enabled");
        let bits = scope.in_model("load_in_4bit");
        let message = format!(
            "`{enabled}` is false and `{bits}`{} is true: weights of four bits do not train",
            findings.at(&bits)
        );
        findings.error(Code::Conflict, &[&enabled, &bits], message, "write `load_in_4bit: false`");
    }
}

fn schedule(scope: &Scope<'_>, findings: &mut Findings<'_>) {
    let training = scope.training.0;
    let (eval, save) = (scope.in_training("eval_steps"), scope.in_training("save_steps"));
    if training.eval_steps > training.save_steps {
        let message = format!(
            "`{eval}` is {} and `{save}`{} is {}: some checkpoints have no evaluation",
            training.eval_steps,
            findings.at(&save),
            training.save_steps
        );
        findings.warn(Code::Doubtful, &[&eval, &save], message);
    }
    let merged = scope.in_training("merge_adapters");
    if training.merge_adapters && training.trainer_type != TrainerType::Sft {
        let message = format!("`{merged}` with the trainer {}", training.trainer_type);
        findings.warn(Code::Doubtful, &[&merged], message);
    }
    if let Some((evaluation, path)) = &scope.evaluation
        && training.merge_adapters
        && evaluation.auto_revert
    {
        let revert = format!("{path}.auto_revert");
        let message = format!(
            "`{merged}` and `{revert}`{}: a whole model, not an adapter, will be deleted",
            findings.at(&revert)
        );
        findings.warn(Code::Doubtful, &[&merged, &revert], message);
    }
    if training.device.parse::<Device>().is_err() {
        let key = scope.in_training("device");
        let message =
            format!("`{key}` is `{}`; expected `auto`, `cpu` or `cuda:N`", training.device);
        findings.error(
            Code::UnknownChoice,
            &[&key],
            message,
            "`cuda:0` is the first NVIDIA device",
        );
    }
    if training.max_steps == 0 {
        let key = scope.in_training("max_steps");
        let message = format!("`{key}` is 0; the epochs count, as with -1");
        findings.warn(Code::Doubtful, &[&key], message);
    }
}

fn trainer(scope: &Scope<'_>, findings: &mut Findings<'_>) {
    let training = scope.training.0;
    let trainer = scope.in_training("trainer_type");
    let batch = scope.in_training("per_device_train_batch_size");
    let packing = scope.in_training(if training.packing { "packing" } else { "sample_packing" });
    if training.is_packed() && training.trainer_type != TrainerType::Sft {
        let message = format!(
            "`{packing}` is true and `{trainer}`{} is `{}`; only sft packs",
            findings.at(&trainer),
            training.trainer_type
        );
        findings.error(Code::Conflict, &[&packing, &trainer], message, "remove one of the two");
    }
    let rows = training.per_device_train_batch_size * training.gradient_accumulation_steps;
    if training.trainer_type == TrainerType::Kto && rows == 1 {
        let message = format!(
            "`{batch}` times `gradient_accumulation_steps` is 1 and `{trainer}`{} is `kto`, which \
             measures how far the policy has moved over the rows of a step",
            findings.at(&trainer)
        );
        findings.error(Code::Conflict, &[&batch, &trainer], message, "use at least 2 rows a step");
    }
    let noise = scope.in_training("neftune_noise_alpha");
    let compares = matches!(
        training.trainer_type,
        TrainerType::Dpo | TrainerType::Simpo | TrainerType::Orpo | TrainerType::Kto
    );
    if training.neftune_noise_alpha.is_some() && compares {
        let message = format!(
            "`{noise}` has no effect: {} compares passes that must not differ by noise",
            training.trainer_type
        );
        findings.warn(Code::IgnoredKey, &[&noise], message);
    }
    let group = training.grpo_num_generations;
    if training.trainer_type == TrainerType::Grpo && !rows.is_multiple_of(group) {
        let groups = scope.in_training("grpo_num_generations");
        let message = format!(
            "`{batch}` times `gradient_accumulation_steps` is {rows}; expected a multiple of \
             `{groups}`{}, {group}",
            findings.at(&groups)
        );
        findings.error(
            Code::Conflict,
            &[&batch, &groups],
            message,
            "a step must hold whole groups of completions",
        );
    }
    let pin = scope.in_training("grpo_reward_model_revision");
    if let Some(value) = &training.grpo_reward_model_revision {
        if training.grpo_reward_model.is_none() {
            let model = scope.in_training("grpo_reward_model");
            let message = format!("`{pin}` is written without `{model}`");
            findings.error(
                Code::Conflict,
                &[&pin, &model],
                message,
                "name the model, or remove the pin",
            );
        }
        moving_ref(&pin, value, findings);
    }
}

/// Keys of a trainer or a switch that is not the chosen one have no effect; said, not swallowed.
fn ignored(scope: &Scope<'_>, findings: &mut Findings<'_>) {
    let training = scope.training.0;
    let own = training.trainer_type.as_str();
    let prefixes = ["dpo", "simpo", "kto", "orpo", "grpo"];
    let quant_off = !scope.model.0.load_in_4bit;
    let paths: Vec<String> = findings.written.paths().map(str::to_owned).collect();
    for path in paths {
        if let Some(key) = path.strip_prefix(&format!("{}.", scope.training.1)) {
            let trainer = prefixes.iter().find(|p| key.starts_with(&format!("{p}_")));
            if let Some(trainer) = trainer.filter(|t| **t != own) {
                let message = format!("`{path}` has no effect: it belongs to {trainer}, not {own}");
                findings.warn(Code::IgnoredKey, &[&path], message);
            }
            if key.starts_with("galore_") && key != "galore_enabled" && !training.galore_enabled {
                let message = format!("`{path}` has no effect without `galore_enabled: true`");
                findings.warn(Code::IgnoredKey, &[&path], message);
            }
            if key == "oom_recovery_min_batch_size" && !training.oom_recovery {
                let message = format!("`{path}` has no effect without `oom_recovery: true`");
                findings.warn(Code::IgnoredKey, &[&path], message);
            }
        }
        if quant_off && path.starts_with(&format!("{}.bnb_4bit_", scope.model.1)) {
            let message = format!("`{path}` has no effect without `load_in_4bit: true`");
            findings.warn(Code::IgnoredKey, &[&path], message);
        }
    }
}

fn galore(scope: &Scope<'_>, run: &Run, findings: &mut Findings<'_>) {
    let training = scope.training.0;
    if !training.galore_enabled {
        return;
    }
    let enabled = scope.in_training("galore_enabled");
    let message = format!(
        "`{enabled}` trains the matched matrices themselves: `{}` adds no adapter",
        scope.lora.1
    );
    findings.note(&[&enabled], message);
    galore_targets(scope, findings);
    let bits = scope.in_model("load_in_4bit");
    if scope.model.0.load_in_4bit {
        let message = format!(
            "`{enabled}` trains the weights themselves and `{bits}`{} is true",
            findings.at(&bits)
        );
        findings.error(
            Code::Conflict,
            &[&enabled, &bits],
            message,
            "write `load_in_4bit: false`: weights in 4 bits cannot be trained",
        );
    }
    let plain = scope.in_training("optim");
    if findings.written.contains(&plain) {
        let message = format!(
            "`{plain}` has no effect with `{enabled}`{}: `galore_optim` names the optimizer",
            findings.at(&enabled)
        );
        findings.warn(Code::IgnoredKey, &[&plain], message);
    }
    if training.galore_optim.is_layerwise() {
        layerwise(scope, run, findings);
    }
}

/// What an update of one layer at a time excludes.
fn layerwise(scope: &Scope<'_>, run: &Run, findings: &mut Findings<'_>) {
    let training = scope.training.0;
    let optim = scope.in_training("galore_optim");
    let steps = scope.in_training("gradient_accumulation_steps");
    if training.gradient_accumulation_steps > 1 {
        let message = format!(
            "`{optim}` updates layer by layer and `{steps}`{} is {}",
            findings.at(&steps),
            training.gradient_accumulation_steps
        );
        findings.error(
            Code::Conflict,
            &[&optim, &steps],
            message,
            "write `gradient_accumulation_steps: 1`, or an optimizer that is not layerwise",
        );
    }
    let norm = scope.in_training("max_grad_norm");
    if findings.written.contains(&norm) {
        let message = format!(
            "`{optim}` updates layer by layer and `{norm}`{} is written: the norm of the whole \
             gradient is not known in time",
            findings.at(&norm)
        );
        let hint = "remove the key, or use an optimizer that is not layerwise";
        findings.error(Code::Conflict, &[&optim, &norm], message, hint);
    }
    let recovery = scope.in_training("oom_recovery");
    if training.oom_recovery {
        let message = format!(
            "`{optim}` updates layer by layer and `{recovery}`{} is true, which doubles the \
             accumulation",
            findings.at(&recovery)
        );
        let hint = "write `oom_recovery: false` and a smaller batch";
        findings.error(Code::Conflict, &[&optim, &recovery], message, hint);
    }
    if run.distributed.as_ref().is_some_and(|d| d.strategy.is_some()) {
        let strategy = "distributed.strategy";
        let message = format!(
            "`{optim}` updates layer by layer and `{strategy}`{} is set",
            findings.at(strategy)
        );
        findings.error(
            Code::Conflict,
            &[&optim, strategy],
            message,
            "use an optimizer that is not layerwise, or one device",
        );
    }
}

/// Patterns must be patterns.
fn galore_targets(scope: &Scope<'_>, findings: &mut Findings<'_>) {
    let key = scope.in_training("galore_target_modules");
    for text in scope.training.0.galore_target_modules.iter().flatten() {
        if let Err(error) = regex::Regex::new(text) {
            let error = error.to_string();
            let reason = error.lines().last().unwrap_or_default().trim();
            let shown = crate::diagnostic::quoted(text);
            let message = format!("`{key}`: {shown} is not a pattern: {reason}");
            let hint = "a regular expression that matches the whole path of a module, such as \
                        `.*\\.mlp\\..*`";
            findings.error(Code::WrongType, &[&key], message, hint);
        }
    }
}

fn distributed(scope: &Scope<'_>, run: &Run, findings: &mut Findings<'_>) {
    const STRATEGY: &str = "distributed.strategy";
    let Some(distributed) = run.distributed.as_ref().filter(|d| d.strategy.is_some()) else {
        return;
    };
    let backend = scope.in_model("backend");
    if scope.model.0.backend == Backend::Unsloth {
        let message = format!(
            "`{STRATEGY}` is set and `{backend}`{} is `unsloth`, which has one device",
            findings.at(&backend)
        );
        findings.error(
            Code::Conflict,
            &[STRATEGY, &backend],
            message,
            "write `backend: transformers`",
        );
    }
    let zero3 = matches!(distributed.deepspeed_config.as_deref(), Some("zero3" | "zero3_offload"));
    if distributed.strategy == Some(DistributedStrategy::Deepspeed)
        && zero3
        && scope.model.0.load_in_4bit
    {
        let bits = scope.in_model("load_in_4bit");
        let message =
            format!("`distributed.deepspeed_config` is ZeRO-3 with `{bits}`{}", findings.at(&bits));
        findings.warn(Code::Doubtful, &["distributed.deepspeed_config", &bits], message);
    }
    if let Some(key) = shares_parameters(distributed) {
        units_to_share(run, key, findings);
    }
}

/// The key that has the processes share out the weights.
fn shares_parameters(distributed: &Distributed) -> Option<&'static str> {
    match distributed.strategy? {
        DistributedStrategy::Deepspeed => {
            let preset = distributed.deepspeed_config.as_deref();
            matches!(preset, Some("zero3" | "zero3_offload"))
                .then_some("distributed.deepspeed_config")
        }
        DistributedStrategy::Fsdp => match distributed.fsdp_strategy {
            FsdpStrategy::FullShard | FsdpStrategy::HybridShard => {
                Some("distributed.fsdp_strategy")
            }
            FsdpStrategy::ShardGradOp | FsdpStrategy::NoShard => None,
        },
    }
}

/// There must be more than one unit of the weights.
fn units_to_share(run: &Run, key: &str, findings: &mut Findings<'_>) {
    const WRAP: &str = "distributed.fsdp_auto_wrap";
    let distributed = run.distributed.as_ref();
    let is_fsdp = |of: &&Distributed| of.strategy == Some(DistributedStrategy::Fsdp);
    if distributed.filter(is_fsdp).is_some_and(|of| !of.fsdp_auto_wrap) {
        let message = format!(
            "`{WRAP}: false`{} makes the whole model one unit, which every process would gather at \
             once",
            findings.at(WRAP)
        );
        let hint = "remove the key: each layer is a unit";
        findings.error(Code::Conflict, &[WRAP, key], message, hint);
    }
}

fn data(scope: &Scope<'_>, findings: &mut Findings<'_>) {
    let data = scope.data.0;
    let ratio_key = scope.in_data("mix_ratio");
    let extra_key = scope.in_data("extra_datasets");
    if let Some(ratio) = &data.mix_ratio {
        let sets = 1 + data.extra_datasets.as_ref().map_or(0, Vec::len);
        if ratio.len() != sets {
            let noun = if ratio.len() == 1 { "number" } else { "numbers" };
            let message = format!(
                "`{ratio_key}` has {} {noun}; expected {sets}, one for each data set",
                ratio.len()
            );
            findings.error(
                Code::Conflict,
                &[&ratio_key, &extra_key],
                message,
                "the first number is for `dataset_name_or_path`, the others for `extra_datasets`",
            );
        } else if ratio.iter().all(|&w| w <= 0.0) {
            let message = format!("`{ratio_key}` is all zero; expected one weight above 0");
            findings.error(Code::OutOfRange, &[&ratio_key], message, "0 leaves a data set out");
        }
    }
    if let Some(governance) = &data.governance
        && governance.personal_data_included
        && !governance.dpia_completed
    {
        let key = scope.in_data("governance.personal_data_included");
        let message = format!("`{key}` is true and `dpia_completed` is not");
        findings.warn(Code::Doubtful, &[&key], message);
    }
}
