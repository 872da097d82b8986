//! The drafts of JSON Schema, and which keywords each of them knows.
//!
//! A keyword that only other drafts know is enforced nevertheless: that makes the output stricter. To negate
//! it would make it looser, so there it is refused. The keywords of draft 3 that later drafts dropped mean
//! something in draft 3 only.

/// The rules that a schema is read by, in the order of their years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dialect {
    Draft3,
    /// Draft 5 only words it better.
    Draft4,
    Draft6,
    Draft7,
    Draft2019,
    Draft2020,
    /// A dialect that the document does not explain. Keywords that all drafts agree on are taken to mean the
    /// same there.
    Unknown,
}

/// The first draft that knows a keyword.
const SINCE: [(&str, Dialect); 20] = [
    ("allOf", Dialect::Draft4),
    ("anyOf", Dialect::Draft4),
    ("maxProperties", Dialect::Draft4),
    ("minProperties", Dialect::Draft4),
    ("multipleOf", Dialect::Draft4),
    ("not", Dialect::Draft4),
    ("oneOf", Dialect::Draft4),
    ("const", Dialect::Draft6),
    ("contains", Dialect::Draft6),
    ("propertyNames", Dialect::Draft6),
    ("if", Dialect::Draft7),
    ("dependentRequired", Dialect::Draft2019),
    ("dependentSchemas", Dialect::Draft2019),
    ("maxContains", Dialect::Draft2019),
    ("minContains", Dialect::Draft2019),
    ("unevaluatedItems", Dialect::Draft2019),
    ("unevaluatedProperties", Dialect::Draft2019),
    ("$recursiveRef", Dialect::Draft2019),
    ("prefixItems", Dialect::Draft2020),
    ("$dynamicRef", Dialect::Draft2020),
];
/// The last draft that knows a keyword.
const UNTIL: [(&str, Dialect); 2] = [
    ("dependencies", Dialect::Draft7),
    ("$recursiveRef", Dialect::Draft2019),
];

impl Dialect {
    /// The dialect that `$schema` names; `usual` where it names whatever draft is the latest.
    pub(super) fn named(uri: &str, usual: Self) -> Self {
        const OPENAPI: &str = "spec.openapis.org/oas/3.1/dialect/";
        let rest = uri
            .strip_prefix("http://")
            .or_else(|| uri.strip_prefix("https://"));
        let rest = rest.unwrap_or_default().trim_end_matches(['#', '/']);
        // OpenAPI adds annotations only.
        if rest.starts_with(OPENAPI) {
            return Self::Draft2020;
        }
        let host = rest.strip_prefix("www.").unwrap_or(rest);
        let path = host.strip_prefix("json-schema.org/").unwrap_or_default();
        // Hyper-schemas add annotations only.
        let draft = path
            .strip_suffix("hyper-schema")
            .or_else(|| path.strip_suffix("schema"));
        match draft {
            Some("") => usual,
            Some("draft-03/") => Self::Draft3,
            Some("draft-04/" | "draft-05/") => Self::Draft4,
            Some("draft-06/") => Self::Draft6,
            Some("draft-07/") => Self::Draft7,
            Some("draft/2019-09/") => Self::Draft2019,
            Some("draft/2020-12/") => Self::Draft2020,
            _ => Self::Unknown,
        }
    }

    /// Whether only other drafts know `keyword`, or may.
    pub(super) fn is_foreign(self, keyword: &str) -> bool {
        let is_early = |(known, since): &(&str, Self)| {
            *known == keyword && (self < *since || self == Self::Unknown && *since > Self::Draft4)
        };
        let is_late = |(known, until): &(&str, Self)| *known == keyword && self > *until;
        SINCE.iter().any(is_early) || UNTIL.iter().any(is_late)
    }

    /// The keywords that some draft does not know.
    pub(super) fn partly_known() -> impl Iterator<Item = &'static str> {
        SINCE.iter().chain(&UNTIL).map(|(keyword, _)| *keyword)
    }

    /// Whether what `$ref` stands beside is ignored.
    pub(super) fn does_ref_hide(self) -> bool {
        self <= Self::Draft7
    }

    /// The keyword with which a schema names itself.
    pub(super) fn identifier(self) -> &'static str {
        if self <= Self::Draft4 { "id" } else { "$id" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_known_by_all_its_spellings() {
        for (uri, expected) in [
            ("http://json-schema.org/draft-03/schema#", Dialect::Draft3),
            ("http://json-schema.org/draft-04/schema", Dialect::Draft4),
            ("https://json-schema.org/draft-05/schema#", Dialect::Draft4),
            (
                "http://www.json-schema.org/draft-06/hyper-schema#",
                Dialect::Draft6,
            ),
            ("https://json-schema.org/draft-07/schema#/", Dialect::Draft7),
            ("https://json-schema.org/draft/2019-09/schema", Dialect::Draft2019),
            (
                "https://json-schema.org/draft/2020-12/schema#",
                Dialect::Draft2020,
            ),
            (
                "https://spec.openapis.org/oas/3.1/dialect/base",
                Dialect::Draft2020,
            ),
            ("http://json-schema.org/schema#", Dialect::Draft7),
            (
                "https://example.com/json-schema.org/draft-07/schema#",
                Dialect::Unknown,
            ),
            ("draft-07", Dialect::Unknown),
        ] {
            assert_eq!(Dialect::named(uri, Dialect::Draft7), expected, "{uri}");
        }
    }
}
