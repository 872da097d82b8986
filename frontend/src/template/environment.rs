//! The environment that Hugging Face's library runs chat templates in, on minijinja.
//!
//! What still differs from Jinja2 there:
//!
//! * A method exists where it is called. `x.items` without a call is the member of that name, never the
//!   method, so methods are not kept in variables either.
//! * Macros take the arguments they name (no `varargs`, no `kwargs`), and a default value does not see the
//!   arguments before it.
//! * `{% break %}` and `{% continue %}` do not leave `{% with %}`, `{% set %}` or `{% filter %}` blocks; such
//!   a template is refused when the model loads.
//! * More goes through than in Python: values of different types have an order, `none` is an empty loop,
//!   views of dicts and generators print and serialize as lists, and lists that the template writes out can
//!   be changed ([`super::containers::List`]).
//! * The filters that [`super::filters`] leaves out, and `cycler`, `joiner` and `lipsum`.

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value};

use super::number::float_repr;
use super::percent::percent;
use super::strftime::strftime;
use super::{containers, dialect, filters, strings};

/// Instructions one rendering may take; a chat of 2,000 messages takes about 100,000.
const FUEL: u64 = 20_000_000;

/// How the error of a template that refuses in its own words begins.
pub(super) const REFUSAL: &str = "raise_exception: ";

/// An environment without templates.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(method);
    environment.set_formatter(print);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| strftime(format, SystemTime::now()));
    environment.add_function(dialect::PERCENT, |left: &Value, right: &Value| {
        percent(left, right)
    });
    environment.add_function(containers::LIST, containers::List::from_value);
    filters::add_to(&mut environment);
    environment
}

fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => strings::call(state, value.as_str().expect("it is a string"), name, args),
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => containers::call(value, name, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// Prints floats as Python does.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    if value.kind() == ValueKind::Number && !value.is_integer() {
        let text = float_repr(f64::try_from(value.clone())?);
        return Ok(out.write_str(&text)?);
    }
    minijinja::escape_formatter(out, state, value)
}

fn raise_exception(message: &str) -> Result<String, Error> {
    Err(Error::new(
        ErrorKind::InvalidOperation,
        format!("{REFUSAL}{message}"),
    ))
}
