//! The audit log under many writers, crashes, full disks and changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use forgelm_artifact::{Clock, Disk, UtcTime};
use serde_json::Value;

use super::{clock, event, identity, open};
use crate::audit::log::{AuditError, AuditIdentity, AuditLog};
use crate::audit::verify::{
    AuditAccepted, AuditOptions, AuditRejection, ExpectedHead, verify_audit,
};
use crate::audit::{GENESIS_FILE, LOG_FILE};
use crate::class::Class;
use crate::secret::Secret;

fn verify(dir: &Path) -> Result<AuditAccepted, AuditRejection> {
    verify_audit(&dir.join(LOG_FILE), &AuditOptions::default())
}

fn lines(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join(LOG_FILE)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn put(path: &Path, bytes: &[u8]) {
    forgelm_artifact::write::atomic(path, bytes).unwrap();
}

fn put_lines(dir: &Path, lines: &[String]) {
    put(&dir.join(LOG_FILE), format!("{}\n", lines.join("\n")).as_bytes());
}

/// Not a test of its own: the test below starts this program again with this name, in a folder
/// where a file says what to write.
#[test]
#[ignore = "a helper process of ten_writers"]
fn helper_process_appends() {
    let Ok(name) = fs::read_to_string("writer.txt") else { return };
    let mut log = open(Path::new("out"));
    for n in 0..N_EVENTS {
        log.append(&event(&name, n)).unwrap();
    }
}

const N_EVENTS: u64 = 1000;

#[test]
fn fault_093_ten_processes_and_two_threads_make_one_valid_chain() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let start_process = |name: &str| {
        let home = dir.path().join(name);
        fs::create_dir(&home).unwrap();
        put(&home.join("writer.txt"), name.as_bytes());
        std::os::unix::fs::symlink(&out, home.join("out")).unwrap();
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "tests::audit_log::helper_process_appends"])
            .current_dir(&home)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let processes: Vec<_> = (0..10).map(|n| start_process(&format!("p{n}"))).collect();
    std::thread::scope(|scope| {
        for t in 0..2 {
            let out = &out;
            scope.spawn(move || {
                let mut log = open(out);
                for n in 0..N_EVENTS {
                    log.append(&event(&format!("t{t}"), n)).unwrap();
                }
            });
        }
    });
    for mut process in processes {
        assert!(process.wait().unwrap().success());
    }
    let accepted = verify(&out).unwrap();
    assert_eq!(accepted.entries, 12 * N_EVENTS);
    assert!(accepted.notes.is_empty(), "{:?}", accepted.notes);
    // Every writer's events are all there, in its own order.
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    for line in lines(&out) {
        let line: Value = serde_json::from_str(&line).unwrap();
        let writer = line["checkpoint"].as_str().unwrap().to_owned();
        let expected = next.entry(writer).or_default();
        assert_eq!(line["step"], *expected);
        *expected += 1;
    }
    assert_eq!(next.len(), 12);
    assert!(next.values().all(|n| *n == N_EVENTS));
}

