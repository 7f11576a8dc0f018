//! What a plugin's compiler made of the tables, field by field, beside the hash of it all.

use crate::{EXTENSION_LAYOUTS, LAYOUTS, Layout, forgelm_str};
use std::ffi::CStr;

/// A symbol that a plugin may have: a constant [`forgelm_layouts`].
pub const LAYOUTS_SYMBOL: &CStr = c"forgelm_plugin_layouts";

/// One field of one struct.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct forgelm_field_layout {
    /// Name of the struct in the header.
    pub structure: forgelm_str,
    /// Name of the field.
    pub field: forgelm_str,
    /// Alignment of the struct.
    pub align: u64,
    /// Bytes before the field.
    pub offset: u64,
    /// Bytes of the field.
    pub size: u64,
}

/// What a plugin exports under [`LAYOUTS_SYMBOL`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct forgelm_layouts {
    /// Bytes of this struct.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// [n_fields].
    pub fields: *const forgelm_field_layout,
    /// How many there are.
    pub n_fields: usize,
}

// SAFETY: its pointers are to constants.
#[expect(unsafe_code, reason = "a constant with pointers to constants")]
unsafe impl Sync for forgelm_layouts {}
/// [`LAYOUTS`] and [`EXTENSION_LAYOUTS`], as a plugin exports them.
pub const WITNESS: forgelm_layouts = {
    const FIELDS: &[forgelm_field_layout; n_fields()] = &fields();
    forgelm_layouts {
        #[expect(clippy::cast_possible_truncation, reason = "some bytes")]
        struct_size: size_of::<forgelm_layouts>() as u32,
        reserved: 0,
        fields: FIELDS.as_ptr(),
        n_fields: FIELDS.len(),
    }
};

const N_LAYOUTS: usize = LAYOUTS.len() + EXTENSION_LAYOUTS.len();

const fn layout(i: usize) -> &'static Layout {
    if i < LAYOUTS.len() { &LAYOUTS[i] } else { &EXTENSION_LAYOUTS[i - LAYOUTS.len()] }
}

const fn n_fields() -> usize {
    let (mut n, mut i) = (0, 0);
    while i < N_LAYOUTS {
        n += layout(i).fields.len();
        i += 1;
    }
    n
}

const fn fields<const N: usize>() -> [forgelm_field_layout; N] {
    let empty = forgelm_str::new("");
    let mut all =
        [forgelm_field_layout { structure: empty, field: empty, align: 0, offset: 0, size: 0 }; N];
    let (mut n, mut i) = (0, 0);
    while i < N_LAYOUTS {
        let (layout, mut j) = (layout(i), 0);
        while j < layout.fields.len() {
            let field = &layout.fields[j];
            all[n] = forgelm_field_layout {
                structure: forgelm_str::new(layout.name),
                field: forgelm_str::new(field.name),
                align: layout.align as u64,
                offset: field.offset as u64,
                size: field.size as u64,
            };
            n += 1;
            j += 1;
        }
        i += 1;
    }
    all
}
