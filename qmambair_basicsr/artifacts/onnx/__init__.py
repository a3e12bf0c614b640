"""ONNX files: writing, running with onnxruntime, and the integer codes inside."""
