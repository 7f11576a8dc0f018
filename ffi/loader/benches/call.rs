//! What the border costs: the loss of one sequence of one row, without a border, from a library in
//! Rust, from one in C, and from one in a process of its own. `cargo bench -p forgelm_loader`.

#![expect(missing_docs, reason = "criterion's macros make functions")]
#![expect(clippy::unwrap_used, reason = "a benchmark")]

use criterion::{Criterion, criterion_group};
use forgelm_loader::{HostServices, Library, LibraryFile, Loader, WorkerProgram, worker};
use forgelm_sdk::trainer::{Role, Scored, Sequence, StepTotals, Trainer};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The first trainer of a library that is named so.
fn trainer(path: &Path, name: &str) -> Box<dyn Trainer> {
    trainer_of(&Loader::new(HostServices::silent()).load(path).unwrap().unwrap(), name)
}

fn trainer_of(library: &Library, name: &str) -> Box<dyn Trainer> {
    let plugin = library.offers.trainers.iter().find(|plugin| plugin.name == name).unwrap();
    (plugin.build)(&[]).unwrap()
}

fn in_c() -> Box<dyn Trainer> {
    let dir = tempfile::tempdir().unwrap();
    let ffi = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let library = dir.path().join("trainers.so");
    let status = Command::new("cc")
        .args(["-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-I"])
        .arg(ffi.join("include"))
        .arg(ffi.join("examples/trainers.c"))
        .arg("-o")
        .arg(&library)
        .status();
    assert!(status.unwrap().success());
    trainer(&library, "nll_c")
}

fn rust_library() -> PathBuf {
    let bench: PathBuf = std::env::current_exe().unwrap();
    bench.parent().unwrap().join("libforgelm_plugin_trainer.so")
}

/// In a process that runs this benchmark again.
fn apart() -> Box<dyn Trainer> {
    let program = WorkerProgram {
        program: std::env::current_exe().unwrap(),
        args: vec![WORKER.into()],
        environment: Vec::new(),
        silence_max: Duration::from_secs(10),
    };
    let mut loader = Loader::new(HostServices::silent());
    let file = LibraryFile::read(&rust_library()).unwrap();
    trainer_of(&loader.open_in_worker(&file, &program).unwrap().unwrap(), "sft")
}

/// The argument that says so.
const WORKER: &str = "worker";

fn calls(criterion: &mut Criterion) {
    let sequences = [Sequence { role: Role::Sole, record: 0, start: 0, len: 1 }];
    let step = StepTotals::default();
    let scored = Scored {
        sequences: &sequences,
        labels: &[7],
        trained: &[1],
        logp: &[-0.5],
        ref_logp: None,
        advantage: None,
        old_logp: None,
        step: &step,
    };
    let without = (forgelm_plugin_trainer::sft::SFT.build)(&[]).unwrap();
    for (name, trainer) in [
        ("no border", without),
        ("Rust library", trainer(&rust_library(), "sft")),
        ("C library", in_c()),
        ("Rust library in a process of its own", apart()),
    ] {
        let mut dlogp = [0.0];
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| trainer.loss(black_box(&scored), black_box(&mut dlogp)).unwrap());
        });
    }
}

criterion_group!(benches, calls);

fn main() {
    if std::env::args().nth(1).as_deref() == Some(WORKER) {
        worker::serve(None, None).unwrap();
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
