//! Bodies with a content coding.

use std::io::Write;

use arbora::intake::IntakeLimits;
use serde_json::json;

use crate::site::{Answer, Setup, Site, tokenizer, wait_until};

/// `{"prompt": "once upon a time", "max_tokens": 3, "temperature": 0}` and 60 blanks, by Python's gzip.
const GZIP: &str = "1f8b0800000000000203ab562a28cacf2d2851b25250cacf4b4e55282dc8cf53485428c9cc4d55d25150ca4dac882f\
                    c9cf4ecd2b06aa30060a94a4e616a41625969416a502450c6a152800000aad9d887d000000";
/// The same by zstd 1.5.4.
const ZSTD: &str = "28b52ffd04580d020022040e14c0a70346d7ca6da52cbd265954831bf69cbaee094d80968f521a74b4a75b82968df3\
                    e252388cb9c537226b7a0e533f9c73cb8976088d0401000224100533432125";

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
    (0..hex.len()).step_by(2).map(digits).collect()
}

fn post(site: &Site, coding: &str, body: &[u8]) -> Answer {
    let headers =
        format!("host: localhost\r\ncontent-type: application/json\r\ncontent-encoding: {coding}\r\n");
    Answer::read(site.send_bytes("POST /v1/completions", &headers, body))
}

#[test]
fn a_compressed_body_is_read_like_a_plain_one() {
    let site = Site::new();
    let (_, _, text) = site.output("once upon a time", 3);
    let plain = json!({"prompt": "once upon a time", "max_tokens": 3, "temperature": 0}).to_string();
    for (coding, body) in [
        ("gzip", bytes(GZIP)),
        ("X-GZIP", bytes(GZIP)),
        ("zstd", bytes(ZSTD)),
        ("identity", plain.into_bytes()),
    ] {
        let answer = post(&site, coding, &body);
        assert_eq!(answer.status, 200, "{coding}: {}", answer.body);
        assert_eq!(answer.json()["choices"][0]["text"], text, "{coding}");
    }
}

#[test]
fn a_content_coding_that_is_not_read_is_a_415_that_names_those_that_are() {
    let site = Site::new();
    for coding in ["deflate", "br", "compress", "gzip, zstd", "zstd, br"] {
        let answer = post(&site, coding, &bytes(GZIP));
        assert_eq!(answer.status, 415, "{coding}: {}", answer.body);
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], "unsupported_content_encoding");
        let message = format!("The content coding must be one of gzip, zstd and identity, got '{coding}'.");
        assert_eq!(error["message"], message);
        assert!(
            answer.head.contains("accept-encoding: gzip, zstd\r\n"),
            "{}",
            answer.head
        );
    }
}

#[test]
fn a_compressed_body_that_is_damaged_or_too_large_is_refused_as_such() {
    let site = Site::new();
    let (gzip, zstd) = (bytes(GZIP), bytes(ZSTD));
    for (coding, body) in [
        ("gzip", &gzip[..40]),
        ("zstd", &zstd[..40]),
        ("gzip", &zstd),
        ("zstd", &gzip),
        ("gzip", b"{\"prompt\": \"a\"}"),
        ("gzip", b""),
    ] {
        let answer = post(&site, coding, body);
        assert_eq!(answer.status, 400, "{coding}: {}", answer.body);
        let message = format!("The request body is not valid {coding}: it is damaged or cut off.");
        assert_eq!(answer.json()["error"]["message"], message);
    }
    // A frame of blocks that say "128 KiB of blanks" in four bytes each: 2.6 GB.
    let mut bomb = bytes("28b52ffd0058");
    for _ in 0..20_000 {
        bomb.extend_from_slice(&[0x02, 0x00, 0x10, b' ']);
    }
    assert_eq!(post(&site, "zstd", &bomb).status, 413);
    // What is sent counts, too.
    assert_eq!(post(&site, "gzip", &[0; 100_001]).status, 413);
    site.wait_until_quiet();
}

#[test]
fn bodies_of_all_connections_together_have_a_limit() {
    let mut setup = Setup::new(tokenizer());
    // A third of it for what was received.
    setup.bodies = IntakeLimits {
        body: 10_000,
        memory: 90_000,
    };
    let site = setup.start();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                content-length: 10000\r\nconnection: close\r\n\r\n";
    let open = || {
        let mut stream = site.connect();
        stream.write_all(head.as_bytes()).expect("the server reads");
        stream.write_all(&[b' '; 9_000]).expect("the server reads");
        stream
    };
    let held: Vec<_> = (0..3).map(|_| open()).collect();
    wait_until("all is read", || {
        site.metric("arbora_request_body_bytes") == 27_000
    });
    let ask = json!({"prompt": "once upon a time", "max_tokens": 1, "user": "u".repeat(5_000)});
    let refused = site.post("/v1/completions", &ask);
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    let error = refused.json()["error"].take();
    assert_eq!(error["code"], "rate_limit_exceeded");
    let message = error["message"].as_str().expect("a text");
    assert!(
        message.contains("bytes of request bodies") && message.contains("30000"),
        "{message}"
    );
    drop(held);
    wait_until("what is given up is given back", || {
        site.metric("arbora_request_body_bytes") == 0
    });
    assert_eq!(site.post("/v1/completions", &ask).status, 200);
}

#[test]
fn a_body_that_is_declared_too_large_is_refused_before_it_is_sent() {
    let site = Site::new();
    let mut stream = site.connect();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                content-length: 100001\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("the server reads");
    let answer = Answer::read(stream);
    assert_eq!(answer.status, 413);
    assert_eq!(answer.json()["error"]["code"], "request_too_large");
}

#[test]
fn a_body_of_more_values_than_there_is_memory_for_is_a_413() {
    let mut setup = Setup::new(tokenizer());
    setup.bodies = IntakeLimits {
        body: 100_000,
        memory: 1_000_000,
    };
    let site = setup.start();
    let ask = json!({"prompt": "once", "max_tokens": 1, "metadata": vec![1; 20_000]});
    let answer = site.post("/v1/completions", &ask);
    assert_eq!(answer.status, 413, "{}", answer.body);
    let message = answer.json()["error"]["message"].take();
    assert!(
        message
            .as_str()
            .is_some_and(|text| text.contains("JSON values, at most ")),
        "{message}"
    );
}
