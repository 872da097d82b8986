//! Bodies with a content coding.

use serde_json::json;

use crate::site::{Answer, Site};

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
