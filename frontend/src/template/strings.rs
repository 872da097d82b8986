//! The methods of Python's `str`.
//!
//! Left out are those that make bytes or tables of characters (`encode`, `translate`, `maketrans`,
//! `format_map`). `isdigit`, `isdecimal` and `isnumeric` are one and the same here: characters that Unicode
//! calls numbers.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::Tuple;
use minijinja::{Error, ErrorKind, State, Value};

use super::arguments::Arguments;

/// Most characters that a method pads a string to.
const MAX_WIDTH: usize = 1 << 20;

/// Calls a method; `UnknownMethod` where there is no such.
pub(super) fn call(state: &State<'_, '_>, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    if method == "format" {
        return format(FormatStyle::StrFormat, text, args).map(Value::from);
    }
    let call = Call {
        text,
        method,
        arguments: Arguments::new(args),
    };
    match method {
        "upper" => call.plain(|text| text.to_uppercase().into()),
        "lower" | "casefold" => call.plain(|text| text.to_lowercase().into()),
        "swapcase" => call.plain(|text| swap_case(text).into()),
        "title" => call.plain(|text| title(text).into()),
        "capitalize" => call.plain(|text| capitalize(text).into()),
        "isspace" | "isalpha" | "isalnum" | "isdigit" | "isdecimal" | "isnumeric" => call.all(),
        "isascii" => call.plain(|text| text.is_ascii().into()),
        "islower" => call.plain(|text| is_all(text, char::is_lowercase, char::is_uppercase).into()),
        "isupper" => call.plain(|text| is_all(text, char::is_uppercase, char::is_lowercase).into()),
        "istitle" => call.plain(|text| (title(text) == text && text.chars().any(is_cased)).into()),
        "strip" | "lstrip" | "rstrip" => call.strip(),
        "removeprefix" | "removesuffix" => call.remove(),
        "split" | "rsplit" => call.split(),
        "splitlines" => call.split_lines(),
        "partition" | "rpartition" => call.partition(),
        "startswith" | "endswith" => call.has_affix(),
        "find" | "rfind" | "index" | "rindex" | "count" => call.search(),
        "replace" => call.replace(state),
        "join" => call.join(state),
        "ljust" | "rjust" | "center" | "zfill" => call.pad(),
        "expandtabs" => call.expand_tabs(),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn failed(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Python counts the four separators of ASCII among the blanks.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase()
}

fn is_all(text: &str, wanted: fn(char) -> bool, unwanted: fn(char) -> bool) -> bool {
    text.chars().any(wanted) && !text.chars().any(unwanted)
}

fn swap_case(text: &str) -> String {
    let mut swapped = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_uppercase() {
            true => swapped.extend(c.to_lowercase()),
            false => swapped.extend(c.to_uppercase()),
        }
    }
    swapped
}

/// In capitals, but only the first where one character becomes several.
fn push_title_case(output: &mut String, c: char) {
    let mut capitals = c.to_uppercase();
    output.extend(capitals.next());
    output.extend(capitals.flat_map(char::to_lowercase));
}

/// Every letter behind one that has no case starts a word: `It'S`.
fn title(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut is_in_word = false;
    for c in text.chars() {
        match is_in_word {
            true => output.extend(c.to_lowercase()),
            false => push_title_case(&mut output, c),
        }
        is_in_word = is_cased(c);
    }
    output
}

fn capitalize(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut chars = text.chars();
    if let Some(first) = chars.next() {
        push_title_case(&mut output, first);
    }
    output.push_str(&chars.as_str().to_lowercase());
    output
}

/// One call of a method.
struct Call<'a> {
    text: &'a str,
    method: &'a str,
    arguments: Arguments,
}

impl<'a> Call<'a> {
    fn bind<const N: usize>(&mut self, names: [&str; N]) -> Result<[Option<Value>; N], Error> {
        std::mem::take(&mut self.arguments).bind(self.method, names)
    }

    fn wrong(&self, what: &str, found: &Value) -> Error {
        failed(format!("{}: expected {what}, got {found:?}", self.method))
    }

