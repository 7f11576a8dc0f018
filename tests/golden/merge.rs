//! Merge methods against mergekit 0.1.5 (`tests/data/golden/merge`; tolerance 1e-5), and the engine
//! under them against itself.
#![expect(clippy::cast_possible_truncation, clippy::float_cmp, reason = "a test")]

use forgelm_artifact::sharded::{SHARD_BYTES_MAX, ShardedModel};
use forgelm_artifact::write::StagedDir;
use forgelm_kernels_api::RowSource;
use forgelm_merge::{MergeError, Settings, Source, Tensor, write_merged};
use forgelm_plugin_merge_method::MERGE_METHODS;
use forgelm_sdk::OptionValue;
use forgelm_sdk::merge_method::{Failed, MergeMethod, Piece, Scope};
use forgelm_tensor::Dtype;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/merge").join(path)
}

/// A tensor in memory.
#[derive(Clone)]
struct Values {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl RowSource for Values {
    fn n_rows(&self) -> usize {
        self.values.len() / self.n_cols()
    }

    fn n_cols(&self) -> usize {
        *self.shape.last().expect("an axis")
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.values[first_row * self.n_cols()..][..out.len()]);
    }
}

impl Source for Values {}

type Model = BTreeMap<String, Values>;

fn read(model: &ShardedModel) -> Model {
    let tensor = |name: &str| {
        let view = model.tensor(name).expect("it is listed");
        let values = view.to_f32().expect("numbers");
        (name.to_owned(), Values { shape: view.shape.to_vec(), values })
    };
    model.names().map(tensor).collect()
}

fn model(name: &str) -> Model {
    read(&ShardedModel::open(&golden(&format!("models/{name}"))).expect("it is in the tree"))
}

fn merged_by_mergekit(case: &str) -> Model {
    let file = golden(&format!("{case}/merged.safetensors"));
    let file = forgelm_artifact::safetensors::SafetensorsFile::open(&file).expect("in the tree");
    let tensor = |name: &str| {
        let view = file.tensor(name).expect("it is listed");
        let values = view.to_f32().expect("numbers");
        (name.to_owned(), Values { shape: view.shape.to_vec(), values })
    };
    file.names().map(tensor).collect()
}

fn method(name: &str, options: &[(&str, OptionValue)], weights: &[f64]) -> Box<dyn MergeMethod> {
    let descriptor = MERGE_METHODS.iter().find(|method| method.name == name).expect("listed");
    (descriptor.build)(options, weights).expect("good options")
}

#[derive(Clone, Copy)]
struct How {
    n_threads: usize,
    shard_bytes_max: usize,
    dtype: Dtype,
}

const PLAIN: How = How { n_threads: 2, shard_bytes_max: SHARD_BYTES_MAX, dtype: Dtype::F32 };

fn merge_to(
    out: &Path,
    base: &Model,
    inputs: &[Option<&Model>],
    method: &dyn MergeMethod,
    how: How,
) -> Result<(), MergeError> {
    let tensors: Vec<Tensor<'_>> = base
        .iter()
        .map(|(name, rows)| Tensor {
            name,
            dtype: how.dtype,
            shape: &rows.shape,
            base: rows,
            inputs: inputs
                .iter()
                .map(|input| input.map(|model| &model[name] as &dyn Source))
                .collect(),
        })
        .collect();
    let mut dir = StagedDir::new(out).expect("a folder");
    let settings = Settings {
        scope: Scope::Elements,
        n_threads: how.n_threads,
        shard_bytes_max: how.shard_bytes_max,
        is_stopped: &|| false,
    };
    write_merged(&mut dir, tensors, method, settings)?;
    dir.commit().expect("committed");
    Ok(())
}

fn merge(base: &Model, inputs: &[&Model], method: &dyn MergeMethod, how: How) -> Model {
    let dir = tempfile::tempdir().expect("a folder");
    let inputs: Vec<Option<&Model>> = inputs.iter().copied().map(Some).collect();
    merge_to(&dir.path().join("out"), base, &inputs, method, how).expect("merged");
    read(&ShardedModel::open(&dir.path().join("out")).expect("a model"))
}

fn check_equal(case: &str, found: &Model) {
    let expected = merged_by_mergekit(case);
    assert_eq!(expected.len(), 12, "{case}");
    assert!(found.keys().eq(expected.keys()), "{case}: other tensors");
    for (name, expected) in &expected {
        assert_eq!(found[name].shape, expected.shape, "{case}: {name}");
        let pairs = found[name].values.iter().zip(&expected.values);
        let distance = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(distance <= 1e-5, "{case}: {name} is {distance} away");
    }
}

fn recipe(case: &str) -> Value {
    let text = std::fs::read_to_string(golden(&format!("{case}/recipe.json")));
    serde_json::from_str(&text.expect("it is in the tree")).expect("JSON")
}

