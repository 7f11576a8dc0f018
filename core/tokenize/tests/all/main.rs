//! Tests of `forgelm_tokenize` through its public interface.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test, in a temporary folder"
)]

mod faults_template;
mod faults_tokenizer;
mod gguf;
mod save;
mod spans;

use std::path::{Path, PathBuf};

use forgelm_tokenize::{
    ChatTemplate, Message, RenderOptions, TemplateError, TemplateTokens, Tokenizer,
};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden")
}

fn tiny() -> Tokenizer {
    Tokenizer::from_folder(&golden().join("models/tokenizer")).unwrap()
}

fn smollm2() -> Tokenizer {
    Tokenizer::from_folder(&golden().join("models/smollm2-tokenizer")).unwrap()
}

fn tokens() -> TemplateTokens {
    TemplateTokens {
        bos: "<s>".to_owned(),
        eos: "</s>".to_owned(),
        special: ["<s>", "</s>", "<|im_start|>", "<|im_end|>"].map(str::to_owned).to_vec(),
        ..TemplateTokens::default()
    }
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::compile(source, tokens()).unwrap()
}

fn user(content: &str) -> Vec<Message> {
    vec![Message::new("user", content)]
}

/// Renders one message from a user.
fn render(source: &str) -> Result<String, TemplateError> {
    let template = ChatTemplate::compile(source, tokens())?;
    Ok(template.render(&user("Hi"), &RenderOptions::default())?.text)
}
