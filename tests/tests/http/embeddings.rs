//! Embeddings, reranking and scores over HTTP, on tiny encoders beside the toy model.

use serde_json::{Value as Json, json};

use crate::site::{Answer, Setup, Site, chat, tokenizer};

#[derive(serde::Deserialize)]
struct Embedded {
    texts: Vec<String>,
    tokens: Vec<Vec<u32>>,
    vectors: Vec<Vec<f32>>,
}

fn golden<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/encoders");
    let text = std::fs::read_to_string(path.join(name)).expect("a golden");
    serde_json::from_str(&text).expect("JSON")
}

fn site() -> Site {
    let mut setup = Setup::new(tokenizer());
    setup.encoders = &["bert", "bert-cls", "bert-reranker"];
    setup.start()
}

fn ask(site: &Site, path: &str, body: &Json) -> Json {
    let answer = site.post(path, body);
    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
    answer.json()
}

/// The vectors of an answer, which come in their order.
fn vectors(answer: &Json) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().expect("a list");
    let vector = |(i, embedding): (usize, &Json)| {
        assert_eq!(
            (&embedding["object"], &embedding["index"]),
            (&json!("embedding"), &json!(i))
        );
        let numbers = embedding["embedding"].as_array().expect("numbers");
        numbers
            .iter()
            .map(|x| x.as_f64().expect("a number") as f32)
            .collect()
    };
    data.iter().enumerate().map(vector).collect()
}

#[track_caller]
fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 5e-5, "{found} {expected}");
    }
}

#[test]
fn an_answer_has_the_vectors_and_the_usage() {
    let (site, expected) = (site(), golden::<Embedded>("bert.json"));
    // Those that the golden did not cut.
    let fits = |i: &usize| expected.tokens[*i].len() < 24;
    let chosen: Vec<usize> = (0..expected.texts.len()).filter(fits).collect();
    let texts: Vec<&String> = chosen.iter().map(|&i| &expected.texts[i]).collect();
    let answer = ask(&site, "/v1/embeddings", &json!({"model": "bert", "input": texts}));
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("list"), &json!("bert"))
    );
    let n_tokens: usize = chosen.iter().map(|&i| expected.tokens[i].len()).sum();
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": n_tokens, "total_tokens": n_tokens})
    );
    for (found, i) in vectors(&answer).iter().zip(&chosen) {
        close(found, &expected.vectors[*i]);
    }
}

#[test]
fn a_text_may_be_its_tokens_and_one_may_come_without_a_list() {
    let (site, expected) = (site(), golden::<Embedded>("bert.json"));
    let (text, tokens) = (&expected.texts[3], &expected.tokens[3]);
    for input in [json!(text), json!([text]), json!(tokens), json!([tokens])] {
        let answer = ask(&site, "/v1/embeddings", &json!({"input": input}));
        close(&vectors(&answer)[0], &expected.vectors[3]);
        assert_eq!(answer["usage"]["total_tokens"], tokens.len());
    }
}

#[test]
fn vectors_come_in_base64_and_shortened_to_length_one() {
    let site = site();
    let ask = |more: Json| {
        let mut body = json!({"input": "Hello, world!"});
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        ask(&site, "/v1/embeddings", &body)
    };
    let whole = vectors(&ask(json!({})));
    let coded = ask(json!({"encoding_format": "base64"}));
    let text = coded["data"][0]["embedding"].as_str().expect("a text");
    assert_eq!(text.len(), (4 * 48usize).div_ceil(3) * 4);
    let short = vectors(&ask(json!({"dimensions": 7})));
    let length = whole[0][..7].iter().map(|x| x * x).sum::<f32>().sqrt();
    let expected: Vec<f32> = whole[0][..7].iter().map(|x| x / length).collect();
    close(&short[0], &expected);
}

#[test]
fn a_prompt_is_put_before_texts_by_its_name() {
    let site = site();
    let vector = |body: Json| vectors(&ask(&site, "/v1/embeddings", &body)).remove(0);
    let plain = vector(json!({"model": "bert-cls", "input": "find: a"}));
    for (field, name) in [
        ("prompt_name", "query"),
        ("input_type", "query"),
        ("input_type", "search_query"),
    ] {
        let named = vector(json!({"model": "bert-cls", "input": "a", field: name}));
        assert_eq!(named, plain, "{field} {name}");
    }
    let refused = site.post(
        "/v1/embeddings",
        &json!({"model": "bert-cls", "input": "a", "prompt_name": "x"}),
    );
    let message = refused.json()["error"]["message"].take();
    assert_eq!(
        message,
        "'prompt_name' is 'x', this model knows 'query', 'document'."
    );
    // A model without prompts takes the usual kinds, which change nothing.
    let kind = |kind: &str| vector(json!({"model": "bert", "input": "a", "input_type": kind}));
    assert_eq!(kind("query"), kind("passage"));
}

