//! A merge by a method of a third party: `merge_mean.cpp`, compiled here by the system's compiler
//! against the header alone, and changed copies of it that fail.

use crate::merge::{config, listed, merge, numbers, with_adapters};
use crate::plugins::compile;
use crate::support::{Ran, Workplace};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Two adapters, merged as the `plugins` section says.
fn two(plugins: &str) -> String {
    let models = "  models: [{path: all, weight: 0.75}, {path: dora, weight: 0.25}]\n";
    config("tiny-llama", models) + plugins
}

/// A workplace with adapters and the library of the example.
fn with_mean() -> Workplace {
    let workplace = with_adapters();
    compile(&workplace, "examples/merge_mean.cpp", "mean", &[]);
    workplace
}

/// Compiles the example with each of `edits` made.
fn compile_edited(workplace: &Workplace, name: &str, edits: &[(&str, &str)]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ffi/examples/merge_mean.cpp");
    let mut text = fs::read_to_string(source).unwrap();
    for (from, to) in edits {
        assert_eq!(text.matches(from).count(), 1, "`{from}` in the example");
        text = text.replace(from, to);
    }
    let file = format!("{name}.cpp");
    workplace.write(&file, &text);
    compile(workplace, workplace.path(&file).to_str().unwrap(), name, &[]);
}

fn manifest(workplace: &Workplace) -> Value {
    serde_json::from_str(&workplace.read("out/compliance/merge_manifest.json")).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// In a process of its own, as it comes, and in the program: the same bits, those of `linear` within
/// rounding, and evidence that names the library.
#[test]
fn a_method_in_cpp_merges_as_linear_does_and_the_evidence_names_its_library() {
    let ours = with_adapters();
    merge(&ours, &two("").replace("  models:", "  method: linear\n  models:")).expect_code(0);
    let expected = numbers(ours.path("out/model.safetensors"));

    let merged = |isolation: &str| {
        let workplace = with_mean();
        let plugins = "plugins: {paths: [mean.so], merge_method: mean_cpp, ISOLATION}\n";
        let text = two(&plugins.replace("ISOLATION", isolation));
        workplace.write("merge.yaml", &text);
        let args = ["--config", "merge.yaml", "--merge", "--output-format", "json"];
        let envelope = workplace.forgelm(&args).expect_code(0).json();
        assert_eq!(envelope["method"], "mean_cpp");
        let found = numbers(workplace.path("out/model.safetensors"));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            // Each rounds the same sum once, from terms in another order.
            let bound = f32::EPSILON * expected.abs();
            assert!((found - expected).abs() <= bound, "{found} is not {expected}");
        }
        (workplace, found)
    };
    let (apart, by_worker) = merged("isolation: auto");
    let (whole, in_program) = merged("isolation: in_process");
    assert!(bits(&by_worker) == bits(&in_program), "other bits in a process of its own");

    for (workplace, isolation) in [(&apart, "process"), (&whole, "in_process")] {
        let manifest = manifest(workplace);
        assert_eq!((&manifest["method"], &manifest["options"]), (&json!("mean_cpp"), &json!({})));
        let library = workplace.path("mean.so");
        let sha256 = forgelm_artifact::hash::sha256_file(&library).unwrap().to_string();
        let used = json!([{
            "kind": "merge_method",
            "name": "mean_cpp",
            "library": "example-merge-mean",
            "version": "1.0.0",
            "path": "mean.so",
            "sha256": sha256,
            "isolation": isolation,
            "signature": null,
        }]);
        assert_eq!(manifest["plugins"], used);
        let events = workplace.json_lines("out/audit_log.jsonl");
        assert!(events.iter().any(|event| event["trainer_type"] == "merge:mean_cpp"));
        for check in [
            &["verify-bundle", "out"][..],
            &["verify-audit", "out"],
            &["verify-signature", "out/compliance/merge_manifest.json"],
        ] {
            workplace.forgelm(check).expect_code(0);
        }
    }
    let plan = apart.forgelm(&["--config", "merge.yaml", "--dry-run"]).expect_code(0).stdout;
    assert!(plan.contains("of 2 models by mean_cpp into out, with --merge"), "{plan}");
    apart.forgelm(&["config", "check", "merge.yaml"]).expect_code(0);
}

