//! What one rank does.

use crate::launch::{LIBRARY, SCENARIO};
use forgelm_loader::{HostServices, Loader};
use forgelm_sdk::Failed;
use forgelm_sdk::collective::Collective;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

/// Long enough for four ranks on two cores that others use too.
const LONG: Duration = Duration::from_secs(30);
/// Short enough for a test that waits for it to pass.
const SHORT: Duration = Duration::from_secs(2);
/// What a job is ended with.
const EXIT_CODE: i32 = 17;

#[test]
#[ignore = "a rank of a job, which the other tests start"]
fn a_rank_of_a_launcher() {
    let scenario = std::env::var(SCENARIO).unwrap();
    if scenario == "refused" {
        return refused();
    }
    let mut world = join().unwrap();
    match scenario.as_str() {
        "operations" => operations(&mut *world),
        "absent" => absent(&mut *world),
        "stopped" => stopped(&mut *world),
        "patient" => patient(&mut *world),
        "crossed" => crossed(&mut *world),
        other => panic!("no scenario is called {other}"),
    }
}

fn join() -> Result<Box<dyn Collective>, String> {
    let path = PathBuf::from(std::env::var_os(LIBRARY).unwrap());
    let services = HostServices {
        log: Box::new(|_, _, _| {}),
        progress: Box::new(|_| {}),
        stop: Box::new(|| false),
        kernels: None,
        device: None,
        serving: None,
        hung: None,
    };
    let library = Loader::new(services).load(&path).unwrap().expect("it is new");
    let [mpi] = &library.offers.collectives[..] else { panic!("one collective") };
    assert_eq!(mpi.name, "mpi");
    (mpi.build)(&[]).map_err(|refused| refused.to_string())
}

/// In one piece: ranks write to one terminal.
fn say(world: &dyn Collective, what: &str) {
    let line = format!("rank {} of {}: {what}\n", world.rank(), world.size());
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

fn refused() {
    let Err(why) = join() else { panic!("it joined") };
    std::io::stdout().write_all(format!("refused: {why}\n").as_bytes()).unwrap();
}

/// Says why, and ends the job.
fn give_up(world: &mut dyn Collective, failed: &Failed) -> ! {
    say(world, &format!("{:?}: {failed}", failed.cause));
    let again = world.barrier(LONG).expect_err("nothing works after a failure");
    assert!(again.message.contains("an operation failed before"), "{again}");
    // The others have said theirs too: the first abort would end them before.
    std::thread::sleep(Duration::from_secs(2));
    world.abort(EXIT_CODE);
    panic!("MPI could not end the job");
}

/// Bytes that say who sent them to whom, and where they stand: a block without a pattern, again and
/// again from another place. Its length is a prime, so that no round ends where a block does.
fn bytes(from: usize, to: usize, n: usize) -> Vec<u8> {
    static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let word = |i: u32| i.wrapping_mul(2_654_435_761).rotate_left(13).to_le_bytes()[2];
        (0..65_521).map(word).collect()
    });
    let mut bytes = BLOCK[31 * from + 7 * to..].to_vec();
    while bytes.len() < n {
        bytes.extend_from_slice(&BLOCK);
    }
    bytes.truncate(n);
    bytes
}

fn operations(world: &mut dyn Collective) {
    assert!(world.library().starts_with("Open MPI v") || world.library().starts_with("MPICH "));
    every_operation(world);
    let (rank, size) = (world.rank(), world.size());
    // Even and odd ranks, and each alone, with colors that no int can hold.
    let mut half = world.split(u32::MAX - u32::try_from(rank % 2).unwrap(), LONG).unwrap();
    assert_eq!((half.rank(), half.size()), (rank / 2, (size + 1 - rank % 2) / 2));
    let mut alone = world.split(u32::try_from(rank).unwrap(), LONG).unwrap();
    assert_eq!((alone.rank(), alone.size()), (0, 1));
    every_operation(&mut *half);
    every_operation(&mut *alone);
    // A part of a part, and the whole again while its parts are there.
    let part = half.split(7, LONG).unwrap();
    assert_eq!((part.rank(), part.size()), (half.rank(), half.size()));
    every_operation(world);
    let wrong = world.all_gather(&[0; 3], &mut vec![0; 4 * size], &vec![4; size], LONG);
    assert!(wrong.unwrap_err().message.contains("`own` has 3 bytes; expected 4"));
    let wrong = world.broadcast(&mut [0], size, LONG).unwrap_err().message;
    assert!(wrong.contains(&format!("root is {size}; expected one of {size} ranks")), "{wrong}");
    world.barrier(LONG).expect("a call that was refused broke nothing");
    say(world, "every operation is right");
}

