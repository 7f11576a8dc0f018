//! All ops against the reference, on the emulated device: the same bits however its threads take
//! turns and its copies arrive.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test, which says what it skips")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forgelm_kernels_api::Ops as _;
use forgelm_kernels_check::{
    Outcome, attention, columns, elementwise, embedding, float8, gemm, glu, linear, optimizers,
    packed, rms_norm, rope, routing, rows, token_logprobs,
};
use forgelm_kernels_cuda::{Cuda, Device, DeviceOptions, Folders, Found, ImageSource, Libraries};
use forgelm_kernels_emulator::{AsyncCopies, Schedule, Streams};

/// The emulated driver has one state in a process: tests that use it follow each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Alone with the emulated driver; `None`, aloud, where there is none.
fn alone() -> Option<MutexGuard<'static, ()>> {
    if let Some(reason) = forgelm_kernels_emulator::unavailable() {
        println!("skipped: {reason}");
        return None;
    }
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    forgelm_kernels_emulator::set_streams(Streams::Deferred);
    forgelm_kernels_emulator::set_threads(2);
    Some(alone)
}

enum Products {
    Own,
    CublasLt,
}

fn cuda(products: &Products, strict: bool) -> Cuda {
    let first = vec![forgelm_kernels_emulator::library_folder().to_owned()];
    let mut libraries = Libraries::find(&Folders { first, last: Vec::new() });
    assert!(matches!(libraries.cublaslt, Found::At(_)), "{libraries:?}");
    if let Products::Own = products {
        libraries.cublaslt = Found::Missing;
    }
    let images = ImageSource::Given(Arc::from(&forgelm_kernels_emulator::IMAGE[..]));
    let options = DeviceOptions { images, strict, ..DeviceOptions::default() };
    Cuda::new(Device::open(0, &libraries, options).unwrap(), 2)
}

/// Cases of all ops but weights in blocks, which take longer than all others.
fn compare_most(library: &Cuda) -> Vec<Outcome> {
    [
        linear::compare(library),
        gemm::compare(library),
        embedding::compare(library),
        float8::compare(library),
        rms_norm::compare(library),
        columns::compare(library),
        rope::compare(library),
        rows::compare(library),
        routing::compare(library),
        attention::compare(library),
        glu::compare(library),
        token_logprobs::compare(library),
        elementwise::compare(library),
        optimizers::compare(library),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Fails where outcomes differ from the first ones.
fn assert_same(first: &mut Option<Vec<Outcome>>, outcomes: Vec<Outcome>, how: &str) {
    let Some(first) = first else {
        *first = Some(outcomes);
        return;
    };
    assert_eq!(first.len(), outcomes.len());
    for (first, outcome) in first.iter().zip(&outcomes) {
        assert!(first == outcome, "{} differs: {how}", outcome.name);
    }
}

/// With copies that arrive late and early. Memory is never what another call left in it, and its
/// ends are watched; and in the end, as in a run, it is used again.
#[test]
fn all_ops_are_the_reference_with_the_same_bits_under_every_schedule() {
    let Some(_alone) = alone() else { return };
    let mut first = None;
    for copies in AsyncCopies::ALL {
        for schedule in Schedule::ALL {
            forgelm_kernels_emulator::set_async_copies(copies);
            forgelm_kernels_emulator::set_schedule(schedule);
            let outcomes = compare_most(&cuda(&Products::Own, true));
            assert_same(&mut first, outcomes, &format!("{schedule:?}, {copies:?}"));
        }
    }
    let outcomes = compare_most(&cuda(&Products::Own, false));
    assert_same(&mut first, outcomes, "with memory that is used again");
}

#[test]
fn weights_in_blocks_are_the_reference_with_the_same_bits_under_two_schedules() {
    let Some(_alone) = alone() else { return };
    let mut first = None;
    let last = (Schedule::GreedyRandom, AsyncCopies::AtIssue);
    for (schedule, copies) in [(Schedule::Forward, AsyncCopies::AtWait), last] {
        forgelm_kernels_emulator::set_async_copies(copies);
        forgelm_kernels_emulator::set_schedule(schedule);
        let outcomes = packed::compare(&cuda(&Products::Own, true));
        assert_same(&mut first, outcomes, &format!("{schedule:?}, {copies:?}"));
    }
}

/// All that forms products: the other ops are the same.
#[test]
fn products_of_cublaslt_are_the_reference() {
    let Some(_alone) = alone() else { return };
    forgelm_kernels_emulator::set_async_copies(AsyncCopies::AtWait);
    forgelm_kernels_emulator::set_schedule(Schedule::Forward);
    let library = cuda(&Products::CublasLt, true);
    let n = [linear::compare(&library), gemm::compare(&library), token_logprobs::compare(&library)];
    assert!(n.iter().all(|outcomes| !outcomes.is_empty()));
}

#[test]
fn a_name_says_what_decides_speed_and_bits() {
    let Some(_alone) = alone() else { return };
    let name = cuda(&Products::Own, false).name().to_owned();
    assert_eq!(name, "cuda:0/sm_90 (forgelm emulated device, own products)");
    let name = cuda(&Products::CublasLt, false).name().to_owned();
    assert!(name.starts_with("cuda:0/sm_90 (forgelm emulated device, cuBLASLt "), "{name}");
}
