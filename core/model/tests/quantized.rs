//! Weights that stay quantized: the same bits as dense weights of the same values, forward and
//! backward.
#![expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a test")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use forgelm_artifact::safetensors::SafetensorsFile;
use forgelm_kernels_api::{Compute, Ops, Rounding, RowSource, Write};
use forgelm_kernels_cpu::Cpu;
use forgelm_kernels_reference::Reference;
use forgelm_model::{
    ALL_LINEAR, Activations, Adapter, Decoder, Experts, FourBitStorage, Keep, Linear,
    LinearStorage, LoadOptions, LoraConfig, MemoryStore, ModelConfig, ModuleNames, Pass, Role,
    Scored, StepSize,
};
use forgelm_tensor::random::{Purpose, Stream};
use forgelm_tensor::{Dtype, FourBit, FourBitMatrix, ScaleStorage, dequantize, quantize};
use support::{Batch, noise, tiny_config, tiny_store};

/// Rows are whole blocks of 64.
fn config() -> ModelConfig {
    ModelConfig {
        hidden_size: 64,
        head_dim: 16,
        intermediate_size: 128,
        num_hidden_layers: 2,
        ..tiny_config()
    }
}

const NF4: FourBitStorage =
    FourBitStorage { kind: FourBit::Nf4, scales: ScaleStorage::Double, rounding: Rounding::Exact };

fn load(
    config: &ModelConfig,
    store: &MemoryStore,
    ops: &Arc<dyn Ops>,
    options: LoadOptions,
) -> Decoder {
    Decoder::from_store_as(config.clone(), store, Arc::clone(ops), options, None)
        .expect("a good model")
}

const NAMES: ModuleNames = ModuleNames::Qwen;

/// Those of a layer.
const LINEARS: [Linear; 7] =
    [Linear::Q, Linear::K, Linear::V, Linear::O, Linear::Gate, Linear::Up, Linear::Down];

/// All linear layers of a decoder, as stored tensors.
fn linears(config: &ModelConfig) -> Vec<(usize, Linear, Role, [usize; 2])> {
    let dims = config.dims();
    (0..config.num_hidden_layers)
        .flat_map(|layer| LINEARS.map(|linear| (layer, linear)))
        .map(|(layer, linear)| (layer, linear, Role::Linear(layer, linear), linear.shape(&dims)))
        .collect()
}

/// The values that a decoder's linear layers stand for, dense.
fn values_of(decoder: &Decoder, store: &MemoryStore) -> MemoryStore {
    let mut dense = store.clone();
    for (layer, linear, role, shape) in linears(decoder.config()) {
        let mut values = vec![0.0; shape[0] * shape[1]];
        decoder.linear(layer, linear).read_rows(0, &mut values);
        dense.insert(&role.hf_name(NAMES), &shape, &values);
    }
    dense
}

/// The bits of log-probabilities and of an adapter's gradient.
fn pass_bits(decoder: &Decoder) -> [Vec<u32>; 2] {
    let config = decoder.config();
    let lora = LoraConfig::new(4, 8.0, &[ALL_LINEAR]);
    let stream = Stream::new(3, Purpose::LoraInit);
    let mut adapter = Adapter::new(lora, config, &stream).expect("a good adapter");
    let n = adapter.params().len();
    for (p, add) in adapter.params_mut().iter_mut().zip(noise(77, n, 0.05)) {
        *p += add;
    }
    let batch = Batch::random(1, &[70, 1, 90], config.vocab_size);
    let (rows, labels) = batch.scored();
    let size = StepSize { tokens_max: 161, scored_rows_max: 161 };
    let mut acts =
        Activations::new(decoder, Some(&adapter), size, Keep::Everything).expect("there is memory");
    let pass = Pass { adapter: Some(&adapter), batch: batch.input(), dropout: None };
    let scored = Scored { rows: &rows, labels: &labels };
    let mut logp = vec![0.0; rows.len()];
    decoder.forward(&pass, &mut acts);
    decoder.logprobs(&pass, &mut acts, scored, &mut logp);
    let mut grads = vec![0.0; n];
    let dlogp = vec![-1.0; rows.len()];
    decoder.backward(&pass, &mut acts, scored, &dlogp, &mut grads);
    assert!(grads.iter().chain(&logp).all(|v| v.is_finite()));
    assert!(grads.iter().any(|&g| g != 0.0));
    [logp, grads].map(|x| x.iter().map(|v| v.to_bits()).collect())
}

