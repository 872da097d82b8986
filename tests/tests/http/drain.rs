//! A server that is told to stop while it is busy, and has time to finish.

use std::io::Read;
use std::time::Duration;

use serde_json::json;

use crate::site::{Setup, Site, tokenizer};

/// Streams that run when the server is told to stop.
const N_STREAMS: usize = 16;

/// A server with more time to drain than any test takes.
fn site() -> Site {
    Setup {
        drain_timeout: Duration::from_secs(600),
        ..Setup::new(tokenizer())
    }
    .start()
}

fn streamed(prompt: &str, max_tokens: usize) -> String {
    json!({"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": true, "temperature": 0, "stream": true})
        .to_string()
}

fn tell_to_stop(site: &mut Site) {
    drop(site.stop.take());
    while site.engine.is_accepting() {
        std::thread::yield_now();
    }
}

#[test]
fn every_stream_that_runs_is_finished_within_the_drain_time() {
    let mut site = site();
    let ask = |i: usize| {
        site.send(
            "POST",
            "/v1/completions",
            "",
            &streamed(&format!("stream {i}"), 3000),
        )
    };
    let mut streams: Vec<_> = (0..N_STREAMS).map(ask).collect();
    let mut begun = [0; 400];
    for stream in &mut streams {
        stream.read_exact(&mut begun).expect("the stream begins");
    }
    tell_to_stop(&mut site);
    for mut stream in streams {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("the rest");
        assert!(
            rest.contains(r#""finish_reason":"length""#) && rest.contains("data: [DONE]"),
            "{rest}"
        );
    }
}

#[test]
fn a_server_that_stops_says_so_to_probes_and_takes_nothing_more() {
    let mut site = site();
    // Runs until its client leaves, so that the server is there as long.
    let running = site.send("POST", "/v1/completions", "", &streamed("on and on", 190_000));
    while site.engine.n_in_flight() == 0 {
        std::thread::yield_now();
    }
    tell_to_stop(&mut site);
    let refused = site.post("/v1/completions", &json!({"prompt": "late", "max_tokens": 1}));
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(site.get("/ready").status, 503);
    assert_eq!(site.get("/health").status, 200, "it still moves");
    let answer = site.get("/health_generate");
    assert_eq!(
        (answer.status, answer.json()),
        (503, json!({"status": "draining"}))
    );
    drop(running);
}
