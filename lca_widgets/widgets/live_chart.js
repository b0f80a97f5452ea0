/* Live charts: binary rows in, panels repainted in place, at most once per animation frame.
 *
 * Messages from Python (live_chart.py has the other side and the reasons):
 *   spec (trait)  {panels, tables: {name: {columns, log: [column index]}}, columns}
 *   begin         {run, label, limits: {column: [low, high]}}; the picture stays until rows come
 *   rows          {run, tables: [[name, rows]]} + one buffer of little-endian float32 per table;
 *                 rows of a run older than the newest are ignored
 *   pin {run, label}, unpin
 *   replay        {runs: [{run, label, limits, tables}], pins: [{run, label}], shown, current}
 *                 + one buffer per table of each run: replaces everything
 *   export {format, filename}, download {filename, text, mime}
 * To Python: {type: "ready"} once, when the model is up; the answer is a replay. {type: "closed"}
 * when its last view has gone.
 *
 * Columns listed in `log` arrive as log10 of the value: -Infinity is a zero.
 *
 * One store per model, shared by its views. The root element of a view carries data-run,
 * data-rows (painted rows of that run, all tables together), data-paints and data-last-paint.
 */

const BLUE = "#2180bf"; // now
const ORANGE = "#c2680c"; // at start
const GREYS = ["#7a7a7a", "#949494", "#686868"]; // pinned
const DASHES = ["6 3", "9 3 2 3", "3 3", "12 4"];
const SHAPES = ["square", "diamond", "triangle", "plus"];
// The lines of a panel `by` a column: colour, dash and marker differ, each on both themes.
const SERIES_COLOURS = [BLUE, ORANGE, "#1f8f68", "#b5548f", "#8a7a1f", "#5f7fd0"];
const SERIES_DASHES = [null, "6 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2"];
const SERIES_SHAPES = ["circle", "square", "triangle", "diamond", "plus", "down"];
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e",
  "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
// Dark below zero, neutral at zero, light above: signs are told apart without any hue too.
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173",
  "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const HEIGHT = 176;
const MIN_WIDTH = 225;
const GAP = 10;
const LEGEND_LINE = 14; // of the legend inside a panel
const FONT = "font-family:var(--jp-ui-font-family, system-ui, sans-serif);font-size:11px";
const LOG_STEPS = [0, Math.log10(2), Math.log10(5), 1];

// In a row of widgets a chart takes the room that is left, and no more.
const STYLE = `
.lca-chart-host { flex-grow: 1; min-width: 0; }
.lca-chart { color: var(--jp-ui-font-color1, inherit); ${FONT}; width: 100%; min-width: 0; }
.lca-chart-legend { display: flex; flex-wrap: wrap; gap: 2px 14px; min-height: 18px;
  width: 0; min-width: 100%; box-sizing: border-box; /* asks for no room of its own */
  padding: 0 4px 4px; align-items: center; font-size: 12px; }
.lca-chart-legend span { display: inline-flex; align-items: center; gap: 5px; }
.lca-chart-grid { display: grid; gap: ${GAP}px; }
.lca-chart-panel { position: relative; min-width: 0; }
.lca-chart-panel > svg { position: absolute; inset: 0 auto auto 0; overflow: visible; }
.lca-chart-readout { position: absolute; top: 22px; padding: 1px 5px; max-width: 75%;
  pointer-events: none; border-radius: 3px; text-align: right; font-size: 11px; line-height: 1.35;
  background: var(--jp-layout-color1, Canvas); color: var(--jp-ui-font-color1, CanvasText);
  border: 1px solid var(--jp-border-color1, #8888); white-space: nowrap; overflow: hidden; }
.lca-chart-readout[hidden] { display: none; }`;

// ---------------------------------------------------------------- the store

class Rows {
  constructor(width) {
    this.width = width;
    this.count = 0;
    this.data = new Float32Array(width * 64);
  }
  push(values) {
    const used = this.count * this.width;
    if (used + values.length > this.data.length) {
      const grown = new Float32Array(Math.max(2 * this.data.length, used + values.length));
      grown.set(this.data.subarray(0, used));
      this.data = grown;
    }
    this.data.set(values, used);
    this.count += values.length / this.width;
  }
}

class Store {
  constructor(spec) {
    this.spec = spec;
    this.newest = 0; // number of the newest run begun
    this.next = null; // begun, no rows yet
    this.shown = null; // the run on screen
    this.pins = []; // [{run, label}]
    this.views = new Set();
  }

  receive(message, buffers) {
    const handle = {
      begin: () => this.begin(message),
      rows: () => this.append(message, buffers),
      pin: () => this.pin(message),
      unpin: () => { this.pins = []; },
      replay: () => this.replay(message, buffers),
    }[message.type];
    if (!handle) return;
    handle();
    for (const view of this.views) view.schedule();
  }

  begin(message) {
    if (message.run <= this.newest) return;
    this.newest = message.run;
    this.next = this.created(message);
  }

  append(message, buffers) {
    if (message.run < this.newest) return;
    // A front end that came up in mid-run sees rows before its replay: show what there is.
    if (message.run > this.newest) this.begin({ run: message.run, label: "", limits: {} });
    if (this.next) [this.shown, this.next] = [this.next, null];
    this.fill(this.shown, message.tables, buffers, 0);
  }

  pin(message) {
    const known = this.pins.find((pin) => pin.run.number === message.run);
    if (known) known.label = message.label;
    else if (this.shown?.number === message.run) {
      this.pins.push({ run: this.shown, label: message.label });
    }
  }

  replay(message, buffers) {
    const runs = new Map();
    let used = 0;
    for (const described of message.runs) {
      const run = this.created(described);
      used = this.fill(run, described.tables, buffers, used);
      runs.set(run.number, run);
    }
    this.newest = message.current;
    this.shown = runs.get(message.shown) ?? null;
    this.next = message.current === message.shown ? null : runs.get(message.current) ?? null;
    this.pins = message.pins.map((pin) => ({ run: runs.get(pin.run), label: pin.label }));
  }

  created({ run, label, limits }) {
    const tables = {};
    for (const [name, table] of Object.entries(this.spec.tables)) {
      tables[name] = new Rows(table.columns.length);
    }
    return { number: run, label, limits: limits ?? {}, tables };
  }

  fill(run, tables, buffers, first) {
    tables.forEach(([name], i) => run.tables[name]?.push(floats(buffers[first + i])));
    return first + tables.length;
  }

  get rows() {
    if (!this.shown) return 0;
    return Object.values(this.shown.tables).reduce((sum, rows) => sum + rows.count, 0);
  }
}

function floats(buffer) {
  // Copied: a slice of a websocket frame need not be aligned to four bytes.
  const bytes = ArrayBuffer.isView(buffer)
    ? buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength)
    : buffer;
  return new Float32Array(bytes);
}

// ---------------------------------------------------------------- numbers as text

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴",
  5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

const power = (exponent) => "10" + [...String(exponent)].map((c) => SUPERSCRIPT[c]).join("");

function plain(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) {
    return value.toExponential(2).replace("e+", "e").replace(/\.?0+e/, "e");
  }
  return String(Number(value.toPrecision(size >= 1000 ? 5 : 3)));
}

/* A value as the panel scales it: its log10 where `log`. */
function spoken(value, log) {
  if (Number.isNaN(value)) return "NaN";
  if (value === Infinity) return "∞";
  if (value === -Infinity) return log ? "0" : "−∞";
  if (!log) return plain(value);
  if (value >= -3 && value < 5) return plain(10 ** value);
  let exponent = Math.floor(value);
  let digits = (10 ** (value - exponent)).toFixed(1);
  if (digits === "10.0") [digits, exponent] = ["1.0", exponent + 1];
  return `${digits}e${exponent}`;
}

/* Of a horizontal axis: whole numbers without an exponent where there is room for them. */
const logTickOfX = (value) => (value > -3.001 && value < 4.999 ? plain(10 ** value)
  : logTick(value));

function logTick(value) {
  const exponent = Math.round(value);
  if (Math.abs(value - exponent) < 1e-6) return power(exponent);
  const low = Math.floor(value);
  const digit = Math.round(10 ** (value - low));
  return low >= -2 && low < 3 ? plain(digit * 10 ** low) : `${digit}·${power(low)}`;
}

// ---------------------------------------------------------------- scales

function niceStep(size) {
  const decade = 10 ** Math.floor(Math.log10(size));
  return decade * [1, 2, 5, 10].find((step) => step * decade >= size * 0.999);
}

/* Ends of an axis that hold `low`..`high`: whole decades, or 1-2-5 within one; or nice steps. */
function niceEnds(low, high, log) {
  if (!log) {
    const step = niceStep((high - low || Math.abs(high) || 1) / 4);
    const ends = [Math.floor(low / step + 1e-6) * step, Math.ceil(high / step - 1e-6) * step];
    return ends[0] < ends[1] ? ends : [ends[0] - step, ends[1] + step];
  }
  if (high - low > 1) return [Math.floor(low + 1e-6), Math.ceil(high - 1e-6)];
  const grid = [];
  for (let k = Math.floor(low) - 1; k <= Math.ceil(high) + 1; k++) {
    for (const step of LOG_STEPS.slice(0, 3)) grid.push(k + step);
  }
  return [grid.findLast((g) => g < low - 1e-3) ?? low - 1, grid.find((g) => g > high + 1e-3)];
}

