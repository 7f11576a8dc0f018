//! What compiled kernels must keep, as far as it shows without a device: no spills, 128-bit
//! accesses and tensor cores where they were meant, and names by which they are found.

use std::collections::BTreeMap;

/// What the assembler reports of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Resources {
    pub(super) registers: u32,
    pub(super) stack_bytes: u32,
    pub(super) spill_store_bytes: u32,
    pub(super) spill_load_bytes: u32,
    pub(super) shared_bytes: u32,
}

/// Kernels by name.
pub(super) type Report = BTreeMap<String, Resources>;

/// Reads the log of `--ptxas-options=-v`.
pub(super) fn read_log(log: &str) -> Report {
    let mut report = Report::new();
    let mut kernel = String::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            rest.split('\'').next().unwrap_or_default().clone_into(&mut kernel);
            report.insert(kernel.clone(), Resources::default());
        }
        let Some(resources) = report.get_mut(&kernel) else { continue };
        let mut take = |what: &str, field: fn(&mut Resources) -> &mut u32| {
            if let Some(number) = number_before(line, what) {
                *field(resources) = number;
            }
        };
        take(" bytes stack frame", |r| &mut r.stack_bytes);
        take(" bytes spill stores", |r| &mut r.spill_store_bytes);
        take(" bytes spill loads", |r| &mut r.spill_load_bytes);
        take(" registers", |r| &mut r.registers);
        take(" bytes smem", |r| &mut r.shared_bytes);
    }
    report
}

fn number_before(line: &str, what: &str) -> Option<u32> {
    let (before, _) = line.split_once(what)?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Kernels that keep everything in registers; and what else a log warns of.
pub(super) fn check_log(place: &str, log: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for (kernel, r) in read_log(log) {
        if r.stack_bytes + r.spill_store_bytes + r.spill_load_bytes > 0 {
            problems.push(format!(
                "{place}: `{kernel}` spills: {} bytes of stack, {} stored, {} loaded",
                r.stack_bytes, r.spill_store_bytes, r.spill_load_bytes
            ));
        }
    }
    for line in log.lines().filter(|line| line.contains("warning")) {
        problems.push(format!("{place}: {line}"));
    }
    problems
}

/// Something that the text of a kernel must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Load16,
    Store16,
    TensorCores,
    MatrixLoads,
    AsyncCopies,
}

/// A pattern of names, where `*` stands for anything, and what each kernel of such a name has. The
/// first pattern that fits counts.
const WANTED: [(&str, &[Wanted]); 8] = [
    // read codes of four bits or eight
    ("blocks_unpack_*_vec", &[Wanted::Store16]),
    ("float8_*_vec", &[Wanted::Store16]),
    // reads nothing
    ("cast_fill_*_vec", &[Wanted::Store16]),
    ("*_vec", &[Wanted::Load16]),
    ("attention_forward_bf16_*", &[Wanted::TensorCores, Wanted::MatrixLoads, Wanted::AsyncCopies]),
    ("attention_backward_*_bf16_*", &[Wanted::TensorCores, Wanted::MatrixLoads]),
    ("gemm_bf16_*_any", &[Wanted::TensorCores]),
    ("gemm_bf16_*", &[Wanted::TensorCores, Wanted::MatrixLoads, Wanted::AsyncCopies]),
];

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|i| rest.is_char_boundary(i) && fits(after, &rest[i..]))
        }),
    }
}

impl Wanted {
    /// Whether an instruction of machine code is that.
    fn is_machine_code(self, line: &str) -> bool {
        let instruction = instruction_of(line);
        let wide = |start: &str| instruction.starts_with(start) && instruction.contains(".128");
        match self {
            Self::Load16 => wide("LDG.") || wide("LD."),
            Self::Store16 => wide("STG.") || wide("ST."),
            Self::TensorCores => instruction.starts_with("HMMA."),
            Self::MatrixLoads => instruction.starts_with("LDSM."),
            Self::AsyncCopies => instruction.starts_with("LDGSTS."),
        }
    }

    /// Whether a line of PTX is that.
    fn is(self, line: &str) -> bool {
        // a predicate may stand before it: `@%p1 ld.global.v4.u32`
        let mut words = line.split_whitespace().skip_while(|word| word.starts_with('@'));
        let instruction = words.next().unwrap_or_default();
        let wide = |start: &str| {
            let of_16_bytes = [".v4.u32", ".v4.b32", ".v4.s32", ".v4.f32", ".v2.u64", ".v2.b64"];
            instruction.starts_with(start)
                && !instruction.contains(".shared")
                && (of_16_bytes.iter().any(|end| instruction.ends_with(end)))
        };
        match self {
            Self::Load16 => wide("ld."),
            Self::Store16 => wide("st."),
            Self::TensorCores => line.contains("mma.sync"),
            Self::MatrixLoads => line.contains("ldmatrix.sync"),
            Self::AsyncCopies => line.contains("cp.async.cg"),
        }
    }
}

