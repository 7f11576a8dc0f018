//! Bytes to a checked header.

use super::{Array, Fault, TENSOR_TYPES, Value};
use crate::safetensors::LFS_POINTER;
use crate::view::{TensorView, name_fault};
use forgelm_tensor::Dtype;
use std::collections::BTreeMap;

const ALIGNMENT_KEY: &str = "general.alignment";
const ALIGNMENT_DEFAULT: u64 = 32;
/// Bytes of the shortest metadata entry: an empty key, a type, a value of one byte.
const METADATA_BYTES_MIN: u64 = 8 + 4 + 1;
/// Bytes of the shortest tensor entry: an empty name, one axis, a type, an offset.
const TENSOR_BYTES_MIN: u64 = 8 + 4 + 8 + 4 + 8;
/// Most bytes of metadata and list of tensors: ten times what the largest vocabularies take. Without a
/// bound a large file, most of it holes, could ask for as much memory as it claims to have bytes.
pub(super) const HEADER_BYTES_MAX: usize = 64 << 20;

/// Where a tensor lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number format.
    pub dtype: Dtype,
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    /// First byte in the file.
    start: usize,
    /// Length.
    n_bytes: usize,
}

/// A checked header.
///
/// **Invariant:** tensors lie end to end, each beginning at the next multiple of the alignment
/// after the one before, and inside the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// By key.
    pub metadata: BTreeMap<String, Value>,
    /// By name.
    pub tensors: BTreeMap<String, Entry>,
}

impl Header {
    /// Reads and checks the header of a whole file.
    ///
    /// # Errors
    /// The first thing found that is not as the format asks.
    pub fn parse(file: &[u8]) -> Result<Self, Fault> {
        if file.starts_with(LFS_POINTER) {
            return Err(Fault::GitLfsPointer);
        }
        if !file.starts_with(b"GGUF") {
            return Err(Fault::Magic);
        }
        let mut cursor = Cursor { file: &file[..file.len().min(HEADER_BYTES_MAX)], at: 4 };
        let (metadata, infos) = read_header(&mut cursor).map_err(|fault| match fault {
            Fault::PastEnd { what, .. } if file.len() > HEADER_BYTES_MAX => {
                Fault::HeaderTooLarge { what }
            }
            other => other,
        })?;
        let alignment = alignment(&metadata)?;
        let tensors = place(infos, file.len() as u64, cursor.at as u64, alignment)?;
        Ok(Self { metadata, tensors })
    }

    /// The tensor of this name in the bytes that the header was read from.
    #[must_use]
    pub fn tensor<'a>(&'a self, file: &'a [u8], name: &str) -> Option<TensorView<'a>> {
        let entry = self.tensors.get(name)?;
        let bytes = file.get(entry.start..)?.get(..entry.n_bytes)?;
        Some(TensorView { dtype: entry.dtype, shape: &entry.shape, bytes })
    }
}

/// What follows the first four bytes: versions 2 and 3 differ in nothing that is read here.
fn read_header(cursor: &mut Cursor<'_>) -> Result<(BTreeMap<String, Value>, Vec<Info>), Fault> {
    match cursor.u32("the version")? {
        2 | 3 => {}
        0x0300_0000 | 0x0200_0000 | 0x0100_0000 => return Err(Fault::BigEndian),
        version => return Err(Fault::Version { version }),
    }
    let n_tensors = cursor.u64("the number of tensors")?;
    let n_metadata = cursor.u64("the number of metadata")?;
    cursor.must_hold("the metadata", n_metadata, METADATA_BYTES_MIN)?;
    let metadata = read_metadata(cursor, n_metadata)?;
    cursor.must_hold("the list of tensors", n_tensors, TENSOR_BYTES_MIN)?;
    let infos = read_infos(cursor, n_tensors)?;
    Ok((metadata, infos))
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, Fault> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT_DEFAULT),
        Some(&Value::U32(v)) if v.is_power_of_two() && (8..=65536).contains(&v) => Ok(v.into()),
        Some(Value::U32(v)) => Err(Fault::Alignment { found: v.to_string() }),
        Some(other) => Err(Fault::Alignment { found: format!("of type {}", other.type_name()) }),
    }
}