    fn string(&self, value: Option<Value>) -> Result<Option<Value>, Error> {
        match value.filter(|value| !value.is_none()) {
            Some(value) if value.as_str().is_none() => Err(self.wrong("a string", &value)),
            other => Ok(other),
        }
    }

    /// A string that must be given.
    fn needed(&self, value: Option<Value>) -> Result<Value, Error> {
        let missing = || failed(format!("{}: an argument is missing", self.method));
        self.string(value)?.ok_or_else(missing)
    }

    fn integer(&self, value: Option<Value>) -> Result<Option<i64>, Error> {
        let Some(value) = value.filter(|value| !value.is_none()) else {
            return Ok(None);
        };
        let read = i64::try_from(value.clone());
        read.map(Some).map_err(|_| self.wrong("an integer", &value))
    }

    fn plain(mut self, result: impl FnOnce(&'a str) -> Value) -> Result<Value, Error> {
        self.bind([])?;
        Ok(result(self.text))
    }

    fn all(self) -> Result<Value, Error> {
        let is_wanted = match self.method {
            "isspace" => is_space,
            "isalpha" => char::is_alphabetic,
            "isalnum" => char::is_alphanumeric,
            _ => char::is_numeric,
        };
        self.plain(|text| (!text.is_empty() && text.chars().all(is_wanted)).into())
    }

    fn strip(mut self) -> Result<Value, Error> {
        let [chars] = self.bind(["chars"])?;
        let chars = self.string(chars)?;
        let is_stripped = |c: char| match &chars {
            None => is_space(c),
            Some(chars) => chars.as_str().is_some_and(|chars| chars.contains(c)),
        };
        let mut text = self.text;
        if self.method != "rstrip" {
            text = text.trim_start_matches(is_stripped);
        }
        if self.method != "lstrip" {
            text = text.trim_end_matches(is_stripped);
        }
        Ok(text.into())
    }

    fn remove(mut self) -> Result<Value, Error> {
        let [affix] = self.bind(["affix"])?;
        let affix = self.needed(affix)?;
        let affix = affix.as_str().unwrap_or_default();
        let removed = match self.method {
            "removeprefix" => self.text.strip_prefix(affix),
            _ => self.text.strip_suffix(affix),
        };
        Ok(removed.unwrap_or(self.text).into())
    }

    fn split(mut self) -> Result<Value, Error> {
        let [sep, n] = self.bind(["sep", "maxsplit"])?;
        let (sep, n) = (self.string(sep)?, self.integer(n)?);
        let n = n.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX - 1);
        let is_from_end = self.method == "rsplit";
        let Some(sep) = sep else {
            return Ok(split_at_blanks(self.text, n, is_from_end).into());
        };
        let sep = sep.as_str().unwrap_or_default();
        if sep.is_empty() {
            return Err(failed(format!("{}: the separator is empty", self.method)));
        }
        let mut parts: Vec<Value> = match is_from_end {
            false => self.text.splitn(n + 1, sep).map(Value::from).collect(),
            true => self.text.rsplitn(n + 1, sep).map(Value::from).collect(),
        };
        if is_from_end {
            parts.reverse();
        }
        Ok(parts.into())
    }

    fn split_lines(mut self) -> Result<Value, Error> {
        let [keepends] = self.bind(["keepends"])?;
        let keeps_ends = keepends.is_some_and(|value| value.is_true());
        let lines = split_lines(self.text);
        let shown = |(line, end): (&'a str, &'a str)| match keeps_ends {
            true => Value::from([line, end].concat()),
            false => Value::from(line),
        };
        Ok(lines.map(shown).collect())
    }

    fn partition(mut self) -> Result<Value, Error> {
        let [sep] = self.bind(["sep"])?;
        let sep = self.needed(sep)?;
        let sep = sep.as_str().unwrap_or_default();
        let parts = match self.method {
            "partition" => self.text.split_once(sep).ok_or([self.text, "", ""]),
            _ => self.text.rsplit_once(sep).ok_or(["", "", self.text]),
        };
        let parts = parts.map_or_else(|whole| whole, |(head, tail)| [head, sep, tail]);
        Ok(Value::from(Tuple::from(parts.map(Value::from))))
    }

