//! What operators configure: whose words metrics are told in, whether keys share the cache.

use arbora::auth::{CacheSharing, OperatorKeys};
use arbora::config::MetricsCompat;
use serde_json::json;

use crate::site::{Answer, Setup, Site, tokenizer};

fn value(page: &str, sample: &str) -> f64 {
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("no {sample} in {page}"));
    line.parse().expect("a number")
}

#[test]
fn metrics_are_told_in_vllms_words_where_that_is_wanted() {
    let mut setup = Setup::new(tokenizer());
    setup.metrics_compat = MetricsCompat::Vllm;
    let site = setup.start();
    let ask = json!({"prompt": "once upon a time", "max_tokens": 5, "temperature": 0, "ignore_eos": true});
    for _ in 0..2 {
        assert_eq!(site.post("/v1/completions", &ask).status, 200);
    }
    site.wait_until_quiet();
    let page = site.get("/metrics").body;
    let vllm = |name: &str, more: &str| {
        value(
            &page,
            &format!("vllm:{name}{{model_name=\"toy\",engine=\"0\"{more}}}"),
        )
    };
    let own = |name: &str| value(&page, &format!("arbora_{name}{{model=\"toy\"}}"));
    assert_eq!(vllm("request_success_total", ",finished_reason=\"length\""), 2.0);
    assert_eq!(vllm("generation_tokens_total", ""), 10.0);
    assert_eq!(vllm("prefix_cache_queries_total", ""), own("prompt_tokens_total"));
    assert_eq!(vllm("prefix_cache_hits_total", ""), own("cached_tokens_total"));
    assert!(
        own("cached_tokens_total") > 0.0,
        "the second request found the first"
    );
    assert_eq!(vllm("kv_cache_usage_perc", ""), 0.0, "nobody runs");
    assert_eq!(vllm("e2e_request_latency_seconds_count", ""), 2.0);
    assert_eq!(vllm("request_generation_tokens_sum", ""), 10.0);
    // A first token has none before it, and tokens that came with it count as it.
    let n_between = own("inter_token_seconds_count");
    assert!((1.0..=8.0).contains(&n_between), "{n_between}");
    assert_eq!(own("prompt_length_tokens_count"), 2.0);
    let plain = Site::new().get("/metrics").body;
    assert!(!plain.contains("vllm:"), "off by default");
}

/// Cached tokens of the same prompt: first key, first key again, second key, second key with a salt.
fn cached_by_keys(sharing: CacheSharing) -> [u64; 4] {
    let mut setup = Setup::new(tokenizer());
    setup.api_keys = vec!["one".to_owned(), "two".to_owned()];
    setup.cache_sharing = sharing;
    let site = setup.start();
    let asked = [("one", None), ("one", None), ("two", None), ("two", Some("x"))];
    asked.map(|(key, salt)| {
        let ask = json!({
            "prompt": "once upon a time there was a prompt", "max_tokens": 1, "temperature": 0,
            "cache_salt": salt,
        });
        let key = format!("authorization: Bearer {key}\r\n");
        let explained = Answer::read(site.send("POST", "/cache/explain", &key, &ask.to_string())).json();
        let answer = Answer::read(site.send("POST", "/v1/completions", &key, &ask.to_string())).json();
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
        let cached = cached.unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(
            explained["prompts"][0]["cached_tokens"], cached,
            "looked at where it runs"
        );
        site.wait_until_quiet();
        // One picture of a size is kept for a moment.
        let path = format!("/cache/tree?limit={}", if salt.is_some() { 200 } else { 100 });
        let tree = Answer::read(site.send("GET", &path, &key, ""));
        match sharing {
            CacheSharing::WithinKey => assert_eq!(tree.status, 403, "{}", tree.body),
            CacheSharing::AcrossKeys => {
                let nodes = tree.json()["nodes"].take();
                let labels = nodes
                    .as_array()
                    .expect("nodes")
                    .iter()
                    .map(|node| &node["namespace"]);
                let mut labels: Vec<_> = labels.map(|label| label.as_str().expect("a label")).collect();
                labels.dedup();
                assert!(
                    labels.iter().all(|label| ["shared", "salted"].contains(label)),
                    "{labels:?}"
                );
                assert_eq!(labels.contains(&"salted"), salt.is_some());
            }
        }
        cached
    })
}

#[test]
fn keys_share_the_cache_unless_they_are_isolated() {
    let [cold, again, other, salted] = cached_by_keys(CacheSharing::AcrossKeys);
    assert!(cold == 0 && again > 20 && other == again && salted == 0);
    let isolated = cached_by_keys(CacheSharing::WithinKey);
    assert_eq!(isolated, [0, again, 0, 0]);
}

/// Everything that tells of all clients together or changes what they share.
const OPERATORS_ROUTES: [(&str, &str); 10] = [
    ("GET", "/server_info"),
    ("GET", "/get_server_info"),
    ("GET", "/get_load"),
    ("GET", "/v1/loads"),
    ("GET", "/loads"),
    ("GET", "/load"),
    ("GET", "/cache/tree"),
    ("GET", "/flush_cache"),
    ("POST", "/flush_cache"),
    ("GET", "/metrics"),
];

#[test]
fn what_concerns_all_clients_is_not_for_one_of_several_that_are_isolated() {
    let mut setup = Setup::new(tokenizer());
    setup.api_keys = vec!["one".to_owned(), "two".to_owned()];
    setup.cache_sharing = CacheSharing::WithinKey;
    setup.operators = OperatorKeys::new(Some("the operator"), Some("the scraper"));
    let site = setup.start();
    let status = |(method, path): (&str, &str), key: &str| {
        let header = format!("authorization: Bearer {key}\r\n");
        Answer::read(site.send(method, path, &header, "{}")).status
    };
    for route in OPERATORS_ROUTES {
        assert_eq!(status(route, "one"), 403, "{route:?}");
        assert_eq!(status(route, "nobody's"), 401, "{route:?}");
        assert_eq!(status(route, "the operator"), 200, "{route:?}");
        let scraped = if route.1 == "/metrics" { 200 } else { 401 };
        assert_eq!(status(route, "the scraper"), scraped, "{route:?}");
    }
    for (method, path) in [
        ("GET", "/v1/models"),
        ("GET", "/health"),
        ("GET", "/cache/explain"),
    ] {
        assert_eq!(status((method, path), "one"), 200, "{path} is for clients");
    }
    assert_eq!(
        status(("POST", "/v1/completions"), "the operator"),
        401,
        "an operator generates nothing"
    );
    let refused = Answer::read(site.send("GET", "/metrics", "authorization: Bearer one\r\n", "")).json();
    assert_eq!(refused["error"]["code"], "admin_key_required");
}
