// What the Create page does in the browser itself: completion in the prompt, files put in, a mask painted.
// Whatever comes from outside is shown as text, never as HTML.
window.hyperbrushCreate = (() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const there = async (id) => {  // the page may be a moment behind the server
    while (!$(id)) await new Promise((done) => setTimeout(done, 20));
    return $(id);
  };
  const say = (name, data) => emitEvent("create_" + name, data);

  async function send(address, blob, name) {
    const body = new FormData();
    body.append("file", blob, name || "picture.png");
    const answer = await fetch("/api/v1/" + address, { method: "POST", body });
    const said = await answer.json().catch(() => ({}));
    if (!answer.ok) {
      say("refused", typeof said.detail === "string" ? said.detail : answer.status + " " + answer.statusText);
      return null;
    }
    return said;
  }

  // --- files: a <label class="drop" data-use="start"> with an <input type=file> in it; the page itself reads settings
  async function take(use, file) {
    if (!file) return;
    const said = await send(use === "settings" ? "settings-of" : "uploads", file, file.name);
    if (said) say(use, said);
  }
  const place = (event) => (event.target instanceof Element ? event.target.closest(".drop") : null);
  document.addEventListener("change", (event) => {
    const drop = place(event);
    if (!drop || event.target.type !== "file") return;
    take(drop.dataset.use, event.target.files[0]);
    event.target.value = "";
  });
  const isFile = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    document.querySelectorAll(".drop.over").forEach((d) => d.classList.remove("over"));
    (place(event) || document.querySelector('.drop[data-use="settings"]'))?.classList.add("over");
  });
  for (const name of ["dragleave", "drop"])
    document.addEventListener(name, (event) => {
      document.querySelectorAll(".drop.over").forEach((d) => d.classList.remove("over"));
      if (name === "drop" && isFile(event)) {
        event.preventDefault();
        take(place(event)?.dataset.use || "settings", event.dataTransfer.files[0]);
      }
    });

  // --- completion: what stands between the last "<hypernet:" or "<lora:" and the caret chooses among the names
  let names = [], found = [], at = 0, from = 0;
  const box = () => $("prompt-text");
  const list = () => $("prompt-names");
  function close() {
    found = [];
    if (list()) list().hidden = true;
    box()?.removeAttribute("aria-activedescendant");
  }
  function look() {
    const text = box().value.slice(0, box().selectionStart);
    const match = /<(\w*)$|<(hypernet|lora):([^<>:]*)$/.exec(text);
    if (!match) return close();
    from = match.index;
    const begun = (match[3] || "").normalize("NFC").toLowerCase();
    const fits = (n) => (match[2] ? n.kind === match[2] : n.kind.startsWith(match[1]));
    const places = names.filter(fits).map((n) => [n.name.toLowerCase().indexOf(begun), n]).filter((p) => p[0] >= 0);
    found = places.sort((a, b) => a[0] - b[0]).map((p) => p[1]).slice(0, 12);
    at = 0;
    show();
  }
  function show() {
    if (!found.length) return close();
    const rows = found.map((one, i) => {
      const row = document.createElement("div");
      row.id = "prompt-name-" + i;
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", String(i === at));
      row.textContent = one.kind === "lora" ? one.name + " · LoRA" : one.name;
      row.addEventListener("pointerdown", (event) => { event.preventDefault(); choose(i); });
      return row;
    });
    list().replaceChildren(...rows);
    list().hidden = false;
    rows[at].scrollIntoView({ block: "nearest" });
    box().setAttribute("aria-activedescendant", rows[at].id);
  }
  function says(prompt, words) {  // outside of tags, and not within longer ones
    const whole = words.replace(/[.*+?^${}()|[\]\\\/]/g, "\\$&");
    return new RegExp("(?<![\\p{L}\\p{N}_])" + whole + "(?![\\p{L}\\p{N}_])", "iu").test(prompt.replace(/<[^<>]*>/g, " "));
  }
  function choose(i) {
    const area = box(), one = found[i];
    let end = area.selectionStart;
    const rest = /^[^<>\s]*>/.exec(area.value.slice(end));
    if (rest) end += rest[0].length;
    area.focus();
    area.setSelectionRange(from, end);
    const words = one.words && !says(area.value, one.words) ? one.words + " " : "";
    const tag = words + "<" + one.kind + ":" + one.name + ":" + one.strength + ">";
    area.setRangeText(tag, from, end, "end");
    area.dispatchEvent(new Event("input", { bubbles: true }));
    close();
  }
  document.addEventListener("input", (event) => { if (event.target === box()) look(); });
  document.addEventListener("focusout", (event) => { if (event.target === box()) close(); });
  document.addEventListener("keydown", (event) => {
    if (event.target !== box() || !found.length || event.isComposing || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowDown") at = (at + 1) % found.length;
    else if (event.key === "ArrowUp") at = (at + found.length - 1) % found.length;
    else if (event.key === "Enter" || event.key === "Tab") { event.preventDefault(); return choose(at); }
    else if (event.key === "Escape") { event.preventDefault(); return close(); }
    else return;
    event.preventDefault();
    show();
  }, true);
  async function know(all) {
    names = all;
    const area = await there("prompt-text");
    area.setAttribute("aria-autocomplete", "list");
    area.setAttribute("aria-controls", "prompt-names");
  }

  // --- the mask: painted where the picture is drawn anew, held at the picture's own size (1024 at most)
  const PAINT = "rgb(225 29 143)";
  const MOST_BACK = 20;  // changes that can be taken back
  let canvas = null, shares = null, brush = 0.12, erase = false, last = null, sending = 0, before = [];
  async function open(id, mask) {  // only once picture and mask are there: what is painted before would be lost
    const mine = canvas = await there(id);
    const image = canvas.previousElementSibling;
    await image.decode().catch(() => {});
    if (mine !== canvas || !image.naturalWidth) return;  // another picture took its place, or it cannot be shown
    const scale = Math.min(1, 1024 / Math.max(image.naturalWidth, image.naturalHeight));
    canvas.width = Math.max(8, Math.round(image.naturalWidth * scale));
    canvas.height = Math.max(8, Math.round(image.naturalHeight * scale));
    shares = canvas.getContext("2d");
    if (mask) await load(mask);
    if (mine !== canvas) return;
    before = [];
    canvas.onpointerdown = (event) => { canvas.setPointerCapture(event.pointerId); last = null; note(); stroke(event); };
    canvas.onpointermove = (event) => { if (event.buttons & 1) stroke(event); };
    canvas.onpointerup = () => { last = null; keep(); };
    canvas.onpointercancel = canvas.onpointerup;
    canvas.dataset.ready = "yes";
  }
  async function load(address) {  // grey values become how opaque the paint is
    const [image, on, { width, height }] = [new Image(), shares, canvas];
    image.src = address;
    try { await image.decode(); } catch { return; }
    on.clearRect(0, 0, width, height);
    on.drawImage(image, 0, 0, width, height);
    const pixels = on.getImageData(0, 0, width, height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      pixels.data[i + 3] = pixels.data[i];
      [pixels.data[i], pixels.data[i + 1], pixels.data[i + 2]] = [225, 29, 143];
    }
    on.putImageData(pixels, 0, 0);
  }
  function note() {  // as it stands, before it is changed
    before = [...before.slice(1 - MOST_BACK), shares.getImageData(0, 0, canvas.width, canvas.height)];
  }
  function undo() {
    if (!before.length) return;
    shares.putImageData(before.pop(), 0, 0);
    keep();
  }
  document.addEventListener("keydown", (event) => {
    const isText = event.target.closest?.("input, textarea, [contenteditable]");
    if (!isText && canvas?.isConnected && (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
      event.preventDefault();
      undo();
    }
  });
  function stroke(event) {
    const r = canvas.getBoundingClientRect();
    const x = ((event.clientX - r.left) / r.width) * canvas.width;
    const y = ((event.clientY - r.top) / r.height) * canvas.height;
    shares.globalCompositeOperation = erase ? "destination-out" : "source-over";
    shares.strokeStyle = PAINT;
    shares.lineCap = shares.lineJoin = "round";
    shares.lineWidth = brush * Math.min(canvas.width, canvas.height);
    shares.beginPath();
    shares.moveTo(...(last || [x, y]));
    shares.lineTo(x + 0.01, y);
    shares.stroke();
    last = [x, y];
  }
  function rectangle(left, top, width, height) {  // in per cent
    const [w, h] = [canvas.width / 100, canvas.height / 100];
    note();
    shares.globalCompositeOperation = erase ? "destination-out" : "source-over";
    shares.fillStyle = PAINT;
    shares.fillRect(left * w, top * h, width * w, height * h);
    keep();
  }
  function invert() {
    note();
    shares.globalCompositeOperation = "xor";
    shares.fillStyle = PAINT;
    shares.fillRect(0, 0, canvas.width, canvas.height);
    keep();
  }
  function clear() {
    note();
    shares.clearRect(0, 0, canvas.width, canvas.height);
    keep();
  }
  async function keep() {  // white on black, sent after each stroke: a reload keeps it, and the server has it
    const mine = ++sending;
    const bare = !shares.getImageData(0, 0, canvas.width, canvas.height).data.some((v, i) => i % 4 === 3 && v);
    if (bare) return say("mask", "");
    const out = document.createElement("canvas");
    [out.width, out.height] = [canvas.width, canvas.height];
    const on = out.getContext("2d");
    on.drawImage(canvas, 0, 0);
    for (const [way, colour] of [["source-in", "white"], ["destination-over", "black"]]) {
      on.globalCompositeOperation = way;
      on.fillStyle = colour;
      on.fillRect(0, 0, out.width, out.height);
    }
    say("painting", true);
    const said = await send("uploads", await new Promise((done) => out.toBlob(done)), "mask.png");
    if (said && mine === sending) say("mask", said.id);
  }
  return { know, open, rectangle, invert, clear, undo, use: (size, erasing) => { brush = size; erase = erasing; } };
})();
