//! One GGUF file: which format each tensor gets, and the file itself, read back before it counts.

use super::convert::{Codec, convert};
use super::{Refusal, Work, Written};
use crate::derived::folder::check_room;
use crate::derived::found::FoundModel;
use crate::error::RunError;
use crate::event::{Event, Observer};
use forgelm_artifact::gguf::write::{PlannedTensor, to_writer_with};
use forgelm_artifact::gguf::{GgufFile, Value};
use forgelm_artifact::write::StagedDir;
use forgelm_evidence::documents::quantization::QuantizedTensor;
use forgelm_evidence::gguf::{SIDECAR_SUFFIX, sidecar_text};
use forgelm_kernels_api::RowSource as _;
use forgelm_model::{GgufTensor, LoadError, ModelFiles, OpenModel};
use forgelm_tensor::Dtype;
use forgelm_tokenize::Tokenizer;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// Writes the model as one file.
pub(super) fn write(
    found: &FoundModel,
    model_name: &str,
    dtype: Dtype,
    work: &Work<'_>,
    dir: &mut StagedDir,
    observer: &mut dyn Observer,
) -> Result<Written, RunError> {
    let model = found.open.to_gguf()?;
    let name = file_name(model_name, work.method);
    let mut metadata = model.metadata;
    let general = [
        ("general.name", Value::String(stem(model_name))),
        ("general.file_type", Value::U32(file_type(dtype))),
        ("general.quantization_version", Value::U32(2)),
    ];
    metadata.splice(1..1, general.map(|(key, value)| (key.to_owned(), value)));
    if let Some(tokenizer) = &found.tokenizer {
        found.open.config().check_tokenizer_size(tokenizer.vocab_size())?;
        metadata.extend(tokenizer.gguf_metadata(found.open.config().vocab_size)?);
    }
    let tied = found.open.config().tie_word_embeddings;
    let planned: Vec<PlannedTensor> = model
        .tensors
        .iter()
        .map(|tensor| PlannedTensor {
            name: tensor.name.clone(),
            dtype: format(tensor, dtype, tied),
            shape: tensor.shape.clone(),
        })
        .collect();
    tell_other_formats(&planned, dtype, observer);
    check_room(dir.final_path(), planned.iter().map(|t| t.n_bytes() as u64).sum())?;

    let mut tensors: Vec<QuantizedTensor> = Vec::new();
    let mut refusal = Refusal::default();
    let mut fill = |i: usize, w: &mut dyn Write| -> io::Result<()> {
        let (tensor, planned) = (&model.tensors[i], &planned[i]);
        let codec = match planned.dtype == dtype {
            true => Codec::Method(work.quantizer),
            false => Codec::Own(planned.dtype),
        };
        let done = convert(&tensor.name, tensor, codec, work, &mut |bytes| w.write_all(bytes));
        tensor.release();
        let done = done.map_err(|ended| refusal.keep(ended))?;
        let format = planned.dtype.name().to_owned();
        let bytes_before = tensor.stored_bytes() as u64;
        tensors.push(QuantizedTensor { format, bytes_before, ..done });
        Ok(())
    };
    let written = dir.write_with(&name, |w| to_writer_with(w, &metadata, &planned, &mut fill));
    refusal.or(written)?;
    let path = dir.path().join(&name);
    check(found, &path, observer)?;
    dir.write(&format!("{name}{SIDECAR_SUFFIX}"), sidecar_text(&path)?.as_bytes())?;
    Ok(Written { file: Some(name), tensors })
}

