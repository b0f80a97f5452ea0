/* Run, pause, step, stop, reset, pin: the buttons of a lab and its status line.
 *
 * Trait from Python (toolbar.py has the other side):
 *   view  {state, text, progress: 0..1 | null, enabled: [button names], error: text}
 * To Python: {type: "press", name}; the pause button is called "resume" while paused.
 *
 * The root carries data-state; a button data-name. A screen reader hears changes of state and
 * errors, not each update of the text.
 */

const BUTTONS = [
  ["run", "Run", "M3 2l10 6-10 6z"],
  ["pause", "Pause", "M3 2h3.5v12H3zM9.5 2H13v12H9.5z"],
  ["step", "Step", "M2 2l8 6-8 6zM11 2h3v12h-3z"],
  ["stop", "Stop", "M3 3h10v10H3z"],
  ["reset", "Reset", "M8 2.5V0L3.6 3.5 8 7V4.5A4 4 0 1 1 4 8.5H2A6 6 0 1 0 8 2.5z"],
  ["pin", "Pin", "M5 1h6v1.5l-1 1V7l2.5 2v1.5H8.7V15L8 16l-.7-1v-4.5H3.5V9L6 7V3.5l-1-1z"],
  ["unpin", "Unpin",
    "M5 1h6v1.5l-1 1V7l2.5 2v1.5H8.7V15L8 16l-.7-1v-4.5H3.5V9L6 7V3.5l-1-1zM1.2 2l1-1L15 13.8l-1 1z"],
];

const SPOKEN = { idle: "Ready", running: "Running", paused: "Paused", stopped: "Stopped",
  finished: "Finished", diverged: "Diverged", error: "Error" };

const STYLE = `
.lca-toolbar { display: flex; flex-wrap: wrap; align-items: center; gap: 4px; width: 100%;
  box-sizing: border-box; padding: 2px 4px; color: var(--jp-ui-font-color1, inherit);
  font-family: var(--jp-ui-font-family, system-ui, sans-serif); font-size: 13px; }
.lca-toolbar-buttons { display: flex; flex-wrap: wrap; gap: 4px; }
.lca-toolbar button { display: inline-flex; align-items: center; gap: 5px; height: 26px;
  padding: 0 7px; font: inherit; color: inherit; cursor: pointer; border-radius: 3px;
  border: 1px solid var(--jp-border-color1, #8888); background: var(--jp-layout-color2, #8881); }
.lca-toolbar button svg { width: 12px; height: 12px; fill: currentColor; flex: none; }
.lca-toolbar button:hover { background: var(--jp-layout-color3, #8883); }
.lca-toolbar button[aria-disabled=true] { opacity: 0.45; cursor: default; border-style: dashed; }
.lca-toolbar button[aria-disabled=true]:hover { background: var(--jp-layout-color2, #8881); }
.lca-toolbar button:focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2);
  outline-offset: 1px; }
.lca-toolbar button:active:not([aria-disabled=true]), .lca-toolbar button[data-pressed] {
  background: var(--jp-brand-color1, #1976d2); border-color: var(--jp-brand-color1, #1976d2);
  color: var(--jp-ui-inverse-font-color1, #fff); }
.lca-toolbar-status { flex: 1 1 320px; display: flex; align-items: center; gap: 8px;
  justify-content: flex-end; min-width: 0; }
.lca-toolbar-text { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.lca-toolbar-text svg { width: 14px; height: 14px; vertical-align: -2px; margin-right: 5px;
  fill: currentColor; }
.lca-toolbar-error:empty { display: none; }
.lca-toolbar-error { flex-basis: 100%; }
.lca-toolbar-error svg { width: 14px; height: 14px; vertical-align: -2px; margin-right: 5px;
  fill: currentColor; }
.lca-toolbar-error, .lca-toolbar[data-state=error] .lca-toolbar-text:not(:empty),
.lca-toolbar[data-state=diverged] .lca-toolbar-text {
  padding: 3px 8px; border: 1px solid var(--jp-error-color1, #d32f2f); border-left-width: 4px;
  border-radius: 3px; font-weight: 600; }
.lca-toolbar[data-state=error] .lca-toolbar-status,
.lca-toolbar[data-state=diverged] .lca-toolbar-status { flex-basis: 100%; justify-content: start; }
.lca-toolbar-progress { flex: none; width: 90px; height: 9px; border-radius: 5px; overflow: hidden;
  border: 1px solid var(--jp-border-color1, #8888); box-sizing: border-box; }
.lca-toolbar-progress[hidden] { display: none; }
.lca-toolbar-progress div { height: 100%; background: var(--jp-brand-color1, #1976d2); }
.lca-toolbar-live { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap; }`;

