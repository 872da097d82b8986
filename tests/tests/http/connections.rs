//! Connections: clients that leave before their answer, that read nothing, that hold every place, and that
//! declare more than may be sent.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use arbora::origins::AllowedOrigins;
use arbora::places::{Patience, Room};
use serde_json::json;

use crate::site::{Answer, Setup, Site, tokenizer, wait_until};

/// What takes a while, and would be computed to its end if nobody noticed that its client left.
const N_TOKENS: u64 = 190_000;

fn post(delivery: &str, n_tokens: u64) -> String {
    let body = format!(
        r#"{{"prompt": "on and on", "max_tokens": {n_tokens}, "ignore_eos": true, "temperature": 0{delivery}}}"#
    );
    let n = body.len();
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {n}\r\n\r\n{body}"
    )
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")
}

fn small(places: usize, reserved: usize) -> Setup {
    Setup {
        room: Room { places, reserved },
        patience: Patience {
            idle: Duration::ZERO,
            ..Patience::default()
        },
        ..Setup::new(tokenizer())
    }
}

#[test]
fn a_client_that_leaves_is_noticed_whatever_it_sent_after_its_request() {
    let site = Site::new();
    let another = post("", N_TOKENS);
    let get = get("/health");
    for after in ["", "\r\n", "x", &get, &another] {
        let before = site.engine.metrics().generated_tokens.value();
        let mut stream = site.connect();
        let both = post("", N_TOKENS) + after;
        stream.write_all(both.as_bytes()).expect("the server reads");
        wait_until("it runs", || site.engine.metrics().gauges().running == 1);
        drop(stream);
        wait_until("the request is dropped", || site.engine.n_in_flight() == 0);
        let n_computed = site.engine.metrics().generated_tokens.value() - before;
        assert!(n_computed < N_TOKENS, "after {after:?} all was computed");
        site.wait_until_quiet();
    }
    wait_until("it is counted", || {
        site.metric("arbora_http_connections_abandoned_total") == 5
    });
}

#[test]
fn a_client_that_sends_more_later_and_leaves_is_noticed_too() {
    let site = Site::new();
    let mut stream = site.connect();
    stream
        .write_all(post("", N_TOKENS).as_bytes())
        .expect("the server reads");
    wait_until("it runs", || site.engine.metrics().gauges().running == 1);
    for _ in 0..3 {
        stream.write_all(b"\r\n").expect("the server listens");
    }
    drop(stream);
    wait_until("the request is dropped", || site.engine.n_in_flight() == 0);
    assert!(site.engine.metrics().generated_tokens.value() < N_TOKENS);
}

#[test]
fn a_client_that_leaves_the_queue_is_noticed_though_its_stream_has_not_begun() {
    let site = Site::with(&[], |engine| engine.max_running = 1);
    let running = {
        let mut stream = site.connect();
        let request = post(r#", "stream": true"#, N_TOKENS);
        stream.write_all(request.as_bytes()).expect("the server reads");
        stream
    };
    wait_until("one runs", || site.engine.metrics().gauges().running == 1);
    for after in ["", "\r\n", "x", &get("/health")] {
        let mut stream = site.connect();
        let both = post(r#", "stream": true"#, N_TOKENS) + after;
        stream.write_all(both.as_bytes()).expect("the server reads");
        wait_until("one waits", || site.engine.n_in_flight() == 2);
        drop(stream);
        wait_until("none waits", || site.engine.n_in_flight() == 1);
    }
    assert_eq!(
        site.engine.metrics().gauges().running,
        1,
        "the other one still runs"
    );
    drop(running);
    site.wait_until_quiet();
}

/// Sends `bytes`, closes that half, and reads what comes.
fn half_closed(site: &Site, bytes: &str) -> String {
    let mut stream = site.connect();
    stream.write_all(bytes.as_bytes()).expect("the server reads");
    stream.shutdown(Shutdown::Write).expect("connected");
    let mut answers = String::new();
    stream.read_to_string(&mut answers).expect("answers");
    answers
}

#[test]
fn a_client_that_only_sends_no_more_gets_what_needs_no_waiting_and_nothing_else() {
    let site = Site::new();
    for _ in 0..20 {
        let answers = half_closed(&site, &(get("/health") + &get("/version")));
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    }
    let tokens = r#"{"prompt": "abc"}"#;
    let tokenize = format!(
        "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{tokens}",
        tokens.len()
    );
    let answer = half_closed(&site, &tokenize);
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let answer = half_closed(&site, &tokenize[..tokenize.len() - 3]);
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(half_closed(&site, &post("", N_TOKENS)), "");
    site.wait_until_quiet();
    assert!(site.engine.metrics().generated_tokens.value() < N_TOKENS);
}

/// The head of a request with a body of a declared length.
fn declared(path: &str, length: &str, more: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{more}\r\n"
    )
}

#[test]
fn a_body_that_is_declared_too_long_is_a_413_before_it_is_read() {
    let site = Site::new();
    for length in [
        "100001",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551613",
    ] {
        for path in [
            "/v1/completions",
            "/v1/chat/completions",
            "/flush_cache",
            "/nowhere",
            "/",
        ] {
            for more in ["", "expect: 100-continue\r\n"] {
                let mut stream = site.connect();
                stream
                    .write_all(declared(path, length, more).as_bytes())
                    .expect("the server reads");
                // Nothing of the body is sent, and the answer is there.
                let answer = Answer::read(stream);
                assert_eq!(answer.status, 413, "{path} {length} {more}: {}", answer.body);
                // The last one's errors are in TGI's shape.
                if path != "/" {
                    assert_eq!(answer.json()["error"]["code"], "request_too_large");
                }
                assert!(answer.head.contains("connection: close"), "{}", answer.head);
            }
        }
    }
}

#[test]
fn lengths_that_are_none_are_refused_at_once() {
    let site = Site::new();
    for length in [
        "18446744073709551615",
        "18446744073709551616",
        "-1",
        "1e3",
        "0x10",
        "5, 6",
        "",
    ] {
        let mut stream = site.connect();
        let head = declared("/v1/completions", length, "");
        stream.write_all(head.as_bytes()).expect("the server reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 4"), "{length:?}: {answer}");
    }
}

