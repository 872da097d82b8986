"""Writes schemas.jsonl: schemas of common public shapes with valid and invalid instances.

    python schemas.py > schemas.jsonl              (needs the package jsonschema, which judges the instances)

The shapes are those that tool calls, extraction prompts and configuration files have; names and bounds are
drawn with a fixed seed. Instances have their members in the schema's order.
"""

import json
import random

import jsonschema

SEED = 20261124
WORDS = "name title id price count email status kind tags city street zip score active created note lines unit".split()
TEXTS = ["", "a", "Ada Lovelace", "naïve café", "line\nbreak", 'a "quoted" word', "x" * 40, "日本語", "tab\tend"]


class Draw(random.Random):
    def text(self, low=0, high=60):
        text = self.choice(TEXTS)
        return (text + "abc" * low)[: max(low, min(len(text), high))] if low else text[:high]

    def leaf(self):
        """A schema of one value, a valid value, and an invalid one."""
        low = self.randint(-50, 50)
        high = low + self.randint(1, 500)
        n = self.randint(1, 30)
        options = self.sample(WORDS, self.randint(2, 6))
        return self.choice(
            [
                ({"type": "string"}, self.text(), 1),
                ({"type": "string", "minLength": 1, "maxLength": n}, self.text(1, n), "y" * (n + 1)),
                ({"type": "string", "enum": options}, self.choice(options), "none of them"),
                ({"const": options[0]}, options[0], options[1]),
                ({"type": "integer"}, self.randint(-9999, 9999), 1.5),
                ({"type": "integer", "minimum": low, "maximum": high}, self.randint(low, high), high + 1),
                ({"type": "number"}, self.choice([0, -1.25, 3e10, 17]), "1"),
                ({"type": "number", "minimum": 0, "maximum": 1}, self.choice([0, 0.5, 1, 0.125]), 1.01),
                ({"type": "number", "exclusiveMinimum": low}, low + 0.5, low),
                ({"type": "integer", "multipleOf": 5}, 5 * self.randint(-9, 99), 7),
                ({"type": "boolean"}, self.random() < 0.5, None),
                ({"type": ["string", "null"]}, self.choice([None, "here"]), 3),
                ({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, "AB-0123", "AB-012"),
                ({"type": "string", "pattern": "^[a-z][a-z0-9_]*$"}, "snake_case_1", "1st"),
                ({"type": "string", "format": "date"}, "2024-02-29", "2023-02-29"),
                ({"type": "string", "format": "date-time"}, "2024-05-06T07:08:09Z", "2024-05-06"),
                ({"type": "string", "format": "email"}, "ada@example.org", "ada"),
                ({"type": "string", "format": "uuid"}, "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
                ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, self.choice([None, 4]), "x"),
            ]
        )

    def node(self, depth):
        shape = self.random()
        if depth == 0 or shape < 0.45:
            return self.leaf()
        if shape < 0.65:
            schema, good, bad = self.node(depth - 1)
            low, high = self.randint(0, 1), self.randint(2, 6)
            items = [good] * self.randint(low, high)
            return {"type": "array", "items": schema, "minItems": low, "maxItems": high}, items, [bad]
        if shape < 0.75:
            parts = [self.node(depth - 1) for _ in range(2)]
            kinds = [{"type": "object", "properties": {"kind": {"const": k}, "value": s}, "required": ["kind", "value"]}
                     for k, (s, _, _) in zip("ab", parts)]
            keyword = self.choice(["oneOf", "anyOf"])
            return {keyword: kinds}, {"kind": "b", "value": parts[1][1]}, {"kind": "a", "value": parts[0][2]}
        names = self.sample(WORDS, self.randint(1, 8))
        parts = [self.node(depth - 1) for _ in names]
        required = [name for name in names if self.random() < 0.6]
        schema = {"type": "object", "properties": dict(zip(names, (part[0] for part in parts)))}
        if required:
            schema["required"] = required
        if self.random() < 0.6:
            schema["additionalProperties"] = False
        good = {n: part[1] for n, part in zip(names, parts) if n in required or self.random() < 0.6}
        wrong = self.randrange(len(names))
        bad = {n: part[2] if i == wrong else part[1] for i, (n, part) in enumerate(zip(names, parts))}
        return schema, good, bad

    def refinement(self, schema, good, bad):
        """Keywords that are less common, in the share in which public schemas have them."""
        shape = self.random()
        if shape < 0.05:
            return {"$defs": {"item": schema}, "type": "object", "properties": {"next": {"$ref": "#"}, "item": {"$ref": "#/$defs/item"}},
                    "required": ["item"]}, {"next": {"item": good}, "item": good}, {"item": bad}
        if shape < 0.08:
            return {"type": "object", "patternProperties": {"^x-": schema}, "additionalProperties": False}, {"x-a": good}, {"x-a": bad}
        if shape < 0.11:
            return {"type": "array", "items": {"type": "string"}, "uniqueItems": True}, ["a", "b"], ["a", "a"]
        if shape < 0.14:
            return {"type": "object", "additionalProperties": schema}, {"one": good, "two": good}, {"one": bad}
        if shape < 0.16:
            return {"not": {"type": "null"}}, 3, None
        return schema, good, bad


def main():
    draw = Draw(SEED)
    n = 0
    while n < 320:
        schema, good, bad = draw.refinement(*draw.node(3))
        validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
        valid = [value for value in (good,) if validator.is_valid(value)]
        invalid = [value for value in (bad, "", None, [], {}) if not validator.is_valid(value)]
        if not valid or not invalid:
            continue
        print(json.dumps({"id": f"s{n:03}", "schema": schema, "valid": valid, "invalid": invalid[:3]}, ensure_ascii=False))
        n += 1


main()
