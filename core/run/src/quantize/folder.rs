//! Folders: in the layout of bitsandbytes, or of the dense values that a method leaves.
//!
//! In both, the linear layers are quantized and everything else is as it was: embedding, head, norms,
//! biases and routers.

use super::convert::{Codec, Ended, convert};
use super::{Refusal, Work, Written, is_folder};
use crate::derived::folder::{check_room, companions};
use crate::derived::found::FoundModel;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::overrides;
use forgelm_artifact::json;
use forgelm_artifact::safetensors::PlannedTensor;
use forgelm_artifact::sharded::{SHARD_BYTES_MAX, write_model};
use forgelm_artifact::write::StagedDir;
use forgelm_evidence::documents::quantization::QuantizedTensor;
use forgelm_kernels_api::RowSource;
use forgelm_model::{LoadError, Role, WholeTensor};
use forgelm_tensor::{Dtype, FOUR_BIT_BLOCK, FourBit};
use serde_json::{Value, json};
use std::io::{self, Write};

/// A tensor of a file, and where its bytes come from.
struct Entry<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    whole: &'a WholeTensor<'a>,
    part: Part,
}

/// What of a tensor an entry has.
enum Part {
    /// As it was.
    Same,
    /// The values that the method leaves.
    Dense,
    /// Codes, two a byte.
    Codes,
    /// The scale of each block.
    Scales,
    /// These bytes.
    Fixed(Vec<u8>),
}

/// Writes a folder of dense values.
pub(super) fn write_dense(
    found: &FoundModel,
    work: &Work<'_>,
    dir: &mut StagedDir,
    observer: &mut dyn Observer,
) -> Result<Written, RunError> {
    let text = format!(
        "no program reads files of `{}`: the folder has the values that it leaves, in the model's own \
         format",
        work.method
    );
    observer.observe(&Event::Warning(text));
    write_companions(found, |_| (), dir)?;
    let wholes = found.open.whole_tensors(None).map_err(LoadError::from)?;
    let entries = wholes.iter().map(|whole| {
        let part = if is_quantized(whole) { Part::Dense } else { Part::Same };
        same_place(whole, part)
    });
    write_entries(entries.collect(), work, dir)
}

/// Writes a folder that transformers loads with bitsandbytes.
pub(super) fn write_four_bit(
    found: &FoundModel,
    kind: FourBit,
    work: &Work<'_>,
    dir: &mut StagedDir,
) -> Result<Written, RunError> {
    let config = found.open.config();
    if config.experts.is_some() {
        return Err(RunError::QuantizeInput {
            path: config.place.clone(),
            problem: format!("has experts, for which `{}` has no layout", kind.name()),
            hint: "choose one of the methods that make a GGUF file, such as `q4_k`",
        });
    }
    let wholes = found.open.whole_tensors(None).map_err(LoadError::from)?;
    let dtype = wholes.iter().find(|whole| is_quantized(whole)).map_or(Dtype::F32, |w| w.dtype());
    let describe = |description: &mut Value| {
        description["quantization_config"] = quantization_config(kind, torch_name(dtype));
    };
    write_companions(found, describe, dir)?;
    let entries = wholes.iter().flat_map(|whole| match is_quantized(whole) {
        true => four_bit_entries(whole, kind),
        false => vec![same_place(whole, Part::Same)],
    });
    write_entries(entries.collect(), work, dir)
}

/// Whether the method is for this tensor.
fn is_quantized(whole: &WholeTensor<'_>) -> bool {
    matches!(whole.role(), Role::Linear(_, linear) if !linear.is_router())
}

fn same_place<'a>(whole: &'a WholeTensor<'a>, part: Part) -> Entry<'a> {
    let (name, shape) = (whole.name().to_owned(), whole.shape().to_vec());
    Entry { name, dtype: whole.dtype(), shape, whole, part }
}

/// The four tensors of one weight.
fn four_bit_entries<'a>(whole: &'a WholeTensor<'a>, kind: FourBit) -> Vec<Entry<'a>> {
    let name = whole.name();
    let n = whole.n_rows() * whole.n_cols();
    let map: Vec<u8> = kind.values().iter().flat_map(|v| v.to_le_bytes()).collect();
    let state = json!({
        "quant_type": kind.name(),
        "blocksize": FOUR_BIT_BLOCK,
        "dtype": torch_name(whole.dtype()),
        "shape": whole.shape(),
    });
    let state = state.to_string().into_bytes();
    let entry = |suffix: &str, dtype, shape: &[usize], part| {
        let name = format!("{name}{suffix}");
        Entry { name, dtype, shape: shape.to_vec(), whole, part }
    };
    let state_name = format!(".quant_state.bitsandbytes__{}", kind.name());
    vec![
        entry("", Dtype::U8, &[n.div_ceil(2), 1], Part::Codes),
        entry(".absmax", Dtype::F32, &[n.div_ceil(FOUR_BIT_BLOCK)], Part::Scales),
        entry(".quant_map", Dtype::F32, &[16], Part::Fixed(map)),
        entry(&state_name, Dtype::U8, &[state.len()], Part::Fixed(state)),
    ]
}

