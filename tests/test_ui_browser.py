"""The page in a real browser, over a server without a model (tests/fake_openai.py)."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import Visit, chromium, ready, visiting
from fake_openai import FILL, INNER_KEY, Fake, inner_key, page_over
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def origin_and_fake() -> Iterator[tuple[str, Fake]]:
    fake = Fake()
    with page_over(fake) as origin:
        yield origin, fake


@pytest.fixture
def fake(origin_and_fake: tuple[str, Fake]) -> Fake:
    until(lambda: origin_and_fake[1].running == 0)
    origin_and_fake[1].reset()
    return origin_and_fake[1]


@pytest.fixture
def visit(browser: Browser, origin_and_fake: tuple[str, Fake], fake: Fake) -> Iterator[Visit]:
    with visiting(browser, f"{origin_and_fake[0]}/ui") as visit:
        ready(visit)
        yield visit


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def last_messages(fake: Fake) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in fake.bodies[-1]["messages"]]


SYSTEM = ("system", "You are a helpful programming assistant.")


def test_everything_comes_from_the_server_itself_and_nothing_complains(
    visit: Visit, origin_and_fake: tuple[str, Fake]
) -> None:
    for tab in ("Complete", "Model", "Chat"):
        visit.open_tab(tab)
        visit.page.wait_for_timeout(300)
    visit.ask("hello")
    expect(visit.chat_status).to_contain_text("20 tokens")
    visit.page.wait_for_timeout(500)
    addresses = [url for url in visit.asked if not url.startswith(("data:", "blob:"))]
    assert len(addresses) > 20
    assert {urlsplit(url).netloc for url in addresses} == {urlsplit(origin_and_fake[0]).netloc}
    assert visit.complaints == []


# Chat


def test_an_answer_streams_with_its_code_highlighted(visit: Visit, fake: Fake) -> None:
    fake.delay = 0.1
    visit.ask("Write a sum.")
    expect(visit.answers).to_contain_text("Here it is")
    assert fake.running == 1, "the first words must show while the rest is still to come"
    expect(visit.chat_status).to_have_text(re.compile(r"^20 tokens in \d\.\d s · first after .* tokens/s$"))
    expect(visit.answers).to_contain_text("It returns the sum.")
    expect(visit.page.locator("#talk pre code .token.keyword").first).to_have_text("def")
    assert last_messages(fake) == [SYSTEM, ("user", "Write a sum.")]
    expect(visit.box).to_have_value("")


def test_stop_ends_the_answer_on_the_server_and_keeps_what_was_said(visit: Visit, fake: Fake) -> None:
    fake.pieces, fake.delay = 100_000, 0.02
    visit.ask("Count.")
    expect(visit.answers).to_contain_text("word5")
    visit.page.get_by_role("button", name="Stop").click()
    until(lambda: fake.running == 0)
    assert fake.left == 1
    expect(visit.chat_status).to_have_text("Stopped.")
    said = visit.answers.inner_text()
    visit.page.wait_for_timeout(500)
    assert visit.answers.inner_text() == said
    assert "word5" in said

    fake.pieces, fake.delay = 0, 0.01
    visit.ask("And now?")
    expect(visit.chat_status).to_contain_text("20 tokens")
    roles = [role for role, _ in last_messages(fake)]
    assert roles == ["system", "user", "assistant", "user"]


def test_stop_before_the_first_word_ends_the_wait(visit: Visit, fake: Fake) -> None:
    fake.delay = 60.0
    visit.ask("Think.")
    expect(visit.chat_status).to_have_text("Waiting for the model…")
    until(lambda: fake.running == 1)
    visit.page.get_by_role("button", name="Stop").click()
    until(lambda: fake.running == 0)
    expect(visit.page.get_by_role("button", name="Send")).to_be_visible()
    fake.delay = 0.01
    visit.ask("Again.")
    expect(visit.chat_status).to_contain_text("20 tokens")


def test_closing_the_page_ends_the_answer_on_the_server(
    browser: Browser, origin_and_fake: tuple[str, Fake], fake: Fake
) -> None:
    fake.pieces, fake.delay = 100_000, 0.02
    with visiting(browser, f"{origin_and_fake[0]}/ui") as visit:
        ready(visit)
        visit.ask("Count.")
        until(lambda: fake.running == 1)
    until(lambda: fake.running == 0, 15)
    assert fake.left == 1


def test_a_question_can_be_edited_and_sent_again(visit: Visit, fake: Fake) -> None:
    visit.ask("First question")
    expect(visit.chat_status).to_contain_text("20 tokens")
    visit.ask("Second question")
    expect(visit.answers).to_have_count(2)
    expect(visit.chat_status).to_contain_text("20 tokens")
    visit.page.locator("#talk").get_by_role("button", name="Edit").first.click()
    visit.page.locator("#talk textarea").fill("Better question")
    visit.page.locator("#talk").get_by_role("button", name="Submit").click()
    expect(visit.questions).to_have_count(1)
    expect(visit.questions).to_contain_text("Better question")
    expect(visit.chat_status).to_contain_text("20 tokens")
    assert last_messages(fake) == [SYSTEM, ("user", "Better question")]


def test_retry_undo_and_clear(visit: Visit, fake: Fake) -> None:
    visit.ask("A question")
    expect(visit.chat_status).to_contain_text("20 tokens")
    visit.page.locator("#talk").get_by_role("button", name="Retry").click()
    until(lambda: len(fake.bodies) == 2)
    assert fake.bodies[0] == fake.bodies[1]
    expect(visit.chat_status).to_contain_text("20 tokens")
    visit.page.locator("#talk").get_by_role("button", name="Undo").click()
    expect(visit.questions).to_have_count(0)
    expect(visit.box).to_have_value("A question")
    visit.box.press("Control+Enter")
    expect(visit.answers).to_have_count(1)
    expect(visit.chat_status).to_contain_text("20 tokens")
    visit.page.locator("#talk").get_by_role("button", name="Clear").click()
    expect(visit.questions).to_have_count(0)
    visit.ask("Anew")
    expect(visit.chat_status).to_contain_text("20 tokens")
    assert last_messages(fake) == [SYSTEM, ("user", "Anew")]


def test_settings_and_presets_reach_the_server(visit: Visit, fake: Fake) -> None:
    visit.page.locator("#chat-settings").get_by_text("Settings").click()
    visit.page.get_by_label("System prompt").fill("Answer in verse.")
    visit.page.locator("#chat-settings").get_by_text("Creative").click()
    limit = visit.page.get_by_role("spinbutton", name="number input for Max tokens")
    limit.fill("48")
    limit.blur()
    expect(visit.page.get_by_role("spinbutton", name="number input for Temperature").first).to_have_value(
        "0.8"
    )
    visit.ask("Speak.")
    expect(visit.chat_status).to_contain_text("20 tokens")
    body = fake.bodies[-1]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.8, 0.95, 48)
    assert last_messages(fake) == [("system", "Answer in verse."), ("user", "Speak.")]


def test_an_example_is_sent_when_chosen_and_can_be_stopped(visit: Visit, fake: Fake) -> None:
    fake.pieces, fake.delay = 100_000, 0.02
    visit.page.locator("#talk").get_by_text("Explain a race condition").click()
    expect(visit.answers).to_contain_text("word5")
    assert last_messages(fake)[-1][1].startswith("Explain what a race condition is")
    visit.page.get_by_role("button", name="Stop").click()
    until(lambda: fake.running == 0)
    expect(visit.chat_status).to_have_text("Stopped.")


def test_what_is_typed_during_a_retry_stays(visit: Visit, fake: Fake) -> None:
    visit.ask("A question")
    expect(visit.chat_status).to_contain_text("20 tokens")
    visit.box.fill("My next")
    visit.page.locator("#talk").get_by_role("button", name="Retry").click()
    until(lambda: len(fake.bodies) == 2)
    expect(visit.page.get_by_role("button", name="Send")).to_be_visible()
    expect(visit.box).to_have_value("My next")


def test_pasted_code_is_shown_and_sent_as_typed(visit: Visit, fake: Fake) -> None:
    code = "#include <vector>\nstd::vector<int> v;\n    v.push_back(__LINE__);"
    visit.ask(f"What is wrong?\n\n{code}")
    expect(visit.chat_status).to_contain_text("20 tokens")
    expect(visit.questions.locator("pre code")).to_have_text(re.compile(re.escape(code)))
    assert code in last_messages(fake)[-1][1]


def test_markup_in_an_answer_runs_nothing_and_fetches_nothing(
    visit: Visit, fake: Fake, origin_and_fake: tuple[str, Fake]
) -> None:
    fake.answer = (
        "![x](http://127.0.0.1:9/leak.png) <img src=x onerror=\"document.title='run'\">"
        "<script>document.title='run'</script> std::map<Key, T> done"
    )
    visit.ask("Try.")
    expect(visit.answers).to_contain_text("done")
    visit.page.wait_for_timeout(500)
    assert visit.page.title() == "RRTF code assistant"
    outside = [url for url in visit.asked if urlsplit(url).netloc == "127.0.0.1:9"]
    blocked = [said for said in visit.complaints if "Content Security Policy" in said]
    assert outside == [] or blocked
    expect(visit.answers).to_contain_text("std::map<Key, T>")


def test_a_busy_server_is_said_to_be_busy_and_the_question_kept(visit: Visit, fake: Fake) -> None:
    fake.failure = (429, {"message": "Queue full.", "code": "rate_limit_exceeded"}, {"Retry-After": "3"})
    visit.ask("Hello?")
    expect(visit.page.get_by_role("alert")).to_have_text(re.compile(r"server is busy.*Try again in 3 s\."))
    expect(visit.questions).to_have_count(0)
    expect(visit.box).to_have_value("Hello?")
    fake.failure = None
    visit.box.press("Enter")
    expect(visit.chat_status).to_contain_text("20 tokens")


def test_a_failure_in_mid_answer_keeps_what_was_said(visit: Visit, fake: Fake) -> None:
    fake.break_after = 3
    visit.ask("Hello?")
    expect(visit.page.get_by_role("alert")).to_have_text("The engine failed.")
    expect(visit.answers).to_contain_text("Here it is")
    expect(visit.page.get_by_role("button", name="Send")).to_be_visible()


@contextmanager
def mortal_page(port: int = 0, pieces: int = 100_000) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A page in a process of its own, and its origin."""
    command = [sys.executable, str(Path(__file__).with_name("fake_openai.py")), str(port), str(pieces)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_when_the_server_goes_the_conversation_stays_and_goes_on_with_the_next_one(
    browser: Browser, end: signal.Signals
) -> None:
    with mortal_page() as (process, origin), visiting(browser, f"{origin}/ui") as visit:
        ready(visit)
        visit.ask("Count.")
        expect(visit.answers).to_contain_text("word5")
        process.send_signal(end)
        expect(visit.page.get_by_role("alert")).to_contain_text("The connection to the server is gone.")
        expect(visit.page.get_by_role("button", name="Send")).to_be_visible()
        process.wait(20)
        visit.ask("Anyone?")  # of a server that takes no connection
        expect(visit.page.get_by_role("alert")).to_be_visible()
        expect(visit.box).to_have_value("Anyone?")
        expect(visit.answers).to_contain_text("word5")
        expect(visit.answers).to_be_visible()
        expect(visit.page.locator("#talk [data-testid=status-tracker]").first).to_be_hidden()
        with mortal_page(urlsplit(origin).port or 0, pieces=7):
            visit.page.wait_for_timeout(3000)  # Gradio would look for the server, and reload
            expect(visit.answers).to_contain_text("word5")
            visit.page.locator("#talk").get_by_role("button", name="Retry").click()
            expect(visit.chat_status).to_contain_text("7 tokens")
            expect(visit.questions).to_have_text(re.compile("Count."))


def test_when_the_server_goes_in_mid_fill_the_code_stays(browser: Browser) -> None:
    with mortal_page() as (process, origin), visiting(browser, f"{origin}/ui") as visit:
        ready(visit)
        visit.open_tab("Complete")
        visit.page.locator("#fill").click()
        until(lambda: "word5" in visit.code())
        process.kill()
        expect(visit.complete_status).to_contain_text("The connection to the server is gone.")
        expect(visit.page.locator("#fill")).to_be_visible()
        expect(visit.page.locator("#fill-stop")).to_be_hidden()
        assert "word5" in visit.code()


# Complete


def test_a_fill_lands_where_the_marker_stood_and_can_be_undone(visit: Visit, fake: Fake) -> None:
    visit.open_tab("Complete")
    before = visit.code()
    prefix, suffix = before.split("<FILL_HERE>")
    visit.page.locator("#fill").click()
    expect(visit.complete_status).to_contain_text("3 tokens")
    assert visit.code() == prefix + FILL + suffix
    body = fake.bodies[-1]
    assert (body["prompt"], body["suffix"]) == (prefix, suffix)
    assert suffix.endswith("\n")
    assert (body["temperature"], body["max_tokens"]) == (0.0, 128)
    visit.page.locator("#fill-undo").click()
    until(lambda: visit.code() == before)


def test_without_a_marker_the_end_goes_on_and_control_enter_starts_it(visit: Visit, fake: Fake) -> None:
    visit.open_tab("Complete")
    visit.write("def f():\n")
    visit.page.locator("#editor .cm-content").press("Control+Enter")
    expect(visit.complete_status).to_contain_text("3 tokens")
    assert visit.code() == f"def f():\n{FILL}"
    assert fake.bodies[-1]["prompt"] == "def f():\n"
    assert "suffix" not in fake.bodies[-1]


def test_a_fill_can_be_stopped(visit: Visit, fake: Fake) -> None:
    fake.pieces, fake.delay = 100_000, 0.02
    visit.open_tab("Complete")
    before = visit.code()
    visit.page.locator("#fill").click()
    until(lambda: "word5" in visit.code())
    visit.page.locator("#fill-stop").click()
    until(lambda: fake.running == 0)
    expect(visit.complete_status).to_have_text("Stopped.")
    expect(visit.page.locator("#fill")).to_be_visible()
    assert "word5" in visit.code()
    visit.page.locator("#fill-undo").click()
    until(lambda: visit.code() == before)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("", "There is no code yet."),
        ("  <FILL_HERE>\n", "There is no code yet."),
        ("a = <FILL_HERE>\nb = <FILL_HERE>\n", "<FILL_HERE> stands in 2 places."),
    ],
)
def test_an_unclear_place_is_said_and_nothing_sent(visit: Visit, fake: Fake, code: str, said: str) -> None:
    visit.open_tab("Complete")
    visit.write(code)
    visit.page.locator("#fill").click()
    expect(visit.page.get_by_role("alert")).to_contain_text(said)
    assert visit.code() == code
    assert fake.bodies == []