/* [labelled ticks, faint lines] */
function ticksOf(low, high, log, room, whole = false) {
  const span = high - low || 1;
  const multiples = (step) => {
    const found = [];
    for (let k = Math.ceil(low / step - 1e-6); k * step <= high + step * 1e-6; k++) {
      found.push(Number((k * step).toPrecision(12)));
    }
    return found;
  };
  if (!log) {
    const step = niceStep(span / Math.max(2, room));
    return [multiples(whole ? Math.max(1, step) : step), []];
  }
  const within = (steps) => {
    const found = [];
    for (let k = Math.floor(low); k <= high; k++) {
      for (const s of steps) if (k + s >= low - 1e-6 && k + s <= high + 1e-6) found.push(k + s);
    }
    return found;
  };
  if (span <= 1.5) return [within(LOG_STEPS.slice(0, 3)), []];
  const step = [1, 2, 3, 4, 5, 10, 20, 25, 50, 100].find((s) => span / s <= room) ?? 100;
  if (step > 1) return [multiples(step), span <= 40 ? multiples(1) : []];
  return [multiples(1), span <= 4 ? within([2, 3, 4, 5, 6, 7, 8, 9].map(Math.log10)) : []];
}

// ---------------------------------------------------------------- SVG

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const text = (x, y, content, attributes = {}) =>
  svg("text", { x, y, fill: "currentColor", ...attributes }, content);

const px = (value) => Math.round(value * 10) / 10;

function glyph(shape, x, y, r) {
  [x, y] = [px(x), px(y)];
  switch (shape) {
    case "square": return `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`;
    case "diamond": return `M${x - r} ${y}l${r} ${-r}l${r} ${r}l${-r} ${r}z`;
    case "triangle": return `M${x - r} ${y + r}l${r} ${-2 * r}l${r} ${2 * r}z`;
    case "down": return `M${x - r} ${y - r}l${r} ${2 * r}l${r} ${-2 * r}z`;
    case "plus": return `M${x - r} ${y}h${2 * r}M${x} ${y - r}v${2 * r}`;
    case "cross": return `M${x - r} ${y - r}l${2 * r} ${2 * r}M${x - r} ${y + r}l${2 * r} ${-2 * r}`;
    default: return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`;
  }
}

function lookOf(kind, index = 0) {
  if (kind === "now") return { stroke: BLUE, width: 1.8, dash: null, shape: "circle" };
  if (kind === "start") return { stroke: ORANGE, width: 1.5, dash: "1 3", shape: null };
  return { stroke: GREYS[index % GREYS.length], width: 1.4, dash: DASHES[index % DASHES.length],
    shape: SHAPES[index % SHAPES.length] };
}

/* Of the line `index` of a panel: after six the dashes and markers move on by one. */
function lookOfSeries(index, kind, pin) {
  const turn = index + Math.floor(index / SERIES_COLOURS.length);
  return { stroke: kind === "pin" ? GREYS[pin % GREYS.length]
    : SERIES_COLOURS[index % SERIES_COLOURS.length],
  width: kind === "pin" ? 1.2 : index ? 1.6 : 2, // a line that another covers still shows
  dash: SERIES_DASHES[turn % SERIES_DASHES.length],
  shape: SERIES_SHAPES[turn % SERIES_SHAPES.length] };
}

let ruler = null;

function widthOf(content, size) {
  ruler ??= document.createElement("canvas").getContext("2d");
  ruler.font = `${size}px sans-serif`;
  return ruler.measureText(content).width;
}

/* How far two numbers are apart at most; none of them: [Infinity, -Infinity]. */
function endsAmong(values, ends = [Infinity, -Infinity]) {
  let [low, high] = ends;
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

// ---------------------------------------------------------------- one panel

let pictures = 0;

/* What all kinds share: a frame, two axes and the growing range of values. */
class Picture {
  constructor(panel, store) {
    this.panel = panel;
    this.store = store;
    this.id = `lca${++pictures}x${Math.random().toString(36).slice(2, 7)}`;
    this.columns = store.spec.tables[panel.table].columns;
    this.log = store.spec.tables[panel.table].log;
    this.value = panel.colour || panel.y;
    this.logColumns = [...(panel.log ? [this.value, panel.low, panel.high] : []),
      ...(panel.x_log ? [panel.x] : [])];
    this.axes = svg("g", { class: "axes" });
    this.marks = svg("g", { class: "marks" });
    this.cursor = svg("g", { class: "cursor" });
    this.svg = svg("svg", { role: "img", "aria-label": panel.title, "font-size": 11,
      "data-kind": panel.kind, "data-panel": panel.title }, this.axes, this.marks, this.cursor);
    this.range = null; // ends of the value's scale; only grows within a run
    this.rangeRun = -1;
    this.axesKey = "";
  }

  /* One left margin for all panels: axes above one another line up. */
  get left() { return this.store.spec.panels.some((panel) => panel.y_label) ? 56 : 46; }

  resize(width, height) {
    this.width = width;
    this.height = height;
    this.plot = { left: this.left, right: width - 14, top: 18, bottom: height - 31 };
    this.fit();
    this.room = { ...this.plot };
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", height);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.axesKey = "";
  }

  /* What a kind needs beside its plot. */
  fit() {}

  /* A function (row index, rows) -> number for a column, in the panel's own scale. */
  reader(column, table = this.panel.table) {
    const { columns, log } = this.store.spec.tables[table];
    const index = columns.indexOf(column);
    const sentLog = log.includes(index);
    return sentLog && !this.logColumns.includes(column)
      ? (rows, i) => unlogged(rows.data[i * rows.width + index])
      : (rows, i) => rows.data[i * rows.width + index];
  }

  tableOf(run, table = this.panel.table) { return run.tables[table]; }

  /* Fixed ends of a column in one run, in the panel's own scale; null where there are none. */
  limitsOf(run, column) {
    const limits = run?.limits[column];
    if (!limits || !this.logColumns.includes(column)) return limits ?? null;
    return limits[0] > 0 ? limits.map(Math.log10) : null; // zero has no place there
  }

  /* The range of values, widened in whole decades or nice steps; never narrowed within a run. */
  widen(low, high) {
    const number = this.store.shown?.number ?? 0;
    if (number !== this.rangeRun) {
      [this.range, this.rangeRun] = [this.limitsOf(this.store.shown, this.value), number];
    }
    if (!(low <= high)) return;
    if (this.range && low >= this.range[0] && high <= this.range[1]) return;
    if (this.range) [low, high] = [Math.min(low, this.range[0]), Math.max(high, this.range[1])];
    this.range = niceEnds(low, high, this.panel.log);
  }

  /* Fixed ends of an axis, those of pinned runs included where `all`; else the data's own. */
  endsOf(column, low, high, all) {
    const runs = [this.store.shown, ...(all ? this.store.pins.map((pin) => pin.run) : [])];
    for (const run of runs) {
      const limits = this.limitsOf(run, column);
      if (limits) [low, high] = [Math.min(low, limits[0]), Math.max(high, limits[1])];
    }
    return low <= high ? [low, high] : [0, 1];
  }

  drawAxes(x, y, { wholeX, wholeY = false, xLog = false, yLog, yTicks }) {
    const key = JSON.stringify([x, y, yTicks, this.plot, this.width, this.height]);
    if (key === this.axesKey) return;
    this.axesKey = key;
    const { left, right, top, bottom } = this.plot;
    const { panel } = this;
    const lines = { stroke: "currentColor", "stroke-width": 1 };
    const nodes = [text(left, 11, panel.title, { "font-weight": 600, "font-size": 12 })];
    const [xTicks] = ticksOf(x[0], x[1], xLog, (right - left) / 48, wholeX);
    for (const tick of xTicks) {
      const at = px(this.xOf(tick));
      if (!panel.colour) {
        nodes.push(svg("path", { d: `M${at} ${top}V${bottom}`, ...lines, opacity: 0.09 }));
      }
      nodes.push(svg("path", { d: `M${at} ${bottom}v3`, ...lines, opacity: 0.5 }));
      nodes.push(text(at, bottom + 13, xLog ? logTickOfX(tick) : plain(tick),
        { "text-anchor": "middle", class: "x-tick" }));
    }
    if (yTicks) {
      const [major, minor] = ticksOf(y[0], y[1], yLog, (bottom - top) / 24, wholeY);
      const inset = (tick) => px(this.yOf(tick));
      for (const tick of minor) {
        nodes.push(svg("path", { d: `M${left} ${inset(tick)}H${right}`, ...lines, opacity: 0.06 }));
      }
      for (const tick of major) {
        const at = inset(tick);
        if (!panel.colour) {
          nodes.push(svg("path", { d: `M${left} ${at}H${right}`, ...lines, opacity: 0.16 }));
        }
        nodes.push(text(left - 5, at + 3.5, yLog ? logTick(tick) : plain(tick),
          { "text-anchor": "end", class: "y-tick" }));
      }
    }
    nodes.push(svg("rect", { x: left, y: top, width: right - left, height: bottom - top,
      fill: "none", stroke: "currentColor", opacity: 0.35 }));
    const middle = panel.kind !== "heatmap"; // a heat map's colour key stands at the right
    nodes.push(text(middle ? (left + right) / 2 : left, bottom + 27, panel.x_label || panel.x,
      { "text-anchor": middle ? "middle" : "start", opacity: 0.8 }));
    if (panel.y_label) {
      nodes.push(text(0, 0, panel.y_label, { "text-anchor": "middle", opacity: 0.8,
        transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)` }));
    }
    this.axes.replaceChildren(...nodes);
  }
}