fn quantization_config(kind: FourBit, dtype: &str) -> Value {
    json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": true,
        "load_in_8bit": false,
        "bnb_4bit_quant_type": kind.name(),
        "bnb_4bit_use_double_quant": false,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": ["lm_head"],
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_threshold": 6.0,
    })
}

/// As PyTorch calls it.
fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
        _ => "float32",
    }
}

/// Writes what stands beside the weights, `config.json` changed by `describe`.
fn write_companions(
    found: &FoundModel,
    describe: impl Fn(&mut Value),
    dir: &mut StagedDir,
) -> Result<(), RunError> {
    for (name, bytes) in companions(found)? {
        let mut bytes = bytes;
        if name == "config.json" {
            let mut description: Value =
                serde_json::from_slice(&bytes).map_err(|e| RunError::QuantizeInput {
                    path: found.open.config().place.clone(),
                    problem: format!("is not JSON: {e}"),
                    hint: "the model's own description must be read before it is changed",
                })?;
            let before = description.clone();
            describe(&mut description);
            if description != before {
                bytes = json::pretty(&description).into_bytes();
            }
        }
        dir.write(&name, &bytes)?;
    }
    if is_folder(found) && !found.overrides.is_empty() {
        dir.write(overrides::FILE, found.overrides.to_json().as_bytes())?;
    }
    Ok(())
}

/// All values of a tensor in one row, where blocks go over the border of two rows.
struct Flat<'a>(&'a WholeTensor<'a>);

impl RowSource for Flat<'_> {
    fn n_rows(&self) -> usize {
        1
    }

    fn n_cols(&self) -> usize {
        self.0.n_rows() * self.0.n_cols()
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        self.0.read_rows(first_row, out);
    }
}

fn write_entries(
    entries: Vec<Entry<'_>>,
    work: &Work<'_>,
    dir: &mut StagedDir,
) -> Result<Written, RunError> {
    let planned: Vec<PlannedTensor<'_>> = entries
        .iter()
        .map(|e| PlannedTensor { name: &e.name, dtype: e.dtype, shape: &e.shape })
        .collect();
    check_room(dir.final_path(), planned.iter().map(|t| t.n_bytes() as u64).sum())?;
    let mut tensors: Vec<QuantizedTensor> = Vec::new();
    let mut refusal = Refusal::default();
    let mut fill = |i: usize, w: &mut dyn Write| -> io::Result<()> {
        tensors.extend(entries[i].write(work, w).map_err(|ended| refusal.keep(ended))?);
        Ok(())
    };
    let written = write_model(dir, &planned, SHARD_BYTES_MAX, &mut fill);
    refusal.or(written)?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Written { file: None, tensors })
}

impl Entry<'_> {
    /// Writes the bytes; a tensor that was quantized is told once, of its codes or values.
    fn write(&self, work: &Work<'_>, w: &mut dyn Write) -> Result<Option<QuantizedTensor>, Ended> {
        let (whole, name) = (self.whole, self.whole.name());
        let flat = Flat(whole);
        let is_whole = whole.n_cols().is_multiple_of(FOUR_BIT_BLOCK);
        let rows: &dyn RowSource = if is_whole { whole } else { &flat };
        let of_codes = rows.n_cols().div_ceil(2);
        let of_row = of_codes + rows.n_cols().div_ceil(FOUR_BIT_BLOCK) * 4;
        let method = Codec::Method(work.quantizer);
        let done = match &self.part {
            Part::Fixed(bytes) => {
                w.write_all(bytes).map_err(Ended::Write)?;
                return Ok(None);
            }
            Part::Same => {
                convert(name, whole, Codec::Own(self.dtype), work, &mut |bytes| w.write_all(bytes))
            }
            Part::Dense => {
                let left = Codec::Left(work.quantizer, self.dtype);
                convert(name, whole, left, work, &mut |bytes| w.write_all(bytes))
            }
            Part::Codes => convert(name, rows, method, work, &mut |bytes| {
                bytes.chunks_exact(of_row).try_for_each(|row| w.write_all(&row[..of_codes]))
            }),
            Part::Scales => convert(name, rows, method, work, &mut |bytes| {
                bytes.chunks_exact(of_row).try_for_each(|row| w.write_all(&row[of_codes..]))
            }),
        };
        whole.release();
        let done = done?;
        let format = match self.part {
            Part::Scales | Part::Fixed(_) => return Ok(None),
            Part::Same => self.dtype.name().to_owned(),
            Part::Codes => work.method.to_owned(),
            Part::Dense => format!("{} as {}", work.method, self.dtype),
        };
        let bytes_before = whole.stored_bytes() as u64;
        Ok(Some(QuantizedTensor { format, bytes_before, ..done }))
    }
}
