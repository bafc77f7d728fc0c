"""One file that predicts without DeepSpeed: safetensors, pt2 (`torch.export`) or ONNX. See docs/checkpoints.md."""

FORMATS = ("safetensors", "pt2", "onnx")
