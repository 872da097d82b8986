//! What clients really send: values that ask for nothing, histories as they were echoed, prompts that are too
//! long, parameters of other servers.

use serde_json::{Value as Json, json};

use crate::site::{Setup, Site, chat, json_tokenizer};

/// The text of the prompt that a chat becomes.
fn prompt_of(site: &Site, body: &Json) -> String {
    let answer = site.post("/tokenize", body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let tokens = answer.json()["tokens"].take();
    let answer = site.post("/detokenize", &json!({"tokens": tokens})).json();
    answer["prompt"].as_str().expect("a text").to_owned()
}

/// The same request on each route that generates.
fn everywhere(more: &Json) -> [(&'static str, Json); 3] {
    let with = |mut body: Json, more: &Json| {
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        body
    };
    let text = json!({"prompt": "hello", "max_tokens": 2});
    [
        (
            "/v1/chat/completions",
            chat("hello", &with(json!({"max_tokens": 2}), more)),
        ),
        ("/v1/completions", with(text, more)),
        (
            "/generate",
            json!({"text": "hello", "sampling_params": with(json!({"max_new_tokens": 2}), more)}),
        ),
    ]
}

#[test]
fn parameters_that_ask_for_nothing_are_accepted_and_others_are_refused_by_name() {
    let site = Site::new();
    let nothing = json!({"stop_regex": [], "bad_words": [], "logits_processors": [], "allowed_token_ids": null,
        "custom_params": {}, "use_beam_search": false, "typical_p": 1.0, "mirostat": 0, "n_predict": -1,
        "repeat_penalty": 1, "xtc_probability": 0, "top_n_sigma": -1.0, "stop": ""});
    for (path, body) in everywhere(&nothing) {
        let answer = site.post(path, &body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
    for (name, value) in [
        ("stop_regex", json!(["a+"])),
        ("custom_logit_processor", json!("x")),
        ("typical_p", json!(0.2)),
        ("mirostat", json!(2)),
        ("dry_multiplier", json!(0.8)),
        ("repeat_penalty", json!(1.9)),
        ("n_predict", json!(1)),
        ("top_n_sigma", json!(1.0)),
        ("repetition_detection", json!({"max_pattern_size": 3})),
    ] {
        for (path, body) in everywhere(&json!({name: value})) {
            let answer = site.post(path, &body);
            assert_eq!(answer.status, 400, "{path} {name}: {}", answer.body);
            let error = answer.json()["error"].take();
            let param = error["param"].as_str().expect("a field");
            assert!(param.ends_with(name), "{error}");
        }
    }
    // The same beside the sampling parameters.
    let body = json!({"text": "hello", "custom_logit_processor": "x", "image_data": []});
    assert_eq!(
        site.post("/generate", &body).json()["error"]["param"],
        "custom_logit_processor"
    );
    let body = json!({"text": "hello", "image_data": [], "lora_path": [null], "max_new_tokens": 3});
    assert_eq!(
        site.post("/generate", &body).json()["error"]["param"],
        "max_new_tokens"
    );
}

#[test]
fn up_to_64_stop_strings_end_an_output() {
    let site = Site::new();
    let prompts = (0..20).map(|i| format!("hello {i}"));
    let outputs = prompts.map(|prompt| (site.output(&prompt, 20).2, prompt));
    let (text, prompt) = outputs
        .into_iter()
        .find(|(text, _)| text.chars().count() > 10)
        .expect("one is long");
    let middle: Vec<char> = text.chars().collect();
    let stop: String = middle[5..8].iter().collect();
    let before = &text[..text.find(&stop).expect("it is there")];
    let mut stops: Vec<String> = (0..63).map(|idx| format!("never {idx}")).collect();
    stops.push(stop);
    let mut body = json!({"prompt": prompt, "max_tokens": 20, "temperature": 0, "stop": stops});
    let choice = site.post("/v1/completions", &body).json()["choices"][0].take();
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!(before), &json!("stop"))
    );
    body["stop"].as_array_mut().expect("a list").push("x".into());
    let error = site.post("/v1/completions", &body).json()["error"].take();
    assert_eq!(error["message"], "'stop' has 65 strings, at most 64 are allowed.");
}

#[test]
fn a_text_completion_has_16_tokens_unless_it_asks_for_more() {
    let site = Site::new();
    for body in [json!({}), json!({"max_tokens": null})] {
        let mut body = body;
        body["prompt"] = "hello".into();
        body["ignore_eos"] = true.into();
        let answer = site.post("/v1/completions", &body).json();
        assert_eq!(answer["usage"]["completion_tokens"], 16);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
}

#[test]
fn a_prompt_beyond_the_context_is_refused_in_the_words_clients_know_on_every_route() {
    let site = Site::with(&[], |config| config.context = 100);
    let long = "a ".repeat(80);
    let n = 160;
    let chat_tokens = site.post("/tokenize", &chat(&long, &json!({}))).json()["count"].clone();
    let cases = [
        (
            "/v1/chat/completions",
            chat(&long, &json!({"max_tokens": 5})),
            "messages",
            chat_tokens,
            5,
        ),
        (
            "/v1/completions",
            json!({"prompt": long, "max_tokens": 5}),
            "prompt",
            json!(n),
            5,
        ),
        ("/generate", json!({"text": long}), "text", json!(n), 128),
        (
            "/generate",
            json!({"input_ids": vec![5; 160]}),
            "input_ids",
            json!(n),
            128,
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "max_tokens": 1000}),
            "prompt",
            json!(1),
            1000,
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "max_tokens": 100}),
            "prompt",
            json!(1),
            100,
        ),
    ];
    for (path, body, param, n_prompt, n_output) in cases {
        let answer = site.post(path, &body);
        assert_eq!(answer.status, 400, "{path}: {}", answer.body);
        let error = answer.json()["error"].take();
        let n_prompt = n_prompt.as_u64().expect("a count");
        let total = n_prompt + n_output;
        assert_eq!(error["code"], "context_length_exceeded");
        assert_eq!(error["param"], param, "{path}");
        let expected = format!(
            "This model's maximum context length is 100 tokens. However, you requested {total} tokens \
             ({n_prompt} in the prompt, {n_output} for the output). Please shorten the prompt or ask for \
             fewer tokens."
        );
        assert_eq!(error["message"], expected, "{path}");
    }
}

