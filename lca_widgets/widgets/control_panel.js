/* All controls of a lab in one widget.
 *
 * Traits from Python (control_panel.py has the other side and the reasons):
 *   controls  [{kind: "slider" | "choice" | "switch" | "toggles" | "entry", name, label, help,
 *             ...}]
 *   values    {name: value}; place "column" | "row"; error {name | null, message}
 * To Python:   {type: "change", name, value, serial}: the user's change, at most ten a second for
 *              each control, the last value always.
 * From Python: {type: "ack", serial}: that change and all before it are handled. Until then, and
 *              while a slider is held, the control shows what the user did.
 *
 * The inputs carry data-name (the slider, the group of toggles) and data-box (its number box) or
 * data-toggle (the index of a button).
 */

const INTERVAL = 100; // ms between two messages of one control

const STYLE = `
.lca-controls-host { min-width: 0; }
.lca-controls { display: flex; flex-direction: column; gap: 7px; width: 100%; min-width: 0;
  box-sizing: border-box; padding: 2px 4px; color: var(--jp-ui-font-color1, inherit);
  font-family: var(--jp-ui-font-family, system-ui, sans-serif); font-size: 13px;
  accent-color: var(--jp-brand-color1, #1976d2); }
[data-jp-theme-light="false"] .lca-controls { color-scheme: dark; }
.lca-controls.row { flex-direction: row; flex-wrap: wrap; gap: 4px 18px; align-items: center; }
.lca-control { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 1px 8px;
  align-items: center; min-width: 0; }
.lca-controls.row .lca-control { grid-template-columns: auto auto; }
.lca-control.slider { row-gap: 3px; }
.lca-control label, .lca-control-label { overflow-wrap: anywhere; line-height: 1.25; }
.lca-control input, .lca-control select { font: inherit; color: inherit; margin: 0;
  box-sizing: border-box; }
.lca-control input[type=text], .lca-control select { height: 24px; padding: 1px 5px;
  border: 1px solid var(--jp-border-color1, #8888); border-radius: 3px;
  background: var(--jp-layout-color1, Field); color: var(--jp-ui-font-color1, FieldText); }
.lca-control select { max-width: 138px; min-width: 0; text-overflow: ellipsis; }
.lca-control option { background: var(--jp-layout-color1, Field);
  color: var(--jp-ui-font-color1, FieldText); }
.lca-control option:disabled { color: var(--jp-ui-font-color3, GrayText); }
.lca-control.slider input[type=text] { width: 66px; text-align: right;
  font-variant-numeric: tabular-nums; }
.lca-control.slider input[type=range] { grid-column: 1 / -1; width: 100%; height: 18px;
  cursor: pointer; }
.lca-controls.row .slider input[type=range] { width: 150px; }
.lca-control.entry input { width: 110px; }
.lca-controls.row .entry { flex: 1; grid-template-columns: auto minmax(0, 1fr); }
.lca-controls.row .entry input { width: 100%; }
.lca-control.switch input { width: 16px; height: 16px; }
.lca-control.toggles { display: flex; flex-wrap: wrap; justify-content: space-between;
  row-gap: 4px; }
.lca-controls.row .toggles { justify-content: start; }
.lca-control.toggles .lca-control-error { flex-basis: 100%; }
.lca-control.toggles .lca-control-error:empty { display: none; }
.lca-toggles { display: flex; flex-wrap: wrap; gap: 4px; min-width: 0; border-radius: 3px; }
.lca-toggles button { min-width: 24px; height: 24px; padding: 0 5px; font: inherit; color: inherit;
  cursor: pointer; box-sizing: border-box; border: 1px dashed; border-radius: 3px;
  background: transparent; font-variant-numeric: tabular-nums; }
.lca-toggles button[aria-pressed=true] { border: 1px solid var(--jp-brand-color1, #1976d2);
  background: var(--jp-brand-color1, #1976d2); color: var(--jp-ui-inverse-font-color1, #fff); }
.lca-controls :focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2);
  outline-offset: 0; }
.lca-toggles button:focus-visible { outline-offset: 1px; }
.lca-control input:not([type=range])[aria-invalid=true],
.lca-control select[aria-invalid=true] { border-color: var(--jp-error-color1, #d32f2f);
  box-shadow: 0 0 0 1px var(--jp-error-color1, #d32f2f); }
.lca-toggles[aria-invalid=true] { outline: 2px solid var(--jp-error-color1, #d32f2f);
  outline-offset: 2px; }
.lca-control-error { grid-column: 1 / -1; font-size: 12px; line-height: 1.3; }
.lca-control-error:not(:empty) { padding-left: 6px;
  border-left: 3px solid var(--jp-error-color1, #d32f2f); }
.lca-control-error:not(:empty)::before { content: "⚠ " / ""; }
.lca-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }`;

