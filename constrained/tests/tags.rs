//! Structural tags, tool calls and text before a constraint: what is accepted, what is refused, and why.

mod walk;

use arbora_constrained::{
    CallFormat, CompileError, Constraint, Enforcement, Grammar, Limits, ParallelCalls, SchemaOptions, Tool,
    ToolChoice, ToolSpec, Whitespace,
};
use walk::{
    EOS, accepts, accepts_tokens, byte_token, check_masks, check_token_masks, first_special, vocabulary,
};

fn options() -> SchemaOptions {
    SchemaOptions {
        whitespace: Whitespace::None,
        ..SchemaOptions::default()
    }
}

fn tag(text: &str) -> Result<Grammar, CompileError> {
    Grammar::compile_structural_tag(&vocabulary(), text, &options(), &Limits::default())
}

fn format(text: &str) -> String {
    format!(r#"{{"type": "structural_tag", "format": {text}}}"#)
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(byte_token).collect()
}

/// Format, accepted, refused.
type Case = (&'static str, &'static [&'static str], &'static [&'static str]);

const FORMATS: [Case; 18] = [
    (r#"{"type":"const_string","value":"Hé"}"#, &["Hé"], &["", "H"]),
    (
        r#"{"type":"json_schema","json_schema":{"type":"integer"},"style":"json","any_order":false}"#,
        &["12"],
        &["a"],
    ),
    (r#"{"type":"regex","pattern":"[a-c]+"}"#, &["ab"], &["", "d"]),
    (
        r#"{"type":"grammar","grammar":"root ::= \"a\" root | \"b\""}"#,
        &["ab", "b"],
        &["a"],
    ),
    (r#"{"type":"any_text"}"#, &["", "anything é😀\n"], &[]),
    (
        r#"{"type":"any_text","excludes":["<t","aab"]}"#,
        &["", "<", "a<<", "aa ab"],
        &["<t", "a<<tool", "aaab"],
    ),
    // One excluded text within the way to another.
    (
        r#"{"type":"any_text","excludes":["xabc","b"]}"#,
        &["", "xa", "xac"],
        &["b", "xab", "xxabc"],
    ),
    (
        r#"{"type":"sequence","elements":[{"type":"const_string","value":"a"},{"type":"or","elements":[
            {"type":"const_string","value":"b"},{"type":"regex","pattern":"[0-9]{2}"}]}]}"#,
        &["ab", "a12"],
        &["a", "b", "a1"],
    ),
    (
        r#"{"type":"sequence","elements":[{"type":"optional","content":{"type":"const_string","value":"o"}},
            {"type":"plus","content":{"type":"const_string","value":"p"}},{"type":"star","content":
            {"type":"const_string","value":"s"}},{"type":"repeat","min":1,"max":2,"content":
            {"type":"const_string","value":"r"}},{"type":"repeat","min":0,"max":-1,"content":
            {"type":"const_string","value":"t"}}]}"#,
        &["opr", "pprr", "psssrttt"],
        &["or", "ops", "prrr"],
    ),
    (
        r#"{"type":"tag","begin":"<think>","content":{"type":"any_text"},"end":["</think>","<|end>"]}"#,
        &["<think></think>", "<think>é</think</think>", "<think><|end>"],
        &["<think>", "<think></think> ", "<think></think>x</think>"],
    ),
    (
        r#"{"type":"sequence","elements":[{"type":"tag","begin":"<think>","content":{"type":"any_text"},"end":"</think>"},
            {"type":"json_schema","json_schema":{"const":"ab"}}]}"#,
        &["<think>\"</think>\"ab\""],
        &["<think>x</think>", "\"ab\"", "<think></think>\n\"ab\""],
    ),
    (
        r#"{"type":"triggered_tags","triggers":["<f"],"tags":[
            {"begin":"<f=a>","content":{"type":"json_schema","json_schema":{"type":"boolean"}},"end":"</f>"},
            {"type":"tag","begin":"<f=ab>","content":{"type":"regex","pattern":"[0-9]+"},"end":"</f>"}]}"#,
        &[
            "",
            "free <",
            "<f=a>true</f>",
            "x<f=ab>12</f>y<<f=a>false</f>",
            "</f>",
        ],
        &["<f", "<f=b>", "<f=a>12</f>", "<f=ab>12", "<<f x"],
    ),
    (
        r#"{"type":"triggered_tags","triggers":["<f"],"at_least_one":true,"stop_after_first":true,"tags":[
            {"begin":"<f=a>","content":{"type":"const_string","value":"x"},"end":"</f>"}]}"#,
        &["<f=a>x</f>"],
        &["", " <f=a>x</f>", "<f=a>x</f>.", "<f=a>x</f><f=a>x</f>"],
    ),
    (
        r#"{"type":"triggered_tags","triggers":["<f"],"at_least_one":true,"excludes":["stop"],"tags":[
            {"begin":"<f=a>","content":{"type":"const_string","value":"x"},"end":"</f>"}]}"#,
        &["<f=a>x</f>", "<f=a>x</f> sto <f=a>x</f>"],
        &["", "a<f=a>x</f>", "<f=a>x</f>stop"],
    ),
    (
        r#"{"type":"tag","begin":"[","content":{"type":"triggered_tags","triggers":["<f"],"stop_after_first":true,"tags":[
            {"begin":"<f>","content":{"type":"any_text"},"end":"</f>"}]},"end":"]"}"#,
        &["[]", "[ab<]", "[x<f>]</f>]"],
        &["[", "[x<f>]", "[x<f></f>y]", "[]]"],
    ),
    (
        r#"{"type":"tags_with_separator","separator":",","at_least_one":true,"tags":[
            {"begin":"<a>","content":{"type":"const_string","value":"1"},"end":"</a>"},
            {"begin":"<b>","content":{"type":"const_string","value":"2"},"end":"</b>"}]}"#,
        &["<a>1</a>", "<b>2</b>,<a>1</a>,<b>2</b>"],
        &["", "<a>1</a>,", "<a>2</a>", "<a>1</a><b>2</b>"],
    ),
    (
        r#"{"type":"dispatch","rules":[["<1",{"type":"const_string","value":">"}],["<2",{"type":"regex","pattern":"a*"}]],
            "excludes":["aab"]}"#,
        &["", "a<b<1>x<2aaab", "<2"],
        &["<1", "<1x", "aab"],
    ),
    (
        r#"{"type":"dispatch","loop":false,"rules":[["<1",{"type":"const_string","value":">"}]]}"#,
        &["", "ab", "ab<1>"],
        &["<1>x", "<1"],
    ),
];

