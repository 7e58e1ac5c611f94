// Small pictures at whole multiples of their pixels, in a stage (class "fit") as large as it allows; or all of them smoothed.
window.hyperbrushPictures = (() => {
  "use strict";
  const root = document.documentElement;
  const isSmooth = () => root.classList.contains("smooth");
  root.classList.toggle("smooth", /(^|; )smooth=yes/.test(document.cookie));

  function fit(stage) {
    const image = stage.querySelector("img");
    if (!image || !image.naturalWidth || !stage.clientWidth) return;
    let times = Math.min(stage.clientWidth / image.naturalWidth, stage.clientHeight / image.naturalHeight);
    const crisp = times >= 1 && !isSmooth();
    if (crisp) times = Math.floor(times);
    image.classList.toggle("pixels", crisp);
    image.style.width = Math.max(1, Math.floor(image.naturalWidth * times)) + "px";
  }
  const sizes = new ResizeObserver((seen) => seen.forEach((one) => fit(one.target)));
  document.addEventListener("load", (event) => {
    const stage = event.target instanceof HTMLImageElement && event.target.closest(".fit");
    if (!stage) return;
    sizes.observe(stage);
    fit(stage);
  }, true);

  function smooth(wanted) {
    document.cookie = "smooth=" + (wanted ? "yes" : "no") + "; path=/; max-age=31536000; samesite=strict";
    root.classList.toggle("smooth", wanted);
    document.querySelectorAll(".fit").forEach(fit);
  }
  return { smooth };
})();
