"""A headless Chromium for the tests marked `browser`, and the page as a visitor handles it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Locator, Page, Request, Response, expect, sync_playwright

SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """$CHROMIUM, else the system's Chromium or Chrome, else the one that `playwright install` fetched."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=SWITCHES)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """One visitor's page, and all that the browser asked for and complained about."""

    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open_tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    # Chat

    @property
    def box(self) -> Locator:
        return self.page.locator("#chat-box textarea")

    @property
    def answers(self) -> Locator:
        return self.page.locator("#talk .bot.message")

    @property
    def questions(self) -> Locator:
        return self.page.locator("#talk .user.message")

    @property
    def chat_status(self) -> Locator:
        return self.page.locator("#chat-status .status")

    def ask(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    # Complete

    @property
    def complete_status(self) -> Locator:
        return self.page.locator("#complete-status .status")

    def code(self) -> str:
        """The editor's whole text."""
        lines: list[str] = self.page.locator("#editor .cm-line").all_text_contents()
        return "\n".join(lines)

    def write(self, code: str) -> None:
        self.page.locator("#editor .cm-content").fill(code)


@contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """Open `url` in a fresh context; `options` are those of Playwright's new_context."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    page = context.new_page()
    visit = Visit(page)

    def asked(request: Request) -> None:
        visit.asked.append(request.url)

    def answered(response: Response) -> None:
        if response.status >= 400:
            visit.complaints.append(f"{response.status} {response.url}")

    page.on("request", asked)
    page.on("response", answered)
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.on(
        "console",
        lambda said: visit.complaints.append(said.text) if said.type in ("error", "warning") else None,
    )
    page.set_default_timeout(15_000)
    try:
        page.goto(url)
        yield visit
    finally:
        context.close()


def ready(visit: Visit) -> None:
    """Wait until the page has loaded the model's card."""
    expect(visit.box).to_be_visible()
    expect(visit.page.locator(".head .chip")).to_have_text(re.compile(r"\w"))
