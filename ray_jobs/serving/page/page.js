// One upload returns a preview and the probability maps; the threshold, the contours and the layers
// are then drawn in the browser. Only another class and the download of the mask call the server
// again.

import { contourPath } from "./contour.js";

const OUTLINE_COLORS = { model: "#ffd60a", members: ["#00e5ff", "#ff7ad9", "#8cff66"] };
const LAYERS = {
  probability: { color: [0, 90, 255], low: "probability 0", high: "1", opacity: 0.8 },
  uncertainty: { color: [230, 0, 126], low: "members agree", high: "members differ", opacity: 0.9 },
};
const MAX_UINT16 = 65535;
const MAX_STD = 0.5; // the largest standard deviation of numbers between 0 and 1

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
let modelInfo = null; // the answer of /v1/model
let token = "";
let current = null; // { file, preview, result, probability, layers, memberPaths, path, index }
let className = ""; // the chosen one; "" if the model has one class
let uploadCount = 0; // only the answer to the latest upload is shown

const formatInteger = (number) => number.toLocaleString("en");
const formatPercent = (fraction) => `${(100 * fraction).toFixed(1)} %`;

async function request(path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", body, headers });
  } catch {
    throw new Error("The server does not respond.");
  }
  if (response.ok) return response;
  if (response.status === 401) throw new Error("Invalid token.");
  const text = await response.text();
  let reason = text;
  try {
    const { detail } = JSON.parse(text);
    reason = typeof detail === "string" ? detail : text;
  } catch {
    // Ray Serve's own errors are plain text.
  }
  throw new Error(reason || `The server returned status ${response.status}.`);
}

async function loadModel() {
  try {
    modelInfo = await (await request("v1/model")).json();
  } catch (error) {
    return setStatus("", error.message);
  }
  const isEnsemble = modelInfo.num_members > 1;
  $("model").textContent = modelInfo.model + (isEnsemble ? `, ${modelInfo.num_members} members` : "");
  $("limits").textContent =
    `${modelInfo.formats.join(", ")}; at most ${modelInfo.max_bytes / 2 ** 20} MiB and ` +
    `${modelInfo.max_pixels / 1e6} megapixels`;
  listClasses(modelInfo.classes);
  $("model-name").textContent = isEnsemble ? "Ensemble" : "Model";
  for (const element of [$("disagreement-row"), ...document.querySelectorAll(".ensemble-only")])
    element.hidden = !isEnsemble;
  if ($("login")) $("login").hidden = true;
  $("upload").hidden = false;
  setStatus("");
  if (token) $("file").focus();
}

function listClasses(classes) {
  const isSingle = classes.length < 2;
  className = isSingle ? "" : classes[0].name;
  $("class-field").hidden = isSingle;
  $("class").replaceChildren(...classes.map(({ name }) => new Option(name, name)));
  nameClass();
}

function nameClass() {
  if (!className) return;
  document.querySelector(".class-name").textContent = className;
  $("area-name").textContent = `Area of ${className}`;
  $("probability-name").textContent = `Probability of ${className}`;
}

const query = (values) => {
  const text = String(new URLSearchParams(className ? { ...values, class: className } : values));
  return text && `?${text}`;
};

const modelThreshold = () =>
  modelInfo.classes.find(({ name }) => !className || name === className).threshold;

function setStatus(status, error = "") {
  $("status").textContent = status;
  $("error").textContent = error;
}

async function segment(file) {
  const upload = ++uploadCount;
  clearResult();
  if (file.size > modelInfo.max_bytes)
    return setStatus("", `${file.name}: larger than ${modelInfo.max_bytes / 2 ** 20} MiB.`);
  setStatus(`Segmenting ${file.name} …`);
  try {
    const result = await (await request(`v1/view${query({})}`, imageForm(file))).json();
    const preview = await createImageBitmap(new Blob([decodeBase64(result.preview)]));
    if (upload !== uploadCount) return;
    showResult(file, result, preview);
    setStatus(`${file.name}: segmented.`);
  } catch (error) {
    if (upload === uploadCount) setStatus("", error.message);
  }
}

function imageForm(file) {
  const form = new FormData();
  form.append("image", file);
  return form;
}

const decodeBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

function decodeMap(text) {
  const view = new DataView(decodeBase64(text).buffer);
  return Float32Array.from({ length: view.byteLength / 2 }, (_, i) => view.getUint16(2 * i, true) / MAX_UINT16);
}

function clearResult() {
  current = null;
  $("result").hidden = true;
  document.body.classList.remove("has-result");
}

function showResult(file, result, preview) {
  const probability = decodeMap(result.probability);
  const memberMaps = result.member_probabilities.map(decodeMap);
  const uncertainty = result.uncertainty ? decodeMap(result.uncertainty) : []; // null for one member
  const { width, height } = result.frame;
  current = { file, preview, result, probability };
  current.layers = {
    probability: renderLayer("probability", probability),
    uncertainty: renderLayer("uncertainty", uncertainty.map((std) => std / MAX_STD)),
  };
  current.memberPaths = memberMaps.map((memberMap, i) =>
    contourPath(memberMap, width, height, result.members[i].threshold));
  $("name").textContent = `${file.name}, ${result.width} x ${result.height} pixels`;
  $("threshold").max = result.thresholds.length - 1;
  $("reset-threshold").textContent = `Reset to the model's ${modelThreshold()}`;
  $("disagreement").textContent = `${formatPercent(result.disagreement)} of the pixels marked by any`;
  listMembers(result.members);
  document.body.classList.add("has-result");
  $("result").hidden = false;
  selectThreshold(result.thresholds.indexOf(result.threshold));
}

