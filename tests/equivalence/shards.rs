//! Checkpoints that processes write in shards: whoever wrote them, they are the whole checkpoint in
//! pieces, and any number of processes goes on from them.

#![expect(clippy::disallowed_methods, reason = "a test damages files")]

use crate::ranks::{ALL_SHARED, Shared};
use crate::tiny::{Run, optimizer, plan_settings, sft, tiny_decoder_of};
use forgelm_artifact::Disk;
use forgelm_artifact::hash::sha256_bytes;
use forgelm_collective::{Group, Settings, threads};
use forgelm_model::{Keep, PeftInfo};
use forgelm_train::checkpoint::{self, CheckpointError, View, merge};
use forgelm_train::optimizer::{GaloreSettings, Kind, OptimizerSettings, ProjectionType};
use forgelm_train::session::{Session, Team, dismiss};
use forgelm_train::state::{Identity, State};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a checkpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Whole,
    Sharded,
}

pub fn peft() -> PeftInfo {
    PeftInfo { base_model_name_or_path: "tiny".to_owned(), revision: None }
}

fn save(session: &Session<'_>, form: Form, dir: &Path) -> PathBuf {
    let (disk, peft) = (Disk::real(), peft());
    if form == Form::Sharded {
        return session.save_in_shards(&disk, dir, &peft).expect("the disk works");
    }
    let optimizer = session.optimizer().expect("collected");
    let (adapter, state) = (session.adapter(), session.state());
    let view = View { adapter, peft: &peft, optimizer: &optimizer, state };
    checkpoint::save(&disk, dir, view).expect("the disk works")
}

/// Steps on so many ranks, from a checkpoint or the beginning, and the checkpoint after them.
fn run(
    (n_ranks, shared): (usize, Shared),
    settings: &OptimizerSettings,
    (from, n_steps): (Option<&Path>, usize),
    (form, dir): (Form, &Path),
) -> PathBuf {
    let work = |thread| {
        let group = Group::open(
            move || Ok(Box::new(thread)),
            Settings::with_deadline(Duration::from_secs(60)),
        );
        let group = group.expect("it opens");
        let decoder = tiny_decoder_of(1, shared.holders(&group));
        let plan = plan_settings(2, 8);
        let adapter = Run::new(&decoder, plan.clone(), 0.2).session.adapter().clone();
        let optimizer = optimizer(&adapter, settings.clone());
        let parts = match from {
            None => (adapter, optimizer, State::new(30, Identity::default())),
            Some(path) => {
                let loaded = checkpoint::load(path, &adapter, optimizer).expect("it is whole");
                (loaded.adapter, loaded.optimizer, loaded.state)
            }
        };
        let more = (None, Keep::Everything);
        let team =
            Some(Team { group: &group, sharing: shared.sharing(), updates_on: None, link: None });
        let mut run = Run::with_team(&decoder, plan, sft(), parts, more, team);
        let saved = if group.is_leader() {
            run.steps(n_steps);
            let saved = save(&run.session, form, dir);
            dismiss(&group, 0).expect("they listen");
            Some(saved)
        } else {
            run.session.follow().expect("led");
            None
        };
        drop(run);
        group.end().expect("together");
        saved
    };
    let mut saved: Vec<Option<PathBuf>> = std::thread::scope(|scope| {
        let start = |thread| scope.spawn(move || work(thread));
        let handles: Vec<_> = threads::ranks(n_ranks).into_iter().map(start).collect();
        handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
    });
    saved.swap_remove(0).expect("the first leads")
}

/// Every file of a folder, by name.
fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry"));
    let file = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().expect("plain");
        (name, fs::read(entry.path()).expect("a file"))
    };
    let mut files: Vec<_> = entries.map(file).collect();
    files.sort();
    files
}

fn names(path: &Path) -> Vec<String> {
    files(path).into_iter().map(|(name, _)| name).collect()
}

fn adamw() -> OptimizerSettings {
    OptimizerSettings::adamw(0.01)
}

