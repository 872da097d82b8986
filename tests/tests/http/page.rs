//! The page at `/` as its bytes arrive. What it does in a browser is `tests/browser/page.py`'s to test.

use crate::site::{Answer, Site};

#[test]
fn the_page_is_served_without_a_key_and_what_it_shows_is_not() {
    let site = Site::with(&["secret"], |_| {});
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
    ] {
        let answer = site.get(path);
        assert_eq!(answer.status, 200, "{path}");
        for line in [
            &format!("content-type: {kind}; charset=utf-8"),
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; \
             connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "cache-control: no-cache",
            "x-content-type-options: nosniff",
        ] {
            assert!(answer.head.contains(line), "{line}: {}", answer.head);
        }
    }
    for path in ["/cache/tree", "/cache/explain", "/metrics", "/page"] {
        assert_eq!(site.get(path).status, 401, "{path}");
    }
    let posted = Answer::read(site.send("POST", "/", "", "{}"));
    // A text to be continued, in TGI's words.
    assert_eq!(posted.status, 401);
}

#[test]
fn a_browser_that_has_the_page_gets_it_once() {
    let site = Site::new();
    let first = site.get("/page.js");
    let tag = first
        .head
        .lines()
        .find_map(|line| line.strip_prefix("etag: "))
        .expect("a tag");
    let known = format!("if-none-match: {tag}\r\n");
    let again = Answer::read(site.send("GET", "/page.js", &known, ""));
    assert_eq!((again.status, again.body.as_str()), (304, ""));
    let other = Answer::read(site.send("GET", "/page.css", &known, ""));
    assert_eq!(other.status, 200, "another file has another tag");
}
