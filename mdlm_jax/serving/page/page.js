import { events } from "./events.js";

const at = (id) => document.getElementById(id);
const BOUNDS = [0.01, 0.05, 0.2, 0.5]; // probabilities at which the shade changes
const GAP = /\[MASK\]|<\|?mask\|?>|\{mask:\d+\}/;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let models = [];
let running = null; // aborts the request at hand
let asked = null; // what the text on the page was asked for
let frames = []; // how the canvas looked, one after the other
let shown = -1; // which of them is seen
let timer = null; // of the next one, while they are played

// What the server is asked for

function headers() {
  const key = at("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function refused(response) {
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) document.querySelector(".key").hidden = false;
  const after = response.headers.get("Retry-After");
  const message = body.error?.message ?? `the server answered ${response.status}`;
  return new Error(after ? `${message}; try again in ${after} s` : message);
}

function tell(error) {
  at("error").textContent = error.message;
  at("error").hidden = !error.message;
}

async function load() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) throw await refused(response);
  models = (await response.json()).data;
  at("model").replaceChildren(...models.map((model) => new Option(model.id)));
  choose();
  tell(new Error(""));
}

const model = () => models.find((each) => each.id === at("model").value);

function choose() {
  const { strategies, strategy, steps, answers, lengths } = model();
  at("strategies").replaceChildren(...strategies.map((each) => new Option(each)));
  at("strategy").value = strategy ?? strategies[0];
  at("steps").value = steps;
  at("max_tokens").max = lengths.at(-1);
  at("answers").hidden = !answers;
  hint();
}

function hint() {
  at("masks").hidden = GAP.test(at("prompt").value) || (model()?.answers ?? false);
}

function request() {
  const number = (id) => (at(id).value === "" ? undefined : Number(at(id).value));
  const gaps = at("masks").hidden;
  return {
    model: at("model").value,
    prompt: at("prompt").value,
    strategy: at("strategy").value || undefined,
    steps: number("steps"),
    temperature: number("temperature"),
    seed: number("seed"),
    ...(!gaps && { max_tokens: number("max_tokens"), echo: true }),
  };
}

