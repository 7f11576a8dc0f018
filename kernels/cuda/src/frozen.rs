//! Frozen weights on the device: dense in the format of their products, or in blocks that a call
//! unpacks for its time.

use std::any::Any;
use std::sync::Arc;

use forgelm_kernels_api::{
    Compute, DeviceMemory, Float8Rows, Format, FrozenMatrix, Host, HostMut, MatrixForm, Pieces,
    RowSource,
};

use crate::blocks::{Blocks, BlocksForm};
use crate::call::{Call, Numbers};
use crate::cast;
use crate::device::Device;
use crate::error::{CudaError, must};
use crate::float8;
use crate::memory::{self, CudaMemory};
use crate::room::Room;

/// Numbers that are read from a source at a time.
const PIECE: usize = 8 << 20;

/// A weight of this library.
#[derive(Debug)]
pub(crate) struct CudaMatrix {
    device: Arc<Device>,
    n_rows: usize,
    n_cols: usize,
    compute: Compute,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Dense(CudaMemory),
    Blocks(Blocks),
}

/// The format in which a library of this kind stores what products of `compute` read.
pub(crate) fn format_of(compute: Compute) -> Format {
    match compute {
        Compute::F32 => Format::F32,
        Compute::Bf16 => Format::Bf16,
    }
}

impl CudaMatrix {
    /// Uploads a weight, rounded to its format, a few rows at a time. One in floats of eight bits is
    /// uploaded as it is, and becomes numbers on the device.
    pub(crate) fn freeze(
        device: &Arc<Device>,
        source: &dyn RowSource,
        compute: Compute,
    ) -> Result<Self, CudaError> {
        let (n_rows, n_cols) = (source.n_rows(), source.n_cols());
        let memory = CudaMemory::zeros(device, format_of(compute), n_rows * n_cols)?;
        match source.float8() {
            Some(rows) => cast_there(device, &memory, rows),
            None => upload(&memory, source),
        }
        let storage = Storage::Dense(memory);
        Ok(Self { device: Arc::clone(device), n_rows, n_cols, compute, storage })
    }

    /// Uploads the blocks of a quantized weight; `None` if the source has none.
    pub(crate) fn freeze_packed(
        device: &Arc<Device>,
        source: &dyn RowSource,
        compute: Compute,
    ) -> Result<Option<Self>, CudaError> {
        let (n_rows, n_cols) = (source.n_rows(), source.n_cols());
        let Some(blocks) = Blocks::upload(device, source, compute)? else { return Ok(None) };
        let (device, storage) = (Arc::clone(device), Storage::Blocks(blocks));
        Ok(Some(Self { device, n_rows, n_cols, compute, storage }))
    }

    /// Takes a weight that lies on the device already. Shapes: `w` [N, K].
    pub(crate) fn pack(
        device: &Arc<Device>,
        call: &Call<'_>,
        w: Numbers,
        n_cols: usize,
        compute: Compute,
    ) -> Result<Self, CudaError> {
        assert!(w.len.is_multiple_of(n_cols), "w is not [N, K]");
        let memory = CudaMemory::zeros(device, format_of(compute), w.len)?;
        cast::copy(call, memory.numbers(), w);
        let (device, storage) = (Arc::clone(device), Storage::Dense(memory));
        Ok(Self { device, n_rows: w.len / n_cols, n_cols, compute, storage })
    }

    /// The matrix behind the trait object.
    pub(crate) fn of(w: &dyn FrozenMatrix) -> &Self {
        w.as_any().downcast_ref().expect("the weight was frozen by another kernel library")
    }

    /// The format of its products.
    pub(crate) fn format(&self) -> Format {
        format_of(self.compute)
    }

    /// All of it, for the time of the call.
    ///
    /// Shapes: [N, K].
    pub(crate) fn dense(&self, call: &Call<'_>) -> Numbers {
        self.rows(call).read(call, 0, self.n_rows)
    }

    /// For one who reads some rows after others.
    pub(crate) fn rows(&self, call: &Call<'_>) -> Rows<'_> {
        assert!(
            std::ptr::eq(Arc::as_ptr(&self.device), call.device()),
            "{}: a weight that lies on {}",
            call.op(),
            self.device.label()
        );
        Rows { matrix: self, room: Room::default() }
    }

    /// Some rows, in any order, as the kernels see them.
    ///
    /// Shapes: `y` [T, K] written, `rows` [T], each below N.
    pub(crate) fn gather(&self, call: &Call<'_>, y: Numbers, rows: &[u32]) {
        assert_eq!(y.len, rows.len() * self.n_cols, "y is not [T, K]");
        assert!(rows.iter().all(|&row| (row as usize) < self.n_rows), "no such row");
        match &self.storage {
            Storage::Blocks(blocks) => blocks.unpack_rows(call, y, rows),
            Storage::Dense(memory) => crate::embedding::forward(call, y, rows, memory.numbers()),
        }
    }
}

/// Reads rows of a matrix, one range after the other.
pub(crate) struct Rows<'a> {
    matrix: &'a CudaMatrix,
    /// Where rows in blocks are unpacked.
    room: Room,
}

