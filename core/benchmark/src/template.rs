//! Templates of tasks: Jinja with Python's methods, as the harness sets it up.

use crate::literal::repr;
use fancy_regex::Regex;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Steps of one rendering.
const FUEL: u64 = 1_000_000;
const NAME: &str = "template";

/// A compiled template.
pub(crate) struct Template(Environment<'static>);

impl Template {
    /// Compiles a template; the error is a sentence.
    pub(crate) fn compile(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(methods);
        environment.set_formatter(python_formatter);
        environment.add_filter("regex_replace", regex_replace);
        environment.remove_global("debug");
        environment.set_fuel(Some(FUEL));
        // The engine drops the last line end; the harness keeps it.
        let end = if source.ends_with('\n') { "\n" } else { "" };
        environment
            .add_template_owned(NAME, format!("{source}{end}"))
            .map_err(|error| sentence(&error))?;
        Ok(Self(environment))
    }

    /// The text for a row, whose columns are the variables.
    pub(crate) fn render(&self, row: &serde_json::Value) -> Result<String, String> {
        let template = self.0.get_template(NAME).map_err(|error| sentence(&error))?;
        template.render(Value::from(Serde(row))).map_err(|error| sentence(&error))
    }
}

fn sentence(error: &Error) -> String {
    let line = error.line().map(|line| format!(", line {line} of it")).unwrap_or_default();
    match error.detail() {
        Some(detail) => format!("the template cannot be used: {}: {detail}{line}", error.kind()),
        None => format!("the template cannot be used: {}{line}", error.kind()),
    }
}

/// Methods of Python beside those of the engine.
fn methods(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match (method, value.kind(), args) {
        ("index", ValueKind::Seq | ValueKind::Iterable, [wanted]) => {
            let at = value.try_iter()?.position(|item| item == *wanted);
            at.map(Value::from).ok_or_else(|| {
                let text = format!("{wanted} is not in the list");
                Error::new(ErrorKind::InvalidOperation, text)
            })
        }
        ("index", ValueKind::String, [wanted]) => {
            let (text, wanted) = (value.as_str().unwrap_or(""), wanted.as_str().unwrap_or(""));
            let at = text.find(wanted).map(|at| text[..at].chars().count());
            at.map(Value::from).ok_or_else(|| {
                let text = format!("`{wanted}` is not in the text");
                Error::new(ErrorKind::InvalidOperation, text)
            })
        }
        _ => unknown_method_callback(state, value, method, args),
    }
}

/// `re.sub` as a filter; `\1` in the replacement is a group.
fn regex_replace(
    text: &str,
    pattern: &str,
    replacement: &str,
    count: Option<usize>,
    options: Kwargs,
) -> Result<String, Error> {
    let count = count.or(options.get("count")?).unwrap_or(0);
    options.assert_all_used()?;
    let failed = |error: fancy_regex::Error| {
        Error::new(ErrorKind::InvalidOperation, format!("regex_replace: {error}"))
    };
    let regex = Regex::new(pattern).map_err(failed)?;
    let replaced = regex.try_replacen(text, count, |captures: &fancy_regex::Captures<'_>| {
        let mut out = String::new();
        let mut chars = replacement.chars().peekable();
        while let Some(c) = chars.next() {
            match (c, chars.peek().and_then(|next| next.to_digit(10))) {
                ('\\', Some(group)) => {
                    chars.next();
                    out.push_str(captures.get(group as usize).map_or("", |group| group.as_str()));
                }
                (c, _) => out.push(c),
            }
        }
        out
    });
    Ok(replaced.map_err(failed)?.into_owned())
}

/// Prints values as Python does.
fn python_formatter(
    out: &mut minijinja::Output,
    state: &mut State,
    value: &Value,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => minijinja::escape_formatter(out, state, value),
        _ => Ok(out.write_str(&python_repr(value, 0)?)?),
    }
}

fn python_repr(value: &Value, depth: usize) -> Result<String, Error> {
    if depth > 32 {
        return Err(Error::new(ErrorKind::InvalidOperation, "a value is nested too deep"));
    }
    Ok(match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::String => repr(value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| python_repr(&item, depth + 1));
            format!("[{}]", items.collect::<Result<Vec<_>, _>>()?.join(", "))
        }
        ValueKind::Map => {
            let mut items = Vec::new();
            for key in value.try_iter()? {
                let of = python_repr(&value.get_item(&key)?, depth + 1)?;
                items.push(format!("{}: {of}", python_repr(&key, depth + 1)?));
            }
            format!("{{{}}}", items.join(", "))
        }
        _ => value.to_string(),
    })
}

/// White space as Python's `str` methods have it.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str.strip`.
pub(crate) fn python_trim(text: &str) -> &str {
    text.trim_matches(is_python_space)
}

/// Python's `str.rstrip`.
#[must_use]
pub fn python_trim_end(text: &str) -> &str {
    text.trim_end_matches(is_python_space)
}

/// Whether there is white space on either side of where two texts meet, neither of which is empty.
pub(crate) fn meet_at_space(before: &str, after: &str) -> bool {
    before.ends_with(is_python_space) || after.starts_with(is_python_space)
}

#[cfg(test)]
mod tests {
    use super::Template;
    use serde_json::json;

    fn rendered(source: &str, row: &serde_json::Value) -> Result<String, String> {
        Template::compile(source)?.render(row)
    }

    /// The values are what `lm_eval.utils.apply_template` 0.4.13 gives.
    #[test]
    fn templates_give_what_jinja_gives() {
        let row = json!({
            "text": "the cat sat down", "n": 3, "f": 2.0, "yes": true, "none": null, "key": " B",
            "choices": {"label": ["A", "B"], "text": ["it's", "a \"b\""]},
        });
        for (source, text) in [
            ("{{text.split(' ')[:-1]|join(' ')}}", "the cat sat"),
            ("{{' '+text.split(' ')[-1]}}", " down"),
            ("{{choices.label.index(key.lstrip())}}", "1"),
            ("{{choices.text}}", "[\"it's\", 'a \"b\"']"),
            ("{{[text, key]}}", "['the cat sat down', ' B']"),
            ("{{n}} {{f}} {{yes}} {{none}}", "3 2.0 True None"),
            ("{% set a = 'x' %}{{a + text[:3]}}\n", "xthe\n"),
            ("{{text|regex_replace('(c)(at)', '\\\\2\\\\1')}}", "the atc sat down"),
            ("{% if n == 3 %}\n three{% endif %}", "\n three"),
            ("<{{text}}>&", "<the cat sat down>&"),
            ("{{text.index('cat')}}", "4"),
            ("{{ 'a' if yes else 'b' }}", "a"),
            ("{{ {'1': 0, '2': 1}['2'] }}", "1"),
        ] {
            assert_eq!(rendered(source, &row).as_deref(), Ok(text), "{source}");
        }
    }

    #[test]
    fn what_cannot_be_rendered_is_refused() {
        let row = json!({"a": [1]});
        for (source, text) in [
            ("{{missing}}", "undefined"),
            ("{{a.index(2)}}", "2 is not in the list"),
            ("{{", "the template cannot be used"),
            ("{% include 'x' %}", "the template cannot be used"),
            (
                "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
                "fuel",
            ),
        ] {
            let refused = rendered(source, &row).expect_err(source);
            assert!(refused.contains(text), "{source}: {refused}");
        }
    }
}