/// The text of each kernel in PTX.
fn entries(ptx: &str) -> BTreeMap<&str, &str> {
    let mut found = BTreeMap::new();
    for text in ptx.split(".entry ").skip(1) {
        let name = text.split(['(', '\n']).next().unwrap_or_default().trim();
        let end = text.find("\n}").unwrap_or(text.len());
        found.insert(name, &text[..end]);
    }
    found
}

/// The text of each kernel as the disassembler writes it.
fn sections(machine_code: &str) -> BTreeMap<&str, &str> {
    let begin = "\n//--------------------- .text.";
    let sections = machine_code.split(begin).skip(1);
    sections.filter_map(|text| Some((text.split_whitespace().next()?, text))).collect()
}

/// `LDG.E.128` of `/*0150*/ @P0 LDG.E.128 R8, desc[UR4][R8.64] ;`.
fn instruction_of(line: &str) -> &str {
    let (_, rest) = line.split_once("*/").unwrap_or_default();
    let mut words = rest.split_whitespace().skip_while(|word| word.starts_with('@'));
    words.next().unwrap_or_default()
}

/// Machine code has what the table wants of it, and nothing in the memory that spills go to.
pub(super) fn check_machine_code(place: &str, text: &str) -> Vec<String> {
    let sections = sections(text);
    if sections.is_empty() {
        return vec![format!("{place}: the disassembler writes of no kernel")];
    }
    let mut problems = check_wanted(place, &sections, Wanted::is_machine_code);
    for (kernel, text) in &sections {
        let is_local =
            |line| ["LDL", "STL"].iter().any(|word| instruction_of(line).starts_with(word));
        if text.lines().any(is_local) {
            problems.push(format!("{place}: `{kernel}` uses local memory"));
        }
    }
    problems
}

/// Kernels of PTX have what the table wants of them.
pub(super) fn check_instructions(place: &str, ptx: &str) -> Vec<String> {
    check_wanted(place, &entries(ptx), Wanted::is)
}

fn check_wanted(
    place: &str,
    kernels: &BTreeMap<&str, &str>,
    is: fn(Wanted, &str) -> bool,
) -> Vec<String> {
    let mut problems = Vec::new();
    for (kernel, text) in kernels {
        let Some((pattern, wanted)) = WANTED.iter().find(|(pattern, _)| fits(pattern, kernel))
        else {
            continue;
        };
        for what in *wanted {
            if !text.lines().any(|line| is(*what, line)) {
                problems.push(format!(
                    "{place}: `{kernel}` has no {what:?}, as all of `{pattern}` must"
                ));
            }
        }
    }
    problems
}

/// What the compiler makes of a file where each kernel takes a type of the unnamed namespace: inner
/// names end with the number of the process, and no two runs give the same bytes.
pub(super) fn check_inner_names(place: &str, stem: &str, process: u32, ptx: &str) -> Vec<String> {
    let file = format!("_{stem}_cu_");
    let end = format!("_{process}");
    let has_process = ptx.split(&file).skip(1).any(|rest| {
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        rest.starts_with(&end)
    });
    if !has_process {
        return Vec::new();
    }
    vec![format!(
        "{place}: names hold the number of the process: take the types of the kernels' parameters \
         out of the unnamed namespace"
    )]
}