#[test]
fn a_prompt_far_beyond_the_context_is_refused_before_it_is_tokenized_whole() {
    let site = Site::with(&[], |config| config.context = 100);
    let blanks = " ".repeat(60_000);
    let cases = [
        ("/v1/chat/completions", chat(&blanks, &json!({})), "messages"),
        (
            "/v1/chat/completions/render",
            chat(&blanks, &json!({})),
            "messages",
        ),
        // A control token that is spelled out is kept text, which is tokenized in parts.
        (
            "/v1/chat/completions",
            chat(&format!("<|im_end|>{blanks}"), &json!({})),
            "messages",
        ),
        ("/v1/completions", json!({"prompt": blanks}), "prompt"),
        (
            "/v1/completions/render",
            json!({"prompt": ["a", blanks]}),
            "prompt",
        ),
        ("/generate", json!({"text": blanks}), "text"),
        ("/cache/explain", json!({"prompt": blanks}), "prompt"),
    ];
    for (path, body, param) in cases {
        let answer = site.post(path, &body);
        assert_eq!(answer.status, 400, "{path}: {}", answer.body);
        let error = answer.json()["error"].take();
        assert_eq!(error["code"], "context_length_exceeded", "{path}");
        assert_eq!(error["param"], param, "{path}");
        let expected = "This model's maximum context length is 100 tokens. However, you requested more than 400 \
                        tokens in the prompt. Please shorten the prompt.";
        assert_eq!(error["message"], expected, "{path}");
    }
    let count = site.post("/tokenize", &json!({"prompt": blanks})).json()["count"].clone();
    assert_eq!(count, 60_000, "what is only counted may be of any length");
}

#[test]
fn ids_outside_the_vocabulary_are_refused_in_every_field() {
    let site = Site::new();
    let n_vocab = site.engine.n_vocab();
    let beyond = n_vocab as u32;
    for more in [
        json!({"stop_token_ids": [0, beyond]}),
        json!({"logit_bias": {beyond.to_string(): 1}}),
    ] {
        let (name, _) = more.as_object().expect("one").iter().next().expect("one");
        for (path, body) in everywhere(&more) {
            let answer = site.post(path, &body);
            assert_eq!(answer.status, 400, "{path}: {}", answer.body);
            let error = answer.json()["error"].take();
            assert_eq!(error["param"], name.as_str(), "{path}: {error}");
            let numbers = [beyond.to_string(), n_vocab.to_string()];
            let message = error["message"].as_str().expect("a text");
            assert!(numbers.iter().all(|number| message.contains(number)), "{message}");
        }
    }
    for (path, body, param) in [
        ("/v1/completions", json!({"prompt": [1, beyond]}), "prompt"),
        ("/generate", json!({"input_ids": [1, beyond]}), "input_ids"),
        (
            "/generate",
            json!({"text": "a", "return_logprob": true, "token_ids_logprob": [beyond]}),
            "token_ids_logprob",
        ),
        ("/detokenize", json!({"tokens": [beyond]}), "tokens[0]"),
    ] {
        let answer = site.post(path, &body);
        assert_eq!(answer.status, 400, "{path}: {}", answer.body);
        assert_eq!(answer.json()["error"]["param"], param, "{path}");
    }
}

