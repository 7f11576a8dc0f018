//! Ids, offsets, decoded texts, renderings, spans and masks of the Python stack (transformers 5.23.0 and its
//! tokenizers), exact. The files and their generator are described in `tests/data/golden`.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};

use forgelm_tokenize::{
    ChatTemplate, Detokenizer, Message, RenderOptions, SpanSearch, TemplateError, TemplateTokens,
    Tokenizer,
};
use serde_json::Value;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data().join(name)).unwrap()).unwrap()
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::from_folder(&data().join("models").join(name)).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| u32::try_from(id.as_u64().unwrap()).unwrap())
        .collect()
}

fn pairs(value: &Value) -> Vec<(usize, usize)> {
    let number = |v: &Value| usize::try_from(v.as_u64().unwrap()).unwrap();
    value.as_array().unwrap().iter().map(|pair| (number(&pair[0]), number(&pair[1]))).collect()
}

/// The files count code points.
fn in_code_points(text: &str, byte: usize) -> usize {
    text[..byte].chars().count()
}

const MODELS: [(&str, &str); 2] = [("tiny", "tokenizer"), ("smollm2", "smollm2-tokenizer")];

#[test]
fn strings_have_the_reference_ids_offsets_and_decoded_text() {
    let strings = json("tok/strings.json");
    let rows = strings["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 67);
    for (key, folder) in MODELS {
        let tokenizer = tokenizer(folder);
        for row in rows {
            let text = row["text"].as_str().unwrap();
            let encoding = tokenizer.encode_with_specials(text).unwrap();
            assert_eq!(encoding.ids, ids(&row[key]), "{key} {text:?}");
            let offsets: Vec<_> = encoding
                .offsets
                .iter()
                .map(|&(start, end)| (in_code_points(text, start), in_code_points(text, end)))
                .collect();
            assert_eq!(offsets, pairs(&row[format!("{key}_offsets")]), "{key} {text:?}");
            let decoded = tokenizer.decode(&encoding.ids).unwrap();
            assert_eq!(decoded, row[format!("{key}_decoded")].as_str().unwrap(), "{key}");
        }
    }
}

#[test]
fn plain_encoding_is_the_reference_where_no_special_text_is_present_and_has_no_special_token_elsewhere()
 {
    let strings = json("tok/strings.json");
    let mut n_suppressed = 0;
    for (key, folder) in MODELS {
        let tokenizer = tokenizer(folder);
        for row in strings["rows"].as_array().unwrap() {
            let text = row["text"].as_str().unwrap();
            let encoding = tokenizer.encode(text).unwrap();
            if encoding.suppressed == 0 {
                assert_eq!(encoding.ids, ids(&row[key]), "{key} {text:?}");
            } else {
                assert!(encoding.ids.iter().all(|&id| !tokenizer.is_special(id)), "{key} {text:?}");
                assert_eq!(tokenizer.decode(&encoding.ids).unwrap(), text);
                n_suppressed += 1;
            }
        }
    }
    // `<|im_end|>` and `<|endoftext|>` in three texts for both, `<repo_name>` for SmolLM2 only.
    assert_eq!(n_suppressed, 7);
}

#[test]
fn streamed_pieces_are_whole_characters_and_add_up_to_the_decoded_text() {
    let strings = json("tok/strings.json");
    for (key, folder) in MODELS {
        let tokenizer = tokenizer(folder);
        for row in strings["rows"].as_array().unwrap() {
            let text = row["text"].as_str().unwrap();
            let all = tokenizer.encode(text).unwrap().ids;
            let mut stream = Detokenizer::new(&tokenizer);
            let mut joined = String::new();
            for &id in &all {
                let piece = stream.push(id).unwrap();
                assert!(
                    !piece.contains('\u{FFFD}') || text.contains('\u{FFFD}'),
                    "{key} {text:?} {piece:?}"
                );
                joined.push_str(&piece);
            }
            joined.push_str(&stream.finish().unwrap());
            assert_eq!(joined, text, "{key}");
        }
    }
}

struct Case {
    name: String,
    messages: Vec<Message>,
    tokens: TemplateTokens,
    row: Value,
}

fn cases() -> Vec<Case> {
    let chats = json("tok/chats.json");
    let rows = chats["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 30);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let case = |row: &Value| Case {
        name: format!("{} {}", row["template"], row["conversation"]),
        messages: row["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| Message::new(text(&message["role"]), text(&message["content"])))
            .collect(),
        tokens: TemplateTokens {
            bos: text(&row["bos_token"]),
            eos: text(&row["eos_token"]),
            special: ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<s>", "</s>"]
                .map(str::to_owned)
                .to_vec(),
            ..TemplateTokens::default()
        },
        row: row.clone(),
    };
    rows.iter().map(case).collect()
}

fn template(case: &Case, suffix: &str) -> ChatTemplate {
    let name = case.row["template"].as_str().unwrap();
    let path = data().join("tok/templates").join(format!("{name}{suffix}.jinja"));
    ChatTemplate::compile(&std::fs::read_to_string(path).unwrap(), case.tokens.clone()).unwrap()
}

fn assistant_spans_in_code_points(rendered: &forgelm_tokenize::Rendered) -> Vec<(usize, usize)> {
    let text = &rendered.text;
    let ranges = rendered.assistant_ranges();
    ranges.iter().map(|r| (in_code_points(text, r.start), in_code_points(text, r.end))).collect()
}

#[test]
fn fault_058_conversations_are_rendered_byte_for_byte() {
    for case in cases() {
        let template = template(&case, "");
        for (key, add_generation_prompt) in [("text", false), ("text_with_prompt", true)] {
            let options = RenderOptions { add_generation_prompt, ..RenderOptions::default() };
            let rendered = template.render(&case.messages, &options);
            match case.row[key].as_str() {
                Some(text) => assert_eq!(rendered.unwrap().text, text, "{}", case.name),
                None => {
                    let error = case.row["error"].as_str().unwrap();
                    let Err(TemplateError::Raised { line, message }) = rendered else {
                        panic!("{}: {rendered:?}", case.name);
                    };
                    assert_eq!(format!("TemplateError: {message}"), error);
                    assert_eq!(line, 1);
                }
            }
        }
    }
}

#[test]
fn templates_with_generation_tags_give_the_reference_text_and_spans() {
    for case in cases() {
        let options = RenderOptions { spans: SpanSearch::Assistant, ..RenderOptions::default() };
        let rendered = template(&case, "-training").render(&case.messages, &options).unwrap();
        assert_eq!(rendered.text, case.row["training_text"].as_str().unwrap(), "{}", case.name);
        let spans = assistant_spans_in_code_points(&rendered);
        assert_eq!(spans, pairs(&case.row["assistant_spans"]), "{}", case.name);
    }
}

#[test]
fn templates_without_generation_tags_give_the_same_spans_as_with_them() {
    let mut n = 0;
    for case in cases().into_iter().filter(|case| case.row["text"].is_string()) {
        let options = RenderOptions { spans: SpanSearch::Assistant, ..RenderOptions::default() };
        let rendered = template(&case, "").render(&case.messages, &options).unwrap();
        let spans = assistant_spans_in_code_points(&rendered);
        assert_eq!(spans, pairs(&case.row["assistant_spans"]), "{}", case.name);
        n += 1;
    }
    assert_eq!(n, 27);
}

#[test]
fn chat_encodings_have_the_reference_ids_and_masks() {
    let tokenizer = tokenizer("smollm2-tokenizer");
    let options = RenderOptions { spans: SpanSearch::Assistant, ..RenderOptions::default() };
    let mut n_suppressed = 0;
    for case in cases() {
        let template = template(&case, "-training");
        let expected = ids(&case.row["ids"]);
        let whole =
            tokenizer.encode_with_specials(case.row["training_text"].as_str().unwrap()).unwrap();
        assert_eq!(whole.ids, expected, "{}", case.name);
        let chat = tokenizer.encode_chat(&template, &case.messages, &options).unwrap();
        if chat.suppressed > 0 {
            // The reference lets a user's text become a special token; we do not.
            n_suppressed += chat.suppressed;
            continue;
        }
        assert_eq!(chat.ids, expected, "{}", case.name);
        let mask: Vec<u32> = chat.assistant.iter().map(|&a| u32::from(a)).collect();
        assert_eq!(mask, ids(&case.row["assistant_mask"]), "{}", case.name);
    }
    assert_eq!(
        n_suppressed, 6,
        "the conversation `specials` has two such texts under each template"
    );
}

#[test]
fn the_reference_trainers_batch_is_reproduced_with_the_tokenizers_own_template() {
    let tokenizer = tokenizer("tokenizer");
    let template = tokenizer.chat_template(None).unwrap();
    let golden = json("misc/sft_loss.json");
    let case = &golden["assistant_only"];
    let options = RenderOptions { spans: SpanSearch::Assistant, ..RenderOptions::default() };
    for (i, row) in case["data"].as_array().unwrap().iter().enumerate() {
        let messages: Vec<Message> = row["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| Message::new(m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
            .collect();
        let chat = tokenizer.encode_chat(&template, &messages, &options).unwrap();
        let n = chat.ids.len();
        assert_eq!(chat.ids, ids(&case["batch"]["input_ids"][i])[..n], "row {i}");
        let trained: Vec<bool> = case["batch"]["labels"][i]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l.as_i64().unwrap() >= 0)
            .collect();
        assert_eq!(chat.assistant, trained[..n], "row {i}");
        assert!(trained[n..].iter().all(|trained| !trained));
    }
}
