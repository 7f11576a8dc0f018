//! `--generate-data`: rows of a teacher, asked for once.

use crate::model_api::{ModelApi, Question, Reply};
use crate::support::{Ran, Workplace};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

const KEY: &str = "sk-teacher-very-secret";
const GENERATE: [&str; 5] = ["--config", "run.yaml", "--generate-data", "--output-format", "json"];
const ROWS: &str = "made/rows.jsonl";
const PROVENANCE: &str = "made/rows.jsonl.provenance.jsonl";
const MANIFEST: &str = "made/rows.jsonl.manifest.json";

/// A workplace with this section, and its rows in [`ROWS`].
fn workplace(section: &str) -> Workplace {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    let section = format!("synthetic: {{enabled: true, output_file: {ROWS}, {section}}}\n");
    workplace.write("run.yaml", &(config + &section));
    workplace
}

/// The teacher of a server, asked without delay.
fn by(api: &ModelApi, more: &str) -> String {
    format!(
        "teacher_model: t, api_base: '{}', api_key_env: TEACHER_KEY, api_delay: 0, \
         allow_private_destinations: true, {more}",
        api.base()
    )
}

fn command(workplace: &Workplace) -> Command {
    let mut command = workplace.command(&GENERATE);
    command.env("TEACHER_KEY", KEY);
    command
}

fn generate(workplace: &Workplace) -> Ran {
    command(workplace).output().unwrap().into()
}

/// A teacher that repeats.
fn echo() -> ModelApi {
    ModelApi::start(|question| Reply::Says(format!("Answer to: {}", question.user)))
}

/// How often each prompt was asked.
fn n_times(api: &ModelApi, prompt: &str) -> usize {
    api.users().iter().filter(|user| *user == prompt).count()
}

#[test]
fn a_teacher_behind_an_api_answers_each_prompt_once_and_every_row_has_its_provenance() {
    let api = echo();
    let workplace = workplace(&by(&api, "seed_prompts: [one, two, ' ', three]"));
    let ran = generate(&workplace).expect_code(0);
    assert!(!ran.stderr.contains(KEY) && !ran.stdout.contains(KEY));
    let result = ran.json();
    let expected = [
        ("success", json!(true)),
        ("total_prompts", json!(3)),
        ("successful", json!(3)),
        ("failed", json!(0)),
        ("success_rate", json!(1.0)),
        ("min_success_rate", json!(0.0)),
        ("output_file", json!(ROWS)),
        ("errors", json!([])),
    ];
    for (key, value) in expected {
        assert_eq!(result[key], value, "{key}");
    }
    let rows = workplace.json_lines(ROWS);
    let row = |prompt: &str| {
        json!({"messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": format!("Answer to: {prompt}")},
        ]})
    };
    assert_eq!(rows, [row("one"), row("two"), row("three")]);
    let request = &api.received()[0];
    assert_eq!(request.header("Authorization"), Some(&*format!("Bearer {KEY}")));
    let turns = &request.json()["messages"];
    assert_eq!(turns[0], json!({"role": "system", "content": "You are a helpful assistant."}));
    assert_eq!(request.json()["max_tokens"], 1024);

    for (index, line) in workplace.json_lines(PROVENANCE).iter().enumerate() {
        assert_eq!((&line["index"], &line["row"]), (&json!(index), &json!(index + 1)));
        assert_eq!((&line["teacher"], &line["tries"]), (&json!("t"), &json!(1)));
        assert_eq!(line["prompt_sha256"].as_str().map(str::len), Some(64));
        assert!(line["answered_at"].is_string(), "{line}");
    }
    let manifest: Value = serde_json::from_str(&workplace.read(MANIFEST)).unwrap();
    assert_eq!((&manifest["total_prompts"], &manifest["successful"]), (&json!(3), &json!(3)));
    workplace.forgelm(&["verify-signature", MANIFEST]).expect_code(0);

    // Once more: nothing is asked, nothing is written.
    let before = [ROWS, PROVENANCE, MANIFEST].map(|file| workplace.read(file));
    let again = generate(&workplace).expect_code(0).json();
    assert_eq!((&again["already_there"], &again["successful"]), (&json!(3), &json!(3)));
    assert_eq!(api.n_asked(), 3);
    assert_eq!([ROWS, PROVENANCE, MANIFEST].map(|file| workplace.read(file)), before);
    // Prompts at the end are asked for alone.
    workplace.edit_config("' ', three]", "three, four]");
    assert_eq!(generate(&workplace).expect_code(0).json()["successful"], 4);
    assert_eq!((api.n_asked(), n_times(&api, "four")), (4, 1));
    workplace.forgelm(&["verify-signature", MANIFEST]).expect_code(0);
}