#[test]
fn earlier_calls_are_shown_with_their_arguments_or_with_what_there_is_of_them() {
    let site = Setup::new(json_tokenizer(&[])).start();
    let shown = |arguments: Json| {
        let call =
            json!({"id": "1", "type": "function", "function": {"name": "now", "arguments": arguments}});
        let body = json!({"messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "noon"}]});
        let prompt = prompt_of(&site, &body);
        let begin = prompt.find("<tool_call>").expect("a call");
        let end = prompt.find("</tool_call>").expect("its end");
        prompt[begin + "<tool_call>\n".len()..end - 1].to_owned()
    };
    let nothing = r#"{"name":"now","arguments":{}}"#;
    for arguments in [json!(""), json!(" \n"), json!(null), json!("{}"), json!({})] {
        assert_eq!(shown(arguments), nothing);
    }
    assert_eq!(
        shown(json!(r#"{"zone": "U"#)),
        r#"{"name":"now","arguments":{"zone": "U}"#,
        "as it was written"
    );
}

#[test]
fn an_assistant_that_said_nothing_is_shown_as_saying_nothing() {
    let site = Setup::new(json_tokenizer(&[])).start();
    for message in [
        json!({"content": null, "reasoning_content": "hm"}),
        json!({"content": null, "refusal": null}),
        json!({}),
    ] {
        let mut message = message;
        message["role"] = "assistant".into();
        let body = json!({"messages": [{"role": "user", "content": "hi"}, message, {"role": "user", "content": "so"}]});
        let prompt = prompt_of(&site, &body);
        assert!(prompt.contains("<|im_start|>assistant\n<|im_end|>\n"), "{prompt}");
    }
    let refused = json!({"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": "so"}]});
    assert!(prompt_of(&site, &refused).contains("<|im_start|>assistant\nno<|im_end|>\n"));
}

#[test]
fn control_tokens_are_spelled_where_a_client_wants_to_see_them() {
    let site = Site::new();
    let mut n_spelled = 0;
    for (path, body) in everywhere(&json!({"ignore_eos": true})) {
        for seed in 0..60 {
            let text = |skips: bool| {
                let mut body = body.clone();
                let more =
                    json!({"temperature": 1, "skip_special_tokens": skips, "seed": seed, "max_tokens": 9});
                for (name, value) in more.as_object().expect("an object") {
                    match path {
                        "/generate" => body["sampling_params"][name] = value.clone(),
                        _ => body[name] = value.clone(),
                    }
                }
                if path == "/generate" {
                    body["sampling_params"]["max_new_tokens"] = 9.into();
                }
                let answer = site.post(path, &body).json();
                let choice = &answer["choices"][0];
                let places = [&answer["text"], &choice["text"], &choice["message"]["content"]];
                let text = places.into_iter().find_map(Json::as_str);
                text.unwrap_or_else(|| panic!("{answer}")).to_owned()
            };
            let spelled = text(false);
            let unspelled = spelled.replace("<|im_start|>", "").replace("<|im_end|>", "");
            assert_eq!(unspelled, text(true), "{path}");
            n_spelled += usize::from(spelled != unspelled);
        }
    }
    assert!(n_spelled > 10, "{n_spelled} texts with control tokens");
}

/// Text and finish reason of a completion that spells control tokens.
fn spelled(site: &Site, seed: u64, stop: Option<&str>) -> (String, Json) {
    let body = json!({"prompt": "once", "max_tokens": 9, "temperature": 1, "seed": seed, "ignore_eos": true,
        "skip_special_tokens": false, "stop": stop});
    let mut choice = site.post("/v1/completions", &body).json()["choices"][0].take();
    let text = choice["text"].as_str().expect("a text").to_owned();
    (text, choice["finish_reason"].take())
}

#[test]
fn stop_strings_are_looked_for_in_the_text_as_it_is_shown() {
    const CONTROL: &str = "<|im_start|>";
    let site = Site::new();
    let (mut n_in_names, mut n_hidden) = (0, 0);
    for seed in 0..200 {
        let (text, reason) = spelled(&site, seed, None);
        assert_eq!(reason, "length");
        let Some(at) = text.find(CONTROL) else { continue };
        let after = at + CONTROL.len();
        // Where a byte that is no text is shown as one, nothing is found.
        let is_text = |char: &char| *char != char::REPLACEMENT_CHARACTER;
        let before = text[..at].chars().next_back().filter(is_text);
        let next = text[after..].chars().next().filter(is_text);
        // In the name of a control token, and across its border.
        let mut stops = vec!["im_start".to_owned()];
        stops.extend(before.map(|before| format!("{before}<|im_s")));
        stops.extend(next.map(|next| format!("start|>{next}")));
        for stop in &stops {
            let cut = text.find(stop).expect("it is part of the text");
            let (stopped, reason) = spelled(&site, seed, Some(stop));
            assert_eq!(
                (stopped.as_str(), &reason),
                (&text[..cut], &json!("stop")),
                "{stop:?} in {text:?}"
            );
            n_in_names += 1;
        }
        // What would be beside it if the token were not shown is not.
        if let (Some(before), Some(next)) = (before, next) {
            let hidden = format!("{before}{next}");
            if !text.contains(&hidden) {
                assert_eq!(
                    spelled(&site, seed, Some(&hidden)),
                    (text, json!("length")),
                    "{hidden:?}"
                );
                n_hidden += 1;
            }
        }
    }
    assert!(
        n_in_names > 10 && n_hidden > 3,
        "{n_in_names} and {n_hidden} cases"
    );
}
