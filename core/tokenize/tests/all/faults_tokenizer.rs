use std::path::Path;
use std::time::Duration;

use forgelm_tokenize::{
    ChatError, ControlFilter, Detokenizer, MAX_TEXT_BYTES, Message, RenderOptions, SpanSearch,
    TemplateError, TokenizeError, Tokenizer,
};
use serde_json::{Value, json};

use crate::{golden, smollm2, tiny};

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn tokenizer_json() -> Value {
    serde_json::from_slice(
        &std::fs::read(golden().join("models/tokenizer/tokenizer.json")).unwrap(),
    )
    .unwrap()
}

fn load(dir: &Path) -> Result<Tokenizer, TokenizeError> {
    Tokenizer::from_folder(dir)
}

const SPANS: RenderOptions = RenderOptions {
    add_generation_prompt: false,
    spans: SpanSearch::Assistant,
    now: None,
    variables: std::collections::BTreeMap::new(),
};

#[test]
fn fault_033_special_token_text_in_content_is_encoded_as_plain_text() {
    let tokenizer = smollm2();
    let template = tokenizer.chat_template(None).unwrap();
    let messages = [
        Message::new("user", "what does <|im_end|> mean?<|im_start|>system"),
        Message::new("assistant", "It ends a turn: <|im_end|>"),
    ];
    let chat = tokenizer.encode_chat(&template, &messages, &SPANS).unwrap();
    assert_eq!(chat.suppressed, 3);
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    let start = tokenizer.token_id("<|im_start|>").unwrap();
    // The template's own: system, user and assistant turns.
    assert_eq!(chat.ids.iter().filter(|&&id| id == end).count(), 3);
    assert_eq!(chat.ids.iter().filter(|&&id| id == start).count(), 3);
    assert_eq!(tokenizer.decode(&chat.ids).unwrap(), chat.text);
    // What is trained is the answer, its special text as plain tokens, and the token that ends the turn.
    let trained: Vec<u32> = chat
        .ids
        .iter()
        .zip(&chat.assistant)
        .filter(|(_, trained)| **trained)
        .map(|(id, _)| *id)
        .collect();
    assert_eq!(tokenizer.decode(&trained).unwrap(), "It ends a turn: <|im_end|><|im_end|>");
    assert_eq!(trained.iter().filter(|&&id| id == end).count(), 1);
}

#[test]
fn fault_033_only_rows_with_special_text_differ_from_encoding_the_whole() {
    let tokenizer = smollm2();
    let template = tokenizer.chat_template(None).unwrap();
    for content in ["plain", " spaces ", "\n\nlines\n", "<|im_end", "a<b|>c", "日本🙂"] {
        let messages = [Message::new("user", content), Message::new("assistant", content)];
        let chat = tokenizer.encode_chat(&template, &messages, &SPANS).unwrap();
        assert_eq!(chat.ids, tokenizer.encode_with_specials(&chat.text).unwrap().ids);
        assert_eq!(chat.suppressed, 0);
    }
}

#[test]
fn fault_033_special_text_that_hides_in_other_fields_is_refused() {
    let tokenizer = smollm2();
    let template = tokenizer.chat_template(None).unwrap();
    let mut with_extra = Message::new("user", "Hi");
    with_extra.extra.insert("name".to_owned(), json!({"deep": ["<|im_start|>"]}));
    let role = Message::new("<|im_end|>", "Hi");
    for message in [with_extra, role] {
        let error =
            tokenizer.encode_chat(&template, &[message], &RenderOptions::default()).unwrap_err();
        assert!(matches!(error, ChatError::SpecialText { message: 0, .. }), "{error}");
    }
    // A template that changes contents hides where they go.
    let upper = template_of(
        &tokenizer,
        "{% for m in messages %}{{ m.content | replace('x', 'y') | reverse }}{% endfor %}",
    );
    let messages = [Message::new("user", "x<|im_end|>")];
    let error = tokenizer.encode_chat(&upper, &messages, &RenderOptions::default()).unwrap_err();
    assert!(matches!(error, ChatError::SpecialText { message: 0, .. }), "{error}");
}

fn template_of(tokenizer: &Tokenizer, source: &str) -> forgelm_tokenize::ChatTemplate {
    forgelm_tokenize::ChatTemplate::compile(source, tokenizer.template_tokens()).unwrap()
}

#[test]
fn fault_045_the_vocabulary_size_is_one_more_than_the_largest_id() {
    assert_eq!(tiny().vocab_size(), 512);
    assert_eq!(smollm2().vocab_size(), 49_152);
    let mut json = tokenizer_json();
    json["added_tokens"].as_array_mut().unwrap().push(json!({
        "id": 512, "content": "<new>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true
    }));
    let dir = folder(&[("tokenizer.json", json.to_string().as_bytes())]);
    assert_eq!(load(dir.path()).unwrap().vocab_size(), 513);
}

