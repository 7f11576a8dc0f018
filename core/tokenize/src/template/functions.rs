//! What real templates expect beside the engine's own functions, and nothing that reaches the world.

use std::fmt;

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::growth;
use super::json::{Dump, Style};

/// Variable with the present time, in seconds since 1970.
pub(super) const NOW: &str = "__now";

/// Adds `raise_exception`, `strftime_now`, `tojson` and Python's methods.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_formatter(python_formatter);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    environment.add_filter(growth::FILTER, growth::added);
    environment.add_filter("sum", growth::sum);
    // Adds lists without paying for them, and is no filter of Jinja's.
    environment.remove_filter("chain");
    // Prints the engine's insides.
    environment.remove_global("debug");
    environment.set_fuel(Some(USUAL_FUEL));
}

/// Fuel of the shared environment; a conversation that may use more gets a copy of it.
const USUAL_FUEL: u64 = 100_000;

/// Renders with at most this fuel.
pub(super) fn render_with_fuel(
    environment: &Environment<'static>,
    name: &str,
    context: Value,
    fuel: u64,
) -> Result<String, Error> {
    if fuel <= USUAL_FUEL {
        return environment.get_template(name)?.render(context);
    }
    let mut richer = environment.clone();
    richer.set_fuel(Some(fuel));
    richer.get_template(name)?.render(context)
}

/// Python prints `True`, `False` and `None`.
fn python_formatter(
    out: &mut minijinja::Output,
    state: &mut State,
    value: &Value,
) -> Result<(), Error> {
    use minijinja::value::ValueKind;
    match value.kind() {
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        ValueKind::None => Ok(out.write_str("None")?),
        _ => {
            growth::pay(state, value)?;
            minijinja::escape_formatter(out, state, value)
        }
    }
}

/// Marks an error as one that the template raised itself.
#[derive(Debug)]
struct RaisedByTemplate(String);

impl fmt::Display for RaisedByTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RaisedByTemplate {}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception")
        .with_source(RaisedByTemplate(message)))
}

/// The message of an error that came from `raise_exception`.
pub(super) fn raised(error: &Error) -> Option<String> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(raised) = error.downcast_ref::<RaisedByTemplate>() {
            return Some(raised.0.clone());
        }
        next = error.source();
    }
    None
}

/// `tojson` as transformers defines it: `json.dumps` without HTML escapes.
fn to_json(
    state: &State,
    value: &Value,
    indent: Option<usize>,
    options: Kwargs,
) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    if indent.is_some_and(|indent| indent > 64) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson: expected an indent of at most 64",
        ));
    }
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item_separator, key_separator) = match separators.as_deref() {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "separators: expected two strings",
            ));
        }
    };
    let style = Style {
        indent,
        item_separator,
        key_separator,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut dump = Dump { out: String::new(), style: &style, state };
    dump.value(value, 0)?;
    Ok(dump.out)
}

/// The date of [`NOW`], UTC, by Python's `strftime` format.
fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    let now = state.lookup(NOW).and_then(|now| i64::try_from(now).ok());
    let now = now.ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOperation,
            "the template asks for the date, and none is fixed (`template_now`)",
        )
    })?;
    strftime(now, format).map_err(|directive| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now: directive %{directive} is not supported"),
        )
    })
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// From 1 January 1970, a Thursday.
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Formats a time; the error is the directive that is not known.
fn strftime(seconds: i64, format: &str) -> Result<String, char> {
    let (days, in_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (in_day / 3600, in_day / 60 % 60, in_day % 60);
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let at = |i: i64| usize::try_from(i).unwrap_or(0);
    let month_name = MONTHS[at(month - 1) % 12];
    let weekday = WEEKDAYS[at(days.rem_euclid(7))];
    let year_day = days - days_from_civil(year, 1, 1) + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = chars.next().unwrap_or('%');
        // `%-d`: glibc's "no padding".
        let (directive, padded) =
            if directive == '-' { (chars.next().unwrap_or('-'), false) } else { (directive, true) };
        let number =
            |n: i64, width: usize| if padded { format!("{n:0width$}") } else { n.to_string() };
        out.push_str(&match directive {
            'Y' => number(year, 4),
            'y' => number(year.rem_euclid(100), 2),
            'm' => number(month, 2),
            'd' => number(day, 2),
            'e' => format!("{day:2}"),
            'H' => number(hour, 2),
            'I' => number(hour12, 2),
            'M' => number(minute, 2),
            'S' => number(second, 2),
            'j' => number(year_day, 3),
            'f' => "000000".to_owned(),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            'F' => format!("{year:04}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            '%' => "%".to_owned(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            unknown => return Err(unknown),
        });
    }
    Ok(out)
}

/// Year, month and day of a day number, 0 being 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates_are_formatted_as_python_does() {
        // By Python: datetime.fromtimestamp(t, timezone.utc).strftime(...)
        let full = "%Y-%m-%d %H:%M:%S %A %B %d %b %a %j %y %I %p %-d %%";
        assert_eq!(
            strftime(1_709_210_096, full).as_deref(),
            Ok("2024-02-29 12:34:56 Thursday February 29 Feb Thu 060 24 12 PM 29 %")
        );
        assert_eq!(strftime(0, "%d %b %Y").as_deref(), Ok("01 Jan 1970"));
        assert_eq!(strftime(-1, "%F %T %a").as_deref(), Ok("1969-12-31 23:59:59 Wed"));
        assert_eq!(strftime(4_102_444_800, "%d %B %Y").as_deref(), Ok("01 January 2100"));
        assert_eq!(strftime(0, "%Q"), Err('Q'));
    }
}
