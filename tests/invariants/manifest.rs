//! Just enough of Cargo.toml: sections, keys, and which of our crates a crate imports.

/// One `key = value` line, with the section that it is in.
pub struct Entry<'a> {
    /// The header without brackets: `dependencies`, `[test]` for `[[test]]`.
    pub section: &'a str,
    /// Left of the `=`.
    pub key: &'a str,
    /// Right of it, as written.
    pub value: &'a str,
}

/// The entries of a manifest, in order. Values over several lines give their first line, and each
/// further line as an entry without key.
pub fn entries(text: &str) -> Vec<Entry<'_>> {
    let mut section = "";
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split(" #").next().unwrap_or(line).trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with('[') && line.ends_with(']') && !line.contains('=') {
            section = &line[1..line.len() - 1];
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or(("", line));
        found.push(Entry { section, key: key.trim(), value: value.trim() });
    }
    found
}

/// `"text"` without its quotes.
pub fn unquoted(value: &str) -> &str {
    value.trim_matches('"')
}

/// The name in `[package]`.
pub fn package_name(text: &str) -> Option<&str> {
    entries(text)
        .into_iter()
        .find(|e| e.section == "package" && e.key == "name")
        .map(|e| unquoted(e.value))
}

/// The crates that a crate imports outside its tests: `[dependencies]`, `[build-dependencies]`
/// and both under `[target....]`, by package name.
pub fn imports(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for line in text.lines() {
        // [dependencies.forgelm_x]
        if let Some(name) = line.trim().strip_prefix("[dependencies.") {
            found.push(name.trim_end_matches(']'));
        }
    }
    for entry in entries(text) {
        let counts = entry.section == "dependencies"
            || entry.section == "build-dependencies"
            || (entry.section.starts_with("target.")
                && entry.section.ends_with("dependencies")
                && !entry.section.ends_with("dev-dependencies"));
        if !counts {
            continue;
        }
        // forgelm_x.workspace = true, forgelm_x = { .. }, other = { package = "forgelm_x", .. }
        let renamed = entry.value.split("package").nth(1).and_then(|rest| rest.split('"').nth(1));
        found.push(renamed.unwrap_or_else(|| entry.key.split('.').next().unwrap_or(entry.key)));
    }
    found
}

#[test]
fn imports_are_read_in_every_way_they_can_be_written() {
    let text = r#"
[package]
name = "forgelm_x" # a comment
[dependencies]
forgelm_a.workspace = true
b = { package = "forgelm_b", path = "../b" }
[dependencies.forgelm_c]
path = "../c"
[dev-dependencies]
forgelm_not.workspace = true
[target.'cfg(unix)'.dependencies]
forgelm_d = { path = "../d" }
"#;
    assert_eq!(package_name(text), Some("forgelm_x"));
    assert_eq!(imports(text), ["forgelm_c", "forgelm_a", "forgelm_b", "forgelm_d"]);
}