/// What was written must be the model: read by those who read such files.
fn check(found: &FoundModel, path: &Path, observer: &mut dyn Observer) -> Result<(), RunError> {
    let read = OpenModel::open(&ModelFiles::Gguf(path.to_owned()))?;
    read.check_tensors()?;
    found.open.check_gguf(&read).map_err(LoadError::from)?;
    let Some(own) = &found.tokenizer else { return Ok(()) };
    let read = Tokenizer::from_gguf(&GgufFile::open(path).map_err(LoadError::from)?)?;
    if (own.prefix_ids(), own.suffix_ids()) != (read.prefix_ids(), read.suffix_ids()) {
        return Err(RunError::QuantizeInput {
            path: found.open.config().place.clone(),
            problem: format!(
                "has a tokenizer that puts {:?} before and {:?} after a text; such files can only \
                 say that a text begins with its first token",
                own.prefix_ids(),
                own.suffix_ids()
            ),
            hint: "choose a method that makes a folder",
        });
    }
    let kept = read.eos_ids();
    let lost: Vec<u32> = own.eos_ids().into_iter().filter(|id| !kept.contains(id)).collect();
    if !lost.is_empty() {
        let text =
            format!("such files name three tokens that end a text; these are lost: {lost:?}");
        observer.observe(&Event::Warning(text));
    }
    Ok(())
}

/// The format of a tensor, by the rules of the `llama.cpp` project's own tool: vectors and routers stay
/// f32, the head has at least six bits, and rows that are not whole blocks get a format that has
/// smaller ones.
fn format(tensor: &GgufTensor<'_>, dtype: Dtype, tied: bool) -> Dtype {
    let (name, n_cols) = (tensor.name.as_str(), tensor.n_cols());
    if tensor.shape.len() < 2 || name.ends_with("ffn_gate_inp.weight") {
        return Dtype::F32;
    }
    let is_head = name == "output.weight" || tied && name == "token_embd.weight";
    let wanted = match dtype {
        Dtype::Q8_0 => Dtype::Q8_0,
        _ if is_head => Dtype::Q6K,
        other => other,
    };
    let smaller = match wanted {
        Dtype::Q4K => Dtype::Q5_0,
        Dtype::Q6K => Dtype::Q8_0,
        _ => Dtype::F16,
    };
    let fits = |dtype: &Dtype| n_cols.is_multiple_of(dtype.block_len());
    [wanted, smaller].into_iter().find(fits).unwrap_or(Dtype::F16)
}

/// Says which formats beside the method's the file has.
fn tell_other_formats(planned: &[PlannedTensor], dtype: Dtype, observer: &mut dyn Observer) {
    let mut others: BTreeMap<(&str, usize), usize> = BTreeMap::new();
    for tensor in planned.iter().filter(|t| t.dtype != dtype && t.dtype != Dtype::F32) {
        let width = tensor.shape.last().copied().unwrap_or(0);
        *others.entry((tensor.dtype.name(), width)).or_default() += 1;
    }
    for ((format, width), n) in others {
        let text = format!(
            "tensors with rows of {width} are written as {format}, as llama.cpp's own tool does with \
             {dtype}: {n}"
        );
        observer.observe(&Event::Notice(text));
    }
}

/// `general.file_type`.
fn file_type(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::Q4_0 => 2,
        Dtype::Q4_1 => 3,
        Dtype::Q8_0 => 7,
        Dtype::Q4K => 14,
        _ => 18,
    }
}

/// The last part of a model's name, without the ending of a file.
fn stem(model: &str) -> String {
    let tail = model.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or(model);
    let tail = tail.strip_suffix(".gguf").unwrap_or(tail);
    if tail.trim_matches('.').is_empty() { "model".to_owned() } else { tail.to_owned() }
}

fn file_name(model: &str, method: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let stem: String = stem(model).trim_start_matches('.').chars().map(plain).collect();
    format!("{stem}.{method}.gguf")
}

#[cfg(test)]
mod tests {
    use super::{file_name, stem};

    #[test]
    fn files_are_named_after_the_model_and_the_method() {
        assert_eq!(file_name("org/Some-Model 1.5", "q4_k"), "Some-Model_1.5.q4_k.gguf");
        assert_eq!(file_name("a/b.q8_0.gguf", "q4_0"), "b.q8_0.q4_0.gguf");
        assert_eq!(file_name("..", "q4_0"), "model.q4_0.gguf");
        assert_eq!(stem("pypi:name==1"), "name==1");
    }
}
