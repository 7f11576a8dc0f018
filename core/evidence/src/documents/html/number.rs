//! Numbers as people read them.

use serde_json::Value;

use super::super::inventory::plain;

/// A whole number with commas.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Four decimals, or three digits and an exponent where those would say nothing.
pub(super) fn real(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return value.to_string();
    }
    if size >= 1e15 || (size > 0.0 && size < 1e-3) {
        return format!("{value:.3e}");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 1e15")]
    if value.fract().abs() < f64::EPSILON {
        let sign = if value < 0.0 { "-" } else { "" };
        return format!("{sign}{}", count(size as u64));
    }
    match size {
        1e5.. => format!("{value:.1}"),
        ..0.01 => format!("{value:.6}").trim_end_matches('0').to_owned(),
        _ => format!("{value:.4}"),
    }
}

/// Bytes with a unit.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn bytes(n: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = "bytes";
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "bytes" { format!("{} bytes", count(n)) } else { format!("{value:.1} {unit}") }
}

/// Seconds as the two largest units.
pub(super) fn seconds(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return "not known".to_owned();
    }
    if value < 60.0 {
        return format!("{value:.1} s");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    let whole = value.round() as u64;
    match whole {
        0..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// The longest number that is shown as it is written, in characters.
const WRITTEN_MAX: usize = 8;

/// A value of a config or a document on one line.
pub(super) fn value(value: &Value) -> String {
    match value {
        Value::Null => "not known".to_owned(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Number(number) => {
            let text = number.to_string();
            match (number.as_u64(), number.as_f64()) {
                (Some(whole), _) => count(whole),
                // As it was written, where that is short.
                (None, Some(value)) if text.len() > WRITTEN_MAX => real(value),
                (None, _) => text,
            }
        }
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(self::value).collect::<Vec<_>>().join(", "),
        Value::Object(members) => {
            let parts = members.iter().map(|(key, of)| format!("{key}: {}", self::value(of)));
            parts.collect::<Vec<_>>().join("; ")
        }
    }
}

/// `snake_case` as words.
pub(super) fn words(key: &str) -> String {
    key.replace('_', " ")
}

/// A member of an object as a number.
pub(super) fn member(of: &Value, key: &str) -> Option<f64> {
    let found = of.get(key)?;
    found.as_f64().or_else(|| plain(found).parse().ok())
}

#[cfg(test)]
mod tests {
    use super::{bytes, count, real, seconds, value};
    use serde_json::json;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            [count(0), count(999), count(1000), count(12_345_678)].join(" "),
            "0 999 1,000 12,345,678"
        );
        let reals = [0.0, 12.0, -1234.0, 0.42, 0.005, 0.000_02, f64::NAN, 123_456.75, 1e18];
        assert_eq!(
            reals.map(real).join(" "),
            "0 12 -1,234 0.4200 0.005 2.000e-5 NaN 123456.8 1.000e18"
        );
        assert_eq!([bytes(10), bytes(1536), bytes(5 << 30)].join(" "), "10 bytes 1.5 KiB 5.0 GiB");
        let times = [0.25, 61.0, 3599.6, 90_000.0].map(seconds).join(", ");
        assert_eq!(times, "0.2 s, 1 min 1 s, 1 h 0 min, 1 d 1 h");
        let of = json!({"a": [1, 2.5, null], "b": true});
        assert_eq!(value(&of), "a: 1, 2.5, not known; b: yes");
    }
}