def test_a_model_that_can_not_fill_says_so_and_the_editor_keeps_its_text(visit: Visit, fake: Fake) -> None:
    fake.failure = (400, {"message": "The model 'x' has no fill-in-the-middle tokens."}, {})
    visit.open_tab("Complete")
    before = visit.code()
    visit.page.locator("#fill").click()
    expect(visit.page.get_by_role("alert")).to_have_text("The model 'x' has no fill-in-the-middle tokens.")
    assert visit.code() == before
    expect(visit.page.locator("#fill")).to_be_visible()


def test_examples_and_clear_wait_until_the_fill_ends_or_is_stopped(visit: Visit, fake: Fake) -> None:
    fake.pieces, fake.delay = 100_000, 0.005
    visit.open_tab("Complete")
    pane = visit.page.locator("#complete-pane")
    names = ("Fill one expression", "Continue at the end", "Clear")
    visit.page.locator("#fill").click()
    until(lambda: "word5" in visit.code())
    for name in names:
        expect(pane.get_by_role("button", name=name)).to_be_disabled()
    visit.page.locator("#fill-stop").click()
    for name in names:
        expect(pane.get_by_role("button", name=name)).to_be_enabled()
    expect(visit.complete_status).to_have_text("Stopped.")
    pane.get_by_role("button", name="Fill one expression").click()
    until(lambda: "function average" in visit.code() and "word" not in visit.code())
    visit.page.wait_for_timeout(500)
    assert "word" not in visit.code()
    expect(visit.page.get_by_label("Language")).to_have_value("JavaScript")


