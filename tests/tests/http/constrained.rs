//! Outputs that must look like something: in every spelling that clients know, whole and streamed, with and
//! without drafts. What is asked for is judged by others: the `jsonschema` crate and plain comparison.

use serde_json::{Value as Json, json};

use crate::site::{Answer, Setup, Site, chat, json_tokenizer};
use crate::stream::both;

const CHAT: &str = "/v1/chat/completions";

fn site() -> Site {
    Setup::new(json_tokenizer(&[])).start()
}

pub(crate) fn person() -> Json {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 9},
            "age": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 120},
            "colours": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2}
        },
        "required": ["name", "age", "colours"],
        "additionalProperties": false
    })
}

/// The text of an answer that came to its end; some prompts lead the toy to one soon.
fn ended(site: &Site, more: &Json) -> String {
    let message = messages(site, more, 20).next();
    let message = message.unwrap_or_else(|| panic!("no prompt led to an end: {more}"));
    message["content"].as_str().expect("text").to_owned()
}

/// What comes of `n` prompts, as far as it comes to its end; with its reason.
pub(crate) fn messages(site: &Site, more: &Json, n: usize) -> impl Iterator<Item = Json> {
    let answer = move |prompt| {
        let mut body = chat(&format!("prompt {prompt}"), more);
        body["max_tokens"] = 1500.into();
        let mut choice = both(site, &body)["choices"][0].take();
        choice["message"]["finish_reason"] = choice["finish_reason"].take();
        choice["message"].take()
    };
    let is_ended = |message: &Json| message["finish_reason"] != "length";
    (0..n).map(answer).filter(is_ended)
}

/// Complains about a text that is not JSON, or not as the schema has it.
pub(crate) fn judge(text: &str, schema: &Json) {
    let value: Json = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(!text.contains('\u{fffd}'), "{text}");
    let validator = jsonschema::validator_for(schema).expect("a schema");
    assert!(validator.is_valid(&value), "{text} is not valid by {schema}");
    if let (Some(members), Some(declared)) = (value.as_object(), schema["properties"].as_object()) {
        let expected: Vec<_> = declared
            .keys()
            .filter(|name| members.contains_key(*name))
            .collect();
        let found: Vec<_> = members
            .keys()
            .filter(|name| declared.contains_key(*name))
            .collect();
        assert_eq!(found, expected, "members come in the order of the schema");
    }
}

#[test]
fn every_spelling_of_a_schema_constrains() {
    let (site, schema) = (site(), person());
    let wrapped = |strict: Json| {
        let inner = json!({"name": "person", "schema": schema, "strict": strict});
        json!({"response_format": {"type": "json_schema", "json_schema": inner}})
    };
    let in_text = schema.to_string();
    let spellings = [
        wrapped(json!(true)),
        wrapped(json!(false)),
        wrapped(Json::Null),
        json!({"response_format": {"type": "json_object", "schema": schema}}),
        json!({"structured_outputs": {"json": schema}}),
        json!({"structured_outputs": {"json": in_text, "disable_any_whitespace": true}}),
        json!({"guided_json": schema}),
        json!({"guided_json": in_text}),
        json!({"json_schema": in_text}),
        json!({"json_schema": schema}),
    ];
    for spelling in spellings {
        let text = ended(&site, &spelling);
        judge(&text, &schema);
        if spelling.to_string().contains("disable_any_whitespace") {
            let compact = serde_json::from_str::<Json>(&text).expect("JSON").to_string();
            assert_eq!(text, compact);
        }
    }
    site.wait_until_quiet();
}

#[test]
fn any_object_is_an_object() {
    let site = site();
    let spellings = [
        json!({"response_format": {"type": "json_object"}}),
        json!({"structured_outputs": {"json_object": true}}),
        json!({"guided_json_object": true}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}}),
    ];
    for spelling in spellings {
        let text = ended(&site, &spelling);
        assert!(text.starts_with('{'), "{text}");
        // Without a look at the values: JSON has numbers that this crate has no type for.
        let read = serde_json::from_str::<serde::de::IgnoredAny>(&text);
        assert!(read.is_ok() && !text.contains('\u{fffd}'), "{read:?}: {text}");
    }
}

