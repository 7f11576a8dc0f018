//! Options as a JSON object: each key known, each value of its kind.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::error::{Failure, Status};

/// The options of one call. What nobody asked for in the end is unknown.
pub struct Options {
    name: &'static str,
    members: Map<String, Value>,
}

impl Options {
    /// From a text; none is no options.
    ///
    /// # Errors
    /// If it is no JSON object.
    pub fn parse(name: &'static str, text: Option<&str>) -> Result<Self, Failure> {
        let members = match text.map(str::trim).filter(|text| !text.is_empty()) {
            None => Map::new(),
            Some(text) => match serde_json::from_str(text) {
                Ok(Value::Object(members)) => members,
                Ok(other) => {
                    let found = kind(&other);
                    return Err(wrong(&format!("`{name}` is {found}; expected a JSON object")));
                }
                Err(error) => return Err(wrong(&format!("`{name}` is no JSON: {error}"))),
            },
        };
        Ok(Self { name, members })
    }

    fn take<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        match self.members.shift_remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(&value).map(Some).ok_or_else(|| {
                let found = kind(&value);
                wrong(&format!("`{}.{key}` is {found}; expected {expected}", self.name))
            }),
        }
    }

    /// A text.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, Failure> {
        self.take(key, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// A path.
    pub fn path(&mut self, key: &str) -> Result<Option<PathBuf>, Failure> {
        Ok(self.text(key)?.map(PathBuf::from))
    }

    /// Paths.
    pub fn paths(&mut self, key: &str) -> Result<Vec<PathBuf>, Failure> {
        let path = |value: &Value| value.as_str().map(PathBuf::from);
        let paths = self.take(key, "a list of texts", |value| {
            value.as_array()?.iter().map(path).collect::<Option<Vec<_>>>()
        })?;
        Ok(paths.unwrap_or_default())
    }

    /// A switch, off where it is not there.
    pub fn flag(&mut self, key: &str) -> Result<bool, Failure> {
        Ok(self.take(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    /// A whole number within bounds.
    pub fn whole(&mut self, key: &str, most: u64) -> Result<Option<u64>, Failure> {
        let expected = format!("a whole number up to {most}");
        self.take(key, &expected, |value| value.as_u64().filter(|&n| n <= most))
    }

    /// A number within bounds.
    pub fn number(&mut self, key: &str, least: f64, most: f64) -> Result<Option<f64>, Failure> {
        let expected = format!("a number from {least} to {most}");
        self.take(key, &expected, |value| value.as_f64().filter(|n| (least..=most).contains(n)))
    }

    /// An object or list as it stands.
    pub fn json(&mut self, key: &str) -> Option<Value> {
        self.members.shift_remove(key)
    }

    /// # Errors
    /// If a key is left that nobody asked for.
    pub fn finish(self) -> Result<(), Failure> {
        match self.members.keys().next() {
            None => Ok(()),
            Some(key) => Err(wrong(&format!("`{}` has no option `{key}`", self.name))),
        }
    }
}

/// A failure of what a host asked for.
pub fn wrong(text: &str) -> Failure {
    Failure::new(Status::ConfigError, text)
}

/// What a value is.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::Options;

    fn refused(text: &str, read: impl Fn(&mut Options) -> Result<(), super::Failure>) -> String {
        let read = |text| {
            let mut options = Options::parse("options", Some(text))?;
            read(&mut options)?;
            options.finish()
        };
        read(text).expect_err(text).message
    }

    #[test]
    fn what_is_not_known_or_of_another_kind_is_named() {
        let nothing = |_: &mut Options| Ok(());
        assert_eq!(refused("[1]", nothing), "`options` is a list; expected a JSON object");
        assert!(refused("{", nothing).starts_with("`options` is no JSON"));
        assert_eq!(refused("{\"x\": 1}", nothing), "`options` has no option `x`");
        let flag = |options: &mut Options| options.flag("offline").map(|_| ());
        let expected = "`options.offline` is a number; expected true or false";
        assert_eq!(refused("{\"offline\": 1}", flag), expected);
        let whole = |options: &mut Options| options.whole("n", 9).map(|_| ());
        assert!(refused("{\"n\": 10}", whole).contains("up to 9"));
        assert!(refused("{\"n\": -1}", whole).contains("up to 9"));
        let paths = |options: &mut Options| options.paths("keys").map(|_| ());
        assert!(refused("{\"keys\": [1]}", paths).contains("a list of texts"));
    }

    #[test]
    fn no_options_and_null_are_defaults() {
        for text in [None, Some(""), Some("{}"), Some("{\"n\": null}")] {
            let mut options = Options::parse("options", text).expect("options");
            assert_eq!(options.whole("n", 9).expect("a default"), None);
            options.finish().expect("nothing left");
        }
    }
}
