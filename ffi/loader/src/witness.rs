//! The layouts that a plugin's compiler made, compared with ours field by field: a plugin that lies
//! about its hash, or has another, is told by the first field that differs.

use forgelm_abi::{
    EXTENSION_LAYOUTS, LAYOUTS, LAYOUTS_SYMBOL, Layout, forgelm_field_layout, forgelm_layouts,
    forgelm_str,
};
use libloading::os::unix::Library;
use std::fmt;

/// Fields that a plugin may list.
const FIELDS_MAX: usize = 1 << 14;
/// Bytes of a name.
const NAME_MAX: usize = 256;

/// Where a field lies, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Alignment of its struct.
    pub align: u64,
    /// Bytes before it.
    pub offset: u64,
    /// Bytes of it.
    pub size: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { align, offset, size } = self;
        write!(f, "at byte {offset}, {size} bytes, in a struct aligned to {align}")
    }
}

/// The first field that is not where it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// `struct.field`.
    pub field: String,
    /// In the plugin; `None` if it has no such field.
    pub found: Option<Place>,
    /// In this program.
    pub expected: Place,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, found, expected } = self;
        match found {
            Some(found) => write!(f, "`{field}` is {found}; expected {expected}"),
            None => write!(f, "`{field}` is missing; expected {expected}"),
        }
    }
}

/// What a library says of its layouts; `None` if it says nothing that can be read.
fn witness(library: &'static Library) -> Option<&'static [forgelm_field_layout]> {
    // SAFETY: the address alone is taken.
    let found =
        unsafe { library.get::<*const forgelm_layouts>(LAYOUTS_SYMBOL.to_bytes_with_nul()) };
    let table: *const forgelm_layouts = found.ok()?.into_raw().cast_const().cast();
    // SAFETY: null, or a constant that begins with its size.
    let n_bytes = unsafe { table.cast::<u32>().as_ref() }?;
    if (*n_bytes as usize) < size_of::<forgelm_layouts>() {
        return None;
    }
    // SAFETY: as large as it should be; a library stays.
    let &forgelm_layouts { fields, n_fields, .. } = unsafe { &*table };
    if fields.is_null() || !fields.is_aligned() || n_fields > FIELDS_MAX {
        return None;
    }
    // SAFETY: as many as it says, constant.
    Some(unsafe { std::slice::from_raw_parts(fields, n_fields) })
}

/// Whether a text of the plugin is this one.
fn is(text: forgelm_str, name: &str) -> bool {
    if text.ptr.is_null() || text.len != name.len() || text.len > NAME_MAX {
        return false;
    }
    // SAFETY: not null, a constant of the library of that length.
    let bytes = unsafe { std::slice::from_raw_parts(text.ptr.cast::<u8>(), text.len) };
    bytes == name.as_bytes()
}

/// The first field that lies elsewhere in a list of a plugin's. Of what is asked for by id, only what
/// the plugin lists is compared: one that is older than a service has nothing of it.
fn first_difference(theirs: &[forgelm_field_layout]) -> Option<Difference> {
    let is_listed = |layout: &&Layout| theirs.iter().any(|field| is(field.structure, layout.name));
    for layout in LAYOUTS.iter().chain(EXTENSION_LAYOUTS.iter().filter(is_listed)) {
        for field in layout.fields {
            let expected = Place {
                align: layout.align as u64,
                offset: field.offset as u64,
                size: field.size as u64,
            };
            let found = theirs
                .iter()
                .find(|other| is(other.structure, layout.name) && is(other.field, field.name))
                .map(|&forgelm_field_layout { align, offset, size, .. }| Place {
                    align,
                    offset,
                    size,
                });
            if found != Some(expected) {
                let field = format!("{}.{}", layout.name, field.name);
                return Some(Difference { field, found, expected });
            }
        }
    }
    None
}

/// The first field that lies elsewhere, as far as the library says where its fields lie.
pub(crate) fn difference(library: &'static Library) -> Option<Difference> {
    first_difference(witness(library)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgelm_abi::WITNESS;

    fn ours() -> Vec<forgelm_field_layout> {
        // SAFETY: constants of this program.
        unsafe { std::slice::from_raw_parts(WITNESS.fields, WITNESS.n_fields) }.to_vec()
    }

    #[test]
    fn the_first_field_that_differs_is_named_with_both_places() {
        assert_eq!(first_difference(&ours()), None);
        let mut theirs = ours();
        theirs.reverse();
        assert_eq!(first_difference(&theirs), None, "another order");
        let is_logp = |field: &&mut forgelm_field_layout| {
            is(field.structure, "forgelm_scored") && is(field.field, "logp")
        };
        theirs.iter_mut().find(is_logp).unwrap().offset = 36;
        let said = first_difference(&theirs).unwrap().to_string();
        assert_eq!(
            said,
            "`forgelm_scored.logp` is at byte 36, 8 bytes, in a struct aligned to 8; expected at \
             byte 40, 8 bytes, in a struct aligned to 8"
        );
        theirs.retain(|field| !is(field.structure, "forgelm_host"));
        let said = first_difference(&theirs).unwrap().to_string();
        assert!(said.starts_with("`forgelm_host.struct_size` is missing; expected at "), "{said}");
    }
    /// A table of a service that is shaped otherwise is as bad; one that the plugin does not know is not.
    #[test]
    fn tables_that_are_asked_for_by_id_are_compared_where_the_plugin_has_them() {
        let of = |name: &'static str| move |field: &forgelm_field_layout| is(field.structure, name);
        for (structure, field, offset) in [
            ("forgelm_kernels", "dot", 40),
            ("forgelm_score", "score", 16),
            ("forgelm_generate", "generate", 16),
            ("forgelm_held_out", "text", 32),
            ("forgelm_rng", "uniform", 24),
            ("forgelm_reward", "judge", 24),
            ("forgelm_answer", "record", 32),
            ("forgelm_collective", "barrier", 72),
        ] {
            let mut theirs = ours();
            let is_field =
                |other: &&mut forgelm_field_layout| of(structure)(other) && is(other.field, field);
            theirs.iter_mut().find(is_field).unwrap().offset += 8;
            let difference = first_difference(&theirs).unwrap();
            assert_eq!(difference.field, format!("{structure}.{field}"));
            assert_eq!(difference.expected.offset, offset);
            assert_eq!(difference.found.unwrap().offset, offset + 8);
            theirs.retain(|other| !(of(structure)(other) && is(other.field, field)));
            assert_eq!(first_difference(&theirs).unwrap().found, None, "{structure}.{field}");
            theirs.retain(|other| !of(structure)(other));
            assert_eq!(first_difference(&theirs), None, "{structure} is not known there");
        }
    }
}
