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
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e",
  "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const HEIGHT = 176;
const MIN_WIDTH = 225;
const GAP = 10;
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
.lca-chart-panel { position: relative; min-width: 0; height: ${HEIGHT}px; }
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

// ---------------------------------------------------------------- one panel

let pictures = 0;

/* What line, profile and heat map share: a frame, two axes and the growing range of values. */
class Picture {
  constructor(panel, store) {
    this.panel = panel;
    this.store = store;
    this.id = `lca${++pictures}x${Math.random().toString(36).slice(2, 7)}`;
    this.columns = store.spec.tables[panel.table].columns;
    this.log = store.spec.tables[panel.table].log;
    this.value = panel.kind === "heatmap" ? panel.colour : panel.y;
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
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", height);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.axesKey = "";
  }

  /* A function (row index, rows) -> number for a column, in the panel's own scale. */
  reader(column) {
    const index = this.columns.indexOf(column);
    const sentLog = this.log.includes(index);
    const wantLog = this.panel.log && column === this.value;
    return sentLog && !wantLog
      ? (rows, i) => 10 ** rows.data[i * rows.width + index]
      : (rows, i) => rows.data[i * rows.width + index];
  }

  tableOf(run) { return run.tables[this.panel.table]; }

  /* The range of values, widened in whole decades or nice steps; never narrowed within a run. */
  widen(low, high) {
    const number = this.store.shown?.number ?? 0;
    if (number !== this.rangeRun) [this.range, this.rangeRun] = [null, number];
    if (!(low <= high)) return;
    if (this.range && low >= this.range[0] && high <= this.range[1]) return;
    if (this.range) [low, high] = [Math.min(low, this.range[0]), Math.max(high, this.range[1])];
    this.range = niceEnds(low, high, this.panel.log);
  }

  /* Fixed ends of an axis, those of pinned runs included where `all`; else the data's own. */
  endsOf(column, low, high, all) {
    const runs = [this.store.shown, ...(all ? this.store.pins.map((pin) => pin.run) : [])];
    for (const run of runs) {
      const limits = run?.limits[column];
      if (limits) [low, high] = [Math.min(low, limits[0]), Math.max(high, limits[1])];
    }
    return low <= high ? [low, high] : [0, 1];
  }

