"""
Chromium, a server for it, and a check of its complaints.

One browser serves all tests, each of which has pages of its own. Every page comes with a strict
Content-Security-Policy. A test fails if the browser complains of anything: a violation of the
policy, an error on its console, an uncaught error of a script, a dialog.

EVENTLOGS_SCREENSHOTS names a directory that pictures of the pages are saved in; see ``looks``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.test import Client, override_settings
from pytest_django.live_server_helper import LiveServer

from tests.admin.test_logs import user
from tests.parked import parked_payment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page

# Without Playwright, these tests cannot be imported. Asking for them is an error.
collect_ignore_glob = [] if find_spec("playwright") else ["test_*.py"]

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
READS = ("view_eventlog", "view_event", "view_payload")
OPERATES = ("view_projectionstate", "operate_projections", "view_eventlog", "view_payload")
TIMEOUT = 5_000  # milliseconds to wait for the browser

# Before any script of a page and past its policy, as a script of Playwright.
REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => {
    console.error(`policy: ${event.violatedDirective} forbids ${event.blockedURI}`);
});
"""


def pytest_configure(config: pytest.Config) -> None:
    asked = config.option.markexpr
    if "browser" in asked and "not browser" not in asked and not find_spec("playwright"):
        raise pytest.UsageError(
            "The tests in a browser need Playwright: pip install playwright, or run tox -e browser."
        )


def chromium() -> str:
    """Return the path of Chromium, or end the run."""
    asked = os.environ.get("CHROMIUM")
    found = [shutil.which(name) for name in ([asked] if asked else PROGRAMS)]
    path = next(filter(None, found), None)
    if path is None:
        pytest.exit(
            f"The tests in a browser need Chromium, and {asked or ', '.join(PROGRAMS)} is not on "
            "PATH: install it (apt-get install chromium), or set CHROMIUM to its path.",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )
    return path


# For a package, not for the session: other tests of the same run find neither Playwright's event
# loop nor these settings.


@pytest.fixture(scope="package")
def browser(django_db_setup: None) -> Iterator[Browser]:
    """
    Chromium, without a window.

    Playwright's synchronous API keeps an event loop in this thread, in which Django refuses to
    use a database, so it is told not to. Nothing runs in that loop but Playwright.
    """
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=TIMEOUT)
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        # In a container there are no user namespaces, which Chromium's sandbox is made of.
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def live_server(django_db_setup: None) -> Iterator[LiveServer]:
    """pytest-django's server, which builds its middleware as it starts: with the policy."""
    with override_settings(
        MIDDLEWARE=["tests.browser.policies.strict_policy", *django_settings.MIDDLEWARE],
    ):
        server = LiveServer("localhost")
        yield server
        server.stop()


class Complaints(list[str]):
    """The complaints of the browser; ``expected`` holds parts of those that a test expects."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: list[str] = []

    def watch(self, page: Page) -> None:
        """Listen to a page."""

        def console(message: ConsoleMessage) -> None:
            place = message.location["url"]
            if place.endswith("/favicon.ico"):
                return  # browsers request it by themselves, and the admin has none
            if message.type in ("error", "warning"):
                self.append(f"{page.url}: {message.type}: {message.text} ({place})")

        def dismiss(dialog: Dialog) -> None:
            self.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("console", console)
        page.on("pageerror", lambda error: self.append(f"{page.url}: uncaught: {error}"))
        # Without a listener Playwright would dismiss it unseen.
        page.on("dialog", dismiss)

    @property
    def unexpected(self) -> list[str]:
        """The complaints that were not expected."""
        return [each for each in self if not any(part in each for part in self.expected)]


@pytest.fixture
def complaints() -> Complaints:
    return Complaints()


Visit = Callable[..., "Page"]


@pytest.fixture(autouse=True)
def visit(
    browser: Browser, live_server: LiveServer, transactional_db: None, complaints: Complaints
) -> Iterator[Visit]:
    """
    A function that opens a page, with or without a user, in its own context.

    It takes Playwright's options of a context. In the end, there must be no complaint.
    """
    contexts: list[BrowserContext] = []

    def open_page(who: User | None = None, **options: Any) -> Page:
        context = browser.new_context(base_url=live_server.url, **options)
        contexts.append(context)
        context.set_default_timeout(TIMEOUT)
        context.add_init_script(REPORT_VIOLATIONS)
        context.on("page", complaints.watch)
        if who is not None:
            client = Client()
            client.force_login(who)
            name = django_settings.SESSION_COOKIE_NAME
            value = client.cookies[name].value
            context.add_cookies([{"name": name, "value": value, "url": live_server.url}])
        return context.new_page()

    yield open_page

    for context in contexts:
        context.close()
    assert complaints.unexpected == []


@pytest.fixture
def reader(visit: Visit) -> User:
    """A user with the permissions to view logs, events and payloads."""
    return user(*READS, name="reader")


@pytest.fixture
def page(visit: Visit, reader: User) -> Page:
    """A page for the reader."""
    return visit(reader)


@pytest.fixture
def operator(visit: Visit) -> User:
    """A user with the permissions to view and operate projections."""
    return user(*OPERATES, name="grace")


@pytest.fixture
def parked(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A payment whose second event is parked."""
    return parked_payment(monkeypatch, "the amount is not ours")