#[test]
fn fault_094_removed_swapped_and_replaced_lines_are_each_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    for n in 0..8 {
        log.append(&event("w", n)).unwrap();
    }
    let accepted = verify(dir.path()).unwrap();
    let head = ExpectedHead {
        entries: accepted.entries,
        head_sha256: accepted.head_sha256,
        source: "the checkpoint".to_owned(),
    };
    let good = lines(dir.path());
    let check = |lines: &[String], heads: &[ExpectedHead]| {
        put_lines(dir.path(), lines);
        let options = AuditOptions { expected_heads: heads.to_vec(), ..AuditOptions::default() };
        verify_audit(&dir.path().join(LOG_FILE), &options)
    };
    let heads = [head];
    assert!(check(&good, &heads).is_ok());
    let without = |i: usize| {
        let mut lines = good.clone();
        lines.remove(i);
        lines
    };
    let broken = check(&without(3), &[]).unwrap_err();
    assert_eq!((broken.line(), broken.class()), (Some(4), Class::Different));
    assert_eq!(check(&without(0), &[]).unwrap_err().line(), Some(1));
    let mut swapped = good.clone();
    swapped.swap(4, 5);
    assert_eq!(check(&swapped, &[]).unwrap_err().line(), Some(5));
    // Cut at the end, or replaced by an older copy: only the signed head knows.
    assert!(check(&without(7), &[]).is_ok());
    let cut = check(&without(7), &heads).unwrap_err();
    assert!(cut.to_string().contains("7 entries; the checkpoint signed 8"), "{cut}");
    assert_eq!(check(&good[..2], &heads).unwrap_err().class(), Class::Different);
    // Another log of the same length: the genesis manifest and the head know.
    let other = tempfile::tempdir().unwrap();
    let mut log = open(other.path());
    for n in 8..16 {
        log.append(&event("w", n)).unwrap();
    }
    let other = lines(other.path());
    assert!(check(&other, &[]).unwrap_err().to_string().contains("first_entry_sha256"));
    assert_eq!(check(&other, &heads).unwrap_err().line(), Some(8));
    // More lines than the checkpoint covers are fine, and said.
    put_lines(dir.path(), &good);
    open(dir.path()).append(&event("w", 9)).unwrap();
    let options = AuditOptions { expected_heads: heads.to_vec(), ..AuditOptions::default() };
    let accepted = verify_audit(&dir.path().join(LOG_FILE), &options).unwrap();
    assert_eq!(accepted.notes, ["1 entries after the newest signed checkpoint"]);
}

#[test]
fn fault_095_a_torn_line_is_cut_off_by_a_record_that_keeps_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    for n in 0..3 {
        log.append(&event("w", n)).unwrap();
    }
    let path = dir.path().join(LOG_FILE);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(b"{\"timestamp\": \"20");
    put(&path, &bytes);
    let rejected = verify(dir.path()).unwrap_err();
    assert_eq!((rejected.line(), rejected.class()), (Some(4), Class::Different));
    // A writer that is open already repairs it too.
    log.append(&event("w", 3)).unwrap();
    let accepted = verify(dir.path()).unwrap();
    assert_eq!(accepted.entries, 5);
    let recovered: Value = serde_json::from_str(&lines(dir.path())[3]).unwrap();
    assert_eq!(recovered["event"], "audit.recovered");
    assert_eq!(recovered["torn_bytes"], 17);
    assert_eq!(recovered["torn_base64"], "eyJ0aW1lc3RhbXAiOiAiMjA=");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    // A large one is kept in a file of its own.
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(&[b'x'; 100_000]);
    put(&path, &bytes);
    open(dir.path());
    let recovered: Value = serde_json::from_str(&lines(dir.path())[5]).unwrap();
    let kept = dir.path().join(recovered["kept_in"].as_str().unwrap());
    assert_eq!(fs::read(kept).unwrap(), [b'x'; 100_000]);
    assert!(verify(dir.path()).is_ok());
}

/// Stops the machine at every operation of opening, recovering and appending; starts again each
/// time. Nothing that was recorded is lost, and the log is always one valid chain in the end.
#[test]
fn fault_095_a_stop_at_any_operation_loses_no_record() {
    let mut n_stops = 0;
    for starts_torn in [false, true] {
        for stop_at in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let n_before = if starts_torn { 2 } else { 0 };
            if starts_torn {
                let mut log = open(dir.path());
                for n in 0..n_before {
                    log.append(&event("before", n)).unwrap();
                }
                let path = dir.path().join(LOG_FILE);
                put(&path, &[&fs::read(&path).unwrap()[..], b"{\"torn"].concat());
            }
            let disk = Disk::stopping_at(stop_at);
            let mut n_recorded = 0;
            let opened = AuditLog::open_on(&disk, dir.path(), identity(None), clock());
            if let Ok(mut log) = opened {
                for n in 0..3 {
                    if log.append(&event("stopping", n)).is_ok() {
                        n_recorded += 1;
                    }
                }
            }
            if !disk.has_stopped() {
                assert_eq!(n_recorded, 3);
                break;
            }
            n_stops += 1;
            open(dir.path()).append(&event("after", 0)).unwrap();
            let accepted = verify(dir.path()).unwrap_or_else(|e| panic!("stop {stop_at}: {e}"));
            assert!(accepted.notes.is_empty(), "stop {stop_at}: {:?}", accepted.notes);
            let all = lines(dir.path());
            let count = |text: &str| all.iter().filter(|line| line.contains(text)).count();
            let at_least = |found: usize, n: u64| found as u64 >= n;
            assert_eq!(count("\"before\"") as u64, n_before);
            assert!(at_least(count("\"stopping\""), n_recorded), "stop {stop_at}");
            assert_eq!(count("\"after\""), 1);
            if starts_torn {
                let torn = "\"eyJ0b3Ju\"";
                let combined = "eyJ0b3JuC";
                assert!(count(torn) + count(combined) >= 1, "stop {stop_at}: torn bytes are lost");
            }
        }
    }
    assert!(n_stops > 20, "only {n_stops} stops were tried");
}