/// Loaded as `storage` says and from the dense values, in both compute formats.
fn assert_trains_as_dense(store: &MemoryStore, storage: LinearStorage, format: &str) {
    let config = config();
    let cpu: Arc<dyn Ops> = Arc::new(Cpu::new(2));
    let exact = load(&config, store, &cpu, LoadOptions { compute: Compute::F32, linear: storage });
    assert_eq!(exact.linear_formats().len(), 1, "{format}");
    assert_eq!(exact.linear_formats()[format], 7 * config.num_hidden_layers);
    let values = values_of(&exact, store);
    for compute in [Compute::F32, Compute::Bf16] {
        let packed = load(&config, store, &cpu, LoadOptions { compute, linear: storage });
        let dense = load(&config, &values, &cpu, LoadOptions::dense(compute));
        assert_eq!(dense.linear_formats()["dense"], 7 * config.num_hidden_layers);
        assert!(packed.weights_bytes() < dense.weights_bytes(), "{format}");
        assert!(pass_bits(&packed) == pass_bits(&dense), "{format} in {compute:?}");
    }
    // The plain library forms the same values from the blocks.
    let reference: Arc<dyn Ops> = Arc::new(Reference);
    let options = LoadOptions { compute: Compute::F32, linear: storage };
    let plain = values_of(&load(&config, store, &reference, options), store);
    let again = load(&config, &plain, &cpu, LoadOptions::dense(Compute::F32));
    for (layer, linear, _, shape) in linears(&config) {
        let (mut a, mut b) = (vec![0.0; shape[0] * shape[1]], vec![0.0; shape[0] * shape[1]]);
        exact.linear(layer, linear).read_rows(0, &mut a);
        again.linear(layer, linear).read_rows(0, &mut b);
        let same = a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{format}: {}", linear.path(layer, NAMES));
    }
}

#[test]
fn weights_quantized_at_load_train_as_their_dense_values_do() {
    let store = tiny_store(&config());
    let single = FourBitStorage { scales: ScaleStorage::Single, ..NF4 };
    let cases = [
        (LinearStorage::FourBit(NF4), "nf4, double quantized"),
        (LinearStorage::FourBit(single), "nf4"),
        (LinearStorage::FourBit(FourBitStorage { kind: FourBit::Fp4, ..single }), "fp4"),
        (
            LinearStorage::FourBit(FourBitStorage { rounding: Rounding::F16, ..NF4 }),
            "nf4, double quantized, rounded to float16",
        ),
        (LinearStorage::Int8Rows, "int8 rows"),
    ];
    for (storage, format) in cases {
        assert_trains_as_dense(&store, storage, format);
    }
}

/// A file whose tensors are in blocks keeps them, also when four bits are asked for.
#[test]
fn blocks_of_a_file_train_as_their_dense_values_do() {
    let config = config();
    for dtype in [Dtype::Q4_0, Dtype::Q4_1, Dtype::Q8_0] {
        let mut store = tiny_store(&config);
        for (_, _, role, shape) in linears(&config) {
            let values = noise(shape[0] as u64, shape[0] * shape[1], 0.2);
            let bytes = quantize(dtype, &values).expect("whole blocks");
            store.insert_stored(&role.hf_name(NAMES), dtype, &shape, bytes);
        }
        for storage in [LinearStorage::Blocks, LinearStorage::FourBit(NF4)] {
            assert_trains_as_dense(&store, storage, dtype.name());
        }
    }
}

/// Rows that are not whole blocks of 64 are quantized as bitsandbytes does, across rows, and kept
/// densely.
#[test]
fn rows_that_share_a_block_are_kept_densely() {
    let config = tiny_config();
    let store = tiny_store(&config);
    let cpu: Arc<dyn Ops> = Arc::new(Cpu::new(1));
    let options = LoadOptions { compute: Compute::F32, linear: LinearStorage::FourBit(NF4) };
    let decoder = load(&config, &store, &cpu, options);
    assert_eq!(decoder.linear_formats()["nf4, double quantized, unpacked"], 21);
    assert!(pass_bits(&decoder)[0].iter().any(|&b| b != 0));
}

fn golden(name: &str) -> SafetensorsFile {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden");
    SafetensorsFile::open(&folder.join(name)).expect("golden data is in the tree")
}

#[test]
fn every_block_format_is_taken_apart_exactly() {
    let file = golden("gguf/more.safetensors");
    let config = ModelConfig {
        hidden_size: 256,
        head_dim: 64,
        intermediate_size: 256,
        num_hidden_layers: 1,
        ..tiny_config()
    };
    let mut n_formats = 0;
    for dtype in Dtype::ALL.into_iter().filter(|dtype| dtype.block_len() > 1) {
        let name = format!("{}.bytes", dtype.name().to_lowercase());
        let four_rows = file.tensor(&name).expect("every block format is there").bytes;
        let mut store = tiny_store(&config);
        for (_, _, role, shape) in linears(&config) {
            store.insert_stored(
                &role.hf_name(NAMES),
                dtype,
                &shape,
                four_rows.repeat(shape[0] / 4),
            );
        }
        let mut values = vec![0.0; 4 * 256];
        dequantize(dtype, four_rows, &mut values).expect("whole blocks");
        for ops in [Arc::new(Cpu::new(2)) as Arc<dyn Ops>, Arc::new(Reference)] {
            let options = LoadOptions { compute: Compute::F32, linear: LinearStorage::Blocks };
            let decoder = load(&config, &store, &ops, options);
            assert_eq!(decoder.linear_formats()[dtype.name()], 7);
            for (layer, linear, _, shape) in linears(&config) {
                let mut found = vec![0.0; shape[0] * shape[1]];
                decoder.linear(layer, linear).read_rows(0, &mut found);
                for (i, (f, e)) in found.iter().zip(values.iter().cycle()).enumerate() {
                    assert_eq!(f.to_bits(), e.to_bits(), "{dtype}: {i} is {f}, expected {e}");
                }
            }
        }
        n_formats += 1;
    }
    assert_eq!(n_formats, 10);
}