impl Rows<'_> {
    /// Rows `first..first + n`, until the next ones are asked for. Shapes: [n, K].
    pub(crate) fn read(&mut self, call: &Call<'_>, first: usize, n: usize) -> Numbers {
        let CudaMatrix { n_cols, compute, storage, .. } = self.matrix;
        let len = n * n_cols;
        match storage {
            Storage::Dense(memory) => memory.numbers().part(first * n_cols, len),
            Storage::Blocks(blocks) => {
                let out = self.room.take(call, format_of(*compute), len);
                blocks.unpack(call, out, first);
                out
            }
        }
    }
}

impl FrozenMatrix for CudaMatrix {
    fn n_rows(&self) -> usize {
        self.n_rows
    }

    fn n_cols(&self) -> usize {
        self.n_cols
    }

    fn n_bytes(&self) -> usize {
        match &self.storage {
            Storage::Dense(memory) => memory.len() * memory.format().n_bytes(),
            Storage::Blocks(blocks) => blocks.n_bytes(),
        }
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        assert!(out.len().is_multiple_of(self.n_cols), "out is not whole rows");
        let call = Call::open(&self.device, "read_rows");
        let rows = self.rows(&call).read(&call, first_row, out.len() / self.n_cols);
        must(memory::read(&self.device, call.op(), rows, HostMut::F32(out)));
        call.close();
    }

