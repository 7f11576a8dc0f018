//! The optimizers against torch, bitsandbytes, transformers and galore-torch, twelve steps each,
//! and their state through a file after every step.

use forgelm_artifact::Pieces;
use forgelm_artifact::safetensors::SafetensorsFile;

use forgelm_kernels_api::{Ops, Slice, dynamic_map};
use forgelm_kernels_cpu::Cpu;
use forgelm_model::NamedSlice;
use forgelm_train::optimizer::{
    At, GaloreSettings, Kind, Optimizer, OptimizerSettings, ProjectionType, StateError,
};
use serde_json::Value;
use std::path::{Path, PathBuf};

const N_STEPS: u64 = 12;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

struct Golden {
    tensors: SafetensorsFile,
    meta: Value,
}

impl Golden {
    fn open() -> Self {
        let text = std::fs::read(data("optimizers.json")).expect("it is there");
        Self {
            tensors: SafetensorsFile::open(&data("optimizers.safetensors")).expect("it is there"),
            meta: serde_json::from_slice(&text).expect("it is JSON"),
        }
    }

    /// Under its own name, or that of the same numbers.
    fn stored(&self, name: &str) -> String {
        self.meta["same_as"][name].as_str().unwrap_or(name).to_owned()
    }

    fn values(&self, name: &str) -> Vec<f32> {
        let tensor = self.tensors.tensor(&self.stored(name)).unwrap_or_else(|| panic!("{name}"));
        tensor.to_f32().expect("it is f32")
    }

    fn shape(&self, name: &str) -> [usize; 2] {
        match *self.tensors.tensor(&self.stored(name)).expect("it is there").shape {
            [n] => [n, 1],
            [m, n] => [m, n],
            _ => panic!("{name} has other axes"),
        }
    }

    fn number(&self, key: &str) -> f64 {
        self.meta[key].as_f64().expect("it is a number")
    }
}

/// Parameters of a case, one after the other, with the gradients of the steps.
struct Case {
    slices: Vec<NamedSlice>,
    start: Vec<f32>,
    grads: [Vec<f32>; 3],
    scale: Vec<f64>,
    learning_rate: f64,
}

impl Case {
    fn new(golden: &Golden, name: &str, parameters: &[&str]) -> Self {
        let (mut slices, mut start, mut grads) =
            (Vec::new(), Vec::new(), [const { Vec::new() }; 3]);
        for parameter in parameters {
            let values = golden.values(&format!("{name}.{parameter}.start"));
            let range = start.len()..start.len() + values.len();
            let shape = golden.shape(&format!("{name}.{parameter}.start"));
            slices.push(NamedSlice { name: (*parameter).to_owned(), shape: shape.to_vec(), range });
            start.extend(values);
            for (i, grad) in grads.iter_mut().enumerate() {
                grad.extend(golden.values(&format!("{name}.{parameter}.grad{i}")));
            }
        }
        let scale = golden.meta["scale"].as_array().expect("a list");
        let scale = scale.iter().map(|s| s.as_f64().expect("a number")).collect();
        Self { slices, start, grads, scale, learning_rate: golden.number("lr") }
    }

    fn optimizer(&self, settings: &OptimizerSettings) -> Optimizer {
        Optimizer::new(settings.clone(), &self.slices).expect("it fits")
    }

    /// Steps `steps` (1-based), each of which may change the optimizer before.
    fn run(
        &self,
        ops: &dyn Ops,
        optimizer: &mut Optimizer,
        params: &mut [f32],
        steps: std::ops::RangeInclusive<u64>,
    ) {
        for step in steps {
            let t = usize::try_from(step - 1).expect("small");
            let grad = &self.grads[t % 3];
            let at = At { step, learning_rate: self.learning_rate, grad_scale: self.scale[t] };
            optimizer.step(ops, &mut *params, grad, at);
        }
    }
}

const FLAT: [&str; 3] = ["q_proj.weight", "q_proj.bias", "small.weight"];

fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn settings(golden: &Golden, kind: Kind) -> OptimizerSettings {
    #[expect(clippy::cast_possible_truncation, reason = "it is stored as f32")]
    OptimizerSettings::new(kind, golden.number("weight_decay") as f32)
}

/// Parameters move by about 0.01 a step: 2e-6 is a thousandth of a percent of twelve steps.
const TOLERANCE: f32 = 2e-6;

#[test]
fn adamw_and_adafactor_are_those_of_torch_and_transformers() {
    let golden = Golden::open();
    let ops = Cpu::new(2);
    for (name, kind) in [("adamw", Kind::AdamW), ("adafactor", Kind::Adafactor)] {
        let case = Case::new(&golden, name, &FLAT);
        let mut params = case.start.clone();
        let mut optimizer = case.optimizer(&settings(&golden, kind));
        case.run(&ops, &mut optimizer, &mut params, 1..=N_STEPS);
        for slice in &case.slices {
            let expected = golden.values(&format!("{name}.{}.after12", slice.name));
            let worst = worst(&params[slice.range.clone()], &expected);
            assert!(worst < TOLERANCE, "{name}: {} is off by {worst}", slice.name);
        }
    }
}

#[test]
fn maps_are_those_of_bitsandbytes() {
    let golden = Golden::open();
    let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&golden.values("map.signed")), bits(&dynamic_map::SIGNED));
    assert_eq!(bits(&golden.values("map.unsigned")), bits(&dynamic_map::UNSIGNED));
}

/// A moment between two codes may fall to either, and is then another by up to a quarter of
/// itself: a handful of parameters may follow.
#[test]
fn adamw_8bit_is_that_of_bitsandbytes() {
    let golden = Golden::open();
    let case = Case::new(&golden, "adamw_8bit", &FLAT);
    let mut params = case.start.clone();
    let mut optimizer = case.optimizer(&settings(&golden, Kind::AdamW8bit));
    case.run(&Cpu::new(2), &mut optimizer, &mut params, 1..=N_STEPS);
    for slice in &case.slices {
        let expected = golden.values(&format!("adamw_8bit.{}.after12", slice.name));
        let found = &params[slice.range.clone()];
        // A gradient of exactly zero on a second moment of code 0 leaves m / eps: numbers above
        // 1000 here, in f32.
        let is_off = |(a, b): &(&f32, &f32)| (*a - *b).abs() > TOLERANCE * b.abs().max(1.0);
        let n_off = found.iter().zip(&expected).filter(is_off).count();
        assert!(n_off <= found.len() / 1000, "{}: {n_off} of {}", slice.name, found.len());
    }
    let dir = tempfile::tempdir().unwrap();
    let file = SafetensorsFile::open(stored(&optimizer, dir.path()).path()).unwrap();
    for (ours, theirs) in [("m.codes", "state1"), ("v.codes", "state2")] {
        let found = file.tensor(&format!("q_proj.weight.{ours}")).unwrap();
        let name = golden.stored(&format!("adamw_8bit.q_proj.weight.{theirs}"));
        let expected = golden.tensors.tensor(&name).unwrap();
        let pairs = found.bytes.iter().zip(expected.bytes);
        let n_other = pairs.filter(|(a, b)| a != b).count();
        assert!(n_other <= found.bytes.len() / 1000, "{ours}: {n_other} codes differ");
    }
    for (ours, theirs) in [("m.absmax", "absmax1"), ("v.absmax", "absmax2")] {
        let found = file.tensor(&format!("q_proj.weight.{ours}")).unwrap().to_f32().unwrap();
        let expected = golden.values(&format!("adamw_8bit.q_proj.weight.{theirs}"));
        // Twelve steps of at most eight roundings.
        let is_off = |(a, b): (&f32, &f32)| (a - b).abs() > 6e-6 * b;
        assert!(!found.iter().zip(&expected).any(is_off), "{ours}: {found:?}, not {expected:?}");
    }
    for small in ["q_proj.bias", "small.weight"] {
        assert!(file.tensor(&format!("{small}.m")).is_some(), "{small} keeps 32 bits");
    }
}

