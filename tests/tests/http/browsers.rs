//! What a browser may be made to send: names bound to this machine, pages of other origins, forms.

use std::io::Write;

use arbora::hosts::{Addresses, AllowedHosts, Host};
use arbora::origins::AllowedOrigins;
use serde_json::json;

use crate::site::{Answer, Setup, Site, chat, tokenizer};

const JSON: &str = "content-type: application/json\r\n";

/// The answer to a request with these headers and no others of a browser's.
fn ask(site: &Site, method_and_path: &str, headers: &str, body: &str) -> Answer {
    Answer::read(site.send_bytes(method_and_path, headers, body.as_bytes()))
}

fn code(answer: &Answer) -> String {
    answer.json()["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// The value of a header of an answer.
fn header(answer: &Answer, name: &str) -> Option<String> {
    let mut lines = answer.head.lines().filter_map(|line| line.split_once(": "));
    lines
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value.to_owned())
}

/// A site whose answers pages of `origins` may read.
fn open_to(origins: &[&str], api_keys: &[&str]) -> Site {
    let mut setup = Setup::new(tokenizer());
    setup.api_keys = api_keys.iter().map(|&key| key.to_owned()).collect();
    setup.origins = match origins {
        ["*"] => AllowedOrigins::All,
        listed => {
            let listed = listed
                .iter()
                .map(|origin| AllowedOrigins::parse(origin).expect("an origin"));
            AllowedOrigins::Listed(listed.collect())
        }
    };
    setup.start()
}

#[test]
fn a_name_bound_to_this_machine_reads_nothing_on_any_route() {
    let site = Site::new();
    let body = chat("hello", &json!({"max_tokens": 1})).to_string();
    for target in [
        "GET /",
        "GET /page.js",
        "GET /v1/models",
        "GET /health",
        "GET /metrics",
        "GET /cache/tree",
        "GET /openapi.json",
        "GET /nowhere",
        "POST /flush_cache",
        "POST /v1/chat/completions",
        "OPTIONS /v1/chat/completions",
    ] {
        let answer = ask(
            &site,
            target,
            &format!("host: pages.example:8000\r\n{JSON}"),
            &body,
        );
        assert_eq!(answer.status, 403, "{target}: {}", answer.body);
        assert_eq!(code(&answer), "host_not_allowed", "{target}");
        let message = answer.json()["error"]["message"].to_string();
        assert!(
            message.contains("'--allowed-host pages.example:8000'"),
            "{message}"
        );
    }
    for own in [
        "localhost",
        "LOCALHOST.:8000",
        "127.0.0.1:8000",
        "127.3.2.1",
        "[::1]:8000",
    ] {
        let answer = ask(&site, "GET /v1/models", &format!("host: {own}\r\n"), "");
        assert_eq!(answer.status, 200, "{own}: {}", answer.body);
    }
    for foreign in [
        "192.0.2.1",
        "[2001:db8::1]",
        "localhost.pages.example",
        "127.0.0.1.pages.example",
    ] {
        let answer = ask(&site, "GET /v1/models", &format!("host: {foreign}\r\n"), "");
        assert_eq!(answer.status, 403, "{foreign}: {}", answer.body);
    }
    site.wait_until_quiet();
    assert_eq!(
        site.engine.metrics().requests_accepted.value(),
        0,
        "nothing was run"
    );
}

#[test]
fn further_hosts_are_answered_where_they_are_listed_and_all_where_a_key_is_asked_for() {
    let status = |setup: Setup, host: &str, more: &str| {
        let site = setup.start();
        ask(&site, "GET /v1/models", &format!("host: {host}\r\n{more}"), "").status
    };
    let setup = |addresses, hosts: &[&str]| Setup {
        hosts: AllowedHosts::Listed {
            addresses,
            hosts: hosts
                .iter()
                .map(|host| Host::parse(host).expect("a host"))
                .collect(),
        },
        ..Setup::new(tokenizer())
    };
    assert_eq!(
        status(setup(Addresses::Loopback, &["gpu-box"]), "GPU-box:8000", ""),
        200
    );
    assert_eq!(status(setup(Addresses::All, &[]), "192.0.2.1:8000", ""), 200);
    assert_eq!(status(setup(Addresses::All, &[]), "gpu-box:8000", ""), 403);
    let mut keyed = setup(Addresses::Loopback, &[]);
    keyed.api_keys = vec!["secret".to_owned()];
    let key = "authorization: Bearer secret\r\n";
    assert_eq!(status(keyed, "models.example", key), 200);
    let all = Setup {
        hosts: AllowedHosts::All,
        ..Setup::new(tokenizer())
    };
    assert_eq!(status(all, "models.example", ""), 200);
}

#[test]
fn a_request_says_once_and_clearly_which_host_it_is_for() {
    let site = Site::new();
    let keyed = Site::with(&["secret"], |_| {});
    for (target, headers) in [
        ("GET /health", ""),
        ("GET /health", "host: localhost\r\nhost: localhost\r\n"),
        ("GET /health", "host: localhost\r\nhost: pages.example\r\n"),
        ("GET /health", "host: \r\n"),
        ("GET /health", "host: a b\r\n"),
        ("GET /health", "host: me@localhost\r\n"),
        ("GET /health", "host: localhost:http\r\n"),
        ("GET /health", "host: h\u{e4}user.example\r\n"),
        ("GET http://localhost/health", ""),
        ("GET http://pages.example/health", "host: localhost\r\n"),
        ("GET http://localhost:8001/health", "host: localhost:8000\r\n"),
    ] {
        for site in [&site, &keyed] {
            let answer = ask(
                site,
                target,
                &format!("{headers}authorization: Bearer secret\r\n"),
                "",
            );
            assert_eq!(answer.status, 400, "{target} {headers:?}: {}", answer.body);
            assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
        }
    }
    let target = "GET http://localhost/health";
    assert_eq!(ask(&site, target, "host: localhost:80\r\n", "").status, 200);
    let target = "GET http://pages.example/health";
    assert_eq!(ask(&site, target, "host: pages.example\r\n", "").status, 403);
    // HTTP/1.0 has no hosts.
    let mut old = site.connect();
    old.write_all(b"GET /health HTTP/1.0\r\n\r\n")
        .expect("the server reads");
    assert_eq!(Answer::read(old).status, 200);
}

#[test]
fn what_is_posted_without_being_called_json_is_a_415() {
    let site = Site::new();
    let posted = |path: &str, kind: &str, body: &str| {
        ask(
            &site,
            &format!("POST {path}"),
            &format!("host: localhost\r\n{kind}"),
            body,
        )
    };
    let asked = chat("hello", &json!({"max_tokens": 1})).to_string();
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/generate",
        "/tokenize",
        "/detokenize",
        "/cache/explain",
        "/flush_cache",
    ] {
        for kind in [
            "",
            "content-type: \r\n",
            "content-type: text/plain\r\n",
            "content-type: text/plain;application/json\r\n",
            "content-type: text/plain, application/json\r\n",
            "content-type: text/plain\r\ncontent-type: application/json\r\n",
            "content-type: application/x-www-form-urlencoded\r\n",
            "content-type: multipart/form-data; boundary=x\r\n",
            "content-type: application/jsonp\r\n",
            "content-type: json\r\n",
        ] {
            let answer = posted(path, kind, &asked);
            assert_eq!(answer.status, 415, "{path} {kind:?}: {}", answer.body);
            assert_eq!(code(&answer), "unsupported_media_type", "{path} {kind:?}");
            assert_eq!(header(&answer, "accept").as_deref(), Some("application/json"));
            let message = answer.json()["error"]["message"].to_string();
            assert!(message.contains("'Content-Type: application/json'"), "{message}");
        }
    }
    let form = posted(
        "/v1/completions",
        "content-type: application/x-www-form-urlencoded\r\n",
        "{}",
    );
    assert_eq!(
        form.json()["error"]["message"],
        "The body must be JSON. Send the header 'Content-Type: application/json', got \
         'application/x-www-form-urlencoded'."
    );
    site.wait_until_quiet();
    assert_eq!(
        site.engine.metrics().requests_accepted.value(),
        0,
        "nothing was run"
    );
    for kind in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/json;charset=UTF-8",
        "application/vnd.api+json",
    ] {
        let answer = posted(
            "/v1/chat/completions",
            &format!("content-type: {kind}\r\n"),
            &asked,
        );
        assert_eq!(answer.status, 200, "{kind}: {}", answer.body);
    }
    // Without a body there is nothing to declare.
    assert_eq!(posted("/flush_cache", "", "").status, 200);
    assert_eq!(posted("/flush_cache", JSON, "").status, 200);
    assert_eq!(
        posted("/flush_cache", "content-type: text/plain\r\n", "").status,
        415
    );
    assert_eq!(posted("/nowhere", "", "x").status, 404);
    assert_eq!(posted("/v1/models", "", "x").status, 405);
}

