// Settings of new nodes and of live previews, and commands. Their texts are in locales/<language>.
// The server reads the size of previews itself: nodes/host/preferences.py.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { say } from "./words.js";

const EMPTY_LATENT = "CascadeEmptyLatent";
const PRESET = "StableCascade.Preset";
const TEMPLATES = "StableCascade.Templates";
const FREE_MEMORY = "StableCascade.FreeMemory";

const preset = await api
  .fetchApi(`/object_info/${EMPTY_LATENT}`)
  .then(async (answer) => (await answer.json())[EMPTY_LATENT].input.required.preset[1])
  .catch(() => ({ options: [], default: "" }));

function setting(id, group, rest) {
  return { id, category: ["Stable Cascade", group, id], name: id, tooltip: id, ...rest };
}

app.registerExtension({
  name: "StableCascade.Settings",
  settings: [
    setting(PRESET, "Node", { type: "combo", options: preset.options, defaultValue: preset.default }),
    setting("StableCascade.PreviewSize", "Execution", {
      type: "slider",
      attrs: { min: 64, max: 1024, step: 64 },
      defaultValue: 512,
    }),
  ],
  commands: [
    { id: TEMPLATES, label: TEMPLATES, function: () => app.extensionManager.command.execute("Comfy.BrowseTemplates") },
    { id: FREE_MEMORY, label: FREE_MEMORY, function: freeMemory },
  ],
  menuCommands: [{ path: ["Extensions", "Stable Cascade"], commands: [TEMPLATES, FREE_MEMORY] }],
  nodeCreated(node) {
    if (node.comfyClass !== EMPTY_LATENT) return;
    // A workflow that is loaded sets its own value afterwards.
    const widget = node.widgets?.find((each) => each.name === "preset");
    const chosen = app.extensionManager.setting.get(PRESET);
    if (!widget || chosen === widget.value || !preset.options.includes(chosen)) return;
    widget.value = chosen;
    widget.callback?.(chosen);
  },
});

/** As ComfyUI's own buttons: models leave the memory, and results of nodes are forgotten, once nothing runs. */
async function freeMemory() {
  const body = JSON.stringify({ unload_models: true, free_memory: true });
  const headers = { "Content-Type": "application/json" };
  const answer = await api.fetchApi("/free", { method: "POST", headers, body });
  const severity = answer.ok ? "success" : "error";
  app.extensionManager.toast.add({ severity, summary: say(answer.ok ? "freed" : "notFreed"), life: 4000 });
}
