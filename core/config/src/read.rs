//! From the tree to typed sections, by the tables. Every problem is kept and the reading goes on,
//! so that the user sees all of them at once; a field that has a problem gets its default, which
//! nobody sees since a config with a problem is never returned.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::diagnostic::{Code, Diagnostic, Place, nearest};
use crate::scalar::{self, NotANumber};
use crate::secret::{REDACTED, Secret};
use crate::spec::{ChoiceSpec, Field, Kind, Rules, SectionSpec};
use crate::yaml::{Key, Node, Value, join, shown};

/// A type that a field can have.
pub trait Readable: Sized {
    /// How the tables describe it.
    const KIND: Kind;
    /// Reads a value; `None` when a problem was reported.
    fn read(node: &Node, path: &str, rules: &Rules, reader: &mut Reader) -> Option<Self>;
    /// The value in dumps: redacted where secret.
    fn to_json(&self) -> Json;
}

/// The keys that a config wrote, with their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    places: BTreeMap<String, Option<Place>>,
}

impl Written {
    /// Whether the key at this path (`training.learning_rate`, `pipeline.stages[0].name`) is written.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// Where it is written.
    #[must_use]
    pub fn place(&self, path: &str) -> Option<Place> {
        self.places.get(path).copied().flatten()
    }

    /// The paths, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }
}

/// Collects problems and written keys while sections are read.
#[derive(Default)]
pub struct Reader {
    pub problems: Vec<Diagnostic>,
    pub written: Written,
}

/// A section being read.
pub struct SectionReader<'a> {
    reader: &'a mut Reader,
    entries: &'a [(Key, Node)],
    spec: &'static SectionSpec,
    path: &'a str,
    place: Option<Place>,
}