#[test]
fn pages_of_other_origins_do_not_make_the_server_act() {
    let site = Site::new();
    let foreign = [
        "origin: http://pages.example\r\n",
        "origin: null\r\n",
        "origin: http://localhost:3000\r\n",
        "sec-fetch-site: cross-site\r\n",
        "sec-fetch-site: same-site\r\n",
    ];
    let own = [
        "",
        "origin: http://localhost\r\n",
        "origin: http://localhost:80\r\nsec-fetch-site: same-origin\r\n",
        "sec-fetch-site: same-origin\r\n",
        "sec-fetch-site: none\r\n",
    ];
    for target in ["POST /flush_cache", "GET /flush_cache", "GET /health_generate"] {
        for from in foreign {
            let answer = ask(&site, target, &format!("host: localhost\r\n{from}"), "");
            assert_eq!(answer.status, 403, "{target} {from:?}: {}", answer.body);
            assert_eq!(code(&answer), "origin_not_allowed");
        }
        for from in own {
            let answer = ask(&site, target, &format!("host: localhost\r\n{from}"), "");
            assert_eq!(answer.status, 200, "{target} {from:?}: {}", answer.body);
        }
    }
    // What only reads is answered; no page of another origin is given the answer.
    let read = ask(
        &site,
        "GET /v1/models",
        "host: localhost\r\norigin: http://pages.example\r\n",
        "",
    );
    assert_eq!(read.status, 200);
    assert!(!read.head.contains("access-control-"), "{}", read.head);
    let allowed = open_to(&["http://localhost:3000"], &[]);
    let asked = |from: &str| {
        ask(
            &allowed,
            "POST /flush_cache",
            &format!("host: localhost\r\n{from}"),
            "",
        )
    };
    assert_eq!(asked("origin: http://localhost:3000\r\n").status, 200);
    assert_eq!(asked("origin: http://localhost:3001\r\n").status, 403);
    // A page has no key, and whoever has one is no stranger.
    let keyed = Site::with(&["secret"], |_| {});
    let key = "host: localhost\r\norigin: http://pages.example\r\nauthorization: Bearer secret\r\n";
    assert_eq!(ask(&keyed, "POST /flush_cache", key, "").status, 200);
}

