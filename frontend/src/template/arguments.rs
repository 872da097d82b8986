//! Arguments of a call, bound to the names of a Python signature.

use minijinja::value::{Kwargs, Rest, ValueOrKwargs};
use minijinja::{Error, ErrorKind, Value};

/// What a call is given: values by place, then values by name.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    placed: Vec<Value>,
    named: Vec<(String, Value)>,
}

impl Arguments {
    /// Takes the values of a call apart, whose last one holds those by name.
    pub(super) fn new(values: &[Value]) -> Self {
        match values.split_last() {
            Some((last, placed)) if last.is_kwargs() => {
                let named = Kwargs::try_from(last.clone()).expect("they are keyword arguments");
                let names: Vec<String> = named.args().map(str::to_owned).collect();
                let value = |name: String| {
                    let value = last.get_attr(&name).unwrap_or(Value::UNDEFINED);
                    (name, value)
                };
                Arguments {
                    placed: placed.to_vec(),
                    named: names.into_iter().map(value).collect(),
                }
            }
            _ => Arguments {
                placed: values.to_vec(),
                named: Vec::new(),
            },
        }
    }

    /// The value of each of `names`, in their order, as Python binds them; absent where the call has none.
    pub(super) fn bind<const N: usize>(
        self,
        callee: &str,
        names: [&str; N],
    ) -> Result<[Option<Value>; N], Error> {
        let n_placed = self.placed.len();
        if n_placed > N {
            return Err(too_many(callee, N, n_placed));
        }
        let mut bound = [const { None }; N];
        for (place, value) in bound.iter_mut().zip(self.placed) {
            *place = Some(value);
        }
        for (name, value) in self.named {
            let place = names.iter().position(|known| *known == name);
            match place.map(|idx| &mut bound[idx]) {
                Some(place @ None) => *place = Some(value),
                Some(Some(_)) => {
                    let message = format!("{callee} is given '{name}' twice");
                    return Err(Error::new(ErrorKind::TooManyArguments, message));
                }
                None => {
                    let message = format!("{callee} has no argument '{name}'");
                    return Err(Error::new(ErrorKind::TooManyArguments, message));
                }
            }
        }
        Ok(bound)
    }

    /// All values by name, those by place under `names`.
    pub(super) fn into_named(self, callee: &str, names: &[&'static str]) -> Result<Kwargs, Error> {
        let n_placed = self.placed.len();
        if n_placed > names.len() {
            return Err(too_many(callee, names.len(), n_placed));
        }
        let placed = names.iter().map(|name| (*name).to_owned()).zip(self.placed);
        Ok(placed.chain(self.named).collect())
    }
}

fn too_many(callee: &str, most: usize, n_placed: usize) -> Error {
    let message = format!("{callee} takes at most {most} arguments, {n_placed} are given");
    Error::new(ErrorKind::TooManyArguments, message)
}

impl From<Rest<ValueOrKwargs>> for Arguments {
    fn from(rest: Rest<ValueOrKwargs>) -> Self {
        Arguments::new(&rest.into_values())
    }
}