impl Reader {
    /// Begins a section: it must be a mapping, and each of its keys must be in the table.
    pub fn open<'a>(
        &'a mut self,
        node: &'a Node,
        path: &'a str,
        spec: &'static SectionSpec,
    ) -> Option<SectionReader<'a>> {
        let Value::Map(entries) = &node.value else {
            self.mismatch(node, path, Code::WrongType, &Kind::Section(spec).expected(&Rules::NONE));
            return None;
        };
        for (key, _) in entries {
            match spec.fields.iter().find(|f| f.key == key.name) {
                Some(_) => {}
                None if spec.fields.iter().any(|f| f.rules.alias == Some(&key.name)) => {}
                None => self.problems.push(unknown_key(key, path, spec)),
            }
        }
        Some(SectionReader { reader: self, entries, spec, path, place: node.place })
    }

    /// Reports that a value is not what its field takes.
    pub fn mismatch(&mut self, node: &Node, path: &str, code: Code, expected: &str) {
        self.mismatch_hint(node, path, code, expected, None);
    }

    fn mismatch_hint(
        &mut self,
        node: &Node,
        path: &str,
        code: Code,
        expected: &str,
        hint: Option<String>,
    ) {
        let found = node.describe();
        let message = format!("`{}` is {found}; expected {expected}", shown(path));
        let mut problem =
            Diagnostic::error(code, path, message).at(node.place).found_expected(&found, expected);
        problem.hint = hint;
        self.problems.push(problem);
    }

    /// Reads one word of a list.
    pub fn choice<T>(
        &mut self,
        node: &Node,
        path: &str,
        rules: &Rules,
        words: &'static [ChoiceSpec],
        from_word: fn(&str) -> Option<T>,
    ) -> Option<T> {
        let expected = Kind::Choice(words).expected(rules);
        let Value::Scalar { text, .. } = &node.value else {
            self.mismatch(node, path, Code::WrongType, &expected);
            return None;
        };
        let found = from_word(text);
        if found.is_none() {
            let hint = nearest(text, words.iter().map(|w| w.name))
                .map(|word| format!("did you mean `{word}`?"));
            self.mismatch_hint(node, path, Code::UnknownChoice, &expected, hint);
        }
        found
    }

    /// Reads a number through one of the functions of `scalar.rs`, and checks its range.
    fn number<T: Copy>(
        &mut self,
        node: &Node,
        path: &str,
        rules: &Rules,
        kind: Kind,
        parse: fn(&str) -> Result<T, NotANumber>,
        as_f64: fn(T) -> f64,
    ) -> Option<T> {
        let expected = kind.expected(rules);
        let Value::Scalar { text, .. } = &node.value else {
            self.mismatch(node, path, Code::WrongType, &expected);
            return None;
        };
        match parse(text) {
            Ok(value) if rules.admits(as_f64(value)) => Some(value),
            Ok(_) | Err(NotANumber::TooLarge) => {
                self.mismatch(node, path, Code::OutOfRange, &expected);
                None
            }
            Err(NotANumber::NotFinite) => {
                let hint = Some("infinities and NaN are not accepted".to_owned());
                self.mismatch_hint(node, path, Code::OutOfRange, &expected, hint);
                None
            }
            Err(NotANumber::LeadingZero) => {
                let digits = text.trim_start_matches(['+', '-', '0', '_']);
                let hint = Some(format!(
                    "some YAML readers take a leading zero for octal: write {digits}, or 0o{digits}"
                ));
                self.mismatch_hint(node, path, Code::WrongType, &expected, hint);
                None
            }
            Err(NotANumber::Text | NotANumber::Fraction) => {
                self.mismatch(node, path, Code::WrongType, &expected);
                None
            }
        }
    }

    /// Reads a text; a plain number or `true` is not one.
    fn text(&mut self, node: &Node, path: &str, rules: &Rules) -> Option<String> {
        let expected = Kind::Text.expected(rules);
        let Value::Scalar { text, plain } = &node.value else {
            self.mismatch(node, path, Code::WrongType, &expected);
            return None;
        };
        if *plain && scalar::is_typed(text) {
            let hint = Some(format!("put it in quotes: \"{text}\""));
            self.mismatch_hint(node, path, Code::WrongType, &expected, hint);
            return None;
        }
        self.checked_text(text, node, path, rules, &expected)
    }

    fn checked_text(
        &mut self,
        text: &str,
        node: &Node,
        path: &str,
        rules: &Rules,
        expected: &str,
    ) -> Option<String> {
        if text.contains("-----BEGIN") && text.contains("KEY") {
            let message =
                format!("`{}` holds key material; keys never stand in a config", shown(path));
            self.problems.push(
                Diagnostic::error(Code::SecretInFile, path, message)
                    .at(node.place)
                    .hint("put the key into a file of mode 0600 and name the file"),
            );
            return None;
        }
        if let Some((_, holds)) = rules.text
            && !holds(text)
        {
            self.mismatch(node, path, Code::OutOfRange, expected);
            return None;
        }
        Some(text.to_owned())
    }
}

/// The problem of a key that its section does not have, with the key that was probably meant.
fn unknown_key(key: &Key, path: &str, spec: &'static SectionSpec) -> Diagnostic {
    let full = join(path, &key.name);
    let root = &crate::Run::SPEC;
    if !path.is_empty() && root.fields.iter().any(|f| f.key == key.name) {
        let message = format!(
            "`{}` is not allowed here: `{}` is a section of the root",
            shown(&full),
            key.name
        );
        return Diagnostic::error(Code::RootOnly, &full, message)
            .at(key.place)
            .hint(format!("write `{}:` at the left margin of the file", key.name));
    }
    let message = format!("`{}` is not a known key", shown(&full));
    let problem = Diagnostic::error(Code::UnknownKey, &full, message).at(key.place);
    if let Some(name) = nearest(&key.name, spec.fields.iter().map(|f| f.key)) {
        return problem.hint(format!("did you mean `{name}`?"));
    }
    let elsewhere = crate::explain::paths_ending_in(&key.name);
    match elsewhere.as_slice() {
        [] if key.name.chars().count() > 60 || spec.fields.len() > 12 => problem,
        [] => {
            let known: Vec<&str> = spec.fields.iter().map(|f| f.key).collect();
            problem.hint(format!("the keys here are {}", known.join(", ")))
        }
        paths => problem.hint(format!("did you mean `{}`?", paths.join("` or `"))),
    }
}

