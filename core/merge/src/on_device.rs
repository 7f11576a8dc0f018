//! A merge method whose pieces are worked on by a device: they are copied there and back.
//!
//! What is read from files lies on the host, and the result goes there; in between is the device's.
//! Copies of one piece run while other threads read the next ones.

use forgelm_kernels_api::{DevicePart, Format, Host, HostMut, OnDevice, Placed};
use forgelm_sdk::merge_method::{
    DevicePiece, Failed, MergeMethod, MergeOnDevice, Pass, Piece, Tensor,
};

/// A method on a device.
pub struct MergedOnDevice<'a> {
    method: &'a dyn MergeMethod,
    merges: &'a dyn MergeOnDevice,
    device: &'a dyn OnDevice,
}

impl<'a> MergedOnDevice<'a> {
    /// `None` for a method that does not work on a device.
    #[must_use]
    pub fn new(method: &'a dyn MergeMethod, device: &'a dyn OnDevice) -> Option<Self> {
        let merges = method.on_device()?;
        Some(Self { method, merges, device })
    }

    fn placed(&self, values: &[f32]) -> Result<Placed, Failed> {
        Ok(Placed::copied(self.device, Host::F32(values))?)
    }

    /// Copies a piece to the device and hands it to `body`.
    fn with_piece<R>(
        &self,
        piece: &Piece<'_>,
        body: impl FnOnce(&DevicePiece<'_>) -> Result<R, Failed>,
    ) -> Result<R, Failed> {
        let base = piece.base.map(|values| self.placed(values)).transpose()?;
        let place = |values: &&[f32]| self.placed(values);
        let placed: Vec<Placed> = piece.inputs.iter().map(place).collect::<Result<_, _>>()?;
        let inputs: Vec<DevicePart> = placed.iter().map(|placed| placed.part).collect();
        body(&DevicePiece {
            tensor: piece.tensor,
            start: piece.start,
            base: base.as_ref().map(|placed| placed.part),
            inputs: &inputs,
        })
    }
}

impl MergeMethod for MergedOnDevice<'_> {
    fn reads_base(&self) -> bool {
        self.method.reads_base()
    }

    fn passes(&self) -> &[Pass] {
        self.method.passes()
    }

    fn measure(&self, pass: usize, piece: &Piece<'_>, sums: &mut [f64]) -> Result<(), Failed> {
        if !self.merges.measures() {
            return self.method.measure(pass, piece, sums);
        }
        self.with_piece(piece, |piece| self.merges.measure(pass, piece, sums))
    }

    fn conclude(
        &self,
        pass: usize,
        tensor: &Tensor<'_>,
        sums: &[f64],
        facts: &mut [f64],
    ) -> Result<(), Failed> {
        self.method.conclude(pass, tensor, sums, facts)
    }

    fn merge(&self, piece: &Piece<'_>, out: &mut [f32]) -> Result<(), Failed> {
        let place = Placed::zeros(self.device, Format::F32, out.len())?;
        self.with_piece(piece, |piece| {
            self.merges.merge(piece, place.part)?;
            // Before the inputs go: a copy to the host waits for all that reads them.
            Ok(self.device.download(place.part, HostMut::F32(out))?)
        })
    }
}
