//! Tensors that lie in pieces in several safetensors files.
//!
//! A file of pieces is a plain safetensors file. A tensor that it has whole is there under its name.
//! Of one that is cut it has the elements `start..end`, counted in row-major order, as the vector
//! `NAME[start:end]`; the metadata `forgelm.shape:NAME` has the shape of the whole, as in `64x8`. The
//! metadata `forgelm.piece` says which of how many files it is, as in `1 of 4`. All else in the
//! metadata is that of the whole file, and the same in each.
//!
//! **Invariant:** of files that [`Pieces::open`] accepts, every element of every tensor is in
//! exactly one.

use crate::Quoted;
use crate::safetensors::{PlannedTensor, SafetensorsError, SafetensorsFile, TensorToWrite};
use crate::safetensors::{to_writer, to_writer_with};
use forgelm_tensor::Dtype;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

const SHAPE: &str = "forgelm.shape:";
const PIECE: &str = "forgelm.piece";

/// A tensor on its way to a file of pieces, or a part of one.
#[derive(Clone, Debug)]
pub struct PieceToWrite<'a> {
    /// Name of the whole.
    pub name: Cow<'a, str>,
    /// Number format; no block format.
    pub dtype: Dtype,
    /// Axes of the whole, outermost first.
    pub shape: Cow<'a, [usize]>,
    /// Which of its elements, in row-major order.
    pub elements: Range<usize>,
    /// Their little-endian values.
    pub bytes: Cow<'a, [u8]>,
}

impl PieceToWrite<'_> {
    fn is_whole(&self) -> bool {
        self.elements == (0..self.shape.iter().product())
    }
}

