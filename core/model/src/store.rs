//! Where tensors come from: one small seam over the file formats, and in-memory tensors for
//! models that are made rather than read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use forgelm_kernels_api::{
    BlockFormat, BlockRows, BlockSource, Factor, FactorRows, Float8Rows, RowSource,
};
use forgelm_tensor::{Dtype, block_format, dequantize, no_rows, outer_factors, split_blocks};

use crate::config::Dims;
use crate::float8::Float8Scales;
use crate::four_bit::FourBitWeight;
use crate::names::{ExpertPart, Linear, ModuleNames, Role};
use crate::weights::WeightsError;

/// A tensor's bytes and what they mean.
#[derive(Clone, Debug)]
pub struct StoredTensor<'a> {
    /// Number format.
    pub dtype: Dtype,
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    /// Content, row-major.
    pub bytes: &'a [u8],
}

/// Order of the rows of query and key projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryOrder {
    /// Element j of a head pairs with j + D/2 (Hugging Face, and the kernels).
    HalfSplit,
    /// Element 2j pairs with 2j + 1 (GGUF files of the `llama` architecture).
    Interleaved,
}

/// Where a role lies in a store: some rows of a tensor, usually all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The tensor's name.
    pub name: String,
    /// Shape that the whole tensor must have.
    pub shape: Vec<usize>,
    /// The first row of the role, where all axes but the last are laid end to end.
    pub first_row: usize,
}

/// A set of named tensors.
pub trait TensorStore {
    /// File or folder, for messages.
    fn place(&self) -> String;

    /// Every name in it.
    fn names(&self) -> Vec<String>;

    /// The tensor of this name.
    fn tensor(&self, name: &str) -> Option<StoredTensor<'_>>;

    /// Lets go of the memory of a tensor that was read, where it is a mapped file's.
    fn release(&self, _tensor: &StoredTensor<'_>) {}

    /// How this store spells a role that has a tensor of its own.
    fn name_of(&self, role: Role) -> String;

    /// Where a role lies. Experts of a layer may share a tensor.
    fn locate(&self, role: Role, dims: &Dims) -> Located {
        Located { name: self.name_of(role), shape: role.shape(dims), first_row: 0 }
    }

    /// Whether norms that multiply by `1 + w` are stored as that sum rather than as w.
    fn has_whole_norms(&self) -> bool {
        false
    }

    /// How query and key rows are ordered.
    fn rotary_order(&self) -> RotaryOrder;

    /// The weight of this name and shape, where the store has it in four bits with its scales in
    /// tensors beside.
    ///
    /// # Errors
    /// If these do not belong together.
    fn four_bit(
        &self,
        _name: &str,
        _shape: [usize; 2],
    ) -> Result<Option<FourBitWeight>, WeightsError> {
        Ok(None)
    }

    /// The scales of the weight of this name and shape, where the store has it in floats of eight
    /// bits with its scales in a tensor beside.
    ///
    /// # Errors
    /// If these do not belong together.
    fn float8(&self, _name: &str, _shape: &[usize]) -> Result<Option<Float8Scales>, WeightsError> {
        Ok(None)
    }
}

/// Where an expert's weight lies in the newer form of a Hugging Face folder: one tensor holds the
/// gates and widening projections of all experts [E, 2 F, C], another the narrowing ones [E, C, F].
pub(crate) fn fused_experts(role: Role, dims: &Dims) -> Option<Located> {
    let Role::Linear(layer, Linear::Expert(expert, part)) = role else { return None };
    let expert = usize::from(expert);
    let (last, shape, first_row) = match part {
        ExpertPart::Gate => ("gate_up_proj", [dims.e, 2 * dims.f_expert, dims.c], 0),
        ExpertPart::Up => ("gate_up_proj", [dims.e, 2 * dims.f_expert, dims.c], dims.f_expert),
        ExpertPart::Down => ("down_proj", [dims.e, dims.c, dims.f_expert], 0),
    };
    Some(Located {
        name: format!("model.layers.{layer}.mlp.experts.{last}"),
        first_row: expert * shape[1] + first_row,
        shape: shape.to_vec(),
    })
}

/// Where an expert's weight lies in a GGUF file: one tensor for each part [E, rows, columns].
pub(crate) fn stacked_experts(role: Role, name: String, dims: &Dims) -> Option<Located> {
    let Role::Linear(_, linear @ Linear::Expert(expert, _)) = role else { return None };
    let [n_rows, n_cols] = linear.shape(dims);
    let first_row = usize::from(expert) * n_rows;
    Some(Located { name, shape: vec![dims.e, n_rows, n_cols], first_row })
}

/// Tensors in memory under Hugging Face names.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    names: ModuleNames,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl MemoryStore {
    /// A store whose experts are named in this way.
    #[must_use]
    pub fn named(names: ModuleNames) -> Self {
        Self { names, tensors: BTreeMap::new() }
    }