let panels = 0;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== "") element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/* Python's d, .Nf, .Ne and .Ng. */
function formatted(value, { before, how, after }) {
  const digits = Number(how.slice(1, -1));
  let number;
  if (how === "d" || !Number.isFinite(value)) number = String(value);
  else if (how.endsWith("f")) number = value.toFixed(digits);
  else if (how.endsWith("e")) number = exponential(value, digits);
  else number = general(value, Math.max(1, digits));
  return before + number + after;
}

function exponential(value, digits) {
  return value.toExponential(digits).replace(/e([+-])(\d)$/, "e$10$2");
}

function general(value, digits) {
  if (value === 0) return "0";
  const exponent = Number(value.toExponential(digits - 1).split("e")[1]);
  if (exponent < -4 || exponent >= digits) {
    return exponential(value, digits - 1).replace(/\.?0+e/, "e");
  }
  const fixed = value.toFixed(Math.max(0, digits - 1 - exponent));
  return fixed.includes(".") ? fixed.replace(/\.?0+$/, "") : fixed;
}

/* Six digits, and no more characters than the box has room for. */
function boxText(value) {
  if (typeof value !== "number") return "";
  const rounded = Number(value.toPrecision(6));
  return Math.abs(rounded) < 1e6 ? String(rounded) : rounded.toExponential().replace("e+", "e");
}

// ---------------------------------------------------------------- the five kinds

/* A control: its row, the inputs that can be wrong, and how a value is shown in them. */
class Control {
  constructor(spec, id, change) {
    this.spec = spec;
    this.id = id;
    this.change = change; // change(value): the user's
    this.held = false; // the user has hold of it: Python's values wait
    this.waiting = 0; // serial of the last change that Python has not answered
    this.row = make("div", { class: `lca-control ${spec.kind}`, title: spec.help });
    this.message = make("div", { class: "lca-control-error", id: `${id}-error` });
    this.describedBy = `${id}-error`;
    if (spec.help) {
      this.describedBy += ` ${id}-help`;
      this.row.append(make("span", { id: `${id}-help`, class: "lca-hidden" }, spec.help));
    }
    this.build();
    this.row.append(this.message);
    for (const input of this.inputs) {
      input.setAttribute("aria-describedby", this.describedBy);
      // Arrow keys on a slider are the slider's, not the notebook's. On the input itself: the
      // notebook's rules match the focused element before any ancestor is looked at.
      input.setAttribute("data-lm-suppress-shortcuts", "true");
    }
  }

  label() { return make("label", { for: this.id }, this.spec.label); }

  say(message) {
    this.message.textContent = message;
    for (const input of this.inputs) {
      if (message) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
    }
  }

  /* A refusal of what was typed: it stays in place until something else is typed or chosen. */
  refuse(message) {
    this.refused = true;
    this.say(message);
  }

  accept() {
    if (this.refused) this.say("");
    this.refused = false;
  }
}

