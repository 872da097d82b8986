//! `/cache/tree` and `/cache/explain`: they say what the answers' own usage says, and only to who may know.

use serde_json::{Value as Json, json};

use crate::site::{Answer, Site, chat, rendered};

const CHAT: &str = "/v1/chat/completions";

fn get_with(site: &Site, path: &str, headers: &str) -> Answer {
    Answer::read(site.send("GET", path, headers, ""))
}

/// Asks for one token after `content`; the answer.
fn ask(site: &Site, content: &str) -> Json {
    let answer = site.post(CHAT, &chat(content, &json!({"max_tokens": 1})));
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn explained(site: &Site, answer: &Json) -> Json {
    let id = answer["id"].as_str().expect("an id");
    let found = site.get(&format!("/cache/explain?id={id}"));
    assert_eq!(found.status, 200, "{}", found.body);
    let found = found.json();
    assert_eq!(found["id"], answer["id"]);
    found["prompts"][0].clone()
}

#[test]
fn the_tree_accounts_for_every_cached_page_and_shows_its_text() {
    let site = Site::new();
    let empty = site.get("/cache/tree").json();
    assert_eq!(empty["nodes"], json!([]), "an idle engine answers");
    ask(&site, "hello there, what is new?");
    ask(&site, "hello there, what is old?");
    site.wait_until_quiet();
    let tree = site.get("/cache/tree?limit=2000").json();
    let nodes = tree["nodes"].as_array().expect("nodes");
    let count = |field: &str| {
        nodes
            .iter()
            .map(|node| node[field].as_u64().expect("a count"))
            .sum::<u64>()
    };
    assert_eq!(
        count("n_pages"),
        tree["pages"]["cached"].as_u64().expect("a count")
    );
    assert_eq!(count("n_locks"), 0);
    assert_eq!(tree["left_out"], json!({"nodes": 0, "pages": 0}));
    assert_eq!(nodes[0]["parent"], Json::Null);
    assert_eq!(nodes[0]["namespace"], "shared");
    let shared = &nodes[1];
    assert_eq!(shared["parent"], nodes[0]["id"]);
    assert_eq!(shared["n_children"], 2);
    assert!(rendered("hello there").starts_with(shared["text"]["first"].as_str().expect("text")));
    assert_eq!(tree["engine"]["requests"], 2);
    assert_eq!(tree["model"], "toy");

    let part = site.get("/cache/tree?limit=1").json();
    assert_eq!(part["nodes"].as_array().expect("nodes").len(), 1);
    assert_eq!(part["left_out"]["nodes"], nodes.len() - 1);
    assert_eq!(part["left_out"]["pages"], tree["pages"]["cached"]);
}

#[test]
fn an_answer_is_explained_by_its_id_as_its_usage_has_it() {
    let site = Site::new();
    let first = ask(&site, "tell me of the sea");
    let found = explained(&site, &first);
    assert_eq!(
        (&found["cause"], &found["cached_tokens"]),
        (&json!("empty"), &json!(0))
    );

    let second = ask(&site, "tell me of the land");
    let found = explained(&site, &second);
    let common = rendered("tell me of the ")
        .split("<|im_end|>")
        .next()
        .expect("a part")
        .len();
    // Control tokens are one token, the toy's other tokens one byte.
    let position = common - "<|im_start|>".len() + 1;
    assert_eq!(found["position"], position);
    assert_eq!(found["cause"], "diverged");
    assert!(
        found["before"].as_str().expect("text").ends_with("of the "),
        "{found}"
    );
    assert!(
        found["after"]
            .as_str()
            .expect("text")
            .starts_with("land<|im_end|>"),
        "{found}"
    );
    assert!(
        found["instead"]
            .as_str()
            .expect("text")
            .starts_with("sea<|im_end|>"),
        "{found}"
    );
    let usage = &second["usage"];
    assert_eq!(
        found["cached_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"]
    );
    assert_eq!(found["prompt_tokens"], usage["prompt_tokens"]);
    let copied = position % 16;
    assert_eq!(found["copied_tokens"], copied);

    assert_eq!(
        explained(&site, &ask(&site, "tell me of the land"))["cause"],
        "whole"
    );
    let listed = site.get("/cache/explain").json();
    let causes: Vec<&Json> = listed["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|answered| &answered["prompts"][0]["cause"])
        .collect();
    assert_eq!(causes, ["whole", "diverged", "empty"], "newest first");
}

#[test]
fn every_prompt_of_a_completion_is_explained_also_by_the_id_of_its_exchange() {
    let site = Site::new();
    let ask = json!({"prompt": ["once upon a time", "in the end"], "max_tokens": 1, "n": 2});
    let sent = site.send(
        "POST",
        "/v1/completions",
        "x-request-id: mine\r\n",
        &ask.to_string(),
    );
    assert_eq!(Answer::read(sent).status, 200);
    let found = site.get("/cache/explain?id=mine").json();
    assert_eq!(found["request_id"], "mine");
    let counts: Vec<&Json> = found["prompts"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|prompt| &prompt["prompt_tokens"])
        .collect();
    assert_eq!(counts, [16, 10]);
}

#[test]
fn requests_in_sglangs_shape_are_explained_by_the_id_they_bring() {
    let site = Site::new();
    let ask = json!({"text": "once upon", "sampling_params": {"max_new_tokens": 1}, "rid": "my-request"});
    assert_eq!(site.post("/generate", &ask).status, 200);
    let found = site.get("/cache/explain?id=my-request").json();
    assert_eq!(found["prompts"][0]["prompt_tokens"], 9);
}

#[test]
fn a_flush_is_why_the_next_one_misses() {
    let site = Site::new();
    ask(&site, "remember this");
    site.post("/flush_cache", &json!({}));
    let found = explained(&site, &ask(&site, "remember this"));
    assert_eq!(
        (&found["cause"], &found["position"]),
        (&json!("flushed"), &json!(0))
    );
    assert!(found["left"]["tokens"].as_u64().expect("a count") > 12, "{found}");
    assert!(found["left"]["seconds_ago"].as_f64().expect("a time") < 60.0);
}

#[test]
fn a_prompt_can_be_explained_without_being_run() {
    let site = Site::new();
    ask(&site, "the same question");
    let before = site.engine.metrics().requests_accepted.value();
    let found = site
        .post("/cache/explain", &chat("the same question", &json!({})))
        .json();
    assert_eq!(found["prompts"][0]["cause"], "whole");
    let text = json!({"prompt": rendered("the same question")});
    let of_text = site.post("/cache/explain", &text).json();
    assert_eq!(of_text["prompts"][0]["position"], found["prompts"][0]["position"]);
    let salted = site.post(
        "/cache/explain",
        &chat("the same question", &json!({"cache_salt": "x"})),
    );
    let salted = salted.json();
    assert_eq!(salted["prompts"][0]["cause"], "empty");
    let label = salted["prompts"][0]["namespace"].as_str().expect("a label");
    assert!(label.starts_with("salted-") && label.len() == 15, "{label}");
    assert_eq!(site.engine.metrics().requests_accepted.value(), before);
}

#[test]
fn a_prompt_that_could_not_be_run_is_refused_as_by_a_completion() {
    let site = Site::with(&[], |config| config.context = 1000);
    let too_long = vec![5; site.engine.context() + 1];
    for (body, param, code) in [
        (json!({"prompt": [99]}), "prompt", Json::Null),
        (json!({"prompt": ""}), "prompt", Json::Null),
        (
            json!({"prompt": too_long}),
            "prompt",
            json!("context_length_exceeded"),
        ),
        (
            chat(&"a ".repeat(site.engine.context()), &json!({})),
            "messages",
            json!("context_length_exceeded"),
        ),
    ] {
        let answer = site.post("/cache/explain", &body);
        let shown: String = body.to_string().chars().take(80).collect();
        assert_eq!(answer.status, 400, "{shown}: {}", answer.body);
        let error = answer.json()["error"].clone();
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!(param), &code),
            "{shown}"
        );
        let message = error["message"].as_str().expect("a text");
        let is_too_long = message.starts_with("This model's maximum context length is ");
        assert_eq!(is_too_long, !code.is_null(), "{message}");
    }
}

