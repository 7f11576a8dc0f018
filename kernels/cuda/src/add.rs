//! Addition.

use crate::call::{Call, Numbers, args};
use crate::chunk::{chunks, is_wide, long};

/// `y += x`. Shapes: equal lengths.
pub(crate) fn add(call: &Call<'_>, y: Numbers, x: Numbers) {
    assert_eq!(y.len, x.len, "y and x differ in length");
    let name = call.variant("add", &[y.format, x.format], is_wide(y.len, &[y, x]));
    call.launch(&name, chunks(1, y.len), &mut args![y.address, x.address, long(y.len)]);
}
