//! Quantized weights that stay packed in the memory of the device.
//!
//! Codes lie row by row, four-bit ones in halves of bytes; scales and mins of all groups lie beside
//! them, as half-precision numbers where they all are such numbers. What the parts are is told to
//! the kernels by a description (`blocks.cu` has the same fields in the same order).

use std::sync::Arc;

use forgelm_kernels_api::{
    BlockFormat, BlockSource, Codes, Compute, DeviceMemory, Factor, FactorRows, Factors, Format,
    Host, Pieces, Rounding, RowSource,
};
use half::f16;

use crate::call::{Call, Grid, Numbers, args};
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::CudaMemory;

/// Bytes of codes that are read at a time.
const PIECE: usize = 8 << 20;
/// Numbers that one launch unpacks at most: they are counted in 32 bits.
const LAUNCH: usize = 1 << 31;
/// Rows of codes begin at multiples of this, so that eight codes may be loaded at once.
const CODE_ALIGNMENT: usize = 8;

/// A packed matrix.
#[derive(Debug)]
pub(crate) struct Blocks {
    n_cols: usize,
    /// Whether kernels may unpack eight weights at once.
    is_vector: bool,
    description: CudaMemory,
    /// What the description points to.
    parts: Vec<CudaMemory>,
    form: Arc<Form>,
}

/// What [`Blocks`] are without the bytes of their parts.
#[derive(Debug)]
struct Form {
    n_cols: usize,
    is_vector: bool,
    /// The description; its addresses hold for the matrix that was uploaded first.
    description: Vec<u8>,
    /// Where in the description the address of each part is written; nowhere for tables of a file that
    /// has none.
    places: Vec<Vec<usize>>,
    /// Of each part.
    formats: Vec<(Format, usize)>,
}

impl Blocks {
    /// `None` if the source has no blocks.
    pub(crate) fn upload(
        device: &Arc<Device>,
        source: &dyn RowSource,
        compute: Compute,
    ) -> Result<Option<Self>, CudaError> {
        let Some(blocks) = source.blocks() else { return Ok(None) };
        let (n_rows, n_cols) = (source.n_rows(), source.n_cols());
        let format = blocks.format();
        let n_groups = n_rows * format.n_groups(n_cols);
        // Kernels count groups in 32 bits.
        if n_rows == 0 || u32::try_from(n_groups).is_err() {
            return Ok(None);
        }
        let mut upload = Upload { device, parts: Vec::new() };
        let row = match format.codes {
            Codes::Four { .. } => n_cols.div_ceil(2),
            Codes::Eight => n_cols,
        };
        let stride = row.next_multiple_of(CODE_ALIGNMENT);
        let (codes, scales, mins) = upload.rows(blocks, n_rows, n_cols, stride)?;
        let values = match &format.codes {
            Codes::Four { values } => upload.floats(values)?,
            Codes::Eight => 0,
        };
        let mut description = Description::default();
        description.address(codes);
        description.address(values);
        let outer = |factor| blocks.outer(factor);
        upload.factors(&mut description, Some(&format.scale), scales, outer(Factor::Scale))?;
        upload.factors(&mut description, format.min.as_ref(), mins, outer(Factor::Min))?;
        description.word(stride as u64);
        let rounding = match format.rounding {
            Rounding::Exact => 0,
            Rounding::F16 => 1,
            Rounding::Bf16 => 2,
        };
        let is_bf16 = usize::from(compute == Compute::Bf16);
        for size in [n_cols, format.group_len, rounding, is_bf16] {
            description.size(size);
        }
        let is_vector = is_vector(format, n_cols);
        let form = Form::of(&upload.parts, description, n_cols, is_vector);
        Ok(Some(form.of_parts(device, upload.parts)?))
    }

    /// The bytes of all parts, and what is left without them.
    pub(crate) fn take_apart(&self) -> (BlocksForm, Vec<u8>) {
        let mut bytes = vec![0; self.form.n_bytes()];
        let mut rest = bytes.as_mut_slice();
        for part in &self.parts {
            let n_bytes = part.len() * part.format().n_bytes();
            let (to, behind) = rest.split_at_mut(n_bytes);
            part.read_bytes(to);
            rest = behind;
        }
        (BlocksForm(Arc::clone(&self.form)), bytes)
    }

    pub(crate) fn n_bytes(&self) -> usize {
        let parts = self.parts.iter().chain([&self.description]);
        parts.map(|part| part.len() * part.format().n_bytes()).sum()
    }