    fn has_affix(mut self) -> Result<Value, Error> {
        let [affix, start, end] = self.bind(["affix", "start", "end"])?;
        let Some((text, _)) = self.part(start, end)? else {
            return Ok(false.into());
        };
        let affix = affix.unwrap_or(Value::UNDEFINED);
        let has = |affix: &Value| match (affix.as_str(), self.method) {
            (Some(prefix), "startswith") => Ok(text.starts_with(prefix)),
            (Some(suffix), _) => Ok(text.ends_with(suffix)),
            (None, _) => Err(self.wrong("a string or a tuple of strings", affix)),
        };
        if affix.as_str().is_some() || affix.is_undefined() {
            return has(&affix).map(Value::from);
        }
        for affix in affix.try_iter()?.checked() {
            if has(&affix?)? {
                return Ok(true.into());
            }
        }
        Ok(false.into())
    }

    /// Where a string is found, in characters, or how often.
    fn search(mut self) -> Result<Value, Error> {
        let [wanted, start, end] = self.bind(["sub", "start", "end"])?;
        let wanted = self.needed(wanted)?;
        let wanted = wanted.as_str().unwrap_or_default();
        let Some((text, n_before)) = self.part(start, end)? else {
            return match self.method {
                "count" => Ok(0.into()),
                _ => self.not_found(),
            };
        };
        let found = match self.method {
            "count" => return Ok(text.matches(wanted).count().into()),
            "find" | "index" => text.find(wanted),
            _ => text.rfind(wanted),
        };
        match found {
            Some(at) => Ok((n_before + text[..at].chars().count()).into()),
            None => self.not_found(),
        }
    }

    fn not_found(&self) -> Result<Value, Error> {
        match self.method {
            "find" | "rfind" => Ok((-1).into()),
            _ => Err(failed(format!("{}: the substring is not found", self.method))),
        }
    }

    /// The text between two positions, counted in characters and from the end where negative, and how many
    /// characters are before it; absent where the first is behind the second.
    fn part(&self, start: Option<Value>, end: Option<Value>) -> Result<Option<(&'a str, usize)>, Error> {
        let (start, end) = (self.integer(start)?, self.integer(end)?);
        if start.is_none() && end.is_none() {
            return Ok(Some((self.text, 0)));
        }
        let n_chars = self.text.chars().count();
        let position = |idx: i64| {
            let from_start = if idx < 0 {
                idx.saturating_add(n_chars as i64)
            } else {
                idx
            };
            usize::try_from(from_start).unwrap_or(0)
        };
        let start = start.map_or(0, position);
        let end = end.map_or(n_chars, position).min(n_chars);
        if start > end {
            return Ok(None);
        }
        let byte = |n: usize| {
            self.text
                .char_indices()
                .nth(n)
                .map_or(self.text.len(), |(at, _)| at)
        };
        Ok(Some((&self.text[byte(start)..byte(end)], start)))
    }

    fn replace(mut self, state: &State<'_, '_>) -> Result<Value, Error> {
        let [old, new, count] = self.bind(["old", "new", "count"])?;
        let (old, new, count) = (self.needed(old)?, self.needed(new)?, self.integer(count)?);
        let (old, new) = (old.as_str().unwrap_or_default(), new.as_str().unwrap_or_default());
        let most = self.text.len() / old.len().max(1) + 1;
        let n = count
            .and_then(|count| usize::try_from(count).ok())
            .map_or(most, |n| n.min(most));
        charge(state, n.saturating_mul(new.len()))?;
        Ok(self.text.replacen(old, new, n).into())
    }

    fn join(mut self, state: &State<'_, '_>) -> Result<Value, Error> {
        let [items] = self.bind(["iterable"])?;
        let mut joined = String::new();
        for (idx, item) in items
            .unwrap_or(Value::UNDEFINED)
            .try_iter()?
            .checked()
            .enumerate()
        {
            let item = item?;
            let Some(text) = item.as_str() else {
                return Err(self.wrong("strings", &item));
            };
            charge(state, self.text.len() + text.len())?;
            if idx > 0 {
                joined.push_str(self.text);
            }
            joined.push_str(text);
        }
        Ok(joined.into())
    }

