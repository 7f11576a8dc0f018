//! Libraries that are refused: place, found, expected, hint, before anything of them is called.

use crate::build::{Told, built, misbehaves};
use std::fs;
use std::path::Path;

#[track_caller]
fn refused(path: &Path) -> String {
    let error = Told::default().loader().load(path).expect_err("it is refused").to_string();
    let rest = error.strip_prefix(&format!("{}: ", path.display())).expect("the file comes first");
    assert!(rest.contains("\n  hint: "), "{error}");
    rest.to_owned()
}

#[test]
fn fault_110_each_wrong_entry_has_its_own_words() {
    let cases: [(&[&str], &str); 14] = [
        (&["NO_ENTRY"], "is not a ForgeLM plugin: it exports no `forgelm_plugin_entry`"),
        (&["MAGIC=1"], "its entry begins with 0x0000000000000001; expected 0x314942414d4c4746"),
        (&["MAJOR=2"], "needs plugin ABI 2.0; this program has 1.0"),
        (&["SIZE=40"], "its table `forgelm_entry` has 40 bytes; expected at least 72"),
        (&["LAYOUT=7"], "has its fields elsewhere: layout 0x0000000000000007; expected 0x"),
        (&["GET_FACTORY=NULL"], "`forgelm_entry.get_factory` is NULL"),
        (&["LIBRARY=NULL"], "`forgelm_entry.name` is NULL"),
        (&["LIBRARY=\"\\xff\""], "`forgelm_entry.name` is not UTF-8 or empty"),
        (&["NAME=NULL"], "`trainer 0: name` is NULL"),
        (&["NAME=\"\""], "`trainer 0: name` is not UTF-8 or empty"),
        (&["RECORDS=9"], "`trainer 0: records` is 9; expected 0 to 3"),
        (&["CREATE=NULL"], "`forgelm_trainer_factory.create` is NULL"),
        (&["COUNT=3"], "`descriptor 2 of the trainer factory` is NULL"),
        (&["FEATURES=needs_future"], "`misbehaves` needs `forgelm.future/9`"),
    ];
    for (defines, expected) in cases {
        let (_dir, path) = misbehaves(defines);
        let said = refused(&path);
        assert!(said.starts_with(expected), "{defines:?}:\n{said}");
    }
}

/// By the plugin's own list of its fields. Its hash, a constant of the header, is right.
#[test]
fn a_field_that_lies_elsewhere_is_named_whatever_the_hash_says() {
    let (_dir, path) = misbehaves(&["LAYOUTS=4"]);
    let said = refused(&path);
    let expected = "has its fields elsewhere: `forgelm_str.len` is at byte 12, 8 bytes, in a struct \
                    aligned to 8; expected at byte 8, 8 bytes, in a struct aligned to 8; layout 0x";
    assert!(said.starts_with(expected), "{said}");
    let (_dir, path) = misbehaves(&["LAYOUTS=0", "LAYOUT=7"]);
    let said = refused(&path);
    let expected = "has its fields elsewhere: `forgelm_plugin_error.struct_size` is missing; ";
    assert!(said.starts_with(expected), "{said}");
}

/// Magic, then version, then size, then layout: the first that is wrong is the one that is told.
#[test]
fn the_version_is_told_before_what_follows_from_it() {
    let (_dir, path) = misbehaves(&["MAJOR=3", "SIZE=8", "LAYOUT=1", "GET_FACTORY=NULL"]);
    assert!(refused(&path).starts_with("needs plugin ABI 3.0"));
    let (_dir, path) = misbehaves(&["SIZE=8", "LAYOUT=1", "GET_FACTORY=NULL"]);
    assert!(refused(&path).starts_with("its table `forgelm_entry` has 8 bytes"));
}

#[test]
fn a_failing_init_is_told_in_the_plugins_words() {
    let (dir, path) = misbehaves(&["INIT=failing_init"]);
    let expected = format!("its init failed: {}", dir.path().display());
    assert!(refused(&path).starts_with(&expected));
}

#[test]
fn what_is_no_whole_library_for_this_machine_is_never_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.so");
    assert!(refused(&path).starts_with("cannot be read: "));
    fs::write(&path, "#!/bin/sh\n").unwrap();
    assert!(refused(&path).starts_with("is not a shared library: it begins with the bytes 23 21"));
    let whole = fs::read(built("forgelm_example_plugin")).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(refused(&path).starts_with("is cut short: "));
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(refused(&path).starts_with("is cut short: "));
    let mut other = whole;
    let riscv = 243;
    other[18] = riscv;
    fs::write(&path, other).unwrap();
    assert!(refused(&path).starts_with("is built for riscv64; expected "));
}

#[test]
fn a_library_that_needs_a_symbol_that_nobody_has_is_refused_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (source, path) = (dir.path().join("x.c"), dir.path().join("x.so"));
    fs::write(&source, "int nobody_has_this(void); int f(void) { return nobody_has_this(); }")
        .unwrap();
    let made = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&path, &source])
        .status();
    assert!(made.unwrap().success());
    let said = refused(&path);
    assert!(said.starts_with("cannot be opened: undefined symbol: nobody_has_this"), "{said}");
}