/// Killed while the third answer is on its way; the server counts what is paid for.
#[test]
fn after_a_kill_nothing_is_asked_twice_that_was_answered() {
    let is_new = |question: &Question| match question.user.as_str() {
        "three" if question.n < 3 => Reply::Nothing,
        prompt => Reply::Says(format!("Answer to: {prompt}")),
    };
    let api = ModelApi::start(is_new);
    let workplace = workplace(&by(&api, "seed_prompts: [one, two, three, four, five]"));
    let mut child = command(&workplace).spawn().unwrap();
    while api.n_asked() < 3 {
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(workplace.json_lines(ROWS).len(), 2);
    assert!(!workplace.path(MANIFEST).exists());
    let result = generate(&workplace).expect_code(0).json();
    assert_eq!((&result["already_there"], &result["successful"]), (&json!(2), &json!(5)));
    for (prompt, n) in [("one", 1), ("two", 1), ("three", 2), ("four", 1), ("five", 1)] {
        assert_eq!(n_times(&api, prompt), n, "{prompt}");
    }
    assert_eq!(workplace.json_lines(ROWS).len(), 5);
    workplace.forgelm(&["verify-signature", MANIFEST]).expect_code(0);
}

#[test]
fn a_signal_ends_it_with_7_and_the_same_command_goes_on() {
    let api = ModelApi::start(|question| {
        Reply::Late(Duration::from_millis(300), format!("Answer to: {}", question.user))
    });
    let workplace = workplace(&by(&api, "seed_prompts: [one, two, three, four]"));
    let child = command(&workplace).spawn().unwrap();
    while api.n_asked() < 2 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let ran: Ran = child.wait_with_output().unwrap().into();
    let result = ran.expect_code(7).json();
    assert_eq!((&result["success"], &result["output_file"]), (&json!(false), &json!(ROWS)));
    generate(&workplace).expect_code(0);
    for prompt in ["one", "two", "three", "four"] {
        assert_eq!(n_times(&api, prompt), 1, "{prompt}: what was on its way is kept");
    }
}

#[test]
fn rows_of_others_and_of_other_settings_are_refused_and_left_as_they_are() {
    let api = echo();
    let workplace = workplace(&by(&api, "temperature: 0.7, seed_prompts: [one, two]"));
    workplace.write(ROWS, "written by hand, without an end");
    generate(&workplace).expect_code(1).expect_stderr("were not generated here");
    assert_eq!(workplace.read(ROWS), "written by hand, without an end");
    assert_eq!(api.n_asked(), 0);
    std::fs::remove_file(workplace.path(ROWS)).unwrap();
    generate(&workplace).expect_code(0);
    let rows = workplace.read(ROWS);
    for (from, to) in [("0.7", "0.8"), ("[one, two]", "[two, one]"), ("model: t,", "model: u,")] {
        workplace.edit_config(from, to);
        generate(&workplace).expect_code(1).expect_stderr("is of other settings");
        workplace.edit_config(to, from);
    }
    workplace.write(ROWS, &rows.replace("Answer to: one", "Something else"));
    generate(&workplace).expect_code(6).expect_stderr("row 1 is not the one that was generated");
    assert_eq!(api.n_asked(), 2);
}

#[test]
fn failures_are_told_counted_and_asked_for_again() {
    let api = ModelApi::start(|question| match (question.user.as_str(), question.n) {
        ("empty", _) => Reply::says(" "),
        ("busy", 0..=2) => Reply::Raw(429, "Retry-After: 0\r\n", String::new()),
        ("odd", 0..=5) => Reply::Raw(200, "", "[]".to_owned()),
        ("huge", 0..=6) => Reply::Endlessly,
        (prompt, _) => Reply::Says(format!("Answer to: {prompt}")),
    });
    let section = by(&api, "min_success_rate: 0.7, seed_prompts: [one, busy, empty, odd, huge]");
    let workplace = workplace(&section);
    let ran = generate(&workplace).expect_code(2);
    assert!(ran.stderr.contains("more than `synthetic.sanity_failure_rate` 0.2"), "{}", ran.stderr);
    let result = ran.json();
    assert_eq!((&result["successful"], &result["failed"]), (&json!(2), &json!(3)));
    assert_eq!((&result["success"], &result["success_rate"]), (&json!(false), &json!(0.4)));
    let errors = result["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 3);
    assert_eq!(errors[0], "Prompt 3: empty response");
    assert!(errors[1].as_str().unwrap().starts_with("Prompt 4: the server's answer"), "{errors:?}");
    assert_eq!(workplace.json_lines(PROVENANCE)[1]["tries"], 3);
    let n_before = api.n_asked();
    let result = generate(&workplace).expect_code(0).json();
    assert_eq!((&result["successful"], &result["success_rate"]), (&json!(4), &json!(0.8)));
    assert_eq!(api.n_asked(), n_before + 3);
    assert_eq!((n_times(&api, "one"), n_times(&api, "busy")), (1, 3));
}

#[test]
fn a_refused_key_ends_it_at_once_and_what_there_is_stays() {
    let api = ModelApi::start(|question| match question.n {
        0 => Reply::says("yes"),
        _ => Reply::status(401),
    });
    let workplace = workplace(&by(&api, "seed_prompts: [one, two, three]"));
    let ran = generate(&workplace).expect_code(2).expect_stderr("status 401: the key is refused");
    assert!(ran.stderr.contains("1 of 3 prompts have a row"), "{}", ran.stderr);
    assert_eq!((api.n_asked(), workplace.json_lines(ROWS).len()), (2, 1));
}

#[test]
fn what_cannot_be_asked_is_refused_before_anything_is_written() {
    let api = echo();
    let all = by(&api, "seed_prompts: [one]");
    let cases = [
        (all.clone(), false, "TEACHER_KEY"),
        (all.replace("allow_private_destinations: true", "temperature: 0"), true, "`http://`"),
        (
            all.replace("allow_private_destinations: true", "temperature: 0"),
            true,
            "nothing is asked offline",
        ),
        (all.replace("seed_prompts: [one]", "seed_file: none.txt"), true, "none.txt"),
        (
            all.replace("seed_prompts: [one]", "seed_file: odd.jsonl"),
            true,
            "odd.jsonl:2: an object",
        ),
    ];
    for (section, has_key, reason) in cases {
        let workplace = workplace(&section);
        workplace.write("odd.jsonl", "a prompt\n{\"question\": \"b\"}\n");
        let mut command = command(&workplace);
        if reason.contains("offline") {
            command.arg("--offline");
        }
        if !has_key {
            command.env_remove("TEACHER_KEY");
        }
        let ran: Ran = command.output().unwrap().into();
        ran.expect_code(1).expect_stderr(reason);
        assert!(!workplace.path("made").exists(), "{reason}");
    }
    assert_eq!(api.n_asked(), 0);
    let workplace = Workplace::new();
    workplace.forgelm(&GENERATE).expect_code(1).expect_stderr("`synthetic.enabled` is not true");
}

/// Every format that is written is data for `sft`.
#[test]
fn rows_of_each_format_train_a_model() {
    let formats = [
        ("messages", "messages"),
        ("instruction", "output"),
        ("chatml", "Assistant"),
        ("prompt_response", "response"),
    ];
    for (format, key) in formats {
        let api = echo();
        let prompts: Vec<String> = (0..8).map(|i| format!("prompt {i}")).collect();
        let more = format!("output_format: {format}, seed_file: seeds.txt");
        let workplace = workplace(&by(&api, &more));
        workplace.write("seeds.txt", &(prompts.join("\n") + "\n"));
        generate(&workplace).expect_code(0);
        let rows = workplace.json_lines(ROWS);
        assert!(rows.len() == 8 && rows.iter().all(|row| row.get(key).is_some()), "{rows:?}");
        workplace.edit_config("path: data.jsonl", &format!("path: {ROWS}"));
        workplace.edit_config("max_steps: 12", "max_steps: 2");
        workplace.run();
    }
}

#[test]
fn a_file_is_a_teacher_too() {
    let workplace = workplace("teacher_backend: file, seed_file: answers.jsonl");
    let answers = "{\"prompt\": \"a\", \"completion\": \"1\"}\nno JSON\n\
                   {\"prompt\": \"b\", \"response\": \"2\"}\n{\"prompt\": \"c\"}\n";
    workplace.write("answers.jsonl", answers);
    let ran = generate(&workplace).expect_code(0).expect_stderr("1 lines are no object");
    let result = ran.json();
    assert_eq!((&result["successful"], &result["total_prompts"]), (&json!(2), &json!(3)));
    assert_eq!(result["errors"], json!(["Prompt 3: empty response"]));
    assert_eq!(workplace.json_lines(ROWS)[1]["messages"][1]["content"], "2");
    workplace.write("run.yaml", &workplace.read("run.yaml").replace(ROWS, "answers.jsonl"));
    generate(&workplace).expect_code(1).expect_stderr("is read and would be written");
    assert_eq!(workplace.read("answers.jsonl"), answers);
}

/// The same prompt, seed and model give the same answer, whether it is asked with others or alone.
#[test]
fn a_teacher_on_this_machine_answers_the_same_after_a_resume() {
    let section = "teacher_backend: local, teacher_model: model, max_new_tokens: 12, \
                   temperature: 0.9, output_format: prompt_response, seed_prompts: ";
    let whole = workplace(&format!("{section}[one, two, three]"));
    generate(&whole).expect_code(0);
    let rows = whole.json_lines(ROWS);
    assert_eq!(rows.len(), 3);
    let begun = workplace(&format!("{section}[one]"));
    generate(&begun).expect_code(0);
    begun.edit_config("[one]", "[one, two, three]");
    let result = generate(&begun).expect_code(0).json();
    assert_eq!(result["already_there"], 1);
    assert_eq!(begun.json_lines(ROWS), rows);
    let manifest: Value = serde_json::from_str(&begun.read(MANIFEST)).unwrap();
    assert_eq!(manifest["teacher"]["of_backend"]["sha256"].as_str().map(str::len), Some(64));
}

#[test]
fn a_plan_says_who_is_asked_and_shows_no_key() {
    let api = echo();
    let workplace = workplace(&by(&api, "seed_prompts: [one], api_key: sk-written-down"));
    let ran = workplace.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(0);
    assert!(ran.stdout.contains("rows of `t` at http://127.0.0.1"), "{}", ran.stdout);
    assert!(ran.stdout.contains("with --generate-data"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("sk-written") && !ran.stderr.contains("sk-written"));
    assert_eq!(api.n_asked(), 0);
}
