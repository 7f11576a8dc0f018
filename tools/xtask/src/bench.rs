//! `cargo xtask bench MODEL`: builds `forgelm-bench` in the release profile, runs its benchmarks
//! one after the other, and prints what they found as one table.
//!
//! A benchmark gives a row of the table as a line of standard output that begins with the word
//! `result` and has four more fields between tabs: what, value with unit, limit with unit, share.
//! All other lines go to the terminal as they come.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const USAGE: &str = "usage: cargo xtask bench MODEL [--only NAME,..]
  MODEL  a model folder or a `.gguf` file; SmolLM2-135M is what docs/performance speaks of";

/// Names, and the arguments of each run; `MODEL` stands for the model.
const BENCHMARKS: [(&str, &[&str]); 13] = [
    ("gemm", &["gemm", "--quick"]),
    ("train", &["train", "MODEL", "--case", "qv", "--dtype", "float32", "--steps", "3"]),
    ("train", &["train", "MODEL", "--case", "qv", "--dtype", "bfloat16", "--steps", "3"]),
    ("train", &["train", "MODEL", "--case", "qv-long", "--dtype", "float32", "--steps", "3"]),
    ("train", &["train", "MODEL", "--case", "qv-long", "--dtype", "bfloat16", "--steps", "3"]),
    ("train", &["train", "MODEL", "--case", "all", "--dtype", "float32", "--steps", "3"]),
    ("train", &["train", "MODEL", "--case", "all", "--dtype", "bfloat16", "--steps", "3"]),
    ("generate", &["generate", "MODEL", "--dtype", "float32", "--batch", "1"]),
    ("generate", &["generate", "MODEL", "--dtype", "bfloat16", "--batch", "1"]),
    ("generate", &["generate", "MODEL", "--dtype", "float32", "--batch", "8"]),
    ("generate", &["generate", "MODEL", "--dtype", "bfloat16", "--batch", "8"]),
    ("load", &["load", "MODEL", "--dtype", "float32"]),
    ("load", &["load", "MODEL", "--dtype", "bfloat16"]),
];

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    what: String,
    value: String,
    limit: String,
    share: String,
}

/// Runs the benchmarks.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let (model, only) = parse(arguments)?;
    cargo().args(["build"]).args(PACKAGE).status().map_err(|e| e.to_string()).and_then(
        |status| {
            if status.success() { Ok(()) } else { Err("the benchmarks do not build".to_owned()) }
        },
    )?;
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for (name, arguments) in BENCHMARKS {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        let arguments = arguments.iter().map(|&word| if word == "MODEL" { &model } else { word });
        let arguments: Vec<&str> = arguments.collect();
        println!("forgelm-bench {}", arguments.join(" "));
        match benchmark(&arguments, &mut rows) {
            Ok(()) => {}
            Err(problem) => {
                failed.push(format!("forgelm-bench {}: {problem}", arguments.join(" ")))
            }
        }
    }
    print!("\n{}", table(&rows));
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

const PACKAGE: [&str; 3] = ["--release", "--package", "forgelm_bench"];

fn cargo() -> Command {
    Command::new(option_env!("CARGO").unwrap_or("cargo"))
}

/// The model and the benchmarks that were named.
fn parse(arguments: &[String]) -> Result<(String, Vec<String>), String> {
    let (mut model, mut only) = (None, Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--only" => {
                let names = rest.next().ok_or(USAGE)?;
                for name in names.split(',') {
                    if !BENCHMARKS.iter().any(|(known, _)| *known == name) {
                        return Err(format!("`{name}` is not a benchmark\n{USAGE}"));
                    }
                    only.push(name.to_owned());
                }
            }
            option if option.starts_with('-') => return Err(USAGE.to_owned()),
            path if model.is_none() => model = Some(path.to_owned()),
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok((model.ok_or(USAGE)?, only))
}

fn benchmark(arguments: &[&str], rows: &mut Vec<Row>) -> Result<(), String> {
    let mut child = cargo()
        .arg("run")
        .arg("--quiet")
        .args(PACKAGE)
        .arg("--")
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line.map_err(|error| error.to_string())?;
            match row(&line) {
                Some(row) => rows.push(row),
                None => println!("  {line}"),
            }
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}

/// The row that a line stands for.
fn row(line: &str) -> Option<Row> {
    let fields: Vec<&str> = line.strip_prefix("result\t")?.split('\t').collect();
    let [what, value, limit, share] = fields.as_slice() else { return None };
    let [what, value, limit, share] = [what, value, limit, share].map(|&text| text.to_owned());
    Some(Row { what, value, limit, share })
}

/// As Markdown, so that it can stand in docs/performance.
fn table(rows: &[Row]) -> String {
    let header = Row {
        what: "what".into(),
        value: "measured".into(),
        limit: "limit, same run".into(),
        share: "share".into(),
    };
    let cells = |row: &Row| [&row.what, &row.value, &row.limit, &row.share].map(String::clone);
    let all: Vec<[String; 4]> = std::iter::once(&header).chain(rows).map(cells).collect();
    let width = |n: usize| all.iter().map(|cells| cells[n].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let mut text = String::new();
    for (n, [what, value, limit, share]) in all.iter().enumerate() {
        let [a, b, c, d] = widths;
        text += &format!("| {what:a$} | {value:>b$} | {limit:>c$} | {share:>d$} |\n");
        if n == 0 {
            let [a, b, c, d] = widths.map(|width| "-".repeat(width));
            text += &format!("|-{a}-|-{b}:|-{c}:|-{d}:|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{BENCHMARKS, USAGE, parse, row, table};

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn result_lines_become_rows_and_others_do_not() {
        assert_eq!(row("12 tokens/s"), None);
        assert_eq!(row("result\ttwo\tfields"), None);
        assert_eq!(row("result\ta\tb\tc\td\te"), None);
        let rows = [
            row("result\tgeneration\t12 tokens/s\t24 tokens/s\t50 %").unwrap(),
            row("result\tload\t9 MB/s\t10 MB/s\t90 %").unwrap(),
        ];
        let expected = "\
| what       |    measured | limit, same run | share |
|------------|------------:|----------------:|------:|
| generation | 12 tokens/s |     24 tokens/s |  50 % |
| load       |      9 MB/s |         10 MB/s |  90 % |
";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn a_model_is_needed_and_names_are_checked() {
        assert_eq!(parse(&[]).unwrap_err(), USAGE);
        assert_eq!(parse(&words("a b")).unwrap_err(), USAGE);
        assert_eq!(parse(&words("a --fast")).unwrap_err(), USAGE);
        let unknown = parse(&words("a --only gemm,tarin")).unwrap_err();
        assert!(unknown.starts_with("`tarin` is not a benchmark"), "{unknown}");
        let good = parse(&words("--only gemm,load folder")).unwrap();
        assert_eq!(good, ("folder".to_owned(), words("gemm load")));
        assert_eq!(BENCHMARKS.len(), 13);
    }
}
