//! `forgelm plugin new`: what it writes builds with the system's compilers and conforms as it is.

use crate::support::Workplace;
use std::path::Path;
use std::process::Command;

const KINDS: [&str; 5] = ["trainer", "quantizer", "evaluator", "merge_method", "reward"];

/// Builds a new folder as its README says; one target folder serves all that are in Rust.
fn build(workplace: &Workplace, language: &str, name: &str) -> String {
    let mut command = match language {
        "rust" => {
            let mut cargo = Command::new("cargo");
            cargo.args(["build", "--release", "--offline", "--quiet"]);
            cargo.env("CARGO_TARGET_DIR", workplace.path("target"));
            // The new folder answers for its own warnings.
            cargo.env("RUSTFLAGS", "-Dwarnings");
            cargo
        }
        "c" => {
            let mut make = Command::new("make");
            make.arg("CFLAGS=-O2 -Wall -Wextra -Wpedantic -Werror");
            make
        }
        _ => {
            let mut make = Command::new("make");
            make.arg("CXXFLAGS=-O2 -Wall -Wextra -Wpedantic -Werror");
            make
        }
    };
    let output = command.current_dir(workplace.path(name)).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}:\n{said}");
    match language {
        "rust" => format!("target/release/lib{name}.so"),
        _ => format!("{name}/{name}.so"),
    }
}

#[test]
fn a_new_folder_of_every_kind_in_every_language_builds_and_conforms() {
    let workplace = Workplace::new();
    let mut n_checked = 0;
    for kind in KINDS {
        for language in ["rust", "c", "cpp"] {
            let name = format!("own_{kind}_{language}");
            let args = ["plugin", "new", "--kind", kind, "--lang", language, &name];
            workplace.forgelm(&args).expect_code(0);
            let library = build(&workplace, language, &name);
            let ran = workplace.forgelm(&["plugin", "check", &library]).expect_code(0);
            let lines: Vec<&str> = ran
                .stdout
                .lines()
                .filter(|line| line.contains(&format!("{kind} {name}:")))
                .collect();
            assert!(lines.len() > 3, "{}", ran.stdout);
            assert!(lines.iter().all(|line| line.starts_with("ok ")), "{}", ran.stdout);
            let readme = workplace.read(&format!("{name}/README.md"));
            assert!(readme.contains("## Licence") && !readme.contains("{{"), "{readme}");
            let howto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/howto");
            let pages: Vec<&str> = readme.split("`docs/howto/").skip(1).collect();
            assert_eq!(pages.len(), 2, "{readme}");
            for page in pages {
                let (page, _) = page.split_once('`').unwrap();
                assert!(howto.join(page).is_file(), "{page}");
            }
            assert!(workplace.read(&format!("{name}/LICENSE.forgelm")).contains("Apache License"));
            n_checked += 1;
        }
    }
    assert_eq!(n_checked, 15);
}

/// Built against another shape of one of the host's tables, which it need not even ask for.
#[test]
fn a_plugin_in_rust_whose_service_is_shaped_otherwise_is_refused_with_the_field() {
    let workplace = Workplace::new();
    let args = ["plugin", "new", "--kind", "trainer", "--lang", "rust", "shaped"];
    workplace.forgelm(&args).expect_code(0);
    let abi = "shaped/forgelm_sdk/abi/src/kernels.rs";
    let (before, field) = (workplace.read(abi), "    /// Sum of products");
    assert_eq!(before.matches(field).count(), 1);
    let planted = format!("    /// Planted.\n    pub planted: usize,\n{field}");
    workplace.write(abi, &before.replace(field, &planted));
    let library = build(&workplace, "rust", "shaped");
    let ran = workplace.forgelm(&["plugin", "check", &library]).expect_code(1);
    let expected = "has its fields elsewhere: `forgelm_kernels.dot` is at byte 48, 8 bytes, in a struct \
                    aligned to 8; expected at byte 40, 8 bytes";
    assert!(ran.stderr.contains(expected), "{}", ran.stderr);
}

