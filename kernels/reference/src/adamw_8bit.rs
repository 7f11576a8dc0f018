//! AdamW with moments in 8 bits.
//!
//! Paper: Dettmers et al. 2021, arXiv:2110.02861, section 2.

use forgelm_kernels_api::dynamic_map::{SIGNED, UNSIGNED, nearest};
use forgelm_kernels_api::{AdamW, Blocks8bit};

/// Shapes: `param` [P], `m`, `v` of P elements changed, `grad` [P] read.
pub(crate) fn step(
    param: &mut [f32],
    m: Blocks8bit<'_>,
    v: Blocks8bit<'_>,
    grad: &[f32],
    constants: &AdamW,
) {
    assert_eq!(grad.len(), param.len(), "grad and param differ in length");
    m.check("m", param.len());
    v.check("v", param.len());
    let (m, v) = (m.on_host(), v.on_host());
    let mut m_whole = read(&SIGNED, &m);
    let mut v_whole = read(&UNSIGNED, &v);
    crate::adamw::step(param, &mut m_whole, &mut v_whole, grad, constants);
    write(&SIGNED, m, &m_whole);
    write(&UNSIGNED, v, &v_whole);
}

fn read(map: &[f32; 256], (codes, absmax): &(&mut [u8], &mut [f32])) -> Vec<f32> {
    let at = |(i, &code): (usize, &u8)| map[usize::from(code)] * absmax[i / Blocks8bit::BLOCK];
    codes.iter().enumerate().map(at).collect()
}

fn write(map: &[f32; 256], (codes, absmax): (&mut [u8], &mut [f32]), values: &[f32]) {
    let codes = codes.chunks_mut(Blocks8bit::BLOCK);
    let values = values.chunks(Blocks8bit::BLOCK);
    for ((codes, absmax), values) in codes.zip(absmax).zip(values) {
        *absmax = values.iter().fold(0.0, |largest, value| value.abs().max(largest));
        for (code, &value) in codes.iter_mut().zip(values) {
            let part = if *absmax > 0.0 { f64::from(value) / f64::from(*absmax) } else { 0.0 };
            *code = nearest(map, part);
        }
    }
}