#[test]
fn every_spelling_of_a_language_constrains() {
    let site = site();
    let matching = |pattern: &str| json!({"type": "string", "pattern": pattern});
    let words = json!({"enum": ["yes", "no", "don't know"]});
    let tag = json!({"type": "structural_tag", "format": {"type": "tag", "begin": "<a>", "end": "</a>",
        "content": {"type": "json_schema", "json_schema": {"type": "integer", "minimum": 10, "maximum": 99}}}});
    let code = matching("^[a-c]{2}-[0-9]{3}$");
    let list = matching("^on(, off)*$");
    let tagged = matching("^<a>[1-9][0-9]</a>$");
    let choice = ["yes", "no", "don't know"];
    let ebnf = "root ::= \"on\" more*\nmore ::= \", off\"";
    let lark = "start: \"on\" (\", \" \"off\")*";
    let cases = [
        (
            json!({"structured_outputs": {"regex": "[a-c]{2}-[0-9]{3}"}}),
            &code,
        ),
        (json!({"guided_regex": "[a-c]{2}-[0-9]{3}"}), &code),
        (json!({"regex": "[a-c]{2}-[0-9]{3}"}), &code),
        (json!({"structured_outputs": {"choice": choice}}), &words),
        (json!({"guided_choice": choice}), &words),
        (json!({"choice": choice}), &words),
        (json!({"structured_outputs": {"grammar": ebnf}}), &list),
        (json!({"structured_outputs": {"grammar": lark}}), &list),
        (json!({"guided_grammar": ebnf}), &list),
        (json!({"guided_grammar": lark}), &list),
        (json!({"ebnf": ebnf}), &list),
        (json!({"grammar": ebnf}), &list),
        (json!({"structured_outputs": {"structural_tag": tag}}), &tagged),
        (json!({"structural_tag": tag.to_string()}), &tagged),
        (json!({"response_format": tag}), &tagged),
    ];
    for (spelling, schema) in cases {
        let text = ended(&site, &spelling);
        let validator = jsonschema::validator_for(schema).expect("a schema");
        assert!(
            validator.is_valid(&Json::String(text.clone())),
            "{text}: {spelling}"
        );
    }
    let mut body = json!({"prompt": "hello", "temperature": 0, "guided_choice": choice});
    let whole = site.post("/v1/completions", &body).json();
    let text = whole["choices"][0]["text"].as_str().expect("text").to_owned();
    assert!(choice.contains(&text.as_str()), "{whole}");
    body["stream"] = true.into();
    let streamed = site.post("/v1/completions", &body).body;
    let chunks = streamed.lines().filter_map(|line| line.strip_prefix("data: {"));
    let chunks = chunks.map(|rest| serde_json::from_str::<Json>(&format!("{{{rest}")).expect("JSON"));
    let joined: String = chunks
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(joined, text);
}

#[test]
fn what_cannot_be_enforced_is_a_400_that_says_where_and_what() {
    let site = site();
    let deep = format!("{}true{}", r#"{"items":"#.repeat(120), "}".repeat(120));
    let object = |name: &str, schema: Json| json!({"type": "object", "properties": {name: schema}});
    let cases: [(Json, &str, &[&str]); 11] = [
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema":
                object("a/b", json!({"type": "array", "not": {"uniqueItems": true}}))}}}),
            "response_format.json_schema.schema",
            &["#/properties/a~1b", "`uniqueItems`"],
        ),
        (
            json!({"guided_json": object("a", json!({"not": {"format": "regex"}}))}),
            "guided_json",
            &["#/properties/a", "`format`"],
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true,
                "schema": object("a", json!({"type": "string"}))}}}),
            "response_format.json_schema.schema",
            &["'#'", "additionalProperties"],
        ),
        (
            json!({"json_schema": deep}),
            "json_schema",
            &["`max_source_depth` of 96"],
        ),
        (
            json!({"json_schema": "{"}),
            "json_schema",
            &["not JSON at byte 1"],
        ),
        (
            json!({"json_schema": {"type": "string", "enum": [5]}}),
            "json_schema",
            &["no output can satisfy"],
        ),
        (
            json!({"structured_outputs": {"regex": "(a)\\1b"}}),
            "structured_outputs.regex",
            &["`(a)\\1b`"],
        ),
        (
            json!({"grammar": "root ::= \"a\" |\n  other"}),
            "grammar",
            &["line 2", "other"],
        ),
        (json!({"ebnf": "root ::= (\"a\""}), "ebnf", &["line 1", "column"]),
        (
            json!({"guided_grammar": "start: %%"}),
            "guided_grammar",
            &["line 1", "column"],
        ),
        (
            json!({"structural_tag": {"type": "structural_tag", "format": {"type": "sequence",
                "elements": [{"type": "poem"}]}}}),
            "structural_tag",
            &["#/format/elements/0", "`type`", "`poem`"],
        ),
    ];
    for (fields, param, expected) in cases {
        for stream in [false, true] {
            let mut body = chat("hello", &fields);
            body["stream"] = stream.into();
            let answer = site.post(CHAT, &body);
            assert_eq!(answer.status, 400, "{fields}: {}", answer.body);
            let error = answer.json()["error"].take();
            assert_eq!(error["param"], param, "{error}");
            let message = error["message"].as_str().expect("a text");
            for part in expected {
                assert!(message.contains(part), "{part:?} is not in {message:?}");
            }
        }
    }
    assert_eq!(
        ended(&site, &json!({"choice": ["fine"]})),
        "fine",
        "the server is as it was"
    );
}

