"""The openai Python SDK, sync and async, against `rrtf-serve` on a real model."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fake_engine import FakeEngine
from live import LiveServer, serving
from openai import AsyncOpenAI, OpenAI

from rrtf_serve.api.app import ApiSettings

CHAT: list[Any] = [{"role": "user", "content": "Write a Python function that adds two numbers."}]
PROMPT = "def add(a, b):\n    return"


@pytest.fixture(scope="module")
def client(live_server: LiveServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=live_server.base_url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def model(live_server: LiveServer) -> str:
    return live_server.model


def test_models(client: OpenAI, model: str) -> None:
    [listed] = client.models.list().data
    assert listed.id == model == client.models.retrieve("smollm2").id
    assert listed.model_extra is not None
    assert listed.model_extra["max_model_len"] == 8192
    assert listed.model_extra["card"]["architecture"] == "llama"


def test_a_completion(client: OpenAI, model: str) -> None:
    made = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0)
    assert made.choices[0].text.startswith(" a + b")
    assert made.choices[0].finish_reason in ("length", "stop")
    assert made.usage is not None
    assert 4 <= made.usage.completion_tokens <= 8
    assert made.model == model


def test_a_streamed_completion_is_the_same_text(client: OpenAI, model: str) -> None:
    options: Any = {"model": model, "prompt": PROMPT, "max_tokens": 40, "temperature": 0, "stop": ["\n\n"]}
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert "\n\n" not in whole.choices[0].text


def test_text_and_token_ids_are_the_same_prompt(client: OpenAI, model: str) -> None:
    scored = client.completions.create(model=model, prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)
    assert scored.choices[0].text == PROMPT
    logprobs = scored.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == PROMPT
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in logprobs.token_logprobs[1:])


def test_logprobs_of_the_greedy_choice_are_the_best(client: OpenAI, model: str) -> None:
    made = client.completions.create(model=model, prompt=PROMPT, max_tokens=6, temperature=0, logprobs=3)
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == made.choices[0].text
    for token, value, top in zip(
        logprobs.tokens or [], logprobs.token_logprobs or [], logprobs.top_logprobs or [], strict=True
    ):
        assert top[token] == value == max(top.values())


def test_several_prompts_answer_as_each_alone(client: OpenAI, model: str) -> None:
    # Continuations that the model is sure of: in a batch int8 rounding differs, which is enough to tip a tie.
    prompts = [PROMPT, "1, 2, 3, 4, 5, 6, 7,", "A B C D E F G H"]
    options: Any = {"model": model, "max_tokens": 4, "temperature": 0}
    together = client.completions.create(prompt=prompts, **options)
    alone = [client.completions.create(prompt=prompt, **options).choices[0].text for prompt in prompts]
    assert [choice.text for choice in together.choices] == alone
    assert [choice.index for choice in together.choices] == [0, 1, 2]


def test_the_best_of_several(client: OpenAI, model: str) -> None:
    made = client.completions.create(model=model, prompt=PROMPT, max_tokens=6, n=2, best_of=4, logprobs=0)
    means = []
    for choice in made.choices:
        assert choice.logprobs is not None
        values = choice.logprobs.token_logprobs or [-1e9]
        means.append(sum(values) / len(values))
    assert means == sorted(means, reverse=True)


def test_a_chat(client: OpenAI, model: str) -> None:
    made = client.chat.completions.create(model=model, messages=CHAT, max_tokens=60, temperature=0)
    message = made.choices[0].message
    assert message.role == "assistant"
    assert "def " in (message.content or "")
    assert "<|im_" not in (message.content or "")


def test_a_streamed_chat_is_the_same_text(client: OpenAI, model: str) -> None:
    options: Any = {"model": model, "messages": CHAT, "max_tokens": 40, "temperature": 0}
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_the_sdks_own_accumulation_of_a_stream(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model, messages=CHAT, max_tokens=200, stop=["\n"], temperature=0, logprobs=True, top_logprobs=2
    ) as stream:
        made = stream.get_final_completion()
    logprobs = made.choices[0].logprobs
    assert made.choices[0].finish_reason == "stop"
    assert logprobs is not None
    assert "".join(token.token for token in logprobs.content or []) == made.choices[0].message.content


def test_many_async_clients_at_once_get_their_own_answers(live_server: LiveServer) -> None:
    prompts = [f"# item {number}\nx = " for number in range(12)]

    async def ask(client: AsyncOpenAI, prompt: str, stream: bool) -> str:
        options: Any = {"model": live_server.model, "prompt": prompt, "max_tokens": 6, "temperature": 0}
        if not stream:
            return str((await client.completions.create(**options)).choices[0].text)
        text = ""
        async for chunk in await client.completions.create(**options, stream=True):
            text += chunk.choices[0].text
        return text

    async def run() -> tuple[list[str], list[str]]:
        async with AsyncOpenAI(base_url=live_server.base_url, api_key="none", max_retries=0) as client:
            alone = [await ask(client, prompt, False) for prompt in prompts]
            tasks = [ask(client, prompt, number % 2 == 0) for number, prompt in enumerate(prompts)]
            return alone, await asyncio.gather(*tasks)

    alone, together = asyncio.run(run())
    assert together == alone


def test_a_stream_left_early_frees_the_server(client: OpenAI, model: str) -> None:
    for _ in range(3):
        with client.completions.create(model=model, prompt=PROMPT, max_tokens=4000, stream=True) as stream:
            next(iter(stream))
    # Would wait for thousands of tokens otherwise.
    quick = client.completions.create(model=model, prompt=PROMPT, max_tokens=1, temperature=0, timeout=10)
    assert quick.choices[0].text


@pytest.mark.parametrize(
    ("error", "code", "ask"),
    [
        (openai.BadRequestError, "invalid_value", {"temperature": 3}),
        (openai.BadRequestError, "unsupported_parameter", {"logit_bias": {"5": 1}}),
        (openai.BadRequestError, "unsupported_parameter", {"suffix": "x"}),
        (openai.BadRequestError, "context_length_exceeded", {"prompt": "word " * 20_000}),
        (openai.NotFoundError, "model_not_found", {"model": "gpt-9"}),
    ],
)
def test_the_sdk_raises_its_own_errors(
    client: OpenAI, model: str, error: type[openai.APIStatusError], code: str, ask: dict[str, Any]
) -> None:
    with pytest.raises(error) as caught:
        client.completions.create(**{"model": model, "prompt": PROMPT, **ask})
    assert caught.value.code == code
    assert caught.value.request_id


def test_wrong_keys_and_full_queues_as_the_sdk_sees_them() -> None:
    keys = frozenset({hashlib.sha256(b"right").hexdigest()})
    engine = FakeEngine()
    engine.open.clear()
    with serving(engine, settings=ApiSettings(api_keys=keys), max_queue=1) as server:
        base_url = f"{server.address}/v1"
        with OpenAI(base_url=base_url, api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with OpenAI(base_url=base_url, api_key="right", max_retries=0) as client:
            options: Any = {"model": "tiny", "prompt": "a", "stream": True}
            with client.completions.create(**options):
                while not engine.started:
                    pass
                with client.completions.create(**options), pytest.raises(openai.RateLimitError):
                    client.completions.create(**options)
            engine.open.set()


def test_a_failure_in_mid_stream_is_raised() -> None:
    with (
        serving(FakeEngine(fails_after=2)) as server,
        OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.completions.create(model="tiny", prompt="abc", stream=True)
        with pytest.raises(openai.APIError, match="failed on this request"):
            list(stream)


@pytest.mark.slow
def test_the_default_model_fills_in_a_missing_body(live_qwen: LiveServer) -> None:
    with OpenAI(base_url=live_qwen.base_url, api_key="none", max_retries=0) as client:
        made = client.completions.create(
            model=live_qwen.model,
            prompt="def fibonacci(n):\n    if n < 2:\n        return n\n    return ",
            suffix="\n\n\nprint([fibonacci(n) for n in range(10)])\n",
            max_tokens=32,
            temperature=0,
        )
    middle = made.choices[0].text
    assert made.choices[0].finish_reason == "stop"
    names: dict[str, Any] = {}
    exec(f"def fibonacci(n):\n    if n < 2:\n        return n\n    return {middle}", names)
    assert [names["fibonacci"](n) for n in range(10)] == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]