    /// Adds or replaces a tensor.
    ///
    /// # Panics
    /// If `values` does not fit `shape`.
    pub fn insert(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}: values do not fit");
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.insert_stored(name, Dtype::F32, shape, bytes);
    }

    /// Adds or replaces a tensor that is stored in any format.
    pub fn insert_stored(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) {
        self.tensors.insert(name.to_owned(), (dtype, shape.to_vec(), bytes));
    }

    /// Takes a tensor out; whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        self.tensors.remove(name).is_some()
    }
}

impl TensorStore for MemoryStore {
    fn place(&self) -> String {
        "(memory)".to_owned()
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn tensor(&self, name: &str) -> Option<StoredTensor<'_>> {
        self.tensors.get(name).map(|(dtype, shape, bytes)| StoredTensor {
            dtype: *dtype,
            shape: shape.clone(),
            bytes,
        })
    }

    fn name_of(&self, role: Role) -> String {
        role.hf_name(self.names)
    }

    fn locate(&self, role: Role, dims: &Dims) -> Located {
        let name = self.name_of(role);
        let fused = fused_experts(role, dims).filter(|_| !self.tensors.contains_key(&name));
        fused.unwrap_or_else(|| Located { name, shape: role.shape(dims), first_row: 0 })
    }

    fn rotary_order(&self) -> RotaryOrder {
        RotaryOrder::HalfSplit
    }
}

/// A value that is not a number, and where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NotFinite {
    pub(crate) row: usize,
    pub(crate) column: usize,
    pub(crate) value: f32,
}

/// The rows of a stored matrix, dequantized on the way, put back into half-split order, increased
/// by a constant (norms), and watched for values that are not numbers: the scan costs no second pass over the file.
pub(crate) struct StoredRows<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    n_rows: usize,
    n_cols: usize,
    row_bytes: usize,
    /// Head width, when the rows are interleaved.
    interleaved: Option<usize>,
    /// Added to every value.
    offset: f32,
    /// The format of the file's blocks, when they are offered.
    blocks: Option<BlockFormat>,
    coding: Coding,
    first_bad: Mutex<Option<NotFinite>>,
}

/// What the bytes of rows are.
enum Coding {
    /// All that their format says.
    Plain,
    /// Codes of four bits, whose scales lie elsewhere.
    FourBit(FourBitWeight),
    /// Floats of eight bits, whose scales lie elsewhere.
    Float8(Float8Scales),
}

impl<'a> StoredRows<'a> {
    /// `None` when the bytes are not the rows that the shape promises.
    pub(crate) fn new(
        tensor: &StoredTensor<'a>,
        n_rows: usize,
        n_cols: usize,
        interleaved: Option<usize>,
    ) -> Option<Self> {
        let row_bytes = tensor.dtype.row_bytes(n_cols)?;
        let fits = row_bytes.checked_mul(n_rows)? == tensor.bytes.len();
        (fits && tensor.dtype.is_float()).then(|| Self {
            dtype: tensor.dtype,
            bytes: tensor.bytes,
            n_rows,
            n_cols,
            row_bytes,
            interleaved,
            offset: 0.0,
            blocks: None,
            coding: Coding::Plain,
            first_bad: Mutex::new(None),
        })
    }

