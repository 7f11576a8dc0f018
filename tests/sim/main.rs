//! The machine stops at every single operation on the disk while a checkpoint is written: what is
//! found afterwards is always a whole checkpoint, and continuing from it gives the same bits.

#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(clippy::disallowed_methods, reason = "a test damages files")]

mod tiny;

use forgelm_artifact::Disk;
use forgelm_artifact::disk::PowerLoss;
use forgelm_artifact::write::{Action, WriteError};
use forgelm_model::{Decoder, PeftInfo};
use forgelm_sdk::Failed;
use forgelm_sdk::trainer::{Loss, Scored, Trainer};
use forgelm_train::checkpoint::shards::SaveError;
use forgelm_train::checkpoint::{self, View};
use forgelm_train::optimizer::OptimizerSettings;
use forgelm_train::session::{Session, StepError};
use forgelm_train::state::{Identity, State};
use std::path::{Path, PathBuf};
use tiny::{Objective, Run, of_answers, optimizer, plan_settings, sft, tiny_decoder};

const DROPOUT: f32 = 0.1;

fn save(disk: &Disk, dir: &Path, session: &Session<'_>) -> Result<PathBuf, WriteError> {
    let peft = PeftInfo { base_model_name_or_path: "tiny".to_owned(), revision: None };
    let optimizer = session.optimizer().unwrap();
    let view = View {
        adapter: session.adapter(),
        peft: &peft,
        optimizer: &optimizer,
        state: session.state(),
    };
    checkpoint::save(disk, dir, view)
}

fn save_in_shards(disk: &Disk, dir: &Path, session: &Session<'_>) -> Result<PathBuf, WriteError> {
    let peft = PeftInfo { base_model_name_or_path: "tiny".to_owned(), revision: None };
    session.save_in_shards(disk, dir, &peft).map_err(|error| match error {
        SaveError::Write(error) => error,
        // The cause is kept as text; what a test asks of it is whether the disk was full.
        SaveError::Shards(failed) => {
            let (path, action) = (dir.to_owned(), Action::Write);
            let source = std::io::Error::other(failed[0].reason.clone());
            match failed[0].no_room {
                true => WriteError::NoRoom { path, action, n_bytes_free: 0, source },
                false => WriteError::Io { path, action, source },
            }
        }
        SaveError::Collective(error) => panic!("{error}"),
    })
}

/// How checkpoints are written.
type Save = fn(&Disk, &Path, &Session<'_>) -> Result<PathBuf, WriteError>;
const SAVES: [Save; 2] = [save, save_in_shards];

/// A run continued from the newest checkpoint of a folder.
fn resumed<'a>(decoder: &'a Decoder, dir: &Path, objective: Objective<'a>) -> Run<'a> {
    let fresh = Run::with_trainer(decoder, plan_settings(4, 2), DROPOUT, objective);
    let (found, _) = checkpoint::newest(dir).unwrap();
    let Some(path) = found else { return fresh };
    let like_before = optimizer(fresh.session.adapter(), OptimizerSettings::adamw(0.01));
    let loaded = checkpoint::load(&path, fresh.session.adapter(), like_before).unwrap();
    let parts = (loaded.adapter, loaded.optimizer, loaded.state);
    Run::from_parts(decoder, plan_settings(4, 2), objective, parts)
}

fn uninterrupted(decoder: &Decoder, objective: Objective<'_>) -> Vec<f32> {
    Run::with_trainer(decoder, plan_settings(4, 2), DROPOUT, objective).steps(12).params().to_vec()
}

fn resumes_at_every_step(name: &str, objective: Objective<'_>) {
    let decoder = tiny_decoder(2);
    let expected = uninterrupted(&decoder, objective);
    for stop in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let mut run = Run::with_trainer(&decoder, plan_settings(4, 2), DROPOUT, objective);
        run.steps(stop);
        save(&Disk::real(), dir.path(), &run.session).unwrap();
        let mut continued = resumed(&decoder, dir.path(), objective);
        assert_eq!(continued.session.state(), run.session.state());
        assert!(continued.steps(12 - stop).params() == expected, "{name}: stopped after {stop}");
    }
}