#[test]
fn what_is_too_long_is_refused_with_the_numbers_or_cut() {
    let site = site();
    let long = "hello ".repeat(200);
    let refused = site.post("/v1/embeddings", &json!({"input": ["a", long]}));
    assert_eq!(refused.status, 400);
    let error = refused.json()["error"].take();
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("context_length_exceeded"), &json!("input[1]"))
    );
    let message = error["message"].as_str().expect("a text");
    assert!(
        message.starts_with("This model's maximum context length is 24 tokens, however 'input[1]' has "),
        "{message}"
    );
    for (limit, n_tokens) in [(-1, 24), (9, 9), (99, 24)] {
        let body = json!({"input": long, "truncate_prompt_tokens": limit});
        assert_eq!(
            ask(&site, "/v1/embeddings", &body)["usage"]["total_tokens"],
            n_tokens
        );
    }
    let refused = site.post("/v1/embeddings", &json!({"input": [5, 300]}));
    let message = refused.json()["error"]["message"].take();
    assert_eq!(message, "'input' has token 300, the vocabulary has 300 tokens.");
    let refused = site.post("/v1/embeddings", &json!({"input": "a", "dimensions": 49}));
    let message = refused.json()["error"]["message"].take();
    assert_eq!(message, "'dimensions' is 49, this model has 1 to 48.");
}

