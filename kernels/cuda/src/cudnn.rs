//! Attention forward through NVIDIA's cuDNN, on Hopper and later, where it is installed.
//!
//! What it does not do, our own kernels do as ever: f32, windows, soft caps, caches of keys, and
//! backward, whose deterministic form takes gigabytes on Hopper. Backward reads `lse`, which cuDNN
//! writes as we do: natural logarithm, [T, H].
//!
//! **Invariant:** who computes a call depends on the device, the versions of the libraries and the
//! sizes of the call alone, never on what came before or how fast it was: a run that is resumed has
//! the same bits. (`kernels/cuda/tests/cudnn.rs`)
//!
//! Nobody has to believe that cuDNN computes what we mean: [`trial`] compares each plan with our own
//! kernels before its first use, since cuDNN may choose another engine for other sizes. Start
//! reading at [`CuDnn::forward`].
//!
//! Numerics: probabilities are rounded to bfloat16, as by our kernels; the order of sums is cuDNN's
//! own, and may differ with the sizes that a plan was made for. So the last bits of a sequence may
//! depend on how many others are packed with it, and on how long they are.

mod backend;
#[expect(dead_code, reason = "`cargo xtask cudnn` describes devices")]
mod plan;
mod trial;
mod tried;

use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

use forgelm_kernels_api::{AttentionShape, Format, Segment};

use crate::attention;
use crate::call::{Call, Numbers};
use crate::device::{Device, DeviceFacts, lock};
use crate::error::{CudaError, DriverFault, fail, must};
use crate::libraries::Libraries;
use crate::pool::Allocation;
use backend::{Backend, Pointer, Refusal, function};
use plan::{Plan, Sizes, Tensor, VERSION_MIN};
use tried::Plans;

pub(crate) use plan::WORKSPACE_MAX;
pub(crate) use trial::bytes as trial_bytes;
pub use tried::AttentionUnfit;

/// The device from which on it is used: Hopper.
const CAPABILITY_MIN: (u32, u32) = (9, 0);
/// The CUDA of the libraries that are looked for.
const CUDA_MAJOR: usize = 12;
/// The widest head that it takes, in whole vectors of 16 bytes.
const HEAD_DIM_MAX: usize = 256;
const VECTOR: usize = 8;

/// Why our own kernels compute all of attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CuDnnUnused {
    /// The options of the device say so.
    SwitchedOff,
    /// It was not found.
    Missing,
    /// The device came before Hopper.
    OlderDevice,
    /// It is older than 9.21; this one.
    TooOld(String),
    /// It was made for another CUDA than 12: for this major version.
    OtherCuda(usize),
    /// It needs cuBLASLt, without which it ends the process.
    NoCublasLt,
    /// It does not start: cuDNN's number of the reason.
    NotStarted(u32),
}

impl fmt::Display for CuDnnUnused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SwitchedOff => f.write_str("is switched off"),
            Self::Missing => f.write_str("was not found"),
            Self::OlderDevice => f.write_str("is for devices of compute capability 9.0 and later"),
            Self::TooOld(version) => write!(f, "is {version}; 9.21 or later is needed"),
            Self::OtherCuda(major) => {
                write!(f, "is that of CUDA {major}; expected that of CUDA 12")
            }
            Self::NoCublasLt => f.write_str("needs cuBLASLt 12, which was not found"),
            Self::NotStarted(status) => write!(f, "does not start: status {status}"),
        }
    }
}

/// The functions that run plans.
#[derive(Clone, Copy, Debug)]
struct Running {
    create: unsafe extern "C" fn(*mut Pointer) -> u32,
    destroy: unsafe extern "C" fn(Pointer) -> u32,
    set_stream: unsafe extern "C" fn(Pointer, *mut c_void) -> u32,
    execute: unsafe extern "C" fn(Pointer, Pointer, Pointer) -> u32,
}

/// One forward.
#[derive(Clone, Copy)]
pub(crate) struct Forward<'a> {
    pub(crate) out: Numbers,
    pub(crate) lse: Numbers,
    pub(crate) q: Numbers,
    pub(crate) k: Numbers,
    pub(crate) v: Numbers,
    pub(crate) shape: &'a AttentionShape,
    pub(crate) segments: &'a [Segment],
}

/// cuDNN, with the plans that it made so far.
#[derive(Debug)]
pub(crate) struct CuDnn {
    backend: Backend,
    running: Running,
    handle: Pointer,
    version: usize,
    /// Under this lock alone the handle is used.
    plans: Mutex<Plans>,
    workspace: OnceLock<Allocation>,
}

