// Draws the charts of a page. A section [data-charts="address"] fetches all of its charts at once and shares them out to the
// [data-chart="name"] below it; it fetches again when live.js tells it to refresh.
(() => {
  "use strict";
  const HEIGHT = 190;
  const drawn = new Map(); // element -> {plot, data}
  // A canvas needs the colour that light-dark() comes to, which only a real property of a real element tells.
  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  const css = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const palette = (count) => Array.from({ length: count }, (_, place) => css(`--chart-${(place % 12) + 1}`));

  const format = (value, unit) => {
    if (value === null || value === undefined) return "–";
    const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 1 ? 1 : 3;
    const text = Number(value.toFixed(digits)).toLocaleString("en-GB");
    return unit ? `${text} ${unit}` : text;
  };

  // Layers are drawn from the top down, each over the ones below, so a stack is cumulative sums in reverse.
  const stacked = (series) => {
    const sums = [];
    series.forEach((layer, place) => {
      sums.push(layer.values.map((value, at) => (value === null ? null : value + (place ? (sums[place - 1][at] ?? 0) : 0))));
    });
    return sums;
  };

  const options = (element, chart) => {
    const colors = palette(chart.series.length);
    const grid = { stroke: css("--grid"), width: 1 };
    const axis = { stroke: css("--muted"), grid, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const stack = chart.kind === "stack";
    const series = chart.series.map((one, place) => ({
      label: one.label,
      stroke: colors[place],
      width: stack ? 0.5 : 2,
      dash: one.dashed ? [6, 4] : undefined,
      fill: stack ? colors[place] : undefined,
      spanGaps: false,
      points: { show: !chart.time || chart.x.length < 3, size: 5 },
      value: (_plot, _raw, _place, at) => (at === null ? "–" : format(one.values[at], chart.unit)),
    }));
    return {
      width: element.clientWidth || 300,
      height: HEIGHT,
      legend: { live: true },
      cursor: { drag: { x: false, y: false }, points: { show: !stack } },
      scales: {
        x: { time: chart.time },
        y: stack ? { range: [0, 100] } : { range: (_plot, low, high) => (low === high ? [Math.min(0, low), (high || 1) * 1.2] : uPlot.rangeNum(low, high, 0.12, true)) },
      },
      axes: [
        { ...axis, space: 56, ...(chart.time ? {} : { incrs: [1, 2, 5, 10, 20, 50, 100], values: (_plot, splits) => splits.map((value) => (Number.isInteger(value) ? value : "")) }) },
        { ...axis, size: 52, values: (_plot, splits) => splits.map((value) => format(value, "")) },
      ],
      // For a stack the first layer must be painted last, or the sums above would cover it.
      series: [{ label: chart.time ? "time" : "round", value: chart.time ? "{HH}:{mm}:{ss}" : (_plot, value) => value ?? "–" }, ...(stack ? series.slice().reverse() : series)],
    };
  };

  const columns = (chart) => {
    const values = chart.kind === "stack" ? stacked(chart.series).reverse() : chart.series.map((one) => one.values);
    return [chart.x, ...values];
  };

  const say = (element, text) => {
    drawn.get(element)?.plot.destroy();
    drawn.delete(element);
    element.replaceChildren();
    const line = document.createElement("p");
    line.className = "plot-empty";
    line.textContent = text;
    element.append(line);
  };

  const describe = (element, chart) => {
    const newest = chart.series.map((one) => `${one.label} ${format(one.values.findLast((value) => value !== null), chart.unit)}`);
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", `${element.dataset.title}: newest ${newest.join(", ")}`);
  };

  const draw = (element, chart) => {
    if (!chart || !chart.x.length || !chart.series.length) return say(element, "Nothing measured in this range.");
    const old = drawn.get(element);
    const same = old && old.chart.series.map((one) => one.label).join() === chart.series.map((one) => one.label).join();
    describe(element, chart);
    if (same && old.chart.kind !== "stack") {
      old.chart.series.forEach((one, place) => (one.values = chart.series[place].values)); // the legend reads these
      old.plot.setData(columns(chart));
      return;
    }
    old?.plot.destroy();
    element.replaceChildren();
    drawn.set(element, { plot: new uPlot(options(element, chart), columns(chart), element), chart });
  };

  const load = async (section) => {
    try {
      const answer = await fetch(section.dataset.charts, { headers: { Accept: "application/json" } });
      if (!answer.ok) throw new Error(String(answer.status));
      const told = await answer.json();
      for (const element of section.querySelectorAll("[data-chart]")) draw(element, told.charts[element.dataset.chart]);
      note(section, told.newest_at);
    } catch {
      for (const element of section.querySelectorAll("[data-chart]")) {
        if (!drawn.has(element)) say(element, "The server did not answer; reload the page.");
      }
    }
  };

  const note = (section, newest) => {
    const line = section.querySelector(".charts-note");
    if (!line || newest === undefined) return;
    line.replaceChildren();
    if (!newest) return;
    const time = document.createElement("time");
    time.dateTime = newest;
    time.title = newest.replace("T", " ").replace(/\..*/, " UTC");
    time.textContent = "";
    line.append("newest ", time);
    document.dispatchEvent(new CustomEvent("covey:times"));
  };

  const sections = document.querySelectorAll("[data-charts]");
  for (const section of sections) {
    section.addEventListener("refresh", () => load(section));
    load(section);
  }
  const resized = new ResizeObserver((entries) => {
    for (const entry of entries) {
      const plot = drawn.get(entry.target)?.plot;
      if (plot && entry.contentRect.width > 0) plot.setSize({ width: entry.contentRect.width, height: HEIGHT });
    }
  });
  for (const element of document.querySelectorAll("[data-chart]")) resized.observe(element);
  const repaint = () => {
    for (const [element, { plot, chart }] of drawn) {
      plot.destroy();
      drawn.set(element, { plot: new uPlot(options(element, chart), columns(chart), element), chart });
    }
  };
  document.addEventListener("covey:theme", repaint);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
})();