/// Writes file `index` (from 0) of `n`. Pieces without elements are left out.
///
/// # Errors
/// If writing fails.
///
/// # Panics
/// As [`to_writer`].
pub fn write(
    w: &mut dyn Write,
    pieces: &[PieceToWrite<'_>],
    (index, n): (usize, usize),
    metadata: &BTreeMap<String, String>,
) -> io::Result<()> {
    let mut metadata = metadata.clone();
    metadata.insert(PIECE.to_owned(), piece(index, n));
    let is_there = |piece: &&PieceToWrite<'_>| piece.is_whole() || !piece.elements.is_empty();
    let there: Vec<&PieceToWrite<'_>> = pieces.iter().filter(is_there).collect();
    let mut stored = Vec::new();
    for piece in &there {
        if piece.is_whole() {
            stored.push((piece.name.to_string(), piece.shape.to_vec()));
            continue;
        }
        let (name, Range { start, end }) = (&piece.name, &piece.elements);
        stored.push((format!("{name}[{start}:{end}]"), vec![piece.elements.len()]));
        let sizes: Vec<String> = piece.shape.iter().map(usize::to_string).collect();
        metadata.insert(format!("{SHAPE}{name}"), sizes.join("x"));
    }

    let with_names = stored.iter().zip(there);
    let tensors: Vec<TensorToWrite<'_>> = with_names
        .map(|((name, shape), piece)| {
            let bytes = Cow::Borrowed(&*piece.bytes);
            TensorToWrite { name, dtype: piece.dtype, shape, bytes }
        })
        .collect();
    to_writer(w, &tensors, &metadata)
}

fn piece(index: usize, n: usize) -> String {
    format!("{} of {n}", index + 1)
}

/// Why files are not the pieces of one file.
#[derive(Debug, thiserror::Error)]
pub enum PiecesError {
    /// One of them is not as its format asks.
    #[error(transparent)]
    File(#[from] SafetensorsError),
    /// They do not belong together.
    #[error("{}: {what}", .path.display())]
    Foreign {
        /// The file that does not fit.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl PiecesError {
    /// Which exit code this belongs to.
    #[must_use]
    pub fn class(&self) -> crate::Class {
        match self {
            Self::File(error) => error.class(),
            Self::Foreign { .. } => crate::Class::Integrity,
        }
    }
}

/// The files of pieces of one file, mapped; or that file itself.
#[derive(Debug)]
pub struct Pieces {
    files: Vec<SafetensorsFile>,
    metadata: BTreeMap<String, String>,
    /// By name of the whole.
    tensors: BTreeMap<String, Placed>,
}

#[derive(Debug)]
struct Placed {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Where the elements are: index into `files`, name there. Sorted.
    parts: Vec<(Range<usize>, usize, String)>,
}

/// A tensor whose elements lie in several places.
#[derive(Clone, Debug)]
pub struct PiecedTensor<'a> {
    /// Number format.
    pub dtype: Dtype,
    /// Axes, outermost first.
    pub shape: &'a [usize],
    /// Elements and their bytes, in order, without gap or overlap.
    pub parts: Vec<(Range<usize>, &'a [u8])>,
}

impl PiecedTensor<'_> {
    /// Number of values.
    #[must_use]
    pub fn n_values(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Pieces {
    /// Maps and checks all files of pieces in their order, or one whole file.
    ///
    /// # Errors
    /// If one is not as its format asks, is not the one that its place asks for, or an element is in
    /// none of them or in two.
    pub fn open(paths: &[PathBuf]) -> Result<Self, PiecesError> {
        let mut pieces =
            Self { files: Vec::new(), metadata: BTreeMap::new(), tensors: BTreeMap::new() };
        for (index, path) in paths.iter().enumerate() {
            let foreign = |what| PiecesError::Foreign { path: path.clone(), what };
            let file = SafetensorsFile::open(path)?;
            pieces.add(&file, (index, paths.len())).map_err(foreign)?;
            pieces.files.push(file);
        }
        for (name, placed) in &mut pieces.tensors {
            placed.parts.sort_by_key(|(elements, ..)| elements.start);
            if let Err((file, what)) = fault_of(name, placed) {
                let path = paths[file].clone();
                return Err(PiecesError::Foreign { path, what });
            }
        }
        Ok(pieces)
    }

    fn add(&mut self, file: &SafetensorsFile, (index, n): (usize, usize)) -> Result<(), String> {
        let found = file.metadata();
        let expected = piece(index, n);
        match found.get(PIECE) {
            Some(piece) if *piece == expected => {}
            None if n == 1 => {}
            Some(other) => {
                return Err(format!("is piece {}; expected {expected}", Quoted(other)));
            }
            None => return Err(format!("does not say which piece it is; expected {expected}")),
        }
        let is_common = |(key, _): &(&String, &String)| *key != PIECE && !key.starts_with(SHAPE);
        let common = found.iter().filter(is_common).map(|(k, v)| (k.clone(), v.clone())).collect();
        if index == 0 {
            self.metadata = common;
        } else if self.metadata != common {
            return Err("its metadata are not those of the first piece".to_owned());
        }
        for stored in file.names() {
            let tensor = file.tensor(stored).ok_or("a tensor is not where it was")?;
            let (shape, elements) = (tensor.shape.to_vec(), 0..tensor.n_values());
            let whole = Cut { name: stored, shape, elements };
            let Cut { name, shape, elements } = cut(stored, found)?.unwrap_or(whole);
            if tensor.n_values() != elements.len() {
                let (n, expected) = (tensor.n_values(), elements.len());
                return Err(format!("{} has {n} values; expected {expected}", Quoted(stored)));
            }
            let placed = self.tensors.entry(name.to_owned()).or_insert_with(|| Placed {
                dtype: tensor.dtype,
                shape: shape.clone(),
                parts: Vec::new(),
            });
            if placed.dtype != tensor.dtype || placed.shape != shape {
                return Err(format!(
                    "{} is of {} {shape:?}; {} {:?} in another piece",
                    Quoted(stored),
                    tensor.dtype,
                    placed.dtype,
                    placed.shape
                ));
            }
            placed.parts.push((elements, index, stored.to_owned()));
        }
        Ok(())
    }

    /// The tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<PiecedTensor<'_>> {
        let placed = self.tensors.get(name)?;
        let part = |(elements, file, stored): &(Range<usize>, usize, String)| {
            Some((elements.clone(), self.files[*file].tensor(stored)?.bytes))
        };
        let parts = placed.parts.iter().map(part).collect::<Option<_>>()?;
        Some(PiecedTensor { dtype: placed.dtype, shape: &placed.shape, parts })
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Pairs of text that are stored with the tensors of the whole file.
    #[must_use]
    pub const fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The first file, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), SafetensorsFile::path)
    }

    /// Writes the whole file: the bytes that it has where it was never cut.
    ///
    /// # Errors
    /// If writing fails.
    pub fn write_whole(&self, w: &mut dyn Write) -> io::Result<()> {
        let planned: Vec<PlannedTensor<'_>> = self
            .tensors
            .iter()
            .map(|(name, placed)| PlannedTensor { name, dtype: placed.dtype, shape: &placed.shape })
            .collect();
        to_writer_with(w, &planned, &self.metadata, &mut |i, w| {
            let tensor = self.tensor(planned[i].name).ok_or(io::ErrorKind::NotFound)?;
            tensor.parts.iter().try_for_each(|(_, bytes)| w.write_all(bytes))
        })
    }
}

/// What a stored tensor is a part of.
struct Cut<'a> {
    /// Name of the whole.
    name: &'a str,
    /// Its shape.
    shape: Vec<usize>,
    /// The elements that are stored.
    elements: Range<usize>,
}