async function write() {
  running?.abort();
  const mine = (running = new AbortController());
  pause();
  forget();
  tell(new Error(""));
  [frames, shown, asked] = [[], -1, request()];
  working(true);
  try {
    const response = await fetch("v1/completions", {
      method: "POST",
      headers: headers(),
      body: JSON.stringify({ ...asked, stream: true, canvases: true }),
      signal: mine.signal,
    });
    if (!response.ok) throw await refused(response);
    for await (const { name, data } of events(response)) {
      if (data === "[DONE]") break;
      const body = JSON.parse(data);
      if (body.error) throw new Error(body.error.message);
      if (name === "canvas") {
        frames.push(body.canvas);
        timer ??= setTimeout(advance); // a fast model is not faster than the eye
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") tell(error);
  } finally {
    if (running === mine) {
      running = null;
      working(false);
    }
  }
}

function working(yes) {
  at("stop").hidden = !yes;
  at("write").disabled = at("another").disabled = yes;
  at("canvas").setAttribute("aria-busy", yes);
  const replay = !yes && frames.length > 1;
  at("play").hidden = at("step").hidden = !replay;
  at("step").max = Math.max(frames.length - 1, 0);
  at("step").value = shown;
  if (replay && timer !== null) at("play").textContent = "Pause";
}

// What is shown

function token([piece, step, logProb], latest) {
  if (step < 0 && piece !== null) return [piece];
  const made = document.createElement("i");
  if (piece === null) {
    made.className = "blank";
    made.setAttribute("aria-label", "gap");
    return [made];
  }
  const probability = Math.exp(logProb);
  made.className = `c${BOUNDS.filter((bound) => probability >= bound).length}`;
  if (step === latest) made.classList.add("now");
  const [, before, text, after] = /^(\s*)([^]*?)(\s*)$/.exec(piece); // white space has no colour
  made.textContent = text || piece;
  return text ? [before, made, after] : [made];
}

function show(number) {
  const frame = frames[number];
  shown = number;
  const latest = frame.done ? -1 : Math.max(...frame.tokens.map(([, step]) => step));
  at("canvas").replaceChildren(...frame.tokens.flatMap((each) => token(each, latest)));
  at("result").hidden = false;
  const evaluations = frame.evaluations === 1 ? "1 evaluation" : `${frame.evaluations} evaluations`;
  at("count").textContent = evaluations;
  at("step").value = number;
  at("step").setAttribute("aria-valuetext", evaluations);
  if (frame.done) offerAlternatives([...at("canvas").querySelectorAll("i")], frame);
}

function pause() {
  clearTimeout(timer);
  timer = null;
  at("play").textContent = "Play";
}

function advance() {
  const stride = calm.matches ? Math.ceil(frames.length / 12) : 1;
  show(Math.min(shown + stride, frames.length - 1));
  if (shown === frames.length - 1) return pause(); // until another one comes
  timer = setTimeout(advance, calm.matches ? 1000 : Math.max(40, Math.min(400, 5000 / frames.length)));
}

function play() {
  if (timer !== null) return pause();
  show(shown === frames.length - 1 ? 0 : shown);
  timer = setTimeout(advance, 400);
  at("play").textContent = "Pause";
}

// What else the model finds likely at a token

let hovered = null;
const known = new Map(); // by the number of the token

function forget() {
  hovered = null;
  known.clear();
  at("alternatives").hidden = true;
}

function offerAlternatives(nodes, frame) {
  nodes.forEach((node, number) => {
    node.classList.add("open");
    node.tabIndex = 0;
    const open = () => {
      hovered = number;
      setTimeout(() => hovered === number && alternatives(node, number, frame), 250);
    };
    const close = () => {
      hovered = null;
      at("alternatives").hidden = true;
    };
    node.addEventListener("pointerenter", open);
    node.addEventListener("focus", open);
    node.addEventListener("pointerleave", close);
    node.addEventListener("blur", close);
  });
}

async function alternatives(node, number, frame) {
  try {
    if (!known.has(number)) {
      const { model, prompt, max_tokens } = asked;
      const response = await fetch("v1/alternatives", {
        method: "POST",
        headers: headers(),
        body: JSON.stringify({ model, prompt, max_tokens, written: frame.written, position: number }),
      });
      if (!response.ok) throw await refused(response);
      known.set(number, await response.json());
    }
    if (hovered === number) tooltip(node, known.get(number));
  } catch (error) {
    tell(error);
  }
}

function tooltip(node, { data, chosen }) {
  const list = document.createElement("ol");
  const others = data.some(({ id }) => id === chosen.id) ? data : [...data, chosen];
  for (const { id, token: piece, logprob } of others) {
    const item = document.createElement("li");
    const [name, bar, share] = ["span", "meter", "span"].map((tag) => document.createElement(tag));
    item.classList.toggle("chosen", id === chosen.id);
    name.className = "piece";
    name.textContent = piece.trim() === "" ? JSON.stringify(piece) : piece.trim();
    bar.value = Math.exp(logprob);
    share.className = "share";
    const percent = 100 * Math.exp(logprob);
    share.textContent = percent < 0.1 ? "< 0.1 %" : `${Number(percent.toPrecision(2))} %`;
    item.append(name, bar, share);
    list.append(item);
  }
  const box = at("alternatives");
  box.replaceChildren(list);
  box.hidden = false;
  const [of, within] = [node.getClientRects()[0], at("result").getBoundingClientRect()];
  const left = Math.min(of.left - within.left, within.width - box.offsetWidth);
  box.style.left = `${Math.max(left, 0)}px`;
  box.style.top = `${of.bottom - within.top + 6}px`;
}

// What a person does

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  write();
});
at("another").addEventListener("click", () => {
  at("seed").value = Number(at("seed").value) + 1;
  at("form").requestSubmit();
});
at("stop").addEventListener("click", () => running?.abort());
at("model").addEventListener("change", choose);
at("prompt").addEventListener("input", hint);
at("key").addEventListener("change", () => load().catch(tell));
at("play").addEventListener("click", play);
at("step").addEventListener("input", () => {
  pause();
  show(Number(at("step").value));
});
at("prompt").value ||= "The city of [MASK] [MASK] lies on the river {mask:3}.";
load().catch(tell);