// SAFETY: cuDNN's functions may be called from every thread, with one handle by one at a time.
unsafe impl Send for CuDnn {}
// SAFETY: as above.
unsafe impl Sync for CuDnn {}

impl CuDnn {
    /// Starts it, with the device current on this thread.
    pub(crate) fn open(
        libraries: &Libraries,
        facts: &DeviceFacts,
        stream: *mut c_void,
    ) -> Result<Self, CuDnnUnused> {
        if !libraries.cudnn.is_there() {
            return Err(CuDnnUnused::Missing);
        }
        if facts.capability < CAPABILITY_MIN {
            return Err(CuDnnUnused::OlderDevice);
        }
        // SAFETY: it was found, and stays loaded.
        let library = unsafe { cudarc::cudnn::sys::culib() };
        let too_old = || CuDnnUnused::TooOld("a version without its backend".to_owned());
        let backend = Backend::of(library).ok_or_else(too_old)?;
        let version = backend.version();
        if version < VERSION_MIN {
            return Err(CuDnnUnused::TooOld(dotted(version)));
        }
        // It opens the cuBLASLt of its CUDA by name, and aborts where there is none.
        let major = backend.cuda_version() / 1000;
        if major != CUDA_MAJOR {
            return Err(CuDnnUnused::OtherCuda(major));
        }
        if !libraries.cublaslt.is_there() {
            return Err(CuDnnUnused::NoCublasLt);
        }
        let running = Running::of(library).ok_or_else(too_old)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: it writes one address.
        let status = unsafe { (running.create)(&raw mut handle) };
        if status != 0 {
            return Err(CuDnnUnused::NotStarted(status));
        }
        let (plans, workspace) = Default::default();
        let this = Self { backend, running, handle, version, plans, workspace };
        // SAFETY: the handle was just made; the stream lives as long as the device.
        match unsafe { (running.set_stream)(handle, stream) } {
            0 => Ok(this),
            status => Err(CuDnnUnused::NotStarted(status)),
        }
    }

    /// As `9.28.0`.
    pub(crate) fn version(&self) -> String {
        dotted(self.version)
    }

    /// Computes attention. `false` if it does not: our own kernels do.
    pub(crate) fn forward(&self, call: &Call<'_>, given: &Forward<'_>) -> bool {
        let Some(sizes) = given.sizes() else { return false };
        let mut plans = lock(&self.plans);
        let Ok(plan) = self.plan(&mut plans, call.device(), sizes) else { return false };
        let done = self.run(call, given, sizes, &plan);
        done.unwrap_or_else(|refusal| failed(call.device(), call.op(), &refusal));
        true
    }

    /// Asks the device to compute a batch by a plan for these sizes.
    fn run(
        &self,
        call: &Call<'_>,
        given: &Forward<'_>,
        sizes: Sizes,
        plan: &Arc<Plan>,
    ) -> Result<(), Refusal> {
        let workspace = self.workspace.get_or_init(|| must(call.device().allocate(WORKSPACE_MAX)));
        let lists = Lists::new(given.segments, sizes);
        let on_device = |values: &[i32]| call.array(values) as Pointer;
        let (lens, numbers) = (on_device(&lists.lens), |x: Numbers| x.address as Pointer);
        let offsets = |row: usize| on_device(&lists.offsets(row));
        let Sizes { n_heads, n_kv_heads, head_dim, .. } = sizes;
        let (scale, masked, seen_ahead) = (given.shape.scale, f32::NEG_INFINITY, 0_i32);
        let tensors = [
            (Tensor::Q, numbers(given.q)),
            (Tensor::K, numbers(given.k)),
            (Tensor::V, numbers(given.v)),
            (Tensor::Out, numbers(given.out)),
            (Tensor::Stats, numbers(given.lse)),
            (Tensor::QueryLens, lens),
            (Tensor::KeyLens, lens),
            (Tensor::QueryOffsets, offsets(n_heads * head_dim)),
            (Tensor::KeyOffsets, offsets(n_kv_heads * head_dim)),
            (Tensor::StatsOffsets, offsets(n_heads)),
            (Tensor::Scale, (&raw const scale).cast_mut().cast()),
            (Tensor::Masked, (&raw const masked).cast_mut().cast()),
            (Tensor::SeenAhead, (&raw const seen_ahead).cast_mut().cast()),
        ];
        let arguments = Plan::arguments(self.backend, &tensors, workspace.address() as Pointer)?;
        call.device().keep_for_capture(plan);
        // SAFETY: the plan was made for tensors of these sizes, which `Forward::sizes` has checked
        // against the memory they lie in; the workspace is as large as any plan may want, and
        // everything that uses it goes through one stream; scalars are read before this returns.
        let status =
            unsafe { (self.running.execute)(self.handle, plan.pointer(), arguments.pointer()) };
        self.backend.checked(status, || "running a plan".to_owned())
    }
}

