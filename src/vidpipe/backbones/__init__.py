"""Frozen image transformers behind one interface (`zoo`): whatever the zoo, a timm ViT.

Nothing is imported here: params are read without torch.
"""
