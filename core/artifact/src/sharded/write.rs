//! Writing the weights of a model folder.

use super::{INDEX, SINGLE};
use crate::json;
use crate::safetensors::{PlannedTensor, to_writer_with};
use crate::write::{StagedDir, WriteError};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Largest file of a model that others write, in bytes.
pub const SHARD_BYTES_MAX: usize = 5_000_000_000;

/// Writes the weights of a model in one file, or in several of at most `shard_bytes_max` with
/// their index; a tensor larger than that gets a file of its own. Tensors go to the files in the
/// order given. `fill` writes the bytes of the tensor of this index.
///
/// # Errors
/// If the system refuses, or `fill` does.
///
/// # Panics
/// If a name is there twice, or `fill` writes another number of bytes than the tensor has.
pub fn write_model(
    dir: &mut StagedDir,
    tensors: &[PlannedTensor<'_>],
    shard_bytes_max: usize,
    fill: &mut dyn FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    let shards = shards(tensors, shard_bytes_max);
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let name = |shard: usize| match shards.len() {
        0 | 1 => SINGLE.to_owned(),
        n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
    };
    for (number, shard) in shards.iter().enumerate() {
        let (first, tensors) = (shard.start, &tensors[shard.clone()]);
        dir.write_with(&name(number), |w| {
            to_writer_with(w, tensors, &metadata, &mut |i, w| fill(first + i, w))
        })?;
    }
    if shards.len() < 2 {
        return Ok(());
    }
    let mut weight_map = Map::new();
    for (number, shard) in shards.iter().enumerate() {
        let places = tensors[shard.clone()].iter();
        weight_map.extend(places.map(|t| (t.name.to_owned(), Value::from(name(number)))));
    }
    let total_size: usize = tensors.iter().map(PlannedTensor::n_bytes).sum();
    let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
    dir.write(INDEX, json::pretty(&index).as_bytes())
}

/// Which tensors each file has.
fn shards(tensors: &[PlannedTensor<'_>], bytes_max: usize) -> Vec<std::ops::Range<usize>> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        if i > start && bytes + tensor.n_bytes() > bytes_max {
            shards.push(start..i);
            (start, bytes) = (i, 0);
        }
        bytes += tensor.n_bytes();
    }
    shards.push(start..tensors.len());
    shards
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sharded::ShardedModel;
    use forgelm_tensor::Dtype;

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "five small numbers")]
    fn shards_hold_what_fits_and_the_index_finds_every_tensor() {
        let shape = [4_usize];
        let names = ["a", "b", "c", "d", "e"];
        let tensors = names.map(|name| PlannedTensor { name, dtype: Dtype::F32, shape: &shape });
        for (bytes_max, n_files) in [(1_000, 1), (48, 2), (32, 3), (1, 5)] {
            let root = tempfile::tempdir().expect("a folder");
            let path = root.path().join("model");
            let mut dir = StagedDir::new(&path).expect("a staged folder");
            write_model(&mut dir, &tensors, bytes_max, &mut |i, w| {
                (0..4).try_for_each(|_| w.write_all(&(i as f32).to_le_bytes()))
            })
            .expect("written");
            dir.commit().expect("committed");
            let model = ShardedModel::open(&path).expect("a good model");
            assert_eq!(model.files().len(), n_files, "{bytes_max}");
            for (i, name) in names.into_iter().enumerate() {
                let values = model.tensor(name).expect("there").to_f32().expect("floats");
                assert_eq!(values, [i as f32; 4]);
            }
        }
    }
}
