"""Three turns of one chat with a running server; the cached part of the prompt must grow with each turn."""

import json
import sys
import urllib.request

QUESTIONS = [
    "Name three rivers of Europe.",
    "Which of them is the longest?",
    "Which countries does it cross?",
]


def chat(url, messages):
    body = json.dumps({"model": "smollm2:135m", "messages": messages, "max_tokens": 48, "temperature": 0})
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", body.encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def main():
    messages, cached = [], []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        answer = chat(sys.argv[1], messages)
        messages.append(answer["choices"][0]["message"])
        usage = answer["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
        print(f"> {question}\n{messages[-1]['content']}")
        print(f"[{usage['prompt_tokens']} prompt tokens, {cached[-1]} of them cached]\n")
    if cached != sorted(set(cached)):
        sys.exit(f"cached tokens do not grow: {cached}")


main()
