//! What the values of a column are like: for documents that describe a data set.

use serde_json::Value;

/// Columns or members that are named.
pub(crate) const COLUMNS_MAX: usize = 256;
/// Levels of lists and objects that are looked into.
const DEPTH_MAX: usize = 4;

/// The kind of a column's values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Shape {
    /// Nothing but null.
    #[default]
    Null,
    /// True or false.
    Boolean,
    /// Whole numbers.
    Integer,
    /// Numbers.
    Number,
    /// Texts.
    Text,
    /// Lists of one kind.
    List(Box<Shape>),
    /// Objects: every member that any of them has, in the order in which they first appear.
    Object(Vec<(String, Shape)>),
    /// Of several kinds, or nested too deeply.
    Mixed,
}

impl Shape {
    /// Of one value.
    pub(crate) fn of(value: &Value) -> Self {
        Self::below(value, DEPTH_MAX)
    }

    fn below(value: &Value, depth: usize) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Boolean,
            Value::Number(number) if number.is_f64() => Self::Number,
            Value::Number(_) => Self::Integer,
            Value::String(_) => Self::Text,
            Value::Array(_) | Value::Object(_) if depth == 0 => Self::Mixed,
            Value::Array(items) => {
                let mut all = Self::Null;
                items.iter().for_each(|item| all.take(Self::below(item, depth - 1)));
                Self::List(Box::new(all))
            }
            Value::Object(members) => {
                let members = members.iter().take(COLUMNS_MAX);
                let each = members.map(|(key, item)| (key.clone(), Self::below(item, depth - 1)));
                Self::Object(each.collect())
            }
        }
    }

    /// With other names for its members.
    pub(crate) fn renamed(self, name: fn(&str) -> String) -> Self {
        match self {
            Self::List(items) => Self::List(Box::new(items.renamed(name))),
            Self::Object(members) => {
                let each = members.into_iter();
                Self::Object(each.map(|(key, shape)| (name(&key), shape.renamed(name))).collect())
            }
            other => other,
        }
    }

    /// Widens this shape so that it takes in another.
    pub fn take(&mut self, other: Self) {
        let own = std::mem::take(self);
        *self = match (own, other) {
            (Self::Null, one) | (one, Self::Null) => one,
            (Self::Integer, Self::Number) | (Self::Number, Self::Integer) => Self::Number,
            (Self::List(mut items), Self::List(others)) => {
                items.take(*others);
                Self::List(items)
            }
            (Self::Object(mut members), Self::Object(others)) => {
                for (name, shape) in others {
                    match members.iter().position(|(key, _)| *key == name) {
                        Some(at) => members[at].1.take(shape),
                        None if members.len() < COLUMNS_MAX => members.push((name, shape)),
                        None => {}
                    }
                }
                Self::Object(members)
            }
            (own, other) if own == other => own,
            _ => Self::Mixed,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::Shape;
    use serde_json::{Value, json};

    fn of(rows: &[Value]) -> Shape {
        let mut shape = Shape::Null;
        rows.iter().for_each(|row| shape.take(Shape::of(row)));
        shape
    }

    #[test]
    fn rows_widen_what_their_columns_are() {
        let member = |name: &str, shape| (name.to_owned(), shape);
        let found = of(&[
            json!({"a": 1, "b": null, "messages": [{"role": "user"}]}),
            json!({"a": 1.5, "b": true, "messages": [{"role": "x", "weight": 2}, {}]}),
            json!({"c": "t", "messages": []}),
        ]);
        let message =
            Shape::Object(vec![member("role", Shape::Text), member("weight", Shape::Integer)]);
        let expected = vec![
            member("a", Shape::Number),
            member("b", Shape::Boolean),
            member("messages", Shape::List(Box::new(message))),
            member("c", Shape::Text),
        ];
        assert_eq!(found, Shape::Object(expected));
        assert_eq!(of(&[json!(1), json!("1")]), Shape::Mixed);
        assert_eq!(of(&[json!([1]), json!([[1]])]), Shape::List(Box::new(Shape::Mixed)));
    }

    #[test]
    fn depth_and_width_end() {
        let mut deep = json!(1);
        (0..1000).for_each(|_| deep = json!([deep]));
        assert!(format!("{:?}", Shape::of(&deep)).ends_with("Mixed))))"));
        let rows: Vec<Value> = (0..300).map(|i| json!({format!("k{i}"): i})).collect();
        let Shape::Object(members) = of(&rows) else { panic!("an object") };
        assert_eq!(members.len(), 256);
    }
}
