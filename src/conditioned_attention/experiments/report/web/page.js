// Unpacks plotly.js and the numbers, and draws every chart in the colours of the page.
"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const byFinger = matchMedia("(pointer: coarse)");
let printing = false;

let onDark = {};  // for each colour of a light page the one that stands for it on a dark page
const isDark = () => dark.matches && !printing;
const colour = light => (isDark() && onDark[light]) || light;

async function unpack(id) {
  const element = document.getElementById(id);
  const bytes = Uint8Array.from(atob(element.textContent), c => c.charCodeAt(0));
  element.remove();
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function base(layout, height, kept = "") {
  const text = isDark() ? "#e8eaed" : "#1c1f23", grid = isDark() ? "#353c45" : "#e3e7ec";
  const axis = {
    automargin: true, gridcolor: grid, zerolinecolor: grid, linecolor: grid, tickcolor: grid, exponentformat: "power",
    ticks: "outside",
  };
  const own = structuredClone(layout);
  for (const shape of own.shapes || []) shape.line.color = colour(shape.line.color);
  for (const name of ["xaxis", "yaxis"]) {
    own[name] = { ...axis, ...own[name] };
  }
  return {
    ...own, height, uirevision: kept, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: text, size: 12.5, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 20, r: 12, t: 24, b: 20 }, hovermode: "closest", dragmode: byFinger.matches ? false : "zoom",
    hoverlabel: { bgcolor: isDark() ? "#1e2329" : "#ffffff", font: { color: text }, bordercolor: grid, namelength: -1 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: isDark() ? "#7d8791" : "#8b949e", activecolor: text },
  };
}

// Powers of ten where there are many, plain numbers with 2 and 5 between few; of less than one plotly.js knows better.
function logTicks(view, axis) {
  const own = view.traces.flatMap(trace => trace[axis]);
  const values = own.concat((view.layout.shapes || []).filter(shape => !shape[axis + "ref"]).map(shape => shape[axis + "0"]));
  const logs = values.filter(value => value > 0).map(Math.log10), decades = Math.max(...logs) - Math.min(...logs);
  return decades >= 3 ? { dtick: 1 } : { tickformat: ",~r", ...(decades >= 1 ? { dtick: "D2" } : {}) };
}

const manyBands = 6;  // of more curves the bands would hide the lines

const config = {
  responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
};

function painted(trace, state) {
  const own = structuredClone(trace);
  if (own.line && own.line.color) own.line.color = colour(own.line.color);
  if (own.error_x) own.error_x.color = colour(own.error_x.color);
  if (own.marker) {
    const light = own.marker.color;
    own.marker.color = Array.isArray(light) ? light.map(colour) : colour(light);
  }
  if (own.fillcolor) own.fillcolor = colour(own.fillcolor) + (isDark() ? "30" : "20");
  if (own.meta !== "mean") own.visible = own.meta === state.spread;
  if (state.off.has(own.legendgroup)) own.visible = false;
  return own;
}

function curves(figure, chart) {
  const plot = figure.querySelector(".plot");
  const kinds = new Set(chart.views.flatMap(view => view.traces.map(trace => trace.meta)));
  const spreads = [...["band", "seed"].filter(kind => kinds.has(kind)), "none"];
  const state = { view: 0, spread: chart.legend.length <= manyBands ? "band" : "none", off: new Set() };
  const rows = Math.max(...chart.views.map(view => view.layout.yaxis.type === "category" ? chartRows(view) : 0));
  const draw = () => {
    const view = chart.views[state.view];
    const layout = structuredClone(view.layout);
    for (const axis of ["x", "y"]) {
      if (layout[axis + "axis"].type === "log") Object.assign(layout[axis + "axis"], logTicks(view, axis));
    }
    layout.xaxis = { exponentformat: "none", separatethousands: true, ...layout.xaxis };
    const height = rows ? 115 + 30 * rows : innerWidth < 600 ? 320 : 400;
    return Plotly.react(plot, view.traces.map(trace => painted(trace, state)), base(layout, height, view.name), config);
  };
  if (chart.views.length > 1) figure.querySelector(".controls").append(choice("show", chart.views.map(v => v.name), i => {
    state.view = i;
    draw();
  }));
  if (spreads.length > 1) {
    const names = { band: "band", seed: "single seeds", none: "line alone" };
    const label = choice("spread", spreads.map(kind => names[kind]), i => { state.spread = spreads[i]; draw(); });
    label.querySelector("select").value = spreads.indexOf(state.spread);
    figure.querySelector(".controls").append(label);
  }
  legend(figure, chart, state, draw);
  return draw;
}

const chartRows = view => new Set(view.traces.flatMap(trace => trace.y)).size;

function choice(label, names, chosen) {
  const select = make("select", {}, ...names.map((name, i) => make("option", { value: i, textContent: name })));
  select.onchange = () => chosen(Number(select.value));
  return make("label", {}, label, select);
}

