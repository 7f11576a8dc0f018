//! What can be wrong with a library.

use crate::witness::Difference;
use std::path::PathBuf;

/// A library that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", .path.display())]
pub struct LibraryError {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a library, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file or folder cannot be read.
    #[error(
        "cannot be read: {0}\n  hint: plugins are named in `plugins.paths` and FORGELM_PLUGIN_PATH"
    )]
    Read(std::io::Error),
    /// Anybody on this machine may replace it.
    #[error(
        "everybody may write there (mode {mode:04o}), and code that everybody may replace is not \
         loaded\n  hint: chmod o-w"
    )]
    Writable {
        /// Its permission bits.
        mode: u32,
    },
    /// It is something else.
    #[error(
        "is not a shared library: it begins with {found}; expected an ELF file\n  hint: build it with `-shared`"
    )]
    NotALibrary {
        /// Its first bytes.
        found: String,
    },
    /// It has fewer bytes than it says.
    #[error(
        "is cut short: {found} bytes, but its tables reach to {expected}\n  hint: copy or download it again"
    )]
    Truncated {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// It is for another processor.
    #[error(
        "is built for {found}; expected {expected}\n  hint: get a build of the plugin for this machine"
    )]
    OtherArchitecture {
        /// The processor that it is for.
        found: String,
        /// The processor here.
        expected: String,
    },
    /// A sealed copy could not be made.
    #[error(
        "no sealed copy in memory can be made: {0}\n  hint: the system must allow memfd_create"
    )]
    Seal(std::io::Error),
    /// Other bytes were there when it was read again.
    #[error(
        "was replaced while it was being loaded: SHA-256 {found}; expected {expected}\n  hint: start \
         again"
    )]
    Replaced {
        /// As found.
        found: String,
        /// Of the bytes that were checked.
        expected: String,
    },
    /// The system's loader refused it.
    #[error(
        "cannot be opened: {0}\n  hint: are all libraries that it needs installed, and the modules of the \
         site that have some loaded?"
    )]
    Open(String),
    /// It exports no entry.
    #[error(
        "is not a ForgeLM plugin: it exports no `forgelm_plugin_entry`\n  hint: name plugins \
         themselves in `plugins.paths`, or keep other libraries out of the folder"
    )]
    NoEntry,
    /// The entry does not begin as one.
    #[error(
        "its entry begins with {found:#018x}; expected {expected:#018x}\n  hint: use FORGELM_PLUGIN_MAGIC of forgelm_plugin.h"
    )]
    Magic {
        /// As found.
        found: u64,
        /// As it should be.
        expected: u64,
    },
    /// It was built for another generation of the ABI.
    #[error(
        "needs plugin ABI {found_major}.{found_minor}; this program has {major}.{minor}\n  hint: get \
         a build of the plugin for {major}.x, or a ForgeLM that has {found_major}.x"
    )]
    Version {
        /// Its major version.
        found_major: u32,
        /// Its minor version.
        found_minor: u32,
        /// Ours.
        major: u32,
        /// Ours.
        minor: u32,
    },
    /// A table is too small to be one.
    #[error(
        "its table `{table}` has {found} bytes; expected at least {expected}\n  hint: write sizeof into struct_size, and build it with this version's forgelm_plugin.h"
    )]
    Size {
        /// The table.
        table: &'static str,
        /// Bytes that it says.
        found: u32,
        /// Bytes of version 1.0.
        expected: u32,
    },
    /// Fields are elsewhere.
    #[error(
        "has its fields elsewhere: {}layout {found:#018x}; expected {expected:#018x}\n  hint: build it \
         with this version's forgelm_plugin.h, and without packing or another ABI of the compiler",
        .first.as_ref().map(|first| format!("{first}; ")).unwrap_or_default()
    )]
    Layout {
        /// The first field, if it tells its layouts.
        first: Option<Box<Difference>>,
        /// Its hash.
        found: u64,
        /// Ours.
        expected: u64,
    },
    /// A function or text that must be there is null.
    #[error("`{what}` is NULL\n  hint: forgelm_plugin.h says which fields may be")]
    Null {
        /// The field.
        what: String,
    },
    /// A text is not UTF-8.
    #[error("`{what}` is not UTF-8 or empty\n  hint: write it in UTF-8")]
    Text {
        /// The field.
        what: String,
    },
    /// A number of a descriptor means nothing.
    #[error("`{what}` is {found}; expected {expected}\n  hint: forgelm_plugin.h has the numbers")]
    Number {
        /// The field.
        what: String,
        /// As found.
        found: u64,
        /// What would do.
        expected: String,
    },
    /// It wants something that this host has not.
    #[error(
        "`{what}` needs `{needs}`, which this program does not offer\n  hint: a newer ForgeLM may"
    )]
    Needs {
        /// The plugin.
        what: String,
        /// What it needs.
        needs: String,
    },
    /// Its initialization failed.
    #[error("its init failed: {0}\n  hint: this is the plugin's own message")]
    Init(String),
    /// A process of its own cannot be had.
    #[error(
        "no process of its own can be started: {0}\n  hint: `plugins.isolation: in_process` runs \
         plugins in the program"
    )]
    NoWorker(std::io::Error),
    /// Its process died.
    #[error("{0}")]
    Died(String),
    /// What a worker said of it, hint and all.
    #[error("{0}")]
    InWorker(String),
}
