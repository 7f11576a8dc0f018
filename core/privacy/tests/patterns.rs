//! Each kind of finding with what it must find and what comes near it, and masking as a whole.
//!
//! Tokens are put together here, so that no file of this repository looks as if it had one.

use forgelm_privacy::{
    PII_MASK, PiiKind, SECRET_MASK, SecretKind, detect_pii, detect_secrets, mask_pii, mask_secrets,
};

/// The texts that were found, in order of their kinds.
fn pii(text: &str) -> Vec<(PiiKind, &str)> {
    detect_pii(text).iter().map(|found| (found.kind, &text[found.start..found.end])).collect()
}

fn secrets(text: &str) -> Vec<(SecretKind, &str)> {
    detect_secrets(text).iter().map(|found| (found.kind, &text[found.start..found.end])).collect()
}

fn x(n: usize) -> String {
    "aB3".chars().cycle().take(n).collect()
}

#[test]
fn addresses_of_mail() {
    for (text, expected) in [
        ("to a.b+c@mail.example.org.", Some("a.b+c@mail.example.org")),
        ("%x@x-y.co", Some("x@x-y.co")),
        ("写信给info@example.com吧", Some("info@example.com")),
        ("a@b", None),
        ("a@b.c", None),
        ("a@-b.com", None),
        ("a@b-.com", None),
        ("@user and user@", None),
    ] {
        assert_eq!(pii(text).first().copied(), expected.map(|t| (PiiKind::Email, t)), "{text}");
    }
    let longest = format!("a@{}.com", "b".repeat(63));
    assert_eq!(pii(&longest), [(PiiKind::Email, longest.as_str())]);
    // A label of 64 is none, but what follows its first character is one.
    assert_eq!(pii(&format!("a@{}.com", "b".repeat(64))), []);
}

#[test]
fn bank_accounts() {
    for (text, expected) in [
        ("IBAN GB29 NWBK 6016 1331 9268 19.", Some("GB29 NWBK 6016 1331 9268 19")),
        ("DE89370400440532013000", Some("DE89370400440532013000")),
        // The pattern would take the words that follow.
        ("DE89 3704 0044 0532 0130 00 AND MORE", Some("DE89 3704 0044 0532 0130 00")),
        ("XX12 DE89 3704 0044 0532 0130 00", Some("DE89 3704 0044 0532 0130 00")),
        ("DE89370400440532013000X", None),
        ("DE89 3704 0044 0532 0130 01", None),
        ("de89 3704 0044 0532 0130 00", None),
        ("DE89  3704 0044 0532 0130 00", None),
    ] {
        let found = pii(text).into_iter().find(|(kind, _)| *kind == PiiKind::Iban);
        assert_eq!(found, expected.map(|t| (PiiKind::Iban, t)), "{text}");
    }
}

#[test]
fn payment_cards() {
    for (text, expected) in [
        ("card 4111111111111111", Some("4111111111111111")),
        ("卡号4111111111111111是", Some("4111111111111111")),
        ("4111-1111-1111-1111", Some("4111-1111-1111-1111")),
        ("3782 822463 10005", Some("3782 822463 10005")),
        ("4 1 1 1 1111 1111-1111", Some("4 1 1 1 1111 1111-1111")),
        // With what usually follows a number, or comes before it.
        ("4111 1111 1111 1111 12/27", Some("4111 1111 1111 1111")),
        ("5555555555554444 123", Some("5555555555554444")),
        ("2026 4111 1111 1111 1111", Some("4111 1111 1111 1111")),
        ("4111111111111112", None),
        ("1234567812345670", None),
        ("x4111111111111111", None),
        ("4111111111111111_a", None),
        ("4111.1111.1111.1111", None),
        // Numbers in a table, whose digits pass the check by chance.
        ("99 41 11 11 11 11 11 11 11 7", None),
    ] {
        let found = pii(text).into_iter().find(|(kind, _)| *kind == PiiKind::CreditCard);
        assert_eq!(found, expected.map(|t| (PiiKind::CreditCard, t)), "{text}");
    }
    let many = "4111111111111111, 5555555555554444;378282246310005";
    assert_eq!(pii(many).iter().filter(|(kind, _)| *kind == PiiKind::CreditCard).count(), 3);
}