function legend(figure, chart, state, draw) {
  if (chart.legend.length < 2) return;
  const buttons = chart.legend.map(entry => {
    const swatch = make("i");
    swatch.dataset.colour = entry.colour;
    swatch.style.borderTopStyle = { solid: "solid", dash: "dashed", dot: "dotted" }[entry.dash];
    const button = make("button", { type: "button" }, swatch, entry.name);
    const show = () => {
      for (const [i, other] of chart.legend.entries()) buttons[i].setAttribute("aria-pressed", !state.off.has(other.name));
      draw();
    };
    button.onclick = () => {
      if (!state.off.delete(entry.name)) state.off.add(entry.name);
      show();
    };
    button.ondblclick = () => {
      const others = chart.legend.map(other => other.name).filter(name => name !== entry.name);
      const alone = others.every(name => state.off.has(name)) && !state.off.has(entry.name);
      state.off = new Set(alone ? [] : others);
      show();
    };
    button.setAttribute("aria-pressed", true);
    return button;
  });
  figure.querySelector(".legend").append(...buttons);
}

function heatMap(figure, chart) {
  const plot = figure.querySelector(".plot"), controls = figure.querySelector(".controls"), heat = chart.heat;
  const state = { variant: 0, when: heat.variants[0].conditioned ? "after" : "before", frame: Infinity };
  const slider = make("input", { type: "range", min: 0, step: 1 }), shown = make("output");
  slider.setAttribute("aria-label", "optimizer step");
  const radios = ["before", "after"].map(when => {
    const radio = make("input", { type: "radio", name: "when" + figure.dataset.at, value: when });
    radio.onchange = () => { state.when = when; draw(); };
    return radio;
  });
  const words = () => {
    const used = heat.variants[state.variant].conditioned ? "after" : "before";
    return { before: "without C", after: "with C", [used]: (used === "after" ? "with C" : "without C") + " (used)" };
  };
  const names = radios.map(() => make("span"));
  const draw = () => {
    const one = heat.variants[state.variant], last = one.steps.length - 1;
    state.frame = Math.min(state.frame, last);
    Object.assign(slider, { max: last, value: state.frame });
    shown.textContent = `step ${one.steps[state.frame].toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", shown.textContent);
    radios.forEach((radio, i) => {
      radio.checked = radio.value === state.when;
      names[i].textContent = words()[radio.value];
    });
    const layout = base({
      xaxis: { title: { text: "head" }, ...ticks(one.heads), constrain: "domain", zeroline: false, showgrid: false },
      yaxis: { title: { text: "layer" }, ...ticks(one.modules.length), autorange: "reversed", zeroline: false, showgrid: false },
    }, Math.min(560, 130 + 26 * Math.max(6, one.modules.length)));
    layout.plot_bgcolor = isDark() ? "#5a626c" : "#b4bac1";
    return Plotly.react(plot, [cells(one, state, heat)], layout, config);
  };
  if (heat.variants.length > 1) controls.append(choice("variant", heat.variants.map(v => v.variant), i => {
    state.variant = i;
    state.when = heat.variants[i].conditioned ? "after" : "before";
    draw();
  }));
  slider.oninput = () => { state.frame = Number(slider.value); draw(); };
  controls.append(make("fieldset", {}, ...radios.map((radio, i) => make("label", {}, radio, names[i]))));
  if (heat.variants.some(one => one.steps.length > 1)) controls.append(slider);
  controls.append(shown);
  return draw;
}

const ticks = n => n <= 12 ? { tickmode: "linear", dtick: 1 } : { tickformat: "d" };

function cells(one, state, heat) {
  const frame = one[state.when][state.frame], z = [], text = [];
  one.modules.forEach((module, layer) => {
    const row = frame.slice(layer * one.heads, (layer + 1) * one.heads);
    z.push(row.map(value => value === null || value < 0 ? null : value / 100));
    text.push(row.map((value, head) => value === null ? "" : `layer ${layer} (${module}), head ${head}<br>` +
      (value < 0 ? "beyond the limit of precision" : `log10 κ ${(value / 100).toFixed(2)}`)));
  });
  return {
    type: "heatmap", z, text, hoverinfo: "text", zmin: heat.zmin, zmax: heat.zmax, colorscale: "Viridis", xgap: 1, ygap: 1,
    colorbar: { title: { text: heat.title, side: "right" }, thickness: 12, outlinewidth: 0 },
  };
}

function paintSwatches() {
  for (const swatch of document.querySelectorAll(".legend i")) swatch.style.borderTopColor = colour(swatch.dataset.colour);
}

async function start() {
  const state = document.getElementById("state");
  state.textContent = "Drawing the charts …";
  try {
    if (!window.DecompressionStream) throw new Error("this browser has no DecompressionStream; one of 2023 or later has");
    const [numbers, library] = await Promise.all([unpack("numbers"), unpack("plotly")]);
    document.head.append(make("script", { textContent: library }));
    if (!window.Plotly) throw new Error("the page's chart library did not start");
    const { charts, dark: darker } = JSON.parse(numbers), draws = [];
    onDark = darker;
    for (const figure of document.querySelectorAll(".chart")) {
      const [i, j] = figure.dataset.at.split(","), chart = charts[i][j];
      figure.querySelector(".plot").replaceChildren();
      const draw = (chart.heat ? heatMap : curves)(figure, chart);
      draws.push(draw);
      await draw();
      paintSwatches();
    }
    const again = () => { paintSwatches(); draws.forEach(draw => draw()); };
    dark.addEventListener("change", again);
    addEventListener("beforeprint", () => { printing = true; again(); });
    addEventListener("afterprint", () => { printing = false; again(); });
    state.hidden = true;
    document.getElementById("how").hidden = false;
    document.documentElement.dataset.charts = draws.length;
  } catch (error) {
    state.textContent = `The charts could not be drawn (${error.message}). All that is said in words and tables is here.`;
  }
}
start();
