//! `cargo xtask cudnn`: the plans for attention that kernels/cuda would ask cuDNN for, made for
//! devices that are described and not there, and compared with a table in the tree.
//!
//! The graph is built by the very file that runs do it with. What a plan computes, and how fast, it
//! does not say: nothing is run.
#![expect(unsafe_code, reason = "the library has a C interface")]

#[path = "../../../kernels/cuda/src/cudnn/backend.rs"]
#[expect(dead_code, reason = "what runs a plan needs a device")]
mod backend;
#[path = "../../../kernels/cuda/src/cudnn/plan.rs"]
#[expect(dead_code, reason = "what runs a plan needs a device")]
mod plan;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use backend::{Backend, Pointer};
use libloading::Library;
use libloading::os::unix::{Library as Loaded, RTLD_GLOBAL, RTLD_NOW};
use plan::{Plan, Sizes, Target, Tensor};

const USAGE: &str = "usage: cargo xtask cudnn [--check] [--cudnn PATH]
  --check  compare with the table that is there, write nothing
  --cudnn  libcudnn.so.9 of cuDNN 9.28
  without a path a package of PyPI (717 MB) is installed in target/tools";

/// What the table was made with: another version may choose otherwise.
const PACKAGE: &str = "nvidia-cudnn-cu12==9.28.0.42";
const VERSION: usize = 92_800;
/// Where the package has it.
const LIBRARY: &str = "nvidia/cudnn/lib/libcudnn.so.9";

/// What cuDNN opens by name, and ends the process without.
const STAND_INS: [(&str, &str); 2] = [
    ("libcuda.so.1", include_str!("cudnn/libcuda.c")),
    ("libcublasLt.so.12", include_str!("cudnn/libcublaslt.c")),
];

/// The table, below the root.
const TABLE: &str = "kernels/cuda/src/cudnn/plans.tsv";

/// What cuDNN wants to know of a device.
struct Device {
    architecture: &'static str,
    name: &'static str,
    version: u32,
    n_multiprocessors: u32,
    shared_bytes_max: u32,
    memory_bytes: u64,
    l2_bytes: u64,
}

/// By hand, from NVIDIA's data sheets: none of these devices was there to be asked.
const DEVICES: [Device; 3] = [
    Device {
        architecture: "sm_80",
        name: "NVIDIA A100-SXM4-80GB",
        version: 800,
        n_multiprocessors: 108,
        shared_bytes_max: 166_912,
        memory_bytes: 85_029_158_912,
        l2_bytes: 41_943_040,
    },
    Device {
        architecture: "sm_90",
        name: "NVIDIA H100 80GB HBM3",
        version: 900,
        n_multiprocessors: 132,
        shared_bytes_max: 232_448,
        memory_bytes: 85_029_158_912,
        l2_bytes: 52_428_800,
    },
    Device {
        architecture: "sm_100",
        name: "NVIDIA B200",
        version: 1000,
        n_multiprocessors: 148,
        shared_bytes_max: 232_448,
        memory_bytes: 191_000_000_000,
        l2_bytes: 132_644_864,
    },
];

impl Device {
    /// In the form that cuDNN writes properties in.
    fn json(&self) -> String {
        let Self { name, version, n_multiprocessors, shared_bytes_max, .. } = self;
        let Self { memory_bytes, l2_bytes, .. } = self;
        format!(
            r#"{{"deviceName":"{name}","cudaDeviceId":0,"deviceVer":{version},"driverVer":12080,
"totalGlobalMem":{memory_bytes},"maxGridSize":[2147483647,65535,65535],
"maxBlockSize":[1024,1024,64],"regsPerBlock":65536,"multiProcessorCount":{n_multiprocessors},
"smCountOrigin":0,"warpSize":32,"maxSharedMemoryPerBlock":49152,
"maxSharedMemoryPerBlockOptin":{shared_bytes_max},
"oversizedSharedMemoryPerBlock":{shared_bytes_max},"reservedSharedMemoryPerBlock":1024,
"maxRegistersPerSM":65536,"maxCtasPerSM":32,"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,
"pciDeviceId":0,"isTccDriver":0,"supportCoopLaunch":1,"smClockRateKHz":1980000,
"memClockRateKHz":2619000,"memoryBusWidth":5120,"l2CacheSize":{l2_bytes}}}"#
        )
    }
}

/// Query heads, key and value heads, width, sequences, rows of the longest: every width that
/// models have, groups from 1 to 8, batches of many short sequences and of one long one.
const CASES: [[usize; 5]; 14] = [
    [32, 8, 64, 4, 4096],
    [32, 8, 72, 4, 4096],
    [32, 32, 80, 4, 4096],
    [32, 32, 96, 4, 4096],
    [32, 8, 128, 4, 4096],
    [32, 32, 128, 4, 4096],
    [16, 8, 128, 1, 4096],
    [32, 8, 128, 8, 256],
    [32, 8, 128, 64, 64],
    [32, 8, 128, 1, 32_768],
    [64, 8, 128, 16, 2048],
    [16, 8, 192, 4, 4096],
    [8, 4, 256, 4, 4096],
    [8, 1, 256, 1, 8192],
];