#[test]
fn a_body_that_is_not_too_long_is_asked_for_where_its_client_waits_for_that() {
    let site = Site::new();
    let body = r#"{"prompt": "abc"}"#;
    let mut stream = site.connect();
    let more = "connection: close\r\nexpect: 100-continue\r\n";
    let head = declared("/tokenize", &body.len().to_string(), more);
    stream.write_all(head.as_bytes()).expect("the server reads");
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).expect("an interim answer");
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).expect("the server reads");
    assert_eq!(Answer::read(stream).status, 200);
}

#[test]
fn a_client_that_sends_a_refused_body_to_its_end_finds_the_answer() {
    let site = Site::with(&["key"], |_| {});
    let blanks = vec![b' '; 3_000_000];
    for (path, key, status) in [
        ("/v1/completions", "key", 413),
        ("/v1/completions", "other", 413),
        ("/nowhere", "key", 413),
    ] {
        let mut stream = site.connect();
        let more = format!("authorization: Bearer {key}\r\n");
        let head = declared(path, &blanks.len().to_string(), &more);
        stream.write_all(head.as_bytes()).expect("the server reads");
        stream.write_all(&blanks).expect("the server reads on");
        assert_eq!(Answer::read(stream).status, status);
    }
    // The same where the length is not declared, and where the key is what is refused.
    for (key, status) in [("key", 413), ("other", 401)] {
        let mut stream = site.connect();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\ncontent-type: \
             application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("the server reads");
        stream.write_all(b"2dc6c0\r\n").expect("the server reads");
        stream.write_all(&blanks).expect("the server reads on");
        stream.write_all(b"\r\n0\r\n\r\n").expect("the server reads on");
        assert_eq!(Answer::read(stream).status, status);
    }
}

#[test]
fn a_request_without_a_host_or_with_two_is_refused_whatever_it_asks_for() {
    let plain = Site::new();
    let keyed = Site::with(&["key"], |_| {});
    let open = Setup {
        origins: AllowedOrigins::All,
        ..Setup::new(tokenizer())
    };
    let open = open.start();
    for site in [&plain, &keyed, &open] {
        for target in [
            "GET /",
            "GET /health",
            "GET /nowhere",
            "POST /v1/completions",
            "OPTIONS /v1/models",
            "HEAD /",
        ] {
            for hosts in ["", "host: localhost\r\nhost: localhost\r\n"] {
                let headers =
                    format!("authorization: Bearer key\r\ncontent-type: application/json\r\n{hosts}");
                let answer = Answer::read(site.send_bytes(target, &headers, b""));
                assert_eq!(answer.status, 400, "{target} {hosts:?}: {}", answer.body);
            }
        }
    }
}

