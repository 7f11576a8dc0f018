//! The state of the parameters in some ranges, as pieces of `optimizer.safetensors`.

use super::moments::{Moments, Values};
use super::share::append_f32;
use super::{Optimizer, Unit};
use forgelm_artifact::pieces::PieceToWrite;
use forgelm_model::NamedSlice;
use forgelm_tensor::Dtype;
use std::borrow::Cow;
use std::ops::Range;

impl Optimizer {
    /// What a file of the state of the parameters in some ranges holds, cut where [`Optimizer::cut`]
    /// allows it; `self` is the optimizer of all parameters, of which `slices` are, or of those in the
    /// ranges.
    ///
    /// # Panics
    /// If the slices are not those that the optimizer was made for.
    #[must_use]
    pub fn state_pieces(
        &self,
        slices: &[NamedSlice],
        ranges: &[Range<usize>],
    ) -> Vec<PieceToWrite<'static>> {
        if self.is_flat() {
            let len = slices.last().map_or(0, |slice| slice.range.end);
            let of_range = |range: &Range<usize>| {
                let [m, v] = self.flat_within(range);
                [("m", m), ("v", v)]
                    .map(|(name, values)| piece(name.to_owned(), len, range.clone(), values))
            };
            return ranges.iter().flat_map(of_range).collect();
        }
        let wholes = super::units(&self.settings, slices);
        let wholes = wholes.expect("it was made for these parameters before");
        let of_range = |range: &Range<usize>| {
            let units = self.units.iter().filter(|unit| unit.within(range).is_some());
            let of_unit = |unit: &Unit| unit.pieces(range, whole_of(unit, &wholes));
            units.flat_map(of_unit).collect::<Vec<_>>()
        };
        ranges.iter().flat_map(of_range).collect()
    }

    /// Both moments of the elements in a range, one after the other.
    fn flat_within(&self, range: &Range<usize>) -> [Values<'static>; 2] {
        let mut all = [Vec::new(), Vec::new()];
        for unit in &self.units {
            let (Some(own), Moments::Both { m, v }) = (unit.within(range), &unit.moments) else {
                continue;
            };
            all[0].extend_from_slice(&m.part(own.clone()).to_host());
            all[1].extend_from_slice(&v.part(own).to_host());
        }
        all.map(|values| Values::F32(Cow::Owned(values)))
    }
}

fn whole_of<'a>(unit: &Unit, wholes: &'a [Unit]) -> &'a Range<usize> {
    let mut wholes = wholes.iter().map(|whole| &whole.range);
    let whole = wholes
        .find(|whole| whole.start <= unit.range.start && unit.range.end <= whole.end)
        .filter(|_| !unit.range.is_empty());
    whole.expect("a part of an optimizer is of its parameters")
}

impl Unit {
    /// The moments in a range of the buffer, and the projection, of a parameter that lies at `whole`.
    fn pieces(&self, range: &Range<usize>, whole: &Range<usize>) -> Vec<PieceToWrite<'static>> {
        let named = |part: &str| format!("{}.{part}", self.name);
        let Some(own) = self.within(range) else { return Vec::new() };
        let before = self.range.start - whole.start;
        let elements = own.start + before..own.end + before;
        let is_cut = elements.len() < whole.len();
        let (here, there) = (self.moments.ranges(&own), self.moments.ranges(&elements));
        let of_whole = self.moments.ranges(&(0..whole.len()));
        let mut pieces = Vec::new();
        for (i, (part, values)) in self.moments.parts().into_iter().enumerate() {
            pieces.push(match is_cut {
                true => {
                    let values = within(&values, here[i].clone());
                    piece(named(part), of_whole[i].len(), there[i].clone(), values)
                }
                // What a projection made small has its own length.
                false => piece(named(part), values.len(), 0..values.len(), values),
            });
        }
        let sides =
            self.projection.iter().flat_map(|of| [("left", &of.left), ("right", &of.right)]);
        for (part, values) in sides.filter(|(_, values)| !values.is_empty()) {
            let len = values.len();
            pieces.push(piece(named(part), len, 0..len, Values::F32(values.all().to_host())));
        }
        pieces
    }
}

fn within<'v>(values: &'v Values<'_>, range: Range<usize>) -> Values<'v> {
    match values {
        Values::F32(values) => Values::F32(Cow::Borrowed(&values[range])),
        Values::U8(codes) => Values::U8(Cow::Borrowed(&codes[range])),
    }
}

fn piece(
    name: String,
    len: usize,
    elements: Range<usize>,
    values: Values<'_>,
) -> PieceToWrite<'static> {
    let (dtype, bytes) = match values {
        Values::F32(values) => {
            let mut bytes = Vec::new();
            append_f32(&mut bytes, &values);
            (Dtype::F32, bytes)
        }
        Values::U8(codes) => (Dtype::U8, codes.into_owned()),
    };
    let shape = vec![len].into();
    PieceToWrite { name: name.into(), dtype, shape, elements, bytes: Cow::Owned(bytes) }
}
