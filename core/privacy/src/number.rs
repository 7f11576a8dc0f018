//! Numbers that carry their own check.

/// Luhn's check (ISO/IEC 7812-1, annex B): from the right every second digit is doubled.
pub(crate) fn is_luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, &digit)| {
            let digit = u32::from(digit - b'0');
            match (i % 2, digit * 2) {
                (0, _) => digit,
                (_, doubled) if doubled > 9 => doubled - 9,
                (_, doubled) => doubled,
            }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Whether an issuer of cards gives out numbers that begin and are as long as this one.
pub(crate) fn has_issuer(digits: &[u8]) -> bool {
    let first = |n: usize| digits[..n].iter().fold(0, |sum, b| sum * 10 + u32::from(b - b'0'));
    let n = digits.len();
    if n < 13 {
        return false;
    }
    match (first(1), first(2), first(3), first(4)) {
        (4, ..) => matches!(n, 13 | 16 | 19),
        (_, 34 | 37, ..) => n == 15,
        (_, 35 | 62 | 65, ..) | (.., 6011) | (_, _, 644..=649, _) => (16..=19).contains(&n),
        (_, 36 | 38 | 39, ..) | (_, _, 300..=305, _) => (14..=19).contains(&n),
        (.., 2200..=2204) => (16..=19).contains(&n),
        (_, 51..=55, ..) | (.., 2221..=2720) => n == 16,
        _ => false,
    }
}

/// ISO 13616: 15 to 34 capitals and digits whose number, the first four moved to the end, is 1
/// modulo 97. Spaces do not count.
pub(crate) fn is_iban(text: &[u8]) -> bool {
    let mut plain: Vec<u8> = text.iter().copied().filter(|&b| b != b' ').collect();
    if !(15..=34).contains(&plain.len()) {
        return false;
    }
    plain.rotate_left(4);
    let rest = plain.iter().fold(0_u32, |rest, &b| match b {
        b'0'..=b'9' => (rest * 10 + u32::from(b - b'0')) % 97,
        _ => (rest * 100 + u32::from(b - b'A') + 10) % 97,
    });
    rest == 1
}

/// How long an IBAN of a country is, after the registry of SWIFT.
pub(crate) fn iban_len(country: &[u8]) -> Option<usize> {
    Some(match country {
        b"NO" => 15,
        b"BE" => 16,
        b"DK" | b"FI" | b"FO" | b"GL" | b"NL" => 18,
        b"MK" | b"SI" => 19,
        b"AT" | b"BA" | b"EE" | b"KZ" | b"LT" | b"LU" | b"XK" => 20,
        b"CH" | b"HR" | b"LI" | b"LV" => 21,
        b"BG" | b"BH" | b"CR" | b"DE" | b"GB" | b"GE" | b"IE" | b"ME" | b"RS" | b"VA" => 22,
        b"AE" | b"GI" | b"IL" | b"IQ" | b"TL" => 23,
        b"AD" | b"CZ" | b"ES" | b"MD" | b"PK" | b"RO" | b"SA" | b"SE" | b"SK" | b"TN" | b"VG" => 24,
        b"LY" | b"PT" | b"ST" => 25,
        b"IS" | b"TR" => 26,
        b"FR" | b"GR" | b"IT" | b"MC" | b"MR" | b"SM" => 27,
        b"AL" | b"AZ" | b"BY" | b"CY" | b"DO" | b"GT" | b"HU" | b"LB" | b"PL" | b"SV" => 28,
        b"BR" | b"EG" | b"PS" | b"QA" | b"UA" => 29,
        b"JO" | b"KW" | b"MU" => 30,
        b"MT" | b"SC" => 31,
        b"LC" => 32,
        _ => return None,
    })
}

/// The two last digits of a number of Turkish citizens follow from the nine before.
pub(crate) fn is_tc_kimlik(digits: &[u8]) -> bool {
    let d: Vec<i32> = digits.iter().map(|b| i32::from(b - b'0')).collect();
    let [d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11] = d[..] else { return false };
    let tenth = (7 * (d1 + d3 + d5 + d7 + d9) - (d2 + d4 + d6 + d8)).rem_euclid(10);
    let eleventh = (d1 + d2 + d3 + d4 + d5 + d6 + d7 + d8 + d9 + d10) % 10;
    d1 != 0 && tenth == d10 && eleventh == d11
}

/// A French number of 13 places, or one of 15 whose last two are its key: 97 less the rest modulo
/// 97. Corsica's `2A` and `2B` count as 19 and 18.
pub(crate) fn is_nir(text: &[u8]) -> bool {
    let Some((number, key)) = text.split_at_checked(13) else { return false };
    if key.is_empty() {
        return true;
    }
    let department: &[u8] = match &number[5..7] {
        b"2A" => b"19",
        b"2B" => b"18",
        plain => plain,
    };
    let digits = number[..5].iter().chain(department).chain(&number[7..]);
    let number = digits.fold(0_u64, |sum, b| sum * 10 + u64::from(b - b'0'));
    let key = key.iter().fold(0_u64, |sum, b| sum * 10 + u64::from(b - b'0'));
    97 - number % 97 == key
}

#[cfg(test)]
mod tests {
    use super::{has_issuer, iban_len, is_iban, is_luhn, is_nir, is_tc_kimlik};

    /// Numbers that card companies publish for tests.
    #[test]
    fn published_card_numbers_pass_and_fail_with_one_digit_changed() {
        for number in [
            "4111111111111111",
            "4012888888881881",
            "4222222222222",
            "5555555555554444",
            "5105105105105100",
            "2223003122003222",
            "378282246310005",
            "371449635398431",
            "6011111111111117",
            "6011000990139424",
            "30569309025904",
            "38520000023237",
            "3530111333300000",
            "3566002020360505",
            "6200000000000005",
        ] {
            assert!(has_issuer(number.as_bytes()) && is_luhn(number.as_bytes()), "{number}");
            for i in 0..number.len() {
                let mut changed = number.as_bytes().to_vec();
                changed[i] = if changed[i] == b'9' { b'0' } else { changed[i] + 1 };
                assert!(!is_luhn(&changed), "{number} with digit {i} changed");
            }
        }
        // Passes Luhn, and no issuer begins so.
        assert!(is_luhn(b"1234567812345670") && !has_issuer(b"1234567812345670"));
        // The table ends here: 2720 is the last of Mastercard's second series.
        assert!(has_issuer(b"2720000000000000") && !has_issuer(b"2721000000000000"));
        assert!(!has_issuer(b"41111111111111") && !has_issuer(b"3782822463100051"));
    }

    /// Examples of the registry of SWIFT.
    #[test]
    fn ibans_of_the_registry_pass_and_have_the_length_of_their_country() {
        for iban in [
            "AD12 0001 2030 2003 5910 0100",
            "BE68 5390 0754 7034",
            "CH93 0076 2011 6238 5295 7",
            "DE89 3704 0044 0532 0130 00",
            "ES91 2100 0418 4502 0005 1332",
            "FR14 2004 1010 0505 0001 3M02 606",
            "GB29 NWBK 6016 1331 9268 19",
            "MT84 MALT 0110 0001 2345 MTLC AST0 01S",
            "NL91 ABNA 0417 1643 00",
            "NO93 8601 1117 947",
            "TR33 0006 1005 1978 6457 8413 26",
        ] {
            assert!(is_iban(iban.as_bytes()), "{iban}");
            let n = iban.bytes().filter(|&b| b != b' ').count();
            assert_eq!(iban_len(&iban.as_bytes()[..2]), Some(n), "{iban}");
            // One digit more or less is never the same modulo 97.
            let last = iban.rfind(|c: char| c.is_ascii_digit()).unwrap();
            let mut changed = iban.as_bytes().to_vec();
            changed[last] = if changed[last] == b'9' { b'0' } else { changed[last] + 1 };
            assert!(!is_iban(&changed), "{iban}");
        }
        assert!(!is_iban(b"GB29 NWBK 60"));
    }

    #[test]
    fn national_numbers_follow_from_their_digits() {
        // The number that public examples of the algorithm use.
        assert!(is_tc_kimlik(b"10000000146"));
        assert!(!is_tc_kimlik(b"10000000147") && !is_tc_kimlik(b"10000000156"));
        assert!(!is_tc_kimlik(b"00000000000") && !is_tc_kimlik(b"1000000014"));
        // 2 55 08 14 168 025: 2550814168025 = 97 * 26297053278 + 59, and 97 - 59 = 38.
        assert!(is_nir(b"255081416802538") && !is_nir(b"255081416802539"));
        assert!(is_nir(b"2550814168025"));
        // 1 84 12 2A 451 089 as 1841219451089 = 97 * 18981643825 + 64, and 97 - 64 = 33.
        assert!(is_nir(b"184122A45108933") && !is_nir(b"184122B45108933"));
    }
}
