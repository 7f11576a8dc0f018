//! What the parts found as a page for docs/performance, and as numbers for programs.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::arguments::Arguments;
use super::finding::{Finding, Table};

/// One part of the page.
pub(crate) struct Section {
    pub name: &'static str,
    pub title: &'static str,
    pub finding: Finding,
}

fn device(sections: &[Section]) -> &Value {
    static NONE: Value = Value::Null;
    let device = sections.iter().find(|section| section.name == "device");
    device.map_or(&NONE, |section| &section.finding.numbers)
}

/// Whether the device is the one of the tests.
pub(crate) fn is_emulated(sections: &[Section]) -> bool {
    device(sections)["is_emulated"].as_bool() != Some(false)
}

fn card(sections: &[Section]) -> &str {
    device(sections)["name"].as_str().unwrap_or("no device")
}

/// `NVIDIA H100 80GB HBM3` is `nvidia-h100-80gb-hbm3`.
pub(crate) fn file_name(sections: &[Section]) -> String {
    let lower = card(sections).to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// The day, which a program of this kind may ask the system for.
fn today() -> String {
    let output = std::process::Command::new("date").args(["-u", "+%Y-%m-%d"]).output();
    output.map_or_else(|_| String::new(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

/// The command that made the page, without folders of one machine.
fn command(arguments: &Arguments) -> String {
    let mut words = format!("tools/bench/gpu --minutes {}", arguments.minutes);
    if !arguments.only.is_empty() {
        let _ = write!(words, " --only {}", arguments.only.join(","));
    }
    if arguments.tiny {
        words.push_str(" --tiny");
    }
    words
}

pub(crate) fn markdown(arguments: &Arguments, sections: &[Section]) -> String {
    let smi = &device(sections)["nvidia_smi"]["driver_version"];
    let driver = smi.as_str().unwrap_or("of a version that nothing said");
    let mut page = format!(
        "# {}\n\nMeasured on {} by `{}`, driver {driver}.\n",
        card(sections),
        today(),
        command(arguments)
    );
    if is_emulated(sections) || arguments.tiny {
        page.push_str(
            "\n**Emulated or tiny: these numbers say nothing about any device. They show that the \
             program works. Do not keep this page.**\n",
        );
    }
    for section in sections {
        let Finding { tables, notes, problems, .. } = &section.finding;
        let _ = write!(page, "\n## {}\n", section.title);
        for table in tables {
            page.push('\n');
            add_table(&mut page, table);
        }
        for problem in problems {
            let _ = write!(page, "\n**Problem:** {}\n", one_line(problem));
        }
        for note in notes {
            let _ = write!(page, "\n{note}\n");
        }
    }
    page
}

fn add_table(page: &mut String, table: &Table) {
    let is_number = |column: &String| column.starts_with('>');
    let names = table.columns.iter().map(|column| column.trim_start_matches('>'));
    let rules = table.columns.iter().map(|column| if is_number(column) { "--:" } else { "---" });
    let mut row = |cells: Vec<String>| {
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    };
    row(names.map(str::to_owned).collect());
    row(rules.map(str::to_owned).collect());
    for cells in &table.rows {
        row(cells.iter().map(|cell| one_line(cell).replace('|', "\\|")).collect());
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(crate) fn raw(arguments: &Arguments, sections: &[Section]) -> String {
    let parts: Map<String, Value> = sections
        .iter()
        .map(|section| (section.name.to_owned(), section.finding.numbers.clone()))
        .collect();
    let problems: Vec<&String> =
        sections.iter().flat_map(|section| &section.finding.problems).collect();
    let whole = json!({
        "card": card(sections),
        "date": today(),
        "command": command(arguments),
        "is_tiny": arguments.tiny,
        "problems": problems,
        "parts": Value::Object(parts),
    });
    format!("{whole:#}\n")
}

#[cfg(test)]
mod tests {
    use super::super::arguments::Arguments;
    use super::*;

    fn sections(name: &str, is_emulated: bool) -> Vec<Section> {
        let numbers = json!({
            "name": name,
            "is_emulated": is_emulated,
            "nvidia_smi": { "driver_version": "1.2" },
        });
        let mut table = Table::new(&["op", ">ms"]);
        table.row(&["a|b".to_owned(), "1".to_owned()]);
        let finding = Finding {
            tables: vec![table],
            notes: vec!["A note.".to_owned()],
            problems: vec!["two\nlines".to_owned()],
            numbers,
        };
        vec![Section { name: "device", title: "The device", finding }]
    }

    #[test]
    fn a_page_has_the_card_the_driver_the_command_and_all_tables() {
        let arguments = Arguments::parse(&[]).unwrap();
        let found = sections("NVIDIA A0 (8GB)", false);
        assert_eq!(file_name(&found), "nvidia-a0-8gb");
        let page = markdown(&arguments, &found);
        let expected = format!(
            "# NVIDIA A0 (8GB)\n\nMeasured on {} by `tools/bench/gpu --minutes 15`, driver 1.2.\n\
             \n## The device\n\n| op | ms |\n| --- | --: |\n| a\\|b | 1 |\n\
             \n**Problem:** two lines\n\nA note.\n",
            today()
        );
        assert_eq!(page, expected);
    }

    #[test]
    fn an_emulated_device_and_a_tiny_run_say_so() {
        let mut arguments = Arguments::parse(&[]).unwrap();
        assert!(markdown(&arguments, &sections("x", true)).contains("Do not keep this page"));
        assert!(is_emulated(&sections("x", true)) && is_emulated(&[]));
        arguments.tiny = true;
        assert!(markdown(&arguments, &sections("x", false)).contains("Do not keep this page"));
    }
}
