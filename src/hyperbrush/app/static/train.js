// Pictures chosen or dropped on the page "Train" go to the REST API in parts; the page is told how far it is.
(() => {
  const PART_FILES = 20, PART_BYTES = 48 * 2 ** 20;

  async function filesOf(entry) {
    if (entry.isFile) {
      const file = await new Promise((found, failed) => entry.file(found, failed));
      file.place = entry.fullPath.replace(/^\//, "");  // with its folders
      return [file];
    }
    const reader = entry.createReader(), found = [];
    for (;;) {
      const some = await new Promise((read, failed) => reader.readEntries(read, failed));
      if (!some.length) break;
      for (const inner of some) if (!inner.name.startsWith(".")) found.push(...await filesOf(inner));
    }
    return found;
  }

  const placeOf = (file) => file.place || file.name;
  const stem = (file) => placeOf(file).replace(/\.[^.]*$/, "").replace(/\.mask$/, "");
  const isRows = (file) => /^metadata\.(jsonl|csv|parquet)$/.test(file.name);  // captions of several pictures
  const isCaption = (file) => /\.(txt|caption)$/i.test(file.name) || isRows(file);
  const PICTURE = /\.(png|jpe?g|jfif|webp|bmp|gif|tiff?|avif|jp2|j2k|jpx|tga|ico|p[pgbn]m|hei[cf]|hif|jxl)$/i;
  const isPicture = (file) => PICTURE.test(file.name) || file.type.startsWith("image/");
  const isUseful = (file) => isPicture(file) || isCaption(file);

  function parts(files) {  // a picture, its caption and its mask stay together; what has captions of several comes last
    const order = (a, b) => isRows(a) - isRows(b) || (stem(a) < stem(b) ? -1 : stem(a) > stem(b) ? 1 : 0);
    const sorted = [...files].sort(order);
    const found = [];
    let part = [], bytes = 0;
    sorted.forEach((file, i) => {
      const fresh = i === 0 || stem(file) !== stem(sorted[i - 1]);
      if (part.length && fresh && (part.length >= PART_FILES || bytes + file.size > PART_BYTES)) {
        found.push(part);
        part = []; bytes = 0;
      }
      part.push(file); bytes += file.size;
    });
    return part.length ? [...found, part] : found;
  }

  async function made(wanted) {
    for (const name of [wanted, ""]) {
      const answer = await fetch("/api/v1/datasets", {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ name }),
      });
      if (answer.ok) return (await answer.json()).name;
      if (!name) throw new Error((await answer.json()).detail);
    }
  }

  async function send(files, folder) {
    const place = document.querySelector(".drop"), useful = files.filter(isUseful);
    const all = { name: place.dataset.dataset, added: 0, present: 0, captions: 0, refused: [], error: "" };
    all.refused = files.filter((f) => !isUseful(f)).map((f) => ({ name: f.name, reason: "" }));
    const inside = folder && !all.name;  // a new dataset takes the place of the one folder
    let done = 0;
    try {
      if (useful.length && !all.name) all.name = await made(folder);
      for (const part of parts(useful)) {
        emitEvent("train_sending", { done, total: useful.length });
        const form = new FormData();
        for (const file of part) form.append("files", file, inside ? placeOf(file).split("/").slice(1).join("/") : placeOf(file));
        const answer = await fetch(`/api/v1/datasets/${encodeURIComponent(all.name)}/pictures`, { method: "POST", body: form });
        const said = await answer.json().catch(() => ({}));
        if (answer.ok) {
          all.added += said.added.length; all.present += said.present.length; all.captions += said.captions;
          all.refused.push(...said.refused);
        } else if (answer.status === 400 && part.length < useful.length) {
          all.refused.push({ name: part.map((f) => f.name).slice(0, 3).join(", "), reason: String(said.detail) });
        } else {
          throw new Error(typeof said.detail === "string" ? said.detail : answer.statusText);
        }
        done += part.length;
      }
    } catch (error) {
      all.error = String(error.message || error);
    }
    all.refused_in_all = all.refused.length;
    all.refused = all.refused.slice(0, 200);
    emitEvent("train_sent", all);
  }

  document.addEventListener("change", (event) => {
    if (!event.target.matches?.(".drop input[type=file]")) return;
    const files = [...event.target.files];
    event.target.value = "";
    if (files.length) send(files, "");
  });
  document.addEventListener("dragover", (event) => {
    if (![...(event.dataTransfer?.types || [])].includes("Files")) return;
    event.preventDefault();
    document.querySelector(".drop")?.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.querySelector(".drop")?.classList.remove("over");
  });
  document.addEventListener("drop", async (event) => {
    const entries = [...(event.dataTransfer?.items || [])].map((i) => i.webkitGetAsEntry?.()).filter(Boolean);
    const plain = [...(event.dataTransfer?.files || [])];
    if (!plain.length && !entries.length) return;
    event.preventDefault();
    document.querySelector(".drop")?.classList.remove("over");
    const files = entries.length ? (await Promise.all(entries.map(filesOf))).flat() : plain;
    const folder = entries.length === 1 && entries[0].isDirectory ? entries[0].name : "";
    if (files.length) send(files, folder);
  });
})();