/// The template's objective is that of `sft`: the tuned adapters are the same, byte for byte.
#[test]
fn a_new_trainer_trains() {
    let ours = Workplace::new();
    ours.run();
    let theirs = Workplace::new();
    let args = ["plugin", "new", "--kind", "trainer", "--lang", "c", "likely"];
    let ran = theirs.forgelm(&args).expect_code(0);
    let said = "likely/ is a trainer for ForgeLM in C\n  cd likely\n  make\n  forgelm plugin check";
    assert!(ran.stdout.starts_with(said), "{}", ran.stdout);
    let library = build(&theirs, "c", "likely");
    let section = format!("plugins: {{paths: [{library}], trainer: likely}}\n");
    theirs.write("run.yaml", &(theirs.read("run.yaml") + &section));
    theirs.run();
    assert!(ours.adapter("out") == theirs.adapter("out"), "other bytes");
}

/// As its README says: the template is the weighted mean, and a model merged with itself is itself.
#[test]
fn a_new_merge_method_merges() {
    let workplace = Workplace::new();
    let args = ["plugin", "new", "--kind", "merge_method", "--lang", "c", "middle"];
    workplace.forgelm(&args).expect_code(0);
    let library = build(&workplace, "c", "middle");
    let section = format!("plugins:\n  paths: [{library}]\n  merge_method: middle\n");
    let readme = workplace.read("middle/README.md");
    assert!(readme.contains(&section), "{readme}");
    let models = "  models: [{path: model, weight: 0.5}, {path: model, weight: 1.5}]\n";
    let text = crate::merge::config("model", models) + &section;
    workplace.write("merge.yaml", &text);
    workplace.forgelm(&["--config", "merge.yaml", "--merge"]).expect_code(0);
    assert!(workplace.read("out/compliance/merge_manifest.json").contains("\"middle\""));
    let file =
        |folder: &str| std::fs::read(workplace.path(folder).join("model.safetensors")).unwrap();
    assert!(file("out") == file("model"), "other bytes");
}

/// As its README says.
#[test]
fn a_new_quantizer_writes_a_model() {
    let workplace = Workplace::new();
    let args = ["plugin", "new", "--kind", "quantizer", "--lang", "c", "coarse"];
    workplace.forgelm(&args).expect_code(0);
    let library = build(&workplace, "c", "coarse");
    let readme = workplace.read("coarse/README.md");
    assert!(readme.contains(&format!("FORGELM_PLUGIN_PATH={library} ")), "{readme}");
    let args = ["quantize", "--model", "model", "--method", "coarse", "--output", "small"];
    let ran = workplace.command(&args).env("FORGELM_PLUGIN_PATH", &library).output().unwrap();
    crate::support::Ran::from(ran).expect_code(0);
    assert!(workplace.read("small/compliance/quantize_manifest.json").contains("\"coarse\""));
}

#[test]
fn what_cannot_be_made_is_refused_and_nothing_is_written() {
    let workplace = Workplace::new();
    let new = |kind: &str, language: &str, name: &str| {
        workplace.forgelm(&["plugin", "new", "--kind", kind, "--lang", language, name])
    };
    workplace.write("taken/mine.txt", "mine");
    let ran = new("trainer", "c", "taken").expect_code(1);
    assert!(ran.stderr.contains("`taken` is there already; nothing was written"), "{}", ran.stderr);
    assert_eq!(std::fs::read_dir(workplace.path("taken")).unwrap().count(), 1);
    for name in ["My-Loss", "../up", "forgelm_x"] {
        let ran = new("trainer", "rust", name).expect_code(1);
        assert!(ran.stderr.contains(&format!("`{name}` is ")), "{}", ran.stderr);
        assert!(!Path::new(&workplace.path(name)).exists());
    }
    let ran = new("optimizer", "c", "x").expect_code(2);
    let kinds = "[possible values: trainer, quantizer, evaluator, merge_method, reward]";
    assert!(ran.stderr.contains(kinds), "{}", ran.stderr);
    let ran = new("trainer", "fortran", "x").expect_code(2);
    assert!(ran.stderr.contains("[possible values: rust, c, cpp]"), "{}", ran.stderr);
    assert!(!workplace.path("x").exists());
}
