//! Addition.

/// `y += x`. Shapes: equal lengths.
pub(crate) fn add(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    for (y, &x) in y.iter_mut().zip(x) {
        *y += x;
    }
}
