//! Groups of threads: what they tell each other, and what they do when one of them is gone.

#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(clippy::cast_precision_loss, reason = "numbers of tests are small")]
#![expect(clippy::disallowed_methods, reason = "a test measures how long it takes")]

use forgelm_collective::threads::{Thread, ranks};
use forgelm_collective::{CollectiveError, Group, Settings};
use std::ops::Range;
use std::time::{Duration, Instant};

fn settings(milliseconds: u64) -> Settings {
    Settings::with_deadline(Duration::from_millis(milliseconds))
}

/// What each of some ranks gives.
fn on_ranks<T: Send>(
    threads: Vec<Thread>,
    settings: Settings,
    work: impl Fn(Group) -> T + Sync,
) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let start = |thread: Thread| {
            scope.spawn(move || work(Group::open(|| Ok(Box::new(thread)), settings).unwrap()))
        };
        let handles: Vec<_> = threads.into_iter().map(start).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

fn halves(n: usize, n_ranks: usize) -> Vec<Range<usize>> {
    (0..n_ranks).map(|rank| rank * n / n_ranks..(rank + 1) * n / n_ranks).collect()
}

#[test]
fn what_is_given_comes_to_everyone_in_the_order_of_ranks() {
    for n_ranks in [1, 2, 3, 5] {
        let got = on_ranks(ranks(n_ranks), settings(5000), |group| {
            let own = vec![u8::try_from(group.rank()).unwrap(); group.rank()];
            let all = group.all_gather(own).unwrap();
            let range = halves(7, n_ranks)[group.rank()].clone();
            let own: Vec<f32> = range.map(|i| i as f32).collect();
            let numbers = group.all_gather_ranges(own, halves(7, n_ranks)).unwrap();
            assert_eq!(group.library(), "threads");
            group.end().unwrap();
            (all, numbers)
        });
        for (all, numbers) in got {
            let expected: Vec<Vec<u8>> =
                (0..n_ranks).map(|rank| vec![u8::try_from(rank).unwrap(); rank]).collect();
            assert_eq!(all, expected);
            assert_eq!(numbers, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        }
    }
}

#[test]
fn each_rank_gets_the_sum_of_its_range_from_those_who_have_numbers() {
    for (n_ranks, n_with) in [(1, 1), (2, 2), (4, 4), (4, 3), (3, 1), (4, 0)] {
        let got = on_ranks(ranks(n_ranks), settings(5000), |group| {
            let rank = group.rank();
            let own: Vec<f32> = (0..10).map(|i| (10 * i + rank) as f32).collect();
            let own = if rank < n_with { own } else { Vec::new() };
            let ranges = halves(10, n_ranks);
            group.start(move |line| line.reduce_scatter(&own, &ranges, n_with)).wait().unwrap()
        });
        let of_all = |i: usize| (0..n_with).map(|rank| (10 * i + rank) as f32).sum::<f32>();
        let expected: Vec<f32> = (0..10).map(of_all).collect();
        assert_eq!(got.concat(), expected, "{n_with} of {n_ranks}");
    }
}

/// The bytes of a reduce and a gather over p ranks: each sends all but its own part of the numbers,
/// and its own part to all others.
#[test]
fn as_many_bytes_are_sent_as_must_be() {
    for n_ranks in [1, 2, 4, 8] {
        let sent = on_ranks(ranks(n_ranks), settings(5000), |group| {
            let ranges = halves(800, n_ranks);
            let own = ranges[group.rank()].clone();
            let reduced = ranges.clone();
            let sum = group.start(move |line| line.reduce_scatter(&[1.0; 800], &reduced, n_ranks));
            sum.wait().unwrap();
            group.all_gather_ranges(vec![0.0; own.len()], ranges).unwrap();
            group.n_bytes_sent()
        });
        let expected = 2 * 4 * 800 * (n_ranks - 1) / n_ranks;
        assert!(sent.iter().all(|&of| of == expected as u64), "{sent:?} of {expected}");
    }
}

#[test]
fn commands_are_heard_however_long_the_leader_thinks() {
    let heard = on_ranks(ranks(3), settings(1500), |group| {
        if group.is_leader() {
            group.told();
            for command in ["first", ""] {
                std::thread::sleep(Duration::from_millis(3000));
                group.tell(command.into()).unwrap();
                group.told();
            }
            group.tell(b"end".to_vec()).unwrap();
            group.end().unwrap();
            return Vec::new();
        }
        let mut heard = Vec::new();
        while heard.last().is_none_or(|last| last != "end") {
            heard.push(String::from_utf8(group.listen().unwrap()).unwrap());
        }
        group.end().unwrap();
        heard
    });
    assert_eq!(heard[1], ["first", "", "end"]);
    assert_eq!(heard[2], heard[1]);
}

#[test]
fn who_gives_no_sign_is_named_before_long() {
    let started = Instant::now();
    let errors = on_ranks(ranks(3), settings(2000), |group| {
        if group.rank() == 1 {
            std::thread::sleep(Duration::from_millis(7000));
            return None;
        }
        let error = group.all_gather(Vec::new()).unwrap_err();
        assert_eq!(group.all_gather(Vec::new()), Err(CollectiveError::Ended));
        // Kept: a group that leaves is missed before the others have waited.
        Some((error.to_string(), group))
    });
    assert!(started.elapsed() < Duration::from_secs(30));
    let (text, _) = errors[0].as_ref().unwrap();
    assert_eq!(text, "rank 0 of 3: no sign of rank 1 for 2s");
}

#[test]
fn a_leader_that_is_gone_is_missed_by_those_who_listen() {
    let errors = on_ranks(ranks(2), settings(60_000), |group| {
        if group.is_leader() {
            return None;
        }
        group.listen().err().map(|error| error.to_string())
    });
    assert_eq!(errors[1].as_deref(), Some("rank 1 of 2: rank 0 has left"));
}

/// Whatever call fails on whatever rank, nobody waits for ever, and everybody fails.
#[test]
fn a_failure_at_any_call_reaches_everyone() {
    let work = |group: Group| -> Result<(), CollectiveError> {
        for _ in 0..2 {
            if group.is_leader() {
                group.tell(b"go".to_vec())?;
            } else {
                group.listen()?;
            }
            let ranges = halves(8, group.n_ranks());
            let (n_ranks, own) = (group.n_ranks(), ranges.clone());
            let sum = group.start(move |line| line.reduce_scatter(&[1.0; 8], &own, n_ranks));
            let sum = sum.wait()?;
            group.all_gather_ranges(sum, ranges)?;
            group.told();
        }
        group.end()
    };
    let n_calls = 2 * (1 + 1 + 1 + 1) + 1;
    for failing in 0..3 {
        for n_good in 0..=n_calls {
            let mut threads = ranks(3);
            let broken = threads.remove(failing).failing_after(n_good);
            threads.insert(failing, broken);
            let ended = on_ranks(threads, settings(20_000), work);
            let n_failed = ended.iter().filter(|ended| ended.is_err()).count();
            let expected = if n_good < n_calls { 3 } else { 0 };
            assert_eq!(n_failed, expected, "rank {failing} fails after {n_good}: {ended:?}");
        }
    }
}

#[test]
fn who_gives_one_color_is_a_group_of_its_own() {
    let got = on_ranks(ranks(5), settings(5000), |group| {
        let own = u8::try_from(group.rank()).unwrap();
        let members = group.members_with(u32::from(own % 2)).unwrap();
        let (rank, n_ranks) = (members.rank(), members.n_ranks());
        assert_eq!(members.ranks()[rank], group.rank());
        let of_these = members.start(move |line| line.all_gather_known(&[own], &vec![1; n_ranks]));
        let of_all = group.members().start(move |line| line.all_gather_known(&[own], &[1; 5]));
        assert_eq!(of_all.wait().unwrap(), [0, 1, 2, 3, 4]);
        let of_these = of_these.wait().unwrap();
        group.end().unwrap();
        let after = members.start(|line| line.barrier()).wait();
        assert_eq!(after, Err(CollectiveError::Ended));
        (rank, of_these)
    });
    let even = vec![0, 2, 4];
    assert_eq!(got[4], (2, even.clone()));
    assert_eq!(got[0], (0, even));
    assert_eq!(got[3], (1, vec![1, 3]));
}
