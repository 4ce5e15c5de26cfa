// Templates start from images of this pack. Load Image only reads ComfyUI's input folder, so an image is copied there
// when a workflow that names it is opened, and only then.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const LOADER = "LoadImage";
const SAMPLES = [
  "circle",
  "drawing",
  "large_masked",
  "narrow",
  "room_for_more",
  "small",
  "square",
  "square_masked",
  "star",
].map((name) => `stable_cascade_${name}.png`);

app.registerExtension({
  name: "StableCascade.Samples",
  async beforeConfigureGraph(flow) {
    const graphs = [flow, ...(flow.definitions?.subgraphs ?? [])];
    const named = graphs.flatMap((graph) => graph.nodes ?? []).filter((node) => node.type === LOADER);
    const wanted = new Set(named.map((node) => node.widgets_values?.[0]).filter((name) => SAMPLES.includes(name)));
    await Promise.all([...wanted].filter((name) => !offered().includes(name)).map(copy));
  },
});

/** The choices of Load Image, which all its nodes share. */
function offered() {
  const image = LiteGraph.registered_node_types[LOADER]?.nodeData?.input?.required?.image;
  return (Array.isArray(image?.[0]) ? image[0] : image?.[1]?.options) ?? [];
}

async function copy(name) {
  const image = await fetch(new URL(`../samples/${name}`, import.meta.url));
  if (!image.ok) return;
  const form = new FormData();
  form.append("image", await image.blob(), name);
  // ComfyUI keeps a file of this name that is there already.
  const answer = await api.fetchApi("/upload/image", { method: "POST", body: form });
  if (answer.ok) offered().push(name);
}