def test_a_model_without_fill_in_the_middle_is_offered_none(
    browser: Browser, origin_and_fake: tuple[str, Fake], fake: Fake
) -> None:
    fake.infill = False
    with visiting(browser, f"{origin_and_fake[0]}/ui") as visit:
        ready(visit)
        visit.open_tab("Complete")
        pane = visit.page.locator("#complete-pane")
        expect(pane.get_by_role("button", name="Continue at the end")).to_be_visible()
        expect(pane.get_by_role("button", name="Fill one expression")).to_be_hidden()
        expect(pane.get_by_text("It can't fill in the middle.")).to_be_visible()
        assert "FILL_HERE" not in pane.inner_text()
        before = visit.code()
        assert "FizzBuzz" in before
        visit.page.locator("#fill").click()
        expect(visit.complete_status).to_contain_text("3 tokens")
        assert visit.code() == before + FILL
        visit.write("a = <FILL_HERE>\nb = 2\n")
        visit.page.locator("#fill").click()
        expect(visit.page.get_by_role("alert")).to_have_text(
            "This model can't fill in the middle: remove <FILL_HERE> to continue at the end."
        )
        assert len(fake.bodies) == 1


def test_examples_set_code_and_language_and_clear_empties(visit: Visit, fake: Fake) -> None:
    visit.open_tab("Complete")
    language = visit.page.get_by_label("Language")
    visit.page.get_by_role("button", name="Fill one expression").click()
    until(lambda: "function average" in visit.code())
    expect(language).to_have_value("JavaScript")
    language.click()
    visit.page.get_by_role("option", name="Other").click()
    until(lambda: "function average" in visit.code())
    visit.page.locator("#fill-clear").click()
    until(lambda: visit.code() == "")


