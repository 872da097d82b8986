//! Formats as patterns over the content. Each accepts a part of what its standard does, never more.

/// What is known of a format's name.
pub(super) enum Format {
    Pattern {
        source: &'static str,
        /// Whether it matches every text of the format; what is not exact cannot be negated.
        is_exact: bool,
    },
    /// Defined by the specification and not enforced here.
    Refused,
    Unknown,
}

macro_rules! date {
    () => {
        concat!(
            "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
            "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
            "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
        )
    };
}

macro_rules! time {
    () => {
        concat!(
            "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]+)?",
            "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
        )
    };
}

macro_rules! label {
    () => {
        "[a-zA-Z0-9](?:[a-zA-Z0-9]{0,20}[a-zA-Z0-9])?"
    };
}

pub(super) fn format(name: &str) -> Format {
    let is_exact = EXACT.contains(&name);
    let source = match name {
        "date" => date!(),
        "time" => time!(),
        "date-time" => concat!(date!(), "T", time!()),
        "uuid" => "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
        "ipv4" => {
            "(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
        }
        "email" => concat!(
            "[a-zA-Z0-9_+-]{1,30}(?:\\.[a-zA-Z0-9_+-]{1,10}){0,2}@",
            label!(),
            "(?:\\.",
            label!(),
            "){1,4}"
        ),
        "hostname" => concat!(label!(), "(?:\\.", label!(), "){0,6}"),
        "uri" => "[a-z][a-z0-9+.-]*:(?:[a-zA-Z0-9_.~!$&'()*+,;=:@/?-]|%[0-9a-fA-F]{2})+",
        "duration"
        | "idn-email"
        | "idn-hostname"
        | "ipv6"
        | "iri"
        | "iri-reference"
        | "json-pointer"
        | "regex"
        | "relative-json-pointer"
        | "uri-reference"
        | "uri-template" => return Format::Refused,
        _ => return Format::Unknown,
    };
    Format::Pattern { source, is_exact }
}

/// Formats whose pattern matches all of their texts.
const EXACT: [&str; 3] = ["date", "ipv4", "uuid"];
