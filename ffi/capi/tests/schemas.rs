//! What the library hands out as JSON, against the schemas that are published for it.

#![expect(unsafe_code, reason = "a test of a C border")]
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests make files, and end where something is wrong"
)]

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};

use boon::{Compiler, Schemas};
use forgelm_ffi::border::forgelm_string_free;
use forgelm_ffi::cancel::{forgelm_cancel_new, forgelm_cancel_trigger};
use forgelm_ffi::config::{forgelm_config_check, forgelm_config_schema};
use forgelm_ffi::engine::{forgelm_engine, forgelm_engine_new};
use forgelm_ffi::error::{forgelm_error, forgelm_error_details, forgelm_error_free};
use forgelm_ffi::model::{forgelm_model_generate, forgelm_model_load, forgelm_model_score};
use forgelm_ffi::train::{forgelm_event, forgelm_plan, forgelm_train};
use forgelm_ffi::verify::forgelm_verify;
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every object of the schema's `required` is there, and all members have their types.
#[track_caller]
fn is_valid(schema: &str, document: &Value) {
    let path = root().join(format!("ffi/schemas/{schema}.schema.json"));
    let text = fs::read_to_string(&path).unwrap();
    if let Err(problem) = against(serde_json::from_str(&text).unwrap(), document) {
        panic!("{schema}: {problem}\n{document:#}");
    }
}

fn against(schema: Value, document: &Value) -> Result<(), String> {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.add_resource("urn:tested", schema).map_err(|error| error.to_string())?;
    let index =
        compiler.compile("urn:tested", &mut schemas).map_err(|error| format!("{error:#}"))?;
    schemas.validate(document, index).map_err(|error| format!("{error:#}"))
}

/// The JSON text that was handed out, which is freed.
fn taken(text: *mut c_char) -> Value {
    assert!(!text.is_null());
    // SAFETY: the library hands out texts that end with NUL.
    let value = serde_json::from_slice(unsafe { CStr::from_ptr(text) }.to_bytes()).unwrap();
    // SAFETY: handed out, and freed once.
    unsafe { forgelm_string_free(text) };
    value
}

unsafe extern "C" fn keep(user: *mut c_void, event: *const forgelm_event) -> i32 {
    // SAFETY: `user` is the list that was passed with this function, and nobody else has it now.
    let list = unsafe { &mut *user.cast::<Vec<Value>>() };
    // SAFETY: the event and its text live until this function returns.
    let text = unsafe { CStr::from_ptr((*event).json) };
    list.push(serde_json::from_slice(text.to_bytes()).unwrap());
    0
}

