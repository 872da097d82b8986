//! URI references resolved against a base, as RFC 3986 section 5.2 has it.

/// A URI or a reference in its five parts, without the fragment.
#[derive(Clone, Copy, Default)]
struct Parts<'a> {
    scheme: Option<&'a str>,
    authority: Option<&'a str>,
    path: &'a str,
    query: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn parse(text: &'a str) -> Self {
        let (rest, query) = match text.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (text, None),
        };
        let is_scheme = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic())
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        };
        let (scheme, rest) = match rest.split_once(':') {
            Some((scheme, rest)) if is_scheme(scheme) => (Some(scheme), rest),
            _ => (None, rest),
        };
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => {
                let end = rest.find('/').unwrap_or(rest.len());
                (Some(&rest[..end]), &rest[end..])
            }
            None => (None, rest),
        };
        Self {
            scheme,
            authority,
            path,
            query,
        }
    }

    fn write(self, path: &str) -> String {
        let mut out = String::new();
        if let Some(scheme) = self.scheme {
            out.extend([scheme, ":"]);
        }
        if let Some(authority) = self.authority {
            out.extend(["//", authority]);
        }
        out.push_str(path);
        if let Some(query) = self.query {
            out.extend(["?", query]);
        }
        out
    }
}

/// `reference` seen from `base`, without its fragment, and the fragment.
pub(super) fn resolve<'a>(base: &str, reference: &'a str) -> (String, &'a str) {
    let (reference, fragment) = reference.split_once('#').unwrap_or((reference, ""));
    if reference.is_empty() {
        return (base.to_owned(), fragment);
    }
    let (base, reference) = (Parts::parse(base), Parts::parse(reference));
    if reference.scheme.is_some() {
        return (reference.write(&without_dots(reference.path)), fragment);
    }
    let mut target = Parts {
        scheme: base.scheme,
        ..reference
    };
    if reference.authority.is_some() {
        return (target.write(&without_dots(reference.path)), fragment);
    }
    target.authority = base.authority;
    if reference.path.is_empty() {
        return (target.write(base.path), fragment);
    }
    let path = if reference.path.starts_with('/') {
        reference.path.to_owned()
    } else if base.authority.is_some() && base.path.is_empty() {
        format!("/{}", reference.path)
    } else {
        let end = base.path.rfind('/').map_or(0, |at| at + 1);
        format!("{}{}", &base.path[..end], reference.path)
    };
    (target.write(&without_dots(&path)), fragment)
}

/// `path` without `.` and `..`; a path that has neither stays as it is.
fn without_dots(path: &str) -> String {
    if !path.split('/').any(|part| part == "." || part == "..") {
        return path.to_owned();
    }
    let mut parts: Vec<&str> = Vec::new();
    let n = path.split('/').count();
    for (i, part) in path.split('/').enumerate() {
        match part {
            "." => {}
            ".." if parts.len() > 1 => {
                parts.pop();
            }
            ".." => {}
            _ => parts.push(part),
        }
        if i + 1 == n && (part == "." || part == "..") {
            parts.push("");
        }
    }
    parts.join("/")
}

/// `text` with its percent escapes replaced; `None` when they are malformed or no UTF-8.
pub(super) fn percent_decoded(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?].map(|byte| char::from(byte).to_digit(16));
        out.push((digits[0]? * 16 + digits[1]?) as u8);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_resolved_as_the_standard_has_it() {
        for (base, reference, target) in [
            ("http://a/b/c/d?q", "g", "http://a/b/c/g"),
            ("http://a/b/c/d?q", "g/", "http://a/b/c/g/"),
            ("http://a/b/c/d?q", "/g", "http://a/g"),
            ("http://a/b/c/d?q", "//g", "http://g"),
            ("http://a/b/c/d?q", "?y", "http://a/b/c/d?y"),
            ("http://a/b/c/d?q", "g:h", "g:h"),
            ("http://a/b/c/d?q", "../../../g", "http://a/g"),
            ("http://a/b/c/d?q", "./g/.", "http://a/b/c/g/"),
            ("http://a", "g", "http://a/g"),
            ("", "g", "g"),
            ("", "/g", "/g"),
            ("urn:uuid:1", "urn:uuid:2", "urn:uuid:2"),
            ("urn:uuid:1", "", "urn:uuid:1"),
        ] {
            assert_eq!(resolve(base, reference).0, target, "{reference} from {base}");
        }
        assert_eq!(resolve("http://a/b", "c#/d"), ("http://a/c".to_owned(), "/d"));
        assert_eq!(percent_decoded("a%22b%C3%A9").as_deref(), Some("a\"bé"));
        assert_eq!(percent_decoded("a%2"), None);
    }
}
