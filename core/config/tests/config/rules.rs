//! Every rule between fields.

use forgelm_config::RiskTier;

use crate::{errors, loads, only, warnings, with};

/// Root lines after the two required sections, or a whole file that begins with `model:`.
fn file(more: &str) -> String {
    if more.starts_with("model:") { more.to_owned() } else { with(more) }
}

#[test]
fn combinations_that_are_refused() {
    let cases = [
        (
            "model: {name_or_path: m}\ndata: {dataset_name_or_path: d}\ndistributed: {strategy: fsdp, fsdp_auto_wrap: false}\n",
            "`distributed.fsdp_auto_wrap: false` (line 3) makes the whole model one unit",
        ),
        (
            "model: {name_or_path: m, backend: unsloth}\ndata: {dataset_name_or_path: d}\ndistributed: {strategy: fsdp}\n",
            "`distributed.strategy` is set and `model.backend` (line 1) is `unsloth`",
        ),
        (
            "model: {name_or_path: m, backend: unsloth}\ndata: {dataset_name_or_path: d}\nlora: {method: pissa}\n",
            "`lora.method` is `pissa` and `model.backend` (line 1) is `unsloth`",
        ),
        (
            "model: {name_or_path: m, load_in_4bit: true}\ndata: {dataset_name_or_path: d}\nlora: {enabled: false}\n",
            "`lora.enabled` is false and `model.load_in_4bit` (line 1) is true",
        ),
        (
            "distributed: {strategy: deepspeed}\ntraining: {galore_enabled: true, galore_optim: galore_adamw_layerwise, gradient_accumulation_steps: 1}\n",
            "updates layer by layer and `distributed.strategy` (line 5) is set",
        ),
        (
            "training: {galore_enabled: true, galore_optim: galore_adafactor_layerwise}\n",
            "`training.gradient_accumulation_steps` is 2",
        ),
        (
            "training: {galore_enabled: true, galore_optim: galore_adamw_layerwise, gradient_accumulation_steps: 1, max_grad_norm: 1.0}\n",
            "and `training.max_grad_norm` (line 5) is written",
        ),
        (
            "training: {galore_enabled: true, galore_optim: galore_adamw_8bit_layerwise, gradient_accumulation_steps: 1, oom_recovery: true}\n",
            "and `training.oom_recovery` (line 5) is true",
        ),
        (
            "model: {name_or_path: m, load_in_4bit: true}\ndata: {dataset_name_or_path: d}\ntraining: {galore_enabled: true}\n",
            "trains the weights themselves and `model.load_in_4bit` (line 1) is true",
        ),
        (
            "training: {galore_enabled: true, galore_target_modules: ['.*', '*.attn']}\n",
            "`training.galore_target_modules`: `*.attn` is not a pattern",
        ),
        (
            "evaluation: {safety: {enabled: true, min_safety_score: 0.9}}\n",
            "`evaluation.safety.scoring` is `binary`",
        ),
        (
            "evaluation: {safety: {enabled: true, severity_thresholds: {high: 0.1}, track_categories: false}}\n",
            "`evaluation.safety.track_categories` is false",
        ),
        ("evaluation: {benchmark: {enabled: true}}\n", "`evaluation.benchmark.tasks` is empty"),
        (
            "training: {trainer_type: grpo, grpo_reward_model_revision: main}\n",
            "written without `training.grpo_reward_model`",
        ),
        (
            "training: {trainer_type: grpo, per_device_train_batch_size: 3, gradient_accumulation_steps: 1}\n",
            "is 3; expected a multiple of `training.grpo_num_generations`, 4",
        ),
        (
            "training: {trainer_type: kto, per_device_train_batch_size: 1, gradient_accumulation_steps: 1}\n",
            "`training.per_device_train_batch_size` times `gradient_accumulation_steps` is 1",
        ),
        (
            "training: {trainer_type: orpo, sample_packing: true}\n",
            "`training.sample_packing` is true and `training.trainer_type` (line 5) is `orpo`",
        ),
        (
            "evaluation: {llm_judge: {judge_api_key_env: K, judge_model_revision: main}}\n",
            "pins a local judge",
        ),
        (
            "synthetic: {teacher_revision: main}\n",
            "pins a local teacher and `synthetic.teacher_backend` is `api`",
        ),
        (
            "monitoring: {enabled: true, metrics_export: custom_webhook}\n",
            "`monitoring.metrics_export` is `custom_webhook`, and there is no `monitoring.endpoint`",
        ),
        (
            "evaluation: {llm_judge: {judge_api_base: 'https://h/v1', judge_model_revision: main}}\n",
            "and `evaluation.llm_judge.judge_api_base` (line 5) makes it a remote one",
        ),
        (
            "synthetic: {enabled: true, teacher_model: t, api_base: 'https://h'}\n",
            "there are no prompts",
        ),
        (
            "synthetic: {enabled: true, seed_file: f, api_base: 'https://h'}\n",
            "`synthetic.teacher_model` is empty",
        ),
        (
            "synthetic: {enabled: true, seed_file: f, teacher_model: t}\n",
            "`synthetic.teacher_backend` is `api`, and `synthetic.api_base` is empty",
        ),
        (
            "synthetic: {enabled: true, teacher_backend: file, seed_prompts: [a]}\n",
            "`synthetic.teacher_backend` is `file` and `synthetic.seed_file` is empty",
        ),
        (
            "merge: {enabled: true, models: [{path: a}]}\n",
            "`merge.models` has 1; expected at least 2",
        ),
        (
            "merge: {enabled: true, method: slerp, models: [{path: a}, {path: b}, {path: c}]}\n",
            "`merge.models` has 3; expected exactly 2 for `merge.method: slerp` (line 5)",
        ),
        (
            "merge: {enabled: true, models: [{path: a}, {path: b, weight: -1}]}\n",
            "the weights of `merge.models` sum to 0",
        ),
        ("merge: {models: [{weight: 1}]}\n", "`merge.models[0].path` is missing"),
        (
            "compliance: {risk_classification: high-risk}\n",
            "`evaluation.safety.enabled` is not true",
        ),
        (
            "risk_assessment: {risk_category: unacceptable}\nevaluation: {safety: {enabled: false}}\n",
            "`evaluation.safety.enabled` (line 6) is not true",
        ),
        (
            "compliance: {risk_classification: high-risk}\nevaluation: {safety: {enabled: true}}\nsigning: {enabled: false}\n",
            "`signing.enabled` is false and the tier is `high-risk`",
        ),
        ("signing: {key_file: a, key_env: B}\n", "`signing.key_env` (line 5) both name the key"),
        (
            "evaluation: {staging_ttl_days: 3}\nretention: {staging_ttl_days: 4}\n",
            "Conflicting staging_ttl_days values",
        ),
        (
            "training: {grpo_max_new_tokens: 3, grpo_max_completion_length: 4}\n",
            "is another name of `training.grpo_max_completion_length`",
        ),
        ("training: {rope_scaling: {factor: 2}}\n", "`training.rope_scaling.type` is missing"),
        ("training: {rope_scaling: {type: ntk, factor: 2}}\n", "expected one of `linear`"),
        ("training: {rope_scaling: {type: linear}}\n", "`training.rope_scaling.factor` is missing"),
        ("training: {rope_scaling: {type: yarn, factor: true}}\n", "expected a number above 0"),
        (
            "training: {rope_scaling: {type: longrope, short_factor: [1], long_factor: []}}\n",
            "`training.rope_scaling.long_factor` is a list of 0",
        ),
        ("lora: {target_modules: [q_proj, all-linear]}\n", "expected `all-linear` alone"),
        ("lora: {target_modules: []}\n", "expected a list of module names"),
        ("evaluation: {safety: {severity_thresholds: {hgh: 0.1}}}\n", "did you mean `high`?"),
        (
            "evaluation: {safety: {severity_thresholds: {high: 1.1}}}\n",
            "expected a number from 0 to 1",
        ),
        ("training: {final_model_dir: ../x}\n", "expected text (a relative path without `..`)"),
    ];
    assert_eq!(cases.len(), 45);
    for (more, words) in cases {
        let message = only(&file(more));
        assert!(message.contains(words), "{more}\n{message}");
        assert!(message.starts_with("run.yaml:"), "{message}");
    }
}

