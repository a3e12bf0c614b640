"""Folding constants and dropping needless nodes in a graph fresh from the exporter.

The passes are those of ``onnxscript.optimizer.optimize``, which ``torch.onnx.export(optimize=True)`` runs, with fewer
rewrite rules. One of the rules left out, for a ``Slice`` that is half of a ``Split``, looks at every node once for every
node: minutes for a deep network, and no exported network has such slices. Most others are for operators that do not
occur either.
"""

from __future__ import annotations

from onnxscript import ir
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

_RULES = (
    *rules.add_0_rule.commute(),
    rules.sub_0_rule,
    *rules.mul_by_1_rule.commute(),
    rules.div_by_1_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.reshape_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.materialize_reshape_shape_rule,
    rules.min_max_rule,
    rules.max_min_rule,
    rules.remove_optional_bias_from_conv_rule,
)
_ROUNDS = 2  # what one round folds lets rules of the next apply


def simplify(model: ir.Model) -> None:
    """Inline functions, fold constants, drop what computes nothing, and make constants initializers, in place."""
    passes = ir.passes.common
    rewrite = RewritePass(_RULES)
    passes.InlinePass()(model)
    for _ in range(_ROUNDS):
        fold_constants_ir(model, onnx_shape_inference=True)
        rewrite(model)
        passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedFunctionsPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)
