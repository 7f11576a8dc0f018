//! The cases of bad configs that are promised to be named.

use std::time::{Duration, Instant};

use forgelm_config::{
    Code, Color, Place, Secret, config_hash, load, load_bytes, render, resolved_yaml,
};

use crate::{errors, loads, only, problems, warnings, with};

#[test]
fn fault_001_unknown_keys_are_all_named_with_place_and_nearest_key() {
    let text = "model:\n  name_or_path: m\n  max_lenght: 5\ndata:\n  dataset_name_or_path: d\n\
                training:\n  lerning_rate: 1e-4\nlora:\n  learning_rate: 3\nfoo: 1\n";
    let expected = "\
run.yaml:3:3: `model.max_lenght` is not a known key
  hint: did you mean `max_length`?
run.yaml:7:3: `training.lerning_rate` is not a known key
  hint: did you mean `learning_rate`?
run.yaml:9:3: `lora.learning_rate` is not a known key
  hint: did you mean `training.learning_rate`?
run.yaml:10:1: `foo` is not a known key
4 problems in `run.yaml`; nothing was started
";
    assert_eq!(render(&problems(text), Color::Off), expected);
}

#[test]
fn fault_001_unknown_keys_in_nested_sections_and_list_items_are_named() {
    for (more, place, key) in [
        ("evaluation:\n  safety:\n    enabld: true\n", (7, 5), "evaluation.safety.enabld"),
        ("merge:\n  models:\n  - {path: a, wieght: 1}\n", (7, 15), "merge.models[0].wieght"),
        ("pipeline:\n  stages:\n  - name: a\n    dta: {}\n", (8, 5), "pipeline.stages[0].dta"),
        ("signing:\n  key: x\n", (6, 3), "signing.key"),
    ] {
        let found = errors(&with(more));
        assert_eq!(found.len(), 1, "{more}");
        assert_eq!(found[0].code, Code::UnknownKey);
        assert_eq!(found[0].key, key);
        assert_eq!(found[0].place, Some(Place { line: place.0, column: place.1 }));
    }
}

#[test]
fn fault_002_duplicate_keys_show_both_places_and_do_not_hide_other_problems() {
    let text = "model:\n  name_or_path: m\n  name_or_path: n\ndata:\n  dataset_name_or_path: d\n\
                lora: {r: 0}\nmodel: {}\n";
    let expected = "\
run.yaml:3:3: `model.name_or_path` is written twice; first written at line 2, column 3
  hint: keep one of the two
run.yaml:6:11: `lora.r` is `0`; expected a whole number from 1 to 65536
run.yaml:7:1: `model` is written twice; first written at line 1, column 1
  hint: keep one of the two
3 problems in `run.yaml`; nothing was started
";
    assert_eq!(render(&problems(text), Color::Off), expected);
}

#[test]
fn fault_002_duplicate_keys_beside_a_merge_are_refused_and_a_written_key_wins_over_a_merged_one() {
    let text = "model: &m\n  name_or_path: m\n  max_length: 64\ndata: {dataset_name_or_path: d}\n\
                pipeline:\n  stages:\n  - name: a\n    training: {trainer_type: sft}\n    model:\n      \
                <<: *m\n      max_length: 7\n";
    let run = loads(text).run;
    let model = run.pipeline.unwrap().stages[0].model.clone().unwrap();
    assert_eq!((model.name_or_path.as_str(), model.max_length), ("m", 7));
    let twice = only(&format!("{text}      max_length: 8\n"));
    assert!(
        twice.starts_with(
            "run.yaml:12:7: `pipeline.stages[0].model.max_length` is written twice; first written \
             at line 11, column 7"
        ),
        "{twice}"
    );
    let twice = only(&format!("{text}      <<: *m\n"));
    assert!(twice.contains("first written at line 10, column 7"), "{twice}");
    let free =
        only(&with("training:\n  rope_scaling:\n    type: linear\n    factor: 2\n    factor: 3\n"));
    assert!(free.contains("`training.rope_scaling.factor` is written twice"), "{free}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a bound on time is tested")]