#[test]
fn combinations_that_are_warned_about() {
    let cases = [
        (
            "model: {name_or_path: m, load_in_4bit: true}\ndata: {dataset_name_or_path: d}\ndistributed: {strategy: deepspeed, deepspeed_config: zero3}\n",
            "ZeRO-3 with `model.load_in_4bit` (line 1)",
        ),
        (
            "model: {name_or_path: m, load_in_4bit: true, bnb_4bit_compute_dtype: fp32}\ndata: {dataset_name_or_path: d}\n",
            "`model.bnb_4bit_compute_dtype` is `float32`",
        ),
        (
            "model: {name_or_path: m, trust_remote_code: true}\ndata: {dataset_name_or_path: d}\n",
            "`model.trust_remote_code` has no effect",
        ),
        (
            "model: {name_or_path: ./m, revision: 0123456789012345678901234567890123456789a}\ndata: {dataset_name_or_path: d}\n",
            "no effect on the local path",
        ),
        (
            "model: {name_or_path: m, revision: main}\ndata: {dataset_name_or_path: d}\n",
            "`model.revision` is `main`, which can move",
        ),
        (
            "model: {name_or_path: m, bnb_4bit_quant_type: fp4}\ndata: {dataset_name_or_path: d}\n",
            "no effect without `load_in_4bit: true`",
        ),
        (
            "model: {name_or_path: m, moe: {experts_to_train: \"0,x\"}}\ndata: {dataset_name_or_path: d}\n",
            "all experts are trained",
        ),
        (
            "model: {name_or_path: m}\ndata: {dataset_name_or_path: d, governance: {personal_data_included: yes}}\n",
            "`dpia_completed` is not",
        ),
        ("lora: {r: 128}\n", "`lora.r` is 128: above 64"),
        ("lora: {method: pissa, use_rslora: true}\n", "both apply"),
        (
            "training: {merge_adapters: true}\nevaluation: {auto_revert: true, max_acceptable_loss: 2}\n",
            "a whole model, not an adapter, will be deleted",
        ),
        ("training: {merge_adapters: true, trainer_type: dpo}\n", "with the trainer dpo"),
        (
            "training: {eval_steps: 300}\n",
            "`training.eval_steps` is 300 and `training.save_steps` is 200",
        ),
        ("training: {max_steps: 0}\n", "the epochs count"),
        ("training: {galore_enabled: true, optim: adafactor}\n", "`training.optim` has no effect"),
        ("training: {galore_rank: 4}\n", "no effect without `galore_enabled: true`"),
        (
            "evaluation: {safety: {enabled: true, severity_thresholds: {high: 0.1}}}\n",
            "turns `evaluation.safety.track_categories` on",
        ),
        ("evaluation: {auto_revert: true}\n", "the baseline will be measured"),
        ("evaluation: {approval: {quorum: 2}}\n", "`evaluation.approval` has no effect"),
        (
            "evaluation: {llm_judge: {enabled: true, min_score: 9.5}}\n",
            "nearly every model passes or fails",
        ),
        ("evaluation: {staging_ttl_days: 3}\n", "`evaluation.staging_ttl_days` is deprecated"),
        (
            "merge: {enabled: true, models: [{path: a, weight: 3}, {path: b, weight: -1}]}\n",
            "`merge.models[1].weight` is -1: ties turns the change round",
        ),
        (
            "merge: {enabled: true, method: slerp, models: [{path: a}, {path: b}]}\nplugins: {merge_method: m}\n",
            "`merge.method` has no effect: `plugins.merge_method` names the method",
        ),
        (
            "merge: {enabled: true, dare_seed: 7, models: [{path: a}, {path: b}]}\nplugins: {merge_method: m}\n",
            "`merge.dare_seed` has no effect: `plugins.merge_method` names the method",
        ),
        (
            "monitoring: {enabled: true, endpoint: \"https://example.org\"}\n",
            "`monitoring.endpoint` has no effect: `monitoring.metrics_export` is `none`",
        ),
        (
            "monitoring: {enabled: true, listen: \"127.0.0.1:9\"}\n",
            "`monitoring.listen` has no effect: `monitoring.metrics_export` is not `prometheus`",
        ),
        (
            "monitoring: {enabled: true, metrics_export: prometheus, api_key_env: K}\n",
            "`monitoring.api_key_env` has no effect",
        ),
        (
            "monitoring: {enabled: true, metrics_export: datadog, endpoint: a, endpoint_env: K}\n",
            "`monitoring.endpoint` and `monitoring.endpoint_env` are both set",
        ),
        ("webhook: {timeout: 0}\n", "`webhook.timeout` is 0; 1 second is used"),
        (
            "webhook: {url: \"https://example.org\", url_env: HOOK}\n",
            "`webhook.url` and `webhook.url_env` are both set; the variable counts where it is set",
        ),
        (
            "compliance: {risk_classification: limited-risk}\nrisk_assessment: {risk_category: unknown}\n",
            "the stricter one governs",
        ),
    ];
    assert_eq!(cases.len(), 31);
    for (more, words) in cases {
        let found = warnings(&file(more));
        assert_eq!(found.len(), 1, "{more}\n{found:#?}");
        assert!(found[0].contains(words), "{more}\n{}", found[0]);
    }
}