impl Drop for CuDnn {
    fn drop(&mut self) {
        lock(&self.plans).clear();
        // SAFETY: the handle was made by `open`, and goes with this.
        unsafe { (self.running.destroy)(self.handle) };
    }
}

impl Running {
    fn of(library: &'static libloading::Library) -> Option<Self> {
        Some(Self {
            create: function(library, b"cudnnCreate\0")?,
            destroy: function(library, b"cudnnDestroy\0")?,
            set_stream: function(library, b"cudnnSetStream\0")?,
            execute: function(library, b"cudnnBackendExecute\0")?,
        })
    }
}

impl Forward<'_> {
    /// The sizes of the plan that it needs; `None` for what is left to our own kernels.
    fn sizes(&self) -> Option<Sizes> {
        let Self { out, lse, q, k, v, shape, segments } = *self;
        let AttentionShape { n_heads, n_kv_heads, head_dim, window, soft_cap, .. } = *shape;
        let longest = segments.iter().map(|segment| segment.len).max().unwrap_or(0);
        let are_bf16 = [out, q, k, v].iter().all(|x| x.format == Format::Bf16);
        let are_aligned = [out, lse, q, k, v].iter().all(|x| x.is_aligned());
        let is_whole = head_dim.is_multiple_of(VECTOR) && head_dim <= HEAD_DIM_MAX;
        // A window as long as the longest sequence hides nothing.
        let is_plain = soft_cap.is_none() && window.is_none_or(|window| window >= longest);
        // Offsets are `i32`.
        let is_countable = i32::try_from(q.len.max(k.len)).is_ok();
        let taken = longest > 0 && are_bf16 && are_aligned && is_whole && is_plain && is_countable;
        let n_sequences = segments.len();
        let sizes = Sizes { n_heads, n_kv_heads, head_dim, n_sequences, longest };
        taken.then(|| sizes.rounded_up())
    }

    /// The same by our own kernels.
    fn by_our_own(&self, call: &Call<'_>) {
        let Self { out, lse, q, k, v, shape, segments } = *self;
        attention::forward_here(call, out, lse, [q, k, v], shape, segments);
    }
}

/// Lengths of sequences and their first rows, as many as a plan counts; those that are not there
/// begin behind the last row and have none.
struct Lists {
    lens: Vec<i32>,
    starts: Vec<usize>,
}

impl Lists {
    fn new(segments: &[Segment], sizes: Sizes) -> Self {
        let mut lens: Vec<i32> = segments.iter().map(|segment| segment.len as i32).collect();
        let mut starts: Vec<usize> = segments.iter().map(|segment| segment.start).collect();
        let end = segments.last().map_or(0, |segment| segment.start + segment.len);
        lens.resize(sizes.n_sequences, 0);
        starts.resize(sizes.n_sequences + 1, end);
        Self { lens, starts }
    }

    /// Where sequences begin, counted in numbers of which a row has so many.
    fn offsets(&self, row: usize) -> Vec<i32> {
        self.starts.iter().map(|start| (start * row) as i32).collect()
    }
}

/// Ends an op that cuDNN has failed.
fn failed<T>(device: &Device, op: &'static str, refusal: &Refusal) -> T {
    let fault = DriverFault {
        code: refusal.status,
        name: refusal.doing.clone(),
        text: format!("cuDNN's answer in `{op}`: {}", refusal.text),
    };
    let device = device.label().to_owned();
    fail(&CudaError::Driver { device, doing: "attention by cuDNN", fault })
}

