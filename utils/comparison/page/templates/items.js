// The table of items: filters, a list of which only the visible rows exist, keys.

const index = await block("index");
const ROW = 46, MARGIN = 8;  // pixels of a row; rows drawn above and below the window
const MARKS = { right: "●", wrong: "✕", some: "◐", none: "·" };
const ALL = index.ids.map((_, item) => item);
const haystack = ALL.map((item) => `${index.ids[item]}\n${index.questions[item]}\n${index.golds[item]}`.toLowerCase());
let deepHaystack = null;  // the answers' texts, made when they are first searched
let shown = ALL, active = 0, opened = -1;

const FILTERS = ["text", "deep", "level", "type", "order", "policy", "run", "outcome", "reason", "from", "to", "change"];
const control = (name) => $(`f-${name}`);
const chosen = (name) => (name === "deep" ? (control(name).checked ? "1" : "") : control(name).value);

function fill(name, choices) {
  for (const [value, text] of choices) {
    const option = make("option", "", text);
    option.value = value;
    control(name).append(option);
  }
  if (choices.length < 2) control(name).closest("label").hidden = true;
}

function fillFilters() {
  const policies = index.policies.map((name, at) => [String(at), name]);
  const levels = [...new Set(index.levels)].filter((level) => level !== null).sort((a, b) => a - b);
  const named = (list) => list.map((name, at) => [String(at), WORDS(name)]);
  fill("policy", [["", "any"], ...policies]);
  fill("run", index.runs.length > 1 ? [["", "all"], ...index.runs.map((label, at) => [String(at), label])] : []);
  fill("reason", [["", "any"], ...named(index.reasons)]);
  fill("level", levels.length ? [["", "all"], ...levels.map((level) => [String(level), String(level)])] : []);
  fill("type", index.types.length ? [["", "all"], ...named(index.types)] : []);
  fill("from", policies);
  fill("to", policies);
  control("from").value = "0";
  control("to").value = String(index.policies.length - 1);
  if (index.policies.length < 2) control("from").closest("fieldset").hidden = true;
}

/** [policy, run] of the answers that outcome and reason are asked of. */
function cells() {
  const pick = (name, count) => (chosen(name) === "" ? [...Array(count).keys()] : [Number(chosen(name))]);
  const runs = pick("run", index.runs.length);
  return pick("policy", index.policies.length).flatMap((policy) => runs.map((run) => [policy, run]));
}

const OUTCOMES = {
  right: (letters) => letters.every((letter) => letter === "1"),
  wrong: (letters) => letters.every((letter) => letter === "0"),
  mixed: (letters) => letters.includes("1") && letters.includes("0"),
};

/** Tests of an item by how many policies it is right and wrong with, all seeds asked together. */
const ONE_POLICY = {
  one_right: (kinds) => kinds.filter((kind) => kind !== "wrong").length === 1,
  one_wrong: (kinds) => kinds.filter((kind) => kind === "wrong").length === 1 && kinds.length > 1,
};
const READY = { wrong: "wrong in all", one_right: "right in one only", one_wrong: "wrong in one only" };

const right = (policy, run, item) => index.answers[policy][run].correct[item];

/** Whether an item is fixed or broken, as the filter asks, with the seed of a run. */
function changed(run, item) {
  const change = chosen("change");
  const pair = right(Number(chosen("from")), run, item) + right(Number(chosen("to")), run, item);
  return (change !== "broken" && pair === "01") || (change !== "fixed" && pair === "10");
}

/** The seed to open an item with: the filter's, else one with which it changes as asked, else the last. */
function runFor(item) {
  if (chosen("run") !== "") return Number(chosen("run"));
  if (chosen("change") === "" || changed(view.run, item)) return view.run;
  return Math.max(0, index.runs.findIndex((_, run) => changed(run, item)));
}

/** The test that an item must pass, from the controls as they stand. */
function passes() {
  const text = chosen("text").trim().toLowerCase(), asked = cells();
  const runs = chosen("run") === "" ? [...index.runs.keys()] : [Number(chosen("run"))];
  const change = chosen("change");
  const level = chosen("level"), type = chosen("type"), outcome = chosen("outcome"), reason = chosen("reason");
  const texts = chosen("deep") && deepHaystack ? deepHaystack : haystack;
  return (item) =>
    (!text || haystack[item].includes(text) || texts[item].includes(text)) &&
    (level === "" || String(index.levels[item]) === level) &&
    (type === "" || String(index.item_types[item]) === type) &&
    (outcome === "" || hasOutcome(outcome, asked, item)) &&
    (reason === "" || asked.some(([policy, run]) => String(index.answers[policy][run].reasons[item]) === reason)) &&
    (change === "" || runs.some((run) => changed(run, item)));
}