#[test]
fn revisions_are_pinned_by_a_commit_or_a_sha256_and_refused_when_malformed() {
    let model = |revision: &str| {
        format!(
            "model: {{name_or_path: m, revision: {revision}}}\ndata: {{dataset_name_or_path: d}}\n"
        )
    };
    let (commit, digest) = ("c0ffee".repeat(6) + "abcd", "abcd".repeat(16));
    for pinned in [commit, format!("sha256:{digest}"), digest] {
        assert!(warnings(&model(&pinned)).is_empty(), "{pinned}");
    }
    for bad in ["\"\"", "\" \"", "\"a b\"", "\"-x\"", "\"a\\u0007\"", &"x".repeat(256)] {
        assert_eq!(errors(&model(bad)).len(), 1, "{bad}");
    }
}

#[test]
fn forwarded_and_turned_on_keys_have_their_effect() {
    let run = loads(&with(
        "evaluation: {staging_ttl_days: 3}\nretention: {audit_log_retention_days: 9}\n",
    ))
    .run;
    let retention = run.retention.unwrap();
    assert_eq!((retention.staging_ttl_days, retention.audit_log_retention_days), (3, 9));
    assert_eq!(run.evaluation.unwrap().staging_ttl_days, None);
    let run =
        loads(&with("evaluation: {staging_ttl_days: 4}\nretention: {staging_ttl_days: 4}\n")).run;
    assert_eq!(run.retention.unwrap().staging_ttl_days, 4);
    let run = loads(&with("evaluation: {staging_ttl_days: 5}\n")).run;
    assert_eq!(run.retention.unwrap().staging_ttl_days, 5);

    let loaded = loads(&with("training: {grpo_max_new_tokens: 77, trainer_type: grpo}\n"));
    assert!(loaded.warnings.iter().all(|w| w.severity < forgelm_config::Severity::Warning));
    assert_eq!(loaded.run.training.grpo_max_completion_length, 77);
    assert!(loaded.written.contains("training.grpo_max_completion_length"));

    let text = "evaluation: {safety: {enabled: true, severity_thresholds: {high: 0.1}}}\n";
    let safety = loads(&with(text)).run.evaluation.unwrap().safety.unwrap();
    assert!(safety.track_categories);
    assert_eq!(loads(&with("webhook: {timeout: -5}\n")).run.webhook.unwrap().timeout, 1);
    assert!(loads(&with("training: {sample_packing: true}\n")).run.training.is_packed());
}

