//! Which rows go to which experts of a mixture: what ops pass on to each other.
//!
//! Paper: Shazeer et al. 2017, arXiv:1701.06538, sec. 2.1.

use crate::memory::{Slice, SliceMut};

/// How rows choose their experts. A library takes at most [`Choice::EXPERTS_MAX`] experts and
/// [`Choice::CHOSEN_MAX`] choices of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// E.
    pub n_experts: usize,
    /// k, at most E.
    pub n_chosen: usize,
    /// Whether the weights of a row are divided by their sum.
    pub is_normalized: bool,
}

impl Choice {
    /// The most experts of a layer.
    pub const EXPERTS_MAX: usize = 8192;
    /// The most experts that a row goes to.
    pub const CHOSEN_MAX: usize = 128;

    /// T, the rows of some probabilities [T, E].
    ///
    /// # Panics
    /// If there are more experts or choices than libraries take, or these are not such
    /// probabilities.
    #[must_use]
    pub fn n_rows(&self, n_probs: usize) -> usize {
        let (e, k) = (self.n_experts, self.n_chosen);
        assert!(k <= e && k <= Self::CHOSEN_MAX && e <= Self::EXPERTS_MAX, "{k} of {e} experts");
        assert!(n_probs.is_multiple_of(e), "probs is not [T, E]");
        n_probs / e
    }
}

/// The choices of T rows, ordered in two ways: by row, and by expert and within an expert by row.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a> {
    /// Experts of each row by falling probability [T, k].
    pub chosen: Slice<'a, u32>,
    /// Place of each choice in the order by expert [T, k].
    pub places: Slice<'a, u32>,
    /// Rows, by expert [T k].
    pub rows: Slice<'a, u32>,
    /// Factor on the expert's result, by expert [T k].
    pub weights: Slice<'a>,
}

/// A routing that is written.
#[derive(Debug)]
pub struct RoutingMut<'a> {
    /// As [`Routing::chosen`].
    pub chosen: SliceMut<'a, u32>,
    /// As [`Routing::places`].
    pub places: SliceMut<'a, u32>,
    /// As [`Routing::rows`].
    pub rows: SliceMut<'a, u32>,
    /// As [`Routing::weights`].
    pub weights: SliceMut<'a>,
}

impl Routing<'_> {
    /// Fails where it is not one of so many rows.
    ///
    /// # Panics
    /// Then: a bug in the caller.
    pub fn check(&self, n_rows: usize, choice: Choice) {
        let Self { chosen, places, rows, weights } = self;
        let lens = [chosen.len(), places.len(), rows.len(), weights.len()];
        assert_eq!(lens, [n_rows * choice.n_chosen; 4], "a routing is not of {n_rows} rows");
    }
}

impl RoutingMut<'_> {
    /// To be read only.
    #[must_use]
    pub fn as_routing(&self) -> Routing<'_> {
        Routing {
            chosen: self.chosen.as_slice(),
            places: self.places.as_slice(),
            rows: self.rows.as_slice(),
            weights: self.weights.as_slice(),
        }
    }
}
