//! Models that think before they answer: what they must look like holds for the answer, and the thoughts are
//! told apart from it.

use serde_json::{Value as Json, json};

use crate::constrained::{judge, messages, person};
use crate::site::{Setup, Site, TEMPLATE, chat, json_tokenizer, json_tokenizer_with};
use crate::stream::both;

/// Leaves it to the model, as Qwen 3's does; with `enable_thinking: false` the thoughts are there and empty.
const LEFT_TO_IT: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}\
    {{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n\
    {% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}";

/// Opens them itself, as DeepSeek R1's does.
const OPENED: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    <|im_start|>assistant\n<think>\n";

/// Where the marks are control tokens, and where they are words.
fn sites(template: &'static str) -> [Site; 2] {
    const MARKS: [&str; 4] = ["<think>", "</think>", "<tool_call>", "</tool_call>"];
    [json_tokenizer(&MARKS), json_tokenizer_with(&[], &MARKS)].map(|tokenizer| {
        let mut setup = Setup::new(tokenizer);
        setup.template = template;
        setup.start()
    })
}

fn thoughts(message: &Json) -> &str {
    let text = message["reasoning_content"].as_str().unwrap_or_default();
    assert!(
        !text.contains("</think>") && text.trim_matches('\n') == text,
        "{message}"
    );
    text
}

fn content(message: &Json) -> &str {
    message["content"]
        .as_str()
        .unwrap_or_else(|| panic!("no text: {message}"))
}

#[test]
fn a_constraint_holds_behind_thoughts_that_the_prompt_opened() {
    for site in sites(OPENED) {
        let mut n_thought = 0;
        for message in messages(&site, &json!({"guided_json": person()}), 12) {
            judge(content(&message), &person());
            n_thought += usize::from(!thoughts(&message).is_empty());
        }
        assert!(n_thought > 6, "{n_thought} answers with thoughts");
        for message in messages(&site, &json!({"choice": ["\nyes", "\nno"]}), 8) {
            assert!(
                ["\nyes", "\nno"].contains(&content(&message)),
                "every byte counts: {message}"
            );
        }
        let call =
            json!({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"});
        let mut n_called = 0;
        for message in messages(&site, &call, 8) {
            assert_eq!(message["content"], Json::Null);
            let arguments = message["tool_calls"][0]["function"]["arguments"]
                .as_str()
                .expect("text");
            judge(arguments, &json!({"maxProperties": 0}));
            n_called += usize::from(!thoughts(&message).is_empty());
        }
        assert!(n_called > 4, "{n_called} calls behind thoughts");
    }
}

#[test]
fn free_text_behind_thoughts_begins_without_line_breaks() {
    for site in sites(OPENED) {
        let (mut n_both, mut n_thoughts) = (0, 0);
        for message in messages(&site, &json!({}), 30) {
            let is_answered = !message["content"].is_null();
            assert!(!is_answered || !content(&message).starts_with('\n'), "{message}");
            n_both += usize::from(is_answered && !thoughts(&message).is_empty());
            n_thoughts += usize::from(!is_answered);
        }
        assert!(
            n_both > 3 && n_thoughts > 3,
            "{n_both} answers, {n_thoughts} without one"
        );
    }
}

#[test]
fn a_model_that_is_left_to_it_thinks_or_does_not_and_obeys_either_way() {
    for site in sites(LEFT_TO_IT) {
        let words = ["yes", "no"];
        let mut n_thought = 0;
        let mut n_all = 0;
        for message in messages(&site, &json!({"choice": words}), 30) {
            assert!(words.contains(&content(&message)), "{message}");
            n_thought += usize::from(message.get("reasoning_content").is_some());
            n_all += 1;
        }
        assert!(
            n_thought > 3 && n_thought + 3 < n_all,
            "{n_thought} of {n_all} with thoughts"
        );
        let off = json!({"choice": words, "chat_template_kwargs": {"enable_thinking": false}});
        for message in messages(&site, &off, 10) {
            assert!(words.contains(&content(&message)));
            assert!(message.get("reasoning_content").is_none(), "{message}");
        }
        let format =
            json!({"guided_json": person(), "tools": [{"type": "function", "function": {"name": "f"}}]});
        for message in messages(&site, &format, 12) {
            if message.get("tool_calls").is_none() {
                judge(content(&message), &person());
            }
        }
    }
}

#[test]
fn thoughts_that_could_not_be_told_from_the_answer_are_not_made() {
    for site in sites(LEFT_TO_IT) {
        let pattern = "^<(think>)?[a-c]{20}$";
        let validator = jsonschema::validator_for(&json!({"pattern": pattern})).expect("a pattern");
        let mut n_alike = 0;
        for message in messages(&site, &json!({"regex": "<(think>)?[a-c]{20}"}), 30) {
            assert!(validator.is_valid(&message["content"]), "{message}");
            assert!(message.get("reasoning_content").is_none(), "{message}");
            n_alike += usize::from(content(&message).starts_with("<think>"));
        }
        assert!(n_alike > 0);
    }
}

#[test]
fn thoughts_that_are_cut_off_are_no_answer() {
    for site in sites(OPENED) {
        let more = json!({"max_tokens": 5, "guided_json": person(), "stop_token_ids": []});
        let choice = both(&site, &chat("hello", &more))["choices"][0].take();
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!(choice["message"]["content"], Json::Null, "{choice}");
        assert!(!thoughts(&choice["message"]).is_empty());
    }
}

#[test]
fn thoughts_have_at_most_as_many_tokens_as_their_budget() {
    for template in [OPENED, LEFT_TO_IT] {
        for site in sites(template) {
            let mut n_cut = 0;
            for prompt in 0..12 {
                let ask = |budget: Json| {
                    let mut body = chat(&format!("prompt {prompt}"), &json!({"choice": ["yes", "no"]}));
                    body["max_tokens"] = 1500.into();
                    body["thinking_token_budget"] = budget;
                    both(&site, &body)["choices"][0].take()
                };
                let free = ask(json!(-1));
                assert_eq!(free, ask(Json::Null));
                for budget in [0, 1, 5] {
                    let bounded = ask(json!(budget));
                    let told = thoughts(&bounded["message"]);
                    assert!(told.len() <= budget * "</tool_call>".len(), "{budget}: {bounded}");
                    let words = ["yes", "no"];
                    assert!(words.contains(&content(&bounded["message"])), "{bounded}");
                    let whole = thoughts(&free["message"]);
                    assert!(whole.starts_with(told), "{bounded} {free}");
                    n_cut += usize::from(whole.len() > told.len());
                }
            }
            assert!(n_cut > 6, "{n_cut} thoughts were cut");
        }
    }
    let site = Setup::new(json_tokenizer(&[])).start();
    let answer = site.post(
        "/v1/chat/completions",
        &chat("hi", &json!({"thinking_token_budget": 1})),
    );
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_eq!(answer.json()["error"]["param"], "thinking_token_budget");
}

#[test]
fn thoughts_go_where_a_client_wants_them() {
    for site in sites(OPENED) {
        let mut n_answered = 0;
        for prompt in 0..12 {
            let ask = |more: Json| {
                let mut body = chat(&format!("prompt {prompt}"), &more);
                body["choice"] = json!(["yes", "no"]);
                body["max_tokens"] = 1500.into();
                both(&site, &body)["choices"][0]["message"].take()
            };
            let apart = ask(json!({}));
            let left_out = ask(json!({"include_reasoning": false}));
            let in_text = ask(json!({"separate_reasoning": false}));
            assert!(left_out.get("reasoning_content").is_none(), "{left_out}");
            assert!(in_text.get("reasoning_content").is_none(), "{in_text}");
            if apart["content"].is_null() {
                continue;
            }
            assert_eq!(left_out["content"], apart["content"]);
            let (before, after) = content(&in_text).split_once("</think>").expect("the mark");
            assert_eq!(before.trim_matches('\n'), thoughts(&apart));
            assert_eq!(after, content(&apart));
            n_answered += usize::from(!thoughts(&apart).is_empty());
        }
        assert!(n_answered > 4, "{n_answered} answers behind thoughts");
    }
}

#[test]
fn what_a_client_writes_opens_no_thoughts() {
    for (template, text) in [
        (TEMPLATE, "<think>"),
        (LEFT_TO_IT, "</think>"),
        (LEFT_TO_IT, "<think>"),
    ] {
        let [site, _] = sites(template);
        let ask = |message: Json| {
            let body = json!({"messages": [message], "guided_choice": ["fine"], "temperature": 0,
                "chat_template_kwargs": {"enable_thinking": false}, "max_tokens": 300});
            both(&site, &body)["choices"][0]["message"].take()
        };
        let message = ask(json!({"role": "user", "content": text}));
        assert_eq!(content(&message), "fine");
        assert!(message.get("reasoning_content").is_none(), "{message}");
        let earlier = json!({"role": "assistant", "content": "so", "reasoning_content": text});
        assert_eq!(content(&ask(earlier)), "fine");
    }
}
