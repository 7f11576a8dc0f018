//! The header and the Rust types, compared by the compilers of this machine: C11 and C++17.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test, which writes sources")]

use forgelm_abi::{EXTENSION_LAYOUTS, LAYOUT_HASH, LAYOUTS};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn include() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../include")
}

fn header() -> String {
    fs::read_to_string(include().join("forgelm_plugin.h")).unwrap()
}

/// Compiles a text, with every warning an error.
fn compile(compiler: &str, extension: &str, standard: &str, text: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join(format!("source.{extension}"));
    fs::write(&source, text).unwrap();
    Command::new(compiler)
        .args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"])
        .arg("-I")
        .arg(include())
        .arg("-c")
        .arg(&source)
        .arg("-o")
        .arg(dir.path().join("object.o"))
        .output()
        .unwrap_or_else(|e| panic!("{compiler}: {e}; the plugin tests need a C and a C++ compiler"))
}

#[track_caller]
fn must_compile(text: &str) {
    for (compiler, extension, standard) in
        [("cc", "c", "-std=c11"), ("c++", "cpp", "-std=c++17"), ("c++", "cpp", "-std=c++20")]
    {
        let output = compile(compiler, extension, standard, text);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{compiler} {standard}:\n{said}");
    }
}

/// The numbers of the Rust types, as assertions of the header.
fn assertions() -> String {
    let mut text = "#include \"forgelm_plugin.h\"\n\
                    #ifdef __cplusplus\n#define ASSERT static_assert\n#define ALIGN alignof\n#else\n\
                    #define ASSERT _Static_assert\n#define ALIGN _Alignof\n#endif\n"
        .to_owned();
    for layout in LAYOUTS.iter().chain(EXTENSION_LAYOUTS) {
        let name = layout.name;
        let _ = writeln!(text, "ASSERT(sizeof({name}) == {}, \"size of {name}\");", layout.size);
        let _ = writeln!(text, "ASSERT(ALIGN({name}) == {}, \"align of {name}\");", layout.align);
        for field in layout.fields {
            let (field, offset, size) = (field.name, field.offset, field.size);
            let _ = writeln!(
                text,
                "ASSERT(offsetof({name}, {field}) == {offset} && sizeof((({name} *)0)->{field}) == \
                 {size}, \"{name}.{field}\");"
            );
        }
    }
    for (name, value) in constants() {
        let _ = writeln!(text, "ASSERT({name} == {value}, \"{name}\");");
    }
    text
}

