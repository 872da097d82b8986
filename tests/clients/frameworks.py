"""Frameworks that speak to OpenAI-compatible servers, as their documentation shows it, against a running one.

    python frameworks.py --base-url http://127.0.0.1:8000/v1 langchain-openai litellm pydantic-ai

Those named are tried and must be installed; each can be in an environment of its own.
"""

import argparse
import asyncio
import enum
import os

import pydantic

MODEL = "smollm2:135m"
ASK = "Alice goes to Rome on Friday and wants to know the weather."


class Trip(pydantic.BaseModel):
    """A trip to a city."""

    model_config = pydantic.ConfigDict(extra="forbid")

    city: str = pydantic.Field(max_length=20)
    day: enum.Enum("Day", {d: d for d in ("Monday", "Friday", "Sunday")})
    travellers: int = pydantic.Field(ge=1, le=9)


def langchain_openai(base_url):
    import langchain_core.messages
    import langchain_core.tools
    import langchain_openai
    import openai

    chat = langchain_openai.ChatOpenAI(
        model=MODEL, base_url=base_url, api_key="none", temperature=0, max_tokens=100, max_retries=0, timeout=60)
    short = chat.model_copy(update={"max_tokens": 16})
    answer = short.invoke(ASK)
    usage = answer.usage_metadata
    assert answer.content and usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], answer
    chunks = list(short.stream(ASK, stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == answer.content, "a stream says what a whole answer says"
    told = [chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata]
    assert told == [usage["output_tokens"]], told
    assert [a.content for a in short.batch([ASK, ASK])] == [answer.content] * 2
    assert asyncio.run(short.ainvoke(ASK)).content == answer.content

    for method in ("json_schema", "function_calling"):
        trip = chat.with_structured_output(Trip, method=method).invoke(ASK)
        assert isinstance(trip, Trip), (method, trip)
    raw = chat.with_structured_output(Trip, method="json_schema", include_raw=True).invoke(ASK)
    assert isinstance(raw["parsed"], Trip) and raw["parsing_error"] is None, raw

    @langchain_core.tools.tool
    def days_until(day: Trip.model_fields["day"].annotation) -> int:
        """Number of days until a day of the week."""
        return 3

    # Without strict a schema leaves room for more properties, which this model fills to no end.
    with_tools = chat.bind_tools([days_until], tool_choice="days_until", strict=True)
    message = with_tools.invoke(ASK)
    (call,) = message.tool_calls
    assert call["name"] == "days_until" and call["id"] and set(call["args"]) == {"day"}, message
    whole = None
    for chunk in with_tools.stream(ASK):
        whole = chunk if whole is None else whole + chunk
    assert [c["args"] for c in whole.tool_calls] == [call["args"]], whole
    history = [langchain_core.messages.HumanMessage(ASK), message, days_until.invoke(call)]
    assert isinstance(short.bind_tools([days_until]).invoke(history), langchain_core.messages.AIMessage)
    try:
        chat.model_copy(update={"model_name": "other"}).invoke(ASK)
    except openai.NotFoundError:
        return
    raise AssertionError("a model that is not served answered")


def litellm(base_url):
    # Prices of models, which it would fetch at import.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    litellm.suppress_debug_info = True
    common = dict(model=f"openai/{MODEL}", api_base=base_url, api_key="none", temperature=0, num_retries=0, timeout=60)
    common["messages"] = [{"role": "user", "content": ASK}]
    answer = litellm.completion(**common, max_tokens=16)
    content = answer.choices[0].message.content
    assert content and answer.usage.completion_tokens <= 16, answer
    stream = litellm.completion(**common, max_tokens=16, stream=True, stream_options={"include_usage": True})
    joined, usages = "", []
    for chunk in stream:
        joined += "".join(choice.delta.content or "" for choice in chunk.choices)
        usages += [chunk.usage] if getattr(chunk, "usage", None) else []
    assert joined == content, "a stream says what a whole answer says"
    assert [usage.completion_tokens for usage in usages] == [answer.usage.completion_tokens], usages
    again = asyncio.run(litellm.acompletion(**common, max_tokens=16))
    assert again.choices[0].message.content == content
    text = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", prompt="Once upon a time", api_base=base_url, api_key="none",
        max_tokens=8, temperature=0)
    assert text.choices[0].text and text.usage.completion_tokens <= 8, text

    parsed = litellm.completion(**common, max_tokens=100, response_format=Trip)
    Trip.model_validate_json(parsed.choices[0].message.content)
    tool = {"type": "function", "function": {"name": "plan", "parameters": Trip.model_json_schema()}}
    calls = litellm.completion(**common, max_tokens=100, tools=[tool], tool_choice="required",
                               parallel_tool_calls=False).choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["plan"], calls
    Trip.model_validate_json(calls[0].function.arguments)
    too_long = [{"role": "user", "content": "a " * 9_000}]
    for error, given in (
        (litellm.BadRequestError, {"temperature": -1}),
        (litellm.NotFoundError, {"model": "openai/x"}),
        # By its words; routers then turn to a model with a longer context.
        (litellm.ContextWindowExceededError, {"messages": too_long}),
        (litellm.ContextWindowExceededError, {"max_tokens": 1_000_000}),
    ):
        try:
            litellm.completion(**{**common, **given})
        except error:
            continue
        raise AssertionError(f"{given} was accepted")


def pydantic_ai(base_url):
    import pydantic_ai
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=base_url, api_key="none"))
    settings = dict(temperature=0, max_tokens=120, timeout=60, parallel_tool_calls=False)
    short = dict(settings, max_tokens=16)
    plain = pydantic_ai.Agent(model, model_settings=short)
    answer = plain.run_sync(ASK)
    assert answer.output and 0 < answer.usage.output_tokens <= 16, answer

    async def streamed():
        async with plain.run_stream(ASK) as result:
            return "".join([piece async for piece in result.stream_text(delta=True, debounce_by=None)])

    assert asyncio.run(streamed()) == answer.output, "a stream says what a whole answer says"

    # The output as a call of a tool, and by response_format.
    for output in (pydantic_ai.ToolOutput(Trip), pydantic_ai.NativeOutput(Trip)):
        found = pydantic_ai.Agent(model, output_type=output, model_settings=settings).run_sync(ASK).output
        assert isinstance(found, Trip), (output, found)

    called = []
    limits = pydantic_ai.UsageLimits(request_limit=4)
    agent = pydantic_ai.Agent(model, output_type=pydantic_ai.ToolOutput(Trip), model_settings=settings)

    @agent.tool_plain
    def days_until(day: Trip.model_fields["day"].annotation) -> int:
        """Number of days until a day of the week."""
        called.append(day)
        return 3

    # With both on offer this model may ask for days to no end; each answer is a valid call all the same.
    try:
        assert isinstance(agent.run_sync(ASK, usage_limits=limits).output, Trip)
    except pydantic_ai.UsageLimitExceeded:
        assert len(called) == 4, called
    try:
        plain.run_sync(ASK, model_settings={"temperature": -1})
    except pydantic_ai.ModelHTTPError as error:
        assert error.status_code == 400 and error.body["param"] == "temperature", error
        return
    raise AssertionError("a negative temperature was accepted")


FRAMEWORKS = {"langchain-openai": langchain_openai, "litellm": litellm, "pydantic-ai": pydantic_ai}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    parser.add_argument("frameworks", nargs="+", choices=FRAMEWORKS)
    args = parser.parse_args()
    for name in args.frameworks:
        FRAMEWORKS[name](args.base_url)
        print(name, "answered as expected")


main()
