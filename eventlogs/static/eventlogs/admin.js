/* Conveniences of the pages of event logs. All pages work without this script. */
"use strict";

// Show the copy buttons only if the browser lets a page write to the clipboard.
for (const button of document.querySelectorAll("[data-copy], [data-copy-beside]")) {
    if (!navigator.clipboard) {
        break;
    }
    const label = button.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
        const text = button.dataset.copy ?? button.parentElement.querySelector("pre").textContent;
        await navigator.clipboard.writeText(text);
        button.textContent = "✓";
        setTimeout(() => { button.textContent = label; }, 1200);
    });
}

// The slider shows its event while it moves, and opens it on release.
for (const form of document.querySelectorAll("[data-travel]")) {
    const slider = form.querySelector("input[type=range]");
    const shown = form.querySelector("output");
    form.querySelector("button").hidden = true;
    slider.addEventListener("input", () => { shown.textContent = slider.value; });
    slider.addEventListener("change", () => {
        // The next page puts the focus back on the slider, for the next key.
        sessionStorage.setItem("eventlogs-slider", "1");
        form.action = location.pathname;  // a fragment would take the focus away
        form.requestSubmit();
    });
    if (sessionStorage.getItem("eventlogs-slider")) {
        sessionStorage.removeItem("eventlogs-slider");
        slider.focus({ preventScroll: true });
    }
    // A page from the browser's cache still has the slider where it was moved to: reset it.
    window.addEventListener("pageshow", () => {
        slider.value = slider.defaultValue;
        shown.textContent = slider.value;
    });
}

// If the address names an event and has no fragment, scroll to the event.
const selected = document.querySelector(".el-selected");
const [opened] = performance.getEntriesByType("navigation");
if (selected && !location.hash && opened?.type === "navigate"
        && new URLSearchParams(location.search).has("event")) {
    selected.scrollIntoView();
}

// Tab stops at a scrolling block only if its content is larger than the block.
const SCROLLS = ":is([role=region], [role=group])[tabindex]";
const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
        const block = target.closest(SCROLLS);
        const scrolls = block.scrollWidth > block.clientWidth + 1
            || block.scrollHeight > block.clientHeight + 1;
        block.tabIndex = scrolls ? 0 : -1;
    }
});
for (const block of document.querySelectorAll(`#content ${SCROLLS}`)) {
    watch.observe(block);
}

// The arrow keys open the previous and the next event or page.
document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) {
        return;
    }
    if (event.target.closest("input, select, textarea, [contenteditable]")) {
        return;
    }
    // In a block that scrolls sideways, the arrow keys scroll the block.
    const block = event.target.closest(SCROLLS);
    if (block && block.scrollWidth > block.clientWidth + 1) {
        return;
    }
    const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    const link = rel && document.querySelector(`#content-main a[rel=${rel}]`);
    if (link) {
        event.preventDefault();
        link.click();
    }
});
