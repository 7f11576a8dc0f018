//! `synthetic:` data written by a teacher model.

use super::text_rule::{NOT_BLANK, REVISION};
use crate::declare::{choice, section};
use crate::secret::Secret;

section! {
    /// Data written by a teacher model.
    Synthetic {
        /// Allows `--generate-data`.
        enabled: bool = false;
        /// The teacher: a name of the API, a path or a hub id.
        teacher_model: String = String::new();
        /// Where the teacher runs.
        teacher_backend: TeacherBackend = TeacherBackend::Api;
        /// Pins a local teacher.
        teacher_revision: Option<String> = None, upstream(), text(REVISION);
        /// The address of the API, `/chat/completions` or not: as OpenAI speaks, Azure, or Anthropic.
        api_base: String = String::new();
        /// The key of the API. Better: `api_key_env`.
        api_key: Option<Secret> = None;
        /// The environment variable that holds the key.
        api_key_env: Option<String> = None, text(NOT_BLANK);
        /// Seconds between requests.
        api_delay: f64 = 0.5, min(0.0), max(86_400.0);
        /// Seconds to wait for an answer; more than 300 means 300.
        api_timeout: u64 = 60, min(1.0), max(86_400.0);
        /// A file of prompts; with `teacher_backend: file`, of prompts with their answers.
        seed_file: String = String::new();
        /// Prompts.
        seed_prompts: Vec<String> = Vec::new();
        /// The system message of each request.
        system_prompt: String = String::new();
        /// The longest answer in tokens.
        max_new_tokens: u64 = 1024, min(1.0), max(16_777_216.0);
        /// Temperature of sampling.
        temperature: f64 = 0.7, min(0.0), max(100.0);
        /// Where the rows go.
        output_file: String = "synthetic_data.jsonl".to_owned(), text(NOT_BLANK);
        /// The shape of the rows.
        output_format: SyntheticFormat = SyntheticFormat::Messages;
        /// The lowest share of requests that must succeed.
        min_success_rate: f64 = 0.0, upstream(), share();
        /// The share of requests that failed above which a warning is given.
        sanity_failure_rate: f64 = 0.2, upstream(), share();
        /// Allows an API at a loopback, private or shared address, also by `http://`.
        allow_private_destinations: bool = false, ours();
    }
}

choice! {
    /// Where the teacher runs.
    TeacherBackend {
        /// Behind an HTTP API.
        Api = "api",
        /// Here.
        Local = "local",
        /// Nowhere: answers are read from a file.
        File = "file",
    }
}

choice! {
    /// The shape of synthetic rows.
    SyntheticFormat {
        /// A list of messages.
        Messages = "messages",
        /// Instruction and output.
        Instruction = "instruction",
        /// `User` and `Assistant`.
        Chatml = "chatml",
        /// Prompt and response.
        PromptResponse = "prompt_response",
    }
}