fn fault_003_bombs_and_deep_nesting_and_huge_files_cost_little() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for i in 1..14 {
        let items = vec![format!("*a{}", i - 1); 9].join(", ");
        bomb += &format!("a{i}: &a{i} [{items}]\n");
    }
    let mut merges = String::from("a0: &a0 {k: v}\n");
    for i in 1..60 {
        merges += &format!("a{i}: &a{i} {{<<: [*a{0}, *a{0}, *a{0}]}}\n", i - 1);
    }
    let blocks: String = (0..500).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    let many_keys: String = (0..200_000).map(|i| format!("k{i}: 1\n")).collect();
    for (name, text) in [
        ("alias bomb", bomb),
        ("merge bomb", merges),
        ("flow", "[".repeat(200_000)),
        ("flow maps", "{a: ".repeat(200_000)),
        ("block", blocks),
        ("list in list", "- ".repeat(200_000)),
        ("many keys", many_keys),
        ("huge", "a: b\n".repeat(1_000_000)),
    ] {
        let start = Instant::now();
        let found = problems(&text);
        let took = start.elapsed();
        // the limit of an optimised build; the dev profile does not optimise this crate
        let limit = Duration::from_secs(if cfg!(debug_assertions) { 4 } else { 1 });
        assert!(took < limit, "{name}: {took:?}");
        assert_eq!(found[0].code, Code::TooLarge, "{name}: {}", found[0]);
        assert!(render(&found, Color::Off).len() < 1000, "{name}");
    }
}

#[test]
fn fault_003_messages_stay_short_whatever_is_written() {
    let long = "x".repeat(100_000);
    for text in [
        with(&format!("lora: {{r: {long}}}\n")),
        with(&format!("lora: {{bias: {long}}}\n")),
        with(&format!("? {long}\n: 1\n")),
        with(&format!("training: {{run_name: [{long}]}}\n")),
    ] {
        assert!(render(&problems(&text), Color::Off).len() < 1500);
    }
    let message = only(&with("lora: {r: \"a\\u001b[31m\\u202e\"}\n"));
    assert!(message.contains("\\u{1b}[31m\\u{202e}"), "{message}");
}

#[test]
fn fault_004_two_documents_are_refused() {
    let message = only("model: {name_or_path: m}\n---\ndata: {dataset_name_or_path: d}\n");
    assert!(message.contains("expected one document"), "{message}");
    loads("---\nmodel: {name_or_path: m}\ndata: {dataset_name_or_path: d}\n...\n");
}

#[test]
fn fault_005_tabs_and_utf16_are_named_and_bom_and_line_ends_are_accepted() {
    for (text, line) in
        [("model:\n\tname_or_path: m\n", 2), ("model:\n  name_or_path: m\n\tmax_length: 3\n", 2)]
    {
        let found = errors(text);
        assert!(found[0].message.starts_with("a tab"), "{}", found[0]);
        assert_eq!(found[0].place.map(|p| p.line), Some(line));
    }
    let text = with("");
    for accepted in [
        format!("\u{feff}{text}"),
        text.replace('\n', "\r\n"),
        text.replacen('\n', "\r\n", 2),
        text.trim_end().to_owned(),
    ] {
        assert_eq!(loads(&accepted).run, loads(&text).run);
    }
    let place = loads(&text.replace('\n', "\r\n")).written.place("data.dataset_name_or_path");
    assert_eq!(place, Some(Place { line: 4, column: 3 }));
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let marked = [&[0xff, 0xfe][..], &little].concat();
    for bytes in [little, big, marked] {
        let found = load_bytes(&bytes, "run.yaml").unwrap_err();
        assert_eq!(found[0].message, "the file is UTF-16; expected UTF-8");
    }
    let found = load_bytes(b"model:\n  name_or_path: \"\xff\"\n", "run.yaml").unwrap_err();
    assert_eq!(
        found[0].to_string(),
        "run.yaml:2:18: byte 24 is not UTF-8\n  hint: save the file as UTF-8"
    );
    assert!(load_bytes(text.as_bytes(), "run.yaml").is_ok());
    assert_eq!(load_bytes(b"model: \0\n", "run.yaml").unwrap_err()[0].code, Code::Syntax);
}