/// A host in a folder of its own.
struct Host {
    dir: tempfile::TempDir,
    engine: *mut forgelm_engine,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = json!({
            "operator": "host@test",
            "offline": true,
            "config_dir": dir.path().join("config"),
            "environment": {"HOME": dir.path()},
        });
        let options = CString::new(options.to_string()).unwrap();
        let mut engine = null_mut();
        // SAFETY: a text, and a local.
        let status = unsafe { forgelm_engine_new(options.as_ptr(), &mut engine, null_mut()) };
        assert_eq!(status, 0);
        let row = |i: usize| {
            json!({"messages": [
                {"role": "user", "content": format!("What is {i}?")},
                {"role": "assistant", "content": format!("The number {i}.")},
            ]})
            .to_string()
        };
        let rows: Vec<String> = (0..24).map(row).collect();
        fs::write(dir.path().join("data.jsonl"), rows.join("\n")).unwrap();
        Self { dir, engine }
    }

    fn model() -> PathBuf {
        root().join("tests/data/golden/models/tiny-llama")
    }

    fn config(&self, evaluation: &Value) -> String {
        json!({
            "model": {"name_or_path": Self::model(), "max_length": 64, "load_in_4bit": false},
            "lora": {"r": 4, "target_modules": ["q_proj"]},
            "training": {
                "output_dir": self.dir.path().join("out"), "max_steps": 4, "eval_steps": 2,
                "save_steps": 2, "threads": 1, "report_to": "none",
            },
            "data": {"dataset_name_or_path": self.dir.path().join("data.jsonl")},
            "evaluation": evaluation,
        })
        .to_string()
    }

    /// Status and result of a run, whose events are checked.
    fn train(&self, evaluation: &Value, is_stopped: bool) -> (i32, Value) {
        let yaml = self.config(evaluation);
        let mut events: Vec<Value> = Vec::new();
        let (mut cancel, mut result) = (null_mut(), null_mut());
        let resume = if is_stopped { json!({}) } else { json!({"resume": true}) };
        let options = CString::new(resume.to_string()).unwrap();
        // SAFETY: everything that is passed lives until the calls return.
        let status = unsafe {
            assert_eq!(forgelm_cancel_new(&mut cancel, null_mut()), 0);
            if is_stopped {
                forgelm_cancel_trigger(cancel);
            }
            forgelm_train(
                self.engine,
                yaml.as_ptr().cast(),
                yaml.len(),
                c"run.yaml".as_ptr(),
                options.as_ptr(),
                Some(keep),
                (&raw mut events).cast(),
                cancel,
                &mut result,
                null_mut(),
            )
        };
        for event in &events {
            is_valid("event", event);
        }
        if !is_stopped {
            let seen: BTreeSet<&str> =
                events.iter().filter_map(|event| event["event"].as_str()).collect();
            for name in ["model_loaded", "data_ready", "started", "step", "evaluation"] {
                assert!(seen.contains(name), "{name} not in {seen:?}");
            }
        }
        (status, taken(result))
    }

    fn verify(&self, what: &CStr, path: &Path) -> Value {
        let path = CString::new(path.to_str().unwrap()).unwrap();
        let mut report = null_mut();
        // SAFETY: texts, and a local.
        unsafe {
            forgelm_verify(
                self.engine,
                what.as_ptr(),
                path.as_ptr(),
                null(),
                &mut report,
                null_mut(),
            );
        }
        taken(report)
    }
}

#[test]
fn plans_events_results_and_reports_are_as_published() {
    let host = Host::new();
    let yaml = host.config(&json!({"max_acceptable_loss": 100.0}));
    let mut plan = null_mut();
    // SAFETY: everything that is passed lives until the call returns.
    let status = unsafe {
        forgelm_plan(
            host.engine,
            yaml.as_ptr().cast(),
            yaml.len(),
            c"run.yaml".as_ptr(),
            &mut plan,
            null_mut(),
        )
    };
    assert_eq!(status, 0);
    let plan = taken(plan);
    is_valid("plan", &plan);
    assert!(plan["fit"]["verdict"].is_string());

    let (status, stopped) = host.train(&json!({"max_acceptable_loss": 100.0}), true);
    is_valid("result", &stopped);
    assert_eq!((status, &stopped["exit_code"]), (7, &json!(7)));
    let (status, kept) = host.train(&json!({"max_acceptable_loss": 100.0}), false);
    is_valid("result", &kept);
    assert_eq!((status, &kept["success"]), (0, &json!(true)));
    let out = host.dir.path().join("out");
    let whats = [
        (c"bundle", out.clone()),
        (c"audit_log", out.clone()),
        (c"annex_iv", out.join("compliance/annex_iv_metadata.json")),
        (c"integrity", out.join("final_model")),
        (c"bundle", host.dir.path().join("nothing")),
    ];
    for (what, path) in &whats {
        is_valid("report", &host.verify(what, path));
    }
    fs::write(out.join("final_model/adapter_config.json"), "{}").unwrap();
    let damaged = host.verify(c"bundle", &out);
    is_valid("report", &damaged);
    assert!(!damaged["findings"].as_array().unwrap().is_empty());
}

#[test]
fn a_run_that_a_gate_rejects_and_one_that_waits_are_as_published() {
    for (evaluation, expected) in [
        (json!({"max_acceptable_loss": 0.01, "auto_revert": true}), 3),
        (json!({"require_human_approval": true}), 4),
    ] {
        let (status, result) = Host::new().train(&evaluation, false);
        is_valid("result", &result);
        assert_eq!(status, expected, "{result}");
    }
}

