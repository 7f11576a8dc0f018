//! Sums over a binary tree of fixed shape.
//!
//! The leaves of a step are numbered 0 to n - 1 and stand at the left of a perfect tree of the next
//! power of two; what is absent is left out. A process that has a whole subtree adds it up alone, so
//! that 1, 2, 4 and 8 processes make the same additions in the same order, and no bit depends on
//! their number. Study: Demmel and Nguyen 2015, "Parallel Reproducible Summation", section 1, on sums
//! whose order is fixed.

/// Adds up what comes in the order of the leaves, whatever it is and wherever it lies: who adds gives
/// the addition, which puts the sum of both in the place of the left one.
///
/// Holds one sum for each level of the tree at most: it counts in binary, and a carry is an addition.
#[derive(Clone, Debug)]
pub struct PairwiseTree<T> {
    /// Sums of whole subtrees with their heights, which fall from left to right.
    parts: Vec<(u32, T)>,
}

impl<T> Default for PairwiseTree<T> {
    fn default() -> Self {
        Self { parts: Vec::new() }
    }
}

impl<T> PairwiseTree<T> {
    /// Takes the next leaf.
    pub fn push(&mut self, leaf: T, mut add: impl FnMut(&mut T, T)) {
        let (mut height, mut sum) = (0, leaf);
        while self.parts.last().is_some_and(|(of, _)| *of == height) {
            let Some((_, mut left)) = self.parts.pop() else { break };
            add(&mut left, sum);
            (height, sum) = (height + 1, left);
        }
        self.parts.push((height, sum));
    }

    /// The sum of all leaves; `None` if there was none.
    pub fn finish(mut self, mut add: impl FnMut(&mut T, T)) -> Option<T> {
        let (_, mut sum) = self.parts.pop()?;
        while let Some((_, mut left)) = self.parts.pop() {
            add(&mut left, sum);
            sum = left;
        }
        Some(sum)
    }
}

/// Adds up arrays of one length that come in the order of their leaves.
#[derive(Clone, Debug, Default)]
pub struct PairwiseSum(PairwiseTree<Vec<f32>>);

impl PairwiseSum {
    /// Takes the next leaf.
    ///
    /// # Panics
    /// If it is of another length than the ones before.
    pub fn push(&mut self, leaf: Vec<f32>) {
        self.0.push(leaf, |left, right| add(left, &right));
    }

    /// The sum of all leaves; `None` if there was none.
    #[must_use]
    pub fn finish(self) -> Option<Vec<f32>> {
        self.0.finish(|left, right| add(left, &right))
    }

    /// Arrays that are held at once when `n_leaves` come, the one that comes last among them.
    #[must_use]
    pub fn n_held(n_leaves: usize) -> usize {
        // Before the last leaf there is one for each bit of the number of those before it.
        (0..n_leaves).map(|before| before.count_ones() as usize + 1).max().unwrap_or(0)
    }
}

/// The sum of what each rank has, those without anything last. `None` if no rank has anything.
#[must_use]
pub fn sum_of_ranks(of_ranks: impl IntoIterator<Item = Vec<f32>>) -> Option<Vec<f32>> {
    let mut sum = PairwiseSum::default();
    of_ranks.into_iter().filter(|of| !of.is_empty()).for_each(|of| sum.push(of));
    sum.finish()
}

fn add(left: &mut [f32], right: &[f32]) {
    assert_eq!(left.len(), right.len(), "leaves of one length");
    left.iter_mut().zip(right).for_each(|(left, right)| *left += right);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the definition says: halves of a perfect tree, what is absent left out.
    fn by_halves(leaves: &[Option<Vec<f32>>]) -> Option<Vec<f32>> {
        if let [leaf] = leaves {
            return leaf.clone();
        }
        let (left, right) = leaves.split_at(leaves.len() / 2);
        match (by_halves(left), by_halves(right)) {
            (Some(mut left), Some(right)) => {
                add(&mut left, &right);
                Some(left)
            }
            (left, right) => left.or(right),
        }
    }

    /// Numbers whose sum depends on the order of additions.
    fn leaf(i: usize) -> Vec<f32> {
        let i = u16::try_from(i).expect("small");
        (0..7_u16)
            .map(|j| (f32::from(i * 7 + j) * 0.37).sin() * 10_f32.powi(i32::from(i % 5)))
            .collect()
    }

    fn sum(leaves: impl IntoIterator<Item = Vec<f32>>) -> Option<Vec<f32>> {
        let mut sum = PairwiseSum::default();
        leaves.into_iter().for_each(|leaf| sum.push(leaf));
        sum.finish()
    }

    #[test]
    fn the_tree_is_the_one_of_the_definition() {
        for n in 0..=33_usize {
            let mut all: Vec<Option<Vec<f32>>> = (0..n).map(|i| Some(leaf(i))).collect();
            all.resize(n.next_power_of_two(), None);
            assert_eq!(sum((0..n).map(leaf)), by_halves(&all), "{n} leaves");
        }
        let in_order = (1..8).map(leaf).fold(leaf(0), |mut sum, leaf| {
            add(&mut sum, &leaf);
            sum
        });
        assert_ne!(sum((0..8).map(leaf)), Some(in_order), "the order makes a difference here");
    }

    /// Ranks with whole subtrees, in either way of dealing out leaves, make the same sum.
    #[test]
    fn any_number_of_ranks_makes_the_same_sum() {
        for n in 1..=17_usize {
            let expected = sum((0..n).map(leaf));
            let n_slots = n.next_power_of_two();
            for n_ranks in [1, 2, 4, 8, 16].into_iter().filter(|p| *p <= n_slots) {
                let blocks = (0..n_ranks).map(|rank| {
                    let of = |rank: usize| (rank * n_slots / n_ranks).min(n);
                    sum((of(rank)..of(rank + 1)).map(leaf)).unwrap_or_default()
                });
                assert_eq!(sum_of_ranks(blocks), expected, "{n} leaves in {n_ranks} blocks");
                let rounds = (0..n.div_ceil(n_ranks)).map(|round| {
                    let leaves = (0..n_ranks).map(|rank| round * n_ranks + rank);
                    let leaves = leaves.map(|i| if i < n { leaf(i) } else { Vec::new() });
                    sum_of_ranks(leaves).expect("there is one")
                });
                assert_eq!(sum(rounds), expected, "{n} leaves in rounds of {n_ranks}");
            }
        }
    }

    #[test]
    fn as_many_arrays_are_held_as_planned() {
        for n in 1..=40 {
            let mut sum = PairwiseSum::default();
            let mut most = 0;
            for i in 0..n {
                most = most.max(sum.0.parts.len() + 1);
                sum.push(leaf(i));
            }
            assert_eq!(PairwiseSum::n_held(n), most, "{n} leaves");
        }
        assert_eq!(PairwiseSum::n_held(8), 4);
    }
}
