// Draws the charts of a page. A section [data-charts="address"] fetches all of its charts at once and shares them out to the
// [data-chart="name"] below it; it fetches again when live.js tells it to refresh.
(() => {
  "use strict";
  const heightOf = (element) => (element.closest(".one") ? 270 : 180);
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

  // A layer of a stack is drawn at the sum of itself and the layers below it.
  const stacked = (series) => {
    const sums = [];
    series.forEach((layer, place) => {
      sums.push(layer.values.map((value, at) => (value === null ? null : value + (place ? (sums[place - 1][at] ?? 0) : 0))));
    });
    return sums;
  };

  const DAY_S = 86400;
  const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: "UTC" });
  const exact = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", timeZone: "UTC" });
  const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
  const onAxis = (chart) => {
    const span = chart.x[chart.x.length - 1] - chart.x[0];
    return (seconds) => {
      if (span < 180) return exact.format(seconds * 1000);
      return span < 2 * DAY_S ? clock.format(seconds * 1000) : day.format(seconds * 1000);
    };
  };
  const whole = (value) => (Number.isInteger(value) ? value : "");
  const newest = (values) => values.findLast((value) => value !== null);

  const range = (chart) => (_plot, low, high) => {
    if (chart.kind === "stack") return [0, 100];
    if (low === null) return [0, 1];
    const from = chart.from_zero ? Math.min(0, low) : low;
    if (from === high) return [from, from + (Math.abs(from) || 1)];
    const [bottom, top] = uPlot.rangeNum(from, high, 0.1, true);
    return chart.from_zero && low >= 0 ? [0, top] : [bottom, top];
  };

  const options = (element, chart) => {
    const colors = palette(chart.series.length);
    const grid = { stroke: css("--grid"), width: 1 };
    const axis = { stroke: css("--muted"), grid, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const stack = chart.kind === "stack";
    const label = onAxis(chart);
    const series = chart.series.map((one, place) => ({
      label: one.label,
      stroke: colors[place],
      width: stack ? 0.5 : 2,
      dash: one.dashed ? [6, 4] : undefined,
      fill: stack ? colors[place].replace(/^rgb\((.*)\)$/, "rgba($1, 0.8)") : undefined,
      points: { show: !chart.time || chart.x.length < 3, size: 5 },
      value: (_plot, _raw, _place, at) => format(at === null ? newest(one.values) : one.values[at], chart.unit),
    }));
    const x = chart.time
      ? { label: "UTC", value: (_plot, value) => (value === null ? "newest" : `${day.format(value * 1000)} ${exact.format(value * 1000)}`) }
      : { label: "round", value: (_plot, value) => value ?? "newest" };
    return {
      width: element.clientWidth || 300,
      height: heightOf(element),
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      legend: { live: true, markers: { width: 0, fill: (plot, place) => plot.series[place]._stroke ?? plot.series[place].stroke() } },
      cursor: { drag: { x: false, y: false }, points: { show: !stack } },
      scales: { x: { time: chart.time }, y: { range: range(chart) } },
      axes: [
        { ...axis, size: 28, space: 62, ...(chart.time ? {} : { incrs: [1, 2, 5, 10, 20, 50, 100] }), values: (_plot, splits) => splits.map(chart.time ? label : whole) },
        { ...axis, size: 50, values: (_plot, splits) => splits.map((value) => format(value, "")) },
      ],
      series: [x, ...series],
      bands: stack ? series.slice(1).map((_one, place) => ({ series: [place + 2, place + 1] })) : undefined,
    };
  };

  const columns = (chart) => {
    return [chart.x, ...(chart.kind === "stack" ? stacked(chart.series) : chart.series.map((one) => one.values))];
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
    const told = chart.series.map((one) => `${one.label} ${format(newest(one.values), chart.unit)}`);
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", `${element.dataset.title}: newest ${told.join(", ")}`);
  };

  const draw = (element, chart) => {
    if (!chart || !chart.x.length || !chart.series.length) return say(element, "Nothing measured in this range.");
    const old = drawn.get(element);
    const same = old && old.chart.series.map((one) => one.label).join() === chart.series.map((one) => one.label).join();
    describe(element, chart);
    if (same) {
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

  const note = (section, moment) => {
    const line = section.querySelector(".charts-note");
    if (!line || !moment) return;
    line.replaceChildren();
    const time = document.createElement("time");
    time.dateTime = moment;
    time.title = moment.replace("T", " ").replace(/\..*/, " UTC");
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
      if (plot && entry.contentRect.width > 0) plot.setSize({ width: entry.contentRect.width, height: heightOf(entry.target) });
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