function hasOutcome(outcome, asked, item) {
  if (outcome in OUTCOMES) return OUTCOMES[outcome](asked.map(([policy, run]) => right(policy, run, item)));
  const kinds = index.policies.map((_, policy) => kindOf(policy, item)).filter((kind) => kind !== "none");
  return ONE_POLICY[outcome](kinds);
}

/** A button for each question that is asked of every comparison of several policies, with its count. */
function offerReady() {
  if (index.policies.length < 2) return;
  const all = index.policies.flatMap((_, policy) => index.runs.map((_, run) => [policy, run]));
  for (const [outcome, text] of Object.entries(READY)) {
    const count = ALL.filter((item) => hasOutcome(outcome, all, item)).length;
    const button = make("button", "", `${text} (${count.toLocaleString("en")})`);
    button.type = "button";
    button.dataset.outcome = outcome;
    button.addEventListener("click", () => { reset(); control("outcome").value = outcome; filter(); });
    $("ready").append(button);
  }
}

function rightAnswers(item) {
  return index.answers.flat().filter((each) => each.correct[item] === "1").length;
}

async function filter() {
  if (chosen("deep") && chosen("text").trim() && !deepHaystack) await readAnswers();
  shown = ALL.filter(passes());
  const order = chosen("order");
  if (order !== "file") {
    const sign = order === "few" ? 1 : -1, count = ALL.map(rightAnswers);
    shown = [...shown].sort((a, b) => sign * (count[a] - count[b]) || a - b);
  }
  for (const name of FILTERS) {
    const unset = name === "order" ? "file" : "";
    if (!["from", "to", "deep"].includes(name)) control(name).classList.toggle("on", chosen(name) !== unset);
  }
  $("count").textContent = `${shown.length.toLocaleString("en")} of ${ALL.length.toLocaleString("en")} items`;
  active = Math.max(0, shown.indexOf(opened));
  $("rows").style.setProperty("height", `${shown.length * ROW}px`);
  $("list").scrollTop = Math.max(0, active * ROW - ROW);
  draw();
  remember();
}

async function readAnswers() {
  $("count").textContent = "Reading the answers …";
  const texts = [...haystack];
  for (let start = 0; start < ALL.length; start += index.block) {
    // Not through block(): the whole of the answers need not stay decoded.
    const answers = (await decode(`answers-${start / index.block}`)) ?? [];
    answers.forEach((of, at) => {
      texts[start + at] = of.flat().map((row) => `${row?.response ?? ""}\n${row?.value ?? ""}`).join("\n").toLowerCase();
    });
  }
  deepHaystack = texts;
}

/** What a policy's mark says of an item: right with every seed, with some, with none. */
function kindOf(policy, item) {
  const letters = index.answers[policy].map((run) => run.correct[item]).filter((letter) => letter !== "-");
  if (!letters.length) return "none";
  const right = letters.filter((letter) => letter === "1").length;
  return right === letters.length ? "right" : right ? "some" : "wrong";
}

function rowOf(place) {
  const item = shown[place];
  const kinds = index.policies.map((_, policy) => kindOf(policy, item));
  const level = index.levels[item] === null ? "" : ` · level ${index.levels[item]}`;
  const type = index.item_types[item] < 0 ? "" : ` · ${WORDS(index.types[index.item_types[item]])}`;
  const row = make("div", "item-row",
    make("div", "item-text", make("span", "", index.questions[item] || index.ids[item]), make("small", "", index.ids[item] + level + type)),
    make("div", "marks-cell", ...kinds.map((kind) => make("span", `mark ${kind}`, MARKS[kind]))),
  );
  row.id = `row-${place}`;
  row.setAttribute("role", "option");
  row.ariaSelected = String(place === active);
  row.ariaPosInSet = String(place + 1);
  row.ariaSetSize = String(shown.length);
  const words = { right: "right", some: "right with some seeds", wrong: "wrong", none: "no answer" };
  row.ariaLabel = `${index.questions[item] || index.ids[item]} ${index.ids[item]}${level}${type}; ` + kinds.map((kind, at) => `${index.policies[at]} ${words[kind]}`).join(", ");
  row.style.setProperty("top", `${place * ROW}px`);
  row.addEventListener("click", async () => {
    await open(place);
    // In a narrow window the item stands below the list.
    const [item, list] = [$("item"), $("list")].map((each) => each.getBoundingClientRect());
    if (item.top >= list.bottom) $("item").scrollIntoView();
  });
  return row;
}