#[test]
fn national_numbers_and_telephones() {
    for (text, expected) in [
        ("078-05-1120", vec![(PiiKind::UsSsn, "078-05-1120")]),
        ("000-05-1120 666-05-1120 900-05-1120 078-00-1120 078-05-0000", vec![]),
        ("078-05-11201 1078-05-1120", vec![]),
        ("255081416802538", vec![(PiiKind::FrSsn, "255081416802538")]),
        ("255081416802539 3550814168025 2551314168025", vec![]),
        ("TC 10000000146.", vec![(PiiKind::TrId, "10000000146")]),
        ("10000000147 100000001460", vec![]),
        (
            "L01234567X and T22000129",
            vec![(PiiKind::DeId, "L01234567X"), (PiiKind::DeId, "T22000129")],
        ),
        ("L012345 l01234567 L0123456789", vec![]),
        ("+90 532 123 4567", vec![(PiiKind::Phone, "+90 532 123 4567")]),
        ("(555) 123-4567", vec![(PiiKind::Phone, "(555) 123-4567")]),
        ("x+90 532 123 4567 5+123 f(12) 34", vec![]),
        ("+1 55, (5) 123-4567", vec![]),
    ] {
        assert_eq!(pii(text), expected, "{text}");
    }
}

#[test]
fn secrets_of_every_kind() {
    let pem = |label: &str, n: usize| {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----", "A".repeat(n))
    };
    let jwt = |n: usize| format!("eyJ{}{}.eyJ{}.{}", "hbGc", x(12), x(12), x(n));
    let azure = |n: usize| {
        format!("DefaultEndpointsProtocol=https;AccountName=me;AccountKey={}==", "Ab0/".repeat(n))
    };
    let found = [
        // The key that AWS has in its documents.
        (SecretKind::AwsAccessKey, format!("AKIA{}", "IOSFODNN7EXAMPLE")),
        (SecretKind::GithubToken, format!("ghp_{}", x(36))),
        (SecretKind::GithubToken, format!("github_pat_{}", x(20))),
        (SecretKind::GitlabToken, format!("glpat-{}", x(20))),
        (SecretKind::SlackToken, format!("xoxb-{}", "12345-abcde")),
        (SecretKind::AnthropicApiKey, format!("sk-ant-{}", x(24))),
        (SecretKind::OpenaiApiKey, format!("sk-{}", x(48))),
        (SecretKind::OpenaiApiKey, format!("sk-proj-{}", x(20))),
        (SecretKind::GoogleApiKey, format!("AIza{}", x(35))),
        (SecretKind::HuggingfaceToken, format!("hf_{}", x(34))),
        (SecretKind::StripeApiKey, format!("sk_live_{}", x(24))),
        (SecretKind::Jwt, jwt(15)),
        (SecretKind::OpensshPrivateKey, pem("OPENSSH PRIVATE KEY", 400)),
        (SecretKind::OpensshPrivateKey, pem("EC PRIVATE KEY", 100)),
        (SecretKind::Pkcs8PrivateKey, pem("PRIVATE KEY", 64)),
        (SecretKind::Pkcs8PrivateKey, pem("ENCRYPTED PRIVATE KEY", 64)),
        (SecretKind::PgpPrivateKey, pem("PGP PRIVATE KEY BLOCK", 60_000)),
        (SecretKind::AzureStorageKey, azure(22)),
    ];
    for (kind, secret) in &found {
        let text = format!("é key: \"{secret}\", that is it");
        assert_eq!(secrets(&text), [(*kind, secret.as_str())]);
        let masked = mask_secrets(&text, SECRET_MASK);
        assert_eq!(masked.text, format!("é key: \"{SECRET_MASK}\", that is it"));
        assert_eq!(masked.counts.into_iter().collect::<Vec<_>>(), [(*kind, 1)]);
    }
    let kinds: std::collections::BTreeSet<_> = found.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds.len(), SecretKind::ALL.len(), "each kind has an example");

    let near = [
        format!("AKIA{}", "IOSFODNN7EXAMPL"),
        format!("AKIA{}", "IOSFODNN7EXAMPLEX"),
        format!("ghp_{}", x(19)),
        format!("glpat-{}", x(19)),
        format!("xoxq-{}", "12345-abcde"),
        format!("sk-{}", x(19)),
        "a risk-assessment-of-everything".to_owned(),
        format!("AIza{}", x(34)),
        format!("hf_{}", "hub_download_is_a_function_of_it"),
        format!("sk_test_{}", x(24)),
        jwt(14),
        jwt(15).replace(".eyJ", "-eyJ"),
        "-----BEGIN RSA PRIVATE KEY----- begins a key".to_owned(),
        pem("RSA PRIVATE KEY", 8300),
        pem("PUBLIC KEY", 64),
        pem("PRIVATE KEY", 64).replace("-----END PRIVATE", "-----END ENCRYPTED PRIVATE"),
        azure(4),
    ];
    for text in &near {
        assert_eq!(secrets(text), []);
    }
    // A text about keys, and then a key.
    let key = pem("RSA PRIVATE KEY", 64);
    let text = format!("it begins with -----BEGIN RSA PRIVATE KEY----- as in\n{key}");
    assert_eq!(secrets(&text), [(SecretKind::OpensshPrivateKey, key.as_str())]);
}

