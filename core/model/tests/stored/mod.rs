//! Golden folders in FP8, to be changed and written again.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part of it")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use forgelm_artifact::Disk;
use forgelm_artifact::safetensors::{self, SafetensorsFile, TensorToWrite};
use forgelm_kernels_api::Float8;
use forgelm_tensor::Dtype;
use serde_json::Value;

/// A tensor of a folder.
#[derive(Clone)]
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Stored {
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }
}

/// `config.json` and the tensors of a model.
pub struct Folder {
    pub config: Value,
    pub tensors: BTreeMap<String, Stored>,
}

impl Folder {
    /// One of `tests/data/golden/float8`.
    pub fn golden(case: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/float8");
        let folder: PathBuf = folder.join(case);
        let text = std::fs::read_to_string(folder.join("config.json")).expect("it is there");
        let file = SafetensorsFile::open(&folder.join("model.safetensors")).expect("a good file");
        let stored = |name: &str| {
            let view = file.tensor(name).expect("it has a name");
            let (shape, bytes) = (view.shape.to_vec(), view.bytes.to_vec());
            (name.to_owned(), Stored { dtype: view.dtype, shape, bytes })
        };
        let tensors = file.names().map(stored).collect();
        Self { config: serde_json::from_str(&text).expect("it is JSON"), tensors }
    }

    /// The same model with the values of codes and scales in f32, one by one.
    pub fn dense(&self) -> Self {
        let mut config = self.config.clone();
        config["quantization_config"] = Value::Null;
        let mut tensors = BTreeMap::new();
        let is_scale = |name: &str| name.contains("_scale");
        for (name, tensor) in self.tensors.iter().filter(|(name, _)| !is_scale(name)) {
            let scales = ["_scale", "_scale_inv"].map(|suffix| format!("{name}{suffix}"));
            let scales = scales.iter().find_map(|name| self.tensors.get(name));
            let dense = scales.map_or(tensor.clone(), |scales| dequantized(tensor, scales));
            tensors.insert(name.clone(), dense);
        }
        Self { config, tensors }
    }

    pub fn written(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let text = self.config.to_string();
        forgelm_artifact::write::atomic(&dir.path().join("config.json"), text.as_bytes())
            .expect("written");
        let tensors: Vec<TensorToWrite<'_>> = self
            .tensors
            .iter()
            .map(|(name, Stored { dtype, shape, bytes })| TensorToWrite {
                name,
                dtype: *dtype,
                shape,
                bytes: Cow::Borrowed(bytes),
            })
            .collect();
        let path = dir.path().join("model.safetensors");
        safetensors::write(&Disk::real(), &path, &tensors, &BTreeMap::new()).expect("written");
        dir
    }
}

/// Whole blocks: what the golden folders have.
fn dequantized(codes: &Stored, scales: &Stored) -> Stored {
    let (&[n_rows, n_cols], &[rows, cols]) = (&codes.shape[..], &scales.shape[..]) else {
        panic!("matrices under matrices of scales");
    };
    let scale = |i: usize| {
        let bytes = scales.bytes[4 * i..][..4].try_into().expect("four bytes");
        f32::from_le_bytes(bytes)
    };
    let value = |i: usize| {
        let (row, column) = (i / n_cols, i % n_cols);
        let at = row / (n_rows / rows) * cols + column / (n_cols / cols);
        Float8::E4m3.value(codes.bytes[i]) * scale(at)
    };
    let values: Vec<f32> = (0..n_rows * n_cols).map(value).collect();
    Stored::f32(&codes.shape, &values)
}