#[test]
fn formats_are_accepted_by_bytes_and_by_tokens_and_masks_are_exact() {
    for (text, accepted, refused) in FORMATS {
        let grammar = tag(&format(text)).expect(text);
        for output in accepted {
            assert!(accepts(&grammar, output), "{text} must accept {output:?}");
        }
        for output in refused {
            assert!(!accepts(&grammar, output), "{text} must refuse {output:?}");
        }
        check_masks(&grammar, text);
    }
}

#[test]
fn free_text_is_whole_characters_and_no_special_token() {
    let grammar = tag(&format(r#"{"type":"any_text"}"#)).expect("valid");
    let mut matcher = grammar.matcher();
    let mask = matcher.mask();
    for token in [EOS, byte_token(b'a'), byte_token(0xc3), byte_token(0)] {
        assert!(mask.allows(token), "{token}");
    }
    for token in [byte_token(0x80), byte_token(0xff), first_special()] {
        assert!(!mask.allows(token), "{token}");
    }
    matcher.advance(byte_token(0xc3)).expect("it begins a character");
    let mask = matcher.mask();
    assert!(!mask.allows(EOS) && !mask.allows(byte_token(b'a')) && mask.allows(byte_token(0xa9)));
}

#[test]
fn the_older_shape_is_read() {
    let text = r#"{"type":"structural_tag","structures":[
        {"begin":"<f=a>","schema":{"type":"object","properties":{"x":{"type":"integer"}},"required":["x"],"additionalProperties":false},"end":"</f>"},
        {"begin":"<g>","schema":"{\"type\":\"null\"}","end":"</g>"}],"triggers":["<f=","<g"]}"#;
    let grammar = tag(text).expect("valid");
    for output in ["", "hi", "a<f=a>{\"x\":1}</f>b<g>null</g>", "<f"] {
        assert!(accepts(&grammar, output), "{output}");
    }
    for output in ["<f=", "<f=a>{}</f>", "<g>1</g>", "<f=a>{\"x\":1}"] {
        assert!(!accepts(&grammar, output), "{output}");
    }
    check_masks(&grammar, text);
}

