"""The appearance of pages: screenshots, and the contrast of their texts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

READABLE = 4.5  # https://www.w3.org/TR/WCAG22/#contrast-minimum

# The header and the sidebar are Django's.
OURS = ".breadcrumbs-of-eventlogs, .breadcrumbs-of-eventlogs *, .messagelist *, #content *"

# Each text that is seen, with its colour and what is behind it, both as they come out: with what
# is half transparent, of ancestors too, painted over what it lies on. Controls that are off need
# no contrast; here they are the pagers' spans.
TEXTS = """
(within) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const over = (colour, alpha, below) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        const part = alpha * a / 255;
        return [r, g, b].map((value, at) => value * part + below[at] * (1 - part));
    };
    const light = (colour) => {
        const [r, g, b] = colour.map((value) => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const colours = (element) => {
        const chain = [];
        for (let each = element; each; each = each.parentElement) {
            chain.unshift(getComputedStyle(each));
        }
        let below = [255, 255, 255], alpha = 1;
        for (const style of chain) {
            alpha *= Number(style.opacity);
            below = over(style.backgroundColor, alpha, below);
        }
        return [over(chain.at(-1).color, alpha, below), below];
    };
    document.getAnimations().forEach((each) => each.finish());  // links change colour slowly
    const found = [];
    for (const element of document.querySelectorAll(within)) {
        const texts = [...element.childNodes].filter((each) => each.nodeType === Node.TEXT_NODE);
        const text = texts.map((each) => each.data.trim()).join(" ").trim();
        if (!text || !element.checkVisibility({ checkVisibilityCSS: true })) {
            continue;
        }
        if (element.matches(".el-pager > span, .el-travel > span")) {
            continue;
        }
        const [ink, paper] = colours(element);
        const [a, b] = [light(ink), light(paper)].sort((one, other) => other - one);
        found.push({
            text: text.slice(0, 40),
            where: element.tagName.toLowerCase() + (element.className && `.${element.className}`),
            ink, paper, contrast: (a + 0.05) / (b + 0.05),
        });
    }
    return found;
}
"""


def texts(page: Page, within: str = OURS) -> list[dict[str, Any]]:
    """Return the texts of a page: ``text``, ``where``, ``ink``, ``paper``, ``contrast``."""
    found: list[dict[str, Any]] = page.evaluate(TEXTS, within)
    return found


def unreadable(page: Page, within: str = OURS) -> list[str]:
    """Return the texts with too little contrast, and their contrast."""
    return [
        f"{each['where']}: {each['text']!r}, {each['contrast']:.2f}"
        for each in texts(page, within)
        if each["contrast"] < READABLE
    ]


def picture(page: Page, name: str) -> None:
    """Save a screenshot of the whole page in EVENTLOGS_SCREENSHOTS, if that is set."""
    directory = os.environ.get("EVENTLOGS_SCREENSHOTS")
    if directory:
        Path(directory).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(directory, f"{name}.png"), full_page=True)
