"""The browser fixtures, for the page on real models."""

from tests.browser.conftest import browser, window

__all__ = ["browser", "window"]