/* Line and profile: one or more series over x. */
class CurvePicture extends Picture {
  /* The legend of the lines `by` a column stands under the title, in as many lines as it takes. It
     names those that there are: all of them before the first row. */
  fit() {
    if (!this.panel.by) return;
    const nodes = [];
    let [x, line] = [this.plot.left, 0];
    this.panel.names.forEach((name, i) => {
      if (this.drawn && !this.drawn[i]) return;
      const room = 38 + widthOf(name, 11);
      if (x > this.plot.left && x + room > this.plot.right) [x, line] = [this.plot.left, line + 1];
      nodes.push(svg("g", { transform: `translate(${px(x)} ${18 + line * LEGEND_LINE})`,
        "data-name": name }, sample(lookOfSeries(i, "now")), text(35, 10, name)));
      x += room + 8;
    });
    this.plot.top += (line + 1) * LEGEND_LINE + 1;
    this.names ??= this.svg.appendChild(svg("g", { class: "names" }));
    this.names.replaceChildren(...nodes);
  }

  draw() {
    const { store, panel } = this;
    this.series = store.pins.flatMap((pin, i) =>
      this.linesOf(pin.run, "pin", pin.label, lookOf("pin", i), i));
    if (store.shown) {
      if (panel.kind === "profile" && !panel.by) {
        this.series.push(...this.linesOf(store.shown, "start", "at start", lookOf("start")));
      }
      this.series.push(...this.linesOf(store.shown, "now", store.shown.label, lookOf("now")));
    }
    const drawn = panel.names.map((name) =>
      this.series.some((one) => one.name === name && one.points.xs.length));
    if (drawn.some(Boolean) && drawn.join() !== this.drawn?.join()) {
      this.drawn = drawn;
      this.resize(this.width, this.height);
    }
    let [xEnds, yEnds] = [undefined, undefined];
    for (const { points: { xs, ys, lows, highs } } of this.series) {
      xEnds = endsAmong(xs, xEnds);
      for (const values of [ys, lows, highs]) yEnds = endsAmong(values, yEnds);
    }
    this.widen(...(yEnds ?? endsAmong([])));
    this.scale(this.endsOf(panel.x, ...(xEnds ?? endsAmong([])), true));
    [this.edges, this.edgeGroups] = [[], []];
    const bands = this.series.filter((one) => one.kind === "now" && one.points.lows.length);
    this.marks.replaceChildren(...bands.map((one) => this.bandOf(one)),
      ...this.series.map((one) => this.marksOf(one)), this.edgeNames());
  }

  scale(ends) {
    const { panel } = this;
    const wholeX = Number.isInteger(ends[0]) && Number.isInteger(ends[1]);
    let [low, high] = ends;
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    else if (panel.kind === "profile") {
      const margin = (high - low) * 0.025;
      [low, high] = [low - margin, high + margin];
    }
    const { left, right, top, bottom } = this.plot;
    const edge = 10; // a band at the top for infinities, at the bottom for zeros and NaN
    const range = this.range ?? [0, 1];
    this.xOf = (x) => left + ((x - low) / (high - low)) * (right - left);
    this.yOf = (y) =>
      bottom - edge - ((y - range[0]) / (range[1] - range[0])) * (bottom - top - 2 * edge);
    this.drawAxes([low, high], range,
      { wholeX, xLog: panel.x_log, yLog: panel.log, yTicks: this.range !== null });
  }

  /* The lines of a run: one, or one for each name where the panel tells them apart. */
  linesOf(run, kind, label, look, pin = 0) {
    const { panel } = this;
    const rows = this.tableOf(run);
    const at = this.rowsOf(run, kind === "start");
    const points = (chosen) => {
      const read = (column) => {
        const reader = column && this.reader(column);
        return column ? chosen.map((i) => reader(rows, i)) : [];
      };
      return { xs: read(panel.x), ys: read(panel.y), lows: read(panel.low),
        highs: read(panel.high) };
    };
    if (!panel.by) return [{ kind, label, look, name: "", points: points(at) }];
    const readBy = this.reader(panel.by);
    const groups = panel.names.map(() => []);
    for (const i of at) groups[Math.round(readBy(rows, i))]?.push(i);
    return groups.map((chosen, i) => ({ kind, label, name: panel.names[i],
      look: lookOfSeries(i, kind, pin), turn: (i + 0.5) / groups.length, points: points(chosen) }));
  }

  /* All rows of a run, or those of its first or latest step by x, if they have a place on x. */
  rowsOf(run, first) {
    const rows = this.tableOf(run);
    const readX = this.reader(this.panel.x);
    const at = [];
    const add = (i) => { if (Number.isFinite(readX(rows, i))) at.push(i); };
    if (this.panel.kind === "line") {
      for (let i = 0; i < rows.count; i++) add(i);
    } else if (rows.count) {
      const readStep = this.reader(this.panel.step);
      const step = readStep(rows, first ? 0 : rows.count - 1);
      for (let i = 0; i < rows.count; i++) if (readStep(rows, i) === step) add(i);
      at.sort((a, b) => readX(rows, a) - readX(rows, b));
      if (run === this.store.shown && !first) this.latest = step;
    }
    return at;
  }

  marksOf({ kind, label, name, look, turn, points: { xs, ys } }) {
    const group = svg("g", { "data-series": kind, "data-label": label, "data-name": name || null,
      fill: "none", stroke: look.stroke, "stroke-width": look.width, "stroke-linecap": "round",
      "stroke-linejoin": "round" });
    const finite = [];
    const edges = [];
    for (let i = 0; i < xs.length; i++) {
      if (Number.isFinite(ys[i])) finite.push(i);
      else edges.push({ x: xs[i], sort: this.sortOf(ys[i]) });
    }
    group.setAttribute("data-points", finite.length);
    if (finite.length) {
      group.append(svg("path", { class: "curve", d: this.curve(xs, ys),
        "stroke-dasharray": look.dash }));
    }
    const places = look.shape ? this.markerPlaces(kind, finite, turn) : [];
    if (places.length) {
      const size = kind === "now" ? 2.4 : 2.8;
      const d = places.map((i) => glyph(look.shape, this.xOf(xs[i]), this.yOf(ys[i]), size));
      group.append(svg("path", { class: "markers", d: d.join(""), "stroke-width": 1.2,
        fill: kind === "now" ? look.stroke : "none" }));
    }
    this.edgeMarks(group, edges, look);
    return group;
  }

  /* What lies between low and high; to the frame where one of them has no place on the scale. */
  bandOf({ name, look, points: { xs, lows, highs } }) {
    const { top, bottom } = this.plot;
    const place = (value) => (value === Infinity ? top : value === -Infinity ? bottom
      : px(this.yOf(value)));
    const parts = [];
    let [upper, lower] = [[], []];
    const flush = () => {
      if (upper.length) parts.push(`M${[...upper, ...lower.reverse()].join("L")}Z`);
      [upper, lower] = [[], []];
    };
    for (let i = 0; i < xs.length; i++) {
      if (Number.isNaN(lows[i]) || Number.isNaN(highs[i])) {
        flush();
        continue;
      }
      const x = px(this.xOf(xs[i]));
      upper.push(`${x} ${place(highs[i])}`);
      lower.push(`${x} ${place(lows[i])}`);
    }
    flush();
    return svg("path", { class: "band", "data-name": name || null, d: parts.join(""),
      fill: look.stroke, opacity: 0.28 });
  }

  sortOf(value) {
    if (Number.isNaN(value)) return "nan";
    if (value > 0) return "infinite";
    return this.panel.log ? "zero" : "negative";
  }

  /* Lines that are one and the same have their markers in turn: none hides another's. */
  markerPlaces(kind, finite, turn = 0.5) {
    if (kind === "now" && this.panel.kind === "line" && !this.panel.by) return finite.slice(-1);
    const most = this.panel.kind === "profile" ? 40 : 7;
    const every = Math.ceil(finite.length / most);
    return finite.filter((_, k) => k % every === Math.floor(every * turn));
  }

