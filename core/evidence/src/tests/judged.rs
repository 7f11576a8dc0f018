//! Verdicts that a stranger comes to again from what was measured.

use std::path::Path;

use serde_json::Value;

use super::{signer, write_run};
use crate::bundle::verify::{BundleOptions, BundleReport, FindingKind, verify_bundle};
use crate::class::Class;
use crate::gate::{Bound, Check, MEASUREMENTS_FILE, Measurement, Measurements, Policy};
use crate::keys::trust::TrustedKeys;

/// A signed run that says that its loss gate passed, with this document of measurements.
fn run(document: &Value) -> BundleReport {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("compliance")).unwrap();
    let file = dir.path().join(MEASUREMENTS_FILE);
    forgelm_artifact::write::atomic(&file, document.to_string().as_bytes()).unwrap();
    write_run(dir.path(), Ok(&signer(1)), "fg-0123456789ab");
    verify(dir.path())
}

fn verify(dir: &Path) -> BundleReport {
    let keys = TrustedKeys::with_local(signer(1).key.public());
    verify_bundle(dir, &BundleOptions { keys, ..BundleOptions::default() })
}

fn measured(gate: &str, value: f64, policy: Policy) -> Value {
    let check = Check {
        measure: "eval_loss".to_owned(),
        value,
        bound: Bound::AtMost,
        limit: 2.0,
        limit_name: "the baseline".to_owned(),
        n_samples: Some(4),
        interval: None,
    };
    let measurement =
        Measurement { gate: gate.to_owned(), checks: vec![check], not_evaluated: None };
    Measurements { policy, gates: vec![measurement] }.to_json()
}

fn reasons(report: &BundleReport) -> Vec<&str> {
    let of_verdicts = report.findings.iter().filter(|found| found.kind == FindingKind::Verdict);
    of_verdicts.map(|found| found.reason.as_str()).collect()
}

#[test]
fn a_verdict_that_does_not_follow_from_what_was_measured_is_found() {
    let plain = Policy::default();
    let good = run(&measured("loss", 2.0, plain));
    assert_eq!((good.class, reasons(&good)), (Class::Accepted, vec![]));

    let above = run(&measured("loss", 2.5, plain));
    assert_eq!(above.class, Class::Different);
    let said = "by what was measured the gate `loss` does not pass; it is signed as passed";
    assert_eq!(reasons(&above), [said]);

    let few = run(&measured("loss", 1.0, Policy { min_samples: Some(5), confidence: None }));
    assert_eq!(reasons(&few), [said]);

    let other = run(&measured("safety", 1.0, plain));
    assert_eq!(reasons(&other), ["the gate `loss` was signed, and no measurement of it is here"]);

    let mut unreadable = measured("loss", 1.0, plain);
    unreadable["gates"][0]["checks"] = Value::Null;
    let report = run(&unreadable);
    assert_eq!(reasons(&report), ["is no document of measurements of this version"]);
    assert_eq!(report.class, Class::Different);
}
