// The demo page. The server stores nothing: the page holds the ids and sends them with every request for a picture.

const NUM_SEMANTIC = 32;
const PARTS = ["guide", "hybrid", "semantic"]; // the fastest first
const WAIT_MS = 250; // after the last movement of a slider
const at = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

let facts = null;
let ids = null; // of the whole guide, as encoded or pasted
let round = 0; // pictures of an earlier round are dropped
let timer = 0;
let other = null; // ids of the picture whose semantic tokens replace those of this one
let before = null; // ids of the picture that was on the page before this one
let source = null; // encodes the picture on the page again
let abort = new AbortController(); // of the requests on their way
const made = {}; // part -> the ids and options of the picture on the page

async function call(path, options) {
  const { signal } = abort;
  for (let attempt = 0; ; attempt++) {
    let answer;
    try {
      answer = await fetch(path, { ...options, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("the server does not answer; is it still running?");
    }
    const body = await answer.json().catch(() => ({}));
    if (answer.ok) return body;
    const busy = answer.status === 429 || answer.status === 503;
    if (!busy || attempt === 20) throw new Error(body.error ?? `the server answered ${answer.status}`);
    await sleep(500 + 500 * Math.random());
  }
}

const json = (value) => ({ method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value) });

function tell(text, kind = "") {
  at("status").textContent = text;
  at("status").className = kind;
  const busy = text.endsWith("…");
  at("progress").hidden = at("cancel").hidden = !busy;
}

// Without a share the bar moves without an end.
function progress(share) {
  if (share === undefined) at("progress").removeAttribute("value");
  else at("progress").value = share;
}

// Starts anew: what was asked before is of no use.
function newRound() {
  abort.abort();
  abort = new AbortController();
  return ++round;
}

function fail(error, mine) {
  if (mine === round && error.name !== "AbortError") tell(error.message, "bad");
}

function cancel() {
  clearTimeout(timer);
  newRound();
  tell("Cancelled. Move a control or choose a picture to go on.");
}

const pixels = (id) => at(id).getContext("2d").getImageData(0, 0, at(id).width, at(id).height).data;

// In dB, of two canvases; null where there is nothing to compare.
function psnr(one, two) {
  if (!source || at(one).width !== at(two).width) return null;
  const [a, b] = [pixels(one), pixels(two)];
  let sum = 0;
  for (let i = 0; i < a.length; i++) if (i % 4 !== 3) sum += (a[i] - b[i]) ** 2;
  return sum ? 10 * Math.log10(255 ** 2 / (sum / (a.length * 0.75))) : Infinity;
}

function note(part) {
  const tokens = { guide: guideLength(), semantic: NUM_SEMANTIC, hybrid: NUM_SEMANTIC + guideLength() }[part];
  const bits = (part === "guide" ? 0 : NUM_SEMANTIC * facts.semantic_bits) + (part === "semantic" ? 0 : guideLength() * facts.guide_bits);
  const decibels = made[part] ? psnr("original", part) : null;
  at(`${part}-note`).textContent = `${tokens} tokens, ${Math.ceil(bits / 8)} bytes${decibels === null ? "" : `, ${decibels.toFixed(1)} dB`}`;
}

function compare() {
  at("compare").hidden = !made.hybrid;
  at("download").disabled = !made.hybrid;
  if (!made.hybrid) return;
  const left = source ? "original" : "guide";
  const { width, height } = at("hybrid");
  const x = Math.round((width * Number(at("divider").value)) / 100);
  Object.assign(at("split"), { width, height });
  const context = at("split").getContext("2d");
  context.drawImage(at("hybrid"), 0, 0);
  if (x) context.drawImage(at(left), 0, 0, (at(left).width * x) / width, at(left).height, 0, 0, x, height);
  context.fillStyle = "#fff";
  context.fillRect(x - 0.5, 0, 1, height);
  at("compare-note").textContent = `${left} on the left, hybrid on the right`;
}

function download() {
  at("hybrid").toBlob((blob) => {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: "hybrid.png" });
    link.click();
    URL.revokeObjectURL(link.href);
  }, "image/png");
}

async function draw(id, png) {
  const bytes = Uint8Array.from(atob(png), (letter) => letter.charCodeAt(0));
  const picture = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  Object.assign(at(id), { width: picture.width, height: picture.height });
  at(id).getContext("2d").drawImage(picture, 0, 0);
  at(id).parentElement.classList.remove("old");
}

function clear(id) {
  at(id).getContext("2d").clearRect(0, 0, at(id).width, at(id).height);
}