const WARNING = "M8 1l7.5 13.5H.5zM7.2 6v4.5h1.6V6zM7.2 11.6v1.6h1.6v-1.6z";

const PRESSED = 180; // ms: long enough to be seen whatever Python answers

function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  shape.setAttribute("d", path);
  shape.setAttribute("fill-rule", "evenodd");
  svg.append(shape);
  return svg;
}

function make(tag, attributes = {}) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

class ToolbarView {
  constructor(model, el) {
    this.model = model;
    this.root = make("div", { class: "lca-toolbar", role: "group", "aria-label": "Run" });
    const style = make("style");
    style.textContent = STYLE;
    const row = make("div", { class: "lca-toolbar-buttons" });
    this.buttons = new Map(BUTTONS.map(([name, label, path]) => {
      // Space and Enter on a button are the button's, not the notebook's.
      const button = make("button", { type: "button", "data-lm-suppress-shortcuts": "true" });
      button.addEventListener("click", () => this.press(button));
      row.append(button);
      this.dress(button, name, label, path);
      return [name, button];
    }));
    const status = make("div", { class: "lca-toolbar-status" });
    this.text = make("span", { class: "lca-toolbar-text" });
    this.progress = make("div", { class: "lca-toolbar-progress", role: "progressbar",
      "aria-label": "progress of the run", "aria-valuemin": 0, "aria-valuemax": 100 });
    this.bar = make("div");
    this.progress.append(this.bar);
    this.live = make("div", { class: "lca-toolbar-live", role: "status" });
    this.error = make("div", { class: "lca-toolbar-error" });
    status.append(this.text, this.progress);
    this.root.append(style, row, status, this.error, this.live);
    el.append(this.root);
    this.update = () => this.show(model.get("view"));
    model.on("change:view", this.update);
    this.update();
  }

  dispose() {
    this.model.off("change:view", this.update);
    this.root.remove();
  }

  dress(button, name, label, path) {
    button.dataset.name = name;
    button.setAttribute("aria-label", label);
    button.replaceChildren(icon(path), label);
  }

  press(button) {
    // aria-disabled rather than disabled: the focus stays where the user left it.
    if (button.getAttribute("aria-disabled") === "true") return;
    button.dataset.pressed = "";
    setTimeout(() => delete button.dataset.pressed, PRESSED);
    this.model.send({ type: "press", name: button.dataset.name });
  }

  show({ state, text, progress, enabled, error }) {
    const pause = this.buttons.get("pause");
    const wanted = state === "paused" ? "resume" : "pause";
    if (pause.dataset.name !== wanted) {
      if (wanted === "resume") this.dress(pause, "resume", "Resume", BUTTONS[0][2]);
      else this.dress(pause, ...BUTTONS[1]);
    }
    for (const button of this.buttons.values()) {
      button.setAttribute("aria-disabled", String(!enabled.includes(button.dataset.name)));
    }
    this.root.dataset.state = state;
    this.showText(state, text, error);
    this.progress.hidden = progress === null || progress === undefined;
    const percent = Math.round(100 * (progress ?? 0));
    this.progress.setAttribute("aria-valuenow", percent);
    this.bar.style.width = `${percent}%`;
    this.showError(error);
    this.announce(error ? "error" : state, error || text);
  }

  showError(error) {
    if (error === this.shownError) return;
    this.shownError = error;
    this.error.replaceChildren(...(error ? [icon(WARNING), error] : []));
  }

  showText(state, text, error) {
    // An error that has a line of its own is not said twice.
    const wrong = state === "diverged" || (state === "error" && !error);
    const worded = state === "diverged" && !/diverg/i.test(text) ? `diverged · ${text}` : text;
    const line = wrong ? worded || SPOKEN[state] : worded;
    const key = `${wrong} ${line}`;
    if (key === this.textKey) return;
    this.textKey = key;
    this.text.replaceChildren(...(wrong ? [icon(WARNING)] : []), line);
  }

  announce(state, text) {
    const said = state === "error" ? `${state} ${text}` : state;
    const first = this.said === undefined;
    if (said === this.said) return;
    this.said = said;
    if (first) return; // a page that has just been opened announces nothing
    const quiet = state === "idle" || state === "running";
    this.live.textContent = quiet || !text ? SPOKEN[state] : `${SPOKEN[state]}: ${text}`;
  }
}

export default {
  render({ model, el }) {
    const view = new ToolbarView(model, el);
    return () => view.dispose();
  },
};