    fn take_apart(&self) -> (Box<dyn MatrixForm>, Vec<u8>) {
        let (storage, bytes) = match &self.storage {
            Storage::Dense(memory) => {
                let mut bytes = vec![0; self.n_bytes()];
                memory.read_bytes(&mut bytes);
                (StorageForm::Dense, bytes)
            }
            Storage::Blocks(blocks) => {
                let (form, bytes) = blocks.take_apart();
                (StorageForm::Blocks(form), bytes)
            }
        };
        let &Self { n_rows, n_cols, compute, .. } = self;
        let device = Arc::clone(&self.device);
        (Box::new(CudaForm { device, n_rows, n_cols, compute, storage }), bytes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A [`CudaMatrix`] without its bytes.
#[derive(Debug)]
struct CudaForm {
    device: Arc<Device>,
    n_rows: usize,
    n_cols: usize,
    compute: Compute,
    storage: StorageForm,
}

#[derive(Debug)]
enum StorageForm {
    Dense,
    Blocks(BlocksForm),
}

impl MatrixForm for CudaForm {
    fn n_bytes(&self) -> usize {
        match &self.storage {
            StorageForm::Dense => self.n_rows * self.n_cols * format_of(self.compute).n_bytes(),
            StorageForm::Blocks(blocks) => blocks.n_bytes(),
        }
    }

    fn put_together(&self, bytes: &mut Pieces<'_>) -> Box<dyn FrozenMatrix> {
        let &Self { n_rows, n_cols, compute, .. } = self;
        let storage = match &self.storage {
            StorageForm::Dense => {
                let len = n_rows * n_cols;
                let memory = must(CudaMemory::zeros(&self.device, format_of(compute), len));
                memory.write_bytes(bytes);
                Storage::Dense(memory)
            }
            StorageForm::Blocks(form) => {
                Storage::Blocks(must(form.put_together(&self.device, bytes)))
            }
        };
        let device = Arc::clone(&self.device);
        Box::new(CudaMatrix { device, n_rows, n_cols, compute, storage })
    }
}

/// Uploads rows, rounded to the format of the memory, a few at a time.
fn upload(memory: &CudaMemory, source: &dyn RowSource) {
    let (n_rows, n_cols) = (source.n_rows(), source.n_cols());
    let n_at_once = rows_at_once(n_rows, n_cols);
    let mut piece = vec![0.0; n_at_once * n_cols];
    for first in (0..n_rows).step_by(n_at_once) {
        let piece = &mut piece[..n_at_once.min(n_rows - first) * n_cols];
        read_in_parallel(source, first, piece);
        memory.write(first * n_cols, Host::F32(piece));
    }
}

/// Uploads codes and scales as they are, a few rows at a time: the device makes numbers of them.
fn cast_there(device: &Device, memory: &CudaMemory, rows: Float8Rows<'_>) {
    let call = Call::open(device, "freeze");
    let Float8Rows { layout, codes, scales } = rows;
    let (n_rows, n_cols) = (layout.n_rows(codes.len()), layout.n_cols);
    let (to, scales) = (memory.numbers(), call.read(scales.into()));
    let n_at_once = rows_at_once(n_rows, n_cols);
    let room = call.scratch(Format::U8, n_at_once * n_cols);
    for first in (0..n_rows).step_by(n_at_once) {
        let (begin, len) = (first * n_cols, n_at_once.min(n_rows - first) * n_cols);
        let piece = room.part(0, len);
        must(memory::write(device, call.op(), piece, Host::U8(&codes[begin..][..len])));
        float8::cast(&call, to.part(begin, len), (piece, first), scales, layout);
    }
    call.close();
}

/// Rows of a piece.
fn rows_at_once(n_rows: usize, n_cols: usize) -> usize {
    (PIECE / n_cols.max(1)).clamp(1, n_rows.max(1))
}

/// Rows that one thread reads at least, in numbers.
const PART: usize = 1 << 18;

/// Rows `first..` of a source, as many as fit. Reading is decoding, and a core does a gigabyte of it
/// in a second: a device would wait.
fn read_in_parallel(source: &dyn RowSource, first: usize, out: &mut [f32]) {
    let n_cols = source.n_cols();
    let n_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let n_rows = out.len() / n_cols;
    let n_each = n_rows.div_ceil(n_threads).max(PART.div_ceil(n_cols)).max(1);
    if n_each >= n_rows {
        return source.read_rows(first, out);
    }
    std::thread::scope(|scope| {
        for (i, part) in out.chunks_mut(n_each * n_cols).enumerate() {
            scope.spawn(move || source.read_rows(first + i * n_each, part));
        }
    });
}

#[cfg(test)]
mod tests {
    use forgelm_kernels_api::{
        BlockFormat, BlockRows, BlockSource, Codes, Dense, Factor, FactorRows, Factors, Float8,
        Float8Layout, Rounding,
    };

    use forgelm_kernels_emulator as emulator;

    use super::*;
    use crate::call::Before;
    use crate::emulated;

    const N: usize = 6;
    const K: usize = 64;

    fn values() -> Vec<f32> {
        (0..N * K).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect()
    }

    fn all_rows(matrix: &CudaMatrix) -> Vec<f32> {
        let mut rows = vec![0.0; N * K];
        matrix.read_rows(0, &mut rows);
        rows
    }

    fn rounded(values: &[f32]) -> Vec<f32> {
        values.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect()
    }

    #[test]
    fn a_dense_weight_is_what_its_products_read() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let values = values();
        let source = Dense { n_cols: K, values: &values };
        let exact = CudaMatrix::freeze(&device, &source, Compute::F32).expect("it fits");
        let short = CudaMatrix::freeze(&device, &source, Compute::Bf16).expect("it fits");
        assert_eq!((all_rows(&exact), all_rows(&short)), (values.clone(), rounded(&values)));
        assert_eq!((exact.n_bytes(), short.n_bytes()), (4 * N * K, 2 * N * K));
        let call = Call::open(&device, "pack");
        let w = call.read((&values).into());
        let packed = CudaMatrix::pack(&device, &call, w, K, Compute::Bf16).expect("it fits");
        call.close();
        assert_eq!((packed.n_rows(), all_rows(&packed)), (N, rounded(&values)));
    }

    /// Four-bit codes with half-precision scales, 32 weights each.
    struct Quantized(BlockFormat);

    impl Quantized {
        fn new() -> Self {
            let values = std::array::from_fn(|code| code as f32 - 7.5);
            Self(BlockFormat {
                codes: Codes::Four { values },
                group_len: 32,
                scale: Factors::Plain,
                min: None,
                rounding: Rounding::Exact,
            })
        }
    }

    impl BlockSource for Quantized {
        fn format(&self) -> &BlockFormat {
            &self.0
        }

        fn read_blocks(&self, rows: std::ops::Range<usize>) -> BlockRows {
            let codes = (rows.start * K..rows.end * K).map(|i| (i * 7 % 16) as u8).collect();
            let scales = (rows.start * 2..rows.end * 2).map(|group| 0.25 * group as f32).collect();
            BlockRows { codes, scale: FactorRows::Plain(scales), min: None }
        }

        fn outer(&self, _factor: Factor) -> Vec<f32> {
            Vec::new()
        }
    }

    impl RowSource for Quantized {
        fn n_rows(&self) -> usize {
            N
        }

        fn n_cols(&self) -> usize {
            K
        }

        fn read_rows(&self, first_row: usize, out: &mut [f32]) {
            for (i, out) in (first_row * K..).zip(out) {
                *out = ((i * 7 % 16) as f32 - 7.5) * (0.25 * (i / 32) as f32);
            }
        }

        fn blocks(&self) -> Option<&dyn BlockSource> {
            Some(self)
        }
    }

    #[test]
    fn a_weight_in_blocks_takes_their_memory_and_gives_its_rows() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let source = Quantized::new();
        let mut want = vec![0.0; N * K];
        source.read_rows(0, &mut want);
        let packed = CudaMatrix::freeze_packed(&device, &source, Compute::F32);
        let packed = packed.expect("it fits").expect("it has blocks");
        assert_eq!(all_rows(&packed), want);
        let mut last = vec![0.0; K];
        packed.read_rows(N - 1, &mut last);
        assert_eq!(last, want[(N - 1) * K..]);
        // half a byte a weight, two bytes a scale, sixteen values, the description
        let description = 8 + 8 + 40 + 40 + 8 + 16;
        assert_eq!(packed.n_bytes(), N * K / 2 + N * K / 32 * 2 + 16 * 4 + description);

        let (mut some, rows) = (vec![0.0; 3 * K], [4, 0, 4]);
        let call = Call::open(&device, "embedding_forward");
        packed.gather(&call, call.write((&mut some).into(), Before::Unused), &rows);
        call.close();
        let want: Vec<f32> =
            rows.iter().flat_map(|&row| &want[row as usize * K..][..K]).copied().collect();
        assert_eq!(some, want);

        let values = values();
        let dense = Dense { n_cols: K, values: &values };
        let none = CudaMatrix::freeze_packed(&device, &dense, Compute::F32).expect("no failure");
        assert!(none.is_none(), "a source without blocks");
    }

    /// Floats of eight bits in blocks of 4 rows and 24 columns; their rows on the host are not asked
    /// for.
    struct Eight {
        format: Float8,
        codes: Vec<u8>,
        scales: Vec<f32>,
    }

    impl Eight {
        fn new(format: Float8) -> Self {
            let codes = (0..=255).filter(|&code| format.is_finite(code)).cycle().take(N * K);
            Self { format, codes: codes.collect(), scales: vec![0.5, 3.0, -0.1, 7.0, 1e-3, 0.3] }
        }

        fn rows(&self) -> Float8Rows<'_> {
            let layout =
                Float8Layout { format: self.format, n_cols: K, block_rows: 4, block_cols: 24 };
            Float8Rows { layout, codes: &self.codes, scales: &self.scales }
        }
    }

