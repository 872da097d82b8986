//! Templates as the server renders them, and against Jinja2 in Python.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::*;
use crate::wire::chat::{ChatRequest, Conversation};
use crate::wire::message::Role;

const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
    {{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by \
    Hugging Face<|im_end|>\n' }}\
    {% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn message(role: Role, content: &str) -> Message {
    Message {
        role,
        content: Some(content.to_owned()),
        extra: serde_json::Map::new(),
    }
}

fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
    let tokens = TemplateTokens {
        bos: "<s>".to_owned(),
        eos: "</s>".to_owned(),
    };
    ChatTemplate::new(source, tokens)?.render(&Chat {
        tools: &[],
        messages,
        ending: PromptEnding::Answer,
        values: &serde_json::Map::new(),
    })
}

fn render_expression(expression: &str) -> String {
    let source = format!("{{{{ {expression} }}}}");
    render(&source, &[message(Role::User, " a<b&'c' ")]).expect(expression)
}

#[test]
fn the_default_models_template_renders() {
    let chat = [message(Role::User, "Hi <b>"), message(Role::Assistant, "Yes?")];
    assert_eq!(
        render(SMOLLM2, &chat).expect("renders"),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>assistant\n"
    );
    let system = [message(Role::System, "S")];
    assert_eq!(
        render(SMOLLM2, &system).expect("renders"),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn blocks_are_trimmed_as_hugging_face_has_jinja_do() {
    let source = "{% for m in messages %}\n    {% if true %}\n  {{ m.content | trim }}\n    {% endif %}\n{% endfor %}\n";
    assert_eq!(
        render(source, &[message(Role::User, " x ")]).expect("renders"),
        "  x\n"
    );
}

// Expected values are those of Python's json.dumps(json.loads(…)).
#[test]
fn numbers_of_a_request_keep_their_digits() {
    let schema = r#"{"minimum": -12345678901234567890123, "maximum": 18446744073709551616, "step": 1e5,
        "enum": [1.0, 0.1, 1e-7, 9007199254740993]}"#;
    let tools = [serde_json::from_str(schema).expect("JSON")];
    let call =
        r#"[{"function": {"name": "f", "arguments": {"n": 340282366920938463463374607431768211456}}}]"#;
    let mut message = message(Role::Assistant, "");
    let calls = serde_json::from_str(call).expect("JSON");
    message.extra.insert("tool_calls".to_owned(), calls);
    let source = "{{ tools[0] | tojson }} {{ messages[0].tool_calls[0].function.arguments | tojson }} \
        {{ messages[0].tool_calls[0].function.arguments.n }} {{ tools[0].maximum + 1 }}";
    let chat = Chat {
        tools: &tools,
        messages: &[message],
        ending: PromptEnding::Answer,
        values: &serde_json::Map::new(),
    };
    let template = ChatTemplate::new(source, TemplateTokens::default()).expect("a template");
    assert_eq!(
        template.render(&chat).expect("renders"),
        r#"{"minimum": -12345678901234567890123, "maximum": 18446744073709551616, "step": 100000.0, "#
            .to_owned()
            + r#""enum": [1.0, 0.1, 1e-07, 9007199254740993]} "#
            + r#"{"n": 340282366920938463463374607431768211456} "#
            + "340282366920938463463374607431768211456 18446744073709551617"
    );
}

// Expected values are those of Python's json.dumps(…, ensure_ascii=False).
#[test]
fn tojson_is_pythons() {
    let spaced = render_expression(r#"{'b': [1, 2.5, none], 'a': "é<&'"} | tojson"#);
    assert_eq!(spaced, r#"{"b": [1, 2.5, null], "a": "é<&'"}"#);
    let indented = render_expression("[1, {'a': []}] | tojson(indent=4)");
    assert_eq!(indented, "[\n    1,\n    {\n        \"a\": []\n    }\n]");
    let compact = render_expression("[1, {'a': [], 'b': {}}] | tojson(separators=(',', ':'))");
    assert_eq!(compact, r#"[1,{"a":[],"b":{}}]"#);
    let sorted = render_expression("{'b': 1, 'a': 1e16, 3: none}.items() | list | tojson(indent='-')");
    assert_eq!(
        sorted,
        "[\n-[\n--\"b\",\n--1\n-],\n-[\n--\"a\",\n--1e+16\n-],\n-[\n--3,\n--null\n-]\n]"
    );
    let sorted = render_expression("{'b': 1, 'a': {'d': 2, 'c': 3}} | tojson(sort_keys=true, indent=0)");
    assert_eq!(sorted, "{\n\"a\": {\n\"c\": 3,\n\"d\": 2\n},\n\"b\": 1\n}");
    let ascii = render_expression(r"'é🙂\x7f\x01\b\f' | tojson(true)");
    assert_eq!(ascii, r#""\u00e9\ud83d\ude42\u007f\u0001\b\f""#);
    for refused in [
        "tojson(indent=65)",
        "tojson(separators=',')",
        "tojson(default=1)",
        "tojson(1, ensure_ascii=1)",
    ] {
        let source = format!("{{{{ [1] | {refused} }}}}");
        assert!(render(&source, &[]).is_err(), "{refused}");
    }
    let nested = render_expression("messages | tojson");
    assert_eq!(nested, r#"[{"role": "user", "content": " a<b&'c' "}]"#);
}

#[test]
fn python_methods_work() {
    assert_eq!(
        render_expression("messages[0].content.strip().upper()"),
        "A<B&'C'"
    );
    assert_eq!(render_expression("'a b'.split(' ')[-1]"), "b");
    assert_eq!(
        render_expression("bos_token + eos_token if tools is none else 0"),
        "<s></s>"
    );
}

#[test]
fn a_template_can_refuse_in_its_own_words() {
    let error = render("{{ raise_exception('roles must alternate') }}", &[]).expect_err("refused");
    assert!(
        matches!(&error, TemplateError::Refused(words) if words == "roles must alternate"),
        "{error:?}"
    );
}

#[test]
fn fuel_and_output_are_bounded() {
    let endless = "{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}";
    for source in [
        endless,
        "{{ 'x' * 100000000000 }}",
        "{{ undefined_function() }}",
        "{{ [] + 1 }}",
    ] {
        let error = render(source, &[]).expect_err(source);
        assert!(matches!(error, TemplateError::Failed(_)), "{source}: {error:?}");
    }
}

#[test]
fn templates_cannot_read_files() {
    for verb in [
        "include '/etc/passwd'",
        "extends '/etc/passwd'",
        "import '/etc/passwd' as x",
    ] {
        assert!(render(&format!("{{% {verb} %}}"), &[]).is_err(), "{verb}");
    }
}

/// What `tests/golden/templates.py` wrote.
#[derive(serde::Deserialize)]
struct Golden {
    /// Requests by name.
    chats: BTreeMap<String, Json>,
    /// Further values for `constructs`.
    values: serde_json::Map<String, Json>,
    /// By template and chat.
    rendered: BTreeMap<String, BTreeMap<String, Json>>,
    /// Of each line of `constructs.txt`.
    constructs: Vec<Json>,
}

fn golden_text(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let path = folder.join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn golden() -> Golden {
    serde_json::from_str(&golden_text("templates.json")).expect("the script wrote it")
}

/// The text, or why there is none, as the script tells it.
fn outcome(source: &str, request: &Json, values: &serde_json::Map<String, Json>) -> Json {
    let body = request.to_string();
    let request = ChatRequest::parse(body.as_bytes()).expect("a good request");
    let Conversation {
        messages,
        tools,
        ending,
        mut template_values,
        ..
    } = request.conversation;
    template_values.extend(values.clone());
    let tokens = TemplateTokens {
        bos: "<s>".to_owned(),
        eos: "</s>".to_owned(),
    };
    let rendered = ChatTemplate::new(source, tokens).and_then(|template| {
        template.render(&Chat {
            messages: &messages,
            tools: &tools,
            ending,
            values: &template_values,
        })
    });
    match rendered {
        Ok(text) => text.into(),
        Err(TemplateError::Refused(words)) => json!({"refused": words}),
        Err(_) => json!({"failed": true}),
    }
}

#[test]
fn templates_in_the_manner_of_known_models_render_as_in_python() {
    let golden = golden();
    assert!(golden.rendered.len() >= 25 && golden.chats.len() >= 5);
    for (name, expected) in &golden.rendered {
        let source = golden_text(&format!("templates/{name}.jinja"));
        for (chat, expected) in expected {
            let found = outcome(&source, &golden.chats[chat], &serde_json::Map::new());
            assert_eq!(&found, expected, "{name} with the chat {chat}");
        }
    }
}

#[test]
fn every_construct_renders_as_in_python() {
    let golden = golden();
    let text = golden_text("templates/constructs.txt");
    let lines = text
        .split('\n')
        .filter(|line| !line.is_empty() && !line.starts_with("## "));
    let sources: Vec<String> = lines
        .map(|line| line.replace('⏎', "\n").replace('␍', "\r"))
        .collect();
    assert_eq!(
        sources.len(),
        golden.constructs.len(),
        "the script has to be run again"
    );
    let mut wrong = Vec::new();
    for (source, expected) in sources.iter().zip(&golden.constructs) {
        let found = outcome(source, &golden.chats["tools"], &golden.values);
        if found != *expected {
            wrong.push(format!("{source}\n  Python {expected}\n  here   {found}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn named(templates: &[(&str, &str)]) -> Result<ChatTemplate, TemplateError> {
    let template = |(name, source): &(&str, &str)| NamedTemplate {
        name: (*name).to_owned(),
        source: (*source).to_owned(),
    };
    let templates: Vec<_> = templates.iter().map(template).collect();
    ChatTemplate::of_model(&templates, TemplateTokens::default())
}

#[test]
fn tools_choose_the_template_that_is_made_for_them() {
    let several = named(&[
        ("rag", "R"),
        ("tool_use", "T{{ tools | length }} <tool_call>"),
        ("default", "D{{ tools }} {{ messages[0].content }}"),
    ]);
    let several = several.expect("good templates");
    let messages = [message(Role::User, "hi")];
    let rendered = |template: &ChatTemplate, tools: &[Json]| {
        let chat = Chat {
            messages: &messages,
            tools,
            ending: PromptEnding::Answer,
            values: &serde_json::Map::new(),
        };
        template.render(&chat).expect("renders")
    };
    assert_eq!(rendered(&several, &[]), "DNone hi");
    assert_eq!(rendered(&several, &[json!({}), json!({})]), "T2 <tool_call>");
    assert_eq!(several.call_format(), Some(CallFormat::Hermes));
    assert!(several.prints_tools());

    let without = named(&[
        ("default", "D{{ tools | length }} tools <tool_call>"),
        ("rag", "R"),
    ]);
    assert_eq!(
        rendered(&without.expect("good templates"), &[json!({})]),
        "D1 tools <tool_call>"
    );
    let only = named(&[("chat", "C{{ tools }}")]).expect("a good template");
    assert_eq!(rendered(&only, &[]), "CNone");
    assert!(!only.prints_tools());
    let only = named(&[("tool_use", "O")]).expect("a good template");
    assert_eq!(rendered(&only, &[]), "O");
}

#[test]
fn a_template_that_cannot_be_used_is_told_by_name_line_and_construct() {
    let several = |source: &str| named(&[("default", "D"), ("tool_use", source)]);
    let cases = [
        ("a\n{% if %}", "'tool_use' cannot be used: line 2: "),
        ("a\r\nb\r\n{% unknown %}", "line 3: unknown statement unknown"),
        ("{{ 'a }}", "line 1: "),
        (
            "\n\n{% generation x %}{% endgeneration %}",
            "line 3: {% generation %} takes no arguments",
        ),
        ("\n{% generation %}", "line 2: {% generation %} is never closed"),
        (
            "{% endgeneration %}",
            "line 1: {% endgeneration %} closes nothing",
        ),
        (
            "{% generation %}{% if x %}\n{% endgeneration %}{% endif %}",
            "line 2: {% endgeneration %} where {% endif %} is expected",
        ),
        (
            "{% for x in y %}{% generation %}\n{% endfor %}",
            "line 2: {% endfor %} where {% endgeneration %} is expected",
        ),
        (
            "{% for x in y %}{% generation %}{% if x %}{% break %}{% endif %}{% endgeneration %}{% endfor %}",
            "line 1: {% break %} inside of {% generation %} is not supported",
        ),
    ];
    for (source, expected) in cases {
        let error = several(source).expect_err(source).to_string();
        assert!(error.contains(expected), "{source}: {error}");
    }
    let error = named(&[("rag", "R"), ("tool_use", "T")])
        .expect_err("no default")
        .to_string();
    assert!(
        error.contains("(rag, tool_use), but none named 'default'"),
        "{error}"
    );
}

#[test]
fn a_message_without_content_has_none_unless_the_template_asks() {
    let silent = Message {
        role: Role::Assistant,
        content: None,
        extra: serde_json::Map::new(),
    };
    let rendered = |source: &str| render(source, std::slice::from_ref(&silent)).expect("renders");
    assert_eq!(
        rendered("[{{ messages[0].content }}]{{ messages[0] | tojson }}"),
        r#"[]{"role": "assistant"}"#
    );
    for asks in [
        "{{ messages[0].content is none }}",
        "{{ not messages[0]['content'] is not none }}",
        "{{ messages[0][\"content\"] == None }}",
        "{% set content = messages[0].content %}{{ (content) is none }}",
    ] {
        assert_eq!(rendered(asks), "True", "{asks}");
    }
}

#[test]
fn thoughts_have_both_of_their_names() {
    let mut thinks = message(Role::Assistant, "x");
    thinks.extra.insert("reasoning_content".to_owned(), "hm".into());
    let source = "{{ messages[0].thinking }} {{ messages[0].reasoning_content }}";
    assert_eq!(render(source, &[thinks]).expect("renders"), "hm hm");
}

// Hugging Face's sandbox refuses these; templates of GGUF files use them.
#[test]
fn a_list_that_a_template_writes_out_can_be_changed() {
    let cases = [
        (
            "{% set x = [] %}{% for i in [1, 2] %}{% set _ = x.append(i) %}{% endfor %}{{ x }}",
            "[1, 2]",
        ),
        (
            "{% set x = ['a'] %}{{ x.append('b') }}{{ x | join('-') }}{{ x | length }}",
            "Nonea-b2",
        ),
        (
            "{% set x = [3, 1] %}{% do x.extend([2]) %}{% do x.sort() %}{{ x }}{{ x[-1] }}",
            "[1, 2, 3]3",
        ),
        (
            "{% set x = [1, 2] %}{{ x.pop() }}{{ x.pop(0) }}{{ x }}{{ x == [] }}",
            "21[]True",
        ),
        (
            "{% set x = [1, 2] %}{% do x.insert(0, 0) %}{% do x.reverse() %}{{ x }}",
            "[2, 1, 0]",
        ),
        (
            "{% set x = [1, 2, 1] %}{% do x.remove(1) %}{{ x }}{{ x.index(1) }}{{ x.count(2) }}",
            "[2, 1]11",
        ),
        (
            "{% set ns = namespace(x=[]) %}{% do ns.x.append([5 % 3]) %}{{ ns.x | tojson }}",
            "[[2]]",
        ),
        // What is put in is put in as it is, so a list never holds itself.
        (
            "{% set x = [] %}{% do x.append(x) %}{% do x.append({'k': x}) %}{{ x }}",
            "[[], {'k': [[]]}]",
        ),
        (
            "{% set x = [1] %}{% set y = x %}{% do y.append(2) %}{{ x }}",
            "[1, 2]",
        ),
    ];
    for (source, expected) in cases {
        assert_eq!(render(source, &[]).expect(source), expected, "{source}");
    }
    for refused in [
        "messages.append(1)",
        "'a b'.split().pop()",
        "{}.update({})",
        "{'a': 1}.pop('a')",
    ] {
        let source = format!("{{{{ {refused} }}}}");
        let error = render(&source, &[]).expect_err(refused);
        assert!(matches!(error, TemplateError::Failed(_)), "{refused}: {error:?}");
    }
}

/// Parts of templates in any order; seeded.
#[test]
fn no_text_makes_the_compiler_panic() {
    const PARTS: [&str; 40] = [
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "{%-",
        "-%}",
        "{%+",
        "+%}",
        " raw ",
        " endraw ",
        " generation ",
        " endgeneration ",
        "if",
        "endif",
        " for ",
        "endfor",
        " in ",
        " x ",
        ".",
        "|",
        "%",
        "%",
        "*",
        "-",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        "'",
        "\"",
        "\\U0001F642",
        "\\",
        "1.5e3",
        "é",
        "\r\n",
    ];
    let seed = 20_260_105_u64;
    let mut state = seed;
    let mut next = |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for round in 0..20_000 {
        let source: String = (0..next(16)).map(|_| PARTS[next(PARTS.len())]).collect();
        // Only that it ends: most are no templates.
        let compiled = ChatTemplate::new(&source, TemplateTokens::default());
        if let Err(error) = compiled {
            assert!(
                error.to_string().contains("line "),
                "seed {seed}, round {round}: {source:?}: {error}"
            );
        }
    }
}