    /// Unpacks rows `first_row..`, as many as fit. Shapes: `out` [n, K] written.
    pub(crate) fn unpack(&self, call: &Call<'_>, out: Numbers, first_row: usize) {
        let rows_max = LAUNCH / self.n_cols;
        let n_rows = out.len / self.n_cols;
        for first in (0..n_rows).step_by(rows_max) {
            let n = rows_max.min(n_rows - first);
            let out = out.part(first * self.n_cols, n * self.n_cols);
            self.launch(call, out, 0, first_row + first, n);
        }
    }

    /// Unpacks some rows. Shapes: `out` [n, K] written, `rows` [n].
    pub(crate) fn unpack_rows(&self, call: &Call<'_>, out: Numbers, rows: &[u32]) {
        for (i, rows) in rows.chunks(LAUNCH / self.n_cols).enumerate() {
            let first = i * (LAUNCH / self.n_cols);
            let out = out.part(first * self.n_cols, rows.len() * self.n_cols);
            self.launch(call, out, call.indices(rows), 0, rows.len());
        }
    }

    fn launch(&self, call: &Call<'_>, out: Numbers, rows: u64, first_row: usize, n_rows: usize) {
        let is_vector = self.is_vector && out.is_aligned();
        let per_thread = if is_vector { 8 } else { 1 };
        let kernel = call.variant("blocks_unpack", &[out.format], is_vector);
        let blocks = [(out.len / per_thread).div_ceil(256), 1, 1];
        let description = self.description.numbers().address;
        for part in &self.parts {
            // Also what is reached through the description is in use from here on.
            part.numbers();
        }
        call.launch(
            &kernel,
            Grid { blocks, threads: 256, shared_bytes: 0 },
            &mut args![out.address, description, rows, first_row as u32, n_rows as u32],
        );
    }
}

/// A packed matrix without its bytes.
#[derive(Clone, Debug)]
pub(crate) struct BlocksForm(Arc<Form>);

impl BlocksForm {
    pub(crate) fn n_bytes(&self) -> usize {
        self.0.n_bytes()
    }

    /// The matrix of these bytes.
    pub(crate) fn put_together(
        &self,
        device: &Arc<Device>,
        bytes: &mut Pieces<'_>,
    ) -> Result<Blocks, CudaError> {
        let parts = self.0.formats.iter().map(|&(format, len)| {
            let memory = CudaMemory::zeros(device, format, len)?;
            memory.write_bytes(bytes);
            Ok(memory)
        });
        self.0.of_parts(device, parts.collect::<Result<_, CudaError>>()?)
    }
}

impl Form {
    fn of(
        parts: &[CudaMemory],
        description: Description,
        n_cols: usize,
        is_vector: bool,
    ) -> Arc<Self> {
        let places = |part: &CudaMemory| {
            let address = part.numbers().address;
            let points = |&(at, found): &(usize, u64)| (found == address).then_some(at);
            description.addresses.iter().filter_map(points).collect()
        };
        Arc::new(Self {
            n_cols,
            is_vector,
            places: parts.iter().map(places).collect(),
            formats: parts.iter().map(|part| (part.format(), part.len())).collect(),
            description: description.bytes,
        })
    }

    fn n_bytes(&self) -> usize {
        self.formats.iter().map(|(format, len)| len * format.n_bytes()).sum()
    }

    /// The matrix of these parts, wherever they lie.
    fn of_parts(
        self: &Arc<Self>,
        device: &Arc<Device>,
        parts: Vec<CudaMemory>,
    ) -> Result<Blocks, CudaError> {
        let mut described = self.description.clone();
        for (part, places) in parts.iter().zip(&self.places) {
            let address = part.numbers().address.to_le_bytes();
            for &at in places {
                described[at..at + address.len()].copy_from_slice(&address);
            }
        }
        let description = CudaMemory::zeros(device, Format::U8, described.len())?;
        description.write(0, Host::U8(&described));
        let &Self { n_cols, is_vector, .. } = &**self;
        Ok(Blocks { n_cols, is_vector, description, parts, form: Arc::clone(self) })
    }
}

fn is_vector(format: &BlockFormat, n_cols: usize) -> bool {
    n_cols.is_multiple_of(8) && format.group_len.is_multiple_of(8)
}

/// Fields for the kernels, end to end.
#[derive(Debug, Default)]
struct Description {
    bytes: Vec<u8>,
    /// Where an address was written, and which.
    addresses: Vec<(usize, u64)>,
}

impl Description {
    fn address(&mut self, address: u64) {
        self.addresses.push((self.bytes.len(), address));
        self.word(address);
    }

    fn word(&mut self, word: u64) {
        self.bytes.extend(word.to_le_bytes());
    }