class SliderControl extends Control {
  build() {
    const { spec, id } = this;
    const { log, minimum, maximum, step } = spec;
    const ends = log ? [Math.log10(minimum), Math.log10(maximum)] : [minimum, maximum];
    // Notches of a log slider are stretched a little so that its upper end is one of them.
    const notch = log ? (ends[1] - ends[0]) / Math.max(1, Math.round((ends[1] - ends[0]) / step))
      : step;
    this.ends = ends;
    this.range = make("input", { type: "range", id, min: ends[0], max: ends[1], step: notch,
      "data-name": spec.name, "aria-label": spec.label });
    this.box = make("input", { type: "text", inputmode: "decimal", autocomplete: "off",
      "data-box": spec.name, "aria-label": `${spec.label}, value` });
    this.row.append(this.label(), this.box, this.range);
    this.inputs = [this.range, this.box];
    this.range.addEventListener("input", () => this.slid());
    this.range.addEventListener("pointerdown", () => { this.held = true; });
    for (const end of ["pointerup", "pointercancel", "change", "blur"]) {
      this.range.addEventListener(end, () => this.release());
    }
    this.box.addEventListener("change", () => this.typed());
    this.box.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.typed();
      if (event.key === "Escape") {
        this.accept();
        this.show(this.value);
      }
    });
  }

  slid() {
    const at = Number(this.range.value);
    let value = at;
    if (this.spec.log) {
      // Three digits: what is shown is what is sent. The ends are exact.
      value = Number((10 ** at).toPrecision(3));
      if (at <= this.ends[0]) value = this.spec.minimum;
      if (at >= this.ends[1] - 1e-9) value = this.spec.maximum;
      if (this.spec.whole) value = Math.round(value);
    } else {
      value = Number(at.toPrecision(12));
    }
    this.accept();
    this.value = value;
    this.box.value = boxText(value);
    this.speak();
    this.change(value);
  }

  typed() {
    const typed = this.box.value.trim().replace("−", "-").replace(/^(-?\d*),(\d+)$/, "$1.$2");
    const value = Number(typed);
    if (typed === "" || !Number.isFinite(value)) {
      this.refuse(`“${this.box.value}” is not a number`);
      return;
    }
    this.accept();
    if (value === this.value) {
      this.show(value);
      return;
    }
    this.show(value);
    this.change(value);
  }

  release() {
    if (!this.held) return;
    this.held = false;
    this.onRelease?.();
  }

  show(value) {
    this.value = value;
    const at = this.spec.log ? Math.log10(value) : value;
    this.range.value = Number.isFinite(at) ? at : this.ends[0];
    if (!this.refused) this.box.value = boxText(value);
    this.speak();
  }

  speak() {
    this.range.setAttribute("aria-valuetext", formatted(this.value, this.spec.format));
  }

  /* Someone is typing: a value from Python must not take the text away. */
  get busy() {
    return this.held || (document.activeElement === this.box && this.box.value !== boxText(this.value));
  }
}

class ChoiceControl extends Control {
  build() {
    const { spec, id } = this;
    this.select = make("select", { id, "data-name": spec.name, "aria-label": spec.label });
    for (const { value, label, disabled_reason: reason } of spec.options) {
      const option = make("option", { value: String(value), title: reason },
        reason ? `${label} (${reason})` : label);
      option.disabled = Boolean(reason);
      this.select.append(option);
    }
    this.row.append(this.label(), this.select);
    this.inputs = [this.select];
    this.select.addEventListener("change", () => {
      this.change(spec.options[this.select.selectedIndex].value);
    });
  }

  show(value) {
    this.select.selectedIndex = this.spec.options.findIndex((option) => option.value === value);
  }

  get busy() { return false; }
}

class SwitchControl extends Control {
  build() {
    this.box = make("input", { type: "checkbox", id: this.id, role: "switch",
      "data-name": this.spec.name });
    this.row.append(this.label(), this.box);
    this.inputs = [this.box];
    this.box.addEventListener("change", () => this.change(this.box.checked));
  }

  show(value) { this.box.checked = Boolean(value); }

  get busy() { return false; }
}

class TogglesControl extends Control {
  build() {
    const { spec } = this;
    this.buttons = spec.buttons.map((text, index) => {
      const button = make("button", { type: "button", "data-toggle": index }, text);
      button.addEventListener("click", () => this.pressed(index));
      return button;
    });
    this.group = make("div", { class: "lca-toggles", role: "group", "data-name": spec.name,
      "aria-label": spec.label }, ...this.buttons);
    this.row.append(make("div", { class: "lca-control-label" }, spec.label), this.group);
    this.inputs = [this.group, ...this.buttons];
  }

  pressed(index) {
    const digits = [...this.value];
    digits[index] = digits[index] === "1" ? "0" : "1";
    this.show(digits.join(""));
    this.change(this.value);
  }

  show(value) {
    this.value = value;
    this.buttons.forEach((button, index) => {
      const on = value[index] === "1";
      const name = `${this.spec.buttons[index]}, ${on ? this.spec.on : this.spec.off}`;
      button.setAttribute("aria-pressed", on);
      button.setAttribute("aria-label", name);
      button.title = name;
    });
  }

