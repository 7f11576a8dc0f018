//! The header of a safetensors file.

use super::{Fault, HEADER_BYTES_MAX, LFS_POINTER};
use crate::quoted::one_line;
use crate::view::{TensorView, name_fault};
use forgelm_tensor::Dtype;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;

/// Most axes of a tensor.
const N_AXES_MAX: usize = 16;

/// Where a tensor lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number format.
    pub dtype: Dtype,
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    /// First byte in the file.
    start: usize,
    /// Byte after the last.
    end: usize,
}

/// A checked header.
///
/// **Invariant:** the tensors fill the data of the file exactly, without gap or overlap, and each
/// has the bytes that its format and shape ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// By name.
    pub tensors: BTreeMap<String, Entry>,
    /// The `__metadata__` of the file.
    pub metadata: BTreeMap<String, String>,
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
        let Some((length, rest)) = file.split_first_chunk::<8>() else {
            return Err(Fault::TooShort { n_bytes: file.len() as u64 });
        };
        let n_bytes = u64::from_le_bytes(*length);
        if n_bytes > HEADER_BYTES_MAX {
            return Err(Fault::HeaderTooLong { n_bytes });
        }
        let n_bytes_left = rest.len() as u64;
        let split = usize::try_from(n_bytes).ok().and_then(|n| rest.split_at_checked(n));
        let (text, data) = split.ok_or(Fault::HeaderTruncated { n_bytes, n_bytes_left })?;
        if text.first() != Some(&b'{') {
            return Err(Fault::Header { what: "it does not begin with `{`".to_owned() });
        }
        let raw: RawHeader = serde_json::from_slice(text)
            .map_err(|e| Fault::Header { what: one_line(&e.to_string()) })?;
        let tensors = place(raw.tensors, 8 + text.len(), data.len())?;
        Ok(Self { tensors, metadata: raw.metadata })
    }

    /// The tensor of this name in the bytes that the header was read from.
    #[must_use]
    pub fn tensor<'a>(&'a self, file: &'a [u8], name: &str) -> Option<TensorView<'a>> {
        let entry = self.tensors.get(name)?;
        let bytes = file.get(entry.start..entry.end)?;
        Some(TensorView { dtype: entry.dtype, shape: &entry.shape, bytes })
    }
}

/// Checks every entry, alone and against its neighbors. Data begin at byte `base` of the file.
fn place(
    raw: BTreeMap<String, RawEntry>,
    base: usize,
    n_data: usize,
) -> Result<BTreeMap<String, Entry>, Fault> {
    let mut tensors = BTreeMap::new();
    let mut spans = Vec::with_capacity(raw.len());
    for (name, entry) in raw {
        let [start, end] = entry.data_offsets;
        let (dtype, shape) = checked_size(&name, &entry)?;
        let past_end = || Fault::PastEnd { name: name.clone(), start, end, n_bytes: n_data as u64 };
        let first = usize::try_from(start).map_err(|_| past_end())?;
        let last = usize::try_from(end).ok().filter(|&e| e <= n_data).ok_or_else(past_end)?;
        spans.push((first, last, name.clone()));
        tensors.insert(name, Entry { dtype, shape, start: base + first, end: base + last });
    }
    spans.sort();
    let mut n_filled = 0;
    for (i, (start, end, name)) in spans.iter().enumerate() {
        if *start > n_filled {
            let n_bytes = (start - n_filled) as u64;
            return Err(Fault::Gap { name: name.clone(), n_bytes });
        }
        if *start < n_filled {
            let other = spans[i - 1].2.clone();
            let (name, start, end) = (name.clone(), *start as u64, *end as u64);
            return Err(Fault::Overlap { name, start, end, other });
        }
        n_filled = *end;
    }
    if n_filled < n_data {
        return Err(Fault::Trailing { n_bytes: (n_data - n_filled) as u64 });
    }
    Ok(tensors)
}

/// Format and shape, once the offsets are as long as they ask.
fn checked_size(name: &str, entry: &RawEntry) -> Result<(Dtype, Vec<usize>), Fault> {
    let owned = || name.to_owned();
    if let Some(why) = name_fault(name) {
        return Err(Fault::Name { name: owned(), why });
    }
    // The block formats have names too, but not in this file format.
    let known = Dtype::from_name(&entry.dtype).filter(|d| d.block_len() == 1);
    let Some(dtype) = known else {
        return Err(Fault::Dtype { name: owned(), dtype: entry.dtype.clone() });
    };
    let saturate = |n: &u64| usize::try_from(*n).unwrap_or(usize::MAX);
    let shape: Vec<usize> = entry.shape.0.iter().map(saturate).collect();
    let Some(n_bytes) = dtype.tensor_bytes(&shape) else {
        return Err(Fault::ShapeOverflow { name: owned(), shape });
    };
    let [start, end] = entry.data_offsets;
    if end.checked_sub(start) != Some(n_bytes as u64) {
        let dtype = dtype.name();
        return Err(Fault::Size { name: owned(), dtype, shape, n_bytes, start, end });
    }
    Ok((dtype, shape))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Shape,
    data_offsets: [u64; 2],
}

/// A list of axes that stops being read when it is too long.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Axes;
        impl<'de> Visitor<'de> for Axes {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {N_AXES_MAX} sizes, none negative")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut axes = Vec::new();
                while let Some(axis) = seq.next_element()? {
                    if axes.len() == N_AXES_MAX {
                        return Err(A::Error::invalid_length(N_AXES_MAX + 1, &self));
                    }
                    axes.push(axis);
                }
                Ok(Shape(axes))
            }
        }
        d.deserialize_seq(Axes)
    }
}

#[derive(Default)]
struct RawHeader {
    tensors: BTreeMap<String, RawEntry>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                let mut has_metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    let is_metadata = name == "__metadata__";
                    if header.tensors.contains_key(&name) || (is_metadata && has_metadata) {
                        let name = crate::Quoted(&name);
                        return Err(A::Error::custom(format_args!("{name} is there twice")));
                    }
                    if is_metadata {
                        has_metadata = true;
                        header.metadata = map.next_value_seed(Metadata)?;
                    } else {
                        let entry = map.next_value::<RawEntry>().map_err(|e| {
                            A::Error::custom(format_args!("tensor {}: {e}", crate::Quoted(&name)))
                        })?;
                        header.tensors.insert(name, entry);
                    }
                }
                Ok(header)
            }
        }
        d.deserialize_map(Entries)
    }
}

/// Pairs of text, each key once. `null` stands for none.
struct Metadata;

impl<'de> DeserializeSeed<'de> for Metadata {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`__metadata__` to hold texts by name")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if pairs.contains_key(&key) {
                map.next_value::<IgnoredAny>()?;
                let key = crate::Quoted(&key);
                return Err(A::Error::custom(format_args!("metadata {key} is there twice")));
            }
            let value = map.next_value()?;
            pairs.insert(key, value);
        }
        Ok(pairs)
    }
}