#[test]
fn the_stricter_tier_governs() {
    let text = "compliance: {risk_classification: limited-risk}\nrisk_assessment: {risk_category: high-risk}\nevaluation: {auto_revert: true, baseline_loss: 1, safety: {enabled: true, track_categories: true}}\n";
    let loaded = loads(&with(text));
    assert_eq!(loaded.run.risk_tier(), RiskTier::HighRisk);
    assert_eq!(loads(&with("")).run.risk_tier(), RiskTier::MinimalRisk);
    let unknown = loads(&with("compliance: {risk_classification: unknown}\n")).run.risk_tier();
    assert_eq!(unknown, RiskTier::Unknown);
    let banner = warnings(&with(&text.replace("high-risk", "unacceptable")));
    assert!(banner.iter().any(|w| w.contains("Article 5")), "{banner:?}");
}

#[test]
fn horizons_shorter_than_article_18_are_warned_about_where_it_applies() {
    let text = |tier: &str, retention: &str| {
        with(&format!(
            "risk_assessment: {{risk_category: {tier}}}\nretention: {{{retention}}}\n\
             evaluation: {{auto_revert: true, baseline_loss: 1, safety: {{enabled: true, track_categories: true}}}}\n"
        ))
    };
    let article_18 = |text: &str| {
        let found = warnings(text).into_iter();
        found.filter(|warning| warning.contains("Article 18")).count()
    };
    assert_eq!(article_18(&text("high-risk", "")), 2);
    assert_eq!(article_18(&text("limited-risk", "")), 0);
    let kept = "audit_log_retention_days: 0, ephemeral_artefact_retention_days: 3653";
    assert_eq!(article_18(&text("high-risk", kept)), 0);
    let one = "audit_log_retention_days: 3652, ephemeral_artefact_retention_days: 0";
    assert_eq!(article_18(&text("high-risk", one)), 1);
}

