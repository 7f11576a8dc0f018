//! Attention by cuDNN, a stand-in for which runs on the emulated device: what is asked of it, when
//! it is believed, and what is done without it.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test, which says what it skips")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "indices of a small batch, and bytes"
)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forgelm_kernels_api::philox::philox4x32;
use forgelm_kernels_api::{
    AttentionShape, Buffer, Compute, Ops as _, Precision, Segment, Workload, caught,
};
use forgelm_kernels_cuda::{
    AttentionUnfit, CuDnnUnused, Cuda, CudaError, Device, DeviceOptions, Folders, Found, Graph,
    ImageSource, Libraries,
};
use forgelm_kernels_emulator::{self as emulator, Cudnn, CudnnFault, Streams};

/// The emulated driver has one state in a process: tests that use it follow each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What the device has told.
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Alone with the emulated driver and a cuDNN; `None`, aloud, where there is none.
fn alone() -> Option<MutexGuard<'static, ()>> {
    if let Some(reason) = emulator::unavailable() {
        println!("skipped: {reason}");
        return None;
    }
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    emulator::set_streams(Streams::Deferred);
    emulator::set_threads(2);
    emulator::set_cudnn(&Cudnn::default());
    told();
    Some(alone)
}

/// What was told since it was asked for last.
fn told() -> Vec<String> {
    std::mem::take(&mut TOLD.lock().unwrap_or_else(PoisonError::into_inner))
}

fn tell(text: &str) {
    TOLD.lock().unwrap_or_else(PoisonError::into_inner).push(text.to_owned());
}

fn libraries() -> Libraries {
    let first = vec![emulator::library_folder().to_owned(), emulator::cudnn_folder()];
    let libraries = Libraries::find(&Folders { first, last: Vec::new() });
    assert_eq!(libraries.cudnn, Found::At(emulator::cudnn_folder().join("libcudnn.so.9")));
    libraries
}

fn open(libraries: &Libraries, own_attention: bool) -> Result<Cuda, CudaError> {
    let images = ImageSource::Given(Arc::from(&emulator::IMAGE[..]));
    let alarm: Option<fn(&str)> = Some(tell);
    let options = DeviceOptions { images, own_attention, alarm, ..DeviceOptions::default() };
    Ok(Cuda::new(Device::open(0, libraries, options)?, 2))
}

fn with_cudnn() -> Cuda {
    open(&libraries(), false).unwrap()
}

fn with_our_own() -> Cuda {
    open(&libraries(), true).unwrap()
}

fn unused(cuda: &Cuda) -> Option<CuDnnUnused> {
    cuda.device().cudnn_version().err()
}

const SHAPE: AttentionShape = AttentionShape {
    n_heads: 4,
    n_kv_heads: 2,
    head_dim: 64,
    scale: 0.25,
    window: None,
    soft_cap: None,
    compute: Compute::Bf16,
};

/// A batch on a device: q, k, v, and room for results.
struct Batch {
    shape: AttentionShape,
    segments: Vec<Segment>,
    out: Buffer,
    lse: Buffer,
    inputs: [Buffer; 3],
}

impl Batch {
    fn new(cuda: &Cuda, shape: AttentionShape, lens: &[usize]) -> Self {
        let mut n_rows = 0;
        let segment = |&len: &usize| {
            n_rows += len;
            Segment { start: n_rows - len, len }
        };
        let segments = lens.iter().map(segment).collect();
        let buffer = |n, precision| cuda.allocate(n, precision).unwrap();
        let rounded = Precision::Like(Compute::Bf16);
        let input = |seed: u32, n_heads: usize| {
            let n = n_rows * n_heads * shape.head_dim;
            let byte = |i: usize| philox4x32([i as u32, seed, 7, 0], [0, 0])[0] >> 24;
            let numbers: Vec<f32> = (0..n).map(|i| (byte(i) as f32 - 128.0) / 128.0).collect();
            let mut buffer = buffer(n, rounded);
            buffer.all_mut().copy_from_host(&numbers);
            buffer
        };
        Self {
            shape,
            segments,
            out: buffer(n_rows * shape.n_heads * shape.head_dim, rounded),
            lse: buffer(n_rows * shape.n_heads, Precision::Exact),
            inputs: [(1, shape.n_heads), (2, shape.n_kv_heads), (3, shape.n_kv_heads)]
                .map(|(seed, n_heads)| input(seed, n_heads)),
        }
    }