impl SectionReader<'_> {
    /// Reads the field of this key, or takes its default.
    pub fn field<T: Readable>(&mut self, key: &str, default: impl Fn() -> T) -> T {
        let Some(spec) = self.spec.fields.iter().find(|f| f.key == key) else {
            return default();
        };
        let path = join(self.path, key);
        let Some((entry_key, node)) = self.find(spec, &path) else {
            if spec.rules.required {
                self.missing(spec, &path);
            }
            return default();
        };
        let null = matches!(node.value, Value::Null);
        if null && matches!(T::KIND, Kind::Optional(_)) {
            // A null where null is allowed equals absence.
            return T::read(node, &path, &spec.rules, self.reader).unwrap_or_else(default);
        }
        self.reader.written.places.insert(path.clone(), entry_key.place);
        if null {
            self.null(node, &path, spec);
            return default();
        }
        T::read(node, &path, &spec.rules, self.reader).unwrap_or_else(default)
    }
}

impl<'a> SectionReader<'a> {
    /// The entry of a field, under its name or its alias; both is a problem.
    fn find(&mut self, spec: &Field, path: &str) -> Option<&'a (Key, Node)> {
        let entries = self.entries;
        let named = entries.iter().find(|(key, _)| key.name == spec.key);
        let Some(alias) = spec.rules.alias else {
            return named;
        };
        let aliased = entries.iter().find(|(key, _)| key.name == alias);
        if let (Some((first, _)), Some((second, _))) = (named, aliased) {
            let other = first.place.map_or(0, |p| p.line);
            let message = format!(
                "`{}` is another name of `{path}`, which is written at line {other}",
                join(self.path, alias)
            );
            self.reader.problems.push(
                Diagnostic::error(Code::DuplicateKey, path, message)
                    .at(second.place)
                    .hint("keep one of the two"),
            );
        }
        named.or(aliased)
    }

    fn missing(&mut self, spec: &Field, path: &str) {
        let expected = spec.kind.expected(&spec.rules);
        let message = format!("`{path}` is missing; expected {expected}");
        self.reader
            .problems
            .push(Diagnostic::error(Code::MissingKey, path, message).at(self.place));
    }

    fn null(&mut self, node: &Node, path: &str, spec: &Field) {
        let expected = spec.kind.expected(&spec.rules);
        let hint = match spec.kind {
            _ if spec.rules.required => None,
            Kind::Section(_) => {
                Some("remove the key, or write `{}`, to get every default".to_owned())
            }
            _ => {
                let default = crate::explain::default_text(spec);
                Some(format!("remove the key to get its default, {default}"))
            }
        };
        self.reader.mismatch_hint(node, path, Code::NullValue, &expected, hint);
    }
}

impl Readable for bool {
    const KIND: Kind = Kind::Bool;
    fn read(node: &Node, path: &str, rules: &Rules, reader: &mut Reader) -> Option<Self> {
        let found = match &node.value {
            Value::Scalar { text, .. } => scalar::boolean(text),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        };
        if found.is_none() {
            reader.mismatch(node, path, Code::WrongType, &Self::KIND.expected(rules));
        }
        found
    }
    fn to_json(&self) -> Json {
        (*self).into()
    }
}

macro_rules! whole_number {
    ($($type:ty),*) => { $(
        impl Readable for $type {
            const KIND: Kind = Kind::Integer;
            fn read(node: &Node, path: &str, rules: &Rules, reader: &mut Reader) -> Option<Self> {
                #[expect(clippy::cast_precision_loss, reason = "bounds of integers are small")]
                let value =
                    reader.number(node, path, rules, Kind::Integer, scalar::integer, |v| v as f64)?;
                let value = Self::try_from(value);
                if value.is_err() {
                    let expected = Kind::Integer.expected(&rules.min(0.0));
                    reader.mismatch(node, path, Code::OutOfRange, &expected);
                }
                value.ok()
            }
            fn to_json(&self) -> Json {
                (*self).into()
            }
        }
    )* };
}
whole_number!(i64, u64, usize);

