"""
Accessibility: the rules of axe-core, and rules that it does not have: the size of targets on a
phone, blocks that scroll, text that is cut off, and text from right to left.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.accounts import Account, Noted, Opened
from tests.admin.test_logs import LIST, of
from tests.browser.test_looks import pages as pages

pytestmark = pytest.mark.browser

NARROW = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
LOOKS: dict[str, dict[str, Any]] = {
    "wide light": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "light"},
    "wide dark": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"},
    "narrow light": {**NARROW, "color_scheme": "light"},
    "narrow dark": {**NARROW, "color_scheme": "dark"},
}
# Of all rules. The header and the sidebar are Django's: violations in them are on each page of its
# admin.
RULES = {
    "rules": {"target-size": {"enabled": True}},
    "resultTypes": ["violations"],
    "preload": False,  # about style sheets, which the policy of the tests forbids scripts to load
}
OURS = ["#content", ".breadcrumbs-of-eventlogs"]
# Pages of Django with a part of ours, or none.
PARTS = {"row": [".el-latest-events"], "rows": [], "index": []}

OPEN_ALL = "document.querySelectorAll('#content-main details').forEach((each) => each.open = true)"

# Small targets: controls that are no part of a sentence (WCAG 2.5.8 excepts those that are).
SMALL = """
(least) => [...document.querySelectorAll(
    "#content-main :is(a, button, input, select, summary), #content h1 button")]
    .filter((each) => each.checkVisibility() && each.type !== "hidden")
    .filter((each) => !(each.matches("p a, dd a, li a:not(.el-index)")
        && !each.matches(".el-links a, .el-more a")))
    .map((each) => each.matches(".el-card-link") && innerWidth < 1024 ? each.closest("tr") : each)
    .map((each) => [each.outerHTML.slice(0, 80), each.getBoundingClientRect()])
    .filter(([, box]) => box.height < least || box.width < Math.min(least, 32))
    .map(([html, box]) => `${html}: ${box.width} x ${box.height}`)
"""

# Elements that exceed the window or are cut off, and that no scrolling can reveal.
CUT_OFF = """
() => [...document.querySelectorAll("#content, #content *")]
    .filter((each) => each.checkVisibility() && !each.closest(".el-hidden, .el-word, thead"))
    // A card leads to all of its event, and a field scrolls by itself.
    .filter((each) => !each.matches(".el-events .el-json code, input"))
    .filter((each) => {
        const style = getComputedStyle(each);
        const clips = (value) => value === "hidden" || value === "clip";
        if (clips(style.overflowX) && each.scrollWidth > each.clientWidth + 1) { return true; }
        if (clips(style.overflowY) && each.scrollHeight > each.clientHeight + 1) { return true; }
        for (let at = each.parentElement; at; at = at.parentElement) {
            if (/auto|scroll/.test(getComputedStyle(at).overflowX)) { return false; }
        }
        const box = each.getBoundingClientRect();
        return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1);
    })
    .map((each) => each.outerHTML.slice(0, 120))
"""

# Blocks that scroll must be reachable by keyboard and have a name.
MUTE = """
() => [...document.querySelectorAll("#content *")]
    .filter((each) => each.checkVisibility())
    .filter((each) => {
        const style = getComputedStyle(each);
        return (/auto|scroll/.test(style.overflowX) && each.scrollWidth > each.clientWidth + 1)
            || (/auto|scroll/.test(style.overflowY) && each.scrollHeight > each.clientHeight + 1);
    })
    .filter((each) => each.tabIndex !== 0 || !each.role
        || !(each.ariaLabel || each.getAttribute("aria-labelledby")))
    .map((each) => each.outerHTML.slice(0, 120))
