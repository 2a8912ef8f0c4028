// What the rest of the page's script stands on: elements, data blocks, sortable tables.
// Text from data only ever becomes a text node or an attribute that holds no script and no address.

const $ = (id) => document.getElementById(id);
const WORDS = (name) => name.replaceAll("_", " ");
const COLOURS = $("colours").textContent.split(" ");

/** An element with children; strings among them become text. */
function make(tag, className = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A square in a policy's colour, the same as in the figures. */
function swatch(policy) {
  const made = make("span", "swatch");
  made.style.setProperty("display", "inline-block");
  made.style.setProperty("background-color", COLOURS[policy]);
  made.ariaHidden = "true";
  return made;
}

const blocks = new Map();
const KEPT_BLOCKS = 24;

/** The value of a data block, null where the page has none of that name. The last few stay decoded. */
function block(name) {
  if (!blocks.has(name)) {
    blocks.set(name, decode(name));
    if (blocks.size > KEPT_BLOCKS) blocks.delete(blocks.keys().next().value);
  }
  return blocks.get(name);
}

async function decode(name) {
  const source = $(`chunk-${name}`);
  if (!source) return null;
  const bytes = Uint8Array.from(atob(source.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** The number that a cell begins with ("92.4 % (…)", "< 0.0001", "−3.1"), null where it begins with none. */
function numberIn(cell) {
  if (cell.dataset.key !== undefined) return Number(cell.dataset.key);
  const text = cell.textContent.trim().replace(/^[<=] */, "").replace("−", "-").replace(/,(?=\d{3}\b)/g, "");
  const found = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?/i.exec(text);
  return found ? Number(found[0]) : null;
}

const isBlank = (cell) => ["", "–", "none"].includes(cell.textContent.trim());
const byText = new Intl.Collator("en", { numeric: true }).compare;

/** Sort a table's rows by a column: numbers first largest, text first A; a second press turns it round. */
function sortBy(table, column, head) {
  const rows = [...table.tBodies[0].rows];
  const cells = rows.map((row) => row.cells[column]);
  const numeric = cells.some((cell) => !isBlank(cell)) && cells.every((cell) => isBlank(cell) || numberIn(cell) !== null);
  const now = head.getAttribute("aria-sort");
  const direction = now ? (now === "descending" ? "ascending" : "descending") : numeric ? "descending" : "ascending";
  const sign = direction === "ascending" ? 1 : -1;
  const keyed = rows.map((row, at) => ({ row, at, cell: cells[at] }));
  keyed.sort((a, b) => {
    // What is not known stands last either way; equal rows keep their order.
    if (isBlank(a.cell) !== isBlank(b.cell)) return isBlank(a.cell) ? 1 : -1;
    const order = numeric
      ? numberIn(a.cell) - numberIn(b.cell)
      : byText(a.cell.textContent.trim(), b.cell.textContent.trim());
    return sign * order || a.at - b.at;
  });
  table.tBodies[0].append(...keyed.map((each) => each.row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction);
}

// What is folded only to keep the top short is printed all the same.
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details.print")) details.open = true;
});

for (const table of document.querySelectorAll("table.sortable")) {
  if (table.tBodies[0].rows.length < 2) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (head.dataset.sort === "no") return;
    const button = make("button", "", ...head.childNodes);
    button.type = "button";
    button.addEventListener("click", () => sortBy(table, column, head));
    head.append(button);
  });
}
