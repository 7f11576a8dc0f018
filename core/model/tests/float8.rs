//! Folders whose weights are in floats of eight bits: the same model as with the values that they
//! stand for, and what does not belong together is refused.
#![expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a test")]

mod stored;
mod support;

use std::sync::Arc;

use forgelm_artifact::Class;
use forgelm_kernels_api::{Compute, Ops, Rounding};
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{
    Activations, Decoder, FourBitStorage, Keep, LinearStorage, LoadOptions, LoraConfig,
    ModelConfig, ModelFiles, OpenModel, Pass, Scored, Selection, StepSize, Trainable,
};
use forgelm_tensor::{Dtype, FourBit, ScaleStorage};
use serde_json::{Value, json};
use stored::{Folder, Stored};
use support::{Batch, noise};

const SIZE: StepSize = StepSize { tokens_max: 12, scored_rows_max: 12 };
const Q: &str = "model.layers.0.self_attn.q_proj.weight";

fn open(folder: &Folder) -> (tempfile::TempDir, OpenModel) {
    let dir = folder.written();
    let open = OpenModel::open(&ModelFiles::Folder(dir.path().to_owned())).expect("a good folder");
    (dir, open)
}

/// What loading says.
fn refusal(change: impl FnOnce(&mut Folder)) -> (Class, String) {
    let mut folder = Folder::golden("fp8-block");
    change(&mut folder);
    let dir = folder.written();
    let opened = OpenModel::open(&ModelFiles::Folder(dir.path().to_owned()));
    let loaded = opened.and_then(|open| open.load(Arc::new(Cpu::new(1)), Compute::F32));
    let Err(error) = loaded else { panic!("it must be refused") };
    (error.class(), error.to_string())
}

fn logits(decoder: &Decoder) -> Vec<u32> {
    let batch = Batch::random(8, &[7, 5], decoder.dims().v);
    support::logits(decoder, &batch).into_iter().map(f32::to_bits).collect()
}

/// Log-probabilities and gradients of an adapter.
fn step(open: &OpenModel, ops: Arc<dyn Ops>, compute: Compute) -> [Vec<u32>; 2] {
    let mut decoder = open.load(ops, compute).expect("good weights");
    let selection = Selection::Adapter(LoraConfig::new(4, 8.0, &["all-linear"]));
    let mut trainable = Trainable::zeroed(selection, open.config()).expect("good settings");
    decoder.begin(&mut trainable, open.store()).expect("the weights are there");
    let n = trainable.n_params();
    trainable.params_mut().copy_from_slice(&noise(4, n, 0.05));
    decoder.refresh(&mut trainable);
    let batch = Batch::random(8, &[7, 5], decoder.dims().v);
    let mut acts = Activations::new(&decoder, Some(&trainable), SIZE, Keep::Everything)
        .expect("there is memory");
    let pass = Pass { adapter: Some(&trainable), batch: batch.input(), dropout: None };
    let (rows, labels) = batch.scored();
    let scored = Scored { rows: &rows, labels: &labels };
    let (mut logp, mut grads) = (vec![0.0; rows.len()], vec![0.0; n]);
    decoder.forward(&pass, &mut acts);
    decoder.logprobs_with_gradient(&pass, &mut acts, scored, &mut logp);
    let dlogp = noise(6, rows.len(), 1.0);
    decoder.backward(&pass, &mut acts, scored, &dlogp, &mut grads);
    assert!(grads.iter().filter(|g| **g != 0.0).count() > n / 2);
    [logp, grads].map(|values| values.into_iter().map(f32::to_bits).collect())
}

#[test]
fn logits_and_a_step_are_those_of_the_values_that_codes_and_scales_stand_for() {
    for case in ["fp8-block", "channel"] {
        let folder = Folder::golden(case);
        let ((_a, eight), (_b, dense)) = (open(&folder), open(&folder.dense()));
        for compute in [Compute::F32, Compute::Bf16] {
            let load = |open: &OpenModel| open.load(Arc::new(Cpu::new(1)), compute);
            let [found, want] = [&eight, &dense].map(|open| load(open).expect("good weights"));
            assert!(logits(&found) == logits(&want), "{case}, {compute:?}");
            assert_eq!(found.weights_bytes(), want.weights_bytes(), "{case}");
            let [found, want] =
                [&eight, &dense].map(|open| step(open, Arc::new(Cpu::new(1)), compute));
            assert!(found == want, "{case}, {compute:?}: a step");
        }
    }
}