    fn compute(&mut self, cuda: &Cuda) {
        let [q, k, v] = &self.inputs;
        let (out, lse) = (self.out.all_mut(), self.lse.all_mut());
        cuda.attention_forward(out, lse, q.all(), k.all(), v.all(), &self.shape, &self.segments);
    }

    fn results(&self) -> [Vec<f32>; 2] {
        [self.out.all().to_host().to_vec(), self.lse.all().to_host().to_vec()]
    }
}

fn forward(cuda: &Cuda, shape: AttentionShape, lens: &[usize]) -> [Vec<f32>; 2] {
    let mut batch = Batch::new(cuda, shape, lens);
    batch.compute(cuda);
    batch.results()
}

/// The largest difference.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let distances = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    // what is no number is far from everything
    distances.fold(0.0, |largest, d| if d <= largest { largest } else { d })
}

#[test]
fn cudnn_computes_what_our_own_kernels_do() {
    let Some(_alone) = alone() else { return };
    let (theirs, ours) = (with_cudnn(), with_our_own());
    let shapes = [(4, 2, 64), (2, 1, 128), (3, 3, 8), (2, 1, 256)];
    for (n_heads, n_kv_heads, head_dim) in shapes {
        let shape = AttentionShape { n_heads, n_kv_heads, head_dim, ..SHAPE };
        for lens in [&[1_usize][..], &[70, 0, 3], &[130, 1, 1, 1, 1]] {
            emulator::reset_counters();
            let [out, lse] = forward(&theirs, shape, lens);
            assert!(emulator::counters().cudnn_attentions >= 1, "{shape:?}, {lens:?}");
            let [own_out, own_lse] = forward(&ours, shape, lens);
            // By the bounds that `cudnn/trial.rs` derives.
            assert!(distance(&out, &own_out) <= 1.0 / 128.0, "{shape:?}, {lens:?}");
            assert!(distance(&lse, &own_lse) <= 1.0 / 1024.0, "{shape:?}, {lens:?}");
        }
    }
    assert_eq!(told(), [""; 0]);
}

#[test]
fn a_plan_is_tried_once_and_serves_all_that_fit_it() {
    let Some(_alone) = alone() else { return };
    let cuda = with_cudnn();
    let counted = |lens: &[usize]| {
        emulator::reset_counters();
        forward(&cuda, SHAPE, lens);
        let counters = emulator::counters();
        (counters.cudnn_plans, counters.cudnn_attentions, counters.n_launches() > 0)
    };
    // The trial has two forwards and one of our own; then the call.
    assert_eq!(counted(&[100, 30, 7]), (1, 3, true));
    // three or four sequences of 65 to 128 rows
    for lens in [&[100_usize, 30, 7][..], &[65, 2, 128, 1]] {
        assert_eq!(counted(lens), (0, 1, false));
    }
    for other in [&[129_usize, 2, 128, 1][..], &[100, 2, 1, 1, 1], &[9]] {
        assert_eq!(counted(other), (1, 3, true));
        assert_eq!(counted(other), (0, 1, false));
    }
}

#[test]
fn what_computes_something_else_is_not_used_and_is_told() {
    let Some(_alone) = alone() else { return };
    let lens = [100, 30, 7];
    let expected = forward(&with_our_own(), SHAPE, &lens);
    for (fault, words) in [
        (CudnnFault::WrongNumber, "column 5 of `out` is "),
        (CudnnFault::LogarithmOfTwo, "column 0 of `lse` is "),
        (CudnnFault::WritesBehind, "row 196, column 0 of `out` is 0, expected 96 "),
        (CudnnFault::ReadsBehind, "of `out` is NaN, expected "),
        (CudnnFault::OtherBits, "two results for one batch"),
        (CudnnFault::DoesNotRun, "running a plan: status 5000: the stand-in for cuDNN "),
    ] {
        emulator::set_cudnn(&Cudnn { fault, ..Cudnn::default() });
        let cuda = with_cudnn();
        for _ in 0..2 {
            assert!(forward(&cuda, SHAPE, &lens) == expected, "{fault:?}");
        }
        let told = told();
        let [warning] = &told[..] else { panic!("{fault:?}: {told:?}") };
        let begin = "cuda:0: attention of 4 heads of 64 over 2 is not left to cuDNN 9.28.0, which ";
        assert!(warning.starts_with(begin), "{warning}");
        assert!(warning.contains(" for 4 sequences of 128 rows at most: "), "{warning}");
        assert!(warning.contains(words), "{fault:?}: {warning}");
        assert!(warning.contains("\n  hint: "), "{warning}");
        let tried = cuda.device().try_attention(4, 2, 64);
        // a larger plan, for a batch of more rows
        let words = words.replace("row 196", "row 256");
        let Err(AttentionUnfit::Different(why)) = tried else { panic!("{fault:?}: {tried:?}") };
        assert!(why.contains(&words), "{fault:?}: {why}");
    }
}

