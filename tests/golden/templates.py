"""Chat templates rendered by Jinja2 in the environment that transformers (5.24) sets up for them.

    python templates.py          (needs jinja2 3.1.6)

Reads `templates/*.jinja`, which use what the templates of widely used chat models use, and
`templates/constructs.txt`, one template a line. Writes `templates.json`: the chats, and what becomes of each
template with each chat and of each line. A text is what it renders to, an object tells why it does not:
`refused` with the words of `raise_exception`, `failed` where Python raises anything else.
"""

import json
import pathlib
import re

import jinja2
import jinja2.ext
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent

# Line breaks in constructs.txt.
ENDS = str.maketrans({"⏎": "\n", "␍": "\r"})


class Generation(jinja2.ext.Extension):
    """`{% generation %}` as transformers' AssistantTracker has it while it tracks nothing."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller):
        return caller()


class Refused(jinja2.TemplateError):
    pass


def raise_exception(message):
    raise Refused(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather — in °C, \"now\" or later.", "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city"},
            "days": {"type": ["integer", "null"], "minimum": 1, "maximum": 12345678901234567890123, "default": 1},
            "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
            "items": {"type": "array", "items": {"type": "number", "exclusiveMinimum": 1e-7}},
            "where": {"type": "object", "properties": {"lat": {"type": "number"}, "keys": {"type": "string"}}, "required": ["lat"]},
            "either": {"anyOf": [{"type": "string", "description": "a word"}, {"type": "integer"}]},
        },
        "required": ["city"]}}},
    {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}},
]
ARGUMENTS = {"city": "Zürich <b> \"Ü\"\n", "days": 9007199254740993, "unit": None, "items": [1.0, 1e5, 0.1, -0.0, 1e22], "where": {"lat": 47.0, "ok": True}}


def call(identity, name, arguments):
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


CHATS = {
    "plain": {"messages": [
        {"role": "system", "content": " Be kind. /no_think "},
        {"role": "user", "content": " Hi,\n'you' and \"you\" 🙂\t{{ x }} "},
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nHello </s> & <b>.\n"},
        {"role": "user", "content": "日本語 é \\n {% if %}"},
    ]},
    "short": {"messages": [{"role": "user", "content": ""}]},
    "answered": {"add_generation_prompt": False, "messages": [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two.", "reasoning_content": "\nThree\n"},
    ]},
    "tools": {"tools": TOOLS, "messages": [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "reasoning_content": "Look it up.", "tool_calls": [call("call00001", "get_weather", ARGUMENTS)]},
        {"role": "tool", "content": "{\"degrees\": 21.5}", "tool_call_id": "call00001"},
        {"role": "assistant", "content": "It is 21.5 °C."},
        {"role": "user", "content": "And now?"},
    ]},
    "parallel": {"tools": TOOLS, "reasoning_effort": "high", "messages": [
        {"role": "user", "content": "Both!"},
        {"role": "assistant", "content": "Asking.", "tool_calls": [call("call00001", "now", {}), call("call00002", "get_weather", {"city": "Bern"})]},
        {"role": "tool", "content": "12:00", "tool_call_id": "call00001"},
        {"role": "tool", "content": "wet", "tool_call_id": "call00002"},
    ]},
}

# What the lines of constructs.txt may use besides `messages`, `tools` and the rest of the chat "tools".
VALUES = {
    "l": [3, 1, 2], "d": {"b": 1, "a": 2, "items": 3}, "s": "Hello World", "n": None, "t": True, "f": 2.5, "e": [],
    "users": [{"name": "bob", "age": 3}, {"name": "Al", "age": 1}, {"name": "Cy", "age": 3}],
    "es": "", "nested": {"x": {"y": [{"z": 1}]}},
    "mixed": [1, "a'", None, True, 2.0, [1], {"k": "é"}], "lines": "a\nb\n\nc\n", "big": 12345678901234567890123,
}


def shown(message):
    """A message as transformers shows it: without what is null, thoughts under both names."""
    message = {key: value for key, value in message.items() if value is not None}
    if "reasoning_content" in message:
        message = {"thinking": message["reasoning_content"], **message}
    return message


def render(source, chat, show=shown):
    values = {"add_generation_prompt": True, "tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>", **chat}
    values["messages"] = [show(message) for message in chat["messages"]]
    try:
        return environment.from_string(source).render(**values)
    except Refused as refusal:
        return {"refused": str(refusal)}
    except Exception:
        return {"failed": True}


rendered = {}
for path in sorted((HERE / "templates").glob("*.jinja")):
    source = path.read_text()
    # Written for transformers before 5, which left what is null in the messages.
    asks_for_null = re.search(r"content'\] is (not )?none", source)
    show = dict if asks_for_null else shown
    rendered[path.stem] = {name: render(source, chat, show) for name, chat in CHATS.items()}
constructs = []
for line in (HERE / "templates" / "constructs.txt").read_text().split("\n"):
    if line and not line.startswith("## "):
        constructs.append(render(line.translate(ENDS), {**CHATS["tools"], **VALUES}))
golden = {"chats": CHATS, "values": VALUES, "rendered": rendered, "constructs": constructs}
(HERE / "templates.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
failed = [(name, chat) for name, chats in rendered.items() for chat, text in chats.items() if text == {"failed": True}]
print(f"{len(rendered)} templates, {len(constructs)} constructs; not rendered: {failed}")