  /* Broken where a value is not finite. Many points to a pixel: only its extremes are drawn. */
  curve(xs, ys) {
    const dense = xs.length > 4 * this.width;
    const parts = [];
    let [open, column, low, high] = [false, NaN, 0, 0];
    const flush = () => {
      if (dense && low < high) parts.push(`V${px(low)}V${px(high)}`);
    };
    for (let i = 0; i < xs.length; i++) {
      if (!Number.isFinite(ys[i])) {
        flush();
        [open, column, low, high] = [false, NaN, 0, 0];
        continue;
      }
      const [x, y] = [px(this.xOf(xs[i])), px(this.yOf(ys[i]))];
      if (dense && open && Math.round(x) === column) {
        [low, high] = [Math.min(low, y), Math.max(high, y)];
        continue;
      }
      flush();
      parts.push(open ? `L${x} ${y}` : `M${x} ${y}h0.01`);
      [open, column, low, high] = [true, Math.round(x), y, y];
    }
    flush();
    return parts.join("");
  }

  /* Values that have no place on the scale: at the edge, thinned where they would overlap. */
  edgeMarks(group, edges, look) {
    const { top, bottom } = this.plot;
    const sorts = {
      infinite: ["triangle", top + 5, "∞"], negative: ["down", bottom - 5, "−∞"],
      zero: ["down", bottom - 5, "0"], nan: ["cross", bottom - 5, "NaN"],
    };
    for (const [sort, [shape, y, name]] of Object.entries(sorts)) {
      const all = edges.filter((edge) => edge.sort === sort).map((edge) => this.xOf(edge.x));
      if (!all.length) continue;
      group.setAttribute(`data-${sort}`, all.length);
      const at = [];
      for (const x of all) if (!at.length || x - at.at(-1) >= 8) at.push(x);
      group.append(svg("path", { class: `edge ${sort}`, "stroke-width": 1.3,
        d: at.map((x) => glyph(shape, x, y, 3)).join("") }));
      this.edges.push(...at.map((x) => ({ from: x - 4, to: x + 4, y })));
      this.edgeGroups.push({ name, y, ends: at.filter((x, i) => !(at[i + 1] - x < 40)),
        starts: at.filter((x, i) => !(x - at[i - 1] < 40)) });
    }
  }

  /* The names of edge marks, once a group of marks, beside it where there is room, else over it. */
  edgeNames() {
    const taken = this.edges;
    const placed = [];
    for (const { name, y, starts, ends } of this.edgeGroups) {
      const width = 7 * name.length + 2;
      ends.forEach((end, i) => {
        if (placed.some((other) => other.name === name && Math.abs(other.end - end) < 40)) return;
        const inward = y > 60 ? -11 : 11;
        const places = [[end + 5, y], [starts[i] - 5 - width, y], [end - width / 2, y + inward]];
        const free = ([from, line]) => from > this.plot.left && from + width < this.plot.right &&
          !taken.some((t) => t.y === line && t.from < from + width && t.to > from);
        const [from, line] = places.find(free) ?? places[2];
        taken.push({ from, to: from + width, y: line });
        placed.push({ name, end, node: text(px(from), line + 4, name, { class: "edge-name" }) });
      });
    }
    return svg("g", { class: "edge-names" }, ...placed.map(({ node }) => node));
  }

  /* The value nearest to the pointer, and what the other lines have at the same x. */
  nearest(x, y) {
    const { log, x: column, x_log: xLog, x_label: label, by } = this.panel;
    const away = (one, i, to) => Math.abs(this.xOf(one.points.xs[i]) - to);
    const closest = (one, to) => {
      let found = -1;
      one.points.xs.forEach((_, i) => {
        if (found < 0 || away(one, i, to) < away(one, found, to)) found = i;
      });
      return found;
    };
    const height = (value) => (Number.isFinite(value) ? this.yOf(value) : Infinity);
    const now = (this.series ?? []).filter((one) => one.kind === "now" && one.points.xs.length);
    const others = (this.series ?? []).filter((one) => one.kind !== "now");
    const leaders = now.length ? now : others.slice(-1);
    let best = null;
    for (const one of leaders) {
      const i = closest(one, x);
      if (i < 0) continue;
      const found = { one, at: one.points.xs[i], value: one.points.ys[i], off: away(one, i, x),
        high: Math.abs(height(one.points.ys[i]) - y) };
      const nearer = !best || found.off < best.off - 0.5 ||
        (found.off < best.off + 0.5 && found.high < best.high);
      if (nearer) best = found;
    }
    if (!best) return null;
    const head = `${label || column} ${spoken(best.at, xLog)}`;
    const lines = by ? [head] : [`${head} · ${spoken(best.value, log)}`];
    for (const one of by ? [...now, ...others.reverse()] : others.reverse()) {
      const to = this.xOf(best.at);
      const i = closest(one, to);
      if (one === best.one && !by) continue;
      if (i < 0 || away(one, i, to) >= 8) continue;
      const name = [one.kind === "now" ? "" : one.label, one.name].filter(Boolean).join(", ");
      lines.push(`${name}: ${spoken(one.points.ys[i], log)}`);
    }
    const dot = Number.isFinite(best.value) ? [this.xOf(best.at), this.yOf(best.value)] : null;
    return { lines, dot };
  }

  summary() {
    const { panel } = this;
    const now = (this.series ?? []).filter((one) => one.kind === "now");
    const scales = [panel.log && "logarithmic", panel.x_log && "logarithmic from left to right"];
    const head = [`${panel.title}: ${panel.kind === "line" ? "line chart" : this.kindOfProfile}`,
      ...scales.filter(Boolean)].join(", ") + ".";
    if (!now.some((one) => one.points.xs.length)) return `${head} No values yet.`;
    const parts = [head];
    if (panel.by) parts.push(`${now.length} lines.`);
    for (const one of now) if (one.points.xs.length) parts.push(...this.wordsOf(one));
    if (this.store.pins.length) {
      parts.push(`Compared with ${this.store.pins.map((pin) => pin.label).join(", ")}.`);
    }
    return parts.join(" ");
  }

  get kindOfProfile() {
    return this.panel.x === "layer" ? "curve by layer" : `curve over ${this.panel.x}`;
  }

  /* One line's latest or outer values, its range and what is special in it. */
  wordsOf({ name, points: { xs, ys } }) {
    const { panel } = this;
    const { log, x_log: xLog } = panel;
    const last = xs.length - 1;
    const at = (i) => `${panel.x} ${spoken(xs[i], xLog)}`;
    const finite = ys.filter(Number.isFinite);
    const who = name ? `${name}: ` : "";
    const parts = panel.kind === "line"
      ? [`${who}${name ? "latest" : "Latest"}, ${at(last)}: ${spoken(ys[last], log)}.`]
      : [`${who}${name ? "at" : "At"} ${panel.step} ${plain(this.latest)}: ` +
        `${spoken(ys[0], log)} at ${at(0)}, ${spoken(ys[last], log)} at ${at(last)}.`];
    if (finite.length) {
      const [low, high] = endsAmong(finite);
      parts.push(`Between ${spoken(low, log)} and ${spoken(high, log)}.`);
    }
    if (finite.length < ys.length) parts.push(oddities(ys, log));
    return parts;
  }
}

function oddities(values, log) {
  const count = (test) => values.filter(test).length;
  const found = [[count((v) => v === Infinity), "infinite"],
    [count((v) => v === -Infinity), log ? "zero" : "minus infinity"],
    [count(Number.isNaN), "not a number"]];
  return found.filter(([n]) => n).map(([n, name]) => `${n} ${name}`).join(", ") + ".";
}

/* From the log10 that was sent; whole numbers come back whole, though float32 has seven digits. */
function unlogged(logarithm) {
  const value = 10 ** logarithm;
  const whole = Math.round(value);
  return Math.abs(value - whole) < 2e-6 * value ? whole : value;
}

const SPECIAL = { // cells without a place on the colour scale: own colour and own hatch
  infinite: { fill: "#d55e00", hatch: "M-1 1l2 -2M0 6l6 -6M5 7l2 -2", name: "∞" },
  zero: { fill: "#d9d9d9", hatch: "M0 1.5h6M0 4.5h6", name: "0" },
  negative: { fill: "#d9d9d9", hatch: "M0 1.5h6M0 4.5h6", name: "−∞" },
  nan: { fill: "#8c8c8c", hatch: "M0 0l6 6M0 6l6 -6", name: "NaN" },
};

/* Zeros are a matter of course in a matrix, whole blocks of them: nothing to stare at. */
const faintHatch = () => [
  svg("rect", { width: 6, height: 6, fill: "currentColor", opacity: 0.06 }),
  svg("path", { d: SPECIAL.zero.hatch, stroke: "currentColor", "stroke-width": 0.8, opacity: 0.3 }),
];

