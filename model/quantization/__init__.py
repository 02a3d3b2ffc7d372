"""From a trained generator to ONNX engines: SmoothQuant, export, static INT8, measured fidelity."""
