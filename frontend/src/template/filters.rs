//! Filters and tests that minijinja lacks, or that answer otherwise in Jinja2.
//!
//! Left out are those for web pages and those that answer by chance: `filesizeformat`, `pprint`, `random`,
//! `striptags`, `urlencode`, `urlize`, `wordwrap`, `xmlattr`.

use minijinja::filters as builtin;
use minijinja::value::{ArgType, Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::arguments::Arguments;
use super::number::Verbatim;
use super::{json, strings};

/// Most characters that a filter pads a line by.
const MAX_WIDTH: usize = 1 << 16;

type Given = Rest<ValueOrKwargs>;

/// A filter of minijinja's whose arguments have names only.
type Named = fn(&State<'_, '_>, Value, Kwargs) -> Result<Value, Error>;
/// One with a count and what fills the last group.
type Grouping = fn(&State<'_, '_>, Value, usize, Option<Value>) -> Result<Value, Error>;

/// Adds them all.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    add_filters(environment);
    let named: [(&str, &[&str], Named); 4] = [
        ("sort", &["reverse", "case_sensitive", "attribute"], builtin::sort),
        ("unique", &["case_sensitive", "attribute"], builtin::unique),
        ("min", &["case_sensitive", "attribute"], builtin::min),
        ("max", &["case_sensitive", "attribute"], builtin::max),
    ];
    for (name, names, filter) in named {
        environment.add_filter(name, move |state: &State<'_, '_>, value: Value, given: Given| {
            let arguments = Arguments::from(given).into_named(name, names)?;
            filter(state, value, arguments)
        });
    }
    let groupings: [(&str, &str, Grouping); 2] = [
        ("batch", "linecount", builtin::batch),
        ("slice", "slices", builtin::slice),
    ];
    for (name, count, filter) in groupings {
        environment.add_filter(name, move |state: &State<'_, '_>, value: Value, given: Given| {
            let [count, fill] = Arguments::from(given).bind(name, [count, "fill_with"])?;
            filter(state, value, size(count, 0)?, fill)
        });
    }
    environment.add_test("sequence", |value: &Value| {
        // Whatever has a length and items.
        is_iterable(value) && (value.kind() != ValueKind::Iterable || value.len().is_some())
    });
    environment.add_test("iterable", is_iterable);
    environment.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
            || value.downcast_object_ref().is_some_and(Verbatim::is_number)
    });
}

fn add_filters(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", |value: Value, given: Given| {
        json::to_json(&value, given.into())
    });
    environment.add_filter("map", map);
    environment.add_filter("int", |value: Value, given: Given| int(&value, given.into()));
    environment.add_filter("float", |value: Value, given: Given| float(&value, given.into()));
    for name in ["default", "d"] {
        environment.add_filter(name, |value: Value, given: Given| default(value, given.into()));
    }
    environment.add_filter("dictsort", |value: Value, given: Given| {
        dict_sort(&value, given.into())
    });
    for (name, method) in [("trim", "strip"), ("replace", "replace")] {
        environment.add_filter(name, move |state: &State<'_, '_>, value: Value, given: Given| {
            strings::call(state, &value.to_string(), method, &given.into_values())
        });
    }
    environment.add_filter("indent", |text: &str, given: Given| indent(text, given.into()));
    environment.add_filter("center", |text: &str, given: Given| center(text, given.into()));
    environment.add_filter("truncate", |text: &str, given: Given| {
        truncate(text, given.into())
    });
    environment.add_filter("wordcount", |text: &str| {
        let words = text.split(|c: char| c != '_' && !c.is_alphanumeric());
        words.filter(|word| !word.is_empty()).count()
    });
    for name in ["escape", "e", "forceescape"] {
        environment.add_filter(name, |value: Value| Value::from_safe_string(escape(&value)));
    }
}

fn is_iterable(value: &Value) -> bool {
    let kinds = [
        ValueKind::String,
        ValueKind::Seq,
        ValueKind::Map,
        ValueKind::Iterable,
        ValueKind::Undefined,
    ];
    kinds.contains(&value.kind())
}

fn failed(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

fn is_set(flag: Option<Value>) -> bool {
    flag.is_some_and(|flag| flag.is_true())
}

fn size(value: Option<Value>, default: usize) -> Result<usize, Error> {
    match value {
        None => Ok(default),
        Some(value) => usize::try_from(value),
    }
}

fn text_or(value: Option<Value>, default: &str) -> String {
    value.map_or_else(|| default.to_owned(), |value| value.to_string())
}

/// A filter, or an attribute, of each item. minijinja's own gives no named arguments to the filter.
fn map(state: &mut State<'_, '_>, value: Value, given: Given) -> Result<Value, Error> {
    let values = given.into_values();
    let Some((Some(filter), rest)) = values.split_first().map(|(first, rest)| (first.as_str(), rest)) else {
        let given = Rest(
            values
                .iter()
                .map(|value| ValueOrKwargs::from_value(Some(value)))
                .collect::<Result<_, _>>()?,
        );
        return builtin::map(state, value, given).map(Value::from);
    };
    let mut mapped = Vec::new();
    for item in value.try_iter()?.checked() {
        let arguments: Vec<Value> = std::iter::once(item?).chain(rest.iter().cloned()).collect();
        mapped.push(state.apply_filter(filter, &arguments)?);
    }
    Ok(mapped.into())
}

/// The integer that a value spells or is cut to, `default` where there is none.
fn int(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let [default, base] = arguments.bind("int", ["default", "base"])?;
    let base = size(base, 10)?;
    let default = || Ok(default.unwrap_or_else(|| Value::from(0)));
    if let Some(text) = value.as_str() {
        let text = text.trim_matches(strings::is_space);
        return match integer(text, base as u32) {
            Some(read) => Ok(read.into()),
            None => match text.parse::<f64>() {
                Ok(float) if float.is_finite() => Ok(cut(float)),
                _ => default(),
            },
        };
    }
    match value.kind() {
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Ok(value.clone()),
        ValueKind::Number => match f64::try_from(value.clone())? {
            float if float.is_finite() => Ok(cut(float)),
            _ => default(),
        },
        _ => default(),
    }
}

fn cut(float: f64) -> Value {
    match float.trunc() {
        whole if whole.abs() < 9e18 => Value::from(whole as i64),
        whole => Value::from(whole as i128),
    }
}

/// A whole number to a base, with the sign, prefix and underscores that Python allows.
fn integer(text: &str, base: u32) -> Option<i128> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let lower = unsigned.to_ascii_lowercase();
    let digits = lower.strip_prefix(prefix).unwrap_or(&lower);
    let starts_well = digits.starts_with(|c: char| c.is_digit(36));
    if !(2..=36).contains(&base) || !starts_well || digits.contains("__") || digits.ends_with('_') {
        return None;
    }
    let magnitude = i128::from_str_radix(&digits.replace('_', ""), base).ok()?;
    Some(if text.starts_with('-') {
        -magnitude
    } else {
        magnitude
    })
}

