"""An optimizer of tables of one's own, for ``optimizers: {sparse: {kind: clipped_adagrad}}``."""

from livetrain.modules.optimizers import RowwiseAdagrad, register_optimizer


@register_optimizer("clipped_adagrad")
class ClippedAdagrad(RowwiseAdagrad):
    """Row-wise Adagrad whose gradients lie between -0.01 and 0.01."""

    replicated = False  # only the fused kernel clips

    def fused(self) -> dict[str, object]:
        return {"gradient_clipping": True, "max_gradient": 0.01}