    fn size(&mut self, size: usize) {
        let size = i32::try_from(size).expect("fewer than 2^31");
        self.bytes.extend(size.to_le_bytes());
    }
}

/// Memory that is being filled.
struct Upload<'a> {
    device: &'a Arc<Device>,
    parts: Vec<CudaMemory>,
}

impl Upload<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<u64, CudaError> {
        let memory = CudaMemory::zeros(self.device, Format::U8, bytes.len())?;
        memory.write(0, Host::U8(bytes));
        Ok(self.keep(memory))
    }

    fn floats(&mut self, values: &[f32]) -> Result<u64, CudaError> {
        let memory = CudaMemory::zeros(self.device, Format::F32, values.len())?;
        memory.write(0, Host::F32(values));
        Ok(self.keep(memory))
    }

    fn keep(&mut self, memory: CudaMemory) -> u64 {
        let address = memory.numbers().address;
        self.parts.push(memory);
        address
    }

    /// Uploads all codes, some rows at a time, and collects the factors.
    fn rows(
        &mut self,
        blocks: &dyn BlockSource,
        n_rows: usize,
        n_cols: usize,
        stride: usize,
    ) -> Result<(u64, FactorRows, FactorRows), CudaError> {
        let codes = CudaMemory::zeros(self.device, Format::U8, n_rows * stride)?;
        let is_four = matches!(blocks.format().codes, Codes::Four { .. });
        let n_at_once = (PIECE / n_cols.max(1)).max(1);
        let (mut scales, mut mins) = (None, None);
        for first in (0..n_rows).step_by(n_at_once) {
            let rows = first..n_rows.min(first + n_at_once);
            let read = blocks.read_blocks(rows.clone());
            let mut packed = vec![0; rows.len() * stride];
            for (to, from) in packed.chunks_exact_mut(stride).zip(read.codes.chunks_exact(n_cols)) {
                if is_four {
                    for (byte, pair) in to.iter_mut().zip(from.chunks(2)) {
                        *byte = pair[0] | pair.get(1).map_or(0, |later| later << 4);
                    }
                } else {
                    to[..n_cols].copy_from_slice(from);
                }
            }
            codes.write(first * stride, Host::U8(&packed));
            append(&mut scales, read.scale);
            if let Some(min) = read.min {
                append(&mut mins, min);
            }
        }
        let none = || FactorRows::Nested(Vec::new());
        let address = self.keep(codes);
        Ok((address, scales.unwrap_or_else(none), mins.unwrap_or_else(none)))
    }

    /// Uploads the factors of all groups, and describes them.
    fn factors(
        &mut self,
        description: &mut Description,
        factors: Option<&Factors>,
        rows: FactorRows,
        outer: Vec<f32>,
    ) -> Result<(), CudaError> {
        let (mut values, mut outer_address, mut outer_len, mut offset) = (0, 0, 1, None);
        if let Some(Factors::Nested { values: table, outer_len: len, offset: added }) = factors {
            values = self.floats(&table[..])?;
            outer_address = self.floats(&outer)?;
            (outer_len, offset) = (*len, *added);
        }
        let (kind, rows) = match (factors, rows) {
            (None, _) => (0, 0),
            (Some(_), FactorRows::Nested(bytes)) => (3, self.bytes(&bytes)?),
            (Some(_), FactorRows::Plain(plain)) => match halves(&plain) {
                Some(halves) => (2, self.bytes(bytemuck::cast_slice(&halves))?),
                None => (1, self.floats(&plain)?),
            },
        };
        for address in [rows, values, outer_address] {
            description.address(address);
        }
        description.size(kind);
        description.size(outer_len);
        description.bytes.extend(offset.unwrap_or(0.0).to_le_bytes());
        description.size(usize::from(offset.is_some()));
        Ok(())
    }
}

fn append(all: &mut Option<FactorRows>, more: FactorRows) {
    match (all, more) {
        (Some(FactorRows::Plain(all)), FactorRows::Plain(more)) => all.extend(more),
        (Some(FactorRows::Nested(all)), FactorRows::Nested(more)) => all.extend(more),
        (all, more) => {
            assert!(all.is_none(), "factors of one matrix are stored in one way");
            *all = Some(more);
        }
    }
}

/// The same numbers in half precision, if all of them are such numbers, as those of a file are.
fn halves(values: &[f32]) -> Option<Vec<u16>> {
    let is_half = |v: f32| v.is_finite() && f16::from_f32(v).to_f32().to_bits() == v.to_bits();
    let all = values.iter().all(|&v| is_half(v));
    all.then(|| values.iter().map(|&v| f16::from_f32(v).to_bits()).collect())
}
