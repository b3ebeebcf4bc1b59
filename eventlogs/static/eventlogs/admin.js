/* What makes the pages of event logs handier. All of them work without it. */
"use strict";

// Copy buttons are there only where they work.
for (const button of document.querySelectorAll("[data-copy]")) {
    if (!navigator.clipboard) {
        break;
    }
    const label = button.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(button.dataset.copy);
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

// The arrow keys go to the previous and the next event, or page.
document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) {
        return;
    }
    if (event.target.closest("input, select, textarea, [contenteditable]")) {
        return;
    }
    const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    const link = rel && document.querySelector(`#content-main a[rel=${rel}]`);
    if (link) {
        event.preventDefault();
        link.click();
    }
});