#[test]
fn linear_equals_mergekit() {
    let (base, a, b) = (model("base"), model("a"), model("b"));
    let weight = |i: usize| recipe("linear")["models"][i]["parameters"]["weight"].as_f64();
    let weights = [0, 1, 2].map(|i| weight(i).expect("a weight"));
    assert_eq!(weights, [0.2, 0.5, 0.3]);
    let method = method("linear", &[], &weights);
    check_equal("linear", &merge(&base, &[&base, &a, &b], &*method, PLAIN));
}

#[test]
fn slerp_equals_mergekit() {
    let t = recipe("slerp")["parameters"]["t"].as_f64().expect("a number");
    let method = method("slerp", &[], &[1.0 - t, t]);
    check_equal("slerp", &merge(&model("base"), &[&model("a"), &model("b")], &*method, PLAIN));
}

/// By the rules of the paper; the default elects by votes and keeps one element more.
#[test]
fn ties_equals_mergekit_under_the_rules_of_the_paper() {
    let density = recipe("ties")["models"][0]["parameters"]["density"].as_f64().expect("a number");
    let trim = ("trim_fraction", OptionValue::Number(1.0 - density));
    let paper = ("variant", OptionValue::Text("paper".to_owned()));
    let method = method("ties", &[trim, paper], &[0.5, 0.5]);
    check_equal("ties", &merge(&model("base"), &[&model("a"), &model("b")], &*method, PLAIN));
}

/// mergekit's runs and the paper's rule: a change survives with probability 0.4, and is then 2.5
/// times as large.
#[test]
fn dare_drops_and_rescales_as_mergekit_expects() {
    let text = std::fs::read_to_string(golden("dare.json")).expect("it is in the tree");
    let dare: Value = serde_json::from_str(&text).expect("JSON");
    let runs = &dare["runs"]["dare_linear"]["runs"];
    let (base, b) = (model("base"), model("b"));
    let method = method("dare", &[("drop_rate", OptionValue::Number(0.6))], &[1.0, 0.0]);
    let merged = merge(&base, &[&b, &base], &*method, PLAIN);
    let (mut n, mut n_zero, mut sum_of_squares) = (0.0, 0.0, 0.0_f64);
    for (name, merged) in &merged {
        let base = &base[name].values;
        for ((&m, &w), &b) in merged.values.iter().zip(base).zip(&b[name].values) {
            let change = f64::from(m) - f64::from(w);
            let kept = 2.5 * (f64::from(b) - f64::from(w));
            n += 1.0;
            n_zero += if change == 0.0 { 1.0 } else { 0.0 };
            sum_of_squares += change * change;
            assert!(change == 0.0 || (change - kept).abs() < 1e-6, "{name}: {change}, {kept}");
        }
    }
    let share_zero: f64 = n_zero / n;
    assert_eq!(n, runs[0]["n"].as_f64().expect("a number"));
    assert!((share_zero - 0.6).abs() < 0.013, "{share_zero} of the changes were dropped");
    for run in runs.as_array().expect("runs") {
        let l2 = run["l2"].as_f64().expect("a number");
        assert!((sum_of_squares.sqrt() / l2 - 1.0).abs() < 0.05, "{}", sum_of_squares.sqrt());
    }
}

/// Models of several pieces, their tensors of odd sizes.
fn large(seed: u32) -> Model {
    let tensor = |(name, shape): (&str, &[usize])| {
        let n: usize = shape.iter().product();
        let value = |i: usize| {
            let [word, ..] = forgelm_sdk::random::philox4x32([i as u32, 0, 0, 0], [seed, n as u32]);
            (f64::from(word) / 2_147_483_648.0 - 1.0) as f32
        };
        (name.to_owned(), Values { shape: shape.to_vec(), values: (0..n).map(value).collect() })
    };
    [("a", &[1003, 517][..]), ("b", &[33]), ("c", &[7, 40_001]), ("d", &[1, 200_000])]
        .map(tensor)
        .into()
}

fn bytes_of(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("listed"));
    let name = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries.map(|e| (name(&e), std::fs::read(e.path()).expect("read"))).collect()
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let (base, a, b) = (large(1), large(2), large(3));
    for descriptor in MERGE_METHODS {
        let method = method(descriptor.name, &[], &[0.3, 0.7]);
        let write = |n_threads: usize| {
            let dir = tempfile::tempdir().expect("a folder");
            let out = dir.path().join("out");
            let inputs = [Some(&a), Some(&b)];
            merge_to(&out, &base, &inputs, &*method, How { n_threads, ..PLAIN }).expect("merged");
            bytes_of(&out)
        };
        let one = write(1);
        assert_eq!(one.len(), 1);
        for n_threads in [2, 7] {
            assert!(one == write(n_threads), "{} on {n_threads} threads", descriptor.name);
        }
    }
}