/// What a stored tensor is a part of, where the metadata say that it is one.
fn cut<'a>(
    stored: &'a str,
    metadata: &BTreeMap<String, String>,
) -> Result<Option<Cut<'a>>, String> {
    let split = || {
        let (name, elements) = stored.strip_suffix(']')?.rsplit_once('[')?;
        let (start, end) = elements.split_once(':')?;
        Some((name, start.parse().ok()?..end.parse().ok()?))
    };
    let Some((name, elements)) = split() else { return Ok(None) };
    let Some(shape) = metadata.get(&format!("{SHAPE}{name}")) else { return Ok(None) };
    let sizes: Result<Vec<usize>, _> = shape.split('x').map(str::parse).collect();
    let n = |sizes: &[usize]| sizes.iter().try_fold(1_usize, |n, size| n.checked_mul(*size));
    match sizes {
        Ok(sizes)
            if n(&sizes).is_some_and(|n| elements.start < elements.end && elements.end <= n) =>
        {
            Ok(Some(Cut { name, shape: sizes, elements }))
        }
        _ => Err(format!("{} is no part of a tensor of shape {}", Quoted(stored), Quoted(shape))),
    }
}

/// The first element that is in no file, or in two: which file is to blame, and how.
fn fault_of(name: &str, placed: &Placed) -> Result<(), (usize, String)> {
    let mut n_placed = 0;
    let mut last = 0;
    let name = Quoted(name);
    for (elements, file, _) in &placed.parts {
        if elements.start > n_placed {
            let what =
                format!("elements {n_placed} to {} of {name} are in no piece", elements.start);
            return Err((*file, what));
        }
        if elements.start < n_placed {
            let Range { start, end } = elements;
            let what = format!("elements {start} to {end} of {name} are in another piece too");
            return Err((*file, what));
        }
        (n_placed, last) = (elements.end, *file);
    }
    let n: usize = placed.shape.iter().product();
    if n_placed < n {
        return Err((last, format!("elements {n_placed} to {n} of {name} are in no piece")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{PieceToWrite, Pieces, PiecesError, write};
    use crate::safetensors::{TensorToWrite, to_bytes};
    use forgelm_tensor::Dtype;
    use std::collections::BTreeMap;
    use std::ops::Range;
    use std::path::{Path, PathBuf};

    const VALUES: [f32; 6] = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5];

    fn metadata() -> BTreeMap<String, String> {
        BTreeMap::from([("format".to_owned(), "pt".to_owned())])
    }

    /// Elements of the tensor `a.w` [2, 3].
    fn part(elements: Range<usize>) -> PieceToWrite<'static> {
        let bytes: Vec<u8> =
            VALUES[elements.clone()].iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = vec![2, 3].into();
        PieceToWrite { name: "a.w".into(), dtype: Dtype::F32, shape, elements, bytes: bytes.into() }
    }

    #[expect(clippy::disallowed_methods, reason = "a test makes files")]
    fn files(dir: &Path, cuts: &[Range<usize>]) -> Vec<PathBuf> {
        let file = |(i, elements): (usize, &Range<usize>)| {
            let mut bytes = Vec::new();
            let pieces = [part(elements.clone())];
            write(&mut bytes, &pieces, (i, cuts.len()), &metadata()).expect("memory");
            let path = dir.join(format!("{i}"));
            std::fs::write(&path, bytes).expect("a folder");
            path
        };
        cuts.iter().enumerate().map(file).collect()
    }

    #[test]
    fn however_a_file_is_cut_its_pieces_are_the_file() {
        let whole = to_bytes(&[TensorToWrite::f32("a.w", &[2, 3], &VALUES)], &metadata());
        let dir = tempfile::tempdir().expect("a folder");
        for cuts in [&[0..6, 6..6][..], &[0..2, 2..6], &[0..0, 0..5, 5..5, 5..6]] {
            let pieces = Pieces::open(&files(dir.path(), cuts)).expect("they belong together");
            let mut written = Vec::new();
            pieces.write_whole(&mut written).expect("memory");
            assert_eq!(written, whole, "{cuts:?}");
        }
    }

    #[test]
    fn what_is_missing_twice_or_elsewhere_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let fault = |paths: &[PathBuf]| match Pieces::open(paths) {
            Err(PiecesError::Foreign { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        for (cuts, expected) in [
            (&[0..2, 3..6][..], "elements 2 to 3 of \"a.w\" are in no piece"),
            (&[0..2, 2..5], "elements 5 to 6 of \"a.w\" are in no piece"),
            (&[0..4, 2..6], "elements 2 to 6 of \"a.w\" are in another piece too"),
        ] {
            assert_eq!(fault(&files(dir.path(), cuts)), expected);
        }
        let mut paths = files(dir.path(), &[0..2, 2..6]);
        assert_eq!(fault(&paths[..1]), "is piece \"1 of 2\"; expected 1 of 1");
        paths.swap(0, 1);
        assert_eq!(fault(&paths), "is piece \"2 of 2\"; expected 1 of 2");
    }
}