#[test]
fn without_allowed_origins_a_preflight_is_refused() {
    let site = Site::new();
    let answer = ask(
        &site,
        "OPTIONS /v1/chat/completions",
        "host: localhost\r\norigin: http://pages.example\r\naccess-control-request-method: POST\r\n",
        "",
    );
    assert_eq!(answer.status, 405);
    assert!(!answer.head.contains("access-control-"), "{}", answer.head);
    assert_eq!(header(&answer, "vary"), None);
}

#[test]
fn a_preflight_of_an_allowed_origin_is_granted_without_a_key() {
    let site = open_to(&["http://localhost:3000", "https://app.example"], &["secret"]);
    let preflight = |origin: &str| {
        let headers = format!(
            "host: localhost\r\norigin: {origin}\r\naccess-control-request-method: POST\r\n\
             access-control-request-headers: authorization,content-type,x-stainless-lang\r\n\
             access-control-request-private-network: true\r\n"
        );
        ask(&site, "OPTIONS /v1/chat/completions", &headers, "")
    };
    for origin in ["http://localhost:3000", "https://app.example"] {
        let answer = preflight(origin);
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
        for (name, expected) in [
            ("access-control-allow-origin", origin),
            ("access-control-allow-methods", "GET,POST,DELETE"),
            (
                "access-control-allow-headers",
                "authorization,content-type,x-stainless-lang",
            ),
            ("access-control-allow-private-network", "true"),
            ("access-control-max-age", "3600"),
            ("vary", "origin, access-control-request-headers"),
        ] {
            assert_eq!(
                header(&answer, name).as_deref(),
                Some(expected),
                "{origin} {name}"
            );
        }
        assert_eq!(header(&answer, "access-control-allow-credentials"), None);
    }
    for origin in [
        "http://localhost:3001",
        "http://app.example",
        "https://app.example.pages.example",
        "null",
    ] {
        let answer = preflight(origin);
        for name in [
            "access-control-allow-origin",
            "access-control-allow-private-network",
        ] {
            assert_eq!(header(&answer, name), None, "{origin} {name}");
        }
    }
}

