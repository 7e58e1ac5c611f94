"""Hypernetworks carried elsewhere: to LoRA in its three layouts, and to the files of other programs."""
