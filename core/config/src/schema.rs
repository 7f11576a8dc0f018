//! The JSON Schema of the config, from the tables: for editors and for other tools.

use serde_json::{Map, Value as Json, json};

use crate::run::Run;
use crate::spec::{Field, Kind, Rules, SectionSpec};

/// The schema, draft 2020-12. Sections are under `$defs`, by the names of their structs.
#[must_use]
pub fn json_schema() -> Json {
    let mut defs = Map::new();
    let mut root = section(&Run::SPEC, &mut defs);
    let fields = root.as_object_mut().map(std::mem::take).unwrap_or_default();
    let mut schema = Map::new();
    schema.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    schema.insert("title".into(), "ForgeLM config".into());
    schema.extend(fields);
    schema.insert("$defs".into(), Json::Object(defs));
    Json::Object(schema)
}

fn section(spec: &'static SectionSpec, defs: &mut Map<String, Json>) -> Json {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in spec.fields {
        let schema = property(field, defs);
        if let Some(alias) = field.rules.alias {
            properties.insert(alias.to_owned(), schema.clone());
        }
        properties.insert(field.key.to_owned(), schema);
        if field.rules.required {
            required.push(Json::from(field.key));
        }
    }
    let mut out = Map::new();
    out.insert("type".into(), "object".into());
    out.insert("description".into(), one_line(spec.doc).into());
    out.insert("properties".into(), Json::Object(properties));
    if !required.is_empty() {
        out.insert("required".into(), Json::Array(required));
    }
    out.insert("additionalProperties".into(), false.into());
    Json::Object(out)
}

fn property(field: &'static Field, defs: &mut Map<String, Json>) -> Json {
    let mut schema = kind(&field.kind, &field.rules, defs);
    if let Some(map) = schema.as_object_mut() {
        let mut doc = one_line(field.doc);
        if let Some(feature) = field.rules.later {
            doc = format!("{doc} Not available yet: {feature}.");
        }
        map.insert("description".into(), doc.into());
        if !field.rules.required && !matches!(field.kind, Kind::Section(_)) {
            map.insert("default".into(), (field.default)());
        }
        if field.rules.replaced_by.is_some() {
            map.insert("deprecated".into(), true.into());
        }
    }
    schema
}

fn kind(kind_of: &'static Kind, rules: &Rules, defs: &mut Map<String, Json>) -> Json {
    match kind_of {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Integer => number("integer", rules),
        Kind::Number => number("number", rules),
        Kind::Text | Kind::Secret => match rules.text {
            Some(_) => json!({"type": "string", "minLength": 1}),
            None => json!({"type": "string"}),
        },
        Kind::TextOrInteger => json!({"type": ["string", "integer"]}),
        Kind::Choice(words) => {
            let words: Vec<Json> = words
                .iter()
                .flat_map(|w| std::iter::once(w.name).chain(w.aliases.iter().copied()))
                .flat_map(|word| match word {
                    "true" => vec![word.into(), true.into()],
                    "false" => vec![word.into(), false.into()],
                    _ => vec![Json::from(word)],
                })
                .collect();
            json!({"enum": words})
        }
        Kind::List(item) => json!({"type": "array", "items": kind(item, rules, defs)}),
        Kind::Section(spec) => {
            if !defs.contains_key(spec.name) {
                defs.insert(spec.name.to_owned(), Json::Null);
                let schema = section(spec, defs);
                defs.insert(spec.name.to_owned(), schema);
            }
            json!({"$ref": format!("#/$defs/{}", spec.name)})
        }
        Kind::Optional(inner) => {
            json!({"anyOf": [kind(inner, rules, defs), {"type": "null"}]})
        }
        Kind::TargetModules => json!({"anyOf": [
            {"const": "all-linear"},
            {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
        ]}),
        Kind::RopeScaling => json!({"type": "object"}),
        Kind::Thresholds => {
            let share = json!({"type": "number", "minimum": 0, "maximum": 1});
            let words = crate::section::HarmSeverity::CHOICES;
            let properties: Map<String, Json> =
                words.iter().map(|w| (w.name.to_owned(), share.clone())).collect();
            json!({"type": "object", "properties": properties, "additionalProperties": false})
        }
    }
}

fn number(type_name: &str, rules: &Rules) -> Json {
    let mut schema = Map::new();
    schema.insert("type".into(), type_name.into());
    let bound = |value: f64| -> Json {
        // Whole bounds are written as whole numbers.
        #[expect(clippy::cast_possible_truncation, reason = "whole, and below 2^53")]
        if value.fract() == 0.0 { (value as i64).into() } else { value.into() }
    };
    if let Some(min) = rules.min {
        let name = if rules.min_open { "exclusiveMinimum" } else { "minimum" };
        schema.insert(name.into(), bound(min));
    }
    if let Some(max) = rules.max {
        let name = if rules.max_open { "exclusiveMaximum" } else { "maximum" };
        schema.insert(name.into(), bound(max));
    }
    Json::Object(schema)
}

fn one_line(doc: &str) -> String {
    doc.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
}
