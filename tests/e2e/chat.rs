//! `forgelm chat`, fed through standard input.

use crate::support::{Ran, Workplace};
use std::io::Write;
use std::process::Stdio;

fn chat(workplace: &Workplace, args: &[&str], lines: &str) -> Ran {
    let mut full = vec!["chat"];
    full.extend(args);
    let mut child = workplace.command(&full).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

#[test]
fn a_tuned_model_answers_in_the_style_of_its_data() {
    let workplace = Workplace::new();
    workplace.edit_config("max_steps: 12", "max_steps: 120");
    workplace.edit_config("learning_rate: 5e-3", "learning_rate: 2e-2");
    workplace.edit_config("[q_proj, v_proj]", "all-linear");
    workplace.run();
    let args = ["out/final_model", "--temperature", "0", "--max-new-tokens", "24"];
    let ran = chat(&workplace, &args, "What is item 7?\n/exit\n").expect_code(0);
    assert!(ran.stdout.contains("Item"), "{}", ran.stdout);
    assert!(ran.stdout.contains(" is a "), "{}", ran.stdout);
    let whole = [&args[..], &["--no-stream"]].concat();
    let again = chat(&workplace, &whole, "What is item 7?\n").expect_code(0);
    assert_eq!(ran.stdout, again.stdout, "the same answer, streamed or not; end of input ends");
}

#[test]
fn commands_of_the_prompt() {
    let workplace = Workplace::new();
    let args = ["model", "--max-new-tokens", "4", "--temperature", "0"];
    let lines = "/help\n/system Be brief.\n/system\n/temperature 9\n/temperature 0.5\n/nonsense\n\
                 /reset\n/save talk.jsonl\n/quit\n";
    let ran = chat(&workplace, &args, lines).expect_code(0);
    for said in ["/reset", "Be brief.", "0 to 2", "/nonsense"] {
        assert!(ran.stdout.contains(said), "no `{said}`:\n{}", ran.stdout);
    }
    assert_eq!(workplace.json_lines("talk.jsonl")[0]["role"], "system");
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let workplace = Workplace::new();
    let ran = chat(&workplace, &["nowhere/model"], "hi\n");
    assert!(ran.code == 1 || ran.code == 2, "{}", ran.code);
    assert!(ran.stderr.contains("nowhere/model"), "{}", ran.stderr);
}