#[test]
fn shards_hold_what_one_file_holds() {
    let (base, a, b) = (large(1), large(2), large(3));
    let method = method("ties", &[], &[0.3, 0.7]);
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let how = How { shard_bytes_max: 1_500_000, ..PLAIN };
    merge_to(&out, &base, &[Some(&a), Some(&b)], &*method, how).expect("merged");
    assert!(out.join("model-00003-of-00003.safetensors").is_file());
    let sharded = read(&ShardedModel::open(&out).expect("a model"));
    let single = merge(&base, &[&a, &b], &*method, PLAIN);
    for (name, tensor) in &single {
        assert!(sharded[name].values == tensor.values, "{name}");
    }
}

#[test]
fn what_no_input_changes_is_the_base_to_the_bit() {
    let (base, a) = (large(1), large(2));
    for descriptor in MERGE_METHODS {
        let method = method(descriptor.name, &[], &[0.3, 0.7]);
        let dir = tempfile::tempdir().expect("a folder");
        let out = dir.path().join("out");
        merge_to(&out, &base, &[None, None], &*method, PLAIN).expect("merged");
        let merged = read(&ShardedModel::open(&out).expect("a model"));
        assert!(base.iter().all(|(name, t)| merged[name].values == t.values));
        // An input that leaves a tensor alone counts as the base.
        let half = dir.path().join("half");
        merge_to(&half, &base, &[Some(&a), None], &*method, PLAIN).expect("merged");
        let half = read(&ShardedModel::open(&half).expect("a model"));
        let expected = merge(&base, &[&a, &base], &*method, PLAIN);
        assert!(expected.iter().all(|(name, t)| half[name].values == t.values));
    }
}

#[test]
fn a_result_that_the_format_cannot_hold_is_an_error_and_no_file() {
    let mut base = large(1);
    let mut high = base.clone();
    high.get_mut("c").expect("it is there").values[40_005] = 100_000.0;
    let method = method("linear", &[], &[1.0, 1e-9]);
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let how = How { dtype: Dtype::F16, ..PLAIN };
    let error = merge_to(&out, &base, &[Some(&high), Some(&base)], &*method, how);
    let text = error.expect_err("too large").to_string();
    assert!(text.starts_with("tensor `c`: element 40005 of the result is"), "{text}");
    assert!(text.ends_with("which F16 cannot hold"), "{text}");
    base.get_mut("b").expect("it is there").values[3] = f32::NAN;
    let error = merge_to(&out, &base, &[Some(&base), Some(&base)], &*method, PLAIN);
    let text = error.expect_err("not a number").to_string();
    assert!(text.starts_with("tensor `b`: element 3 of the result is NaN"), "{text}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0, "nothing is left");
}

/// A method of a third party that needs whole tensors, and gives up on one.
struct Whole;

impl MergeMethod for Whole {
    fn reads_base(&self) -> bool {
        true
    }

    fn merge(&self, piece: &Piece<'_>, out: &mut [f32]) -> Result<(), Failed> {
        if piece.tensor.name == "d" {
            return Err(Failed::new("no d today"));
        }
        assert_eq!((piece.start, out.len()), (0, piece.tensor.len));
        out.copy_from_slice(piece.base.expect("asked for"));
        Ok(())
    }
}

#[test]
fn a_method_that_needs_whole_tensors_gets_them_and_may_give_up() {
    let base = large(1);
    let tensors = |names: &[&'static str]| -> Vec<Tensor<'_>> {
        let tensor = |name: &&'static str| Tensor {
            name,
            dtype: Dtype::F32,
            shape: &base[*name].shape,
            base: &base[*name],
            inputs: vec![Some(&base[*name]), Some(&base[*name])],
        };
        names.iter().map(tensor).collect()
    };
    let dir = tempfile::tempdir().expect("a folder");
    let settings = |is_stopped| Settings {
        scope: Scope::Tensor,
        n_threads: 2,
        shard_bytes_max: SHARD_BYTES_MAX,
        is_stopped,
    };
    let run = |names: &[&'static str], is_stopped| {
        let mut out = StagedDir::new(&dir.path().join("out")).expect("a folder");
        write_merged(&mut out, tensors(names), &Whole, settings(is_stopped))
    };
    run(&["a", "b", "c"], &|| false).expect("merged");
    let gave_up = run(&["a", "d"], &|| false).expect_err("no d").to_string();
    assert_eq!(gave_up, "tensor `d`: the merge method gave up: no d today");
    let stopped = run(&["a", "b"], &|| true).expect_err("stopped");
    assert!(matches!(stopped, MergeError::Stopped));
}