impl Readable for f64 {
    const KIND: Kind = Kind::Number;
    fn read(node: &Node, path: &str, rules: &Rules, reader: &mut Reader) -> Option<Self> {
        reader.number(node, path, rules, Kind::Number, scalar::float, |v| v)
    }
    fn to_json(&self) -> Json {
        (*self).into()
    }
}

impl Readable for String {
    const KIND: Kind = Kind::Text;
    fn read(node: &Node, path: &str, rules: &Rules, reader: &mut Reader) -> Option<Self> {
        reader.text(node, path, rules)
    }
    fn to_json(&self) -> Json {
        self.as_str().into()
    }
}

/// A text that may be written as a bare whole number: `batch_size: 8`, `batch_size: auto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextOrInteger(pub String);

impl Readable for TextOrInteger {
    const KIND: Kind = Kind::TextOrInteger;
    fn read(node: &Node, path: &str, rules: &Rules, reader: &mut Reader) -> Option<Self> {
        let expected = Self::KIND.expected(rules);
        match &node.value {
            Value::Scalar { text, .. } => {
                reader.checked_text(text, node, path, rules, &expected).map(Self)
            }
            Value::Null | Value::List(_) | Value::Map(_) => {
                reader.mismatch(node, path, Code::WrongType, &expected);
                None
            }
        }
    }
    fn to_json(&self) -> Json {
        self.0.as_str().into()
    }
}

impl Readable for Secret {
    const KIND: Kind = Kind::Secret;
    fn read(node: &Node, path: &str, rules: &Rules, reader: &mut Reader) -> Option<Self> {
        let Value::Scalar { text, .. } = &node.value else {
            reader.mismatch(node, path, Code::WrongType, &Self::KIND.expected(rules));
            return None;
        };
        if text == REDACTED {
            let message = format!("`{path}` is the mark of a redacted secret, not a secret");
            reader.problems.push(
                Diagnostic::error(Code::SecretInFile, path, message)
                    .at(node.place)
                    .hint("remove the key, and give the secret through the environment"),
            );
            return None;
        }
        Some(Self::new(text.clone()))
    }
    fn to_json(&self) -> Json {
        if self.is_empty() { "".into() } else { REDACTED.into() }
    }
}

impl<T: Readable> Readable for Option<T> {
    const KIND: Kind = Kind::Optional(&T::KIND);
    fn read(node: &Node, path: &str, rules: &Rules, reader: &mut Reader) -> Option<Self> {
        match node.value {
            Value::Null => Some(None),
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => {
                T::read(node, path, rules, reader).map(Some)
            }
        }
    }
    fn to_json(&self) -> Json {
        self.as_ref().map_or(Json::Null, Readable::to_json)
    }
}

impl<T: Readable> Readable for Vec<T> {
    const KIND: Kind = Kind::List(&T::KIND);
    fn read(node: &Node, path: &str, rules: &Rules, reader: &mut Reader) -> Option<Self> {
        let Value::List(items) = &node.value else {
            let expected = Self::KIND.expected(rules);
            let hint = match &node.value {
                Value::Scalar { .. } => {
                    Some("write it in brackets, or as lines that begin with `- `".to_owned())
                }
                Value::Null | Value::List(_) | Value::Map(_) => None,
            };
            reader.mismatch_hint(node, path, Code::WrongType, &expected, hint);
            return None;
        };
        // Every item is read, so that every problem is seen.
        let read: Vec<Option<T>> = items
            .iter()
            .enumerate()
            .map(|(i, item)| {
                let path = format!("{path}[{i}]");
                if matches!(item.value, Value::Null) {
                    reader.mismatch(item, &path, Code::NullValue, &T::KIND.expected(rules));
                    return None;
                }
                T::read(item, &path, rules, reader)
            })
            .collect();
        read.into_iter().collect()
    }
    fn to_json(&self) -> Json {
        self.iter().map(Readable::to_json).collect()
    }
}