#[test]
fn the_switches_of_the_adapter_combine() {
    let lora = |text: &str| loads(&with(&format!("lora: {{{text}}}\n"))).run.lora;
    let both = lora("use_dora: true, method: rslora, r: 16, alpha: 8");
    assert_eq!((both.is_dora(), both.is_rslora(), both.is_pissa()), (true, true, false));
    assert!((both.scale() - 2.0).abs() < 1e-12);
    assert!((lora("r: 16, alpha: 8").scale() - 0.5).abs() < 1e-12);
    let modules = lora("target_modules: [q_proj, mlp.up_proj]").target_modules;
    for (name, matched) in [
        ("model.layers.0.self_attn.q_proj", true),
        ("q_proj", true),
        ("model.layers.0.mlp.up_proj", true),
        ("model.layers.0.self_attn.xq_proj", false),
        ("model.layers.0.self_attn.up_proj", false),
    ] {
        assert_eq!(modules.matches(name), matched, "{name}");
    }
    assert!(lora("target_modules: all-linear").target_modules.matches("anything"));
    assert!(lora("target_modules: [all-linear]").target_modules.matches("anything"));
}

#[test]
fn a_stage_is_checked_as_the_training_that_it_will_be() {
    let text = with(
        "lora: {enabled: false}\npipeline:\n  stages:\n  - name: a\n    model: {name_or_path: n, load_in_4bit: true}\n",
    );
    let message = only(&text);
    assert!(
        message.contains("`pipeline.stages[0].model.load_in_4bit` (line 9) is true"),
        "{message}"
    );
}

#[test]
fn a_stage_is_the_run_of_its_own_sections_and_the_roots() {
    let run = loads(
        "model: {name_or_path: m, revision: main}
data: {dataset_name_or_path: d}
lora: {r: 4}
evaluation: {max_acceptable_loss: 2, baseline_loss: 1}
pipeline:
  stages:
  - {name: a}
  - name: b
    lora: {alpha: 3}
    training: {trainer_type: dpo, output_dir: y, galore_enabled: true}
    data: {dataset_name_or_path: e}
    evaluation: {max_acceptable_loss: 5, staging_ttl_days: 9}
",
    )
    .run;
    let stages = &run.pipeline.as_ref().unwrap().stages;
    let (a, b) = (stages[0].run(&run), stages[1].run(&run));
    assert_eq!(a, forgelm_config::Run { pipeline: None, ..run.clone() });
    // A section replaces the root's as a whole: keys that it does not write have their defaults.
    assert_eq!((b.lora.r, b.lora.alpha), (8, 3));
    assert_eq!(b.training.output_dir, "y");
    assert_eq!(b.data.dataset_name_or_path, "e");
    assert_eq!((&b.model, &b.webhook, b.pipeline.is_none()), (&run.model, &run.webhook, true));
    let evaluation = b.evaluation.unwrap();
    assert_eq!((evaluation.max_acceptable_loss, evaluation.baseline_loss), (Some(5.0), None));
    // What other keys of a run settle is settled for a stage too.
    assert!(!b.lora.enabled, "GaLore trains matrices of the base");
    assert_eq!(b.retention.unwrap().staging_ttl_days, 9);
}

#[test]
fn rules_are_silent_about_keys_that_already_have_a_problem() {
    let message = only(&with("training: {packing: true, trainer_type: dpoo}\n"));
    assert!(message.contains("did you mean `dpo`?"), "{message}");
    // Other rules still speak.
    let found = errors(&with("lora: {r: 0}\nmerge: {enabled: true}\n"));
    assert_eq!(found.len(), 2);
}