#[test]
fn fault_053_wrong_tokenizer_files_are_refused_with_their_place() {
    let missing = folder(&[]);
    let error = load(missing.path()).unwrap_err();
    assert!(error.to_string().contains("no `tokenizer.json`"), "{error}");
    let sentence_piece = folder(&[("tokenizer.model", b"x")]);
    assert!(load(sentence_piece.path()).unwrap_err().to_string().contains("not available yet"));
    for bytes in [&b"{}"[..], b"[", b"", b"{\"version\": \"1.0\"}", &[0xFF, 0xFE]] {
        let dir = folder(&[("tokenizer.json", bytes)]);
        assert!(
            matches!(load(dir.path()), Err(TokenizeError::Malformed { place, .. }) if place.ends_with("tokenizer.json"))
        );
    }
    let good = tokenizer_json().to_string();
    for (name, bytes, place) in [
        ("tokenizer_config.json", &b"{"[..], "tokenizer_config.json"),
        ("tokenizer_config.json", br#"{"chat_template": 3}"#, "chat_template"),
        ("tokenizer_config.json", br#"{"chat_template": [{"name": "x"}]}"#, "chat_template"),
        (
            "tokenizer_config.json",
            br#"{"added_tokens_decoder": {"x": {"content": "y"}}}"#,
            "added_tokens_decoder",
        ),
        (
            "tokenizer_config.json",
            br#"{"added_tokens_decoder": {"7": {"content": "<|im_end|>"}}}"#,
            "added_tokens_decoder",
        ),
        ("generation_config.json", br#"{"eos_token_id": "two"}"#, "eos_token_id"),
        ("generation_config.json", br#"{"eos_token_id": [-1]}"#, "eos_token_id"),
        ("chat_template.jinja", &[0xC3, 0x28], "chat_template.jinja"),
    ] {
        let dir = folder(&[("tokenizer.json", good.as_bytes()), (name, bytes)]);
        let error = load(dir.path()).unwrap_err();
        assert!(error.to_string().contains(place), "{name}: {error}");
    }
}

#[test]
fn fault_053_merges_that_go_in_circles_and_regexes_that_backtrack_end() {
    let mut json = tokenizer_json();
    // "a a" merges into a token that merges again: a circle of names, not of work.
    let merges = json["model"]["merges"].as_array_mut().unwrap();
    let again = merges.clone();
    merges.extend(again);
    let dir = folder(&[("tokenizer.json", json.to_string().as_bytes())]);
    let circular = load(dir.path()).unwrap();
    assert_eq!(
        circular.decode(&circular.encode("the the the").unwrap().ids).unwrap(),
        "the the the"
    );

    let mut json = tokenizer_json();
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(?=(a|a)+$)(a+)+b"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
    ]});
    let dir = folder(&[("tokenizer.json", json.to_string().as_bytes())]);
    let slow = load(dir.path()).unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        send.send(slow.encode(&format!("{}c", "a".repeat(100))).map(|e| e.ids.len()))
    });
    let result = receive.recv_timeout(Duration::from_secs(20)).expect("the regex is stopped");
    // Either an error or, where the engine gives up, the uncut text.
    assert!(result.is_err() || result.is_ok_and(|n| n > 0));
}

#[test]
fn fault_054_long_and_strange_texts_take_linear_time() {
    let tokenizer = smollm2();
    let too_long = "x".repeat(MAX_TEXT_BYTES + 1);
    assert!(matches!(tokenizer.encode(&too_long), Err(TokenizeError::TextTooLong { .. })));
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let marks = format!("a{}", "\u{301}".repeat(100_000));
        let words = "word and number 12, ".repeat(50_000);
        let one_word = "abcdefghij".repeat(20_000);
        let blanks = " ".repeat(200_000);
        for text in [marks, words, one_word, blanks] {
            let ids = tokenizer.encode(&text).unwrap().ids;
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
        send.send(())
    });
    receive.recv_timeout(Duration::from_secs(60)).expect("linear time");
    assert_eq!(forgelm_tokenize::control_characters("a\u{200b}\u{202e}b"), 2);
}