    impl RowSource for Eight {
        fn n_rows(&self) -> usize {
            N
        }

        fn n_cols(&self) -> usize {
            K
        }

        fn read_rows(&self, _: usize, _: &mut [f32]) {
            panic!("the host made numbers of them");
        }

        fn float8(&self) -> Option<Float8Rows<'_>> {
            Some(self.rows())
        }
    }

    #[test]
    fn floats_of_eight_bits_become_numbers_on_the_device() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        for format in [Float8::E4m3, Float8::E5m2] {
            let source = Eight::new(format);
            let mut want = vec![0.0; N * K];
            source.rows().read_rows(0, &mut want);
            emulator::reset_counters();
            let exact = CudaMatrix::freeze(&device, &source, Compute::F32).expect("it fits");
            assert_eq!(emulator::counters().bytes_to_device, (N * K + 6 * 4) as u64);
            let short = CudaMatrix::freeze(&device, &source, Compute::Bf16).expect("it fits");
            assert_eq!((all_rows(&exact), all_rows(&short)), (want.clone(), rounded(&want)));

            // As a later piece of a large weight: from the middle of a block of rows on.
            let call = Call::open(&device, "freeze");
            let y = call.scratch(Format::F32, 3 * K);
            let codes = call.read_bytes((&source.codes[3 * K..]).into());
            let scales = call.read((&source.scales).into());
            float8::cast(&call, y, (codes, 3), scales, source.rows().layout);
            assert_eq!(call.fetch::<f32>(y), want[3 * K..]);
            call.close();
        }
    }
}