#[test]
fn a_value_that_is_no_number_is_found_in_what_is_quantized_at_load() {
    let config = config();
    let mut store = tiny_store(&config);
    let role = Role::Linear(1, Linear::Up);
    let mut values = noise(4, 128 * 64, 0.1);
    values[3 * 64 + 5] = f32::NAN;
    store.insert(&role.hf_name(NAMES), &[128, 64], &values);
    let cpu: Arc<dyn Ops> = Arc::new(Cpu::new(1));
    for linear in [LinearStorage::FourBit(NF4), LinearStorage::Int8Rows] {
        let options = LoadOptions { compute: Compute::F32, linear };
        let error = Decoder::from_store_as(config.clone(), &store, Arc::clone(&cpu), options, None)
            .expect_err("it must be refused");
        let message = error.to_string();
        assert!(message.contains("layers.1.mlp.up_proj"), "{message}");
        assert!(message.contains("row 3, column 5"), "{message}");
    }
}

struct Rows {
    k: usize,
    data: Vec<f32>,
}

impl RowSource for Rows {
    fn n_rows(&self) -> usize {
        self.data.len() / self.k
    }

    fn n_cols(&self) -> usize {
        self.k
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.data[first_row * self.k..][..out.len()]);
    }
}

/// `y = x W^T` and the gradient of sum(y^2), as bitsandbytes' `Linear4bit` computes them.
#[test]
fn products_with_nf4_are_those_of_bitsandbytes() {
    let floats = |file: &SafetensorsFile, name: &str| -> Vec<f32> {
        file.tensor(name).and_then(|t| t.to_f32().ok()).expect("the tensor is there")
    };
    let inputs = golden("quant/inputs.safetensors");
    let expected = golden("quant/linear4bit-nf4.safetensors");
    let (w, x) = (floats(&inputs, "w_f32"), floats(&inputs, "x_f32"));
    let rows = Rows { k: 128, data: w };
    let w = FourBitMatrix::quantize(&rows, FourBit::Nf4, ScaleStorage::Double, Rounding::Exact, 2);
    for ops in [Arc::new(Cpu::new(2)) as Arc<dyn Ops>, Arc::new(Reference)] {
        let w = ops.freeze_packed(&w, Compute::F32).expect("rows are whole blocks");
        let (mut y, mut dx) = (vec![0.0; 5 * 96], vec![0.0; 5 * 128]);
        ops.linear_forward((&mut y).into(), (&x).into(), &*w, Write::Replace);
        let dy: Vec<f32> = y.iter().map(|y| 2.0 * y).collect();
        ops.linear_backward((&mut dx).into(), (&dy).into(), &*w, Write::Replace);
        for (what, found, expected) in
            [("y", &y, floats(&expected, "y")), ("dx", &dx, floats(&expected, "dx_of_sum_y2"))]
        {
            let size = expected.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
            for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
                assert!((f - e).abs() <= 1e-4 * e.abs() + 1e-6 * size, "{what}[{i}]: {f}, not {e}");
            }
        }
    }
}

/// Experts may be kept in eight bits alone; a router is never quantized.
#[test]
fn experts_are_kept_as_asked_and_routers_densely() {
    let config = ModelConfig {
        experts: Some(Experts {
            num_experts: 3,
            num_experts_per_tok: 2,
            intermediate_size: 64,
            shared_intermediate_size: None,
            norm_topk_prob: true,
            layers: vec![true; 2],
            router_aux_loss_coef: 0.0,
            output_router_logits: false,
            names: ModuleNames::Mixtral,
        }),
        ..config()
    };
    let store = tiny_store(&config);
    let cpu: Arc<dyn Ops> = Arc::new(Cpu::new(1));
    let formats = |linear| {
        let options = LoadOptions { compute: Compute::F32, linear };
        load(&config, &store, &cpu, options).linear_formats().clone()
    };
    let (attention, experts) = (2 * 4, 2 * 3 * 3);
    let eight = formats(LinearStorage::Int8Experts);
    assert_eq!(eight["int8 rows"], experts);
    assert_eq!(eight["dense"], attention);
    let four = formats(LinearStorage::FourBit(NF4));
    assert_eq!(four["nf4, double quantized"], attention + experts);
    assert_eq!(four.len(), 1);
}
