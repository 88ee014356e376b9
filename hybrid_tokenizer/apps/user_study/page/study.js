// The page of the user study. A vote counts as saved only after the server has confirmed it. Until then the page keeps the
// vote and sends it again, which is harmless because the server stores one vote per set.

const CODE = "study-code", PENDING = "study-pending", TRIED = "study-tried";
const RETRY_MS = 1500;
const ORDINALS = ["1st", "2nd", "3rd"];
const at = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const ordinal = (place) => ORDINALS[place - 1] ?? `${place}th`;
const letter = (index) => String.fromCharCode(65 + index);
const image = (name) => `/images/${name}`;

let sheet = null;
let current = null; // the set on the page
let places = {};
let chosen = 0; // index of the copy that the number keys apply to
let saving = false;

class Refusal extends Error {}

async function call(path, options = {}) {
  const code = localStorage.getItem(CODE);
  const headers = { "content-type": "application/json", ...(code ? { "x-participant": code } : {}) };
  const answer = await fetch(path, { ...options, headers });
  const retry = answer.status === 429 || answer.status >= 500;
  const body = await answer.json().catch(() => ({}));
  if (retry) throw new Error(body.error ?? "the server is busy");
  if (!answer.ok) throw new Refusal(body.error ?? `the server answered ${answer.status}`);
  return body;
}

function tell(text, kind = "") {
  at("status").textContent = text;
  at("status").className = kind;
}

function show(id) {
  for (const section of ["start", "vote", "done"]) at(section).hidden = section !== id;
  const code = localStorage.getItem(CODE);
  at("who").hidden = id === "start" || !code;
  at("mine").textContent = code ?? "";
}

// Retries until the server answers, so that nothing is lost when the server is restarted.
async function insist(path, options, waiting) {
  for (;;) {
    try {
      return await call(path, options);
    } catch (error) {
      if (error instanceof Refusal) throw error;
      tell(waiting, "bad");
      await sleep(RETRY_MS);
    }
  }
}

async function showConsent() {
  const { text } = await insist("/api/consent", {}, "The server does not answer; trying again …");
  at("consent").replaceChildren(...text.split(/\n\s*\n/).filter((part) => part.trim()).map((part) => element("p", { textContent: part.trim() })));
  tell("");
}

async function open() {
  if (!localStorage.getItem(CODE)) {
    show("start");
    return showConsent();
  }
  try {
    sheet = await insist("/api/sheet", {}, "The server does not answer; trying again …");
  } catch (error) {
    localStorage.removeItem(CODE);
    show("start");
    await showConsent();
    return tell(error.message, "bad");
  }
  tell("");
  const pending = JSON.parse(localStorage.getItem(PENDING) ?? "null");
  localStorage.removeItem(PENDING);
  if (pending?.study === sheet.study && pending.code === localStorage.getItem(CODE)) {
    const set = sheet.sets.find((one) => one.id === pending.set);
    if (set && !set.places) return save(set, pending.places);
  }
  next();
}

function next() {
  const waiting = sheet.sets.filter((set) => !set.places);
  const done = sheet.sets.length - waiting.length;
  at("count").textContent = `Set ${Math.min(done + 1, sheet.sets.length)} of ${sheet.sets.length}`;
  at("progress").value = done / sheet.sets.length;
  if (!waiting.length) return show("done");
  const untried = sheet.trial && done === 0 && localStorage.getItem(TRIED) !== localStorage.getItem(CODE);
  if (untried) at("count").textContent = "Trial: this set does not count";
  current = untried ? sheet.trial : waiting[0];
  places = {};
  chosen = 0;
  draw();
  show("vote");
  for (const name of waiting[1] ? [waiting[1].original, ...waiting[1].candidates] : []) new Image().src = image(name);
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function picture(title, name, index) {
  const button = element("button", { className: "picture", type: "button" }, element("img", { src: image(name), alt: title, width: 256, height: 256 }));
  button.setAttribute("aria-label", `enlarge: ${title}`);
  button.addEventListener("click", () => enlarge(index));
  return button;
}

function draw() {
  const original = element("div", { className: "card original" }, element("h2", { textContent: "Original" }), picture("Original", current.original, -1));
  const copies = current.candidates.map((name, index) => {
    const buttons = Array.from({ length: sheet.num_places }, (_, i) => {
      const button = element("button", { type: "button", textContent: ordinal(i + 1) });
      button.setAttribute("aria-label", `copy ${letter(index)}: ${ordinal(i + 1)}`);
      button.addEventListener("click", (event) => {
        chosen = index;
        give(name, i + 1);
        if (event.detail) button.blur(); // after a mouse click, Enter should save and not press the same button again
      });
      return button;
    });
    const card = element("div", { className: "card" }, element("h2", { textContent: `Copy ${letter(index)}` }), picture(`Copy ${letter(index)}`, name, index), element("div", { className: "places" }, ...buttons));
    card.setAttribute("role", "group");
    card.setAttribute("aria-label", `copy ${letter(index)}`);
    return card;
  });
  at("cards").replaceChildren(original, ...copies);
  mark();
}

function mark() {
  const cards = [...at("cards").children].slice(1);
  cards.forEach((card, index) => {
    card.classList.toggle("chosen", index === chosen);
    [...card.querySelector(".places").children].forEach((button, i) => button.setAttribute("aria-pressed", String(places[current.candidates[index]] === i + 1)));
  });
  const given = Object.values(places);
  const missing = current.candidates.length - given.length;
  const ready = missing === 0 && given.includes(1);
  at("save").disabled = !ready || saving;
  if (missing) at("hint").textContent = `Give each copy a place (${missing} left). Ties are allowed.`;
  else at("hint").textContent = ready ? "You can still change the places. A saved vote cannot be changed." : "At least one copy must be 1st.";
}

function give(name, place) {
  if (saving) return;
  places[name] = place;
  const open = current.candidates.findIndex((other) => !(other in places));
  if (open >= 0) chosen = open;
  mark();
}

async function save(set, votes) {
  if (set === sheet.trial) {
    localStorage.setItem(TRIED, localStorage.getItem(CODE));
    tell("That was the trial. The study begins now.", "good");
    return next();
  }
  const vote = { study: sheet.study, set: set.id, places: votes };
  saving = true;
  at("save").disabled = true;
  localStorage.setItem(PENDING, JSON.stringify({ ...vote, code: localStorage.getItem(CODE) }));
  tell("Saving …");
  try {
    const answer = await insist("/api/vote", { method: "POST", body: JSON.stringify(vote) }, "Not saved yet: the server does not answer; trying again …");
    set.places = votes;
    tell(`Saved: ${answer.votes} of ${sheet.sets.length}`, "good");
    localStorage.removeItem(PENDING);
  } catch (error) {
    localStorage.removeItem(PENDING);
    saving = false;
    return tell(error.message, "bad");
  }
  saving = false;
  next();
}

// ---- enlarged pictures: the original and the copies in turn, at the same position ----

let shown = -1, scale = 1;

function enlarge(index) {
  if (index >= 0) { chosen = index; mark(); }
  scale = 1;
  const names = ["Original", ...current.candidates.map((_, i) => letter(i))];
  at("tabs").replaceChildren(...names.map((name, i) => {
    const button = element("button", { type: "button", textContent: name });
    button.addEventListener("click", () => turn(i - 1));
    return button;
  }));
  at("zoom").showModal();
  turn(index);
}

function turn(index) {
  if (index >= current.candidates.length) return;
  shown = index;
  at("large").src = image(index < 0 ? current.original : current.candidates[index]);
  at("large").alt = index < 0 ? "Original" : `Copy ${letter(index)}`;
  [...at("tabs").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i - 1 === shown)));
  resize();
}

