"""torch.sagemaker.moe."""
