// The loaders show what the chosen file is according to its header, and the memory that it will take.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addNote, isOffered, onChange, onLoaded, valueOf } from "./note.js";
import { say } from "./words.js";

const TINY = "tiny cascade (included)";
const CHECKPOINT = "checkpoint";
const SHOWN = "StableCascade.FileNotes";
// Node -> the kind of file that it loads, and the input with its name.
const LOADERS = {
  CascadeLoadStageC: ["stage_c", "unet_name"],
  CascadeLoadStageB: ["stage_b", "unet_name"],
  CascadeLoadStageA: ["stage_a", "vae_name"],
  CascadeLoadEncoder: ["effnet", "vae_name"],
  CascadeLoadTextEncoder: ["text_encoder", "clip_name"],
  CascadeLoadImageEncoder: ["image_encoder", "clip_name"],
  CascadeLoadCheckpoint: [CHECKPOINT, "ckpt_name"],
  CascadeLoadControlNet: ["controlnet", "control_net_name"],
};

app.registerExtension({
  name: "StableCascade.Loaders",
  settings: [
    {
      id: SHOWN,
      category: ["Stable Cascade", "Node", SHOWN],
      // Name and tooltip are in locales/<language>/settings.json.
      name: SHOWN,
      tooltip: SHOWN,
      type: "boolean",
      defaultValue: true,
    },
  ],
  nodeCreated(node) {
    const loader = LOADERS[node.comfyClass];
    if (!loader || !app.extensionManager.setting.get(SHOWN)) return;
    const [kind, input] = loader;
    const show = addNote(node);
    let latest = 0;
    const refresh = async () => {
      const mine = ++latest;
      const [lines, warning] = isOffered(node, input)
        ? await describe(kind, valueOf(node, input), valueOf(node, "weight_dtype"))
        : [[], say("notThere")];
      // Ignore a late answer to an earlier choice.
      if (mine === latest) show(lines, warning);
    };
    for (const name of [input, "weight_dtype"]) onChange(node, name, refresh);
    onLoaded(node, refresh);
    refresh();
  },
});

/** [lines, warning] for a choice of a loader. */
async function describe(kind, file, dtype) {
  if (file === TINY && kind === CHECKPOINT) return [[say("tiny")], ""];
  if (kind === CHECKPOINT && file === "search my folders") return [[say("search")], ""];
  const query = new URLSearchParams({ kind, file: file ?? "", weight_dtype: dtype ?? "default" });
  let found;
  try {
    found = await (await api.fetchApi(`/stable_cascade/inspect?${query}`)).json();
  } catch {
    // The note is only a help: no error message if the server does not answer.
    return [[], ""];
  }
  if (found.problem) return [[], found.problem];
  const stored = [found.dtype, size(found.bytes)].filter(Boolean).join(", ");
  if (!found.fits) return [[found.variant, stored], say("belongs", { variant: found.variant, folder: found.folder })];
  return [[found.variant, stored, say("memory", { size: size(found.memory) })], ""];
}

function size(bytes) {
  if (bytes == null) return "";
  return bytes < 1e9 ? `${Math.max(1, Math.round(bytes / 1e6))} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}