    fn pad(mut self) -> Result<Value, Error> {
        let [width, fill] = self.bind(["width", "fillchar"])?;
        let (width, fill) = (self.integer(width)?.unwrap_or(0), self.string(fill)?);
        let width = usize::try_from(width).unwrap_or(0);
        if width > MAX_WIDTH {
            return Err(failed(format!(
                "{}: the width is at most {MAX_WIDTH}",
                self.method
            )));
        }
        let fill = match (self.method, &fill) {
            ("zfill", _) => "0",
            (_, None) => " ",
            (_, Some(fill)) => fill.as_str().unwrap_or_default(),
        };
        let n = width.saturating_sub(self.text.chars().count());
        Ok(match self.method {
            "ljust" => [self.text, &fill.repeat(n)].concat(),
            "rjust" => [&fill.repeat(n), self.text].concat(),
            "center" => center(self.text, width, fill),
            _ => {
                let unsigned = self.text.trim_start_matches(['-', '+']);
                let n_signs = usize::from(unsigned.len() < self.text.len());
                let (sign, digits) = self.text.split_at(n_signs);
                [sign, &fill.repeat(n), digits].concat()
            }
        }
        .into())
    }

    fn expand_tabs(mut self) -> Result<Value, Error> {
        let [size] = self.bind(["tabsize"])?;
        let size = self.integer(size)?.unwrap_or(8).clamp(0, 64) as usize;
        let mut output = String::new();
        let mut column = 0;
        for c in self.text.chars() {
            match c {
                '\t' => {
                    let n = if size == 0 { 0 } else { size - column % size };
                    output.push_str(&" ".repeat(n));
                    column += n;
                }
                c => {
                    output.push(c);
                    column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                }
            }
        }
        Ok(output.into())
    }
}

/// Up to `n` words between blanks, from one end, and what is left as one more.
fn split_at_blanks(text: &str, n: usize, is_from_end: bool) -> Vec<Value> {
    let trim = |text: &'_ str| match is_from_end {
        false => text.trim_start_matches(is_space).len(),
        true => text.trim_end_matches(is_space).len(),
    };
    let mut words = Vec::new();
    let mut rest = text;
    loop {
        rest = match is_from_end {
            false => &rest[rest.len() - trim(rest)..],
            true => &rest[..trim(rest)],
        };
        if rest.is_empty() {
            break;
        }
        let word;
        (word, rest) = match is_from_end {
            _ if words.len() == n => (rest, ""),
            false => rest.split_at(rest.find(is_space).unwrap_or(rest.len())),
            true => {
                let blank = rest.char_indices().rfind(|(_, c)| is_space(*c));
                let (rest, word) = rest.split_at(blank.map_or(0, |(at, c)| at + c.len_utf8()));
                (word, rest)
            }
        };
        words.push(Value::from(word));
    }
    if is_from_end {
        words.reverse();
    }
    words
}

/// Lines, each with what ends it.
fn split_lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, more) = rest.split_at(rest.find(is_end).unwrap_or(rest.len()));
        let n_end = match more.starts_with("\r\n") {
            true => 2,
            false => more.chars().next().map_or(0, char::len_utf8),
        };
        let (end, more) = more.split_at(n_end);
        rest = more;
        Some((line, end))
    })
}

/// Lines without what ends them, which may be any of Unicode's line breaks.
pub(super) fn lines(text: &str) -> impl Iterator<Item = &str> {
    split_lines(text).map(|(line, _)| line)
}

/// `text` in the middle of `width` characters.
pub(super) fn center(text: &str, width: usize, fill: &str) -> String {
    let n = width.saturating_sub(text.chars().count());
    // Python's own choice of the side that gets one more.
    let left = n / 2 + (n & width & 1);
    [&fill.repeat(left), text, &fill.repeat(n - left)].concat()
}

/// Pays for what is about to be written.
fn charge(state: &State<'_, '_>, n_bytes: usize) -> Result<(), Error> {
    state.consume_fuel(n_bytes as u64 / 64)
}
