//! The page around the parts: head, style, table of contents, tables.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::super::inventory::is_sha256;

/// A browser loads and runs nothing but what is in the page.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Light and dark as the reader's system says, and ink on paper.
const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1a1c1e; --soft: #5a6068; --line: #c9ced6; --back: #ffffff;
  --panel: #f4f6f8; --one: #0b57b0; --two: #b3400a; --good: #14652f; --bad: #a11212; --wait: #7a5200; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a5abb3; --line: #444b55;
  --back: #15181c; --panel: #1f242a; --one: #7db4ff; --two: #ffa873; --good: #7fd99a; --bad: #ff9a94;
  --wait: #f0c46c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 62rem; color: var(--ink);
  background: var(--back); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.75rem; padding-top: 0.75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 0.5rem; }
a { color: var(--one); }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: 1rem; top: 0.5rem; background: var(--back); padding: 0.25rem 0.5rem; }
.verdict { border: 1px solid var(--line); border-left: 0.4rem solid var(--soft); padding: 0.75rem 1rem;
  background: var(--panel); margin: 1rem 0; }
.verdict p { margin: 0.25rem 0; }
.good { border-left-color: var(--good); } .bad { border-left-color: var(--bad); }
.wait { border-left-color: var(--wait); }
b.good { color: var(--good); } b.bad { color: var(--bad); } b.wait { color: var(--wait); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; padding: 0; margin: 1rem 0; list-style: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 0.75rem 0 1.25rem; font-size: 0.95rem; }
caption { text-align: left; font-weight: 600; padding: 0.25rem 0; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.75rem 0.35rem 0; border-bottom: 1px solid var(--line); }
thead th { border-bottom-width: 2px; }
tbody th { font-weight: 400; color: var(--soft); }
table.pairs tbody th { width: 30%; min-width: 7rem; }
table.wide th, table.wide td { overflow-wrap: break-word; }
.hash { font-family: ui-monospace, monospace; font-size: 0.85em; }
table.wide td.hash { overflow-wrap: anywhere; min-width: 14rem; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; }
pre { background: var(--panel); border: 1px solid var(--line); padding: 0.6rem 0.8rem; white-space: pre-wrap; }
figure { margin: 1rem 0; }
figcaption { color: var(--soft); font-size: 0.95rem; }
svg { width: 100%; height: auto; display: block; background: var(--panel); border: 1px solid var(--line); }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.one { stroke: var(--one); } .two { stroke: var(--two); } .limit { stroke: var(--bad); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.dash { stroke-dasharray: 7 4; } .dots { stroke-dasharray: 2 4; }
.mark { fill: var(--panel); stroke-width: 2; }
blockquote { margin: 0.25rem 0 1rem; padding: 0.25rem 0 0.25rem 1rem; border-left: 3px solid var(--line); }
.note, footer { color: var(--soft); font-size: 0.95rem; }
details { margin: 0.5rem 0 1.25rem; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } nav, .skip { display: none; }
  figure, table, .verdict { break-inside: avoid; } a { color: inherit; } }
";

/// A part of the page.
pub(super) struct Part {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) body: Markup,
}

/// The whole page.
pub(super) fn page(title: &str, head: &Markup, parts: &[Part], foot: &Markup) -> String {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#content" { "Skip to the content" }
                header {
                    h1 { (title) }
                    (head)
                    nav aria-label="Contents" {
                        ul { @for part in parts { li { a href={ "#" (part.id) } { (part.title) } } } }
                    }
                }
                main #content {
                    @for part in parts {
                        section aria-labelledby=(part.id) {
                            h2 id=(part.id) { (part.title) }
                            (part.body)
                        }
                    }
                }
                footer { (foot) }
            }
        }
    };
    visible(&markup.into_string())
}

/// Characters that turn the direction of what follows them, or that nobody sees, as spaces. Joiners
/// stay: scripts are written with them.
fn visible(text: &str) -> String {
    let is_hidden = |c: char| match c {
        '\n' | '\u{200c}' | '\u{200d}' => false,
        _ => super::super::markdown::is_hidden(c),
    };
    text.chars().map(|c| if is_hidden(c) { ' ' } else { c }).collect()
}

/// A table of names and values.
pub(super) fn pairs(caption: &str, rows: &[(String, String)]) -> Markup {
    html! {
        table.pairs {
            caption { (caption) }
            tbody {
                @for (name, value) in rows { tr { th scope="row" { (name) } td { (value) } } }
            }
        }
    }
}

/// A table with a head; the first cell of a row is its name, and cells that `is_number` says are set
/// to the right.
pub(super) fn table(
    caption: &str,
    head: &[&str],
    is_number: &[bool],
    rows: &[Vec<String>],
) -> Markup {
    let class = |i: usize| is_number.get(i).copied().unwrap_or(false).then_some("number");
    html! {
        div.scroll tabindex="0" role="group" aria-label=(caption) {
            table.wide {
                caption { (caption) }
                thead {
                    tr { @for (i, name) in head.iter().enumerate() { th scope="col" class=[class(i)] { (name) } } }
                }
                tbody {
                    @for row in rows {
                        tr {
                            @for (i, cell) in row.iter().enumerate() {
                                @if i == 0 { th scope="row" class=[class(i)] { (cell) } }
                                @else if has_digest(cell) { td.hash { (cell) } }
                                @else { td class=[class(i)] { (cell) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Whether a cell holds a word that no line can hold.
fn has_digest(cell: &str) -> bool {
    cell.split([' ', ':']).any(is_sha256)
}

/// A line to type.
pub(super) fn command(text: &str) -> Markup {
    html! { pre { code { (text) } } }
}