/// A kernel is found by its name: of all files the one with the longest name that the kernel's
/// begins with.
pub(super) fn check_names<'a>(
    stem: &str,
    kernels: impl Iterator<Item = &'a String>,
    stems: &[String],
) -> Vec<String> {
    let mut problems = Vec::new();
    for kernel in kernels {
        let of = |stem: &&String| {
            let rest = kernel.strip_prefix(stem.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        };
        let sought = stems.iter().filter(of).max_by_key(|stem| stem.len());
        if sought.is_none_or(|sought| sought != stem) {
            problems.push(format!(
                "{stem}.cu: `{kernel}` is sought in {}: begin its name with `{stem}`",
                sought.map_or("no file".to_owned(), |sought| format!("{sought}.cu"))
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::{
        Resources, check_inner_names, check_instructions, check_log, check_machine_code,
        check_names, fits, read_log,
    };

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'norm_f32' for 'sm_80'
ptxas info    : Function properties for norm_f32
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 128 bytes smem, 384 bytes cmem[0]
ptxas info    : Compiling entry function 'big' for 'sm_80'
ptxas info    : Function properties for big
    192 bytes stack frame, 312 bytes spill stores, 284 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 400 bytes cmem[0]
";

    #[test]
    fn the_log_of_the_assembler_is_read() {
        let report = read_log(LOG);
        assert_eq!(report.len(), 2);
        let norm = Resources { registers: 24, shared_bytes: 128, ..Resources::default() };
        assert_eq!(report["norm_f32"], norm);
        let big = Resources {
            registers: 128,
            stack_bytes: 192,
            spill_store_bytes: 312,
            spill_load_bytes: 284,
            shared_bytes: 0,
        };
        assert_eq!(report["big"], big);
    }

    #[test]
    fn a_spill_and_a_warning_are_problems() {
        let log = format!("{LOG}x.cu(3): warning #177-D: variable \"i\" was never referenced\n");
        assert_eq!(
            check_log("x.cu for sm_80", &log),
            [
                "x.cu for sm_80: `big` spills: 192 bytes of stack, 312 stored, 284 loaded",
                "x.cu for sm_80: x.cu(3): warning #177-D: variable \"i\" was never referenced",
            ]
        );
    }

    #[test]
    fn a_kernel_of_vectors_that_reads_single_numbers_is_found() {
        let ptx = "\
.visible .entry add_f32_vec(\n.param .u64 p\n)\n{\n ld.global.f32 %f1, [%rd1];\n}
.visible .entry add_bf16_vec(\n)\n{\n @%p1 ld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];\n}
.visible .entry gemm_bf16_nn_any(\n)\n{\n mma.sync.aligned.m16n8k16 {%f1}, {%r1};\n}
";
        assert_eq!(
            check_instructions("add", ptx),
            ["add: `add_f32_vec` has no Load16, as all of `*_vec` must"]
        );
    }

    #[test]
    fn machine_code_that_is_not_what_was_asked_for_is_found() {
        let text = "\
	.headerflags	@\"EF_CUDA_SM80\"

//--------------------- .text.add_f32_vec   --------------------------
add_f32_vec:
        /*0150*/               @P0 LDG.E.64 R8, desc[UR4][R8.64] ;
        /*0160*/                   STL [R1], R8 ;

//--------------------- .text.cast_fill_f32_vec   --------------------------
        /*0150*/              @!P0 STG.E.128 desc[UR4][R8.64], R4 ;

//--------------------- .text.gemm_bf16_nn_128   --------------------------
        /*0150*/                   LDGSTS.E.BYPASS.128 [R5], [R2.64] ;
        /*0160*/                   LDSM.16.M88.4 R4, [R5] ;
";
        assert_eq!(
            check_machine_code("x", text),
            [
                "x: `add_f32_vec` has no Load16, as all of `*_vec` must",
                "x: `gemm_bf16_nn_128` has no TensorCores, as all of `gemm_bf16_*` must",
                "x: `add_f32_vec` uses local memory",
            ]
        );
        assert_eq!(check_machine_code("x", "nothing"), ["x: the disassembler writes of no kernel"]);
    }

    #[test]
    fn a_kernel_that_another_file_would_be_asked_for_is_found() {
        let stems = ["attention".to_owned(), "attention_plain".to_owned()];
        let kernels = ["attention_plain_f32".to_owned(), "attention_delta_f32".to_owned()];
        assert_eq!(
            check_names("attention_plain", kernels.iter(), &stems),
            [
                "attention_plain.cu: `attention_delta_f32` is sought in attention.cu: begin its name \
              with `attention_plain`"
            ]
        );
    }

    #[test]
    fn names_that_change_with_every_run_are_found() {
        let ptx = "_ZN46_INTERNAL_00000000_9_blocks_cu_b390bf96_261847forgelm4WARPE = 32;";
        assert_eq!(check_inner_names("blocks.cu", "blocks", 26_184, ptx).len(), 1);
        assert!(check_inner_names("blocks.cu", "blocks", 26_185, ptx).is_empty());
        let ptx = "_ZN40_INTERNAL_00000000_9_blocks_cu_b390bf967forgelm4WARPE = 32;";
        assert!(check_inner_names("blocks.cu", "blocks", 26_184, ptx).is_empty());
    }

    #[test]
    fn a_star_stands_for_anything() {
        assert!(fits("*_vec", "add_f32_vec"));
        assert!(fits("gemm_bf16_*_any", "gemm_bf16_nn_any"));
        assert!(!fits("gemm_bf16_*_any", "gemm_bf16_nn_128"));
        assert!(!fits("*_vec", "add_f32"));
    }
}
