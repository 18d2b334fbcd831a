"use strict";
// The one thing that takes a script: to hide rows that do not hold what is typed. Everything else works without.
const field = document.getElementById("filter");
const rows = [...document.querySelectorAll("tbody tr")];
const boxes = [...document.querySelectorAll("details")];
const before = boxes.map((box) => box.open);
field.hidden = false;
field.addEventListener("input", () => {
  const wanted = field.value.trim().toLowerCase();
  for (const row of rows) row.hidden = wanted !== "" && !row.textContent.toLowerCase().includes(wanted);
  boxes.forEach((box, n) => {
    box.open = wanted === "" ? before[n] : box.querySelector("tbody tr:not([hidden])") !== null;
  });
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== field) {
    event.preventDefault();
    field.focus();
  } else if (event.key === "Escape" && document.activeElement === field) {
    field.value = "";
    field.dispatchEvent(new Event("input"));
    field.blur();
  }
});