fn galore(golden: &Golden, projection: ProjectionType, rank: &str) -> GaloreSettings {
    let number = |key: &str| golden.meta["galore"][key].as_u64().expect("a number");
    GaloreSettings {
        rank: usize::try_from(number(rank)).expect("small"),
        update_proj_gap: number("update_proj_gap"),
        scale: golden.meta["galore"]["scale"].as_f64().expect("a number"),
        projection,
        target_modules: Some(vec![".*".to_owned()]),
        layerwise: false,
    }
}

const PROJECTIONS: [(&str, ProjectionType); 5] = [
    ("std", ProjectionType::Std),
    ("reverse_std", ProjectionType::ReverseStd),
    ("right", ProjectionType::Right),
    ("left", ProjectionType::Left),
    ("full", ProjectionType::Full),
];

/// A case of one matrix, under a name that patterns can match.
fn matrix_case(golden: &Golden, name: &str) -> Case {
    let mut case = Case::new(golden, name, &["w"]);
    case.slices[0].name = "model.layers.0.mlp.up_proj.weight".to_owned();
    case
}

/// Parameters move by up to 0.01 * 0.25 a step.
#[test]
fn galore_is_that_of_galore_torch() {
    let golden = Golden::open();
    let ops = Cpu::new(2);
    let mut n_cases = 0;
    for (label, kind) in [("galore_adamw", Kind::AdamW), ("galore_adafactor", Kind::Adafactor)] {
        for side in ["tall", "wide"] {
            for (projection_name, projection) in PROJECTIONS {
                let name = format!("{label}.{side}.{projection_name}");
                let case = matrix_case(&golden, &name);
                let galore = galore(&golden, projection, "rank");
                let settings =
                    OptimizerSettings { galore: Some(galore), ..settings(&golden, kind) };
                let mut params = case.start.clone();
                let mut optimizer = case.optimizer(&settings);
                case.run(&ops, &mut optimizer, &mut params, 1..=N_STEPS);
                let worst = worst(&params, &golden.values(&format!("{name}.w.after12")));
                // With both sides the projection of the gradient that made it is diagonal: beside
                // the diagonal are roundings, which AdamW turns into steps.
                let is_noisy = kind == Kind::AdamW && projection == ProjectionType::Full;
                let bound = if is_noisy { 1e-3 } else { TOLERANCE };
                assert!(worst < bound, "{name} is off by {worst}");
                n_cases += 1;
            }
        }
    }
    assert_eq!(n_cases, 20);
}

#[test]
fn galore_in_8_bits_is_that_of_galore_torch() {
    let golden = Golden::open();
    let case = matrix_case(&golden, "galore_adamw_8bit.tall.std");
    let galore = galore(&golden, ProjectionType::Std, "rank_8bit");
    let settings = OptimizerSettings { galore: Some(galore), ..settings(&golden, Kind::AdamW8bit) };
    let mut params = case.start.clone();
    let mut optimizer = case.optimizer(&settings);
    case.run(&Cpu::new(2), &mut optimizer, &mut params, 1..=N_STEPS);
    let expected = golden.values("galore_adamw_8bit.tall.std.w.after12");
    // Codes on both sides of a boundary, and the sign of a vector: the map has 1 but not -1.
    let off =
        |bound: f32| params.iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() > bound).count();
    assert!(off(1e-4) <= params.len() / 100, "{} of {}", off(1e-4), params.len());
    assert_eq!(off(2e-3), 0);
}

