//! All ops against the reference on a real NVIDIA device, with the kernels that are shipped. Without
//! one it says so. `tools/bench/gpu` runs it on the machines that have one.
#![expect(clippy::print_stdout, reason = "a test, which says what it skips")]

use std::sync::{Mutex, PoisonError};

use forgelm_kernels_check::{Outcome, compare_all};
use forgelm_kernels_cuda::{Cuda, Device, DeviceOptions, Folders, Found, Libraries};

/// One test has the device at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The first device; `None`, aloud, where there is none.
#[expect(clippy::disallowed_methods, reason = "where a machine has libraries its user says")]
fn cuda(with_cublaslt: bool, options: DeviceOptions) -> Option<Cuda> {
    let named = std::env::var_os("FORGELM_CUDA_PATH").unwrap_or_default();
    let first = std::env::split_paths(&named).filter(|p| !p.as_os_str().is_empty()).collect();
    let mut libraries = Libraries::find(&Folders { first, last: Vec::new() });
    if !with_cublaslt {
        libraries.cublaslt = Found::Missing;
    }
    match Device::open(0, &libraries, options) {
        Ok(device) => Some(Cuda::new(device, 2)),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

fn assert_same(first: &[Outcome], second: &[Outcome], how: &str) {
    assert_eq!(first.len(), second.len());
    for (first, second) in first.iter().zip(second) {
        assert!(first == second, "{} has other bits {how}", first.name);
    }
}

#[test]
fn all_ops_are_the_reference_with_the_same_bits_again() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for with_cublaslt in [true, false] {
        let Some(cuda) = cuda(with_cublaslt, DeviceOptions::default()) else { return };
        let first = compare_all(&cuda);
        assert!(first.len() > 200, "{} outcomes", first.len());
        assert_same(&first, &compare_all(&cuda), "in a second run");
    }
}

/// Where there is a cuDNN: the heads of the families that are trained.
#[test]
fn attention_by_cudnn_is_our_own() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(cuda) = cuda(true, DeviceOptions::default()) else { return };
    if let Err(why) = cuda.device().cudnn_version() {
        println!("cuDNN {why}: there is nothing to compare");
        return;
    }
    for (n_heads, n_kv_heads, head_dim) in [
        (32, 8, 64),
        (32, 32, 96),
        (32, 8, 128),
        (16, 8, 128),
        (64, 8, 128),
        (16, 8, 192),
        (8, 4, 256),
        (8, 1, 256),
    ] {
        let tried = cuda.device().try_attention(n_heads, n_kv_heads, head_dim);
        assert_eq!(tried, Ok(()), "{n_heads} heads of {head_dim} over {n_kv_heads}");
    }
}

/// Memory that nobody wrote holds bits that are no number.
#[test]
fn no_op_reads_what_nobody_wrote() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(plain) = cuda(true, DeviceOptions::default()) else { return };
    let first = compare_all(&plain);
    let options = DeviceOptions { strict: true, ..DeviceOptions::default() };
    let Some(strict) = cuda(true, options) else { return };
    assert_same(&first, &compare_all(&strict), "with an allocation for each buffer");
}
