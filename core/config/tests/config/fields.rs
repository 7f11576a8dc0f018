//! Every field of every section, by the tables: wrong types, nulls and values out of range are
//! refused, defaults are what the documentation says.

use forgelm_config::spec::{Field, Kind, SectionSpec};
use forgelm_config::{Code, Run, load};

use crate::errors;

/// Calls `visit` for every field, with the sections on the way to it.
fn walk(
    spec: &'static SectionSpec,
    way: &mut Vec<&'static Field>,
    visit: &mut impl FnMut(&[&'static Field], &'static Field),
) {
    for field in spec.fields {
        visit(way, field);
        let inner = match field.kind.inner() {
            Kind::Section(inner) | Kind::List(Kind::Section(inner)) => inner,
            _ => continue,
        };
        way.push(field);
        walk(inner, way, visit);
        way.pop();
    }
}

/// A config in which this field has this value, with the required keys around it.
fn config(way: &[&'static Field], field: &'static Field, value: &str) -> String {
    let own = |spec: &'static SectionSpec, skip: &str| -> String {
        spec.fields
            .iter()
            .filter(|f| f.rules.required && f.key != skip)
            .map(|f| match f.kind {
                Kind::Section(_) => String::new(),
                _ => format!("\"{}\": x, ", f.key),
            })
            .collect()
    };
    let mut text = format!("\"{}\": {value}", field.key);
    for (i, section) in way.iter().enumerate().rev() {
        let skip = way.get(i + 1).map_or(field.key, |f| f.key);
        text = match section.kind.inner() {
            Kind::Section(spec) => format!("\"{}\": {{{}{text}}}", section.key, own(spec, skip)),
            Kind::List(Kind::Section(spec)) => {
                format!("\"{}\": [{{{}{text}}}]", section.key, own(spec, skip))
            }
            _ => unreachable!("only sections are on the way"),
        };
    }
    let first = way.first().map_or(field.key, |f| f.key);
    let mut rest = String::new();
    if first != "model" {
        rest += "model: {name_or_path: m}\n";
    }
    if first != "data" {
        rest += "data: {dataset_name_or_path: d}\n";
    }
    format!("{text}\n{rest}")
}

fn path(way: &[&'static Field], field: &'static Field) -> String {
    let mut out = String::new();
    for section in way {
        out += section.key;
        out += if matches!(section.kind.inner(), Kind::List(_)) { "[0]." } else { "." };
    }
    out + field.key
}

/// The errors about this key or something in it.
fn about(text: &str, key: &str) -> Vec<Code> {
    let Err(found) = load(text, "run.yaml") else {
        return Vec::new();
    };
    found.into_iter().filter(|d| d.key.starts_with(key)).map(|d| d.code).collect()
}

#[test]
fn every_field_refuses_values_of_another_type() {
    let mut fields = 0;
    let mut tried = 0;
    walk(&Run::SPEC, &mut Vec::new(), &mut |way, field| {
        fields += 1;
        let wrong: &[&str] = match field.kind.inner() {
            Kind::Bool => &["maybe", "2", "[true]", "{a: true}", "3.5"],
            Kind::Integer => &["many", "1.5", "true", "[1]", "{a: 1}", ".nan", ".inf", "010"],
            Kind::Number => &["many", "true", "[1]", "{a: 1}", ".nan", "-.inf", "1e999"],
            Kind::Text => &["3", "true", "[a]", "{a: b}", "1e5"],
            Kind::TextOrInteger | Kind::Secret => &["[a]", "{a: b}"],
            Kind::Choice(_) => &["nonsense", "7.5", "[a]", "{a: b}", "''"],
            Kind::List(Kind::Section(_)) => &["x", "{a: b}", "[3]", "[null]", "[[a]]"],
            Kind::List(Kind::Number) => &["x", "3", "{a: b}", "[x]", "[null]", "[.nan]"],
            Kind::List(_) => &["x", "3", "{a: b}", "[3]", "[null]", "[[a]]"],
            Kind::Section(_) => &["x", "3", "[a]", "true"],
            Kind::TargetModules => &["q_proj", "3", "{a: b}", "[3]", "[null]", "[]"],
            Kind::RopeScaling => &["x", "3", "[a]", "{}"],
            Kind::Thresholds => &["x", "3", "[a]", "{critical: x}", "{low: 2}", "{nope: 0.1}"],
            Kind::Optional(_) => unreachable!("inner() removes it"),
        };
        for value in wrong {
            tried += 1;
            let (text, key) = (config(way, field, value), path(way, field));
            assert!(!about(&text, &key).is_empty(), "accepted:\n{text}");
        }
    });
    // A new key changes this number: add it here and to the documentation.
    assert_eq!(fields, FIELDS);
    assert!(tried > 4 * fields);
}

/// Keys of the root and its sections, with those of a pipeline's stages counted once more.
const FIELDS: usize = 523;

#[test]
fn every_field_refuses_null_or_takes_it_for_absence() {
    walk(&Run::SPEC, &mut Vec::new(), &mut |way, field| {
        let (text, key) = (config(way, field, "null"), path(way, field));
        let codes = about(&text, &key);
        if matches!(field.kind, Kind::Optional(_)) {
            assert!(!codes.contains(&Code::NullValue), "{text}");
        } else {
            assert_eq!(codes.first(), Some(&Code::NullValue), "{text}");
        }
    });
}

#[test]
fn every_bound_is_held_on_both_sides() {
    let mut bounds = 0;
    walk(&Run::SPEC, &mut Vec::new(), &mut |way, field| {
        let step = match field.kind.inner() {
            Kind::Integer => 1.0,
            Kind::Number => 1e-3,
            _ => return,
        };
        let key = path(way, field);
        let rules = &field.rules;
        let refused = |value: f64| {
            about(&config(way, field, &format!("{value}")), &key).contains(&Code::OutOfRange)
        };
        if let Some(min) = rules.min {
            bounds += 1;
            assert_eq!(refused(min), rules.min_open, "{key} at {min}");
            assert!(refused(min - step), "{key} below {min}");
            assert!(!refused(min + step), "{key} above {min}");
        }
        let max = rules.max.unwrap_or_else(|| panic!("{key} has no upper bound"));
        bounds += 1;
        assert_eq!(refused(max), rules.max_open, "{key} at {max}");
        assert!(refused(max + max.abs().max(1.0)), "{key} above {max}");
    });
    assert!(bounds > 100, "{bounds}");
}

#[test]
fn every_default_is_accepted_when_written_and_changes_nothing() {
    walk(&Run::SPEC, &mut Vec::new(), &mut |way, field| {
        if field.rules.required || way.len() > 2 {
            return;
        }
        let default = (field.default)();
        if matches!(field.kind.inner(), Kind::Section(_)) {
            return;
        }
        let text = config(way, field, &default.to_string());
        let key = path(way, field);
        if key.starts_with("pipeline") || key.contains('[') {
            return;
        }
        let loaded = load(&text, "run.yaml").unwrap_or_else(|e| panic!("{text}\n{}", e[0]));
        let value = forgelm_config::resolved_json(&loaded.run);
        let found = key.split('.').fold(&value, |v, part| &v[part]);
        if field.rules.replaced_by.is_none() {
            assert_eq!(found, &default, "{key}");
        }
    });
}

#[test]
fn every_word_of_every_choice_is_accepted_in_each_spelling() {
    let mut words = 0;
    walk(&Run::SPEC, &mut Vec::new(), &mut |way, field| {
        let Kind::Choice(choices) = field.kind.inner() else {
            return;
        };
        for choice in choices.iter() {
            for word in std::iter::once(&choice.name).chain(choice.aliases) {
                words += 1;
                let codes = about(&config(way, field, word), &path(way, field));
                assert!(!codes.contains(&Code::UnknownChoice), "{word}: {codes:?}");
            }
        }
    });
    assert!(words > 80, "{words}");
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let value = forgelm_config::resolved_json(&Run::default());
    let cases = [
        ("model.max_length", "2048"),
        ("model.load_in_4bit", "true"),
        ("model.backend", "\"transformers\""),
        ("lora.r", "8"),
        ("lora.alpha", "16"),
        ("lora.dropout", "0.1"),
        ("lora.method", "\"lora\""),
        ("lora.target_modules", "[\"q_proj\",\"v_proj\"]"),
        ("training.output_dir", "\"./checkpoints\""),
        ("training.final_model_dir", "\"final_model\""),
        ("training.trainer_type", "\"sft\""),
        ("training.max_steps", "-1"),
        ("training.num_train_epochs", "3"),
        ("training.per_device_train_batch_size", "4"),
        ("training.gradient_accumulation_steps", "2"),
        ("training.warmup_ratio", "0.1"),
        ("training.weight_decay", "0.01"),
        ("training.eval_steps", "200"),
        ("training.save_steps", "200"),
        ("training.save_total_limit", "3"),
        ("training.report_to", "\"tensorboard\""),
        ("training.seed", "42"),
        ("training.lr_scheduler_type", "\"linear\""),
        ("training.optim", "\"adamw\""),
        ("training.max_grad_norm", "1.0"),
        ("training.compute_dtype", "\"auto\""),
        ("training.grpo_max_completion_length", "512"),
        ("data.shuffle", "true"),
        ("data.validation_split", "null"),
        ("data.train_on", "\"assistant\""),
        ("data.on_bad_row", "\"error\""),
        ("evaluation", "null"),
        ("signing", "null"),
    ];
    for (key, expected) in cases {
        let found = key.split('.').fold(&value, |v, part| &v[part]);
        assert_eq!(found.to_string(), expected, "{key}");
    }
    let rate = value["training"]["learning_rate"].as_f64();
    assert!(rate.is_some_and(|r| (r - 2e-5).abs() < 1e-18));
    assert_eq!(errors("{}").len(), 2, "model and data are required, and nothing else is");
}