    /// The rows of a weight in four bits, whose codes are `bytes`.
    pub(crate) fn of_four_bit(weight: FourBitWeight, bytes: &'a [u8]) -> Self {
        Self {
            dtype: weight.dense,
            bytes,
            n_rows: weight.matrix.n_rows(),
            n_cols: weight.matrix.n_cols(),
            row_bytes: 0,
            interleaved: None,
            offset: 0.0,
            blocks: None,
            coding: Coding::FourBit(weight),
            first_bad: Mutex::new(None),
        }
    }

    /// The same rows, which are codes of eight bits, under their scales.
    pub(crate) fn scaled(self, scales: Float8Scales) -> Self {
        Self { coding: Coding::Float8(scales), ..self }
    }

    /// The same rows with a constant added to every value.
    pub(crate) fn plus(self, offset: f32) -> Self {
        Self { offset, ..self }
    }

    /// The same rows, which offer their blocks if the format has blocks.
    pub(crate) fn with_blocks(self) -> Self {
        let own = self.four_bit().and_then(|weight| weight.matrix.blocks());
        let blocks = own.map(|blocks| blocks.format().clone()).or(block_format(self.dtype));
        Self { blocks, ..self }
    }

    fn four_bit(&self) -> Option<&FourBitWeight> {
        match &self.coding {
            Coding::FourBit(weight) => Some(weight),
            Coding::Plain | Coding::Float8(_) => None,
        }
    }

    /// The bytes of all rows.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How the rows are stored; of weights in four bits, how they are kept densely.
    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// What the rows are stored in, for evidence.
    pub(crate) fn format_name(&self) -> &'static str {
        self.four_bit().map_or(self.dtype.name(), |weight| weight.kind.name())
    }

    /// The bytes of a row of the model.
    fn row_bytes(&self, row: usize) -> &'a [u8] {
        let from = self.stored_row(row) * self.row_bytes;
        &self.bytes[from..from + self.row_bytes]
    }

    /// Looks for a value that is not a number in some rows.
    fn scan(&self, rows: Range<usize>) {
        let mut values = vec![0.0; self.n_cols];
        rows.for_each(|row| self.read_rows(row, &mut values));
    }

    /// The row of the file that holds row `row` of the model. In GGUF, row `2 j + p` of a head
    /// is row `p D / 2 + j` of the original.
    fn stored_row(&self, row: usize) -> usize {
        let Some(d) = self.interleaved else { return row };
        let (head, within) = (row / d, row % d);
        let (pair, j) = (within / (d / 2), within % (d / 2));
        head * d + 2 * j + pair
    }

    /// The first value met that is not a number, by row.
    pub(crate) fn first_bad(&self) -> Option<NotFinite> {
        *self.first_bad.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn note(&self, found: NotFinite) {
        let mut first = self.first_bad.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if first.is_none_or(|earlier| found.row < earlier.row) {
            *first = Some(found);
        }
    }
}

impl RowSource for StoredRows<'_> {
    fn n_rows(&self) -> usize {
        self.n_rows
    }

    fn n_cols(&self) -> usize {
        self.n_cols
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        for (i, out_row) in out.chunks_exact_mut(self.n_cols).enumerate() {
            let row = first_row + i;
            match &self.coding {
                Coding::FourBit(weight) => weight.matrix.read_rows(row, out_row),
                Coding::Float8(scales) => scales.rows(self.bytes).read_rows(row, out_row),
                Coding::Plain => dequantize(self.dtype, self.row_bytes(row), out_row)
                    .expect("the shape was checked against the bytes when the tensor was opened"),
            }
            if self.offset != 0.0 {
                out_row.iter_mut().for_each(|v| *v += self.offset);
            }
            // One pass without a branch, on vectors; the position is looked for only when there is
            // one.
            if out_row.iter().fold(false, |is_bad, v| is_bad | !v.is_finite()) {
                let bad = out_row.iter().position(|v| !v.is_finite()).unwrap_or(0);
                self.note(NotFinite { row, column: bad, value: out_row[bad] });
            }
        }
    }

    fn blocks(&self) -> Option<&dyn BlockSource> {
        self.blocks.as_ref()?;
        match self.four_bit() {
            Some(weight) => weight.matrix.blocks(),
            None => Some(self),
        }
    }

    fn float8(&self) -> Option<Float8Rows<'_>> {
        let Coding::Float8(scales) = &self.coding else { return None };
        let rows = scales.rows(self.bytes);
        // Whoever takes the codes makes numbers of them, and says nothing of what is none.
        let is_bad = |bad, &code: &u8| bad | !rows.layout.format.is_finite(code);
        let mut codes = self.bytes.chunks_exact(self.n_cols);
        if let Some(row) = codes.position(|row| row.iter().fold(false, is_bad)) {
            self.scan(row..row + 1);
        }
        Some(rows)
    }
}

