//! Products through NVIDIA's cuBLASLt, where it is installed.
//!
//! cuBLASLt thinks in columns: a row-major matrix is its transposed one, so that it is asked for
//! `c^T = op(b)^T op(a)^T`. For each kind of product it is asked once which of its algorithms to
//! take; the answer is kept.
//!
//! Numerics: sums in f32; factors of f32 are never rounded to TF32. Where cuBLASLt cuts a sum in
//! parts, the parts go to the workspace as f32 and are added in a step of their own: the other
//! schemes, which round parts to the format of the result or add them where it lies, are not
//! allowed. So the same product gives the same bits every time on the same kind of device with the
//! same version of cuBLASLt (its manual promises that for one stream); another device or version
//! may choose another algorithm.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, OnceLock};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtGetVersion, cublasLtHandle_t, cublasLtMatmulAlgo_t,
    cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t as DescAttribute,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute, cublasLtMatrixLayout_t,
    cublasLtReductionScheme_t, cublasStatus_t, cudaDataType,
};
use forgelm_kernels_api::{Format, GemmDims, GemmLayout, Write};

use crate::call::Call;
use crate::device::lock;
use crate::error::{CudaError, DriverFault, fail, must};
use crate::gemm::{Matrix, Product};
use crate::libraries::Found;
use crate::pool::Allocation;

/// Memory that an algorithm may use. Hopper's want 32 MiB.
pub(crate) const WORKSPACE: usize = 32 << 20;
/// Plans that are kept; more kinds of products than this mean that sizes never come again.
const PLANS_MAX: usize = 4096;
/// Addresses are told apart up to this alignment: what the fastest loads need.
const ALIGNMENT_MAX: u64 = 16;

/// cuBLASLt, with what it answered so far.
#[derive(Debug)]
pub(crate) struct CublasLt {
    handle: cublasLtHandle_t,
    version: usize,
    /// `None` for what it cannot do.
    plans: Mutex<BTreeMap<Kind, Option<Plan>>>,
    workspace: OnceLock<Allocation>,
}

// SAFETY: cuBLASLt's functions may be called from several threads with one handle.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

/// What a plan is for: all that an algorithm is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    layout: u8,
    dims: [usize; 3],
    /// Of c, a and b.
    is_bf16: [bool; 3],
    strides: [usize; 3],
    alignments: [u32; 3],
}

/// How one kind of product is formed.
#[derive(Debug)]
struct Plan {
    description: Description,
    left: Layout,
    right: Layout,
    result: Layout,
    algorithm: cublasLtMatmulAlgo_t,
}

// SAFETY: a plan is used under the lock of `plans` alone.
unsafe impl Send for Plan {}

impl CublasLt {
    /// `None` if it is not there, or does not start.
    pub(crate) fn open(found: &Found) -> Option<Self> {
        if !found.is_there() {
            return None;
        }
        let handle = result::create_handle().ok()?;
        // SAFETY: a call without a precondition; the library is there.
        let version = unsafe { cublasLtGetVersion() };
        Some(Self { handle, version, plans: Mutex::default(), workspace: OnceLock::new() })
    }

    /// As 120903 of 12.9.3.
    pub(crate) fn version(&self) -> usize {
        self.version
    }

