//! What a template is given, as its values.
//!
//! Requests are converted here and not by serde, since to serde a number of arbitrary precision is a struct.

use minijinja::Value;
use serde_json::Value as Json;

use super::number::{self, Verbatim};
use crate::wire::message::Message;

/// The same value in a template. Members of objects keep their order.
pub(super) fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => number::from_json(number),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(from_json).collect(),
        Json::Object(members) => Value::from_pairs(pairs(members)),
    }
}

/// What a template is shown of a message without content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NullContent {
    /// Nothing, as in Hugging Face's library: many templates would print a `None`.
    LeftOut,
    /// `none`, to a template that asks for it.
    Shown,
}

/// A message as a template sees it.
pub(super) fn from_message(message: &Message, null_content: NullContent) -> Value {
    let mut members = Vec::new();
    // Hugging Face's library gives thoughts a second name.
    if let Some(thoughts) = message.extra.get("reasoning_content") {
        members.push((Value::from("thinking"), from_json(thoughts)));
    }
    members.push((Value::from("role"), Value::from(message.role.as_str())));
    if message.content.is_some() || null_content == NullContent::Shown {
        let content = Value::from(message.content.as_deref());
        members.push((Value::from("content"), content));
    }
    let extra = message.extra.iter().map(|(name, value)| {
        let value = match (name.as_str(), value) {
            ("tool_calls", Json::Array(calls)) => calls.iter().map(from_call).collect(),
            _ => from_json(value),
        };
        (Value::from(name.as_str()), value)
    });
    Value::from_pairs(members.into_iter().chain(extra))
}

/// An earlier call, or the function in it. Arguments that were cut off are a text, which is shown as it is.
fn from_call(call: &Json) -> Value {
    let Json::Object(members) = call else {
        return from_json(call);
    };
    let members = members.iter().map(|(name, value)| {
        let value = match (name.as_str(), value) {
            ("function", function) => from_call(function),
            ("arguments", Json::String(cut_off)) => Verbatim::value(cut_off),
            _ => from_json(value),
        };
        (Value::from(name.as_str()), value)
    });
    Value::from_pairs(members)
}

/// The members of an object.
pub(super) fn pairs(members: &serde_json::Map<String, Json>) -> impl Iterator<Item = (Value, Value)> {
    members
        .iter()
        .map(|(name, value)| (Value::from(name.as_str()), from_json(value)))
}