#[test]
fn answers_and_scores_are_as_published() {
    let host = Host::new();
    let name = CString::new(Host::model().to_str().unwrap()).unwrap();
    let request = c"{\"prompts\": [\"one two\", \"three\"], \"max_new_tokens\": 3}";
    let (mut model, mut answers, mut scores) = (null_mut(), null_mut(), null_mut());
    // SAFETY: everything that is passed lives until the calls return.
    unsafe {
        let status = forgelm_model_load(
            host.engine,
            name.as_ptr(),
            null(),
            None,
            null_mut(),
            &mut model,
            null_mut(),
        );
        assert_eq!(status, 0);
        let status = forgelm_model_generate(
            model,
            request.as_ptr(),
            None,
            null_mut(),
            null(),
            &mut answers,
            null_mut(),
        );
        assert_eq!(status, 0);
        let request = c"{\"prompts\": [\"one two three\"]}";
        let status = forgelm_model_score(model, request.as_ptr(), null(), &mut scores, null_mut());
        assert_eq!(status, 0);
    }
    is_valid("answers", &taken(answers));
    is_valid("scores", &taken(scores));
}

#[test]
fn problems_of_a_config_are_as_published_and_a_config_is_valid_by_its_schema() {
    let yaml = b"training: {lerning_rate: 1}\nlora: {r: -1}\n";
    let (mut report, mut schema) = (null_mut(), null_mut());
    // SAFETY: everything that is passed lives until the calls return.
    unsafe {
        let yaml_len = yaml.len();
        let yaml = yaml.as_ptr().cast();
        let file = c"a.yaml".as_ptr();
        forgelm_config_check(yaml, yaml_len, file, null_mut(), &mut report, null_mut());
        assert_eq!(forgelm_config_schema(&mut schema, null_mut()), 0);
    }
    let report = taken(report);
    is_valid("problems", &report);
    assert!(report["problems"].as_array().unwrap().len() >= 2);
    let schema = taken(schema);
    let host = Host::new();
    let valid: Value = serde_json::from_str(&host.config(&json!({}))).unwrap();
    against(schema.clone(), &valid).unwrap();
    against(schema, &json!({"training": {"lerning_rate": 1}})).unwrap_err();

    let mut error: *mut forgelm_error = null_mut();
    let wrong = "model: 3";
    // SAFETY: everything that is passed lives until the calls return.
    let details = unsafe {
        let yaml = wrong.as_ptr().cast();
        let file = c"a.yaml".as_ptr();
        forgelm_plan(host.engine, yaml, wrong.len(), file, null_mut(), &mut error);
        let details = CStr::from_ptr(forgelm_error_details(error)).to_bytes().to_vec();
        forgelm_error_free(error);
        details
    };
    is_valid("problems", &serde_json::from_slice(&details).unwrap());
}

/// A schema that accepts everything would make the tests above say nothing.
#[test]
fn a_schema_refuses_what_it_does_not_describe() {
    let refused = [
        ("event", json!({"step": 1})),
        ("event", json!({"event": "checkpoint", "step": 1})),
        ("event", json!({"event": "started", "run_id": 5})),
        ("plan", json!({"success": true})),
        ("result", json!({"success": true, "exit_code": 0})),
        ("result", json!({"success": true, "exit_code": 7, "checkpoint": "x", "step": 1})),
        ("report", json!({"valid": true})),
        ("problems", json!({"problems": [{"line": 1}]})),
        ("answers", json!({"answers": [{"text": "x"}]})),
        ("scores", json!({"scores": [{"tokens": [1], "logprobs": [0.5], "sum_logprob": 0.5}]})),
    ];
    for (name, document) in refused {
        let path = root().join(format!("ffi/schemas/{name}.schema.json"));
        let schema = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        assert!(against(schema, &document).is_err(), "{name}: {document}");
    }
}
