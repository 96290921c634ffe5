"""torch.sagemaker.grad_norm."""

from conclave.gradients import clip_grad_norm_

__all__ = ["clip_grad_norm_"]
