"""A real browser for the tests that need one, or the reason why there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

try:
    from playwright.sync_api import Browser, sync_playwright
except ImportError:
    sync_playwright = None

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
OPTIONS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def missing() -> str:
    """What these tests need and this machine does not have, or an empty text."""
    if sync_playwright is None:
        return "playwright is not installed: pip install playwright"
    return "" if CHROMIUM else "chromium is not installed (Debian: apt-get install chromium)"


def need_a_browser() -> None:
    """Skip the test without one; fail it where CHARLM_BROWSER says that there must be one."""
    if reason := missing():
        (pytest.fail if os.environ.get("CHARLM_BROWSER") == "required" else pytest.skip)(reason)


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless Chromium. Fixtures hold it for a module only: nbclient needs the event loop."""
    need_a_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()