// The slider offers only those numbers of steps that divide the schedule.
const steps = () => facts.step_choices[Number(at("steps").value)];

const seed = () => Math.min(Math.max(Math.trunc(Number(at("seed").value)) || 0, 0), 4294967295);

const guideLength = () => facts.sequence_lengths[Number(at("budget").value) - 1] - NUM_SEMANTIC - 2;

// <img>, 32 semantic ids, the first grids of the guide, </img>
function prefix() {
  const semantic = (other ?? ids).slice(1, NUM_SEMANTIC + 1);
  return [ids[0], ...semantic, ...ids.slice(NUM_SEMANTIC + 1, -1).slice(0, guideLength()), ids.at(-1)];
}

function label() {
  at("budget-value").textContent = guideLength();
  at("steps-value").textContent = steps();
  for (const name of ["strength", "guidance"]) at(`${name}-value`).textContent = at(name).value;
  PARTS.forEach(note);
}

function showIds() {
  const shown = prefix();
  at("ids").value = shown.join(" ");
  at("count").textContent = `${shown.length} ids`;
  at("copy").disabled = false;
}

async function begin(work, words) {
  clearTimeout(timer);
  const mine = newRound();
  progress();
  tell(at("search").checked ? "Searching for tokens …" : "Encoding …");
  try {
    const encoded = await work(at("search").checked ? "?search=true" : "");
    if (mine !== round) return;
    if (ids && ids.join() !== encoded.ids.join()) offerBefore(ids);
    ids = encoded.ids;
    source = () => begin(work, words);
    at("caption").textContent = "";
    await draw("original", encoded.picture);
    for (const part of PARTS) delete made[part];
    at("original-note").textContent = `${words}, encoded in ${encoded.seconds.toFixed(1)} s`;
    at("budget").value = at("budget").max = facts.sequence_lengths.length;
    at("budget").disabled = facts.sequence_lengths.length === 1;
    render();
  } catch (error) {
    fail(error, mine);
  }
}

function later() {
  label();
  if (!ids) return;
  showIds();
  newRound(); // responses on their way belong to the earlier settings
  progress();
  tell("Decoding …");
  clearTimeout(timer);
  timer = setTimeout(render, WAIT_MS);
}

async function render() {
  clearTimeout(timer);
  const mine = newRound();
  label();
  showIds();
  const options = { strength: Number(at("strength").value), steps: steps(), guidance: Number(at("guidance").value), seed: seed() };
  const shown = prefix();
  const keys = {
    guide: JSON.stringify(shown),
    semantic: JSON.stringify([shown.slice(1, NUM_SEMANTIC + 1), options.steps, options.guidance, options.seed]),
    hybrid: JSON.stringify([shown, options]),
  };
  const needed = PARTS.filter((part) => made[part] !== keys[part]);
  for (const part of needed) at(part).parentElement.classList.add("old");
  const start = performance.now();
  try {
    for (const [index, part] of needed.entries()) {
      progress(index / needed.length);
      tell(`Decoding: ${part} …`);
      const { picture } = await call("/api/decode", json({ ids: shown, part, ...options }));
      if (mine !== round) return;
      await draw(part, picture);
      made[part] = keys[part];
      note(part);
    }
    compare();
    tell(`Ready, ${((performance.now() - start) / 1000).toFixed(1)} s.`, "good");
    await caption(mine);
  } catch (error) {
    fail(error, mine);
  }
}

// Once for each picture, when everything else is on the page.
async function caption(mine) {
  if (!facts.writes || !source || at("caption").textContent) return;
  const answer = await call("/api/caption", json({ ids }));
  if (mine === round) at("caption").textContent = answer.caption || "The model says nothing.";
}

async function drawText(event) {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text) return tell("There is nothing to draw; type some words first.", "bad");
  clearTimeout(timer);
  const mine = newRound();
  progress();
  tell("Drawing tokens …");
  try {
    const drawn = await call("/api/draw", json({ text, seed: seed() }));
    if (mine !== round) return;
    adopt(drawn.ids, `none: drawn from your text in ${drawn.seconds.toFixed(1)} s`);
    render();
  } catch (error) {
    fail(error, mine);
  }
}

// The semantic tokens of the picture before this one can be used for it.
function offerBefore(earlier) {
  before = earlier;
  if (!at("other").querySelector("[value=before]")) at("other").append(new Option("the picture before", "before"));
}

async function mix() {
  const chosen = at("other").value;
  const mine = newRound();
  try {
    progress();
    if (chosen === "" || !ids) other = null;
    else if (chosen === "before") other = before;
    else {
      tell("Encoding the other picture …");
      other = (await call(`/api/encode/${chosen}`, { method: "POST" })).ids;
    }
    if (mine !== round) return;
    if (ids) render();
  } catch (error) {
    fail(error, mine);
  }
}

