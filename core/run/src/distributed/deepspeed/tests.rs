//! Files that are used, and each way in which one is refused.

use super::*;
use forgelm_config::{Severity, load};
use std::collections::BTreeSet;

/// The presets, as upstream's files have them; values that differ are filled in.
const PRESET: &str = r#"{
  "zero_optimization": {ZERO},
  "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
  "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
  "bf16": {"enabled": "auto"},
  "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2, "min_loss_scale": 1},
  "gradient_accumulation_steps": "auto",
  "gradient_clipping": "auto",
  "train_batch_size": "auto",
  "train_micro_batch_size_per_gpu": "auto",
  "steps_per_print": 100
}"#;
const ZERO2: &str = r#"{"stage": 2, "overlap_comm": true, "contiguous_gradients": true,
  "reduce_scatter": true, "reduce_bucket_size": "auto", "allgather_bucket_size": "auto"}"#;
const ZERO3: &str = r#"{"stage": 3, OFFLOAD "overlap_comm": true, "contiguous_gradients": true,
  "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
  "stage3_param_persistence_threshold": "auto", "sub_group_size": 1e9,
  "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9,
  "stage3_gather_16bit_weights_on_model_save": true}"#;
const OFFLOAD: &str = r#""offload_optimizer": {"device": "cpu", "pin_memory": true},
  "offload_param": {"device": "cpu", "pin_memory": true},"#;

/// In the place of the schedule that stays where its warm-up ends.
const LINEAR: &str = "lr_scheduler_type: linear";

/// What is read, with the run's config: 4 rows in a micro-batch, 8 in a step.
fn read_as(text: &str, training: &str) -> Result<(Settings, Vec<Diagnostic>), Vec<Diagnostic>> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ds.json");
    forgelm_artifact::write::atomic(&file, text.as_bytes()).unwrap();
    let config = format!(
        "model: {{name_or_path: m}}\ndata: {{dataset_name_or_path: d}}\ntraining: \
         {{per_device_train_batch_size: 4, gradient_accumulation_steps: 2, {}}}\n",
        if training == LINEAR {
            LINEAR.to_owned()
        } else {
            format!("lr_scheduler_type: constant{training}")
        }
    );
    let run = load(&config, "run.yaml").unwrap().run;
    let told = |of: Diagnostic| Diagnostic {
        file: of.file.replace(file.to_str().unwrap(), "ds.json"),
        ..of
    };
    let (settings, warnings) = read(file.to_str().unwrap(), &run)
        .map_err(|problems| problems.into_iter().map(told).collect::<Vec<_>>())?;
    Ok((settings, warnings.into_iter().map(told).collect()))
}

/// What is wrong with a file, one line each.
fn problems(text: &str, training: &str) -> Vec<String> {
    let found = read_as(text, training).expect_err(text);
    assert!(found.iter().all(|of| of.severity == Severity::Error && of.file == "ds.json"));
    found.iter().map(ToString::to_string).collect()
}

fn settings(text: &str) -> Settings {
    read_as(text, "").unwrap_or_else(|problems| panic!("{text}: {problems:?}")).0
}

