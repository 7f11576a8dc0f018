//! Merging: adapters and models into one, its evidence, and what is refused.

use crate::support::{Ran, Workplace, data_dir};
use forgelm_artifact::safetensors::SafetensorsFile;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// A merge of `models`, given as lines of YAML, over `base`.
pub fn config(base: &str, merge: &str) -> String {
    format!(
        "model:\n  name_or_path: {base}\nlora: {{}}\ntraining:\n  threads: 2\ndata:\n  \
         dataset_name_or_path: none.jsonl\nmerge:\n  enabled: true\n  output_dir: out\n{merge}"
    )
}

/// A workplace whose base is `tiny-llama`, with the adapters that PEFT trained on it.
pub fn with_adapters() -> Workplace {
    let workplace = Workplace::new();
    workplace.copy_model("tiny-llama");
    for case in ["all", "dora", "rslora"] {
        let from = data_dir().join("golden/lora/tiny-llama").join(case).join("final");
        let to = workplace.path(case);
        fs::create_dir(&to).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }
    workplace
}

fn golden_model(name: &str) -> String {
    data_dir().join("golden/merge/models").join(name).canonicalize().unwrap().display().to_string()
}

pub fn merge(workplace: &Workplace, config: &str) -> Ran {
    workplace.write("merge.yaml", config);
    workplace.forgelm(&["--config", "merge.yaml", "--merge"])
}

fn score(workplace: &Workplace, model: &[&str]) -> Vec<f64> {
    let row = json!({"input_ids": [5, 90, 17, 230, 44, 61, 300, 12]}).to_string();
    workplace.write("in.jsonl", &row);
    let args = ["score", "--input", "in.jsonl", "--output", "scores.jsonl"];
    let more = ["--compute-dtype", "float32", "--model"];
    workplace.forgelm(&[&args[..], &more, model].concat()).expect_code(0);
    let row = workplace.json_lines("scores.jsonl").remove(0);
    row["logprobs"].as_array().unwrap()[1..].iter().map(|l| l.as_f64().unwrap()).collect()
}

fn assert_near(a: &[f64], b: &[f64], bound: f64) {
    assert_eq!(a.len(), b.len());
    let distance = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(distance <= bound, "{distance} apart:\n{a:?}\n{b:?}");
}

/// The numbers of a file of tensors, end to end by name.
pub fn numbers(path: PathBuf) -> Vec<f32> {
    let file = SafetensorsFile::open(&path).unwrap();
    file.names().flat_map(|name| file.tensor(name).unwrap().to_f32().unwrap()).collect()
}

/// The same adapter twice is the adapter: plain, rank-stabilized and with magnitudes.
#[test]
fn an_adapter_merged_with_itself_is_the_adapter() {
    for case in ["all", "rslora", "dora"] {
        let workplace = with_adapters();
        let models = format!("  method: linear\n  models: [{{path: {case}}}, {{path: {case}}}]\n");
        merge(&workplace, &config("tiny-llama", &models)).expect_code(0);
        let whole = score(&workplace, &["out"]);
        assert_near(&whole, &score(&workplace, &["tiny-llama", "--adapter", case]), 2e-5);
        let base = score(&workplace, &["tiny-llama"]);
        assert!(whole.iter().zip(&base).any(|(a, b)| (a - b).abs() > 1e-3), "{case}: no change");
    }
}

#[test]
fn models_merge_as_mergekit_merges_them() {
    let workplace = Workplace::new();
    let [base, a, b] = ["base", "a", "b"].map(golden_model);
    let cases = [
        (
            "linear",
            format!(
                "  method: linear\n  models:\n    - {{path: {base}, weight: 0.2}}\n    \
                 - {{path: {a}, weight: 0.5}}\n    - {{path: {b}, weight: 0.3}}\n"
            ),
        ),
        (
            "slerp",
            format!(
                "  method: slerp\n  models: [{{path: {a}, weight: 0.65}}, \
                 {{path: {b}, weight: 0.35}}]\n"
            ),
        ),
        (
            "ties",
            format!(
                "  method: ties\n  ties_trim_fraction: 0.5\n  ties_variant: paper\n  models: \
                 [{{path: {a}}}, {{path: {b}}}]\n"
            ),
        ),
    ];
    for (case, merge_section) in cases {
        let ran = merge(&workplace, &config(&base, &merge_section)).expect_code(0);
        ran.expect_stderr("has no tokenizer");
        let found = numbers(workplace.path("out/model.safetensors"));
        let expected = data_dir().join("golden/merge").join(case).join("merged.safetensors");
        let expected = numbers(expected);
        assert_eq!(found.len(), expected.len());
        let distance = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(distance <= 1e-5, "{case}: {distance}");
        assert_eq!(
            fs::read(workplace.path("out/config.json")).unwrap(),
            fs::read(format!("{base}/config.json")).unwrap()
        );
        fs::remove_dir_all(workplace.path("out")).unwrap();
    }
}

