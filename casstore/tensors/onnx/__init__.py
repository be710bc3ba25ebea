"""ONNX graphs, and the tensors that they keep in other files."""
