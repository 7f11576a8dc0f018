//! What the text of a scalar means to a field that wants a number or a boolean.
//!
//! Both YAML 1.1 and 1.2 are in use, and readers differ; where they would give different values
//! (`010` is 8 or 10) the text is refused, where one of them gives a value it is accepted.

/// Why a text is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotANumber {
    /// It is not written like one.
    Text,
    /// `.nan`, `.inf` and their spellings.
    NotFinite,
    /// `010`: ten, or eight in octal.
    LeadingZero,
    /// It has a fraction, and the field counts.
    Fraction,
    /// Beyond what 64 bits hold.
    TooLarge,
}

/// A whole number: `8`, `+8`, `8.0`, `8e0`, `1_000`, `0x10`, `0o17`, `08`.
pub fn integer(text: &str) -> Result<i64, NotANumber> {
    let text = text.trim();
    let (negative, digits) = sign(text);
    if let Some((radix, rest)) = radix_prefix(digits) {
        let clean = without_separators(rest).ok_or(NotANumber::Text)?;
        if clean.is_empty() || !clean.chars().all(|c| c.is_digit(radix)) {
            return Err(NotANumber::Text);
        }
        let value = i64::from_str_radix(&clean, radix).map_err(|_| NotANumber::TooLarge)?;
        return Ok(if negative { -value } else { value });
    }
    if digits.bytes().next().is_some_and(|b| b.is_ascii_digit())
        && digits.bytes().all(|b| b.is_ascii_digit() || b == b'_')
    {
        refuse_octal_lookalike(digits)?;
        let clean = without_separators(digits).ok_or(NotANumber::Text)?;
        let value: i64 = clean.parse().map_err(|_| NotANumber::TooLarge)?;
        return Ok(if negative { -value } else { value });
    }
    let value = float(text)?;
    if value.fract() != 0.0 {
        return Err(NotANumber::Fraction);
    }
    // 2^53: beyond it a float no longer names one integer.
    if value.abs() > 9_007_199_254_740_992.0 {
        return Err(NotANumber::TooLarge);
    }
    #[expect(clippy::cast_possible_truncation, reason = "whole, and below 2^53")]
    Ok(value as i64)
}

/// A finite number: `2e-5`, `5e-6`, `.5`, `5.`, and all that [`integer`] takes. `-0` is 0.
pub fn float(text: &str) -> Result<f64, NotANumber> {
    let text = text.trim();
    let (negative, magnitude) = sign(text);
    let lower = magnitude.to_ascii_lowercase();
    if matches!(lower.as_str(), ".nan" | ".inf" | "nan" | "inf" | "infinity") {
        return Err(NotANumber::NotFinite);
    }
    if radix_prefix(magnitude).is_some() {
        #[expect(clippy::cast_precision_loss, reason = "hexadecimal floats are small counts")]
        return integer(text).map(|v| v as f64);
    }
    let well_formed = magnitude.bytes().any(|b| b.is_ascii_digit())
        && magnitude.bytes().all(|b| b.is_ascii_digit() || b"_.eE+-".contains(&b));
    if !well_formed {
        return Err(NotANumber::Text);
    }
    if magnitude.bytes().all(|b| b.is_ascii_digit() || b == b'_') {
        refuse_octal_lookalike(magnitude)?;
    }
    let clean = without_separators(magnitude).ok_or(NotANumber::Text)?;
    let value: f64 = clean.parse().map_err(|_| NotANumber::Text)?;
    if !value.is_finite() {
        return Err(NotANumber::TooLarge);
    }
    Ok(if value == 0.0 {
        0.0
    } else if negative {
        -value
    } else {
        value
    })
}

/// A boolean: `true`, `false`, `yes`, `no`, `on`, `off`, `1`, `0` in any case.
pub fn boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Whether a plain scalar is a number or `true`/`false`, and so was not meant as text.
pub fn is_typed(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "true" | "false")
        || !matches!(float(text), Err(NotANumber::Text))
            && !matches!(text.to_ascii_lowercase().as_str(), "nan" | "inf" | "infinity")
}

fn sign(text: &str) -> (bool, &str) {
    match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    }
}

fn radix_prefix(digits: &str) -> Option<(u32, &str)> {
    let lower = digits.get(..2)?.to_ascii_lowercase();
    let radix = match lower.as_str() {
        "0x" => 16,
        "0o" => 8,
        "0b" => 2,
        _ => return None,
    };
    Some((radix, &digits[2..]))
}

