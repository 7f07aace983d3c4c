"""Models on disk and on the hub: where they come from, how converted ones are written and read back.

Nothing is imported here: `hub.quantizer` is loaded while transformers itself is being imported.
"""