function reset() {
  for (const name of ["strength", "guidance"]) at(name).value = facts[name];
  at("steps").value = facts.step_choices.findLastIndex((choice) => choice <= facts.steps);
  at("budget").value = at("budget").max;
  at("seed").value = 0;
  at("other").value = "";
  other = null;
  const searched = at("search").checked;
  at("search").checked = false;
  if (searched && source) source();
  else later();
}

function upload(file) {
  if (!file) return;
  if (file.size > facts.max_bytes) return tell(`This file has ${file.size} bytes, over the limit of ${facts.max_bytes}; choose a smaller one.`, "bad");
  const form = new FormData();
  form.append("file", file, "picture"); // the file name is not sent
  begin((search) => call(`/api/encode${search}`, { method: "POST", body: form }), "your picture, cropped to a square");
}

function decodePasted() {
  const words = at("ids").value.split(/[\s,;[\]]+/).filter(Boolean);
  const wrong = words.find((word) => !/^\d{1,12}$/.test(word));
  if (!words.length) return tell("There are no ids to decode; paste some first.", "bad");
  if (wrong) return tell(`"${wrong.slice(0, 20)}" is not a token id; ids are whole numbers.`, "bad");
  const scales = facts.sequence_lengths.indexOf(words.length) + 1;
  if (!scales) return tell(`There are ${words.length} ids; this tokenizer has ${facts.sequence_lengths.join(" or ")} per picture.`, "bad");
  const pasted = words.map(Number);
  const known = ids && pasted.join() === prefix().join();
  if (!known) adopt(pasted, "not available: decoded from pasted ids");
  for (const part of PARTS) delete made[part];
  render();
}

// Ids without a photograph.
function adopt(newIds, words) {
  clear("original");
  at("original-note").textContent = words;
  at("caption").textContent = "";
  ids = newIds;
  source = other = null;
  at("other").value = "";
  const scales = facts.sequence_lengths.indexOf(ids.length) + 1;
  at("budget").max = at("budget").value = scales;
  at("budget").disabled = scales === 1;
  for (const part of PARTS) delete made[part];
}

async function copy() {
  const text = at("ids").value;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // the clipboard API exists only on this machine or over https
    at("ids").select();
    if (!document.execCommand("copy")) return tell("The browser does not allow this page to copy. The ids are selected; press Ctrl+C.", "bad");
  }
  tell(`Copied ${text.split(" ").length} ids.`, "good");
}

async function open() {
  try {
    facts = await call("/api/tokenizer");
  } catch (error) {
    return tell(error.message, "bad");
  }
  at("name").textContent = `${facts.name}, ${facts.side} px`;
  at("budget").max = facts.sequence_lengths.length;
  at("budget").value = facts.sequence_lengths.length;
  at("steps").max = facts.step_choices.length - 1;
  at("search").parentElement.hidden = !facts.search_steps;
  at("write").hidden = !facts.writes;
  at("search-cost").textContent = `(${facts.search_steps} gradient steps; encoding takes several times longer)`;
  reset();
  for (const name of facts.samples) {
    const button = Object.assign(document.createElement("button"), { type: "button", title: name });
    button.append(Object.assign(new Image(), { src: `/samples/${name}`, alt: name, width: 160, height: 160 }));
    button.addEventListener("click", () => begin((search) => call(`/api/encode/${name}${search}`, { method: "POST" }), name));
    at("samples").append(button);
    at("other").append(new Option(name, name));
  }
  at("file").addEventListener("change", () => { upload(at("file").files[0]); at("file").value = ""; });
  at("drop").addEventListener("dragover", (event) => { event.preventDefault(); at("drop").classList.add("over"); });
  at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
  at("drop").addEventListener("drop", (event) => {
    event.preventDefault();
    at("drop").classList.remove("over");
    upload(event.dataTransfer.files[0]);
  });
  for (const name of ["budget", "strength", "steps", "guidance", "seed"]) at(name).addEventListener("input", later);
  at("other").addEventListener("change", mix);
  at("search").addEventListener("change", () => source?.());
  at("divider").addEventListener("input", compare);
  at("download").addEventListener("click", download);
  at("reset").addEventListener("click", reset);
  at("cancel").addEventListener("click", cancel);
  at("write").addEventListener("submit", drawText);
  at("copy").addEventListener("click", copy);
  at("decode").addEventListener("click", decodePasted);
}

open();
