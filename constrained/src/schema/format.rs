//! Formats as patterns over the content. Each accepts a part of what its standard does, never more.

/// What is known of a format's name.
pub(super) enum Format {
    Pattern {
        source: &'static str,
        /// Whether it matches every text of the format; what is not exact cannot be negated.
        is_exact: bool,
    },
    /// Regular expressions.
    Regex,
    Unknown,
}

/// RFC 3339 `full-date`.
macro_rules! date {
    () => {
        concat!(
            "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
            "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
            "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
        )
    };
}

/// RFC 3339 `full-time`, without leap seconds and small letters.
macro_rules! time {
    () => {
        concat!(
            "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]+)?",
            "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
        )
    };
}

/// RFC 3339 appendix A.
macro_rules! duration {
    () => {
        concat!(
            "P(?:[0-9]+W|T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)",
            "|(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)",
            "(?:T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))?)"
        )
    };
}

/// A label of a host's name. Two hyphens in a row have a meaning of their own in some names.
macro_rules! label {
    () => {
        "(?:[a-zA-Z0-9]-?){0,20}[a-zA-Z0-9]"
    };
}

/// At most 251 characters; 253 are allowed.
macro_rules! hostname {
    () => {
        concat!(label!(), "(?:\\.", label!(), "){0,5}")
    };
}

macro_rules! email {
    () => {
        concat!(
            "[a-zA-Z0-9_+-]{1,30}(?:\\.[a-zA-Z0-9_+-]{1,10}){0,2}@",
            label!(),
            "(?:\\.",
            label!(),
            "){1,3}"
        )
    };
}

macro_rules! ipv4 {
    () => {
        concat!(
            "(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}",
            "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
        )
    };
}

/// Two groups of 16 bits.
macro_rules! ls32 {
    () => {
        concat!("(?:[0-9a-fA-F]{1,4}:[0-9a-fA-F]{1,4}|", ipv4!(), ")")
    };
}

/// RFC 3986 `IPv6address`.
macro_rules! ipv6 {
    () => {
        concat!(
            "(?:(?:[0-9a-fA-F]{1,4}:){6}",
            ls32!(),
            "|::(?:[0-9a-fA-F]{1,4}:){5}",
            ls32!(),
            "|(?:[0-9a-fA-F]{1,4})?::(?:[0-9a-fA-F]{1,4}:){4}",
            ls32!(),
            "|(?:(?:[0-9a-fA-F]{1,4}:){0,1}[0-9a-fA-F]{1,4})?::(?:[0-9a-fA-F]{1,4}:){3}",
            ls32!(),
            "|(?:(?:[0-9a-fA-F]{1,4}:){0,2}[0-9a-fA-F]{1,4})?::(?:[0-9a-fA-F]{1,4}:){2}",
            ls32!(),
            "|(?:(?:[0-9a-fA-F]{1,4}:){0,3}[0-9a-fA-F]{1,4})?::[0-9a-fA-F]{1,4}:",
            ls32!(),
            "|(?:(?:[0-9a-fA-F]{1,4}:){0,4}[0-9a-fA-F]{1,4})?::",
            ls32!(),
            "|(?:(?:[0-9a-fA-F]{1,4}:){0,5}[0-9a-fA-F]{1,4})?::[0-9a-fA-F]{1,4}",
            "|(?:(?:[0-9a-fA-F]{1,4}:){0,6}[0-9a-fA-F]{1,4})?::)"
        )
    };
}

/// RFC 3986 with `$more` as further unreserved characters; hosts are names or IPv4 addresses.
macro_rules! authority {
    ($more:literal) => {
        concat!(
            "//(?:(?:[a-zA-Z0-9._~!$&'()*+,;=:",
            $more,
            "-]|%[0-9a-fA-F]{2})*@)?(?:[a-zA-Z0-9._~!$&'()*+,;=",
            $more,
            "-]|%[0-9a-fA-F]{2})*(?::[0-9]*)?"
        )
    };
}