#[test]
fn fault_006_numbers_in_every_spelling() {
    for (text, expected) in [
        ("2e-5", 2e-5),
        ("5e-6", 5e-6),
        ("\"2e-5\"", 2e-5),
        (".5", 0.5),
        ("1", 1.0),
        ("0x10", 16.0),
        ("08", 8.0),
        ("!!float 3", 3.0),
    ] {
        let run = loads(&with(&format!("training: {{learning_rate: {text}}}\n"))).run;
        assert!((run.training.learning_rate - expected).abs() < 1e-12, "{text}");
    }
    for (text, expected) in [("1_000", 1000), ("0x10", 16), ("\"3\"", 3), ("3.0", 3), ("08", 8)] {
        let run =
            loads(&with(&format!("training: {{eval_steps: {text}, save_steps: 1000}}\n"))).run;
        assert_eq!(run.training.eval_steps, expected, "{text}");
    }
    let run = loads(&with("training: {weight_decay: -0}\n")).run;
    assert!(run.training.weight_decay.is_sign_positive());
    for text in
        [".nan", ".NaN", ".inf", "-.inf", "1e999", "010", "1:30", "abc", "[1]", "{}", "true"]
    {
        let message = only(&with(&format!("training: {{weight_decay: {text}}}\n")));
        assert!(message.contains("expected a number from 0 to 100"), "{message}");
    }
    for text in ["3.5", ".nan", "true", "[]", "0x"] {
        let message = only(&with(&format!("training: {{save_steps: {text}}}\n")));
        assert!(message.contains("expected a whole number from 1"), "{message}");
    }
}

#[test]
fn fault_006_no_is_text_to_a_text_and_a_boolean_to_a_boolean() {
    let loaded = loads(&with(
        "compliance: {provider_name: no, system_name: yes}\n\
         training: {packing: no, sample_packing: YES}\n",
    ));
    let compliance = loaded.run.compliance.unwrap();
    assert_eq!((compliance.provider_name.as_str(), compliance.system_name.as_str()), ("no", "yes"));
    assert_eq!((loaded.run.training.packing, loaded.run.training.sample_packing), (false, true));
    let message = only(&with("training: {packing: maybe}\n"));
    assert!(message.contains("expected `true` or `false`"), "{message}");
    for text in ["5", "1.0", "true", "1e5", ".inf"] {
        let message = only(&with(&format!("compliance: {{system_version: {text}}}\n")));
        assert!(message.contains(&format!("put it in quotes: \"{text}\"")), "{message}");
    }
    for text in ["\"1.0\"", "'true'", "v1.0", "!!str 1.0", "2026-01-01"] {
        loads(&with(&format!("compliance: {{system_version: {text}}}\n")));
    }
}