#[test]
fn tokens_open_and_close_tags() {
    let (call, end) = (first_special(), first_special() + 1);
    let text = r#"{"type":"triggered_tags"}"#;
    assert!(tag(&format(text)).is_err());
    let text = r#"{"type":"tag","begin":{"type":"token","token":"<|call|>"},"content":{"type":"any_text"},
        "end":{"type":"token","token":"<|end|>"}}"#;
    let grammar = tag(&format(text)).expect(text);
    assert!(accepts_tokens(&grammar, &[call, byte_token(b'a'), end]));
    assert!(!accepts_tokens(&grammar, &[call, byte_token(b'a')]) && !accepts_tokens(&grammar, &[call, call]));
    check_masks(&grammar, text);
    let text = format!(
        r#"{{"type":"token_triggered_tags","trigger_tokens":[{call}],"exclude_tokens":[5],"tags":[
        {{"begin":{{"type":"token","token":{call}}},"content":{{"type":"const_string","value":"a"}},
        "end":{{"type":"token","token":{end}}}}}]}}"#
    );
    let grammar = tag(&format(&text)).expect(&text);
    let a = byte_token(b'a');
    assert!(accepts_tokens(&grammar, &[]) && accepts_tokens(&grammar, &[a, call, a, end, a]));
    assert!(!accepts_tokens(&grammar, &[5]) && !accepts_tokens(&grammar, &[end]));
    assert!(!accepts_tokens(&grammar, &[call, a]) && !accepts_tokens(&grammar, &[call, end]));
    check_token_masks(&grammar, &text);
    let text = r#"{"type":"sequence","elements":[{"type":"token","token":"<|call|>"},{"type":"exclude_token","exclude_tokens":["ab"]},
        {"type":"token_dispatch","loop":false,"rules":[["<|end|>",{"type":"const_string","value":"!"}]]},{"type":"any_tokens"}]}"#;
    let grammar = tag(&format(text)).expect(text);
    assert!(
        accepts_tokens(&grammar, &[call, a])
            && accepts_tokens(&grammar, &[call, a, a, end, byte_token(b'!')])
    );
    assert!(!accepts_tokens(&grammar, &[call, 257]) && !accepts_tokens(&grammar, &[call, a, end]));
    check_token_masks(&grammar, text);
}