#[test]
fn fault_096_on_a_full_disk_nothing_is_recorded_and_the_caller_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).append(&event("w", 0)).unwrap();
    let before = fs::read(dir.path().join(LOG_FILE)).unwrap();
    let disk = Disk::full_after(100);
    let mut log = AuditLog::open_on(&disk, dir.path(), identity(None), clock()).unwrap();
    let error = log.append(&event("w", 1)).unwrap_err();
    assert!(matches!(error, AuditError::Write(_)), "{error}");
    assert!(error.to_string().contains("no room is left"), "{error}");
    assert_eq!(fs::read(dir.path().join(LOG_FILE)).unwrap(), before);
    assert!(verify(dir.path()).is_ok());
}

#[test]
fn a_log_without_its_genesis_manifest_and_the_reverse() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).append(&event("w", 0)).unwrap();
    let genesis = dir.path().join(GENESIS_FILE);
    let document: Value = serde_json::from_slice(&fs::read(&genesis).unwrap()).unwrap();
    assert_eq!(document["run_id"], "fg-0123456789ab");
    assert_eq!(document["first_entry_sha256"], verify(dir.path()).unwrap().genesis_sha256);
    // Stopped between the first line and its manifest: the next append completes it.
    fs::remove_file(&genesis).unwrap();
    assert_eq!(verify(dir.path()).unwrap().notes, ["no genesis manifest beside the log"]);
    open(dir.path()).append(&event("w", 1)).unwrap();
    assert!(verify(dir.path()).unwrap().notes.is_empty());
    // The log was deleted: nothing is recorded as if it had never been.
    fs::remove_file(dir.path().join(LOG_FILE)).unwrap();
    let refused = AuditLog::open(dir.path(), identity(None), clock()).err().unwrap();
    assert!(matches!(refused, AuditError::GenesisContradicts { .. }) && refused.is_config());
    put(&dir.path().join(LOG_FILE), b"");
    assert_eq!(verify(dir.path()).unwrap_err().class(), Class::Different);
    assert!(AuditLog::open(dir.path(), identity(None), clock()).is_err());
    put(&genesis, b"{}");
    assert!(AuditLog::open(dir.path(), identity(None), clock()).is_err());
    let reroot = AuditIdentity { allow_reroot: true, ..identity(None) };
    let mut log = AuditLog::open(dir.path(), reroot, clock()).unwrap();
    log.append(&event("w", 2)).unwrap();
    assert_eq!(verify(dir.path()).unwrap().entries, 1);
    // A manifest that cannot be written fails the append.
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    fs::create_dir(dir.path().join(GENESIS_FILE)).unwrap();
    assert!(log.append(&event("w", 0)).is_err());
}

