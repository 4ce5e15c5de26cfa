// The loaders show what the chosen file is, according to its header.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addNote, isOffered, onChange, onLoaded, valueOf } from "./note.js";

const TINY = "tiny cascade (included)";
const CHECKPOINT = "checkpoint";
// Node -> the kind of file that it loads, and the input with its name.
const LOADERS = {
  CascadeLoadStageC: ["stage_c", "unet_name"],
  CascadeLoadStageB: ["stage_b", "unet_name"],
  CascadeLoadStageA: ["stage_a", "vae_name"],
  CascadeLoadEncoder: ["effnet", "vae_name"],
  CascadeLoadTextEncoder: ["text_encoder", "clip_name"],
  CascadeLoadImageEncoder: ["image_encoder", "clip_name"],
  CascadeLoadCheckpoint: [CHECKPOINT, "ckpt_name"],
};

app.registerExtension({
  name: "StableCascade.Loaders",
  nodeCreated(node) {
    const loader = LOADERS[node.comfyClass];
    if (!loader) return;
    const [kind, input] = loader;
    const show = addNote(node);
    let latest = 0;
    const refresh = async () => {
      const mine = ++latest;
      const [lines, warning] = isOffered(node, input)
        ? await describe(kind, valueOf(node, input))
        : [[], "This file is not in ComfyUI's folders."];
      // Ignore a late answer to an earlier choice.
      if (mine === latest) show(lines, warning);
    };
    onChange(node, input, refresh);
    onLoaded(node, refresh);
    refresh();
  },
});

/** [lines, warning] for a choice of a loader. */
async function describe(kind, file) {
  if (file === TINY && kind === CHECKPOINT) return [["The tiny cascade: colored shapes, 256 x 256."], ""];
  if (kind === CHECKPOINT && file === "search my folders") return [["The largest networks that fit together."], ""];
  const query = new URLSearchParams({ kind, file: file ?? "" });
  let found;
  try {
    found = await (await api.fetchApi(`/stable_cascade/inspect?${query}`)).json();
  } catch {
    // The note is only a help: no error message if the server does not answer.
    return [[], ""];
  }
  if (found.problem) return [[], found.problem];
  const belongs = found.fits ? "" : `This is ${found.variant}; it belongs in ${found.folder}.`;
  return [[found.variant, [found.dtype, size(found.bytes)].filter(Boolean).join(", ")], belongs];
}

function size(bytes) {
  if (bytes == null) return "";
  return bytes < 1e9 ? `${Math.max(1, Math.round(bytes / 1e6))} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}
