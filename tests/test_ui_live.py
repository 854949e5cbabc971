"""The page of the real `rrtf-serve` on a real model, in a real browser: both flows, and what a stop stops."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from browser import Visit, chromium, ready, visiting
from live import LiveServer, rrtf_serve
from playwright.sync_api import Browser, expect

from ui.about import snippets
from ui.complete import EXAMPLES, MARKER

pytestmark = pytest.mark.browser

SLOW = 60_000  # ms; a cold model on two busy cores


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, live_server: LiveServer) -> Iterator[Visit]:
    with visiting(browser, live_server.address) as visit:
        ready(visit)
        yield visit


def busy(server: LiveServer, seconds: float = 1.0) -> float:
    """How many cores the server uses: an engine at work takes some, an idle one none."""
    return float(psutil.Process(server.process.pid).cpu_percent(seconds)) / 100


def test_the_root_leads_to_the_page_and_nothing_complains(visit: Visit, live_server: LiveServer) -> None:
    assert visit.page.url == f"{live_server.address}/ui/"
    for tab in ("Complete", "Model"):
        visit.open_tab(tab)
        visit.page.wait_for_timeout(300)
    card = visit.page.locator("#card")
    for text in ("smollm2-135m-instruct", "int8", "Apache-2.0", f"{live_server.address}/v1"):
        expect(card).to_contain_text(text)
    assert visit.complaints == []
    assert {urlsplit(url).netloc for url in visit.asked} == {urlsplit(live_server.address).netloc}


def test_a_chat_with_the_model(visit: Visit) -> None:
    visit.ask("Write a Python function that adds two numbers.")
    expect(visit.chat_status).to_have_text(
        re.compile(r"^(Cut at 1024 tokens.* )?\d+ tokens? in"), timeout=SLOW
    )
    assert len(visit.answers.inner_text()) > 20
    first = visit.answers.inner_text()
    visit.ask("Now subtract them.")
    expect(visit.answers).to_have_count(2, timeout=SLOW)
    assert visit.answers.first.inner_text() == first


def test_stop_stops_the_engine(visit: Visit, live_server: LiveServer) -> None:
    visit.page.locator("#chat-settings").get_by_text("Settings").click()
    # Greedy, this model never ends this answer: more than 1,500 tokens, longer than the test needs.
    visit.page.locator("#chat-settings").get_by_text("Precise").click()
    limit = visit.page.get_by_role("spinbutton", name="number input for Max tokens").first
    limit.fill("4096")
    limit.blur()
    temperature = visit.page.get_by_role("spinbutton", name="number input for Temperature").first
    expect(temperature).to_have_value("0")
    visit.ask("Write a very long story about every number from one to a thousand. List each of them.")
    expect(visit.answers).to_contain_text(re.compile(r"\w+\W+\w+"), timeout=SLOW)
    working = busy(live_server)
    visit.page.get_by_role("button", name="Stop").click()
    expect(visit.chat_status).to_have_text("Stopped.")
    time.sleep(0.5)
    assert working > 0.3
    assert busy(live_server) < working / 4
    # The engine answers the next one at once: nothing of the stopped one is left in its way.
    started = time.monotonic()
    reply = httpx.post(
        f"{live_server.base_url}/completions", json={"prompt": "1, 2,", "max_tokens": 1}, timeout=30
    )
    assert reply.status_code == 200
    assert time.monotonic() - started < 5


def test_code_goes_on_at_the_end(visit: Visit) -> None:
    visit.open_tab("Complete")
    code = "def add(a, b):\n    return"
    visit.write(code)
    visit.page.locator("#fill").click()
    expect(visit.complete_status).to_have_text(re.compile(r"\d+ tokens? in"), timeout=SLOW)
    assert visit.code().startswith(code)
    assert len(visit.code()) > len(code)


def test_a_model_without_fill_in_the_middle_is_told_from_the_start(visit: Visit) -> None:
    visit.open_tab("Complete")
    expect(visit.page.get_by_text("It can't fill in the middle.")).to_be_visible()
    assert "FILL_HERE" not in visit.code()
    visit.write("a = <FILL_HERE>\n")
    visit.page.locator("#fill").click()
    expect(visit.page.get_by_role("alert")).to_contain_text("can't fill in the middle: remove <FILL_HERE>")


def test_a_question_beyond_the_context_gets_the_server_s_numbers(visit: Visit) -> None:
    visit.ask("word " * 20_000)
    expect(visit.page.get_by_role("alert")).to_contain_text("maximum context length", timeout=SLOW)


def test_an_open_page_does_not_hold_up_the_server_s_end(browser: Browser) -> None:
    with (
        rrtf_serve("smollm2-135m-instruct", env={"RRTF_API_KEYS": "good-key"}) as server,
        visiting(browser, f"{server.address}/ui") as visit,
    ):
        visit.page.get_by_label("API key").fill("good-key")
        visit.page.get_by_role("button", name="Sign in").click()
        ready(visit)
        assert httpx.get(f"{server.address}/ui/config").status_code == 401
        assert httpx.post(f"{server.address}/ui/gradio_api/queue/join", json={}).status_code == 401
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(10)  # of the 30 s that requests at work are given


def run_javascript(browser: Browser, code: str) -> list[str]:
    """What `code` logs."""
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.evaluate(code)
    page.close()
    return said


@pytest.mark.slow
def test_every_example_works_on_the_default_model(browser: Browser, live_qwen: LiveServer) -> None:
    filled: dict[str, str] = {}
    with visiting(browser, f"{live_qwen.address}/ui") as visit:
        ready(visit)
        visit.open_tab("Complete")
        for example in EXAMPLES:
            visit.page.get_by_role("button", name=example.label).click()
            expect(visit.complete_status).to_have_count(0)
            expect(visit.page.locator("#editor .cm-content")).to_contain_text(example.code[:20])
            visit.page.locator("#fill").click()
            expect(visit.complete_status).to_have_text(re.compile(r"^\d+ tokens? in"), timeout=SLOW)
            filled[example.label] = visit.code()
            before, _, after = example.code.partition(MARKER)
            assert visit.code().startswith(before) and visit.code().endswith(after)
    primes = io.StringIO()
    with redirect_stdout(primes):
        exec(filled["Fill a function body"], {})
    assert primes.getvalue() == "[2, 3, 5, 7, 11, 13, 17, 19, 23, 29]\n"
    assert run_javascript(browser, filled["Fill one expression"]) == ["2"]
    fizz = io.StringIO()
    with redirect_stdout(fizz):
        exec(filled["Continue at the end"], {})
    wanted = [("Fizz" * (n % 3 == 0) + "Buzz" * (n % 5 == 0)) or str(n) for n in range(1, 16)]
    assert fizz.getvalue().split() == wanted


@pytest.mark.slow
def test_the_model_pane_s_curl_works_on_the_default_model(live_qwen: LiveServer) -> None:
    ways = snippets(live_qwen.model, live_qwen.base_url, keyed=False, infill=True)
    command = ["curl", "-sS", *shlex.split(ways["curl"].replace("\\\n", " "))[1:]]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    fib: dict[str, object] = {}
    exec("def fib(n):\n    " + answer["choices"][0]["text"], fib)
    assert fib["fib"](10) == 55  # type: ignore[operator]
    assert answer["choices"][0]["finish_reason"] == "stop"