  get busy() { return false; }
}

class EntryControl extends Control {
  build() {
    this.box = make("input", { type: "text", id: this.id, autocomplete: "off",
      "data-name": this.spec.name });
    this.row.append(this.label(), this.box);
    this.inputs = [this.box];
    const typed = () => {
      if (this.box.value === this.value) return;
      this.value = this.box.value;
      this.change(this.value);
    };
    this.box.addEventListener("change", typed);
    this.box.addEventListener("keydown", (event) => {
      if (event.key === "Enter") typed();
      if (event.key === "Escape") this.show(this.value);
    });
  }

  show(value) {
    this.value = value;
    this.box.value = value;
  }

  get busy() { return document.activeElement === this.box && this.box.value !== this.value; }
}

const KINDS = { slider: SliderControl, choice: ChoiceControl, switch: SwitchControl,
  toggles: TogglesControl, entry: EntryControl };

// ---------------------------------------------------------------- sending

/* At most one message per interval, the last value always; `flush` sends what is left now. */
function throttled(send) {
  let [timer, pending, last] = [0, null, -Infinity];
  const fire = () => {
    clearTimeout(timer);
    timer = 0;
    if (!pending) return;
    const [value] = pending;
    [pending, last] = [null, performance.now()];
    send(value);
  };
  const offer = (value) => {
    pending = [value];
    const wait = last + INTERVAL - performance.now();
    if (wait <= 0) fire();
    else timer ||= setTimeout(fire, wait);
  };
  return { offer, flush: fire, idle: () => pending === null };
}

// One count for all views of the page; another window's starts elsewhere.
let serial = Math.floor(Math.random() * 1e9);

class PanelView {
  constructor(model, el) {
    this.model = model;
    this.root = make("div", { class: `lca-controls ${model.get("place")}` });
    this.root.append(make("style", {}, STYLE));
    const prefix = `lca-panel-${++panels}`;
    this.controls = new Map();
    for (const spec of model.get("controls")) {
      const queue = throttled((value) => this.send(control, value));
      const control = new KINDS[spec.kind](spec, `${prefix}-${spec.name}`,
        (value) => queue.offer(value));
      control.queue = queue;
      control.onRelease = () => this.update(control);
      this.controls.set(spec.name, control);
      this.root.append(control.row);
    }
    this.general = make("div", { class: "lca-control-error", role: "alert" });
    this.root.append(this.general);
    el.append(this.root);
    this.handlers = {
      "change:values": () => this.controls.forEach((control) => this.update(control)),
      "change:error": () => this.showError(),
      "msg:custom": (message) => this.answered(message),
    };
    for (const [event, handler] of Object.entries(this.handlers)) model.on(event, handler);
    for (const control of this.controls.values()) control.show(this.valueOf(control));
    this.showError();
  }

  dispose() {
    for (const [event, handler] of Object.entries(this.handlers)) this.model.off(event, handler);
    for (const control of this.controls.values()) control.queue.flush();
    this.root.remove();
  }

  valueOf(control) { return this.model.get("values")[control.spec.name]; }

  send(control, value) {
    control.waiting = ++serial;
    this.model.send({ type: "change", name: control.spec.name, value, serial });
  }

  answered(message) {
    if (message.type !== "ack") return;
    for (const control of this.controls.values()) {
      if (control.waiting && message.serial === control.waiting) {
        control.waiting = 0;
        this.update(control);
      }
    }
  }

  /* Show Python's value, unless the user is ahead of it. */
  update(control) {
    if (control.waiting || !control.queue.idle() || control.busy) return;
    const value = this.valueOf(control);
    if (value !== control.value) control.accept(); // a preset replaces what was refused
    control.show(value);
  }

  showError() {
    const { name, message } = this.model.get("error");
    for (const control of this.controls.values()) {
      if (!control.refused) control.say(control.spec.name === name ? message : "");
    }
    this.general.textContent = name === null || name === undefined ? message : "";
  }
}

export default {
  render({ model, el }) {
    el.classList.add("lca-controls-host"); // a class: ipywidgets resets the element's own style
    const view = new PanelView(model, el);
    return () => view.dispose();
  },
};
