//! A merge method makes one model of several that have the same tensors.
//!
//! It sees one tensor at a time, as f32, usually in pieces: the host reads files, folds adapters
//! in, converts number formats, cuts tensors, runs pieces on its threads and writes the result.
//! That keeps a merge of any size in bounded memory.
//!
//! A method that needs to know something of the whole tensor first (a norm, a threshold) asks for
//! passes: in each, every piece is measured into an array of sums; the host adds the arrays in the
//! order of the pieces; the method draws its conclusions, the facts, which all later pieces see.
//! Every function is a function of its arguments alone: no state, any thread, any order.
//!
//! Start reading at [`MergeMethod`].

use crate::device::{DeviceModels, DevicePart};
pub use crate::failed::Failed;
use crate::options::{OptionValue, OptionsError};

/// The tensor that is being merged.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its name, as in the model's files.
    pub name: &'a str,
    /// Elements of the whole tensor.
    pub len: usize,
    /// What the passes so far found, end to end: [`Pass::n_facts`] numbers each.
    pub facts: &'a [f64],
}

/// A part of a tensor. Shapes: n elements, row-major, the same `start..start + n` in all.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// The tensor that it is of.
    pub tensor: Tensor<'a>,
    /// Index of the first element.
    pub start: usize,
    /// [n] of the base model, for methods that read it.
    pub base: Option<&'a [f32]>,
    /// k times [n], in the order of the weights. Where an input does not change a tensor of the
    /// base (an adapter on other layers), it has the base's values.
    pub inputs: &'a [&'a [f32]],
}

/// What one pass over a tensor measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Pass {
    /// Numbers that each piece adds to.
    pub n_sums: usize,
    /// Numbers concluded from them.
    pub n_facts: usize,
}

/// How much of a tensor a method must see at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Scope {
    /// One element of each input, and the facts, make one element of the result: a tensor comes
    /// in pieces, of whatever length the host likes.
    Elements = 0,
    /// Every piece is a whole tensor. The host then needs memory for it several times over.
    Tensor = 1,
}

/// What the host must prepare for a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Needs {
    /// How much of a tensor it must see at once.
    pub scope: Scope,
    /// Fewest models that it can merge.
    pub n_inputs_min: usize,
    /// Most models that it can merge.
    pub n_inputs_max: usize,
}

/// A way to merge. Its weights, one for each input, and its options were given when it was built.
///
/// The result must not depend on how tensors are cut or on threads: facts from sums, elements
/// from elements and facts, random numbers from the tensor's name and the element's index.
pub trait MergeMethod: Send + Sync {
    /// Whether it reads the base model's values, which are not read for a method that does not.
    fn reads_base(&self) -> bool;

    /// The passes that a tensor needs before it is merged; none by default.
    fn passes(&self) -> &[Pass] {
        &[]
    }

    /// Adds what this piece has to the sums of pass `pass`.
    ///
    /// Shapes: `sums` [`n_sums`] added to; zero at the start of each piece.
    ///
    /// # Errors
    /// If the method gives up.
    fn measure(&self, pass: usize, piece: &Piece<'_>, sums: &mut [f64]) -> Result<(), Failed> {
        let _ = (pass, piece, sums);
        Ok(())
    }

    /// What the sums of pass `pass` over all pieces say.
    ///
    /// Shapes: `sums` [`n_sums`] read, `facts` [`n_facts`] written.
    ///
    /// # Errors
    /// If the method gives up.
    fn conclude(
        &self,
        pass: usize,
        tensor: &Tensor<'_>,
        sums: &[f64],
        facts: &mut [f64],
    ) -> Result<(), Failed> {
        let _ = (pass, tensor, sums, facts);
        Ok(())
    }

    /// Merges one piece.
    ///
    /// Shapes: `out` [n] written.
    ///
    /// # Errors
    /// If the method gives up.
    fn merge(&self, piece: &Piece<'_>, out: &mut [f32]) -> Result<(), Failed>;

    /// The method on the device that the run computes on, if it can work there.
    fn on_device(&self) -> Option<&dyn MergeOnDevice> {
        None
    }
}

/// A part of a tensor, on the device. As [`Piece`].
#[derive(Clone, Copy, Debug)]
pub struct DevicePiece<'a> {
    /// The tensor that it is of.
    pub tensor: Tensor<'a>,
    /// Index of the first element.
    pub start: usize,
    /// [n] of the base model, for methods that read it.
    pub base: Option<DevicePart>,
    /// k times [n], in the order of the weights.
    pub inputs: &'a [DevicePart],
}

impl<'a> DevicePiece<'a> {
    /// What the host's kernels read.
    #[must_use]
    pub fn models(&self) -> DeviceModels<'a> {
        DeviceModels { inputs: self.inputs, base: self.base }
    }
}

/// A merge method that is given numbers of a device. It gives the same bits as [`MergeMethod`] with
/// those of the host: which of the two is called depends on the machine.
pub trait MergeOnDevice: Send + Sync {
    /// Whether it measures on the device too. Where it does not, pieces of the host are measured.
    fn measures(&self) -> bool {
        false
    }

    /// As [`MergeMethod::measure`]; `sums` lie on the host.
    ///
    /// # Errors
    /// If the method gives up, or the device fails.
    fn measure(
        &self,
        pass: usize,
        piece: &DevicePiece<'_>,
        sums: &mut [f64],
    ) -> Result<(), Failed> {
        let _ = (pass, piece, sums);
        Err(Failed::new("nothing is measured on a device"))
    }

    /// As [`MergeMethod::merge`]. Shapes: `out` [n] written.
    ///
    /// # Errors
    /// If the method gives up, or the device fails.
    fn merge(&self, piece: &DevicePiece<'_>, out: DevicePart) -> Result<(), Failed>;
}

/// The entry of one merge method in its library's list.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Value of `merge.method`; equals the file's name.
    pub name: &'static str,
    /// One line for a person.
    pub summary: &'static str,
    /// Where the method was published: authors, year, arXiv number, equation.
    pub source: &'static str,
    /// What the host must prepare.
    pub needs: Needs,
    /// Builds the method.
    pub build: Build,
}

/// Makes a merge method from its options, which come out of the `merge` section, and the weights
/// of the inputs as configured. The host has checked that their number is what the method
/// [`Needs`], and that each is finite.
pub type Build = fn(
    options: &[(&str, OptionValue)],
    weights: &[f64],
) -> Result<Box<dyn MergeMethod>, OptionsError>;
