//! Rust source without what the rules do not mean: comments, strings, test modules.

/// The code of a file: comments and the insides of string and char literals are blanks, lines
/// stay lines.
pub fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let bytes: Vec<char> = text.chars().collect();
    let mut i = 0;
    let blank = |c: char| if c == '\n' { '\n' } else { ' ' };
    while i < bytes.len() {
        let rest = &bytes[i..];
        let skip = if rest.starts_with(&['/', '/']) {
            rest.iter().position(|&c| c == '\n').unwrap_or(rest.len())
        } else if rest.starts_with(&['/', '*']) {
            block_comment_len(rest)
        } else if rest[0] == '"' {
            quoted_len(rest)
        } else if rest[0] == 'r' && !follows_identifier(&bytes, i) {
            raw_string_len(rest)
        } else if rest[0] == '\'' {
            char_len(rest)
        } else {
            0
        };
        if skip == 0 {
            out.push(rest[0]);
            i += 1;
        } else {
            out.extend(rest[..skip].iter().map(|&c| blank(c)));
            i += skip;
        }
    }
    out
}

/// The code of a file without its inline test modules: what follows `#[cfg(test)]` up to the
/// brace that closes the item, or to the semicolon where it has none.
pub fn code_outside_tests(text: &str) -> String {
    let code = code(text);
    let mut out = String::with_capacity(code.len());
    let mut rest = code.as_str();
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        let item = &rest[at..];
        let len = item_len(item);
        out.extend(item[..len].chars().filter(|&c| c == '\n'));
        rest = &item[len..];
    }
    out.push_str(rest);
    out
}

/// Whether `word` stands in `code` with no identifier character on either side.
pub fn has_word(code: &str, word: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word).any(|(at, _)| {
        !is_part(code[..at].chars().next_back()) && !is_part(code[at + word.len()..].chars().next())
    })
}

/// Whether a file holds nothing but tests or benchmarks, by its place.
pub fn is_test_file(name: &str) -> bool {
    name.starts_with("tests/")
        || name.contains("/tests/")
        || name.contains("/benches/")
        || name.ends_with("/tests.rs")
        || name.ends_with("_tests.rs")
}

fn item_len(item: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in item.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

fn follows_identifier(chars: &[char], at: usize) -> bool {
    at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_')
}

fn block_comment_len(rest: &[char]) -> usize {
    let (mut depth, mut i) = (0usize, 0);
    while i + 1 < rest.len() {
        match (rest[i], rest[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => {
                (depth, i) = (depth - 1, i + 2);
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    rest.len()
}

fn quoted_len(rest: &[char]) -> usize {
    let mut i = 1;
    while i < rest.len() {
        match rest[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    rest.len()
}

/// `r"..."`, `r#"..."#` and so on; 0 if it is something else.
fn raw_string_len(rest: &[char]) -> usize {
    let hashes = rest[1..].iter().take_while(|&&c| c == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let mut i = 2 + hashes;
    while i < rest.len() {
        if rest[i] == '"' && rest[i + 1..].iter().take_while(|&&c| c == '#').count() >= hashes {
            return i + 1 + hashes;
        }
        i += 1;
    }
    rest.len()
}

/// `'x'`, `'\n'`, `'\u{1F600}'`; 0 for a lifetime.
fn char_len(rest: &[char]) -> usize {
    if rest.get(1) == Some(&'\\') {
        return rest.iter().skip(3).position(|&c| c == '\'').map_or(0, |at| at + 4);
    }
    if rest.get(2) == Some(&'\'') { 3 } else { 0 }
}

#[test]
fn code_keeps_lines_and_drops_comments_and_literals() {
    let text = "let a = \"unsafe \\\" x\"; // unsafe\n/* unsafe /* y */\n */ let b = r#\"unsafe\"#;\n\
                let c = '\"'; let d: &'static str = \"\"; unsafe {}\n";
    let code = code(text);
    assert_eq!(code.lines().count(), text.lines().count());
    assert_eq!(code.matches("unsafe").count(), 1, "{code}");
    assert!(code.contains("&'static str"));
}

#[test]
fn test_modules_are_cut_out_and_code_after_them_is_not() {
    let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n fn f() { x(\"}\") }\n}\n#[cfg(test)]\nmod \
                more;\nfn b() {}\n";
    let code = code_outside_tests(text);
    assert!(code.contains("fn a()") && code.contains("fn b()"));
    assert!(!code.contains("fn f()") && !code.contains("more"));
    assert_eq!(code.lines().count(), text.lines().count());
}

#[test]
fn words_are_whole_words() {
    assert!(has_word("unsafe { x }", "unsafe"));
    assert!(!has_word("deny(unsafe_code)", "unsafe"));
}
