//! Checking a config from C.

use std::ffi::c_char;

use forgelm_config::{Diagnostic, Severity, json_schema, load_bytes, resolved_json};
use forgelm_run::error::RunError;
use serde_json::{Value, json};

use crate::border::{bytes, call, owned, put, text};
use crate::error::{Status, forgelm_error};

/// One finding, with null for its absent parts.
pub fn problem(diagnostic: &Diagnostic) -> Value {
    let severity = match diagnostic.severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    json!({
        "severity": severity,
        "code": diagnostic.code.as_str(),
        "line": diagnostic.place.map(|place| place.line),
        "column": diagnostic.place.map(|place| place.column),
        "key": diagnostic.key,
        "message": diagnostic.message,
        "found": diagnostic.found,
        "expected": diagnostic.expected,
        "hint": diagnostic.hint,
    })
}

/// The number of errors, and the report of the header.
fn check(yaml: &[u8], file: &str) -> (usize, Value) {
    let problems = match load_bytes(yaml, file) {
        Ok(loaded) => loaded.warnings,
        Err(problems) => problems,
    };
    let n_errors = problems.iter().filter(|p| p.severity == Severity::Error).count();
    let report = json!({
        "success": n_errors == 0,
        "file": file,
        "problems": problems.iter().map(problem).collect::<Vec<_>>(),
    });
    (n_errors, report)
}

/// Checks the text of a config; `forgelm.h` has the contract.
///
/// # Safety
/// `yaml` points to `yaml_len` readable bytes, `file_name` to a text ended by NUL; each
/// out-pointer is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_config_check(
    yaml: *const c_char,
    yaml_len: usize,
    file_name: *const c_char,
    out_n_errors: *mut usize,
    out_report: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        // SAFETY: by this function's contract.
        let yaml = unsafe { bytes(yaml, yaml_len, "text") }?;
        // SAFETY: by this function's contract.
        let file = unsafe { text(file_name, "file_name") }?;
        let (n_errors, report) = check(yaml, file);
        let report = report.to_string();
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_n_errors, || n_errors) };
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_report, || owned(&report)) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// A config with every default; `forgelm.h` has the contract.
///
/// # Safety
/// As [`forgelm_config_check`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_config_resolve(
    yaml: *const c_char,
    yaml_len: usize,
    file_name: *const c_char,
    out_config: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        // SAFETY: by this function's contract.
        let yaml = unsafe { bytes(yaml, yaml_len, "text") }?;
        // SAFETY: by this function's contract.
        let file = unsafe { text(file_name, "file_name") }?;
        let loaded = load_bytes(yaml, file).map_err(RunError::Config)?;
        let resolved = resolved_json(&loaded.run).to_string();
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_config, || owned(&resolved)) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// The JSON schema of configs; `forgelm.h` has the contract.
///
/// # Safety
/// Each out-pointer is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_config_schema(
    out_schema: *mut *mut c_char,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        // SAFETY: NULL or writable by this function's contract.
        unsafe { put(out_schema, || owned(&json_schema().to_string())) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

#[cfg(test)]
mod tests {
    use super::check;

    const GOOD: &str = "model: {name_or_path: some/model, load_in_4bit: false}\n\
                        data: {dataset_name_or_path: rows.jsonl}\n";

    #[test]
    fn a_valid_config_has_no_errors() {
        let (n_errors, report) = check(GOOD.as_bytes(), "run.yaml");
        assert_eq!(n_errors, 0, "{report}");
        assert_eq!(report["success"], true);
    }

    #[test]
    fn each_problem_has_its_place_and_key() {
        let bad = format!("{GOOD}training: {{lerning_rate: 1}}\nlora: {{r: 0}}\n");
        let (n_errors, report) = check(bad.as_bytes(), "run.yaml");
        assert_eq!(n_errors, 2, "{report}");
        assert_eq!(report["problems"][0]["key"], "training.lerning_rate");
        assert_eq!(report["problems"][0]["line"], 3);
        assert_eq!(report["problems"][1]["key"], "lora.r");
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_a_problem_in_the_report() {
        let (n_errors, report) = check(b"model: \xff", "run.yaml");
        assert_eq!(n_errors, 1, "{report}");
        assert_eq!(report["problems"][0]["code"], "config/encoding");
    }
}
