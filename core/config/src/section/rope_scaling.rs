//! `training.rope_scaling:` a dictionary with rules of its own.

use serde_json::{Map, Value as Json};

use crate::declare::choice;
use crate::diagnostic::{Code, Diagnostic};
use crate::read::{Readable, Reader};
use crate::scalar;
use crate::spec::{Kind, Rules};
use crate::yaml::{Node, Value};

choice! {
    /// How positions are stretched.
    RopeType {
        /// All positions by one factor.
        Linear = "linear",
        /// By a factor that grows with the length.
        Dynamic = "dynamic",
        /// Frequencies by their wavelength.
        Yarn = "yarn",
        /// Two lists of factors.
        Longrope = "longrope",
    }
}

/// The dictionary as it was written, checked; keys beyond the rules are passed through untouched.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeScaling {
    /// From `type` or `rope_type`.
    pub rope_type: RopeType,
    /// All entries.
    pub entries: Map<String, Json>,
}

impl Readable for RopeScaling {
    const KIND: Kind = Kind::RopeScaling;

    fn read(node: &Node, path: &str, rules: &Rules, reader: &mut Reader) -> Option<Self> {
        let Value::Map(items) = &node.value else {
            reader.mismatch(node, path, Code::WrongType, &Self::KIND.expected(rules));
            return None;
        };
        let get = |name: &str| items.iter().find(|(key, _)| key.name == name).map(|(_, v)| v);
        let Some(type_node) = get("type").or_else(|| get("rope_type")) else {
            let message = format!("`{path}.type` is missing; expected {}", words());
            reader.problems.push(Diagnostic::error(Code::MissingKey, path, message).at(node.place));
            return None;
        };
        let rope_type = RopeType::read(type_node, &format!("{path}.type"), rules, reader)?;
        let before = reader.problems.len();
        let mut need = |name: &str, list: bool, required: bool| {
            let key = format!("{path}.{name}");
            match get(name) {
                Some(value) if list => positive_list(value, &key, reader),
                Some(value) => positive(value, &key, reader),
                None if required => {
                    let message = format!("`{key}` is missing; `{rope_type}` needs it");
                    reader
                        .problems
                        .push(Diagnostic::error(Code::MissingKey, &key, message).at(node.place));
                }
                None => {}
            }
        };
        match rope_type {
            RopeType::Linear | RopeType::Dynamic | RopeType::Yarn => need("factor", false, true),
            RopeType::Longrope => {
                need("short_factor", true, true);
                need("long_factor", true, true);
                need("factor", false, false);
            }
        }
        let entries = items.iter().map(|(key, v)| (key.name.clone(), free_json(v))).collect();
        (reader.problems.len() == before).then_some(Self { rope_type, entries })
    }

    fn to_json(&self) -> Json {
        Json::Object(self.entries.clone())
    }
}

fn words() -> String {
    crate::spec::one_of(RopeType::CHOICES.iter().map(|c| c.name))
}

fn positive(node: &Node, path: &str, reader: &mut Reader) {
    // A boolean is no number, although `1` is a boolean to a boolean field.
    let ok = matches!(&node.value, Value::Scalar { text, .. }
        if scalar::float(text).is_ok_and(|v| v > 0.0));
    if !ok {
        reader.mismatch(node, path, Code::OutOfRange, "a number above 0");
    }
}

fn positive_list(node: &Node, path: &str, reader: &mut Reader) {
    match &node.value {
        Value::List(items) if !items.is_empty() => {
            for (i, item) in items.iter().enumerate() {
                positive(item, &format!("{path}[{i}]"), reader);
            }
        }
        Value::List(_) | Value::Null | Value::Scalar { .. } | Value::Map(_) => {
            reader.mismatch(node, path, Code::WrongType, "a list of numbers above 0");
        }
    }
}

/// A value under no table, by the rules of YAML 1.2.
fn free_json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Scalar { text, plain: false } => text.as_str().into(),
        Value::Scalar { text, plain: true } => match text.as_str() {
            "true" | "True" | "TRUE" => true.into(),
            "false" | "False" | "FALSE" => false.into(),
            // A decimal point or exponent keeps a float a float.
            _ if !text.contains(['.', 'e', 'E']) && scalar::integer(text).is_ok() => {
                scalar::integer(text).unwrap_or_default().into()
            }
            _ => scalar::float(text).map_or_else(|_| text.as_str().into(), Json::from),
        },
        Value::List(items) => items.iter().map(free_json).collect(),
        Value::Map(items) => items.iter().map(|(k, v)| (k.name.clone(), free_json(v))).collect(),
    }
}