macro_rules! pchar {
    ($more:literal) => {
        concat!("(?:[a-zA-Z0-9._~!$&'()*+,;=:@", $more, "-]|%[0-9a-fA-F]{2})")
    };
}

macro_rules! end_of_uri {
    ($more:literal) => {
        concat!(
            "(?:\\?(?:[a-zA-Z0-9._~!$&'()*+,;=:@/?",
            $more,
            "-]|%[0-9a-fA-F]{2})*)?(?:#(?:[a-zA-Z0-9._~!$&'()*+,;=:@/?",
            $more,
            "-]|%[0-9a-fA-F]{2})*)?"
        )
    };
}

macro_rules! uri {
    ($more:literal) => {
        concat!(
            "[a-zA-Z][a-zA-Z0-9+.-]*:(?:",
            authority!($more),
            "(?:/",
            pchar!($more),
            "*)*|/(?:",
            pchar!($more),
            "+(?:/",
            pchar!($more),
            "*)*)?|",
            pchar!($more),
            "+(?:/",
            pchar!($more),
            "*)*|)",
            end_of_uri!($more)
        )
    };
}

/// A URI, or a reference without a scheme; the first segment of such a path has no colon.
macro_rules! uri_reference {
    ($more:literal) => {
        concat!(
            "(?:",
            uri!($more),
            ")|(?:",
            authority!($more),
            "(?:/",
            pchar!($more),
            "*)*|/(?:",
            pchar!($more),
            "+(?:/",
            pchar!($more),
            "*)*)?|(?:[a-zA-Z0-9._~!$&'()*+,;=@",
            $more,
            "-]|%[0-9a-fA-F]{2})+(?:/",
            pchar!($more),
            "*)*|)",
            end_of_uri!($more)
        )
    };
}

/// RFC 6901.
macro_rules! json_pointer {
    () => {
        "(?s:/(?:[^/~]|~[01])*)*"
    };
}

/// RFC 6570, with literals of ASCII.
macro_rules! uri_template {
    () => {
        concat!(
            "(?:[!#$&()*+,./0-9:;=?@A-Z\\[\\]_a-z~-]|%[0-9a-fA-F]{2}",
            "|\\{[+#./;?&]?",
            "[a-zA-Z0-9_]+(?:\\.[a-zA-Z0-9_]+)*(?::[1-9][0-9]{0,3}|\\*)?",
            "(?:,[a-zA-Z0-9_]+(?:\\.[a-zA-Z0-9_]+)*(?::[1-9][0-9]{0,3}|\\*)?)*\\})*"
        )
    };
}

/// Formats whose pattern matches all of their texts.
const EXACT: [&str; 6] = ["date", "duration", "ipv4", "ipv6", "json-pointer", "uuid"];

pub(super) fn format(name: &str) -> Format {
    let is_exact = EXACT.contains(&name);
    let source = match name {
        "date" => date!(),
        "time" => time!(),
        "date-time" => concat!(date!(), "T", time!()),
        "duration" => duration!(),
        "uuid" => "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
        "ipv4" => ipv4!(),
        "ipv6" => ipv6!(),
        "email" | "idn-email" => email!(),
        "hostname" | "idn-hostname" => hostname!(),
        "uri" => uri!(""),
        "uri-reference" => uri_reference!(""),
        "iri" => uri!("\\u{A0}-\\u{D7FF}\\u{F900}-\\u{FDCF}\\u{FDF0}-\\u{FFEF}"),
        "iri-reference" => uri_reference!("\\u{A0}-\\u{D7FF}\\u{F900}-\\u{FDCF}\\u{FDF0}-\\u{FFEF}"),
        "uri-template" => uri_template!(),
        "json-pointer" => json_pointer!(),
        "relative-json-pointer" => concat!("(?:0|[1-9][0-9]*)(?:#|", json_pointer!(), ")"),
        "regex" => return Format::Regex,
        _ => return Format::Unknown,
    };
    Format::Pattern { source, is_exact }
}
