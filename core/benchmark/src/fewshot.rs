//! Which rows stand as examples in a prompt.

use crate::python_random::PythonRandom;
use serde_json::Value;

/// The seed of the harness.
const SEED: u32 = 1234;

/// Draws examples, for one document after another.
pub(crate) struct Sampler {
    random: PythonRandom,
    pool: Vec<Value>,
    is_first_n: bool,
}

impl Sampler {
    pub(crate) fn new(pool: Vec<Value>, is_first_n: bool) -> Self {
        Self { random: PythonRandom::new(SEED), pool, is_first_n }
    }

    /// `n` rows of the pool, none of them `asked` where that is one of the pool; the error says how
    /// many there would have to be.
    pub(crate) fn sample(&mut self, n: usize, asked: Option<&Value>) -> Result<Vec<&Value>, usize> {
        let Self { random, pool, is_first_n } = self;
        let is_other = |row: &&Value| asked != Some(*row);
        if *is_first_n {
            let rows: Vec<&Value> = pool.iter().filter(is_other).take(n).collect();
            return if rows.len() < n { Err(n) } else { Ok(rows) };
        }
        // One more than is needed, in case that the asked row is among them.
        let n_drawn = if asked.is_some() { n + 1 } else { n };
        let drawn = random.sample(pool.len(), n_drawn).ok_or(n_drawn)?;
        let rows: Vec<&Value> = drawn.into_iter().map(|i| &pool[i]).filter(is_other).collect();
        if rows.len() >= n {
            return Ok(rows.into_iter().take(n).collect());
        }
        // The row stands in the pool more than once.
        let rest: Vec<&Value> = pool.iter().filter(is_other).collect();
        let drawn = random.sample(rest.len(), n).ok_or(n)?;
        Ok(drawn.into_iter().map(|i| rest[i]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::Sampler;
    use serde_json::{Value, json};

    fn pool(n: usize) -> Vec<Value> {
        (0..n).map(|i| json!({"i": i})).collect()
    }

    fn numbers(rows: &[&Value]) -> Vec<u64> {
        rows.iter().map(|row| row["i"].as_u64().unwrap()).collect()
    }

    /// By `lm_eval.api.samplers` 0.4.13 with the seed 1234.
    #[test]
    fn rows_are_drawn_as_the_harness_draws_them() {
        let mut sampler = Sampler::new(pool(10), false);
        assert_eq!(numbers(&sampler.sample(3, None).unwrap()), [7, 1, 0]);
        let mut sampler = Sampler::new(pool(10), false);
        let asked = json!({"i": 1});
        let drawn = numbers(&sampler.sample(2, Some(&asked)).unwrap());
        assert_eq!(drawn, [7, 0], "three are drawn, and the asked one left out");
        assert_eq!(sampler.sample(10, Some(&asked)), Err(11));
    }

    #[test]
    fn a_row_that_stands_more_than_once_is_left_out_everywhere() {
        let mut rows = vec![json!({"i": 0}); 3];
        rows.extend([json!({"i": 8}), json!({"i": 9})]);
        let mut sampler = Sampler::new(rows, false);
        let asked = json!({"i": 0});
        for _ in 0..20 {
            let mut drawn = numbers(&sampler.sample(2, Some(&asked)).unwrap());
            drawn.sort_unstable();
            assert_eq!(drawn, [8, 9]);
        }
        assert_eq!(sampler.sample(3, Some(&asked)), Err(3));
    }

    #[test]
    fn the_first_rows_are_taken_in_order() {
        let mut sampler = Sampler::new(pool(4), true);
        assert_eq!(numbers(&sampler.sample(3, None).unwrap()), [0, 1, 2]);
        let asked = json!({"i": 1});
        assert_eq!(numbers(&sampler.sample(3, Some(&asked)).unwrap()), [0, 2, 3]);
        assert_eq!(sampler.sample(4, Some(&asked)), Err(4));
    }
}