#[test]
fn tags_are_on_every_line_or_on_none() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "0123456789abcdef0123456789abcdef";
    let tagged = || AuditLog::open(dir.path(), identity(Some(secret)), clock()).unwrap();
    for n in 0..3 {
        tagged().append(&event("w", n)).unwrap();
    }
    let error = open(dir.path()).append(&event("w", 3)).unwrap_err();
    assert!(matches!(error, AuditError::MixedTags { .. }) && error.is_config());
    assert!(error.to_string().contains("FORGELM_AUDIT_SECRET"));
    let secret = Secret::new(secret.to_owned()).unwrap();
    let path = dir.path().join(LOG_FILE);
    let with = |secret: Option<&Secret>, require_hmac: bool| {
        verify_audit(&path, &AuditOptions { secret, require_hmac, ..AuditOptions::default() })
    };
    assert_eq!(with(Some(&secret), true).unwrap().hmac_verified, 3);
    assert_eq!(with(None, false).unwrap().hmac_verified, 0);
    assert!(matches!(with(None, true), Err(AuditRejection::NoSecret)));
    let other = Secret::new("another secret, long enough".to_owned()).unwrap();
    let wrong = with(Some(&other), false).unwrap_err();
    assert_eq!((wrong.line(), wrong.class()), (Some(1), Class::Different));
    // Taking the tag off the last line leaves the chain whole, and is noticed all the same.
    let mut all = lines(dir.path());
    let at = all[2].find(", \"_hmac\"").unwrap();
    all[2] = format!("{}}}", &all[2][..at]);
    put_lines(dir.path(), &all);
    assert_eq!(with(None, false).unwrap_err().line(), Some(3));
    // A log without tags does not take tagged lines, and does not pass when they are required.
    let plain = tempfile::tempdir().unwrap();
    open(plain.path()).append(&event("w", 0)).unwrap();
    let mut log =
        AuditLog::open(plain.path(), identity(Some("0123456789abcdef")), clock()).unwrap();
    assert!(matches!(log.append(&event("w", 1)), Err(AuditError::MixedTags { .. })));
    let options =
        AuditOptions { secret: Some(&secret), require_hmac: true, ..AuditOptions::default() };
    let rejected = verify_audit(&plain.path().join(LOG_FILE), &options).unwrap_err();
    assert!(rejected.to_string().contains("HMACs are required"));
}

#[test]
fn other_files_are_refused_with_their_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    let check = |bytes: &[u8]| {
        put(&path, bytes);
        let rejected = verify_audit(&path, &AuditOptions::default()).unwrap_err();
        (rejected.class(), rejected.to_string())
    };
    let deep = [&b"["[..]; 100_000].concat();
    let first = b"{\"prev_hash\": \"genesis\"}\n";
    let cases: [(&[u8], Class, &str); 9] = [
        (b"", Class::NotCompared, "no entries"),
        (b"\n", Class::Different, "a blank line"),
        (b"hello\n", Class::Different, "not valid JSON"),
        (b"[1]\n", Class::Different, "not a JSON object"),
        (b"{\"a\": \"\xff\"}\n", Class::Different, "not UTF-8"),
        (b"{\"prev_hash\": \"genesis\"}\r\n", Class::Different, "carriage return"),
        (b"{\"prev_hash\": \"genesis\", \"prev_hash\": \"x\"}\n", Class::Different, "twice"),
        (&[&deep[..], b"\n"].concat(), Class::NotCompared, "64 levels"),
        (&[&first[..], b"\n", first].concat(), Class::Different, "a blank line"),
    ];
    for (bytes, class, reason) in cases {
        let found = check(bytes);
        assert_eq!(found.0, class, "{}", found.1);
        assert!(found.1.contains(reason), "{}", found.1);
    }
    // A line without an end is read up to the limit and no further.
    let (class, reason) = check(&vec![b'x'; (16 << 20) + 10]);
    assert_eq!((class, reason.contains("16 MiB")), (Class::NotCompared, true));
    let of = |path: &Path| verify_audit(path, &AuditOptions::default()).unwrap_err().class();
    assert_eq!(of(&dir.path().join("none")), Class::NotCompared);
    assert_eq!(of(dir.path()), Class::NotCompared);
    // A writer refuses to extend what is not a log.
    put(&dir.path().join(LOG_FILE), b"hello\n");
    let refused = AuditLog::open(dir.path(), identity(None), clock()).err().unwrap();
    assert!(matches!(refused, AuditError::Damaged { .. }));
}