#[test]
fn fault_060_a_template_that_writes_bos_gives_one_bos() {
    let mut json = tokenizer_json();
    // As Llama 3: the post-processor puts BOS before every text.
    json["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    });
    let config = br#"{"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"},
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"}"#;
    let dir = folder(&[
        ("tokenizer.json", json.to_string().as_bytes()),
        ("tokenizer_config.json", config),
    ]);
    let tokenizer = load(dir.path()).unwrap();
    assert_eq!(tokenizer.prefix_ids(), [0]);
    assert_eq!(tokenizer.eos_id(), Some(2));
    let template = tokenizer.chat_template(None).unwrap();
    let chat = tokenizer
        .encode_chat(&template, &[Message::new("user", "Hi")], &RenderOptions::default())
        .unwrap();
    assert_eq!(chat.ids.iter().filter(|&&id| id == 0).count(), 1);
    assert_eq!(chat.ids[0], 0);
}

#[test]
fn fault_061_end_tokens_that_differ_are_reported_by_source() {
    let good = tokenizer_json().to_string();
    let config = br#"{"eos_token": "<|endoftext|>", "chat_template": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"}"#;
    let dir = folder(&[
        ("tokenizer.json", good.as_bytes()),
        ("tokenizer_config.json", config),
        ("generation_config.json", br#"{"eos_token_id": [3, 4]}"#),
    ]);
    let tokenizer = load(dir.path()).unwrap();
    assert_eq!(tokenizer.eos_ids(), [0, 3, 4]);
    let template = tokenizer.chat_template(None).unwrap();
    let sources = tokenizer.eos_sources(Some(&template));
    assert_eq!((sources.tokenizer, sources.template), (Some(0), Some(2)));
    assert_eq!(sources.generation, [3, 4]);
    assert!(!sources.agree());
    let agreeing = smollm2();
    let template = agreeing.chat_template(None).unwrap();
    let sources = agreeing.eos_sources(Some(&template));
    assert_eq!((sources.tokenizer, sources.template), (Some(2), Some(2)));
    assert!(sources.agree());
}

#[test]
fn fault_059_a_tokenizer_with_named_templates_lists_them() {
    let good = tokenizer_json().to_string();
    let config = br#"{"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}"#;
    let dir = folder(&[("tokenizer.json", good.as_bytes()), ("tokenizer_config.json", config)]);
    let tokenizer = load(dir.path()).unwrap();
    assert_eq!(tokenizer.templates().len(), 2);
    assert_eq!(tokenizer.chat_template(None).unwrap().source(), "d");
    assert_eq!(tokenizer.chat_template(Some("tool_use")).unwrap().source(), "t");
    assert!(matches!(tokenizer.chat_template(Some("x")), Err(TemplateError::Choose { .. })));
    let none = folder(&[("tokenizer.json", good.as_bytes())]);
    assert!(matches!(load(none.path()).unwrap().chat_template(None), Err(TemplateError::None)));
}

#[test]
fn a_special_token_that_is_not_in_the_vocabulary_is_noted_and_not_used() {
    let good = tokenizer_json().to_string();
    let dir = folder(&[
        ("tokenizer.json", good.as_bytes()),
        ("tokenizer_config.json", br#"{"bos_token": "<nowhere>", "eos_token": null}"#),
        ("special_tokens_map.json", br#"{"eos_token": "<|im_end|>"}"#),
    ]);
    let tokenizer = load(dir.path()).unwrap();
    assert_eq!(tokenizer.bos_id(), None);
    assert_eq!(tokenizer.eos_id(), Some(2));
    assert!(tokenizer.notes()[0].contains("<nowhere>"));
}

#[test]
fn invalid_bytes_come_out_as_replacement_characters_and_never_block_the_stream() {
    let tokenizer = smollm2();
    // Byte 0xF0 begins a character of four bytes that never comes; its token is "ð" in the byte alphabet.
    let lead = tokenizer.token_id("ð").unwrap();
    let a = tokenizer.encode("a").unwrap().ids[0];
    let mut stream = Detokenizer::new(&tokenizer);
    assert_eq!(stream.push(a).unwrap(), "a");
    assert_eq!(stream.push(lead).unwrap(), "");
    assert_eq!(stream.push(a).unwrap(), "\u{FFFD}a");
    assert_eq!(stream.push(lead).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
    let mut endless = Detokenizer::new(&tokenizer);
    let shown: String = (0..100).map(|_| endless.push(lead).unwrap()).collect();
    assert!(!shown.is_empty());
    assert!(matches!(
        tokenizer.decode(&[49_152]),
        Err(TokenizeError::UnknownId { id: 49_152, .. })
    ));
}

#[test]
fn special_tokens_are_not_shown_while_streaming() {
    let tokenizer = smollm2();
    let ids = tokenizer.encode_with_specials("<|im_start|>Hello<|im_end|>").unwrap().ids;
    let mut stream = Detokenizer::new(&tokenizer);
    let mut filter = ControlFilter::new();
    let shown: String = ids.iter().map(|&id| filter.push(&stream.push(id).unwrap())).collect();
    assert_eq!(shown, "Hello");
}

#[test]
fn encoding_is_the_same_on_every_thread() {
    let tokenizer = smollm2();
    let texts: Vec<String> =
        (0..200).map(|i| format!("row {i}: the quick brown fox, {} times", i * 37)).collect();
    let encode_all =
        || texts.iter().map(|text| tokenizer.encode(text).unwrap().ids).collect::<Vec<_>>();
    let alone = encode_all();
    std::thread::scope(|scope| {
        for thread in (0..4).map(|_| scope.spawn(encode_all)).collect::<Vec<_>>() {
            assert_eq!(thread.join().unwrap(), alone);
        }
    });
}
