//! The conformance kit: what is good holds, and each planted fault is found.

use crate::build::{built, compile, load, misbehaves};
use forgelm_loader::conformance::{Finding, Outcome, check, check_without_kernels};
use forgelm_loader::{HostServices, Library, Loader};
use std::path::Path;

/// `PLUGIN: PROPERTY` of what does not hold.
fn failing(library: &Library) -> Vec<String> {
    failing_of(check(library))
}

fn failing_of(findings: Vec<Finding>) -> Vec<String> {
    let found = findings.into_iter().filter_map(|finding| match finding.outcome {
        Outcome::Fails(_) => Some(format!("{}: {}", finding.plugin, finding.property)),
        Outcome::Holds => None,
        Outcome::Untried(why) => panic!("{}: {}: {why}", finding.plugin, finding.property),
    });
    found.collect()
}

#[test]
fn every_plugin_that_we_ship_or_show_conforms() {
    let (_c, trainers) = compile("examples/trainers.c", &[], &[]);
    let (_cpp, mean) = compile("examples/merge_mean.cpp", &[], &[]);
    let (_rewards, rewards) = compile("loader/tests/plugins/rewards.c", &[], &[]);
    let (trainer, example) = (built("forgelm_plugin_trainer"), built("forgelm_example_plugin"));
    let evaluator = built("forgelm_plugin_evaluator");
    let quantizer = built("forgelm_plugin_quantizer");
    let reward = built("forgelm_plugin_reward");
    let mut n_tried = 0;
    for path in [&trainer, &evaluator, &quantizer, &example, &reward, &trainers, &mean, &rewards] {
        let library = load(path);
        assert_eq!(failing(&library), Vec::<String>::new(), "{}", path.display());
        assert_eq!(failing_of(without_kernels(path)), Vec::<String>::new(), "{}", path.display());
        n_tried += check(&library).len();
    }
    // Six properties of eight trainers, five of two merge methods, six of nine quantizers, four of
    // two evaluators, six of four rewards.
    assert_eq!(n_tried, 6 * 8 + 5 * 2 + 6 * 9 + 4 * 2 + 6 * 4);
}

/// What is found where the host has no kernels.
fn without_kernels(path: &Path) -> Vec<Finding> {
    let without = Loader::new(HostServices::silent()).load(path);
    check_without_kernels(&check(&load(path)), without)
}

#[test]
fn a_trainer_that_fails_without_kernels_is_found_unless_it_says_that_it_needs_them() {
    let (_dir, path) = misbehaves(&["LOSS=kernel_metrics"]);
    let [finding] = &without_kernels(&path)[..] else { panic!("one trainer") };
    let Outcome::Fails(why) = &finding.outcome else { panic!("{finding}") };
    assert!(why.starts_with("has a loss for a batch: "), "{why}");
    assert!(why.contains("hint: one that needs them says `needs:forgelm.kernels/1`"), "{why}");
    let (_dir, path) = misbehaves(&["LOSS=kernel_metrics", "FEATURES=needs_kernels"]);
    let [finding] = &without_kernels(&path)[..] else { panic!("one trainer") };
    assert_eq!(finding.outcome, Outcome::Holds);
}

#[test]
fn an_evaluator_that_panics_is_silent_or_breaks_where_a_service_is_missing_is_found() {
    for (evaluate, expected) in [
        ("panics_without", "it panicked before and is not called again"),
        ("asks_everything", "not implemented (status 12), and says no more"),
        ("bears_a_grudge", "not implemented (status 12), and says no more"),
    ] {
        let define = format!("EVALUATE={evaluate}");
        let (_dir, path) = compile("loader/tests/plugins/judge.c", &[&define], &[]);
        let findings = check(&load(&path));
        let fails = findings.iter().filter_map(|found| match &found.outcome {
            Outcome::Fails(why) => Some((found.property, why)),
            Outcome::Holds | Outcome::Untried(_) => None,
        });
        let fails: Vec<_> = fails.collect();
        let [(property, why)] = fails[..] else { panic!("{evaluate}: {fails:?}") };
        assert_eq!(property, "says in words that a service is missing");
        assert!(why.ends_with(expected), "{evaluate}: {why}");
    }
}

#[test]
fn canary_each_planted_fault_is_found() {
    let cases = [
        ("LOSS=nan_loss", "has a loss for a batch"),
        ("LOSS=wrong_slope", "has the slope of its loss as gradient"),
        ("LOSS=untrained_slope", "has no gradient in untrained rows"),
        ("LOSS=forgetful", "gives the same bits again"),
    ];
    for (define, property) in cases {
        let (_dir, path) = misbehaves(&[define]);
        let failing = failing(&load(&path));
        assert!(failing.contains(&format!("misbehaves: {property}")), "{define}: {failing:?}");
    }
}
