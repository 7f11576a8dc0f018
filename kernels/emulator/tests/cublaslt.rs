//! The stand-in of cuBLASLt through cudarc: products with small integers, which are exact, against
//! plain loops; and what it refuses.
#![expect(unsafe_code, reason = "the interface of the library is a C interface")]
#![expect(clippy::print_stderr, reason = "tests that cannot run here say so")]
#![expect(clippy::unwrap_used, reason = "what fails here is a failure of the test")]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "small numbers"
)]

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtMatmulDescAttributes_t,
    cublasLtMatmulPreferenceAttributes_t, cublasStatus_t, cudaDataType_t,
};
use cudarc::cublaslt::{CudaBlasLT, Matmul as _, MatmulConfig, result};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr as _};
use forgelm_kernels_emulator as emulator;

fn stream() -> Option<Arc<CudaStream>> {
    if let Some(reason) = emulator::unavailable() {
        eprintln!("skipped: {reason}");
        return None;
    }
    emulator::load();
    let context = CudaContext::new(0).unwrap();
    // SAFETY: a test has one stream.
    unsafe { context.disable_event_tracking() };
    Some(context.new_stream().unwrap())
}

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7 + i / 5 + seed) % 9) as f32 - 4.0).collect()
}

/// Number (row, column) of a column-major matrix, or of its transpose.
fn at(matrix: &[f32], leading: usize, is_transposed: bool, row: usize, column: usize) -> f32 {
    if is_transposed { matrix[row * leading + column] } else { matrix[column * leading + row] }
}

#[test]
fn products_of_all_transposes_and_batches_are_exact() {
    let Some(stream) = stream() else { return };
    let lt = CudaBlasLT::new(stream.clone()).unwrap();
    let (m, n, k, batches) = (5, 3, 7, 2);
    // leading dimensions larger than they must be
    let (lda, ldb, ldc) = (9, 8, 6);
    for (transa, transb) in [(false, false), (true, false), (false, true), (true, true)] {
        let (a, b) = (numbers(lda * 9 * batches, 1), numbers(ldb * 9 * batches, 2));
        let (c, bias) = (numbers(ldc * n * batches, 3), numbers(m, 4));
        let config = MatmulConfig {
            transa,
            transb,
            transc: false,
            m: m as u64,
            n: n as u64,
            k: k as u64,
            alpha: 2.0,
            lda: lda as i64,
            ldb: ldb as i64,
            beta: -1.0,
            ldc: ldc as i64,
            stride_a: Some((lda * 9) as i64),
            stride_b: Some((ldb * 9) as i64),
            stride_c: Some((ldc * n) as i64),
            stride_bias: None,
            batch_size: Some(batches as i32),
        };
        let (on_device, d_b) = (stream.clone_htod(&a).unwrap(), stream.clone_htod(&b).unwrap());
        let mut d_c = stream.clone_htod(&c).unwrap();
        let d_bias = stream.clone_htod(&bias).unwrap();
        // SAFETY: the matrices lie inside their memory, or the call is refused.
        unsafe { lt.matmul(config, &on_device, &d_b, &mut d_c, Some(&d_bias), None) }.unwrap();
        let found = stream.clone_dtoh(&d_c).unwrap();
        let mut expected = c.clone();
        for batch in 0..batches {
            let (a, b) = (&a[batch * lda * 9..], &b[batch * ldb * 9..]);
            for (row, bias) in bias.iter().enumerate() {
                for column in 0..n {
                    let sum: f32 = (0..k)
                        .map(|i| at(a, lda, transa, row, i) * at(b, ldb, transb, i, column))
                        .sum();
                    let place = batch * ldc * n + column * ldc + row;
                    expected[place] = 2.0 * sum - c[place] + bias;
                }
            }
        }
        assert_eq!(found, expected, "{transa} {transb}");
    }
}

/// One product of `m`, `n`, `k` = 32, 16, 512 in bf16 with sums in f32, with what a test changes.
struct Product {
    type_of_b: cudaDataType_t,
    compute: cublasComputeType_t,
    rows_of_b: u64,
    leading_of_a: i64,
    promised_alignment: u32,
    offset_bytes: u64,
    workspace_max: usize,
    workspace_given: usize,
}

impl Default for Product {
    fn default() -> Self {
        Self {
            type_of_b: cudaDataType_t::CUDA_R_16BF,
            compute: cublasComputeType_t::CUBLAS_COMPUTE_32F,
            rows_of_b: 512,
            leading_of_a: 32,
            promised_alignment: 16,
            offset_bytes: 0,
            workspace_max: 0,
            workspace_given: 0,
        }
    }
}

