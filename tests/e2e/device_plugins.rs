//! Merge methods and quantizers on an NVIDIA device, which is emulated: the same bytes as on the
//! processor, by the libraries that ship and by one in C.

use crate::cuda::{on_device, ran};
use crate::merge::{config, with_adapters};
use crate::plugins::compile;
use crate::quantize::with_wide_model;
use crate::support::{Ran, Workplace};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Two adapters, merged on a device as the rest of the sections says.
fn two(device: &str, section: &str) -> String {
    let models = "  models: [{path: all, weight: 0.75}, {path: dora, weight: 0.25}]\n";
    let on = format!("threads: 2\n  device: {device}");
    config("tiny-llama", models).replace("threads: 2", &on).replace("  models:", section)
}

/// Merges on the emulated device, whose libraries are there for the processor's runs too.
fn merged(workplace: &Workplace, text: &str) -> Option<Ran> {
    workplace.write("merge.yaml", text);
    let _ = fs::remove_dir_all(workplace.path("out"));
    on_device(workplace, &["--config", "merge.yaml", "--merge"]).map(ran)
}

fn model(workplace: &Workplace) -> Vec<u8> {
    fs::read(workplace.path("out/model.safetensors")).unwrap()
}

#[test]
fn every_merge_method_gives_the_same_bytes_on_the_device() {
    let workplace = with_adapters();
    for (method, more) in [
        ("linear", ""),
        ("slerp", ""),
        ("slerp", "  slerp_over: deltas\n"),
        ("ties", "  ties_trim_fraction: 0.3\n"),
        ("ties", "  ties_trim_fraction: 0.6\n  ties_variant: paper\n"),
        ("ties", "  ties_trim_fraction: 0.0\n"),
        ("dare", "  dare_drop_rate: 0.4\n"),
        ("dare", "  dare_drop_rate: 1.0\n"),
    ] {
        let section = format!("  method: {method}\n{more}  models:");
        let Some(there) = merged(&workplace, &two("cuda:0", &section)) else { return };
        let expected = format!("`{method}` works on cuda:0/sm_90 (forgelm emulated device");
        there.expect_code(0).expect_stderr(&expected);
        let on_device = model(&workplace);
        workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
        let here = merged(&workplace, &two("cpu", &section)).unwrap().expect_code(0);
        assert!(!here.stderr.contains("cuda"), "{}", here.stderr);
        assert!(model(&workplace) == on_device, "{method} {more}: other bytes on the device");
    }
}

#[test]
fn quantizers_give_the_same_bytes_on_the_device() {
    let workplace = with_wide_model();
    let quantized = |method: &str, device: &str| {
        let _ = fs::remove_dir_all(workplace.path("out"));
        let args = ["quantize", "--model", "wide", "--output", "out", "--method", method];
        let done = ran(on_device(&workplace, &[&args[..], &["--device", device]].concat())?);
        let file = ["out/model.safetensors", "out/wide.q8_0.gguf"].map(|name| workplace.path(name));
        let bytes = file.iter().find_map(|path| fs::read(path).ok());
        Some((done, bytes.unwrap_or_default()))
    };
    for (method, is_there) in [("nf4", true), ("fp4", true), ("int8", true), ("q8_0", false)] {
        let Some((ended, on_device)) = quantized(method, "cuda:0") else { return };
        let expected = if is_there { "cuda:0/sm_90 (" } else { "the processor: it takes no" };
        ended.expect_code(0).expect_stderr(&format!("`{method}` works on {expected}"));
        let (ended, on_processor) = quantized(method, "cpu").unwrap();
        ended.expect_code(0);
        assert!(on_device.len() > 10_000, "{method}: {} bytes", on_device.len());
        assert!(on_processor == on_device, "{method}: other bytes on the device");
    }
    let (refused, _) = quantized("nf4", "cuda:7").unwrap();
    refused.expect_code(2).expect_stderr("there is no CUDA device 7: this machine has 1");
}