/* Value by x and y: one canvas pixel a cell, stretched by an SVG image. */
class HeatPicture extends Picture {
  constructor(panel, store, still = false) {
    super(panel, store);
    this.still = still;
    this.canvas = document.createElement("canvas");
    const image = () => svg("image", { preserveAspectRatio: "none",
      style: "image-rendering:pixelated", visibility: "hidden" });
    // Two images take turns: one is filled while the other is seen, so no frame is blank.
    this.images = [image(), image()];
    this.cells = svg("g", { class: "special" });
    this.key = svg("g", { class: "key" });
    const patterns = Object.entries(SPECIAL).map(([sort, { fill, hatch }]) =>
      svg("pattern", { id: `${this.id}${sort}`, width: 6, height: 6,
        patternUnits: "userSpaceOnUse" },
      ...(sort === "zero" && this.down ? faintHatch() : [svg("rect", { width: 6, height: 6, fill }),
        svg("path", { d: hatch, stroke: "#222", "stroke-width": 1 })])));
    this.svg.prepend(svg("defs", {}, ...patterns, this.gradient("scale", VIRIDIS),
      this.gradient("signed", CIVIDIS)), ...this.images, this.cells, this.key);
  }

  /* From left to right for a heat map's key, upwards for a matrix's. */
  gradient(name, colours) {
    const upwards = this.down ? { x1: 0, x2: 0, y1: 1, y2: 0 } : {};
    return svg("linearGradient", { id: `${this.id}${name}`, ...upwards },
      ...colours.map((colour, i) =>
        svg("stop", { offset: i / (colours.length - 1), "stop-color": colour })));
  }

  /* Whether y grows downwards, and whether colours are symmetrical about zero. */
  get down() { return false; }
  get signed() { return false; }

  /* The line of cells `j`, counted from above. */
  fromTop(j) { return this.down ? j : this.grid.height - 1 - j; }

  rowsOf(run) { return Array.from({ length: this.tableOf(run).count }, (_, i) => i); }

  draw() {
    const grid = this.gridOf(this.store.shown);
    this.grid = grid;
    this.widen(grid?.low ?? Infinity, grid?.high ?? -Infinity);
    const [x, y] = grid ? [grid.xEnds, grid.yEnds] : [
      this.endsOf(this.panel.x, Infinity, -Infinity, false),
      this.endsOf(this.panel.y, Infinity, -Infinity, false)];
    if (x[0] === x[1]) [x[0], x[1]] = [x[0] - 0.5, x[1] + 0.5];
    if (y[0] === y[1]) [y[0], y[1]] = [y[0] - 0.5, y[1] + 0.5];
    const { left, right, top, bottom } = this.plot;
    this.xOf = (v) => left + ((v - x[0]) / (x[1] - x[0])) * (right - left);
    this.yOf = (v) => bottom - ((v - y[0]) / (y[1] - y[0])) * (bottom - top);
    this.drawAxes(x, y, { wholeX: true, wholeY: true, yLog: false, yTicks: true });
    this.paintCells();
    this.drawKey();
  }

  gridOf(run) {
    if (!run || !this.tableOf(run).count) return null;
    const rows = this.tableOf(run);
    const [readX, readY, readV] = [this.panel.x, this.panel.y, this.value]
      .map((column) => this.reader(column));
    const at = this.rowsOf(run);
    const xs = [...new Set(at.map((i) => readX(rows, i)))];
    const ys = [...new Set(at.map((i) => readY(rows, i)))];
    const across = this.spread(xs, this.panel.x, 2048);
    const up = this.spread(ys, this.panel.y, 512);
    const values = new Float32Array(across.size * up.size);
    const known = new Uint8Array(across.size * up.size);
    const starts = [...new Set(xs.map(across.index))].sort((a, b) => a - b);
    const ends = new Map(starts.map((s, i) => [s, starts[i + 1] ?? s + 1]));
    let [low, high] = [Infinity, -Infinity];
    for (const i of at) {
      const value = readV(rows, i);
      const start = across.index(readX(rows, i));
      const line = up.index(readY(rows, i)) * across.size;
      // A cell reaches to the next measured step: the value stands until it is measured again.
      values.fill(value, line + start, line + ends.get(start));
      known.fill(1, line + start, line + ends.get(start));
      if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
    return { values, known, width: across.size, height: up.size, low, high, across, up,
      xEnds: across.ends, yEnds: up.ends, latest: Math.max(...xs) };
  }

  /* Cells along one axis: the smallest distance of two coordinates is a cell's width. */
  spread(found, column, most) {
    const sorted = found.filter(Number.isFinite).sort((a, b) => a - b);
    const [low, high] = this.endsOf(column, sorted[0], sorted.at(-1), false);
    let step = Infinity;
    for (let i = 1; i < sorted.length; i++) step = Math.min(step, sorted[i] - sorted[i - 1]);
    if (!Number.isFinite(step)) step = 1;
    step = Math.max(step, (high - low) / (most - 1));
    const size = Math.max(1, Math.round((high - low) / step) + 1);
    return { size, step, ends: [low - step / 2, low + (size - 0.5) * step],
      index: (v) => Math.min(size - 1, Math.max(0, Math.round((v - low) / step))),
      at: (i) => low + i * step };
  }

  paintCells() {
    const { grid, canvas } = this;
    if (!grid) {
      this.cells.replaceChildren();
      for (const image of this.images) image.setAttribute("visibility", "hidden");
      return;
    }
    const { values, known, width, height } = grid;
    if (canvas.width !== width || canvas.height !== height) {
      [canvas.width, canvas.height] = [width, height];
    }
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(width, height);
    const colours = new Uint32Array(pixels.data.buffer);
    const [low, high] = this.range ?? [0, 1];
    const palette = this.signed ? SIGNED_PALETTE : PALETTE;
    let coloured = 0;
    for (let k = 0; k < values.length; k++) {
      if (!known[k] || !Number.isFinite(values[k])) continue;
      const line = this.fromTop(Math.floor(k / width));
      const shade = Math.round(((values[k] - low) / (high - low || 1)) * 255);
      colours[line * width + (k % width)] = palette[Math.min(255, Math.max(0, shade))];
      coloured++;
    }
    context.putImageData(pixels, 0, 0);
    this.present(coloured);
    this.paintSpecial();
  }

  present(coloured) {
    const { left, right, top, bottom } = this.plot;
    const place = (image) => {
      const wanted = { x: left, y: top, width: right - left, height: bottom - top,
        "data-cells": coloured, "data-columns": this.canvas.width,
        "data-lines": this.canvas.height };
      for (const [name, value] of Object.entries(wanted)) image.setAttribute(name, value);
    };
    const [seen, hidden] = this.images;
    const url = this.canvas.toDataURL();
    if (this.still) {
      place(seen);
      seen.setAttribute("href", url);
      seen.setAttribute("visibility", "visible");
      return;
    }
    if (seen.getAttribute("href") === url && seen.getAttribute("visibility") === "visible") {
      hidden.onload = null;
      place(seen);
      return;
    }
    place(hidden);
    const swap = () => {
      if (this.images[1] !== hidden) return;
      hidden.setAttribute("visibility", "visible");
      seen.setAttribute("visibility", "hidden");
      this.images = [hidden, seen];
    };
    hidden.onload = swap;
    // The same address again would not load a second time.
    if (hidden.getAttribute("href") === url) swap();
    else hidden.setAttribute("href", url);
  }

  paintSpecial() {
    const { grid: { values, known, width, height } } = this;
    const paths = {};
    const counts = {};
    const [across, up] = [(this.plot.right - this.plot.left) / width,
      (this.plot.bottom - this.plot.top) / height];
    for (let line = 0; line < height; line++) {
      for (let start = 0; start < width;) {
        const sort = this.sortOf(line * width + start);
        let end = start + 1;
        while (end < width && this.sortOf(line * width + end) === sort) end++;
        if (sort) {
          const y = this.plot.top + this.fromTop(line) * up;
          paths[sort] = (paths[sort] ?? "") + `M${px(this.plot.left + start * across)} ${px(y)}` +
            `h${px((end - start) * across)}v${px(up)}h${px((start - end) * across)}z`;
          counts[sort] = (counts[sort] ?? 0) + end - start;
        }
        start = end;
      }
    }
    this.counts = counts;
    this.cells.replaceChildren(...Object.entries(paths).map(([sort, d]) =>
      svg("path", { class: sort, d, fill: `url(#${this.id}${sort})`, "data-cells": counts[sort] })));
  }

  sortOf(k) {
    const { values, known } = this.grid;
    if (!known[k] || Number.isFinite(values[k])) return null;
    if (Number.isNaN(values[k])) return "nan";
    if (values[k] > 0) return "infinite";
    return this.panel.log ? "zero" : "negative";
  }

  /* The colour bar, its end labels and the hatches in use, at the right of the x axis' name. */
  drawKey() {
    const specials = this.grid ? Object.keys(this.counts ?? {}) : [];
    const ends = this.range?.map((end) => (this.panel.log ? logTick(end) : plain(end)));
    const y = this.plot.bottom + 19;
    let x = this.plot.right;
    const nodes = [];
    const room = (label) => 6.3 * [...label].length + 4;
    if (ends) {
      nodes.push(text(x, y + 8, ends[1], { "text-anchor": "end", class: "key-high" }));
      x -= room(ends[1]) + 60;
      nodes.push(svg("rect", { x, y, width: 60, height: 9, fill: `url(#${this.id}scale)` }));
      nodes.push(text(x - 4, y + 8, ends[0], { "text-anchor": "end", class: "key-low" }));
      x -= room(ends[0]) + 8;
    }
    for (const sort of specials) {
      const { name } = SPECIAL[sort];
      nodes.push(text(x, y + 8, name, { "text-anchor": "end", class: "key-special" }));
      x -= room(name) + 10;
      nodes.push(svg("rect", { x, y, width: 10, height: 9, fill: `url(#${this.id}${sort})` }));
      x -= 8;
    }
    this.key.replaceChildren(...nodes);
  }

  nearest(x, y) {
    const { grid, plot } = this;
    if (!grid || x < plot.left || x > plot.right || y < plot.top || y > plot.bottom) return null;
    const i = Math.min(grid.width - 1,
      Math.floor(((x - plot.left) / (plot.right - plot.left)) * grid.width));
    const j = this.fromTop(Math.min(grid.height - 1,
      Math.floor(((y - plot.top) / (plot.bottom - plot.top)) * grid.height)));
    const k = j * grid.width + i;
    if (!grid.known[k]) return null;
    const { panel } = this;
    return { dot: null, lines: [`${panel.x} ${plain(grid.across.at(i))}, ${panel.y} ` +
      `${plain(grid.up.at(j))} · ${spoken(grid.values[k], panel.log)}`] };
  }

  summary() {
    const { panel, grid } = this;
    const head = `${panel.title}: heat map by ${panel.x} and ${panel.y}` +
      `${panel.log ? ", logarithmic" : ""}.`;
    if (!grid) return `${head} No values yet.`;
    const size = `Up to ${panel.x} ${plain(grid.latest)}, ${grid.height} rows of cells.`;
    return [head, size, ...this.wordsOnValues()].join(" ");
  }

  wordsOnValues() {
    const { grid: { low, high }, panel: { log } } = this;
    const odd = Object.entries(this.counts ?? {}).map(([s, n]) => `${n} cells ${SPECIAL[s].name}`);
    return [...(low <= high ? [`Between ${spoken(low, log)} and ${spoken(high, log)}.`] : []),
      ...(odd.length ? [`${odd.join(", ")}.`] : [])];
  }
}

/* Cells of the latest step: square, row 0 above, the colour key at the right. */
class MatrixPicture extends HeatPicture {
  get down() { return true; }
  get signed() { return !this.panel.log && this.range !== null && this.range[0] < 0; }

