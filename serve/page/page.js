// What a person sees of the endpoint: choose a model, give it inputs, read its answers.
// Everything shown is set as text, never as HTML; nothing is kept but in this tab's memory.
"use strict";

const TOP = 5;
const PART_BYTES = 1024; // of a form, around a file: its name and the boundary
const AT_ONCE = 8; // images in one request, so that the first answers of many come soon
const MOST_LABELS = 12;
const TINY = 104; // pixels: a smaller image is shown larger
const ENTITY_COLOURS = 6;
const FULL_COLOUR = 0.05; // a smaller change of the probability is drawn paler: it means little
const NOTHING = 0.005;

const $ = (id) => document.getElementById(id);
let key = "";
let chosen = null; // what GET v1/models/NAME told

// ---------------------------------------------------------------- asking

class Problem extends Error {
  constructor({ title, detail, status, items }) {
    super(detail || title);
    Object.assign(this, { title, detail: detail || "", status, items: items || [] });
  }
}

async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  const startedMs = performance.now();
  let response, text;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    text = await response.text();
  } catch {
    throw new Problem({
      title: "No connection", detail: "The endpoint does not answer. Is it still running?",
    });
  }
  const tookMs = performance.now() - startedMs;
  const told = parsed(text);
  if (!response.ok) {
    throw new Problem({ title: response.statusText || "No answer", ...told, status: response.status });
  }
  if (!told) {
    throw new Problem({ title: "Not understood", detail: "What answered is no endpoint of this kind." });
  }
  return { ...told, tookMs };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

const pathOf = (name, verb = "") => `v1/models/${encodeURIComponent(name)}${verb}`;

