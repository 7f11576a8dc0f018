//! The program, the processor, memory and the clock.

use super::{Check, World};
use crate::fit_check::qlora_largest;
use crate::footprint;
use crate::memory;
use crate::model::all_cores;
use forgelm_artifact::UtcTime;
use forgelm_kernels_api::{GemmDims, GemmLayout, Ops as _, Write};
use forgelm_kernels_cpu::{Cpu, InstructionSet};
use serde_json::json;

/// 2026-01-01T00:00:00Z in microseconds: this program is younger.
const PROGRAM_EPOCH: UtcTime = UtcTime(1_767_225_600_000_000);
/// Less than this is little for any model.
const MEMORY_BYTES_MIN: u64 = 1 << 30;

/// What this program is.
pub(super) fn install(world: &World<'_>) -> Vec<Check> {
    let version = env!("CARGO_PKG_VERSION");
    let place = world.env.program_dir.as_deref();
    let shown = place.map(|dir| format!(", in `{}`", dir.display()));
    let build = match cfg!(debug_assertions) {
        true => "a debug build, which is slow",
        false => "a release build",
    };
    let detail = format!("ForgeLM {version}, {build}{}", shown.unwrap_or_default());
    let check = Check::pass("forgelm.install", detail);
    vec![check.with("version", version).with("location", json!(place))]
}

/// The kernels of each instruction set that this processor has: each forms a product.
pub(super) fn processor(_: &World<'_>) -> Vec<Check> {
    let (n_cores, sets) = (all_cores(), InstructionSet::available());
    let names: Vec<&str> = sets.iter().map(|set| set.name()).collect();
    let wrong: Vec<&str> =
        sets.iter().filter(|set| !counts_right(**set)).map(|set| set.name()).collect();
    let best = names.first().copied().unwrap_or("none");
    let plural = if n_cores == 1 { "" } else { "s" };
    let check = if !wrong.is_empty() || names.is_empty() {
        let wrong = wrong.join(", ");
        Check::fail("cpu.kernels", format!("products are wrong on the instruction sets: {wrong}"))
            .hint("the processor or its memory is faulty, or this program's file is damaged")
    } else if best == InstructionSet::Plain.name() {
        let detail =
            format!("{n_cores} core{plural}; no vector instructions that kernels were made for");
        Check::warn("cpu.kernels", detail).hint("runs work, slowly: AVX2 and later are used")
    } else {
        let detail =
            format!("{n_cores} core{plural}, {best}; a product is right on: {}", names.join(", "));
        Check::pass("cpu.kernels", detail)
    };
    vec![check.with("n_cores", n_cores).with("instruction_sets", json!(names))]
}

/// Forms a product of whole numbers, of which f32 holds every sum exactly.
fn counts_right(set: InstructionSet) -> bool {
    const N_ROWS: u16 = 24;
    const N_COLUMNS: u16 = 20;
    const N_TERMS: u16 = 96;
    let left = |row: u16, term: u16| f32::from((7 * row + 3 * term + row * term) % 17) - 8.0;
    let right = |column: u16, term: u16| f32::from((5 * column + 11 * term) % 13) - 6.0;
    let (mut a, mut b, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..N_ROWS {
        a.extend((0..N_TERMS).map(|term| left(row, term)));
        for column in 0..N_COLUMNS {
            let terms = (0..N_TERMS).map(|term| left(row, term) * right(column, term));
            expected.push(terms.sum::<f32>());
        }
    }
    for column in 0..N_COLUMNS {
        b.extend((0..N_TERMS).map(|term| right(column, term)));
    }
    let mut c = vec![f32::NAN; expected.len()];
    let Some(cpu) = Cpu::with_instruction_set(1, set) else { return false };
    let dims = GemmDims { m: N_ROWS.into(), n: N_COLUMNS.into(), k: N_TERMS.into() };
    cpu.gemm((&mut c).into(), (&a).into(), (&b).into(), GemmLayout::Nt, dims, 1.0, Write::Replace);
    // What is no number is wrong too.
    c.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() <= 0.0)
}

/// How much memory a run can have.
pub(super) fn memory(_: &World<'_>) -> Vec<Check> {
    let name = "memory.room";
    let Some(room) = memory::room() else {
        let detail = "the system does not say how much memory there is";
        return vec![Check::warn(name, detail).hint("runs cannot refuse what does not fit")];
    };
    let largest = qlora_largest(room.bytes, footprint::held_now());
    let reach = match largest {
        Some(size) => format!("QLoRA fits for models of up to about {size}, by rule of thumb"),
        None => "too little for QLoRA with a model of 1b, by rule of thumb".to_owned(),
    };
    let limit = room.ceiling.name();
    let detail = format!("{} can be had, {limit} sets the limit; {reach}", gib(room.bytes));
    let check = if room.bytes < MEMORY_BYTES_MIN {
        let hint =
            "end other programs, or raise the limit; `forgelm --fit-check` says what a run needs";
        Check::warn(name, detail).hint(hint)
    } else {
        Check::pass(name, detail)
    };
    vec![
        check
            .with("available_bytes", room.bytes)
            .with("limited_by", limit)
            .with("qlora_largest", largest),
    ]
}

/// Whether it is a time at which this program can run: signatures and logs have it.
pub(super) fn clock(world: &World<'_>) -> Vec<Check> {
    let (name, now) = ("clock.time", world.env.clock.utc());
    let shown = now.to_text_seconds();
    let check = if now < PROGRAM_EPOCH {
        let detail = format!("it is {shown} here, and this program was not made yet");
        Check::fail(name, detail).hint("set the clock: signatures and audit logs have its time")
    } else {
        Check::pass(name, format!("it is {shown}"))
    };
    vec![check.with("utc", shown)]
}

/// Bytes for people.
pub(super) fn gib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;
    use crate::environment::tests::nobody;

    #[test]
    fn every_instruction_set_of_this_machine_counts_right() {
        let sets = InstructionSet::available();
        assert!(sets.contains(&InstructionSet::Plain));
        for set in sets {
            assert!(counts_right(set), "{}", set.name());
        }
    }

    #[test]
    fn a_clock_before_this_program_was_made_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let env = nobody(dir.path());
        let [check] = &clock(&World { env: &env, is_offline: true })[..] else {
            panic!("one line")
        };
        assert_eq!(check.status, Status::Fail);
        assert!(check.detail.starts_with("it is 1970-01-01T00:00:00"), "{}", check.detail);
        assert_eq!(PROGRAM_EPOCH.to_text_date(), "2026-01-01");
    }

    #[test]
    fn bytes_are_shown_in_tenths() {
        assert_eq!(gib(0), "0.0 GiB");
        assert_eq!(gib((3 << 30) + (1 << 29)), "3.5 GiB");
    }
}
