"""Attention hypernetworks: networks on the context of a UNet's attention."""
