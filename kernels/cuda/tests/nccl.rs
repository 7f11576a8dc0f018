//! Devices that are linked by NCCL, a stand-in for which carries bytes between emulated devices: what
//! arrives where, and how long is waited for what never comes.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test, which says what it skips")]
#![expect(clippy::disallowed_methods, reason = "files in a temporary folder")]
#![expect(clippy::cast_precision_loss, reason = "indices of a few numbers")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forgelm_kernels_api::{Buffer, DeviceLink, DeviceLinks, LinkError, Ops as _, Precision, Seat};
use forgelm_kernels_cuda::{
    Cuda, Device, DeviceOptions, Folders, Found, ImageSource, Libraries, NcclUnused,
};
use forgelm_kernels_emulator::{self as emulator, Nccl, NcclFault, Streams};

/// The emulated driver has one state in a process: tests that use it follow each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Alone with as many emulated devices as ranks, and an NCCL; `None`, aloud, where there is none.
fn alone() -> Option<MutexGuard<'static, ()>> {
    if let Some(reason) = emulator::unavailable() {
        println!("skipped: {reason}");
        return None;
    }
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    emulator::set_device(&emulator::Device { n_devices: 4, ..Default::default() });
    emulator::set_streams(Streams::Deferred);
    emulator::set_nccl(&Nccl::default());
    emulator::reset_counters();
    Some(alone)
}

fn set_fault(fault: NcclFault) {
    emulator::set_nccl(&Nccl { fault, ..Nccl::default() });
}

fn libraries_in(folder: PathBuf) -> Libraries {
    let first = vec![emulator::library_folder().to_owned(), folder];
    Libraries::find(&Folders { first, last: Vec::new() })
}

fn libraries() -> Libraries {
    let libraries = libraries_in(emulator::nccl_folder());
    assert_eq!(libraries.nccl, Found::At(emulator::nccl_folder().join("libnccl.so.2")));
    libraries
}

fn open(ordinal: usize, libraries: &Libraries, no_nccl: bool) -> Cuda {
    let images = ImageSource::Given(Arc::from(&emulator::IMAGE[..]));
    let options = DeviceOptions { images, no_nccl, ..DeviceOptions::default() };
    Cuda::new(Device::open(ordinal, libraries, options).unwrap(), 1)
}

fn links(cuda: &Cuda) -> &dyn DeviceLinks {
    cuda.links().unwrap().unwrap()
}

fn seat(rank: usize, n_ranks: usize, deadline_ms: u64) -> Seat {
    Seat { rank, n_ranks, deadline: Duration::from_millis(deadline_ms) }
}

