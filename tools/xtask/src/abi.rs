//! `cargo xtask abi [--update]`: what the headers promise, compared with the record of the last
//! release. Needs a C compiler and libabigail (`abidw`, `abidiff`).
//!
//! A Rust library shows libabigail none of its structs, so a stub is compared: a C library with a body
//! for every function that a header declares. Removals and changes fail; additions are fine. Each time a
//! change is planted too, which must be found: a gate that sees nothing would pass.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Headers, and the records of them.
const RECORDS: [(&str, &str); 2] = [
    ("forgelm.h", "ffi/abi_record/forgelm.abi"),
    ("forgelm_plugin.h", "ffi/abi_record/plugin.abi"),
];

/// Text of a header, and what takes its place in a change that must be found.
const PLANTED: [(&str, &str, &str); 3] = [
    ("forgelm.h", "    uint64_t n_steps;", "    uint32_t n_steps;"),
    ("forgelm.h", "size_t n_tokens, char **out_text", "char **out_text"),
    ("forgelm_plugin.h", "    uint32_t abi_major;", "    uint64_t abi_major;"),
];

/// Compares, or writes the records.
pub fn run(arguments: &[String]) -> Result<(), String> {
    let is_update = match arguments {
        [] => false,
        [flag] if flag == "--update" => true,
        _ => return Err("usage: cargo xtask abi [--update]".to_owned()),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let work = std::env::temp_dir().join(format!("forgelm-abi-{}", std::process::id()));
    fs::create_dir_all(&work).map_err(|error| format!("{}: {error}", work.display()))?;
    let result = compare(&root, &work, is_update);
    let _ = fs::remove_dir_all(&work);
    result
}

fn compare(root: &Path, work: &Path, is_update: bool) -> Result<(), String> {
    for (name, record) in RECORDS {
        let path = root.join("ffi/include").join(name);
        let text = read(&path)?;
        let now = recorded(&text, work)?;
        let record = root.join(record);
        if is_update {
            fs::create_dir_all(record.parent().unwrap_or(root)).map_err(|e| e.to_string())?;
            fs::copy(&now, &record).map_err(|error| format!("{}: {error}", record.display()))?;
            println!("{name}: recorded");
            continue;
        }
        if let Some(difference) = difference(&record, &now)? {
            return Err(format!(
                "{name} differs from its last release:\n{difference}\nwhat was promised may only grow"
            ));
        }
        for (_, from, to) in PLANTED.iter().filter(|(of, _, _)| *of == name) {
            if !text.contains(from) {
                return Err(format!("{name}: no `{from}`, which the planted change is made of"));
            }
            let planted = recorded(&text.replacen(from, to, 1), work)?;
            if difference(&record, &planted)?.is_none() {
                return Err(format!("{name}: the planted change to `{to}` was not found"));
            }
        }
        println!("{name}: as it was released, and planted changes are found");
    }
    Ok(())
}

/// What libabigail says of a stub library for a header.
fn recorded(header: &str, work: &Path) -> Result<PathBuf, String> {
    let (source, library, record) =
        (work.join("stub.c"), work.join("stub.so"), work.join("stub.abi"));
    write(&source, &stub(header))?;
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-g", "-O0", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    run_tool(&mut cc)?;
    let mut abidw = Command::new("abidw");
    abidw
        .args(["--no-corpus-path", "--no-comp-dir-path", "--no-show-locs", "--load-all-types"])
        .arg("--out-file")
        .arg(&record)
        .arg(&library);
    run_tool(&mut abidw)?;
    Ok(record)
}

/// The header with a body for every function, and something that uses each of its structs.
fn stub(header: &str) -> String {
    let mut text = String::new();
    let mut structs = Vec::new();
    // Comments go first: they hold semicolons.
    let mut code = String::new();
    let mut rest = header;
    while let Some((before, after)) = rest.split_once("/*") {
        code.push_str(before);
        rest = after.split_once("*/").map_or("", |(_, after)| after);
    }
    code.push_str(rest);
    // What only C++ sees has braces of its own.
    while let Some((before, after)) = code.split_once("#ifdef __cplusplus\n") {
        let after = after.split_once("#endif").map_or("", |(_, after)| after);
        code = format!("{before}{after}");
    }
    for line in code.lines() {
        if let Some(name) = line.strip_prefix("struct ").and_then(|rest| rest.strip_suffix(" {")) {
            structs.push(name.to_owned());
        }
        if let Some(rest) = line.strip_prefix("typedef struct ")
            && let Some(name) = rest.strip_suffix(" {")
        {
            structs.push(name.to_owned());
        }
    }
    let mut depth = 0_usize;
    let mut statement = String::new();
    for line in code.lines() {
        if line.starts_with('#') && statement.trim().is_empty() {
            text.push_str(&std::mem::take(&mut statement));
            text.push_str(line);
            text.push('\n');
            continue;
        }
        for c in line.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if c == ';' && depth == 0 {
                let is_function = statement.contains('(')
                    && !statement.contains('{')
                    && !statement.contains("typedef")
                    && !statement.trim_start().starts_with("static")
                    && !statement.contains('=');
                text.push_str(&statement);
                text.push_str(if is_function { " { __builtin_trap(); }" } else { ";" });
                statement.clear();
            } else {
                statement.push(c);
            }
        }
        statement.push('\n');
    }
    text.push_str(&statement);
    for name in structs {
        text.push_str(&format!("\nstruct {name} *stub_of_{name}(void) {{ return 0; }}"));
    }
    text + "\n"
}

/// What was removed or changed, in words; none where things were only added.
fn difference(old: &Path, new: &Path) -> Result<Option<String>, String> {
    let output = Command::new("abidiff")
        .args(["--no-added-syms", "--non-reachable-types"])
        .args([old, new])
        .output()
        .map_err(|error| format!("abidiff: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let code = output.status.code().unwrap_or(-1);
    // 1 and 2: it did not work; 4: something changed; 8: incompatibly.
    if code & 3 != 0 {
        return Err(format!("abidiff: {}{said}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok((code != 0 && !said.trim().is_empty()).then_some(said))
}

fn run_tool(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
