"""What is inside a VLM: anatomy, loading, encoding and generation.

Kept empty so that `vlmend.models.spec` and `vlmend.models.generation` import without torch.
"""