#[test]
fn resume_at_every_step_gives_the_same_bits() {
    resumes_at_every_step("sft", sft());
}

#[test]
fn so_it_does_for_objectives_of_answers() {
    for (name, objective) in of_answers() {
        resumes_at_every_step(name, objective);
    }
}

/// Rows 77 and 78 of the table of faults: killed, or without power, at any operation.
#[test]
fn fault_077_078_stopped_at_every_write_of_a_checkpoint() {
    SAVES.into_iter().for_each(stopped_at_every_write);
}

fn stopped_at_every_write(save: Save) {
    let decoder = tiny_decoder(1);
    let expected = uninterrupted(&decoder, sft());
    let n_ops = {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::counting();
        let mut run = Run::new(&decoder, plan_settings(4, 2), DROPOUT);
        run.steps(4);
        save(&disk, dir.path(), &run.session).unwrap();
        disk.n_ops()
    };
    assert!(n_ops > 12, "five files, a folder and a rename: {n_ops} operations");
    for stop in 0..=n_ops {
        for power in [None, Some(PowerLoss::RenamesKept), Some(PowerLoss::RenamesUndone)] {
            let dir = tempfile::tempdir().unwrap();
            let mut run = Run::new(&decoder, plan_settings(4, 2), DROPOUT);
            run.steps(2);
            save(&Disk::real(), dir.path(), &run.session).unwrap();
            run.steps(2);
            let disk = Disk::stopping_at(stop);
            let written = save(&disk, dir.path(), &run.session);
            if let Some(power) = power {
                disk.lose_power(power).unwrap();
            }
            let mut continued = resumed(&decoder, dir.path(), sft());
            let step = continued.session.state().global_step;
            let is_done = written.is_ok() && power.is_none();
            assert!(step == 4 || (step == 2 && !is_done), "stopped at {stop}: found step {step}");
            let n_left = usize::try_from(12 - step).unwrap();
            assert!(continued.steps(n_left).params() == expected, "stopped at {stop}");
        }
    }
}

#[test]
fn fault_079_a_full_disk_leaves_nothing_half_visible() {
    let decoder = tiny_decoder(1);
    let mut run = Run::new(&decoder, plan_settings(4, 2), DROPOUT);
    run.steps(1);
    for save in SAVES {
        for n_bytes in [0, 1, 100, 1000, 5000, 20_000] {
            let dir = tempfile::tempdir().unwrap();
            let error = save(&Disk::full_after(n_bytes), dir.path(), &run.session).unwrap_err();
            assert!(matches!(error, WriteError::NoRoom { .. }), "{error}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "after {n_bytes} bytes");
        }
    }
}

#[test]
fn fault_081_one_flipped_bit_anywhere_is_found() {
    SAVES.into_iter().for_each(one_flipped_bit_is_found);
}

fn one_flipped_bit_is_found(save: Save) {
    let decoder = tiny_decoder(1);
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::new(&decoder, plan_settings(4, 2), DROPOUT);
    run.steps(1);
    let path = save(&Disk::real(), dir.path(), &run.session).unwrap();
    checkpoint::verify(&path).unwrap();
    let mut n_files = 0;
    for entry in std::fs::read_dir(&path).unwrap() {
        let file = entry.unwrap().path();
        let good = std::fs::read(&file).unwrap();
        for at in [0, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&file, &bad).unwrap();
            assert!(checkpoint::verify(&path).is_err(), "{} byte {at}", file.display());
        }
        std::fs::write(&file, &good).unwrap();
        n_files += 1;
    }
    assert_eq!(n_files, 5);
}