/// Sends request after request and reads nothing, until the server takes no more for the moment.
fn pipeline_without_reading(site: &Site) -> TcpStream {
    let mut stream = site.connect();
    let timeout = Some(Duration::from_millis(200));
    stream.set_write_timeout(timeout).expect("a timeout");
    let requests = get("/openapi.json").repeat(100);
    for _ in 0..10_000 {
        match stream.write(requests.as_bytes()) {
            Ok(_) => {}
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                return stream;
            }
            // The server has closed it.
            Err(_) => return stream,
        }
    }
    panic!("the server buffers without end");
}

#[test]
fn a_client_that_reads_nothing_loses_its_connection() {
    let mut setup = Setup::new(tokenizer());
    setup.patience.write = Duration::from_millis(300);
    let site = setup.start();
    let streams: Vec<TcpStream> = (0..3).map(|_| pipeline_without_reading(&site)).collect();
    wait_until("they are counted", || {
        site.metric("arbora_http_write_timeouts_total") == 3
    });
    wait_until("they are gone", || site.metric("arbora_http_connections") == 1);
    drop(streams);
}

#[test]
fn clients_that_hold_every_place_and_read_nothing_make_room() {
    let site = small(3, 1).start();
    let streams: Vec<TcpStream> = (0..3).map(|_| pipeline_without_reading(&site)).collect();
    let body = json!({"prompt": "once upon a time", "max_tokens": 3});
    for _ in 0..6 {
        assert_eq!(site.get("/health").status, 200);
        wait_until("it is served", || {
            site.post("/v1/completions", &body).status == 200
        });
    }
    assert!(site.metric("arbora_http_connections_closed_idle_total") >= 1);
    drop(streams);
}

#[test]
fn idle_connections_make_room_the_idlest_first() {
    let site = small(3, 1).start();
    let ask = |stream: &mut TcpStream| {
        stream
            .write_all(get("/version").as_bytes())
            .expect("the server reads");
        let mut byte = [0; 1];
        stream.read(&mut byte).expect("an answer") == 1
    };
    let mut kept: Vec<TcpStream> = Vec::new();
    for _ in 0..2 {
        let mut stream = site.connect();
        assert!(ask(&mut stream), "an answer");
        kept.push(stream);
    }
    // It says nothing, like many more after it.
    let silent: Vec<TcpStream> = (0..40).map(|_| site.connect()).collect();
    assert_eq!(site.get("/health").status, 200);
    let mut rest = Vec::new();
    assert!(
        kept[0].read_to_end(&mut rest).is_ok_and(|_| !rest.is_empty()),
        "the rest of its answer, and the end"
    );
    let body = json!({"prompt": "once upon a time", "max_tokens": 3});
    wait_until("it is served", || {
        site.post("/v1/completions", &body).status == 200
    });
    assert!(site.metric("arbora_http_connections_closed_idle_total") >= 38);
    drop(silent);
}

#[test]
fn health_checks_are_answered_while_every_place_is_busy_and_the_rest_is_refused_with_a_reason() {
    let mut setup = small(2, 1);
    // Pages for both to their ends.
    setup.engine.n_pages *= 2;
    let site = setup.start();
    // They wait for nothing from their clients, so none of them makes room.
    let busy = [(); 2].map(|()| {
        let mut stream = site.connect();
        stream
            .write_all(post("", N_TOKENS).as_bytes())
            .expect("the server reads");
        stream
    });
    wait_until("both are taken in", || site.engine.n_in_flight() == 2);
    for path in ["/health", "/ready", "/metrics"] {
        let answer = site.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
    let body = json!({"prompt": "once upon a time", "max_tokens": 3});
    let refused = site.post("/v1/completions", &body);
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(refused.json()["error"]["code"], "too_many_connections");
    for header in ["retry-after: 5", "connection: close"] {
        assert!(refused.head.contains(header), "{}", refused.head);
    }
    // Whoever says nothing on the reserved place gives it to the next one.
    let silent = site.connect();
    assert_eq!(site.get("/health").status, 200);
    wait_until("three are open", || site.metric("arbora_http_connections") == 3);
    assert!(site.metric("arbora_http_connections_reserved_total") >= 6);
    assert_eq!(
        site.engine.n_in_flight(),
        2,
        "nobody was closed who was being answered"
    );
    drop((busy, silent));
    site.wait_until_quiet();
    assert_eq!(site.post("/v1/completions", &body).status, 200);
}
