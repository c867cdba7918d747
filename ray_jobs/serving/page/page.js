// The page: one upload brings the picture and the maps; from there on the threshold, the outlines
// and the layers are drawn here. Only the mask's download asks the server again.

import { outline } from "./outline.js";

const LINE = { whole: "#ffd60a", members: ["#00e5ff", "#ff7ad9", "#8cff66"] };
const LAYERS = {
  probability: { colour: [0, 90, 255], low: "probability 0", high: "1", strength: 0.8 },
  disagreement: { colour: [230, 0, 126], low: "members agree", high: "disagree", strength: 0.9 },
};
const HIGHEST = 65535;
const WIDEST_DEVIATION = Math.SQRT2 / 3; // of three numbers in [0, 1]

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
let about = null; // what the server says of the model
let token = "";
let shown = null; // { file, picture, found, map, maps, paths, layers }
let asked = 0; // uploads so far: of two, the later one counts

const whole = (number) => number.toLocaleString("en");
const percent = (share) => `${(100 * share).toFixed(1)} %`;

async function ask(path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", body, headers });
  } catch {
    throw new Error("The server does not answer.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) throw new Error("That is not the server's token.");
  const text = await answer.text();
  let reason = text;
  try {
    const { detail } = JSON.parse(text);
    reason = typeof detail === "string" ? detail : text;
  } catch {
    // Serve's own refusals are plain text.
  }
  throw new Error(reason || `The server answers ${answer.status}.`);
}

async function begin() {
  try {
    about = await (await ask("v1/model")).json();
  } catch (error) {
    return say("", error.message);
  }
  const members = about.members > 1 ? `, ${about.members} members` : "";
  $("about").textContent = `${about.model}${members}`;
  $("limits").textContent =
    `${about.formats.join(", ")}; at most ${about.max_bytes / 2 ** 20} MiB and ` +
    `${about.max_pixels / 1e6} megapixels`;
  $("who").textContent = about.members > 1 ? "All together" : "The model";
  for (const part of [$("disagreeing"), ...document.querySelectorAll(".many")])
    part.hidden = about.members < 2;
  if ($("unlock")) $("unlock").hidden = true;
  $("choose").hidden = false;
  say("");
  if (token) $("file").focus();
}

function say(status, error = "") {
  $("status").textContent = status;
  $("error").textContent = error;
}

async function segment(file) {
  const turn = ++asked;
  clear();
  if (file.size > about.max_bytes)
    return say("", `${file.name}: larger than ${about.max_bytes / 2 ** 20} MiB.`);
  say(`Segmenting ${file.name} …`);
  try {
    const found = await (await ask("v1/view", form(file))).json();
    const picture = await createImageBitmap(new Blob([bytes(found.picture)]));
    if (turn !== asked) return;
    show(file, found, picture);
    say(`${file.name} is outlined.`);
  } catch (error) {
    if (turn === asked) say("", error.message);
  }
}

function form(file) {
  const body = new FormData();
  body.append("image", file);
  return body;
}

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

function decode(text) {
  const view = new DataView(bytes(text).buffer);
  return Float32Array.from({ length: view.byteLength / 2 }, (_, i) => view.getUint16(2 * i, true) / HIGHEST);
}

function clear() {
  shown = null;
  $("result").hidden = true;
  document.body.classList.remove("seen");
}

function show(file, found, picture) {
  const [map, maps] = [decode(found.map), found.maps.map(decode)];
  const { width, height } = found.frame;
  shown = { file, picture, found, map };
  shown.layers = { probability: layer("probability", map), disagreement: layer("disagreement", deviation(maps)) };
  shown.paths = maps.map((own, i) => outline(own, width, height, found.members[i].threshold));
  $("name").textContent = `${file.name}, ${found.width} x ${found.height} pixels`;
  $("threshold").max = found.thresholds.length - 1;
  $("own").textContent = `Back to the model's ${about.threshold}`;
  $("disagreement").textContent = `${percent(found.disagreement)} of what any calls lesion`;
  listMembers(found.members);
  document.body.classList.add("seen");
  $("result").hidden = false;
  choose(found.thresholds.indexOf(found.threshold));
}

function listMembers(members) {
  const kept = [...$("members").querySelectorAll("input")].map((box) => box.checked);
  const rows = members.length < 2 ? [] : members.map((member, i) => {
    const row = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: kept[i] ?? false });
    const line = document.createElement("i");
    line.className = `line m${i % LINE.members.length}`;
    line.ariaHidden = "true";
    const [text, area] = [document.createElement("span"), document.createElement("span")];
    text.textContent = `Member ${i + 1}, above ${member.threshold}`;
    area.textContent = `${whole(member.area)} px`;
    row.append(box, " ", line, " ", text, " ", area);
    return row;
  });
  $("members").replaceChildren(...rows);
}

