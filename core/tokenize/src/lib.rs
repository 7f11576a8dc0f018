//! Text to token ids and back, and chat templates.
//!
//! What it knows: Hugging Face tokenizer folders, the tokenizer that a GGUF file carries in its metadata,
//! and the chat templates of both. What it refuses to know: configuration, data sets, models.
//!
//! Invariants:
//! - text that a user wrote never becomes a special token, however much it looks like one
//!   (test `fault_033_special_token_text_in_content_is_encoded_as_plain_text`);
//! - a template cannot read files, the environment or the clock, and cannot run for long
//!   (tests `fault_055_*`, `fault_056_*`);
//! - nothing here depends on threads: the same text gives the same ids everywhere.
//!
//! Start reading at [`Tokenizer`], then [`ChatTemplate`]; [`Tokenizer::encode_chat`] joins the two.

mod chat;
mod display;
mod encode;
mod folder;
mod gguf;
mod gguf_write;
mod save;
mod stream;
mod template;
mod tokenizer;

pub use chat::{ChatEncoding, ChatError};
pub use display::{ControlFilter, control_characters};
pub use encode::Encoding;
pub use stream::Detokenizer;
pub use template::{
    ChatTemplate, Message, RenderOptions, Rendered, Span, SpanKind, SpanSearch, TemplateError,
    TemplateTokens, choose_template,
};
pub use tokenizer::{
    EosSources, MAX_TEXT_BYTES, MAX_VOCABULARY, NamedTemplate, SpecialIds, TokenizeError, Tokenizer,
};
