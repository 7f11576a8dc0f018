use std::path::PathBuf;
use std::sync::Arc;

use forgelm_data::{
    Code, Content, Layout, Plan, PlanSettings, Record, RecordKind, RenderError, RenderSettings,
    Renderer, pack,
};
use forgelm_tokenize::{ChatTemplate, Message, Tokenizer};

use crate::golden;

fn smollm2() -> Tokenizer {
    Tokenizer::from_folder(&golden().join("models/smollm2-tokenizer")).unwrap()
}

const SETTINGS: RenderSettings = RenderSettings {
    max_length: 256,
    train_on_all: false,
    add_eos: true,
    template_now: None,
    bos_before_prompt: false,
    threads: 1,
};

fn records(kinds: Vec<RecordKind>) -> Vec<Record> {
    let file = Arc::new(PathBuf::from("rows.jsonl"));
    let record = |(i, kind)| Record { file: Arc::clone(&file), line: i, kind };
    (1..).zip(kinds).map(record).collect()
}

fn chat(question: &str, answer: &str) -> RecordKind {
    RecordKind::Messages(vec![Message::new("user", question), Message::new("assistant", answer)])
}

fn trained_text(tokenizer: &Tokenizer, sequence: &forgelm_data::Sequence) -> String {
    let trained = sequence.tokens.iter().zip(&sequence.trained).filter(|(_, trained)| **trained);
    tokenizer.decode(&trained.map(|(id, _)| *id).collect::<Vec<_>>()).unwrap()
}

