//! Chooses the instruction sets that kernels are compiled for: all of the target's, or those that
//! `FORGELM_INSTRUCTION_SETS` names (`avx512bf16`, say), which builds several times faster.

#![expect(clippy::disallowed_methods, reason = "a build script reads what cargo tells it")]

use std::env::var;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=FORGELM_INSTRUCTION_SETS");
    let of_target: &[&str] = match var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => &["avx512bf16", "avx512", "avx2"],
        Ok("aarch64") => &["neon"],
        _ => &[],
    };
    let asked = var("FORGELM_INSTRUCTION_SETS").unwrap_or_else(|_| "all".to_owned());
    let asked: Vec<&str> = asked.split(',').collect();
    for set in &asked {
        // plain code is always there
        let known = ["all", "plain"].contains(set) || of_target.contains(set);
        assert!(known, "FORGELM_INSTRUCTION_SETS: `{set}` is none of {of_target:?}, plain, all");
    }
    println!(
        "cargo:rustc-check-cfg=cfg(isa, values(\"avx512bf16\", \"avx512\", \"avx2\", \"neon\"))"
    );
    for set in of_target {
        if asked.contains(&"all") || asked.contains(set) {
            println!("cargo:rustc-cfg=isa=\"{set}\"");
        }
    }
}