#[test]
fn pages_of_allowed_origins_read_answers_streams_and_errors() {
    let site = open_to(&["http://localhost:3000"], &["secret"]);
    let ask = |target: &str, more: &str, body: &str| {
        let headers = format!("host: localhost\r\norigin: http://localhost:3000\r\n{JSON}{more}");
        ask(&site, target, &headers, body)
    };
    let key = "authorization: Bearer secret\r\n";
    let chat_path = "POST /v1/chat/completions";
    let good = chat("hello", &json!({"max_tokens": 2}));
    let streamed = chat("hello", &json!({"max_tokens": 2, "stream": true}));
    let slow = format!("{key}x-arbora-queue-timeout-ms: x\r\n");
    for (status, answer) in [
        (200, ask("GET /v1/models", key, "")),
        (200, ask(chat_path, key, &good.to_string())),
        (200, ask(chat_path, key, &streamed.to_string())),
        (400, ask(chat_path, key, "{}")),
        (400, ask(chat_path, &slow, &good.to_string())),
        (401, ask(chat_path, "", &good.to_string())),
        (404, ask("GET /nowhere", key, "")),
        (405, ask("POST /v1/models", key, "{}")),
        (413, ask(chat_path, key, &" ".repeat(100_001))),
        (200, ask("GET /", "", "")),
    ] {
        assert_eq!(answer.status, status, "{}", answer.body);
        for (name, expected) in [
            ("access-control-allow-origin", "http://localhost:3000"),
            (
                "access-control-expose-headers",
                "x-request-id,retry-after,www-authenticate",
            ),
            ("vary", "origin, access-control-request-headers"),
        ] {
            assert_eq!(
                header(&answer, name).as_deref(),
                Some(expected),
                "{status} {name}"
            );
        }
    }
}

#[test]
fn any_origin_may_ask_where_all_are_allowed() {
    let site = open_to(&["*"], &[]);
    for origin in ["http://localhost:3000", "https://pages.example", "null"] {
        let from = format!("host: localhost\r\norigin: {origin}\r\n");
        let answer = ask(&site, "POST /flush_cache", &from, "");
        assert_eq!(answer.status, 200, "{origin}");
        assert_eq!(
            header(&answer, "access-control-allow-origin").as_deref(),
            Some("*")
        );
    }
    // The names by which the server may be asked are another matter, and a page can read why it is refused.
    let answer = ask(
        &site,
        "GET /v1/models",
        "host: gpu-box\r\norigin: http://a.example\r\n",
        "",
    );
    assert_eq!(
        (answer.status, code(&answer)),
        (403, "host_not_allowed".to_owned())
    );
    assert_eq!(
        header(&answer, "access-control-allow-origin").as_deref(),
        Some("*")
    );
}
