//! Writing GGUF: tensors need not be in memory together.

use super::build::{put_string, put_value};
use super::{TENSOR_TYPES, Value};
use crate::counted::write_counted;
use forgelm_tensor::Dtype;
use std::io::{self, Write};

/// Alignment of tensors in a file that does not say `general.alignment`.
pub const ALIGNMENT: usize = 32;

/// A tensor whose bytes are made when it is its turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name; each is there once.
    pub name: String,
    /// Number format.
    pub dtype: Dtype,
    /// Axes, outermost first.
    pub shape: Vec<usize>,
}

impl PlannedTensor {
    /// Bytes of the tensor.
    ///
    /// # Panics
    /// If its rows are not whole blocks, or the size does not fit into memory: a bug in the caller.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        let n_bytes = self.dtype.tensor_bytes(&self.shape);
        n_bytes.unwrap_or_else(|| panic!("{}: rows of whole blocks of {}", self.name, self.dtype))
    }
}

/// Writes a file: metadata and tensors in the order given. `fill` writes the bytes of the tensor of
/// this index.
///
/// # Errors
/// If writing fails, or `fill` does.
///
/// # Panics
/// If `fill` writes another number of bytes than the tensor has, or a format has no number in this
/// file format: bugs in the caller.
pub fn to_writer_with(
    w: &mut dyn Write,
    metadata: &[(String, Value)],
    tensors: &[PlannedTensor],
    fill: &mut dyn FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let infos = tensors.iter().map(|t| Info {
        name: &t.name,
        dtype: t.dtype,
        shape: &t.shape,
        n_bytes: t.n_bytes(),
    });
    let head = head(metadata, infos, ALIGNMENT);
    w.write_all(&head)?;
    pad(w, head.len(), ALIGNMENT)?;
    for (i, tensor) in tensors.iter().enumerate() {
        let n_bytes = tensor.n_bytes();
        write_counted(w, (&tensor.name, n_bytes), |w| fill(i, w))?;
        pad(w, n_bytes, ALIGNMENT)?;
    }
    Ok(())
}

/// What stands before the data of a tensor.
pub(super) struct Info<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub n_bytes: usize,
}

/// Everything before the data, not padded.
pub(super) fn head<'a>(
    metadata: &[(String, Value)],
    tensors: impl ExactSizeIterator<Item = Info<'a>>,
    alignment: usize,
) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0;
    for Info { name, dtype, shape, n_bytes } in tensors {
        put_string(&mut out, name);
        let n_axes = u32::try_from(shape.len()).expect("a handful of axes");
        out.extend(n_axes.to_le_bytes());
        out.extend(shape.iter().rev().flat_map(|&n| (n as u64).to_le_bytes()));
        let number = TENSOR_TYPES.iter().find(|(_, d)| *d == dtype);
        let (number, _) = number.expect("a format with a number");
        out.extend(number.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset = (offset + n_bytes).next_multiple_of(alignment);
    }
    out
}

/// Zeros up to the alignment.
pub(super) fn pad(w: &mut dyn Write, n_bytes: usize, alignment: usize) -> io::Result<()> {
    w.write_all(&vec![0; n_bytes.next_multiple_of(alignment) - n_bytes])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufFile;
    use crate::gguf::build::Builder;

    #[test]
    fn a_streamed_file_is_the_one_that_is_built_in_memory_and_reads_back() {
        let metadata = vec![
            ("general.architecture".to_owned(), Value::String("llama".to_owned())),
            ("llama.block_count".to_owned(), Value::U32(2)),
        ];
        let tensors = [
            PlannedTensor { name: "b".to_owned(), dtype: Dtype::F32, shape: vec![3] },
            PlannedTensor { name: "a".to_owned(), dtype: Dtype::Q8_0, shape: vec![2, 32] },
        ];
        let bytes = |i: usize| vec![u8::try_from(i).expect("small") + 1; tensors[i].n_bytes()];
        let mut streamed = Vec::new();
        to_writer_with(&mut streamed, &metadata, &tensors, &mut |i, w| w.write_all(&bytes(i)))
            .expect("memory");
        let mut builder = Builder::new();
        for (key, value) in &metadata {
            builder = builder.metadata(key, value.clone());
        }
        for (i, t) in tensors.iter().enumerate() {
            builder = builder.tensor(&t.name, t.dtype, &t.shape, bytes(i));
        }
        assert_eq!(streamed, builder.to_bytes());
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model.gguf");
        crate::write::atomic(&path, &streamed).expect("written");
        let file = GgufFile::open(&path).expect("a good file");
        for (i, t) in tensors.iter().enumerate() {
            let view = file.tensor(&t.name).expect("there");
            assert_eq!((view.dtype, view.shape), (t.dtype, &t.shape[..]));
            assert_eq!(view.bytes, bytes(i));
        }
    }
}