/// `010` is 8 in YAML 1.1 and 10 in 1.2; `08` is 8 in both, since 8 is no octal digit.
fn refuse_octal_lookalike(digits: &str) -> Result<(), NotANumber> {
    let octal = digits.len() > 1
        && digits.starts_with('0')
        && digits.bytes().all(|b| matches!(b, b'0'..=b'7' | b'_'))
        && digits.bytes().any(|b| matches!(b, b'1'..=b'7'))
        && digits.trim_start_matches(['0', '_']).len() > 1;
    if octal { Err(NotANumber::LeadingZero) } else { Ok(()) }
}

/// Removes `_` between digits; `None` when one stands elsewhere.
fn without_separators(text: &str) -> Option<String> {
    if !text.contains('_') {
        return Some(text.to_owned());
    }
    let bytes = text.as_bytes();
    let between = bytes.iter().enumerate().all(|(i, &b)| {
        b != b'_'
            || (i > 0
                && bytes[i - 1].is_ascii_alphanumeric()
                && bytes.get(i + 1).is_some_and(u8::is_ascii_alphanumeric))
    });
    between.then(|| text.replace('_', ""))
}

#[cfg(test)]
mod tests {
    use super::{NotANumber, boolean, float, integer, is_typed};

    #[test]
    fn fault_006_spellings_of_whole_numbers() {
        let cases: [(&str, Result<i64, NotANumber>); 24] = [
            ("8", Ok(8)),
            ("+8", Ok(8)),
            ("-8", Ok(-8)),
            ("-0", Ok(0)),
            ("8.0", Ok(8)),
            ("1e3", Ok(1000)),
            ("1_000", Ok(1000)),
            ("0x10", Ok(16)),
            ("0o17", Ok(15)),
            ("0b11", Ok(3)),
            ("08", Ok(8)),
            ("007", Ok(7)),
            ("010", Err(NotANumber::LeadingZero)),
            ("8.5", Err(NotANumber::Fraction)),
            (".nan", Err(NotANumber::NotFinite)),
            ("-.inf", Err(NotANumber::NotFinite)),
            ("1__0", Err(NotANumber::Text)),
            ("_1", Err(NotANumber::Text)),
            ("1_", Err(NotANumber::Text)),
            ("0x", Err(NotANumber::Text)),
            ("eight", Err(NotANumber::Text)),
            ("", Err(NotANumber::Text)),
            ("99999999999999999999", Err(NotANumber::TooLarge)),
            ("1e300", Err(NotANumber::TooLarge)),
        ];
        for (text, expected) in cases {
            assert_eq!(integer(text), expected, "{text}");
        }
    }

    #[test]
    fn fault_006_spellings_of_numbers() {
        let cases: [(&str, Result<f64, NotANumber>); 17] = [
            ("2e-5", Ok(2e-5)),
            ("5e-6", Ok(5e-6)),
            ("2E-5", Ok(2e-5)),
            (".5", Ok(0.5)),
            ("5.", Ok(5.0)),
            ("-0", Ok(0.0)),
            ("-0.0", Ok(0.0)),
            ("1_000.5", Ok(1000.5)),
            ("0x10", Ok(16.0)),
            ("08", Ok(8.0)),
            ("010", Err(NotANumber::LeadingZero)),
            (".nan", Err(NotANumber::NotFinite)),
            (".NaN", Err(NotANumber::NotFinite)),
            ("-.inf", Err(NotANumber::NotFinite)),
            ("1e999", Err(NotANumber::TooLarge)),
            ("1:30", Err(NotANumber::Text)),
            ("e5", Err(NotANumber::Text)),
        ];
        for (text, expected) in cases {
            assert_eq!(float(text), expected, "{text}");
        }
        assert!(float("-0").is_ok_and(f64::is_sign_positive));
    }

    #[test]
    fn fault_006_no_and_yes_are_booleans_only_to_a_boolean_field() {
        assert_eq!(boolean("no"), Some(false));
        assert_eq!(boolean("Yes"), Some(true));
        assert_eq!(boolean("2"), None);
        for (text, typed) in [
            ("no", false),
            ("yes", false),
            ("true", true),
            ("08", true),
            ("1.0", true),
            ("v1", false),
        ] {
            assert_eq!(is_typed(text), typed, "{text}");
        }
    }
}