#[test]
fn an_earlier_kind_is_masked_first() {
    let masked = mask_pii("4111111111111111@shop.com", PII_MASK);
    assert_eq!(masked.text, PII_MASK);
    assert_eq!(masked.counts.into_iter().collect::<Vec<_>>(), [(PiiKind::Email, 1)]);
    // And yet it is known what is inside.
    let kinds: Vec<_> = pii("4111111111111111@shop.com").iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [PiiKind::Email, PiiKind::CreditCard]);
    let masked = mask_pii("a@b.org or +90 532 123 4567", "*");
    assert_eq!(masked.text, "* or *");
}

/// Texts of pieces that are findings, nearly findings, and what joins them.
fn texts(seed: u64, n: usize) -> Vec<String> {
    let pieces = [
        "a@b.com",
        "@",
        ".",
        "9",
        "12",
        " ",
        "-",
        "+90 532 123 4567",
        "(555)",
        "DE89",
        " 3704 0044 0532 0130 00",
        "4111 1111 1111 1111",
        "4111",
        "5555555555554444",
        "078-05-1120",
        "255081416802538",
        "10000000146",
        "L01234567",
        "é",
        "卡",
        "_",
        "[REDACTED]",
        "sk-",
        "sk-ant-",
        "aB3aB3aB3aB3aB3aB3aB3aB3",
        "AKIA",
        "hf_",
        "IOSFODNN7EXAMPLE",
        "-----BEGIN PRIVATE KEY-----",
        "-----END PRIVATE KEY-----",
        "eyJhbGc",
        ".eyJ",
        "glpat-",
        "DefaultEndpointsProtocol=https;AccountName=",
        "m;AccountKey=",
        "\n",
    ];
    let mut state = seed;
    let mut below = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap_or(0) % n
    };
    (0..n).map(|_| (0..=below(24)).map(|_| pieces[below(pieces.len())]).collect()).collect()
}

#[test]
fn masked_texts_have_no_finding() {
    let mut n_changed = 0;
    for text in texts(7, 20_000) {
        let masked = mask_pii(&text, PII_MASK);
        assert_eq!(pii(&masked.text), [], "{text:?} became {:?}", masked.text);
        assert_eq!(mask_pii(&masked.text, PII_MASK).text, masked.text);
        let n: u64 = masked.counts.values().sum();
        assert_eq!(n == 0, masked.text == text);
        n_changed += u64::from(n > 0);
        let masked = mask_secrets(&text, SECRET_MASK);
        assert_eq!(secrets(&masked.text), [], "{text:?} became {:?}", masked.text);
        n_changed += u64::from(masked.text != text);
    }
    assert!(n_changed > 10_000, "the texts have too few findings: {n_changed}");
}

#[test]
fn places_lie_in_the_text_and_time_is_linear() {
    // Long runs of what patterns begin with: quadratic work would take minutes.
    for piece in [
        "a@",
        "1 ",
        "4",
        "DE89 ",
        "(55) ",
        "+1",
        "eyJhbGc",
        "-----BEGIN PRIVATE KEY-----",
        "sk-",
        "1-",
        "a@b.c",
        "A1",
    ] {
        let text = piece.repeat((2 << 20) / piece.len());
        for found in detect_pii(&text) {
            assert!(text.get(found.start..found.end).is_some());
        }
        for found in detect_secrets(&text) {
            assert!(text.get(found.start..found.end).is_some());
        }
    }
}
