"""instructor against a running server, in the two modes that its users choose between.

    python instructor_client.py --base-url http://127.0.0.1:8000/v1          (needs instructor)
"""

import argparse
import enum
import typing

import instructor
import openai
import pydantic

MODEL = "smollm2:135m"
ASK = [{"role": "user", "content": "Alice and Bob meet for a science fair on Friday."}]


class Event(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    name: str = pydantic.Field(max_length=30)
    day: enum.Enum("Day", {d: d for d in ("Monday", "Friday", "Sunday")})
    participants: list[typing.Annotated[str, pydantic.Field(max_length=12)]] = pydantic.Field(
        min_length=1, max_length=3)
    attendees: int = pydantic.Field(ge=1, le=99)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    plain = openai.OpenAI(base_url=parser.parse_args().base_url, api_key="none", max_retries=0, timeout=120)
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
        client = instructor.from_openai(plain, mode=mode)
        event = client.chat.completions.create(
            model=MODEL, messages=ASK, response_model=Event, max_retries=0, temperature=0, max_tokens=400)
        assert isinstance(event, Event), (mode, event)
    print("instructor: JSON_SCHEMA and TOOLS answered as expected")


main()