#[test]
fn fault_082_rotation_keeps_the_newest_and_the_best() {
    let decoder = tiny_decoder(1);
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::new(&decoder, plan_settings(4, 2), DROPOUT);
    for _ in 0..6 {
        run.steps(1);
        save(&Disk::real(), dir.path(), &run.session).unwrap();
    }
    let left = |n_kept, best| {
        checkpoint::rotate(dir.path(), n_kept, best).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(left(3, Some(2)), ["checkpoint-2", "checkpoint-5", "checkpoint-6"]);
    assert_eq!(left(1, Some(2)), ["checkpoint-2", "checkpoint-6"]);
    assert_eq!(left(1, None), ["checkpoint-6"]);
}

/// A loss, then a gradient, that is not a number: nothing may be updated.
#[test]
fn fault_063_a_step_that_is_not_finite_changes_nothing() {
    struct Diverges {
        loss: f64,
        dlogp: f32,
    }
    impl Trainer for Diverges {
        fn loss(&self, scored: &Scored<'_>, dlogp: &mut [f32]) -> Result<Loss, Failed> {
            dlogp.fill(self.dlogp);
            let n_terms = scored.logp.len() as u64;
            Ok(Loss { loss_sum: self.loss, n_terms, metrics: Vec::new() })
        }
    }
    let decoder = tiny_decoder(1);
    for (loss, dlogp, what, layer_found) in [
        (f64::NAN, -1.0, "the loss", None),
        (f64::INFINITY, -1.0, "the loss", None),
        (
            1.0,
            f32::NAN,
            "the gradient of `base_model.model.model.layers.0.self_attn.q_proj.lora_A",
            Some(0),
        ),
    ] {
        let trainer = Diverges { loss, dlogp };
        let objective = Objective { trainer: &trainer, ..sft() };
        let mut run = Run::with_trainer(&decoder, plan_settings(4, 2), DROPOUT, objective);
        let before = (run.session.adapter().clone(), run.session.optimizer().unwrap().into_owned());
        let error = run.session.step().unwrap_err();
        let StepError::NotFinite { step, what: found, layer, records, .. } = &error else {
            panic!("{error}")
        };
        // The first micro-batch of four is to blame.
        assert_eq!((*step, records.len(), *layer), (1, 4, layer_found), "{error}");
        assert!(found.starts_with(what), "{error}");
        assert!(
            run.session.adapter() == &before.0 && *run.session.optimizer().unwrap() == before.1
        );
        assert_eq!(run.session.state().global_step, 0);
    }
}

/// A number in the adapter that overflows in layer 1 is found there, with the row that made it.
#[test]
fn fault_063_the_tensor_the_layer_and_the_row_are_named() {
    let decoder = tiny_decoder(1);
    for (module, tensor) in [
        ("layers.1.mlp.down_proj.lora_B", "residual stream"),
        ("layers.1.self_attn.q_proj.lora_B", "queries"),
    ] {
        let fresh = Run::new(&decoder, plan_settings(4, 2), 0.0);
        let mut adapter = fresh.session.adapter().clone();
        let slice = adapter.slices().into_iter().find(|s| s.name.contains(module)).unwrap();
        adapter.params_mut()[slice.range].fill(f32::MAX);
        let before = adapter.params().to_vec();
        let optimizer = optimizer(&adapter, OptimizerSettings::adamw(0.01));
        let parts = (adapter, optimizer, State::new(30, Identity::default()));
        let mut run = Run::from_parts(&decoder, plan_settings(4, 2), sft(), parts);
        let error = run.session.step().unwrap_err();
        let StepError::NotFinite { what, layer, records, .. } = &error else { panic!("{error}") };
        assert_eq!(*layer, Some(1), "{module}: {error}");
        assert!(what.contains(tensor), "{error}");
        assert_eq!(records.len(), 1, "{error}");
        assert!(run.session.adapter().params() == before);
    }
}