/// Does something on each of some linked devices, each on a thread of its own.
fn on_ranks<T: Send>(
    n_ranks: usize,
    deadline_ms: u64,
    work: impl Fn(&Cuda, &dyn DeviceLink) -> T + Sync,
) -> Vec<T> {
    let libraries = libraries();
    let devices: Vec<Cuda> = (0..n_ranks).map(|rank| open(rank, &libraries, false)).collect();
    let id = links(&devices[0]).new_id().unwrap();
    std::thread::scope(|scope| {
        let start = |(rank, cuda)| {
            let (work, id) = (&work, &id);
            scope.spawn(move || {
                let link = links(cuda).link(id, seat(rank, n_ranks, deadline_ms)).unwrap();
                assert_eq!(link.seat().rank, rank);
                work(cuda, link.as_ref())
            })
        };
        let handles: Vec<_> = devices.iter().enumerate().map(start).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

/// What a process gives to another, of so many numbers: numbers that tell both.
fn numbers(from: usize, to: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| (100 * from + 10 * to) as f32 + i as f32 * 0.25).collect()
}

/// Numbers that one process has for another: none for some.
fn n_numbers(from: usize, to: usize) -> usize {
    (3 * from + 5 * to) % 7
}

#[test]
fn every_process_gets_what_each_has_for_it() {
    let Some(_alone) = alone() else { return };
    for n_ranks in 1..=4 {
        on_ranks(n_ranks, 60_000, |cuda, link| {
            let rank = link.seat().rank;
            let n_sent: Vec<usize> = (0..n_ranks).map(|to| n_numbers(rank, to)).collect();
            let n_received: Vec<usize> = (0..n_ranks).map(|from| n_numbers(from, rank)).collect();
            let own = (0..n_ranks).flat_map(|to| numbers(rank, to, n_sent[to])).collect();
            let expected: Vec<f32> =
                (0..n_ranks).flat_map(|from| numbers(from, rank, n_received[from])).collect();
            let own = cuda.place(own).unwrap();
            // The device has work before and after: it neither comes too late nor too early.
            let mut parts = cuda.allocate(expected.len(), Precision::Exact).unwrap();
            for _ in 0..3 {
                cuda.fill(parts.all_mut(), -1.0);
                link.all_to_all(own.all(), &n_sent, parts.all_mut(), &n_received).unwrap();
                cuda.scale(parts.all_mut(), 2.0);
                let doubled: Vec<f32> = expected.iter().map(|x| 2.0 * x).collect();
                assert_eq!(*parts.all().to_host(), doubled, "rank {rank} of {n_ranks}");
            }
        });
    }
    let sent: usize = (2..=4_usize)
        .flat_map(|p| (0..p).flat_map(move |from| (0..p).map(move |to| (from, to))))
        .filter(|(from, to)| from != to)
        .map(|(from, to)| 3 * 4 * n_numbers(from, to))
        .sum();
    assert_eq!(emulator::counters().nccl_bytes, sent as u64);
}

#[test]
fn every_process_gets_what_all_have() {
    let Some(_alone) = alone() else { return };
    let n_of = [3, 0, 700_000];
    on_ranks(3, 60_000, |cuda, link| {
        let rank = link.seat().rank;
        let expected: Vec<f32> = (0..3).flat_map(|of| numbers(of, 0, n_of[of])).collect();
        let own = cuda.place(numbers(rank, 0, n_of[rank])).unwrap();
        let mut all = cuda.allocate(expected.len(), Precision::Exact).unwrap();
        link.all_gather(own.all(), all.all_mut(), &n_of).unwrap();
        assert_eq!(*all.all().to_host(), expected);
        let bytes = |of: u8, n: usize| (0..n).map(move |i| of * 16 + u8::try_from(i).unwrap());
        let own = cuda.place_bytes(bytes(u8::try_from(rank).unwrap(), 2 * rank).collect()).unwrap();
        let mut all: Buffer<u8> = cuda.place_bytes(vec![0; 6]).unwrap();
        link.all_gather_bytes(own.all(), all.all_mut(), &[0, 2, 4]).unwrap();
        assert_eq!(*all.all().to_host(), [16, 17, 32, 33, 34, 35]);
    });
}

/// How an exchange of two processes failed on each, and that nothing goes on after it.
fn failures(deadline_ms: u64) -> Vec<LinkError> {
    on_ranks(2, deadline_ms, |cuda, link| {
        let own = cuda.place(vec![1.0, 2.0]).unwrap();
        let mut parts = cuda.allocate(2, Precision::Exact).unwrap();
        let mut exchange = || link.all_to_all(own.all(), &[1, 1], parts.all_mut(), &[1, 1]);
        let error = exchange().unwrap_err();
        assert_eq!(exchange(), Err(LinkError::Ended));
        // The device is as good as before.
        assert_eq!(*own.all().to_host(), [1.0, 2.0]);
        error
    })
}

#[test]
fn an_operation_that_fails_is_told_with_nccls_own_words() {
    let Some(_alone) = alone() else { return };
    set_fault(NcclFault::OperationFails);
    let expected = "`all_to_all` of devices on rank 1 of 2 failed: remote process exited or there was \
                    a network error (6); Call to recv from a peer failed : Connection reset by peer\n  \
                    hint: `NCCL_DEBUG=INFO` lets NCCL tell what it does, and `FORGELM_NO_NCCL=1` \
                    leaves it alone";
    assert_eq!(failures(60_000)[1].to_string(), expected);
}

#[test]
fn what_never_arrives_is_waited_for_until_the_deadline() {
    let Some(_alone) = alone() else { return };
    set_fault(NcclFault::NoBytes);
    let text = failures(200)[0].to_string();
    let expected = "`all_to_all` of devices on rank 0 of 2: not done within 0.2 s; another process \
                    stands still, has ended, or cannot be reached\n  hint: `NCCL_DEBUG=INFO`";
    assert!(text.starts_with(expected), "{text}");
}

/// The test of what arrives can fail.
#[test]
fn a_bit_that_is_another_is_seen() {
    let Some(_alone) = alone() else { return };
    set_fault(NcclFault::WrongByte);
    let received = on_ranks(2, 60_000, |cuda, link| {
        let own = cuda.place(vec![1.0, 1.0]).unwrap();
        let mut parts = cuda.allocate(2, Precision::Exact).unwrap();
        link.all_to_all(own.all(), &[1, 1], parts.all_mut(), &[1, 1]).unwrap();
        parts.all().to_host().iter().filter(|x| x.to_bits() == 1.0_f32.to_bits()).count()
    });
    assert_eq!(received, [1, 1]);
}

#[test]
fn a_rank_that_never_comes_is_waited_for_until_the_deadline() {
    let Some(_alone) = alone() else { return };
    let cuda = open(0, &libraries(), false);
    let id = links(&cuda).new_id().unwrap();
    let error = links(&cuda).link(&id, seat(0, 2, 100)).unwrap_err();
    let text = error.to_string();
    let expected = "linking devices on rank 0 of 2: not done within 0.05 s; ";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn a_library_that_refuses_is_told() {
    let Some(_alone) = alone() else { return };
    let cuda = open(0, &libraries(), false);
    set_fault(NcclFault::NoId);
    let text = links(&cuda).new_id().unwrap_err().to_string();
    assert!(text.starts_with("making an id for NCCL failed: unhandled system error"), "{text}");
    set_fault(NcclFault::None);
    let id = links(&cuda).new_id().unwrap();
    set_fault(NcclFault::NoCommunicator);
    let text = links(&cuda).link(&id, seat(1, 2, 100)).unwrap_err().to_string();
    let expected = "linking devices on rank 1 of 2 failed: unhandled system error";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn what_cannot_be_used_says_why() {
    let Some(_alone) = alone() else { return };
    let why = |cuda: &Cuda| cuda.links().unwrap().err().unwrap();
    assert_eq!(why(&open(0, &libraries(), true)), "NCCL is switched off");
    assert_eq!(links(&open(0, &libraries(), false)).library(), "NCCL 2.32.3");
    emulator::set_nccl(&Nccl { version: 21_307, ..Nccl::default() });
    let expected = "NCCL is 2.13.7; 2.14 or later is needed, whose calls do not wait for ever";
    assert_eq!(why(&open(0, &libraries(), false)), expected);
    let expected = NcclUnused::TooOld("2.13.7".to_owned());
    assert_eq!(open(0, &libraries(), false).device().nccl_version(), Err(expected));
}

/// Another library under the name.
#[test]
fn a_library_without_nccls_functions_is_not_called() {
    let Some(_alone) = alone() else { return };
    let folder = tempfile::tempdir().unwrap();
    let other = emulator::cudnn_folder().join("libcudnn.so.9");
    std::fs::copy(other, folder.path().join("libnccl.so.2")).unwrap();
    std::fs::copy(
        emulator::library_folder().join("libcuda.so.1"),
        folder.path().join("libcuda.so.1"),
    )
    .unwrap();
    let mut libraries = libraries();
    libraries.nccl = Found::At(folder.path().join("libnccl.so.2"));
    let cuda = open(0, &libraries, false);
    let expected = "NCCL has no function `ncclGetVersion`: it is no NCCL";
    assert_eq!(cuda.links().unwrap().err().unwrap(), expected);
}

#[test]
#[should_panic(expected = "`all_gather`: numbers by the counts")]
fn counts_that_do_not_fit_are_a_bug() {
    let Some(_alone) = alone() else { panic!("`all_gather`: numbers by the counts") };
    let cuda = open(0, &libraries(), false);
    let id = links(&cuda).new_id().unwrap();
    let link = links(&cuda).link(&id, seat(0, 1, 100)).unwrap();
    let own = cuda.place(vec![1.0]).unwrap();
    let mut all = cuda.allocate(2, Precision::Exact).unwrap();
    let _ = link.all_gather(own.all(), all.all_mut(), &[1]);
}

/// NVIDIA's own library, as its Python wheel has it: it has all functions, and makes an id without a
/// device.
#[test]
#[ignore = "needs the file of NVIDIA's library, in `NCCL_LIBRARY`"]
fn the_real_library_has_these_functions() {
    let Some(_alone) = alone() else { return };
    let file = std::env::var("NCCL_LIBRARY").expect("`NCCL_LIBRARY` names `libnccl.so.2`");
    let mut libraries = libraries();
    libraries.nccl = Found::At(PathBuf::from(file));
    let cuda = open(0, &libraries, false);
    println!("{}", links(&cuda).library());
    let id = links(&cuda).new_id().unwrap();
    assert!(id.len() == 128 && id.iter().any(|&byte| byte != 0), "{id:?}");
}
