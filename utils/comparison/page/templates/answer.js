// One item: question, gold, prompt on demand, and every policy's answer.

const view = { run: 0, measure: offered()[0]?.name ?? "", numbers: false };
let drawing = 0;  // an item that takes long to decode must not replace a later one

/** Show an item of the data set (its number), or what was shown with another seed or measure. */
async function showItem(item) {
  const mine = ++drawing;
  const number = Math.floor(item / index.block), within = item % index.block;
  const [answers, tokens, samples] = await Promise.all(
    ["answers", "tokens", "samples"].map((part) => block(`${part}-${number}`)),
  );
  if (mine !== drawing) return;
  const of = (part) => part?.[within] ?? null;
  const article = $("item");
  article.ariaLabel = `Item ${index.ids[item]}`;
  article.dataset.item = String(item);
  article.replaceChildren(
    about(item),
    make("p", "question", index.questions[item] || "(the evaluation has no text of the question)"),
    gold(item),
    promptOf(item, number, within),
    controls(item, of(tokens) !== null),
    ...index.policies.map((name, policy) =>
      answer(name, policy, item, of(answers)?.[policy]?.[view.run], of(tokens)?.[policy]?.[view.run], of(samples)?.[policy]?.[view.run]),
    ),
  );
  article.classList.toggle("numbers", view.numbers);
}

function about(item) {
  const facts = [index.ids[item]];
  if (index.levels[item] !== null) facts.push(`level ${index.levels[item]}`);
  if (index.item_types[item] >= 0) facts.push(WORDS(index.types[index.item_types[item]]));
  return make("p", "about", facts.join(" · "));
}

function gold(item) {
  const list = make("dl", "gold", make("dt", "", "gold"), make("dd", "mono", index.golds[item]));
  if (index.gold_programs[item]) {
    list.append(make("dt", "", "program"), make("dd", "mono", index.gold_programs[item]));
  }
  return list;
}

function promptOf(item, number, within) {
  const details = make("details", "", make("summary", "", "Prompt and gold text"));
  details.addEventListener("toggle", async () => {
    if (!details.open || details.childElementCount > 1) return;
    const texts = (await block(`prompts-${number}`))?.[within];
    if (!texts) details.append(make("p", "missing", "Not on this page: see what is not on this page, above."));
    else details.append(make("pre", "long", texts.prompt), make("pre", "long", texts.target));
  });
  return details;
}

/** A row of radio buttons, drawn as one switch; of each its value, its text, and what is said on hover. */
function segments(title, name, choices, chosen, choose) {
  const set = make("fieldset", "segments", make("legend", "", title));
  for (const [value, text, meaning = ""] of choices) {
    const input = make("input");
    Object.assign(input, { type: "radio", name, value, checked: value === chosen });
    input.addEventListener("change", () => choose(value));
    const label = make("label", "", input, text);
    if (meaning) label.title = meaning;
    set.append(label);
  }
  return set;
}

function controls(item, hasTokens) {
  const again = async (group, value) => {
    await showItem(item);
    // The switch was drawn anew: the keyboard stays on it.
    $("item").querySelector(`input[name="${group}"][value="${value}"]`)?.focus();
  };
  const row = make("div", "controls");
  if (index.runs.length > 1) {
    const runs = index.runs.map((label, at) => [String(at), label]);
    row.append(segments("Seed", "run", runs, String(view.run), (value) => {
      view.run = Number(value);
      again("run", value);
    }));
  }
  if (!hasTokens) {
    row.append(make("span", "missing", "No token values for this item: no heat maps."));
    return row;
  }
  const choices = [...offered().map((each) => [each.name, each.title, each.text]), ["", "plain"]];
  row.append(segments("Tokens", "measure", choices, view.measure, (value) => {
    view.measure = value;
    again("measure", value);
  }));
  const box = make("input");
  Object.assign(box, { type: "checkbox", checked: view.numbers, id: "show-numbers" });
  box.addEventListener("change", () => {
    view.numbers = box.checked;
    $("item").classList.toggle("numbers", box.checked);
  });
  row.append(make("label", "numbers-toggle", box, " numbers"));
  if (view.measure) row.append(legend(view.measure));
  return row;
}

function answer(name, policy, item, row, tokens, samples) {
  const outcome = index.answers[policy][view.run];
  const letter = outcome.correct[item];
  const kind = { 1: "right", 0: "wrong", "-": "none" }[letter];
  const reason = outcome.reasons[item] >= 0 ? `: ${WORDS(index.reasons[outcome.reasons[item]])}` : "";
  const made = make("section", "answer");
  made.ariaLabel = `Answer of ${name}`;
  made.dataset.policy = name;
  const detail = row?.failure_detail ? ` (${row.failure_detail})` : "";
  const head = make("header", "",
    make("h4", "", make("span", `mark ${kind}`, MARKS[kind]), swatch(policy), name),
    make("span", `verdict-text ${kind}`, kind === "none" ? "no answer" : kind + reason + detail),
  );
  if (row?.value !== undefined) head.append(make("span", "value", `= ${row.value}`));
  const more = [];
  if (row?.tokens !== undefined) more.push(`${row.tokens} tokens`);
  if (row?.truncated) more.push("cut off at the token limit");
  if (row?.format_valid === false) more.push("not in the form asked for");
  for (const [measure, right] of Object.entries(row?.measures ?? {})) {
    if (right !== (letter === "1")) more.push(`${WORDS(measure)}: ${right ? "right" : "wrong"}`);
  }
  if (more.length) head.append(make("span", "more", more.join(" · ")));
  made.append(head);
  if (tokens && view.measure) made.append(...heatMap(tokens, view.measure, name));
  else if (row?.response !== undefined) made.append(make("pre", "response", row.response));
  else if (row?.program !== undefined) made.append(make("pre", "response", row.program));
  else if (kind !== "none") made.append(make("p", "missing", "The text of this answer is not on this page."));
  for (const [title, values] of [["rewards", row?.rewards], ["reasoning", row?.reasoning]]) {
    if (values) made.append(chips(title, values));
  }
  if (samples) made.append(sampled(samples));
  return made;
}

function chips(title, values) {
  const row = make("p", `chips ${title}`, make("span", "", title));
  for (const [name, value] of Object.entries(values)) {
    const text = typeof value === "number" ? numberText(value) : value === null ? "–" : String(value);
    row.append(make("span", "", `${WORDS(name)} `, make("b", "", text)));
  }
  return row;
}

function sampled(samples) {
  const right = samples.filter((each) => each.correct).length;
  const list = make("ol", "samples");
  for (const each of samples) {
    const kind = each.correct ? "right" : "wrong";
    list.append(make("li", "",
      make("span", `mark ${kind}`, MARKS[kind]), make("span", "mono", each.value ? `= ${each.value}` : "no value"),
      make("pre", "", each.response ?? ""),
    ));
  }
  return make("details", "", make("summary", "", `${right} of ${samples.length} sampled answers right`), list);
}