#[test]
fn presets_written_out_are_the_presets() {
    let zero3 = ZERO3.replace("OFFLOAD", "");
    let offload = ZERO3.replace("OFFLOAD", OFFLOAD);
    for (name, zero) in [("zero2", ZERO2), ("zero3", &zero3), ("zero3_offload", &offload)] {
        let found = settings(&PRESET.replace("{ZERO}", zero));
        let file = found.file.as_ref().unwrap();
        assert_eq!(file.sha256.len(), 64);
        let expected = Settings::preset(name).unwrap();
        assert_eq!(Settings { file: None, ..found.clone() }, expected, "{name}");
        // The rate follows the run's config, as with the preset.
        let (_, warnings) = read_as(&PRESET.replace("{ZERO}", zero), LINEAR).unwrap();
        let said = warnings.last().unwrap().to_string();
        let expected = "`scheduler` is left to the run's config, whose `training.lr_scheduler_type` is \
                        `linear`";
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn what_says_how_state_is_shared_out_is_used() {
    for (zero, stage, overlap_comm, prefetch) in [
        ("{}", 0, false, true),
        (r#"{"stage": 0}"#, 0, false, true),
        (r#"{"stage": 1, "overlap_comm": true}"#, 2, true, true),
        (r#"{"stage": 2, "stage3_prefetch_bucket_size": 0}"#, 2, false, false),
        (r#"{"stage": 3}"#, 3, true, true),
        (
            r#"{"stage": 3, "overlap_comm": false, "stage3_prefetch_bucket_size": 5e7}"#,
            3,
            false,
            true,
        ),
    ] {
        let found = settings(&format!(r#"{{"zero_optimization": {zero}}}"#));
        let told = (found.stage, found.overlap_comm, found.prefetch);
        assert_eq!(told, (stage, overlap_comm, prefetch), "{zero}");
        assert!(!found.offload_optimizer && !found.offload_param);
    }
    for nothing in ["{}", r#"{"zero_optimization": false}"#, r#"{"optimizer": null}"#] {
        assert_eq!(settings(nothing).stage, 0, "as there");
    }
    for (name, device, expected) in [
        ("offload_optimizer", "cpu", (true, false)),
        ("offload_optimizer", "none", (false, false)),
        ("offload_param", "cpu", (false, true)),
    ] {
        let zero = format!(r#"{{"zero_optimization": {{"{name}": {{"device": "{device}"}}}}}}"#);
        let found = settings(&zero);
        assert_eq!((found.offload_optimizer, found.offload_param), expected, "{zero}");
    }
}

#[test]
fn what_has_no_effect_is_named_once_and_stage_1_is_noted() {
    let text = r#"{"steps_per_print": 100, "wall_clock_breakdown": false, "dump_state": null,
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 5e8, "allgather_bucket_size": "auto",
        "offload_param": {"device": "none", "pin_memory": true}}}"#;
    let (_, warnings) = read_as(text, "").unwrap();
    let said: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(
        said[0],
        "ds.json: warning: has no effect here: `steps_per_print`, `wall_clock_breakdown`, \
         `zero_optimization.reduce_bucket_size`, `zero_optimization.offload_param.pin_memory`"
    );
    assert!(said[1].starts_with("ds.json: note: `zero_optimization.stage: 1` is taken as 2"));
    assert_eq!(read_as(r#"{"zero_optimization": {"stage": 2}}"#, "").unwrap().1, []);
}

#[test]
fn what_the_config_says_too_must_be_the_same() {
    let agreeing = r#"{"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2.0, "gradient_clipping": 1, "bf16": {"enabled": false},
        "optimizer": {"type": "adam", "params": {"lr": 2e-5, "betas": [0.9, 0.999], "eps": 1e-8,
            "weight_decay": 0.01, "adam_w_mode": true}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.00002,
            "warmup_type": "linear"}}}"#;
    read_as(agreeing, ", compute_dtype: float32").unwrap();
    let cases = [
        (
            r#"{"train_batch_size": 32}"#,
            "`train_batch_size` is `32`; expected `8` or `auto`, since \
          `training.per_device_train_batch_size * gradient_accumulation_steps` is `8`",
        ),
        (r#"{"train_micro_batch_size_per_gpu": 2}"#, "is `2`; expected `4` or `auto`"),
        (r#"{"gradient_accumulation_steps": 4}"#, "is `4`; expected `2` or `auto`"),
        (
            r#"{"gradient_clipping": 0.5}"#,
            "is `0.5`; expected `1.0` or `auto`, since \
          `training.max_grad_norm` is `1.0`",
        ),
        (
            r#"{"optimizer": {"type": "OneBitAdam"}}"#,
            "`optimizer.type` is `OneBitAdam`; expected \
          `AdamW` or `Adam` or `auto`, since `training.optim` is `adamw`",
        ),
        (r#"{"optimizer": {"params": {"lr": 3e-4}}}"#, "`optimizer.params.lr` is `0.0003`"),
        (
            r#"{"optimizer": {"params": {"betas": [0.9, 0.95]}}}"#,
            "is `[0.9,0.95]`; expected `[0.9,0.999]`",
        ),
        (r#"{"optimizer": {"params": {"adam_w_mode": false}}}"#, "is `false`; expected `true`"),
        (
            r#"{"scheduler": {"type": "WarmupDecayLR"}}"#,
            "is `WarmupDecayLR`; expected `WarmupLR` or \
          `auto`, since `training.lr_scheduler_type` is `constant`",
        ),
        (
            r#"{"scheduler": {"params": {"warmup_num_steps": 100}}}"#,
            "is `100`; expected `auto`, since \
          `training.warmup_ratio` is `0.1`",
        ),
        (r#"{"bf16": {"enabled": true}}"#, "`bf16.enabled` is `true`; expected `false` or `auto`"),
    ];
    for (text, said) in cases {
        let found = problems(text, ", compute_dtype: float32");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("ds.json: ") && found[0].contains(said), "{said}: {found:?}");
        assert!(found[0].contains("\n  hint: the run's config decides"), "{found:?}");
    }
    let found = problems(r#"{"optimizer": {"type": "AdamW"}}"#, ", optim: adafactor");
    assert!(
        found[0].contains("expected `auto`, since `training.optim` is `adafactor`"),
        "{found:?}"
    );
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (text, key) in [
        (r#"{"fp16": {"enabled": true}}"#, "fp16.enabled: true"),
        (r#"{"amp": {"enabled": true}}"#, "amp: {\"enabled\":true}"),
        (
            r#"{"zero_optimization": {"round_robin_gradients": true}}"#,
            "zero_optimization.round_robin_gradients: true",
        ),
        (
            r#"{"zero_optimization": {"zero_hpz_partition_size": 8}}"#,
            "zero_optimization.zero_hpz_partition_size: 8",
        ),
        (r#"{"zero_optimization": {"cpu_offload": true}}"#, "zero_optimization.cpu_offload: true"),
        (r#"{"pipeline": {"stages": 2}}"#, "pipeline: {\"stages\":2}"),
        (r#"{"communication_data_type": "fp16"}"#, "communication_data_type: fp16"),
        (
            r#"{"zero_optimization": {"offload_param": {"device": "none", "nvme_path": "/ssd"}}}"#,
            "zero_optimization.offload_param.nvme_path: /ssd",
        ),
    ] {
        let found = problems(text, "");
        let said = format!("ds.json: `{key}` is not supported: ");
        assert!(found.len() == 1 && found[0].starts_with(&said), "{said}: {found:?}");
    }
    read_as(
        r#"{"fp16": {"enabled": false}, "amp": {"enabled": false}, "pipeline": {}, "elasticity": null,
            "communication_data_type": "fp32", "zero_optimization": {"zero_hpz_partition_size": 1,
            "mics_shard_size": -1, "offload_optimizer": {"device": "none", "ratio": 1}}}"#,
        "",
    )
    .unwrap();
    let nvme = problems(r#"{"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}"#, "");
    assert!(nvme[0].contains("is `nvme`; expected `cpu` or `none`"), "{nvme:?}");
}

#[test]
fn keys_that_nobody_knows_and_broken_files_are_refused_with_their_place() {
    for (text, said) in [
        (
            r#"{"zero_optimisation": {}}"#,
            "`zero_optimisation` is not a known key of DeepSpeed\n  hint: \
          did you mean `zero_optimization`?",
        ),
        (
            r#"{"overlap_comm": true}"#,
            "`overlap_comm` is not a known key of DeepSpeed\n  hint: it is \
          written `zero_optimization.overlap_comm`",
        ),
        (
            r#"{"zero_optimization": {"stages": 2}}"#,
            "`zero_optimization.stages` is not a known key",
        ),
        (r#"{"zero_optimization": true}"#, "`zero_optimization` is true; expected an object"),
        (
            r#"{"zero_optimization": {"stage": 4}}"#,
            "`zero_optimization.stage` is `4`; expected 0, 1, 2 or 3",
        ),
        (r#"{"zero_optimization": {"stage": "2"}}"#, "is `2`; expected 0, 1, 2 or 3"),
        (r#"{"zero_optimization": {"overlap_comm": 1}}"#, "is `1`; expected true or false"),
        (
            r#"{"zero_optimization": {"stage3_prefetch_bucket_size": -1}}"#,
            "is `-1`; expected a number of elements",
        ),
        ("[]", "the file is []; expected an object"),
        ("{\n  \"a\": 1,\n  \"a\": 2}", "ds.json:3:5: "),
        ("{\n  \"zero_optimization\": {,}\n}", "ds.json:2:25: "),
        ("", "ds.json:1:0: "),
    ] {
        let found = problems(text, "");
        assert!(found.len() == 1 && found[0].contains(said), "{said}: {found:?}");
    }
    let all = problems(r#"{"stag": 2, "train_batch_size": 1, "fp16": {"enabled": true}}"#, "");
    assert_eq!(all.len(), 3, "all at once: {all:?}");

    let run = load("model: {name_or_path: m}\ndata: {dataset_name_or_path: d}\n", "run.yaml");
    let run = run.unwrap().run;
    for (path, said) in [("/nowhere/ds.json", "cannot be read: "), ("/", "is no file")] {
        let found = read(path, &run).unwrap_err()[0].to_string();
        assert!(found.starts_with(&format!("{path}: {said}")), "{found}");
        assert!(found.contains("is `zero2`, `zero3`, `zero3_offload`, or a JSON file"), "{found}");
    }
}

/// Each name is once in its section, and what else is off can be read.
#[test]
fn the_list_of_keys_is_sound() {
    fn check(keys: &'static [Key]) -> usize {
        let names: BTreeSet<_> = keys.iter().map(|key| key.name).collect();
        assert_eq!(names.len(), keys.len());
        let of = |key: &'static Key| match &key.meaning {
            Meaning::Section(keys) => check(keys),
            Meaning::Off { also: Some(text), .. } => {
                assert!(serde_json::from_str::<Value>(text).is_ok(), "{}", key.name);
                1
            }
            _ => 1,
        };
        keys.iter().map(of).sum()
    }
    assert_eq!(check(ROOT), 154);
}