  fit() { this.plot.right -= 58; }

  /* The latest rows are the last ones. */
  rowsOf(run) {
    const rows = this.tableOf(run);
    const readStep = this.reader(this.panel.step);
    this.latest = readStep(rows, rows.count - 1);
    let first = rows.count - 1;
    while (first > 0 && readStep(rows, first - 1) === this.latest) first--;
    return Array.from({ length: rows.count - first }, (_, i) => first + i);
  }

  /* The colours of this matrix alone, unless their ends are fixed. */
  widen(low, high) {
    this.range = this.limitsOf(this.store.shown, this.value);
    if (this.range || !(low <= high)) return;
    const most = Math.max(Math.abs(low), Math.abs(high));
    if (this.panel.log) this.range = high - low > 1 ? niceEnds(low, high, true) : [low, high];
    else if (low < 0) this.range = [-most, most];
    else this.range = [0, high];
  }

  draw() {
    const grid = this.gridOf(this.store.shown);
    this.grid = grid;
    this.widen(grid?.low ?? Infinity, grid?.high ?? -Infinity);
    const { left, right, top, bottom } = this.room;
    const [across, down] = grid ? [grid.width, grid.height] : [1, 1];
    const cell = Math.max(1, Math.min((right - left) / across, (bottom - top) / down));
    this.plot = { left, top, right: left + cell * across, bottom: top + cell * down };
    const [x, y] = grid ? [grid.xEnds, grid.yEnds] : [[-0.5, 0.5], [-0.5, 0.5]];
    this.xOf = (v) => left + ((v - x[0]) / (x[1] - x[0])) * cell * across;
    this.yOf = (v) => top + ((v - y[0]) / (y[1] - y[0])) * cell * down;
    this.drawAxes(x, y, { wholeX: true, wholeY: true, yLog: false, yTicks: grid !== null });
    this.paintCells();
    this.drawKey();
  }

  /* Upwards beside the cells: dark is low. Under it the hatches in use. */
  drawKey() {
    const { plot: { top, right, bottom }, panel } = this;
    const specials = this.grid ? Object.keys(this.counts ?? {}) : [];
    const x = right + 9;
    const end = bottom - 16 * specials.length;
    const nodes = [];
    if (this.range) {
      const name = (value) => (panel.log ? spoken(value, true) : plain(value));
      nodes.push(svg("rect", { x, y: top, width: 10, height: Math.max(10, end - top),
        fill: `url(#${this.id}${this.signed ? "signed" : "scale"})` }),
      text(x + 14, top + 8, name(this.range[1]), { class: "key-high" }),
      text(x + 14, end, name(this.range[0]), { class: "key-low" }));
      if (this.signed && this.range[0] === -this.range[1]) {
        nodes.push(text(x + 14, (top + end) / 2 + 4, "0", { class: "key-zero" }));
      }
    }
    specials.forEach((sort, i) => {
      const y = end + 16 * i + 6;
      nodes.push(svg("rect", { x, y, width: 10, height: 10, fill: `url(#${this.id}${sort})` }),
        text(x + 14, y + 9, SPECIAL[sort].name, { class: "key-special" }));
    });
    this.key.replaceChildren(...nodes);
  }

  summary() {
    const { panel, grid } = this;
    const head = `${panel.title}: matrix${panel.log ? ", logarithmic" : ""}.`;
    if (!grid) return `${head} No values yet.`;
    const size = `${grid.height} rows, ${grid.width} columns at ${panel.step} ` +
      `${plain(this.latest)}.`;
    return [head, size, ...this.wordsOnValues()].join(" ");
  }
}

const paletteOf = (stops) => Uint32Array.from({ length: 256 }, (_, i) => {
  const at = (i / 255) * (stops.length - 1);
  const [from, to] = [stops[Math.floor(at)], stops[Math.ceil(at)]];
  const mix = [1, 3, 5].map((k) => {
    const [a, b] = [from, to].map((colour) => parseInt(colour.slice(k, k + 2), 16));
    return Math.round(a + (b - a) * (at - Math.floor(at)));
  });
  return (255 << 24) | (mix[2] << 16) | (mix[1] << 8) | mix[0]; // ABGR in memory order
});
const PALETTE = paletteOf(VIRIDIS);
const SIGNED_PALETTE = paletteOf(CIVIDIS);

/* y against x in the order of the rows, a unit as long upwards as to the right. */
class PathPicture extends Picture {
  constructor(panel, store) {
    super(panel, store);
    this.window = svg("rect", {});
    this.svg.prepend(svg("defs", {}, svg("clipPath", { id: `${this.id}window` }, this.window)));
  }

  draw() {
    const { store, panel } = this;
    this.series = store.pins.map((pin, i) => ({ kind: "pin", label: pin.label,
      look: lookOf("pin", i), points: this.pointsOf(pin.run) }));
    if (store.shown) {
      this.series.push({ kind: "now", label: store.shown.label, look: lookOf("now"),
        points: this.pointsOf(store.shown) });
    }
    const behind = store.shown && panel.backdrop
      ? this.pointsOf(store.shown, panel.backdrop) : { xs: [], ys: [] };
    this.scale(behind);
    const { left, right, top, bottom } = this.plot;
    const frame = { x: left, y: top, width: right - left, height: bottom - top };
    for (const [name, value] of Object.entries(frame)) this.window.setAttribute(name, px(value));
    const back = svg("path", { class: "backdrop", d: this.line(behind), fill: "none",
      stroke: "currentColor", "stroke-width": 0.8, opacity: 0.4,
      "clip-path": `url(#${this.id}window)` });
    this.marks.replaceChildren(back, ...this.series.map((one) => this.marksOf(one)));
  }

  pointsOf(run, table = this.panel.table) {
    const rows = this.tableOf(run, table);
    const read = (column) => {
      const reader = this.reader(column, table);
      return Array.from({ length: rows.count }, (_, i) => reader(rows, i));
    };
    const timed = this.store.spec.tables[table].columns.includes(this.panel.step);
    return { xs: read(this.panel.x), ys: read(this.panel.y),
      steps: timed ? read(this.panel.step) : null };
  }

