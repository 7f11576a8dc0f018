//! Libraries that load, and then do something that they should not: the host keeps its word.

use crate::batch::Batch;
use crate::build::{Told, built, compile, load, misbehaves};
use forgelm_kernels_api::philox::philox4x32;
use forgelm_loader::{HostServices, Hung, Level, Loader};
use forgelm_sdk::trainer::Trainer;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A denormal number, which is zero when a library has its way.
fn denormal() -> u32 {
    (std::hint::black_box(f32::MIN_POSITIVE) / std::hint::black_box(4.0)).to_bits()
}

fn sft() -> Box<dyn Trainer> {
    (forgelm_plugin_trainer::sft::SFT.build)(&[]).unwrap()
}

#[track_caller]
fn trainer(path: &Path) -> Box<dyn Trainer> {
    (load(path).offers.trainers[0].build)(&[]).unwrap()
}

#[test]
fn fault_110_an_exception_is_a_failure_and_the_instance_is_not_called_again() {
    let (_dir, path) = compile("loader/tests/plugins/throws.cpp", &[], &[]);
    let throws = trainer(&path);
    let first = Batch::texts(2).failure(&*throws);
    assert!(first.ends_with(": panicked: thrown in step 1"), "{first}");
    assert!(first.starts_with("trainer `throws` of throws 0.1.0 ("), "{first}");
    let second = Batch::texts(2).failure(&*throws);
    let said = ": it panicked before and is not called again: thrown in step 1";
    assert!(second.ends_with(said), "{second}");
}

/// In a trainer of ours a batch without a reference is a bug of the host, and panics.
#[test]
fn fault_110_a_panic_in_rust_is_a_failure_with_its_place_in_the_log() {
    let told = Told::default();
    let library = told.loader().load(&built("forgelm_plugin_trainer")).unwrap().unwrap();
    let dpo = library.offers.trainers.iter().find(|plugin| plugin.name == "dpo").unwrap();
    let dpo = (dpo.build)(&[]).unwrap();
    let failure = Batch::texts(3).failure(&*dpo);
    assert!(failure.contains(": panicked: answers that are not pairs"), "{failure}");
    let lines = told.lines.lock().unwrap();
    let place = |(level, from, text): &(Level, String, String)| {
        *level == Level::Error && from == "panic" && text.contains("trainer.rs:")
    };
    assert!(lines.iter().any(place), "{lines:?}");
    let again = Batch::pairs(1).failure(&*dpo);
    let said = ": it panicked before and is not called again: answers that are not pairs";
    assert!(again.contains(said), "{again}");
}

#[test]
fn fault_072_a_library_built_with_fast_math_changes_no_bit_of_ours() {
    let before = denormal();
    assert_ne!(before, 0);
    let source = "loader/tests/plugins/misbehaves.c";
    let (_dir, path) = compile(source, &["FAST_MATH"], &["-ffast-math"]);
    let library = load(&path);
    assert_eq!(denormal(), before, "the mode after opening");
    assert!(library.notes[0].contains("changed the floating-point mode"), "{:?}", library.notes);
    let fast = (library.offers.trainers[0].build)(&[]).unwrap();
    let texts = Batch::texts(4);
    assert_eq!(texts.loss(&*fast).1, texts.loss(&*sft()).1);
    assert_eq!(denormal(), before, "the mode after a call");
}

#[test]
fn fault_072_a_floating_point_mode_that_a_call_changes_is_put_back() {
    let (_dir, path) = misbehaves(&["LOSS=float_mode"]);
    let (changes, before) = (trainer(&path), denormal());
    let texts = Batch::texts(4);
    assert_eq!(texts.loss(&*changes), texts.loss(&*sft()));
    assert_eq!(denormal(), before);
}

#[test]
fn a_thread_of_its_own_and_an_allocator_of_its_own_change_nothing() {
    let (_dir, path) = misbehaves(&["LOSS=starts_thread"]);
    let starts = trainer(&path);
    let texts = Batch::texts(6);
    for _ in 0..3 {
        assert_eq!(texts.loss(&*starts), texts.loss(&*sft()));
    }
    // The thread goes on in a library that is never unloaded.
    drop(starts);
    std::thread::sleep(std::time::Duration::from_millis(20));
}

#[test]
fn a_failure_with_a_broken_message_is_mended() {
    let (_dir, path) = misbehaves(&["LOSS=long_failure"]);
    let failure = Batch::texts(1).failure(&*trainer(&path));
    assert!(failure.contains(": it broke \u{fffd}"), "{failure}");
    assert!(failure.len() < 2_000, "{} bytes", failure.len());
}

