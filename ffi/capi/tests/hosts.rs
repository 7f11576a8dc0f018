//! Programs in C and C++ that use the library: compiled by every compiler that is here, and run on the
//! tiny model.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests make files, and end where something is wrong"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder with the shared library that belongs to this test.
fn libraries() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

/// A folder with the tiny model, 24 conversations, and the library under its name.
fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(root().join("tests/data/golden/models/tiny-llama")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let row = |i: usize| {
        let (color, thing) =
            (["red", "blue", "green"][i % 3], ["stone", "river", "lamp", "bird"][i % 4]);
        serde_json::json!({"messages": [
            {"role": "user", "content": format!("What is item {i}?")},
            {"role": "assistant", "content": format!("Item {i} is a {color} {thing}.")},
        ]})
        .to_string()
    };
    let rows: Vec<String> = (0..24).map(row).collect();
    fs::write(dir.path().join("data.jsonl"), rows.join("\n") + "\n").unwrap();
    for name in ["libforgelm.so", "libforgelm.so.1"] {
        let library = libraries().join("libforgelm_ffi.so");
        std::os::unix::fs::symlink(library, dir.path().join(name)).unwrap();
    }
    dir
}

/// The compilers of a language that are here; in CI both must be.
fn compilers(names: [&'static str; 2]) -> Vec<&'static str> {
    let is_there = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    let found: Vec<&str> = names.into_iter().filter(is_there).collect();
    assert!(!found.is_empty(), "none of {names:?} is here");
    if std::env::var_os("CI").is_some() {
        assert_eq!(found.len(), 2, "CI compiles with {names:?}");
    }
    found
}

/// Runs a command and shows what it printed when it fails.
#[track_caller]
fn expect(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

/// Compiles a program of `ffi` beside the library and runs it there.
#[track_caller]
fn run(compiler: &str, source: &str, flags: &[&str], environment: &[(&str, &str)]) -> String {
    let dir = workplace();
    compile(&dir, compiler, source, flags);
    expect(host(&dir).envs(environment.iter().copied()))
}

/// The program that was compiled, in its folder.
fn host(dir: &TempDir) -> Command {
    let mut command = Command::new(dir.path().join("host"));
    command
        .current_dir(dir.path())
        .env("LD_LIBRARY_PATH", dir.path())
        .env("HOME", dir.path())
        .env("FORGELM_OPERATOR", "host@test");
    command
}

#[track_caller]
fn compile(dir: &TempDir, compiler: &str, source: &str, flags: &[&str]) {
    let standard = if source.ends_with(".c") { "-std=c11" } else { "-std=c++17" };
    let warnings = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-g"];
    expect(
        Command::new(compiler)
            .arg(standard)
            .args(warnings)
            .args(flags)
            .arg("-I")
            .arg(root().join("ffi/include"))
            .arg(root().join("ffi").join(source))
            .arg("-L")
            .arg(dir.path())
            .args(["-lforgelm", "-lpthread", "-lm", "-o"])
            .arg(dir.path().join("host")),
    );
}

#[test]
fn the_headers_compile_alone_and_twice_as_c_and_cpp() {
    let dir = tempfile::tempdir().unwrap();
    let headers = [
        ("forgelm.h", "c", "-std=c11", ["gcc", "clang"]),
        ("forgelm.h", "c++", "-std=c++17", ["g++", "clang++"]),
        ("forgelm.hpp", "c++", "-std=c++17", ["g++", "clang++"]),
        ("forgelm_plugin.h", "c", "-std=c11", ["gcc", "clang"]),
        ("forgelm_plugin.h", "c++", "-std=c++17", ["g++", "clang++"]),
    ];
    for (header, language, standard, names) in headers {
        let source = dir.path().join("twice");
        let line = format!("#include \"{header}\"\n");
        fs::write(&source, format!("{line}{line}int main(void) {{ return 0; }}\n")).unwrap();
        for compiler in compilers(names) {
            expect(
                Command::new(compiler)
                    .args(["-x", language, standard, "-Wall", "-Wextra", "-Werror", "-pedantic"])
                    .arg("-fsyntax-only")
                    .arg("-I")
                    .arg(root().join("ffi/include"))
                    .arg(&source),
            );
        }
    }
}

/// Nothing else is exported, so that two libraries in one program cannot meet.
#[test]
fn the_library_exports_what_the_header_declares() {
    let library = libraries().join("libforgelm_ffi.so");
    let listed = expect(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let exported: BTreeSet<&str> =
        listed.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    let header = fs::read_to_string(root().join("ffi/include/forgelm.h")).unwrap();
    assert_eq!(exported.len(), header.matches(" * Since: ").count());
    for name in exported {
        assert!(name.starts_with("forgelm_") && header.contains(&format!("{name}(")), "{name}");
    }
    let dynamic = expect(Command::new("readelf").arg("-d").arg(&library));
    assert!(dynamic.contains("soname: [libforgelm.so.1]"), "{dynamic}");
}

#[test]
fn a_c_program_trains_resumes_verifies_and_asks() {
    for compiler in compilers(["gcc", "clang"]) {
        assert!(run(compiler, "tests/run.c", &[], &[]).contains("run: ok"));
    }
}

/// Memory that is used after it was freed, beyond its end or never freed. Libraries of plugins stay
/// open for as long as the process, with what they keep.
#[test]
fn fault_111_a_c_program_has_no_error_and_no_leak_under_sanitizers() {
    let suppressions = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        suppressions.path(),
        "leak:forgelm_loader\nleak:ffi/loader/src\nleak:forgelm_plugin\n",
    )
    .unwrap();
    let lsan = format!("suppressions={}", suppressions.path().display());
    let environment =
        [("ASAN_OPTIONS", "detect_leaks=1:fast_unwind_on_malloc=0"), ("LSAN_OPTIONS", &lsan)];
    let flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    assert!(run("gcc", "tests/run.c", &flags, &environment).contains("run: ok"));
}

const CONFIG: &str = "\
model: {name_or_path: model, max_length: 128, load_in_4bit: false}
lora: {r: 4, alpha: 8, target_modules: [q_proj, v_proj]}
training: {output_dir: out, max_steps: 4, per_device_train_batch_size: 4,
           gradient_accumulation_steps: 1, threads: 1, compute_dtype: float32, report_to: none}
data: {dataset_name_or_path: data.jsonl}
";

#[test]
fn the_examples_train_verify_and_serve() {
    let dir = workplace();
    fs::write(dir.path().join("run.yaml"), CONFIG).unwrap();
    compile(&dir, "gcc", "examples/train.c", &[]);
    let said = expect(host(&dir).arg("run.yaml"));
    assert!(said.contains("step 4 of 4") && said.contains("\"success\":true"), "{said}");

    compile(&dir, "gcc", "examples/verify.c", &[]);
    let key = ".config/forgelm/signing.key.pub";
    assert!(expect(host(&dir).args(["out", key])).contains("\"valid\":true"));
    fs::write(dir.path().join("out/metrics.jsonl"), "{}\n").unwrap();
    let changed = host(&dir).args(["out", key]).output().unwrap();
    assert_eq!(changed.status.code(), Some(6));

    compile(&dir, "g++", "examples/serve.cpp", &[]);
    fs::write(dir.path().join("lines"), "Hi\n/adapter out/final_model\nHi\n/adapter no\n").unwrap();
    let lines = fs::File::open(dir.path().join("lines")).unwrap();
    let said = expect(host(&dir).arg("model").stdin(lines));
    assert!(said.contains("[adapter out/final_model]") && said.contains("[no/"), "{said}");
}

#[test]
fn threads_that_train_cancel_and_ask_at_once_get_the_same_bits() {
    for compiler in compilers(["g++", "clang++"]) {
        assert!(run(compiler, "tests/threads.cpp", &[], &[]).contains("threads: ok"));
    }
}