const TWO: &str =
    "  method: ties\n  models: [{path: all, weight: 0.75}, {path: dora, weight: 0.25}]\n";

#[test]
fn the_evidence_names_what_went_in_and_verifies() {
    let workplace = with_adapters();
    workplace.write("merge.yaml", &config("tiny-llama", TWO));
    let args = ["--config", "merge.yaml", "--merge", "--output-format", "json"];
    let envelope = workplace.forgelm(&args).expect_code(0).json();
    for (key, expected) in [
        ("success", json!(true)),
        ("method", json!("ties")),
        ("num_models", json!(2)),
        ("output_dir", json!("out")),
        ("error", Value::Null),
    ] {
        assert_eq!(envelope[key], expected, "{key}");
    }
    let manifest: Value =
        serde_json::from_str(&workplace.read("out/compliance/merge_manifest.json")).unwrap();
    assert_eq!(manifest["options"], json!({"trim_fraction": 0.2, "variant": "votes"}));
    let model = &manifest["models"][0];
    assert_eq!((&model["path"], &model["kind"]), (&json!("all"), &json!("adapter")));
    assert_eq!(model["weight"], 0.75);
    let sha256 = |path: &str| {
        let path = workplace.path(path);
        forgelm_artifact::hash::sha256_file(&path).unwrap().to_string()
    };
    assert_eq!(model["files"][1]["sha256"], json!(sha256("all/adapter_model.safetensors")));
    let base = &manifest["base"]["files"];
    assert_eq!(base[1]["sha256"], json!(sha256("tiny-llama/model.safetensors")));
    let outputs = manifest["outputs"].as_array().unwrap();
    let named = |name: &str| outputs.iter().find(|file| file["name"] == name).cloned();
    let weights = named("model.safetensors").unwrap();
    assert_eq!(weights["sha256"], json!(sha256("out/model.safetensors")));
    assert!(named("tokenizer.json").is_some());
    for check in [
        &["verify-bundle", "out"][..],
        &["verify-audit", "out"],
        &["verify-signature", "out/compliance/merge_manifest.json"],
    ] {
        workplace.forgelm(check).expect_code(0);
    }
    workplace.write("out/model-00002-of-00002.safetensors", "planted");
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(6);
    fs::remove_file(workplace.path("out/model-00002-of-00002.safetensors")).unwrap();
    let mut bytes = fs::read(workplace.path("out/model.safetensors")).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(workplace.path("out/model.safetensors"), bytes).unwrap();
    let ran = workplace.forgelm(&["verify-bundle", "out"]).expect_code(6);
    assert!(ran.stdout.contains("model.safetensors") || ran.stderr.contains("model.safetensors"));
}

#[test]
fn the_same_merge_gives_the_same_bytes() {
    let workplace = with_adapters();
    let dare = "  method: dare\n  models: [{path: all}, {path: dora}]\n";
    let merged = |threads: usize, seed: u64| {
        let text = config("tiny-llama", &format!("{dare}  dare_seed: {seed}\n"));
        merge(&workplace, &text.replace("threads: 2", &format!("threads: {threads}")))
            .expect_code(0);
        let bytes = fs::read(workplace.path("out/model.safetensors")).unwrap();
        fs::remove_dir_all(workplace.path("out")).unwrap();
        bytes
    };
    let one = merged(1, 42);
    assert!(one == merged(5, 42), "another number of threads");
    assert!(one != merged(1, 43), "another seed");
}

/// Passes, facts and pieces cross to the process of a method, from several threads, and change nothing.
#[test]
fn a_method_in_a_process_of_its_own_gives_the_same_bytes() {
    for method in ["linear", "slerp", "ties", "dare"] {
        let models = format!(
            "  method: {method}\n  models: [{{path: all, weight: 0.7}}, {{path: rslora}}]\n"
        );
        let of = |more: &str| {
            let workplace = with_adapters();
            merge(&workplace, &(config("tiny-llama", &models) + more)).expect_code(0);
            numbers(workplace.path("out/model.safetensors"))
        };
        let (here, apart) = (of(""), of("plugins: {isolation: process}\n"));
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&here) == bits(&apart), "{method}: other bytes");
    }
}