  drawAxes(x, y, { wholeX, yLog, yTicks }) {
    const key = JSON.stringify([x, y, yTicks, this.width, this.height]);
    if (key === this.axesKey) return;
    this.axesKey = key;
    const { left, right, top, bottom } = this.plot;
    const { panel } = this;
    const lines = { stroke: "currentColor", "stroke-width": 1 };
    const nodes = [text(left, 11, panel.title, { "font-weight": 600, "font-size": 12 })];
    const [xTicks] = ticksOf(x[0], x[1], false, (right - left) / 48, wholeX);
    for (const tick of xTicks) {
      const at = px(this.xOf(tick));
      if (panel.kind !== "heatmap") {
        nodes.push(svg("path", { d: `M${at} ${top}V${bottom}`, ...lines, opacity: 0.09 }));
      }
      nodes.push(svg("path", { d: `M${at} ${bottom}v3`, ...lines, opacity: 0.5 }));
      nodes.push(text(at, bottom + 13, plain(tick), { "text-anchor": "middle" }));
    }
    if (yTicks) {
      const [major, minor] = ticksOf(y[0], y[1], yLog, (bottom - top) / 24,
        panel.kind === "heatmap");
      const inset = (tick) => px(this.yOf(tick));
      for (const tick of minor) {
        nodes.push(svg("path", { d: `M${left} ${inset(tick)}H${right}`, ...lines, opacity: 0.06 }));
      }
      for (const tick of major) {
        const at = inset(tick);
        if (panel.kind !== "heatmap") {
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
  draw() {
    const { store, panel } = this;
    const series = [];
    store.pins.forEach((pin, i) => {
      series.push({ kind: "pin", label: pin.label, look: lookOf("pin", i),
        points: this.pointsOf(pin.run, false) });
    });
    if (store.shown) {
      if (panel.kind === "profile") {
        series.push({ kind: "start", label: "at start", look: lookOf("start"),
          points: this.pointsOf(store.shown, true) });
      }
      series.push({ kind: "now", label: store.shown.label, look: lookOf("now"),
        points: this.pointsOf(store.shown, false) });
    }
    this.series = series;
    let [lowX, highX, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const { points: { xs, ys } } of series) {
      for (let i = 0; i < xs.length; i++) {
        if (xs[i] < lowX) lowX = xs[i];
        if (xs[i] > highX) highX = xs[i];
        if (Number.isFinite(ys[i])) {
          if (ys[i] < low) low = ys[i];
          if (ys[i] > high) high = ys[i];
        }
      }
    }
    this.widen(low, high);
    this.scale(this.endsOf(panel.x, lowX, highX, true));
    [this.edges, this.names] = [[], []];
    this.marks.replaceChildren(...series.map((one) => this.marksOf(one)), this.edgeNames());
  }

  scale(ends) {
    const wholeX = Number.isInteger(ends[0]) && Number.isInteger(ends[1]);
    let [low, high] = ends;
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    else if (this.panel.kind === "profile") {
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
      { wholeX, yLog: this.panel.log, yTicks: this.range !== null });
  }

  /* All rows of a run, or those of its first or latest step, ordered by x. */
  pointsOf(run, first) {
    const rows = this.tableOf(run);
    const [readX, readY] = [this.reader(this.panel.x), this.reader(this.panel.y)];
    const at = [];
    if (this.panel.kind === "line") {
      for (let i = 0; i < rows.count; i++) at.push(i);
    } else if (rows.count) {
      const readStep = this.reader(this.panel.step);
      const step = readStep(rows, first ? 0 : rows.count - 1);
      for (let i = 0; i < rows.count; i++) if (readStep(rows, i) === step) at.push(i);
      at.sort((a, b) => readX(rows, a) - readX(rows, b));
      this.latest = step;
    }
    return { xs: at.map((i) => readX(rows, i)), ys: at.map((i) => readY(rows, i)) };
  }

  marksOf({ kind, label, look, points: { xs, ys } }) {
    const group = svg("g", { "data-series": kind, "data-label": label, fill: "none",
      stroke: look.stroke, "stroke-width": look.width, "stroke-linecap": "round",
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
    const places = look.shape ? this.markerPlaces(kind, finite) : [];
    if (places.length) {
      const size = kind === "now" ? 2.4 : 2.8;
      const d = places.map((i) => glyph(look.shape, this.xOf(xs[i]), this.yOf(ys[i]), size));
      group.append(svg("path", { class: "markers", d: d.join(""), "stroke-width": 1.2,
        fill: kind === "now" ? look.stroke : "none" }));
    }
    this.edgeMarks(group, edges, look);
    return group;
  }

  sortOf(value) {
    if (Number.isNaN(value)) return "nan";
    if (value > 0) return "infinite";
    return this.panel.log ? "zero" : "negative";
  }

  markerPlaces(kind, finite) {
    if (kind === "now" && this.panel.kind === "line") return finite.slice(-1);
    const most = this.panel.kind === "profile" ? 40 : 7;
    const every = Math.ceil(finite.length / most);
    return finite.filter((_, k) => k % every === Math.floor(every / 2));
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
      this.names.push({ name, y, ends: at.filter((x, i) => !(at[i + 1] - x < 40)),
        starts: at.filter((x, i) => !(x - at[i - 1] < 40)) });
    }
  }

  /* The names of edge marks, once a group of marks, beside it where there is room, else over it. */
  edgeNames() {
    const taken = this.edges;
    const placed = [];
    for (const { name, y, starts, ends } of this.names) {
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

  nearest(x) {
    let best = null;
    const lines = [];
    const { log, x: name } = this.panel;
    const closest = ({ xs, ys }, to) => {
      let found = -1;
      for (let i = 0; i < xs.length; i++) {
        if (found < 0 || Math.abs(this.xOf(xs[i]) - to) < Math.abs(this.xOf(xs[found]) - to)) {
          found = i;
        }
      }
      return found < 0 ? null : { x: xs[found], y: ys[found] };
    };
    for (const one of [...(this.series ?? [])].reverse()) {
      const point = closest(one.points, best ? this.xOf(best.x) : x);
      if (!point) continue;
      const value = spoken(point.y, log);
      if (!best) {
        best = point;
        lines.push(`${this.panel.x_label || name} ${plain(point.x)} · ${value}`);
      } else if (Math.abs(this.xOf(point.x) - this.xOf(best.x)) < 8) {
        lines.push(`${one.label}: ${value}`);
      }
    }
    if (!best) return null;
    const y = Number.isFinite(best.y) ? this.yOf(best.y) : null;
    return { lines, dot: y === null ? null : [this.xOf(best.x), y] };
  }

  summary() {
    const { panel } = this;
    const { log } = panel;
    const head = `${panel.title}: ${panel.kind === "line" ? "line chart" : "curve by layer"}` +
      `${log ? ", logarithmic" : ""}.`;
    const now = this.series?.find((one) => one.kind === "now")?.points;
    if (!now?.xs.length) return `${head} No values yet.`;
    const { xs, ys } = now;
    const last = xs.length - 1;
    const finite = ys.filter(Number.isFinite);
    const parts = [head];
    if (panel.kind === "line") {
      parts.push(`Latest, ${panel.x} ${plain(xs[last])}: ${spoken(ys[last], log)}.`);
    } else {
      parts.push(`At ${panel.step} ${plain(this.latest)}: ${spoken(ys[0], log)} at ${panel.x} ` +
        `${plain(xs[0])}, ${spoken(ys[last], log)} at ${panel.x} ${plain(xs[last])}.`);
    }
    if (finite.length) {
      const [low, high] = finite.reduce(([a, b], y) => [Math.min(a, y), Math.max(b, y)],
        [Infinity, -Infinity]);
      parts.push(`Between ${spoken(low, log)} and ${spoken(high, log)}.`);
    }
    if (finite.length < ys.length) parts.push(oddities(ys, log));
    if (this.store.pins.length) {
      parts.push(`Compared with ${this.store.pins.map((pin) => pin.label).join(", ")}.`);
    }
    return parts.join(" ");
  }
}

function oddities(values, log) {
  const count = (test) => values.filter(test).length;
  const found = [[count((v) => v === Infinity), "infinite"],
    [count((v) => v === -Infinity), log ? "zero" : "minus infinity"],
    [count(Number.isNaN), "not a number"]];
  return found.filter(([n]) => n).map(([n, name]) => `${n} ${name}`).join(", ") + ".";
}

const SPECIAL = { // cells without a place on the colour scale: own colour and own hatch
  infinite: { fill: "#d55e00", hatch: "M-1 1l2 -2M0 6l6 -6M5 7l2 -2", name: "∞" },
  zero: { fill: "#d9d9d9", hatch: "M0 1.5h6M0 4.5h6", name: "0" },
  negative: { fill: "#d9d9d9", hatch: "M0 1.5h6M0 4.5h6", name: "−∞" },
  nan: { fill: "#8c8c8c", hatch: "M0 0l6 6M0 6l6 -6", name: "NaN" },
};

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
      svg("rect", { width: 6, height: 6, fill }),
      svg("path", { d: hatch, stroke: "#222", "stroke-width": 1 })));
    const gradient = svg("linearGradient", { id: `${this.id}scale` }, ...VIRIDIS.map((colour, i) =>
      svg("stop", { offset: i / (VIRIDIS.length - 1), "stop-color": colour })));
    this.svg.prepend(svg("defs", {}, ...patterns, gradient), ...this.images, this.cells, this.key);
  }

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
    this.drawAxes(x, y, { wholeX: true, yLog: false, yTicks: true });
    this.paintCells();
    this.drawKey();
  }

  gridOf(run) {
    if (!run || !this.tableOf(run).count) return null;
    const rows = this.tableOf(run);
    const [readX, readY, readV] = [this.panel.x, this.panel.y, this.value]
      .map((column) => this.reader(column));
    const xs = [...new Set(Array.from({ length: rows.count }, (_, i) => readX(rows, i)))];
    const ys = [...new Set(Array.from({ length: rows.count }, (_, i) => readY(rows, i)))];
    const across = this.spread(xs, this.panel.x, 2048);
    const up = this.spread(ys, this.panel.y, 512);
    const values = new Float32Array(across.size * up.size);
    const known = new Uint8Array(across.size * up.size);
    const starts = [...new Set(xs.map(across.index))].sort((a, b) => a - b);
    const ends = new Map(starts.map((s, i) => [s, starts[i + 1] ?? s + 1]));
    let [low, high] = [Infinity, -Infinity];
    for (let i = 0; i < rows.count; i++) {
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
    let coloured = 0;
    for (let k = 0; k < values.length; k++) {
      if (!known[k] || !Number.isFinite(values[k])) continue;
      const line = height - 1 - Math.floor(k / width); // the first layer is at the bottom
      const shade = Math.round(((values[k] - low) / (high - low)) * 255);
      colours[line * width + (k % width)] = PALETTE[Math.min(255, Math.max(0, shade))];
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
          const y = this.plot.bottom - (line + 1) * up;
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
    const j = Math.min(grid.height - 1,
      Math.floor(((plot.bottom - y) / (plot.bottom - plot.top)) * grid.height));
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
    const parts = [head, `Up to ${panel.x} ${plain(grid.latest)}, ${grid.height} rows of cells.`];
    if (grid.low <= grid.high) {
      parts.push(`Between ${spoken(grid.low, panel.log)} and ${spoken(grid.high, panel.log)}.`);
    }
    const odd = Object.entries(this.counts ?? {});
    if (odd.length) parts.push(odd.map(([s, n]) => `${n} cells ${SPECIAL[s].name}`).join(", ") + ".");
    return parts.join(" ");
  }
}

const PALETTE = Uint32Array.from({ length: 256 }, (_, i) => {
  const at = (i / 255) * (VIRIDIS.length - 1);
  const [from, to] = [VIRIDIS[Math.floor(at)], VIRIDIS[Math.ceil(at)]];
  const mix = [1, 3, 5].map((k) => {
    const [a, b] = [from, to].map((colour) => parseInt(colour.slice(k, k + 2), 16));
    return Math.round(a + (b - a) * (at - Math.floor(at)));
  });
  return (255 << 24) | (mix[2] << 16) | (mix[1] << 8) | mix[0]; // ABGR in memory order
});

const pictureOf = (panel, store, still) =>
  panel.kind === "heatmap" ? new HeatPicture(panel, store, still) : new CurvePicture(panel, store);

// ---------------------------------------------------------------- legend

function legendOf(store) {
  const entries = [];
  const kinds = new Set(store.spec.panels.map((panel) => panel.kind));
  if (!kinds.has("line") && !kinds.has("profile")) return entries;
  const label = store.shown?.label;
  entries.push({ kind: "now", look: lookOf("now"), name: label ? `now: ${label}` : "now" });
  if (kinds.has("profile")) entries.push({ kind: "start", look: lookOf("start"), name: "at start" });
  store.pins.forEach((pin, i) =>
    entries.push({ kind: "pin", look: lookOf("pin", i), name: `pinned: ${pin.label}` }));
  return entries;
}

function sample(look) {
  return svg("g", { fill: "none", stroke: look.stroke, "stroke-width": look.width,
    "stroke-linecap": "round" },
  svg("path", { d: "M1 6H31", "stroke-dasharray": look.dash }),
  svg("path", { d: look.shape ? glyph(look.shape, 16, 6, 2.8) : "", "stroke-width": 1.2,
    fill: look.shape === "circle" ? look.stroke : "none" }));
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
    const shown = { picture, readout, pointer: null };
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
    for (const { picture } of this.panels) picture.resize(Math.max(each, 160), HEIGHT);
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
      item.append(svg("svg", { width: 32, height: 12, "aria-hidden": "true" }, sample(look)), name);
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
  const lines = Math.ceil(store.spec.panels.length / columns);
  const size = [columns * width + 2 * margin, lines * height + top + margin];
  const root = svg("svg", { xmlns: SVG, width: size[0], height: size[1],
    viewBox: `0 0 ${size[0]} ${size[1]}`, color: "#222", "font-size": 11,
    "font-family": "system-ui, 'DejaVu Sans', Helvetica, Arial, sans-serif" },
  svg("rect", { width: size[0], height: size[1], fill: "#fff" }));
  const ruler = document.createElement("canvas").getContext("2d");
  ruler.font = "12px sans-serif";
  let x = margin + 6;
  for (const { look, name } of legendOf(store)) {
    root.append(svg("g", { transform: `translate(${px(x)} 11)` }, sample(look),
      text(37, 10, name, { "font-size": 12 })));
    x += 37 + ruler.measureText(name).width + 22;
  }
  store.spec.panels.forEach((panel, i) => {
    const picture = pictureOf(panel, store, true);
    picture.resize(width - 12, height - 12);
    picture.draw();
    picture.svg.setAttribute("aria-label", picture.summary());
    picture.svg.setAttribute("x", margin + (i % columns) * width);
    picture.svg.setAttribute("y", top + Math.floor(i / columns) * height);
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
