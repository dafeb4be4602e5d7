"""Networks as TorchScript, ONNX and TensorRT, and the same networks loaded back."""

from regzoo.export.export import Export, export_network
from regzoo.export.exported import ExportedNetwork, OnnxNetwork, TorchScriptNetwork

__all__ = ["Export", "ExportedNetwork", "OnnxNetwork", "TorchScriptNetwork", "export_network"]