#[test]
fn what_cannot_be_merged_is_refused_with_both_sides() {
    let workplace = with_adapters();
    let text = workplace.read("all/adapter_config.json").replace("tiny-llama", "org/other-7b");
    workplace.copy_model("other");
    workplace.write("foreign/adapter_config.json", &text);
    let changed = workplace.read("other/tokenizer.json").replacen("\"<|unk|>\"", "\"<|nil|>\"", 2);
    workplace.write("other/tokenizer.json", &changed);
    workplace.copy_model("wider");
    let changed = workplace.read("wider/config.json");
    let changed = changed.replace("\"intermediate_size\": 96", "\"intermediate_size\": 192");
    workplace.write("wider/config.json", &changed);
    let models = |list: &str| format!("  method: linear\n  models: [{list}]\n");
    let cases = [
        (models("{path: all}"), "has 1; expected at least 2"),
        (models("{path: all, weight: 1}, {path: all, weight: -1}"), "sum to 0"),
        (models("{path: all, weight: .nan}, {path: all}"), "`merge.models[0].weight`"),
        (models("{weight: 1}, {path: all}"), "path"),
        (
            "  method: slerp\n  models: [{path: all}, {path: dora}, {path: rslora}]\n".to_owned(),
            "has 3; expected exactly 2",
        ),
        (models("{path: all}, {path: nowhere/at/all}"), "nowhere/at/all"),
        (
            models("{path: all}, {path: foreign}"),
            "is an adapter for `org/other-7b`; expected one for `tiny-llama`",
        ),
        (models("{path: all}, {path: other}"), "another tokenizer than the base: token 4 is"),
        (models("{path: all}, {path: wider}"), "is of another architecture: `intermediate_size`"),
        (models("{path: all}, {path: all}").replace("linear", "mean"), "mean"),
    ];
    for (section, said) in cases {
        let ran = merge(&workplace, &config("tiny-llama", &section));
        ran.expect_code(1).expect_stderr(said);
        assert!(!workplace.path("out").exists(), "{said}: something was written");
    }
    let ran = merge(&workplace, &config("all", &models("{path: all}, {path: dora}")));
    ran.expect_code(1).expect_stderr("`all` is an adapter; expected the base model");
    let off = config("tiny-llama", TWO).replace("enabled: true", "enabled: false");
    merge(&workplace, &off).expect_code(1).expect_stderr("`merge.enabled` is not true");
    let args = ["--config", "merge.yaml", "--merge", "--output-format", "json"];
    let envelope = workplace.forgelm(&args).expect_code(1).json();
    assert_eq!((&envelope["success"], &envelope["method"]), (&json!(false), &json!("ties")));
    assert_eq!(envelope["num_models"], 2);
    assert!(envelope["error"].as_str().unwrap().contains("merge.enabled"));
}

#[test]
fn a_folder_in_use_is_left_alone_and_a_failed_merge_leaves_nothing() {
    let workplace = with_adapters();
    workplace.write("out/notes.txt", "mine");
    let ran = merge(&workplace, &config("tiny-llama", TWO)).expect_code(1);
    ran.expect_stderr("is not empty: it has `notes.txt`");
    assert_eq!(workplace.read("out/notes.txt"), "mine");
    fs::remove_file(workplace.path("out/notes.txt")).unwrap();
    let inside = config("tiny-llama", TWO).replace("output_dir: out", "output_dir: tiny-llama/new");
    merge(&workplace, &inside).expect_code(1).expect_stderr("lies in the input");

    // A value that is no number is found while the result is being written.
    let path = workplace.path("tiny-llama/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let before = listed(&workplace);
    merge(&workplace, &config("tiny-llama", TWO)).expect_code(6).expect_stderr("has the value NaN");
    assert_eq!(listed(&workplace), before, "something was left");
    assert_eq!(fs::read_dir(workplace.path("out")).unwrap().count(), 0);
}

pub fn listed(workplace: &Workplace) -> Vec<String> {
    let entries = fs::read_dir(workplace.path(".")).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    // A key that is made on first use lies in the home.
    names.retain(|name| name != "merge.yaml" && name != "home");
    names.sort();
    names
}

#[test]
fn a_missing_tensor_is_named() {
    let workplace = Workplace::new();
    let [base, a] = ["base", "a"].map(golden_model);
    let copy = workplace.path("copy");
    fs::create_dir(&copy).unwrap();
    fs::copy(format!("{a}/config.json"), copy.join("config.json")).unwrap();
    let bytes = fs::read(format!("{a}/model.safetensors")).unwrap();
    let name: &[u8] = b"model.norm.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    let mut bytes = bytes;
    bytes[at..at + name.len()].copy_from_slice(b"model.warm.weight");
    fs::write(copy.join("model.safetensors"), bytes).unwrap();
    let section = format!("  method: linear\n  models: [{{path: {a}}}, {{path: copy}}]\n");
    let ran = merge(&workplace, &config(&base, &section)).expect_code(1);
    ran.expect_stderr("copy: tensor `model.norm.weight` is missing");
}
