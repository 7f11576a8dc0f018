//! What one process can find out about a collective without a launcher: it joins itself, as rank 0 of 1,
//! and what it sends comes back, in every operation and of any length.
//!
//! That is done where the library is loaded: in its worker, which is a process of its own and is killed
//! if a call does not come back long after its deadline. `abort` is left alone, since it ends who calls.

use super::{Finding, Outcome, Tried, same};
use crate::InWorker;
use forgelm_plugin::{Collectives, Kind as _, Plugin};
use forgelm_sdk::collective::Collective;
use std::time::Duration;

/// What every call has time for.
const DEADLINE: Duration = Duration::from_secs(10);

/// Bytes that are sent: none, few, an odd number, and more than libraries send in one piece.
const LENGTHS: [usize; 4] = [0, 1, 1001, (17 << 20) + 3];

const JOINS: &str = "joins a process that no launcher started";

/// Tries a collective where it is, with its number among those of its library.
pub(super) fn check(
    (index, plugin): (usize, &Plugin<Collectives>),
    worker: Option<&InWorker>,
    found: &mut Vec<Finding>,
) {
    let mut tried = Tried { plugin, found };
    tried.note("is well described", Outcome::Holds);
    let Some(worker) = worker else { return alone(plugin, found) };
    match worker.try_collective(index) {
        Ok(there) => {
            let (kind, plugin) = (Collectives::NAME, plugin.name);
            let finding = |(property, outcome)| Finding { kind, plugin, property, outcome };
            found.extend(there.into_iter().map(finding));
        }
        Err(why) => tried.note(
            JOINS,
            Outcome::Fails(format!(
                "{why}\n  hint: does its library start here without a launcher? one that cannot says \
                 so, and ends nothing"
            )),
        ),
    }
}

/// Joins this process, which is possible once, and tries every operation.
pub(crate) fn alone(plugin: &Plugin<Collectives>, found: &mut Vec<Finding>) {
    let mut tried = Tried { plugin, found };
    let mut collective = match (plugin.build)(&[]) {
        Ok(collective) => collective,
        Err(refused) => return tried.note(JOINS, Outcome::Untried(refused.to_string())),
    };
    let place = (collective.rank(), collective.size());
    tried.property(JOINS, same(&place, &(0, 1)));
    if place != (0, 1) {
        return;
    }
    let named =
        if collective.library().is_empty() { Err("it has no name".to_owned()) } else { Ok(()) };
    tried.property("names the library that carries the bytes", named);
    tried.property(
        "gives back what one process sends",
        LENGTHS.iter().try_for_each(|&n| sent_to_itself(collective.as_mut(), n)),
    );
    let part = collective.split(7, DEADLINE).map_err(|failed| failed.message);
    tried.property(
        "makes a part that works as the whole does",
        part.and_then(|mut part| {
            same(&(part.rank(), part.size()), &(0, 1))?;
            sent_to_itself(part.as_mut(), LENGTHS[2])
        }),
    );
    drop(collective);
    tried.note("leaves when it is dropped", Outcome::Holds);
}