#[test]
fn an_instance_that_is_not_there_is_refused() {
    let (_dir, path) = misbehaves(&["CREATE=creates_nothing"]);
    let refused = (load(&path).offers.trainers[0].build)(&[]).err().unwrap().to_string();
    assert!(refused.contains("`the instance` is NULL"), "{refused}");
    let (_dir, path) = misbehaves(&["LOSS=NULL"]);
    let refused = (load(&path).offers.trainers[0].build)(&[]).err().unwrap().to_string();
    assert!(refused.contains("`forgelm_trainer.loss` is NULL"), "{refused}");
}

/// The engine refuses a loss that is no number; the loader hands it on as it is.
#[test]
fn a_loss_that_is_no_number_arrives_as_one() {
    let (_dir, path) = misbehaves(&["LOSS=nan_loss"]);
    let (loss, _) = Batch::texts(2).loss(&*trainer(&path));
    assert!(loss.loss_sum.is_nan() && loss.n_terms > 0, "{loss:?}");
}

#[test]
fn names_of_metrics_without_end_are_refused() {
    let (_dir, path) = misbehaves(&["LOSS=many_metrics"]);
    let failure = Batch::texts(1).failure(&*trainer(&path));
    assert!(failure.ends_with("more than 256 names of metrics"), "{failure}");
}

/// Number 2^64 - 1 of step 7, and number 0, by the definition in the header.
#[test]
fn random_numbers_of_the_host_are_those_of_the_definition() {
    let (_dir, path) = misbehaves(&["LOSS=random_metrics"]);
    let (loss, _) = Batch::texts(1).loss(&*trainer(&path));
    let [k0, k1, ..] = philox4x32([0x504c_5547, 0, 0, 0], [0x9abc_def0, 0x1234_5678]);
    let last = philox4x32([u32::MAX, u32::MAX, 7, 0], [k0, k1])[0];
    let zero = philox4x32([0, 0, 7, 0], [k0, k1])[0];
    let sum = |name: &str| loss.metrics.iter().find(|metric| metric.name == name).unwrap().sum;
    let expected = f64::from(last) + f64::from(zero);
    assert!((sum("bits") - expected).abs() < 0.5, "{loss:?}");
    let uniform = (f64::from(last >> 8) + f64::from(zero >> 8)) / 16_777_216.0;
    assert!((sum("uniform") - uniform).abs() < 1e-12, "{loss:?}");
}

#[test]
fn a_plugin_talks_reports_and_is_stopped() {
    let (_dir, path) = misbehaves(&["LOSS=talks"]);
    let told = Told::default();
    let library = told.loader().load(&path).unwrap().unwrap();
    let talks = (library.offers.trainers[0].build)(&[]).unwrap();
    let texts = Batch::texts(2);
    assert_eq!(texts.loss(&*talks), texts.loss(&*sft()));
    let line = (Level::Warning, "talker".to_owned(), "a step \u{fffd}".to_owned());
    assert_eq!(*told.lines.lock().unwrap(), [line]);
    assert_eq!(*told.events.lock().unwrap(), ["{\"at\": 1}"]);
    told.stop.store(true, Ordering::Relaxed);
    assert!(texts.failure(&*talks).ends_with("was asked to stop"));
}

/// One library works and says so all the time; beside it another says nothing for three seconds.
#[test]
fn a_library_that_hangs_is_named_while_another_one_talks() {
    let (_talks, talks) = misbehaves(&["LOSS=works_until_stopped", "NAME=\"talks\""]);
    let (_hangs, hangs) = misbehaves(&["LOSS=dozes", "NAME=\"hangs\""]);
    let (told, named) = (Told::default(), Arc::new(Mutex::new(Vec::new())));
    let (names, after) = (Arc::clone(&named), Duration::from_millis(500));
    let tell = move |text: &str| names.lock().unwrap().push(text.to_owned());
    let hung = Some(Arc::new(Hung { after, tell: Box::new(tell) }));
    let mut loader = Loader::new(HostServices { hung, ..told.services(1) });
    let mut made = |path: &Path| {
        let library = loader.load(path).unwrap().unwrap();
        (library.offers.trainers[0].build)(&[]).unwrap()
    };
    let (talks, hangs) = (made(&talks), made(&hangs));
    std::thread::scope(|scope| {
        scope.spawn(|| Batch::texts(1).failure(&*talks));
        for _ in 0..3 {
            assert_eq!(Batch::texts(1).loss(&*hangs), Batch::texts(1).loss(&*sft()));
        }
        told.stop.store(true, Ordering::Relaxed);
    });
    let named = named.lock().unwrap();
    assert_eq!(named.len(), 1, "{named:?}");
    assert!(named[0].starts_with("trainer `hangs` of misbehaves 0.1.0 ("), "{named:?}");
    assert!(named[0].contains("no sign of life for 500ms"), "{named:?}");
    assert!(told.events.lock().unwrap().len() > 100, "the other one said nothing");
}
