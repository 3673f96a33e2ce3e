"use strict";
// Sorting, moving between numbers, and the records behind each. What a record says is only ever set as text.

const store = JSON.parse(document.getElementById("records").textContent);
const records = new Map(store.records.map((record) => [record.cell.name, record]));
const dialog = document.getElementById("dialog");

function element(name, text = "", ...children) {
  const made = document.createElement(name);
  made.textContent = text;
  made.append(...children);
  return made;
}

/** Returns the part of a record that a path names: `size.macs`, or `latency[batch=1].ms` for the item of a list. */
function part(record, path) {
  return path.split(".").reduce((value, step) => {
    const [, name, key, wanted] = /^(\w+)(?:\[(\w+)=(\d+)\])?$/.exec(step);
    const inner = value !== null && typeof value === "object" && Object.hasOwn(value, name) ? value[name] : null;
    return key && Array.isArray(inner) ? (inner.find((item) => item[key] === Number(wanted)) ?? null) : inner;
  }, record);
}

function shown(value) {
  if (value === null || value === undefined) return "none";
  return Array.isArray(value) ? value.map(shown).join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** Returns a record as its file has it: with its configuration, which the page holds once for all. */
function whole(record) {
  const { provenance } = record;
  const config = typeof provenance.config === "number" ? { config: store.configs[provenance.config] } : {};
  return { ...record, provenance: { ...provenance, ...config } };
}

function facts(record) {
  const { provenance, cost } = record;
  const packages = Object.entries(provenance.packages ?? {}).map((entry) => entry.join(" "));
  return {
    "Method": record.cell.method,
    "Size": shown(record.cell.size),
    "Seed": shown(record.cell.seed),
    "Device": cost ? `${shown(cost.device_name)}, ranks ${shown(cost.ranks)}, threads for each ${shown(cost.threads_per_rank)}` : "none",
    "Commit": shown(provenance.git_commit) + (provenance.git_dirty ? ", with changes that were not committed" : ""),
    "Config": shown(provenance.config_sha256),
    "Ended": shown(provenance.ended_utc),
    "Versions": [`Python ${shown(provenance.python)}`, ...packages].join(", "),
    "Repeat it": shown(provenance.command),
  };
}

function described(record) {
  const list = element("dl");
  list.className = "facts";
  for (const [name, text] of Object.entries(facts(record))) {
    list.append(element("div", "", element("dt", name), element("dd", "", element(name === "Repeat it" ? "code" : "span", text))));
  }
  const details = element("details", "", element("summary", "The whole record"));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(element("pre", JSON.stringify(whole(record), null, 2)));
  });
  return [list, details];
}

function recordDetails(name, reads) {
  const record = records.get(name);
  const details = element("details", "", element("summary", "", element("code", name), element("span", shown(part(record, reads)))));
  details.dataset.record = name;
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(...described(record));
  });
  return details;
}

function named(row) {
  const name = row.cells[0].textContent.replace(/ \([a-z](, [a-z])*\)$/, ""); // less the marks of its footnotes
  return [name, row.cells[0].dataset.more].filter(Boolean).join(", ");
}

function open(button) {
  const cell = button.closest("td");
  const heading = cell && cell.closest("table").tHead.rows[0].cells[cell.cellIndex];
  const title = cell ? `${named(cell.parentElement)}: ${heading.textContent}` : button.dataset.title;
  const names = button.dataset.records.split(" ").filter((name) => records.has(name));
  document.getElementById("dialog-title").textContent = title;
  document.getElementById("dialog-number").textContent = button.textContent;
  const from = names.length === 1 ? "1 record" : `${names.length} records`;
  const how = cell ? heading.dataset.how : button.dataset.how;
  document.getElementById("dialog-how").textContent = button.dataset.source ?? `From ${from}, the key ${button.dataset.reads}: ${how}.`;
  document.getElementById("dialog-records").replaceChildren(...names.map((name) => recordDetails(name, button.dataset.reads)));
  if (names.length === 1) document.querySelector("#dialog-records details").open = true;
  dialog.showModal();
  dialog.scrollTop = 0;
}

/** Sorts by a column, blanks last; numbers by the value behind what is printed. */
function sort(heading) {
  const table = heading.closest("table");
  const body = table.tBodies[0];
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  const numeric = heading.classList.contains("n");
  const key = (row) => (numeric ? row.cells[heading.cellIndex].dataset.value : row.cells[heading.cellIndex].textContent.trim()) ?? "";
  const compare = numeric ? (a, b) => Number(a) - Number(b) : (a, b) => a.localeCompare(b, "en", { numeric: true });
  const rows = [...body.rows].sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    return a === "" || b === "" ? (a === "") - (b === "") : (ascending ? 1 : -1) * compare(a, b);
  });
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  body.append(...rows);
}

/** Moves from one number of a table to the next in the direction of an arrow key. */
function move(event) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const cell = event.target.closest("td");
  if (!steps[event.key] || !cell) return;
  const [down, right] = steps[event.key];
  const rows = [...cell.closest("tbody").rows];
  let [y, x] = [rows.indexOf(cell.parentElement) + down, cell.cellIndex + right];
  while (rows[y]?.cells[x] && !rows[y].cells[x].querySelector("button")) [y, x] = [y + down, x + right];
  const next = rows[y]?.cells[x]?.querySelector("button");
  event.preventDefault();
  if (next) focus(next);
}

/** Makes a number the one that Tab reaches in its table. */
function focus(button) {
  for (const other of button.closest("tbody").querySelectorAll("button")) other.tabIndex = -1;
  button.tabIndex = 0;
  button.focus();
}

for (const body of document.querySelectorAll("tbody")) {
  body.querySelectorAll("button").forEach((button, index) => { button.tabIndex = index ? -1 : 0; });
  body.addEventListener("keydown", move);
}
document.addEventListener("click", (event) => {
  const number = event.target.closest(".number");
  const heading = event.target.closest("thead th");
  if (number) open(number);
  else if (heading) sort(heading);
  else if (event.target === dialog || event.target.closest("#close")) dialog.close();
});
