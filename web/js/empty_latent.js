// Empty Latent shows its size in pixels and in latents.

import { app } from "../../../scripts/app.js";
import { addNote, onChange, onLoaded, valueOf } from "./note.js";
import { latentSizes, sizeOfPreset, warningFor } from "./sizes.js";

app.registerExtension({
  name: "StableCascade.EmptyLatent",
  nodeCreated(node) {
    if (node.comfyClass !== "CascadeEmptyLatent") return;
    const show = addNote(node);
    const refresh = () => {
      const { width, height } = sizeOfPreset(valueOf(node, "preset")) ?? {
        width: valueOf(node, "width"),
        height: valueOf(node, "height"),
      };
      const { stageC, stageB } = latentSizes(width, height);
      const latents = `Stage C ${stageC.join(" x ")}, Stage B ${stageB.join(" x ")}`;
      show([`${width} x ${height} pixels`, latents], warningFor(width, height));
    };
    for (const name of ["preset", "width", "height"]) onChange(node, name, refresh);
    onLoaded(node, refresh);
    refresh();
  },
});