#[test]
fn fault_007_zero_negative_and_huge_values_show_the_range() {
    for (key, value, range) in [
        ("lora: {r: 0}", "`0`", "from 1 to 65536"),
        ("lora: {r: -4}", "`-4`", "from 1 to 65536"),
        ("lora: {dropout: 1.5}", "`1.5`", "from 0 to 1"),
        ("training: {learning_rate: -1}", "`-1`", "above 0, up to 100"),
        ("training: {learning_rate: 0}", "`0`", "above 0, up to 100"),
        ("training: {num_train_epochs: 1000000000}", "`1000000000`", "from 1 to 100000"),
        ("training: {num_train_epochs: 10e9}", "`10e9`", "from 1 to 100000"),
        ("training: {seed: 99999999999999999999}", "`99999999999999999999`", "from 0 to"),
        ("data: {dataset_name_or_path: d, validation_split: 1}", "`1`", "from 0 to below 1"),
    ] {
        let text = if key.starts_with("data") {
            format!("model: {{name_or_path: m}}\n{key}\n")
        } else {
            with(&format!("{key}\n"))
        };
        let found = errors(&text);
        assert_eq!((found.len(), found[0].code), (1, Code::OutOfRange), "{key}");
        assert_eq!(found[0].found.as_deref(), Some(value));
        assert!(found[0].to_string().contains(range), "{}", found[0]);
    }
}

#[test]
fn fault_008_contradictory_keys_show_both_places() {
    let message = only(&with("training:\n  packing: true\n  trainer_type: dpo\n"));
    assert!(
        message.starts_with(
            "run.yaml:6:3: `training.packing` is true and `training.trainer_type` (line 7) is `dpo`"
        ),
        "{message}"
    );
    let message = only(&with("pipeline:\n  stages:\n  - name: a\n    merge: {}\n"));
    assert!(message.contains("`pipeline.stages[0].merge` is not allowed here"), "{message}");
    // The seed allows the combination, so it is said and not refused; PiSSA itself is refused at
    // plan time as long as it is not available.
    let both = warnings(&with("lora:\n  method: pissa\n  use_dora: true\n"));
    assert_eq!(
        both,
        [
            "run.yaml:6:3: warning: `lora.method` is `pissa` and `lora.use_dora` (line 7) is true: both apply"
        ]
    );
}

#[test]
fn fault_009_keys_of_another_trainer_are_warned_about() {
    let found = warnings(&with("training:\n  grpo_num_generations: 8\n  dpo_beta: 0.2\n"));
    assert_eq!(
        found,
        [
            "run.yaml:6:3: warning: `training.grpo_num_generations` has no effect: it belongs to grpo, not sft",
            "run.yaml:7:3: warning: `training.dpo_beta` has no effect: it belongs to dpo, not sft",
        ]
    );
}

#[test]
fn fault_010_stages_need_names_trainers_and_folders_of_their_own() {
    let stage = |more: &str| with(&format!("pipeline:\n  stages:\n  - name: a\n    {more}\n"));
    let message = only(&stage("training: {learning_rate: 1e-4}"));
    assert!(message.contains("`pipeline.stages[0].training.trainer_type` is missing"), "{message}");
    let message = only(&with("pipeline: {stages: [{name: A-b}]}\n"));
    assert!(message.contains("1 to 32 of `a`-`z`"), "{message}");
    let message = only(&with("pipeline: {}\n"));
    assert!(message.contains("at least one stage"), "{message}");
    let twice = errors(&with(
        "pipeline:\n  stages:\n\
         \x20 - {name: a, training: {trainer_type: sft, output_dir: x/y}}\n\
         \x20 - {name: a, training: {trainer_type: sft, output_dir: ./x/z/../y/}}\n",
    ));
    assert_eq!(twice.len(), 2);
    assert!(twice[0].message.contains("`pipeline.stages[0].name` (line 7) is too"), "{}", twice[0]);
    assert!(twice[1].message.contains("both write to `./x/y`"), "{}", twice[1]);
}