/** Draw the rows that the window shows. */
function draw() {
  const list = $("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - MARGIN);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + MARGIN);
  const rows = [];
  for (let place = first; place < last; place++) rows.push(rowOf(place));
  if (!shown.length) rows.push(make("p", "empty", "No item passes these filters."));
  $("rows").replaceChildren(...rows);
  list.setAttribute("aria-activedescendant", shown.length ? `row-${active}` : "");
}

/** Make a row the active one, bring it into view and show its item. */
async function open(place) {
  if (!shown.length) return;
  active = Math.max(0, Math.min(shown.length - 1, place));
  opened = shown[active];
  view.run = runFor(opened);
  const list = $("list"), top = active * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  draw();
  remember();
  await showItem(opened);
}

/** Keep filters and item in the address, so that a view can be kept and sent. */
function remember() {
  const state = new URLSearchParams();
  for (const name of FILTERS) {
    const unset = { order: "file", from: "0", to: String(index.policies.length - 1) }[name] ?? "";
    if (chosen(name) !== unset) state.set(name, chosen(name));
  }
  if (opened >= 0) state.set("item", index.ids[opened]);
  const text = state.toString();
  if (text || location.hash.startsWith("#items?")) history.replaceState(null, "", text ? `#items?${text}` : "#items");
}

/** Take filters and item from the address; what it names and the page has not is passed over. */
function recall() {
  const [chapter, text] = location.hash.slice(1).split("?", 2);
  if (chapter !== "items" || !text) return false;
  const state = new URLSearchParams(text);
  for (const name of FILTERS) {
    const value = state.get(name);
    if (value === null) continue;
    if (name === "deep") control(name).checked = value === "1";
    else if (name === "text" || [...control(name).options].some((option) => option.value === value)) control(name).value = value;
  }
  opened = index.ids.indexOf(state.get("item") ?? "");
  return true;
}

const PAGE_ROWS = 10;
const MOVES = { ArrowDown: 1, ArrowUp: -1, PageDown: PAGE_ROWS, PageUp: -PAGE_ROWS, Home: -Infinity, End: Infinity };

function onListKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key in MOVES) {
    event.preventDefault();
    open(opened < 0 && Math.abs(MOVES[event.key]) === 1 ? active : active + MOVES[event.key]);
  } else if (event.key === "Enter") {
    event.preventDefault();
    open(active).then(() => $("item").focus());
  }
}

function onPageKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const typing = event.target.closest?.("input:not([type=radio], [type=checkbox]), select, textarea");
  if (event.key === "Escape" && (event.target.closest?.("#item") || typing)) {
    event.preventDefault();  // which would empty the search
    $("list").focus();
  } else if (typing) {
    return;
  } else if (event.key === "j" || event.key === "k") {
    open(opened < 0 ? active : active + (event.key === "j" ? 1 : -1));
    $("browser").scrollIntoView({ block: "nearest" });
  } else if (event.key === "/") {
    event.preventDefault();
    control("text").focus();
  }
}

/** Set the filters to the items that changed between two policies, and go there. */
function showChanged(button) {
  reset();
  control("from").value = String(index.policies.indexOf(button.dataset.a));
  control("to").value = String(index.policies.indexOf(button.dataset.b));
  control("change").value = button.dataset.kind;
  filter().then(() => open(0));
  $("items").scrollIntoView();
  $("list").focus({ preventScroll: true });
}

function reset() {
  $("filters").reset();
  control("from").value = "0";
  control("to").value = String(index.policies.length - 1);
}

function start() {
  fillFilters();
  offerReady();
  $("list-head").append(...index.policies.map((name) => make("span", "", name)));
  for (const id of ["filters", "browser"]) $(id).hidden = false;
  let waiting = 0;
  $("filters").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 60);
  });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  control("reset").addEventListener("click", () => { reset(); filter(); });
  $("list").addEventListener("scroll", () => requestAnimationFrame(draw));
  $("list").addEventListener("keydown", onListKey);
  document.addEventListener("keydown", onPageKey);
  window.addEventListener("resize", draw);
  for (const button of document.querySelectorAll("button[data-kind]")) {
    button.addEventListener("click", () => showChanged(button));
  }
  const wanted = recall();
  filter().then(() => {
    if (wanted) $("items").scrollIntoView();
    if (opened >= 0) open(active);
    else whenSeen($("browser"), () => opened < 0 && open(0));
    document.documentElement.dataset.ready = "yes";
  });
}

/** Do something once an element comes into view: what nobody looks at need not be decoded. */
function whenSeen(element, act) {
  const observer = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) {
      observer.disconnect();
      act();
    }
  });
  observer.observe(element);
}
