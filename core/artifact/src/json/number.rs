//! Floats as text. Both forms begin with the shortest digits that read back as the same float
//! (which Rust prints); they differ in where the exponent begins.

use super::CanonicalError;
use serde_json::Number;

/// Sign, digits without leading or trailing zeros, and the place of the decimal point: the value
/// is `0.DIGITS * 10^point`.
fn shortest(v: f64) -> (&'static str, String, i32) {
    let text = format!("{:e}", v.abs());
    let (mantissa, exponent) = text.split_once('e').expect("the form of `{:e}`");
    let digits = mantissa.replace('.', "");
    let exponent: i32 = exponent.parse().expect("the form of `{:e}`");
    (if v.is_sign_negative() { "-" } else { "" }, digits, exponent + 1)
}

/// Digits with the decimal point at `point`, filled up with zeros: `0.00012`, `120`, `1.2`.
fn positional(digits: &str, point: i32) -> String {
    let n_digits = i32::try_from(digits.len()).expect("at most 17 digits");
    let zeros = |n: i32| "0".repeat(usize::try_from(n).unwrap_or(0));
    if point <= 0 {
        format!("0.{}{digits}", zeros(-point))
    } else if point >= n_digits {
        format!("{digits}{}", zeros(point - n_digits))
    } else {
        let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or(0));
        format!("{whole}.{fraction}")
    }
}

fn with_point(digits: &str) -> String {
    let (first, rest) = digits.split_at(1);
    if rest.is_empty() { first.to_owned() } else { format!("{first}.{rest}") }
}

/// `repr(v)` of Python: positional for 1e-4 <= |v| < 1e16, always with a point or an exponent of
/// at least two digits. Infinities and NaN are `inf`, `-inf` and `nan`.
#[must_use]
pub fn python_repr(v: f64) -> String {
    if v.is_nan() {
        return "nan".to_owned();
    }
    if v.is_infinite() {
        return if v > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let (sign, digits, point) = shortest(v);
    if v != 0.0 && !(-3..=16).contains(&point) {
        let exponent = point - 1;
        let exponent_sign = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{}e{exponent_sign}{:02}", with_point(&digits), exponent.abs());
    }
    let text = positional(&digits, point);
    let tail = if text.contains('.') { "" } else { ".0" };
    format!("{sign}{text}{tail}")
}

/// As ECMAScript's `Number.prototype.toString`: positional for 1e-6 <= |v| < 1e21.
pub(super) fn canonical(n: &Number) -> Result<String, CanonicalError> {
    const EXACT_MAX: u64 = 1 << 53;
    let magnitude = n.as_u64().or_else(|| n.as_i64().map(i64::unsigned_abs));
    if let Some(magnitude) = magnitude {
        let number = n.to_string();
        return if magnitude <= EXACT_MAX { Ok(number) } else { Err(CanonicalError { number }) };
    }
    let v = n.as_f64().unwrap_or(0.0);
    if v == 0.0 {
        return Ok("0".to_owned());
    }
    let (sign, digits, point) = shortest(v);
    if (-5..=21).contains(&point) {
        return Ok(format!("{sign}{}", positional(&digits, point)));
    }
    Ok(format!("{sign}{}e{:+}", with_point(&digits), point - 1))
}

#[cfg(test)]
mod tests {
    use super::{canonical, python_repr};
    use serde_json::Number;

    #[test]
    fn python_forms() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (2e-5, "2e-05"),
            (0.0001, "0.0001"),
            (0.000_123, "0.000123"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1.5e300, "1.5e+300"),
            (5e-324, "5e-324"),
            (0.1 + 0.2, "0.30000000000000004"),
            (-12.5, "-12.5"),
            (f64::INFINITY, "inf"),
        ];
        for (v, text) in cases {
            assert_eq!(python_repr(v), text);
        }
    }

    /// RFC 8785, appendix B.
    #[test]
    fn ecmascript_forms() {
        let cases: [(u64, &str); 14] = [
            (0x0000_0000_0000_0000, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x8000_0000_0000_0001, "-5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
        ];
        for (bits, text) in cases {
            let number = Number::from_f64(f64::from_bits(bits)).expect("finite");
            assert_eq!(canonical(&number).as_deref(), Ok(text));
        }
    }
}