#[test]
fn shards_are_the_whole_checkpoint_whoever_wrote_them() {
    let galore = GaloreSettings {
        rank: 2,
        update_proj_gap: 2,
        scale: 0.25,
        projection: ProjectionType::Std,
        target_modules: Some(vec![".*lora_A.*".to_owned()]),
        layerwise: false,
    };
    let mut n_compared = 0;
    for kind in [Kind::AdamW, Kind::AdamW8bit, Kind::Adafactor] {
        for galore in [None, Some(galore.clone())] {
            let settings = OptimizerSettings { galore, ..OptimizerSettings::new(kind, 0.01) };
            let dir = tempfile::tempdir().expect("a folder");
            let one = (1, Shared::Nothing);
            let whole = run(one, &settings, (None, 2), (Form::Whole, &dir.path().join("whole")));
            let expected = files(&whole);
            assert_eq!(expected.len(), 5);
            for by in [one, (2, Shared::Gradients), (4, Shared::Nothing), (8, Shared::Parameters)] {
                let place = dir.path().join(format!("{by:?}"));
                let shards = run(by, &settings, (None, 2), (Form::Sharded, &place));
                assert_eq!(names(&shards).len(), 3 + 2 * by.0, "{by:?}");
                let merged = place.join("merged");
                assert_eq!(merge::merge(&shards, Some(&merged)).expect("good shards"), by.0);
                assert!(files(&merged) == expected, "{} by {by:?}", settings.name());
                assert_eq!(merge::merge(&shards, None).expect("good shards"), by.0);
                assert!(files(&shards) == expected, "{} in place", settings.name());
                n_compared += 1;
            }
        }
    }
    assert_eq!(n_compared, 24);
}

#[test]
fn nothing_is_in_two_shards() {
    let dir = tempfile::tempdir().expect("a folder");
    let size = |path: &Path, file: &str| -> usize {
        let of = files(path).into_iter().filter(|(name, _)| name.starts_with(file));
        // The header is as long as the first eight bytes say.
        of.map(|(_, bytes)| {
            let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight"));
            bytes.len() - 8 - usize::try_from(header).expect("short")
        })
        .sum()
    };
    let one = (1, Shared::Nothing);
    let whole = run(one, &adamw(), (None, 1), (Form::Whole, &dir.path().join("whole")));
    for shared in ALL_SHARED {
        let place = dir.path().join(format!("{shared:?}"));
        let shards = run((4, shared), &adamw(), (None, 1), (Form::Sharded, &place));
        for file in ["adapter_model", "optimizer"] {
            assert_eq!(size(&shards, file), size(&whole, file), "{file}, {shared:?}");
            let largest = files(&shards).into_iter().filter(|(name, _)| name.starts_with(file));
            let largest = largest.map(|(_, bytes)| bytes.len()).max().expect("shards");
            assert!(largest < size(&whole, file) / 2, "{file}: one has {largest} bytes");
        }
    }
}

#[test]
fn any_number_of_processes_goes_on_from_shards_with_the_same_bits() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = |name: String| dir.path().join(name);
    let one = (1, Shared::Nothing);
    let whole = run(one, &adamw(), (None, 4), (Form::Whole, &place("whole".to_owned())));
    let expected = files(&whole);
    let by_four = (4, Shared::Gradients);
    for (form, others) in [(Form::Sharded, Form::Whole), (Form::Whole, Form::Sharded)] {
        let half = run(by_four, &adamw(), (None, 2), (form, &place(format!("half {form:?}"))));
        for by in [one, (2, Shared::Parameters), by_four, (8, Shared::Nothing)] {
            for then in [form, others] {
                let to = place(format!("{form:?} {by:?} {then:?}"));
                let found = run(by, &adamw(), (Some(&half), 2), (then, &to));
                if then == Form::Sharded {
                    merge::merge(&found, None).expect("good shards");
                }
                assert!(files(&found) == expected, "{form:?} of four, then {then:?} by {by:?}");
            }
        }
    }
}

/// Digests that fit do not make shards of one checkpoint.
#[test]
fn shards_that_do_not_belong_together_are_refused_where_a_manifest_lists_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let good = run((2, Shared::Gradients), &adamw(), (None, 1), (Form::Sharded, dir.path()));
    let (first, second) =
        ("optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors");
    fs::copy(good.join(first), good.join(second)).expect("copied");
    let bytes = fs::read(good.join(first)).expect("there");
    let file = good.join(checkpoint::MANIFEST);
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(&file).expect("there")).expect("JSON");
    let listed = &mut manifest["shards"]["files"][second];
    listed["bytes"] = bytes.len().into();
    listed["sha256"] = sha256_bytes(&bytes).as_str().into();
    fs::write(&file, manifest.to_string()).expect("written");
    checkpoint::verify(&good).expect("the digests fit");
    let refused = merge::merge(&good, None).expect_err("twice the first").to_string();
    let expected = format!("{second}: is piece \"1 of 2\"; expected 2 of 2");
    assert!(refused.ends_with(&expected), "{refused}");
}