/// A log that is larger than what is read at once, with lines of all lengths: on all threads the first
/// thing that is wrong is found, and it is the first in order.
#[test]
fn in_a_long_log_the_first_wrong_line_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(LOG_FILE);
    let mut head = "genesis".to_owned();
    let mut lines = Vec::new();
    for n in 0..3000 {
        // One in a thousand is longer than a piece.
        let filler = "x".repeat(if n % 1000 == 500 { 5 << 20 } else { n % 700 });
        let line =
            format!("{{\"run_id\": \"fg-1\", \"prev_hash\": \"{head}\", \"x\": \"{filler}\"}}");
        head = crate::digest::sha256_hex(line.as_bytes());
        lines.push(line);
    }
    put_lines(dir.path(), &lines);
    let accepted = verify_audit(&path, &AuditOptions::default()).unwrap();
    assert_eq!((accepted.entries, accepted.head_sha256.as_str()), (3000, head.as_str()));
    for (n, m) in [(2, 2998), (500, 501), (1999, 2100), (2999, 2999)] {
        let mut bad = lines.clone();
        for i in [n, m] {
            bad[i] = bad[i].replacen("\"x\"", "\"y\"", 1);
        }
        put_lines(dir.path(), &bad);
        let verdict = verify_audit(&path, &AuditOptions::default());
        let found = verdict.map_or_else(
            |error| error.line(),
            |accepted| {
                // Only a signed head knows of the last line.
                assert_ne!(accepted.head_sha256, head);
                None
            },
        );
        assert_eq!(found, (n < 2999).then_some(n as u64 + 2), "{n}");
    }
    let longest = format!("{{\"prev_hash\": \"{head}\", \"x\": \"{}\"}}", "x".repeat(17 << 20));
    lines.push(longest);
    put_lines(dir.path(), &lines);
    let error = verify_audit(&path, &AuditOptions::default()).unwrap_err();
    assert_eq!((error.line(), error.class()), (Some(3001), Class::NotCompared));
}

#[test]
fn signed_heads_within_the_log_hold_the_lines_before_them() {
    use crate::audit::head::HeadSigner;
    use crate::keys::trust::TrustedKeys;
    let dir = tempfile::tempdir().unwrap();
    let signer = std::sync::Arc::new(super::signer(1));
    let mut log = open(dir.path());
    log.sign_heads(HeadSigner { signer, every: 3 });
    for n in 0..7 {
        log.append(&event("w", n)).unwrap();
    }
    let good = lines(dir.path());
    let heads: Vec<usize> =
        (0..good.len()).filter(|i| good[*i].contains("\"audit.checkpoint\"")).collect();
    assert_eq!(heads, [3, 7]);
    let keys = TrustedKeys::with_local(super::signer(1).key.public());
    let check = |lines: &[String], keys| {
        put_lines(dir.path(), lines);
        let _ = fs::remove_file(dir.path().join(GENESIS_FILE));
        verify_audit(&dir.path().join(LOG_FILE), &AuditOptions { keys, ..AuditOptions::default() })
    };
    assert_eq!(check(&good, Some(&keys)).unwrap().checkpoints_verified, 2);
    let others = TrustedKeys::with_local(super::signer(2).key.public());
    assert_eq!(check(&good, Some(&others)).unwrap().checkpoints_verified, 0);
    // Who has no key can change a line and mend the chain behind it, but no signed head.
    let rewritten = |mend_claim: bool| {
        let mut prev = "genesis".to_owned();
        let mut rewritten = Vec::new();
        for (i, line) in good.iter().enumerate() {
            let mut line: Value = serde_json::from_str(line).unwrap();
            if i == 1 {
                line["step"] = 99.into();
            }
            line["prev_hash"] = prev.clone().into();
            if mend_claim && heads.contains(&i) {
                line["head_sha256"] = prev.clone().into();
            }
            let line = line.to_string();
            prev = crate::digest::sha256_hex(line.as_bytes());
            rewritten.push(line);
        }
        rewritten
    };
    let found = check(&rewritten(false), None).unwrap_err();
    assert_eq!((found.line(), found.class()), (Some(4), Class::Different));
    let found = check(&rewritten(true), Some(&keys)).unwrap_err();
    assert_eq!((found.line(), found.class()), (Some(4), Class::Different));
    assert!(found.to_string().contains("signature does not hold"), "{found}");
    assert!(check(&rewritten(true), None).is_ok(), "without the key nobody can tell");
}

