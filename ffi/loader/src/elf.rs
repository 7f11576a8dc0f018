//! What the first bytes of a library say, read before the system runs any of it.

use crate::error::Problem;

/// `e_machine` of the processors that we know by name.
const MACHINES: [(u16, &str); 6] = [
    (3, "x86 (32 bits)"),
    (40, "arm (32 bits)"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv64"),
    (21, "powerpc64"),
];
const SHARED_OBJECT: u16 = 3;
/// Program header of bytes that are loaded.
const PT_LOAD: u64 = 1;

/// Whether these are all bytes of a shared library for this processor.
///
/// # Errors
/// The first thing that is not so.
#[cfg(target_os = "linux")]
pub(crate) fn check(bytes: &[u8]) -> Result<(), Problem> {
    let number = |at: usize, len: usize| number(bytes, at, len);
    let is_elf = bytes.starts_with(b"\x7fELF");
    if !is_elf {
        return Err(Problem::NotALibrary { found: first_bytes(bytes) });
    }
    // Class and byte order come first, since they say how to read the rest.
    let (class, order) = (bytes.get(4), bytes.get(5));
    let machine = number(18, 2)?;
    let name = name_of(machine);
    let here = std::env::consts::ARCH;
    if class != Some(&2) || order != Some(&1) || name != here {
        let found = match (class, order) {
            (_, Some(2)) => "a big-endian processor".to_owned(),
            _ => name,
        };
        return Err(Problem::OtherArchitecture { found, expected: here.to_owned() });
    }
    if number(16, 2)? != u64::from(SHARED_OBJECT) {
        return Err(Problem::NotALibrary { found: "an ELF file of another type".to_owned() });
    }
    let (segments, sections) = (number(32, 8)?, number(40, 8)?);
    let (segment_size, n_segments) = (number(54, 2)?, number(56, 2)?);
    let (section_size, n_sections) = (number(58, 2)?, number(60, 2)?);
    let mut end = sections.saturating_add(section_size * n_sections);
    end = end.max(segments.saturating_add(segment_size * n_segments));
    reaches(bytes, end)?;
    for i in 0..n_segments {
        let at = usize::try_from(segments + i * segment_size).unwrap_or(usize::MAX);
        if number(at, 4)? == PT_LOAD {
            let last = number(at + 8, 8)?.saturating_add(number(at + 32, 8)?);
            end = end.max(last);
        }
    }
    reaches(bytes, end)
}

/// Elsewhere the system's loader is the first to look.
#[cfg(not(target_os = "linux"))]
pub(crate) fn check(_bytes: &[u8]) -> Result<(), Problem> {
    Ok(())
}

fn reaches(bytes: &[u8], expected: u64) -> Result<(), Problem> {
    let found = bytes.len() as u64;
    if found < expected { Err(Problem::Truncated { found, expected }) } else { Ok(()) }
}

/// A little-endian number of `len` bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> Result<u64, Problem> {
    let end = at.saturating_add(len);
    let Some(part) = bytes.get(at..end) else {
        return Err(Problem::Truncated { found: bytes.len() as u64, expected: end as u64 });
    };
    Ok(part.iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte)))
}

fn name_of(machine: u64) -> String {
    let known = MACHINES.iter().find(|(number, _)| u64::from(*number) == machine);
    known.map_or_else(|| format!("machine {machine}"), |(_, name)| (*name).to_owned())
}

fn first_bytes(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    let shown: Vec<String> = bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("the bytes {}", shown.join(" "))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// An empty library for this processor: a header and one loaded segment of 16 bytes.
    fn tiny() -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56 + 16];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let here = MACHINES.iter().find(|(_, name)| *name == std::env::consts::ARCH);
        let mut put = |at: usize, value: u16| {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        put(16, SHARED_OBJECT);
        put(18, here.expect("a processor with a name").0);
        put(32, 64);
        put(54, 56);
        put(56, 1);
        put(64, 1);
        put(64 + 8, 64 + 56);
        put(64 + 32, 16);
        bytes
    }

    fn said(bytes: &[u8]) -> String {
        check(bytes).expect_err("refused").to_string()
    }

    #[test]
    fn a_whole_library_for_this_processor_is_taken() {
        check(&tiny()).expect("a header and a segment");
    }

    #[test]
    fn each_prefix_of_a_library_is_refused_as_cut_short() {
        let whole = tiny();
        for len in 5..whole.len() {
            let problem = check(&whole[..len]);
            let is_found = matches!(
                problem,
                Err(Problem::Truncated { .. } | Problem::OtherArchitecture { .. })
            );
            assert!(is_found, "{len} bytes: {problem:?}");
        }
    }

    #[test]
    fn another_processor_and_another_type_are_named() {
        let mut other = tiny();
        other[18] = 243;
        assert!(said(&other).starts_with("is built for riscv64; expected "), "{}", said(&other));
        other[18] = 3;
        other[4] = 1;
        assert!(said(&other).starts_with("is built for x86 (32 bits)"), "{}", said(&other));
        let mut program = tiny();
        program[16] = 2;
        assert!(said(&program).contains("an ELF file of another type"));
        assert!(said(b"#!/bin/sh").contains("begins with the bytes 23 21 2f 62"));
        assert!(said(b"").contains("begins with nothing"));
    }

    /// Numbers of a hostile header end in a refusal, not in an overflow.
    #[test]
    fn a_header_of_ones_is_refused() {
        let mut hostile = tiny();
        hostile[32..64].fill(0xff);
        assert!(check(&hostile).is_err());
    }
}
