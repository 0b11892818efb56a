(() => {
  "use strict";
  const root = document.documentElement;
  const kept = {
    get: () => { try { return localStorage.getItem("hone-theme"); } catch { return null; } },
    set: (name) => { try { localStorage.setItem("hone-theme", name); } catch { /* not kept */ } },
  };
  if (kept.get()) root.dataset.theme = kept.get();
  const button = document.getElementById("theme");
  button.hidden = false;
  button.addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    kept.set(root.dataset.theme);
  });

  // What is folded is printed too.
  addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("details")) each.open = true;
  });

  // Hovering a chart tells the values nearest to the pointer.
  const tip = document.getElementById("tip");
  const nearest = (points, x) =>
    points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const series = JSON.parse(figure.dataset.chart).filter((each) => each.points.length);
    const plot = figure.querySelector(".plot");
    const hair = document.createElement("div");
    hair.className = "hair";
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const x = Math.min(1000, Math.max(0, (1000 * (event.clientX - box.left)) / box.width));
      const found = series.map((each) => [each.label, nearest(each.points, x)]);
      if (!found.length) return;
      tip.textContent = found
        .map(([label, point]) => `${label}  ${point[3]}  at step ${point[2].toLocaleString("en")}`)
        .join("\n");
      hair.style.left = `${found[0][1][0] / 10}%`;
      plot.append(hair);
      tip.hidden = false;
      const right = event.pageX + 14 + tip.offsetWidth > root.clientWidth;
      tip.style.left = `${right ? Math.max(4, event.pageX - 14 - tip.offsetWidth) : event.pageX + 14}px`;
      tip.style.top = `${event.pageY + 16}px`;
    });
    plot.addEventListener("pointerleave", () => {
      tip.hidden = true;
      hair.remove();
    });
  }
})();
