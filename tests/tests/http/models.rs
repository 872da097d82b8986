//! Two models in one process: each request goes to the one it names.

use serde_json::json;

use crate::site::{Setup, Site, json_tokenizer, tokenizer};

fn two() -> Site {
    let mut setup = Setup::new(tokenizer());
    setup.second = Some(json_tokenizer(&[]));
    setup.start()
}

/// Text, model and id of a greedy completion.
fn ask(site: &Site, model: Option<&str>) -> (String, String, String) {
    let body = json!({"model": model, "prompt": "once upon a time", "max_tokens": 12, "temperature": 0,
        "ignore_eos": true});
    let answer = site.post("/v1/completions", &body).json();
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    (
        text(&answer["choices"][0]["text"]),
        text(&answer["model"]),
        text(&answer["id"]),
    )
}

#[test]
fn each_is_listed_and_found_by_its_names() {
    let site = two();
    let list = site.get("/v1/models").json();
    assert_eq!(list["data"][0]["id"], "toy");
    assert_eq!(list["data"][1]["id"], "other");
    assert_eq!(
        list["data"].as_array().map(Vec::len),
        Some(2),
        "aliases are not listed"
    );
    for (asked, found) in [("toy", "toy"), ("other", "other"), ("another", "other")] {
        assert_eq!(site.get(&format!("/v1/models/{asked}")).json()["id"], found);
    }
    for path in ["/v1/models/third", "/cache/tree?model=third"] {
        let missing = site.get(path);
        assert_eq!(missing.status, 404, "{path}");
        assert_eq!(missing.json()["error"]["code"], "model_not_found");
    }
}

#[test]
fn each_answers_in_its_own_words_and_counts_for_itself() {
    let site = two();
    let alone = Setup::new(json_tokenizer(&[])).start();
    let (first, other) = (ask(&site, None), ask(&site, Some("other")));
    assert_eq!(first.0, ask(&Site::new(), None).0);
    assert_eq!(other.0, ask(&alone, None).0);
    assert_ne!(first.0, other.0);
    assert_eq!((first.1.as_str(), other.1.as_str()), ("toy", "other"));
    assert_eq!(
        ask(&site, Some("another")).1,
        "other",
        "the answer has the name itself"
    );
    let accepted = |model: &str| site.metric(&format!("arbora_requests_accepted_total{{model=\"{model}\"}}"));
    assert_eq!((accepted("toy"), accepted("other")), (1, 2));
    let missing = site.post("/v1/completions", &json!({"model": "third", "prompt": "a"}));
    assert_eq!(missing.status, 404);
    let tokenized = |model: &str| {
        let body = json!({"model": model, "prompt": "{\"name\": true}"});
        site.post("/tokenize", &body).json()["count"].take()
    };
    assert_ne!(tokenized("toy"), tokenized("other"));
}

#[test]
fn what_a_request_leaves_open_is_the_models_own() {
    let site = two();
    let texts = |model: &str| {
        let body = json!({"model": model, "prompt": "once", "max_tokens": 9, "ignore_eos": true, "n": 8});
        let answer = site.post("/v1/completions", &body).json();
        let choices = answer["choices"].as_array().expect("choices").clone();
        choices
            .into_iter()
            .map(|choice| choice["text"].to_string())
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(texts("other").len(), 1, "it is greedy by default");
    assert!(texts("toy").len() > 1);
    let drawn = |model: &str, more: serde_json::Value| {
        let mut body = json!({"model": model, "prompt": "once", "max_tokens": 9});
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        let rendered = site.post("/v1/completions/render", &body).json();
        rendered[0]["sampling_params"]["temperature"].as_f64()
    };
    assert_eq!(drawn("other", json!({})), Some(0.0));
    assert_eq!(drawn("other", json!({"temperature": 0.5})), Some(0.5));
    assert_eq!(drawn("toy", json!({})), Some(1.0));
}

#[test]
fn each_has_a_cache_of_its_own_that_can_be_looked_at() {
    let site = two();
    let (_, _, first) = ask(&site, Some("toy"));
    let (_, _, other) = ask(&site, Some("other"));
    let tokens = |id: &str| {
        let explained = site.get(&format!("/cache/explain?id={id}")).json();
        let found = &explained["prompts"][0];
        (found["prompt_tokens"].as_u64(), found["cached_tokens"].as_u64())
    };
    let count = |model: &str| {
        let body = json!({"model": model, "prompt": "once upon a time"});
        site.post("/tokenize", &body).json()["count"].as_u64()
    };
    // Both are the first request of their engines.
    assert_eq!(tokens(&first), (count("toy"), Some(0)));
    assert_eq!(tokens(&other), (count("other"), Some(0)));
    site.wait_until_quiet();
    for model in ["toy", "other"] {
        let tree = site.get(&format!("/cache/tree?model={model}")).json();
        assert_eq!(tree["model"], model);
        assert!(tree["pages"]["cached"].as_u64().expect("a count") > 0);
    }
    assert_eq!(site.post("/flush_cache", &json!({})).status, 200);
    for model in ["toy", "other"] {
        let (_, _, id) = ask(&site, Some(model));
        assert_eq!(tokens(&id).1, Some(0), "{model} was flushed");
    }
    for path in ["/health", "/health_generate", "/ready"] {
        assert_eq!(site.get(path).status, 200, "{path}");
    }
}