#[test]
fn fault_013_secrets_are_warned_about_and_never_printed() {
    let text = with("auth:\n  hf_token: hf_verysecret0123\nsynthetic:\n  api_key: sk-verysecret\n");
    let loaded = loads(&text);
    let shown = [
        render(&loaded.warnings, Color::On),
        format!("{loaded:?}"),
        resolved_yaml(&loaded.run),
        config_hash(&loaded.run),
        format!("{:?}", Secret::new("verysecret".to_owned())),
    ]
    .concat();
    assert!(!shown.contains("verysecret"), "{shown}");
    assert!(resolved_yaml(&loaded.run).contains("hf_token: '***REDACTED***'"));
    assert_eq!(loaded.run.auth.unwrap().hf_token.unwrap().expose(), "hf_verysecret0123");
    let found = warnings(&text);
    assert_eq!(
        found[0],
        "run.yaml:6:3: warning: `auth.hf_token` is a secret written in the file\n  hint: set the \
         environment variable HUGGINGFACE_TOKEN"
    );
    assert_eq!(found.len(), 2);
    for (wrong, code) in [
        ("auth: {hf_token: [hf_verysecret0123]}\n", Code::WrongType),
        ("auth: {hf_tken: hf_verysecret0123}\n", Code::UnknownKey),
        ("auth: hf_verysecret0123\n", Code::WrongType),
        ("lora: {r: hf_verysecret0123}\n", Code::WrongType),
        ("auth: {hf_token: '***REDACTED***'}\n", Code::SecretInFile),
        ("signing: {key_file: \"-----BEGIN PRIVATE KEY-----\\nverysecret\"}\n", Code::SecretInFile),
    ] {
        let found = errors(&with(wrong));
        assert_eq!((found.len(), found[0].code), (1, code), "{wrong}");
        assert!(!format!("{found:?}").contains("verysecret"), "{found:?}");
    }
}

#[test]
fn fault_016_mix_ratios_must_fit_the_data_sets() {
    let ratio = |list: &str| {
        format!(
            "model: {{name_or_path: m}}\ndata:\n  dataset_name_or_path: d\n  extra_datasets: [e, f]\n  \
             mix_ratio: {list}\n"
        )
    };
    assert_eq!(loads(&ratio("[1, 0.5, 0]")).run.data.mix_ratio, Some(vec![1.0, 0.5, 0.0]));
    for (list, words) in [
        ("[1, 2]", "`data.mix_ratio` has 2 numbers; expected 3, one for each data set"),
        ("[1]", "`data.mix_ratio` has 1 number; expected 3"),
        ("[0, 0, 0]", "`data.mix_ratio` is all zero"),
        ("[1, -1, 1]", "`data.mix_ratio[1]` is `-1`; expected a number from 0"),
        ("[1, .nan, 1]", "`data.mix_ratio[1]` is `.nan`"),
        ("0.5", "`data.mix_ratio` is `0.5`; expected a list of numbers"),
    ] {
        let message = only(&ratio(list));
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn texts_that_are_no_config_are_named() {
    for (text, words) in [
        ("", "the file is empty; expected a mapping"),
        ("# only a comment\n", "the file is empty"),
        ("---\n", "the file is null"),
        ("- a\n", "the file is a list of 1; expected a mapping"),
        ("hello", "the file is `hello`; expected a mapping"),
        ("model: {name_or_path: m\n", "not valid YAML"),
        ("model: *nowhere\n", "not valid YAML"),
        ("model: &a {name_or_path: *a}\n", "not valid YAML"),
        ("? [a]\n: 1\n", "a key is a list of 1; expected a name"),
        ("<<: 3\n", "expected an alias of a mapping"),
    ] {
        let found = problems(text);
        assert!(found.iter().any(|d| d.message.contains(words)), "{text}: {}", found[0]);
    }
    assert!(load("\u{feff}", "run.yaml").is_err());
}

#[test]
fn nulls_are_refused_where_a_value_is_needed_and_mean_absence_elsewhere() {
    let found = errors("model: null\ndata: ~\nlora:\ntraining: {learning_rate: null}\n");
    assert_eq!(found.len(), 4);
    assert!(found.iter().all(|d| d.code == Code::NullValue));
    let null = loads(&with("evaluation: null\nauth:\ntraining: {run_name: ~, threads: null}\n"));
    assert_eq!(null.run, loads(&with("")).run);
    assert!(!null.written.contains("evaluation"));
}
