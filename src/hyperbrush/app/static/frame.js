// A file dropped beside a zone would make the browser leave the app for it. Zones that take files come first.
for (const name of ["dragover", "drop"])
  window.addEventListener(name, (event) => {
    const isFile = event.dataTransfer && [...event.dataTransfer.types].includes("Files");
    const isField = event.target instanceof HTMLInputElement && event.target.type === "file";
    if (!isFile || isField || event.defaultPrevented) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "none";
  });