/// The shared cases: three steps at rank 4, with the projection of the first gradient.
#[test]
fn galore_projects_and_steps_as_the_shared_cases_do() {
    let file = SafetensorsFile::open(&data("galore.safetensors")).unwrap();
    let values = |name: &str| file.tensor(name).unwrap().to_f32().unwrap();
    let ops = Cpu::new(1);
    for name in ["tall-std", "wide-std"] {
        let shape: [usize; 2] =
            file.tensor(&format!("{name}.start")).unwrap().shape.try_into().unwrap();
        let slices = [NamedSlice {
            name: "a.weight".to_owned(),
            shape: shape.to_vec(),
            range: 0..shape[0] * shape[1],
        }];
        let galore = GaloreSettings {
            rank: 4,
            update_proj_gap: 200,
            scale: 0.25,
            projection: ProjectionType::Std,
            target_modules: Some(vec!["a".to_owned()]),
            layerwise: false,
        };
        let settings = OptimizerSettings { galore: Some(galore), ..OptimizerSettings::adamw(0.1) };
        let mut optimizer = Optimizer::new(settings, &slices).unwrap();
        let mut params = values(&format!("{name}.start"));
        for step in 1..=3 {
            let grad = values(&format!("{name}.grad{}", step - 1));
            let at = At { step, learning_rate: 0.01, grad_scale: 1.0 };
            optimizer.step(&ops, &mut params, &grad, at);
            let worst = worst(&params, &values(&format!("{name}.after{step}")));
            assert!(worst < 1e-5, "{name} is off by {worst} after step {step}");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a test makes a file")]
fn stored(optimizer: &Optimizer, dir: &Path) -> Pieces {
    let path = dir.join("optimizer.safetensors");
    std::fs::write(&path, optimizer.to_bytes()).expect("the folder is there");
    Pieces::open(&[path]).expect("it was just written")
}

/// Everything that has a state of its own kind.
fn all_settings(golden: &Golden) -> Vec<OptimizerSettings> {
    let mut all = Vec::new();
    for kind in [Kind::AdamW, Kind::AdamW8bit, Kind::Adafactor] {
        all.push(settings(golden, kind));
        for projection in [ProjectionType::Std, ProjectionType::Full] {
            let patterns = Some(vec!["q_proj".to_owned()]);
            let galore =
                GaloreSettings { target_modules: patterns, ..galore(golden, projection, "rank") };
            all.push(OptimizerSettings { galore: Some(galore), ..settings(golden, kind) });
        }
    }
    all
}

#[test]
fn a_state_read_back_after_any_step_gives_the_same_bits_on_any_number_of_threads() {
    let golden = Golden::open();
    let case = Case::new(&golden, "adamw", &FLAT);
    let (one, three) = (Cpu::new(1), Cpu::new(3));
    for settings in all_settings(&golden) {
        let mut expected = case.start.clone();
        let mut whole = case.optimizer(&settings);
        case.run(&three, &mut whole, &mut expected, 1..=N_STEPS);
        for stop in 0..N_STEPS {
            let dir = tempfile::tempdir().unwrap();
            let mut params = case.start.clone();
            let mut before = case.optimizer(&settings);
            case.run(&one, &mut before, &mut params, 1..=stop);
            let mut after = case.optimizer(&settings);
            after.read(&stored(&before, dir.path())).unwrap();
            assert!(after == before, "{} after step {stop}", settings.name());
            case.run(&one, &mut after, &mut params, stop + 1..=N_STEPS);
            assert!(params == expected, "{} stopped after step {stop}", settings.name());
            assert!(after == whole, "{} stopped after step {stop}", settings.name());
        }
    }
}

#[test]
fn layer_by_layer_is_the_same_as_all_at_once() {
    let golden = Golden::open();
    let case = Case::new(&golden, "adamw", &FLAT);
    let ops = Cpu::new(2);
    for mut settings in all_settings(&golden) {
        let Some(galore) = &mut settings.galore else { continue };
        galore.layerwise = true;
        assert!(settings.max_grad_norm(1.0).is_infinite(), "the norm is not known in time");
        let mut expected = case.start.clone();
        case.run(&ops, &mut case.optimizer(&settings), &mut expected, 1..=N_STEPS);
        let mut params = case.start.clone();
        let mut optimizer = case.optimizer(&settings);
        for step in 1..=N_STEPS {
            let t = usize::try_from(step - 1).unwrap();
            let at = At { step, learning_rate: case.learning_rate, grad_scale: case.scale[t] };
            // The last layer's gradient is final first.
            for slices in case.slices.rchunks(2) {
                let slices: Vec<_> = slices.iter().map(|slice| slice.range.clone()).collect();
                let grad = |range| Slice::from(&case.grads[t % 3][range]);
                optimizer.step_slices(&ops, &slices, (&mut params).into(), grad, at);
            }
        }
        assert!(params == expected, "{}", settings.name());
    }
}

#[test]
fn another_optimizers_state_is_refused() {
    let golden = Golden::open();
    let case = Case::new(&golden, "adamw", &FLAT);
    let dir = tempfile::tempdir().unwrap();
    let all = all_settings(&golden);
    for (i, of_file) in all.iter().enumerate() {
        let file = stored(&case.optimizer(of_file), dir.path());
        for (j, of_run) in all.iter().enumerate() {
            let read = case.optimizer(of_run).read(&file);
            if of_file.name() != of_run.name() {
                let expected = of_run.name();
                let found = of_file.name().to_owned();
                assert_eq!(read, Err(StateError::OtherOptimizer { found, expected }));
            } else if i == j {
                assert_eq!(read, Ok(()));
            } else {
                let error = read.unwrap_err();
                assert!(matches!(error, StateError::Part(_)), "another projection: {error}");
            }
        }
    }
    let error = StateError::OtherOptimizer { found: "adamw".to_owned(), expected: "adafactor" };
    assert!(error.to_string().starts_with("the state of the optimizer `adamw`; this run uses"));
}

#[test]
fn a_state_of_other_sizes_is_refused() {
    let golden = Golden::open();
    let case = Case::new(&golden, "adamw", &FLAT);
    let dir = tempfile::tempdir().unwrap();
    for settings in all_settings(&golden) {
        let fewer = Optimizer::new(settings.clone(), &case.slices[..1]).unwrap();
        let error = case.optimizer(&settings).read(&stored(&fewer, dir.path())).unwrap_err();
        assert!(matches!(error, StateError::Part(_)), "{}: {error}", settings.name());
        let mut one = Optimizer::new(settings.clone(), &case.slices[..1]).unwrap();
        let error = one.read(&stored(&case.optimizer(&settings), dir.path())).unwrap_err();
        assert!(matches!(error, StateError::Part(_)), "{}: {error}", settings.name());
    }
}

/// A matrix of 1024 x 1024: what each optimizer keeps of it.
#[test]
fn states_are_as_small_as_promised() {
    let name = "model.layers.0.mlp.up_proj.weight".to_owned();
    let slices = [NamedSlice { name, shape: vec![1024, 1024], range: 0..1 << 20 }];
    let galore = GaloreSettings {
        rank: 128,
        update_proj_gap: 200,
        scale: 0.25,
        projection: ProjectionType::Std,
        target_modules: None,
        layerwise: false,
    };
    let n_bytes = |kind, galore: Option<&GaloreSettings>| {
        let settings =
            OptimizerSettings { galore: galore.cloned(), ..OptimizerSettings::new(kind, 0.0) };
        Optimizer::new(settings, &slices).unwrap().n_bytes()
    };
    let (whole, low) = (1 << 20, 1024 * 128);
    assert_eq!(n_bytes(Kind::AdamW, None), 8 * whole);
    assert_eq!(n_bytes(Kind::AdamW8bit, None), 2 * whole + 8 * whole / 256);
    assert_eq!(n_bytes(Kind::Adafactor, None), 4 * 2048);
    assert_eq!(n_bytes(Kind::AdamW, Some(&galore)), 8 * low + 4 * low);
    assert_eq!(n_bytes(Kind::AdamW8bit, Some(&galore)), 2 * low + 8 * low / 256 + 4 * low);
    assert_eq!(n_bytes(Kind::Adafactor, Some(&galore)), 4 * (1024 + 128) + 4 * low);
}
