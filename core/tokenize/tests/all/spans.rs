use forgelm_tokenize::{Message, RenderOptions, SpanKind, SpanSearch, TemplateError};

use crate::template;

const CHAT_ML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}";

/// The assistant's turns, and the contents by message.
type Found = (Vec<String>, Vec<(usize, String)>);

fn spans(source: &str, messages: &[Message]) -> Result<Found, TemplateError> {
    let options = RenderOptions { spans: SpanSearch::Assistant, ..RenderOptions::default() };
    let rendered = template(source).render(messages, &options)?;
    let text = |range: std::ops::Range<usize>| rendered.text[range].to_owned();
    let assistant = rendered.assistant_ranges().into_iter().map(text).collect();
    let content = rendered.spans.iter().filter_map(|span| match span.kind {
        SpanKind::Content { message } => {
            Some((message, rendered.text[span.start..span.end].to_owned()))
        }
        SpanKind::Assistant => None,
    });
    Ok((assistant, content.collect()))
}

fn turn(answer: &str) -> Vec<Message> {
    vec![Message::new("user", "Q"), Message::new("assistant", answer)]
}

#[test]
fn a_span_is_the_content_and_the_token_that_ends_the_turn() {
    let (assistant, content) = spans(CHAT_ML, &turn("A")).unwrap();
    assert_eq!(assistant, ["A<|im_end|>"]);
    assert_eq!(content, [(0, "Q".to_owned()), (1, "A".to_owned())]);
    // With white space before the token, it and the token belong to the turn.
    let spaced = "{% for m in messages %}{{ m.content }}\n</s>\n{% endfor %}";
    assert_eq!(spans(spaced, &turn("A")).unwrap().0, ["A\n</s>"]);
    // A token that begins the next turn does not end this one; neither does one after other text.
    let bos_next = "{% for m in messages %}<s>{{ m.content }}{% endfor %}<s>";
    assert_eq!(spans(bos_next, &turn("A")).unwrap().0, ["A"]);
    let far = "{% for m in messages %}{{ m.content }} (end) </s>{% endfor %}";
    assert_eq!(spans(far, &turn("A")).unwrap().0, ["A"]);
}

#[test]
fn white_space_at_the_edges_is_the_contents_only_where_the_template_keeps_it() {
    let answer = "\n  x \n";
    assert_eq!(spans(CHAT_ML, &turn(answer)).unwrap().0, ["\n  x \n<|im_end|>"]);
    let trimmed = CHAT_ML.replace("m.content", "(m.content | trim)");
    assert_eq!(spans(&trimmed, &turn(answer)).unwrap().0, ["x<|im_end|>"]);
    let left = CHAT_ML.replace("m.content", "m.content.lstrip()");
    assert_eq!(spans(&left, &turn(answer)).unwrap().0, ["x \n<|im_end|>"]);
    let right = CHAT_ML.replace("m.content", "m.content.rstrip()");
    assert_eq!(spans(&right, &turn(answer)).unwrap().0, ["\n  x<|im_end|>"]);
    // Only the user's is trimmed.
    let some = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content | trim }}{% else %}{{ m.content }}{% endif %}</s>{% endfor %}";
    let messages = [Message::new("user", " q "), Message::new("assistant", " a ")];
    let (assistant, content) = spans(some, &messages).unwrap();
    assert_eq!(assistant, [" a </s>"]);
    assert_eq!(content, [(0, "q".to_owned()), (1, " a ".to_owned())]);
    // White space alone.
    assert_eq!(spans(&trimmed, &turn(" \n ")).unwrap().0, ["<|im_end|>"]);
    assert_eq!(spans(CHAT_ML, &turn(" \n ")).unwrap().0, [" \n <|im_end|>"]);
}

#[test]
fn contents_that_repeat_or_look_alike_are_told_apart() {
    let messages = [
        Message::new("user", "same"),
        Message::new("assistant", "same"),
        Message::new("user", "same"),
        Message::new("assistant", "same"),
    ];
    let (assistant, content) = spans(CHAT_ML, &messages).unwrap();
    assert_eq!(assistant, ["same<|im_end|>", "same<|im_end|>"]);
    assert_eq!(content.iter().map(|(message, _)| *message).collect::<Vec<_>>(), [0, 1, 2, 3]);
    // Contents that already hold private characters.
    let private = "\u{F0000}\u{F0001}\u{F0002}";
    assert_eq!(spans(CHAT_ML, &turn(private)).unwrap().0, [format!("{private}<|im_end|>")]);
}

#[test]
fn a_template_that_changes_or_repeats_the_answer_is_refused() {
    for change in [
        "m.content.split('x')[-1]",
        "(m.content | reverse)",
        "m.content ~ m.content",
        "m.content[1:]",
        "'' ",
    ] {
        let source = CHAT_ML.replace("m.content", change);
        let error = spans(&source, &turn("axb")).unwrap_err();
        assert!(matches!(error, TemplateError::AssistantLost { message: 1 }), "{change}: {error}");
        assert!(error.to_string().contains("{% generation %}"), "{error}");
    }
    // The same template with tags says itself what the answer is.
    let tagged = "{% for m in messages %}{% generation %}{{ m.content | reverse }}{% endgeneration %}{% endfor %}";
    assert_eq!(spans(tagged, &turn("axb")).unwrap().0, ["Q", "bxa"]);
}

#[test]
fn a_content_that_the_template_looks_into_does_not_disturb_the_others() {
    // As templates for models that think: earlier thoughts are dropped.
    let source = "{% for m in messages %}{% if '</t>' in m.content %}{{ m.content.split('</t>')[1] }}{% else %}{{ m.content }}{% endif %}</s>{% endfor %}";
    let messages = [Message::new("user", "a</t>b"), Message::new("assistant", "c")];
    let (assistant, content) = spans(source, &messages).unwrap();
    assert_eq!(assistant, ["c</s>"]);
    assert_eq!(content, [(1, "c".to_owned())]);
}

#[test]
fn a_message_that_the_template_leaves_out_is_reported_and_only_the_assistants_matters() {
    let source = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}</s>{% endif %}{% endfor %}";
    let messages =
        [Message::new("system", "S"), Message::new("user", "U"), Message::new("assistant", "A")];
    let options = RenderOptions { spans: SpanSearch::Assistant, ..RenderOptions::default() };
    let rendered = template(source).render(&messages, &options).unwrap();
    assert_eq!(rendered.text, "U</s>A</s>");
    assert_eq!(rendered.lost, [0]);
    assert_eq!(rendered.assistant_ranges(), std::iter::once(5..10).collect::<Vec<_>>());
}

#[test]
fn the_token_that_ends_a_turn_is_found_without_a_conversation() {
    assert_eq!(template(CHAT_ML).end_of_turn().as_deref(), Some("<|im_end|>"));
    assert_eq!(template("{% for m in messages %}{{ m.content }}{% endfor %}").end_of_turn(), None);
}