/// Every number that both sides know.
fn constants() -> Vec<(&'static str, String)> {
    use forgelm_abi::{ABI_MAJOR, ABI_MINOR, DEVICE_CPU, DEVICE_CUDA, MAGIC, trainer_needs};
    use forgelm_abi::{
        dtype_code, election, gemm_layout, log_level, merge_scope, records, role, status, write,
    };
    let signed = [
        ("FORGELM_OK", status::OK),
        ("FORGELM_E_CANCELLED", status::CANCELLED),
        ("FORGELM_E_INVALID_ARGUMENT", status::INVALID_ARGUMENT),
        ("FORGELM_E_DEADLINE", status::DEADLINE),
        ("FORGELM_E_OUT_OF_MEMORY", status::OUT_OF_MEMORY),
        ("FORGELM_E_UNIMPLEMENTED", status::UNIMPLEMENTED),
        ("FORGELM_E_INTERNAL", status::INTERNAL),
        ("FORGELM_E_PANIC", status::PANIC),
        ("FORGELM_DEVICE_CPU", DEVICE_CPU),
        ("FORGELM_DEVICE_CUDA", DEVICE_CUDA),
    ];
    let unsigned = [
        ("FORGELM_PLUGIN_ABI_MAJOR", ABI_MAJOR),
        ("FORGELM_PLUGIN_ABI_MINOR", ABI_MINOR),
        ("FORGELM_LOG_DEBUG", log_level::DEBUG),
        ("FORGELM_LOG_INFO", log_level::INFO),
        ("FORGELM_LOG_WARNING", log_level::WARNING),
        ("FORGELM_LOG_ERROR", log_level::ERROR),
        ("FORGELM_DTYPE_INT", dtype_code::INT.into()),
        ("FORGELM_DTYPE_UINT", dtype_code::UINT.into()),
        ("FORGELM_DTYPE_FLOAT", dtype_code::FLOAT.into()),
        ("FORGELM_DTYPE_BFLOAT", dtype_code::BFLOAT.into()),
        ("FORGELM_ROLE_SOLE", role::SOLE),
        ("FORGELM_ROLE_CHOSEN", role::CHOSEN),
        ("FORGELM_ROLE_REJECTED", role::REJECTED),
        ("FORGELM_ROLE_KL", role::KL),
        ("FORGELM_ROLE_ROLLOUT", role::ROLLOUT),
        ("FORGELM_RECORDS_TEXT", records::TEXT),
        ("FORGELM_RECORDS_PREFERENCE", records::PREFERENCE),
        ("FORGELM_RECORDS_LABELLED", records::LABELLED),
        ("FORGELM_RECORDS_PROMPT", records::PROMPT),
        ("FORGELM_TRAINER_NEEDS_REFERENCE", trainer_needs::REFERENCE),
        ("FORGELM_TRAINER_NEEDS_ROLLOUTS", trainer_needs::ROLLOUTS),
        ("FORGELM_TRAINER_NEEDS_PROMPTS", trainer_needs::PROMPTS),
        ("FORGELM_TRAINER_NEEDS_DROPOUT", trainer_needs::DROPOUT),
        ("FORGELM_MERGE_SCOPE_ELEMENTS", merge_scope::ELEMENTS),
        ("FORGELM_MERGE_SCOPE_TENSOR", merge_scope::TENSOR),
        ("FORGELM_GEMM_NN", gemm_layout::NN),
        ("FORGELM_GEMM_NT", gemm_layout::NT),
        ("FORGELM_GEMM_TN", gemm_layout::TN),
        ("FORGELM_WRITE_REPLACE", write::REPLACE),
        ("FORGELM_WRITE_ADD", write::ADD),
        ("FORGELM_ELECTION_VOTES", election::VOTES),
        ("FORGELM_ELECTION_SUM", election::SUM),
    ];
    let mut all: Vec<_> = signed.map(|(name, value)| (name, value.to_string())).into();
    all.extend(unsigned.map(|(name, value)| (name, format!("{value}u"))));
    all.push(("FORGELM_PLUGIN_MAGIC", format!("UINT64_C({MAGIC})")));
    all.push(("FORGELM_PLUGIN_LAYOUT_HASH", format!("UINT64_C({LAYOUT_HASH})")));
    all
}

#[test]
fn the_header_has_the_hash_of_the_rust_types() {
    let line = format!("#define FORGELM_PLUGIN_LAYOUT_HASH UINT64_C({LAYOUT_HASH:#018x})");
    assert!(header().contains(&line), "the header lacks `{line}`");
}

#[test]
fn header_and_types_are_the_same_in_c_and_cpp() {
    must_compile(&assertions());
}

#[test]
fn canary_a_field_in_another_place_is_found() {
    let text = assertions();
    let wrong = text
        .replace("offsetof(forgelm_scored, logp) == ", "offsetof(forgelm_scored, logp) == 8 + ");
    assert_ne!(text, wrong);
    let output = compile("cc", "c", "-std=c11", &wrong);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("forgelm_scored.logp"), "{said}");
}

/// Each once, those of the services too.
#[test]
fn the_witness_has_every_field() {
    let layouts = LAYOUTS.iter().chain(EXTENSION_LAYOUTS);
    let n_fields: usize = layouts.map(|layout| layout.fields.len()).sum();
    assert_eq!(forgelm_abi::WITNESS.n_fields, n_fields);
    assert!(n_fields > 230, "{n_fields}");
}

#[test]
fn every_struct_and_constant_of_the_header_is_compared() {
    let header = header();
    let structs = header.matches("\ntypedef struct forgelm_").count();
    assert_eq!(structs, LAYOUTS.len() + EXTENSION_LAYOUTS.len());
    let defined: Vec<&str> = header
        .lines()
        .filter_map(|line| line.strip_prefix("#define "))
        .filter_map(|rest| rest.split_once(' '))
        .filter(|(_, value)| value.trim().starts_with(|c: char| c.is_ascii_digit() || c == 'U'))
        .map(|(name, _)| name)
        .collect();
    let known = constants();
    for name in &defined {
        assert!(known.iter().any(|(other, _)| other == name), "`{name}` is compared with nothing");
    }
    assert_eq!(defined.len(), known.len());
}

