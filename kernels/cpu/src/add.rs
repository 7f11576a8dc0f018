//! Addition.

use crate::math::{for_vectors, load};
use crate::pool::Pool;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};
use crate::tile::put;

/// Elements of a task.
const CHUNK: usize = 32_768;

/// `y += x`. Shapes: equal lengths.
pub(crate) fn add(pool: &Pool, isa: Isa, y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    pool.chunks(y, CHUNK, |i, y| {
        let x = &x[i * CHUNK..i * CHUNK + y.len()];
        on_isa!(isa, s => part(s, y, x));
    });
}

#[inline(always)]
fn part<S: Simd>(s: S, y: &mut [f32], x: &[f32]) {
    for_vectors!(s, y.len(), |i| put(s, &mut y[i.clone()], load(s, &x[i]), true),);
}
