/* The part of an anywidget model that the modules use, for tests in a blank page.
 *
 * mount(code, traits) loads a module from its source, runs initialize and render in #root and
 * leaves the model in window.model: what the module sent is in model.sent.
 */
class FakeModel {
  constructor(traits) {
    this.traits = traits;
    this.sent = [];
    this.handlers = {};
  }
  get(name) { return this.traits[name]; }
  on(event, handler) { (this.handlers[event] ??= []).push(handler); }
  off(event, handler) {
    this.handlers[event] = (this.handlers[event] ?? []).filter((other) => other !== handler);
  }
  send(content) { this.sent.push({ ...content, at: performance.now() }); }
  fire(event, ...values) {
    for (const handler of [...(this.handlers[event] ?? [])]) handler(...values);
  }
  /* What a kernel does: change a trait, or send a message with buffers. */
  set(name, value) {
    this.traits[name] = value;
    this.fire(`change:${name}`);
  }
  receive(message, buffers) {
    // One byte off, as in a websocket frame: a module must not count on alignment.
    this.fire("msg:custom", message, buffers.map((base64) => {
      const bytes = Uint8Array.from(`\0${atob(base64)}`, (c) => c.charCodeAt(0));
      return new DataView(bytes.buffer, 1);
    }));
  }
  get listening() { return Object.values(this.handlers).flat().length; }
}

window.mount = async (code, traits) => {
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const module = (await import(address)).default;
  window.widget = typeof module === "function" ? await module() : module;
  window.model = new FakeModel(traits);
  const ended = await window.widget.initialize?.({ model: window.model });
  const disposed = await window.widget.render(
    { model: window.model, el: document.getElementById("root") });
  window.unmount = () => { disposed?.(); ended?.(); };
};