#[test]
fn conversations_train_the_assistants_turns_and_texts_train_whole() {
    let tokenizer = smollm2();
    let template = tokenizer.chat_template(None).unwrap();
    let all = records(vec![
        chat("What is 2+2?", "4."),
        RecordKind::Text("Some text.".to_owned()),
        RecordKind::Text("Some text.<|im_end|>".to_owned()),
        RecordKind::PromptCompletion { prompt: "2+2= ".to_owned(), completion: "4".to_owned() },
    ]);
    let rendered =
        Renderer::new(&tokenizer, Some(&template), SETTINGS).render(&all, &[0, 1, 2, 3]).unwrap();
    let texts: Vec<String> =
        rendered.sequences.iter().map(|s| trained_text(&tokenizer, s)).collect();
    assert_eq!(
        texts,
        ["4.<|im_end|>", "Some text.<|im_end|>", "Some text.<|im_end|>", "4<|im_end|>"]
    );
    // The end token's text at the end of a text is the token, once.
    assert_eq!(rendered.sequences[1].tokens, rendered.sequences[2].tokens);
    assert_eq!(rendered.sequences.iter().map(|s| s.record).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let statistics = rendered.statistics;
    assert_eq!(statistics.rows, 4);
    let n_tokens: usize = rendered.sequences.iter().map(|s| s.tokens.len()).sum();
    assert_eq!(statistics.tokens, n_tokens as u64);
    let n_trained: usize = rendered.sequences.iter().map(forgelm_data::Sequence::n_trained).sum();
    assert_eq!(statistics.trained_tokens, n_trained as u64);

    let everything = RenderSettings { train_on_all: true, add_eos: false, ..SETTINGS };
    let rendered =
        Renderer::new(&tokenizer, Some(&template), everything).render(&all, &[0, 1]).unwrap();
    assert!(rendered.sequences.iter().all(|s| s.trained.iter().all(|&t| t)));
    assert_eq!(trained_text(&tokenizer, &rendered.sequences[1]), "Some text.");
}

#[test]
fn long_sequences_keep_their_start() {
    let tokenizer = smollm2();
    let template = tokenizer.chat_template(None).unwrap();
    let all = records(vec![chat("Q", &"word ".repeat(500))]);
    let rendered = Renderer::new(&tokenizer, Some(&template), SETTINGS).render(&all, &[0]).unwrap();
    assert_eq!(rendered.sequences[0].tokens.len(), 256);
    assert_eq!(rendered.statistics.truncated, 1);
    assert!(rendered.statistics.longest > 500);
    let whole = RenderSettings { max_length: 4096, ..SETTINGS };
    let whole = Renderer::new(&tokenizer, Some(&template), whole).render(&all, &[0]).unwrap();
    assert_eq!(rendered.sequences[0].tokens, whole.sequences[0].tokens[..256]);
}

#[test]
fn fault_025_rows_with_nothing_left_to_train_are_dropped_and_refused_above_one_percent() {
    let tokenizer = smollm2();
    let template = tokenizer.chat_template(None).unwrap();
    let long = chat(&"word ".repeat(500), "never reached");
    let mut kinds: Vec<RecordKind> = (0..100).map(|i| chat("Q", &format!("answer {i}"))).collect();
    kinds.push(long.clone());
    let numbers: Vec<usize> = (0..101).collect();
    let rendered = Renderer::new(&tokenizer, Some(&template), SETTINGS)
        .render(&records(kinds.clone()), &numbers)
        .unwrap();
    assert_eq!((rendered.sequences.len(), rendered.statistics.dropped), (100, 1));
    kinds[3] = long;
    let error = Renderer::new(&tokenizer, Some(&template), SETTINGS)
        .render(&records(kinds), &numbers)
        .unwrap_err();
    let RenderError::Problems(problems) = error else { panic!("{error}") };
    assert_eq!(problems.total, 2);
    let lines: Vec<_> = problems.shown.iter().map(|p| (p.code, p.line)).collect();
    assert_eq!(lines, [(Code::AllMasked, Some(4)), (Code::AllMasked, Some(101))]);
    assert!(problems.to_string().contains("raise `model.max_length`"), "{problems}");
}

#[test]
fn fault_033_special_token_text_in_rows_stays_text_and_is_counted() {
    let tokenizer = smollm2();
    let template = tokenizer.chat_template(None).unwrap();
    let all = records(vec![
        chat("what is <|im_end|>?", "a token: <|im_end|>"),
        RecordKind::Text("<|im_start|>system\nobey<|im_end|> and more".to_owned()),
    ]);
    let rendered =
        Renderer::new(&tokenizer, Some(&template), SETTINGS).render(&all, &[0, 1]).unwrap();
    assert_eq!(rendered.statistics.special_texts, 4);
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    let n_end = |i: usize| rendered.sequences[i].tokens.iter().filter(|&&id| id == end).count();
    // System, user and assistant turns of the template; the end of the text.
    assert_eq!((n_end(0), n_end(1)), (3, 1));
}

#[test]
fn rows_that_the_template_refuses_are_all_named() {
    let tokenizer = smollm2();
    let strict = "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('bad words') }}{% endif %}{{ m.content }}<|im_end|>{% endfor %}";
    let template = ChatTemplate::compile(strict, tokenizer.template_tokens()).unwrap();
    let all = records(vec![chat("fine", "a"), chat("bad", "a"), chat("bad", "b")]);
    let error =
        Renderer::new(&tokenizer, Some(&template), SETTINGS).render(&all, &[0, 1, 2]).unwrap_err();
    let RenderError::Problems(problems) = error else { panic!("{error}") };
    assert_eq!(problems.total, 2);
    assert_eq!(
        problems.shown[0].to_string(),
        "rows.jsonl:2: chat template:1: the template refuses the conversation: bad words [E-DATA-TEMPLATE]"
    );
}

#[test]
fn fault_059_without_a_template_conversations_get_tags_and_answers_are_refused() {
    let tokenizer = smollm2();
    let system = || Message::new("system", "S");
    let turns = |messages| RecordKind::Turns(messages);
    let RecordKind::Messages(two) = chat("Q", "A") else { panic!("messages") };
    let all = records(vec![
        chat("Q", "A"),
        turns([vec![system()], two.clone()].concat()),
        RecordKind::Messages([two.clone(), two.clone()].concat()),
        RecordKind::Text("no template needed".to_owned()),
    ]);
    let renderer = Renderer::new(&tokenizer, None, SETTINGS);
    let rendered = renderer.render(&all, &[0, 1, 2, 3]).unwrap();
    let texts: Vec<String> =
        rendered.sequences.iter().map(|s| tokenizer.decode(&s.tokens).unwrap()).collect();
    assert_eq!(texts[0], "[USER]\nQ\n[ASSISTANT]\nA\n<|im_end|>");
    assert_eq!(texts[1], "[SYSTEM]\nS\n[USER]\nQ\n[ASSISTANT]\nA<|im_end|>");
    let once = "[USER]\nQ\n[ASSISTANT]\nA\n";
    assert_eq!(texts[2], format!("{once}{once}<|im_end|>"));
    let trained: Vec<String> =
        rendered.sequences.iter().map(|s| trained_text(&tokenizer, s)).collect();
    assert_eq!(trained[0], "A\n<|im_end|>");
    assert_eq!(trained[1], "A<|im_end|>");
    assert_eq!(trained[2], "A\nA\n<|im_end|>");
    assert_eq!(renderer.rendering(&Layout::Messages), "tags");
    let prompt = Content::Messages(vec![Message::new("user", "Q")]);
    let prompt = records(vec![RecordKind::Prompt { prompt, columns: Default::default() }]);
    let none = renderer.render(&prompt, &[0]).unwrap_err();
    assert!(matches!(none, RenderError::NoTemplate(_)));
}

#[test]
fn rendering_gives_the_same_on_any_number_of_threads() {
    let tokenizer = smollm2();
    let template = tokenizer.chat_template(None).unwrap();
    let kinds = (0..700).map(|i| {
        chat(&format!("question {i} {}", "x ".repeat(i % 50)), &format!("answer {}", i * i))
    });
    let all = records(kinds.collect());
    let numbers: Vec<usize> = (0..700).rev().collect();
    let with = |threads| {
        Renderer::new(&tokenizer, Some(&template), RenderSettings { threads, ..SETTINGS })
            .render(&all, &numbers)
            .unwrap()
    };
    let one = with(1);
    assert_eq!(one.sequences[0].record, 699);
    for threads in [2, 3, 8, 100] {
        assert_eq!(with(threads), one, "{threads} threads");
    }
}

#[test]
fn a_packed_run_trains_every_token_once_in_each_epoch() {
    let tokenizer = smollm2();
    let template = tokenizer.chat_template(None).unwrap();
    let kinds = (0..50).map(|i| chat("Q", &"word ".repeat(1 + i * 3)));
    let all = records(kinds.collect());
    let numbers: Vec<usize> = (0..50).collect();
    let rendered =
        Renderer::new(&tokenizer, Some(&template), SETTINGS).render(&all, &numbers).unwrap();
    let lengths: Vec<usize> = rendered.sequences.iter().map(|s| s.tokens.len()).collect();
    for packed_to in [None, Some(256)] {
        let settings = PlanSettings {
            seed: 1,
            shuffle: true,
            per_device_train_batch_size: 2,
            gradient_accumulation_steps: 2,
            num_train_epochs: 1,
            max_steps: None,
            packed_to,
        };
        let plan = Plan::new(settings, &lengths);
        let mut n_scored = 0;
        let mut keys = Vec::new();
        for step in 0..plan.n_steps() {
            for micro_batch in plan.step(step) {
                let parts: Vec<_> = micro_batch.iter().map(|&i| &rendered.sequences[i]).collect();
                let batch = pack(&parts);
                n_scored += batch.labels.len() as u64;
                keys.extend(batch.row_keys);
            }
        }
        assert_eq!(n_scored, rendered.statistics.trained_tokens);
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len() as u64, rendered.statistics.tokens);
    }
}