function resize(factor = 1) {
  const pane = at("pane");
  const side = Math.min(pane.clientWidth, pane.clientHeight);
  const [x, y] = [(pane.scrollLeft + pane.clientWidth / 2) / scale, (pane.scrollTop + pane.clientHeight / 2) / scale];
  scale = Math.min(8, Math.max(1, scale * factor));
  at("large").style.width = `${Math.floor(side * scale)}px`;
  if (factor !== 1) pane.scrollTo(x * scale - pane.clientWidth / 2, y * scale - pane.clientHeight / 2);
}

// ---- events ----

at("join").addEventListener("click", async () => {
  at("join").disabled = true;
  try {
    const { code } = await insist("/api/join", { method: "POST", body: "{}" }, "The server does not answer; trying again …");
    localStorage.setItem(CODE, code);
    await open();
  } catch (error) {
    tell(error.message, "bad");
  }
  at("join").disabled = false;
});
at("return").addEventListener("submit", (event) => {
  event.preventDefault();
  const code = at("code").value.trim().toLowerCase();
  if (!/^[a-z0-9]+$/.test(code)) return tell("A code has only lower-case letters and digits.", "bad");
  localStorage.setItem(CODE, code);
  open();
});
at("leave").addEventListener("click", () => {
  if (!confirm(`You can return to your votes only with the code ${localStorage.getItem(CODE)}. Have you written it down?`)) return;
  localStorage.removeItem(CODE);
  at("code").value = "";
  tell("");
  show("start");
  showConsent();
});
at("save").addEventListener("click", () => save(current, { ...places }));
at("close").addEventListener("click", () => at("zoom").close());
at("larger").addEventListener("click", () => resize(2));
at("smaller").addEventListener("click", () => resize(0.5));
at("large").addEventListener("click", () => resize(scale < 4 ? 2 : 1 / scale));
at("zoom").addEventListener("click", (event) => { if (event.target === at("zoom")) at("zoom").close(); });
window.addEventListener("resize", () => { if (at("zoom").open) resize(); });

document.addEventListener("keydown", (event) => {
  if (at("vote").hidden || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  const key = event.key.toLowerCase();
  const index = key.length === 1 ? key.charCodeAt(0) - 97 : -1;
  if (at("zoom").open) {
    if (key === "o") turn(-1);
    else if (key === "+" || key === "=") resize(2);
    else if (key === "-") resize(0.5);
    else if (key === "z") at("zoom").close();
    else if (index >= 0) turn(index);
    return;
  }
  const count = current.candidates.length;
  if (key === "z") enlarge(chosen);
  else if (key === "arrowright") chosen = (chosen + 1) % count;
  else if (key === "arrowleft") chosen = (chosen + count - 1) % count;
  else if (index >= 0 && index < count) chosen = index;
  else if (/^[1-9]$/.test(key) && Number(key) <= sheet.num_places) return give(current.candidates[chosen], Number(key));
  else if (key === "enter" && !at("save").disabled && event.target === document.body) return at("save").click();
  else return;
  mark();
});

open();
