//! The page at `/`: three files that are part of the binary. They hold nothing of anybody's, so they are
//! served without a key; what they show comes from routes that want one.
//!
//! The policy lets the page load its own script and style and talk to its own server, and nothing else:
//! neither can text of a model become a script, nor can the page send it anywhere.

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where the page is.
pub const PATH: &str = "/";

struct File {
    path: &'static str,
    kind: &'static str,
    content: &'static str,
}

const FILES: [File; 3] = [
    File {
        path: PATH,
        kind: "text/html; charset=utf-8",
        content: include_str!("page/index.html"),
    },
    File {
        path: "/page.css",
        kind: "text/css; charset=utf-8",
        content: include_str!("page/page.css"),
    },
    File {
        path: "/page.js",
        kind: "text/javascript; charset=utf-8",
        content: include_str!("page/page.js"),
    },
];

/// The page's routes.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, file| {
        let tag = entity_tag(file.content);
        router.route(
            file.path,
            get(async move |headers: HeaderMap| answer(file, &tag, &headers)),
        )
    })
}

/// Changes with the content, so that a browser asks again after every update and loads only what is new.
fn entity_tag(content: &str) -> HeaderValue {
    let digest = Sha256::digest(content);
    let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    HeaderValue::from_str(&format!("\"{hex}\"")).expect("hexadecimal digits")
}

fn answer(file: &File, tag: &HeaderValue, headers: &HeaderMap) -> Response {
    let is_known = headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|known| known == tag);
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, file.kind)], file.content).into_response()
    };
    let always = [
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    let given = response.headers_mut();
    given.insert(header::ETAG, tag.clone());
    for (name, value) in always {
        given.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_but_its_own_files_and_its_policy_lets_it_run() {
        let [page, style, script] = FILES.map(|file| file.content);
        for file in [page, style, script] {
            let from_elsewhere = file.replace("http://www.w3.org/2000/svg", "");
            assert!(!from_elsewhere.contains("//www") && !from_elsewhere.contains("https:"));
        }
        // Markup that the policy would block.
        assert!(!page.contains("<script>") && !page.contains(" style=") && !page.contains(" onclick"));
        for file in &FILES[1..] {
            assert!(
                page.contains(&format!("\"{}\"", file.path)),
                "the page asks for {}",
                file.path
            );
        }
        // Text becomes text, never markup.
        assert!(!script.contains("innerHTML") && !script.contains("insertAdjacentHTML"));
    }

    #[test]
    fn every_element_the_script_names_is_on_the_page() {
        let [page, _, script] = FILES.map(|file| file.content);
        let names = script.split("at(\"").skip(1);
        let names: Vec<&str> = names.filter_map(|rest| rest.split('"').next()).collect();
        assert!(names.len() > 50, "{} names", names.len());
        for name in names {
            assert!(page.contains(&format!("id=\"{name}\"")), "there is no {name}");
        }
    }
}
