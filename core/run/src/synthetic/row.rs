//! A prompt and its answer as a row of data, and back.

use forgelm_config::SyntheticFormat;
use serde_json::{Value, json};

/// The row; `system` is the configured system message, where there is one.
pub(super) fn written(
    format: SyntheticFormat,
    system: Option<&str>,
    prompt: &str,
    answer: &str,
) -> Value {
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    match format {
        SyntheticFormat::Messages => {
            let system = system.map(|text| message("system", text));
            let turns = [message("user", prompt), message("assistant", answer)];
            json!({"messages": system.into_iter().chain(turns).collect::<Vec<_>>()})
        }
        SyntheticFormat::Instruction => json!({"instruction": prompt, "output": answer}),
        SyntheticFormat::Chatml => json!({"User": prompt, "Assistant": answer}),
        SyntheticFormat::PromptResponse => json!({"prompt": prompt, "response": answer}),
    }
}

/// The prompt of a row; none for what is no row of this format.
pub(super) fn prompt_of(format: SyntheticFormat, row: &str) -> Option<String> {
    let row: Value = serde_json::from_str(row).ok()?;
    let prompt = match format {
        SyntheticFormat::Messages => {
            let turns = row["messages"].as_array()?;
            let user = turns.iter().find(|turn| turn["role"] == "user")?;
            user["content"].as_str()?.to_owned()
        }
        SyntheticFormat::Instruction => row["instruction"].as_str()?.to_owned(),
        SyntheticFormat::Chatml => row["User"].as_str()?.to_owned(),
        SyntheticFormat::PromptResponse => row["prompt"].as_str()?.to_owned(),
    };
    Some(prompt)
}

#[cfg(test)]
mod tests {
    use super::{prompt_of, written};
    use forgelm_config::SyntheticFormat;

    #[test]
    fn every_format_is_written_and_its_prompt_found_again() {
        let cases = [
            (
                SyntheticFormat::Messages,
                r#"{"messages":[{"role":"user","content":"p\n"},{"role":"assistant","content":"ä"}]}"#,
            ),
            (SyntheticFormat::Instruction, r#"{"instruction":"p\n","output":"ä"}"#),
            (SyntheticFormat::Chatml, r#"{"User":"p\n","Assistant":"ä"}"#),
            (SyntheticFormat::PromptResponse, r#"{"prompt":"p\n","response":"ä"}"#),
        ];
        for (format, expected) in cases {
            let row = written(format, None, "p\n", "ä").to_string();
            assert_eq!(row, expected);
            assert_eq!(prompt_of(format, &row).as_deref(), Some("p\n"), "{format}");
            for other in ["", "[]", "{}", "{\"messages\": 1}", "7"] {
                assert_eq!(prompt_of(format, other), None, "{other}");
            }
        }
        let row = written(SyntheticFormat::Messages, Some("s"), "p", "a");
        assert_eq!(row["messages"][0]["content"], "s");
        assert_eq!(prompt_of(SyntheticFormat::Messages, &row.to_string()).as_deref(), Some("p"));
    }
}