/// As where cuDNN's choice of an engine depends on sizes: another plan says nothing of this one.
#[test]
fn a_plan_that_computes_something_else_is_found_also_where_others_do_not() {
    let Some(_alone) = alone() else { return };
    emulator::set_cudnn(&Cudnn { fault: CudnnFault::WrongForTwo, ..Cudnn::default() });
    let cuda = with_cudnn();
    assert_eq!(cuda.device().try_attention(4, 2, 64), Ok(()));
    let of_two = [&[100_usize, 30][..], &[200, 3]];
    for (i, lens) in of_two.into_iter().enumerate() {
        assert!(forward(&cuda, SHAPE, lens) == forward(&with_our_own(), SHAPE, lens), "{lens:?}");
        let told = told();
        assert_eq!(told.len(), usize::from(i == 0), "{told:?}");
        let told_first = "for 2 sequences of 128 rows at most: row 0, column 5 of `out` is ";
        assert!(told.iter().all(|warning| warning.contains(told_first)), "{told:?}");
    }
    emulator::reset_counters();
    for lens in [&[100_usize][..], &[100, 30, 7]] {
        forward(&cuda, SHAPE, lens);
    }
    assert_eq!(emulator::counters().cudnn_attentions, 6, "the plans that are right compute");
    assert_eq!(told(), [""; 0]);
}

#[test]
fn without_a_plan_our_own_kernels_compute_and_that_is_told_once() {
    let Some(_alone) = alone() else { return };
    for fault in [CudnnFault::NoPlan, CudnnFault::NoPlanForTwo] {
        emulator::set_cudnn(&Cudnn { fault, ..Cudnn::default() });
        let cuda = with_cudnn();
        for lens in [&[40_usize, 7][..], &[40, 7], &[100, 7]] {
            assert!(forward(&cuda, SHAPE, lens) == forward(&with_our_own(), SHAPE, lens));
        }
        let expected = "cuda:0: attention of 4 heads of 64 over 2 is not left to cuDNN 9.28.0, which \
                        has no plan for 2 sequences of 64 rows at most: a plan: status 3000: the \
                        stand-in for cuDNN does not take it; our own kernels compute it\n  hint: \
                        nothing need be done; another version may have one";
        assert_eq!(told(), [expected]);
        // other heads are other news
        forward(&cuda, AttentionShape { head_dim: 8, ..SHAPE }, &[40, 7]);
        assert_eq!(told().len(), 1);
        let tried = cuda.device().try_attention(4, 2, 64);
        let has_none = matches!(tried, Err(AttentionUnfit::NoPlan(_)));
        assert_eq!(has_none, fault == CudnnFault::NoPlan, "{tried:?}");
    }
}

/// Were our own kernels to step in, a run that is resumed with more memory would have other bits.
#[test]
fn memory_that_runs_out_for_a_plan_ends_the_op() {
    let Some(_alone) = alone() else { return };
    emulator::set_cudnn(&Cudnn { fault: CudnnFault::NoMemory, ..Cudnn::default() });
    let cuda = with_cudnn();
    let failure = caught(|| forward(&cuda, SHAPE, &[40, 7])).unwrap_err().to_string();
    assert!(failure.starts_with("cuda:0: attention by cuDNN failed: a plan (4003)"), "{failure}");
}

/// As a run that is resumed in another process, at another batch.
#[test]
fn bits_do_not_depend_on_what_was_computed_before() {
    let Some(_alone) = alone() else { return };
    let batches = [&[100_usize, 30, 7][..], &[9], &[200, 3]];
    let cuda = with_cudnn();
    let first = batches.map(|lens| forward(&cuda, SHAPE, lens));
    let again = with_cudnn();
    for i in [2, 0, 1] {
        assert!(forward(&again, SHAPE, batches[i]) == first[i], "{i}");
    }
}

