// Size and color of a node that is added by hand: prompts are green, Stage C is blue, Stage B purple, as in the templates.

import { app } from "../../../scripts/app.js";

const WIDTH = 320;
const LOOKS = {
  CascadeTextEncode: { color: "green", height: 240 },
  CascadeSampleStageC: { color: "blue" },
  CascadeSampleStageB: { color: "purple" },
};

app.registerExtension({
  name: "StableCascade.Appearance",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Cascade")) return;
    const { color, height = 0 } = LOOKS[node.comfyClass] ?? {};
    node.setSize([Math.max(node.size[0], WIDTH), Math.max(node.size[1], height)]);
    if (!color) return;
    const { color: title, bgcolor: body } = LGraphCanvas.node_colors[color];
    Object.assign(node, { color: title, bgcolor: body });
    // A loaded node has the color that it was saved with, or none.
    const before = node.onConfigure;
    node.onConfigure = function (saved, ...rest) {
      Object.assign(this, { color: saved.color, bgcolor: saved.bgcolor });
      return before?.call(this, saved, ...rest);
    };
  },
});