/// It puts a copy of its own on the stream. In a process of its own there is no device: what it gets
/// lies on the host, and the bytes are the same.
#[test]
fn a_method_in_c_works_on_the_stream_of_the_program() {
    let workplace = with_adapters();
    compile(&workplace, "examples/merge_on_device.c", "last", &["-Wall", "-Wextra", "-Werror"]);
    let merged_by = |isolation: &str, device: &str| {
        let plugins = format!(
            "plugins: {{paths: [last.so], merge_method: last_c, isolation: {isolation}}}\n"
        );
        merged(&workplace, &(two(device, "  models:") + &plugins))
    };
    let Some(there) = merged_by("in_process", "cuda:0") else { return };
    there
        .expect_code(0)
        .expect_stderr("plugin merge_on_device.c: copies on the device")
        .expect_stderr("`last_c` works on cuda:0/sm_90 (");
    let on_device = model(&workplace);
    let apart = merged_by("auto", "cuda:0").unwrap();
    apart
        .expect_code(0)
        .expect_stderr("plugin merge_on_device.c: copies on the processor")
        .expect_stderr("`last_c` works on the processor: it takes no tensors of cuda:0/sm_90 (");
    assert!(model(&workplace) == on_device, "other bytes in a process of its own");
    let here = merged_by("in_process", "cpu").unwrap();
    here.expect_code(0).expect_stderr("plugin merge_on_device.c: copies on the processor");
    assert!(model(&workplace) == on_device, "other bytes on the processor");

    // The last model is the second adapter alone: what is merged with it does not matter.
    let alone = "  method: linear\n  models: [{path: dora}, {path: dora}]\n";
    let expected = merged(&workplace, &config("tiny-llama", alone)).unwrap();
    expected.expect_code(0);
    assert!(model(&workplace) == on_device, "it is not the last model");
}

/// A bundled library, as it is on disk.
fn bundled(name: &str) -> String {
    let folder = Path::new(env!("CARGO_BIN_EXE_forgelm")).parent().unwrap().join("deps");
    folder.join(format!("libforgelm_plugin_{name}.so")).display().to_string()
}

#[test]
fn plugin_check_tries_tensors_of_the_device_where_there_is_one() {
    let workplace = Workplace::new();
    compile(&workplace, "examples/merge_on_device.c", "last", &[]);
    let (merges, quantizes) = (bundled("merge_method"), bundled("quantizer"));
    for (library, n_methods) in [("last.so", 1), (merges.as_str(), 4), (quantizes.as_str(), 3)] {
        let Some(there) = on_device(&workplace, &["plugin", "check", library]) else { return };
        let done = ran(there).expect_code(0);
        let held = ": gives on a device the bits of the processor\n";
        assert_eq!(done.stdout.matches(held).count(), n_methods, "{}", done.stdout);
        assert!(!done.stdout.contains("untried"), "{}", done.stdout);
    }
    let json = ["plugin", "check", "last.so", "--output-format", "json"];
    let shown = ran(on_device(&workplace, &json).unwrap()).expect_code(0).json();
    assert!(shown["device"].as_str().unwrap().starts_with("cuda:0/sm_"), "{shown}");
    assert_eq!(shown["why_no_device"], Value::Null);
}

#[test]
fn plugin_check_finds_a_method_that_gives_something_else_on_the_device() {
    for (flags, expected) in [
        (&[][..], "element 0 is 0; expected "),
        (&["-DCRASHES"], "its worker died: killed by signal 6 (abort)"),
    ] {
        let workplace = Workplace::new();
        compile(&workplace, "loader/tests/plugins/wrong_on_device.c", "wrong", flags);
        let Some(there) = on_device(&workplace, &["plugin", "check", "wrong.so"]) else { return };
        let done = ran(there).expect_code(1);
        let failed = "FAILED  merge_method last_c: gives on a device the bits of the processor: ";
        done.expect_stdout(&format!("{failed}{expected}"));
    }
}

#[test]
fn plugin_check_says_in_one_line_that_there_was_no_device_to_try() {
    let workplace = Workplace::new();
    compile(&workplace, "loader/tests/plugins/wrong_on_device.c", "wrong", &[]);
    let no_device = "untried tensors of a device: ";
    let done = workplace.forgelm(&["plugin", "check", "wrong.so"]);
    if done.stdout.contains(no_device) {
        let done = done.expect_code(0);
        assert_eq!(done.stdout.matches("a device").count(), 1, "{}", done.stdout);
    } else {
        eprintln!("skipped: this machine has an NVIDIA device");
    }
    // a library without anything that could be tried there
    compile(&workplace, "examples/trainers.c", "trainers", &[]);
    let done = workplace.forgelm(&["plugin", "check", "trainers.so"]).expect_code(0);
    assert!(!done.stdout.contains(no_device), "{}", done.stdout);
}
