// Settings of new nodes and of live previews, and commands. Their texts are in locales/<language>.
// empty_latent.js reads the preset, and the server the size of previews: nodes/host/preferences.py.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { say } from "./words.js";

const EMPTY_LATENT = "CascadeEmptyLatent";
const AUTO = "auto";
const TEMPLATES = "StableCascade.Templates";
const FREE_MEMORY = "StableCascade.FreeMemory";

const presets = await api
  .fetchApi(`/object_info/${EMPTY_LATENT}`)
  .then(async (answer) => (await answer.json())[EMPTY_LATENT].input.required.preset[1].options)
  .catch(() => []);

function setting(id, group, rest) {
  return { id, category: ["Stable Cascade", group, id], name: id, tooltip: id, ...rest };
}

app.registerExtension({
  name: "StableCascade.Settings",
  settings: [
    setting("StableCascade.Preset", "Node", { type: "combo", options: [AUTO, ...presets], defaultValue: AUTO }),
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
});

/** As ComfyUI's own buttons: models leave the memory, and results of nodes are forgotten, once nothing runs. */
async function freeMemory() {
  const body = JSON.stringify({ unload_models: true, free_memory: true });
  const headers = { "Content-Type": "application/json" };
  const answer = await api.fetchApi("/free", { method: "POST", headers, body });
  const severity = answer.ok ? "success" : "error";
  app.extensionManager.toast.add({ severity, summary: say(answer.ok ? "freed" : "notFreed"), life: 4000 });
}