# Model


def test_the_model_pane_shows_the_card_and_the_ways_in(
    visit: Visit, origin_and_fake: tuple[str, Fake]
) -> None:
    visit.open_tab("Model")
    card = visit.page.locator("#card")
    for text in ("tiny-coder", "qwen2.5-coder", "int8", "508 MB", "4,096 tokens", "Apache-2.0"):
        expect(card).to_contain_text(text)
    expect(card).to_contain_text("hub:tests/<tiny>@main")
    expect(card).to_contain_text(f"{origin_and_fake[0]}/v1")
    snippet = visit.page.locator("#model-pane .cm-content:visible")
    expect(snippet).to_contain_text("curl")
    visit.open_tab("OpenAI SDK")
    expect(snippet).to_contain_text("from openai import OpenAI")
    visit.open_tab("Continue")
    expect(snippet).to_contain_text(f"apiBase: {origin_and_fake[0]}/v1")


# Looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_reader_s_colours(
    browser: Browser, origin_and_fake: tuple[str, Fake], fake: Fake, scheme: str
) -> None:
    with visiting(browser, f"{origin_and_fake[0]}/ui", color_scheme=scheme) as visit:
        ready(visit)
        colours = visit.page.evaluate(
            "['background-color', 'color'].map(name => getComputedStyle(document.body)[name].match(/\\d+/g))"
        )
    ground, text = (sum(map(int, each[:3])) for each in colours)
    assert (ground > text) == (scheme == "light")


