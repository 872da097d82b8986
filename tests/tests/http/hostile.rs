//! Input that no client in its right mind sends: what is wrong is said, nothing is left behind, and whoever
//! else is served gets what is due.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::{Value as Json, json};

use crate::site::{Answer, Site};

const PROMPT: &str = "once upon a time";

/// What a number may be asked to be.
const NUMBERS: [&str; 9] = [
    "-1",
    "-1e9",
    "0.5",
    "1e9",
    "1e18",
    "1e308",
    "-0.0",
    "18446744073709551616",
    "2147483648",
];

/// Routes with a request each that is right, and the numbers in it.
fn requests() -> [(&'static str, Json, &'static [&'static str]); 4] {
    const SHARED: [&str; 14] = [
        "max_tokens",
        "max_completion_tokens",
        "min_tokens",
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "priority",
        "prompt_logprobs",
    ];
    [
        (
            "/v1/completions",
            json!({"prompt": PROMPT, "max_tokens": 3}),
            &SHARED,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "logprobs": true}),
            &SHARED,
        ),
        (
            "/v1/completions",
            json!({"prompt": PROMPT, "max_tokens": 3}),
            &["logprobs", "best_of"],
        ),
        (
            "/generate",
            json!({"text": PROMPT, "sampling_params": {"max_new_tokens": 3}}),
            &["top_logprobs_num", "logprob_start_len"],
        ),
    ]
}

#[test]
fn every_number_is_served_or_refused_by_name() {
    let site = Site::new();
    let (mut n_served, mut n_refused) = (0, 0);
    for (path, right, fields) in requests() {
        for (field, number) in fields
            .iter()
            .flat_map(|field| NUMBERS.map(|number| (field, number)))
        {
            let mut body = right.as_object().expect("an object").clone();
            body.shift_remove(*field);
            let body = Json::Object(body).to_string();
            let body = format!("{{\"{field}\": {number}, {}", &body[1..]);
            let answer = Answer::read(site.send("POST", path, "", &body));
            let case = format!("{path} {field} {number}: {}", answer.body);
            if answer.status == 200 {
                n_served += 1;
                continue;
            }
            n_refused += 1;
            assert_eq!(answer.status, 400, "{case}");
            let error = &answer.json()["error"];
            let said = format!("{}{}", error["param"], error["message"]);
            // The sum of prompt and output is what the context refuses.
            let names_it = said.contains(field) || (field.contains("max_") && said.contains("context"));
            assert!(names_it, "{case}");
        }
    }
    assert!(
        n_served > 50 && n_refused > 100,
        "{n_served} served, {n_refused} refused"
    );
    site.wait_until_quiet();
}

#[test]
fn bodies_that_are_no_json_are_refused() {
    let site = Site::new();
    let nested = format!("{{\"prompt\": {}", "[".repeat(90_000));
    let objects = format!(
        "{{\"prompt\": \"a\", \"response_format\": {}",
        "{\"a\":".repeat(15_000)
    );
    let cases = [
        "",
        "null",
        "[]",
        "{",
        r#"{"prompt": "a", "temperature": NaN}"#,
        r#"{"prompt": "a", "temperature": Infinity}"#,
        r#"{"prompt": "a", "temperature": -Infinity}"#,
        r#"{"prompt": "\ud800"}"#,
        nested.as_str(),
        objects.as_str(),
    ];
    for path in [
        "/v1/completions",
        "/v1/chat/completions",
        "/generate",
        "/tokenize",
        "/detokenize",
    ] {
        for body in cases {
            let answer = Answer::read(site.send("POST", path, "", body));
            let shown: String = body.chars().take(60).collect();
            assert_eq!(answer.status, 400, "{path} {shown}: {}", answer.body);
            let error = answer.json()["error"].clone();
            assert_eq!(error["type"], "invalid_request_error", "{path} {shown}");
            assert!(answer.body.len() < 2000, "an error is no echo");
        }
    }
}

#[test]
fn a_body_beyond_the_limit_is_a_413_before_all_of_it_came() {
    let site = Site::new();
    let mut stream = site.connect();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 10000000\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("the server reads");
    // The server may close before it has seen everything.
    let _ = stream.write_all(&vec![b' '; 1_000_000]);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 413"),
        "{answer}"
    );
    assert_eq!(site.get("/health").status, 200);
}

/// Sends `bytes`, closes its half, and reads whatever comes.
fn raw(site: &Site, bytes: &[u8]) -> String {
    let mut stream = site.connect();
    // A server that has seen enough closes, and what is still to be sent fails.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn what_is_no_http_gets_a_4xx_or_nothing() {
    let site = Site::new();
    let post = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let many: String = (0..10_000).map(|i| format!("x-{i}: 1\r\n")).collect();
    let long = format!("x: {}\r\n", "a".repeat(1_000_000));
    let cases = [
        "\0\0\0\0\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        format!("{post}{many}\r\n"),
        format!("{post}{long}\r\n"),
        format!("{post}content-length: -1\r\n\r\n"),
        format!("{post}content-length: 5\r\ncontent-length: 6\r\n\r\nabcde"),
        format!("{post}content-length: 500\r\n\r\n{{\"prompt\": \"a\"}}"),
        format!("{post}transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"),
        format!("{post}transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc"),
        format!("{post}content-length: 3\r\n\r\n\u{fffd}"),
    ];
    for case in cases {
        let answer = raw(&site, case.as_bytes());
        let shown: String = case.chars().take(80).collect();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{shown:?}: {answer}"
        );
    }
    assert_eq!(site.get("/health").status, 200);
    site.wait_until_quiet();
}

/// A request that streams as long as somebody listens.
fn endless() -> String {
    json!({"prompt": PROMPT, "max_tokens": 190_000, "ignore_eos": true, "stream": true, "temperature": 0})
        .to_string()
}

#[test]
fn who_leaves_at_any_point_leaves_nothing_behind_and_disturbs_nobody() {
    let site = Site::new();
    let (_, _, text) = site.output("somebody else", 40);
    let body = endless();
    let whole = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let at = |n: usize| whole.as_bytes()[..n].to_vec();
    let head = whole.find("\r\n\r\n").expect("a head") + 4;
    let parts = [
        at(1),
        at(20),
        at(head - 2),
        at(head),
        at(head + 10),
        at(whole.len() - 1),
        at(whole.len()),
    ];
    for part in parts {
        let mut stream = site.connect();
        stream.write_all(&part).expect("the server reads");
        drop(stream);
    }
    // And in the middle of what is streamed, after more and more of it.
    for n_bytes in [1, 300, 3000] {
        let mut stream = site.connect();
        stream.write_all(whole.as_bytes()).expect("the server reads");
        stream.read_exact(&mut vec![0; n_bytes]).expect("a stream");
        let neighbour = json!({"prompt": "somebody else", "max_tokens": 40, "temperature": 0});
        let answer = site.post("/v1/completions", &neighbour).json();
        assert_eq!(answer["choices"][0]["text"], text);
        drop(stream);
    }
    site.wait_until_quiet();
}

#[test]
fn requests_in_one_piece_are_answered_one_after_the_other() {
    let site = Site::new();
    let one = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{more}\r\n");
    let both = one("/health", "") + &one("/version", "") + &one("/nowhere", "connection: close\r\n");
    let mut stream: TcpStream = site.connect();
    stream.write_all(both.as_bytes()).expect("the server reads");
    let mut answers = String::new();
    stream.read_to_string(&mut answers).expect("answers");
    let statuses: Vec<&str> = answers
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &answers[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["200", "200", "404"]);
}
