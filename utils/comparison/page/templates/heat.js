// Token maps: one span a token, coloured by a measure; read by pointer or arrow keys.

const BLUE = "0 114 178", VERMILLION = "213 94 0", GREEN = "0 158 115";  // Okabe and Ito
const STRONGEST = 0.62;  // opacity of a full colour: text on it stays readable on paper and on black

const measureOf = (name) => index.measures.find((each) => each.name === name);

/** The value that a character of stored values stands for, null where it is unknown. */
function stored(letter, measure) {
  const q = letter.charCodeAt(0) - index.first_code;
  return q === index.unknown ? null : Math.sign(q) * measure.largest * (q / 127) ** 2;
}

function numberText(value) {
  if (value === null) return "unknown";
  const size = Math.abs(value);
  const text = size >= 10 ? size.toFixed(1) : size >= 0.1 || size === 0 ? size.toFixed(2) : size.toPrecision(1);
  // Small numbers as decimals, not as 5e-7.
  return (value < 0 ? "−" : "") + (text.includes("e") ? "0.00" : text);
}

const signedText = (value, measure) => (measure.signed && value > 0 ? "+" : "") + numberText(value);

function colourOf(value, measure) {
  const strength = STRONGEST * Math.min(1, Math.abs(value) / (measure.shown || 1));
  const hue = !measure.signed ? GREEN : value < 0 ? VERMILLION : BLUE;
  return `rgb(${hue} / ${strength.toFixed(3)})`;
}

/** Paint an element with a value; negative ones are underlined too, as strongly as they are coloured. */
function paint(made, value, measure) {
  made.style.setProperty("background-color", colourOf(value, measure));
  if (!measure.signed || value >= 0) return;
  const strength = Math.min(1, Math.abs(value) / (measure.shown || 1));
  made.classList.add("negative");
  made.style.setProperty("border-bottom-color", `color-mix(in srgb, currentColor ${Math.round(20 + 80 * strength)}%, transparent)`);
}

/** A token's text with white space made visible; what was there is still there for wrapping. */
function visible(piece) {
  if (piece === "") return "▯";
  return piece.replaceAll("\r", "␍").replaceAll("\t", "⇥\t").replaceAll("\n", "↵\n");
}

/** The measures that the page offers: where no policy has a critic, log ratios stand in for advantages. */
function offered() {
  const names = index.measures.map((each) => each.name);
  const list = index.measures.map((each) => ({ name: each.name, title: each.title, text: each.text }));
  if (names.includes("log_ratio") && !names.includes("advantage")) {
    const place = list.findIndex((each) => each.name === "log_ratio");
    list[place] = { name: "advantage", title: "Advantage", text: index.measures[place].text };
  }
  return list;
}

/** The measure shown of one answer: the chosen one, or the log ratio for an advantage that it lacks. */
function chosenFor(row, name) {
  if (row.values[name] !== undefined) return measureOf(name);
  return name === "advantage" && row.values.log_ratio !== undefined ? measureOf("log_ratio") : null;
}

/** One answer's map with its readout, or a sentence where the measure is missing. */
function heatMap(row, name, policy) {
  const measure = chosenFor(row, name);
  const map = make("div", "heat");
  const readout = make("p", "readout");
  const values = measure ? [...row.values[measure.name]].map((letter) => stored(letter, measure)) : [];
  map.setAttribute("role", "listbox");
  map.ariaOrientation = "horizontal";
  map.ariaLabel = `Tokens of ${policy}, ${measure ? measure.title : "no values"}; arrow keys move`;
  row.pieces.forEach((piece, at) => {
    const token = make("span", "tok", visible(piece));
    token.setAttribute("role", "option");
    token.tabIndex = at === 0 ? 0 : -1;
    if (measure) {
      const value = values[at];
      const text = signedText(value, measure);
      token.ariaLabel = `${piece.trim() || "white space"}, ${text}${value === null ? "" : " nats"}`;
      token.dataset.v = value === null ? "?" : text;
      if (value === null) token.classList.add("unknown");
      else paint(token, value, measure);
      if (value !== null && Math.abs(value) >= measure.shown) token.classList.add("big");
    }
    map.append(token);
  });
  const caption = () => {
    if (!measure) return [`No ${WORDS(name)} for this answer.`];
    if (measure.name === name) return ["Point at a token, or move to it with the arrow keys, for its numbers."];
    return [`Advantage: ${measure.text}. Full colour from ±${numberText(measure.shown)} nats.`];
  };
  const read = (token) => {
    const at = [...map.children].indexOf(token);
    if (at < 0) return;
    readout.replaceChildren(`${at + 1}/${row.pieces.length} `, make("code", "", visible(row.pieces[at]).trimEnd() || "␣"));
    for (const each of index.measures) {
      if (row.values[each.name] === undefined) continue;
      const value = stored([...row.values[each.name]][at], each);
      readout.append(` ${each.title} `, make("b", "", signedText(value, each)));
    }
    readout.append(" nats");
  };
  readout.append(...caption());
  map.addEventListener("pointerover", (event) => read(event.target.closest(".tok")));
  map.addEventListener("pointerleave", () => {
    if (!map.contains(document.activeElement)) readout.replaceChildren(...caption());
  });
  map.addEventListener("focusin", (event) => read(event.target));
  map.addEventListener("keydown", (event) => moveInMap(event, map));
  return [map, readout];
}

/** Arrow keys, Home and End move between tokens; one token of a map is a tab stop. */
function moveInMap(event, map) {
  const tokens = [...map.children];
  const at = tokens.indexOf(document.activeElement);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
  if (at < 0 || next === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const token = tokens[Math.max(0, Math.min(tokens.length - 1, next))];
  tokens[at].tabIndex = -1;
  token.tabIndex = 0;
  token.focus();
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** The scale of a measure: colours with their ends in numbers, and how exact the stored numbers are. */
function legend(name) {
  const measure = measureOf(name) ?? (name === "advantage" ? measureOf("log_ratio") : null);
  if (!measure) return make("p", "legend");
  const steps = measure.signed ? [-1, -0.66, -0.33, 0, 0.33, 0.66, 1] : [0, 0.25, 0.5, 0.75, 1];
  const ramp = make("span", "ramp");
  ramp.ariaHidden = "true";
  for (const step of steps) {
    const cell = make("i");
    paint(cell, step * measure.shown, measure);
    ramp.append(cell);
  }
  const end = numberText(measure.shown);
  const below = measure.name === "log_prob" ? "−" : "";
  const low = measure.signed ? `−${end}` : "0";
  const words = measure.signed ? "Negative values are underlined, full colours bold." : "Full colours are bold.";
  const exact = measure.error < 0.005 ? "0.005" : measure.error.toFixed(measure.error < 0.1 ? 3 : 2);
  const stands = measure.name === name ? "" : "Log ratio in place of a critic's advantage: ";
  return make(
    "p", "legend", low, ramp, (measure.signed ? "+" : below) + end,
    make("span", "", `nats. ${stands}${measure.text ? capital(measure.text) + ". " : ""}${words} Stored in 8 bits, within ${exact} nats.`),
  );
}