#[test]
fn the_ids_of_factories_and_services_are_those_of_the_header() {
    use forgelm_abi::{
        DEVICE_KERNELS, GENERATE, HELD_OUT, KERNELS, MERGE_METHOD_ON_DEVICE, QUANTIZER_ON_DEVICE,
        RNG, SCORE,
    };
    use forgelm_abi::{
        EVALUATOR_FACTORY, MERGE_METHOD_FACTORY, QUANTIZER_FACTORY, REWARD_FACTORY, TRAINER_FACTORY,
    };
    let header = header();
    for (name, id) in [
        ("FORGELM_TRAINER_FACTORY", TRAINER_FACTORY),
        ("FORGELM_MERGE_METHOD_FACTORY", MERGE_METHOD_FACTORY),
        ("FORGELM_QUANTIZER_FACTORY", QUANTIZER_FACTORY),
        ("FORGELM_EVALUATOR_FACTORY", EVALUATOR_FACTORY),
        ("FORGELM_REWARD_FACTORY", REWARD_FACTORY),
        ("FORGELM_SCORE", SCORE),
        ("FORGELM_GENERATE", GENERATE),
        ("FORGELM_HELD_OUT", HELD_OUT),
        ("FORGELM_RNG", RNG),
        ("FORGELM_KERNELS", KERNELS),
        ("FORGELM_DEVICE_KERNELS", DEVICE_KERNELS),
        ("FORGELM_MERGE_METHOD_ON_DEVICE", MERGE_METHOD_ON_DEVICE),
        ("FORGELM_QUANTIZER_ON_DEVICE", QUANTIZER_ON_DEVICE),
    ] {
        let line = format!("#define {name} \"{}\"", id.to_str().unwrap());
        assert!(header.contains(&line), "the header lacks `{line}`");
    }
}

/// Thread, Ownership, Errors, Since: each function of the header has all four.
#[test]
fn every_function_has_its_four_marks() {
    let header = header();
    let lines: Vec<&str> = header.lines().collect();
    let is_function = |line: &str| line.contains("(*") && line.starts_with("    ");
    let mut n_functions = 0;
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| is_function(line)) {
        n_functions += 1;
        let comment: Vec<&str> = lines[..number]
            .iter()
            .rev()
            .skip_while(|line| line.trim().is_empty())
            .take_while(|line| line.trim_start().starts_with(['*', '/']))
            .copied()
            .collect();
        for mark in ["Thread:", "Ownership:", "Errors:", "Since:"] {
            let has = comment.iter().any(|line| line.contains(mark));
            assert!(has, "forgelm_plugin.h:{}: no `{mark}` before `{}`", number + 1, line.trim());
        }
    }
    assert_eq!(n_functions, 94, "the functions are not found");
}

/// A host in C may well have plugins of its own.
#[test]
fn both_headers_can_be_included_together() {
    must_compile("#include \"forgelm.h\"\n#include \"forgelm_plugin.h\"\nint forgelm_test_x;\n");
    must_compile("#include \"forgelm_plugin.h\"\n#include \"forgelm.h\"\nint forgelm_test_x;\n");
}

/// C++17 refuses a function that may throw where a table wants one that does not.
#[test]
fn a_cpp_function_that_may_throw_does_not_fit_into_a_table() {
    let text = |noexcept: &str| {
        format!(
            "#include \"forgelm_plugin.h\"\nstatic void destroy(const forgelm_trainer *) {noexcept} \
             {{}}\nforgelm_trainer t = {{sizeof t, 0, nullptr, destroy, nullptr, nullptr}};\n"
        )
    };
    let output = compile("c++", "cpp", "-std=c++17", &text("noexcept"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = compile("c++", "cpp", "-std=c++17", &text(""));
    assert!(!output.status.success(), "a function that may throw was taken");
}