#[test]
fn two_constraints_are_a_400_that_names_both_unless_they_are_the_same() {
    let site = site();
    let fields = [
        ("response_format", json!({"type": "json_object"})),
        ("structured_outputs", json!({"regex": "a"})),
        ("guided_choice", json!(["a"])),
        ("json_schema", json!({})),
        ("ebnf", json!("root ::= \"a\"")),
        ("grammar", json!("root ::= \"a\"")),
    ];
    for (i, (first, one)) in fields.iter().enumerate() {
        for (second, other) in &fields[i + 1..] {
            let answer = site.post(CHAT, &chat("hello", &json!({*first: one, *second: other})));
            if one == other {
                assert_eq!(
                    answer.status, 200,
                    "{first} and {second} are one: {}",
                    answer.body
                );
                continue;
            }
            assert_eq!(answer.status, 400, "{first} and {second}: {}", answer.body);
            let message = answer.json()["error"]["message"].to_string();
            assert!(message.contains(first) && message.contains(second), "{message}");
        }
    }
}

#[test]
fn each_of_several_choices_is_valid_and_the_same_as_among_others() {
    let (site, schema) = (site(), person());
    let ask = |n: usize| {
        let more = json!({"guided_json": schema, "n": n, "seed": 11, "temperature": 1, "max_tokens": 1500});
        let answer = both(&site, &chat("hello", &more));
        let choices = answer["choices"].as_array().expect("choices").clone();
        assert_eq!(choices.len(), n);
        choices
    };
    let crowd = ask(6);
    for n in 1..6 {
        assert_eq!(ask(n), crowd[..n]);
    }
    for choice in &crowd {
        assert_eq!(choice["finish_reason"], "stop");
        judge(choice["message"]["content"].as_str().expect("text"), &schema);
    }
    let texts: std::collections::HashSet<_> = crowd
        .iter()
        .map(|choice| choice["message"]["content"].to_string())
        .collect();
    assert!(texts.len() > 3, "each choice draws for itself: {texts:?}");
}

#[test]
fn drafts_change_nothing_but_the_counts() {
    let without = {
        let mut setup = Setup::new(json_tokenizer(&[]));
        setup.engine.max_draft_rows = 0;
        setup.start()
    };
    let with = site();
    let ask = |site: &Site, sampling: &Json| {
        let mut body = chat("draft", &json!({"guided_json": person(), "max_tokens": 1500}));
        for (name, value) in sampling.as_object().expect("fields") {
            body[name] = value.clone();
        }
        let body = body.to_string();
        let mut answer = Answer::read(site.send("POST", CHAT, "x-arbora-usage: 1\r\n", &body)).json();
        (answer["choices"].take(), answer["usage"].take())
    };
    let count = |value: &Json| value.as_u64().expect("a count");
    let mut n_saved = 0;
    for sampling in [
        json!({"temperature": 0}),
        json!({"temperature": 1, "seed": 1}),
        json!({"temperature": 1, "seed": 2, "n": 3}),
    ] {
        let ((drafted, usage), (plain, plain_usage)) = (ask(&with, &sampling), ask(&without, &sampling));
        assert_eq!(drafted, plain, "{sampling}");
        assert_eq!(usage["completion_tokens"], plain_usage["completion_tokens"]);
        assert!(
            plain_usage.get("completion_tokens_details").is_none(),
            "{plain_usage}"
        );
        assert_eq!(plain_usage["arbora"]["drafted_tokens"], 0);
        let (details, explained) = (&usage["completion_tokens_details"], &usage["arbora"]);
        let accepted = count(&details["accepted_prediction_tokens"]);
        let rejected = count(&details["rejected_prediction_tokens"]);
        assert_eq!(count(&explained["accepted_tokens"]), accepted);
        assert_eq!(count(&explained["drafted_tokens"]), accepted + rejected);
        assert!(accepted < count(&usage["completion_tokens"]), "{usage}");
        n_saved += accepted;
    }
    assert!(n_saved > 20, "{n_saved} tokens were forced");
}