#[test]
fn each_model_says_what_it_is_not_for() {
    let site = site();
    let cases = [
        (
            "/v1/chat/completions",
            chat("a", &json!({"model": "bert"})),
            "makes embeddings and generates no text: ask POST /v1/embeddings",
        ),
        (
            "/v1/completions",
            json!({"model": "bert-reranker", "prompt": "a"}),
            "is a reranker and generates no text: ask POST /v1/rerank",
        ),
        (
            "/tokenize",
            json!({"model": "bert", "prompt": "a"}),
            "generates no text",
        ),
        (
            "/v1/embeddings",
            json!({"model": "toy", "input": "a"}),
            "The model 'toy' generates text and makes no embeddings or scores.",
        ),
        (
            "/v1/embeddings",
            json!({"model": "bert-reranker", "input": "a"}),
            "is a reranker and makes no embeddings",
        ),
        (
            "/v1/rerank",
            json!({"model": "toy", "query": "a", "documents": ["b"]}),
            "generates text",
        ),
    ];
    for (path, body, expected) in cases {
        let answer = site.post(path, &body);
        assert_eq!(answer.status, 400, "{path}");
        let error = answer.json()["error"].take();
        assert_eq!(error["param"], "model");
        let message = error["message"].as_str().expect("a text");
        assert!(
            message.contains(expected),
            "{message:?} does not say {expected:?}"
        );
    }
    let plain = Setup::new(tokenizer()).start();
    let answer = plain.post("/v1/embeddings", &json!({"input": "a"}));
    assert_eq!(answer.status, 400, "there is no encoder");
    let missing = site.post("/v1/embeddings", &json!({"model": "nobody", "input": "a"}));
    assert_eq!(
        (missing.status, &missing.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    let names: Vec<Json> = site.get("/v1/models").json()["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|model| model["id"].clone())
        .collect();
    assert_eq!(names, ["toy", "bert", "bert-cls", "bert-reranker"]);
    assert_eq!(site.get("/v1/models/bert").json()["max_model_len"], 24);
}

#[derive(serde::Deserialize)]
struct Scored {
    pairs: Vec<(String, String)>,
    scores: Vec<f32>,
}

#[test]
fn a_reranker_orders_documents_and_scores_pairs() {
    let (site, expected) = (site(), golden::<Scored>("bert-reranker.json"));
    let (firsts, seconds): (Vec<&String>, Vec<&String>) = expected.pairs.iter().map(|(a, b)| (a, b)).unzip();
    let body = json!({"model": "bert-reranker", "text_1": firsts, "text_2": seconds});
    for path in ["/v1/score", "/score"] {
        let answer = ask(&site, path, &body);
        for (i, expected) in expected.scores.iter().enumerate() {
            let score = answer["data"][i]["score"].as_f64().expect("a number") as f32;
            assert!((score - expected).abs() < 5e-5, "{i}: {score} {expected}");
        }
    }
    let query = &expected.pairs[1].0;
    let documents: Vec<&String> = seconds.iter().take(6).copied().collect();
    let body = json!({"model": "bert-reranker", "query": query, "documents": documents, "top_n": 4,
        "return_documents": true});
    let scores = ask(
        &site,
        "/v1/score",
        &json!({"model": "bert-reranker", "text_1": query, "text_2": documents}),
    );
    for path in ["/v1/rerank", "/v2/rerank", "/rerank"] {
        let answer = ask(&site, path, &body);
        let results = answer["results"].as_array().expect("a list");
        assert_eq!(results.len(), 4);
        let mut last = f64::INFINITY;
        for result in results {
            let index = result["index"].as_u64().expect("a place") as usize;
            let score = result["relevance_score"].as_f64().expect("a number");
            assert!(score <= last);
            last = score;
            assert_eq!(scores["data"][index]["score"].as_f64(), Some(score));
            assert_eq!(result["document"]["text"], *documents[index]);
        }
    }
}

#[test]
fn an_embedding_model_compares_by_the_cosine_of_its_vectors() {
    let site = site();
    let score = |a: &str, b: &str| {
        let body = json!({"model": "bert", "text_1": a, "text_2": b});
        ask(&site, "/v1/score", &body)["data"][0]["score"]
            .as_f64()
            .expect("a number")
    };
    assert!((score("hello world", "hello world") - 1.0).abs() < 1e-5);
    let vector = |text: &str| vectors(&ask(&site, "/v1/embeddings", &json!({"input": text}))).remove(0);
    let products = vector("hello")
        .iter()
        .zip(vector("the dog"))
        .map(|(a, b)| f64::from(a * b))
        .sum::<f64>();
    assert!((score("hello", "the dog") - products).abs() < 1e-5);
}

#[test]
fn many_clients_at_once_get_what_each_gets_alone() {
    let site = site();
    let texts: Vec<String> = (1..40).map(|n| "a dog ".repeat(n % 5 + 1)).collect();
    let alone: Vec<Vec<f32>> = texts
        .iter()
        .map(|text| vectors(&ask(&site, "/v1/embeddings", &json!({"input": text}))).remove(0))
        .collect();
    let streams: Vec<_> = texts
        .iter()
        .map(|text| site.send("POST", "/v1/embeddings", "", &json!({"input": text}).to_string()))
        .collect();
    for (stream, alone) in streams.into_iter().zip(&alone) {
        assert_eq!(vectors(&Answer::read(stream).json())[0], *alone, "bit for bit");
    }
    let count = |name: &str| site.metric(&format!("arbora_embedding_{name}{{model=\"bert\"}}"));
    assert_eq!((count("requests_total"), count("texts_total")), (78, 78));
    // A place is given back after its answer.
    crate::site::wait_until("nobody is in flight", || {
        (count("requests"), count("tokens")) == (0, 0)
    });
    assert!(count("batch_seconds_count") <= 78);
}

#[test]
fn a_server_told_to_stop_finishes_what_it_has() {
    let mut setup = Setup::new(tokenizer());
    setup.encoders = &["bert"];
    setup.drain_timeout = std::time::Duration::from_secs(60);
    let mut site = setup.start();
    let texts = vec!["hello world and more"; 500];
    let stream = site.send("POST", "/v1/embeddings", "", &json!({"input": texts}).to_string());
    let accepted = "arbora_embedding_requests_total{model=\"bert\"}";
    crate::site::wait_until("it is accepted", || site.metric(accepted) == 1);
    drop(site.stop.take());
    let answer = Answer::read(stream);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(vectors(&answer.json()).len(), 500);
}

#[test]
fn a_client_that_leaves_takes_its_texts_out_of_the_queue() {
    let site = site();
    let texts = vec!["hello world and more"; 2000];
    let stream = site.send("POST", "/v1/embeddings", "", &json!({"input": texts}).to_string());
    let count = |name: &str| site.metric(&format!("arbora_embedding_{name}{{model=\"bert\"}}"));
    crate::site::wait_until("it is accepted", || count("requests_total") == 1);
    drop(stream);
    crate::site::wait_until("nothing is left of it", || count("requests") == 0);
    assert!(count("texts_total") < 2000, "it did not run to its end");
}
