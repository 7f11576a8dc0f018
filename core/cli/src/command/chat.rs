//! `forgelm chat`: lines in, answers out.

use super::Context;
use crate::args::{ChatArgs, LogLevel};
use forgelm_artifact::write;
use forgelm_run::chat::{ChatSettings, Conversation};
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use forgelm_run::model::{ModelRequest, find, load};
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

const HELP: &str = "\
/reset            forget the conversation
/save [FILE]      write it as JSON lines
/system [TEXT]    set the system prompt, or show it
/temperature N    0 to 2; 0 takes the likeliest token
/help             this list
/exit             leave";

/// Talks until the input ends.
pub fn chat(args: &ChatArgs, context: &mut Context) -> Exit {
    if context.is_json() {
        return context.refused(Exit::Config, "chat has no JSON output; `forgelm score` has");
    }
    match talk(args, context) {
        Ok(()) => Exit::Success,
        Err(error) => context.failed(&error),
    }
}

fn talk(args: &ChatArgs, context: &mut Context) -> Result<(), RunError> {
    let env = context.environment();
    let request = ModelRequest {
        adapter: args.adapter.clone(),
        offline: args.offline,
        device: args.device,
        ..ModelRequest::named(&args.model)
    };
    let found = find(&request, &env, &mut context.progress)?;
    let loaded = load(&found, &request)?;
    let settings = ChatSettings {
        system: args.system.clone(),
        temperature: args.temperature,
        max_new_tokens: args.max_new_tokens as usize,
        seed: args.seed,
        now: env.clock.utc().0.div_euclid(1_000_000),
    };
    let mut chat = Prompt {
        conversation: Conversation::new(&found, &loaded, settings)?,
        is_streaming: !args.no_stream,
        now: env.clock.utc().to_text_seconds(),
    };
    let is_terminal = std::io::stdin().is_terminal();
    if is_terminal {
        context.progress.line(LogLevel::Info, "/help lists commands; /exit leaves");
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if is_terminal {
            say("> ");
        }
        let Some(Ok(line)) = lines.next() else { return Ok(()) };
        let line = line.trim();
        if line == "/exit" || line == "/quit" {
            return Ok(());
        }
        if line.starts_with('/') {
            chat.command(line);
        } else if !line.is_empty() {
            chat.answer(line);
        }
    }
}

/// A conversation at the prompt.
struct Prompt<'a> {
    conversation: Conversation<'a>,
    is_streaming: bool,
    /// Names the file of `/save`.
    now: String,
}

impl Prompt<'_> {
    /// Answers a line. An error ends the turn, not the conversation.
    fn answer(&mut self, line: &str) {
        let is_streaming = self.is_streaming;
        let answer = self.conversation.answer(line, &mut |piece| {
            if is_streaming {
                say(piece);
            }
        });
        match answer {
            Ok(_) if is_streaming => say("\n"),
            Ok(answer) => say(&format!("{answer}\n")),
            Err(error) => say(&format!("[{}]\n", error.chain())),
        }
    }

    fn command(&mut self, line: &str) {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        let said = match name {
            "/reset" => {
                self.conversation.reset();
                "the conversation is forgotten".to_owned()
            }
            "/save" => self.save(rest),
            "/system" if rest.is_empty() => {
                let system = self.conversation.settings().system.clone();
                system.unwrap_or_else(|| "there is no system prompt".to_owned())
            }
            "/system" => {
                self.conversation.settings_mut().system = Some(rest.to_owned());
                "the system prompt is set".to_owned()
            }
            "/temperature" => match rest.parse::<f32>() {
                Ok(number) if (0.0..=2.0).contains(&number) => {
                    self.conversation.settings_mut().temperature = number;
                    format!("the temperature is {number}")
                }
                _ => "usage: /temperature N, with N from 0 to 2".to_owned(),
            },
            "/help" | "/?" => HELP.to_owned(),
            _ => format!("no command `{name}`; /help lists them"),
        };
        say(&format!("{said}\n"));
    }

    fn save(&self, file: &str) -> String {
        let default = format!(
            "chat_history_{}.jsonl",
            self.now.chars().filter(char::is_ascii_digit).take(14).collect::<String>()
        );
        let file = if file.is_empty() { &default } else { file };
        let lines: String = self
            .conversation
            .messages()
            .iter()
            .map(|m| format!("{}\n", json!({"role": m.role, "content": m.content})))
            .collect();
        match write::atomic(Path::new(file), lines.as_bytes()) {
            Ok(()) => format!("saved as {file}"),
            Err(error) => format!("[{error}]"),
        }
    }
}

/// Prints at once. A reader that went away ends the conversation at the next line.
fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
