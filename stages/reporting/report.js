"use strict";
(() => {
  const list = document.getElementById("cards");
  const controls = document.getElementById("controls");
  if (list && controls) {
    const cards = Array.from(list.children);
    const status = document.getElementById("shown");
    const number = (card, name) => Number(card.dataset[name]);
    const byName = (a, b) => a.localeCompare(b, "en", { numeric: true });
    const orders = {
      worst: (a, b) => number(a, "ap") - number(b, "ap"),
      best: (a, b) => number(b, "ap") - number(a, "ap"),
      first: (a, b) => number(b, "first") - number(a, "first"),
      pid: (a, b) => byName(a.dataset.pid, b.dataset.pid),
    };
    const update = () => {
      const outcome = controls.elements.outcome.value;
      const wanted = controls.elements.search.value.trim().toLowerCase();
      const order = orders[controls.elements.order.value];
      let shown = 0;
      for (const card of cards) {
        const fits = (outcome === "all" || card.dataset.outcome === outcome) &&
          card.dataset.pid.toLowerCase().includes(wanted);
        card.hidden = !fits;
        shown += fits ? 1 : 0;
      }
      // Ties keep the order of the file.
      cards.slice().sort((a, b) => order(a, b) || cards.indexOf(a) - cards.indexOf(b))
        .forEach((card) => list.append(card));
      status.textContent = shown === 0
        ? "No query matches: choose “all” or clear the search."
        : `${shown} of ${cards.length} queries shown`;
    };
    controls.addEventListener("input", update);
    controls.addEventListener("submit", (event) => event.preventDefault());
    controls.hidden = false;
    update();
  }
  // Print collapsed parts, too.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = Array.from(document.querySelectorAll("details:not([open])"));
    opened.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));
})();