function choose(index) {
  const { found, map } = shown;
  const threshold = found.thresholds[index];
  const { width, height } = found.frame;
  shown.index = index;
  shown.path = outline(map, width, height, threshold);
  const area = found.areas[index];
  const share = percent(area / (found.width * found.height));
  $("threshold").value = index;
  $("threshold").ariaValueText = String(threshold);
  $("chosen").textContent = threshold;
  $("area").textContent = `${whole(area)} px`;
  $("share").textContent = share;
  $("own").disabled = threshold === about.threshold;
  canvas.ariaLabel = `${shown.file.name} with its outline: ${whole(area)} pixels, ${share} of the image`;
  draw();
}

// The standard deviation between members, of 1 where it is the widest that there is.
function deviation(maps) {
  return maps[0].map((_, i) => {
    const mean = maps.reduce((sum, map) => sum + map[i], 0) / maps.length;
    const square = maps.reduce((sum, map) => sum + (map[i] - mean) ** 2, 0) / maps.length;
    return Math.min(1, Math.sqrt(square) / WIDEST_DEVIATION);
  });
}

function layer(name, values) {
  const { width, height } = shown.found.frame;
  const { colour, strength } = LAYERS[name];
  const pixels = new ImageData(width, height);
  values.forEach((value, i) => pixels.data.set([...colour, 255 * strength * value], 4 * i));
  const small = new OffscreenCanvas(width, height);
  small.getContext("2d").putImageData(pixels, 0, 0);
  return small;
}

function draw() {
  if (!shown) return;
  const { found, picture } = shown;
  const place = canvas.parentElement;
  const style = getComputedStyle(place);
  const room = place.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const tallest = innerHeight * (getComputedStyle(place).position === "sticky" ? 0.45 : 0.8);
  const width = Math.min(room, (tallest * found.width) / found.height);
  const height = (width * found.height) / found.width;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * devicePixelRatio);
  canvas.height = Math.round(height * devicePixelRatio);

  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const name = document.querySelector("[name=layer]:checked").value;
  $("scale").hidden = name === "none";
  if (name !== "none") {
    pen.drawImage(shown.layers[name], 0, 0, canvas.width, canvas.height);
    $("scale").className = name;
    [$("low").textContent, $("high").textContent] = [LAYERS[name].low, LAYERS[name].high];
  }
  const boxes = [...$("members").querySelectorAll("input")];
  boxes.forEach((box, i) => box.checked && line(pen, shown.paths[i], LINE.members[i % LINE.members.length], 1.5));
  if ($("whole").checked) line(pen, shown.path, LINE.whole, 2.5);
}

function line(pen, path, colour, width) {
  const { frame } = shown.found;
  const there = new Path2D();
  there.addPath(path, new DOMMatrix([canvas.width / frame.width, 0, 0, canvas.height / frame.height, 0, 0]));
  pen.lineCap = pen.lineJoin = "round";
  for (const [stroke, extra] of [["#000", 2], [colour, 0]]) {
    pen.strokeStyle = stroke;
    pen.lineWidth = (width + extra) * devicePixelRatio;
    pen.stroke(there);
  }
}

async function download() {
  const { file, found, index } = shown;
  $("download").disabled = true;
  try {
    const answer = await ask(`v1/segment?format=png&threshold=${found.thresholds[index]}`, form(file));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = `${file.name.replace(/\.[^.]*$/, "")}_segmentation.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    say(`${link.download} is downloaded.`);
  } catch (error) {
    say("", error.message);
  } finally {
    $("download").disabled = false;
  }
}

$("unlock")?.addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  begin();
});
$("file").addEventListener("change", () => $("file").files[0] && segment($("file").files[0]));
$("threshold").addEventListener("input", () => choose($("threshold").valueAsNumber));
$("own").addEventListener("click", () => choose(shown.found.thresholds.indexOf(about.threshold)));
$("panel").addEventListener("change", draw);
$("download").addEventListener("click", download);
addEventListener("resize", draw);
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("choose").classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget || $("choose").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("choose").classList.remove("over");
  if (about && event.dataTransfer.files[0]) segment(event.dataTransfer.files[0]);
});
if (!$("unlock")) begin();
