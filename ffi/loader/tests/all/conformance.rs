//! The conformance kit: what is good holds, and each planted fault is found.

use crate::build::{built, compile, load, misbehaves};
use forgelm_loader::Library;
use forgelm_loader::conformance::{Outcome, check};

/// `PLUGIN: PROPERTY` of what does not hold.
fn failing(library: &Library) -> Vec<String> {
    let found = check(library).into_iter().filter_map(|finding| match finding.outcome {
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
        n_tried += check(&library).len();
    }
    // Six properties of eight trainers, five of two merge methods, six of nine quantizers, four of
    // two evaluators, six of four rewards.
    assert_eq!(n_tried, 6 * 8 + 5 * 2 + 6 * 9 + 4 * 2 + 6 * 4);
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
