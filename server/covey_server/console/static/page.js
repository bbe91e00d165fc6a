// What every page does: the menu on narrow screens, questions before forms, copying, relative times.
(() => {
  "use strict";

  const setMenu = (open) => {
    document.body.classList.toggle("menu-open", open);
    document.querySelector(".menu-button")?.setAttribute("aria-expanded", String(open));
  };

  document.addEventListener("click", async (event) => {
    if (!(event.target instanceof Element)) return;
    if (event.target.closest(".menu-button")) {
      setMenu(!document.body.classList.contains("menu-open"));
    }
    if (event.target.closest("[data-back]")) history.back();
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      try {
        await navigator.clipboard.writeText(copy.dataset.copy);
        copy.classList.add("copied");
        setTimeout(() => copy.classList.remove("copied"), 1200);
      } catch {
        getSelection()?.selectAllChildren(copy.parentElement); // no clipboard without HTTPS: the text is at least selected
      }
    }
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") setMenu(false);
  });

  document.addEventListener("submit", (event) => {
    const form = event.target;
    const dialog = document.querySelector("dialog.confirm");
    if (!(form instanceof HTMLFormElement) || !form.dataset.confirm || !dialog) return;
    event.preventDefault();
    dialog.querySelector("#confirm-question").textContent = form.dataset.confirm;
    dialog.querySelector('button[value="yes"]').textContent = form.dataset.confirmLabel;
    dialog.returnValue = "";
    dialog.addEventListener("close", () => dialog.returnValue === "yes" && form.submit(), { once: true });
    dialog.showModal();
  });

  // The same rule as formats.py `ago`.
  const span = (seconds) => {
    for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
      if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
    }
    return seconds >= 5 ? `${Math.floor(seconds)} s` : "";
  };
  const skew = Date.now() - Number(document.body.dataset.now || Date.now()); // the server's clock is the one that counts
  const ago = (time) => {
    const seconds = (Date.now() - skew - Date.parse(time.dateTime)) / 1000;
    const text = span(Math.abs(seconds));
    return text ? (seconds >= 0 ? `${text} ago` : `in ${text}`) : "just now";
  };
  const tell = () => {
    for (const time of document.querySelectorAll("time[datetime]")) time.textContent = ago(time);
  };
  document.addEventListener("covey:times", tell);
  setInterval(tell, 5000);
})();