impl BlockSource for StoredRows<'_> {
    fn format(&self) -> &BlockFormat {
        self.blocks.as_ref().expect("only rows that offer their blocks are asked for them")
    }

    fn read_blocks(&self, rows: Range<usize>) -> BlockRows {
        let mut blocks = no_rows(self.format(), rows.len() * self.n_cols);
        rows.clone().for_each(|row| split_blocks(self.dtype, self.row_bytes(row), &mut blocks));
        // Codes are numbers always; a scale need not be.
        let bad = |factors: &FactorRows| match factors {
            FactorRows::Plain(factors) => factors.iter().any(|v| !v.is_finite()),
            FactorRows::Nested(_) => false,
        };
        if bad(&blocks.scale) || blocks.min.as_ref().is_some_and(bad) {
            self.scan(rows);
        }
        blocks
    }

    fn outer(&self, factor: Factor) -> Vec<f32> {
        let mut outer = Vec::new();
        for row in 0..self.n_rows {
            let first = outer.len();
            outer_factors(self.dtype, self.row_bytes(row), factor, &mut outer);
            if outer[first..].iter().any(|v| !v.is_finite()) {
                self.scan(row..row + 1);
            }
        }
        outer
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "a test of exact values")]
mod tests {
    use forgelm_kernels_api::RowSource;
    use forgelm_tensor::Dtype;

    use super::{StoredRows, StoredTensor};

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// Two heads of four rows, one column. Half-split rows 0 1 2 3 of a head are stored as
    /// 0 2 1 3: pairs (0, 2) and (1, 3) side by side.
    #[test]
    fn interleaved_rows_come_back_half_split() {
        let stored = bytes(&[0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0]);
        let tensor = StoredTensor { dtype: Dtype::F32, shape: vec![8, 1], bytes: &stored };
        let rows = StoredRows::new(&tensor, 8, 1, Some(4)).unwrap();
        let mut out = [0.0; 8];
        rows.read_rows(0, &mut out);
        assert_eq!(out, [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
        let mut two = [0.0; 2];
        rows.read_rows(5, &mut two);
        assert_eq!(two, [11.0, 12.0]);
    }

    #[test]
    fn the_first_value_that_is_no_number_is_kept() {
        let stored = bytes(&[1.0, 2.0, 3.0, f32::INFINITY, f32::NAN, 0.0]);
        let tensor = StoredTensor { dtype: Dtype::F32, shape: vec![3, 2], bytes: &stored };
        let rows = StoredRows::new(&tensor, 3, 2, None).unwrap();
        let mut out = [0.0; 2];
        rows.read_rows(2, &mut out);
        rows.read_rows(0, &mut out);
        rows.read_rows(1, &mut out);
        let bad = rows.first_bad().unwrap();
        assert_eq!((bad.row, bad.column), (1, 1));
    }

    #[test]
    fn bytes_that_do_not_fit_the_shape_are_refused() {
        let stored = bytes(&[1.0; 5]);
        let tensor = StoredTensor { dtype: Dtype::F32, shape: vec![3, 2], bytes: &stored };
        assert!(StoredRows::new(&tensor, 3, 2, None).is_none());
        let tensor = StoredTensor { dtype: Dtype::I32, shape: vec![5, 1], bytes: &stored };
        assert!(StoredRows::new(&tensor, 5, 1, None).is_none());
    }
}
