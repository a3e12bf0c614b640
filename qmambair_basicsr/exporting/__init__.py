"""ONNX export of quantized networks: integer layers, the selective scan as an ONNX graph, and the file itself."""