    /// Forms a product. `false` if no algorithm can.
    pub(crate) fn multiply(&self, call: &Call<'_>, product: &Product) -> bool {
        let mut plans = lock(&self.plans);
        let kind = Kind::of(product);
        if plans.len() >= PLANS_MAX && !plans.contains_key(&kind) {
            plans.clear();
        }
        let plan = plans.entry(kind).or_insert_with(|| {
            let plan = Plan::new(self.handle, product, kind);
            plan.unwrap_or_else(|error| failed(call, "the choice of an algorithm", error))
        });
        let Some(plan) = plan else { return false };
        let workspace = self.workspace.get_or_init(|| must(call.device().allocate(WORKSPACE)));
        let beta: f32 = if product.write == Write::Add { 1.0 } else { 0.0 };
        let pointer = |matrix: Matrix| matrix.numbers.address as *mut c_void;
        let result = pointer(product.c);
        // SAFETY: the plan was made for matrices of these shapes, which `Product` has checked
        // against the memory they lie in; alpha and beta are f32 of the host, as the description
        // says; the workspace is as large as the algorithm was told, and everything that uses it
        // goes through one stream.
        let answer = unsafe {
            result::matmul(
                self.handle,
                plan.description.0,
                (&raw const product.alpha).cast(),
                (&raw const beta).cast(),
                pointer(product.b),
                plan.left.0,
                pointer(product.a),
                plan.right.0,
                result,
                plan.result.0,
                result,
                plan.result.0,
                &raw const plan.algorithm,
                workspace.address() as *mut c_void,
                WORKSPACE,
                call.device().stream().cu_stream().cast(),
            )
        };
        answer.unwrap_or_else(|error| failed(call, "a product of cuBLASLt", error));
        true
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        lock(&self.plans).clear();
        // SAFETY: the handle was made by `open`, and goes with this. An error here tells of earlier
        // work, which was reported where it was waited for.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Kind {
    fn of(product: &Product) -> Self {
        let matrices = [product.c, product.a, product.b];
        let GemmDims { m, n, k } = product.dims;
        Self {
            layout: match product.layout {
                GemmLayout::Nn => 0,
                GemmLayout::Nt => 1,
                GemmLayout::Tn => 2,
            },
            dims: [m, n, k],
            is_bf16: matrices.map(|matrix| matrix.numbers.format == Format::Bf16),
            strides: matrices.map(|matrix| matrix.stride),
            alignments: matrices.map(alignment),
        }
    }
}

/// The largest power of two up to a limit that an address is a multiple of.
fn alignment(matrix: Matrix) -> u32 {
    let address = matrix.numbers.address | ALIGNMENT_MAX;
    1 << address.trailing_zeros()
}

impl Plan {
    /// `None` if cuBLASLt has no algorithm for it.
    fn new(
        handle: cublasLtHandle_t,
        product: &Product,
        kind: Kind,
    ) -> Result<Option<Self>, CublasError> {
        let GemmDims { m, n, k } = product.dims;
        let [a_shape, b_shape] = product.shapes();
        let description = Description::new()?;
        // Seen by columns, b [K, N] is [N, K]: what the left factor should be. So is a [M, K].
        let b_is_turned = operation(product.layout == GemmLayout::Nt);
        let a_is_turned = operation(product.layout == GemmLayout::Tn);
        description.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, &b_is_turned)?;
        description.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB, &a_is_turned)?;
        let left = Layout::new(product.b, b_shape)?;
        let right = Layout::new(product.a, a_shape)?;
        let result = Layout::new(product.c, (m, n))?;
        debug_assert!(k > 0, "an empty sum is no product");
        let preference = Preference::new()?;
        let [c_alignment, a_alignment, b_alignment] = kind.alignments;
        let scheme = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        use PreferenceAttribute as P;
        preference.set(P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        preference.set(P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &scheme)?;
        preference.set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b_alignment)?;
        preference.set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a_alignment)?;
        preference.set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c_alignment)?;
        preference.set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c_alignment)?;
        // SAFETY: all descriptors were just made, and live until the end of this function.
        let chosen = unsafe {
            result::get_matmul_algo_heuristic(
                handle,
                description.0,
                left.0,
                right.0,
                result.0,
                result.0,
                preference.0,
            )
        };
        match chosen {
            Ok(chosen) => {
                let algorithm = chosen.algo;
                Ok(Some(Self { description, left, right, result, algorithm }))
            }
            Err(CublasError(cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// `CUBLAS_OP_T` or `CUBLAS_OP_N`, of which cudarc has no names here.
fn operation(is_turned: bool) -> i32 {
    i32::from(is_turned)
}

/// Ends an op that cuBLASLt has failed.
fn failed<T>(call: &Call<'_>, doing: &'static str, CublasError(status): CublasError) -> T {
    let fault = DriverFault {
        code: status as u32,
        name: format!("{status:?}"),
        text: format!("cuBLASLt's answer in `{}`", call.op()),
    };
    fail(&CudaError::Driver { device: call.device().label().to_owned(), doing, fault })
}

/// What is computed.
#[derive(Debug)]
struct Description(cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self, CublasError> {
        let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        result::create_matmul_desc(compute, cudaDataType::CUDA_R_32F).map(Self)
    }

    fn set<T>(&self, attribute: DescAttribute, value: &T) -> Result<(), CublasError> {
        let value = std::ptr::from_ref(value).cast();
        // SAFETY: the descriptor is alive, and the attribute is of this type.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, value, size_of::<T>()) }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: it was made here, and goes with this.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// Where a matrix lies.
#[derive(Debug)]
struct Layout(cublasLtMatrixLayout_t);

impl Layout {
    /// Rows of the matrix are its columns.
    fn new(matrix: Matrix, (n_rows, n_cols): (usize, usize)) -> Result<Self, CublasError> {
        let kind = match matrix.numbers.format {
            Format::Bf16 => cudaDataType::CUDA_R_16BF,
            _ => cudaDataType::CUDA_R_32F,
        };
        // A matrix of one row may have any stride, but not one shorter than the row.
        let stride = matrix.stride.max(n_cols) as i64;
        result::create_matrix_layout(kind, n_cols as u64, n_rows as u64, stride).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: it was made here, and goes with this.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What algorithms may do.
struct Preference(cudarc::cublaslt::sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, CublasError> {
        result::create_matmul_pref().map(Self)
    }

    fn set<T>(&self, attribute: PreferenceAttribute, value: &T) -> Result<(), CublasError> {
        let value = std::ptr::from_ref(value).cast();
        // SAFETY: the descriptor is alive, and the attribute is of this type.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, value, size_of::<T>()) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it was made here, and goes with this.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{Before, Numbers};
    use crate::device::{Device, DeviceOptions};
    use crate::emulated;
    use crate::gemm;

    const DIMS: GemmDims = GemmDims { m: 9, n: 24, k: 40 };

    fn numbers(n: usize, step: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * step) % 257) as f32 / 128.0 - 1.0).collect()
    }

    /// A product whose factors begin `shift` numbers behind the start of an allocation.
    fn multiply(device: &Device, layout: GemmLayout, shift: usize) -> Vec<f32> {
        let [a, b] = [numbers(shift + DIMS.m * DIMS.k, 31), numbers(shift + DIMS.k * DIMS.n, 89)];
        let mut c = numbers(DIMS.m * DIMS.n, 11);
        let call = Call::open(device, "gemm");
        let to = call.write((&mut c).into(), Before::Needed);
        let behind = |all: Numbers| all.part(shift, all.len - shift);
        let [a, b] = [&a, &b].map(|factor| behind(call.read(factor.into())));
        gemm::gemm(&call, to, a, b, layout, DIMS, 0.5, Write::Add);
        call.close();
        c
    }

    fn n_plans(device: &Device) -> usize {
        lock(&device.blas().expect("cuBLASLt is used").plans).len()
    }

    #[test]
    fn an_algorithm_is_chosen_once_for_each_kind_of_product() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(DeviceOptions { strict: false, ..emulated::options() });
        let first = multiply(&device, GemmLayout::Nt, 0);
        assert_eq!(n_plans(&device), 1);
        assert_eq!(multiply(&device, GemmLayout::Nt, 0), first);
        assert_eq!(n_plans(&device), 1);
        multiply(&device, GemmLayout::Nn, 0);
        assert_eq!(n_plans(&device), 2);
        // the same sizes, from addresses that allow less
        multiply(&device, GemmLayout::Nt, 1);
        assert_eq!(n_plans(&device), 3);
    }

    #[test]
    fn alignments_are_those_that_loads_care_for() {
        let of = |address| {
            let numbers = Numbers { address, len: 1, format: Format::F32 };
            alignment(Matrix::new(numbers, 1))
        };
        assert_eq!([4096, 16, 24, 4, 2, 7].map(of), [16, 16, 8, 4, 2, 1]);
    }
}