#[test]
fn what_would_not_be_enforced_is_refused_by_pointer() {
    let cases = [
        (
            r#"{"type":"json"}"#.to_owned(),
            "#: `type` is malformed: it is not `structural_tag`",
        ),
        (
            r#"{"type":"structural_tag"}"#.to_owned(),
            "`structures` is malformed",
        ),
        (
            r#"{"type":"structural_tag","format":{"type":"any_text"},"x":1}"#.to_owned(),
            "#: `x` is not supported",
        ),
        (
            format(r#"{"type":"magic"}"#),
            "#/format: `type` is not supported: `magic` is no format",
        ),
        (format("[]"), "#/format: `type` is malformed"),
        (
            format(r#"{"type":"const_string"}"#),
            "#/format: `value` is malformed: it is missing",
        ),
        (
            format(r#"{"type":"const_string","value":"a","style":1}"#),
            "#/format: `style` is not supported",
        ),
        (
            format(r#"{"type":"any_text","max_tokens":3}"#),
            "`max_tokens` is not supported",
        ),
        (
            format(r#"{"type":"any_text","excludes":[""]}"#),
            "an empty text is a marker",
        ),
        (
            format(r#"{"type":"json_schema","json_schema":true,"style":"qwen_xml"}"#),
            "`style` is not supported",
        ),
        (
            format(r#"{"type":"json_schema","json_schema":true,"any_order":true}"#),
            "`any_order` is not supported",
        ),
        (
            format(
                r#"{"type":"sequence","elements":[{"type":"json_schema","json_schema":{"properties":{"a":{"$dynamicRef":"x"}}}}]}"#,
            ),
            "#/format/elements/0/json_schema/properties/a: `$dynamicRef`",
        ),
        (
            format(r#"{"type":"regex","pattern":"(a)\\1"}"#),
            "#/format: `pattern` is malformed",
        ),
        (
            format(r#"{"type":"grammar","grammar":"root ::= b"}"#),
            "#/format: `grammar` is malformed: grammar at line 1, column 10",
        ),
        (
            format(r#"{"type":"or","elements":[]}"#),
            "`elements` is malformed",
        ),
        (
            format(r#"{"type":"repeat","min":2,"max":1,"content":{"type":"any_text"}}"#),
            "`max` is malformed",
        ),
        (
            format(r#"{"type":"tag","begin":"a","content":{"type":"any_text"}}"#),
            "`end` is malformed: it is missing",
        ),
        (
            format(
                r#"{"type":"triggered_tags","triggers":["<a","<b"],"tags":[{"begin":"<a","content":{"type":"any_text"},"end":"x"}]}"#,
            ),
            "`triggers` is malformed: no tag begins with `<b`",
        ),
        (
            format(
                r#"{"type":"triggered_tags","triggers":["<a"],"tags":[{"begin":"<b","content":{"type":"any_text"},"end":"x"}]}"#,
            ),
            "not exactly one trigger begins `<b`",
        ),
        (
            format(r#"{"type":"dispatch","rules":[["<a",{"type":"any_text"}],["<ab",{"type":"any_text"}]]}"#),
            "`<ab` never comes, because `<a` comes first",
        ),
        (
            format(r#"{"type":"dispatch","rules":[["<ab",{"type":"any_text"}]],"excludes":["a"]}"#),
            "`<ab` never comes, because `a` comes first",
        ),
        (
            format(r#"{"type":"token","token":"<none>"}"#),
            "`<none>` is not one token",
        ),
        (format(r#"{"type":"token","token":0}"#), "token 0 ends the text"),
        (format(r#"{"type":"token","token":1.5}"#), "it is no token number"),
    ];
    for (text, word) in cases {
        let error = tag(&text).expect_err(&text).to_string();
        assert!(error.contains(word), "{text}\n{error}\nwithout {word}");
    }
    let deep = format!(
        "{}{{\"type\":\"any_text\"}}{}",
        "{\"type\":\"optional\",\"content\":".repeat(5_000),
        "}".repeat(5_000)
    );
    let error = tag(&format(&deep)).expect_err("too deep").to_string();
    assert!(error.contains("max_source_depth"), "{error}");
    let long = format!(r#"{{"type":"any_text","excludes":["{}"]}}"#, "a".repeat(5_000));
    let error = tag(&format(&long)).expect_err("too long").to_string();
    assert!(error.contains("max_automaton_states"), "{error}");
}

const TOOLS: [Tool<'static>; 3] = [
    Tool {
        name: "add",
        parameters: r#"{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"integer"}},"required":["a","b"],"additionalProperties":false}"#,
        enforcement: Enforcement::Whole,
    },
    Tool {
        name: "say \"hi\"",
        parameters: r##"{"properties":{"to":{"$ref":"#/$defs/n"}},"required":["to"],"additionalProperties":false,"$defs":{"n":{"enum":["é"]}}}"##,
        enforcement: Enforcement::Whole,
    },
    Tool {
        name: "stop",
        parameters: "{}",
        enforcement: Enforcement::Whole,
    },
];

fn tools(format: CallFormat, choice: ToolChoice<'_>, parallel: ParallelCalls) -> Grammar {
    let spec = ToolSpec {
        tools: &TOOLS,
        format,
        choice,
        parallel,
        options: options(),
    };
    Grammar::compile_tools(&vocabulary(), &spec, &Limits::default()).expect("the tools are fine")
}

const ADD: &str = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\":1,\"b\":-2}}\n</tool_call>";
const SAY: &str = "<tool_call>\n{\"name\": \"say \\\"hi\\\"\", \"arguments\": {\"to\":\"é\"}}\n</tool_call>";

#[test]
fn calls_in_hermes_format_follow_choice_and_schema() {
    use ParallelCalls::{Allowed, AtMostOne};
    let both = format!("{ADD}\n{SAY}");
    let cases = [
        (
            ToolChoice::Auto,
            Allowed,
            vec!["", "<tool", "hello", ADD, &both],
            vec![],
        ),
        (
            ToolChoice::Auto,
            AtMostOne,
            vec!["hello <", ADD],
            vec![both.as_str()],
        ),
        (ToolChoice::Required, Allowed, vec![ADD, &both], vec!["", "hello"]),
        (
            ToolChoice::Required,
            AtMostOne,
            vec![ADD, SAY],
            vec!["", both.as_str()],
        ),
        (
            ToolChoice::Named("add"),
            Allowed,
            vec![ADD],
            vec!["", SAY, both.as_str()],
        ),
    ];
    let never = [
        "<tool_call>",
        "<tool_call>\n{}\n</tool_call>",
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\":1,\"b\":\"2\"}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"sub\", \"arguments\": {\"a\":1,\"b\":2}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"stop\", \"arguments\": []}\n</tool_call>",
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\":1,\"b\":2}}\n",
    ];
    for (choice, parallel, accepted, refused) in cases {
        let grammar = tools(CallFormat::Hermes, choice, parallel);
        let what = format!("{choice:?} {parallel:?}");
        for output in accepted {
            assert!(accepts(&grammar, output), "{what}: {output}");
        }
        for output in refused.into_iter().chain(never) {
            assert!(!accepts(&grammar, output), "{what}: {output}");
        }
        check_masks(&grammar, &what);
    }
    let any = tools(CallFormat::Hermes, ToolChoice::Auto, Allowed);
    let free = format!("I add.\n{ADD} and then\n{SAY} done <tool_cal");
    assert!(accepts(&any, &free));
    // The brackets as special tokens, or one of them.
    let open = first_special() + 2;
    let inside = bytes("\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>");
    for choice in [ToolChoice::Auto, ToolChoice::Required] {
        let grammar = tools(CallFormat::Hermes, choice, Allowed);
        let call: Vec<u32> = [open].into_iter().chain(inside.clone()).collect();
        assert!(accepts_tokens(&grammar, &call), "{choice:?}");
        assert!(!accepts_tokens(&grammar, &[open]), "{choice:?}");
    }
}

#[test]
fn calls_in_llama_format_follow_choice_and_schema() {
    use ParallelCalls::{Allowed, AtMostOne};
    let add = "{\"name\": \"add\", \"parameters\": {\"a\":1,\"b\":2}}";
    let both = format!("{add}; {{\"name\": \"stop\", \"parameters\": {{}}}}");
    let cases = [
        (
            ToolChoice::Auto,
            Allowed,
            vec!["", "hello {}", " {", add, &both],
            vec!["{", "{}"],
        ),
        (ToolChoice::Auto, AtMostOne, vec!["no", add], vec![both.as_str()]),
        (ToolChoice::Required, Allowed, vec![add, &both], vec!["", "hello"]),
        (
            ToolChoice::Named("stop"),
            Allowed,
            vec!["{\"name\": \"stop\", \"parameters\": {}}"],
            vec!["", add],
        ),
    ];
    for (choice, parallel, accepted, refused) in cases {
        let grammar = tools(CallFormat::Llama3Json, choice, parallel);
        let what = format!("{choice:?} {parallel:?}");
        for output in accepted {
            assert!(accepts(&grammar, output), "{what}: {output}");
        }
        for output in refused {
            assert!(!accepts(&grammar, output), "{what}: {output}");
        }
        check_masks(&grammar, &what);
    }
}

#[test]
fn tools_that_cannot_be_enforced_are_refused_by_number() {
    let compile = |tools: &[Tool<'_>], choice: ToolChoice<'_>| {
        let spec = ToolSpec {
            tools,
            format: CallFormat::Hermes,
            choice,
            parallel: ParallelCalls::Allowed,
            options: options(),
        };
        let error = Grammar::compile_tools(&vocabulary(), &spec, &Limits::default());
        error.expect_err("refused").to_string()
    };
    let tool = |parameters| Tool {
        name: "f",
        parameters,
        enforcement: Enforcement::Whole,
    };
    let cases = [
        (
            compile(&[], ToolChoice::Auto),
            "`tools` is malformed: there are none",
        ),
        (compile(&TOOLS, ToolChoice::Named("x")), "there is no tool `x`"),
        (
            compile(&[TOOLS[0], TOOLS[0]], ToolChoice::Auto),
            "#/tools/1: `name` is malformed",
        ),
        (
            compile(&[tool(r#"{"type":"array"}"#)], ToolChoice::Auto),
            "#/tools/0/parameters: `type`",
        ),
        (
            compile(&[tool("[]")], ToolChoice::Auto),
            "#/tools/0/parameters: `schema` is malformed: it is neither an object nor a boolean",
        ),
        (
            compile(&[tool(r##"{"$ref":"#/$defs/x"}"##)], ToolChoice::Auto),
            "#/tools/0/parameters: `$ref`",
        ),
        (
            compile(
                &[tool(r#"{"properties":{"a":{"$dynamicRef":"x"}}}"#)],
                ToolChoice::Auto,
            ),
            "#/tools/0/parameters/properties/a: `$dynamicRef`",
        ),
        (compile(&[tool("{")], ToolChoice::Auto), "not JSON"),
    ];
    for (error, word) in cases {
        assert!(error.contains(word), "{error}\nwithout {word}");
    }
}

#[test]
fn thinking_is_free_and_what_follows_is_constrained() {
    let then = Constraint::JsonSchema {
        schema: r#"{"type":"integer"}"#,
        options: options(),
    };
    let compile = |marker| {
        let constraint = Constraint::After { marker, then: &then };
        Grammar::compile(&vocabulary(), &constraint, &Limits::default()).expect("valid")
    };
    let grammar = compile("</think>");
    assert!(accepts(&grammar, "hm </think</think>12") && accepts(&grammar, "</think>-1"));
    for output in ["", "12", "</think>", "</think>\n1", "</think>1</think>1"] {
        assert!(!accepts(&grammar, output), "{output}");
    }
    check_masks(&grammar, "after");
    // The marker as a special token.
    let end = first_special() + 1;
    let grammar = compile("<|end|>");
    assert!(accepts_tokens(
        &grammar,
        &[byte_token(b'x'), end, byte_token(b'1')]
    ));
    assert!(!accepts_tokens(&grammar, &[byte_token(b'1')]));
    check_masks(&grammar, "after a token");
}

#[test]
fn thinking_may_be_left_out_and_is_closed_where_it_is_not() {
    let then = Constraint::Regex("[0-9]+");
    let compile = |opening, marker| {
        let constraint = Constraint::MaybeAfter {
            opening,
            marker,
            then: &then,
        };
        Grammar::compile(&vocabulary(), &constraint, &Limits::default()).expect("valid")
    };
    let grammar = compile("<think>", "</think>");
    for output in ["12", "<think></think>1", "<think>hm <think> </think</think>12"] {
        assert!(accepts(&grammar, output), "{output}");
    }
    for output in [
        "",
        "<think>",
        "<think>12",
        "hm</think>1",
        "<think></think>",
        "1<think></think>1",
    ] {
        assert!(!accepts(&grammar, output), "{output}");
    }
    check_masks(&grammar, "maybe after");
    let end = first_special() + 1;
    let grammar = compile("<think>", "<|end|>");
    let output: Vec<u32> = bytes("<think>x")
        .into_iter()
        .chain([end])
        .chain(bytes("7"))
        .collect();
    assert!(accepts_tokens(&grammar, &output) && accepts(&grammar, "7"));
    assert!(!accepts_tokens(&grammar, &[end]));
    check_masks(&grammar, "maybe after a token");
}

#[test]
fn calls_or_a_format_are_calls_or_the_format() {
    let calls = |format| {
        Constraint::Tools(ToolSpec {
            tools: &TOOLS,
            format,
            choice: ToolChoice::Required,
            parallel: ParallelCalls::Allowed,
            options: options(),
        })
    };
    let schema = |whitespace| Constraint::JsonSchema {
        schema: r#"{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],"additionalProperties":false}"#,
        options: SchemaOptions {
            whitespace,
            ..SchemaOptions::default()
        },
    };
    let compile = |parts: &[Constraint<'_>]| {
        Grammar::compile(&vocabulary(), &Constraint::Either(parts), &Limits::default()).expect("valid")
    };
    let grammar = compile(&[calls(CallFormat::Hermes), schema(Whitespace::Any)]);
    assert!(accepts(&grammar, ADD) && accepts(&grammar, r#"{"a":1}"#));
    let mixed = [
        String::new(),
        "text".to_owned(),
        format!("{ADD}{{\"a\":1}}"),
        "{\"a\": 1}".to_owned(),
        "<tool_call>".to_owned(),
    ];
    for output in &mixed {
        assert!(!accepts(&grammar, output), "{output}");
    }
    check_masks(&grammar, "calls or a format");
    let llama = compile(&[calls(CallFormat::Llama3Json), schema(Whitespace::None)]);
    assert!(accepts(&llama, r#"{"a":1}"#));
    assert!(accepts(&llama, r#"{"name": "add", "parameters": {"a":1,"b":2}}"#));
    assert!(!accepts(&llama, r#"{"name": "add", "parameters": {"a":1}}"#));
    check_masks(&llama, "calls in the other format or a format");
    let either = compile(&[Constraint::Regex("a+"), schema(Whitespace::Any)]);
    assert!(accepts(&either, "aa") && accepts(&either, "{ \"a\" : 1\n}"));
    let wrong = [Constraint::Regex("a"), Constraint::Regex("(")];
    assert!(Grammar::compile(&vocabulary(), &Constraint::Either(&wrong), &Limits::default()).is_err());
}

#[test]
fn texts_that_open_and_close_tags_may_be_special_tokens() {
    let (end, open) = (first_special() + 1, first_special() + 2);
    let triggered = format(
        r#"{"type":"triggered_tags","triggers":["<tool_call>"],"tags":[
            {"begin":"<tool_call>","content":{"type":"regex","pattern":"[0-9]"},"end":"<|end|>"}]}"#,
    );
    let single =
        format(r#"{"type":"tag","begin":"<tool_call>","content":{"type":"any_text"},"end":"<|end|>"}"#);
    let older = r#"{"type":"structural_tag","triggers":["<tool_call>"],"structures":[
        {"begin":"<tool_call>","schema":{"const":7},"end":"<|end|>"}]}"#;
    for text in [triggered.as_str(), single.as_str(), older] {
        let grammar = tag(text).expect("a tag");
        let seven = byte_token(b'7');
        assert!(accepts_tokens(&grammar, &[open, seven, end]), "{text}");
        assert!(accepts(&grammar, "<tool_call>7<|end|>"), "{text}");
        for output in [
            vec![open],
            vec![end],
            vec![open, seven],
            vec![open, open, seven, end],
        ] {
            assert!(!accepts_tokens(&grammar, &output), "{text} {output:?}");
        }
        check_masks(&grammar, text);
    }
}
