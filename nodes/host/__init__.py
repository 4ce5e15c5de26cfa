"""The only room that touches ComfyUI's insides: its loaders, its model management, its samplers, its folders."""
