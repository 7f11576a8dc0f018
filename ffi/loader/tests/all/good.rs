//! Libraries that do as they should, of every kind and from C, C++ and Rust.

use crate::batch::Batch;
use crate::build::{Told, built, compile, load};
use forgelm_plugin_trainer::TRAINERS;
use forgelm_sdk::evaluator::{Generate, HeldOut, RecordText, Score, Services, TextPair, TextScore};
use forgelm_sdk::merge_method::{MergeMethod, Pass, Piece, Tensor};
use forgelm_sdk::reward::Answer;
use forgelm_sdk::trainer::{Needs, Records, Role, Trainer};
use forgelm_sdk::{Cause, Failed, OptionValue};
use std::sync::atomic::Ordering;

fn rust_trainer(name: &str, options: &[(&str, OptionValue)]) -> Box<dyn Trainer> {
    let descriptor = TRAINERS.iter().find(|descriptor| descriptor.name == name).unwrap();
    (descriptor.build)(options).unwrap()
}

/// The bundled library against the same code without a border: the same bits.
#[test]
fn every_bundled_trainer_gives_the_bits_that_it_gives_without_a_border() {
    let library = load(&built("forgelm_plugin_trainer"));
    assert_eq!(library.origin.library, "forgelm_plugin_trainer");
    assert_eq!(library.origin.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(library.abi, "1.0");
    assert_eq!(library.notes, Vec::<String>::new());
    assert_eq!(library.offers.trainers.len(), TRAINERS.len());
    for (plugin, ours) in library.offers.trainers.iter().zip(TRAINERS) {
        assert_eq!(plugin.name, ours.name);
        assert_eq!((plugin.summary, plugin.source), (ours.summary, ours.source));
        assert_eq!(plugin.needs, ours.needs, "{}", plugin.name);
        let batch = match ours.needs.records {
            Records::Text => Batch::texts(7),
            Records::Preference => Batch::pairs(5),
            Records::Labelled => {
                Batch::new(&[Role::Chosen, Role::Kl, Role::Rejected, Role::Kl, Role::Chosen])
            }
            Records::Prompt => Batch::new(&[Role::Rollout; 6]),
        };
        let (loss, dlogp) = batch.loss(&*(plugin.build)(&[]).unwrap());
        let (expected, gradient) = batch.loss(&*(ours.build)(&[]).unwrap());
        assert_eq!(loss, expected, "{}", plugin.name);
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        // What a trainer leaves as it was is zero behind the border.
        let left = 9.0_f32.to_bits();
        let written = gradient.iter().map(|&d| if d.to_bits() == left { 0.0 } else { d });
        let written = written.collect::<Vec<_>>();
        assert_eq!(bits(&dlogp), bits(&written), "{}", plugin.name);
    }
}

/// Texts of every kind, and what a reward has nothing to say of. Of the bundled libraries only that
/// of the trainers is linked here: two in one program would both define its entry.
#[test]
fn every_bundled_reward_gives_the_bits_of_its_formula() {
    let library = load(&built("forgelm_plugin_reward"));
    let record = r#"{"gold_answer": "caf\u00e9"}"#;
    let answer = |completion| Answer { prompt: "What? \u{1f600}", completion, record };
    let answers = ["Answer: caf\u{e9}", "", "nul \0 inside. Answer: 7"].map(answer);
    let form = |format: f64, n_chars: f64| Some(0.8 * format + 0.2 * (n_chars / 200.0));
    let expected = [
        ("format_length", [form(1.0, 12.0), form(0.0, 0.0), form(1.0, 23.0)]),
        ("math_answer", [Some(1.0), Some(0.0), Some(0.0)]),
    ];
    assert_eq!(library.offers.rewards.len(), expected.len());
    for (plugin, (name, expected)) in library.offers.rewards.iter().zip(expected) {
        assert_eq!(plugin.name, name);
        assert!(!plugin.summary.is_empty() && !plugin.source.is_empty());
        assert_eq!((plugin.build)(&[]).unwrap().judge(&answers).unwrap(), expected, "{name}");
        let refused = (plugin.build)(&[("most", OptionValue::Number(1.0))]).err().unwrap();
        assert!(refused.to_string().contains("`most` is not an option of"), "{refused}");
        let broken = Answer { record: "{", ..answers[0] };
        // Only one of them reads the record.
        let judged = (plugin.build)(&[]).unwrap().judge(&[broken]);
        assert_eq!(judged.is_err(), name == "math_answer", "{judged:?}");
    }
    let (_dir, path) = compile("loader/tests/plugins/rewards.c", &[], &[]);
    let gold = (load(&path).offers.rewards[1].build)(&[]).unwrap();
    let without = Answer { record: "{}", ..answers[0] };
    assert_eq!(gold.judge(&[answers[0], without]).unwrap(), [Some(1.0), None]);
}

#[test]
fn options_cross_the_border_and_so_do_the_words_about_them() {
    let library = load(&built("forgelm_plugin_trainer"));
    let dpo = library.offers.trainers.iter().find(|plugin| plugin.name == "dpo").unwrap();
    let ipo = ("loss_type", OptionValue::Text("ipo".to_owned()));
    let options = [("beta", OptionValue::Number(0.3)), ipo];
    let batch = Batch::pairs(4);
    let found = batch.loss(&*(dpo.build)(&options).unwrap());
    assert_eq!(found, batch.loss(&*rust_trainer("dpo", &options)));
    assert_ne!(found.0, batch.loss(&*(dpo.build)(&[]).unwrap()).0);
    for wrong in [
        ("beta", OptionValue::Number(0.0)),
        ("gamma", OptionValue::Number(1.0)),
        ("loss_type", OptionValue::Flag(true)),
    ] {
        let options = [wrong];
        let descriptor = TRAINERS.iter().find(|descriptor| descriptor.name == "dpo").unwrap();
        let expected = (descriptor.build)(&options).err().unwrap().to_string();
        assert_eq!((dpo.build)(&options).err().unwrap().to_string(), expected);
    }
}

/// IPO in C and in Rust: the same sums in the same order, so the same bits.
#[test]
fn a_trainer_in_c_gives_the_bits_of_the_same_method_in_rust() {
    let (_dir, path) = compile("examples/trainers.c", &[], &[]);
    let told = Told::default();
    let library = told.loader().load(&path).unwrap().unwrap();
    assert_eq!(library.origin.to_string(), format!("example-trainers 1.0.0 ({})", path.display()));
    assert_eq!(library.origin.sha256.len(), 64);
    let [ipo, nll] = &library.offers.trainers[..] else { panic!("two trainers") };
    assert_eq!((ipo.name, nll.name), ("ipo_c", "nll_c"));
    let needs = Needs {
        records: Records::Preference,
        reference: true,
        rollouts: false,
        prompts: false,
        dropout: false,
    };
    assert_eq!(ipo.needs, needs);
    let beta = ("beta", OptionValue::Number(0.25));
    let kind = ("loss_type", OptionValue::Text("ipo".to_owned()));
    let rust = rust_trainer("dpo", &[beta.clone(), kind]);
    let batch = Batch::pairs(6);
    let (loss, dlogp) = batch.loss(&*(ipo.build)(&[beta]).unwrap());
    let (expected, gradient) = batch.loss(&*rust);
    assert_eq!(loss.loss_sum.to_bits(), expected.loss_sum.to_bits());
    assert_eq!((loss.n_terms, dlogp), (expected.n_terms, gradient));
    let margin = |of: &forgelm_sdk::trainer::Loss| {
        of.metrics.iter().find(|metric| metric.name == "rewards/margins").unwrap().clone()
    };
    let (found, expected) = (margin(&loss), margin(&expected));
    assert_eq!(found.n_terms, 6);
    assert!((found.sum - expected.sum).abs() < 1e-12, "{found:?} and {expected:?}");

    let texts = Batch::texts(5);
    assert_eq!(texts.loss(&*(nll.build)(&[]).unwrap()), texts.loss(&*rust_trainer("sft", &[])));
    let refused = (ipo.build)(&[("beta", OptionValue::Number(-1.0))]).err().unwrap();
    assert_eq!(refused.to_string(), "the only option is `beta`, a number above 0");
    let failure = texts.failure(&*(ipo.build)(&[]).unwrap());
    assert!(failure.contains("ipo_c needs pairs and a reference"), "{failure}");
    assert!(failure.starts_with("trainer `ipo_c` of example-trainers 1.0.0 ("), "{failure}");
    let lines = told.lines.lock().unwrap();
    assert!(lines.iter().any(|(_, from, text)| from == "trainers.c" && text == "a trainer in C"));
}

#[test]
fn a_c_trainer_stops_when_the_host_asks() {
    let (_dir, path) = compile("examples/trainers.c", &[], &[]);
    let told = Told::default();
    let library = told.loader().load(&path).unwrap().unwrap();
    let ipo = (library.offers.trainers[0].build)(&[]).unwrap();
    told.stop.store(true, Ordering::Relaxed);
    let failure = Batch::pairs(1).failure(&*ipo);
    assert!(failure.ends_with("stopped as asked"), "{failure}");
}

/// Two inputs of six elements, in one piece and in pieces of four and two.
fn merged(method: &dyn MergeMethod, cuts: &[usize]) -> Vec<f32> {
    let a = [1.0, -2.0, 0.5, 4.0, 0.0, 8.0];
    let b = [3.0, 2.0, 0.5, -4.0, 1.0, 0.0];
    let mut facts: Vec<f64> = Vec::new();
    let mut result = vec![0.0; a.len()];
    let pieces: Vec<(usize, usize)> = cuts
        .iter()
        .scan(0, |start, &len| {
            *start += len;
            Some((*start - len, len))
        })
        .collect();
    let name = "layers.0.weight";
    for (pass, Pass { n_sums, n_facts }) in method.passes().iter().copied().enumerate() {
        let mut sums = vec![0.0; n_sums];
        for &(start, len) in &pieces {
            let mut own = vec![0.0; n_sums];
            let inputs = [&a[start..start + len], &b[start..start + len]];
            let tensor = Tensor { name, len: a.len(), facts: &facts };
            let piece = Piece { tensor, start, base: None, inputs: &inputs };
            method.measure(pass, &piece, &mut own).unwrap();
            sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
        let mut found = vec![0.0; n_facts];
        let tensor = Tensor { name, len: a.len(), facts: &facts };
        method.conclude(pass, &tensor, &sums, &mut found).unwrap();
        facts.extend(found);
    }
    for &(start, len) in &pieces {
        let inputs = [&a[start..start + len], &b[start..start + len]];
        let tensor = Tensor { name, len: a.len(), facts: &facts };
        let piece = Piece { tensor, start, base: None, inputs: &inputs };
        method.merge(&piece, &mut result[start..start + len]).unwrap();
    }
    result
}

/// (3 a + b) / 4 by hand.
#[test]
fn a_merge_method_in_cpp_merges() {
    let (_dir, path) = compile("examples/merge_mean.cpp", &[], &[]);
    let library = load(&path);
    let [mean] = &library.offers.merge_methods[..] else { panic!("one method") };
    assert_eq!((mean.needs.n_inputs_min, mean.needs.n_inputs_max), (1, 64));
    let method = (mean.build)(&[], &[3.0, 1.0]).unwrap();
    assert!(!method.reads_base() && method.passes().is_empty());
    let expected = [1.5, -1.0, 0.5, 2.0, 0.25, 6.0];
    assert_eq!(merged(&*method, &[6]), expected);
    assert_eq!(merged(&*method, &[4, 2]), expected);
    let refused = (mean.build)(&[], &[1.0, -1.0]).err().unwrap();
    assert_eq!(refused.to_string(), "the weights must add up to more than 0");
    let three = (mean.build)(&[], &[1.0, 1.0, 1.0]).unwrap();
    let inputs: [&[f32]; 1] = [&[1.0]];
    let tensor = Tensor { name: "x", len: 1, facts: &[] };
    let piece = Piece { tensor, start: 0, base: None, inputs: &inputs };
    let failed = three.merge(&piece, &mut [0.0]).unwrap_err();
    assert!(failed.message.ends_with("not as many inputs as weights"), "{failed}");
}

/// The mean of a and b is [2, 0, 0.5, 0, 0.5, 4], whose square sums to 20.5; that of a to 85.25.
#[test]
fn passes_of_a_rust_merge_method_cross_the_border() {
    let library = load(&built("forgelm_example_plugin"));
    let [normed] = &library.offers.merge_methods[..] else { panic!("one method") };
    let method = (normed.build)(&[], &[1.0, 1.0]).unwrap();
    assert_eq!(method.passes(), [Pass { n_sums: 2, n_facts: 1 }]);
    let factor = (85.25_f64 / 20.5).sqrt();
    let found = merged(&*method, &[6]);
    for (found, mean) in found.iter().zip([2.0, 0.0, 0.5, 0.0, 0.5, 4.0]) {
        assert!((f64::from(*found) - factor * mean).abs() < 1e-6, "{found}");
    }
    assert_eq!(merged(&*method, &[4, 2]), found);
    let tensor = Tensor { name: "zeros", len: 1, facts: &[] };
    let failed = method.conclude(0, &tensor, &[1.0, 0.0], &mut [0.0]).unwrap_err();
    assert!(failed.message.ends_with("the mean of `zeros` is zero"), "{failed}");
    // A panic while an instance is made is a refusal, not the end of the program.
    let refused = (normed.build)(&[], &[1.0, -1.0]).err().unwrap().to_string();
    assert!(
        refused.contains("panicked: a panic of a plugin: the weights add up to 0"),
        "{refused}"
    );
}

/// 1 of scale 2 is code 63.5, rounded to 64: 2 * 64 / 127.
#[test]
fn a_rust_quantizer_goes_there_and_back() {
    let library = load(&built("forgelm_example_plugin"));
    let [absmax] = &library.offers.quantizers[..] else { panic!("one quantizer") };
    let quantizer = (absmax.build)(&[]).unwrap();
    assert_eq!(quantizer.bytes_per_row(3).unwrap(), 7);
    let refused = quantizer.bytes_per_row(0).unwrap_err();
    assert!(refused.message.ends_with("a row of no numbers"), "{refused}");
    let rows = [1.0, -2.0, 0.0, 0.5, 0.25, -0.5];
    let mut bytes = [0; 14];
    quantizer.quantize(&rows, 3, &mut bytes).unwrap();
    assert_eq!(bytes[4..7], [64, 0x81, 0]);
    let mut back = [9.0; 6];
    quantizer.dequantize(&bytes, 3, &mut back).unwrap();
    assert_eq!(back[..3], [2.0 * 64.0 / 127.0, -2.0, 0.0]);
    for (found, x) in back.iter().zip(rows) {
        assert!((found - x).abs() <= 2.0 / 254.0 + 1e-6, "{found} for {x}");
    }
    let failed = quantizer.quantize(&rows, 3, &mut bytes[..13]).unwrap_err();
    assert!(failed.message.ends_with("13 bytes for rows that have 14"), "{failed}");
}

/// Thinks the longer completion likelier.
struct ByLength;

impl Score for ByLength {
    fn score(&self, pairs: &[TextPair<'_>]) -> Result<Vec<TextScore>, Failed> {
        let score = |pair: &TextPair<'_>| TextScore {
            logp_sum: -(100.0 / f64::from(u8::try_from(pair.completion.len()).unwrap())),
            n_tokens: 1,
        };
        Ok(pairs.iter().map(score).collect())
    }
}

impl Generate for ByLength {
    fn generate(
        &self,
        prompts: &[&str],
        options: &[(&str, OptionValue)],
    ) -> Result<Vec<String>, Failed> {
        assert_eq!(options, [("max_new_tokens", OptionValue::Number(8.0))]);
        Ok(prompts.iter().map(|prompt| format!("{prompt} green")).collect())
    }
}

/// Of " blue." and " a fish.", " four." and " a song.", " hot." and " written." none is longer.
#[test]
fn a_rust_evaluator_works_over_the_services_of_the_host() {
    let told = Told::default();
    let mut loader = told.loader();
    let library = loader.load(&built("forgelm_example_plugin")).unwrap().unwrap();
    let [truths] = &library.offers.evaluators[..] else { panic!("one evaluator") };
    let evaluator = (truths.build)(&[]).unwrap();
    let services = Services { score: Some(&ByLength), generate: Some(&ByLength), held_out: None };
    let report = evaluator.evaluate(&services).unwrap();
    assert_eq!(report["n_right"], 0);
    assert_eq!(report["n_questions"], 3);
    assert_eq!(report["answer"], "The sky is green");
    let failed = evaluator.evaluate(&Services::default()).unwrap_err();
    assert!(failed.message.ends_with("truths needs `forgelm.score/1`"), "{failed}");
    let lines = told.lines.lock().unwrap();
    assert!(lines.iter().any(|(_, from, text)| from == "truths" && text == "0 of 3"), "{lines:?}");
}

/// Records whose scores no decimal fraction is.
struct Thirds;

impl HeldOut for Thirds {
    fn n_records(&self) -> u64 {
        600
    }

    fn score(&self, first: u64, n: usize) -> Result<Vec<TextScore>, Failed> {
        let score = |record: u64| TextScore {
            logp_sum: -f64::from(u16::try_from(record).unwrap()) / 3.0,
            n_tokens: record % 5 + 1,
        };
        match first + n as u64 {
            ..=600 => Ok((first..first + n as u64).map(score).collect()),
            _ => Err(Failed::argument("no such record")),
        }
    }

    fn text(&self, _record: u64) -> Result<RecordText, Failed> {
        Err(Failed::cancelled())
    }
}

#[test]
fn a_bundled_evaluator_gives_the_loss_of_the_scores_that_it_is_given() {
    let library = load(&built("forgelm_plugin_evaluator"));
    let [plugin] = &library.offers.evaluators[..] else { panic!("one evaluator") };
    assert_eq!(plugin.name, "held_out_loss");
    let model = Services { held_out: Some(&Thirds), ..Services::default() };
    let found = (plugin.build)(&[]).unwrap().evaluate(&model).unwrap();
    assert_eq!((&found["n_records"], &found["n_tokens"]), (&600.into(), &1800.into()));
    // 599 * 600 / 2 thirds over 120 times 1 + 2 + 3 + 4 + 5 tokens.
    let loss = found["loss"].as_f64().unwrap();
    assert!((loss - 179_700.0 / 3.0 / 1800.0).abs() < 1e-12, "{loss}");
    let option = [("file", OptionValue::Text("nowhere.jsonl".to_owned()))];
    let refused = (plugin.build)(&option).err().unwrap().to_string();
    assert!(refused.contains("nowhere.jsonl"), "{refused}");
}

/// In C a request to stop is a status, and comes back as what it is.
#[test]
fn an_evaluator_in_c_is_told_to_stop_by_a_status() {
    struct Stopped;
    impl HeldOut for Stopped {
        fn n_records(&self) -> u64 {
            1
        }
        fn score(&self, _first: u64, _n: usize) -> Result<Vec<TextScore>, Failed> {
            Err(Failed::cancelled())
        }
        fn text(&self, _record: u64) -> Result<RecordText, Failed> {
            Ok(RecordText::default())
        }
    }
    let define = &["EVALUATE=asks_without_end"];
    let (_dir, path) = compile("loader/tests/plugins/judge.c", define, &[]);
    let told = Told::default();
    let library = told.loader().load(&path).unwrap().unwrap();
    let judge = (library.offers.evaluators[0].build)(&[]).unwrap();
    let model = Services { held_out: Some(&Stopped), ..Services::default() };
    let failed = judge.evaluate(&model).unwrap_err();
    assert_eq!(failed.cause, Cause::Cancelled, "{failed}");
    assert!(failed.message.ends_with("stopped as asked"), "{failed}");
    let lines = told.lines.lock().unwrap();
    assert!(lines.iter().any(|(_, from, text)| from == "judge" && text == "cancelled"));
}

#[test]
fn the_same_bytes_are_loaded_once() {
    let (dir, path) = compile("examples/trainers.c", &[], &[]);
    let copy = dir.path().join("copy.so");
    std::fs::copy(&path, &copy).unwrap();
    let mut loader = Told::default().loader();
    assert!(loader.load(&path).unwrap().is_some());
    assert!(loader.load(&path).unwrap().is_none());
    assert!(loader.load(&copy).unwrap().is_none());
}

/// What runs is what was read: the file may go away, or become something else.
#[test]
fn a_library_that_is_replaced_after_loading_still_runs() {
    let (_dir, path) = compile("examples/trainers.c", &[], &[]);
    let library = load(&path);
    std::fs::write(&path, "something else").unwrap();
    let nll = (library.offers.trainers[1].build)(&[]).unwrap();
    let texts = Batch::texts(3);
    assert_eq!(texts.loss(&*nll), texts.loss(&*rust_trainer("sft", &[])));
}
