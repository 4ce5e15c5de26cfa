// From the size of an image to the sizes of its latents: the rule of cascade/pipelines/sizes.py.

const STAGE_C_FACTOR = 42.67;
const STAGE_B_FACTOR = 4;
const TINY = 256;
// The released models were trained at about 1024 x 1024, in formats up to 2:1.
const FEWEST = 0.75e6;
const MOST = 1.6e6;
const LONGEST = 2.05;

/** Width and height of a preset such as "1152 x 928 (5:4)", null for a preset without a size. */
export function sizeOfPreset(preset) {
  const found = /^(\d+) x (\d+)/.exec(preset ?? "");
  return found ? { width: Number(found[1]), height: Number(found[2]) } : null;
}

/** The preset of a size among these, undefined if there is none. */
export function presetOfSize(presets, width, height) {
  return presets.find((preset) => {
    const size = sizeOfPreset(preset);
    return size?.width === width && size.height === height;
  });
}

/** Width and height of the latents of Stage C and Stage B. */
export function latentSizes(width, height) {
  return {
    stageC: [Math.ceil(width / STAGE_C_FACTOR), Math.ceil(height / STAGE_C_FACTOR)],
    stageB: [Math.ceil(width / STAGE_B_FACTOR), Math.ceil(height / STAGE_B_FACTOR)],
  };
}

/** A warning for sizes that the models were not trained at, else "". */
export function warningFor(width, height) {
  if (width === TINY && height === TINY) return "";
  const pixels = width * height;
  if (pixels < FEWEST) return "Smaller than the released models were trained at: little detail. Tiny cascade: 256 x 256.";
  if (pixels > MOST) return "Larger than the models were trained at: things may repeat.";
  if (Math.max(width / height, height / width) > LONGEST) return "Longer than 2:1: things may repeat.";
  return "";
}
