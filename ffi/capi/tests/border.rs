//! The border as a C program sees it, and the header against the library.

#![expect(unsafe_code, reason = "a test of a C border")]

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char};
use std::ptr::{null, null_mut};

use forgelm_ffi::border::{call, forgelm_string_free};
use forgelm_ffi::config::forgelm_config_check;
use forgelm_ffi::error::{
    Failure, Status, forgelm_error, forgelm_error_free, forgelm_error_message,
    forgelm_error_status, forgelm_status_name,
};
use forgelm_ffi::version::{ABI_VERSION, forgelm_abi_version, forgelm_version};

const HEADER: &str = include_str!("../../include/forgelm.h");
const SOURCES: [&str; 12] = [
    include_str!("../src/border.rs"),
    include_str!("../src/cancel.rs"),
    include_str!("../src/config.rs"),
    include_str!("../src/engine.rs"),
    include_str!("../src/error.rs"),
    include_str!("../src/model.rs"),
    include_str!("../src/plugin.rs"),
    include_str!("../src/sign.rs"),
    include_str!("../src/train.rs"),
    include_str!("../src/verify.rs"),
    include_str!("../src/version.rs"),
    include_str!("../src/work.rs"),
];

/// The header without its comments.
fn declarations() -> String {
    let mut rest = HEADER;
    let mut out = String::new();
    while let Some((before, after)) = rest.split_once("/*") {
        out.push_str(before);
        rest = after.split_once("*/").map_or("", |(_, after)| after);
    }
    out + rest
}

fn string(text: *const c_char) -> String {
    // SAFETY: the library hands out texts that end with NUL.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[test]
fn the_header_declares_what_the_library_exports() {
    let name = |text: &str| {
        let name = text.split('(').next().unwrap_or_default();
        name.rsplit([' ', '*']).next().unwrap_or_default().to_owned()
    };
    let text = declarations();
    let declared: BTreeSet<String> = text
        .split(';')
        .filter(|part| part.contains('(') && part.contains("forgelm_") && !part.contains("typedef"))
        .map(|part| name(part.trim()))
        .collect();
    let exported: BTreeSet<String> = SOURCES
        .iter()
        .flat_map(|source| source.split("extern \"C\" fn ").skip(1))
        .map(name)
        .collect();
    assert_eq!(declared, exported);
    assert_eq!(declared.len(), 34);
}

#[test]
fn every_function_of_the_header_has_its_four_marks() {
    for mark in [" * Thread: ", " * Ownership: ", " * Errors: ", " * Since: "] {
        assert_eq!(HEADER.matches(mark).count(), 34, "{mark}");
    }
}

#[test]
fn status_numbers_and_the_abi_version_are_those_of_the_header() {
    let defined = |name: &str| {
        let line = HEADER.lines().find(|line| line.starts_with(&format!("#define {name} ")));
        line.and_then(|line| line.split_whitespace().nth(2)).map(str::to_owned)
    };
    for status in Status::ALL {
        let name = string(forgelm_status_name(status as i32));
        let constant = format!("FORGELM_{}", name.to_uppercase().replace(' ', "_"));
        assert_eq!(defined(&constant), Some((status as i32).to_string()), "{constant}");
    }
    assert_eq!(string(forgelm_status_name(9)), "unknown status");
    assert_eq!(defined("FORGELM_ABI_VERSION"), Some(format!("{ABI_VERSION}u")));
    assert_eq!(forgelm_abi_version(), ABI_VERSION);
    assert_eq!(string(forgelm_version()), env!("CARGO_PKG_VERSION"));
}

#[test]
fn out_pointers_stay_untouched_when_an_argument_is_wrong() {
    let mut n_errors = 77;
    let mut report: *mut c_char = null_mut();
    let mut error: *mut forgelm_error = null_mut();
    // SAFETY: NULL is what is tested; the out-pointers are to locals.
    let status = unsafe {
        forgelm_config_check(null(), 3, c"x".as_ptr(), &mut n_errors, &mut report, &mut error)
    };
    assert_eq!(status, Status::InvalidArgument as i32);
    assert_eq!((n_errors, report.is_null()), (77, true));
    // SAFETY: the error was handed out by the failed call.
    unsafe {
        assert_eq!(forgelm_error_status(error), status);
    }
    // SAFETY: as above.
    let message = string(unsafe { forgelm_error_message(error) });
    assert_eq!(message, "`text` is NULL with a length of 3");
    // SAFETY: freed once.
    unsafe { forgelm_error_free(error) };
}

#[test]
fn a_report_is_handed_out_and_all_out_pointers_may_be_null() {
    let mut report: *mut c_char = null_mut();
    let yaml = c"model: 3";
    // SAFETY: the text has 8 bytes; NULL out-pointers are allowed.
    let status = unsafe {
        forgelm_config_check(
            yaml.as_ptr(),
            8,
            c"a.yaml".as_ptr(),
            null_mut(),
            &mut report,
            null_mut(),
        )
    };
    assert_eq!(status, Status::Ok as i32);
    let text = string(report);
    assert!(text.starts_with("{\"success\":false,\"file\":\"a.yaml\""), "{text}");
    // SAFETY: freed once; NULL is allowed.
    unsafe { forgelm_string_free(report) };
    // SAFETY: NULL is allowed.
    unsafe { forgelm_string_free(null_mut()) };
}

#[test]
fn a_panic_becomes_a_status() {
    let mut error: *mut forgelm_error = null_mut();
    // SAFETY: the out-pointer is to a local.
    let status =
        unsafe { call(&mut error, || -> Result<Status, Failure> { panic!("on purpose") }) };
    assert_eq!(status, Status::Panic as i32);
    // SAFETY: handed out by the call, freed once.
    unsafe { forgelm_error_free(error) };
    // SAFETY: NULL is allowed.
    let status = unsafe { call(null_mut(), || Err(Failure::argument("x", "is wrong"))) };
    assert_eq!(status, Status::InvalidArgument as i32);
}
