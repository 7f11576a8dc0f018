//! Work on several threads whose result does not depend on how many there are.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Items that a thread takes at once.
const CHUNK: usize = 32;

/// Applies `each` to every item; the results are in the order of the items.
///
/// # Panics
/// If `each` panics.
pub(crate) fn map<I: Sync, R: Send>(
    threads: usize,
    items: &[I],
    each: impl Fn(&I) -> R + Sync,
) -> Vec<R> {
    let n_threads = threads.clamp(1, items.len().div_ceil(CHUNK).max(1));
    if n_threads == 1 {
        return items.iter().map(each).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            let from = chunk * CHUNK;
            if from >= items.len() {
                return done;
            }
            let to = (from + CHUNK).min(items.len());
            done.push((chunk, items[from..to].iter().map(&each).collect::<Vec<R>>()));
        }
    };
    let mut chunks: Vec<(usize, Vec<R>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..n_threads).map(|_| scope.spawn(work)).collect();
        let mut chunks = work();
        for thread in threads {
            chunks.extend(thread.join().expect("the work does not panic"));
        }
        chunks
    });
    chunks.sort_unstable_by_key(|(chunk, _)| *chunk);
    chunks.into_iter().flat_map(|(_, results)| results).collect()
}

#[cfg(test)]
mod tests {
    use super::map;

    #[test]
    fn results_are_in_the_order_of_the_items_on_any_number_of_threads() {
        let items: Vec<usize> = (0..1000).collect();
        let expected: Vec<usize> = items.iter().map(|i| i * i).collect();
        for threads in [0, 1, 2, 3, 64] {
            assert_eq!(map(threads, &items, |i| i * i), expected, "{threads}");
        }
        assert_eq!(map(4, &[], |i: &usize| *i), Vec::<usize>::new());
    }
}
