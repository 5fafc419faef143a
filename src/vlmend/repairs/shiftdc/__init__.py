"""ShiftDC: remove the safety-relevant part of the shift that an image causes, at inference.

Reference: Zou et al., Understanding and Rectifying Safety Perception Distortion in VLMs
(NeurIPS 2025, arXiv 2502.13095).
"""