/// Four bits are made of the values; a whole model that is written has them, too, and is no longer
/// in FP8.
#[test]
fn what_is_made_of_such_a_model_is_made_of_its_values() {
    let folder = Folder::golden("fp8-block");
    let ((_a, eight), (_b, dense)) = (open(&folder), open(&folder.dense()));
    let scales = ScaleStorage::Double;
    let storage = FourBitStorage { kind: FourBit::Nf4, scales, rounding: Rounding::Exact };
    let linear = LinearStorage::FourBit(storage);
    let options = LoadOptions { compute: Compute::F32, linear };
    let load = |open: &OpenModel| open.load_as(Arc::new(Cpu::new(1)), options);
    let [found, want] = [&eight, &dense].map(|open| load(open).expect("good weights"));
    assert!(logits(&found) == logits(&want));

    let tensors = eight.whole_tensors(None).expect("all are there");
    let q = tensors.iter().find(|tensor| tensor.name() == Q).expect("it is there");
    assert_eq!(q.dtype(), Dtype::Bf16);
    let description = eight.description().expect("it has one");
    assert!(!description[0].1.contains("quantization_config"), "{}", description[0].1);
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let scale = format!("{Q}_scale_inv");
    let part = |change: &dyn Fn(&mut Folder)| refusal(change);
    let replaced = |tensor: Stored| {
        let scale = scale.clone();
        part(&move |folder| {
            folder.tensors.insert(scale.clone(), tensor.clone());
        })
    };
    for ((class, message), expected) in [
        (
            part(&|folder| {
                folder.tensors.remove(&scale);
            }),
            "`model.layers.0.self_attn.q_proj.weight` is F8_E4M3, but its scale is missing",
        ),
        (
            replaced(Stored::f32(&[3, 3], &[1.0; 9])),
            "has shape [3, 3]; expected [3, 2], one for each block of 32 x 48",
        ),
        (replaced(Stored::f32(&[1], &[1.0])), "has shape [1]; expected [3, 2]"),
        (replaced(Stored::f32(&[3, 2], &[1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0])), "scale 2 is NaN"),
        (replaced(Stored::f32(&[3, 2], &[1e38; 6])), "scale 0 is 1000000"),
        (
            replaced(Stored { dtype: Dtype::U8, shape: vec![3, 2], bytes: vec![127; 6] }),
            "is U8; expected F32, BF16 or F16",
        ),
        (
            part(&|folder| folder.tensors.get_mut(Q).expect("a weight").dtype = Dtype::F8E5m2),
            "is F8_E5M2; `quantization_config` says F8_E4M3",
        ),
    ] {
        assert_eq!(class, Class::Input, "{message}");
        assert!(message.contains(expected), "{message}");
    }
    let (class, message) = refusal(|folder| {
        folder.tensors.get_mut(Q).expect("a weight").bytes[5 * 96 + 3] = 0x7f;
    });
    assert_eq!(class, Class::Integrity);
    assert!(message.ends_with("has the value NaN at row 5, column 3"), "{message}");
    // A scale of a weight that is not in FP8 has no part in the model.
    let (_, message) = refusal(|folder| {
        let ones = Stored::f32(&[1], &[1.0]);
        folder.tensors.insert("model.norm.weight_scale_inv".to_owned(), ones);
    });
    assert!(message.contains("no part in this model"), "{message}");
}

#[test]
fn scales_of_activations_are_not_used_and_told() {
    let mut folder = Folder::golden("fp8-block");
    let (_a, plain) = open(&folder);
    assert_eq!(plain.note(), None);
    folder.config["quantization_config"]["activation_scheme"] = json!("static");
    for name in ["self_attn.q_proj.input_scale", "self_attn.k_scale"] {
        let name = format!("model.layers.0.{name}");
        folder.tensors.insert(name, Stored::f32(&[1], &[0.5]));
    }
    let (_b, with_scales) = open(&folder);
    let note = with_scales.note().expect("a note");
    assert!(note.contains("2 scales of activations are not used"), "{note}");
    let [found, want] = [with_scales, plain]
        .map(|open| logits(&open.load(Arc::new(Cpu::new(1)), Compute::F32).expect("good")));
    assert!(found == want);
}

/// The golden `config.json` of a kind of FP8 with some keys of `quantization_config` changed.
fn described(case: &str, changes: &Value) -> Result<ModelConfig, String> {
    let mut config = Folder::golden(case).config;
    for (pointer, new) in changes.as_object().expect("an object of changes") {
        let (parent, key) = pointer.rsplit_once('/').expect("a path");
        let at = config["quantization_config"].pointer_mut(parent).expect("it is there");
        at[key] = new.clone();
    }
    ModelConfig::from_hf_json(&config, "config.json").map_err(|e| e.to_string())
}

#[test]
fn ways_to_quantize_that_cannot_be_read_are_refused() {
    let weights = "/config_groups/group_0/weights";
    let of = |key: &str, value: Value| json!({format!("{weights}/{key}"): value});
    for (case, changes, expected) in [
        ("fp8-block", json!({"/fmt": "e3m4"}), "`quantization_config.fmt` is \"e3m4\""),
        ("fp8-block", json!({"/weight_block_size": [128]}), "weight_block_size` is [128]"),
        ("fp8-block", json!({"/weight_block_size": [0, 128]}), "weight_block_size` is [0,128]"),
        ("fp8-block", json!({"/quant_method": "fbgemm_fp8"}), "`quant_method: fbgemm_fp8`"),
        ("channel", of("num_bits", json!(4)), "`group_0`: 4 bits, `float`"),
        ("channel", of("type", json!("int")), "8 bits, `int`"),
        ("channel", of("symmetric", json!(false)), "`float-quantized` of `compressed-tensors`"),
        ("channel", of("strategy", json!("group")), "strategy` is \"group\""),
        ("channel", json!({"/format": "pack-quantized"}), "`pack-quantized`"),
        ("channel", json!({"/config_groups": {}}), "that quantizes no weights"),
        ("channel", json!({"/transform_config": {"config_groups": {}}}), "`transform_config`"),
    ] {
        let message = described(case, &changes).expect_err("it must be refused");
        assert!(message.contains(expected), "{changes}: {message}");
    }
    for (case, changes) in [
        ("fp8-block", json!({"/fmt": null, "/scale_fmt": "ue8m0"})),
        ("fp8-block", json!({"/weight_block_size": null})),
        ("channel", of("strategy", json!("tensor"))),
        ("channel", json!({"/sparsity_config": {}, "/transform_config": {}})),
    ] {
        assert!(described(case, &changes).is_ok(), "{changes}");
    }
}
