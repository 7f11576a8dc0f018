//! Approvals and time: requests that expire, and processes that are killed at any moment of a
//! decision. The clock is the seam: a decision reads it before each of its records, and one that
//! panics there leaves what a killed process leaves.

use crate::support::Workplace;
use forgelm_artifact::{Clock, UtcTime};
use forgelm_run::approval::decide::{Decided, DecisionRequest, approve, reject};
use forgelm_run::environment::Environment;
use forgelm_run::error::RunError;
use forgelm_run::event::{Event, Observer};
use forgelm_run::exit::Exit;
use forgelm_run::trust;
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A clock that stands still, and ends its process at its `fatal`th reading.
struct TestClock {
    now: UtcTime,
    n_read: AtomicU64,
    fatal: u64,
}

impl Clock for TestClock {
    fn utc(&self) -> UtcTime {
        let n = self.n_read.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(n != self.fatal, "killed at reading {n} of the clock");
        self.now
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _event: &Event) {}
}

fn environment(workplace: &Workplace, clock: Arc<TestClock>) -> Environment {
    Environment {
        clock,
        cpu_time: || None,
        user: None,
        host: "host".to_owned(),
        operator: Some("boss@example".to_owned()),
        allow_anonymous_operator: false,
        allow_audit_reroot: false,
        audit_secret: None,
        hub_token: None,
        hub_endpoint: None,
        offline: true,
        cache_dir: workplace.path("home/.cache"),
        cuda_folders: Default::default(),
        own_attention: false,
        no_nccl: false,
        hub_cache_dir: workplace.path("home/.cache/hub"),
        config_dir: workplace.path("home/.config"),
        signing_key: None,
        signing_key_passphrase: None,
        signing_key_file: None,
        trusted_keys: None,
        program_dir: None,
        plugin_path: Vec::new(),
        plugin_dir: None,
        plugin_worker: None,
        signing_program: |_, _| Err("none".to_owned()),
        ask_program: |_, _| Err("none".to_owned()),
        alarm: |_| {},
        process_id: 1,
        variable: Arc::new(|_: &str| None),
        random_bits: 1,
        stop: Arc::new(AtomicBool::new(false)),
    }
}

/// A finished run that waits, and its id.
fn staged(rules: &str) -> (Workplace, String) {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    let evaluation = format!("evaluation: {{require_human_approval: true{rules}}}\n");
    workplace.write("run.yaml", &(config + &evaluation));
    let ran = workplace.forgelm(&["--config", "run.yaml", "--output-format", "json"]);
    let run_id = ran.expect_code(4).json()["run_id"].as_str().unwrap().to_owned();
    (workplace, run_id)
}

