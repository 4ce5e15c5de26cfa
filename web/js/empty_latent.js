// Empty Latent: preset and numbers always say the same; a new node has the size of the model that it is connected to.

import { app } from "../../../scripts/app.js";
import { addNote, onChange, onLoaded, valueOf } from "./note.js";
import { latentSizes, presetOfSize, sizeOfPreset, warningFor } from "./sizes.js";

const NODE = "CascadeEmptyLatent";
const CUSTOM = "custom";
const TINY = "tiny cascade (included)";
const SIDES = ["width", "height"];
const DEFAULT_SIDE = { tiny: 256, released: 1024 };
// Nodes whose size somebody chose, by hand or in a workflow.
const chosen = new WeakSet();

app.registerExtension({
  name: "StableCascade.EmptyLatent",
  nodeCreated(node) {
    if (node.comfyClass === NODE) addSizes(node);
    if (node.comfyClass?.startsWith("Cascade")) followModels(node);
  },
});

function addSizes(node) {
  const show = addNote(node);
  const refresh = () => {
    const [width, height] = SIDES.map((name) => valueOf(node, name));
    const { stageC, stageB } = latentSizes(width, height);
    const latents = `Stage C ${stageC.join(" x ")}, Stage B ${stageB.join(" x ")}`;
    show([`${width} x ${height} pixels`, latents], warningFor(width, height));
  };
  onChange(node, "preset", () => {
    chosen.add(node);
    const size = sizeOfPreset(valueOf(node, "preset"));
    if (size) setValues(node, size);
    refresh();
  });
  for (const name of SIDES) {
    onChange(node, name, () => {
      chosen.add(node);
      const [width, height] = SIDES.map((side) => valueOf(node, side));
      setValues(node, { preset: presetOfSize(presetsOf(node), width, height) ?? CUSTOM });
      refresh();
    });
  }
  onLoaded(node, () => {
    chosen.add(node);
    refresh();
  });
  node.followModel = () => {
    const tiny = chosen.has(node) ? null : isTiny(node);
    if (tiny === null) return;
    const side = tiny ? DEFAULT_SIDE.tiny : DEFAULT_SIDE.released;
    setValues(node, { preset: presetOfSize(presetsOf(node), side, side), width: side, height: side });
    refresh();
  };
  refresh();
}

/** After a connection or another file, new Empty Latents get the size that suits the model. */
function followModels(node) {
  const follow = () => {
    if (app.configuringGraph) return;
    // The page tells a node of a connection before the graph has it.
    queueMicrotask(() => node.graph?.nodes.forEach((each) => each.followModel?.()));
  };
  const before = node.onConnectionsChange;
  node.onConnectionsChange = function (...args) {
    const result = before?.apply(this, args);
    follow();
    return result;
  };
  for (const name of ["unet_name", "ckpt_name"]) onChange(node, name, follow);
}

/** Whether the samplers that a node feeds have the tiny cascade; null if no loader of ours is connected. */
function isTiny(node) {
  for (const { links } of node.outputs) {
    for (const id of links ?? []) {
      const link = node.graph.links.get ? node.graph.links.get(id) : node.graph.links[id];
      let model = link && node.graph.getNodeById(link.target_id);
      for (let steps = 0; model && steps < 100; steps++) {
        const file = valueOf(model, "unet_name") ?? valueOf(model, "ckpt_name");
        if (file !== undefined) return file === TINY;
        const slot = model.inputs?.findIndex((input) => input.type === "MODEL" && input.link != null) ?? -1;
        model = slot < 0 ? null : model.getInputNode(slot);
      }
    }
  }
  return null;
}

function presetsOf(node) {
  return node.widgets.find((widget) => widget.name === "preset").options.values;
}

function setValues(node, values) {
  for (const widget of node.widgets) if (widget.name in values) widget.value = values[widget.name];
  node.setDirtyCanvas(true, true);
}