@pytest.mark.parametrize("width", [360, 420, 768])
def test_a_narrow_page_does_not_scroll_sideways(
    browser: Browser, origin_and_fake: tuple[str, Fake], fake: Fake, width: int
) -> None:
    with visiting(browser, f"{origin_and_fake[0]}/ui", viewport={"width": width, "height": 800}) as visit:
        ready(visit)
        visit.ask("A question")
        expect(visit.chat_status).to_contain_text("20 tokens")
        for tab in ("Chat", "Complete", "Model"):
            visit.open_tab(tab)
            visit.page.wait_for_timeout(200)
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, tab


def test_on_a_narrow_page_no_icon_covers_code(
    browser: Browser, origin_and_fake: tuple[str, Fake], fake: Fake
) -> None:
    with visiting(browser, f"{origin_and_fake[0]}/ui", viewport={"width": 420, "height": 800}) as visit:
        ready(visit)
        visit.ask("A question")
        expect(visit.chat_status).to_contain_text("20 tokens")
        icon = visit.page.locator("#talk .copy_code_button").bounding_box()
        code = visit.page.locator("#talk pre code").bounding_box()
        assert icon and code and icon["y"] + icon["height"] <= code["y"]
        visit.open_tab("Complete")
        icon = visit.page.locator("#editor").get_by_role("button", name="Copy").bounding_box()
        code = visit.page.locator("#editor .cm-line").first.bounding_box()
        assert icon and code and icon["y"] + icon["height"] <= code["y"]


# Sign-in


def test_a_visitor_signs_in_with_a_key_and_out_again(browser: Browser) -> None:
    fake = Fake()
    with page_over(fake, keys={"good-key"}) as origin, visiting(browser, f"{origin}/") as visit:
        visit.page.goto(f"{origin}/ui/")
        assert visit.page.url == f"{origin}/ui/sign-in"
        visit.page.get_by_label("API key").fill("bad-key")
        visit.page.get_by_role("button", name="Sign in").click()
        expect(visit.page.get_by_role("alert")).to_have_text("This is not a key of this server.")
        visit.page.get_by_label("API key").fill("good-key")
        visit.page.get_by_role("button", name="Sign in").click()
        ready(visit)
        visit.ask("hello")
        expect(visit.chat_status).to_contain_text("20 tokens")
        visit.open_tab("Complete")
        visit.page.locator("#fill").click()
        expect(visit.complete_status).to_contain_text("tokens in")
        # Its own key in every pane, and with each visitor's key another: they share nothing that is kept.
        assert set(fake.keys) == {f"Bearer {inner_key('good-key')}"}
        visit.open_tab("Model")
        expect(visit.page.locator("#model-pane .cm-content:visible")).to_contain_text("Bearer YOUR_API_KEY")
        assert INNER_KEY not in visit.page.content()
        visit.page.get_by_role("link", name="Sign out").click()
        expect(visit.page.get_by_label("API key")).to_be_visible()
        visit.page.goto(f"{origin}/ui/")
        assert visit.page.url == f"{origin}/ui/sign-in"