type Decide =
    fn(&DecisionRequest<'_>, &Environment, &mut dyn Observer) -> Result<Decided, RunError>;

/// As [`attempt`], once the folder's locks are free.
///
/// A killed process has no lock, and a decision that was unwound dropped its own. But other tests of
/// this process start programs, and between `fork` and `exec` such a child has a copy of every open
/// file with its lock, for some milliseconds. A decision that finds a lock has done nothing yet, so
/// it is tried again; a lock that a decision left behind would be held for good, and fails here.
fn decide(
    decide: Decide,
    run: (&Workplace, &str),
    now: UtcTime,
    fatal: u64,
) -> (u64, Option<Result<Decided, RunError>>) {
    let start = std::time::Instant::now();
    loop {
        match attempt(decide, run, now, fatal) {
            (_, Some(Err(RunError::Lock(error)))) => {
                assert!(start.elapsed() < Duration::from_secs(10), "never released: {error}");
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

/// Decides, signed by `boss.key`; how often the clock was read, and what came of it, or none when
/// the process was killed.
fn attempt(
    decide: Decide,
    (workplace, run_id): (&Workplace, &str),
    now: UtcTime,
    fatal: u64,
) -> (u64, Option<Result<Decided, RunError>>) {
    let clock = Arc::new(TestClock { now, n_read: AtomicU64::new(0), fatal });
    let env = environment(workplace, clock.clone());
    let (out, key) = (workplace.path("out"), workplace.path("boss.key"));
    let own = workplace.path("home/.config/forgelm/signing.key");
    let mut keys = trust::trusted_keys(None, &env).unwrap();
    let boss = forgelm_evidence::keys::file::load_public_key(&workplace.path("boss.key.pub"));
    let boss = forgelm_evidence::keys::trust::TrustedKey::unlimited(boss.unwrap(), None);
    keys.add(boss);
    let asked = DecisionRequest {
        run_id,
        output_dir: &out,
        comment: None,
        role: None,
        approver_key: Some(&key),
        signing_key: Some(&own),
        keys,
        allow_unsigned: false,
    };
    let decided = catch_unwind(AssertUnwindSafe(|| decide(&asked, &env, &mut Silent))).ok();
    (clock.n_read.load(Ordering::Relaxed), decided)
}

fn after_the_run(workplace: &Workplace, days: i64) -> UtcTime {
    let lines = workplace.json_lines("out/audit_log.jsonl");
    let at: UtcTime = lines.last().unwrap()["timestamp"].as_str().unwrap().parse().unwrap();
    UtcTime(at.0 + days * 86_400_000_000 + 1_000_000)
}

fn names(workplace: &Workplace) -> Vec<String> {
    let lines = workplace.json_lines("out/audit_log.jsonl");
    lines.iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect()
}

fn count(workplace: &Workplace, name: &str) -> usize {
    names(workplace).iter().filter(|event| *event == name).count()
}

#[test]
fn a_decision_that_is_killed_at_any_moment_is_finished_by_the_next() {
    let keys = ["--key", "home/.config/forgelm/signing.key.pub", "--key", "boss.key.pub"];
    let mut n_killed_after_the_rename = 0;
    for fatal in 1.. {
        let (workplace, run_id) = staged("");
        workplace.forgelm(&["keygen", "--out", "boss.key"]).expect_code(0);
        let now = after_the_run(&workplace, 0);
        let (_, decided) = decide(approve, (&workplace, &run_id), now, fatal);
        let is_renamed = workplace.path("out/final_model").is_dir();
        if let Some(decided) = decided {
            assert!(matches!(decided.unwrap(), Decided::Promoted { is_repair: false, .. }));
            assert!(fatal > 5, "the clock is read before every record");
            break;
        }
        let is_recorded = count(&workplace, "human_approval.granted") == 1;
        n_killed_after_the_rename += usize::from(is_renamed && !is_recorded);
        // What it left is never something that verifies as another thing than it is.
        let args = [&["verify-bundle", "out", "--output-format", "json"], &keys[..]].concat();
        let seen = workplace.forgelm(&args);
        let outcome = seen.json()["outcome"].clone();
        assert!(seen.code != 0 || outcome == "staged" || is_recorded, "{fatal}: {outcome}");
        // The next one finishes it, and nobody is counted twice.
        let (_, next) = decide(approve, (&workplace, &run_id), now, u64::MAX);
        next.unwrap().unwrap_or_else(|error| panic!("{fatal}: {}", error.chain()));
        assert_eq!(count(&workplace, "human_approval.approved"), 1, "{fatal}");
        assert_eq!(count(&workplace, "human_approval.granted"), 1, "{fatal}");
        assert!(workplace.path("out/final_model/adapter_model.safetensors").is_file());
        let report = workplace.forgelm(&args).expect_code(0).json();
        assert_eq!(report["outcome"], "promoted", "{fatal}");
    }
    assert!(n_killed_after_the_rename > 0, "no process was killed between rename and record");
}

#[test]
fn a_rejection_does_not_undo_an_approval_that_was_cut_off() {
    let (workplace, run_id) = staged("");
    workplace.forgelm(&["keygen", "--out", "boss.key"]).expect_code(0);
    let now = after_the_run(&workplace, 0);
    for fatal in 1.. {
        let (_, decided) = decide(approve, (&workplace, &run_id), now, fatal);
        assert!(decided.is_none(), "reading {fatal} of the clock: not killed, but {decided:?}");
        if count(&workplace, "human_approval.approved") == 1 {
            break;
        }
    }
    assert!(!workplace.path("out/final_model").exists());
    let shown = ["approvals", "--pending", "--output-dir", "out", "--output-format", "json"];
    let shown: Value = workplace.forgelm(&shown).expect_code(0).json();
    assert_eq!(shown["pending"][0]["status"], "approved");
    workplace
        .forgelm(&["--config", "run.yaml", "--resume"])
        .expect_code(4)
        .expect_stdout("its promotion was cut off");
    let (_, refused) = decide(reject, (&workplace, &run_id), now, u64::MAX);
    let error = refused.unwrap().unwrap_err();
    assert_eq!(error.exit(), Exit::Config);
    assert!(error.to_string().contains("was approved already"), "{error}");
    assert!(workplace.path("out/final_model").is_dir());
}

#[test]
fn fault_101_an_approval_after_the_last_day_is_refused_and_the_run_may_ask_again() {
    let (workplace, run_id) = staged(", approval: {expires_days: 7}");
    workplace.forgelm(&["keygen", "--out", "boss.key"]).expect_code(0);
    let late = after_the_run(&workplace, 7);
    for _ in 0..2 {
        let (_, refused) = decide(approve, (&workplace, &run_id), late, u64::MAX);
        let error = refused.unwrap().unwrap_err();
        assert_eq!(error.exit(), Exit::Config);
        assert!(error.to_string().contains("7 days, which are over"), "{error}");
    }
    let events = names(&workplace);
    let of_approval: Vec<&str> =
        events.iter().filter_map(|name| name.strip_prefix("human_approval.")).collect();
    assert_eq!(of_approval, ["required", "expired", "refused", "refused"]);
    assert!(!workplace.path("out/final_model").exists());
    let pending = ["approvals", "--pending", "--output-dir", "out", "--output-format", "json"];
    assert_eq!(workplace.forgelm(&pending).expect_code(0).json()["count"], 0);
    // Resumed, the finished run stages its model once more, under an id of its own.
    let again = ["--config", "run.yaml", "--resume", "--output-format", "json"];
    let again = workplace.forgelm(&again).expect_code(4).json();
    let new_id = again["run_id"].as_str().unwrap();
    assert_ne!(new_id, run_id);
    let now = after_the_run(&workplace, 0);
    let (_, decided) = decide(approve, (&workplace, new_id), now, u64::MAX);
    assert!(matches!(decided.unwrap().unwrap(), Decided::Promoted { .. }));
    let keys = ["--key", "home/.config/forgelm/signing.key.pub", "--key", "boss.key.pub"];
    workplace.forgelm(&[&["verify-bundle", "out"], &keys[..]].concat()).expect_code(0);
}
