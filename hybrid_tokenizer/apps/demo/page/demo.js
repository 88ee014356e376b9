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
const made = {}; // part -> the ids and options of the picture on the page

async function call(path, options) {
  for (let attempt = 0; ; attempt++) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch {
      throw new Error("the server does not answer; is it still running?");
    }
    const body = await answer.json().catch(() => ({}));
    if (answer.ok) return body;
    const busy = answer.status === 429 || answer.status === 503;
    if (!busy || attempt === 20) throw new Error(body.error ?? `the server answered ${answer.status}`);
    await sleep(500 + 500 * Math.random());
  }
}

function tell(text, kind = "") {
  at("status").textContent = text;
  at("status").className = kind;
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

// <img>, 32 semantic ids, the first grids of the guide, </img>
function prefix() {
  const length = facts.sequence_lengths[Number(at("budget").value) - 1];
  return length >= ids.length ? ids : [...ids.slice(0, length - 1), ids.at(-1)];
}

function label() {
  const length = facts.sequence_lengths[Number(at("budget").value) - 1];
  const guide = length - NUM_SEMANTIC - 2;
  at("budget-value").textContent = guide;
  at("steps-value").textContent = steps();
  for (const name of ["strength", "guidance"]) at(`${name}-value`).textContent = at(name).value;
  const bytes = Math.ceil((NUM_SEMANTIC * facts.semantic_bits + guide * facts.guide_bits) / 8);
  at("hybrid-note").textContent = `${guide + NUM_SEMANTIC} tokens, ${bytes} bytes`;
  at("guide-note").textContent = `${guide} tokens`;
  at("semantic-note").textContent = `${NUM_SEMANTIC} tokens`;
}

function showIds() {
  const shown = prefix();
  at("ids").value = shown.join(" ");
  at("count").textContent = `${shown.length} ids`;
  at("copy").disabled = false;
}

async function begin(work, note) {
  clearTimeout(timer);
  const mine = ++round;
  tell("Encoding …");
  try {
    const encoded = await work();
    if (mine !== round) return;
    ids = encoded.ids;
    await draw("original", encoded.picture);
    at("original-note").textContent = note;
    at("budget").value = at("budget").max = facts.sequence_lengths.length;
    at("budget").disabled = facts.sequence_lengths.length === 1;
    render();
  } catch (error) {
    if (mine === round) tell(error.message, "bad");
  }
}

function later() {
  label();
  if (!ids) return;
  showIds();
  round++; // responses on their way belong to the earlier settings
  tell("Decoding …");
  clearTimeout(timer);
  timer = setTimeout(render, WAIT_MS);
}

async function render() {
  clearTimeout(timer);
  const mine = ++round;
  label();
  showIds();
  const options = { strength: Number(at("strength").value), steps: steps(), guidance: Number(at("guidance").value) };
  const shown = prefix();
  const keys = {
    guide: JSON.stringify(shown),
    semantic: JSON.stringify([shown.slice(1, NUM_SEMANTIC + 1), options.steps, options.guidance]),
    hybrid: JSON.stringify([shown, options]),
  };
  const needed = PARTS.filter((part) => made[part] !== keys[part]);
  for (const part of needed) at(part).parentElement.classList.add("old");
  const start = performance.now();
  try {
    for (const part of needed) {
      tell(`Decoding: ${part} …`);
      const { picture } = await call("/api/decode", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ ids: shown, part, ...options }) });
      if (mine !== round) return;
      await draw(part, picture);
      made[part] = keys[part];
    }
    tell(`Ready, ${((performance.now() - start) / 1000).toFixed(1)} s.`, "good");
  } catch (error) {
    if (mine === round) tell(error.message, "bad");
  }
}

function upload(file) {
  if (!file) return;
  if (file.size > facts.max_bytes) return tell(`This file has ${file.size} bytes, over the limit of ${facts.max_bytes}; choose a smaller one.`, "bad");
  const form = new FormData();
  form.append("file", file, "picture"); // the file name is not sent
  begin(() => call("/api/encode", { method: "POST", body: form }), "your picture, cropped to a square");
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
  if (!known) {
    clear("original");
    at("original-note").textContent = "not available: decoded from pasted ids";
    ids = pasted;
    at("budget").max = scales;
    at("budget").value = scales;
    at("budget").disabled = scales === 1;
  }
  for (const part of PARTS) delete made[part];
  render();
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
  for (const name of ["strength", "guidance"]) at(name).value = facts[name];
  at("steps").max = facts.step_choices.length - 1;
  at("steps").value = facts.step_choices.findLastIndex((choice) => choice <= facts.steps);
  label();
  for (const name of facts.samples) {
    const button = Object.assign(document.createElement("button"), { type: "button", title: name });
    button.append(Object.assign(new Image(), { src: `/samples/${name}`, alt: name, width: 160, height: 160 }));
    button.addEventListener("click", () => begin(() => call(`/api/encode/${name}`, { method: "POST" }), name));
    at("samples").append(button);
  }
  at("file").addEventListener("change", () => { upload(at("file").files[0]); at("file").value = ""; });
  at("drop").addEventListener("dragover", (event) => { event.preventDefault(); at("drop").classList.add("over"); });
  at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
  at("drop").addEventListener("drop", (event) => {
    event.preventDefault();
    at("drop").classList.remove("over");
    upload(event.dataTransfer.files[0]);
  });
  for (const name of ["budget", "strength", "steps", "guidance"]) at(name).addEventListener("input", later);
  at("copy").addEventListener("click", copy);
  at("decode").addEventListener("click", decodePasted);
}

open();