function listMembers(members) {
  const checked = [...$("members").querySelectorAll("input")].map((box) => box.checked);
  const rows = members.length < 2 ? [] : members.map((member, i) => {
    const row = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: checked[i] ?? false });
    const line = document.createElement("i");
    line.className = `line m${i % OUTLINE_COLORS.members.length}`;
    line.ariaHidden = "true";
    const [text, area] = [document.createElement("span"), document.createElement("span")];
    text.textContent = `Member ${i + 1}, above ${member.threshold}`;
    area.textContent = `${formatInteger(member.area)} px`;
    row.append(box, " ", line, " ", text, " ", area);
    return row;
  });
  $("members").replaceChildren(...rows);
}

function selectThreshold(index) {
  const { result, probability } = current;
  const threshold = result.thresholds[index];
  const { width, height } = result.frame;
  current.index = index;
  current.path = contourPath(probability, width, height, threshold);
  const area = `${formatInteger(result.areas[index])} px`;
  const fraction = formatPercent(result.areas[index] / (result.width * result.height));
  $("threshold").value = index;
  $("threshold").ariaValueText = String(threshold);
  $("threshold-value").textContent = threshold;
  $("area").textContent = area;
  $("area-fraction").textContent = fraction;
  $("reset-threshold").disabled = threshold === modelThreshold();
  canvas.ariaLabel = `${current.file.name} with the outline of ${className || "the lesion"}: ${area}, ${fraction} of the image`;
  draw();
}

function renderLayer(name, values) {
  const { width, height } = current.result.frame;
  const { color, opacity } = LAYERS[name];
  const pixels = new ImageData(width, height);
  values.forEach((value, i) => pixels.data.set([...color, 255 * opacity * value], 4 * i));
  const layer = new OffscreenCanvas(width, height);
  layer.getContext("2d").putImageData(pixels, 0, 0);
  return layer;
}

function draw() {
  if (!current) return;
  const { result, preview } = current;
  const container = canvas.parentElement;
  const style = getComputedStyle(container);
  const available = container.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const maxHeight = innerHeight * (style.position === "sticky" ? 0.45 : 0.8);
  const width = Math.min(available, (maxHeight * result.width) / result.height);
  const height = (width * result.height) / result.width;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * devicePixelRatio);
  canvas.height = Math.round(height * devicePixelRatio);

  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(preview, 0, 0, canvas.width, canvas.height);
  const name = document.querySelector("[name=layer]:checked").value;
  $("scale").hidden = name === "none";
  if (name !== "none") {
    context.drawImage(current.layers[name], 0, 0, canvas.width, canvas.height);
    $("scale").className = name;
    [$("low").textContent, $("high").textContent] = [LAYERS[name].low, LAYERS[name].high];
  }
  const { model, members } = OUTLINE_COLORS;
  $("members").querySelectorAll("input").forEach((box, i) =>
    box.checked && strokePath(context, current.memberPaths[i], members[i % members.length], 1.5));
  if ($("model-contour").checked) strokePath(context, current.path, model, 2.5);
}

function strokePath(context, path, color, width) {
  const { frame } = current.result;
  const scaledPath = new Path2D();
  scaledPath.addPath(path, new DOMMatrix([canvas.width / frame.width, 0, 0, canvas.height / frame.height, 0, 0]));
  context.lineCap = context.lineJoin = "round";
  for (const [stroke, extra] of [["#000", 2], [color, 0]]) {
    context.strokeStyle = stroke;
    context.lineWidth = (width + extra) * devicePixelRatio;
    context.stroke(scaledPath);
  }
}

async function download() {
  const { file, result, index } = current;
  $("download").disabled = true;
  try {
    const response = await request(
      `v1/segment${query({ format: "png", threshold: result.thresholds[index] })}`, imageForm(file));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = `${file.name.replace(/\.[^.]*$/, "")}${className && `_${className}`}_segmentation.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    setStatus(`${link.download}: downloaded.`);
  } catch (error) {
    setStatus("", error.message);
  } finally {
    $("download").disabled = false;
  }
}

$("login")?.addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  loadModel();
});
$("file").addEventListener("change", () => $("file").files[0] && segment($("file").files[0]));
$("threshold").addEventListener("input", () => selectThreshold($("threshold").valueAsNumber));
$("reset-threshold").addEventListener("click", () =>
  selectThreshold(current.result.thresholds.indexOf(modelThreshold())));
$("class").addEventListener("change", () => {
  className = $("class").value;
  nameClass();
  segment(current.file).then(() => $("class").focus()); // it was hidden in the meantime
});
$("panel").addEventListener("change", draw);
$("download").addEventListener("click", download);
addEventListener("resize", draw);
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("upload").classList.add("drag-over");
});
addEventListener("dragleave", (event) => event.relatedTarget || $("upload").classList.remove("drag-over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("upload").classList.remove("drag-over");
  if (modelInfo && event.dataTransfer.files[0]) segment(event.dataTransfer.files[0]);
});
if (!$("login")) loadModel();