/// Each operation once, with this many bytes.
fn sent_to_itself(collective: &mut dyn Collective, n: usize) -> Result<(), String> {
    #[expect(clippy::cast_possible_truncation, reason = "a byte of a pattern")]
    let sent: Vec<u8> = (0..n).map(|i| (i * 31 + 7) as u8).collect();
    let told = |operation: &str, done: Result<(), forgelm_sdk::Failed>| {
        done.map_err(|failed| format!("{operation} of {n} bytes: {}", failed.message))
    };
    let compared = |operation: &str, received: &[u8]| {
        let first = received.iter().zip(&sent).position(|(found, expected)| found != expected);
        first.map_or(Ok(()), |i| {
            let (found, expected) = (received[i], sent[i]);
            Err(format!("{operation} of {n} bytes: {found} at {i}; expected {expected}"))
        })
    };
    let mut received = vec![0; n];
    let done = collective.all_to_all(&sent, &[n], &mut received, &[n], DEADLINE);
    told("all_to_all", done)?;
    compared("all_to_all", &received)?;
    received.fill(0);
    told("all_gather", collective.all_gather(&sent, &mut received, &[n], DEADLINE))?;
    compared("all_gather", &received)?;
    told("broadcast", collective.broadcast(&mut received, 0, DEADLINE))?;
    compared("broadcast", &received)?;
    told("barrier", collective.barrier(DEADLINE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgelm_plugin::{Build, Origin};
    use forgelm_sdk::{Failed, OptionValue, OptionsError};
    use std::sync::Arc;

    /// What is wrong with it.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Wrong {
        Nothing,
        OneByte,
        Size,
        Split,
        Refuses,
    }

    struct Fake(Wrong);

    impl Collective for Fake {
        fn rank(&self) -> usize {
            0
        }

        fn size(&self) -> usize {
            if self.0 == Wrong::Size { 2 } else { 1 }
        }

        fn library(&self) -> String {
            "a test".to_owned()
        }

        fn all_to_all(
            &mut self,
            sent: &[u8],
            _: &[usize],
            received: &mut [u8],
            _: &[usize],
            _: Duration,
        ) -> Result<(), Failed> {
            received.copy_from_slice(sent);
            Ok(())
        }

        fn all_gather(
            &mut self,
            own: &[u8],
            all: &mut [u8],
            _: &[usize],
            _: Duration,
        ) -> Result<(), Failed> {
            all.copy_from_slice(own);
            if let (Wrong::OneByte, Some(last)) = (self.0, all.get_mut(1000)) {
                *last = 0;
            }
            Ok(())
        }

        fn broadcast(&mut self, _: &mut [u8], _: usize, _: Duration) -> Result<(), Failed> {
            Ok(())
        }

        fn barrier(&mut self, _: Duration) -> Result<(), Failed> {
            Ok(())
        }

        fn split(&mut self, _: u32, _: Duration) -> Result<Box<dyn Collective>, Failed> {
            match self.0 {
                Wrong::Split => Err(Failed::new("no parts")),
                _ => Ok(Box::new(Self(self.0))),
            }
        }

        fn abort(&mut self, _: i32) {}
    }

    /// The findings that are not `Holds`, and how many there are.
    fn tried(wrong: Wrong) -> (Vec<String>, usize) {
        let build: Arc<Build<dyn Collective>> =
            Arc::new(move |_: &[(&str, OptionValue)]| match wrong {
                Wrong::Refuses => Err(OptionsError::Refused { message: "no launcher".to_owned() }),
                _ => Ok(Box::new(Fake(wrong)) as Box<dyn Collective>),
            });
        let origin = Origin {
            library: "test".to_owned(),
            version: "1".to_owned(),
            path: "test.so".into(),
            sha256: "00".to_owned(),
            is_isolated: false,
            signature: None,
        };
        let plugin = Plugin::<Collectives> {
            name: "fake",
            summary: "a test's",
            source: "none",
            needs: (),
            build,
            origin: Arc::new(origin),
        };
        let mut found = Vec::new();
        check((0, &plugin), None, &mut found);
        let n = found.len();
        found.retain(|finding| finding.outcome != Outcome::Holds);
        (found.iter().map(ToString::to_string).collect(), n)
    }

    #[test]
    fn what_is_wrong_with_a_collective_is_found_by_one_process() {
        assert_eq!(tried(Wrong::Nothing), (Vec::new(), 6));
        let (found, _) = tried(Wrong::OneByte);
        // 1000 * 31 + 7, modulo 256.
        let expected = "FAILED  collective fake: gives back what one process sends: all_gather of 1001 \
                        bytes: 0 at 1000; expected 31";
        assert_eq!(found[0], expected);
        assert!(found[1].contains("makes a part that works"), "{found:?}");
        let (found, n) = tried(Wrong::Size);
        assert_eq!(n, 2, "nothing more is tried: {found:?}");
        assert!(found[0].contains("no launcher started: (0, 2); expected (0, 1)"), "{found:?}");
        let (found, _) = tried(Wrong::Split);
        assert_eq!(
            found,
            ["FAILED  collective fake: makes a part that works as the whole does: no parts"]
        );
        let (found, n) = tried(Wrong::Refuses);
        assert!(n == 2 && found[0].starts_with("untried collective fake: joins"), "{found:?}");
    }
}
