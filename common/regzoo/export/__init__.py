"""Networks as TorchScript, ONNX and TensorRT, and the same networks loaded back."""

from regzoo.export.exported import ExportedNetwork, OnnxNetwork, TorchScriptNetwork
from regzoo.export.handler import Export, export_network

__all__ = ["Export", "ExportedNetwork", "OnnxNetwork", "TorchScriptNetwork", "export_network"]
