//! The methods of Python's `list`, `tuple` and `dict`.
//!
//! Values are immutable, as they are in Hugging Face's sandbox, but for lists that a template writes out:
//! they grow by `append` and its kin, for templates that were written for other programs. See [`List`].

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Object, ObjectRepr, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::arguments::Arguments;

/// The function that makes a [`List`] of a list.
pub(super) const LIST: &str = "_list";
/// The methods that change a list.
pub(super) const LIST_CHANGES: [&str; 8] = [
    "append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort",
];
const DICT_CHANGES: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
/// Most containers within each other in what is put into a list.
const MAX_DEPTH: usize = 64;

/// Calls a method of a list, tuple or dict; `UnknownMethod` where there is no such.
pub(super) fn call(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::new(args);
    match value.kind() {
        ValueKind::Map if DICT_CHANGES.contains(&method) => Err(immutable(method, "dict")),
        ValueKind::Map => call_of_dict(value, method, arguments),
        _ if LIST_CHANGES.contains(&method) => Err(immutable(method, "list")),
        _ => call_of_list(value, method, arguments),
    }
}

fn failed(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn immutable(method: &str, kind: &str) -> Error {
    failed(format!("{method}: this {kind} cannot be changed"))
}

fn call_of_dict(dict: &Value, method: &str, arguments: Arguments) -> Result<Value, Error> {
    let keys = || Ok::<_, Error>(dict.try_iter()?.checked());
    if method == "get" {
        let [key, default] = arguments.bind(method, ["key", "default"])?;
        let key = key.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
        let found = dict.as_object().and_then(|dict| dict.get_value(&key));
        return Ok(found.or(default).unwrap_or_else(|| Value::from(())));
    }
    let of_key: fn(&Value, Value) -> Result<Value, Error> = match method {
        "keys" => |_, key| Ok(key),
        "values" => |dict, key| dict.get_item(&key),
        "items" | "copy" => |dict, key| {
            let value = dict.get_item(&key)?;
            Ok(Value::from(Tuple::from([key, value])))
        },
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    };
    arguments.bind(method, [])?;
    if method == "copy" {
        return Ok(dict.clone());
    }
    let items: Vec<Value> = keys()?.map(|key| of_key(dict, key?)).collect::<Result<_, _>>()?;
    Ok(items.into())
}

fn call_of_list(list: &Value, method: &str, arguments: Arguments) -> Result<Value, Error> {
    let mut items = list.try_iter()?.checked();
    match method {
        "count" => {
            let wanted = only(method, arguments)?;
            items
                .try_fold(0, |n, item| Ok(n + usize::from(item? == wanted)))
                .map(Value::from)
        }
        "index" => {
            let wanted = only(method, arguments)?;
            for (idx, item) in items.enumerate() {
                if item? == wanted {
                    return Ok(idx.into());
                }
            }
            Err(failed(format!("index: {wanted:?} is not in the list")))
        }
        "copy" => {
            arguments.bind(method, [])?;
            items.collect::<Result<Vec<_>, _>>().map(Value::from)
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn only(method: &str, arguments: Arguments) -> Result<Value, Error> {
    let [value] = arguments.bind(method, ["value"])?;
    value.ok_or_else(|| Error::from(ErrorKind::MissingArgument))
}

/// A list that a template wrote out and may change.
///
/// What is put into it is put in as it is at that time, so that no list ever holds itself.
#[derive(Debug)]
pub(super) struct List(Mutex<Vec<Value>>);

impl List {
    /// The list of `value`'s items.
    pub(super) fn from_value(value: &Value) -> Result<Value, Error> {
        let items = value.try_iter()?.checked().collect::<Result<_, _>>()?;
        Ok(Value::from_object(List(Mutex::new(items))))
    }

    fn with<T>(&self, read: impl FnOnce(&mut Vec<Value>) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn items(&self) -> Vec<Value> {
        self.with(|items| items.clone())
    }

    fn change(&self, method: &str, arguments: Arguments) -> Result<Value, Error> {
        let none = Value::from(());
        match method {
            "append" => {
                let value = settled(&only(method, arguments)?, MAX_DEPTH)?;
                self.with(|items| items.push(value));
            }
            "extend" => {
                let more = settled(&only(method, arguments)?, MAX_DEPTH)?;
                let more: Vec<_> = more.try_iter()?.checked().collect::<Result<_, _>>()?;
                self.with(|items| items.extend(more));
            }
            "insert" => {
                let [idx, value] = arguments.bind(method, ["index", "value"])?;
                let value = settled(
                    &value.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?,
                    MAX_DEPTH,
                )?;
                let idx = i64::try_from(idx.unwrap_or(Value::UNDEFINED))?;
                self.with(|items| items.insert(position(idx, items.len()).min(items.len()), value));
            }
            "pop" => {
                let [idx] = arguments.bind(method, ["index"])?;
                let idx = idx.map_or(Ok(-1), i64::try_from)?;
                return self.with(|items| {
                    let n = items.len() as i64;
                    if !(-n..n).contains(&idx) {
                        return Err(failed(format!("pop: the list has {n} items, none at {idx}")));
                    }
                    Ok(items.remove(position(idx, items.len())))
                });
            }
            "remove" => {
                let value = only(method, arguments)?;
                // Compared without the lock: the value may be this list.
                let found = self.items().iter().position(|item| *item == value);
                let idx = found.ok_or_else(|| failed(format!("remove: {value:?} is not in the list")))?;
                self.with(|items| items.remove(idx));
            }
            _ => {
                arguments.bind(method, [])?;
                let mut items = self.items();
                match method {
                    "clear" => items.clear(),
                    "reverse" => items.reverse(),
                    _ => items.sort(),
                }
                self.with(|old| *old = items);
            }
        }
        Ok(none)
    }
}

/// The place `idx`, counted from the end where negative, in a list of `n` items.
fn position(idx: i64, n: usize) -> usize {
    let from_start = if idx < 0 {
        idx.saturating_add(n as i64)
    } else {
        idx
    };
    usize::try_from(from_start).unwrap_or(0)
}

/// `value` with a copy of each [`List`] in it.
fn settled(value: &Value, n_levels: usize) -> Result<Value, Error> {
    let Some(n_levels) = n_levels.checked_sub(1) else {
        return Err(failed(format!(
            "a list's item is nested more than {MAX_DEPTH} deep"
        )));
    };
    match value.kind() {
        ValueKind::Map => {
            let member = |key: Value| {
                let value = settled(&value.get_item(&key)?, n_levels)?;
                Ok::<_, Error>((key, value))
            };
            let members = value.try_iter()?.checked().map(|key| member(key?));
            Ok(Value::from_pairs(members.collect::<Result<Vec<_>, _>>()?))
        }
        ValueKind::Seq => {
            let items = value.try_iter()?.checked().map(|item| settled(&item?, n_levels));
            let items = items.collect::<Result<Vec<_>, _>>()?;
            Ok(match value.is_tuple() {
                true => Value::from(Tuple::from(items)),
                false => Value::from(items),
            })
        }
        _ => Ok(value.clone()),
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let idx = key.as_usize()?;
        self.with(|items| items.get(idx).cloned())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.with(|items| items.len()))
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        match LIST_CHANGES.contains(&method) {
            true => self.change(method, Arguments::new(args)),
            false => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Value::from(self.items()), f)
    }
}