fn float(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let [default] = arguments.bind("float", ["default"])?;
    let read = match value.as_str() {
        Some(text) => text.trim_matches(strings::is_space).parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(read
        .map(Value::from)
        .or(default)
        .unwrap_or_else(|| Value::from(0.0)))
}

fn default(value: Value, arguments: Arguments) -> Result<Value, Error> {
    let [default, boolean] = arguments.bind("default", ["default_value", "boolean"])?;
    let is_missing = value.is_undefined() || (is_set(boolean) && !value.is_true());
    Ok(match is_missing {
        true => default.unwrap_or_else(|| Value::from("")),
        false => value,
    })
}

fn dict_sort(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let names = ["case_sensitive", "by", "reverse"];
    let [case_sensitive, by, reverse] = arguments.bind("dictsort", names)?;
    let is_exact = is_set(case_sensitive);
    let place = match text_or(by, "key").as_str() {
        "key" => 0,
        "value" => 1,
        other => return Err(failed(format!("dictsort: by is 'key' or 'value', not '{other}'"))),
    };
    if value.kind() != ValueKind::Map {
        return Err(failed(format!("dictsort: expected a dict, got {}", value.kind())));
    }
    let mut items = Vec::new();
    for key in value.try_iter()?.checked() {
        let key = key?;
        let pair = [key.clone(), value.get_item(&key)?];
        let rank = match pair[place].as_str() {
            Some(text) if !is_exact => Value::from(text.to_lowercase()),
            _ => pair[place].clone(),
        };
        items.push((rank, Value::from(Tuple::from(pair))));
    }
    // Equal ones keep their order either way.
    match is_set(reverse) {
        false => items.sort_by(|(a, _), (b, _)| a.cmp(b)),
        true => items.sort_by(|(a, _), (b, _)| b.cmp(a)),
    }
    Ok(items.into_iter().map(|(_, pair)| pair).collect())
}

/// Puts blanks, or a string, in front of all lines but the first and empty ones.
fn indent(text: &str, arguments: Arguments) -> Result<String, Error> {
    let [width, first, blank] = arguments.bind("indent", ["width", "first", "blank"])?;
    let margin = match width {
        Some(width) if width.as_str().is_some() => width.to_string(),
        width => match size(width, 4)? {
            n if n <= MAX_WIDTH => " ".repeat(n),
            _ => return Err(failed(format!("indent: the width is at most {MAX_WIDTH}"))),
        },
    };
    let indents_blank = is_set(blank);
    let mut output = if is_set(first) {
        margin.clone()
    } else {
        String::new()
    };
    // A line break at the end is kept: there is one more line behind it.
    let text = format!("{text}\n");
    for (idx, line) in strings::lines(&text).enumerate() {
        if idx > 0 {
            output.push('\n');
            if indents_blank || !line.is_empty() {
                output.push_str(&margin);
            }
        }
        output.push_str(line);
    }
    Ok(output)
}

fn center(text: &str, arguments: Arguments) -> Result<String, Error> {
    let [width] = arguments.bind("center", ["width"])?;
    let width = size(width, 80)?.min(MAX_WIDTH);
    Ok(strings::center(text, width, " "))
}

/// The first characters of a text that is too long, up to a whole word, and an ending.
fn truncate(text: &str, arguments: Arguments) -> Result<String, Error> {
    let names = ["length", "killwords", "end", "leeway"];
    let [length, killwords, end, leeway] = arguments.bind("truncate", names)?;
    let (length, leeway) = (size(length, 255)?, size(leeway, 5)?);
    let end = text_or(end, "...");
    let n_end = end.chars().count();
    if length < n_end {
        return Err(failed(format!(
            "truncate: the length is at least {n_end}, that of the ending"
        )));
    }
    if text.chars().count() <= length + leeway {
        return Ok(text.to_owned());
    }
    let cut: String = text.chars().take(length - n_end).collect();
    let words = match cut.rfind(' ') {
        Some(at) if !is_set(killwords) => &cut[..at],
        _ => &cut,
    };
    Ok(format!("{words}{end}"))
}

fn escape(value: &Value) -> String {
    let mut output = String::new();
    for c in value.to_string().chars() {
        match c {
            '&' => output.push_str("&amp;"),
            '<' => output.push_str("&lt;"),
            '>' => output.push_str("&gt;"),
            '\'' => output.push_str("&#39;"),
            '"' => output.push_str("&#34;"),
            c => output.push(c),
        }
    }
    output
}