/// 92800 as `9.28.0`.
fn dotted(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

#[cfg(test)]
mod tests {
    use forgelm_kernels_api::Compute;

    use super::*;

    const SHAPE: AttentionShape = AttentionShape {
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        scale: 0.125,
        window: None,
        soft_cap: None,
        compute: Compute::Bf16,
    };

    /// Sizes of a call on five sequences, the longest of 100 rows.
    fn sizes_of(shape: &AttentionShape, change: impl Fn(&mut [Numbers; 5])) -> Option<Sizes> {
        let mut start = 0;
        let segment = |len| {
            start += len;
            Segment { start: start - len, len }
        };
        let segments: Vec<_> = [1, 100, 30, 7, 60].map(segment).into();
        let numbers = |row: usize, format| Numbers { address: 4096, len: start * row, format };
        let rows = [shape.n_heads, shape.n_kv_heads].map(|heads| heads * shape.head_dim);
        let mut arrays = [
            numbers(rows[0], Format::Bf16),
            numbers(shape.n_heads, Format::F32),
            numbers(rows[0], Format::Bf16),
            numbers(rows[1], Format::Bf16),
            numbers(rows[1], Format::Bf16),
        ];
        change(&mut arrays);
        let [out, lse, q, k, v] = arrays;
        Forward { out, lse, q, k, v, shape, segments: &segments }.sizes()
    }

    #[test]
    fn sizes_are_rounded_up_to_powers_of_two() {
        let sizes = sizes_of(&SHAPE, |_| {}).unwrap();
        let expected =
            Sizes { n_heads: 4, n_kv_heads: 2, head_dim: 64, n_sequences: 8, longest: 128 };
        assert_eq!(sizes, expected);
        assert_eq!(Sizes { n_sequences: 1, longest: 3, ..sizes }.rounded_up().longest, 64);
    }

    #[test]
    fn what_cudnn_does_not_do_is_left_to_our_own_kernels() {
        let of = |shape: AttentionShape| sizes_of(&shape, |_| {});
        assert!(of(SHAPE).is_some());
        assert!(of(AttentionShape { soft_cap: Some(50.0), ..SHAPE }).is_none());
        assert!(of(AttentionShape { window: Some(99), ..SHAPE }).is_none());
        assert!(of(AttentionShape { window: Some(100), ..SHAPE }).is_some());
        assert!(of(AttentionShape { head_dim: 60, ..SHAPE }).is_none());
        assert!(of(AttentionShape { head_dim: 264, ..SHAPE }).is_none());
        for i in 0..5 {
            assert!(sizes_of(&SHAPE, |arrays| arrays[i].address += 8).is_none(), "{i}");
            let changed = sizes_of(&SHAPE, |arrays| arrays[i].format = Format::F32);
            assert_eq!(changed.is_some(), i == 1, "{i}");
        }
        assert!(sizes_of(&SHAPE, |arrays| arrays[2].len = 1 << 31).is_none());
    }

    #[test]
    fn sequences_that_are_not_there_begin_behind_the_last_row() {
        let segments = [Segment { start: 0, len: 5 }, Segment { start: 5, len: 2 }];
        let sizes = Sizes { n_heads: 4, n_kv_heads: 2, head_dim: 8, n_sequences: 4, longest: 64 };
        let lists = Lists::new(&segments, sizes);
        assert_eq!(lists.lens, [5, 2, 0, 0]);
        assert_eq!(lists.offsets(32), [0, 160, 224, 224, 224]);
    }

    /// `plans.tsv` is what `cargo xtask cudnn` found cuDNN 9.28 to say.
    #[test]
    fn every_plan_of_the_table_is_made_within_the_workspace() {
        let mut n = 0;
        for line in include_str!("cudnn/plans.tsv").lines().skip(1) {
            let fields: Vec<&str> = line.split('\t').collect();
            let [device, _heads, _kv_heads, head_dim, _sequences, _longest, workspace] = fields[..]
            else {
                panic!("{line}")
            };
            let head_dim: usize = head_dim.parse().unwrap();
            assert!(of_head_dim(head_dim), "{line}");
            let bytes: usize = workspace.parse().expect("a plan, not a refusal");
            assert!(bytes <= WORKSPACE_MAX, "{line}");
            n += usize::from(device != "sm_80");
        }
        // two devices, each with every case
        assert_eq!(n, 28);
    }

    fn of_head_dim(head_dim: usize) -> bool {
        sizes_of(&AttentionShape { head_dim, ..SHAPE }, |_| {}).is_some()
    }

    #[test]
    fn a_reason_is_the_end_of_a_sentence() {
        assert_eq!(
            CuDnnUnused::TooOld(dotted(91_002)).to_string(),
            "is 9.10.2; 9.21 or later is needed"
        );
        let other = CuDnnUnused::OtherCuda(13).to_string();
        assert_eq!(other, "is that of CUDA 13; expected that of CUDA 12");
    }
}
