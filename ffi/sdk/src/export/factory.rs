//! What the factories of all kinds have in common: a list of descriptors behind a table.

use super::border::Refusal;
use std::ptr::{from_ref, null};

/// A factory's table `T`, and what it is made of: the author's list of `L`, and its entries as the
/// `D` of the header. The table comes first, so that a pointer to one is one to the other.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Factory<T, D, L: 'static> {
    table: T,
    list: &'static [L],
    descriptors: Vec<D>,
}

// SAFETY: the pointers inside are to constant texts and functions; nothing changes them.
unsafe impl<T, D, L: Sync> Sync for Factory<T, D, L> {}
// SAFETY: as above.
unsafe impl<T, D, L: Sync> Send for Factory<T, D, L> {}

impl<T, D, L> Factory<T, D, L> {
    /// For as long as the process.
    pub(super) fn leak(table: T, list: &'static [L], described: impl Fn(&L) -> D) -> &'static Self {
        Box::leak(Box::new(Self { table, list, descriptors: list.iter().map(described).collect() }))
    }

    /// # Safety
    /// `table` is null or that of a factory of this type.
    unsafe fn of<'a>(table: *const T) -> Option<&'a Self> {
        // SAFETY: the table is the first field.
        unsafe { table.cast::<Self>().as_ref() }
    }

    /// The table's `count`.
    pub(super) unsafe extern "C" fn count(table: *const T) -> u32 {
        // SAFETY: the host hands back the table that it was given.
        let factory = unsafe { Self::of(table) };
        factory.map_or(0, |factory| u32::try_from(factory.list.len()).unwrap_or(0))
    }

    /// The table's `descriptor`.
    pub(super) unsafe extern "C" fn descriptor(table: *const T, index: u32) -> *const D {
        // SAFETY: the host hands back the table that it was given.
        let factory = unsafe { Self::of(table) };
        factory.and_then(|f| f.descriptors.get(index as usize)).map_or_else(null, from_ref)
    }

    /// The entry of the list that the table's `create` is asked for.
    ///
    /// # Safety
    /// `table` is null or that of a factory of this type.
    pub(super) unsafe fn entry(
        table: *const T,
        index: u32,
        kind: &str,
    ) -> Result<&'static L, Refusal> {
        // SAFETY: the caller's promise.
        let entry = unsafe { Self::of(table) }.and_then(|f| f.list.get(index as usize));
        entry.ok_or_else(|| Refusal::argument(format!("no {kind} of that index")))
    }
}