/// Numbers, flags and words reach the library as they were given, and the manifest has them.
#[test]
fn options_reach_a_foreign_method_and_the_manifest() {
    let workplace = with_adapters();
    let expected = r#"{\"keep\":true,\"share\":0.5,\"way\":\"up\"}"#;
    let takes = format!("!= \"{expected}\")");
    compile_edited(&workplace, "mean", &[("!= \"{}\")", &takes)]);
    let options = "merge_method_options: [keep=true, share=0.5, way=up]";
    let plugins = format!("plugins: {{paths: [mean.so], merge_method: mean_cpp, {options}}}\n");
    merge(&workplace, &two(&plugins)).expect_code(0);
    let options = json!({"keep": true, "share": 0.5, "way": "up"});
    assert_eq!(manifest(&workplace)["options"], options);
}

#[test]
fn a_foreign_method_that_cannot_be_used_is_refused_before_anything_is_written() {
    let workplace = with_mean();
    compile_edited(&workplace, "other", &[("\"example-merge-mean\"", "\"another\"")]);
    let narrow = [("    64,\n    \"mean_cpp\"", "    1,\n    \"mean_one\"")];
    compile_edited(&workplace, "one", &narrow);
    let before = listed(&workplace);
    let refused = |plugins: &str, said: &str| {
        let ran = merge(&workplace, &two(&format!("plugins: {{{plugins}}}\n")));
        ran.expect_code(1).expect_stderr(said);
        assert_eq!(listed(&workplace), before, "{said}: something was written");
    };
    refused(
        "merge_method: mean_cpp",
        "no merge_method plugin is named `mean_cpp`; loaded: dare, linear, slerp, ties",
    );
    refused(
        "paths: [mean.so], merge_method: maen_cpp",
        "loaded: dare, linear, mean_cpp, slerp, ties",
    );
    let both = "two merge_method plugins are named `mean_cpp`: one of example-merge-mean 1.0.0 \
                (mean.so), one of another 1.0.0 (other.so)";
    refused("paths: [mean.so, other.so], merge_method: mean_cpp", both);
    let mean = "paths: [mean.so], merge_method: mean_cpp, merge_method_options:";
    refused(
        &format!("{mean} [beta]"),
        "`plugins.merge_method_options`: `beta`; expected `key=value`",
    );
    refused(
        &format!("{mean} [beta=1]"),
        "`plugins.merge_method`: `mean_cpp` of example-merge-mean 1.0.0 (mean.so): mean_cpp has no options",
    );
    refused(
        "merge_method_options: [beta=1]",
        "`plugins.merge_method_options`: `beta=1` is for no merge method; expected `plugins.merge_method`",
    );
    let one = "the merge method `mean_one` was given 2 models; expected exactly 1";
    refused("paths: [one.so], merge_method: mean_one", one);
}

/// In the middle of the work, after tensors were written: by an exception, and by the end of its
/// process.
#[test]
fn fault_110_a_foreign_method_that_fails_in_the_middle_is_named_and_leaves_nothing() {
    let fails = |at: &str, how: &str, isolation: &str| -> (Ran, Workplace) {
        let workplace = with_adapters();
        let (from, raised) = (
            "throw std::invalid_argument(\"not as many inputs as weights\");",
            "throw std::runtime_error(\"it broke\");",
        );
        let condition =
            format!("std::string_view(piece->tensor->name.ptr, piece->tensor->name.len) == {at}");
        let how = if how.is_empty() { raised } else { how };
        let edits = [("piece->n_inputs != self.weights.size()", &*condition), (from, how)];
        compile_edited(&workplace, "mean", &edits);
        let plugins = format!(
            "plugins: {{paths: [mean.so], merge_method: mean_cpp, isolation: {isolation}}}\n"
        );
        workplace.write("merge.yaml", &two(&plugins));
        let before = listed(&workplace);
        let ran = workplace.forgelm(&["--config", "merge.yaml", "--merge"]);
        assert_eq!(listed(&workplace), before, "something was left");
        (ran, workplace)
    };
    // Which of the threads is heard is left open; all of them know who broke.
    let by =
        "the merge method gave up: merge_method `mean_cpp` of example-merge-mean 1.0.0 (mean.so): ";
    for (how, isolation, said) in [
        ("", "auto", "it broke; nothing was written"),
        ("", "in_process", "it broke; nothing was written"),
        ("__builtin_trap();", "auto", "killed by signal"),
    ] {
        let (ran, _workplace) = fails("\"model.layers.1.mlp.up_proj.weight\"", how, isolation);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(by), "no `{by}` in:\n{}", ran.stderr);
        assert!(ran.stderr.contains(said), "no `{said}` in:\n{}", ran.stderr);
    }
}