/// A place in the file.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Fails unless `count` things of at least `n_bytes_each` can still come.
    fn must_hold(&self, what: &'static str, count: u64, n_bytes_each: u64) -> Result<(), Fault> {
        let n_bytes_left = (self.file.len() - self.at) as u64;
        let n_bytes = count.saturating_mul(n_bytes_each);
        if n_bytes <= n_bytes_left {
            return Ok(());
        }
        Err(Fault::PastEnd { what, offset: self.at as u64, n_bytes, n_bytes_left })
    }

    fn bytes(&mut self, what: &'static str, n_bytes: u64) -> Result<&'a [u8], Fault> {
        self.must_hold(what, n_bytes, 1)?;
        // Fits: it is no more than what the file has left.
        let n = usize::try_from(n_bytes).unwrap_or(usize::MAX);
        let bytes = &self.file[self.at..self.at + n];
        self.at += n;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Fault> {
        let bytes = self.bytes(what, N as u64)?;
        Ok(*bytes.first_chunk().expect("as many bytes as asked for"))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Fault> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Fault> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn string(&mut self, what: &'static str) -> Result<String, Fault> {
        let n_bytes = self.u64(what)?;
        let offset = self.at as u64;
        let bytes = self.bytes(what, n_bytes)?;
        let text = std::str::from_utf8(bytes).map_err(|_| Fault::Utf8 { what, offset })?;
        Ok(text.to_owned())
    }

    /// `count` values of N bytes each.
    fn list<const N: usize, T>(
        &mut self,
        count: u64,
        one: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Fault> {
        let bytes = self.bytes("an array", count.saturating_mul(N as u64))?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|b| one(*b)).collect())
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, Value>, Fault> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.string("a key")?;
        if let Some(why) = name_fault(&key) {
            return Err(Fault::Name { what: "key", name: key, why });
        }
        let value = read_value(cursor, &key)?;
        if metadata.contains_key(&key) {
            return Err(Fault::DuplicateKey { key });
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, Fault> {
    const WHAT: &str = "a metadata value";
    Ok(match cursor.u32("a value type")? {
        0 => Value::U8(u8::from_le_bytes(cursor.array(WHAT)?)),
        1 => Value::I8(i8::from_le_bytes(cursor.array(WHAT)?)),
        2 => Value::U16(u16::from_le_bytes(cursor.array(WHAT)?)),
        3 => Value::I16(i16::from_le_bytes(cursor.array(WHAT)?)),
        4 => Value::U32(u32::from_le_bytes(cursor.array(WHAT)?)),
        5 => Value::I32(i32::from_le_bytes(cursor.array(WHAT)?)),
        6 => Value::F32(f32::from_le_bytes(cursor.array(WHAT)?)),
        7 => Value::Bool(read_bool(cursor.array(WHAT)?, key)?),
        8 => Value::String(cursor.string("a text")?),
        9 => Value::Array(read_array(cursor, key)?),
        10 => Value::U64(u64::from_le_bytes(cursor.array(WHAT)?)),
        11 => Value::I64(i64::from_le_bytes(cursor.array(WHAT)?)),
        12 => Value::F64(f64::from_le_bytes(cursor.array(WHAT)?)),
        number => return Err(Fault::ValueType { key: key.to_owned(), number }),
    })
}

fn read_bool([byte]: [u8; 1], key: &str) -> Result<bool, Fault> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(Fault::Bool { key: key.to_owned(), found }),
    }
}

fn read_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Array, Fault> {
    let number = cursor.u32("an element type")?;
    let n = cursor.u64("the length of an array")?;
    Ok(match number {
        0 => Array::U8(cursor.list(n, u8::from_le_bytes)?),
        1 => Array::I8(cursor.list(n, i8::from_le_bytes)?),
        2 => Array::U16(cursor.list(n, u16::from_le_bytes)?),
        3 => Array::I16(cursor.list(n, i16::from_le_bytes)?),
        4 => Array::U32(cursor.list(n, u32::from_le_bytes)?),
        5 => Array::I32(cursor.list(n, i32::from_le_bytes)?),
        6 => Array::F32(cursor.list(n, f32::from_le_bytes)?),
        7 => {
            let bytes = cursor.bytes("an array", n)?;
            Array::Bool(bytes.iter().map(|&b| read_bool([b], key)).collect::<Result<_, _>>()?)
        }
        8 => {
            cursor.must_hold("an array of texts", n, 8)?;
            Array::String((0..n).map(|_| cursor.string("a text")).collect::<Result<_, _>>()?)
        }
        9 => return Err(Fault::NestedArray { key: key.to_owned() }),
        10 => Array::U64(cursor.list(n, u64::from_le_bytes)?),
        11 => Array::I64(cursor.list(n, i64::from_le_bytes)?),
        12 => Array::F64(cursor.list(n, f64::from_le_bytes)?),
        number => return Err(Fault::ValueType { key: key.to_owned(), number }),
    })
}

/// A tensor as the file lists it.
struct Info {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    offset: u64,
    n_bytes: u64,
}

fn read_infos(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<Info>, Fault> {
    let mut infos = Vec::new();
    for _ in 0..count {
        infos.push(read_info(cursor)?);
    }
    Ok(infos)
}

fn read_info(cursor: &mut Cursor<'_>) -> Result<Info, Fault> {
    const WHAT: &str = "a tensor's entry";
    let name = cursor.string("a tensor's name")?;
    if let Some(why) = name_fault(&name) {
        return Err(Fault::Name { what: "tensor", name, why });
    }
    let n_axes = cursor.u32(WHAT)?;
    if !(1..=4).contains(&n_axes) {
        return Err(Fault::Axes { name, n_axes });
    }
    let mut shape = Vec::new();
    for _ in 0..n_axes {
        shape.push(usize::try_from(cursor.u64(WHAT)?).unwrap_or(usize::MAX));
    }
    shape.reverse();
    let number = cursor.u32(WHAT)?;
    let offset = cursor.u64(WHAT)?;
    let known = TENSOR_TYPES.iter().find(|(n, _)| *n == number);
    let Some(&(_, dtype)) = known else { return Err(Fault::TensorType { name, number }) };
    match dtype.tensor_bytes(&shape) {
        Some(n_bytes) => Ok(Info { name, dtype, shape, offset, n_bytes: n_bytes as u64 }),
        None => Err(Fault::Shape { name, dtype: dtype.name(), shape }),
    }
}

/// Checks that tensors lie end to end after the header, which ends at byte `header_end`.
fn place(
    mut infos: Vec<Info>,
    file_bytes: u64,
    header_end: u64,
    alignment: u64,
) -> Result<BTreeMap<String, Entry>, Fault> {
    let data_start = header_end.next_multiple_of(alignment);
    let n_data = file_bytes.saturating_sub(data_start);
    infos.sort_by_key(|info| (info.offset, info.n_bytes));
    let mut tensors: BTreeMap<String, Entry> = BTreeMap::new();
    let mut expected = 0_u64;
    let mut previous = None;
    for Info { name, dtype, shape, offset, n_bytes } in infos {
        if tensors.contains_key(&name) {
            return Err(Fault::DuplicateTensor { name });
        }
        if offset != expected {
            return Err(Fault::Offset { name, offset, expected, previous });
        }
        let end = offset.checked_add(n_bytes).filter(|&end| end <= n_data);
        let Some(end) = end else {
            return Err(Fault::TensorPastEnd { name, offset, n_bytes, n_data });
        };
        let in_file = |v: u64| usize::try_from(v).expect("inside a file in memory");
        let (start, n_bytes) = (in_file(data_start + offset), in_file(n_bytes));
        tensors.insert(name.clone(), Entry { dtype, shape, start, n_bytes });
        expected = end.next_multiple_of(alignment);
        previous = Some(name);
    }
    match n_data.saturating_sub(expected) {
        0 => Ok(tensors),
        n_bytes => Err(Fault::Trailing { n_bytes }),
    }
}
