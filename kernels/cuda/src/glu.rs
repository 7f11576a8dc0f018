//! Gated linear unit: `y = act(gate) * up`.

use forgelm_kernels_api::Activation;

use crate::call::{Call, Numbers, args};
use crate::cast::{change_as, common_format, read_as};
use crate::chunk::{chunks, is_wide, long};

/// Shapes: all [T, F]; `y` written.
pub(crate) fn forward(call: &Call<'_>, y: Numbers, gate: Numbers, up: Numbers, act: Activation) {
    assert_eq!(y.len, gate.len, "y and gate differ in length");
    assert_eq!(up.len, gate.len, "up and gate differ in length");
    let format = common_format(&[y, gate, up]);
    let (gate, up) = (read_as(call, format, gate), read_as(call, format, up));
    change_as(call, format, y, |y| {
        let kernel = format!("glu_forward_{}", suffix(act));
        let name = call.variant(&kernel, &[format], is_wide(y.len, &[y, gate, up]));
        let mut arguments = args![y.address, gate.address, up.address, long(y.len)];
        call.launch(&name, chunks(1, y.len), &mut arguments);
    });
}

/// Shapes: all [T, F]; `gate` becomes `dgate`, `up` becomes `dup`.
pub(crate) fn backward(call: &Call<'_>, gate: Numbers, up: Numbers, dy: Numbers, act: Activation) {
    assert_eq!(up.len, gate.len, "up and gate differ in length");
    assert_eq!(dy.len, gate.len, "dy and gate differ in length");
    let format = common_format(&[gate, up, dy]);
    let dy = read_as(call, format, dy);
    change_as(call, format, gate, |gate| {
        change_as(call, format, up, |up| {
            let kernel = format!("glu_backward_{}", suffix(act));
            let name = call.variant(&kernel, &[format], is_wide(dy.len, &[gate, up, dy]));
            let mut arguments = args![gate.address, up.address, dy.address, long(dy.len)];
            call.launch(&name, chunks(1, dy.len), &mut arguments);
        });
    });
}

fn suffix(act: Activation) -> &'static str {
    match act {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_tanh",
    }
}