fn every_operation(world: &mut dyn Collective) {
    // A round has 64 KiB of each rank: the last of these takes several, on some ranks alone.
    for unit in [0, 1, 1000, 150_003] {
        all_to_all(world, unit);
        all_gather(world, unit);
    }
    for n in [0, 1, 70_000, 600_001] {
        for root in 0..world.size().min(2) {
            let expected = bytes(root, 0, n);
            let mut found = if world.rank() == root { expected.clone() } else { vec![0; n] };
            world.broadcast(&mut found, root, LONG).unwrap();
            assert!(found == expected, "broadcast of {n} bytes from {root}");
        }
    }
    world.barrier(LONG).unwrap();
}

/// Counts that differ by sender and receiver, some of them 0.
fn all_to_all(world: &mut dyn Collective, unit: usize) {
    let (rank, ranks) = (world.rank(), 0..world.size());
    let count = |from: usize, to: usize| unit * ((from + 2 * to) % 3);
    let sent_bytes: Vec<usize> = ranks.clone().map(|to| count(rank, to)).collect();
    let received_bytes: Vec<usize> = ranks.clone().map(|from| count(from, rank)).collect();
    let sent: Vec<u8> = ranks.clone().flat_map(|to| bytes(rank, to, count(rank, to))).collect();
    let expected: Vec<u8> = ranks.flat_map(|from| bytes(from, rank, count(from, rank))).collect();
    let mut received = vec![0xee; expected.len()];
    world.all_to_all(&sent, &sent_bytes, &mut received, &received_bytes, LONG).unwrap();
    assert!(received == expected, "all_to_all with a unit of {unit} bytes");
}

fn all_gather(world: &mut dyn Collective, unit: usize) {
    let ranks = 0..world.size();
    let n_bytes: Vec<usize> = ranks.clone().map(|rank| unit * ((rank + 1) % 3)).collect();
    let own = bytes(world.rank(), 0, n_bytes[world.rank()]);
    let expected: Vec<u8> = ranks.flat_map(|rank| bytes(rank, 0, n_bytes[rank])).collect();
    let mut all = vec![0xee; expected.len()];
    world.all_gather(&own, &mut all, &n_bytes, LONG).unwrap();
    assert!(all == expected, "all_gather with a unit of {unit} bytes");
}

/// The last rank does something else for longer than the others wait.
fn absent(world: &mut dyn Collective) {
    world.barrier(LONG).unwrap();
    if world.rank() + 1 == world.size() {
        std::thread::sleep(LONG);
    }
    let failed = world.barrier(SHORT).expect_err("one is missing");
    give_up(world, &failed);
}

/// The last rank has itself stopped by the system, in the middle of the work.
fn stopped(world: &mut dyn Collective) {
    let n_bytes = vec![100_000; world.size()];
    let (own, mut all) = (vec![1; 100_000], vec![0; 100_000 * world.size()]);
    for step in 0.. {
        if step == 10 && world.rank() == 1 {
            let id = std::process::id().to_string();
            Command::new("kill").args(["-STOP", &id]).stdin(Stdio::null()).status().unwrap();
        }
        if let Err(failed) = world.all_gather(&own, &mut all, &n_bytes, SHORT) {
            give_up(world, &failed);
        }
    }
}

/// Rank 1 would wait much longer than rank 0 does, and rank 2 never comes.
fn patient(world: &mut dyn Collective) {
    world.barrier(LONG).unwrap();
    let deadline = match world.rank() {
        0 => SHORT,
        1 => 2 * LONG,
        _ => {
            std::thread::sleep(LONG);
            LONG
        }
    };
    let failed = world.barrier(deadline).expect_err("one is missing");
    give_up(world, &failed);
}

/// A bug of a host: two ranks wait for each other in different calls.
fn crossed(world: &mut dyn Collective) {
    let failed = if world.rank() == 0 {
        world.barrier(SHORT)
    } else {
        let counts = vec![8; world.size()];
        let (sent, mut received) = (vec![0; 16], vec![0; 16]);
        world.all_to_all(&sent, &counts, &mut received, &counts, SHORT)
    };
    let failed = failed.expect_err("they never meet");
    give_up(world, &failed);
}