/// What is done to a checkpoint of four shards, and the file and the words that tell it.
type Damage = (&'static str, fn(&Path), &'static str, &'static str);

const SECOND: &str = "optimizer-00002-of-00004.safetensors";

fn replace_in_manifest(path: &Path, from: &str, to: &str) {
    let file = path.join(checkpoint::MANIFEST);
    let text = fs::read_to_string(&file).expect("there");
    assert!(text.contains(from), "{text}");
    fs::write(&file, text.replace(from, to)).expect("written");
}

const DAMAGES: &[Damage] = &[
    (
        "missing",
        |path| fs::remove_file(path.join(SECOND)).expect("there"),
        SECOND,
        "missing: one of the checkpoint's 4 shards",
    ),
    (
        "truncated",
        |path| {
            let bytes = fs::read(path.join(SECOND)).expect("there");
            fs::write(path.join(SECOND), &bytes[..bytes.len() - 4]).expect("written");
        },
        SECOND,
        "bytes; the manifest says",
    ),
    (
        "one byte flipped",
        |path| {
            let mut bytes = fs::read(path.join(SECOND)).expect("there");
            *bytes.last_mut().expect("bytes") ^= 1;
            fs::write(path.join(SECOND), &bytes).expect("written");
        },
        SECOND,
        "its bytes changed since it was written",
    ),
    (
        "two exchanged",
        |path| {
            let first = path.join("adapter_model-00001-of-00004.safetensors");
            let third = path.join("adapter_model-00003-of-00004.safetensors");
            let bytes = fs::read(&first).expect("there");
            fs::copy(&third, &first).expect("copied");
            fs::write(&third, bytes).expect("written");
        },
        "adapter_model-00001-of-00004.safetensors",
        "",
    ),
    (
        "a shard of another checkpoint beside them",
        |path| {
            fs::copy(path.join(SECOND), path.join("optimizer-00005-of-00008.safetensors"))
                .expect("copied");
        },
        "optimizer-00005-of-00008.safetensors",
        "is none of the 4 shards that the manifest lists",
    ),
    (
        "a manifest of another number",
        |path| replace_in_manifest(path, "\"n\": 4", "\"n\": 3"),
        checkpoint::MANIFEST,
        "says 3 shards and lists 8 files; expected 6",
    ),
    (
        "a manifest with another name",
        |path| replace_in_manifest(path, SECOND, "optimizer-00002-of-00003.safetensors"),
        checkpoint::MANIFEST,
        "does not list `optimizer-00002-of-00004.safetensors`",
    ),
    (
        "no manifest",
        |path| fs::remove_file(path.join(checkpoint::MANIFEST)).expect("there"),
        checkpoint::MANIFEST,
        "the checkpoint is not complete",
    ),
];

#[test]
fn damaged_missing_and_foreign_shards_are_named_and_never_used() {
    let dir = tempfile::tempdir().expect("a folder");
    let by_four = (4, Shared::Gradients);
    run(by_four, &adamw(), (None, 1), (Form::Sharded, dir.path()));
    let good = run(by_four, &adamw(), (None, 2), (Form::Sharded, dir.path()));
    let expected = files(&good);
    assert_eq!(checkpoint::newest(dir.path()).expect("listed").0.as_ref(), Some(&good));
    for (what, damage, file, words) in DAMAGES {
        damage(&good);
        let error = checkpoint::verify(&good).expect_err(what);
        let CheckpointError::Damaged { path, reason } = &error else { panic!("{what}: {error}") };
        assert_eq!(path, &good.join(file), "{what}: {reason}");
        assert!(reason.contains(words), "{what}: {reason}");
        let refused = merge::merge(&good, None).expect_err(what).to_string();
        assert_eq!(refused, error.to_string());
        let (newest, skipped) = checkpoint::newest(dir.path()).expect("listed");
        assert_eq!(newest, Some(dir.path().join("checkpoint-1")), "{what}");
        assert_eq!(skipped[0].reason, error.to_string());
        fs::remove_dir_all(&good).expect("there");
        fs::create_dir(&good).expect("made");
        for (name, bytes) in &expected {
            fs::write(good.join(name), bytes).expect("written");
        }
        checkpoint::verify(&good).expect("mended");
    }
    assert_eq!(DAMAGES.len(), 8);
    merge::merge(&good, None).expect("good shards");
    let again = merge::merge(&good, None).expect_err("there are none").to_string();
    assert!(again.contains("is whole; there are no shards to merge"), "{again}");
}
