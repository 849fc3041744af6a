"use strict";

const SHOWN = 300, EVERY_MS = 1500, PAGE = 12;
const $ = (id) => document.getElementById(id);
const chosen = { key: "", id: "", kind: "", field: "", points: [], threshold: 0.5 };
let page = 1;

async function call(path, options = {}) {
  const reply = await fetch(path, options);
  const text = await reply.text();
  const lines = (reply.headers.get("content-type") || "").includes("ndjson");
  const body = lines ? text.split("\n").filter(Boolean).map((l) => JSON.parse(l)) : JSON.parse(text);
  if (!reply.ok) throw new Error(body.detail || body.msg || reply.statusText);
  if (body.code) throw new Error(body.msg);
  return body;
}
const ask = async (path, form) => (await call(path, { method: "POST", body: JSON.stringify(form) })).data;

function element(tag, text, more = {}) {
  const made = document.createElement(tag);
  made.textContent = text ?? "";
  for (const [name, value] of Object.entries(more)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  return made;
}
function row(cells, more = {}) {
  const made = element("tr", "", more);
  for (const cell of cells) {
    if (cell instanceof Node && cell.nodeName === "TD") made.append(cell);
    else { const td = element("td"); td.append(cell ?? ""); made.append(td); }
  }
  return made;
}
// Rows are only replaced when they differ, so that focus and selection stay.
function fill(body, rows) {
  const html = rows.map((r) => r.outerHTML).join("");
  if (body.dataset.html === html) return;
  const at = document.activeElement?.dataset?.act;
  body.dataset.html = html;
  body.replaceChildren(...rows);
  if (at) body.querySelector(`[data-act="${CSS.escape(at)}"]`)?.focus();
}
const short = (number) => (number == null ? "–" : Number(Number(number).toPrecision(5)).toString());
// A time stamp as it came, or seconds since 1970 as a date.
const when = (stamp) => (Number.isFinite(Number(stamp)) ? new Date(stamp * 1000).toISOString().slice(0, 19).replace("T", " ") : stamp);
const say = (text) => { $("said").textContent = text; };

async function showStreams() {
  const find = $("find").value.trim();
  const after = find ? find.slice(0, -1) + String.fromCharCode(find.charCodeAt(find.length - 1) - 1) + "~" : "";
  const found = await call(`v1/streams?limit=200&after=${encodeURIComponent(after)}`);
  const list = found.streams.filter((s) => s.id.startsWith(find));
  fill($("stream-rows"), list.map((s) => {
    const key = `${s.id}/${s.kind}`;
    const pick = element("button", s.kind === "multi" ? `${s.id} (fields)` : s.id,
      { class: "link", "data-act": `pick ${key}`, onclick: () => choose(s) });
    const odd = s.last && s.last.is_anomaly;
    return row([pick, element("td", s.records, { class: "n" }),
      element("td", s.last ? short(s.last.likelihood) : "–", { class: odd ? "n odd" : "n" }),
      s.last ? when(s.last.timestamp) : ""], { class: key === chosen.key ? "chosen" : "" });
  }));
  $("no-streams").hidden = list.length > 0;
  $("state").textContent = `${found.count} streams, live`;
  if (!chosen.key && list.length) await choose(list[0]);
}

async function choose(s) {
  Object.assign(chosen, { key: `${s.id}/${s.kind}`, id: s.id, kind: s.kind, field: "", points: [] });
  $("chart-title").textContent = s.id;
  const about = await call(`v1/streams/${s.id}?kind=${s.kind}`);
  chosen.threshold = about.settings.threshold ?? 0.5;
  const field = $("field");
  field.replaceChildren(...(s.kind === "multi" ? about.fields : []).map((f) => element("option", f)));
  field.hidden = s.kind !== "multi";
  chosen.field = field.value;
  await follow();
}

async function follow() {
  if (!chosen.key) return;
  const key = chosen.key, last = chosen.points.at(-1)?.seq || 0;
  const asked = last ? `after=${last}&limit=1000` : `newest=true&limit=${SHOWN}`;
  const more = await call(`v1/streams/${chosen.id}/scores?kind=${chosen.kind}&${asked}`);
  if (key !== chosen.key) return;
  chosen.points = chosen.points.concat(more).slice(-SHOWN);
  draw();
}

const valueOf = (p) => (chosen.kind === "multi" ? p.values[chosen.field] : p.value);
const predictionOf = (p) => (chosen.kind === "multi" ? p.prediction[chosen.field] : p.prediction);

function line(points, x, y, of) {
  let d = "", pen = "M";
  points.forEach((p, i) => {
    const v = of(p);
    if (v == null) { pen = "M"; return; }
    d += `${pen}${x(i).toFixed(1)},${y(v).toFixed(1)}`;
    pen = "L";
  });
  return d;
}

function draw() {
  const plot = $("plot"), points = chosen.points;
  const width = plot.clientWidth, height = plot.clientHeight, left = 52, split = height * 0.66;
  plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const numbers = points.flatMap((p) => [valueOf(p), predictionOf(p)]).filter((v) => v != null);
  const low = Math.min(...numbers), high = Math.max(...numbers), room = (high - low || 1) * 0.06;
  const x = (i) => left + ((width - left - 8) * (i + 0.5)) / Math.max(points.length, 1);
  const y = (v) => 8 + ((high + room - v) / (high - low + 2 * room || 1)) * (split - 24);
  const z = (v) => height - 18 - v * (height - split - 24);
  const parts = [];
  const add = (tag, more, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(more)) made.setAttribute(name, value);
    made.textContent = text;
    parts.push(made);
  };
  const wide = Math.max(3, (width - left - 8) / Math.max(points.length, 1));
  points.forEach((p, i) => {
    if (p.is_anomaly) add("rect", { class: "odd", x: x(i) - wide / 2, y: 4, width: wide, height: height - 22 });
  });
  if (numbers.length) for (const v of [low, (low + high) / 2, high]) {
    add("line", { class: "grid", x1: left, x2: width - 8, y1: y(v), y2: y(v) });
    add("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, short(v));
  }
  for (const v of [0, 1]) add("text", { x: left - 6, y: z(v) + 4, "text-anchor": "end" }, v);
  add("line", { class: "grid", x1: left, x2: width - 8, y1: z(0), y2: z(0) });
  add("line", { class: "threshold", x1: left, x2: width - 8, y1: z(chosen.threshold), y2: z(chosen.threshold) });
  add("path", { class: "prediction", d: line(points, x, y, predictionOf) });
  add("path", { class: "value", d: line(points, x, y, valueOf) });
  add("path", { class: "score", d: line(points, x, z, (p) => p.likelihood) });
  if (points.length) {
    add("text", { x: left, y: height - 3 }, when(points[0].timestamp));
    add("text", { x: width - 8, y: height - 3, "text-anchor": "end" }, when(points.at(-1).timestamp));
    const p = points.at(-1);
    $("latest").textContent = `${when(p.timestamp)}: value ${short(valueOf(p))}, expected ${short(predictionOf(p))}, `
      + `likelihood ${short(p.likelihood)}. ${p.explanation || ""}`;
  }
  plot.dataset.seq = points.at(-1)?.seq ?? "";
  plot.replaceChildren(...parts);
}

async function showAnomalies() {
  const form = Object.fromEntries(new FormData($("filter")));
  const found = await ask("SearchAnomaly", { ...form, requestPage: page, itemPerPage: PAGE });
  $("anomaly-count").textContent = `${found.totalCount}`;
  $("newer").disabled = page <= 1;
  $("older").disabled = page * PAGE >= found.totalCount;
  $("no-anomalies").hidden = found.totalCount > 0;
  fill($("anomaly-rows"), found.anomalyList.map((a) => {
    const judge = element("td");
    for (const [mark, name] of [[1, "false alarm"], [2, "true alarm"]]) {
      const on = a.markFlag === mark;
      judge.append(element("button", name, { "aria-pressed": on, "data-act": `mark ${a.id} ${mark}`,
        onclick: () => act(async () => { await ask("UpdateAnomaly", { id: a.id, markFlag: on ? 0 : mark }); await showAnomalies(); await showTraining(); }) }), " ");
    }
    const metric = element("td", a.attrName, { class: "wrap", title: a.explanation });
    metric.append(element("br"), element("small", `${when(a.time)} · ${a.kind}`));
    judge.className = "judge";
    return row([metric, element("td", short(a.p), { class: "n" }), judge]);
  }));
}

async function showTraining() {
  const [{ count }, tasks, now] = await Promise.all([
    ask("CountSample", {}), ask("QueryTrain", { itemPerPage: 10 }), call("v1/promotion")]);
  $("samples").textContent = `${count[0].total_count} samples: ${count[0].positive_count} normal, ${count[0].negative_count} anomalous`;
  $("promoted").textContent = now.taskId ? `task ${now.taskId}` : "the model that was shipped";
  $("rollback").disabled = !now.taskId;
  fill($("task-rows"), tasks.taskList.map((t) => {
    const bar = element("progress", "", { max: 1, value: t.progress, "aria-label": `progress of ${t.taskId}` });
    const use = element("button", t.promoted ? "in use" : "Promote", { "data-act": `promote ${t.taskId}`,
      onclick: () => act(async () => { await promote({ taskId: t.taskId }); }) });
    if (t.status !== "done" || t.promoted) use.setAttribute("disabled", "");
    return row([t.taskId, element("td", `${t.positiveSampleNum} + ${t.negativeSampleNum}`),
      element("td", t.status, { title: t.detail }), bar, use]);
  }));
}

async function promote(what) {
  await call("v1/promotion", { method: "POST", body: JSON.stringify(what) });
  await showTraining();
}
async function act(work) {
  try { say(""); await work(); } catch (error) { say(error.message); }
}

$("filter").addEventListener("submit", (event) => event.preventDefault());
$("filter").addEventListener("input", () => { page = 1; act(showAnomalies); });
$("newer").addEventListener("click", () => { page -= 1; act(showAnomalies); });
$("older").addEventListener("click", () => { page += 1; act(showAnomalies); });
$("find").addEventListener("input", () => act(showStreams));
$("field").addEventListener("change", () => { chosen.field = $("field").value; draw(); });
$("rollback").addEventListener("click", () => act(() => promote({ rollback: true })));
$("train").addEventListener("click", () => act(async () => {
  const window_ = $("window").value;
  const { taskId } = await ask("Train", { trainOrTest: ["train"], window: window_ ? Number(window_) : "" });
  say(`Task ${taskId} waits for its turn.`);
  await showTraining();
}));
$("upload").addEventListener("submit", (event) => {
  event.preventDefault();
  act(async () => {
    const { data } = await call("ImportSample", { method: "POST", body: new FormData($("upload")) });
    say(`${data.totalCount} samples imported.`);
    await showTraining();
  });
});
addEventListener("resize", draw);

async function tick() {
  try {
    await Promise.all([showStreams().then(follow), showAnomalies(), showTraining()]);
    $("state").classList.remove("bad");
  } catch (error) {
    $("state").textContent = `not live: ${error.message}`;
    $("state").classList.add("bad");
  }
  setTimeout(tick, document.hidden ? 4 * EVERY_MS : EVERY_MS);
}
tick();
