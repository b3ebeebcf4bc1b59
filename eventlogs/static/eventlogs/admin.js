/* What makes the pages of event logs handier. All of them work without it. */
"use strict";

// Copy buttons are there only where they work.
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

// The slider says where it is while it moves, and goes there when it is let go.
for (const form of document.querySelectorAll("[data-travel]")) {
    const slider = form.querySelector("input[type=range]");
    const shown = form.querySelector("output");
    form.querySelector("button").hidden = true;
    slider.addEventListener("input", () => { shown.textContent = slider.value; });
    slider.addEventListener("change", () => {
        // The page that comes has the focus where it was, for the next press of a key.
        sessionStorage.setItem("eventlogs-slider", "1");
        form.action = location.pathname;  // a place in the address would take the focus away
        form.requestSubmit();
    });
    if (sessionStorage.getItem("eventlogs-slider")) {
        sessionStorage.removeItem("eventlogs-slider");
        slider.focus({ preventScroll: true });
    }
    // A page that the browser kept comes back as it was left: with the slider moved.
    window.addEventListener("pageshow", () => {
        slider.value = slider.defaultValue;
        shown.textContent = slider.value;
    });
}

// An address that names an event and no place on the page shows the event.
const selected = document.querySelector(".el-selected");
const [opened] = performance.getEntriesByType("navigation");
if (selected && !location.hash && opened?.type === "navigate"
        && new URLSearchParams(location.search).has("event")) {
    selected.scrollIntoView();
}

// Tab stops at a block that scrolls only where it has something to scroll.
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

// The arrow keys go to the previous and the next event, or page.
document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) {
        return;
    }
    if (event.target.closest("input, select, textarea, [contenteditable]")) {
        return;
    }
    // In a block that scrolls sideways they scroll it.
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
