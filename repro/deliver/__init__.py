"""From records and supernets to a model for a device: choose, extract, model card, ONNX, sizes."""
