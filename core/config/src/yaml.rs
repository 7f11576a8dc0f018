//! YAML text to a tree that knows where each value is written; the only user of the YAML crate.
//!
//! Scalars keep the text of the file and whether it was quoted: what `08`, `no` or `2e-5` means
//! is decided by the field that reads it (`scalar.rs`), not by the parser. Bounds on size, depth,
//! aliases and nodes hold before anything is built, so hostile text costs little time and memory.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Error, Location, Spanned};

use crate::diagnostic::{Code, Diagnostic, Place, quoted};

/// The largest config text that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 4 << 20;

const DEPTH_MAX: usize = 24;
const NODES_MAX: usize = 100_000;
const ALIAS_EVENTS_MAX: usize = 50_000;

/// A value and its place; an alias stands where it is used. No Debug: it may hold a secret.
#[derive(Clone, PartialEq)]
pub struct Node {
    pub value: Value,
    pub place: Option<Place>,
}

/// What is written.
#[derive(Clone, PartialEq)]
pub enum Value {
    Null,
    Scalar { text: String, plain: bool },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    pub name: String,
    pub place: Option<Place>,
}

impl Node {
    /// How a message calls the value: its text, or the kind of collection.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "null".to_owned(),
            Value::Scalar { text, .. } if looks_secret(text) => {
                "a text that looks secret".to_owned()
            }
            Value::Scalar { text, plain: true } => quoted(text),
            Value::Scalar { text, plain: false } => format!("the text {}", quoted(text)),
            Value::List(items) => format!("a list of {}", items.len()),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// Whether a text has the form of a well-known token or key, and so is not repeated in messages
/// even when it stands under a wrong key.
fn looks_secret(text: &str) -> bool {
    ["hf_", "sk-", "ghp_", "xoxb-"].iter().any(|p| text.starts_with(p) && text.len() > p.len() + 8)
        || text.contains("-----BEGIN")
        || text.contains("://hooks.")
}

/// Parses one document. Problems with single keys (duplicates, bad merges) come with the tree, in
/// which the first of two equal keys stands; a syntax error ends the reading.
pub fn parse(text: &str) -> Result<(Node, Vec<Diagnostic>), Vec<Diagnostic>> {
    if text.len() > FILE_BYTES_MAX {
        let message =
            format!("the file has {} bytes; expected at most {FILE_BYTES_MAX}", text.len());
        return Err(vec![Diagnostic::error(Code::TooLarge, "", message)]);
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 4 * NODES_MAX,
            flow_nesting_limit: DEPTH_MAX,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: 4 * ALIAS_EVENTS_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIAS_EVENTS_MAX,
            max_replay_stack_depth: 16,
        },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
        merge_keys: serde_saphyr::MergeKeyPolicy::AsOrdinary,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::PassThrough,
        ignore_binary_tag_for_string: true,
        reject_unsupported_tags: true,
        emit_comments: false,
        with_snippet: false,
    };
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| vec![syntax_problem(text, &error)])?;
    let mut builder = Builder { text, problems: Vec::new() };
    let node = builder.node(raw, "");
    Ok((node, builder.problems))
}

fn place(location: Location) -> Option<Place> {
    (location.line() > 0).then(|| Place { line: location.line(), column: location.column() })
}

/// Names the problem of a text that the parser refuses.
fn syntax_problem(text: &str, error: &Error) -> Diagnostic {
    let error = error.without_snippet();
    let at = error.location().and_then(place);
    let line = at.and_then(|p| text.lines().nth(usize::try_from(p.line - 1).ok()?));
    let reason = error.render_with_formatter(&serde_saphyr::DefaultMessageFormatter);
    // The renderer adds the place at the end; it stands at the beginning of ours.
    let reason = reason.split(" at line ").next().unwrap_or(&reason).trim_end_matches('.');
    if matches!(error, Error::MultipleDocuments { .. }) {
        let message = "a second YAML document begins here; expected one document".to_owned();
        return Diagnostic::error(Code::ManyDocuments, "", message)
            .at(at)
            .hint("remove the `---` line, or put the second document into a file of its own");
    }
    if matches!(error, Error::Budget { .. }) || reason.contains("limit") {
        let message = format!("the document is too large or too deep: {reason}");
        return Diagnostic::error(Code::TooLarge, "", message)
            .at(at)
            .hint("a config nests a few levels deep and repeats little through aliases");
    }
    let indented =
        line.is_some_and(|l| l.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t'));
    if indented || reason.split_whitespace().any(|w| w == "tab" || w == "tabs") {
        let message = "a tab stands where YAML allows spaces only".to_owned();
        return Diagnostic::error(Code::Syntax, "", message)
            .at(at)
            .hint("indent with spaces, and replace each tab with two");
    }
    Diagnostic::error(Code::Syntax, "", format!("not valid YAML: {reason}")).at(at)
}

/// The parser's view; `Typed` is a plain scalar that it takes for a boolean or a number.
enum Raw {
    Null,
    Typed,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }
    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }
    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }
    fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }
    fn visit_u128<E>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }
    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