function json(body) {
  return {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
}

function form(inputs, fields) {
  const body = new FormData();
  for (const input of inputs) body.append("input", input, input.name || "image");
  for (const [name, value] of fields) body.append(name, value);
  return { method: "POST", body };
}

// ---------------------------------------------------------------- making elements

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function percent(p) {
  if (p > 0 && p < 0.001) return "< 0.1 %";
  if (p < 1 && p > 0.999) return "> 99.9 %";
  return `${(100 * p).toFixed(1)} %`;
}

const milliseconds = (ms) => (ms < 9.95 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en")) + " ms";
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(Math.abs(x) < 0.01 ? 3 : 2);
const some = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;
const words = (slug) => slug.replaceAll("-", " ").replaceAll("_", " ");

function problemBox({ title, detail, items }) {
  const box = make("div", { class: "problem" }, make("b", {}, title || "No answer"));
  if (detail) box.append(make("p", {}, detail));
  const reasons = [...new Set((items || []).filter(Boolean).map((item) => item.detail || item.title))];
  if (reasons.length) box.append(make("ul", {}, ...reasons.map((reason) => make("li", {}, reason))));
  return box;
}

// ---------------------------------------------------------------- the model

async function loadModels() {
  $("trouble").hidden = true;
  try {
    const { models } = await ask("v1/models");
    $("model").replaceChildren(...models.map(({ name }) => make("option", { value: name }, name)));
    $("model").disabled = models.length < 2;
    if (!models.length) throw new Problem({ title: "No model is served", detail: "Deploy one first." });
    const wanted = nameInAddress();
    if (models.some(({ name }) => name === wanted)) $("model").value = wanted;
    await loadModel();
  } catch (problem) {
    showTrouble(problem);
  }
}

// What follows the # may be anything that a person typed.
function nameInAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

async function loadModel() {
  const name = $("model").value;
  $("trouble").hidden = true;
  try {
    const details = await ask(pathOf(name));
    if ($("model").value !== name) return; // another was chosen meanwhile
    chosen = details;
    showModel();
  } catch (problem) {
    showTrouble(problem);
  }
}

function showTrouble(problem) {
  if (!(problem instanceof Problem)) throw problem;
  $("trouble").replaceChildren(...problemBox(problem).childNodes);
  $("trouble").hidden = false;
  if (problem.status === 401 || problem.status === 403) showKeyForm();
}

function showModel() {
  const { name, alias, version, task, labels, accepts, metrics, digest, zero_shot, candidate } = chosen;
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  document.title = `${name} — ask a model`;
  const [metric, value] = Object.entries(metrics || {})[0] || [];
  $("facts").replaceChildren(...[
    words(task), `version ${version}${alias ? ` (${alias})` : ""}`,
    labels.length && accepts[0] !== "question" ? some(labels.length, "label") : null,
    metric ? `${words(metric)} ${value.toFixed(3)}` : null,
    candidate ? `${candidate.mode}: version ${candidate.version}, ${percent(candidate.share)}` : null,
  ].filter(Boolean).map((fact) => make("span", {}, fact)));
  const kind = accepts[0];
  $("classes-field").hidden = !zero_shot;
  if (zero_shot && !$("classes").value) $("classes").value = labels.join("\n");
  $("image-field").hidden = kind !== "image";
  $("question-field").hidden = kind !== "question";
  $("text-field").hidden = kind === "image";
  $("text-label").textContent = kind === "question" ? "Context" : "Text";
  $("empty").textContent = introduction(kind);
  $("empty").hidden = false;
  for (const image of $("runs").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  $("runs").replaceChildren();
  $("status").textContent = "";
  showAbout(digest);
  $("ask").hidden = $("more").hidden = false;
}

function introduction(kind) {
  const { labels, zero_shot } = chosen;
  if (zero_shot) return "Write the classes, then choose images: each is answered with the class that fits it best.";
  if (kind === "question") return "The answer is found in the context, and shown there.";
  if (!labels.length) return "Answers appear here.";
  const listed = labels.slice(0, MOST_LABELS).join(", ");
  const more = labels.length > MOST_LABELS ? ` and ${labels.length - MOST_LABELS} more` : "";
  const any = chosen.task.includes("multilabel") || chosen.task.startsWith("token");
  return `It answers with ${any ? "any" : "one"} of ${some(labels.length, "label")}: ${listed}${more}.`;
}

function showAbout(digest) {
  const facts = [
    ["Digest", digest],
    ...Object.entries(chosen.metrics || {}).map(([name, value]) => [words(name), value.toFixed(4)]),
    ...comparison(chosen.candidate),
    ...Object.entries(chosen.limits || {}).map(([name, value]) => [
      `limit: ${words(name)}`, typeof value === "number" ? value.toLocaleString("en") : String(value),
    ]),
  ];
  $("about").replaceChildren(
    ...facts.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]),
  );
  $("card").textContent = chosen.card || "";
  $("card").hidden = !chosen.card;
  $("curl").textContent = curl();
}

function comparison(candidate) {
  if (!candidate) return [];
  const answered = Object.entries(candidate.versions || {}).map(([version, { requests, errors, mean_ms }]) => [
    `version ${version}`,
    `${some(requests, "request")}, ${some(errors, "error")}${mean_ms === null ? "" : `, ${milliseconds(mean_ms)} each`}`,
  ]);
  const agreement = candidate.agreement === null ? [] : [["agreement", percent(candidate.agreement)]];
  return [...answered, ...agreement];
}

function curl() {
  const url = new URL(pathOf(chosen.name, ":predict"), location.href).href;
  const lines = [`curl ${url}`];
  if (chosen.accepts[0] === "image" && chosen.zero_shot) {
    lines.push("-F input=@image.jpg", "-F labels='a cat' -F labels='a dog'");
  } else if (chosen.accepts[0] === "image") {
    lines.push("--data-binary @image.jpg -H 'Content-Type: image/jpeg'");
  } else if (chosen.accepts[0] === "question") {
    lines.push(`--json '{"inputs": [{"question": "…", "context": "…"}]}'`);
  } else {
    lines.push("--data-binary 'Some text' -H 'Content-Type: text/plain'");
  }
  if (key) lines.push("-H \"Authorization: Bearer $KEY\"");
  return lines.join(" \\\n  ");
}

// ---------------------------------------------------------------- predicting

const classes = () => [...new Set($("classes").value.split("\n").map((c) => c.trim()).filter(Boolean))];

async function predictImages(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
  if (!images.length) return say("No image was among them.");
  const model = chosen;
  let left = images.length;
  for (const batch of batches(images)) {
    if (chosen !== model) return say(`Another model was chosen: ${some(left, "image")} not asked about.`);
    left -= batch.length;
    const fields = chosen.zero_shot ? classes().map((label) => ["labels", label]) : [];
    const inputs = batch.map((file) => ({
      kind: "image", name: file.name, url: URL.createObjectURL(file),
      explain: (label) => form([file], [["label", label], ...fields]),
    }));
    await run(inputs, form(batch, [["top", String(TOP)], ...fields]));
  }
}

// Files that fit one request, by number and by bytes; one that is too large alone is told so.
function batches(files) {
  const { items = AT_ONCE, body_bytes = Infinity } = chosen.limits || {};
  const most = Math.min(AT_ONCE, items);
  const room = body_bytes - new Blob(classes()).size - PART_BYTES * (classes().length + 1);
  const found = [[]];
  let bytes = 0;
  for (const file of files) {
    const size = file.size + PART_BYTES;
    const last = found.at(-1);
    if (last.length && (last.length === most || bytes + size > room)) {
      found.push([]);
      bytes = 0;
    }
    found.at(-1).push(file);
    bytes += size;
  }
  return found;
}

function predictText() {
  const text = $("text").value;
  if (!text.trim()) return complain("text", "Write or paste a text first.");
  if (chosen.accepts[0] !== "question") {
    const item = { text };
    const input = { kind: "text", text, explain: (label) => json({ inputs: [item], label }) };
    return run([input], json({ inputs: [item], top: TOP }));
  }
  const question = $("question").value.trim();
  if (!question) return complain("question", "Write a question first.");
  return run([{ kind: "question", text, question }], json({ inputs: [{ question, context: text }], top: TOP }));
}

function say(text) {
  $("status").textContent = text;
}

function complain(field, text) {
  say(text);
  $(field).focus();
}

async function run(inputs, options) {
  const model = chosen;
  $("empty").hidden = true;
  $("send").disabled = true;
  const what = inputs.length === 1 ? `one ${inputs[0].kind}` : some(inputs.length, inputs[0].kind);
  say(`Asking about ${what} …`);
  const cards = inputs.map(card);
  const section = make("article", { class: "run waiting", "aria-busy": "true" },
    make("div", { class: "cards" }, ...cards));
  $("runs").prepend(section);
  show(section);
  try {
    const told = await ask(pathOf(model.name, ":predict"), options);
    section.prepend(runHead(told));
    cards.forEach((box, i) => fill(box, inputs[i], told.answers[i], model));
    say(spoken(told, inputs));
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    section.prepend(problemBox(problem));
    cards.forEach((box, i) => fill(box, inputs[i], {}, model));
    say(`No answer: ${problem.message}`);
    if (problem.status === 401 || problem.status === 403) showKeyForm();
  } finally {
    section.classList.remove("waiting");
    section.removeAttribute("aria-busy");
    $("send").disabled = false;
  }
}

// On a phone the answers are below the fields, and would come unseen.
function show(section) {
  if (section.getBoundingClientRect().top < 0.7 * innerHeight) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  $("answers").scrollIntoView({ behavior: still ? "auto" : "smooth" });
}

// What a screen reader is told; eyes see the cards.
function spoken({ answers, tookMs }, inputs) {
  const [first] = answers;
  const one = first.error ? first.error.title
    : first.label !== undefined ? `${first.label}, ${percent(first.probabilities[first.label])}`
    : first.labels ? first.labels.join(", ") || "none of the labels"
    : first.entities ? some(first.entities.length, "entity").replace("entitys", "entities")
    : first.answer || "no answer in the context";
  return inputs.length === 1 ? `${one}, in ${milliseconds(tookMs)}`
    : `${some(answers.length, "answer")} in ${milliseconds(tookMs)}`;
}

// ---------------------------------------------------------------- one request's time and version

function runHead({ version, alias, digest, timing_ms, tookMs }) {
  const { read = 0, queue = 0, infer = 0, total = read + queue + infer } = timing_ms || {};
  const parts = [
    ["way", "network", Math.max(0, tookMs - total)],
    ["read", "read", read], ["queue", "queue", queue], ["infer", "infer", infer],
    ["rest", "rest", Math.max(0, total - read - queue - infer)],
  ];
  const sum = parts.reduce((all, [, , ms]) => all + ms, 0) || 1;
  return make("header", { class: "run-head" },
    make("p", { class: "took" },
      make("span", {}, make("b", {}, milliseconds(tookMs)), " here, ", make("b", {}, milliseconds(total)), " of it in the server"),
      make("span", { class: "which" }, `version ${version}${alias ? ` (${alias})` : ""} · `,
        make("code", { title: `digest ${digest}` }, digest.slice(0, 12)))),
    make("div", { class: "times", "aria-hidden": "true" },
      ...parts.map(([slug, , ms]) => make("i", { class: slug, "--share": String(ms / sum) }))),
    make("ul", { class: "legend" },
      ...parts.filter(([, , ms]) => ms >= 0.05).map(([slug, name, ms]) => make("li", { class: slug }, `${name} ${milliseconds(ms)}`))));
}

// ---------------------------------------------------------------- one answer

function card(input) {
  const box = make("section", { class: `card-${input.kind} answer` });
  if (input.kind === "image") box.append(pictureOf(input));
  box.append(make("div", { class: "said" }, nameOf(input), make("p", { class: "pending" }, "…")));
  return box;
}

function nameOf({ kind, name, question }) {
  if (kind === "image") return make("p", { class: "name" }, name || "pasted image");
  return kind === "question" ? make("p", { class: "name" }, question) : null;
}

function fill(box, input, answer, model) {
  const said = box.querySelector(".said");
  said.querySelector(".pending").remove();
  if (answer.error) said.append(problemBox(answer.error));
  else if (answer.probabilities) said.append(...probabilities(answer, input, model, box));
  else if (answer.entities) said.append(entities(input.text, answer.entities));
  else if (answer.answer !== undefined) said.append(...span(input, answer));
}

function pictureOf({ url, name }) {
  const image = make("img", { src: url, alt: name || "pasted image" });
  const frame = make("div", { class: "frame" }, image);
  image.addEventListener("load", () => {
    image.classList.toggle("tiny", Math.max(image.naturalWidth, image.naturalHeight) < TINY);
  });
  image.addEventListener("error", () => frame.replaceChildren(make("span", {}, "no preview")));
  return make("div", { class: "picture" }, frame);
}

function bar(label, p, told) {
  return make("li", { class: told ? "told" : "", "--p": String(p) },
    make("span", { class: "label" }, label), make("span", { class: "bar" }),
    make("span", { class: "p" }, percent(p)));
}

function probabilities(answer, input, model, box) {
  const told = new Set(answer.labels || [answer.label]);
  const rows = Object.entries(answer.probabilities).map(([label, p]) => bar(label, p, told.has(label)));
  const title = answer.label !== undefined ? answer.label : [...told].join(", ") || "none of the labels";
  const about = answer.label !== undefined ? answer.label : [...told][0] || Object.keys(answer.probabilities)[0];
  const parts = [make("h2", {}, title)];
  const passage = input.kind === "text" ? make("p", { class: "passage" }, input.text) : null;
  if (passage) parts.push(passage);
  parts.push(make("ol", { class: "bars" }, ...rows));
  if (input.explain) parts.push(explainer(input, model, about, box, passage));
  return parts;
}

// Python counts characters, JavaScript UTF-16 units: texts are cut as lists of characters.
const characters = (text) => Array.from(text);

function entities(text, found) {
  const passage = make("p", { class: "passage" });
  const letters = characters(text);
  const kinds = [...new Set(found.map(({ label }) => label))].sort();
  let at = 0;
  for (const { label, start, end, score } of [...found].sort((a, b) => a.start - b.start)) {
    if (start < at) continue; // nested in the one before
    const colour = `e${kinds.indexOf(label) % ENTITY_COLOURS}`;
    passage.append(letters.slice(at, start).join(""),
      make("mark", { class: `entity ${colour}`, title: `${label}, ${percent(score)}` },
        letters.slice(start, end).join(""), make("small", {}, label)));
    at = end;
  }
  passage.append(letters.slice(at).join(""));
  if (found.length) return passage;
  return make("div", {}, make("h2", {}, "No entity found"), passage);
}

function span({ text }, { answer, start, end, score, alternatives = [] }) {
  const letters = characters(text);
  const passage = make("p", { class: "passage" });
  if (answer && start !== null && start !== undefined) {
    passage.append(letters.slice(0, start).join(""), make("mark", {}, letters.slice(start, end).join("")),
      letters.slice(end).join(""));
  } else passage.append(text);
  const others = alternatives.filter((other) => other.answer !== answer);
  return [
    make("h2", {}, answer || "No answer in the context"),
    passage,
    make("ol", { class: "bars" }, bar(answer || "no answer", score, true), ...others.map((other) => bar(other.answer || "no answer", other.score, false))),
  ];
}

// ---------------------------------------------------------------- explaining

function explainer(input, model, label, box, passage) {
  const note = make("p", { class: "note", role: "status" });
  const button = make("button", { type: "button", class: "quiet", "aria-pressed": "false" }, `Explain “${label}”`);
  let hide = null;
  button.addEventListener("click", async () => {
    if (hide) {
      hide();
      hide = null;
      note.textContent = "";
      button.setAttribute("aria-pressed", "false");
      button.textContent = `Explain “${label}”`;
      return;
    }
    button.disabled = true;
    note.textContent = "Hiding one part after the other …";
    try {
      const told = await ask(pathOf(model.name, ":explain"), input.explain(label));
      hide = told.map ? overlay(box, told.map, model) : colourWords(passage, input.text, told.spans || []);
      note.textContent = told.map ? mapWords(told) : spanWords(told, input.text);
      button.setAttribute("aria-pressed", "true");
      button.textContent = "Hide the explanation";
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      note.textContent = problem.message;
    } finally {
      button.disabled = false;
      button.focus();
    }
  });
  return make("div", { class: "explain" }, button, note);
}

// The map covers what the model sees: the middle of the image, of its shorter side or of both.
function overlay(box, { rows, cols, values }, { input = {} }) {
  const most = Math.max(FULL_COLOUR, ...values.flat().map(Math.abs));
  const canvas = make("canvas", { width: String(cols), height: String(rows), role: "img", "aria-label": "what speaks for it" });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(cols, rows);
  values.flat().forEach((value, i) => {
    const colour = value >= 0 ? [255, 110, 20] : [0, 114, 178];
    pixels.data.set([...colour, Math.round(215 * Math.abs(value) / most)], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
  const frame = box.querySelector(".frame");
  const { naturalWidth, naturalHeight } = frame.querySelector("img") || {};
  const shorter = Math.min(naturalWidth, naturalHeight);
  const [wide, high] = input.resize === "squash" ? [1, 1] : [shorter / naturalWidth, shorter / naturalHeight];
  canvas.style.setProperty("--wide", String((input.crop_fraction || 1) * wide));
  canvas.style.setProperty("--high", String((input.crop_fraction || 1) * high));
  frame.classList.add("explained");
  frame.append(canvas);
  return () => {
    canvas.remove();
    frame.classList.remove("explained");
  };
}

function mapWords({ label, map }) {
  const flat = map.values.flat();
  const most = Math.max(...flat), least = Math.min(...flat);
  if (Math.max(most, -least) < NOTHING) return nothing(label);
  const up = most >= NOTHING ? `Orange: hiding it takes up to ${most.toFixed(2)} from “${label}”.` : `Nothing in it speaks for “${label}”.`;
  return least <= -NOTHING ? `${up} Blue: hiding it adds up to ${(-least).toFixed(2)}.` : up;
}

const nothing = (label) => `Hiding any one part changes “${label}” by less than ${NOTHING}.`;

function colourWords(passage, text, spans) {
  const letters = characters(text);
  const most = Math.max(FULL_COLOUR, ...spans.map(({ score }) => Math.abs(score)));
  const parts = [];
  let at = 0;
  for (const { start, end, score } of [...spans].sort((a, b) => a.start - b.start)) {
    if (start < at) continue;
    parts.push(letters.slice(at, start).join(""),
      make("mark", { class: score >= 0 ? "for" : "against", "--weight": String(Math.abs(score) / most), title: signed(score) },
        letters.slice(start, end).join("")));
    at = end;
  }
  parts.push(letters.slice(at).join(""));
  passage.replaceChildren(...parts);
  return () => passage.replaceChildren(text);
}

function spanWords({ label, spans = [] }, text) {
  const letters = characters(text);
  if (spans.every(({ score }) => Math.abs(score) < NOTHING)) return nothing(label);
  const strongest = [...spans].sort((a, b) => b.score - a.score).filter(({ score }) => score >= NOTHING).slice(0, 3);
  if (!strongest.length) return `No single word speaks for “${label}”.`;
  return `Speaks most for “${label}”: ` + strongest
    .map(({ start, end, score }) => `${letters.slice(start, end).join("").trim()} (${signed(score)})`).join(", ");
}

// ---------------------------------------------------------------- the key, and what starts it all

function showKeyForm() {
  $("key-form").hidden = false;
  $("key-toggle").setAttribute("aria-expanded", "true");
  $("key").focus();
}

$("key-toggle").addEventListener("click", () => {
  if ($("key-form").hidden) return showKeyForm();
  $("key-form").hidden = true;
  $("key-toggle").setAttribute("aria-expanded", "false");
});

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key-form").hidden = true;
  $("key-toggle").setAttribute("aria-expanded", "false");
  $("model").focus();
  loadModels();
});

$("model").addEventListener("change", loadModel);

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("text-field").hidden) predictText();
});

$("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});

$("files").addEventListener("change", async () => {
  const files = [...$("files").files];
  $("files").value = ""; // the same file may be chosen again
  if (files.length) await predictImages(files);
});

// The whole window takes drops: a file that misses the field must not replace the page.
for (const name of ["dragenter", "dragover"]) {
  window.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
}
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
window.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (takesImages() && event.dataTransfer.files.length) predictImages(event.dataTransfer.files);
});
window.addEventListener("paste", (event) => {
  if (takesImages() && event.clipboardData.files.length) predictImages(event.clipboardData.files);
});

const takesImages = () => chosen !== null && chosen.accepts[0] === "image";

loadModels();