#[test]
fn text_with_a_salt_is_not_shown() {
    let site = Site::new();
    site.post(
        CHAT,
        &chat("a secret", &json!({"max_tokens": 1, "cache_salt": "x"})),
    );
    site.wait_until_quiet();
    let tree = site.get("/cache/tree");
    let nodes = tree.json();
    assert!(nodes["nodes"].as_array().expect("nodes").len() > 1);
    for node in nodes["nodes"].as_array().expect("nodes") {
        assert!(
            node["namespace"]
                .as_str()
                .is_some_and(|label| label.starts_with("salted-"))
        );
        assert_eq!(node["text"], Json::Null);
    }
    assert!(!tree.body.contains("secret"), "{}", tree.body);
}

#[test]
fn a_key_sees_its_own_requests_and_no_text_of_the_others() {
    let site = Site::with(&["first", "second"], |_| {});
    let (first, second) = (
        "authorization: Bearer first\r\n",
        "authorization: Bearer second\r\n",
    );
    let body = chat("what the first one asks", &json!({"max_tokens": 1})).to_string();
    let answer = Answer::read(site.send("POST", CHAT, first, &body)).json();
    let path = format!("/cache/explain?id={}", answer["id"].as_str().expect("an id"));
    assert_eq!(get_with(&site, &path, "").status, 401);
    assert_eq!(get_with(&site, "/cache/tree", "").status, 401);
    assert_eq!(get_with(&site, &path, first).status, 200);
    let foreign = get_with(&site, &path, second);
    assert_eq!(foreign.status, 404);
    assert_eq!(foreign.json()["error"]["code"], "request_not_found");
    assert_eq!(
        get_with(&site, "/cache/explain", second).json()["data"],
        json!([])
    );

    // Neither the tree nor a guess that begins alike shows what the first one wrote.
    site.wait_until_quiet();
    let tree = get_with(&site, "/cache/tree", second);
    assert!(tree.json()["nodes"].as_array().expect("nodes").len() > 1);
    assert!(!tree.body.contains("asks"), "{}", tree.body);
    let guess = chat("what the first one k", &json!({})).to_string();
    let found = Answer::read(site.send("POST", "/cache/explain", second, &guess)).json();
    let found = &found["prompts"][0];
    assert_eq!(
        (&found["cause"], &found["instead"]),
        (&json!("diverged"), &Json::Null)
    );
}