/// Turns the parser's view into ours: takes scalars from the text, applies merges, finds
/// duplicate keys.
struct Builder<'a> {
    text: &'a str,
    problems: Vec<Diagnostic>,
}

impl Builder<'_> {
    fn node(&mut self, raw: Spanned<Raw>, path: &str) -> Node {
        let at = place(raw.referenced).or_else(|| place(raw.defined));
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Typed => {
                let text = self.source(raw.defined).unwrap_or("").trim_matches(['"', '\'']);
                Value::Scalar { text: text.to_owned(), plain: true }
            }
            Raw::Text(text) => {
                // A plain scalar is its own text; a quoted or block one differs in its first byte.
                let plain = self.source(raw.defined).is_some_and(|s| s == text)
                    && !text.starts_with(['"', '\''])
                    && !self.is_tagged(raw.defined);
                Value::Scalar { text, plain }
            }
            Raw::List(items) => Value::List(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(i, item)| self.node(item, &format!("{path}[{i}]")))
                    .collect(),
            ),
            Raw::Map(entries) => Value::Map(self.map(entries, path)),
        };
        Node { value, place: at }
    }

    /// The text of the file under a scalar.
    fn source(&self, location: Location) -> Option<&str> {
        let (start, len) = (location.span().byte_offset()?, location.span().byte_len()?);
        let start = usize::try_from(start).ok()?;
        self.text.get(start..start + usize::try_from(len).ok()?).map(str::trim_end)
    }

    /// Whether a tag, such as `!!str`, stands before a scalar.
    fn is_tagged(&self, location: Location) -> bool {
        let start = location.span().byte_offset().and_then(|o| usize::try_from(o).ok());
        let before = start.and_then(|s| self.text.get(..s)).unwrap_or("").trim_end();
        let token = before.rsplit([' ', '\t', '\n', '[', '{', ',']).next();
        token.is_some_and(|t| t.starts_with('!'))
    }

    fn map(&mut self, raw: Vec<(Spanned<Raw>, Spanned<Raw>)>, path: &str) -> Vec<(Key, Node)> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut index: BTreeMap<String, usize> = BTreeMap::new();
        let mut merged: Vec<Node> = Vec::new();
        let mut merge_key: Option<Key> = None;
        for (raw_key, raw_value) in raw {
            let key_node = self.node(raw_key, path);
            let Value::Scalar { text: name, .. } = key_node.value else {
                let message = format!("a key is {}; expected a name", key_node.describe());
                self.problems
                    .push(Diagnostic::error(Code::WrongType, path, message).at(key_node.place));
                continue;
            };
            let key = Key { name, place: key_node.place };
            let key_path = join(path, &key.name);
            let value = self.node(raw_value, &key_path);
            if key.name == "<<" {
                if let Some(first) = merge_key.replace(key.clone()) {
                    self.duplicate(&key_path, &first, &key);
                }
                merged.push(value);
            } else if let Some(&first) = index.get(&key.name) {
                let first = entries[first].0.clone();
                self.duplicate(&key_path, &first, &key);
            } else {
                index.insert(key.name.clone(), entries.len());
                entries.push((key, value));
            }
        }
        for source in merged {
            self.merge(&mut entries, &mut index, source, path);
        }
        entries
    }

    /// Adds the entries of a merged mapping whose keys are not written; YAML's rule, in which a
    /// written key wins over a merged one, and an earlier source over a later one.
    fn merge(
        &mut self,
        entries: &mut Vec<(Key, Node)>,
        index: &mut BTreeMap<String, usize>,
        source: Node,
        path: &str,
    ) {
        let at = source.place;
        match source.value {
            Value::Map(map) => {
                for (key, value) in map {
                    if !index.contains_key(&key.name) {
                        index.insert(key.name.clone(), entries.len());
                        entries.push((Key { name: key.name, place: at }, value));
                    }
                }
            }
            Value::List(items) if items.iter().all(|i| matches!(i.value, Value::Map(_))) => {
                for item in items {
                    self.merge(entries, index, item, path);
                }
            }
            _ => {
                let message = format!(
                    "`{}` merges {}; expected an alias of a mapping, or a list of them",
                    join(path, "<<"),
                    source.describe()
                );
                self.problems.push(Diagnostic::error(Code::WrongType, path, message).at(at));
            }
        }
    }

    fn duplicate(&mut self, path: &str, first: &Key, second: &Key) {
        let before = first.place.map_or_else(String::new, |p| {
            format!("; first written at line {}, column {}", p.line, p.column)
        });
        let message = format!("`{}` is written twice{before}", shown(path));
        self.problems.push(
            Diagnostic::error(Code::DuplicateKey, path, message)
                .at(second.place)
                .hint("keep one of the two"),
        );
    }
}

/// Appends a key to a path.
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A path as a message shows it: escaped, and cut when someone wrote an endless key.
pub fn shown(path: &str) -> String {
    crate::diagnostic::escaped(path, 120)
}