#[test]
fn a_grammar_with_millions_of_readings_runs_to_its_end() {
    // After each letter there are twice as many ways to read the output.
    let rule = |n: usize| format!("r{n} ::= \"x\" r{} \"y\" | \"x\" r{} \"z\"\n", n + 1, n + 1);
    let rules: String = (0..20).map(rule).collect();
    let grammar = json!({"grammar": format!("root ::= r0\n{rules}r20 ::= \"w\"")});
    let site = site();
    let text = ended(&site, &grammar);
    let (opened, closed) = text.split_once('w').expect("the middle");
    assert_eq!(opened, "x".repeat(20));
    assert!(
        closed.len() == 20 && closed.bytes().all(|byte| b"yz".contains(&byte)),
        "{text}"
    );
    site.wait_until_quiet();
}

#[test]
fn clients_that_hang_up_while_their_grammars_are_compiled_leave_nothing_behind() {
    let site = site();
    for idx in 0..20 {
        let body = chat("hello", &json!({"regex": format!("[ab]*a[ab]{{10}}{idx}")}));
        drop(site.send("POST", CHAT, "", &body.to_string()));
    }
    let free = site.post(CHAT, &chat("hello", &json!({"max_tokens": 3})));
    assert_eq!(
        free.status, 200,
        "who wants no grammar waits for none: {}",
        free.body
    );
    assert_eq!(ended(&site, &json!({"choice": ["fine"]})), "fine");
    site.wait_until_quiet();
}

#[test]
fn control_tokens_come_where_a_grammar_names_them_and_nowhere_else() {
    const CONTROLS: [&str; 3] = ["<tool_call>", "</tool_call>", "<|python_tag|>"];
    let site = Setup::new(json_tokenizer(&CONTROLS)).start();
    let number =
        json!({"type": "json_schema", "json_schema": {"type": "integer", "minimum": 10, "maximum": 99}});
    let tag = json!({"type": "tag", "begin": "<tool_call>", "content": number, "end": "</tool_call>"});
    let triggered = json!({"type": "structural_tag", "format": {"type": "triggered_tags",
        "triggers": ["<tool_call>"], "tags": [tag], "at_least_one": true, "stop_after_first": true}});
    let cases = [
        (
            json!({"grammar": "root ::= <|python_tag|> [a-c] [a-c] [a-c]?"}),
            r"^<\|python_tag\|>[a-c]{2,3}$",
        ),
        (
            json!({"grammar": "root ::= \"a\" <[3]> \"b\""}),
            "^a</tool_call>b$",
        ),
        (
            json!({"ebnf": "root ::= Token(\"<tool_call>\") \"x\""}),
            "^<tool_call>x$",
        ),
        (
            json!({"response_format": triggered}),
            "^<tool_call>[1-9][0-9]</tool_call>$",
        ),
        (
            json!({"structural_tag": {"type": "structural_tag", "format": tag}}),
            "^<tool_call>[1-9][0-9]</tool_call>$",
        ),
    ];
    for (fields, pattern) in cases {
        let validator = jsonschema::validator_for(&json!({"pattern": pattern})).expect("a pattern");
        for message in messages(&site, &fields, 10) {
            assert!(validator.is_valid(&message["content"]), "{fields}: {message}");
            assert_eq!(message["finish_reason"], "stop");
        }
    }
    let text = json!({"type": "object", "properties": {"text": {"type": "string", "minLength": 300}}});
    let text = json!({"guided_json": text, "temperature": 1, "seed": 3});
    let tagged = json!({"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}});
    let mut n_bytes = 0;
    for fields in [text, tagged] {
        for message in messages(&site, &fields, 20) {
            let content = message["content"].as_str().expect("text");
            n_bytes += content.len();
            assert!(!CONTROLS.iter().any(|name| content.contains(name)), "{content}");
            assert!(!content.contains("<|im_start|>"), "{content}");
        }
    }
    assert!(n_bytes > 3000, "{n_bytes} bytes were looked at");
}