"""

# The times in our own text; the project formats those inside of payloads and states.
TIMES = """
() => {
    const content = document.querySelector("#content").cloneNode(true);
    content.querySelectorAll("pre, code, dd[dir], .el-json, .field-box, .readonly, .fieldBox")
        .forEach((each) => each.remove());
    return content.textContent.match(/\\d\\d:\\d\\d:\\d\\d(\\.\\d+)?( UTC)?/g) ?? [];
}
"""

# The left edges of texts in an element, in pixels; each is searched behind the last.
LEFTS = """
(element, texts) => {
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    const found = [];
    let wanted = 0;
    while (wanted < texts.length && walker.nextNode()) {
        let from = 0, at;
        while (wanted < texts.length
                && (at = walker.currentNode.data.indexOf(texts[wanted], from)) >= 0) {
            const range = document.createRange();
            range.setStart(walker.currentNode, at);
            range.setEnd(walker.currentNode, at + texts[wanted].length);
            found.push(range.getBoundingClientRect().left);
            from = at + texts[wanted++].length;
        }
    }
    return found;
}
"""


def axe(page: Page, parts: list[str] = OURS) -> list[str]:
    """Return the violations that axe-core finds in our parts of a page."""
    if not parts:
        return []
    page.evaluate("scrollTo(0, 0)")
    script = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(script)
    where = {"include": [[each] for each in parts]}
    found = page.evaluate("([where, rules]) => axe.run(where, rules)", [where, RULES])
    return [
        f"{each['id']}: {node['html'][:120]}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


@pytest.fixture
def wild(visit: Any) -> dict[str, str]:
    """The addresses of the pages with long names and texts from right to left."""
    from tests.browser.wild import wild_log  # the test registers an aggregate

    log_id = wild_log()
    return {
        "list": LIST,
        "name": of(log_id, "?event=0"),
        "hundreds of fields": of(log_id, "?event=1"),
        "deep and long": of(log_id, "?event=2"),
        "from right to left": of(log_id, "?event=3"),
        "end": of(log_id),
    }


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_on_any_page(visit, pages, wild, admin_user, complaints, look):
    complaints.expected += ["Applying inline style", "style-src"]  # axe-core's own styles
    page = visit(admin_user, **LOOKS[look])
    wrong = []
    for name, where in {**pages, **wild}.items():
        page.goto(where)
        page.evaluate(OPEN_ALL)
        wrong += [f"{name}: {each}" for each in axe(page, PARTS.get(name, OURS))]

    assert not wrong, "\n".join(wrong)


def test_axe_finds_an_image_without_a_text(page):
    page.goto(LIST)
    page.evaluate("document.querySelector('#content-main').append(document.createElement('img'))")

    assert any(each.startswith("image-alt") for each in axe(page))


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without scripts"])
def test_on_a_phone_nothing_is_cut_off_and_scrollable_parts_can_be_reached(
    visit, pages, wild, admin_user, scripts
):
    page = visit(admin_user, **NARROW, java_script_enabled=scripts)
    wrong = []
    for name, where in {**pages, **wild}.items():
        if name in PARTS:
            continue
        page.goto(where)
        page.evaluate(OPEN_ALL)
        wrong += [f"{name}: cut off: {each}" for each in page.evaluate(CUT_OFF)]
        page.wait_for_timeout(0)
        wrong += [f"{name}: not reached: {each}" for each in page.evaluate(MUTE)]
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wrong.append(f"{name}: wider than the window")

    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("look", "least"), [("narrow light", 44), ("wide light", 24)])
def test_tap_targets_are_large_enough(visit, pages, admin_user, look, least):
    page = visit(admin_user, **LOOKS[look])
    wrong = []
    for name in ("logs", "log", "log, first page", "log without a state"):
        page.goto(pages[name])
        wrong += [f"{name}: {each}" for each in page.evaluate(SMALL, least)]

    assert wrong == []


def test_every_time_has_its_zone(visit, pages, wild, admin_user):
    page = visit(admin_user)
    bare = []
    for name, where in {**pages, **wild}.items():
        page.goto(where)
        found = page.evaluate(TIMES)
        bare += [f"{name}: {each}" for each in found if not each.endswith("UTC")]
        if name in ("logs", "log", "events", "projection", "row", "list", "end"):
            assert found, name

    assert bare == []


def test_a_card_shows_all_values_of_a_row_and_links_to_its_log(visit, reader, wild):
    page = visit(reader, **NARROW)
    page.goto(LIST)
    card = page.get_by_role("row").nth(1)
    for label in ("type", "version", "created", "last event", "state"):
        expect(card.locator(f"[data-label='{label}']")).to_be_visible()
    expect(card).to_contain_text("305 values")
    expect(card).to_contain_text("UTC")
    box = card.bounding_box()
    assert box is not None
    assert box["width"] <= 390
    # The link of the log lies over all of its card, so a click hits it.
    card.locator("[data-label=state]").click(force=True)

    expect(page.get_by_role("heading", name="State as of event 5")).to_be_visible()


def lefts(page: Page, selector: str, *texts: str) -> list[float]:
    found: list[float] = page.locator(selector).evaluate(LEFTS, list(texts))
    assert len(found) == len(texts), (selector, found)
    return found


def test_right_to_left_text_does_not_reorder_the_text_beside_it(visit, reader):
    log_id = Account.logs.create(
        Opened("ada"),
        Noted({"all": ["א", "ב", 7, {"ג": "ד"}], "ה": 8}),
        metadata={"user": "אבג (1)"},
    ).log_id
    page = visit(reader)
    page.goto(of(log_id, "?event=1"))
    payload = page.locator("#event-1 pre").first
    expect(payload).to_contain_text("א")
    [name, number] = lefts(page, "#event-1 > details pre >> nth=0", "ה", "8")
    assert name < number
    [by, actor] = lefts(page, "#event-1 .el-actor", "by", "אבג")
    assert by < actor


def test_texts_of_one_line_stay_in_their_order(visit, reader, wild):
    page = visit(reader)
    page.goto(wild["from right to left"])
    line = page.locator("#event-3 ins").filter(has_text="א")
    expect(line).to_have_count(1)
    found = line.evaluate(LEFTS, ["א", "ב", "7"])

    assert found == sorted(found)
    assert len(set(found)) == 3


def test_a_right_to_left_value_is_aligned_right(visit, reader, wild):
    page = visit(reader)
    page.goto(wild["name"])
    value = page.locator(".el-state dd").first

    expect(value).to_have_css("direction", "rtl")
    [word, number] = value.evaluate(LEFTS, ["שלום", "123"])
    assert word > number


def test_a_cut_payload_is_shown_whole_if_its_event_is_selected(visit, reader):
    text = "word " * 10_000
    log_id = Account.logs.create(Opened("ada"), Noted(text), Opened("x")).log_id
    page = visit(reader)
    page.goto(of(log_id))
    page.locator("#event-1 summary").click()
    expect(page.locator("#event-1 .el-copy")).to_have_count(0)
    page.get_by_role("link", name="Show the whole payload").click()

    whole = page.locator("#event-1 pre").first.evaluate("(each) => JSON.parse(each.textContent)")
    assert whole == {"note": text}
    expect(page.get_by_role("link", name="Show the whole payload")).to_have_count(0)