/// Prints the speed of verification: `cargo test --release -p forgelm_evidence --lib -- --ignored
/// --nocapture speed_of_verify_audit`.
#[test]
#[ignore = "a measurement"]
#[expect(clippy::disallowed_methods, reason = "a measurement needs the time")]
fn speed_of_verify_audit() {
    use crate::digest::sha256_hex;
    use std::fmt::Write as _;
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::new();
    let mut head = "genesis".to_owned();
    for n in 0..1_000_000 {
        let start = text.len();
        write!(
            text,
            "{{\"timestamp\": \"2026-01-01T00:00:00.000001+00:00\", \"run_id\": \"fg-0123456789ab\", \
             \"operator\": \"alice@host\", \"event\": \"training.interrupted\", \"prev_hash\": \
             \"{head}\", \"step\": {n}, \"checkpoint\": \"checkpoint-{n}\", \"detail\": \"{}\"}}",
            "an ordinary text of some length ".repeat(4)
        )
        .unwrap();
        head = sha256_hex(&text.as_bytes()[start..]);
        text.push('\n');
    }
    let path = dir.path().join("log.jsonl");
    put(&path, text.as_bytes());
    for _ in 0..3 {
        let start = std::time::Instant::now();
        let accepted = verify_audit(&path, &AuditOptions::default()).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let megabytes = f64::from(u32::try_from(text.len() >> 10).unwrap()) / 1024.0;
        println!(
            "{} lines, {megabytes:.0} MiB: {:.0} MiB/s",
            accepted.entries,
            megabytes / seconds
        );
        let start = std::time::Instant::now();
        let hashed =
            text.lines().map(|line| crate::digest::sha256(line.as_bytes())).reduce(|_, last| last);
        let seconds = start.elapsed().as_secs_f64();
        println!("  hashing the lines alone: {:.0} MiB/s", megabytes / seconds);
        assert_eq!(hashed.map(|h| crate::digest::hex(&h)), Some(accepted.head_sha256));
        let start = std::time::Instant::now();
        let n_bad =
            text.lines().filter(|l| crate::audit::scan::scan(l.as_bytes()).is_err()).count();
        let seconds = start.elapsed().as_secs_f64();
        println!("  reading the lines alone: {:.0} MiB/s", megabytes / seconds);
        assert_eq!(n_bad, 0);
    }
}

/// A clock of which each reading is the next of a list.
struct Jumping(std::sync::Mutex<Vec<&'static str>>);

impl Clock for Jumping {
    fn utc(&self) -> UtcTime {
        let mut left = self.0.lock().unwrap();
        let now = if left.len() > 1 { left.remove(0) } else { left[0] };
        now.parse().unwrap()
    }

    fn monotonic(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

/// Entries are in the order of the chain, whatever the clock of the machine says.
#[test]
fn fault_089_a_clock_that_jumps_changes_no_order_and_fails_no_verifier() {
    let dir = tempfile::tempdir().unwrap();
    let times = vec![
        "2026-06-01T12:00:00+00:00",
        "2026-06-01T12:00:00+00:00",
        "1970-01-01T00:00:00+00:00",
        "2038-01-19T03:14:08+00:00",
        "2026-06-01T14:00:00+02:00",
        "2100-12-31T23:59:59+00:00",
        "2026-06-01T12:00:01+00:00",
    ];
    let clock = std::sync::Arc::new(Jumping(std::sync::Mutex::new(times)));
    let mut log = AuditLog::open(dir.path(), identity(None), clock).unwrap();
    for n in 0..8 {
        log.append(&event("clock", n)).unwrap();
    }
    let accepted = verify(dir.path()).unwrap();
    assert_eq!(accepted.entries, 8);
    let parsed: Vec<Value> =
        lines(dir.path()).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<u64> = parsed.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (0..8).collect::<Vec<u64>>());
    let written: Vec<&str> =
        parsed.iter().map(|line| line["timestamp"].as_str().unwrap()).collect();
    assert!(written.iter().any(|time| time.starts_with("1970")), "{written:?}");
    assert!(written.iter().any(|time| time.starts_with("2038")), "{written:?}");
    assert!(written.windows(2).any(|pair| pair[0] > pair[1]), "it did jump: {written:?}");
}