  /* A backdrop fills the plot, which shrinks to its shape; without one the plot is filled. */
  scale({ xs, ys }) {
    let [x, y] = [endsAmong(xs), endsAmong(ys)];
    const given = x[0] < x[1] && y[0] < y[1];
    if (!given) [x, y] = this.growing();
    const { left, right, top, bottom } = this.room;
    const [wide, high] = [right - left, bottom - top];
    const unit = Math.min(wide / (x[1] - x[0]), high / (y[1] - y[0]));
    if (!given) {
      const around = ([low, end], size) =>
        [(low + end - size / unit) / 2, (low + end + size / unit) / 2];
      [x, y] = [around(x, wide), around(y, high)];
    }
    this.plot = { left, top, right: left + unit * (x[1] - x[0]),
      bottom: top + unit * (y[1] - y[0]) };
    this.xOf = (v) => left + (v - x[0]) * unit;
    this.yOf = (v) => top + (y[1] - v) * unit;
    this.drawAxes(x, y, { wholeX: false, yLog: false, yTicks: true });
  }

  /* Ends that hold all points and a margin; within a run they do not shrink. */
  growing() {
    const number = this.store.shown?.number ?? 0;
    if (number !== this.rangeRun) [this.range, this.rangeRun] = [null, number];
    const ends = ["x", "y"].map((axis) => {
      let found;
      for (const { points } of this.series) found = endsAmong(points[`${axis}s`], found);
      return this.endsOf(this.panel[axis], ...(found ?? endsAmong([])), true);
    });
    this.range = ends.map((end, k) => endsAmong(this.range?.[k] ?? [], end));
    return this.range.map(([low, high]) => {
      const margin = 0.06 * (high - low) || 0.5;
      return [low - margin, high + margin];
    });
  }

  marksOf({ kind, label, look, points: { xs, ys } }) {
    const group = svg("g", { "data-series": kind, "data-label": label, fill: "none",
      stroke: look.stroke, "stroke-width": look.width, "stroke-linejoin": "round" });
    const known = xs.map((_, i) => i).filter((i) => this.known(xs[i], ys[i]));
    const inside = known.filter((i) => this.inside(this.xOf(xs[i]), this.yOf(ys[i])));
    group.setAttribute("data-points", inside.length);
    if (!known.length) return group;
    group.append(svg("path", { class: "curve", d: this.line({ xs, ys }),
      "stroke-dasharray": look.dash, "clip-path": `url(#${this.id}window)` }));
    if (kind === "now" && inside.length <= 60) {
      const d = inside.map((i) => glyph("circle", this.xOf(xs[i]), this.yOf(ys[i]), 1.6));
      group.append(svg("path", { class: "markers", d: d.join(""), fill: look.stroke,
        stroke: "none" }));
    }
    const [first, last] = [known[0], known.at(-1)];
    group.append(this.endMark("first", xs[first], ys[first], look),
      this.endMark("latest", xs[last], ys[last], look));
    if (last < xs.length - 1) group.setAttribute("data-lost", xs.length - 1 - last);
    return group;
  }

  known(x, y) { return !Number.isNaN(x) && !Number.isNaN(y); }

  inside(x, y) {
    const { left, right, top, bottom } = this.plot;
    return x >= left && x <= right && y >= top && y <= bottom;
  }

  /* A ring at the first, a dot at the latest point; outside, an arrow at the frame towards it. */
  endMark(place, x, y, look) {
    const { left, right, top, bottom } = this.plot;
    const [atX, atY] = [this.xOf(x), this.yOf(y)];
    if (this.inside(atX, atY)) {
      const latest = place === "latest";
      return svg("circle", { class: place, cx: px(atX), cy: px(atY), r: latest ? 4 : 5,
        "stroke-width": 1.6, fill: latest ? look.stroke : "none" });
    }
    const [nearX, nearY] = [clamp(atX, left + 6, right - 6), clamp(atY, top + 6, bottom - 6)];
    const turn = Math.atan2(Math.sign(atY - clamp(atY, top, bottom)),
      Math.sign(atX - clamp(atX, left, right))) * (180 / Math.PI);
    return svg("path", { class: `${place} outside`, d: "M5 0L-4 4.5V-4.5Z", fill: look.stroke,
      "stroke-width": 1, transform: `translate(${px(nearX)} ${px(nearY)}) rotate(${turn})` });
  }

  /* Every segment as far as it is in the plot, broken at points that are no numbers. */
  line({ xs, ys }) {
    const parts = [];
    let [from, pen] = [null, null];
    for (let i = 0; i < xs.length; i++) {
      const to = [this.xOf(xs[i]), this.yOf(ys[i])];
      if (!to.every(Number.isFinite)) {
        [from, pen] = [null, null];
        continue;
      }
      const seen = from && this.cut(from, to);
      if (seen) {
        const [a, b] = seen.map((point) => point.map(px).join(" "));
        if (a !== pen) parts.push(`M${a}`);
        if (a !== b) parts.push(`L${b}`);
        pen = b;
      }
      from = to;
    }
    return parts.join("");
  }

  /* The part of a segment near the plot; null where there is none. (Liang and Barsky's way.) */
  cut([x, y], [x2, y2]) {
    const { left, right, top, bottom } = this.plot;
    let [start, end] = [0, 1];
    const [dx, dy] = [x2 - x, y2 - y];
    for (const [by, off] of [[-dx, x - left + 9], [dx, right + 9 - x],
      [-dy, y - top + 9], [dy, bottom + 9 - y]]) {
      if (by === 0 && off < 0) return null;
      if (by < 0) start = Math.max(start, off / by);
      if (by > 0) end = Math.min(end, off / by);
    }
    return start <= end
      ? [[x + start * dx, y + start * dy], [x + end * dx, y + end * dy]] : null;
  }

  nearest(x, y) {
    if (!this.inside(x, y)) return null;
    const { panel } = this;
    let best = null;
    for (const one of this.series ?? []) {
      const { xs, ys, steps } = one.points;
      for (let i = 0; i < xs.length; i++) {
        const at = [this.xOf(xs[i]), this.yOf(ys[i])];
        const off = Math.hypot(at[0] - x, at[1] - y);
        if (this.inside(...at) && !(best?.off <= off)) {
          best = { one, off, at, x: xs[i], y: ys[i], step: steps && steps[i] };
        }
      }
    }
    if (!best) return null;
    const where = `${panel.x_label || panel.x} ${plain(best.x)}, ` +
      `${panel.y_label || panel.y} ${plain(best.y)}`;
    const lines = best.step === null ? [where] : [`${panel.step} ${plain(best.step)}`, where];
    if (best.one.kind === "pin") lines.unshift(best.one.label);
    return { lines, dot: best.at };
  }

  summary() {
    const { panel } = this;
    const head = `${panel.title}: path of ${panel.y} against ${panel.x}.`;
    const points = this.series?.find((one) => one.kind === "now")?.points;
    if (!points?.xs.length) return `${head} No values yet.`;
    const { xs, ys } = points;
    const last = xs.length - 1;
    const name = (i) => `${panel.x} ${spoken(xs[i], false)}, ${panel.y} ${spoken(ys[i], false)}`;
    const parts = [head, `${xs.length} points, from ${name(0)} to ${name(last)}.`];
    if (!this.inside(this.xOf(xs[last]), this.yOf(ys[last]))) {
      parts.push("The latest is outside of the picture.");
    }
    if (this.store.pins.length) {
      parts.push(`Compared with ${this.store.pins.map((pin) => pin.label).join(", ")}.`);
    }
    return parts.join(" ");
  }
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

function pictureOf(panel, store, still) {
  if (panel.kind === "heatmap") return new HeatPicture(panel, store, still);
  if (panel.kind === "matrix") return new MatrixPicture(panel, store, still);
  if (panel.kind === "path") return new PathPicture(panel, store);
  return new CurvePicture(panel, store);
}

/* Where each panel stands, `rows` high: the first free place, row by row. */
function placesOf(panels, columns) {
  const taken = new Set();
  return panels.map(({ rows }) => {
    for (let k = 0; ; k++) {
      const [row, column] = [Math.floor(k / columns), k % columns];
      const cells = Array.from({ length: rows }, (_, i) => (row + i) * columns + column);
      if (cells.some((cell) => taken.has(cell))) continue;
      cells.forEach((cell) => taken.add(cell));
      return { row, column, rows };
    }
  });
}

// ---------------------------------------------------------------- legend

function legendOf(store) {
  const entries = [];
  const drawn = store.spec.panels.filter((panel) => !panel.colour);
  if (!drawn.length) return entries;
  // The lines of a panel `by` a column have a legend of their own.
  const single = drawn.filter((panel) => !panel.by);
  const label = store.shown?.label;
  const now = { ...lookOf("now"), ...(single.length ? {} : { stroke: "none", shape: null }) };
  entries.push({ kind: "now", look: now, name: label ? `now: ${label}` : "now" });
  if (single.some((panel) => panel.kind === "profile")) {
    entries.push({ kind: "start", look: lookOf("start"), name: "at start" });
  }
  store.pins.forEach((pin, i) => {
    const look = { ...lookOf("pin", i), ...(single.length ? {} : { dash: null, shape: null }) };
    entries.push({ kind: "pin", look, name: `pinned: ${pin.label}` });
  });
  return entries;
}

function sample(look) {
  return svg("g", { fill: "none", stroke: look.stroke, "stroke-width": look.width,
    "stroke-linecap": "round" },
  svg("path", { d: "M1 6H31", "stroke-dasharray": look.dash }),
  svg("path", { d: look.shape ? glyph(look.shape, 16, 6, 2.8) : "", "stroke-width": 1.2,
    fill: GREYS.includes(look.stroke) ? "none" : look.stroke }));
}

// ---------------------------------------------------------------- a view

class ChartView {
  constructor(store, el) {
    this.store = store;
    this.root = document.createElement("div");
    this.root.className = "lca-chart";
    Object.assign(this.root.dataset, { run: 0, rows: 0, paints: 0, lastPaint: "" });
    const style = document.createElement("style");
    style.textContent = STYLE;
    this.legend = document.createElement("div");
    this.legend.className = "lca-chart-legend";
    this.grid = document.createElement("div");
    this.grid.className = "lca-chart-grid";
    this.root.append(style, this.legend, this.grid);
    el.append(this.root);
    this.panels = store.spec.panels.map((panel) => this.framed(pictureOf(panel, store, false)));
    this.paints = 0;
    this.frame = 0;
    this.spokenAt = -Infinity;
    this.speaking = 0;
    this.observer = new ResizeObserver(() => this.layout());
    this.observer.observe(this.root);
    store.views.add(this);
    this.layout();
  }

