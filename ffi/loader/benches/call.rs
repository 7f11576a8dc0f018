//! What the border costs: the loss of one sequence of one row, without a border, from a library in
//! Rust, and from one in C. `cargo bench -p forgelm_loader`.

#![expect(missing_docs, reason = "criterion's macros make functions")]
#![expect(clippy::unwrap_used, reason = "a benchmark")]

use criterion::{Criterion, criterion_group, criterion_main};
use forgelm_loader::{HostServices, Loader};
use forgelm_sdk::trainer::{Role, Scored, Sequence, StepTotals, Trainer};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The first trainer of a library that is named so.
fn trainer(path: &Path, name: &str) -> Box<dyn Trainer> {
    let library = Loader::new(HostServices::silent()).load(path).unwrap().unwrap();
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

fn in_rust() -> Box<dyn Trainer> {
    let bench: PathBuf = std::env::current_exe().unwrap();
    trainer(&bench.parent().unwrap().join("libforgelm_plugin_trainer.so"), "sft")
}

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
    for (name, trainer) in
        [("no border", without), ("Rust library", in_rust()), ("C library", in_c())]
    {
        let mut dlogp = [0.0];
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| trainer.loss(black_box(&scored), black_box(&mut dlogp)).unwrap());
        });
    }
}

criterion_group!(benches, calls);
criterion_main!(benches);