#[test]
fn what_cudnn_does_not_do_is_not_asked_of_it() {
    let Some(_alone) = alone() else { return };
    let cuda = with_cudnn();
    emulator::reset_counters();
    for shape in [
        AttentionShape { window: Some(20), ..SHAPE },
        AttentionShape { soft_cap: Some(30.0), ..SHAPE },
        AttentionShape { head_dim: 20, ..SHAPE },
    ] {
        forward(&cuda, shape, &[40, 7]);
    }
    let counters = emulator::counters();
    assert_eq!((counters.cudnn_plans, counters.cudnn_attentions), (0, 0));
}

#[test]
fn a_cudnn_that_cannot_be_used_is_told_why() {
    let Some(_alone) = alone() else { return };
    assert_eq!(unused(&with_cudnn()), None);
    assert_eq!(unused(&with_our_own()), Some(CuDnnUnused::SwitchedOff));
    let without = Libraries { cudnn: Found::Missing, ..libraries() };
    assert_eq!(unused(&open(&without, false).unwrap()), Some(CuDnnUnused::Missing));
    let without = Libraries { cublaslt: Found::Missing, ..libraries() };
    assert_eq!(unused(&open(&without, false).unwrap()), Some(CuDnnUnused::NoCublasLt));
    emulator::set_cudnn(&Cudnn { version: 92_000, ..Cudnn::default() });
    let too_old = CuDnnUnused::TooOld("9.20.0".to_owned());
    assert_eq!(unused(&with_cudnn()), Some(too_old));
    emulator::set_cudnn(&Cudnn { cuda_version: 13_020, ..Cudnn::default() });
    assert_eq!(unused(&with_cudnn()), Some(CuDnnUnused::OtherCuda(13)));
}

#[test]
fn a_device_before_hopper_has_our_own_kernels() {
    if let Some(reason) = emulator::unavailable() {
        println!("skipped: {reason}");
        return;
    }
    // In a process of its own: the driver has one device for good.
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_on_ampere", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_on_ampere() {
    emulator::set_device(&emulator::Device { compute_capability: (8, 0), ..Default::default() });
    assert_eq!(unused(&with_cudnn()), Some(CuDnnUnused::OlderDevice));
}

#[test]
fn the_name_and_the_memory_of_calls_know_of_it() {
    let Some(_alone) = alone() else { return };
    let (theirs, ours) = (with_cudnn(), with_our_own());
    assert!(theirs.name().ends_with(", cuDNN 9.28.0)"), "{}", theirs.name());
    assert!(!ours.name().contains("cuDNN"), "{}", ours.name());
    let work = Workload {
        compute: Compute::Bf16,
        n_tokens: 1024,
        longest: 1024,
        n_scored: 1,
        hidden: 256,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        widest: 1024,
        largest_weight: 1 << 18,
        vocabulary: 1000,
        in_blocks: false,
        n_experts: 0,
    };
    // what it keeps; the trial is smaller than the largest product here
    assert!(theirs.workspace_bytes(&work) >= ours.workspace_bytes(&work) + (1 << 20));
    let used = theirs.device().pool().used();
    assert_eq!(used.in_use, 0);
    forward(&theirs, SHAPE, &[100, 30, 7]);
    let small = Workload { n_tokens: 137, longest: 100, widest: 256, ..work };
    let peak = theirs.device().pool().used().peak;
    assert!(peak <= theirs.workspace_bytes(&small), "{peak}");
}

#[test]
fn attention_is_captured_after_it_was_computed_once() {
    let Some(_alone) = alone() else { return };
    let cuda = with_cudnn();
    let mut batch = Batch::new(&cuda, SHAPE, &[40, 7]);
    let failure = caught(|| Graph::capture(cuda.device(), || batch.compute(&cuda)).map(drop));
    let failure = failure.unwrap_err().to_string();
    assert!(
        failure.contains("a trial of cuDNN in `attention_trial` cannot be captured"),
        "{failure}"
    );
    batch.compute(&cuda);
    let expected = batch.results();
    let graph = Graph::capture(cuda.device(), || batch.compute(&cuda)).unwrap();
    batch.out.all_mut().copy_from_host(&vec![0.0; expected[0].len()]);
    graph.replay().unwrap();
    assert!(batch.results() == expected);
}