  dispose() {
    this.store.views.delete(this);
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.speaking);
    this.root.remove();
  }

  framed(picture) {
    const frame = document.createElement("div");
    frame.className = "lca-chart-panel";
    const readout = document.createElement("div");
    readout.className = "lca-chart-readout";
    readout.setAttribute("aria-hidden", "true");
    readout.hidden = true;
    frame.append(picture.svg, readout);
    this.grid.append(frame);
    const shown = { frame, picture, readout, pointer: null };
    frame.addEventListener("pointermove", (event) => {
      const box = picture.svg.getBoundingClientRect();
      shown.pointer = [event.clientX - box.left, event.clientY - box.top];
      this.point(shown);
    });
    frame.addEventListener("pointerleave", () => {
      shown.pointer = null;
      this.point(shown);
    });
    return shown;
  }

  layout() {
    const width = this.root.clientWidth;
    if (width === this.width || width === 0) return;
    this.width = width;
    const wanted = this.store.spec.columns;
    const fit = Math.max(1, Math.min(wanted, Math.floor((width + GAP) / (MIN_WIDTH + GAP))));
    this.grid.style.gridTemplateColumns = `repeat(${fit}, minmax(0, 1fr))`;
    const each = Math.floor((width - GAP * (fit - 1)) / fit);
    const places = placesOf(this.store.spec.panels, fit);
    this.panels.forEach(({ frame, picture }, i) => {
      const { row, column, rows } = places[i];
      const height = rows * HEIGHT + (rows - 1) * GAP;
      frame.style.gridArea = `${row + 1} / ${column + 1} / span ${rows}`;
      frame.style.height = `${height}px`;
      picture.resize(Math.max(each, 160), height);
    });
    this.schedule();
  }

  schedule() {
    if (!this.frame) this.frame = requestAnimationFrame(() => this.paint());
  }

  paint() {
    this.frame = 0;
    if (!this.width) return; // not on screen yet: layout() will ask again
    this.drawLegend();
    for (const shown of this.panels) {
      shown.picture.draw();
      if (shown.pointer) this.point(shown);
    }
    const { dataset } = this.root;
    dataset.run = this.store.shown?.number ?? 0;
    dataset.rows = this.store.rows;
    dataset.paints = ++this.paints;
    dataset.lastPaint = performance.now();
    this.speak();
  }

  drawLegend() {
    const entries = legendOf(this.store);
    const key = JSON.stringify(entries);
    if (key === this.legendKey) return;
    this.legendKey = key;
    this.legend.replaceChildren(...entries.map(({ kind, look, name }) => {
      const item = document.createElement("span");
      item.dataset.legend = kind;
      if (look.stroke !== "none") {
        item.append(svg("svg", { width: 32, height: 12, "aria-hidden": "true" }, sample(look)));
      }
      item.append(name);
      return item;
    }));
  }

  /* The nearest value, in the panel's corner. */
  point({ picture, readout, pointer }) {
    const found = pointer && picture.xOf ? picture.nearest(...pointer) : null;
    readout.hidden = !found;
    picture.cursor.replaceChildren();
    if (!found) return;
    const leftHalf = pointer[0] < picture.width / 2; // never under the pointer
    readout.style.left = leftHalf ? "auto" : `${picture.plot.left + 4}px`;
    readout.style.right = leftHalf ? "14px" : "auto";
    readout.replaceChildren(...found.lines.map((line) => {
      const row = document.createElement("div");
      row.textContent = line;
      return row;
    }));
    if (found.dot) {
      picture.cursor.append(svg("circle", { cx: px(found.dot[0]), cy: px(found.dot[1]), r: 5,
        fill: "none", stroke: "currentColor", "stroke-width": 1.5 }));
    }
  }

  /* What a screen reader finds: at most once a second, the last state always. */
  speak() {
    const wait = this.spokenAt + 1000 - performance.now();
    if (wait > 0) {
      this.speaking ||= setTimeout(() => {
        this.speaking = 0; // a timer may be a little early: then there is another one
        this.speak();
      }, wait);
      return;
    }
    this.spokenAt = performance.now();
    for (const { picture } of this.panels) {
      picture.svg.setAttribute("aria-label", picture.summary());
    }
  }
}

// ---------------------------------------------------------------- files

/* One SVG document of all panels, on white, whatever the page's theme. */
function wholePicture(store) {
  const [width, height, margin, top] = [440, 220, 12, 34];
  const columns = Math.min(store.spec.columns, store.spec.panels.length);
  const places = placesOf(store.spec.panels, columns);
  const lines = Math.max(...places.map(({ row, rows }) => row + rows));
  const size = [columns * width + 2 * margin, lines * height + top + margin];
  const root = svg("svg", { xmlns: SVG, width: size[0], height: size[1],
    viewBox: `0 0 ${size[0]} ${size[1]}`, color: "#222", "font-size": 11,
    "font-family": "system-ui, 'DejaVu Sans', Helvetica, Arial, sans-serif" },
  svg("rect", { width: size[0], height: size[1], fill: "#fff" }));
  let x = margin + 6;
  for (const { look, name } of legendOf(store)) {
    const room = look.stroke === "none" ? 0 : 37;
    root.append(svg("g", { transform: `translate(${px(x)} 11)` }, ...(room ? [sample(look)] : []),
      text(room, 10, name, { "font-size": 12 })));
    x += room + widthOf(name, 12) + 22;
  }
  store.spec.panels.forEach((panel, i) => {
    const picture = pictureOf(panel, store, true);
    const { row, column, rows } = places[i];
    picture.resize(width - 12, rows * height - 12);
    picture.draw();
    picture.svg.setAttribute("aria-label", picture.summary());
    picture.svg.setAttribute("x", margin + column * width);
    picture.svg.setAttribute("y", top + row * height);
    root.append(picture.svg);
  });
  return { source: new XMLSerializer().serializeToString(root), size };
}

async function exportPicture(store, { format, filename }) {
  const { source, size } = wholePicture(store);
  const blob = new Blob([source], { type: "image/svg+xml" });
  if (format === "svg") return save(filename, blob);
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(source)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * size[0], 2 * size[1]];
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((png) => save(filename, png), "image/png");
}

function save(filename, blob) {
  const url = URL.createObjectURL(blob);
  const link = document.createElement("a");
  [link.href, link.download] = [url, filename];
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// ---------------------------------------------------------------- anywidget

export default () => {
  let store = null;
  return {
    initialize({ model }) {
      store = new Store(model.get("spec"));
      const receive = (message, buffers) => {
        if (message.type === "export") exportPicture(store, message);
        else if (message.type === "download") {
          save(message.filename, new Blob([message.text], { type: message.mime }));
        } else store.receive(message, buffers);
      };
      model.on("msg:custom", receive);
      model.send({ type: "ready" });
      return () => model.off("msg:custom", receive);
    },
    render({ model, el }) {
      el.classList.add("lca-chart-host"); // a class: ipywidgets resets the element's own style
      const view = new ChartView(store, el);
      return () => {
        view.dispose();
        if (store.views.size > 0) return;
        try {
          model.send({ type: "closed" });
        } catch {
          // The kernel has gone first: nobody is left to tell.
        }
      };
    },
  };
};
