"""vLLM serves images with fewer tokens: an out-of-tree plug-in that needs no change of vLLM.

Read in this order: `configuration` (what the user asks for), `registration` (how vLLM learns of it), `processing` (how
many placeholders an image gets), `choosing` (which rows fill them), and one file per model family.
"""
