// A few lines of text at the end of a node. They are neither saved with the workflow nor sent with the prompt.

/**
 * @param {object} node a node of the graph
 * @returns {(lines: string[], warning?: string) => void} shows these lines; the warning is colored
 */
export function addNote(node) {
  const element = document.createElement("div");
  element.className = "stable-cascade-note";
  // Reached with Tab, scrolled with the arrow keys, and read aloud when it changes.
  element.tabIndex = 0;
  element.setAttribute("role", "status");
  Object.assign(element.style, {
    fontSize: "11px",
    lineHeight: "15px",
    padding: "2px 8px",
    opacity: "0.9",
    overflow: "hidden auto",
    overflowWrap: "anywhere",
    pointerEvents: "none",
  });
  const widget = node.addDOMWidget("note", "stable_cascade_note", element, {
    serialize: false,
    hideOnZoom: true,
    getMinHeight: () => HEIGHT,
    getMaxHeight: () => HEIGHT,
  });
  // Two flags: one keeps it out of the saved workflow, the other out of the prompt.
  widget.serialize = false;
  node.setSize([Math.max(node.size[0], 240), Math.max(node.size[1], node.computeSize()[1])]);

  return (lines, warning = "") => {
    element.replaceChildren(...lines.map((line) => paragraph(line)));
    if (warning) element.append(paragraph(`⚠ ${warning}`, "#e0a030"));
  };
}

const HEIGHT = 66;

function paragraph(text, color = "") {
  const made = document.createElement("div");
  // textContent, never HTML: names of files come from the disk.
  made.textContent = text;
  made.style.color = color;
  return made;
}

/** Calls `react` whenever the widget of this name is changed by hand. */
export function onChange(node, name, react) {
  const widget = node.widgets?.find((each) => each.name === name);
  if (!widget) return;
  const before = widget.callback;
  widget.callback = function (...args) {
    const result = before?.apply(this, args);
    react();
    return result;
  };
}

/** Calls `react` once the values of a loaded workflow are in their widgets. */
export function onLoaded(node, react) {
  const before = node.onConfigure;
  node.onConfigure = function (...args) {
    const result = before?.apply(this, args);
    react();
    return result;
  };
}

export function valueOf(node, name) {
  return node.widgets?.find((each) => each.name === name)?.value;
}

/** Whether a widget's value is one of its choices: a workflow may name a file that is not here. */
export function isOffered(node, name) {
  const widget = node.widgets?.find((each) => each.name === name);
  const values = widget?.options?.values;
  return !Array.isArray(values) || values.includes(widget.value);
}
