"""Names of nodes in an exported graph: where in the network they come from.

``layers.0.conv.act/QuantizeLinear`` is the node that quantizes the input of ``layers.0.conv``. Profilers and
TensorRT's layer table show these names, and :mod:`.codes` finds sites by them.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection

import onnx

SCOPES = "pkg.torch.onnx.name_scopes"
"""Key under which the exporter notes the modules of a node."""


def name_nodes(model: onnx.ModelProto, modules: Collection[str]) -> None:
    """Name every node ``<module>/<operator>`` (then ``_1``, ``_2`` ...), and drop the exporter's notes, in place.

    The notes quote source lines with the paths of the exporting machine and outweigh the graph itself.

    Args:
        model: fresh from the exporter.
        modules: names of all modules of the exported network.
    """
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        name = f"{_scope(node, modules)}/{node.op_type}"
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]


def _scope(node: onnx.NodeProto, modules: Collection[str]) -> str:
    """Innermost module of a node.

    The exporter lists the modules from outside to inside and the operation last. Below a module that was called
    through a plain attribute the names are relative to that module.
    """
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            base = scope = ""
            for name in ast.literal_eval(entry.value)[:-1]:
                if name in modules:
                    scope = base = name
                else:
                    scope = f"{base}.{name}"
            return scope
    return ""