/// Makes the plans, and writes or compares the table.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let (mut is_check, mut named) = (false, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--check" => is_check = true,
            "--cudnn" => named = Some(PathBuf::from(rest.next().ok_or(USAGE)?)),
            _ => return Err(USAGE.to_owned()),
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
    let tools = crate::install::target_dir(&root).join("tools");
    let library = match named {
        Some(path) => path,
        None => crate::kernels::install(&tools, PACKAGE, LIBRARY)?,
    };
    for (name, text) in STAND_INS {
        load(&stand_in(&tools, name, text)?)?;
    }
    let cudnn = load(&library)?;
    let backend = Backend::of(cudnn)
        .ok_or_else(|| format!("{}: it lacks cuDNN's backend", library.display()))?;
    if backend.version() != VERSION {
        let found = backend.version();
        let place = library.display();
        return Err(format!("{place}: cuDNN is {found}, and the table is of {VERSION}"));
    }
    if backend.cuda_version() / 1000 != 12 {
        return Err(format!("{}: it is not for CUDA 12", library.display()));
    }
    try_arguments(backend)?;
    let begin = Instant::now();
    let table = table(backend)?;
    println!("{} plans in {:.0} s", DEVICES.len() * CASES.len(), begin.elapsed().as_secs_f64());
    let path = root.join(TABLE);
    if !is_check {
        return fs::write(&path, table).map_err(|error| format!("{}: {error}", path.display()));
    }
    let expected = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    compare(&expected, &table)
}

/// Whether what a plan is run with is taken as it is handed over: nothing looks at the addresses.
fn try_arguments(backend: Backend) -> Result<(), String> {
    let mut somewhere = [0_u64; 2];
    let address: Pointer = somewhere.as_mut_ptr().cast();
    let tensors = [
        Tensor::Q,
        Tensor::K,
        Tensor::V,
        Tensor::Out,
        Tensor::Stats,
        Tensor::QueryLens,
        Tensor::KeyLens,
        Tensor::QueryOffsets,
        Tensor::KeyOffsets,
        Tensor::StatsOffsets,
        Tensor::Scale,
        Tensor::Masked,
        Tensor::SeenAhead,
    ];
    let arguments = Plan::arguments(backend, &tensors.map(|tensor| (tensor, address)), address);
    arguments.map(drop).map_err(|refusal| refusal.to_string())
}

/// A line for each device and case: what a plan takes for its time, or `refused`.
fn table(backend: Backend) -> Result<String, String> {
    let mut table = "device\theads\tkv_heads\thead_dim\tsequences\tlongest\tworkspace\n".to_owned();
    for device in &DEVICES {
        let architecture = device.architecture;
        let target = Target::described(backend, &device.json())
            .map_err(|refusal| format!("{architecture}: {refusal}"))?;
        for case in CASES {
            let [n_heads, n_kv_heads, head_dim, n_sequences, longest] = case;
            let sizes = Sizes { n_heads, n_kv_heads, head_dim, n_sequences, longest };
            let begin = Instant::now();
            let outcome = match Plan::new(backend, &sizes, &target) {
                Ok(plan) => plan.workspace_bytes().to_string(),
                Err(refusal) if refusal.is_for_good() => {
                    println!("{architecture} {case:?}: {refusal}");
                    "refused".to_owned()
                }
                Err(refusal) => return Err(format!("{architecture} {case:?}: {refusal}")),
            };
            println!("{architecture} {case:?}: {outcome}, {:.1} s", begin.elapsed().as_secs_f64());
            let case = case.map(|number| number.to_string()).join("\t");
            let _infallible = writeln!(table, "{architecture}\t{case}\t{outcome}");
        }
    }
    Ok(table)
}

fn compare(expected: &str, found: &str) -> Result<(), String> {
    let lines = expected.lines().zip(found.lines());
    let different: Vec<String> = lines
        .filter(|(expected, found)| expected != found)
        .map(|(expected, found)| format!("expected {expected}\nfound    {found}"))
        .collect();
    if expected.lines().count() != found.lines().count() {
        return Err(format!("{TABLE} has other cases: `cargo xtask cudnn` writes it anew"));
    }
    if different.is_empty() { Ok(()) } else { Err(format!("{TABLE}:\n{}", different.join("\n"))) }
}

/// Compiles a library for a machine without it.
fn stand_in(tools: &Path, name: &str, text: &str) -> Result<PathBuf, String> {
    let library = tools.join(name);
    let source = library.with_extension("c");
    fs::write(&source, text).map_err(|error| format!("{}: {error}", source.display()))?;
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-w", &format!("-Wl,-soname,{name}"), "-o"])
        .args([&library, &source])
        .status()
        .map_err(|error| format!("cc: {error}"))?;
    if status.success() { Ok(library) } else { Err(format!("cc: {status}")) }
}

/// Opens a library for good. Global, because cuDNN's parts look for each other's symbols.
fn load(path: &Path) -> Result<&'static Library, String> {
    // SAFETY: initializers of cuDNN do nothing but prepare it; the stand-ins have none.
    let library = unsafe { Loaded::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    let library =
        library.map_err(|error| format!("{}: cannot be opened: {error}", path.display()))?;
    Ok(Box::leak(Box::new(library.into())))
}