#[test]
fn bad_questions_name_the_value_and_the_limit() {
    let site = Site::new();
    for (path, param, words) in [
        ("/cache/tree?limit=0", json!("limit"), "[1, 2000], got '0'"),
        ("/cache/tree?limit=2001", json!("limit"), "got '2001'"),
        ("/cache/tree?limit=all", json!("limit"), "got 'all'"),
        ("/cache/tree?limit=1&limit=2", Json::Null, "duplicate"),
    ] {
        let answer = site.get(path);
        assert_eq!(answer.status, 400, "{path}: {}", answer.body);
        assert_eq!(answer.json()["error"]["param"], param);
        assert!(answer.body.contains(words), "{}", answer.body);
    }
    let unknown = site.get("/cache/explain?id=chatcmpl-0");
    assert_eq!(unknown.status, 404);
    assert!(unknown.body.contains("latest 512"), "{}", unknown.body);
    for (body, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": ["a", "b"]}), "prompt"),
        (json!({"messages": []}), "messages"),
        (json!({"prompt": "a", "model": "other"}), "model"),
    ] {
        let answer = site.post("/cache/explain", &body);
        assert_eq!(answer.json()["error"]["param"], param, "{body}");
    }
    let long = json!({"prompt": vec![5; 30_000]});
    let small = Site::with(&[], |config| config.context = 1000);
    let answer = small.post("/cache/explain", &long);
    assert!(
        answer
            .body
            .contains("maximum context length is 1000 tokens. However, you requested 30000 tokens"),
        "{}",
        answer.body
    );
}

#[test]
fn viewers_without_number_disturb_no_request() {
    let site = Site::new();
    let (_, _, text) = site.output(&rendered("go on"), 40);
    std::thread::scope(|scope| {
        let viewers: Vec<_> = (0..8)
            .map(|viewer| {
                let site = &site;
                scope.spawn(move || {
                    for limit in 1..=20 {
                        let path = format!("/cache/tree?limit={}", limit + viewer);
                        assert_eq!(site.get(&path).status, 200);
                    }
                })
            })
            .collect();
        for _ in 0..5 {
            let answer = site.post(CHAT, &chat("go on", &json!({"max_tokens": 40}))).json();
            assert_eq!(answer["choices"][0]["message"]["content"], text);
        }
        viewers
            .into_iter()
            .for_each(|viewer| viewer.join().expect("served"));
    });
    // A viewer that goes away before its answer leaves the way free for the next.
    for _ in 0..20 {
        drop(site.send("GET", "/cache/tree?limit=3", "", ""));
    }
    assert_eq!(site.get("/cache/tree?limit=4").status, 200);
}
