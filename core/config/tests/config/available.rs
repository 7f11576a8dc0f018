//! What this version does not have is refused by name.

use forgelm_config::{Code, not_available};

use crate::{loads, with};

fn refused(more: &str) -> Vec<String> {
    let text = if more.starts_with("model:") { more.to_owned() } else { with(more) };
    let loaded = loads(&text);
    let found = not_available(&loaded.run, &loaded.written, "run.yaml");
    assert!(found.iter().all(|d| d.code == Code::NotAvailable && d.place.is_some()));
    found.into_iter().map(|d| d.message).collect()
}

#[test]
fn features_that_are_missing_are_refused_when_they_are_asked_for() {
    let cases = [
        (
            "model: {name_or_path: m, multimodal: {enabled: true}}\ndata: {dataset_name_or_path: d}\n",
            "`model.multimodal.enabled: true`",
        ),
        (
            "pipeline: {stages: [{name: a, model: {name_or_path: m, multimodal: {enabled: true}}}]}\n",
            "`pipeline.stages[0].model.multimodal.enabled: true`",
        ),
    ];
    assert_eq!(cases.len(), 2);
    for (more, what) in cases {
        let found = refused(more);
        assert!(!found.is_empty(), "{more}");
        assert!(
            found[0].starts_with(&format!("{what} is not available yet: ")),
            "{more}\n{found:?}"
        );
        assert_eq!(found.len(), 1, "{found:?}");
    }
}

#[test]
fn what_is_there_and_what_is_off_is_not_refused() {
    for more in [
        "",
        "pipeline: {stages: [{name: a}, {name: b, training: {trainer_type: dpo, output_dir: x}}]}\n",
        "model: {name_or_path: m, load_in_4bit: false, backend: unsloth, offline: true}\ndata: {dataset_name_or_path: d, validation_split: 0.1, on_bad_row: skip}\n",
        "lora: {method: rslora, target_modules: all-linear, bias: none}\n",
        "training: {packing: true, report_to: wandb, lr_scheduler_type: cosine, threads: 2}\n",
        "training: {rope_scaling: {type: linear, factor: 2}, sliding_window_attention: 512, merge_adapters: true}\n",
        "lora: {method: dora}\n",
        "distributed: {strategy: fsdp}\n",
        "distributed: {strategy: fsdp, fsdp_strategy: no_shard, fsdp_state_dict_type: SHARDED_STATE_DICT}\n",
        "distributed: {strategy: fsdp, fsdp_strategy: hybrid_shard, fsdp_offload: true}\n",
        "distributed: {strategy: deepspeed, deepspeed_config: zero3_offload}\n",
        "training: {trainer_type: dpo, dpo_beta: 0.2}\n",
        "training: {trainer_type: kto, per_device_train_batch_size: 1}\n",
        "training: {galore_enabled: true, galore_optim: galore_adafactor_layerwise, gradient_accumulation_steps: 1}\n",
        "lora: {enabled: false}\n",
        "model: {name_or_path: m, load_in_4bit: true, bnb_4bit_quant_type: fp4}\ndata: {dataset_name_or_path: d}\n",
        "training: {oom_recovery: true, gradient_checkpointing: false, neftune_noise_alpha: 5, gpu_cost_per_hour: 1.5}\n",
        "evaluation: {require_human_approval: true, approval: {quorum: 2, roles: [a], expires_days: 7, approvers: k}}\n",
        "evaluation: {auto_revert: true, max_acceptable_loss: 2, baseline_loss: 1}\n",
        "evaluation: {auto_revert: false, safety: {enabled: true}, benchmark: {tasks: [a]}}\n",
        "evaluation: {llm_judge: {enabled: true, order_swap: true, canaries: 0}}\n",
        "synthetic: {enabled: true, teacher_model: t, seed_file: f, api_base: \"https://h\"}\n",
        "compliance: {provider_name: x}\nrisk_assessment: {}\nretention: {enforce: block_on_excess, legal_hold: true}\n",
        "webhook: {url: \"\"}\nmonitoring: {}\nmerge: {}\nsynthetic: {}\ndistributed: {strategy: null}\n",
        "distributed: {strategy: deepspeed}\n",
        "distributed: {strategy: fsdp, fsdp_strategy: shard_grad_op, engine: mpi, timeout_seconds: 5}\n",
        "merge: {enabled: true, method: slerp, models: [{path: a}, {path: b}]}\n",
        "merge: {enabled: true, models: [{path: a}, {path: b, weight: -1}, {path: c}]}\nplugins: {merge_method: m, merge_method_options: [a=1]}\n",
        "signing: {key_file: k, require_provisioned: true}\nplugins: {paths: [x.so], trainer: t, trainer_options: [a=1], isolation: in_process, require_signed: true, rewards: [{name: r}]}\nauth: {}\n",
    ] {
        assert_eq!(refused(more), Vec::<String>::new(), "{more}");
    }
}

#[test]
fn a_default_that_changes_results_is_off_until_it_is_written_and_noted() {
    let loaded = loads(&with(""));
    assert!(!loaded.run.model.load_in_4bit);
    assert_eq!(loaded.run.training.report_to, forgelm_config::ReportTo::Tensorboard);
    let notes: Vec<&str> = loaded.warnings.iter().map(|d| d.key.as_str()).collect();
    assert_eq!(notes, ["model.load_in_4bit"]);
}
