//! The processes of one run: what they tell each other, and how numbers of all of them are added.
//!
//! A [`Group`] has a thread of its own that makes every call of a [`Collective`] in turn, so that
//! numbers travel while the thread that trains goes on. Sums are made here and by no library, over
//! one tree whose shape does not depend on the number of processes ([`PairwiseSum`]). It refuses to
//! know what the numbers are. Start reading at [`Group`].
//!
//! [`Collective`]: forgelm_sdk::collective::Collective

mod alone;
mod error;
mod group;
mod line;
mod sum;
pub mod threads;

pub use alone::Alone;
pub use error::CollectiveError;
pub use group::{Group, Members, Pending, Settings};
pub use line::Line;
pub use sum::{PairwiseSum, PairwiseTree, sum_of_ranks};