impl Product {
    /// All numbers of A are 1, all of B are 2: each of D is 1024.
    fn run(&self, stream: &Arc<CudaStream>) -> Result<Vec<f32>, cublasStatus_t> {
        let bf16 = |value: f32, n| vec![(value.to_bits() >> 16) as u16; n];
        let a = stream.clone_htod(&bf16(1.0, 32 * 512 + 64)).unwrap();
        let b = stream.clone_htod(&bf16(2.0, 512 * 16)).unwrap();
        let d = stream.alloc_zeros::<f32>(32 * 16).unwrap();
        let workspace = stream.alloc_zeros::<u8>(self.workspace_given.max(1)).unwrap();
        let float = cudaDataType_t::CUDA_R_32F;
        let layout = |kind, rows, columns, leading| {
            result::create_matrix_layout(kind, rows, columns, leading).unwrap()
        };
        let a_layout = layout(cudaDataType_t::CUDA_R_16BF, 32, 512, self.leading_of_a);
        let b_layout = layout(self.type_of_b, self.rows_of_b, 16, 512);
        let d_layout = layout(float, 32, 16, 32);
        let what = result::create_matmul_desc(self.compute, float).unwrap();
        let preference = result::create_matmul_pref().unwrap();
        let handle = result::create_handle().unwrap();
        type Wish = cublasLtMatmulPreferenceAttributes_t;
        let alignment = (&raw const self.promised_alignment).cast::<c_void>();
        let bytes = (&raw const self.workspace_max).cast::<c_void>();
        let (alpha, beta) = (1.0_f32, 0.0_f32);
        // SAFETY: all descriptors were made above and are destroyed after this block; values have
        // the types of their attributes; addresses are of memory that is alive.
        let outcome = unsafe {
            for wish in [
                Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ] {
                result::set_matmul_pref_attribute(preference, wish, alignment, 4).unwrap();
            }
            let wish = Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(preference, wish, bytes, 8).unwrap();
            result::get_matmul_algo_heuristic(
                handle, what, a_layout, b_layout, d_layout, d_layout, preference,
            )
            .and_then(|heuristic| {
                let address = d.device_ptr(stream).0 as *mut c_void;
                result::matmul(
                    handle,
                    what,
                    (&raw const alpha).cast(),
                    (&raw const beta).cast(),
                    (a.device_ptr(stream).0 + self.offset_bytes) as *const c_void,
                    a_layout,
                    b.device_ptr(stream).0 as *const c_void,
                    b_layout,
                    address,
                    d_layout,
                    address,
                    d_layout,
                    &raw const heuristic.algo,
                    workspace.device_ptr(stream).0 as *mut c_void,
                    self.workspace_given,
                    stream.cu_stream().cast(),
                )
            })
        };
        // SAFETY: each was made above and is destroyed once.
        unsafe {
            for layout in [a_layout, b_layout, d_layout] {
                result::destroy_matrix_layout(layout).unwrap();
            }
            result::destroy_matmul_desc(what).unwrap();
            result::destroy_matmul_pref(preference).unwrap();
            result::destroy_handle(handle).unwrap();
        }
        outcome.map_err(|error| error.0)?;
        Ok(stream.clone_dtoh(&d).unwrap())
    }
}

#[test]
fn brain_floats_give_floats() {
    let Some(stream) = stream() else { return };
    assert_eq!(Product::default().run(&stream).unwrap(), vec![1024.0; 32 * 16]);
    // one that splits k has a workspace
    let split = Product { workspace_max: 1 << 20, workspace_given: 1 << 20, ..Product::default() };
    assert_eq!(split.run(&stream).unwrap(), vec![1024.0; 32 * 16]);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let Some(stream) = stream() else { return };
    let invalid = cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE;
    let not_supported = cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED;
    let product = Product::default;
    for (what, expected, product) in [
        ("another k", invalid, Product { rows_of_b: 511, ..product() }),
        ("lines that overlap", invalid, Product { leading_of_a: 31, ..product() }),
        (
            "mixed types",
            not_supported,
            Product { type_of_b: cudaDataType_t::CUDA_R_32F, ..product() },
        ),
        (
            "sums in half precision",
            not_supported,
            Product { compute: cublasComputeType_t::CUBLAS_COMPUTE_16F, ..product() },
        ),
        ("less alignment than promised", invalid, Product { offset_bytes: 8, ..product() }),
        (
            "a workspace that is too small",
            invalid,
            Product { workspace_max: 1 << 20, workspace_given: 256, ..product() },
        ),
        (
            "memory that is not the device's",
            cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED,
            Product { offset_bytes: 256, ..product() },
        ),
    ] {
        assert_eq!(product.run(&stream).err(), Some(expected), "{what}");
    }
}

#[test]
fn an_attribute_has_the_size_of_its_type() {
    let Some(_stream) = stream() else { return };
    let float = cudaDataType_t::CUDA_R_32F;
    let what = result::create_matmul_desc(cublasComputeType_t::CUBLAS_COMPUTE_32F, float).unwrap();
    let transpose = 1_u64;
    let attribute = cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
    // SAFETY: the address is of a number that lives here and is longer than what is read.
    let status = unsafe {
        sys::cublasLtMatmulDescSetAttribute(what, attribute, (&raw const transpose).cast(), 8)
    };
    assert_eq!(status, cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE);
    // SAFETY: it was made above.
    unsafe { result::destroy_matmul_desc(what) }.unwrap();
}
