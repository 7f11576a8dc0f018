//! Rows of a table, and the gradient of the table.

use forgelm_kernels_api::Format;

use crate::call::{Call, Numbers, args};
use crate::chunk::{THREADS, blocks, chunks, int, is_wide, long, width};

/// `y[t] = table[tokens[t]]`. Shapes: `y` [T, C], `tokens` [T], `table` [V, C].
pub(crate) fn forward(call: &Call<'_>, y: Numbers, tokens: &[u32], table: Numbers) {
    let (t, c) = (tokens.len(), width(y, tokens.len()));
    check_tokens(tokens, table, c);
    let name =
        call.variant("embedding_forward", &[table.format, y.format], is_wide(c, &[y, table]));
    let mut arguments = args![y.address, call.indices(tokens), table.address, long(t), int(c)];
    call.launch(&name, chunks(t, c), &mut arguments);
}

/// `dtable[tokens[t]] += dy[t]`. Shapes: `dtable` [V, C], `dy` [T, C], `tokens` [T].
///
/// Rows of the same token are one task for each 256 columns, which adds them in order.
pub(crate) fn backward(call: &Call<'_>, dtable: Numbers, dy: Numbers, tokens: &[u32]) {
    let c = width(dy, tokens.len());
    check_tokens(tokens, dtable, c);
    assert_eq!(dtable.format, Format::F32, "gradients of what trains");
    let runs = Runs::of(tokens);
    let grid = blocks(runs.tokens.len() * c.div_ceil(THREADS));
    let name = call.variant("embedding_backward", &[dy.format], false);
    let mut arguments = args![
        dtable.address,
        dy.address,
        call.indices(&runs.order),
        call.indices(&runs.starts),
        call.indices(&runs.tokens),
        int(c)
    ];
    call.launch(&name, grid, &mut arguments);
}

/// Kernels do not check.
fn check_tokens(tokens: &[u32], table: Numbers, c: usize) {
    assert!(table.len.is_multiple_of(c.max(1)), "the table is not [V, C]");
    let v = table.len / c.max(1);
    assert!(tokens.iter().all(|&token| (token as usize) < v), "a token is not in the table");
}

/// Rows ordered by token, and within a token as they come.
#[derive(Debug, PartialEq)]
struct Runs {
    /// Rows [T].
    order: Vec<u32>,
    /// Where the rows of each token begin in `order`, and where the last ones end [R + 1].
    starts: Vec<u32>,
    /// [R], ascending.
    tokens: Vec<u32>,
}

impl Runs {
    fn of(tokens: &[u32]) -> Self {
        let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
        order.sort_by_key(|&row| tokens[row as usize]);
        let (mut starts, mut found) = (Vec::new(), Vec::new());
        for (place, &row) in order.iter().enumerate() {
            let token = tokens[row as usize];
            if found.last() != Some(&token) {
                starts.push(place as u32);
                found.push(token);
            }
        }
        starts.push(order.len() as u32);
        Self { order, starts, tokens: found }
    }
}

#[cfg(test)]
mod tests {
    use super::Runs;

    #[test]
    fn rows_of_a_token_are_together_and_in_order() {
        let runs = Runs::of(&[7, 2, 7, 0, 2, 7]);
        let expected =
            Runs { order: vec![3, 1, 4, 0, 2, 5], starts: vec![0, 1, 3, 6], tokens: vec![0, 2, 7] };
        assert_eq!(runs, expected);
        assert_eq!(Runs::of(&[]), Runs { order: vec![], starts: vec![0], tokens: vec![] });
    }
}
