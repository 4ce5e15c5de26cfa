"""The tiny cascade: a whole Stable Cascade of a few megabytes that ships with the pack, and what it was trained on."""
