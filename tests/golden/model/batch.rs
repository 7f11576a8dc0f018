//! Padded batches of the Python stack, packed.

use forgelm_artifact::safetensors::SafetensorsFile;
use forgelm_kernels_api::Segment;
use forgelm_model::{PackedInput, Scored};
use serde_json::Value;

/// Tokens of many sequences end to end, and which of them are scored.
#[derive(Debug, Default)]
pub struct Batch {
    pub tokens: Vec<u32>,
    pub positions: Vec<u32>,
    pub segments: Vec<Segment>,
    pub rows: Vec<u32>,
    pub labels: Vec<u32>,
}

#[allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part of it")]
impl Batch {
    /// A padded batch: `<prefix>input_ids`, `<prefix>labels`, `<prefix>attention_mask`.
    pub fn read(file: &SafetensorsFile, prefix: &str) -> Self {
        let part = |name: &str| integers(file, &format!("{prefix}{name}"));
        let ids = file.tensor(&format!("{prefix}input_ids")).expect("the tensor is there");
        let (ids, width) = (part("input_ids"), ids.shape[1]);
        let (labels, mask) = (part("labels"), part("attention_mask"));
        let mut batch = Self::default();
        for row in 0..ids.len() / width {
            let at = row * width..(row + 1) * width;
            let len = mask[at.clone()].iter().filter(|&&m| m == 1).count();
            batch.push(&ids[at.clone()][..len], &labels[at][..len]);
        }
        batch
    }

    /// One row that already holds several sequences.
    pub fn read_packed(file: &SafetensorsFile, lengths: &[usize]) -> Self {
        let (ids, labels) = (integers(file, "input_ids"), integers(file, "labels"));
        let positions = integers(file, "position_ids");
        let (mut batch, mut from) = (Self::default(), 0);
        for &len in lengths {
            batch.push(&ids[from..from + len], &labels[from..from + len]);
            from += len;
        }
        assert!(batch.positions.iter().zip(&positions).all(|(&a, &b)| i64::from(a) == b));
        batch
    }

    /// A padded batch as lists.
    pub fn from_json(value: &Value) -> Self {
        let lists = |key: &str| -> Vec<Vec<i64>> {
            serde_json::from_value(value[key].clone()).expect("lists of integers")
        };
        let (ids, labels, mask) = (lists("input_ids"), lists("labels"), lists("attention_mask"));
        let mut batch = Self::default();
        for ((ids, labels), mask) in ids.iter().zip(&labels).zip(&mask) {
            let len = mask.iter().filter(|&&m| m == 1).count();
            batch.push(&ids[..len], &labels[..len]);
        }
        batch
    }

    /// Adds a sequence; `labels` are those of its tokens, -100 where one is not predicted.
    pub fn push(&mut self, ids: &[i64], labels: &[i64]) {
        let start = self.tokens.len();
        self.segments.push(Segment { start, len: ids.len() });
        for (p, &id) in ids.iter().enumerate() {
            self.tokens.push(id as u32);
            self.positions.push(p as u32);
            if let Some(&label) = labels.get(p + 1).filter(|&&label| label != -100) {
                self.rows.push((start + p) as u32);
                self.labels.push(label as u32);
            }
        }
    }

    pub fn input(&self) -> PackedInput<'_> {
        PackedInput {
            tokens: &self.tokens,
            positions: &self.positions,
            segments: &self.segments,
            row_keys: &[],
        }
    }

    pub fn scored(&self) -> Scored<'_> {
        Scored { rows: &self.rows, labels: &self.labels }
    }
}

/// A tensor of i64.
pub fn integers(file: &SafetensorsFile, name: &str) -> Vec<i64> {
    let tensor = file.tensor(name).expect("the tensor is there");
    tensor
        .bytes
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")))
        .collect()
}
